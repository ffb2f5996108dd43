def are_anagrams(first, second):
    def letters(text):
        return sorted(text)

    return letters(first) == letters(second)
