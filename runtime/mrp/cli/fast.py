"""The answer to a build with nothing to do, found before anything heavy is imported.

One snapshot is compared by stat. When all of it is as it was, the run is written down and the same lines are printed
that a build would print; else the answer is None, and a build looks closer with what was found.
"""

import os
import sys
import time

TYPE_CHECKING = False  # what `typing` says, without loading it
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from mrp.runtime.snapshot import Comparison

_SILENT = ("--json", "-q", "--quiet")
"""Words that change how the answer is shown, and nothing else."""

_NEVER = frozenset(
    ("--items", "--limit", "--rebuild", "--resample", "--retry-limits", "--profile", "--param", "-v", "--verbose")
)
"""Words of builds that are never remembered: parts, experiments, and `--param`, which may name a file."""


def identity_of(words: "Sequence[str]", *, there: bool = False) -> tuple[str, tuple[str, ...]] | None:
    """The workspace's root and the words under which a build is remembered; None when it is not.

    `there` tells that the folder of -C is the current one already.
    """
    from mrp.cli.words import without_directory

    told = without_directory(words)
    if told is None:
        return None
    folder, others = told
    if any("[" in word or word.partition("=")[0] in _NEVER for word in others):
        return None
    here = os.path.realpath("." if there else folder)
    root = here
    while not os.path.isfile(f"{root}/mrp.yaml"):
        if root == os.path.dirname(root):
            return None
        root = os.path.dirname(root)
    kept = [word for word in others if word not in _SILENT]
    return root, (here[len(root) :], *kept)


def answer(words: "Sequence[str]") -> int | None:
    """The exit code of a build that had nothing to do, its lines printed; None when a build must look closer."""
    started = time.monotonic()
    asked = identity_of(words)
    if asked is None:
        return None
    root, identity = asked
    from mrp.runtime import snapshot

    found = snapshot.compare(root, identity)
    if found is None or found.moved or found.lost or found.snapshot.head["asks"]:
        return None
    try:
        run, wall = _write_run(root, found, started)
    except OSError:
        return None
    _show(root, found, words, run, wall)
    return 0


def _write_run(root: str, found: "Comparison", started: float) -> tuple[str, str]:
    """Write down a run that executed nothing; its id and its seconds, as JSON spells them. Raises OSError."""
    from mrp.runtime import snapshot

    told = found.snapshot.head["answer"]
    state = f"{root}/.mrp"
    names = os.listdir(f"{state}/runs")
    numbers = [name.partition("-")[0] for name in names]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    run = f"{newest + 1:05d}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
    folder = f"{state}/runs/{run}"
    os.mkdir(folder)
    wall = repr(max(0.001, round(time.monotonic() - started, 3)))
    try:
        os.link(f"{state}/runs/{told['run']}/digests.jsonl", f"{folder}/digests.jsonl")
        _write(f"{folder}/events.jsonl", snapshot.filled(told["events"], run, repr(round(time.time(), 3))))
        _write(f"{folder}/run.json", snapshot.sealed(told["record"], run, wall))
    except OSError:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
        raise
    if found.refreshed:
        name = snapshot.file_name(found.snapshot.head["identity"])
        snapshot.write(f"{state}/{snapshot.FOLDER}/{name}.stat", found.snapshot.pack())
    return run, wall


def _write(path: str, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)


def _show(root: str, found: "Comparison", words: "Sequence[str]", run: str, wall: str) -> None:
    from mrp.cli.answers import last_line, result_lines
    from mrp.runtime import snapshot

    told = found.snapshot.head["answer"]
    lines = []
    if "-q" not in words and "--quiet" not in words:
        lines += result_lines(root, told["targets"])
    lines.append(last_line(0, told["actions"], 0))
    as_json = "--json" in words
    if as_json:
        _print(sys.stdout, snapshot.filled(told["document"], run, wall))
    _print(sys.stderr if as_json else sys.stdout, "\n".join(lines))


def _print(stream: "TextIO", text: str) -> None:
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError as error:
        from mrp.cli.screen import could_not_write

        could_not_write(stream, error)
