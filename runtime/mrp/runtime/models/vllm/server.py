"""One vLLM server: a process on this machine's loopback with its keeper, its log and what it says of itself."""

import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrp.cache.canonical import Json
from mrp.runtime.models.openai import Upstream
from mrp.runtime.models.protocol import Answer, Call
from mrp.runtime.models.vllm import keeper
from mrp.runtime.models.vllm.serving import Serving
from mrp.specs.errors import InfraError

_LAST_LINES, _LINES_OF_ONE, _LINE = 8, 4, 240
_LOG_END = 1 << 18
_RAISED = re.compile(r"(\(\w+ pid=\d+\) )?(ERROR .*?\] )?([A-Za-z_][\w.]*(Error|Exception|Exit)\b(: |$)|\S+: error: )")
_ENGINE = re.compile(r"Initializing a V1 LLM engine .*?with config: (.*)")


class Server(Protocol):
    """A server that was started. Its end is told once, to the function that it was started with."""

    def is_well(self) -> bool | None:
        """What it says of itself when it is looked at; None when it gives no answer."""

    def answer(self, call: Call) -> Answer:
        """As Model.answer."""

    def engine(self) -> Mapping[str, Json]:
        """Facts of the engine, once it is well."""

    def log_end(self) -> str:
        """The lines of its log that say why it ended."""

    def stop(self) -> None:
        """End it and all that it started. Idempotent; it may take seconds."""


@dataclass(frozen=True)
class Order:
    """One server to start: replica `number`, with the Python at `python`; what it prints is added to `log`."""

    serving: Serving
    number: int
    python: str
    log: Path


Ended = Callable[[str], None]
"""Is told why a server ended, in a few words."""

Launch = Callable[[Order, int], tuple[list[str], dict[str, str]]]
"""Command line and environment of the program that serves an order at a port of the loopback."""


def launch_vllm(order: Order, port: int) -> tuple[list[str], dict[str, str]]:
    """vLLM itself."""
    serving = order.serving
    return serving.words(order.python, port), serving.variables(order.python, os.environ, order.number)


class ServerProcess:
    """A server that is a process of this machine. Raises InfraError when it cannot be started."""

    def __init__(self, order: Order, ended: Ended, launch: Launch = launch_vllm) -> None:
        self._order, self._serving = order, order.serving
        port = order.serving.port + order.number if order.serving.port is not None else _free_port()
        # So that no other server that happens to be at the port is taken for ours.
        self._port, self._key = port, secrets.token_urlsafe(24)
        self._upstream = Upstream(f"http://127.0.0.1:{port}/v1", self._key, "of the server")
        # Sockets of the engine stand in there, whose paths must be short.
        folder = tempfile.mkdtemp(prefix="mrp-vllm-")
        command, env = launch(order, port)
        env = {**env, "TMPDIR": folder, "VLLM_API_KEY": self._key}
        try:
            with order.log.open("ab") as log:
                self._log_begin = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", keeper.__file__, folder, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            os.rmdir(folder)
            raise InfraError(f"vLLM cannot be started: {error}; see docs/vllm.md") from error
        self._stopping = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, args=(ended,), name="mrp-vllm-ended", daemon=True)
        self._watcher.start()

    def is_well(self) -> bool | None:
        try:
            status, _ = self.request("GET", self._serving.health, None, self._serving.timeout)
        except OSError:
            return None
        return status == 200

    def answer(self, call: Call) -> Answer:
        return self._upstream.answer(call)

    def engine(self) -> Mapping[str, Json]:
        try:
            said = json.loads(self.request("GET", "/version", None, self._serving.timeout)[1])
        except (OSError, ValueError):
            said = None
        return engine_facts(self._serving, said, self._log())

    def log_end(self) -> str:
        return telling_lines(self._log())

    def stop(self) -> None:
        with self._stopping:
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait()
        self._watcher.join()
        self._upstream.close()

    def _watch(self, ended: Ended) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            word = said.readline().decode(errors="replace").split()
        ended(f"it ended with exit code {word[1]}" if word[:1] == ["ended"] else "its keeper was killed")

    def request(self, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        """Status and whole body of any request. Raises OSError when there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None
        finally:
            connection.close()

    def _log(self) -> str:
        with self._order.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_begin, size - _LOG_END))
            return log.read().decode(errors="replace")


def engine_facts(serving: Serving, said: Json, log: str) -> dict[str, Json]:
    """What is recorded of an engine: what it says on /version and in its log, and what it was told.

    max_num_seqs is how many requests may share a batch; null where vLLM chose it.
    """
    found = _ENGINE.search(log)
    config = found[1] if found else ""

    def configured(name: str) -> str | None:
        match = re.search(rf"\b{name}=([\w.]+)", config)
        return None if match is None or match[1] == "None" else match[1].removeprefix("torch.")

    version = said.get("version") if isinstance(said, Mapping) else None
    return {
        "engine": "vllm",
        "version": version,
        "dtype": configured("dtype") or serving.dtype,
        "device": configured("device_config"),
        "quantization": configured("quantization") or serving.quantization,
        "tensor_parallel": serving.tensor_parallel,
        "max_num_seqs": serving.engine_args.get("max_num_seqs"),
        "batch_invariant": serving.env.get("VLLM_BATCH_INVARIANT") == "1",
    }


def telling_lines(log: str) -> str:
    """What a log says of its writer's end: its first and last exception, or its last lines when it names none.

    The first is mostly the cause: the last one often only says that the engine is gone.
    """
    lines = [line.rstrip()[:_LINE] for line in log.splitlines() if line.strip()]
    raised = [place for place, line in enumerate(lines) if _RAISED.match(line)]
    if not raised:
        return "\n".join(lines[-_LAST_LINES:])
    told = [lines[place : place + _LINES_OF_ONE] for place in dict.fromkeys((raised[0], raised[-1]))]
    return "\n".join(line for lines in told for line in lines)


def _free_port() -> int:
    # Another process may take it before the server does; then the server ends and another port is tried.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
