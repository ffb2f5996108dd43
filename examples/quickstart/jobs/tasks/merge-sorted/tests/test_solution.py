import unittest

from solution import merge_sorted


class Hidden(unittest.TestCase):
    CASES = (
        ([[1, 3], [2]], [1, 2, 3]),
        ([[1], [1]], [1, 1]),
        ([[1, 2, 3], [4, 5]], [1, 2, 3, 4, 5]),
        ([[5], [1, 2, 9]], [1, 2, 5, 9]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(merge_sorted(*args), expected)
