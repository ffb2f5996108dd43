"""Images: layers become one tree each, and a base with layers becomes a description whose digest is Box.image.

    {"base": <host description>, "env": {...}, "layers": [<tree>, ...], "user": "1000:1000"}

Layers over a host image lie in folders that the machine's own system does not fill, like /opt. Those of portable images
(see mrp.runtime.images.portable) lie anywhere but in the contract's own places.
"""

import posixpath
from collections.abc import Mapping, Sequence

from mrp.cache.canonical import Json, canonical_bytes, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.image import Layer, MakeImage
from mrp.runtime.archives import content_at_fault, open_tar
from mrp.runtime.images.host import HOST_FOLDERS
from mrp.runtime.images.members import read_members, sha256_of, through_links, without_empty_parents
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.work import OUT, SOLUTION, TASK, WORK

_CONTRACT = (TASK, WORK, SOLUTION, OUT, "/proc", "/dev", "/sys", "/tmp", "/opt/mrp")
_TAKEN = (*HOST_FOLDERS, "/etc", "/run", "/mnt", *_CONTRACT)
_TAKEN_OVER = ("base", "deb", "tar")
"""Layers that others made, which often have a place for the contract's folders: they lose it."""


def make_image(work: MakeImage, store: Store) -> Digest:
    """Build the layers of an image and store its description; returns the description's digest.

    Raises BuildFailed for layers that cannot be laid out, InfraError for kinds that no backend here can build.
    """
    return store.put_bytes(canonical_bytes(resolve_image(work.base, work.layers, work.env, work.user, store)))


def resolve_image(base: Json, layers: Sequence[Layer], env: Mapping[str, str], user: str, store: Store) -> Json:
    """The description of an image over `base`: a host, scratch, a source, or {"image": digest} for another image.

    Raises BuildFailed when a layer falls where the base has its own files, or the contract its folders.
    """
    description: dict[str, Json] = {"base": base, "layers": [], "env": {}, "user": user}
    if "image" in base:
        description = {**parse_canonical(store.get_bytes(Digest(base["image"]))), "user": user}
    trees = list(description["layers"])
    portable = "host" not in description["base"]
    for layer in layers:
        entries = store.read_tree(layer_tree(layer.kind, layer.value, layer.tree, store))
        trees.append(_portable_tree(layer.kind, entries, trees, store) if portable else _host_tree(entries, store))
    return {**description, "layers": trees, "env": {**description["env"], **env}}


def layer_tree(kind: str, value: Json, files: Digest, store: Store) -> Digest:
    """The tree, rooted at /, that one layer adds. `files` holds what it copies, at guest paths, or what is unpacked.

    Raises BuildFailed for a layer that is wrong, InfraError for kinds that this version cannot build.
    """
    if kind in ("copy", "base"):
        return files
    if kind == "dirs":
        return store.put_tree({_relative(path): Entry("d") for path in value})
    if kind == "links":
        with content_at_fault("a `links` layer cannot be laid out"):
            return store.put_tree({_relative(path): Entry("l", target=target) for path, target in value.items()})
    if kind == "tar":
        return _tar_tree(value, files, store)
    if kind == "deb":
        from mrp.runtime.images.debian import unpack_debs

        return unpack_debs(files, store)
    if kind == "pip":
        from mrp.runtime.images.wheels import unpack_wheels

        return unpack_wheels(files, value["folder"], store)
    raise InfraError(
        f"a `{kind}` layer cannot be built by this version; use copy, tar, deb, pip, dirs or links", retryable=False
    )


def check_guest_path(path: str) -> None:
    """Raise BuildFailed when a layer over a host image may not add to `path`."""
    for taken in _TAKEN:
        if path == taken or path.startswith(f"{taken}/"):
            raise BuildFailed(
                f"a layer would put {path} into {taken}, which `base: host` takes from the machine or mrp makes; "
                f"copy to /opt/... instead"
            )


def _host_tree(entries: Mapping[str, Entry], store: Store) -> Digest:
    for path in entries:
        check_guest_path(f"/{path}")
    return store.put_tree(entries)


def _portable_tree(kind: str, entries: Mapping[str, Entry], lower: Sequence[Digest], store: Store) -> Digest:
    """A layer as it lies over `lower`: where those have a link to a folder, its files are in that folder.

    A base image's own layers were made to lie over each other, so they are taken as they are.
    """
    links = {} if kind == "base" else _links(lower, store)
    placed: dict[str, Entry] = {}
    for path, entry in entries.items():
        place = through_links(path, links)
        if entry.kind == "d" and place in links:
            continue
        if (taken := _contract_place(place)) is None:
            placed[place] = entry
        elif kind not in _TAKEN_OVER and not (entry.kind == "d" and f"/{place}" == taken):
            raise BuildFailed(f"a layer would put /{place} into {taken}, which is mrp's own; choose another folder")
    return store.put_tree(without_empty_parents(placed))


def _links(trees: Sequence[Digest], store: Store) -> dict[str, str]:
    if not trees:
        return {}
    merged = store.read_tree(store.merge_trees(trees))
    return {path: entry.target for path, entry in merged.items() if entry.target is not None}


def _contract_place(path: str) -> str | None:
    return next((taken for taken in _CONTRACT if f"/{path}" == taken or f"/{path}".startswith(f"{taken}/")), None)


def _relative(path: str) -> str:
    normal = posixpath.normpath(path)
    if not path.startswith("/") or "\0" in path or normal == "/" or normal != path.rstrip("/"):
        raise BuildFailed(f"{path!r} in a layer is not an absolute path without `..`; write it like /opt/tool")
    return normal.lstrip("/")


def _tar_tree(value: Json, files: Digest, store: Store) -> Digest:
    archives = [(path, entry) for path, entry in store.read_tree(files).items() if entry.digest is not None]
    if len(archives) != 1:
        raise BuildFailed(f"a tar layer needs exactly one archive, not {len(archives)}")
    name, entry = archives[0]
    assert entry.digest is not None
    found = sha256_of(entry.digest, store)
    if found != value["sha256"]:
        raise BuildFailed(f"{name} has the sha256 {found}, not {value['sha256']}; correct one of them")
    with (
        content_at_fault(f"{name} is no tar archive that can be read"),
        store.open_blob(entry.digest) as stream,
        open_tar(stream, "r:*") as archive,
    ):
        entries: dict[str, Entry] = {}
        for path, member in read_members(archive, name, store):
            if member.kind != "d" or path not in entries:
                entries[path] = member
        return store.put_tree(without_empty_parents(entries))
