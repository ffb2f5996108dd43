"""Steps: how a sandbox's file system is made, in order, as plain values that any isolating program can follow."""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One thing to do below the new root; `path` is the guest path, whose parents are made as needed.

    kind is one of
      dir    an empty folder
      bind   `source`, a file or folder of the host; read-only unless `writable`, without programs unless `execute`
      link   a symlink to `source`
      tmpfs  an empty file system of at most `size` bytes
      proc   the processes of this sandbox
      dev    null, zero, full, random, urandom, tty, pts and shm (of at most `size` bytes), read-only but for the latter
    """

    kind: str
    path: str
    source: str = ""
    writable: bool = False
    execute: bool = True
    size: int = 0
