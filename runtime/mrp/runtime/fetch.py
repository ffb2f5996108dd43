"""Downloads: bytes from elsewhere, let in only when they are the ones that the plan pinned."""

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.fetching import check_fetch, file_name
from mrp.runtime.archives import Gathered, unpack_archive
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import FetchSpec

_CHUNK = 2**20
_ANSWER_TIMEOUT = 60
_TRY_LATER = (408, 425, 429)
_GONE = (404, 410)
_RELOCK = "; mirrors drop old versions of packages: `apt-get update` and `mrp image lock` write the lock anew"
_SUBMODULE = "160000"


def fetch(
    spec: FetchSpec,
    workspace: Path,
    store: Store,
    *,
    offline: bool = False,
    secrets: Mapping[str, str] | None = None,
    unpack: bool = False,
) -> Digest:
    """The tree that `spec` brings: one file by its own name, the members of an archive, or a commit's files.

    workspace: where `path` is looked up. secrets: values by name, of which `spec.secret` is sent as a bearer token.
    unpack: whether a file is an archive whose members are wanted; commits always come as their files. Raises
    BuildFailed when the content is not what was pinned, InfraError when it cannot be had.
    """
    if problems := check_fetch(spec):
        raise BuildFailed("; ".join(problems))
    remote = spec.pypi is not None or urlsplit(spec.url or spec.git or "").scheme not in ("", "file")
    if offline and remote:
        raise InfraError(f"{_shown(spec)} is not in the cache, and this build is offline", retryable=False)
    token = (secrets or {}).get(spec.secret) if spec.secret is not None else None
    if spec.secret is not None and token is None:
        raise InfraError(f"{_shown(spec)} needs the secret {spec.secret}, which has no value", retryable=False)
    with tempfile.TemporaryDirectory(prefix="mrp-fetch-") as folder:
        if spec.git is not None:
            return _git_tree(spec, Path(folder), store, token)
        return _file_tree(spec, _file(spec, workspace, Path(folder), token), store, unpack=unpack)


def _file(spec: FetchSpec, workspace: Path, folder: Path, token: str | None) -> Path:
    if spec.url is not None:
        return _download(spec, spec.url, folder / "file", token)
    if spec.pypi is not None:
        return _wheel(spec, folder)
    assert spec.path is not None
    file = (workspace / spec.path).resolve()
    if not file.is_relative_to(workspace.resolve()):
        raise BuildFailed(f"{spec.path} leads out of the workspace; copy the file into it")
    try:
        with file.open("rb") as source, (folder / "file").open("wb") as target:
            _copy(spec, source, target)
    except OSError as error:
        raise BuildFailed(f"{spec.path} cannot be read: {error.strerror}") from error
    return folder / "file"


def _file_tree(spec: FetchSpec, file: Path, store: Store, *, unpack: bool) -> Digest:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        size = stream.tell()
    if spec.size is not None and size != spec.size:
        raise BuildFailed(f"{_shown(spec)} has {size} bytes, and `size` says {spec.size}")
    if found != spec.sha256:
        raise BuildFailed(
            f"{_shown(spec)} has sha256 {found}, and {spec.sha256} was pinned; if the new content is right, pin it"
        )
    if unpack:
        return unpack_archive(file, _shown(spec), store)
    return store.put_tree({file_name(spec): Entry("f", store.put_file(file), None)})


# -- url ---------------------------------------------------------------------------------------------------------


