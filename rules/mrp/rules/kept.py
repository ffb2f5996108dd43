"""Trials of the build before whose records are the same: their rows are kept as they are, and no action is made.

A record is told by its line in the dataset's index, which holds the digest of each of its views; so lines are compared
as bytes, and only those that are new are ever parsed.
"""

import json
from collections.abc import Iterator

from mrp.cache.store import Store
from mrp.rules.rule import TrialsValue
from mrp.specs.labels import encode_text


class KeptTrials:
    """The rows of a whole rollout, by the index lines of their records.

    `before` is what the rollout came to; every trial of it had an outcome, and a reward where a grader gives one.
    Raises MissingBlob.
    """

    def __init__(self, before: TrialsValue, samples: int, store: Store) -> None:
        assert before.index is not None
        self._lines = _lines(store.get_bytes(before.index))
        self._rows = _lines(store.get_bytes(before.trials))
        self._samples = samples
        self._places = {line: place for place, line in enumerate(self._lines)}
        self._taken: set[int] = set()

    def rows(self, line: bytes) -> list[bytes] | None:
        """The rows of all samples of the record with this line, if it had this very one."""
        place = self._places.get(line)
        if place is None:
            return None
        self._taken.add(place)
        return self._rows[place * self._samples : (place + 1) * self._samples]

    def dropped(self) -> frozenset[str]:
        """The items whose rows were not asked for."""
        return frozenset(self._items())

    def _items(self) -> Iterator[str]:
        for place, line in enumerate(self._lines):
            if place not in self._taken:
                encoded = encode_text(json.loads(line)["id"])
                yield encoded
                yield from (f"{encoded}#{sample}" for sample in range(1, self._samples))


def can_keep(before: TrialsValue, shape: str) -> bool:
    """Whether rows of `before` may stand: the rollout has the same shape, and nothing in it was left open."""
    whole = before.scored == before.count and before.reproducible and not before.partial and not before.trajectories
    return whole and before.index is not None and before.shape == shape


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)
