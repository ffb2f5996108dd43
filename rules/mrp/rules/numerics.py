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


def standard_error(values: Iterable[Fraction]) -> Decimal | None:
    """The standard error of the mean of `values` (sample deviation over root n); None for fewer than two."""
    count, total, squares = 0, Fraction(0), Fraction(0)
    for value in values:
        count += 1
        total += value
        squares += value * value
    if count < 2:
        return None
    return square_root((squares - total * total / count) / (count * (count - 1)))


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
