"""The snapshot: what a build looked at, by stat, so that the next one can tell that nothing moved without reading it.

A file below `.mrp/snapshots`, forgettable at any time, named by what was asked for (the identity: the folder and the
words of the command). It holds the stamps of sources, documents, folders, the host's own files, mrp's own files and
what was published, and the texts to answer with. What is not sure counts as moved. Only modules that a bare Python
has loaded already, or that load in microseconds, are imported here.

Format: MAGIC, CRC-32 of the rest, length and text of the head (JSON), length and text of the listings (JSON: folder to
entries), then two tables (files of the workspace, blobs that were published), each: count, length of the paths, the
paths joined by NUL, columns of mtime, ctime, size and inode as native 64-bit integers, 32-byte digests, and a byte of
flags for each.
"""

import os
import sys
import zlib
from array import array

TYPE_CHECKING = False  # what `typing` says, without loading it
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

FOLDER = "snapshots"
MAGIC = b"mrp-snapshot-1\n"

DOCUMENT, EXECUTABLE, SETTLED = 1, 2, 4
"""Flags of a file: its text is part of the plan; it may be executed; its stamp was old enough to be trusted."""

RUN, WALL, SEAL = "@run@", "@wall@", "@seal@"
"""In the texts of an answer: where its own run, seconds and checksum go."""

_PASSED_OVER = ("mrp-out", "node_modules", "__pycache__")
_TICK_NS = 20_000_000
_WHOLE_SECONDS_NS = 2_000_000_000
_DIGEST_SIZE = 32


class Damaged(Exception):
    """The file is no snapshot of this format."""


class Table:
    """Files in columns: `paths`, four columns of stamps, digests one after the other, and flags."""

    __slots__ = ("columns", "digests", "flags", "paths")

    def __init__(self, paths: "list[str]", columns: "Sequence[array[int]]", digests: bytes, flags: bytearray) -> None:
        self.paths, self.columns, self.digests, self.flags = paths, columns, digests, flags

    def digest(self, place: int) -> str:
        return self.digests[place * _DIGEST_SIZE : (place + 1) * _DIGEST_SIZE].hex()

    def differing(self, folder: int | None) -> "list[int]":
        """The places of files whose stat is not the one noted, or was not to be trusted; `folder` is a descriptor."""
        found = []
        stat, settled = os.stat, SETTLED
        rows = zip(self.paths, self.flags, *self.columns, strict=True)
        for place, (path, flags, mtime, ctime, size, inode) in enumerate(rows):
            try:
                status = stat(path, dir_fd=folder)
            except (OSError, ValueError):
                found.append(place)
                continue
            if (
                status.st_mtime_ns != mtime
                or status.st_ctime_ns != ctime
                or status.st_size != size
                or status.st_ino != inode
                or not flags & settled
            ):
                found.append(place)
        return found

    def note(self, place: int, stamp: "Sequence[int]", settled: bool) -> None:
        """Keep a newer stamp of a file whose bytes are still the same."""
        for column, value in zip(self.columns, stamp, strict=True):
            column[place] = value
        self.flags[place] = (self.flags[place] & ~SETTLED) | (SETTLED if settled else 0)

    def replace(self, place: int, digest: str, executable: bool) -> None:
        """A file has other bytes."""
        start = place * _DIGEST_SIZE
        self.digests = self.digests[:start] + bytes.fromhex(digest) + self.digests[start + _DIGEST_SIZE :]
        self.flags[place] = (self.flags[place] & ~EXECUTABLE) | (EXECUTABLE if executable else 0)

    def pack(self) -> bytes:
        paths = "\0".join(self.paths).encode("utf-8", "surrogateescape")
        sizes = len(self.paths).to_bytes(8, "little") + len(paths).to_bytes(8, "little")
        return b"".join((sizes, paths, *(column.tobytes() for column in self.columns), self.digests, self.flags))


