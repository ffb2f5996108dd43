"""`mrp why`: which input of an action changed, and how, followed to what a person edited.

Without --run the question is about now: what changed since the last build of that identity. When nothing did, or with
--run, it is about the past: why that run did not reuse what was there before.
"""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.flags import build_options
from mrp.cli.inspect import split_label
from mrp.cli.progress import where
from mrp.cli.screen import Screen
from mrp.cli.workspace import absolute, find_root, open_store, state_folder
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.cli.planning import Planned
    from mrp.rules.action import Action
    from mrp.runtime.ledger import Past
    from mrp.runtime.plan_report import PlanReport
    from mrp.runtime.touched import TargetLedger
    from mrp.runtime.why import Explanation, Identity, Known
    from mrp.specs.ir import Plan

_SHOWN_ROOTS = 20

MOST_EXPLAINED = 200
"""Changed actions that are explained; the others are counted."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("label", help="a target, //jobs:eval, or an item, //jobs:solve[task-17]")
    parser.add_argument("--run", metavar="RUN", help="why this run differs from those before: id, last, last~1, ...")
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="a config of mrp.yaml; repeatable"
    )


@dataclass(frozen=True)
class Answer:
    """What is known of a label: how many of its items were looked at, how many differ, and why the first of them do.

    `tense` is "now" for what a build would run, or the id of the run that ran them. `waiting` are targets that must be
    built before the keys of the others are known. `executed` is false when all of it is, or
    was, in the cache. `unexplained` counts the actions that differ and are not among the explanations.
    """

    tense: str
    looked_at: int
    changed: int
    explanations: tuple["Explanation", ...]
    waiting: tuple[str, ...] = ()
    executed: bool = True
    unexplained: int = 0

    def roots(self) -> list[str]:
        return list(dict.fromkeys(root for explanation in self.explanations for root in explanation.roots()))


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.touched import TargetLedger

    root = find_root()
    state = state_folder(root)
    target, item = split_label(arguments.label, root)
    never = f"{where(target, item or '')} was never built, so there is nothing to compare; build it first"
    if not (state / "ledger.sqlite").exists():
        raise UsageError(never)
    ledger = TargetLedger(state / "ledger.sqlite")
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
                "not_explained": answer.unexplained,
                "waiting_for": list(answer.waiting),
                "roots": answer.roots(),
            }
        )
    _show(target, item, answer, screen)
    return 0


def _now(
    target: str, item: str | None, arguments: argparse.Namespace, root: Path, ledger: "TargetLedger"
) -> Answer | None:
    """What a build now would run, compared with the newest that the ledger knows. None: never built before."""
    from mrp.runtime.origins import Origins
    from mrp.runtime.why import Explainer

    seen = _Seen(target, item, ledger)
    with ExitStack() as stack:
        known = _planned(target, item, arguments, root, seen, stack)
        waiting = _waiting(known.report, target)
        if not seen.built and not waiting and item is not None:
            return None
        sides = _Sides(ledger, known.store)
        newest = _newest(ledger.runs(seen.labels, item), state_folder(root))
        origins = Origins(known.store, known.plan, _plan_of(newest, known.store, root))
        explainer = Explainer(known.store, sides.newest, lambda i: seen.planned.get(i) or sides.newest(i), origins)
        changed = tuple(explainer.explain(identity) for identity in seen.own)
        if waiting and not changed:
            # What must be built first.
            upstream = tuple(explainer.explain(identity) for identity in seen.others)
            return Answer("now", seen.looked_at, len({one.identity[:2] for one in upstream}), upstream, waiting)
        unexplained = seen.differing - len(changed)
        return Answer("now", seen.looked_at, len(seen.items), changed, waiting, seen.executed, unexplained)


@dataclass
class _Seen:
    """What a plan has of a target and what differs from the ledger's newest, noted action by action.

    `own` are the first that differ of the target itself, `others` the first that must run before them; `planned` is
    what both are now.
    """

    target: str
    item: str | None
    ledger: "TargetLedger"
    planned: "dict[Identity, Known]" = field(default_factory=dict)
    own: "list[Identity]" = field(default_factory=list)
    others: "list[Identity]" = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    items: set[int] = field(default_factory=set)
    looked_at: int = 0
    differing: int = 0
    built: bool = False
    executed: bool = False

    def note(self, action: "Action", hit: bool) -> None:
        from mrp.runtime.why import Known

        identity = action.identity
        newest = self.ledger.history(*identity)[-1:]
        is_same = bool(newest) and newest[0].key == action.key
        known = Known(action.key, action.preimage)
        if not _is_part(action.label, self.target) or self.item not in (None, action.item):
            if not is_same and not hit and len(self.others) < MOST_EXPLAINED:
                self.others.append(identity)
                self.planned[identity] = known
            return
        self.looked_at += identity[2] != "grade"
        self.built = self.built or bool(newest)
        if action.label not in self.labels:
            self.labels.append(action.label)
        if is_same:
            return
        self.differing += 1
        self.items.add(hash(identity[:2]))
        self.executed = self.executed or not hit
        if len(self.own) < MOST_EXPLAINED:
            self.own.append(identity)
            self.planned[identity] = known


def _planned(
    target: str, item: str | None, arguments: argparse.Namespace, root: Path, seen: _Seen, stack: ExitStack
) -> "Planned":
    """The plan of a target. For an item the others are left out, unless there is no such item any more."""
    from mrp.cli.planning import planned

    arguments.targets = [target]
    options = build_options(arguments, root)
    if item is not None:
        try:
            one = replace(options, targets=(absolute(arguments.label, root),))
            return stack.enter_context(planned(one, lambda store: seen.note, anywhere=True))
        except UsageError:
            pass
    return stack.enter_context(planned(options, lambda store: seen.note, anywhere=True))


def _past(target: str, item: str | None, run: str | None, state: Path, ledger: "TargetLedger") -> Answer | None:
    """Why a run (the newest that changed anything here, when none is named) differs from what was before."""
    from mrp.runtime.origins import Origins
    from mrp.runtime.runs import find_run
    from mrp.runtime.why import Explainer

    labels = _known_labels(target, state)
    runs = ledger.runs(labels, item)
    if not runs:
        return None
    run_id = find_run(state, run).name if run is not None else _newest(runs, state)
    assert run_id is not None
    touched = ledger.touched(labels, run_id, MOST_EXPLAINED, item)
    store = open_store()
    try:
        sides = _Sides(ledger, store)
        older = max((known for known in runs if known < run_id), default=None)
        origins = Origins(store, _plan_of(run_id, store, state.parent), _plan_of(older, store, state.parent))
        explainer = Explainer(store, lambda i: sides.before(i, run_id), lambda i: sides.until(i, run_id), origins)
        explained = tuple(explainer.explain(identity) for identity in touched.first)
        unexplained = touched.actions - len(explained)
        explained = tuple(explanation for explanation in explained if explanation.status != "same")
        return Answer(run_id, ledger.items(labels, item), touched.items, explained, (), touched.executed, unexplained)
    finally:
        store.close()


@dataclass(frozen=True)
class _Sides:
    """What the ledger knew of an identity at different times."""

    ledger: "TargetLedger"
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


def _known_labels(target: str, state: Path) -> list[str]:
    """The target, or the cells that the newest run that built any of it had."""
    from mrp.runtime.recorded import recorded_actions
    from mrp.runtime.runs import list_runs

    for run in reversed(list_runs(state)):
        try:
            with recorded_actions(state / "runs" / run) as actions:
                found = actions.labels(target)
        except UsageError:
            continue
        if found:
            return found
    return []


def _waiting(report: "PlanReport", target: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(until for planned in report.targets if _is_part(planned.label, target) for until in planned.until)
    )


def _newest(runs: set[str], state: Path) -> str | None:
    """The run whose record was written last."""
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
    from mrp.runtime.recorded_plan import read_plan
    from mrp.runtime.runs import read_record

    if run is None:
        return None
    try:
        record = read_record(state_folder(root) / "runs" / run)
        return read_plan(Digest(record["plan"]), store)
    except (UsageError, CacheError, ValueError, KeyError):
        return None


def _show(target: str, item: str | None, answer: Answer, screen: Screen) -> None:
    name = where(target, item or "")
    roots = answer.roots()
    own = any(_is_part(explanation.identity[0], target) for explanation in answer.explanations)
    count = answer.changed
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
    if answer.unexplained:
        screen.answer(f"  {answer.unexplained} further actions changed, for these or other reasons; ask for an item")
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
