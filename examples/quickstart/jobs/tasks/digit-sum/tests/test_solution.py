import unittest

from solution import digit_sum


class Hidden(unittest.TestCase):
    CASES = (
        ([123], 6),
        ([0], 0),
        ([999], 27),
        ([1000000], 1),
        ([4815162342], 36),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(digit_sum(*args), expected)
