"""A place to build in: a workspace folder with a cache of its own, driven through the real command line."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from mrp.cache.store import Store
from mrp.cli.main import main

MRP = [sys.executable, "-m", "mrp"]


class Place:
    """A workspace in `folder` and its cache in `cache`; every call is a new process, as at a prompt."""

    def __init__(self, folder: Path, cache: Path | None = None, python: str | None = None) -> None:
        self.folder = folder
        self.cache = cache or folder.with_name(folder.name + "-cache")
        self.command = [python, "-m", "mrp"] if python else MRP
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, files: dict[str, str | bytes]) -> Self:
        """Write files, by path."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return self

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the only occurrence of `old` in a file."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new))

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "MRP_CACHE": str(self.cache), **more}

    def mrp(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `mrp -C folder WORDS...` to its end."""
        return subprocess.run(
            [*self.command, "-C", str(self.folder), *words],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start mrp as the leader of a process group of its own."""
        return subprocess.Popen(
            [*self.command, "-C", str(self.folder), *words],
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def build(self, *words: str, code: int = 0) -> dict[str, Any]:
        """`mrp build --json`, which must end with exit code `code`."""
        done = self.mrp("build", "--json", *words)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def runs(self) -> list[Path]:
        """Folders of all runs, oldest first."""
        folder = self.folder / ".mrp" / "runs"
        return sorted(folder.iterdir()) if folder.exists() else []

    def digests(self) -> str:
        """digests.jsonl of the last run."""
        return (self.runs()[-1] / "digests.jsonl").read_text()

    def executed(self, run: Path | None = None) -> list[tuple[str, str, str]]:
        """(kind, label, item) of what a run (the last one) executed, sorted."""
        lines = ((run or self.runs()[-1]) / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return sorted((e["kind"], e["label"], e["item"]) for e in events if e["type"] == "ItemFinished")

    def started_keys(self, run: Path) -> set[str]:
        """Keys of the actions that a run began to execute."""
        log = run / "events.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return {event["key"] for event in events if event["type"] == "ItemStarted"}

    def committed_keys(self) -> set[str]:
        """Keys of all entries that are in the cache now."""
        if not self.cache.exists():
            return set()
        with Store.open(self.cache) as store:
            return {row[0].hex() for row in store.index.read("SELECT key FROM actions")}

    def output(self, label_path: str) -> Any:
        """A JSON output under mrp-out."""
        return json.loads((self.folder / "mrp-out" / label_path).read_text())


class QuickPlace(Place):
    """A place whose calls run in this process, for stories that need no new one: starting mrp and loading its
    language takes longer than a small build. `start`, and calls of another `command`, are processes all the same."""

    def mrp(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `mrp -C folder WORDS...` to its end."""
        if self.command is not MRP:
            return super().mrp(*words, **more)
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        with (
            contextlib.chdir(os.curdir),
            patch.dict(os.environ, self.environment(**more)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main(["-C", str(self.folder), *words])
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the whole process group; returns when its leader is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
