"""Locks: the files in which a workspace pins what others publish, Debian packages and Python wheels."""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.suggest import did_you_mean

LOCK_VERSION = 1

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(?<!-)\Z")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]*\Z")
_PINNED = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[^\]]*\])?==([A-Za-z0-9][A-Za-z0-9.!+_-]*)\Z")
_NO_REQUIREMENT = (
    *("--index-url", "--extra-index-url", "-i ", "--find-links", "-f ", "--trusted-host"),
    *("--only-binary", "--require-hashes"),
)
"""Lines that say where and how pip is to look; that is for pip's own configuration to say."""
_HASH = re.compile(r"--hash[= ]sha256:([0-9a-f]{64})(?=\s|\Z)")


@dataclass(frozen=True)
class Deb:
    """One Debian package: where it is, its content, and the packages of the same lock that it needs."""

    name: str
    version: str
    architecture: str
    url: str
    sha256: str
    size: int
    depends: tuple[str, ...] = ()


@dataclass(frozen=True)
class DebLock:
    """What `mrp image lock` writes: packages sorted by name, for one distribution (`debian`) and architecture."""

    distribution: str
    architecture: str
    packages: tuple[Deb, ...]

    def closure(self, names: Iterable[str]) -> list[Deb]:
        """The packages with these names and all that they need, sorted by name. Raises BuildFailed."""
        known = {package.name: package for package in self.packages}
        waiting, found = list(names), dict[str, Deb]()
        while waiting:
            name = waiting.pop()
            if name not in known:
                guess = did_you_mean(name, known)
                raise BuildFailed(f"the lock has no package {name}; {guess or 'write it anew with `mrp image lock`'}")
            if name not in found:
                found[name] = known[name]
                waiting += known[name].depends
        return [found[name] for name in sorted(found)]


@dataclass(frozen=True)
class Requirement:
    """One line of a requirements file: a distribution, its one version, and what its files may hash to."""

    name: str
    version: str
    sha256: tuple[str, ...]
    marker: str = ""


def parse_deb_lock(data: bytes) -> DebLock:
    """Read what `write_deb_lock` wrote. Raises BuildFailed with what is wrong and the next step."""
    try:
        document: Any = json.loads(data)
        if document["mrp"] != LOCK_VERSION:
            raise BuildFailed(f"the lock has the version {document['mrp']!r}; write it anew with `mrp image lock`")
        packages = tuple(_deb(package) for package in document["packages"])
        lock = DebLock(document["distribution"], document["architecture"], packages)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise BuildFailed(f"it is no lock of Debian packages ({what}); write it with `mrp image lock`") from None
    known = {package.name for package in packages}
    if len(known) != len(packages):
        raise BuildFailed("the lock names a package twice; write it anew with `mrp image lock`")
    for package in packages:
        lock.closure(package.depends)
    return lock


def write_deb_lock(lock: DebLock) -> bytes:
    """The bytes of a lock: the same for the same packages."""
    packages = [asdict(package) for package in sorted(lock.packages, key=lambda package: package.name)]
    document = {
        "mrp": LOCK_VERSION,
        "distribution": lock.distribution,
        "architecture": lock.architecture,
        "packages": packages,
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def parse_requirements(data: bytes) -> list[Requirement]:
    """Read a requirements file in which each line pins one version with hashes. Raises BuildFailed."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BuildFailed("the requirements file is not UTF-8; write it anew") from None
    found: dict[str, Requirement] = {}
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(?:^|\s)#.*", "", line).strip()
        if not line or line.startswith(_NO_REQUIREMENT):
            continue
        requirement = _requirement(line)
        name = canonical_name(requirement.name)
        if name in found and not requirement.marker:
            raise BuildFailed(f"the requirements file names {requirement.name} twice; keep one line")
        found[f"{name};{requirement.marker}" if requirement.marker else name] = requirement
    return list(found.values())


def applicable(requirements: Iterable[Requirement], python: str) -> list[Requirement]:
    """Those whose markers hold for CPython of this version (`3.11`) on Linux. Raises BuildFailed, InfraError."""
    try:
        from packaging.markers import Marker
    except ImportError:
        message = "markers in a requirements file need `pip install 'mrp-build[images]'`"
        raise InfraError(message, retryable=False) from None
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": platform.machine(),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    found: dict[str, Requirement] = {}
    for one in requirements:
        try:
            holds = not one.marker or Marker(one.marker).evaluate(environment)
        # packaging's own: of a marker that is none, or compares what cannot be compared.
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise BuildFailed(f"the marker `{one.marker}` in a requirements file cannot be read: {reason}") from None
        if holds and found.setdefault(canonical_name(one.name), one) != one:
            raise BuildFailed(f"two lines of a requirements file bring {one.name} for Python {python}; keep one")
    return list(found.values())


def canonical_name(name: str) -> str:
    """A distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement(line: str) -> Requirement:
    before, _, _ = line.partition("--hash")
    specified, _, marker = before.partition(";")
    pinned = _PINNED.match(re.sub(r"\s+", "", specified))
    hashes = _HASH.findall(line)
    if pinned is None:
        raise BuildFailed(f"{specified.strip()!r} in a requirements file is no `name==version`; pin it")
    if not hashes:
        raise BuildFailed(
            f"{pinned[1]} has no --hash=sha256:... in its requirements file; write it with `pip-compile"
            " --generate-hashes` or `uv pip compile --generate-hashes`"
        )
    return Requirement(pinned[1], pinned[2], tuple(sorted(set(hashes))), marker.strip())


def _deb(package: Any) -> Deb:
    depends: Sequence[str] = package.get("depends", ())
    deb = Deb(**{**package, "depends": tuple(depends)})
    texts = (deb.name, deb.version, deb.architecture, deb.url, deb.sha256, *deb.depends)
    if not all(isinstance(text, str) for text in texts) or type(deb.size) is not int:
        raise TypeError(f"{deb.name} has a field of another type")
    if not is_package(deb.name) or not _SHA256.match(deb.sha256):
        raise ValueError(f"{deb.name!r} is no name of a package, or has no sha256")
    if not _VERSION.match(deb.version) or not is_package(deb.architecture):
        raise ValueError(f"{deb.name} has no version and architecture")
    return deb


def is_package(name: str) -> bool:
    """Whether a Debian package may have this name."""
    return _PACKAGE.match(name) is not None
