"""The backend over a provider: what the contract of sandboxes means where a service keeps them.

Each process gets a sandbox of its own: its folders go there as one archive, it runs, its outputs come back as archives,
and the sandbox is removed. What a limit means, and what is kept, is the same as on this machine.
"""

import dataclasses
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.runtime.images.portable import PortableImage, read_portable
from mrp.runtime.sandbox.anew import started_anew
from mrp.runtime.sandbox.capture import Kept, Redactor, keep_folder, keep_log
from mrp.runtime.sandbox.layout import DEFAULT_ENV, ImageView, environment
from mrp.runtime.sandbox.packing import Points, count, pack, plan_points, unpack
from mrp.runtime.sandbox.protocol import Cancelled, Endpoint
from mrp.runtime.sandbox.provider import Exit, Gathering, Order, Provider, Sandbox
from mrp.runtime.sandbox.registry import BackendSettings
from mrp.runtime.sandbox.relay import Relayed
from mrp.runtime.sandbox.scratch import Scratch, remove_folder, sweep
from mrp.runtime.sandbox.tree_programs import find_program
from mrp.specs.errors import InfraError
from mrp.specs.work import ISOLATION, MODEL_PORT, Completed, Process, model_env

_FILE_TOO_LARGE = 128 + 25
_SPARE = 1 << 20
_LEASE_SPARE_SECONDS = 3600
_OUTAGE_SECONDS, _PAUSE_SECONDS = 30.0, 0.5


@dataclass(frozen=True)
class _Ready:
    """An image that the provider has, and the name that it has there."""

    image: PortableImage
    name: str
    view: ImageView


