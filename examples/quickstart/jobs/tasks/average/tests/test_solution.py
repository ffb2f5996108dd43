import unittest

from solution import average


class Hidden(unittest.TestCase):
    CASES = (
        ([[2, 4]], 3.0),
        ([[1]], 1.0),
        ([[1, 2, 3, 4]], 2.5),
        ([[-5, 5]], 0.0),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(average(*args), expected)
