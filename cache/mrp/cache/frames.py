"""Frames: a file of pieces that may be forgotten, each with a checksum, appended and never edited.

A frame is: the kind of the file, the length of the body (little-endian, 8 bytes), a BLAKE3-128 of the body, the body.
What a process appends with one write stays in one piece beside the writes of others. Reading stops at the first frame
that is cut short, damaged or of another kind; what comes before it is good.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

_LENGTH = 8
_CHECK = 16


def read_frames(path: Path, kind: bytes) -> tuple[list[bytes], bool]:
    """The bodies of the frames that are good, and whether these are all; a file that is not there has none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], True
    except OSError:
        return [], False
    bodies: list[bytes] = []
    at, head = 0, len(kind) + _LENGTH + _CHECK
    while at < len(data):
        body = at + head
        check = body - _CHECK
        end = body + int.from_bytes(data[at + len(kind) : check], "little")
        if not data.startswith(kind, at) or end > len(data) or end < body:
            return bodies, False
        found = data[body:end]
        if blake3(found).digest(length=_CHECK) != data[check:body]:
            return bodies, False
        bodies.append(found)
        at = end
    return bodies, True


def append_frame(path: Path, kind: bytes, body: bytes) -> None:
    """Add a frame. Raises OSError; what was written until then is no frame, and nor is what follows it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        _write(descriptor, [_head(kind, body), body])
    finally:
        os.close(descriptor)


def rewrite_frames(path: Path, kind: bytes, bodies: Iterable[bytes]) -> None:
    """Put these frames in place of the file. Raises OSError.

    Nothing is synced, and two processes may write the new file at once: what comes out damaged is found to be.
    """
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for body in bodies:
            _write(descriptor, [_head(kind, body), body])
    finally:
        os.close(descriptor)
    fresh.rename(path)


def _head(kind: bytes, body: bytes) -> bytes:
    return b"".join([kind, len(body).to_bytes(_LENGTH, "little"), blake3(body).digest(length=_CHECK)])


def _write(descriptor: int, pieces: list[bytes]) -> None:
    """Write the pieces, with one call where the system takes them whole."""
    views = [memoryview(piece) for piece in pieces]
    while views:
        written = os.writev(descriptor, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
