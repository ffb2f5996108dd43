import unittest

from solution import reverse_words


class Hidden(unittest.TestCase):
    CASES = (
        (['a b c'], 'c b a'),
        (['one'], 'one'),
        (['to be or not to be'], 'be to not or be to'),
        (['x y'], 'y x'),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(reverse_words(*args), expected)
