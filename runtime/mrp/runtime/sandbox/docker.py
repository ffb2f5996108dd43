"""Docker, or anything that speaks its API, as a provider of sandboxes.

A sandbox is one container that never starts: it holds the volumes of the contract's folders, so that files can be put
and fetched whatever runs. Each command is a container of its own over these volumes, with a read-only root and the
given folders mounted read-only; when its first process ends, so does all else in it. A relay is another one, whose
network the command's container shares, so that neither can see the other's processes.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from mrp.cache.store import Store
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.sandbox.container_output import exit_of, follow, open_counters
from mrp.runtime.sandbox.docker_client import brief_client, open_client, service, unless_gone
from mrp.runtime.sandbox.docker_stream import Connection, DockerStream
from mrp.runtime.sandbox.provider import Exit, Order, Owned, Stream
from mrp.specs.errors import InfraError

_WORKSPACE, _RUN, _EXPIRES, _SANDBOX = "mrp.workspace", "mrp.run", "mrp.expires", "mrp.sandbox"
_END_SECONDS, _ASK_SECONDS = 10, 5
_OPEN_FILES = 4096
_KEPT = "/.mrp"
_AS_IS = {"NoCopy": True}
"""Of a volume: what the image holds there is not copied into it, modes and owners included."""

_RELAY_MEMORY = 256 * 2**20
_RELAY_THREADS = 16384


class DockerProvider:
    """The engine that DOCKER_HOST names, or this machine's; see mrp.runtime.sandbox.provider.Provider.

    store: where the layers of images are; without it none can be prepared.
    """

    name = "docker"
    isolation = "container"

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._client: Any = None
        self._cores = Decimal(0)
        self._loading = threading.Lock()

    def missing(self) -> str | None:
        """See mrp.runtime.sandbox.provider.Provider."""
        try:
            with service("asked whether it is there"):
                self.client().ping()
        except InfraError as error:
            return str(error)
        return None

    def prepare(self, image: PortableImage) -> str:
        """See mrp.runtime.sandbox.provider.Provider."""
        import docker

        from mrp.runtime.images.oci import write_archive

        if image.source is not None:
            raise InfraError(
                f"the image lies over {image.source}, which Docker does not have; use `base: scratch` or an image by"
                " digest",
                retryable=False,
            )
        tag = f"mrp/image:{image.digest}"
        with self._loading, service("given an image"):
            client = self.client()
            with suppress(docker.errors.ImageNotFound):
                client.inspect_image(tag)
                return tag
            assert self._store is not None
            with tempfile.TemporaryFile(prefix="mrp-image-") as archive:
                write_archive(image, self._store, archive, tag=tag)
                archive.seek(0)
                for said in client.load_image(archive):
                    if "error" in said:
                        raise InfraError(f"Docker could not load an image: {said['error']}")
        return tag

    def create(self, order: Order) -> "DockerSandbox":
        """See mrp.runtime.sandbox.provider.Provider."""
        name = f"mrp-{os.urandom(8).hex()}"
        labels = {
            _WORKSPACE: order.owner.workspace,
            _RUN: order.owner.run,
            _EXPIRES: str(int(time.time()) + order.owner.lease),
            _SANDBOX: name,
        }
        folders = sorted({*order.writable, *order.given})
        volumes = {path: f"{name}-{number}" for number, path in enumerate(folders)}
        options = {**_AS_IS, "Labels": labels}
        targets = [(path, path) for path in folders] + [(path, f"{_KEPT}{path}") for path in order.writable]
        mounts = [
            {"Type": "volume", "Source": volumes[path], "Target": target, "VolumeOptions": options}
            for path, target in targets
        ]
        config = {
            "Image": order.image,
            "Cmd": ["-"],
            "Labels": labels,
            "HostConfig": {"Mounts": mounts, "NetworkMode": "none", "LogConfig": {"Type": "none"}},
        }
        try:
            with service("asked for a sandbox"):
                self.client().create_container_from_config(config, name)
        except BaseException:
            with suppress(InfraError):
                self.remove(name)
            raise
        return DockerSandbox(self, order, name, labels, volumes, self._cores)

    def owned(self, workspace: str) -> Iterable[Owned]:
        """See mrp.runtime.sandbox.provider.Provider."""
        with service("asked for its sandboxes"):
            labelled = {"label": f"{_WORKSPACE}={workspace}"}
            found = self.client().containers(all=True, filters=labelled)
            found += self.client().volumes(filters=labelled)["Volumes"] or []
        kept = {}
        for part in found:
            labels = part["Labels"] or {}
            if name := labels.get(_SANDBOX):
                kept[name] = Owned.tagged(name, labels.get(_RUN), labels.get(_EXPIRES))
        return [kept[name] for name in sorted(kept)]

    def remove(self, identity: str) -> None:
        """See mrp.runtime.sandbox.provider.Provider."""
        with service("asked to remove a sandbox"):
            client = self.client()
            labelled = {"label": f"{_SANDBOX}={identity}"}
            for container in client.containers(all=True, filters=labelled):
                self.discard(container["Id"])
            for volume in client.volumes(filters=labelled)["Volumes"] or []:
                self.discard_volume(volume["Name"])

    def discard(self, container: str) -> None:
        """Kill and remove a container, which may be gone."""
        unless_gone(lambda: self.client().remove_container(container, force=True))

    def discard_volume(self, volume: str) -> None:
        """Remove a volume, which may be gone."""
        unless_gone(lambda: self.client().remove_volume(volume))

    def close(self) -> None:
        """See mrp.runtime.sandbox.provider.Provider."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def client(self) -> Any:
        """The docker.APIClient. Raises InfraError when there is no SDK, and what that raises without an engine."""
        with self._lock:
            if self._client is None:
                self._client, self._cores = open_client()
            return self._client


