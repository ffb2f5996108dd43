"""The Daytona provider: sandboxes of that service, through its own SDK.

Daytona's own means of running commands give one merged string, kill only the first process at their time limit, and
hang together with one HTTP connection. So commands run through a program that is put into each sandbox
(mrp.runtime.sandbox.guest); the service's calls only start it, ask it, and move files. Nothing of a command's
environment is in any of the calls that the service keeps: jobs travel as files into a folder that only root may read.
"""

import base64
import json
import math
import os
import shlex
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mrp.cache.store import Store
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.sandbox import guest
from mrp.runtime.sandbox.daytona_failures import failure, pause
from mrp.runtime.sandbox.daytona_stream import DaytonaStream
from mrp.runtime.sandbox.daytona_upload import ROOT, NotMade, make_snapshot
from mrp.runtime.sandbox.guest import MARK
from mrp.runtime.sandbox.guest_commands import ERR, OUT
from mrp.runtime.sandbox.guest_sandbox import PATIENCE, GuestSandbox, Outs
from mrp.runtime.sandbox.provider import Order, Owned, Stream
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits

Result = TypeVar("Result")

_HOME = "/.mrp"
_GUEST = f"{_HOME}/guest.py"
_PYTHON = f"python3 -I -S -B {_GUEST}"
_SOURCE = "snapshot:///"
_WORKSPACE, _RUN, _EXPIRES, _ORDER = "mrp-workspace", "mrp-run", "mrp-expires", "mrp-order"

_IDLE_MINUTES = 30
"""After so long without a call the service removes a sandbox: the build that made it is gone."""

_TOUCH_SECONDS = 300
_WAIT_SECONDS = 20
_CALL_SECONDS = 60
_CREATE_SECONDS = 300
_BUILD_SECONDS = 1800
_ATTEMPTS = 5
_GIB = 2**30


