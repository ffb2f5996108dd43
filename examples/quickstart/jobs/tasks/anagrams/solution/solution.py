def are_anagrams(first, second):
    def letters(text):
        return sorted(text.lower().replace(" ", ""))

    return letters(first) == letters(second)
