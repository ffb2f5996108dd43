import unittest

from solution import clamp


class Hidden(unittest.TestCase):
    CASES = (
        ([5, 0, 10], 5),
        ([0, 0, 10], 0),
        ([10, 0, 10], 10),
        ([11, 0, 10], 10),
        ([-1, -1, -1], -1),
        ([7, 3, 5], 5),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(clamp(*args), expected)
