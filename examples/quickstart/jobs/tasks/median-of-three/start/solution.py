def median_of_three(a, b, c):
    return a + b + c - max(a, b, c) + min(a, b, c)
