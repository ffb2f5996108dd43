"""What a build learned of the machine outside its workspace, as paths whose stat must stay for that to stay true."""

import os
from collections.abc import Iterable, Mapping

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.runtime.images.host import HOST_FOLDERS, SEARCH_PATH, Digests, describe_host

_MAYBE_THERE = ("/etc/os-release", "/usr/lib/os-release", "/var/lib/dpkg/status", "/var/lib/rpm", "/lib/apk/db")


class HostFacts:
    """Describes the host for images, and notes which files that took."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._read: set[str] = set()
        self._trees: set[str] = set()
        self._links: set[str] = set()

    def describe(self, toolchain: tuple[str, ...]) -> Json:
        """As mrp.runtime.images.host.describe_host."""
        found = describe_host(toolchain, self)
        self._links.update(HOST_FOLDERS)
        self._links.update(path for path, kind, _ in found.get("files", ()) if kind == "l")
        self._trees.update(path for path, kind, _ in found.get("files", ()) if kind == "t")
        self._trees.update(path for path in found.get("etc", ()) if os.path.isdir(path))
        return found

    def digest(self, path: str) -> Digest:
        self._read.add(path)
        return self._digests.digest(path)

    def digest_many(self, paths: Iterable[str]) -> Mapping[str, Digest]:
        listed = list(paths)
        self._read.update(listed)
        return self._digests.digest_many(listed)

    def paths(self) -> list[str]:
        """Files that were read, and the folders where another file would have been found instead or as well."""
        if not self._links:
            return []
        found = {*self._read, *SEARCH_PATH.split(":"), *_MAYBE_THERE}
        for tree in self._trees:
            for folder, folders, _ in os.walk(tree):
                folders[:] = [name for name in folders if name != "__pycache__"]
                found.add(folder)
        return sorted(found)

    def links(self) -> list[str]:
        """Places where a symlink, or none, was found."""
        return sorted(self._links)
