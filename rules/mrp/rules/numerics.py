"""Exact arithmetic for results, so that a number is the same on every machine and in every order of its inputs.

Sums, medians, minima and maxima are exact. Means and standard errors are computed from exact sums and rounded once,
half to even, to 17 significant digits. No binary float takes part.
"""

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation, Overflow, localcontext
from fractions import Fraction

DIGITS = 17
"""Significant digits of means, standard errors and estimates."""

_EXACT_DIGITS = 2000
"""Enough for every sum of doubles; what needs more is refused rather than rounded."""

_EXACT = Context(prec=_EXACT_DIGITS, rounding=ROUND_HALF_EVEN, traps=[Inexact, InvalidOperation, Overflow])
_ROUNDED = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, Overflow])
_GUARDED = Context(prec=3 * DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, Overflow])

Number = int | Decimal


def exact_sum(total: Decimal, value: Number) -> Decimal:
    """`total + value` without rounding; raises OverflowError when that needs more than 2000 digits."""
    try:
        return _EXACT.add(total, Decimal(value))
    except (Inexact, InvalidOperation, Overflow):
        raise OverflowError(f"the sum with {value:.3e} needs more than {_EXACT_DIGITS} digits") from None


def rounded(value: Fraction) -> Decimal:
    """`value` rounded once, half to even, to 17 significant digits."""
    return _ROUNDED.divide(Decimal(value.numerator), Decimal(value.denominator))


def square_root(value: Fraction) -> Decimal:
    """The square root of a fraction that is not negative, to 17 significant digits."""
    quotient = _GUARDED.divide(Decimal(value.numerator), Decimal(value.denominator))
    return _ROUNDED.plus(_GUARDED.sqrt(quotient))


def mean(total: Decimal, count: int) -> Decimal:
    """`total / count`, rounded once to 17 significant digits."""
    return _ROUNDED.divide(total, Decimal(count))


def standard_error(values: Iterable[tuple[int, int, int]]) -> Decimal | None:
    """The standard error of the mean (sample deviation over root n); None for fewer than two values.

    A value is (numerator, denominator, how often).
    """
    size = 0
    # Fractions are slow to add, so those of one denominator are added as whole numbers.
    sums: dict[int, tuple[int, int]] = {}
    for numerator, denominator, count in values:
        size += count
        total, squares = sums.get(denominator, (0, 0))
        sums[denominator] = total + numerator * count, squares + numerator * numerator * count
    if size < 2:
        return None
    whole = sum((Fraction(total, denominator) for denominator, (total, _) in sums.items()), Fraction(0))
    square = sum((Fraction(squares, denominator**2) for denominator, (_, squares) in sums.items()), Fraction(0))
    return square_root((square - whole * whole / size) / (size * (size - 1)))


def median(counts: Iterable[tuple[Decimal, int]]) -> Decimal:
    """The median of values given as (value, how often), one pair a value; exact. There must be at least one."""
    ordered = sorted(counts)
    size = sum(count for _, count in ordered)
    low = _at(ordered, (size - 1) // 2)
    high = _at(ordered, size // 2)
    if low == high:
        return low
    with localcontext(_EXACT):
        return (low + high) / 2


def _at(ordered: list[tuple[Decimal, int]], index: int) -> Decimal:
    for value, count in ordered:
        if index < count:
            return value
        index -= count
    raise AssertionError("the index is beyond the values")
