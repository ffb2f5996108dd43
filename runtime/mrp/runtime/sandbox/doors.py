"""Which doors a process gets: its model's, and that of the hosts that it may reach."""

from mrp.runtime.sandbox.allowlist import PROXY_PORT, parse_allowed, proxy_env, through_proxy
from mrp.runtime.sandbox.doorway import Door, to_endpoint
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.specs.work import MODEL_PORT, Process, model_env


def doors_of(process: Process, endpoint: Endpoint | None) -> list[Door]:
    """Raises InfraError for an allowlist that is not clear."""
    doors = []
    if endpoint is not None:
        doors.append(Door(MODEL_PORT, to_endpoint(endpoint), model_env))
    if isinstance(process.box.network, tuple):
        doors.append(Door(PROXY_PORT, through_proxy(parse_allowed(process.box.network)), proxy_env))
    return doors
