"""The one JSON document of --json, written as it comes."""

import json
from collections.abc import Iterator
from decimal import Decimal

import pytest

from mrp.cache.canonical import Json, canonical_text
from mrp.cli.screen import Screen, Spelled

VALUE: Json = {
    "b": [{"x": 1, "a": None}, {"x": [1, 2], "y": "ü"}],
    "a": {"deep": {"n": Decimal("1.50")}, "empty": {}, "none": [], "words": ["p", "q"]},
    "c": 0.25,
}


def written(value: Json, capsys: pytest.CaptureFixture[str]) -> str:
    Screen(json=True).document(value)
    return capsys.readouterr().out


def test_a_document_is_canonical_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(VALUE, capsys) == canonical_text({**VALUE, "c": Decimal("0.25")}) + "\n"


def test_an_iterator_is_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"b": 1, "a": n} for n in range(3)]
    streamed = {"rows": iter(rows), "runs": [{"all": iter([])}], "spelled": iter([Spelled('{"z":1}')])}
    assert (
        written(streamed, capsys) == canonical_text({"rows": rows, "runs": [{"all": []}], "spelled": [{"z": 1}]}) + "\n"
    )
    assert json.loads(written(iter(rows), capsys)) == rows


def test_a_long_array_is_written_before_its_end_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def rows() -> Iterator[Json]:
        for number in range(20_000):
            if number == 19_999:
                seen.append(len(capsys.readouterr().out))
            yield {"number": number}

    written(rows(), capsys)
    assert seen[0] > 200_000
