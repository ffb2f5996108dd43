"""A bench to try a sandbox backend on: short ways to run something in it and to look at what came of it."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.sandbox.protocol import Backend, Endpoint
from mrp.runtime.sdk_tree import sdk_tree
from mrp.specs.ir import Limits
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, TASK, WORK, Box, Completed, Mount, Process

LIMITS = Limits(cpus=Decimal(1), memory=256 * 2**20, wall=Decimal(60), pids=64, disk=32 * 2**20)


@dataclass
class Trees:
    """A store, and short ways to put trees there and to see what was kept of a process."""

    store: Store

    def tree(self, files: Mapping[str, str]) -> Digest:
        """A tree of text files; a name that ends in * is executable."""
        entries = {
            name.rstrip("*"): Entry("x" if name.endswith("*") else "f", self.store.put_bytes(text.encode()))
            for name, text in files.items()
        }
        return self.store.put_tree(entries)

    def stdout(self, completed: Completed) -> str:
        return self.store.get_bytes(completed.stdout).decode(errors="replace")

    def stderr(self, completed: Completed) -> str:
        return self.store.get_bytes(completed.stderr).decode(errors="replace")

    def files(self, completed: Completed, folder: str = WORK) -> dict[str, str]:
        """The text of each file in an output folder."""
        return {
            path: self.store.get_bytes(entry.digest).decode(errors="replace")
            for path, entry in self.store.read_tree(completed.outputs[folder]).items()
            if entry.digest is not None
        }


@dataclass
class Bench(Trees):
    """A backend with an image that has PROGRAMS; `owned` lists what it keeps for ended processes, by name."""

    backend: Backend
    image: Digest
    scratch: Path
    owned: Callable[[], Sequence[str]] = tuple

    def run(
        self,
        *argv: str,
        files: Mapping[str, Mapping[str, str]] | None = None,
        secrets: Mapping[str, str] | None = None,
        timeout: float = 60,
        endpoint: Endpoint | None = None,
        **box: object,
    ) -> Completed:
        """Run a command with `files` by guest folder, of which /work and /out can be written to."""
        mounts = tuple(Mount(path, self.tree(tree), path in (WORK, OUT)) for path, tree in (files or {}).items())
        process = Process(
            self.box(secrets, **box), argv, mounts=mounts, outputs=(WORK, OUT), timeout=Decimal(str(timeout))
        )
        return self.backend.run(process, secrets=secrets or {}, tag="//contract:check", endpoint=endpoint)

    def python(self, source: str, **options: object) -> Completed:
        """Run Python source as a command."""
        return self.run("python3", "-c", source, **options)  # type: ignore[arg-type]

    def operator(self, source: str, files: Mapping[str, Mapping[str, str]]) -> Completed:
        """Run the class Op of a Python operator's source."""
        return self.backend.run(self.operator_process(source, files), secrets={}, tag="//contract:check")

    def operator_process(
        self, source: str, files: Mapping[str, Mapping[str, str]], *, record: str = "a", pure: bool = False
    ) -> Process:
        """What runs the class Op of a Python operator's source on a record."""
        mounts = [Mount(path, self.tree(tree), path in (WORK, OUT)) for path, tree in files.items()]
        mounts += [Mount(OPERATOR_DIR, self.tree({"op.py": source})), Mount(SDK_DIR, sdk_tree(self.store))]
        env = {"MRP_TASK_DIR": TASK, "MRP_WORKSPACE": WORK, "MRP_OUTPUT_DIR": OUT, "MRP_RECORD_ID": record}
        env |= {"MRP_SAMPLE": "0", "MRP_SEED": "1", "MRP_TRIAL": "0" * 16, "MRP_PARAMS": "{}"}
        return Process(
            self.box(), entry="op:Op", role="agent", pure=pure, mounts=tuple(mounts), outputs=(WORK, OUT), env=env
        )

    def box(self, secrets: Mapping[str, str] | None = None, **fields: object) -> Box:
        """A sandbox in the image, with limits that checks can reach."""
        named = {"image": self.image, "limits": LIMITS, "secrets": tuple(secrets or ()), **fields}
        return Box(**named)  # type: ignore[arg-type]


@contextmanager
def listening(answer: bytes, folder: Path | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server on loopback, or on a unix socket in `folder`, that answers every connection once it said something.

    Gives its address as an Endpoint has it, and the list of what each connection said first.
    """
    heard: list[bytes] = []
    if folder is None:
        server = socket.create_server(("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{server.getsockname()[1]}"
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / "s"))
        server.listen()
        address = f"unix:{folder / 's'}"

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.settimeout(20)
                    said = b""
                    while b"\r\n\r\n" not in said and (more := connection.recv(4096)):
                        said += more
                    heard.append(said)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield address, heard
    finally:
        # Closing alone does not wake a thread in accept.
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
