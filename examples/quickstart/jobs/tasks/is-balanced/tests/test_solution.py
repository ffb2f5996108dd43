import unittest

from solution import is_balanced


class Hidden(unittest.TestCase):
    CASES = (
        (['(a)'], True),
        (['([{}])'], True),
        (['([)]'], False),
        ([''], True),
        (['(()'], False),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(is_balanced(*args), expected)
