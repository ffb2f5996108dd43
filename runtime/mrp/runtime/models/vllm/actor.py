"""A vLLM server that a Ray actor holds: Ray chooses the node and its GPUs.

The actor starts the server on its node's loopback; a program on the build's machine takes requests on the loopback here
and sends each through Ray. So nothing listens on a network, wherever the node is, and to the build it is a server like
any other. Ray lives in that program alone, which has a keeper: a cluster that it started ends with it, and on another
one Ray ends the actor when the program is gone.
"""

import base64
import dataclasses
import importlib.util
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mrp.runtime.engine.ray_cluster import Cluster, Need, Place, bridge_environment
from mrp.runtime.models.vllm.server import Order, ServerProcess
from mrp.runtime.models.vllm.serving import INHERITED, Serving
from mrp.specs.errors import InfraError

ADDRESS = "RAY_ADDRESS"
"""Ray's own variable for the cluster to join; without it one is started on this machine."""

_CALLS = 256
"""Calls at once that the actor takes."""

_CALL_SECONDS = 3600.0
_LOG_SECONDS = 0.5


def launch_actor(order: Order, port: int) -> tuple[list[str], dict[str, str]]:
    """The program that holds the actor. Raises InfraError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InfraError(
            "a model with `as: actor` needs the package ray; install it with `pip install 'mrp-build[ray]'`",
            retryable=False,
        )
    address = os.environ.get(ADDRESS)
    env = bridge_environment(os.environ, address)
    if address is not None:
        env[ADDRESS] = address
    env = {**{name: os.environ[name] for name in INHERITED if name in os.environ}, **env}
    told = base64.b64encode(pickle.dumps((order.serving, order.python))).decode()
    return [sys.executable, "-m", "mrp.runtime.models.vllm.actor", str(port), told], env


class Holder:
    """The actor: one server, on the node where it runs."""

    def __init__(self, serving: Serving, python: str) -> None:
        if serving.local and not Path(serving.weights).is_dir():
            raise InfraError(f"the node has no folder {serving.weights}: share the cache with it, or name hub weights")
        self._ended, self._reason = threading.Event(), ""
        self._log = Path(tempfile.mkdtemp(prefix="mrp-vllm-")) / "log"
        self._server = ServerProcess(Order(serving, 0, python, self._log), self._over)

    def request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        """Status and body; None when the server gives no answer."""
        try:
            return self._server.request(method, path, body, _CALL_SECONDS)
        except OSError:
            return None

    def log(self, offset: int) -> bytes:
        """What the server printed, from a place on."""
        with self._log.open("rb") as log:
            log.seek(offset)
            return log.read(1 << 20)

    def wait(self) -> str:
        """Why the server ended, once it did."""
        self._ended.wait()
        return self._reason

    def _over(self, reason: str) -> None:
        self._reason = reason
        self._ended.set()


class _Relay(BaseHTTPRequestHandler):
    """Takes requests with the right key, and gives the actor's answers."""

    actor: Any
    key: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass_on(self, body: bytes | None) -> None:
        import ray

        self.close_connection = True
        if self.headers.get("Authorization") != f"Bearer {self.key}":
            return self._answer(401, b"{}")
        try:
            answer = ray.get(self.actor.request.remote(self.command, self.path, body))
        except ray.exceptions.RayError:
            answer = None
        # Without an answer of the server's own the connection just ends, as it would if the server were here.
        return self._answer(*answer) if answer is not None else None

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main(port: int, told: str) -> None:
    """Serve until the actor's server ends; SIGTERM ends it, too."""
    import ray

    given, python = pickle.loads(base64.b64decode(told))
    # The GPUs are those that Ray gives the actor.
    serving = dataclasses.replace(given, gpus=(), port=None)
    cluster = Cluster(Place(os.environ.get(ADDRESS), Path(tempfile.gettempdir()) / "ray", os.cpu_count() or 1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    has_gpus = any(node["Resources"].get("GPU") for node in cluster.nodes())
    need = Need(Decimal(1), 0, (serving.tensor_parallel, None) if has_gpus else None)
    options = {name: value for name, value in cluster.options(need).items() if name != "max_retries" and value}
    actor = ray.remote(Holder).options(**options, max_concurrency=_CALLS, max_restarts=0).remote(serving, python)
    threading.Thread(target=_follow, args=(actor,), daemon=True).start()
    relay = type("Relay", (_Relay,), {"actor": actor, "key": os.environ["VLLM_API_KEY"]})
    ThreadingHTTPServer(("127.0.0.1", port), relay).serve_forever()


def _follow(actor: Any) -> None:
    """Print what the server prints; end the program when the server, or the actor, has ended."""
    import ray

    code, offset, over = 1, 0, actor.wait.remote()
    try:
        while True:
            ended = ray.wait([over], timeout=0)[0]
            piece = ray.get(actor.log.remote(offset))
            offset += len(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            if ended and not piece:
                print(f"the server of the actor: {ray.get(over)}", flush=True)
                break
            if not piece:
                time.sleep(_LOG_SECONDS)
    except ray.exceptions.RayError as error:
        print(f"the actor is gone: {str(error).strip().splitlines()[-1]}", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(code)


if __name__ == "__main__":
    # Under its own name, so that Ray's workers can import what they are sent.
    from mrp.runtime.models.vllm import actor

    actor.main(int(sys.argv[1]), sys.argv[2])
