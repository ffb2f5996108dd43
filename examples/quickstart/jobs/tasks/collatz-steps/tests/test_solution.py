import unittest

from solution import collatz_steps


class Hidden(unittest.TestCase):
    CASES = (
        ([1], 0),
        ([2], 1),
        ([7], 16),
        ([27], 111),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(collatz_steps(*args), expected)
