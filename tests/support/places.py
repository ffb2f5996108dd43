"""A place to build in: a workspace folder with a cache of its own, driven through the real command line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mrp.cache.store import Store

MRP = [sys.executable, "-m", "mrp"]


class Place:
    """A workspace in `folder` and its cache in `cache`; every call is a new process."""

    def __init__(self, folder: Path, cache: Path | None = None, python: str | None = None) -> None:
        self.folder = folder
        self.cache = cache or folder.with_name(folder.name + "-cache")
        self.command = [python, "-m", "mrp"] if python else MRP
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, files: dict[str, str | bytes]) -> "Place":
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


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the whole process group; returns when its leader is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
