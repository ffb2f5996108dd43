"""Wheels: fetched by pip for the image's Python and C library, never for this machine's, and laid out without running
any of their code.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.image import FetchWheel
from mrp.runtime.archives import content_at_fault
from mrp.specs.errors import BuildFailed, InfraError

_LEGACY = {"2.17": "manylinux2014", "2.12": "manylinux2010", "2.5": "manylinux1"}
_OLDEST_MINOR = 5


def fetch_wheel(work: FetchWheel, store: Store) -> Digest:
    """A tree of one file, the wheel by its own name. Raises BuildFailed for other content, InfraError when not had."""
    with tempfile.TemporaryDirectory(prefix="mrp-wheel-") as folder:
        requirements, wheels = Path(folder, "requirements.txt"), Path(folder, "wheels")
        hashes = " ".join(f"--hash=sha256:{sha256}" for sha256 in work.sha256)
        requirements.write_text(f"{work.name}=={work.version} {hashes}\n", encoding="utf-8")
        wheels.mkdir()
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        argv += ["--require-hashes", "--disable-pip-version-check", "--no-input", "--implementation", "cp"]
        argv += ["--python-version", work.python, "--abi", f"cp{work.python.replace('.', '')}", "--abi", "abi3"]
        argv += ["--abi", "none"]
        argv += [word for name in platforms(work.libc, work.machine) for word in ("--platform", name)]
        argv += ["--dest", str(wheels), "--requirement", str(requirements)]
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        found = list(wheels.iterdir())
        if done.returncode == 0 and len(found) == 1:
            return store.put_tree({found[0].name: Entry("f", store.put_file(found[0]))})
        raise _failure(work, done.stderr)


def unpack_wheels(files: Digest, folder: str, store: Store) -> Digest:
    """The tree, rooted at /, that wheels make; `folder` is where the image's Python imports from.

    Their programs come into /usr/local/bin. Raises BuildFailed for what is no wheel, InfraError without `installer`.
    """
    import configparser

    try:
        from installer import install
        from installer.destinations import SchemeDictionaryDestination
        from installer.exceptions import InstallerError
        from installer.sources import WheelFile
    except ImportError:
        raise InfraError(
            "a pip layer needs the package installer; `pip install 'mrp-build[images]'` brings it", retryable=False
        ) from None
    with tempfile.TemporaryDirectory(prefix="mrp-wheels-") as root:
        places = {"purelib": folder, "platlib": folder, "scripts": "usr/local/bin", "data": "usr/local"}
        places["headers"] = "usr/local/include"
        # Debian's own Python imports from dist-packages, one that was built beside it from site-packages.
        interpreter = "/usr/bin/python3" if folder.endswith("dist-packages") else "/usr/local/bin/python3"
        schemes = {name: f"/{place}" for name, place in places.items()}
        target = SchemeDictionaryDestination(
            schemes, interpreter=interpreter, script_kind="posix", overwrite_existing=False, destdir=root
        )
        for name, entry in store.read_tree(files).items():
            assert entry.digest is not None
            with content_at_fault(f"{name} is no wheel that can be laid out"):
                try:
                    with _named(name, entry.digest, store) as file, WheelFile.open(file) as wheel:
                        install(wheel, target, {"INSTALLER": b"mrp"})
                except FileExistsError as error:
                    raise BuildFailed(f"{name} brings a file that another wheel of the layer has: {error}") from None
                except (InstallerError, KeyError, AssertionError, configparser.Error) as error:
                    raise ValueError(str(error.args[-1]) if error.args else "its entry points are wrong") from error
        return store.put_folder(Path(root))


def platforms(libc: str, machine: str) -> Iterator[str]:
    """The platform tags that a Linux with this glibc takes, best first."""
    major, _, minor = libc.partition(".")
    for number in range(int(minor), _OLDEST_MINOR - 1, -1):
        yield f"manylinux_{major}_{number}_{machine}"
        if legacy := _LEGACY.get(f"{major}.{number}"):
            yield f"{legacy}_{machine}"
    yield f"linux_{machine}"


@contextmanager
def _named(name: str, digest: Digest, store: Store) -> Iterator[Path]:
    """The wheel as a file that has its name, which says what it is."""
    with tempfile.TemporaryDirectory(prefix="mrp-wheel-") as folder:
        file = Path(folder, name)
        file.symlink_to(store.blob_path(digest))
        yield file


def _failure(work: FetchWheel, said: str) -> Exception:
    lines = [line.strip() for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (lines or [said.strip() or "no reason was given"])[-1].removeprefix("ERROR: ")[:300]
    what = f"{work.name} {work.version}"
    if "DO NOT MATCH THE HASHES" in said or re.search(r"Got\s+[0-9a-f]{64}", said):
        return BuildFailed(f"{what} has none of the hashes of its requirements file; write the file anew")
    if reason.endswith("is invalid."):
        return BuildFailed(f"{what} is no wheel that can be read; pin another version")
    if "No matching distribution" in said:
        return BuildFailed(
            f"{what} has no wheel with a pinned hash for Python {work.python} and glibc {work.libc} on {work.machine};"
            " pin a version that has one"
        )
    return InfraError(f"{what} cannot be downloaded: {reason}", retryable="No module named pip" not in said)
