import unittest

from solution import triangle_kind


class Hidden(unittest.TestCase):
    CASES = (
        ([3, 3, 3], 'equilateral'),
        ([2, 2, 3], 'isosceles'),
        ([1, 1, 2], 'none'),
        ([4, 2, 2], 'none'),
        ([7, 5, 7], 'isosceles'),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(triangle_kind(*args), expected)
