import unittest

from solution import is_prime


class Hidden(unittest.TestCase):
    CASES = (
        ([7], True),
        ([1], False),
        ([2], True),
        ([25], False),
        ([49], False),
        ([97], True),
        ([100], False),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(is_prime(*args), expected)
