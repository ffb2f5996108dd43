import unittest

from solution import remove_duplicates


class Hidden(unittest.TestCase):
    CASES = (
        ([[1, 1, 2]], [1, 2]),
        ([[]], []),
        ([[3, 2, 1, 2, 3]], [3, 2, 1]),
        ([[0, 0, 0]], [0]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(remove_duplicates(*args), expected)
