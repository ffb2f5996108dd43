"""Which engines there are beside the local one: the visible list."""

from collections.abc import Callable

from mrp.runtime.engine.protocol import Engine, EngineSettings

ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {}
"""Name -> how to start it. Each imports its vendor's SDK when it is started; a missing extra is an InfraError."""
