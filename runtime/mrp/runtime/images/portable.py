"""Portable images: what any backend can show, as trees of layers over nothing, or over a source of one provider.

    {"base": {"scratch": {"platform": "linux/amd64"}}, "env": {...}, "layers": [<tree>, ...], "user": "1000:1000"}
    {"base": {"source": "modal:///debian_slim"}, ...}

The description's digest is Box.image; see mrp.runtime.images.layers for how descriptions are made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mrp.cache.canonical import Json, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.specs.errors import InfraError


@dataclass(frozen=True)
class PortableImage:
    """An image: `layers` are trees rooted at /, lowest first; `source` names what only one provider has below them.

    platform: `linux/amd64`, as container tools spell it.
    """

    digest: Digest
    layers: tuple[Digest, ...]
    env: Mapping[str, str]
    user: str
    source: str | None = None
    platform: str = "linux/amd64"


def read_portable(digest: Digest, store: Store, backend: str) -> PortableImage:
    """The portable image with this description. Raises InfraError for host images, naming the `backend`."""
    description: Json = parse_canonical(store.get_bytes(digest))
    base = description["base"]
    if "host" in base:
        raise InfraError(
            f"this image shows the machine's own system, which the {backend} backend does not have; use `base: scratch`"
            " with a `deb` layer, or an image by digest",
            retryable=False,
        )
    return portable_image(digest, description)


def portable_image(digest: Digest, description: Json) -> PortableImage:
    """The image that a description with a portable base stands for."""
    base = description["base"]
    layers = tuple(Digest(tree) for tree in description["layers"])
    platform = base["scratch"]["platform"] if "scratch" in base else "linux/amd64"
    return PortableImage(digest, layers, description["env"], description["user"], base.get("source"), platform)
