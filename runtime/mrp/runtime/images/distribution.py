"""The OCI distribution protocol: one repository of a registry, of which every byte that is read is checked.

Plain http is spoken to loopback only, unless it is asked for.
"""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mrp.runtime.images.oci import INDEX, MANIFEST, Blob
from mrp.specs.errors import BuildFailed, InfraError

if TYPE_CHECKING:
    import httpx

MAX_DOCUMENT = 16 * 2**20
"""Bytes of a manifest, or of an image's configuration: they are read into memory."""

_HUB, _HUB_HOST, _HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_ACCEPT = ", ".join((MANIFEST, INDEX, _DOCKER_MANIFEST, _DOCKER_LIST))
_READ = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
_CHUNK = 2**20
_TIMEOUT = 60.0
_TRY_LATER = (408, 425, 429)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
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
    """The repository of an image's name: its first word is a host when it looks like one, else Docker Hub is meant.

    A tag in it says nothing beside a digest.
    """
    first, _, rest = re.sub(r":[^/:]*\Z", "", name).partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        return Repository(first, rest)
    return Repository(_HUB, name if "/" in name else f"library/{name}")


class Registry:
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
    ) -> "Iterator[Registry]":
        try:
            import httpx
        except ImportError:
            raise InfraError(
                "images of a registry need httpx; `pip install 'mrp-build[images]'` brings it", retryable=False
            ) from None
        plain = insecure or repository.is_loopback
        host = _HUB_HOST if repository.host == _HUB else repository.host

        def refuse_plain(request: httpx.Request) -> None:
            # Also where a registry leads: neither passwords nor what is in images go unencrypted.
            if not plain and request.url.scheme != "https":
                message = f"{repository.host} leads to {request.url.host} without encryption; use another registry"
                raise InfraError(message, retryable=False)

        client = httpx.Client(
            base_url=f"{'http' if plain else 'https'}://{host}/v2/{repository.path}/",
            follow_redirects=True,
            timeout=_TIMEOUT,
            trust_env=not repository.is_loopback,
            headers={"User-Agent": "mrp"},
            event_hooks={"request": [refuse_plain]},
        )
        with client:
            login = credentials if credentials is not None else _saved_login(repository.host)
            yield cls(client, repository, "pull,push" if push else "pull", login)

    def manifest(self, digest: str) -> bytes:
        """A manifest by digest, checked."""
        data = io.BytesIO()
        self._fetch(f"manifests/{digest}", digest, MAX_DOCUMENT, data)
        return data.getvalue()

    def fetch(self, blob: Blob, file: Path) -> None:
        """Write a blob to a file, checked."""
        digest = f"sha256:{blob.sha256}"
        with file.open("wb") as out:
            self._fetch(f"blobs/{digest}", digest, blob.size, out)

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
            sent = self._headers(headers or {}, path)
            # What was read once cannot be sent again to where it leads.
            return self._client.request(method, path, headers=sent, content=data, follow_redirects=content is None)

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
        query = {"scope": self._scope, **({"service": asked["service"]} if "service" in asked else {})}
        answer = self._client.get(asked["realm"], params=query, headers={"Authorization": basic} if basic else {})
        self._expect(answer, "its tokens")
        try:
            document = answer.json()
            return f"Bearer {document.get('token') or document['access_token']}"
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise InfraError(f"{self._repository.host} gives no token that can be read: {error!r}") from None

    def _expect(self, answer: "httpx.Response", path: str) -> None:
        if answer.is_success:
            return
        status = answer.status_code
        login = f"`docker login {self._repository.host}`"
        hint = {
            401: f"; {login} saves a password",
            404: "; see that it is there",
            429: f"; it was asked too often: wait, or let {login} save a password",
        }
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
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if helper := (config.get("credHelpers") or {}).get(key) or config.get("credsStore"):
            argv = [f"docker-credential-{helper}", "get"]
            done = subprocess.run(argv, input=key, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found = json.loads(done.stdout)
                return found["Username"], found["Secret"]
    with suppress(ValueError, TypeError, AttributeError):
        entry = (config.get("auths") or {}).get(key) or {}
        user, separator, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
        if separator:
            return user, password
    return None
