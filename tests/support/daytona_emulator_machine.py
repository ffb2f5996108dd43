"""A machine of the Daytona emulator: a writable copy of an image's root that commands are really run in.

One bubblewrap holds the namespaces for as long as the machine lives; commands enter them, so that they share a file
system, a process tree and a loopback, as those of one Daytona sandbox do. It needs root.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_OVERLAY = 'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4" && shift 4 && exec "$@"'
_ON_TERMINAL = """
import ctypes, os, sys, warnings
spaces = [os.open(f"/proc/{sys.argv[1]}/ns/{name}", os.O_RDONLY) for name in ("uts", "ipc", "net", "pid", "mnt")]
for space in spaces:
    if ctypes.CDLL(None).setns(space, 0): raise OSError("setns")
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.chroot("."), os.chdir("/"), os.login_tty(0)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""As nsenter, but what it starts is the leader of a session of its own on the terminal."""

_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class Machine:
    """Lower folders make its image; what it writes lies in `folder`/upper."""

    def __init__(self, folder: Path, lower: Sequence[Path], *, network: bool, env: Mapping[str, str]) -> None:
        self.folder, self.lower = folder, tuple(lower)
        self._env = {**_ENV, **env}
        upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
        for each in (upper, work, merged):
            each.mkdir(parents=True)
        readable, writable = os.pipe()
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OVERLAY, "overlay"]
        command += [":".join(map(str, self.lower)), str(upper), str(work), str(merged)]
        command += ["bwrap", "--bind", str(merged), "/", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"]
        command += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "daytona"]
        command += [] if network else ["--unshare-net"]
        command += ["--info-fd", str(writable), "sh", "-c", "echo ready; read line"]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[writable], env=self._env
        )
        os.close(writable)
        with open(readable, encoding="utf-8") as info:
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != b"ready\n":
                raise RuntimeError("the machine did not start")
            self._pid = json.loads(info.read())["child-pid"]

    def _enter(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *argv]

    async def execute(
        self, command: str, *, cwd: str | None, env: Mapping[str, str], timeout: float
    ) -> tuple[int, bytes] | None:
        """Run a shell command; gives its exit code and merged output, None after `timeout` seconds.

        Then, as with the real thing, only the first process is killed.
        """
        script = f'cd "$1" && {{ {command}\n}}' if cwd else command
        process = await asyncio.create_subprocess_exec(
            *self._enter("sh", "-c", script, "sh", cwd or "/"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**self._env, **env},
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout)
        except TimeoutError:
            process.kill()
            return None
        return process.returncode or 0, output

    def terminal(self, env: Mapping[str, str]) -> tuple[int, "subprocess.Popen[bytes]"]:
        """A login shell on a terminal of its own, and the other end of that."""
        controller, terminal = os.openpty()
        command = [sys.executable, "-I", "-c", _ON_TERMINAL, str(self._pid), "sh", "-i", "-l"]
        shell = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=self.path("/"), env={**self._env, **env}
        )
        os.close(terminal)
        return controller, shell

    @staticmethod
    def kill_tree(shell: "subprocess.Popen[bytes]") -> None:
        """Kill a terminal's shell and all below it."""
        below = [shell.pid]
        for pid in below:
            with contextlib.suppress(OSError):
                below += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shell.wait()

    def path(self, name: str) -> Path:
        """Where a file of the machine lies on this one; links are not followed."""
        return Path(f"/proc/{self._pid}/root", name.lstrip("/"))

    def keep(self, folder: Path) -> tuple[Path, ...]:
        """Copy what was written; gives the lower folders of an image that holds it."""
        subprocess.run(["cp", "-a", str(self.folder / "upper"), str(folder)], check=True)
        return (folder, *self.lower)

    def close(self) -> None:
        """Kill everything in it and remove it."""
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait()
        for stream in (self._holder.stdin, self._holder.stdout):
            assert stream is not None
            stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)
