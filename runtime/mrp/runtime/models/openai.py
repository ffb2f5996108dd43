"""Models behind an address: any server that speaks OpenAI's API, asked once for each call."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mrp.cache.canonical import Json, canonical_bytes
from mrp.runtime.models.protocol import Answer, Busy, Call, Refused, request_bytes
from mrp.runtime.models.registry import ModelSettings
from mrp.specs.errors import InfraError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "https://api.openai.com/v1"

_BUSY = (408, 409, 425, 429)
_REFUSED = (400, 413, 415, 422)
"""Statuses that say that the request itself is wrong; another one below 500 says so of the address, the key or name."""

_CONNECT_SECONDS = 20.0
_MOST_BYTES = 256 * 2**20
"""Of one answer, unpacked: more than any model says."""

_SHOWN = 300
_BYTES_A_TOKEN = 4
"""About so many bytes of text are a token, where the server counts none."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class OpenAIModel:
    """See mrp.runtime.models.protocol.Model. The key is sent as a bearer token, and stands in nothing that is kept."""

    def __init__(self, settings: ModelSettings) -> None:
        url = settings.spec.get("url") or DEFAULT_URL
        self._label = settings.label
        self._asked = Upstream(str(url), settings.secret, str(settings.spec.get("secret") or ""))

    def answer(self, call: Call) -> Answer:
        """See mrp.runtime.models.protocol.Model."""
        try:
            return self._asked.answer(call)
        except InfraError as error:
            raise InfraError(f"{self._label}: {error}", retryable=False) from None

    def close(self) -> None:
        """See mrp.runtime.models.protocol.Model."""
        self._asked.close()


