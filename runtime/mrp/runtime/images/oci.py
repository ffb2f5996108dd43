"""OCI: how a portable image is spelled as layers, configuration and manifest that every container tool reads.

Layers are plain tar archives, so that no compressor's version enters a digest. What a tree does not hold is fixed:
owners 0:0, modes 0644 and 0755, and the mtime of a checkout.
"""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol

from mrp.cache.canonical import Json
from mrp.cache.checkout import CHECKOUT_TIME
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.sandbox.layout import system_files
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, TASK, WORK

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

_MODES = {"tmp": 0o1777, "var/tmp": 0o1777, WORK[1:]: 0o777, OUT[1:]: 0o777}
"""Folders that an image's user writes to when the image is run without mrp."""

_ETC = ("group", "nsswitch.conf", "passwd")
"""Those of mrp's files in /etc that container tools do not make anew for each container."""

_FOLDERS = (TASK, WORK, OUT, "/opt/mrp", "/proc", "/dev", "/sys", "/tmp", "/run", "/home", "/srv", "/mnt")
"""Empty folders of every image. /solution is none of them: whether it is there tells an agent something."""

_CHUNK = 2**20
_BLOCK = 512


class Writer(Protocol):
    """What archives are written to."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Blob:
    """One object of an image as a registry names it: media type, sha256 in hex, size in bytes."""

    media: str
    sha256: str
    size: int

    def to_json(self) -> dict[str, Json]:
        return {"mediaType": self.media, "digest": f"sha256:{self.sha256}", "size": self.size}


def write_layer(tree: Digest, store: Store, out: Writer) -> tuple[str, int]:
    """Write a tree as an uncompressed tar archive; gives its sha256 in hex (OCI's diff_id) and its size in bytes.

    Raises InfraError for a name that container tools would take for the removal of a file, and what the store raises.
    """
    sink = _Hashing(out)
    _write_entries(store.read_tree(tree), store, sink)
    sink.write(bytes(2 * _BLOCK))
    return sink.sha256(), sink.size


def write_archive(image: PortableImage, store: Store, out: Writer, *, tag: str | None = None) -> str:
    """Write one tar archive that both `docker load` and skopeo (oci-archive) read; gives the image's id.

    The id is `sha256:` and the sha256 of the configuration. Raises InfraError as `write_layer`, and for an image over
    a provider's own source.
    """
    with tempfile.TemporaryFile(prefix="mrp-image-") as spool:
        layers: list[Blob] = []
        places: dict[str, int] = {}
        for tree in oci_layers(image, store):
            start = spool.seek(0, 2)
            sha256, size = write_layer(tree, store, spool)
            if sha256 in places:
                spool.truncate(start)
            places.setdefault(sha256, start)
            layers.append(Blob(LAYER, sha256, size))
        config = config_bytes(image, [layer.sha256 for layer in layers])
        manifest = manifest_bytes(config, layers)
        sizes = {layer.sha256: layer.size for layer in layers}
        documents = {
            "index.json": index_bytes(manifest, tag),
            "manifest.json": _docker_manifest(config, layers, tag),
            "oci-layout": LAYOUT,
            _blob_path(_sha256(config)): config,
            _blob_path(_sha256(manifest)): manifest,
        }
        names = sorted([*documents, *map(_blob_path, sizes)])
        for name in ["blobs", "blobs/sha256", *names]:
            if name in documents:
                _write_file(out, name, len(documents[name]), False, [documents[name]])
            elif (sha256 := name.removeprefix("blobs/sha256/")) in places:
                spool.seek(places[sha256])
                _write_file(out, name, sizes[sha256], False, _chunks(spool, sizes[sha256]))
            else:
                out.write(_header(name, tarfile.DIRTYPE, mode=0o755))
        out.write(bytes(2 * _BLOCK))
        return f"sha256:{_sha256(config)}"


def write_rootfs(image: PortableImage, store: Store, out: Writer) -> None:
    """Write the whole file system of an image as one tar archive. Raises InfraError as `write_archive`."""
    _write_entries(store.read_tree(store.merge_trees(oci_layers(image, store))), store, out)
    out.write(bytes(2 * _BLOCK))


def put_layout(image: PortableImage, store: Store) -> Digest:
    """Store an image as a tree that is an OCI layout; layers that images share are the same blobs there."""
    layers: list[Blob] = []
    entries: dict[str, Entry] = {}
    for tree in oci_layers(image, store):
        with layer_file(tree, store) as (file, blob):
            entries[_blob_path(blob.sha256)] = Entry("f", store.put_file(file.name))
            layers.append(blob)
    config = config_bytes(image, [layer.sha256 for layer in layers])
    manifest = manifest_bytes(config, layers)
    documents = {"oci-layout": LAYOUT, "index.json": index_bytes(manifest, None)}
    documents |= {_blob_path(_sha256(data)): data for data in (config, manifest)}
    entries |= {path: Entry("f", store.put_bytes(data)) for path, data in documents.items()}
    return store.put_tree(entries)


@contextmanager
def layer_file(tree: Digest, store: Store) -> Iterator[tuple[IO[bytes], Blob]]:
    """A temporary file, with a name, that holds a tree's layer, and what the layer is called."""
    with tempfile.NamedTemporaryFile(prefix="mrp-layer-") as file:
        sha256, size = write_layer(tree, store, file)
        file.flush()
        yield file, Blob(LAYER, sha256, size)


def oci_layers(image: PortableImage, store: Store) -> tuple[Digest, ...]:
    """The trees of an image, lowest first, with those that every image gets. Raises InfraError when it has a source."""
    if image.source is not None:
        raise InfraError(
            f"the image lies over {image.source}, which only its provider has; use `base: scratch` or an image by"
            " digest to get one that can be written out",
            retryable=False,
        )
    return (*image.layers, system_layer(image, store))


def system_layer(image: PortableImage, store: Store) -> Digest:
    """The uppermost tree of every image: its users, how names are looked up, and the contract's empty folders."""
    uid, gid = (int(part) for part in image.user.split(":"))
    texts = system_files(uid, gid)
    entries = {f"etc/{name}": Entry("f", store.put_bytes(texts[name].encode())) for name in _ETC}
    entries |= {folder.lstrip("/"): Entry("d") for folder in _FOLDERS}
    return store.put_tree({**entries, "var/tmp": Entry("l", target="/tmp")})


# -- documents ---------------------------------------------------------------------------------------------------


def _compact(value: Json) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


LAYOUT = _compact({"imageLayoutVersion": "1.0.0"})


def config_bytes(image: PortableImage, diff_ids: Sequence[str]) -> bytes:
    """The configuration of an image, whose sha256 is the image's id."""
    system, _, architecture = image.platform.partition("/")
    settings: dict[str, Json] = {"User": image.user, "WorkingDir": WORK}
    if image.env:
        settings["Env"] = [f"{name}={value}" for name, value in sorted(image.env.items())]
    return _compact(
        {
            "architecture": architecture,
            "config": settings,
            "created": "2000-01-01T00:00:00Z",
            "os": system,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}" for diff_id in diff_ids]},
        }
    )


