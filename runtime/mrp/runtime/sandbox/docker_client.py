"""Reaching a Docker engine: the SDK's client, and its failures as InfraError."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from mrp.specs.errors import InfraError

_SECONDS, _FIRST_SECONDS = 120, 15
"""What is waited for an answer: an engine that does not say who it is is not waited for like one that works."""

_POOL = 64


def open_client() -> tuple[Any, Decimal]:
    """A docker.APIClient of the engine that DOCKER_HOST names, and its number of cores.

    Raises InfraError when there is no SDK, and what that raises without an engine.
    """
    try:
        import docker
    except ImportError as error:
        raise InfraError(
            "the docker backend needs the Docker SDK; run pip install 'mrp-build[docker]'", retryable=False
        ) from error
    if os.environ.get("DOCKER_HOST", "").startswith("ssh:"):
        raise InfraError(
            "the docker backend does not speak ssh; forward the socket (ssh -NL /tmp/docker.sock:/var/run/docker.sock"
            " HOST) and set DOCKER_HOST=unix:///tmp/docker.sock",
            retryable=False,
        )
    client = docker.APIClient(version="auto", timeout=_FIRST_SECONDS, max_pool_size=_POOL, **_settings())
    cores = Decimal(client.info()["NCPU"])
    client.timeout = _SECONDS
    return client, cores


def brief_client(like: Any, seconds: int) -> Any:
    """One of the caller's own, which waits for no answer longer than `seconds`."""
    import docker

    return docker.APIClient(version=like.api_version, timeout=seconds, **_settings())


def _settings() -> dict[str, Any]:
    import docker

    settings: dict[str, Any] = docker.utils.kwargs_from_env()
    return settings


def unless_gone(remove: Callable[[], object]) -> None:
    """Remove something, which may be gone already."""
    import docker

    try:
        remove()
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        # Somebody else removes it at this moment.
        if error.status_code != 409 or "in progress" not in str(error):
            raise


@contextmanager
def service(what: str) -> Iterator[None]:
    """Failures of the SDK and of the engine, as InfraError."""
    try:
        yield
    except InfraError:
        raise
    except Exception as error:
        raise _failure(what, error) from error


def _failure(what: str, error: Exception) -> Exception:
    import docker
    import requests

    if isinstance(error, docker.errors.APIError):
        reason = str(error.explanation or error).strip()
        # What was wrong with the question is wrong again; but an image may have been removed, and is made anew.
        final = error.status_code == 400 or "device driver" in reason
        return InfraError(f"Docker, {what}, said: {reason}", retryable=not final)
    if isinstance(error, docker.errors.DockerException | requests.RequestException | OSError):
        return _unreached(error)
    return error


def _unreached(error: Exception) -> InfraError:
    import docker

    deepest: BaseException = error
    while (below := deepest.__cause__ or deepest.__context__) is not None:
        deepest = below
    reason = getattr(deepest, "strerror", None) or deepest
    host = os.environ.get("DOCKER_HOST") or docker.constants.DEFAULT_UNIX_SOCKET.replace("http+unix", "unix")
    step = "start it, or set DOCKER_HOST"
    if isinstance(deepest, PermissionError):
        step = "let this user in (mostly by the group `docker`), or set DOCKER_HOST"
    return InfraError(f"Docker cannot be reached at {host} ({reason}); {step}")