class Upstream:
    """One server that speaks OpenAI's API. `url` ends with its version, as in http://127.0.0.1:8000/v1."""

    def __init__(self, url: str, secret: str | None = None, secret_name: str = "") -> None:
        try:
            import httpx
        except ImportError as error:
            message = "servers of models are asked with httpx; `pip install 'mrp-build[models]'` brings it"
            raise InfraError(message, retryable=False) from error

        if secret and not (secret.isascii() and secret.isprintable()):
            # The library's own error would show it.
            message = f"the secret {secret_name} holds a line end, or what else no header can; take that out of it"
            raise InfraError(message, retryable=False)
        self._url = url.rstrip("/")
        self._secret, self._secret_name = secret, secret_name
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        # A proxy of the environment is for what lies outside of this machine.
        outside = urlsplit(self._url).hostname not in ("127.0.0.1", "localhost", "::1")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.Client(headers=headers, limits=limits, trust_env=outside)

    def answer(self, call: Call) -> Answer:
        """The whole answer. Raises Refused, Busy, and InfraError for a wrong address, key or name."""
        import httpx

        streams = bool(call.body.get("stream"))
        asked_usage = _asks_usage(call.body)
        body = dict(call.body)
        if streams and isinstance(body.get("stream_options") or {}, Mapping):
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        timeout = httpx.Timeout(call.timeout, connect=_CONNECT_SECONDS)
        headers = {"Content-Type": "application/json"}
        try:
            with self._client.stream(
                "POST", f"{self._url}/{call.path}", content=request_bytes(body), headers=headers, timeout=timeout
            ) as response:
                pieces = self._pieces(response, monotonic() + call.timeout)
                if response.status_code != 200:
                    raise self._failure(response, b"".join(pieces))
                given = len(request_bytes(body)) // _BYTES_A_TOKEN
                if streams:
                    return _streamed(list(self._chunks(pieces, call.body.get("n"))), asked_usage, given)
                return _plain(self._said(b"".join(pieces)), given)
        except httpx.InvalidURL as error:
            raise InfraError(f"{self._url} is no address: {error}", retryable=False) from None
        except httpx.HTTPError as error:
            raise Busy(self._shown(f"{self._url}: {type(error).__name__}: {error}")) from None

    def close(self) -> None:
        self._client.close()

    def _failure(self, response: "httpx.Response", data: bytes) -> Exception:
        status = response.status_code
        said = self._shown(data.decode(errors="replace"))
        if status in _REFUSED:
            with suppress(Busy):
                return Refused(status, self._parsed(data))
            return Refused(status, {"error": {"message": said, "type": "invalid_request_error", "code": None}})
        if status >= 500 or status in _BUSY:
            return Busy(f"{self._url} answered {status}: {said}", retry_after(response.headers))
        hint = "check its `url`, `model` and `secret`"
        return InfraError(f"{self._url} answered {status}: {said}; {hint}", retryable=False)

    def _pieces(self, response: "httpx.Response", deadline: float) -> Iterator[bytes]:
        """The body as it comes; raises Busy when it does not end."""
        if "," in response.headers.get("content-encoding", ""):
            # Packed twice, a few bytes could fill the memory before they are counted.
            raise Busy(f"{self._url}: the answer is packed more than once")
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > _MOST_BYTES or monotonic() > deadline:
                raise Busy(f"{self._url}: the answer did not end; it had {size} bytes so far")
            yield piece

    def _chunks(self, pieces: Iterator[bytes], choices: Json) -> Iterator[Json]:
        """The data of each event; raises Busy when the stream is cut before its end, or that of so many choices."""
        begun: set[str] = set()
        finished: set[str] = set()
        for data in _events(_lines(pieces)):
            if data == "[DONE]" and begun:
                return
            chunk = self._said(data.encode())
            for choice in _choices(chunk):
                begun.add(str(choice.get("index")))
                if choice.get("finish_reason"):
                    finished.add(str(choice.get("index")))
            yield chunk
        if not begun or begun != finished or (isinstance(choices, int) and len(finished) < choices):
            raise Busy(f"{self._url}: the stream was cut")

    def _said(self, data: bytes) -> dict[str, Json]:
        """A part of an answer; raises Refused or Busy when it is an error, whatever its status was."""
        value = self._parsed(data)
        error = value.get("error")
        if isinstance(error, dict) and error.get("code") in _REFUSED:
            raise Refused(error["code"], {"error": error})
        if error:
            raise Busy(f"{self._url} failed: {self._shown(json.dumps(error, default=str))}")
        return value

    def _parsed(self, data: bytes) -> dict[str, Json]:
        """A JSON object without what could be kept nowhere: the secret, NaN, half characters. Raises Busy."""
        text = data.decode("utf-8", "replace")
        if self._secret:
            text = text.replace(self._secret, f"[secret {self._secret_name}]")
        try:
            value = json.loads(text, parse_float=Decimal, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise Busy(f"{self._url} answered no JSON: {error}") from None
        if not isinstance(value, dict):
            raise Busy(f"{self._url} answered no JSON object")
        return _mended(value) if "\\u" in text else value

    def _shown(self, text: str) -> str:
        if self._secret:
            text = text.replace(self._secret, f"[secret {self._secret_name}]")
        return " ".join(text.split())[:_SHOWN]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from Retry-After (seconds or a date) or retry-after-ms; None without one."""
    with suppress(ValueError):
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
    said = headers.get("retry-after")
    if said is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(said))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time())
    return None


def _plain(body: dict[str, Json], guess: int) -> Answer:
    if not _choices(body):
        raise Busy("the model answered without `choices`")
    given, made = _tokens(body.get("usage"), [body], guess)
    return Answer(body=body, input_tokens=given, output_tokens=made, facts=_facts(body))


def _streamed(chunks: list[Json], asked_usage: bool, guess: int) -> Answer:
    usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)
    given, made = _tokens(usage, chunks, guess)
    if not asked_usage:
        chunks = [
            {name: value for name, value in chunk.items() if name != "usage"}
            for chunk in chunks
            if chunk.get("choices") or not chunk.get("usage")
        ]
    facts = _facts(chunks[0]) if chunks else {}
    return Answer(chunks=tuple(chunks), input_tokens=given, output_tokens=made, facts=facts)


def _asks_usage(body: Mapping[str, Json]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


def _choices(chunk: Mapping[str, Json]) -> list[dict[str, Json]]:
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Busy("the model answered with `choices` that are none")
    return choices


def _tokens(usage: Json, answers: list[Json], guess: int) -> tuple[int, int]:
    """As the server counted them; where it did not, `guess` and each so many bytes of the answer."""
    if isinstance(usage, Mapping):
        given, made = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        if isinstance(given, int) and isinstance(made, int) and given >= 0 and made >= 0:
            return given, made
    return guess, sum(len(canonical_bytes(answer.get("choices"))) for answer in answers) // _BYTES_A_TOKEN


def _facts(body: Mapping[str, Json]) -> dict[str, Json]:
    """What the server says of itself."""
    return {name: body[name] for name in ("model", "system_fingerprint") if body.get(name) is not None}


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Lines end as server-sent events have it: with a line feed, and maybe a carriage return before it."""
    left = bytearray()
    for piece in pieces:
        left += piece
        if b"\n" in piece:
            *whole, left = left.split(b"\n")
            yield from (line.removesuffix(b"\r").decode("utf-8", "replace") for line in whole)
    if left:
        yield left.decode("utf-8", "replace")


def _events(lines: Iterator[str]) -> Iterator[str]:
    """The data of server-sent events; comments and other fields are passed over."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _mended(value: Json) -> Json:
    """The value with U+FFFD for halves of characters, which are no text."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list) else value
