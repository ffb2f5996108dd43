import unittest

from solution import count_vowels


class Hidden(unittest.TestCase):
    CASES = (
        (['banana'], 3),
        ([''], 0),
        (['Rhythm'], 0),
        (['Education'], 5),
        (['queueing'], 5),
    )

    def test_cases(self):
        for args, expected in self.CASES:
            with self.subTest(args=args):
                self.assertEqual(count_vowels(*args), expected)
