"""The command line's build, from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.runtime.build import build
from mrp.runtime.options import BuildOptions
from mrp.runtime.outputs import output_folder
from mrp.runtime.report import BuildReport


class Workspace:
    """The workspace in `root`, with the cache in `cache` (default: as `mrp` would choose)."""

    def __init__(self, root: str | Path, *, cache: str | Path | None = None) -> None:
        self.root = Path(root).resolve()
        self.cache = Path(cache) if cache is not None else None

    def build(
        self,
        labels: Sequence[str],
        params: Mapping[str, Mapping[str, Json]] | None = None,
        *,
        jobs: int | None = None,
        config: Sequence[str] = (),
    ) -> BuildReport:
        """Build `labels`; `params` are label -> name -> value, as `--param` gives them.

        The report's `status` and `exit_code` say how it went. Raises SpecError, PolicyError and UsageError before
        anything is executed, and CacheError when the cache cannot be used. Prints nothing.
        """
        return build(
            BuildOptions(
                root=self.root,
                targets=tuple(labels),
                cache=self.cache,
                jobs=jobs,
                config=tuple(config),
                params=params or {},
            )
        )

    def output(self, label: str, name: str) -> Path:
        """Where output `name` of a built label stands."""
        return output_folder(self.root, label) / name
