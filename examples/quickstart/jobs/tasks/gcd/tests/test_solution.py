import unittest

from solution import gcd


class Hidden(unittest.TestCase):
    CASES = (
        ([12, 18], 6),
        ([100, 75], 25),
        ([1, 1], 1),
        ([81, 27], 27),
        ([17, 34], 17),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(gcd(*args), expected)