class ProvidedBackend:
    """Runs processes in the sandboxes of a provider; see mrp.runtime.sandbox.protocol.Backend.

    Sandboxes that dead runs of this workspace left there are removed first, as far as the service can be reached.
    """

    def __init__(self, provider: Provider, settings: BackendSettings) -> None:
        self.name = provider.name
        self._provider, self._settings, self._store = provider, settings, settings.store
        sweep(settings.scratch)
        self._scratch = Scratch(settings.scratch)
        self._numbers = itertools.count()
        # A signal handler may cancel while its own thread holds it.
        self._lock = threading.RLock()
        self._ready: dict[Digest, _Ready] = {}
        self._preparing: dict[Digest, threading.Lock] = {}
        self._held: set[Sandbox] = set()
        self._left: list[str] = []
        self._helpers: list[threading.Thread] = []
        self._cancelled = self._closed = False
        self._away_since: float | None = None
        with suppress(InfraError):
            self._sweep()

    @property
    def isolation(self) -> str:
        """What the provider's sandboxes are."""
        return self._provider.isolation

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        try:
            if self._cancelled:
                raise Cancelled
            self._check(process)
            return self._run(process, dict(secrets), endpoint)
        except (InfraError, OSError) as error:
            if self._cancelled:
                raise Cancelled from error
            retryable = error.retryable if isinstance(error, InfraError) else True
            if retryable:
                self._await_service()
            raise InfraError(f"{tag}: {error}", retryable=retryable) from error

    def run_many(
        self,
        processes: Sequence[Process],
        *,
        tags: Sequence[str],
        finished: Callable[[int, Completed | InfraError], None],
        returned: Callable[[int], None] | None = None,
    ) -> int:
        """See mrp.runtime.sandbox.protocol.Backend; none share a sandbox here."""
        return 0

    def warm(self, image: Digest, sdk: Digest | None) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""

        def prepare() -> None:
            with suppress(InfraError, CacheError, OSError):
                self._prepared(image)

        self._help(prepare)

    def cancel(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._lock:
            self._cancelled = True
            held = list(self._held)
        for sandbox in held:
            self._help(lambda sandbox=sandbox: self._destroy(sandbox))  # type: ignore[misc]

    def close(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.cancel()
        for helper in self._helpers:
            helper.join()
        with suppress(InfraError):
            for identity in self._left:
                self._provider.remove(identity)
        self._provider.close()
        self._scratch.close()

    def _await_service(self) -> None:
        """Wait until the service answers: while it starts again, all attempts would be lost in a moment.

        What was away for _OUTAGE_SECONDS is waited for no more, until it answered once.
        """
        while not self._cancelled and self._provider.missing() is not None:
            now = time.monotonic()
            self._away_since = self._away_since or now
            if now > self._away_since + _OUTAGE_SECONDS:
                return
            time.sleep(_PAUSE_SECONDS)
        self._away_since = None

    def _check(self, process: Process) -> None:
        box, name = process.box, self.name
        if ISOLATION.index(self.isolation) < ISOLATION.index(self._settings.require):
            raise InfraError(
                f"isolation `{self._settings.require}` is needed, and {name} gives `{self.isolation}`; use another"
                " sandbox, or allow the weaker level in the policy",
                retryable=False,
            )
        if box.allow is not None:
            raise InfraError(
                f"the {name} backend cannot hold `allow`; use the local one, or remove it", retryable=False
            )
        if box.network not in ("none", "open"):
            raise InfraError(f"the {name} backend has no allowlist of hosts; use `network: none`", retryable=False)
        if (process.entry is None) == (not process.argv):
            raise InfraError("a process has either a command or an entry", retryable=False)

    def _run(self, process: Process, secrets: dict[str, str], endpoint: Endpoint | None) -> Completed:
        ready = self._prepared(process.box.image)
        if process.entry is not None:
            process = started_anew(process, ready.view, None)
        if endpoint is not None:
            _need_python(ready, "that calls to a model pass through")
            process = dataclasses.replace(process, env={**process.env, **model_env()})
        points = plan_points(process, self._store)
        limits = process.box.limits
        owner = self._settings.owner
        order = Order(
            image=ready.name,
            # A lease that ended before its process would leave it to the next build's sweep.
            owner=dataclasses.replace(owner, lease=max(owner.lease, int(process.timeout) + _LEASE_SPARE_SECONDS)),
            limits=limits,
            network=str(process.box.network),
            user=ready.image.user,
            writable=tuple(points.writable),
            given=tuple(points.given),
            file_bytes=limits.disk + points.base,
        )
        with self._sandbox(order, ready) as sandbox, ExitStack() as stack, self._folder() as place:
            self._fill(sandbox, points, (ready.view.uid, ready.view.gid))
            relay = None
            if endpoint is not None:
                relay = Relayed(lambda argv: sandbox.stream(argv, env=dict(DEFAULT_ENV)), endpoint, MODEL_PORT)
                stack.callback(relay.close)
            env = environment(process, ready.view, secrets)
            logs = place / "logs"
            logs.mkdir()
            began = time.monotonic()
            done = sandbox.exec(process.argv, env=env, cwd=process.cwd, timeout=float(process.timeout), logs=logs)
            if done.wall_s is None:
                done = dataclasses.replace(done, wall_s=Decimal(f"{time.monotonic() - began:.3f}"))
            if relay is not None:
                relay.check()
            stack.close()
            if self._cancelled:
                raise Cancelled
            return self._complete(process, done, sandbox, points, place, Redactor(secrets))

    def _fill(self, sandbox: Sandbox, points: Points, owner: tuple[int, int]) -> None:
        """Lay the folders of a process out in its sandbox. An engine may have another way for the bytes."""
        with self._spool() as archive:
            pack(points, self._store, owner, archive)
            archive.seek(0)
            sandbox.put(archive)

    def _complete(
        self, process: Process, done: Exit, sandbox: Sandbox, points: Points, place: Path, redact: Redactor
    ) -> Completed:
        """Keep the logs and outputs of a process that has ended; as mrp.runtime.sandbox.conclude does here."""
        limits = process.box.limits
        room = limits.disk + points.base
        note = ""
        if done.exec_error is not None:
            note = f"mrp: {process.argv[0]}: {os.strerror(done.exec_error)}\n"
        kept: dict[str, Kept] = {}
        left = 0
        with self._fetched(sandbox, points, room) as fetched:
            for number, (path, (archive, below)) in enumerate(fetched.items()):
                others = [*points.writable, *points.given]
                inner = [other[len(path) + 1 :] for other in others if other.startswith(f"{path}/")]
                if path in process.outputs:
                    kept[path] = self._keep(archive, below, place / str(number), room, inner, redact)
                else:
                    left += count(archive, below, inner) if archive is not None else room + 1
        left += sum(each.counted for each in kept.values())
        limit = _limit_of(done, left - points.base, limits.disk)
        for path in process.outputs:
            note += "".join(f"mrp: {path}: {sentence}\n" for sentence in kept[path].notes)
            limit = limit or ("disk" if kept[path].too_large else None)
        return Completed(
            exit_code=None if limit else done.exit_code,
            limit=limit,
            stdout=keep_log(done.stdout.read_bytes(), redact, self._store),
            stderr=keep_log(done.stderr.read_bytes(), redact, self._store, note),
            outputs={path: kept[path].tree for path in process.outputs},
            wall_s=done.wall_s or Decimal(0),
            cpu_s=done.cpu_s,
            max_rss=done.max_rss,
            isolation=self.isolation,
        )

    @contextmanager
    def _fetched(self, sandbox: Sandbox, points: Points, room: int) -> Iterator[dict[str, tuple[BinaryIO | None, str]]]:
        """The folders that could be written to: each an archive and where in it, or None for one that is too large."""
        # An archive is larger than what it holds by headers, a few for each entry.
        most = 4 * room + _SPARE
        nested = {path for path in points.writable if any(path.startswith(f"{other}/") for other in points.writable)}
        with ExitStack() as stack:
            if isinstance(sandbox, Gathering) and not nested:
                archive = stack.enter_context(self._spool())
                if sandbox.get_many(list(points.writable), archive, most):
                    yield {path: (archive, path[1:]) for path in points.writable}
                    return
            fetched: dict[str, tuple[BinaryIO | None, str]] = {}
            for path in points.writable:
                archive = stack.enter_context(self._spool())
                fetched[path] = (archive if sandbox.get(path, archive, most) else None, "")
            yield fetched

    def _keep(
        self, archive: BinaryIO | None, below: str, folder: Path, room: int, inner: Sequence[str], redact: Redactor
    ) -> Kept:
        if archive is None:
            return Kept(self._store.put_tree({}), [], True, room + 1)
        folder.mkdir()
        try:
            notes = unpack(archive, folder, below, inner)
            kept = keep_folder(folder, room, redact, self._store)
            return dataclasses.replace(kept, notes=[*notes, *kept.notes])
        finally:
            remove_folder(folder)

    def _prepared(self, image: Digest) -> _Ready:
        """The image as the provider has it, brought there once. Raises InfraError."""
        with self._lock:
            preparing = self._preparing.setdefault(image, threading.Lock())
        with preparing:
            if image not in self._ready:
                portable = read_portable(image, self._store, self.name)
                uid, gid = (int(part) for part in portable.user.split(":"))
                path = portable.env.get("PATH", DEFAULT_ENV["PATH"])
                # What lies below a provider's own source is not known here.
                unknown = "python3" if portable.source is not None else None
                python = find_program(portable.layers, "python3", path, self._store) or unknown
                view = ImageView((), None, portable.env, uid, gid, python)
                self._ready[image] = _Ready(portable, self._provider.prepare(portable), view)
            return self._ready[image]

    @contextmanager
    def _sandbox(self, order: Order, ready: _Ready) -> Iterator[Sandbox]:
        try:
            sandbox = self._provider.create(order)
        except InfraError:
            # Whoever cleans up there may have removed the image too.
            self._ready.pop(ready.image.digest, None)
            raise
        try:
            with self._lock:
                self._held.add(sandbox)
            if self._cancelled:
                raise Cancelled
            yield sandbox
        finally:
            with self._lock:
                self._held.discard(sandbox)
            self._destroy(sandbox)

    def _destroy(self, sandbox: Sandbox) -> None:
        # What cannot be removed at the end either is found by its owner's tag at the next start.
        try:
            sandbox.destroy()
        except InfraError:
            self._left.append(sandbox.id)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        place = self._scratch.folder / str(next(self._numbers))
        place.mkdir()
        try:
            yield place
        finally:
            remove_folder(place)

    def _spool(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self._scratch.folder)

    def _sweep(self) -> None:
        """Remove the sandboxes of runs that are over, and those whose lease has."""
        alive = self._settings.alive
        if alive is None:
            return
        owner = self._settings.owner
        for owned in self._provider.owned(owner.workspace):
            if owned.run != owner.run and (owned.expires < time.time() or not alive(owned.run)):
                # One that cannot be removed keeps nothing of the others.
                with suppress(InfraError):
                    self._provider.remove(owned.id)

    def _help(self, work: Callable[[], None]) -> None:
        helper = threading.Thread(target=work, name=f"mrp-{self.name}", daemon=True)
        with self._lock:
            self._helpers = [thread for thread in self._helpers if thread.is_alive()]
            self._helpers.append(helper)
            helper.start()


def _limit_of(done: Exit, used: int, disk: int) -> str | None:
    """The limit that a process did not survive, or None; `used` is what its folders hold at the end."""
    if done.limit == "wall":
        return "wall"
    if used > disk:
        return "disk"
    if done.exit_code == 0:
        return None
    if done.limit is not None:
        return done.limit
    return "disk" if done.exit_code == _FILE_TOO_LARGE or used >= disk else None


def _need_python(ready: _Ready, what: str) -> None:
    if ready.view.python is None:
        raise InfraError(f"the image has no python3, {what}; add it with a `deb` layer", retryable=False)
