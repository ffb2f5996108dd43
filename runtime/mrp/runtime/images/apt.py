"""Locks of Debian packages: apt, with the machine's own sources, says which packages belong together.

It is asked with an empty list of installed packages, so that its answer holds all that is needed and not just what this
machine lacks. Nothing of its own state is changed.
"""

import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mrp.rules.locks import Deb, DebLock, is_package
from mrp.specs.errors import InfraError, UsageError
from mrp.specs.suggest import did_you_mean

_CHOSEN = re.compile(r"^Inst (\S+) \((\S+) .*\[(\S+)\]\)", re.MULTILINE)
_URI = re.compile(r"^'([^']+)' (\S+) (\d+)", re.MULTILINE)
_UNKNOWN = re.compile(r"Unable to locate package (\S+)")
_ALTERNATIVE = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)(?::\S+)?")
_NEXT = "run `apt-get update`, and see that the packages' names are right"


def lock_packages(names: Iterable[str]) -> DebLock:
    """The packages with these names and all that they depend on, as apt chooses them now.

    Raises InfraError when apt is not there or fails, UsageError for names that it does not know.
    """
    wanted = sorted(set(names))
    for name in wanted:
        if not is_package(name):
            raise UsageError(f"{name!r} is no name of a Debian package; write it as `apt-cache search` shows it")
    with tempfile.TemporaryDirectory(prefix="mrp-apt-") as folder:
        apt = _Apt(Path(folder))
        chosen = _CHOSEN.findall(apt.run("apt-get", "--simulate", "install", *wanted))
        # apt takes a name that it does not know for a pattern, or for what other packages provide.
        if unknown := [name for name in wanted if name not in {name.partition(":")[0] for name, _, _ in chosen}]:
            raise UsageError(f"there is no Debian package {unknown[0]}; {apt.near(unknown[0])}")
        addresses = {
            name: _public(url) for url, name, _ in _URI.findall(apt.run("apt-get", "--print-uris", "install", *wanted))
        }
        shown = apt.run("apt-cache", "show", *(f"{name}={version}" for name, version, _ in chosen))
    stanzas = {stanza["Package"]: stanza for stanza in map(_fields, re.split(r"\n\n+", shown.strip()))}
    providers = _providers(stanzas)
    packages = [_package(stanzas[name.partition(":")[0]], addresses, providers) for name, _, _ in sorted(set(chosen))]
    return DebLock(_distribution(), _architecture(), tuple(sorted(packages, key=lambda package: package.name)))


def _package(stanza: Mapping[str, str], addresses: Mapping[str, str], providers: Mapping[str, Sequence[str]]) -> Deb:
    name, version, architecture = stanza["Package"], stanza["Version"], stanza["Architecture"]
    file = f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    if file not in addresses or "SHA256" not in stanza:
        raise InfraError(f"apt does not say where {name} {version} is, or what it hashes to; {_NEXT}", retryable=False)
    depends = set()
    for clause in ",".join(stanza.get(field, "") for field in ("Pre-Depends", "Depends")).split(","):
        depends |= set(_satisfying(clause, providers)) - {name}
    size = int(stanza["Size"])
    return Deb(name, version, architecture, addresses[file], stanza["SHA256"], size, tuple(sorted(depends)))


def _satisfying(clause: str, providers: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The chosen packages that the first alternative with any names."""
    for alternative in clause.split("|"):
        found = _ALTERNATIVE.match(alternative)
        if found and found[1] in providers:
            return providers[found[1]]
    return ()


def _providers(stanzas: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The chosen packages by every name that a dependency may use; a package's own name means that package alone."""
    providers: dict[str, list[str]] = {}
    for name, stanza in sorted(stanzas.items()):
        for provided in stanza.get("Provides", "").split(","):
            if found := _ALTERNATIVE.match(provided):
                providers.setdefault(found[1], []).append(name)
    return {**providers, **{name: [name] for name in stanzas}}


def _public(address: str) -> str:
    """An address without the password that a source may be written with: a lock is no place for one."""
    return re.sub(r"//[^/@]*@", "//", address)


def _fields(stanza: str) -> dict[str, str]:
    fields = {}
    for line in stanza.splitlines():
        name, separator, value = line.partition(":")
        if separator and not line.startswith((" ", "\t")):
            fields[name] = value.strip()
    return fields


def _distribution() -> str:
    with suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            if line.startswith("ID="):
                return line.removeprefix("ID=").strip('"')
    return "debian"


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


class _Apt:
    """apt with a state folder of its own and the machine's sources and package lists."""

    def __init__(self, folder: Path) -> None:
        (folder / "cache/archives/partial").mkdir(parents=True)
        (folder / "status").touch()
        settings = {
            "Dir::State::status": folder / "status",
            "Dir::State::extended_states": folder / "extended_states",
            "Dir::Cache": folder / "cache",
            "Debug::NoLocking": "1",
            "APT::Install-Recommends": "0",
            "APT::Install-Suggests": "0",
            "APT::Get::Assume-Yes": "1",
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def run(self, program: str, *words: str) -> str:
        argv = [program, *self._options, *words]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                argv, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, cwd="/"
            )
        except FileNotFoundError:
            raise InfraError(
                f"{program} is not on this machine; make the lock on a Debian or Ubuntu system", retryable=False
            ) from None
        if done.returncode == 0:
            return done.stdout
        said = next((line[2:].strip() for line in done.stderr.splitlines() if line.startswith("E:")), "no reason given")
        if unknown := _UNKNOWN.match(said):
            raise UsageError(f"there is no Debian package {unknown[1]}; {self.near(unknown[1])}")
        if "no installation candidate" in said:
            raise UsageError(f"{said}; name a package that provides it, which `apt-cache showpkg` lists")
        raise InfraError(f"{program} failed: {said}; {_NEXT}", retryable=False)

    def near(self, name: str) -> str:
        """The next step for a name that apt does not know."""
        return did_you_mean(name, self.run("apt-cache", "pkgnames", name[0]).split()) or _NEXT
