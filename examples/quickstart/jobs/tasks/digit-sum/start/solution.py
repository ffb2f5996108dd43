def digit_sum(number):
    total = 0
    while number > 0:
        total += number % 9
        number = number // 10
    return total
