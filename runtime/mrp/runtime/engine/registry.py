"""Which engines there are beside the local one: the visible list."""

from collections.abc import Callable

from mrp.runtime.engine.protocol import Engine, EngineSettings


def _ray(settings: EngineSettings) -> Engine:
    from mrp.runtime.engine.ray import RayEngine

    return RayEngine(settings)


def _modal(settings: EngineSettings) -> Engine:
    from mrp.runtime.engine.modal import ModalEngine

    return ModalEngine(settings)


ENGINES: dict[str, Callable[[EngineSettings], Engine]] = {"ray": _ray, "modal": _modal}
"""Name -> how to start it. Each imports its vendor's SDK when it is started; a missing extra is an InfraError."""
