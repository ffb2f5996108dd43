"""What a pinned download is: the content that its pin names, whoever serves it.

So its key holds the pin and the name of the file, never the address: another mirror is no other download.
"""

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from mrp.cache.canonical import Json
from mrp.specs.errors import safe_relative
from mrp.specs.ir import FetchSpec

FETCH_VERSION = 1
"""Raising it downloads all anew; for when the same pin comes to mean another tree."""

_PYPI = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*\Z")
_SCHEMES = ("https", "http", "file")
_GIT_SCHEMES = ("https", "http", "ssh", "file")


@dataclass(frozen=True)
class Fetch:
    """Work: a pinned download; the result is a tree of the files it brought."""

    spec: FetchSpec
    unpack: bool


def check_fetch(spec: FetchSpec) -> list[str]:
    """What is wrong with a fetch as declared, one sentence each; for the compiler."""
    problems = []
    for name, address, schemes in (("url", spec.url, _SCHEMES), ("git", spec.git, _GIT_SCHEMES)):
        if address is None:
            continue
        if (parts := _parts(address)) is None:
            problems.append(f"`{name}` {address!r} is no address")
        elif parts.scheme not in schemes:
            problems.append(f"`{name}` {address!r} must start with one of {', '.join(f'{s}://' for s in schemes)}")
    if spec.pypi is not None and not _PYPI.match(spec.pypi):
        problems.append(f"`pypi` {spec.pypi!r} must name one version, like example==1.2.0")
    if spec.path is not None and safe_relative(spec.path) is None:
        problems.append(f"`path` {spec.path!r} must be a path below the workspace")
    if spec.secret is not None and not (spec.url or spec.git or "").startswith("https://"):
        problems.append("`secret` is sent only to https addresses")
    return problems


def fetch_preimage(spec: FetchSpec, *, unpack: bool) -> dict[str, Json]:
    """The part of a fetch's key: its pin, and all else that shapes the tree that it brings."""
    if spec.git is not None:
        return {"version": FETCH_VERSION, "git": spec.rev}
    return {
        "version": FETCH_VERSION,
        "sha256": spec.sha256,
        "name": None if unpack else file_name(spec),
        "unpack": unpack,
    }


def file_name(spec: FetchSpec) -> str:
    """The name that a downloaded file has in its tree, which says what it is packed with (see mrp.rules.formats)."""
    if spec.pypi is not None:
        return spec.pypi.replace("==", "-") + ".whl"
    parts = _parts(spec.url or "")
    name = posixpath.basename(spec.path or unquote(parts.path if parts is not None else ""))
    return name if safe_relative(name) is not None else "download"


def _parts(address: str) -> SplitResult | None:
    """None for what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return None
