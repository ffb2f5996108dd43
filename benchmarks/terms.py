"""The words of this folder.

A *benchmark* is one piece of work. Its *contestants* are mrp and the peers that can do the same work. Its *rows* are
the situations that are timed, such as `cold` or `null`, in the order in which they happen. A *step* is what one
contestant does for one row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.measure import Finished

Slow = Mapping[str, int]
"""In how many rounds a contestant does a row, where that is not all."""


class WrongWork(Exception):
    """A step ended well but did not do what is being timed; says what was seen and what was expected."""


def nothing() -> None:
    """What a step does that needs no preparation."""


def anything(finished: Finished) -> None:
    """The check of a step whose exit code says all."""


@dataclass(frozen=True)
class Step:
    """One command.

    `before` brings about the situation and is not timed; `check` raises WrongWork. `rounds` is in how many rounds the
    step is done, where its contestant is too slow for all. `inside` says that the command measures the work itself, and
    prints `value: 1.5` for it, because its start is left out. `count` is how many pieces the work has, where the
    report shall show the time of one.
    """

    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] = nothing
    check: Callable[[Finished], None] = anything
    rounds: int | None = None
    inside: bool = False
    count: int | None = None


@dataclass(frozen=True)
class Contestant:
    """A tool and its steps by row.

    `prepare` writes the work anew before the first round, `finish` ends what the tool leaves running. `peer` names the
    environment that it needs. `served` says that a server does the work, so that CPU and memory of the command are not
    those of the tool.
    """

    tool: str
    prepare: Callable[[], None]
    steps: Mapping[str, Step]
    finish: Callable[[], None] = nothing
    peer: str | None = None
    served: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Work with its rows in order; `about` explains it in the report. `contestants` is given a folder to work in.

    `unit` is what is measured: seconds, or calls of the system.
    """

    name: str
    about: str
    rows: tuple[str, ...]
    rounds: int
    contestants: Callable[[Path], list[Contestant]]
    unit: Literal["seconds", "calls"] = "seconds"
