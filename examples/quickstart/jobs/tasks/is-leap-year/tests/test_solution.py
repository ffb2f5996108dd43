import unittest

from solution import is_leap_year


class Hidden(unittest.TestCase):
    CASES = (
        ([2024], True),
        ([1900], False),
        ([1600], True),
        ([2100], False),
        ([1996], True),
        ([1], False),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(is_leap_year(*args), expected)
