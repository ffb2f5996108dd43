"""Host images: what of this machine's own system is visible in a sandbox, and what stands for it in keys.

Without a toolchain all of /usr is visible and the release and package database stand for it. With one, only the
programs named are, with the shared libraries and library folders that they need, and all of their bytes are listed.
Descriptions name no user and no place of the workspace.
"""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mrp.cache.canonical import Json, canonical_digest
from mrp.cache.digest import Digest, digest_bytes
from mrp.runtime.sandbox.elf import is_elf, loader_of
from mrp.runtime.sandbox.steps import Step
from mrp.specs.errors import BuildFailed, InfraError

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
"""PATH in every sandbox, and where a toolchain's programs are looked for."""

HOST_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
"""Folders of the machine that a host image shows; no layer can add to them."""

_PACKAGE_DATABASES = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages.db",
    "/var/lib/rpm/Packages",
    "/lib/apk/db/installed",
)
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/mime.types")
_INTERPRETERS = (
    (re.compile(r"(python3|pypy3)[\d.]*\Z"), ("-I", "-c", "import sys; print('\\n'.join(sys.path))")),
    (re.compile(r"perl[\d.]*\Z"), ("-e", 'print join "\\n", @INC')),
    (re.compile(r"ruby[\d.]*\Z"), ("-e", "puts $:")),
)
_COMPANIONS = {
    "git": ("/usr/lib/git-core", "/usr/libexec/git-core", "/usr/share/git-core"),
    "node": ("/usr/share/nodejs", "/usr/lib/node_modules", "/usr/share/node_modules"),
    "nodejs": ("/usr/share/nodejs", "/usr/lib/node_modules", "/usr/share/node_modules"),
}
_LISTED = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_DEFAULT_LIBRARIES = re.compile(r"(/usr)?/lib(64|32|x32)?(/[a-z0-9_]+-linux-[a-z0-9]+)?\Z")
_MAX_SHEBANG = 256


class Digests(Protocol):
    """What reads files and may remember their digests: mrp.cache.filestats.FileDigests."""

    def digest(self, path: str) -> Digest: ...

    def digest_many(self, paths: Iterable[str]) -> Mapping[str, Digest]: ...


def describe_host(toolchain: Sequence[str], digests: Digests) -> Json:
    """The description of `base: host`, which is the same for everyone on this machine.

    Raises BuildFailed that names a program which is not here.
    """
    if toolchain:
        found = _Toolchain(digests)
        for name in toolchain:
            found.add_program(name)
        return {"host": sorted(set(toolchain)), "platform": _platform(), **found.description()}
    visible = [folder for folder in HOST_FOLDERS if os.path.isdir(folder) and not os.path.islink(folder)]
    links = {folder: os.readlink(folder) for folder in HOST_FOLDERS if os.path.islink(folder)}
    return {
        "host": "all",
        "platform": _platform(),
        "release": _digest_of_first(("/etc/os-release", "/usr/lib/os-release"), digests),
        "packages": _digest_of_first(_PACKAGE_DATABASES, digests),
        "visible": visible,
        "links": links,
        "etc": {path: _content(path, digests) for path in _ETC if os.path.exists(path)},
    }


