"""The sandboxes of the Modal emulator: a copy-on-write root and namespaces that all commands of a sandbox share.

Real namespaces and real processes, made by root's `unshare` and `nsenter`, since a bubblewrap a command could not share
its loopback with the command beside it.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ENTER = Path(__file__).with_name("modal_emulator_enter.py")
FILE_TOOL = "/__modal/.bin/modal-sandbox-fs-tools"

_SET_UP = r"""
set -e
place=$1 lower=$2; shift 2
mount -t tmpfs -o mode=0755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" overlay "$place/root"
root=$place/root
mkdir -p "$root/proc" "$root/dev" "$root/tmp"
chmod 1777 "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for name in null zero full random urandom; do : > "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
while [ $# -gt 0 ]; do
    mkdir -p "$root$2"; mount --bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
    shift 3
done
ip link set lo up 2>/dev/null || true
hostname modal
echo ready
exec 1>&- 2>&-
exec cat > /dev/null
"""


def missing() -> str | None:
    """Why no sandbox can be made here; None when they can."""
    if os.geteuid() != 0:
        return "the emulator of Modal makes namespaces with many users, which takes root"
    for program in ("unshare", "nsenter", "mount", "ip"):
        if shutil.which(program) is None:
            return f"the emulator of Modal needs {program}"
    return None


class Command:
    """A started command. What it wrote is kept, so that a reader may begin again from any byte."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = {1: bytearray(), 2: bytearray()}
        self.ended = {1: False, 2: False}
        self.taken = 0
        self._news = asyncio.Condition()
        assert process.stdout is not None and process.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(1, process.stdout)),
            asyncio.create_task(self._pump(2, process.stderr)),
        ]

    async def _pump(self, number: int, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(2**18):
            self.output[number] += chunk
            await self._tell()
        self.ended[number] = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def read(self, number: int, offset: int) -> bytes:
        """What comes at `offset` and after it; b"" at the end."""
        written = self.output[number]
        async with self._news:
            await self._news.wait_for(lambda: len(written) > offset or self.ended[number])
        return bytes(written[offset : offset + 2**18])

    async def write(self, offset: int, data: bytes, end: bool) -> None:
        """Give stdin what it has not had yet."""
        writer = self.process.stdin
        assert writer is not None
        new = data[max(0, self.taken - offset) :]
        self.taken += len(new)
        try:
            writer.write(new)
            await writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            return
        if end:
            writer.close()

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)


class Box:
    """One running sandbox: `lower` are the layers of its image, highest first; `volumes` guest folder -> (folder, ro).

    `place` is an empty folder of its own, on which its root is mounted.
    """

    def __init__(
        self, place: Path, lower: Sequence[Path], volumes: Mapping[str, tuple[Path, bool]], *, network: bool
    ) -> None:
        self.place = place
        binds = [word for path, (folder, ro) in sorted(volumes.items()) for word in (str(folder), path, "ro" * ro)]
        spaces = ["--mount", "--pid", "--ipc", "--uts", *([] if network else ["--net"])]
        command = ["unshare", *spaces, "--propagation", "private", "--fork", "--kill-child", "sh", "-c", _SET_UP, "sh"]
        layers = ":".join(map(str, lower))
        self._holder = subprocess.Popen(
            # It ends when its stdin does, and so with this process, however that ends.
            [*command, str(place), layers, *binds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(f"the emulator could not make a sandbox: {self._holder.wait()}")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self._inside = children.split()[0]
        self._spaces = [word for word in spaces if word != "--fork"]

    async def start(self, words: Sequence[str], env: Mapping[str, str], cwd: str) -> Command:
        """Start a command of the image, as root."""
        told = ["tool", words[1]] if words[0] == FILE_TOOL else ["run", *words]
        enter = [sys.executable, "-I", "-S", str(ENTER), str(self.place / "root"), cwd, *told]
        process = await asyncio.create_subprocess_exec(
            *["nsenter", "--target", self._inside, *self._spaces, "--", *enter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", **env},
            cwd="/",
            limit=2**20,
        )
        return Command(process)

    def copy_changes(self, folder: Path) -> None:
        """Copy what was changed above the image, as a layer, to a folder that does not exist."""
        changes = f"/proc/{self._inside}/root{self.place}/upper"
        subprocess.run(["cp", "-a", changes, str(folder)], check=True)
        for name in ("proc", "dev"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def kill(self) -> None:
        """End everything in it, at once."""
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.place, ignore_errors=True)
