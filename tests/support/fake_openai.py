"""A server of OpenAI's API for tests: it counts what it is asked, answers by what it was asked, and fails on demand.

The answer to the n-th request of a conversation names the text of its last message and n, so that an answer that was
asked for anew is told from one that was kept.
"""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class FakeOpenAI:
    """What the server was asked (`requests`, `keys`) and how it is to fail (`failures`, one for each next request).

    A failure is (status, headers) or "cut", for an answer that breaks off in the middle. `before` is called with a
    request's number before it is answered, and may wait. `most_at_once`: how many requests were being answered at a
    time at most.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.failures: list[Any] = []
        self.before: Callable[[int], object] = lambda number: None
        self.seeded = False
        self.url = ""
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.requests)

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def noted(self, request: dict[str, Any], key: str) -> tuple[int, Any]:
        """Note a request; gives its number and how it is to fail."""
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self.times.append(time.monotonic())
            return len(self.requests), self.failures.pop(0) if self.failures else None


def in_pairs() -> Callable[[int], object]:
    """For `before`: no request is answered until another one is there to be answered with it."""
    pair = threading.Barrier(2, timeout=60)
    return lambda number: pair.wait()


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    """A server under `url`, until the end of the block."""
    fake = FakeOpenAI()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.busy():
                number, failure = fake.noted({**body, "path": self.path}, self.headers.get("Authorization", ""))
                fake.before(number)
                if not isinstance(body.get("messages", []), list):
                    failure = (400, {})
                if isinstance(failure, tuple):
                    self._send(failure[0], {"error": {"message": "as asked", "code": "asked"}}, failure[1])
                else:
                    self._answer(body, number, cut=failure == "cut")

        def _answer(self, body: dict[str, Any], number: int, *, cut: bool) -> None:
            last = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            word = body.get("seed") if fake.seeded else number
            text = f"answer {word} to {last}" + (f" {self.headers['Authorization']}" if last == "key?" else "")
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            head = {"id": f"id-{number}", "created": 1, "model": body["model"], "system_fingerprint": "fp"}
            chat = "messages" in body
            if not body.get("stream"):
                choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
                choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                if body.get("logprobs"):
                    choice["logprobs"] = {"content": [{"token": "answer", "logprob": -0.25, "top_logprobs": []}]}
                answer = {**head, "object": "chat.completion" if chat else "text_completion"}
                self._send(200, {**answer, "choices": [choice] * body.get("n", 1), "usage": usage}, {}, cut=cut)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            words = text.split(" ")
            for place, word in enumerate(words):
                delta = {"content": word if place == 0 else f" {word}"}
                self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                if cut and place == 1:
                    return
            self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if (body.get("stream_options") or {}).get("include_usage"):
                self._event({**head, "choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, chunk: Any) -> None:
            self.wfile.write(f"data: {json.dumps({'object': 'chat.completion.chunk', **chunk})}\n\n".encode())

        def _send(self, status: int, value: Any, headers: dict[str, str], cut: bool = False) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
