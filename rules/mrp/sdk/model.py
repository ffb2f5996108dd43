"""A client of OpenAI's API in the standard library alone, for operators that ask their model."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.client import HTTPResponse
    from typing import Any

_SECONDS = 3600.0


class ModelError(Exception):
    """The gateway or the model declined a call; `code` is "limit" or "budget" when nothing more may be asked."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Answer(dict):  # type: ignore[type-arg]
    """A JSON object whose members are attributes, too: `answer.choices[0].message.content`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)


class Model:
    """An OpenAI-style client: `model.chat.completions.create(messages=[...])`, `model.completions.create(prompt=...)`.

    name: what the model is called. A call gives an Answer; with `stream=True` an iterator of them. Raises ModelError.
    """

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._url = url.rstrip("/")
        self.completions = _Calls(self, "completions")
        self.chat = _Chat(self)

    def ask(self, text: str, **more: Any) -> str:
        """The text that the model answers to one message of the user."""
        answer = self.chat.completions.create(messages=[{"role": "user", "content": text}], **more)
        return str(answer.choices[0].message.content or "")

    def call(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST to a path below the address; gives an Answer, or an iterator of them for a stream."""
        import json
        from http.client import HTTPConnection, HTTPException
        from urllib.parse import urlsplit

        address = urlsplit(self._url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=_SECONDS)
        data = json.dumps({"model": self.name, **body}).encode()
        try:
            connection.request("POST", f"{address.path}/{path}", data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise _error(response.status, response.read())
            if body.get("stream"):
                return _streamed(response, connection)
            return json.loads(response.read(), object_hook=Answer)
        except (OSError, HTTPException) as error:
            raise ModelError(0, None, f"the model cannot be reached: {error}") from error
        finally:
            if not body.get("stream"):
                connection.close()


class _Chat:
    def __init__(self, model: Model) -> None:
        self.completions = _Calls(model, "chat/completions")


class _Calls:
    def __init__(self, model: Model, path: str) -> None:
        self._model, self._path = model, path

    def create(self, **body: Any) -> Any:
        """One call, with the parameters of OpenAI's API; `model` may be left out."""
        return self._model.call(self._path, body)


def _streamed(response: HTTPResponse, connection: Any) -> Iterator[Answer]:
    import json

    try:
        for line in response:
            data = line.strip()
            if not data.startswith(b"data:"):
                continue
            data = data[5:].strip()
            if data == b"[DONE]":
                return
            chunk = json.loads(data, object_hook=Answer)
            if "error" in chunk:
                raise _error(500, data)
            yield chunk
        raise ModelError(0, None, "the answer was cut")
    finally:
        connection.close()


def _error(status: int, data: bytes) -> ModelError:
    import json

    try:
        error = json.loads(data)["error"]
        return ModelError(status, error.get("code"), str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ModelError(status, None, data[:300].decode(errors="replace"))