def lay_out_host(description: Json, folder: Path) -> None:
    """Copy a toolchain's programs and shared libraries into `folder`, with folders to mount its library folders on.

    Raises InfraError when a file has changed since it was described.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if description["host"] == "all":
        return
    for path, kind, value in description["files"]:
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind == "t":
            place.mkdir(parents=True)
        elif kind == "l":
            place.symlink_to(value)
        else:
            place.write_bytes(_checked(path, value))
            place.chmod(0o755 if kind == "x" else 0o644)


def host_steps(description: Json, folder: Path) -> list[Step]:
    """The steps that make a described host visible, given the `folder` that lay_out_host has filled."""
    if description["host"] == "all":
        steps = [step for path in description["visible"] for step in _packaged(path)]
        steps += [Step("link", path, target) for path, target in sorted(description["links"].items())]
        return steps + [Step("bind", path, path) for path in sorted(description["etc"])]
    steps = []
    for place in sorted(folder.iterdir()):
        if place.is_symlink():
            steps.append(Step("link", f"/{place.name}", str(place.readlink())))
        else:
            steps.append(Step("bind", f"/{place.name}", str(place)))
    return steps + [Step("bind", path, path) for path, kind, _ in description["files"] if kind == "t"]


def _packaged(folder: str) -> list[Step]:
    """The steps for one folder of the system: all of it but /usr/local, which the package database does not cover."""
    if folder != "/usr":
        return [Step("bind", folder, folder)]
    places = [f"/usr/{name}" for name in sorted(os.listdir("/usr")) if name != "local"]
    return [
        Step("link", place, os.readlink(place)) if os.path.islink(place) else Step("bind", place, place)
        for place in places
    ]


def host_program(description: Json, name: str) -> str | None:
    """The path of a program that the described host shows on the search path; None when it shows none."""
    places = [f"{folder}/{name}" for folder in SEARCH_PATH.split(":")]
    if description["host"] == "all":
        shown_places = (place for place in places if not place.startswith("/usr/local/"))
        return next((place for place in shown_places if os.access(place, os.X_OK)), None)
    shown = {path for path, kind, _ in description["files"] if kind in ("x", "l")}
    return next((place for place in places if place in shown), None)


def host_env(description: Json) -> dict[str, str]:
    """Variables that programs of the described host need to find their libraries."""
    folders = description.get("libraries")
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


class _Toolchain:
    """Programs with all that they need, found by following symlinks, loaders, interpreters and library paths."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._links: dict[str, str] = {}
        self._files: set[str] = set()
        self._trees: dict[str, str] = {}
        self._libraries: set[str] = set()
        self._seen: set[str] = set()

    def add_program(self, name: str) -> None:
        places = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in SEARCH_PATH.split(":")]
        place = next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)
        if place is None:
            raise BuildFailed(
                f"the toolchain names {name!r}, which is not on this machine's {SEARCH_PATH}; install it here, or "
                "take it out of `toolchain`"
            )
        if place in self._seen:
            return
        self._seen.add(place)
        program = self._add_path(place)
        if is_elf(program):
            self._add_libraries(program, ())
        else:
            self._add_interpreter(program)
        for pattern, arguments in _INTERPRETERS:
            if pattern.match(os.path.basename(program)):
                self._add_folders(_lines(program, *arguments), program)
        self._add_folders(_COMPANIONS.get(os.path.basename(place), ()), program)

    def description(self) -> Json:
        trees = [path for path in self._trees if not any(path.startswith(f"{other}/") for other in self._trees)]
        files = {path for path in self._files if not any(path.startswith(f"{tree}/") for tree in trees)}
        by_path = self._digests.digest_many(sorted(files))
        listed = [[path, "x" if os.access(path, os.X_OK) else "f", digest] for path, digest in by_path.items()]
        listed += [[path, "l", target] for path, target in self._links.items()]
        listed += [[path, "t", self._trees[path]] for path in trees]
        return {"files": sorted(listed), "libraries": sorted(self._libraries)}

    def _add_path(self, path: str) -> str:
        """Note a file and the symlinks that lead to it; returns where they end."""
        place = self._resolve(path)
        self._files.add(place)
        return place

    def _resolve(self, path: str) -> str:
        place = ""
        parts = [part for part in path.split("/") if part]
        for _ in range(200):
            if not parts:
                return place
            part = parts.pop(0)
            if part == "..":
                place = os.path.dirname(place).rstrip("/")
                continue
            place = f"{place}/{part}"
            if os.path.islink(place):
                target = os.readlink(place)
                self._links[place] = target
                place = "" if target.startswith("/") else os.path.dirname(place).rstrip("/")
                parts = [step for step in target.split("/") if step not in ("", ".")] + parts
        raise BuildFailed(f"{path} leads through too many symlinks")

    def _add_interpreter(self, script: str) -> None:
        with open(script, "rb") as file:
            first = file.read(_MAX_SHEBANG).split(b"\n", 1)[0]
        if not first.startswith(b"#!"):
            return
        words = os.fsdecode(first[2:]).split()
        for word in words[:2] if words and os.path.basename(words[0]) == "env" else words[:1]:
            if not word.startswith("-"):
                self.add_program(word)

    def _add_folders(self, folders: Iterable[str], program: str) -> None:
        """Note library folders with all in them, and the shared libraries that extension modules in them need."""
        for folder in folders:
            if not os.path.isdir(folder) or folder == "/":
                continue
            folder = self._resolve(folder)
            if any(folder == tree or folder.startswith(f"{tree}/") for tree in self._trees):
                continue
            entries, modules = _tree_entries(folder, self._digests)
            self._trees[folder] = canonical_digest(entries)
            if modules:
                self._add_libraries(program, modules)

    def _add_libraries(self, program: str, modules: Sequence[str]) -> None:
        """Ask the program's loader what it would load, for the program and for `modules` loaded by it."""
        loader = loader_of(program)
        if loader is None:
            return
        self._add_path(loader)
        env = {"PATH": SEARCH_PATH, "LC_ALL": "C", **({"LD_PRELOAD": ":".join(modules)} if modules else {})}
        done = subprocess.run([loader, "--list", program], capture_output=True, text=True, env=env, check=False)
        for path in _LISTED.findall(done.stdout):
            if path not in modules:
                place = self._add_path(path)
                folder = os.path.dirname(place)
                if not _DEFAULT_LIBRARIES.match(folder):
                    self._libraries.add(folder)


def _tree_entries(folder: str, digests: Digests) -> tuple[list[list[str]], list[str]]:
    """[path, kind, digest or target] of all in a folder but byte code, sorted; and its loadable modules."""
    links: list[list[str]] = []
    files: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in [*folders, *names]:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                links.append([os.path.relpath(path, folder), "l", os.readlink(path)])
            elif os.path.isfile(path):
                files.append(path)
    try:
        by_path = digests.digest_many(files)
    except OSError as error:
        raise BuildFailed(f"a part of the toolchain cannot be read: {error}") from error
    entries = [
        [os.path.relpath(path, folder), "x" if os.access(path, os.X_OK) else "f", digest]
        for path, digest in by_path.items()
    ]
    modules = [path for path in files if ".so" in os.path.basename(path) and is_elf(path)]
    modules += [path for path in files if os.access(path, os.X_OK) and path not in modules and is_elf(path)]
    return sorted(entries + links), modules


def _checked(path: str, digest: Digest) -> bytes:
    data = Path(path).read_bytes()
    if digest_bytes(data) != digest:
        raise InfraError(f"{path} changed since this build began; build again", retryable=False)
    return data


def _content(path: str, digests: Digests) -> Digest:
    if os.path.isdir(path):
        entries, _ = _tree_entries(path, digests)
        return canonical_digest(entries)
    return digests.digest(path)


def _digest_of_first(paths: Iterable[str], digests: Digests) -> Digest | None:
    for path in paths:
        with suppress(OSError):
            return digests.digest(path)
    return None


def _lines(*command: str) -> list[str]:
    env = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd="/")
    return [line for line in done.stdout.splitlines() if line.startswith("/")]


def _platform() -> str:
    return f"linux/{platform.machine()}"
