"""mrp as a contestant: a workspace with a cache of its own, and checks of how many actions were executed."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.environments import MRP
from benchmarks.measure import Finished
from benchmarks.terms import Step, WrongWork, nothing

PROGRAM = str(MRP / "mrp")


class Workspace:
    """A workspace in `folder`. `isolation` is the weakest that its policy allows; without it mrp's default holds."""

    def __init__(self, folder: Path, *, isolation: str | None = None) -> None:
        self.root = folder / "tree"
        self._cache = folder / "cache"
        self._isolation = isolation

    def write(self, files: Mapping[str, str]) -> None:
        """Write the workspace anew: `files` by path, with its mrp.yaml and policy."""
        shutil.rmtree(self.root.parent, ignore_errors=True)
        policy = "policy: policy.yaml\n" if self._isolation else ""
        for path, text in {"mrp.yaml": f"mrp: 1\nname: benchmark\n{policy}", **files}.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        if self._isolation:
            (self.root / "policy.yaml").write_text(f"mrp: 1\nisolation: {self._isolation}\n")

    def forget(self) -> None:
        """Remove outputs, state and cache: what comes next is done from nothing."""
        self.clone()
        shutil.rmtree(self._cache, ignore_errors=True)

    def clone(self) -> None:
        """Remove outputs and state, as in a fresh clone; the cache stays."""
        self.remove_outputs()
        shutil.rmtree(self.root / ".mrp", ignore_errors=True)

    def remove_outputs(self) -> None:
        """Remove mrp-out alone."""
        shutil.rmtree(self.root / "mrp-out", ignore_errors=True)

    def build(
        self,
        target: str,
        *,
        executed: int,
        cached: int,
        before: Callable[[], None] = nothing,
        then: Callable[[], None] = nothing,
        rounds: int | None = None,
    ) -> Step:
        """A build of `target` that must execute and reuse exactly so many actions; `then` checks what it made."""

        def check(finished: Finished) -> None:
            expect_actions(finished, executed, cached)
            then()

        return self.command(("build", "-q", target), before=before, check=check, rounds=rounds)

    def command(
        self,
        arguments: tuple[str, ...],
        *,
        check: Callable[[Finished], None],
        before: Callable[[], None] = nothing,
        rounds: int | None = None,
    ) -> Step:
        """Any other verb of mrp."""
        environment = {"MRP_CACHE": str(self._cache)}
        return Step((PROGRAM, *arguments), self.root, environment, before, check, rounds)


def expect_actions(finished: Finished, executed: int, cached: int) -> None:
    """Raise WrongWork unless the build's last line says that so many actions were executed and cached."""
    said = re.search(r"(\d+) executed, (\d+) cached", finished.output)
    if said is None:
        raise WrongWork("mrp did not say how many actions it executed")
    if (int(said[1]), int(said[2])) != (executed, cached):
        raise WrongWork(f"{said[0]}; expected were {executed} executed, {cached} cached")
