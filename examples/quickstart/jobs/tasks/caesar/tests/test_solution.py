import unittest

from solution import caesar


class Hidden(unittest.TestCase):
    CASES = (
        (['abc', 1], 'bcd'),
        (['hello', 13], 'uryyb'),
        (['zebra', 25], 'ydaqz'),
        (['', 5], ''),
        (['Hi', 1], 'Hj'),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(caesar(*args), expected)
