"""The OCI distribution protocol: images come by digest, every byte checked, and go with only what is missing there.

A reference is `name@sha256:...`; a name without a host is Docker Hub's. Plain http is spoken to loopback only, unless
it is asked for.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mrp.cache.store import Store
from mrp.rules.image import PullImage
from mrp.runtime.images.members import open_zstd
from mrp.runtime.images.oci import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Blob,
    config_bytes,
    manifest_bytes,
    oci_layers,
    write_layer,
)
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.images.unpacked import UnpackedImage, unpack_image
from mrp.specs.errors import BuildFailed, InfraError, UsageError

if TYPE_CHECKING:
    import httpx

_HUB, _HUB_HOST, _HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPT = ", ".join((MANIFEST, INDEX, _DOCKER_MANIFEST, _DOCKER_LIST))
_READ = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
_MAX_DOCUMENT = 16 * 2**20
_CHUNK = 2**20
_TIMEOUT = 60.0
_TRY_LATER = (408, 425, 429)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_REFERENCE = re.compile(r"(?P<name>[^\s@]+?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?\Z")
_LOOPBACK = re.compile(r"(localhost|127(\.[0-9]+){3}|\[::1\])(:[0-9]+)?\Z")

Credentials = tuple[str, str]
"""User and password."""


@dataclass(frozen=True)
class Repository:
    """Where images are: the registry's host as written, and the path of the repository there."""

    host: str
    path: str

    @property
    def is_loopback(self) -> bool:
        return _LOOPBACK.match(self.host) is not None

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


def parse_name(name: str) -> Repository:
    """The repository of an image's name: its first word is a host when it looks like one, else Docker Hub is meant."""
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        return Repository(first, rest)
    return Repository(_HUB, name if "/" in name else f"library/{name}")


def pull_image(work: PullImage, store: Store) -> UnpackedImage:
    """The image with this digest, or the one for its platform in the index with this digest, as trees.

    Raises BuildFailed for content that is not what was pinned, InfraError when it cannot be had.
    """
    repository = parse_name(work.name)
    shown = f"{work.name}@{work.digest}"
    with _Registry.open(repository) as registry, tempfile.TemporaryDirectory(prefix="mrp-pull-") as folder:
        manifest = _document(registry.manifest(work.digest), shown)
        if manifest.get("manifests") is not None:
            digest = _for_platform(manifest["manifests"], work.platform, shown)
            manifest = _document(registry.manifest(digest), shown)
        wanted = _listed(manifest, shown)
        files = [Path(folder, str(number)) for number in range(len(wanted))]
        for file, blob in zip(files, wanted, strict=True):
            registry.fetch(f"sha256:{blob.sha256}", blob.size, file)
        openers: list[Callable[[], IO[bytes]]] = [
            partial(_open_layer, file, blob.media) for file, blob in zip(files[1:], wanted[1:], strict=True)
        ]
        return unpack_image(files[0].read_bytes(), openers, shown, store)


def push_image(
    image: PortableImage,
    store: Store,
    reference: str,
    *,
    insecure: bool = False,
    credentials: Credentials | None = None,
) -> str:
    """Bring an image to `host/name[:tag]`; gives `host/name@sha256:...`. Raises UsageError and InfraError.

    Its layers are packed with gzip, the same way each time.
    """
    parsed = _REFERENCE.match(reference)
    if parsed is None:
        raise UsageError(f"{reference!r} is no name of an image; write it like registry.example.org/team/image:1")
    repository = parse_name(parsed["name"])
    with _Registry.open(repository, push=True, insecure=insecure, credentials=credentials) as registry:
        layers, diff_ids = [], []
        for tree in oci_layers(image, store):
            with tempfile.TemporaryFile(prefix="mrp-push-") as file:
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    diff_id, _ = write_layer(tree, store, packed)
                size = file.tell()
                file.seek(0)
                layers.append(Blob(f"{LAYER}+gzip", hashlib.file_digest(file, "sha256").hexdigest(), size))
                diff_ids.append(diff_id)
                registry.upload(layers[-1], file)
        config = config_bytes(image, diff_ids)
        with tempfile.TemporaryFile() as file:
            file.write(config)
            registry.upload(Blob(CONFIG, hashlib.sha256(config).hexdigest(), len(config)), file)
        manifest = manifest_bytes(config, layers)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        registry.put_manifest(digest, manifest)
        if parsed["tag"] is not None:
            registry.put_manifest(parsed["tag"], manifest)
    return f"{parsed['name']}@{digest}"


