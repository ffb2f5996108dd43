import unittest

from solution import title_case


class Hidden(unittest.TestCase):
    CASES = (
        (['hello world'], 'Hello World'),
        (['MIXED cAsE'], 'Mixed Case'),
        ([''], ''),
        (['x'], 'X'),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(title_case(*args), expected)
