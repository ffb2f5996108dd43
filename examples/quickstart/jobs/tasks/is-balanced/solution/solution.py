def is_balanced(text):
    closing = {")": "(", "]": "[", "}": "{"}
    stack = []
    for letter in text:
        if letter in "([{":
            stack.append(letter)
        elif letter in closing:
            if not stack or stack.pop() != closing[letter]:
                return False
    return not stack
