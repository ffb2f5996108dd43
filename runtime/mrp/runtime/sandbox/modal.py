"""The Modal provider: sandboxes of the service Modal, through its own client.

Modal starts commands as root and moves single files; the rest is done inside by mrp.runtime.sandbox.guest, in the
image's python3. An image is kept there under the name of its content, and so is made and uploaded once.
"""

import importlib.util
import json
import math
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mrp.cache.store import Store
from mrp.runtime.images.oci import oci_layers, write_layer
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.sandbox import guest
from mrp.runtime.sandbox.guest_sandbox import PATIENCE, GuestSandbox, Outs
from mrp.runtime.sandbox.provider import Order, Owned, Owner
from mrp.specs.errors import InfraError

APP = "mrp-sandboxes"
"""The app of all sandboxes. It costs nothing while none runs."""

_IMAGES = "mrp-image"
_LONGEST_LEASE = 24 * 3600
_HEADROOM = 512
_PIECE = 4 * 2**20
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAGS = ("mrp-workspace", "mrp-run", "mrp-expires")


class ModalProvider:
    """See mrp.runtime.sandbox.provider.Provider. `store` holds the layers of images; without it none is prepared.

    volumes: guest folder -> volume of the client's, for every sandbox.
    """

    name = "modal"
    isolation = "container"

    def __init__(self, store: Store | None = None, *, volumes: Mapping[str, Any] | None = None) -> None:
        self._store = store
        self._volumes = dict(volumes or {})
        self._lock = threading.Lock()
        self._app: Any = None
        self._images: dict[str, Any] = {}

    def missing(self) -> str | None:
        """See mrp.runtime.sandbox.provider.Provider."""
        if importlib.util.find_spec("modal") is None:
            return "the client of Modal is not installed; run `pip install 'mrp-build[modal]'`"
        try:
            with service("answer"):
                sdk().Client.from_env().hello()
        except InfraError as error:
            if isinstance(error.__cause__, sdk().exception.AuthError):
                return "there is no valid token of Modal; run `modal token new`, or set MODAL_TOKEN_ID and its secret"
            return f"{error}; see https://status.modal.com"
        return None

    def prepare(self, image: PortableImage) -> str:
        """See mrp.runtime.sandbox.provider.Provider; gives Modal's id of the image."""
        modal = sdk()
        name = f"{_IMAGES}:{str(image.digest).rpartition(':')[2][:40]}"
        app = self.app()
        with service("look an image up"), suppress(modal.exception.NotFoundError):
            return str(modal.Image.from_name(name).build(app).object_id)
        store = self._store
        assert store is not None
        layers = image.layers if image.source is not None else oci_layers(image, store)
        with tempfile.TemporaryDirectory(prefix="mrp-modal-") as folder, service("build an image"):
            names = []
            for tree in dict.fromkeys(layers):
                path = Path(folder, "layer")
                with path.open("wb") as out:
                    sha256, _ = write_layer(tree, store, out)
                path.rename(Path(folder, f"{sha256}.tar"))
                names.append(f"{sha256}.tar")
            made = _base(image)
            if names:
                # The client puts into the context what COPY names, and only ADD unpacks. The first stage is dropped.
                steps = [f"COPY {' '.join(names)} /layers/", "FROM base", *(f"ADD {layer} /" for layer in names)]
                made = made.dockerfile_commands(steps, context_dir=folder)
            made = made.build(app)
            made.publish(name)
            return str(made.object_id)

    def create(self, order: Order) -> "ModalSandbox":
        """See mrp.runtime.sandbox.provider.Provider."""
        modal = sdk()
        limits = order.limits
        cpus, memory = float(limits.cpus), math.ceil(limits.memory / 2**20)
        lease = min(order.owner.lease, _LONGEST_LEASE)
        with service("create a sandbox"):
            made = modal.Sandbox.create(
                app=self.app(),
                image=self._image(order.image),
                timeout=lease,
                cpu=(cpus, cpus),
                # The guest watches the limit; the service's own would end the sandbox with all that is in it.
                memory=(memory, memory + _HEADROOM),
                gpu=_gpu(limits.gpus),
                block_network=order.network != "open",
                volumes=self._volumes,
                tags=_tags(order.owner, time.time() + lease),
            )
        return ModalSandbox(made, order)

    def owned(self, workspace: str) -> Iterable[Owned]:
        """See mrp.runtime.sandbox.provider.Provider."""
        modal = sdk()
        found = []
        with service("list sandboxes"):
            for sandbox in modal.Sandbox.list(app_id=self.app().app_id, tags={_TAGS[0]: _tag(workspace)}):
                # One that ended meanwhile has no tags to ask for.
                with suppress(modal.exception.NotFoundError):
                    tags = sandbox.get_tags()
                    found.append(Owned.tagged(sandbox.object_id, tags.get(_TAGS[1]), tags.get(_TAGS[2])))
        return found

    def remove(self, identity: str) -> None:
        """See mrp.runtime.sandbox.provider.Provider."""
        modal = sdk()
        with service("remove a sandbox"), suppress(modal.exception.NotFoundError):
            modal.Sandbox.from_id(identity).terminate()

    def close(self) -> None:
        """See mrp.runtime.sandbox.provider.Provider. The client's connections are the whole process's."""

    def app(self) -> Any:
        """The app that sandboxes belong to, which is made when it is not there."""
        with self._lock, service("find the app"):
            if self._app is None:
                self._app = sdk().App.lookup(APP, create_if_missing=True)
            return self._app

    def _image(self, identity: str) -> Any:
        with self._lock:
            if identity not in self._images:
                self._images[identity] = sdk().Image.from_id(identity)
            return self._images[identity]


