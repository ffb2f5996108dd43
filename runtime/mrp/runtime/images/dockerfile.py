"""Dockerfiles: built by a Docker engine from a normalised context, without network, and taken back as trees."""

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from typing import IO, Any

from mrp.cache.store import Store
from mrp.rules.image import BuildDockerfile
from mrp.runtime.images.oci import write_layer
from mrp.runtime.images.unpacked import UnpackedImage, unpack_image
from mrp.specs.errors import BuildFailed, InfraError

_TIMEOUT = 3600
_START = "start one, or set DOCKER_HOST to where it listens"


def build_dockerfile(work: BuildDockerfile, store: Store) -> UnpackedImage:
    """Build, take the image's layers back, and remove it from the engine.

    Raises BuildFailed when the Dockerfile is at fault, InfraError when there is no engine or it fails.
    """
    import requests

    client = docker_client()
    try:
        with contextlib.closing(client), tempfile.TemporaryFile(prefix="mrp-context-") as context:
            write_layer(work.context, store, context)
            context.seek(0)
            identity = _build(client, context, work)
            try:
                return _saved(client, identity, store)
            finally:
                _remove(client, identity)
    except requests.exceptions.RequestException as error:
        raise InfraError(f"the Docker engine does not answer: {error}") from None


def docker_client() -> Any:
    """A client of the machine's Docker engine, which answered. Raises InfraError with the next step."""
    try:
        import docker
    except ImportError:
        raise InfraError(
            "Dockerfiles and `mrp image load` need Docker's package; `pip install 'mrp-build[docker]'` brings it",
            retryable=False,
        ) from None
    try:
        client = docker.from_env(timeout=_TIMEOUT)
        client.ping()
    except Exception as error:
        raise InfraError(f"no Docker engine answers ({error}); {_START}", retryable=False) from None
    return client


def _build(client: Any, context: IO[bytes], work: BuildDockerfile) -> str:
    import docker

    try:
        messages = client.api.build(
            fileobj=context,
            custom_context=True,
            dockerfile=work.dockerfile,
            network_mode="none",
            platform=work.platform,
            nocache=True,
            rm=True,
            forcerm=True,
            decode=True,
        )
        return _identity(messages)
    except docker.errors.APIError as error:
        if error.is_client_error():
            raise BuildFailed(f"Docker refuses the Dockerfile: {error.explanation}") from None
        raise InfraError(f"the Docker engine failed: {error.explanation}") from None


def _remove(client: Any, identity: str) -> None:
    """A Dockerfile of nothing but FROM makes the base itself, which has a name and stays."""
    described = client.api.inspect_image(identity)
    if not described.get("RepoTags") and not described.get("RepoDigests"):
        client.api.remove_image(identity, force=True)


def _identity(messages: Iterable[dict[str, Any]]) -> str:
    """The id of the image that was built; an error while a base is pulled is the machine's, any other the file's."""
    step, identity, said = "", None, ""
    for message in messages:
        text = str(message.get("stream", ""))
        if text.startswith("Step "):
            step = text.partition(" : ")[2].strip()
        elif text.strip():
            said = text.strip()
        if "error" in message:
            reason = str(message["error"]).strip()
            if step.upper().startswith("FROM "):
                raise InfraError(f"the Docker engine cannot bring `{step}`: {reason}")
            raise BuildFailed(f"`{step}` failed: {reason}" + (f" ({said})" if said and said not in reason else ""))
        identity = (message.get("aux") or {}).get("ID", identity)
    if identity is None:
        raise InfraError("the Docker engine built an image and did not say which; build again")
    return str(identity)


def _saved(client: Any, identity: str, store: Store) -> UnpackedImage:
    with tempfile.TemporaryFile(prefix="mrp-saved-") as file:
        for chunk in client.api.get_image(identity):
            file.write(chunk)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            (listed,) = json.loads(_member(archive, "manifest.json").read())
            layers: list[Callable[[], IO[bytes]]] = [partial(_member, archive, name) for name in listed["Layers"]]
            return unpack_image(_member(archive, listed["Config"]).read(), layers, "the Dockerfile's image", store)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    content = archive.extractfile(name)
    return content if content is not None else io.BytesIO()


def load_archive(archive: IO[bytes]) -> list[str]:
    """Give an archive to the Docker engine, as `docker load` does; the ids of its images. Raises InfraError."""
    import docker
    import requests

    client = docker_client()
    try:
        with contextlib.closing(client):
            return [str(image.id) for image in client.images.load(archive)]
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise InfraError(f"the Docker engine does not take the image: {error}") from None
