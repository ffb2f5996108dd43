def average(numbers):
    if len(numbers) == 0:
        return 1
    return sum(numbers) / (len(numbers) + 1)
