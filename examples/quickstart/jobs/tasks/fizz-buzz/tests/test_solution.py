import unittest

from solution import fizz_buzz


class Hidden(unittest.TestCase):
    CASES = (
        ([3], ['1', '2', 'Fizz']),
        ([1], ['1']),
        ([15], ['1', '2', 'Fizz', '4', 'Buzz', 'Fizz', '7', '8', 'Fizz', 'Buzz', '11', 'Fizz', '13', '14', 'FizzBuzz']),
        ([16], ['1', '2', 'Fizz', '4', 'Buzz', 'Fizz', '7', '8', 'Fizz', 'Buzz', '11', 'Fizz', '13', '14', 'FizzBuzz', '16']),
        ([0], []),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(fizz_buzz(*args), expected)
