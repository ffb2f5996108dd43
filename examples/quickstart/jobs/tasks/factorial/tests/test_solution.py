import unittest

from solution import factorial


class Hidden(unittest.TestCase):
    CASES = (
        ([0], 1),
        ([1], 1),
        ([2], 2),
        ([6], 720),
        ([10], 3628800),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(factorial(*args), expected)
