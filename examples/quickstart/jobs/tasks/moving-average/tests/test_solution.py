import unittest

from solution import moving_average


class Hidden(unittest.TestCase):
    CASES = (
        ([[1, 2, 3, 4], 2], [1.5, 2.5, 3.5]),
        ([[5], 1], [5.0]),
        ([[1, 2, 3], 3], [2.0]),
        ([[1, 1, 1, 1, 1], 2], [1.0, 1.0, 1.0, 1.0]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(moving_average(*args), expected)
