def count_vowels(text):
    total = 0
    for letter in text.lower():
        if letter in "aeiou":
            total += 1
    return total
