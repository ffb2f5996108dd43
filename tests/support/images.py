"""What an image came to: its outputs, the digest that a registry would pin, and its file system."""

import io
import json
import tarfile
from pathlib import Path
from typing import IO

from support.places import Place

from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.store import Store
from mrp.runtime.images.oci import write_rootfs
from mrp.runtime.images.portable import read_portable


def image(place: Place, name: str = "img") -> Path:
    """The folder with an image's outputs."""
    return place.folder / "mrp-out" / name


def layout_digest(place: Place, name: str = "img") -> str:
    """The digest of the one manifest of an image's layout."""
    index = json.loads((image(place, name) / "oci/index.json").read_text())
    return str(index["manifests"][0]["digest"])


def image_digest(place: Place, name: str = "img") -> Digest:
    """The digest of an image's description."""
    return digest_bytes((image(place, name) / "image").read_bytes())


def export_rootfs(place: Place, out: IO[bytes], name: str = "img") -> None:
    """Write an image's file system as one archive."""
    with Store.open(place.cache) as store:
        write_rootfs(read_portable(image_digest(place, name), store, "test"), store, out)


def rootfs(place: Place, name: str = "img") -> dict[str, tarfile.TarInfo | bytes | str]:
    """What stands in an image: bytes of files, targets of links, and the member itself for folders."""
    packed = io.BytesIO()
    export_rootfs(place, packed, name)
    packed.seek(0)
    found: dict[str, tarfile.TarInfo | bytes | str] = {}
    with tarfile.open(fileobj=packed) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            found[member.name] = content.read() if content is not None else member.linkname or member
    return found
