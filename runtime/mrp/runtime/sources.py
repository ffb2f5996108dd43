"""Workspace files on their way into the store: each must still be what the plan says it was."""

from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead
from mrp.cache.store import Store
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import Files, SourceFile


class Sources:
    """Imports source files into the store, each at most once a build."""

    def __init__(self, workspace: Path, store: Store) -> None:
        self._workspace, self._store = workspace, store
        self._imported: set[Digest] = set()

    def bring(self, files: Files) -> None:
        """Make the store hold all of `files.sources`; raises BuildFailed when one is no longer what was compiled."""
        new = {source.digest: source for source in files.sources if source.digest not in self._imported}
        for digest in self._store.missing(new):
            self._bring_one(new[digest])
        self._imported.update(new)

    def _bring_one(self, source: SourceFile) -> None:
        try:
            digest = self._store.put_file(f"{self._workspace}/{source.path}")
        except (OSError, ChangedWhileRead):
            digest = None
        if digest != source.digest:
            raise BuildFailed(f"{source.path} changed since it was compiled; build, or compile, again")
