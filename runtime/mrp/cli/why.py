"""`mrp why`: which input of an action changed, and how, followed to what a person edited.

Without --run the question is about now: what changed since the last build of that identity. When nothing did, or with
--run, it is about the past: why that run did not reuse what was there before.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.flags import build_options
from mrp.cli.inspect import split_label
from mrp.cli.progress import where
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.runtime.ledger import Ledger, Past
    from mrp.runtime.plan_report import PlanReport
    from mrp.runtime.why import Explainer, Explanation, Identity, Known
    from mrp.specs.ir import Plan

_SHOWN_ROOTS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("label", help="a target, //jobs:eval, or an item, //jobs:solve[task-17]")
    parser.add_argument("--run", metavar="RUN", help="why this run differs from those before: id, last, last~1, ...")
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="a config of mrp.yaml; repeatable"
    )


@dataclass(frozen=True)
class Answer:
    """What is known of a label: how many of its items were looked at, and why those that differ do.

    `tense` is "now" for what a build would run, or the id of the run that ran them. `waiting` are targets that must be
    built before the keys of the others are known. `executed` is false when all of it is, or
    was, in the cache.
    """

    tense: str
    looked_at: int
    explanations: tuple["Explanation", ...]
    waiting: tuple[str, ...] = ()
    executed: bool = True

    def roots(self) -> list[str]:
        return list(dict.fromkeys(root for explanation in self.explanations for root in explanation.roots()))


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.ledger import Ledger

    root = find_root()
    state = state_folder(root)
    target, item = split_label(arguments.label, root)
    never = f"{where(target, item or '')} was never built, so there is nothing to compare; build it first"
    if not (state / "ledger.sqlite").exists():
        raise UsageError(never)
    ledger = Ledger(state / "ledger.sqlite")
    try:
        answer = None
        if arguments.run is None:
            answer = _now(target, item, arguments, root, ledger)
        if answer is None or not (answer.explanations or answer.waiting):
            answer = _past(target, item, arguments.run, state, ledger) or answer
    finally:
        ledger.close()
    if answer is None:
        raise UsageError(never)
    if screen.json:
        screen.document(
            {
                "label": target,
                "item": item,
                "when": answer.tense,
                "items": answer.looked_at,
                "changed": [explanation.to_json() for explanation in answer.explanations],
                "waiting_for": list(answer.waiting),
                "roots": answer.roots(),
            }
        )
    _show(target, item, answer, screen)
    return 0


def _now(target: str, item: str | None, arguments: argparse.Namespace, root: Path, ledger: "Ledger") -> Answer | None:
    """What a build now would run, compared with the newest that the ledger knows. None: never built before."""
    from mrp.cli.planning import planned
    from mrp.runtime.origins import Origins
    from mrp.runtime.why import Explainer

    arguments.targets = [target]
    with planned(build_options(arguments, root)) as known:
        sides = _Sides(ledger, known.store)
        identities = _planned_identities(known.report, target, item)
        waiting = _waiting(known.report, target)
        built = [identity for identity in identities if ledger.history(*identity)]
        if not built and not waiting and item is not None:
            return None

        def new(identity: "Identity") -> "Known | None":
            return _planned(known.report, identity) or sides.newest(identity)

        origins = Origins(
            known.store, known.plan, _plan_of(_newest_run(ledger, built, state_folder(root)), known.store, root)
        )
        explainer = Explainer(known.store, sides.newest, new, origins)
        changed = tuple(
            explanation for identity in identities if (explanation := explainer.explain(identity)).status != "same"
        )
        if waiting and not changed:
            changed = _upstream(known.report, explainer)
        decided = [known.report.find(*explanation.identity) for explanation in changed]
        runs = any(one is None or not one.hit for one in decided)
        return Answer("now", _items(identities), changed, waiting, executed=runs)


def _past(target: str, item: str | None, run: str | None, state: Path, ledger: "Ledger") -> Answer | None:
    """Why a run (the newest that changed anything here, when none is named) differs from what was before."""
    from mrp.runtime.origins import Origins
    from mrp.runtime.runs import find_run
    from mrp.runtime.why import Explainer

    identities = _known_identities(ledger, target, item, state)
    if not identities:
        return None
    run_id = find_run(state, run).name if run is not None else _newest_run(ledger, identities, state)
    assert run_id is not None
    store = open_store()
    try:
        sides = _Sides(ledger, store)
        older = max((past.run for i in identities for past in ledger.history(*i) if past.run < run_id), default=None)
        origins = Origins(store, _plan_of(run_id, store, state.parent), _plan_of(older, store, state.parent))
        explainer = Explainer(store, lambda i: sides.before(i, run_id), lambda i: sides.until(i, run_id), origins)
        touched = [i for i in identities if any(past.run == run_id for past in ledger.history(*i))]
        explanations = tuple(explainer.explain(identity) for identity in touched)
        changed = tuple(explanation for explanation in explanations if explanation.status != "same")
        ran = any(past.executed for i in touched for past in ledger.history(*i) if past.run == run_id)
        return Answer(run_id, _items(identities), changed, executed=ran)
    finally:
        store.close()


@dataclass(frozen=True)
class _Sides:
    """What the ledger knew of an identity at different times."""

    ledger: "Ledger"
    store: "Store"

    def newest(self, identity: "Identity") -> "Known | None":
        return self._known(self.ledger.history(*identity)[-1:])

    def before(self, identity: "Identity", run: str) -> "Known | None":
        """What it was when `run` began."""
        history = self.ledger.history(*identity)
        first = next((number for number, past in enumerate(history) if past.run == run), None)
        return self._known(history[:first][-1:] if first is not None else [p for p in history if p.run < run][-1:])

    def until(self, identity: "Identity", run: str) -> "Known | None":
        """What it was when `run` ended."""
        history = self.ledger.history(*identity)
        own = [past for past in history if past.run == run]
        return self._known(own[-1:] or [past for past in history if past.run < run][-1:])

    def _known(self, found: "list[Past]") -> "Known | None":
        from mrp.cache.digest import ActionKey, Digest
        from mrp.runtime.why import Known

        if not found:
            return None
        return Known(found[0].key, self.store.preimage(ActionKey(Digest(found[0].key))), found[0].run)


def _is_part(label: str, target: str) -> bool:
    return label == target or label.startswith(f"{target}@")


def _planned_identities(report: "PlanReport", target: str, item: str | None) -> "list[Identity]":
    return [
        decided.action.identity
        for planned in report.targets
        if _is_part(planned.label, target)
        for decided in planned.decided
        if item is None or decided.action.item == item
    ]


def _known_identities(ledger: "Ledger", target: str, item: str | None, state: Path) -> "list[Identity]":
    return [
        (label, known, kind)
        for label in _known_labels(target, state)
        for known, kind in ledger.identities(label)
        if item is None or known == item
    ]


def _known_labels(target: str, state: Path) -> list[str]:
    """The target, or the cells that the newest run that built any of it had."""
    from mrp.runtime.runs import list_runs, read_digests

    for run in reversed(list_runs(state)):
        try:
            found = {line.label for line in read_digests(state / "runs" / run) if _is_part(line.label, target)}
        except UsageError:
            continue
        if found:
            return sorted(found)
    return []


def _items(identities: "list[Identity]") -> int:
    return len({identity[:2] for identity in identities})


def _planned(report: "PlanReport", identity: "Identity") -> "Known | None":
    from mrp.runtime.why import Known

    decided = report.find(*identity)
    return None if decided is None else Known(decided.action.key, decided.action.preimage)


def _waiting(report: "PlanReport", target: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(until for planned in report.targets if _is_part(planned.label, target) for until in planned.until)
    )


def _upstream(report: "PlanReport", explainer: "Explainer") -> "tuple[Explanation, ...]":
    """Why what must be built first must be built."""
    missing = [decided.action.identity for planned in report.targets for decided in planned.misses]
    explained = (explainer.explain(identity) for identity in missing)
    return tuple(explanation for explanation in explained if explanation.status != "same")


def _newest_run(ledger: "Ledger", identities: "list[Identity]", state: Path) -> str | None:
    """The run that last changed any of them, by when its record was written."""
    runs = {past.run for identity in identities for past in ledger.history(*identity)[-1:]}
    return max(runs, key=lambda run: _written(state / "runs" / run / "run.json"), default=None)


def _written(record: Path) -> int:
    try:
        return record.stat().st_mtime_ns
    except OSError:
        return 0


def _plan_of(run: str | None, store: "Store", root: Path) -> "Plan | None":
    """The plan of a run, None when the run or its plan is gone."""
    from mrp.cache.digest import Digest
    from mrp.cache.errors import CacheError
    from mrp.runtime.runs import read_record
    from mrp.specs.ir import parse_plan

    if run is None:
        return None
    try:
        record = read_record(state_folder(root) / "runs" / run)
        return parse_plan(store.get_bytes(Digest(record["plan"])))
    except (UsageError, CacheError, ValueError, KeyError):
        return None


def _show(target: str, item: str | None, answer: Answer, screen: Screen) -> None:
    name = where(target, item or "")
    roots = answer.roots()
    changed = {explanation.identity[:2] for explanation in answer.explanations}
    own = {identity for identity in changed if _is_part(identity[0], target)}
    count = len(changed)
    if answer.tense == "now":
        verb = "would run" if answer.executed else "changed, and the cache has the result"
    else:
        verb = "reran" if answer.executed else "changed, and was in the cache,"
    if not count and answer.waiting:
        screen.answer(f"{name}: known only once {', '.join(answer.waiting)} is built")
        return
    if not count:
        screen.answer(f"{name}: nothing changed{' since the last build' if answer.tense == 'now' else ''}")
        return
    when = "" if answer.tense == "now" else f" in run {answer.tense}"
    ending = f": {roots[0]}" if len(roots) == 1 else ""
    if not own:
        actions = "one action" if count == 1 else f"{count} actions"
        screen.answer(f"{name} is known only once {actions} that it needs ran{ending}")
    elif answer.looked_at == count == 1 or item is not None:
        screen.answer(f"{name} {verb}{when}{ending}")
    else:
        screen.answer(f"{count} of {max(count, answer.looked_at)} {verb}{when}{ending}")
    if len(roots) > 1:
        for root in roots[:_SHOWN_ROOTS]:
            screen.answer(f"  {root}")
        if len(roots) > _SHOWN_ROOTS:
            screen.answer(f"  and {len(roots) - _SHOWN_ROOTS} more")
    if screen.verbose or item is not None:
        for explanation in answer.explanations:
            _show_chain(explanation, screen, 1)


def _show_chain(explanation: "Explanation", screen: Screen, depth: int) -> None:
    label, item, kind = explanation.identity
    pad = "  " * depth
    screen.answer(f"{pad}{where(label, item)} {kind}: {explanation.status}")
    if explanation.old is not None and explanation.new is not None:
        screen.answer(f"{pad}  key {explanation.old.key[:12]} -> {explanation.new.key[:12]}")
    for change in explanation.changes[:_SHOWN_ROOTS]:
        shown = change.detail or f"{change.old or '(absent)'} -> {change.new or '(absent)'}"
        screen.answer(f"{pad}  {change.path}: {shown}")
    for cause in explanation.causes:
        _show_chain(cause, screen, depth + 1)
