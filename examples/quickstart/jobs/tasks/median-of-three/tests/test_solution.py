import unittest

from solution import median_of_three


class Hidden(unittest.TestCase):
    CASES = (
        ([1, 2, 3], 2),
        ([2, 2, 2], 2),
        ([3, 1, 2], 2),
        ([-1, 0, 1], 0),
        ([7, 7, 1], 7),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(median_of_three(*args), expected)
