"""Images: layers become one tree each, and a base with layers becomes a description whose digest is Box.image.

    {"base": <host description>, "env": {...}, "layers": [<tree>, ...], "user": "1000:1000"}

Layers lie over a host image in folders that the machine's own system does not fill, like /opt.
"""

import hashlib
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence

from mrp.cache.canonical import Json, canonical_bytes, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.image import MakeImage
from mrp.runtime.images.host import HOST_FOLDERS
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.work import OUT, SOLUTION, TASK, WORK

_TAKEN = (*HOST_FOLDERS, "/etc", "/proc", "/dev", "/sys", "/tmp", "/run", "/mnt", "/opt/mrp", TASK, WORK, SOLUTION, OUT)


def make_image(work: MakeImage, store: Store) -> Digest:
    """Build the layers of an image and store its description; returns the description's digest.

    Raises BuildFailed for layers that cannot be laid out, InfraError for kinds that no backend here can build.
    """
    trees = [layer_tree(layer.kind, layer.value, layer.tree, store) for layer in work.layers]
    return store.put_bytes(canonical_bytes(resolve_image(work.base, trees, work.env, work.user, store)))


def image_layers(image: Digest, store: Store) -> list[Digest]:
    """The trees of an image's layers, lowest first, by the digest of its description."""
    description: Json = parse_canonical(store.get_bytes(image))
    return [Digest(tree) for tree in description["layers"]]


def resolve_image(base: Json, layers: Sequence[Digest], env: Mapping[str, str], user: str, store: Store) -> Json:
    """The description of an image over `base`: a host description, or {"image": digest} for another image.

    Raises BuildFailed when a layer falls where the base has its own files.
    """
    description: dict[str, Json] = {"base": base, "layers": [], "env": {}, "user": user}
    if "image" in base:
        description = {**parse_canonical(store.get_bytes(Digest(base["image"]))), "user": user}
    for tree in layers:
        for path in store.read_tree(tree):
            check_guest_path(f"/{path}")
    description["layers"] = [*description["layers"], *layers]
    description["env"] = {**description["env"], **env}
    return description


def layer_tree(kind: str, value: Json, files: Digest, store: Store) -> Digest:
    """The tree, rooted at /, that one layer adds. `files` holds what it copies, at guest paths, or its archive.

    Raises BuildFailed for a layer that is wrong, InfraError for kinds that this version cannot build.
    """
    if kind == "copy":
        return files
    if kind == "dirs":
        return store.put_tree({_relative(path): Entry("d") for path in _listed(value, "dirs")})
    if kind == "links":
        links = value.get("links", value)
        return store.put_tree({_relative(path): Entry("l", target=target) for path, target in links.items()})
    if kind == "tar":
        return _tar_tree(value, files, store)
    raise InfraError(
        f"a `{kind}` layer needs the container backend, which this version does not have; use copy, tar, dirs or links",
        retryable=False,
    )


def check_guest_path(path: str) -> None:
    """Raise BuildFailed when a layer over a host image may not add to `path`."""
    for taken in _TAKEN:
        if path == taken or path.startswith(f"{taken}/"):
            raise BuildFailed(
                f"a layer would put {path} into {taken}, which `base: host` takes from the machine or mrp makes; "
                f"copy to /opt/... instead"
            )


def _relative(path: str) -> str:
    normal = posixpath.normpath(path)
    if not path.startswith("/") or "\0" in path or normal == "/" or normal != path.rstrip("/"):
        raise BuildFailed(f"{path!r} in a layer is not an absolute path without `..`; write it like /opt/tool")
    return normal.lstrip("/")


def _listed(value: Json, name: str) -> Iterable[str]:
    return list(value[name] if isinstance(value, Mapping) else value)


def _tar_tree(value: Json, files: Digest, store: Store) -> Digest:
    archives = [(path, entry) for path, entry in store.read_tree(files).items() if entry.digest is not None]
    if len(archives) != 1:
        raise BuildFailed(f"a tar layer needs exactly one archive, not {len(archives)}")
    name, entry = archives[0]
    assert entry.digest is not None
    with store.open_blob(entry.digest) as stream:
        hasher = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    found = hasher.hexdigest()
    if found != value["sha256"]:
        raise BuildFailed(f"{name} has the sha256 {found}, not {value['sha256']}; correct one of them")
    try:
        with store.open_blob(entry.digest) as stream, tarfile.open(fileobj=stream, mode="r:*") as archive:
            return store.put_tree(_tar_entries(archive, name, store))
    except tarfile.TarError as error:
        raise BuildFailed(f"{name} is no tar archive that can be read: {error}") from error


def _tar_entries(archive: tarfile.TarFile, name: str, store: Store) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for member in archive:
        path = posixpath.normpath(member.name)
        if path == ".":
            continue
        if path.startswith(("/", "../")) or path == "..":
            raise BuildFailed(f"{name} holds {member.name!r}, which leads out of it; make the archive anew")
        if member.isdir():
            entries.setdefault(path, Entry("d"))
        elif member.issym():
            entries[path] = Entry("l", target=member.linkname)
        elif member.islnk():
            linked = entries.get(posixpath.normpath(member.linkname))
            if linked is None:
                raise BuildFailed(f"{name} links {member.name!r} to {member.linkname!r}, which does not come before it")
            entries[path] = linked
        elif member.isfile():
            content = archive.extractfile(member)
            assert content is not None
            entries[path] = Entry("x" if member.mode & stat.S_IXUSR else "f", store.put_bytes(content.read()))
        else:
            raise BuildFailed(f"{name} holds {member.name!r}, which is no file, folder or link")
    return entries
