"""`mrp image`: lock the packages of images, and bring images that are built to where others find them."""

import argparse
import gzip
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.flags import add_compile_flags, build_options
from mrp.cli.progress import failure_line
from mrp.cli.screen import Screen
from mrp.cli.workspace import absolute, find_root, open_store, write_file
from mrp.specs.errors import InfraError, UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.runtime.images.portable import PortableImage
    from mrp.runtime.report import BuildReport

_WORDS = {"lock": "LABEL|FILE...", "load": "LABEL", "export": "LABEL FILE", "push": "LABEL NAME[:TAG]"}
_COUNTS = {"load": 1, "export": 2, "push": 2}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=tuple(_WORDS),
        help="lock: write lock files of Debian packages; load: into Docker; export: to a file; push: to a registry",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="; ".join(f"{what} {w}" for what, w in _WORDS.items()))
    parser.add_argument("--gzip", action="store_true", help="export: pack the archive")
    parser.add_argument("--tag", metavar="NAME", help="load, export: the image's name in Docker")
    parser.add_argument("--insecure", action="store_true", help="push: speak http")
    parser.add_argument("--secret", metavar="NAME", help="push: the secret whose value is USER:PASSWORD")
    add_compile_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    root = find_root()
    words, what = arguments.words, arguments.what
    if what == "lock":
        return _lock(root, words, arguments, screen)
    if len(words) != _COUNTS[what]:
        raise UsageError(f"write `mrp image {what} {_WORDS[what]}`")
    report = _build(root, arguments, screen)
    if report.exit_code:
        for failure in report.failures:
            screen.error(failure_line(failure.label, failure.reason))
        return report.exit_code
    store = open_store()
    try:
        answer = {"load": _load, "export": _export, "push": _push}[what](_image(report, store), store, arguments, root)
    finally:
        store.close()
    if screen.json:
        screen.document(answer)
    screen.answer(next(iter(answer.values())))
    return 0


def _lock(root: Path, words: list[str], arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.compiler.locks import deb_locks
    from mrp.rules.locks import write_deb_lock
    from mrp.runtime.images.apt import lock_packages

    locks = deb_locks(root, arguments.config)
    written = {}
    for path in sorted({path for word in words for path in _named(word, root, locks)} if words else locks):
        lock = lock_packages(name for names in locks[path].values() for name in names)
        write_file(root / path, write_deb_lock(lock))
        written[path] = len(lock.packages)
    if not written:
        raise UsageError("no image here has a layer like {deb: [python3], lock: debs.lock}; there is nothing to lock")
    if screen.json:
        screen.document({"locks": written})
    for path, count in written.items():
        screen.answer(f"{path}: {count} packages")
    return 0


def _named(word: str, root: Path, locks: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The locks that a word means: those of an image, or the file itself."""
    label = absolute(word, root)
    if label.startswith("//"):
        found = [path for path, users in locks.items() if label in users]
    else:
        inner = Path(word).absolute()
        path = inner.relative_to(root).as_posix() if inner.is_relative_to(root) else word
        found = [path] if path in locks else []
    if not found:
        known = ", ".join(sorted(locks)) or "none"
        raise UsageError(f"{word} names no lock of Debian packages; those of this workspace are: {known}")
    return found


def _build(root: Path, arguments: argparse.Namespace, screen: Screen) -> "BuildReport":
    """Build the image, unless it is there; what it prints goes beside the answer."""
    from mrp.cli.build import run_build
    from mrp.runtime.build import build

    arguments.targets = arguments.words[:1]
    beside = Screen(json=True, quiet=screen.quiet, verbose=screen.verbose)
    return run_build(beside, lambda **more: build_options(arguments, root, **more), build)


def _image(report: "BuildReport", store: "Store") -> "PortableImage":
    from mrp.runtime.images.portable import read_portable

    ((label, target),) = report.targets.items() if len(report.targets) == 1 else (("", None),)
    if target is None or "image" not in target.outputs:
        raise UsageError(f"{label or 'this'} is no image; name one target of kind image")
    return read_portable(target.outputs["image"].digest, store, "OCI")


def _load(image: "PortableImage", store: "Store", arguments: argparse.Namespace, root: Path) -> dict[str, str]:
    from mrp.runtime.images.dockerfile import load_archive
    from mrp.runtime.images.oci import write_archive

    with tempfile.TemporaryFile(prefix="mrp-load-") as file:
        identity = write_archive(image, store, file, tag=arguments.tag)
        file.seek(0)
        load_archive(file)
    return {"id": identity}


def _export(image: "PortableImage", store: "Store", arguments: argparse.Namespace, root: Path) -> dict[str, str]:
    from mrp.runtime.images.oci import write_archive

    place = Path(arguments.words[1])
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            if arguments.gzip:
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    identity = write_archive(image, store, packed, tag=arguments.tag)
            else:
                identity = write_archive(image, store, file, tag=arguments.tag)
        unfinished.replace(place)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"cannot write {place}: {reason}; choose another place or make room"
        raise InfraError(message, retryable=False) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return {"id": identity, "file": str(place)}


def _push(image: "PortableImage", store: "Store", arguments: argparse.Namespace, root: Path) -> dict[str, str]:
    from mrp.runtime.images.registry import push_image

    login = _login(root, arguments.secret) if arguments.secret else None
    name = push_image(image, store, arguments.words[1], insecure=arguments.insecure, credentials=login)
    return {"reference": name}


def _login(root: Path, secret: str) -> tuple[str, str]:
    """User and password, from a secret of the workspace."""
    from mrp.compiler.problems import Problems
    from mrp.compiler.workspace import open_workspace
    from mrp.runtime.secret_values import Secrets

    problems = Problems()
    workspace = open_workspace(root, problems)
    problems.raise_if_any()
    value = Secrets(workspace.file.secrets.model_dump(), root).values([secret])[secret]
    user, separator, password = value.partition(":")
    if not separator:
        raise UsageError(f"the value of the secret {secret} is not USER:PASSWORD; set it so")
    return user, password
