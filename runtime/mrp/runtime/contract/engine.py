"""The checks that every engine must pass: those of a sandbox backend, and that it takes many processes at once."""

from dataclasses import replace
from decimal import Decimal

from mrp.runtime.contract import sandbox
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.check import Broken, Check, expect
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, TASK, WORK, Completed, Process

_PURE = """
import mrp.sdk
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        (task.work / 'seen').write_text(task.record['id'])
"""
_ITEMS = 20


def _slots(bench: Bench) -> None:
    slots = getattr(bench.backend, "slots", 0)
    if slots < 1:
        raise Broken(f"it says that it has room for {slots} processes")


def _many(bench: Bench) -> None:
    processes = [_item(bench, number) for number in range(_ITEMS)]
    came: dict[int, Completed | InfraError] = {}
    taken = bench.backend.run_many(
        processes, tags=[f"//contract:check[{n}]" for n in range(_ITEMS)], finished=came.__setitem__
    )
    expect(list(came), list(range(taken)), "the numbers of the items that it said it finished, in order")
    for number, done in came.items():
        if not isinstance(done, Completed):
            raise Broken(f"item {number}: {done}")
        expect(bench.files(done), {"seen": f"i{number}"}, f"what item {number} left")


def _impossible(bench: Bench) -> None:
    process = _item(bench, 0)
    limits = replace(process.box.limits, memory=2**50, cpus=Decimal(10**6))
    big = replace(process, box=replace(process.box, limits=limits))
    try:
        bench.backend.run(big, secrets={}, tag="//contract:check")
    except InfraError as error:
        if error.retryable:
            raise Broken(f"a process that can run nowhere was to be tried again: {error}") from error
        return
    raise Broken("a process that needs a million cores was run")


CHECKS: tuple[Check[Bench], ...] = (
    Check("it has room for a process", _slots),
    Check("items that may share a call come back one by one", _many),
    *sandbox.CHECKS,
)
"""Every check, in the order in which they are run."""

PLACED: tuple[Check[Bench], ...] = (Check("what can run nowhere is refused", _impossible),)
"""For engines that place processes by what they need."""


def _item(bench: Bench, number: int) -> Process:
    files = {TASK: {"record.json": f'{{"id":"i{number}"}}'}, WORK: {}, OUT: {}}
    return bench.operator_process(_PURE, files, record=f"i{number}", pure=True)