def manifest_bytes(config: bytes, layers: Sequence[Blob]) -> bytes:
    """The manifest of an image, whose sha256 is what a registry pins."""
    return _compact(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Blob(CONFIG, _sha256(config), len(config)).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )


def index_bytes(manifest: bytes, tag: str | None) -> bytes:
    """The index.json of a layout that holds one image."""
    entry = Blob(MANIFEST, _sha256(manifest), len(manifest)).to_json()
    if tag is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    return _compact({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})


def _docker_manifest(config: bytes, layers: Sequence[Blob], tag: str | None) -> bytes:
    named = tag if tag is None or ":" in tag.rpartition("/")[2] else f"{tag}:latest"
    described: Json = {
        "Config": _blob_path(_sha256(config)),
        "RepoTags": None if named is None else [named],
        "Layers": [_blob_path(layer.sha256) for layer in layers],
    }
    return _compact([described])


def _blob_path(sha256: str) -> str:
    return f"blobs/sha256/{sha256}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- tar ---------------------------------------------------------------------------------------------------------


def _write_entries(entries: Mapping[str, Entry], store: Store, out: Writer) -> None:
    for path in sorted(_with_folders(entries)):
        name = path.rpartition("/")[2]
        if name.startswith(".wh."):
            raise InfraError(
                f"the image holds /{path}, which container tools would take for the removal of"
                f" {name.removeprefix('.wh.')}; rename it",
                retryable=False,
            )
        entry = entries.get(path)
        if entry is None or entry.kind == "d":
            out.write(_header(path, tarfile.DIRTYPE, mode=_MODES.get(path, 0o755)))
        elif entry.kind == "l":
            out.write(_header(path, tarfile.SYMTYPE, mode=0o777, target=entry.target or ""))
        else:
            assert entry.digest is not None
            with store.open_blob(entry.digest) as stream:
                size = store.size(entry.digest)
                _write_file(out, path, size, entry.kind == "x", _chunks(stream, size))


def _with_folders(entries: Mapping[str, Entry]) -> set[str]:
    paths = set(entries)
    for path in entries:
        parent = path.rpartition("/")[0]
        while parent and parent not in paths:
            paths.add(parent)
            parent = parent.rpartition("/")[0]
    return paths


def _write_file(
    out: Writer, path: str, size: int, executable: bool, chunks: "Iterator[bytes] | Sequence[bytes]"
) -> None:
    out.write(_header(path, tarfile.REGTYPE, mode=0o755 if executable else 0o644, size=size))
    written = 0
    for chunk in chunks:
        out.write(chunk)
        written += len(chunk)
    if written != size:
        raise InfraError(f"/{path} of an image ended after {written} of {size} bytes; build again")
    out.write(bytes(-size % _BLOCK))


def _header(path: str, kind: bytes, *, mode: int, size: int = 0, target: str = "") -> bytes:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, size, target, CHECKOUT_TIME
    return info.tobuf(tarfile.PAX_FORMAT)


def _chunks(stream: "IO[bytes] | BinaryIO", size: int) -> Iterator[bytes]:
    while size and (chunk := stream.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


class _Hashing:
    """Passes bytes on, and knows the sha256 and number of all."""

    def __init__(self, out: Writer) -> None:
        self._out, self._hash, self.size = out, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self.size += len(data)

    def sha256(self) -> str:
        return self._hash.hexdigest()
