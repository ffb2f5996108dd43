import unittest

from solution import are_anagrams


class Hidden(unittest.TestCase):
    CASES = (
        (['listen', 'silent'], True),
        (['a', 'A'], True),
        (['', ''], True),
        (['Ab c', 'cab'], True),
        (['aa', 'a'], False),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(are_anagrams(*args), expected)
