"""The bill of materials of an image, in CycloneDX: each package that a lock named, with its version and sha256.

It holds no time and nothing random, so that the same image has the same one.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.image import Layer, MakeImage
from mrp.runtime.images.members import sha256_of
from mrp.specs.errors import InfraError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component


def bill_of_materials(work: MakeImage, image: Digest, store: Store) -> bytes:
    """The document of the image that `work` made, with what is known of its base. Raises InfraError without cyclonedx.

    Layers that are copied, and images of a registry, bring files and no list of packages, so they are not in it.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        raise InfraError(
            "the bill of materials of an image needs cyclonedx; `pip install 'mrp-build[images]'` brings it",
            retryable=False,
        ) from None
    bom = Bom(serial_number=UUID(hex=image[:32], version=5))
    bom.metadata.component = Component(name="image", type=ComponentType.CONTAINER, version=image, bom_ref="image")
    components = [*_of_base(work, store), *(one for layer in work.layers for one in _of_layer(layer, store))]
    for component in components:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, components)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]
    document["components"] = sorted(document.get("components", ()), key=lambda component: str(component["bom-ref"]))
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _of_base(work: MakeImage, store: Store) -> "Iterator[Component]":
    """What the bill of materials of the image below lists."""
    if work.base.get("sbom") is None:
        return
    for listed in json.loads(store.get_bytes(Digest(work.base["sbom"])))["components"]:
        yield _component(listed["purl"], listed["name"], listed["version"], listed["hashes"][0]["content"])


def _of_layer(layer: Layer, store: Store) -> "Iterator[Component]":
    if layer.kind == "deb":
        for deb in layer.value["packages"]:
            purl = f"pkg:deb/{layer.value['distribution']}/{deb['name']}"
            yield _component(purl, deb["name"], deb["version"], deb["sha256"], {"arch": deb["arch"]})
    if layer.kind == "pip":
        for file, entry in store.read_tree(layer.tree).items():
            assert entry.digest is not None
            name, version, *_ = file.split("-")
            name = name.replace("_", "-").lower()
            yield _component(f"pkg:pypi/{name}", name, version, sha256_of(entry.digest, store))


def _component(
    purl: str, name: str, version: str, sha256: str, qualifiers: dict[str, str] | None = None
) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    parsed = PackageURL.from_string(purl)
    if parsed.version is None:
        parsed = PackageURL(parsed.type, parsed.namespace, parsed.name, version, qualifiers)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(name=name, version=version, purl=parsed, bom_ref=str(parsed), hashes=hashes)