class DockerSandbox:
    """See mrp.runtime.sandbox.provider.Sandbox."""

    def __init__(
        self,
        provider: DockerProvider,
        order: Order,
        name: str,
        labels: Mapping[str, str],
        volumes: Mapping[str, str],
        cores: Decimal,
    ) -> None:
        self.id = name
        self._provider, self._order, self._labels, self._volumes = provider, order, labels, volumes
        self._cores = cores
        self._network = "none" if order.network == "none" else "default"
        self._lock, self._destroying = threading.Lock(), threading.Lock()
        self._parts: list[str] = []
        self._destroyed = False

    def put(self, archive: BinaryIO) -> None:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        with service("given files"):
            self._provider.client().put_archive(self.id, "/", archive)

    def get(self, path: str, out: BinaryIO, most: int) -> bool:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        with service("asked for files"):
            chunks, _ = self._provider.client().get_archive(self.id, f"{path}/.")
            left = most
            for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return False
                out.write(chunk)
        return True

    def get_many(self, paths: Sequence[str], out: BinaryIO, most: int) -> bool:
        """See mrp.runtime.sandbox.provider.Gathering; all that can be written to is there a second time, together."""
        return self.get(_KEPT, out, most)

    def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout: float, logs: Path, root: bool = False
    ) -> Exit:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        user = "0:0" if root else self._order.user
        config = self._config(argv, env, user) | {"WorkingDir": cwd, "AttachStdout": True, "AttachStderr": True}
        with service("asked to run a command"):
            name, container = self._add(config)
            attached = self._attach(container, stdin=False)
            try:
                self._provider.client().start(container)
                seen = follow(
                    attached.socket, open_counters(container), timeout, logs, lambda ask: self._end(name, user, ask)
                )
                return exit_of(seen, self._state(name))
            finally:
                attached.close()
                self._discard(name)

    def stream(self, argv: Sequence[str], *, env: Mapping[str, str]) -> Stream:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        config = self._config(argv, env, self._order.user)
        config |= {"AttachStdin": True, "AttachStdout": True, "OpenStdin": True, "StdinOnce": True}
        config["HostConfig"] |= {"Memory": _RELAY_MEMORY, "MemorySwap": _RELAY_MEMORY, "PidsLimit": _RELAY_THREADS}
        with service("asked to run a relay"):
            _, container = self._add(config)
            attached = self._attach(container, stdin=True)
            self._provider.client().start(container)
        self._network = f"container:{container}"
        return DockerStream(attached, lambda: self._provider.discard(container))

    def snapshot(self) -> str:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        raise InfraError(
            "the docker backend takes no snapshots; what a set-up makes is kept as a tree", retryable=False
        )

    def destroy(self) -> None:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        self._destroyed = True
        # Two at once would each find what the other is removing still in use.
        with self._destroying, service("asked to remove a sandbox"):
            with self._lock:
                parts = list(self._parts)
            for part in [*reversed(parts), self.id]:
                self._discard(part)
            for path in list(self._volumes):
                self._provider.discard_volume(self._volumes[path])

    def _config(self, argv: Sequence[str], env: Mapping[str, str], user: str) -> dict[str, Any]:
        order = self._order
        limits = order.limits
        ulimits = {"nofile": _OPEN_FILES, "core": 0}
        if order.file_bytes:
            ulimits["fsize"] = order.file_bytes
        mounts = [
            {
                "Type": "volume",
                "Source": volume,
                "Target": path,
                "ReadOnly": path in order.given,
                "VolumeOptions": _AS_IS,
            }
            for path, volume in sorted(self._volumes.items())
        ]
        host = {
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "NanoCpus": int(min(limits.cpus, self._cores) * 10**9),
            # The first process, which only waits for the command, is not the command's.
            "PidsLimit": limits.pids + 1,
            "ShmSize": limits.memory,
            "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits.items()],
            "Mounts": mounts,
            "ReadonlyRootfs": True,
            "NetworkMode": self._network,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "IpcMode": "private",
            "Init": True,
            "LogConfig": {"Type": "none"},
        }
        if limits.gpus is not None:
            host["DeviceRequests"] = [{"Count": limits.gpus[0], "Capabilities": [["gpu"]]}]
        config = {
            "Image": order.image,
            "Cmd": list(argv),
            "Entrypoint": [],
            # A name alone takes away a variable that Docker adds.
            "Env": ["HOSTNAME", *(f"{name}={value}" for name, value in sorted(env.items()))],
            "User": user,
            "Labels": dict(self._labels),
            "HostConfig": host,
        }
        if not self._network.startswith("container:"):
            config["Hostname"] = "mrp"
        return config

    def _add(self, config: Mapping[str, Any], *, last: bool = False) -> tuple[str, str]:
        """Make a container; gives its name and its id. `last`: it is removed after all others."""
        name = f"{self.id}-{os.urandom(4).hex()}"
        with self._lock:
            self._parts.insert(0 if last else len(self._parts), name)
        made: str = self._provider.client().create_container_from_config(config, name)["Id"]
        if self._destroyed:
            self._discard(name)
            raise InfraError("the sandbox was removed")
        return name, made

    def _state(self, name: str) -> Mapping[str, Any]:
        """How a container whose output is at its end has ended."""
        client = self._provider.client()
        state: Mapping[str, Any] = client.inspect_container(name)["State"]
        if state["Running"]:
            # Only the connection broke when it goes on: then what it says is lost.
            client.wait(name, timeout=_END_SECONDS)
            state = client.inspect_container(name)["State"]
        return state

    def _end(self, name: str, user: str, ask: bool) -> None:
        """Ask all processes of a container to end, or kill them."""
        import docker

        with suppress(docker.errors.APIError):
            if not ask or not self._ask_all(name, user):
                self._provider.client().kill(name, signal="SIGTERM" if ask else "SIGKILL")

    def _ask_all(self, name: str, user: str) -> bool:
        """Send SIGTERM to all processes, where the image has a shell; Docker itself reaches only the first.

        They may stop the shell, even before it has begun, and Docker cannot kill a container in which it waits for one
        to begin. So it is in a container of its own that sees their processes, for which nobody waits long.
        """
        config = self._config(["/bin/sh", "-c", "kill -TERM -1"], {}, user)
        config["HostConfig"] |= {"PidMode": f"container:{name}", "Init": False, "Mounts": []}
        with (
            suppress(InfraError),
            service("asked to end a process"),
            closing(brief_client(self._provider.client(), _ASK_SECONDS)) as client,
        ):
            _, asking = self._add(config, last=True)
            client.start(asking)
            return bool(client.wait(asking)["StatusCode"] == 0)
        return False

    def _discard(self, name: str) -> None:
        self._provider.discard(name)
        with self._lock, suppress(ValueError):
            self._parts.remove(name)

    def _attach(self, container: str, *, stdin: bool) -> Connection:
        params = {"stdout": 1, "stderr": 1, "stream": 1, "stdin": int(stdin)}
        return Connection(self._provider.client().attach_socket(container, params))
