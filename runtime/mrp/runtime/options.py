"""What a build is asked for."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json
from mrp.runtime.events import Event
from mrp.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    from mrp.runtime.models.calls import Calls


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; see DESIGN's flags. `cache` is the cache's folder, `root` the workspace.

    `identity` are the words that ask for it, under which it is remembered for the next build; empty for one that asks
    for a part, for something anew, or in another way than by words. `calls`: where the calls of models are kept, when
    that is not the build's own cache.
    """

    root: Path
    targets: tuple[str, ...] = ()
    cache: Path | None = None
    jobs: int | None = None
    engine: str | None = None
    sandbox: str | None = None
    address: str | None = None
    config: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    limit: int | None = None
    params: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    rebuild: tuple[str, ...] = ()
    resample: bool = False
    retry_limits: bool = False
    fail_fast: bool = False
    offline: bool = False
    produce: bool = True
    identity: tuple[str, ...] = ()
    on_event: Callable[[Event], None] = lambda _: None
    interrupt: Interrupt = field(default_factory=Interrupt)
    calls: "Calls | None" = None


def cache_root() -> Path:
    """`$MRP_CACHE`, else the user's cache folder."""
    named = os.environ.get("MRP_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mrp"
