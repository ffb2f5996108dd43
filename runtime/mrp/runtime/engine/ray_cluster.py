"""The Ray cluster as the bridge sees it: started here or joined, what its nodes have, and which of them answer."""

import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from mrp.specs.errors import InfraError

_OBJECT_STORE = 128 * 2**20
_OWN_HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
_ACCELERATOR_SHARE = 0.001
_NODES_SECONDS = 2.0
_PROBE_SECONDS = 15.0
_REACH_SECONDS = 10.0

_INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "XDG_RUNTIME_DIR", "no_proxy"),
)
"""Nothing else of the environment reaches Ray: it may hold the values of secrets."""


@dataclass(frozen=True)
class Need:
    """What one job takes of a node: processors, bytes of memory, GPUs, and resources that nodes have by name.

    avoid: ids of nodes that do not answer.
    """

    cpus: Decimal
    memory: int
    gpus: tuple[int, str | None] | None = None
    resources: tuple[tuple[str, int], ...] = ()
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Which cluster: its address, or None for one of `slots` processors that is started below `folder`."""

    address: str | None
    folder: Path
    slots: int


def bridge_environment(environ: Mapping[str, str], address: str | None) -> dict[str, str]:
    """The environment of the bridge, which Ray hands on to all that it starts."""
    kept = {name: value for name, value in environ.items() if name in _INHERITED or name.startswith(("LC_", "RAY_"))}
    kept |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if address is None:
        kept |= {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0", **_OWN_HEALTH}
    if _is_loopback(address):
        # Without it Ray listens on every interface.
        kept["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return kept


def _is_loopback(address: str | None) -> bool:
    return address is None or address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")


class Cluster:
    """A cluster that this process is connected to. Safe to use from many threads."""

    def __init__(self, place: Place) -> None:
        """Start or join it. Raises whatever Ray raises."""
        import ray

        self._ray: Any = ray
        self._own = place.address is None
        self._slots = place.slots
        settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "configure_logging": False}
        if _is_loopback(place.address):
            settings["_node_ip_address"] = "127.0.0.1"
        if place.address is None:
            settings |= {
                "num_cpus": max(place.slots, os.cpu_count() or 1),
                "object_store_memory": _OBJECT_STORE,
                "include_dashboard": False,
            }
            # Without the word Ray would join a cluster that $RAY_ADDRESS names.
            settings |= {"_temp_dir": os.fspath(place.folder), "address": "local"}
        else:
            settings["address"] = place.address
            _reach(place.address)
        ray.init(**settings)
        self._nodes: list[dict[str, Any]] = []
        self._asked = 0.0

    def nodes(self, *, fresh: bool = False) -> list[dict[str, Any]]:
        """The nodes that Ray takes for alive, as ray.nodes() tells of them."""
        if fresh or time.monotonic() - self._asked > _NODES_SECONDS:
            self._nodes = [node for node in self._ray.nodes() if node["Alive"]]
            self._asked = time.monotonic()
        return self._nodes

    @property
    def slots(self) -> int:
        """How many jobs of one processor it has room for."""
        return max(1, int(sum(node["Resources"].get("CPU", 0) for node in self.nodes())))

    def options(self, need: Need) -> dict[str, Any]:
        """The need in Ray's words. Raises InfraError when no node can ever meet it: Ray would wait for ever."""
        count, kind = need.gpus or (0, None)
        options: dict[str, Any] = {"num_cpus": float(need.cpus), "memory": need.memory, "max_retries": 0}
        if count:
            options["num_gpus"] = count
        if kind is not None:
            options["accelerator_type"] = kind
        if need.resources:
            options["resources"] = dict(need.resources)
        nodes = self.nodes()
        fit = [node for node in nodes if not _missing(node, options)]
        if not fit:
            nodes = self.nodes(fresh=True)
            fit = [node for node in nodes if not _missing(node, options)]
        if not fit:
            raise InfraError(_explained(nodes, options), retryable=False)
        if self._own:
            # As on the local engine: what is there is shared, and the number of jobs is what is limited.
            options["num_cpus"] = 1
            del options["memory"]
        avoided = [node["NodeID"] for node in nodes if node["NodeID"] in need.avoid]
        if avoided and any(node["NodeID"] not in avoided for node in fit):
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoided)})"}
        return options

    def silent(self) -> list[str]:
        """Ids of nodes that take nothing on, or do not answer: frozen, most likely."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from mrp.runtime.engine.ray_worker import answers

        asked = {}
        for node in self.nodes(fresh=True):
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = self._ray.remote(answers).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
            asked[task.remote()] = node["NodeID"]
        _, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_SECONDS)
        for reference in silent:
            self._ray.cancel(reference, force=True)
        return [asked[reference] for reference in silent]

    def serve_blobs(self, root: Path) -> Any:
        """The handle of a BlobServer on this machine; None when the cluster is our own, all of which is here."""
        if self._own:
            return None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from mrp.runtime.engine.ray_worker import BlobServer

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        actor = self._ray.remote(BlobServer).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        return actor.remote(os.fspath(root))


def _reach(address: str) -> None:
    """Raises OSError when nothing listens there, which Ray takes minutes to find out."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


def _missing(node: Mapping[str, Any], options: Mapping[str, Any]) -> Collection[str]:
    """What a node has too little of."""
    has = node["Resources"]
    wanted = {"CPU": options["num_cpus"], "memory": options["memory"], "GPU": options.get("num_gpus", 0)}
    if "accelerator_type" in options:
        wanted[f"accelerator_type:{options['accelerator_type']}"] = _ACCELERATOR_SHARE
    wanted |= options.get("resources", {})
    return [name for name, amount in wanted.items() if has.get(name, 0) < amount]


def _explained(nodes: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    wanted = [f"{options['num_cpus']:g} processors"]
    wanted.append(f"{options['memory'] / 2**30:.3g} GiB of memory")
    if "num_gpus" in options:
        wanted.append(f"{options['num_gpus']} GPUs" + (f" of type {kind}" if (kind := _type(options)) else ""))
    wanted += [f"{amount} of {name}" for name, amount in options.get("resources", {}).items()]

    def most(name: str) -> float:
        return max((float(node["Resources"].get(name, 0)) for node in nodes), default=0.0)

    return (
        f"no node of the Ray cluster has {', '.join(wanted)}: the largest have {most('CPU'):g} processors, "
        f"{most('memory') / 2**30:.3g} GiB of memory and {most('GPU'):g} GPUs; lower the limits, or add a node"
    )


def _type(options: Mapping[str, Any]) -> str | None:
    kind: str | None = options.get("accelerator_type")
    return kind
