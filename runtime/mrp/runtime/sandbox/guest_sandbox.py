"""A sandbox in which mrp.runtime.sandbox.guest does the work: what that is asked, whatever way a service has for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from mrp.runtime.sandbox.provider import KEPT_LOG, Exit, Order

Outs = tuple[BinaryIO | None, BinaryIO | None]

PATIENCE = 600
"""Seconds that a job may take beyond those of a command in it."""

_DEEPEST = 302


class GuestSandbox(ABC):
    """The part of mrp.runtime.sandbox.provider.Sandbox, and of Gathering, that is jobs for the guest."""

    def __init__(self, identity: str, order: Order) -> None:
        self.id = identity
        self._order = order
        self._fresh = [*order.writable, *order.given]

    @abstractmethod
    def ask(
        self, job: Mapping[str, Any], archive: BinaryIO | None = None, *, outs: Outs = (None, None), seconds: float = 0
    ) -> Mapping[str, Any]:
        """Have the guest do a job to its end, once; gives what it told. `archive` is what the job unpacks.

        What it sends of each kind (OUT, ERR) is written to that one of `outs`. seconds: what a command in it may take.
        Raises InfraError when it tells of an error, or nothing.
        """

    def put(self, archive: BinaryIO) -> None:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        self.ask({"do": "unpack", "fresh": self.take_fresh()}, archive)

    def get(self, path: str, out: BinaryIO, most: int) -> bool:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        return self._pack([path], path, out, most)

    def get_many(self, paths: Sequence[str], out: BinaryIO, most: int) -> bool:
        """See mrp.runtime.sandbox.provider.Gathering."""
        return self._pack(paths, "/", out, most)

    def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout: float, logs: Path, root: bool = False
    ) -> Exit:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        limits = self._order.limits
        uid, gid = (int(part) for part in self._order.user.split(":"))
        job = {
            "do": "run",
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "timeout": timeout,
            "root": root,
            "uid": uid,
            "gid": gid,
            "memory": limits.memory,
            "pids": limits.pids,
            "file_bytes": self._order.file_bytes,
            "log_bytes": KEPT_LOG,
        }
        stdout, stderr = logs / "stdout", logs / "stderr"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            told = self.ask(job, outs=(out, err), seconds=timeout)
        return Exit(
            told["code"],
            told["limit"],
            stdout,
            stderr,
            cpu_s=_decimal(told["cpu"]),
            max_rss=told["rss"],
            wall_s=_decimal(told["wall"]),
            exec_error=told["exec_error"],
        )

    def take_fresh(self) -> list[str]:
        """The folders of which the image's own files go away with what is put there first."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _pack(self, paths: Sequence[str], base: str, out: BinaryIO, most: int) -> bool:
        job = {"do": "pack", "paths": list(paths), "base": base, "most": most, "deep": _DEEPEST}
        return bool(self.ask(job, outs=(out, None))["whole"])


def _decimal(seconds: float) -> Decimal:
    return Decimal(str(round(seconds, 6)))
