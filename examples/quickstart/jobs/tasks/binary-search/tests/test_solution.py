import unittest

from solution import binary_search


class Hidden(unittest.TestCase):
    CASES = (
        ([[1, 3, 5], 3], 1),
        ([[], 1], -1),
        ([[4], 4], 0),
        ([[1, 2, 3, 4], 1], 0),
        ([[1, 2, 3, 4], 4], 3),
        ([[1, 2, 3, 4], 9], -1),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(binary_search(*args), expected)
