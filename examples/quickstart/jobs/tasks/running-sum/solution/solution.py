def running_sum(numbers):
    sums = []
    total = 0
    for number in numbers:
        total = total + number
        sums.append(total)
    return sums