# -- manifests ---------------------------------------------------------------------------------------------------


def _document(data: bytes, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BuildFailed(f"the manifest of {shown} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise BuildFailed(f"the manifest of {shown} is of a kind that is not known here; push the image anew")
    return document


def _for_platform(manifests: Any, platform: str, shown: str) -> str:
    system, _, architecture = platform.partition("/")
    try:
        for entry in manifests:
            described = entry.get("platform") or {}
            if described.get("os") == system and described.get("architecture") == architecture:
                return f"sha256:{_sha256_of(entry)}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BuildFailed(f"{shown} is no index of images that can be read: {error!r}") from None
    raise BuildFailed(f"{shown} has no image for {platform}; take another one")


def _listed(manifest: Mapping[str, Any], shown: str) -> list[Blob]:
    """The configuration and the layers that a manifest names."""
    try:
        listed = [manifest["config"], *manifest["layers"]]
        return [Blob(str(one.get("mediaType", "")), _sha256_of(one), int(one["size"])) for one in listed]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BuildFailed(f"{shown} is no image, its manifest cannot be read: {error!r}") from None


def _sha256_of(descriptor: Mapping[str, Any]) -> str:
    found = _DIGEST.match(descriptor["digest"])
    if found is None:
        raise ValueError(f"{descriptor['digest']!r} is no sha256")
    return found[1]


def _open_layer(file: Path, media: str) -> IO[bytes]:
    stream = file.open("rb")
    return open_zstd(stream, "a layer") if media.endswith("zstd") else stream


# -- the protocol ------------------------------------------------------------------------------------------------


class _Registry:
    """One repository of a registry, over one connection pool."""

    def __init__(self, client: "httpx.Client", repository: Repository, actions: str, login: Credentials | None) -> None:
        self._client, self._repository, self._login = client, repository, login
        self._scope = f"repository:{repository.path}:{actions}"
        self._authorization: str | None = None

    @classmethod
    @contextmanager
    def open(
        cls,
        repository: Repository,
        *,
        push: bool = False,
        insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> "Iterator[_Registry]":
        try:
            import httpx
        except ImportError:
            raise InfraError(
                "images of a registry need httpx; `pip install 'mrp-build[images]'` brings it", retryable=False
            ) from None
        plain = insecure or repository.is_loopback
        host = _HUB_HOST if repository.host == _HUB else repository.host
        client = httpx.Client(
            base_url=f"{'http' if plain else 'https'}://{host}/v2/{repository.path}/",
            follow_redirects=True,
            timeout=_TIMEOUT,
            trust_env=not repository.is_loopback,
            headers={"User-Agent": "mrp"},
        )
        with client:
            login = credentials if credentials is not None else _saved_login(repository.host)
            yield cls(client, repository, "pull,push" if push else "pull", login)

    def manifest(self, digest: str) -> bytes:
        """A manifest by digest, checked."""
        data = io.BytesIO()
        self._fetch(f"manifests/{digest}", digest, _MAX_DOCUMENT, data)
        return data.getvalue()

    def fetch(self, digest: str, size: int, file: Path) -> None:
        """Write a blob of `size` bytes to a file, checked."""
        with file.open("wb") as out:
            self._fetch(f"blobs/{digest}", digest, size, out)

    def _fetch(self, path: str, digest: str, most: int, out: IO[bytes]) -> None:
        import httpx

        hasher, size = hashlib.sha256(), 0
        try:
            with self._reading(path) as answer:
                self._expect(answer, path)
                for chunk in answer.iter_raw(_CHUNK):
                    size += len(chunk)
                    if size > most:
                        raise BuildFailed(f"{self._repository} gives more than {most} bytes for {digest}")
                    hasher.update(chunk)
                    out.write(chunk)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if digest != f"sha256:{hasher.hexdigest()}":
            raise BuildFailed(
                f"{self._repository} gave sha256:{hasher.hexdigest()} for {digest}; trust it no more, or ask again"
            )

    @contextmanager
    def _reading(self, path: str) -> "Iterator[httpx.Response]":
        """An answer whose content is still to be read, begun anew once with the authorization that is asked for."""
        with self._client.stream("GET", path, headers=self._headers(_READ)) as answer:
            if answer.status_code != 401:
                yield answer
                return
            self._authorization = self._authorize(answer.headers.get("WWW-Authenticate", ""))
        with self._client.stream("GET", path, headers=self._headers(_READ)) as answer:
            yield answer

    def upload(self, blob: Blob, file: IO[bytes]) -> None:
        """Bring a blob there, unless it is there."""
        digest = f"sha256:{blob.sha256}"
        if self._ask("HEAD", f"blobs/{digest}", missing=True).status_code == 200:
            return
        begun = self._ask("POST", "blobs/uploads/")
        location = begun.url.join(begun.headers.get("Location", ""))
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}

        def content() -> Iterator[bytes]:
            file.seek(0)
            return iter(lambda: file.read(_CHUNK), b"")

        self._ask("PUT", str(location.copy_merge_params({"digest": digest})), headers=headers, content=content)

    def put_manifest(self, name: str, data: bytes) -> None:
        """Store a manifest under its digest or a tag."""
        self._ask("PUT", f"manifests/{name}", headers={"Content-Type": MANIFEST}, content=data)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: "bytes | Callable[[], Iterator[bytes]] | None" = None,
        missing: bool = False,
    ) -> "httpx.Response":
        """One request, repeated once with the authorization that the registry asks for."""
        import httpx

        def send() -> httpx.Response:
            data = content() if callable(content) else content
            return self._client.request(method, path, headers=self._headers(headers or {}, path), content=data)

        try:
            answer = send()
            if answer.status_code == 401:
                self._authorization = self._authorize(answer.headers.get("WWW-Authenticate", ""))
                answer = send()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        if not (missing and answer.status_code == 404):
            self._expect(answer, path)
        return answer

    def _headers(self, headers: Mapping[str, str], path: str = "") -> dict[str, str]:
        """With the authorization, which is for the registry's own host alone."""
        import httpx

        here, there = self._client.base_url, self._client.base_url.join(httpx.URL(path))
        known = self._authorization is not None and (here.scheme, here.netloc) == (there.scheme, there.netloc)
        return {**headers, **({"Authorization": str(self._authorization)} if known else {})}

    def _authorize(self, challenge: str) -> str:
        """The Authorization header that answers a registry's challenge."""
        kind, _, rest = challenge.partition(" ")
        basic = None
        if self._login is not None:
            basic = "Basic " + base64.b64encode(":".join(self._login).encode()).decode()
        if kind.lower() == "basic" and basic is not None:
            return basic
        asked = dict(_CHALLENGE.findall(rest))
        if kind.lower() != "bearer" or "realm" not in asked:
            raise InfraError(
                f"{self._repository.host} wants to know who asks; `docker login {self._repository.host}` saves that",
                retryable=False,
            )
        if basic is not None and not asked["realm"].startswith("https://") and self._client.base_url.scheme == "https":
            raise InfraError(
                f"{self._repository.host} wants the password sent unencrypted; use another", retryable=False
            )
        query = {"scope": self._scope, **({"service": asked["service"]} if "service" in asked else {})}
        answer = self._client.get(asked["realm"], params=query, headers={"Authorization": basic} if basic else {})
        self._expect(answer, "its tokens")
        try:
            document = answer.json()
            return f"Bearer {document.get('token') or document['access_token']}"
        except (ValueError, KeyError, AttributeError) as error:
            raise InfraError(f"{self._repository.host} gives no token that can be read: {error!r}") from None

    def _expect(self, answer: "httpx.Response", path: str) -> None:
        if answer.is_success:
            return
        status = answer.status_code
        hint = {401: f"; `docker login {self._repository.host}` saves a password", 404: "; see that it is there"}
        raise InfraError(
            f"{self._repository} answered {status} for {path.partition('?')[0]}{hint.get(status, '')}",
            retryable=status >= 500 or status in _TRY_LATER,
        )

    def _unreachable(self, error: Exception) -> InfraError:
        return InfraError(f"{self._repository} cannot be reached: {error or type(error).__name__}")


def _saved_login(host: str) -> Credentials | None:
    """What `docker login` has saved for a registry, in its file or with its helper."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        config: dict[str, Any] = json.loads(Path(folder, "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    key = _HUB_KEY if host == _HUB else host
    helper = (config.get("credHelpers") or {}).get(key) or config.get("credsStore")
    if helper:
        with suppress(OSError, ValueError, KeyError):
            argv = [f"docker-credential-{helper}", "get"]
            done = subprocess.run(argv, input=key, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found = json.loads(done.stdout)
                return found["Username"], found["Secret"]
    entry = (config.get("auths") or {}).get(key) or {}
    with suppress(ValueError, TypeError):
        user, separator, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
        if separator:
            return user, password
    return None
