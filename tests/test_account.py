"""What a run keeps of each action: the digest lines, and what was executed."""

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from mrp.cache.canonical import canonical_digest, canonical_text
from mrp.cache.digest import ActionKey, Digest
from mrp.rules.action import Action, ActionKind, ActionShape, make_action
from mrp.runtime.account import Lines, lines_by_label
from mrp.runtime.events import EventLog, ItemFinished, ItemStarted, RunStarted, Waiting, event_json, event_line
from mrp.runtime.runs import DigestLine
from mrp.specs.results import Outcome, Ref, Result

TREE = Digest("a" * 64)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def action(label: str, item: str = "", number: int = 1, reproducible: bool = True) -> Action:
    key = ActionKey(Digest(f"{number:064x}"))
    return Action(ActionKind.TRIAL, key, b"", label, item, None, reproducible=reproducible)


def result(outcome: Outcome = Outcome.OK, reproducible: bool = True) -> Result:
    return Result(outcome, outputs={"work": Ref("tree", TREE)}, reproducible=reproducible)


def test_lines_come_sorted_and_say_what_was_noted() -> None:
    lines = Lines()
    lines.note(action("//b:x", "2"), result(Outcome.FAILED), executed=True)
    lines.note(action("//b:x", "10", 2), result(reproducible=False), executed=False)
    lines.note(action("//a:x", "", 3, reproducible=False), result(Outcome.LIMIT), executed=False)
    found = list(lines.values())
    assert [(line.label, line.item, line.outcome, line.reproducible, ran) for line, ran in found] == [
        ("//a:x", "", "limit", False, False),
        ("//b:x", "10", "ok", False, False),
        ("//b:x", "2", "failed", True, True),
    ]
    assert found[1][0].key == f"{2:064x}"
    assert found[1][0].result == result().digest()
    assert (lines.executed, len(lines)) == (1, 3)


def test_what_was_executed_once_stays_so_and_a_result_outlives_a_later_failure() -> None:
    lines = Lines()
    one = action("//a:x")
    lines.note(one, result(), executed=True)
    lines.note(one, None, executed=False)
    assert lines.was_executed(one.identity)
    ((line, ran),) = lines.values()
    assert (line.outcome, ran, lines.executed) == ("ok", True, 1)
    lines.note(action("//a:y"), None, executed=True)
    assert (lines.executed, len(lines), len(list(lines.values()))) == (2, 2, 1)


def test_cached_first_and_executed_in_a_later_pass_counts_as_executed() -> None:
    lines = Lines()
    one = action("//a:x")
    lines.note(one, result(), executed=False)
    assert not lines.was_executed(one.identity)
    lines.note(one, result(), executed=True)
    assert (lines.executed, [ran for _, ran in lines.values()]) == (1, [True])


@given(text, text)
def test_the_lines_of_a_label_are_canonical_json(label: str, item: str) -> None:
    lines = Lines()
    lines.note(action(label, item), result(), executed=True)
    lines.note(action(f"{label}!", item), result(), executed=True)
    by_label = lines_by_label(lines)
    assert list(by_label) == [label, f"{label}!"]
    for (line, _), written in zip(lines.values(), by_label.values(), strict=True):
        assert written.decode() == canonical_text(line.to_json()) + "\n"
        assert DigestLine(**json.loads(written)) == line


@given(st.dictionaries(text, st.sampled_from(["blob", "tree"])), st.dictionaries(text, st.integers() | text), text)
def test_the_digest_of_a_result_is_that_of_its_canonical_form(
    outputs: dict[str, str], values: dict[str, object], limit: str
) -> None:
    refs = {name: Ref("tree" if kind == "tree" else "blob", TREE) for name, kind in outputs.items()}
    for one in (Result(Outcome.OK, None, refs, values), Result(Outcome.LIMIT, limit, refs, values, False)):
        covered = one.to_json()
        del covered["reproducible"]
        assert one.digest() == canonical_digest(covered)


@given(text, st.integers(0, 9))
def test_a_shape_of_actions_makes_the_keys_of_single_ones(record: str, sample: int) -> None:
    shape = ActionShape(ActionKind.TRIAL, "//a:x", {"base": TREE}, "record", "sample")
    members = {"record": canonical_text(record), "sample": str(sample)}
    made = shape.action("i", members, None, reproducible=True)
    preimage = {"base": TREE, "record": record, "sample": sample}
    alone = make_action(ActionKind.TRIAL, "//a:x", "i", preimage, None)
    assert (made.key, made.preimage) == (alone.key, alone.preimage)


@given(text, text, st.decimals(0, 100, places=4), st.booleans())
def test_events_of_items_are_written_as_canonical_json(item: str, reason: str, usd: Decimal, cached: bool) -> None:
    finished = ItemFinished("//a:x", item, "trial", "ok", cached, reason, usd, usd, "00")
    for event in (ItemStarted("//a:x", item, "trial", reason, "00"), finished, RunStarted("1", ("//a:x",), 2)):
        assert event_line(event, "1.5") == canonical_text({**event_json(event), "at": Decimal("1.5")})


def test_starts_and_ends_of_items_are_in_the_log_once_the_coordinator_waits(tmp_path) -> None:
    heard = []
    log = EventLog(tmp_path / "events.jsonl", heard.append)
    started = ItemStarted("//a:x", "1", "trial")

    def logged() -> list[str]:
        return [json.loads(line)["type"] for line in log.path.read_text().splitlines()]

    log.emit(started)
    assert (heard, logged()) == ([started], [])
    log.emit(Waiting())
    assert (heard, logged()) == ([started], ["ItemStarted"])
    log.emit(started)
    log.emit(RunStarted("1", (), 1))
    assert logged() == ["ItemStarted", "ItemStarted", "RunStarted"], "nothing overtakes"
    log.emit(started)
    log.close()
    assert len(logged()) == 4
