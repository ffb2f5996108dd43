"""The work of images, carried out: each kind of work, and what it leaves in the store."""

from mrp.cache.canonical import Json, canonical_bytes, parse_canonical
from mrp.cache.store import Store
from mrp.rules.image import BuildDockerfile, FetchWheel, ImageWork, MakeImage, PullImage
from mrp.runtime.images.layers import make_image
from mrp.runtime.images.portable import portable_image
from mrp.runtime.images.unpacked import UnpackedImage
from mrp.specs.errors import InfraError
from mrp.specs.results import Ref


def perform(work: ImageWork, store: Store, *, offline: bool) -> dict[str, Ref]:
    """The outputs by name. Raises BuildFailed for what is wrong, InfraError for what cannot be had."""
    if isinstance(work, MakeImage):
        return _made(work, store)
    if isinstance(work, BuildDockerfile):
        from mrp.runtime.images.dockerfile import build_dockerfile

        return _unpacked(build_dockerfile(work, store), store)
    if offline:
        what = f"{work.name}@{work.digest}" if isinstance(work, PullImage) else f"{work.name} {work.version}"
        raise InfraError(f"{what} is not in the cache, and this build is offline", retryable=False)
    if isinstance(work, PullImage):
        from mrp.runtime.images.registry import pull_image

        return _unpacked(pull_image(work, store), store)
    assert isinstance(work, FetchWheel)
    from mrp.runtime.images.wheels import fetch_wheel

    return {"files": Ref("tree", fetch_wheel(work, store))}


def _made(work: MakeImage, store: Store) -> dict[str, Ref]:
    digest = make_image(work, store)
    description: Json = parse_canonical(store.get_bytes(digest))
    outputs = {"image": Ref("blob", digest)}
    # The layers' trees are outputs as well, so that an image that lost one of their files is no hit.
    outputs |= {f"layer-{number}": Ref("tree", tree) for number, tree in enumerate(description["layers"])}
    if "host" in description["base"]:
        return outputs
    from mrp.runtime.images.oci import put_layout
    from mrp.runtime.images.sbom import bill_of_materials

    if "scratch" in description["base"]:
        outputs["oci"] = Ref("tree", put_layout(portable_image(digest, description), store))
    return {**outputs, "sbom.json": Ref("blob", store.put_bytes(bill_of_materials(work, digest, store)))}


def _unpacked(image: UnpackedImage, store: Store) -> dict[str, Ref]:
    config = store.put_bytes(canonical_bytes({"env": dict(image.env)}))
    layers = {f"layer-{number}": Ref("tree", tree) for number, tree in enumerate(image.layers)}
    return {"config": Ref("blob", config), **layers}
