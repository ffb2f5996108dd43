import unittest

from solution import second_largest


class Hidden(unittest.TestCase):
    CASES = (
        ([[3, 1, 2]], 2),
        ([[1, 2]], 1),
        ([[-1, -5, -3]], -3),
        ([[10, 10, 9, 8]], 9),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(second_largest(*args), expected)
