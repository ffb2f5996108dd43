import unittest

from solution import run_lengths


class Hidden(unittest.TestCase):
    CASES = (
        (['aab'], [['a', 2], ['b', 1]]),
        ([''], []),
        (['abba'], [['a', 1], ['b', 2], ['a', 1]]),
        (['zzzz'], [['z', 4]]),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(run_lengths(*args), expected)
