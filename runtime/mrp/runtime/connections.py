"""Downloads over connections that stay open: each thread looks a host up once, and not again for each of its files."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

_GONE = (ConnectionError, http.client.BadStatusLine)
"""What a connection answers that the other side has left since."""

_MOST_IDLE = 10.0
"""Seconds after which a connection may be gone without a word, so that asking over it would wait in vain."""

_kept = threading.local()


@contextmanager
def opened(request: Request, timeout: float) -> Iterator[Any]:
    """The answer to a request; once it is read to its end, the connection is there for the next. Raises as urlopen."""
    with _opener.open(request, timeout=timeout) as answer:
        yield answer
        if (connection := getattr(answer, "connection", None)) is not None and answer.isclosed():
            _kept.__dict__[answer.connection_key] = connection, time.monotonic()


class _Keeping(HTTPSHandler, HTTPHandler):
    """Asks over the connection that was kept, or else a new one. What goes through a proxy's tunnel is not kept."""

    def do_open(self, http_class: Any, req: Request, **more: Any) -> Any:
        if getattr(req, "_tunnel_host", None):
            return super().do_open(http_class, req, **more)
        key = f"{req.type}://{req.host}"
        kept, since = _kept.__dict__.pop(key, (None, 0.0))
        if kept is not None and time.monotonic() - since < _MOST_IDLE:
            with suppress(*_GONE):
                return _ask(kept, req, key)
        return _ask(http_class(req.host, timeout=req.timeout, **more), req, key)


def _ask(connection: http.client.HTTPConnection, request: Request, key: str) -> Any:
    try:
        connection.request("GET", request.selector, headers={**request.headers, **request.unredirected_hdrs})
        answer: Any = connection.getresponse()
    except BaseException:
        connection.close()
        raise
    answer.url, answer.msg = request.full_url, answer.reason
    answer.connection, answer.connection_key = connection, key
    return answer


_opener = build_opener(_Keeping)
