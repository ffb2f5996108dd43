"""Listening in the network of a sandbox that another program has made: by a short-lived process that enters it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.launcher import open_doors

_START = (
    "import sys; sys.path.append(sys.argv[2]); from mrp.runtime.sandbox.neighbour import main; "
    "main(int(sys.argv[1]), int(sys.argv[3]), [int(port) for port in sys.argv[4:]])"
)
_SECONDS = 20.0


def listen_inside(pid: int, ports: Sequence[int]) -> list[int]:
    """Descriptors of sockets that listen at ports of the loopback that process `pid` has. Raises InfraError."""
    # The process that is started here finds this room alone.
    from mrp.specs.errors import InfraError

    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [str(theirs.fileno()), str(Path(__file__).parents[3]), str(pid), *map(str, ports)]
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _START, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InfraError(f"the network of a sandbox could not be entered in {_SECONDS:.0f} s") from error
        theirs.close()
        _, listeners, _, _ = socket.recv_fds(ours, 4096, len(ports))
    if done.returncode != 0 or len(listeners) != len(ports):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InfraError(f"the network of a sandbox could not be entered: {said[-1] if said else 'it said nothing'}")
    return listeners


def main(control: int, pid: int, ports: Sequence[int]) -> None:
    """In a process of its own, since a process cannot go back."""
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.enter_namespace(network, kernel.CLONE_NEWNET)
    except PermissionError:
        kernel.enter_namespace(kernel.owning_user_namespace(network), kernel.CLONE_NEWUSER)
        kernel.enter_namespace(network, kernel.CLONE_NEWNET)
    open_doors(ports, socket.socket(fileno=control))
