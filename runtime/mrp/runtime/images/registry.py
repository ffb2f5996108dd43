"""Images of registries: they come by digest, as trees, and go with only what is missing there.

A reference is `name@sha256:...`; a name without a host is Docker Hub's.
"""

import gzip
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any

from mrp.cache.store import Store
from mrp.rules.image import PullImage
from mrp.runtime.images.distribution import MAX_DOCUMENT, Credentials, Registry, parse_name
from mrp.runtime.images.members import open_zstd
from mrp.runtime.images.oci import CONFIG, LAYER, Blob, config_bytes, manifest_bytes, oci_layers, write_layer
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.images.unpacked import UnpackedImage, unpack_image
from mrp.specs.errors import BuildFailed, UsageError

_AT_ONCE = 4
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_REFERENCE = re.compile(r"(?P<name>[^\s@]+?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?\Z")


def pull_image(work: PullImage, store: Store) -> UnpackedImage:
    """The image with this digest, or the one for its platform in the index with this digest, as trees.

    Raises BuildFailed for content that is not what was pinned, InfraError when it cannot be had.
    """
    repository = parse_name(work.name)
    shown = f"{work.name}@{work.digest}"
    with Registry.open(repository) as registry, tempfile.TemporaryDirectory(prefix="mrp-pull-") as folder:
        manifest = _document(registry.manifest(work.digest), shown)
        if manifest.get("manifests") is not None:
            digest = _for_platform(manifest["manifests"], work.platform, shown)
            manifest = _document(registry.manifest(digest), shown)
        config, *layers = _listed(manifest, shown)
        wanted = {Path(folder, blob.sha256): blob for blob in (config, *layers)}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(registry.fetch, wanted.values(), wanted))
        openers: list[Callable[[], IO[bytes]]] = [
            partial(_open_layer, Path(folder, blob.sha256), blob.media) for blob in layers
        ]
        return unpack_image(Path(folder, config.sha256).read_bytes(), openers, shown, store)


def push_image(
    image: PortableImage,
    store: Store,
    reference: str,
    *,
    insecure: bool = False,
    credentials: Credentials | None = None,
) -> str:
    """Bring an image to `host/name[:tag]`; gives `host/name@sha256:...`. Raises UsageError and InfraError.

    Its layers are packed with gzip, the same way each time.
    """
    parsed = _REFERENCE.match(reference)
    if parsed is None:
        raise UsageError(f"{reference!r} is no name of an image; write it like registry.example.org/team/image:1")
    repository = parse_name(parsed["name"])
    with Registry.open(repository, push=True, insecure=insecure, credentials=credentials) as registry:
        layers, diff_ids = [], []
        for tree in oci_layers(image, store):
            with tempfile.TemporaryFile(prefix="mrp-push-") as file:
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    diff_id, _ = write_layer(tree, store, packed)
                size = file.tell()
                file.seek(0)
                layers.append(Blob(f"{LAYER}+gzip", hashlib.file_digest(file, "sha256").hexdigest(), size))
                diff_ids.append(diff_id)
                registry.upload(layers[-1], file)
        config = config_bytes(image, diff_ids)
        with tempfile.TemporaryFile() as file:
            file.write(config)
            registry.upload(Blob(CONFIG, hashlib.sha256(config).hexdigest(), len(config)), file)
        manifest = manifest_bytes(config, layers)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        registry.put_manifest(digest, manifest)
        if parsed["tag"] is not None:
            registry.put_manifest(parsed["tag"], manifest)
    return f"{parsed['name']}@{digest}"


def _document(data: bytes, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BuildFailed(f"the manifest of {shown} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise BuildFailed(f"the manifest of {shown} is of a kind that is not known here; push the image anew")
    return document


def _for_platform(manifests: Any, platform: str, shown: str) -> str:
    system, _, architecture = platform.partition("/")
    try:
        for entry in manifests:
            described = entry.get("platform") or {}
            if described.get("os") == system and described.get("architecture") == architecture:
                return f"sha256:{_sha256_of(entry)}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BuildFailed(f"{shown} is no index of images that can be read: {error!r}") from None
    raise BuildFailed(f"{shown} has no image for {platform}; take another one")


def _listed(manifest: Mapping[str, Any], shown: str) -> list[Blob]:
    """The configuration and the layers that a manifest names."""
    try:
        listed = [manifest["config"], *manifest["layers"]]
        if listed[0]["size"] > MAX_DOCUMENT:
            raise ValueError(f"its configuration has {listed[0]['size']} bytes")
        return [Blob(str(one.get("mediaType", "")), _sha256_of(one), int(one["size"])) for one in listed]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BuildFailed(f"{shown} is no image, its manifest cannot be read: {error!r}") from None


def _sha256_of(descriptor: Mapping[str, Any]) -> str:
    found = _DIGEST.match(descriptor["digest"])
    if found is None:
        raise ValueError(f"{descriptor['digest']!r} is no sha256")
    return found[1]


def _open_layer(file: Path, media: str) -> IO[bytes]:
    stream = file.open("rb")
    return open_zstd(stream, "a layer") if media.endswith("zstd") else stream