def make_table(rows: "Iterable[tuple[str, Sequence[int], str, int]]") -> Table:
    """A table of (path, stamp, hex digest, flags)."""
    paths, digests, flags = [], [], bytearray()
    columns = tuple(array("q") for _ in range(4))
    for path, stamp, digest, flag in rows:
        paths.append(path)
        for column, value in zip(columns, stamp, strict=True):
            column.append(value)
        digests.append(bytes.fromhex(digest))
        flags.append(flag)
    return Table(paths, columns, b"".join(digests), flags)


class Snapshot:
    """`head` is described at mrp.runtime.remember, which makes it; `listings` are parsed only when a folder moved."""

    __slots__ = ("blobs", "files", "head", "listings")

    def __init__(self, head: "dict[str, Any]", listings: bytes, files: Table, blobs: Table) -> None:
        self.head, self.listings, self.files, self.blobs = head, listings, files, blobs

    def pack(self) -> bytes:
        head = json_text(self.head).encode()
        texts = [part for text in (head, self.listings) for part in (len(text).to_bytes(8, "little"), text)]
        rest = b"".join((*texts, self.files.pack(), self.blobs.pack()))
        return MAGIC + zlib.crc32(rest).to_bytes(4, "little") + rest


class Comparison:
    """What became of a snapshot: sources with other bytes, and whether published outputs were `lost`.

    moved: path -> (hex digest, executable). The snapshot's stamps are the newer ones already; `refreshed` tells that
    some changed. What moved keeps its old digest there.
    """

    __slots__ = ("_now", "_state", "lost", "moved", "refreshed", "snapshot")

    def __init__(self, snapshot: Snapshot, state: str) -> None:
        self.snapshot = snapshot
        self.moved: dict[str, tuple[str, bool]] = {}
        self.lost = self.refreshed = False
        self._state = state
        self._now = -1

    def start_clock(self) -> None:
        """To be called before a stamp is taken that `settled` is asked about."""
        if self._now < 0:
            self._now = clock(self._state)

    def settled(self, stamp: "Sequence[int]") -> bool:
        """Whether a stamp can be trusted from now on."""
        return is_settled(stamp, self._now)


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """mtime and ctime in nanoseconds, size and inode."""
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def is_settled(stamp: "Sequence[int]", now: int) -> bool:
    """Whether a change after `now` must show in the stamp: its times lie at least a tick of the clock before."""
    margin = _WHOLE_SECONDS_NS if stamp[1] % 1_000_000_000 == 0 else _TICK_NS
    return max(stamp[0], stamp[1]) + margin < now


