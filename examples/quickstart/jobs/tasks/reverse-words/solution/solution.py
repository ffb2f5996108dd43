def reverse_words(text):
    words = text.split(" ")
    return " ".join(words[::-1])