class ModalSandbox(GuestSandbox):
    """See mrp.runtime.sandbox.provider.Sandbox."""

    def __init__(self, sandbox: Any, order: Order) -> None:
        super().__init__(sandbox.object_id, order)
        self._sandbox = sandbox

    def ask(
        self, job: Mapping[str, Any], archive: BinaryIO | None = None, *, outs: Outs = (None, None), seconds: float = 0
    ) -> Mapping[str, Any]:
        """See mrp.runtime.sandbox.guest_sandbox.GuestSandbox."""
        with service("run a command in a sandbox"):
            process = self._guest(seconds + PATIENCE)
            with suppress(BrokenPipeError):
                _write(process, _pieces(job, archive), end=True)
            for kind, data in _frames(process.stdout):
                if kind == guest.END:
                    told: dict[str, Any] = json.loads(data)
                    if "error" in told:
                        raise InfraError(f"the sandbox {self.id} could not {job['do']}: {told['error']}")
                    return told
                out = outs[kind - 1]
                if out is not None:
                    out.write(data)
            code, said = process.wait(), process.stderr.read().decode(errors="replace").strip()[-200:]
        if code in (126, 127):
            raise InfraError(
                "the image has no python3, with which files come into sandboxes of Modal; add it to the image, as in "
                "`deb: [python3]`",
                retryable=False,
            )
        raise InfraError(f"the sandbox {self.id} ended in the middle of a command ({code}) {said}".strip())

    def stream(self, argv: Sequence[str], *, env: Mapping[str, str]) -> "ModalStream":
        """See mrp.runtime.sandbox.provider.Sandbox."""
        job = {"do": "stream", "argv": list(argv), "env": dict(env)}
        with service("start a command"):
            process = self._guest(None)
            _write(process, [_framed(job)], end=False)
            return ModalStream(process)

    def lay(self, entries: Sequence[Sequence[Any]], blobs: str) -> None:
        """Lay files out whose bytes lie in the guest folder `blobs`, see mrp.runtime.sandbox.guest."""
        with service("reload a volume"):
            # What was uploaded since the sandbox was made is not seen before.
            self._sandbox.reload_volumes()
        self.ask({"do": "lay", "entries": entries, "blobs": blobs, "fresh": self.take_fresh()})

    def snapshot(self) -> str:
        """See mrp.runtime.sandbox.provider.Sandbox. Modal forgets it after 30 days."""
        with service("take a snapshot"):
            return str(self._sandbox.snapshot_filesystem(timeout=PATIENCE).object_id)

    def destroy(self) -> None:
        """See mrp.runtime.sandbox.provider.Sandbox."""
        errors = sdk().exception
        with (
            service("remove a sandbox"),
            suppress(errors.NotFoundError, errors.ConflictError, errors.ClientClosed),
        ):
            self._sandbox.terminate()
            self._sandbox.detach()

    def _guest(self, patience: float | None) -> Any:
        # -I and -S: nothing that a command left in the sandbox is imported.
        command = ["python3", "-I", "-S", "-c", guest.program()]
        timeout = None if patience is None else math.ceil(patience)
        return self._sandbox.exec(*command, env={"PATH": _SEARCH_PATH}, timeout=timeout, text=False)