def _download(spec: FetchSpec, url: str, file: Path, token: str | None) -> Path:
    import http.client
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    from mrp.runtime.connections import opened

    if "@" in urlsplit(url).netloc:
        message = f"the address of {_shown(spec)} holds a password, which is not sent; declare it as a `secret`"
        raise InfraError(message, retryable=False)
    request = Request(url, headers={"User-Agent": "mrp"})
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with opened(request, _ANSWER_TIMEOUT) as answer, file.open("wb") as target:
            _copy(spec, answer, target)
            left = getattr(answer, "length", None)
    except HTTPError as error:
        retryable = error.code >= 500 or error.code in _TRY_LATER
        hint = _RELOCK if error.code in _GONE and url.endswith(".deb") else ""
        raise InfraError(f"{_shown(spec)} answered {error.code} {error.reason}{hint}", retryable=retryable) from None
    except (URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise InfraError(f"{_shown(spec)} cannot be downloaded: {reason}; build again when it can") from None
    if left:
        raise InfraError(f"{_shown(spec)} cannot be downloaded: the answer broke off {left} bytes before its end")
    return file


def _copy(spec: FetchSpec, source: IO[bytes], target: IO[bytes]) -> None:
    size = 0
    while data := source.read(_CHUNK):
        size += len(data)
        if spec.size is not None and size > spec.size:
            raise BuildFailed(f"{_shown(spec)} is larger than the {spec.size} bytes that `size` says")
        target.write(data)


# -- pypi --------------------------------------------------------------------------------------------------------


def _wheel(spec: FetchSpec, folder: Path) -> Path:
    """A wheel, by pip. Never a source archive: pip would run the code in it, here."""
    requirements, wheels = folder / "requirements.txt", folder / "wheels"
    requirements.write_text(f"{spec.pypi} --hash=sha256:{spec.sha256}\n")
    wheels.mkdir()
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    argv += ["--dest", str(wheels), "--requirement", str(requirements)]
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(argv, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0 and len(found := list(wheels.iterdir())) == 1:
        with found[0].open("rb") as source, (folder / "file").open("wb") as target:
            _copy(spec, source, target)
        return folder / "file"
    said = done.stderr.decode(errors="replace")
    if got := re.search(r"Got\s+([0-9a-f]{64})", said):
        raise BuildFailed(f"{_shown(spec)} has sha256 {got[1]}, and {spec.sha256} was pinned; pin the wheel's own")
    raise InfraError(
        f"{_shown(spec)} cannot be downloaded as a wheel for this Python: {_last_line(said)}",
        retryable="No matching distribution" not in said and "No module named pip" not in said,
    )


# -- git ---------------------------------------------------------------------------------------------------------


def _git_tree(spec: FetchSpec, folder: Path, store: Store, token: str | None) -> Digest:
    """A commit's files, byte for byte as git stores them: no attribute of the repository changes them.

    Submodules are left out.
    """
    assert spec.git is not None and spec.rev is not None
    git = _Git(spec, folder, token)
    git.run("init", "--quiet", "--bare")
    if git.fails("fetch", "--quiet", "--no-tags", "--depth=1", spec.git, spec.rev):
        git.run("fetch", "--quiet", "--no-tags", spec.git, "+refs/*:refs/fetched/*")
    if git.fails("cat-file", "-e", f"{spec.rev}^{{commit}}"):
        raise BuildFailed(f"{_shown(spec)} has no commit {spec.rev}; look up `rev` again")
    listed = git.run("ls-tree", "-r", "-z", "--full-tree", spec.rev)
    entries = []
    for line in listed.split(b"\0")[:-1]:
        described, _, path = line.partition(b"\t")
        mode, _, name = described.decode().split()
        if mode != _SUBMODULE:
            entries.append((_path(spec, path), mode, name))
    gathered = Gathered(_shown(spec), store)
    contents = git.blobs(name for _, _, name in entries)
    for (place, mode, _), content in zip(entries, contents, strict=True):
        if mode == "120000":
            gathered.add(place, "l", _path(spec, content))
        else:
            gathered.add(place, "x" if mode == "100755" else "f", io.BytesIO(content))
    return gathered.tree()


def _path(spec: FetchSpec, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BuildFailed(f"{_shown(spec)} holds the path {data!r}, which is not UTF-8") from None


class _Git:
    """git in a folder of its own, which asks nobody and speaks only harmless protocols."""

    def __init__(self, spec: FetchSpec, folder: Path, token: str | None) -> None:
        self._spec, self._folder, self._token = spec, folder, token
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_DIR": str(folder),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "file:http:https:ssh",
            "LC_ALL": "C",
        }
        if token is not None:
            credentials = base64.b64encode(f"x-access-token:{token}".encode()).decode()
            self._env |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{spec.git}.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {credentials}",
            }

    def run(self, *argv: str) -> bytes:
        done = self._run(argv)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace")
            raise InfraError(f"{_shown(self._spec)} cannot be fetched: {self._redacted(_last_line(said))}")
        return done.stdout

    def fails(self, *argv: str) -> bool:
        return self._run(argv).returncode != 0

    def blobs(self, names: Iterable[str]) -> Iterable[bytes]:
        """The contents of objects, one after the other."""
        with tempfile.TemporaryFile() as asked:
            asked.write("".join(f"{name}\n" for name in names).encode())
            asked.seek(0)
            argv = ["git", "cat-file", "--batch"]
            with subprocess.Popen(argv, env=self._env, stdin=asked, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                while header := process.stdout.readline():
                    size = int(header.split()[2])
                    yield process.stdout.read(size)
                    process.stdout.read(1)

    def _run(self, argv: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                ["git", *argv], env=self._env, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
        except FileNotFoundError:
            raise InfraError("git is not installed; install it to fetch repositories", retryable=False) from None

    def _redacted(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


# -- messages ----------------------------------------------------------------------------------------------------


def _shown(spec: FetchSpec) -> str:
    """What is fetched, for messages; never a password."""
    address = spec.url or spec.git
    if address is None:
        return spec.pypi or spec.path or ""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason was given"
