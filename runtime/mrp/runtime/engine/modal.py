"""The Modal engine: processes fan out over sandboxes of Modal, and their inputs travel through a volume there.

A blob is uploaded once, for all items and all later builds, and only when the volume has not got it; small ones go with
the process that needs them. Sandboxes lay their folders out from the volume, and outputs come back as they do from any
sandbox of Modal. Sandboxes are removed when their process ends; the volume stays, as a cache.
"""

import base64
import io
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from mrp.cache.checkout import CHECKOUT_TIME
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.engine.protocol import EngineSettings
from mrp.runtime.sandbox.modal import ModalProvider, ModalSandbox, sdk, service
from mrp.runtime.sandbox.packing import Placed, Points, place_entries
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.sandbox.provided import ProvidedBackend
from mrp.runtime.sandbox.provider import Sandbox
from mrp.specs.errors import InfraError
from mrp.specs.work import Completed, Process

VOLUME = "mrp-blobs"
"""The volume of all builds of an environment of Modal. Removing it costs no more than uploading its blobs again."""

_MOUNTED = "/.mrp/blobs"
_INLINE = 4096
_SMALL = 2**18
_AT_ONCE = 256


class ModalEngine(ProvidedBackend):
    """See mrp.runtime.engine.protocol.Engine."""

    def __init__(self, settings: EngineSettings) -> None:
        store = settings.backend.store
        self._shelf = Shelf(store)
        provider = ModalProvider(store, volumes={_MOUNTED: self._shelf.volume.with_mount_options(read_only=True)})
        super().__init__(provider, settings.backend)
        self._slots = settings.slots
        self._room = threading.BoundedSemaphore(settings.slots)

    @property
    def slots(self) -> int:
        """See mrp.runtime.engine.protocol.Engine."""
        return self._slots

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._room:
            return super().run(process, secrets=secrets, tag=tag, endpoint=endpoint)

    def _fill(self, sandbox: Sandbox, points: Points, owner: tuple[int, int]) -> None:
        assert isinstance(sandbox, ModalSandbox)
        if owner[0] == 0:
            raise InfraError(
                "the image's user is root, who could read on the modal engine what other items keep from agents; give "
                "the image another user, or use `--sandbox modal`",
                retryable=False,
            )
        entries = list(place_entries(points, self._store, owner))
        self._shelf.bring({placed.entry.digest for placed in entries if placed.entry.digest is not None})
        told = [_told(placed, self._store) for placed in entries]
        try:
            sandbox.lay(told, _MOUNTED)
        except InfraError:
            # Somebody may have emptied the volume.
            self._shelf.forget()
            raise


class Shelf:
    """The blobs that a volume has. What is there is asked once; `bring` may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: set[str] | None = None
        self._lock = threading.Lock()
        with service("find the volume of blobs"):
            self.volume: Any = sdk().Volume.from_name(VOLUME, create_if_missing=True, version=2)
            self.volume.hydrate()

    def bring(self, digests: Iterable[Digest]) -> None:
        """Upload those that the volume has not got and that are too large to go with a process."""
        wanted = {digest for digest in digests if self._store.size(digest) > _INLINE}
        if not wanted:
            return
        with self._lock:
            if self._known is None:
                self._known = self._list()
            missing = sorted(wanted - self._known)
            for start in range(0, len(missing), _AT_ONCE):
                some = missing[start : start + _AT_ONCE]
                self._upload(some)
                self._known.update(some)

    def forget(self) -> None:
        """Ask the volume anew next time."""
        with self._lock:
            self._known = None

    def _list(self) -> set[str]:
        errors = sdk().exception
        with service("list the volume of blobs"), suppress(errors.NotFoundError, FileNotFoundError):
            return {entry.path.rpartition("/")[2] for entry in self.volume.iterdir("/", recursive=True)}
        return set()

    def _upload(self, digests: list[Digest]) -> None:
        # A file appears in a volume whole, and under the same name there is ever only the same.
        with service("upload blobs"), self.volume.batch_upload(force=True) as batch:
            for digest in digests:
                # Small ones lie in the store's index, and are no files.
                small = self._store.size(digest) <= _SMALL
                source = io.BytesIO(self._store.get_bytes(digest)) if small else self._store.blob_path(digest)
                batch.put_file(source, f"/{_place(digest)}", mode=0o600)


def _place(digest: Digest) -> str:
    return f"{digest[:2]}/{digest}"


def _told(placed: Placed, store: Store) -> list[Any]:
    """An entry as mrp.runtime.sandbox.guest takes it."""
    entry = placed.entry
    kind = entry.kind if entry.kind in "dl" else "f"
    what: Any = entry.target
    if entry.digest is not None:
        size = store.size(entry.digest)
        if size > _INLINE:
            what = ["at", _place(entry.digest), size]
        else:
            what = ["in", base64.b64encode(store.get_bytes(entry.digest)).decode()]
    return [placed.path, kind, placed.mode, *placed.owner, CHECKOUT_TIME, what]