class ModalStream:
    """See mrp.runtime.sandbox.provider.Stream."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._chunks: Iterator[bytes] = iter(process.stdout)
        self._lock = threading.Lock()
        self._closed = False

    def read(self) -> bytes:
        """See mrp.runtime.sandbox.provider.Stream."""
        with service("read from a command"):
            return next(self._chunks, b"")

    def write(self, data: bytes) -> None:
        """See mrp.runtime.sandbox.provider.Stream."""
        with self._lock, service("write to a command"):
            _write(self._process, [data], end=False)

    def close(self) -> None:
        """See mrp.runtime.sandbox.provider.Stream."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # The guest ends the command when its stdin ends; a sandbox that is gone has ended it already.
            with suppress(InfraError), service("end a command"):
                _write(self._process, [], end=True)


@contextmanager
def service(what: str) -> Iterator[None]:
    """Whatever the client raises becomes an InfraError that says what could not be done."""
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    errors = sdk().exception
    permanent = (
        errors.AuthError,
        errors.ImageBuildError,
        errors.InvalidError,
        errors.PermissionDeniedError,
        errors.UnimplementedError,
    )
    try:
        yield
    except (errors.Error, GRPCError, StreamTerminatedError, OSError, TimeoutError, ValueError) as error:
        text = f"Modal could not {what}: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise InfraError(text, retryable=not isinstance(error, permanent)) from error


def sdk() -> Any:
    """Modal's client. Raises InfraError where it is not installed."""
    try:
        import modal
        import modal.exception
    except ImportError as error:
        text = "the client of Modal is not installed; run `pip install 'mrp-build[modal]'`"
        raise InfraError(text, retryable=False) from error
    return modal


def _base(image: PortableImage) -> Any:
    """What lies below the layers of an image."""
    modal = sdk()
    if image.source is None:
        return modal.Image.from_scratch()
    scheme, _, rest = image.source.partition(":///")
    if scheme == "modal" and rest == "debian_slim":
        return modal.Image.debian_slim()
    if scheme == "snapshot":
        return modal.Image.from_id(rest)
    raise InfraError(
        f"Modal has no image {image.source}; use modal:///debian_slim, or snapshot:/// and the id of an image there",
        retryable=False,
    )


def _gpu(gpus: tuple[int, str | None] | None) -> str | None:
    if gpus is None:
        return None
    count, kind = gpus
    if kind is None:
        raise InfraError("Modal wants to know which GPU; write `gpus: {count: 1, type: A100}`", retryable=False)
    return f"{kind}:{count}"


def _tag(text: str) -> str:
    """The text as a tag may be: letters, digits and -_. up to 63."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)[-63:]


def _tags(owner: Owner, expires: float) -> dict[str, str]:
    return dict(zip(_TAGS, (_tag(owner.workspace), _tag(owner.run), str(int(expires))), strict=True))


def _framed(job: Mapping[str, Any]) -> bytes:
    data = json.dumps(job).encode()
    return len(data).to_bytes(4, "big") + data


def _pieces(job: Mapping[str, Any], archive: BinaryIO | None) -> Iterator[bytes]:
    yield _framed(job)
    while archive is not None and (data := archive.read(_PIECE)):
        yield data


def _write(process: Any, pieces: Iterable[bytes], *, end: bool) -> None:
    for data in pieces:
        for start in range(0, len(data), _PIECE):
            process.stdin.write(data[start : start + _PIECE])
            process.stdin.drain()
    if end:
        process.stdin.write_eof()
        process.stdin.drain()


def _frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The frames that a guest sent, as far as they are whole."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= 5:
            end = 5 + int.from_bytes(waiting[1:5], "big")
            if len(waiting) < end:
                break
            yield waiting[0], bytes(waiting[5:end])
            del waiting[:end]
