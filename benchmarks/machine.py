"""What the numbers were measured on: the machine and the tools, without the names of hosts or folders."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks.environments import HERE, MRP, PEERS, installed


def machine() -> dict[str, str]:
    """Cores, processor, memory, kernel, Python, and how busy the machine was when this was asked."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "memory": f"{int(_field(Path('/proc/meminfo'), 'MemTotal').split()[0]) / 1024**2:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def versions() -> dict[str, str]:
    """The version of mrp and of each peer, or why a peer is absent."""
    said = subprocess.run([str(MRP / "mrp"), "--version"], capture_output=True, text=True).stdout.split()
    found = {"mrp": f"{said[-1] if said else 'unknown'}{_commit()}", "python": sys.version.split()[0]}
    for peer in PEERS:
        known = installed(peer.name)
        found[peer.name] = known.version or f"absent: {known.absent}"
    return found


def _commit() -> str:
    """Which commit of the checkout is measured; nothing outside of one."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return ""
    sources = ["cache", "specs", "rules", "compiler", "runtime"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *(f":/{name}" for name in sources)])
    return f", commit {head.stdout.strip()}{' with changes' if changed.returncode else ''}"


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"