class DaytonaProvider:
    """Sandboxes of the Daytona service that the environment names (DAYTONA_API_KEY, DAYTONA_API_URL, DAYTONA_TARGET).

    isolation: what the service promises for its default class of sandboxes.
    """

    name = "daytona"
    isolation = "container"

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._client: Any = None
        self._images: dict[str, PortableImage] = {}
        self._ready: dict[str, threading.Lock] = {}
        self._built: set[str] = set()
        self._closing = threading.Event()

    def missing(self) -> str | None:
        try:
            import daytona
        except ImportError:
            return "the daytona backend needs the package daytona; run `pip install 'mrp-build[daytona]'`"
        names = ("DAYTONA_API_KEY", "DAYTONA_JWT_TOKEN")
        if not any(os.environ.get(name) for name in names):
            return "the daytona backend needs a key; set DAYTONA_API_KEY in the environment"
        try:
            query = daytona.ListSandboxesQuery(limit=1)
            self._call("list sandboxes", lambda client: next(iter(client.list(query, _CALL_SECONDS)), None), attempts=1)
        except InfraError as error:
            return str(error)
        return None

    def prepare(self, image: PortableImage) -> str:
        """The name for orders. What the service builds of it is made with the first order, whose resources it has."""
        if image.source is not None and not image.source.startswith(_SOURCE):
            raise InfraError(
                f"the daytona backend does not know the image {image.source}; use {_SOURCE}NAME, `base: scratch` or an"
                " image by digest",
                retryable=False,
            )
        name = f"mrp-{image.digest}"
        with self._lock:
            self._images[name] = image
        return name

    def create(self, order: Order) -> "DaytonaSandbox":
        import daytona

        resources = _resources(order.limits)
        if order.network not in ("none", "open"):
            raise InfraError(f"the daytona backend has no network {order.network}; use none or open", retryable=False)
        image = self._images.get(order.image)
        if image is None:
            snapshot = order.image
        elif image.source is not None:
            snapshot = image.source.removeprefix(_SOURCE)
        else:
            snapshot = self._snapshot(image, order.image, resources)
        mark = uuid.uuid4().hex
        labels = {
            _WORKSPACE: order.owner.workspace,
            _RUN: order.owner.run,
            _EXPIRES: str(int(time.time()) + order.owner.lease),
            _ORDER: mark,
        }
        params = daytona.CreateSandboxFromSnapshotParams(
            snapshot=snapshot,
            labels=labels,
            os_user="root",
            network_block_all=order.network == "none",
            auto_stop_interval=_IDLE_MINUTES,
            auto_delete_interval=0,
            ttl_minutes=max(1, math.ceil(order.owner.lease / 60)),
        )
        box = self._call(
            "create a sandbox",
            lambda client: client.create(params, timeout=_CREATE_SECONDS),
            between=lambda: self._forget(mark),
        )
        sandbox = DaytonaSandbox(self, box, order)
        try:
            sandbox.install()
            if image is not None and image.source is not None:
                self._put_layers(image, sandbox)
        except BaseException:
            with suppress(InfraError):
                sandbox.destroy()
            raise
        return sandbox

    def owned(self, workspace: str) -> Iterable[Owned]:
        return [
            Owned.tagged(box.id, box.labels.get(_RUN), box.labels.get(_EXPIRES))
            for box in self._listed({_WORKSPACE: workspace})
        ]

    def remove(self, identity: str) -> None:
        def delete(client: Any) -> None:
            import daytona

            with suppress(daytona.DaytonaNotFoundError):
                box = client.get(identity, _CALL_SECONDS)
                if str(box.state.value) not in ("destroyed", "destroying"):
                    client.delete(box, timeout=_CALL_SECONDS)

        self._call(f"remove the sandbox {identity}", delete)

    def close(self) -> None:
        self._closing.set()

    # -- inside --------------------------------------------------------------------------------------------------

    def _snapshot(self, image: PortableImage, name: str, resources: dict[str, int]) -> str:
        """The name of the snapshot that holds an image for sandboxes with these resources; made when it is not there.

        Resources belong to snapshots, not to the sandboxes that are made of them.
        """
        name = f"{name}-{resources['cpu']}-{resources['memory']}-{resources['disk']}"
        with self._lock:
            alone = self._ready.setdefault(name, threading.Lock())
        with alone:
            if name not in self._built:
                self._call("build an image", lambda client: self._find_or_build(client, image, name, resources))
                self._built.add(name)
        return name

    def _find_or_build(self, client: Any, image: PortableImage, name: str, resources: dict[str, int]) -> None:
        import daytona

        until = time.monotonic() + _BUILD_SECONDS
        while time.monotonic() < until:
            try:
                snapshot = client.snapshot.get(name)
            except daytona.DaytonaNotFoundError:
                try:
                    self._build(image, name, resources)
                    return
                except NotMade as error:
                    if error.status_code != 409:
                        raise
                    continue  # Another build of the same image was faster.
            state = str(snapshot.state.value)
            if state == "active":
                return
            if state in ("error", "build_failed"):
                client.snapshot.delete(name)
            elif state == "inactive":
                client.snapshot.activate(name)
            self._closing.wait(1)
        raise InfraError(f"Daytona has not built the snapshot {name} in {_BUILD_SECONDS} s; build again")

    def _build(self, image: PortableImage, name: str, resources: dict[str, int]) -> None:
        from mrp.runtime.images.oci import write_rootfs

        assert self._store is not None, "a provider without a store brings no image"
        with tempfile.TemporaryDirectory(prefix="mrp-daytona-") as folder:
            with open(Path(folder, ROOT), "wb") as file:
                write_rootfs(image, self._store, file)
            make_snapshot(name, Path(folder), resources, _BUILD_SECONDS)

    def _put_layers(self, image: PortableImage, sandbox: "DaytonaSandbox") -> None:
        from mrp.runtime.images.oci import write_layer

        assert self._store is not None, "a provider without a store brings no image"
        for layer in image.layers:
            with tempfile.TemporaryFile(prefix="mrp-daytona-") as file:
                write_layer(layer, self._store, file)
                file.seek(0)
                sandbox.put_layer(file)

    def _forget(self, mark: str) -> str:
        """Remove what an order that failed may have made, and give the reason that the service has for its failure.

        What cannot be removed now has its owner's labels and a lease.
        """
        reason = ""
        with suppress(InfraError):
            for box in self._listed({_ORDER: mark}):
                reason = box.error_reason or reason
                self.remove(box.id)
        return reason

    def _listed(self, labels: Mapping[str, str]) -> list[Any]:
        import daytona

        query = daytona.ListSandboxesQuery(labels=dict(labels))
        found = self._call("list sandboxes", lambda client: list(client.list(query, _CALL_SECONDS)))
        return [box for box in found if str(box.state.value) not in ("destroyed", "destroying")]

    def _call(
        self,
        what: str,
        call: Callable[[Any], Result],
        *,
        attempts: int = _ATTEMPTS,
        between: Callable[[], str] = str,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Result:
        """Make a call, and again while the service says that this may help; every failure is an InfraError.

        `between` clears up after a failed attempt, also the last, and may know a reason; without it calls may be made
        twice.
        """
        for attempt in range(1, attempts + 1):
            try:
                return _apart(lambda: call(self._connected()))
            except InfraError:
                raise
            except Exception as error:
                reason = between()
                seconds = pause(error, attempt)
                if seconds is None or attempt == attempts or not wanted() or self._closing.wait(seconds):
                    raise failure(what, error, reason) from error
        raise AssertionError("the last attempt returns or raises")

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    import daytona
                except ImportError as error:
                    raise InfraError(
                        "the daytona backend needs the package daytona; run `pip install 'mrp-build[daytona]'`",
                        retryable=False,
                    ) from error
                self._client = daytona.Daytona()
            return self._client


class DaytonaSandbox(GuestSandbox):
    """One sandbox; `install` puts mrp's own program into it."""

    def __init__(self, provider: DaytonaProvider, box: Any, order: Order) -> None:
        super().__init__(box.id, order)
        self._provider, self._box = provider, box
        self._gone = threading.Event()

    def install(self) -> None:
        """Put the guest's program into it, and make its folder root's own before anything secret comes there."""
        self._upload(_GUEST, guest.program().encode())
        if not self._guest("hello")["reaper"]:
            raise InfraError(
                "the daytona backend cannot tell processes apart in this image; its python3 needs the module ctypes",
                retryable=False,
            )

    def ask(
        self, job: Mapping[str, Any], archive: BinaryIO | None = None, *, outs: Outs = (None, None), seconds: float = 0
    ) -> Mapping[str, Any]:
        folder = _new_folder()
        if archive is not None:
            self._upload_stream(archive, f"{folder}/in")
        self._upload(f"{folder}/job.json", json.dumps(job).encode())
        late = time.monotonic() + seconds + PATIENCE
        touched = time.monotonic()
        while (told := self._guest(folder, str(_WAIT_SECONDS))).get("running"):
            if time.monotonic() > late:
                raise InfraError(f"the sandbox {self.id} at Daytona does not end what it runs; it is given up")
            if time.monotonic() > touched + _TOUCH_SECONDS:
                self._call("keep a sandbox", lambda _: self._box.refresh_activity(_CALL_SECONDS))
                touched = time.monotonic()
        if "error" in told:
            raise InfraError(f"the sandbox {self.id} at Daytona could not {job['do']}: {told['error']}")
        for kind, out in zip((OUT, ERR), outs, strict=True):
            if out is not None and str(kind) in told:
                out.write(base64.b64decode(told[str(kind)]))
            elif out is not None:
                self._download(f"{folder}/{kind}", out)
        return told

    def put_layer(self, archive: BinaryIO) -> None:
        """Lay what an archive holds over the image."""
        self.ask({"do": "unpack", "fresh": []}, archive)

    def stream(self, argv: Sequence[str], *, env: Mapping[str, str]) -> Stream:
        folder = _new_folder()
        self._upload(f"{folder}/job.json", json.dumps({"argv": list(argv), "env": dict(env)}).encode())
        return self._call("open a terminal", lambda _: DaytonaStream(self._box, f"{_PYTHON} stream {folder}"))

    def snapshot(self) -> str:
        name = f"mrp-kept-{uuid.uuid4().hex}"
        self._call("take a snapshot", lambda _: self._box.create_snapshot(name, timeout=_BUILD_SECONDS), attempts=1)
        return name

    def destroy(self) -> None:
        if not self._gone.is_set():
            self._gone.set()
            self._provider.remove(self.id)

    # -- inside --------------------------------------------------------------------------------------------------

    def _guest(self, *words: str) -> dict[str, Any]:
        """Run the guest's program with these words; gives what it says."""
        command = f"{_PYTHON} {shlex.join(words)}"
        timeout = _WAIT_SECONDS + _CALL_SECONDS
        done = self._call("run a command", lambda _: self._box.process.exec(command, timeout=timeout))
        for line in reversed((done.result or "").splitlines()):
            if done.exit_code == 0 and line.startswith(MARK):
                said: dict[str, Any] = json.loads(line[len(MARK) :])
                return said
        if words[0] == "hello" and done.exit_code in (126, 127):
            raise InfraError(
                "the daytona backend runs commands with the image's own python3, and this image has none that works;"
                " add python3 and sh to the image",
                retryable=False,
            )
        last = (done.result or "").strip().rpartition("\n")[2][:200]
        raise InfraError(f"the sandbox {self.id} at Daytona failed in `{command}` with {done.exit_code}: {last}")

    def _upload(self, path: str, data: bytes) -> None:
        self._call("upload a file", lambda _: self._box.fs.upload_file(data, path, timeout=_CALL_SECONDS))

    def _upload_stream(self, archive: BinaryIO, path: str) -> None:
        start = archive.tell()

        def upload(_: Any) -> None:
            archive.seek(start)
            self._box.fs.upload_file_stream(archive, path, timeout=_BUILD_SECONDS)

        self._call("upload an archive", upload)

    def _download(self, path: str, out: BinaryIO) -> None:
        start = out.tell()

        def download(_: Any) -> None:
            out.seek(start)
            out.truncate()
            for chunk in self._box.fs.download_file_stream(path, timeout=_CALL_SECONDS):
                out.write(chunk)

        self._call("download a file", download)

    def _call(self, what: str, call: Callable[[Any], Result], *, attempts: int = _ATTEMPTS) -> Result:
        where = f"{what} in the sandbox {self.id}"
        return self._provider._call(where, call, attempts=attempts, wanted=lambda: not self._gone.is_set())


def _new_folder() -> str:
    return f"{_HOME}/{uuid.uuid4().hex}"


def _resources(limits: Limits) -> dict[str, int]:
    """Whole cores and GiB; one GiB of disk more than the limit, for archives on their way."""
    if limits.gpus is not None:
        raise InfraError("the daytona backend gives no GPUs; use another one", retryable=False)
    return {
        "cpu": max(1, math.ceil(limits.cpus)),
        "memory": max(1, math.ceil(limits.memory / _GIB)),
        "disk": math.ceil(limits.disk / _GIB) + 1,
    }


def _apart(call: Callable[[], Result]) -> Result:
    """Make a call of the SDK outside of the main thread, where it would keep its deadlines with SIGALRM."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