def clock(state: str) -> int:
    """The time by the clock of the file system that holds the folder `state`; 0, which settles nothing, on failure."""
    try:
        descriptor = os.open(f"{state}/clock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
    except OSError:
        return 0


def file_name(identity: "Sequence[str]") -> str:
    """The name of the snapshot of an identity; two that share it would only forget each other's."""
    return f"{zlib.crc32(chr(0).join(identity).encode('utf-8', 'surrogateescape')):08x}"


def circumstances() -> "dict[str, Any]":
    """What must be the same besides files: the Python, the user, and the variables that say where the cache is."""
    names = ("MRP_CACHE", "XDG_CACHE_HOME", "HOME")
    return {
        "python": [sys.hexversion, sys.prefix],
        "user": os.geteuid(),
        "environment": [os.environ.get(name) for name in names],
    }


def read(path: str) -> Snapshot:
    """The snapshot in a file. Raises OSError and Damaged."""
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    start = len(MAGIC) + 4
    body = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or zlib.crc32(body) != int.from_bytes(data[len(MAGIC) : start], "little"):
        raise Damaged(path)
    head, at = _text(body, 0)
    listings, at = _text(body, at)
    files, at = _unpack(body, at)
    blobs, _ = _unpack(body, at)
    return Snapshot(parse_json(str(head, "ascii")), listings, files, blobs)


def _text(body: memoryview, at: int) -> tuple[bytes, int]:
    end = at + 8 + int.from_bytes(body[at : at + 8], "little")
    return bytes(body[at + 8 : end]), end


def _unpack(body: memoryview, at: int) -> tuple[Table, int]:
    count, size = (int.from_bytes(body[at + place : at + place + 8], "little") for place in (0, 8))
    at += 16
    paths = str(body[at : at + size], "utf-8", "surrogateescape").split("\0") if count else []
    at += size
    columns = []
    for _ in range(4):
        columns.append(array("q", bytes(body[at : at + 8 * count])))
        at += 8 * count
    digests = bytes(body[at : at + _DIGEST_SIZE * count])
    at += _DIGEST_SIZE * count
    return Table(paths, columns, digests, bytearray(body[at : at + count])), at + count


def parse_json(text: str) -> "Any":
    """JSON by CPython's own scanner, since the json package would load `re` first."""
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    scan: Any = make_scanner
    return scan(_Plain)(text, 0)[0]


def json_text(value: "Any") -> str:
    """JSON in ASCII, by CPython's own encoder; as `parse_json`."""
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:
        import json

        return json.dumps(value, separators=(",", ":"))
    make: Any = make_encoder
    return "".join(make(None, None, encode_basestring_ascii, None, ":", ",", False, False, False)(value, 0))


class _Plain:
    """How make_scanner is to read: nothing special."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_int = int
    parse_float = float
    parse_constant = None


def compare(root: str, identity: "Sequence[str]") -> Comparison | None:
    """Look at everything that the snapshot for `identity` names; None when there is none or only a build can tell.

    What it finds is kept for `take_compared`, so that a build that follows need not look again.
    """
    found = _look(root, identity)
    _last[:] = [(root, tuple(identity)), found]
    return found


def take_compared(root: str, identity: "Sequence[str]") -> Comparison | None:
    """What `compare` found just before, or finds now."""
    asked, found = _last or (None, None)
    _last.clear()
    return found if asked == (root, tuple(identity)) else _look(root, identity)


_last: "list[Any]" = []


def _look(root: str, identity: "Sequence[str]") -> Comparison | None:
    state = f"{root}/.mrp"
    try:
        snapshot = read(f"{state}/{FOLDER}/{file_name(identity)}.stat")
    except (OSError, Damaged, ValueError):
        return None
    head = snapshot.head
    if head["identity"] != list(identity) or head["circumstances"] != circumstances():
        return None
    if any(_stamp(path) != stamp for path, stamp in head["fixed"]):
        return None
    if any(_target(path) != target for path, target in head["links"]):
        return None
    if any(_stamp(path) != stamp for path, stamp in head["shards"]):
        return None
    if any((_stamp(path) or [0])[-1] != inode for path, inode in head["inodes"]):
        return None
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _compared(snapshot, folder, state)
    except OSError:
        return None
    finally:
        os.close(folder)


def _compared(snapshot: Snapshot, folder: int, state: str) -> Comparison | None:
    found = Comparison(snapshot, state)
    if not _same_folders(found, folder):
        return None
    files = snapshot.files
    for place in files.differing(folder):
        path, flags = files.paths[place], files.flags[place]
        status = os.stat(path, dir_fd=folder, follow_symlinks=False)
        if status.st_mode & 0o170000 != 0o100000:
            return None
        found.start_clock()
        digest, stamp = _hash(path, folder)
        executable = bool(status.st_mode & 0o100)
        if digest != files.digest(place) or executable != bool(flags & EXECUTABLE):
            if flags & DOCUMENT:
                return None
            found.moved[path] = (digest, executable)
        files.note(place, stamp, found.settled(stamp))
        found.refreshed = True
    found.lost = not _same_outputs(found, folder)
    return found


def _same_folders(found: Comparison, folder: int) -> bool:
    """Whether each listed folder has the entries that it had; a listing is only made where the stamp moved."""
    head = found.snapshot.head
    listings: dict[str, list[str] | None] | None = None
    for path, noted in head["folders"].items():
        stamp = _stamp(path or ".", folder)
        if noted is not None and stamp == noted:
            continue
        found.start_clock()
        stamp = _stamp(path or ".", folder)
        listings = listings or parse_json(str(found.snapshot.listings, "ascii"))
        if entries(path, folder) != listings.get(path):
            return False
        if stamp is not None and found.settled(stamp):
            head["folders"][path] = stamp
            found.refreshed = True
    return True


def is_passed_over(name: str) -> bool:
    """Whether wildcards never see a name, so that it may come and go; a source that has it is in the table of files."""
    return name.startswith(".") or name in _PASSED_OVER


def entries(path: str, folder: int) -> "list[str] | None":
    """What wildcards and literal names may find in a folder: names with their kinds, sorted; None when it is gone.

    Hidden names are left out: a source that has one is in the table of files.
    """
    try:
        descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with os.scandir(descriptor) as found:
            return sorted(_letter(entry) + entry.name for entry in found if not is_passed_over(entry.name))
    finally:
        os.close(descriptor)


def _letter(entry: "os.DirEntry[str]") -> str:
    if entry.is_symlink():
        return "l"
    return "d" if entry.is_dir() else "f" if entry.is_file() else "s"


def _same_outputs(found: Comparison, folder: int) -> bool:
    """Whether all links below mrp-out are there and the blobs that they lead to are right."""
    for output in found.snapshot.head["outputs"]:
        path, noted, links = output
        stamp = _stamp(path, folder)
        if noted is not None and stamp == noted:
            continue
        found.start_clock()
        stamp = _stamp(path, folder)
        if any(_target(f"{path}/{name}", folder) != target for name, target in links):
            return False
        if stamp is not None and found.settled(stamp):
            output[1] = stamp
            found.refreshed = True
    blobs = found.snapshot.blobs
    for place in blobs.differing(None):
        found.start_clock()
        try:
            digest, blob = _hash(blobs.paths[place], None)
        except OSError:
            return False
        if digest != blobs.digest(place):
            return False
        blobs.note(place, blob, found.settled(blob))
        found.refreshed = True
    return True


def _hash(path: str, folder: int | None) -> tuple[str, tuple[int, int, int, int]]:
    """The digest of a file and its stamp, the same before and after. Raises OSError."""
    from blake3 import blake3

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    try:
        before = stamp_of(os.fstat(descriptor))
        hasher = blake3()
        if before[2] > 1 << 23:
            hasher = blake3(max_threads=blake3.AUTO)
        while part := os.read(descriptor, 1 << 24):
            hasher.update(part)
        if stamp_of(os.fstat(descriptor)) != before:
            raise OSError(f"{path} changes while it is read")
        return hasher.hexdigest(), before
    finally:
        os.close(descriptor)


def _stamp(path: str, folder: int | None = None) -> "list[int] | None":
    try:
        return list(stamp_of(os.stat(path, dir_fd=folder)))
    except (OSError, ValueError):
        return None


def _target(path: str, folder: int | None = None) -> str | None:
    try:
        return os.readlink(path, dir_fd=folder)
    except (OSError, ValueError):
        return None


def filled(text: str, run: str, wall: str) -> str:
    """A text of an answer with its own run and seconds in their places."""
    return text.replace(f'"{WALL}"', wall).replace(RUN, run)


def sealed(record: str, run: str, wall: str) -> str:
    """The text of run.json of a build that had nothing to do: the digest in it is that of the text without it."""
    from blake3 import blake3

    text = filled(record, run, wall)
    bare = text.replace(f'"checksum":"{SEAL}",', "").rstrip("\n")
    return text.replace(SEAL, blake3(bare.encode()).hexdigest())


def write(path: str, data: bytes) -> None:
    """Put a file below `.mrp/snapshots` in place, whole or not at all. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
