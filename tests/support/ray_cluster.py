"""A real Ray cluster of several nodes on this machine, which listens on loopback only and can be hurt.

Run as a script it is the cluster: it reads a command a line and answers each with a line of JSON.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_STORE = 80 * 2**20


def why_no_ray() -> str | None:
    """Why there can be no cluster; None when there can."""
    return None if importlib.util.find_spec("ray") else "Ray is not installed; `pip install 'mrp-build[ray]'`"


class RayCluster:
    """A cluster: the head is node 0, with `head_cpus` processors; each other node has `cpus`."""

    def __init__(self, nodes: int, cpus: int = 1, head_cpus: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mrpt-", dir="/tmp"))
        (self.folder / "ray").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.folder), str(cpus), str(head_cpus)],
            env={**os.environ, **ENVIRONMENT, "RAY_TMPDIR": str(self.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log").open("ab"),
            start_new_session=True,
        )
        self.address: str = self._ask("start")["address"]
        for _ in range(nodes - 1):
            self.add()

    def add(self, resource: str = "") -> int:
        """Add a node, which may have one of a resource of its own; gives its number."""
        number: int = self._ask(f"add {resource}")["number"]
        return number

    def kill(self, node: int) -> None:
        """kill -9 of everything of a node, workers first, as when its machine loses power."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ask(f"forget {node}")

    def freeze(self, node: int) -> None:
        """SIGSTOP of everything of a node."""
        for pid in self.processes(node):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        for pid in self.processes(node):
            os.kill(pid, signal.SIGCONT)

    def restart_head(self, *, after: float) -> None:
        """End the whole cluster and start another at the same address, as a machine that is booted anew."""
        self._ask(f"restart {after}")

    def processes(self, node: int) -> list[int]:
        """Ids of the processes of a node: what its raylet started, and its raylet."""
        return _tree(int(self._ask(f"pid {node}")["pid"]))

    def node_ids(self) -> list[str]:
        ids: list[str] = self._ask("ids")["ids"]
        return ids

    def close(self) -> None:
        """End it, whatever state it is in."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in processes_of(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self.folder / "log").read_text()
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int = 1, head_cpus: int = 1) -> Iterator[RayCluster]:
    """A cluster for as long as the block."""
    cluster = RayCluster(nodes, cpus, head_cpus)
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def node_that_does_not_see(cluster: RayCluster, folders: Sequence[Path], cpus: int = 2) -> Iterator[None]:
    """A further node of a cluster, for whose processes `folders` are empty: so it is on another machine."""
    hide = " && ".join(f"mount -t tmpfs none '{folder}'" for folder in folders)
    start = f"exec '{sys.executable}' '{__file__}' node {cluster.address} {cpus}"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{hide} && {start}"],
        env={**os.environ, **ENVIRONMENT, "RAY_TMPDIR": str(cluster.folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(cluster.folder / "log").open("ab"),
        start_new_session=True,
    )
    try:
        expected = len(cluster.node_ids()) + 1
        until = time.monotonic() + 60
        while len(cluster.node_ids()) < expected:
            assert time.monotonic() < until and process.poll() is None, (cluster.folder / "log").read_text()
            time.sleep(0.5)
        yield
    finally:
        for pid in _tree(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def processes_of(word: str) -> list[int]:
    """Ids of all processes whose command line has `word` in it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and word in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def _tree(root: int) -> list[int]:
    """A process and all below it, the deepest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found[::-1]


class _Script:
    """The cluster's own process."""

    def __init__(self, folder: str, cpus: int, head_cpus: int) -> None:
        self._folder, self._cpus, self._head_cpus, self._port = folder, cpus, head_cpus, _free_port()
        self._nodes: list[Any] = []
        # Ray prints; at the other end nothing but answers is read.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self) -> None:
        for line in sys.stdin:
            command, *words = line.split()
            answer = getattr(self, f"_{command}")(*words) or {}
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()
        self._cluster.shutdown()

    def _start(self) -> dict[str, str]:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": self._head_cpus,
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "node_ip_address": "127.0.0.1",
            "temp_dir": self._folder,
            "gcs_server_port": self._port,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.head_node]
        return {"address": self._cluster.address}

    def _add(self, *resources: str) -> dict[str, int]:
        node = self._cluster.add_node(
            num_cpus=self._cpus,
            resources=dict.fromkeys(resources, 1),
            object_store_memory=_STORE,
            node_ip_address="127.0.0.1",
            wait=True,
        )
        self._nodes.append(node)
        return {"number": len(self._nodes) - 1}

    def _pid(self, node: str) -> dict[str, int]:
        return {"pid": self._nodes[int(node)].all_processes["raylet"][0].process.pid}

    def _forget(self, node: str) -> None:
        self._cluster.remove_node(self._nodes[int(node)], allow_graceful=False)

    def _ids(self) -> dict[str, list[str]]:
        from ray._raylet import GcsClient

        infos = GcsClient(address=self._cluster.address).get_all_node_info().values()
        return {"ids": [info.node_id.hex() for info in infos if info.state == 0]}

    def _restart(self, after: str) -> None:
        count = len(self._nodes)
        self._cluster.shutdown()
        time.sleep(float(after))
        self._start()
        for _ in range(count - 1):
            self._add()


def _be_node(address: str, cpus: int) -> None:
    """One more node of a cluster, until this process is killed."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=address,
        num_cpus=cpus,
        num_gpus=0,
        object_store_memory=_STORE,
        node_ip_address="127.0.0.1",
        object_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    signal.pause()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    if sys.argv[1] == "node":
        _be_node(sys.argv[2], int(sys.argv[3]))
    else:
        _Script(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).serve()
