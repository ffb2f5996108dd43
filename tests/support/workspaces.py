"""A workspace in a temporary folder, written from a dict of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

from mrp.cache.filestats import FileDigests
from mrp.compiler.compile import Compiled, compile_workspace
from mrp.specs.errors import MrpError
from mrp.specs.ir import Task

MRP_YAML = "mrp: 1\nname: test\n"


class Workspace:
    """Files below `root`; texts are dedented, so that tests can write YAML where it is read."""

    def __init__(self, root: Path, files: Mapping[str, str | bytes] | None = None) -> None:
        self.root = root
        self.write({"mrp.yaml": MRP_YAML, **(files or {})})

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else dedent(content).lstrip("\n").encode())

    def compile(
        self,
        *targets: str,
        config: Sequence[str] = (),
        params: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Compiled:
        """The plan for `targets`, `//...` by default."""
        with FileDigests.open(self.root / ".mrp" / "digests.db") as digests:
            return compile_workspace(
                self.root, targets or ("//...",), config=config, params=params or {}, digests=digests
            )

    def tasks(self, *targets: str, config: Sequence[str] = ()) -> dict[str, Task]:
        """The planned tasks by label."""
        return {task.label: task for task in self.compile(*targets, config=config).plan.tasks}

    def refused(self, *targets: str, config: Sequence[str] = ()) -> tuple[int, str]:
        """Exit code and text of the error that compiling raises."""
        try:
            self.compile(*targets, config=config)
        except MrpError as error:
            return error.exit_code, str(error)
        raise AssertionError("the workspace compiles")

    def error(self, *targets: str, config: Sequence[str] = ()) -> str:
        """The text of the error, which must be one of the user's documents or words."""
        code, text = self.refused(*targets, config=config)
        assert code == 2, text
        return text
