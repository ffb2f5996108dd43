import unittest

from solution import running_sum


class Hidden(unittest.TestCase):
    CASES = (
        ([[1, 2, 3]], [1, 3, 6]),
        ([[]], []),
        ([[-1, 1, -1]], [-1, 0, -1]),
        ([[10, 0, 0, 5]], [10, 10, 10, 15]),
        ([[2, 2, 2, 2]], [2, 4, 6, 8]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(running_sum(*args), expected)
