def moving_average(numbers, width):
    means = []
    for start in range(len(numbers) - width + 1):
        window = numbers[start : start + width]
        means.append(sum(window) / width)
    return means
