import unittest

from solution import roman


class Hidden(unittest.TestCase):
    CASES = (
        ([1], 'I'),
        ([3], 'III'),
        ([9], 'IX'),
        ([58], 'LVIII'),
        ([3999], 'MMMCMXCIX'),
        ([10], 'X'),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(roman(*args), expected)
