def caesar(text, shift):
    shifted = []
    for letter in text:
        if "a" <= letter <= "z":
            shifted.append(chr((ord(letter) - 97 + shift) % 26 + 97))
        else:
            shifted.append(letter)
    return "".join(shifted)
