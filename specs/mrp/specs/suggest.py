"""The known word that was probably meant."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is few edits (swaps of neighbours count as one) from `word`, or None.

    Case does not matter; ties go to the first in alphabetical order.
    """
    limit = max(1, min(3, len(word) // 3))
    folded = word.casefold()
    best: tuple[int, str] | None = None
    for candidate in known:
        distance = _distance(folded, candidate.casefold(), best[0] if best else limit)
        if distance is not None and candidate != word and (best is None or (distance, candidate) < best):
            best = (distance, candidate)
    return best[1] if best else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint "did you mean `samples`?", or "" when nothing known is near `word`."""
    candidate = nearest(word, known)
    return f"did you mean `{candidate}`?" if candidate is not None else ""


def _distance(a: str, b: str, limit: int) -> int | None:
    """Optimal string alignment distance of `a` and `b`, or None when it is above `limit`."""
    if abs(len(a) - len(b)) > limit:
        return None
    before_last: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before_last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return None
        before_last, last = last, row
    return last[-1] if last[-1] <= limit else None
