import unittest

from solution import transpose


class Hidden(unittest.TestCase):
    CASES = (
        ([[[1, 2, 3], [4, 5, 6]]], [[1, 4], [2, 5], [3, 6]]),
        ([[[1], [2]]], [[1, 2]]),
        ([[[1, 2], [3, 4]]], [[1, 3], [2, 4]]),
        ([[[1, 2, 3, 4]]], [[1], [2], [3], [4]]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(transpose(*args), expected)
