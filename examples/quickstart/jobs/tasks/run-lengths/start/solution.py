def run_lengths(text):
    runs = []
    for letter in text:
        if runs and runs[-1][0] != letter:
            runs[-1][1] += 1
        else:
            runs.append([letter, 0])
    return runs
