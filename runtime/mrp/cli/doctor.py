"""`mrp doctor`: what this machine has, what is missing, and the line that installs it.

With --self-check it runs the checks of the contract on one backend, engine or model, for real.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mrp.cli.screen import Screen
from mrp.cli.workspace import cache_folder

_EXTRAS = {
    "pyarrow": ("parquet", "Parquet datasets, outputs and sinks"),
    "zstandard": ("zstd", "reading .zst datasets"),
}
_FREE_BYTES_WANTED = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `needed` is false for what mrp can do without; `step` says how to get it."""

    name: str
    good: bool
    detail: str
    needed: bool = True
    step: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--self-check",
        metavar="BACKEND",
        help="run the contract's checks on local, docker, modal, daytona, ray, ray+docker or modal+modal",
    )


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """0 when everything that is needed is there, or every promise is kept; 4, or 1, otherwise."""
    if arguments.self_check is not None:
        return _self_check(arguments.self_check, screen)
    findings = list(look())
    for finding in findings:
        mark = "ok     " if finding.good else "MISSING" if finding.needed else "absent "
        step = f"; {finding.step}" if finding.step and not finding.good else ""
        screen.answer(f"{mark} {finding.name}: {finding.detail}{step}")
    bad = [finding for finding in findings if finding.needed and not finding.good]
    if screen.json:
        screen.document(
            {
                "ok": not bad,
                "findings": [
                    {"name": f.name, "ok": f.good, "needed": f.needed, "detail": f.detail, "step": f.step}
                    for f in findings
                ],
            }
        )
    return 4 if bad else 0


def _self_check(name: str, screen: Screen) -> int:
    from mrp.runtime.contract.subjects import self_check

    found = []
    for finding in self_check(name):
        found.append(finding)
        mark = "kept  " if finding.kept else "BROKEN"
        screen.answer(f"{mark} {finding.name}{'' if finding.kept else f': {finding.reason}'}")
    broken = [finding for finding in found if not finding.kept]
    screen.answer(f"{name}: {len(found)} promises, {len(broken)} broken")
    if screen.json:
        checks = [{"name": one.name, "kept": one.kept, "reason": one.reason} for one in found]
        screen.document({"subject": name, "ok": not broken, "checks": checks})
    return 1 if broken else 0


def look() -> Iterator[Finding]:
    """Everything that mrp uses of a machine."""
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version(), step="install Python 3.11 or newer")
    yield Finding("system", sys.platform == "linux", f"{platform.system()} {platform.release()}", step="use Linux")
    yield _bubblewrap()
    yield _namespaces()
    yield _cgroups()
    dot = shutil.which("dot")
    yield Finding(
        "graphviz", dot is not None, dot or "not found", needed=False, step="apt-get install graphviz to draw graphs"
    )
    yield from _disk()
    yield from _services()
    for module, (extra, purpose) in _EXTRAS.items():
        yield Finding(
            module,
            find_spec(module) is not None,
            purpose,
            needed=False,
            step=f"pip install 'mrp-build[{extra}]'",
        )


def _bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    step = "apt-get install bubblewrap; without it sandboxes fall back to weaker isolation"
    if path is None:
        return Finding("bubblewrap", False, "not found", needed=False, step=step)
    found = _try([path, "--version"])
    return Finding("bubblewrap", found is not None, found or f"{path} does not run", needed=False, step=step)


def _namespaces() -> Finding:
    bwrap = shutil.which("bwrap")
    probe = (
        [bwrap, "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib",
         "/lib", "--symlink", "usr/lib64", "/lib64", "/usr/bin/true"]
        if bwrap
        else ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "true"]
    )  # fmt: skip
    works = _try(probe) is not None
    return Finding(
        "namespaces",
        works,
        "a sandbox starts" if works else "a sandbox does not start here (inside a container?)",
        needed=False,
        step="allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or let policy allow less isolation",
    )


def _cgroups() -> Finding:
    root = Path("/sys/fs/cgroup")
    step = "memory, cpu and pids are then limited by rlimits alone"
    controllers = root / "cgroup.controllers"
    if controllers.is_file():
        names = controllers.read_text().split()
        writable = os.access(root, os.W_OK)
        good = writable and {"memory", "cpu", "pids"} <= set(names)
        detail = f"version 2, {', '.join(names) or 'no controllers'}{'' if writable else ', not writable'}"
        return Finding("cgroups", good, detail, needed=False, step=step)
    found = [name for name in ("memory", "cpu", "pids") if os.access(root / name, os.W_OK)]
    detail = f"version 1, writable: {', '.join(found) or 'none'}"
    return Finding("cgroups", len(found) == 3, detail, needed=False, step=step)


def _services() -> Iterator[Finding]:
    """Sandbox backends that are services, servers of models and engines: usable, or what is missing."""
    from mrp.runtime.models.vllm.serving import vllm_python
    from mrp.runtime.sandbox.registry import PROVIDERS
    from mrp.specs.errors import MrpError

    for name, open_provider in PROVIDERS.items():
        try:
            provider = open_provider()
            missing = provider.missing()
            provider.close()
        except MrpError as error:
            missing = str(error)
        yield Finding(f"sandbox {name}", missing is None, missing or "usable", needed=False)
    try:
        yield Finding("model vllm", True, vllm_python(os.environ), needed=False)
    except MrpError as error:
        yield Finding("model vllm", False, str(error), needed=False)
    there = find_spec("ray") is not None
    yield Finding(
        "engine ray", there, "usable" if there else "ray is not installed", needed=False,
        step="pip install 'mrp-build[ray]'",
    )  # fmt: skip


def _disk() -> Iterator[Finding]:
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    yield Finding(
        "cache",
        writable and free >= _FREE_BYTES_WANTED,
        f"{folder}, {free / 2**30:.1f} GiB free{'' if writable else ', not writable'}",
        step="free some space, or set MRP_CACHE to a writable folder with at least 2 GiB free",
    )


def _try(argv: list[str]) -> str | None:
    """The output of a command that must exit 0 within five seconds, or None."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
