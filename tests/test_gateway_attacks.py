"""The model gateway between an agent and a server of which neither means well."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from support.fake_openai import FakeOpenAI, fake_openai
from support.model_bench import bench, connected, ended_well, trial_action, use_of

from mrp.runtime.models import limits, server
from mrp.runtime.models import openai as asked
from mrp.runtime.models.openai import retry_after
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.specs.errors import InfraError

HELLO: Any = [{"role": "user", "content": "hello"}]
GOOD = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "good"}, "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_FIRST_WAIT", 0.001)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as server:
        yield server


@contextmanager
def upstream(*answers: bytes, endless: bytes = b"") -> Iterator[tuple[str, list[bytes]]]:
    """A server that says these bytes to one connection each, the last one again and again, `endless` without end."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    data = connection.recv(1 << 20)
                    heads.append(data)
                    connection.sendall(answers[min(len(heads), len(answers)) - 1])
                    while endless:
                        connection.sendall(endless)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def http(body: bytes | Any, kind: str = "application/json", status: str = "200 OK") -> bytes:
    """An answer whose end is the connection's."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + data


def events(*chunks: Any, end: bytes = b"") -> bytes:
    return http(b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + end, "text/event-stream")


def piece(index: int = 0, finish: str | None = None, text: str = "x") -> Any:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


def ask(url: str, **more: Any) -> Any:
    client = openai.OpenAI(base_url=url, api_key="mrp", max_retries=0)
    answer: Any = client.chat.completions.create(model="m", messages=HELLO, **more)
    if more.get("stream"):
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    return answer.choices[0].message.content


DONE = b"data: [DONE]\n\n"
BROKEN = {
    "garbage": (http(b"<html>no model</html>"), False),
    "error with 200": (http({"error": {"message": "overloaded"}}), False),
    "choices that are none": (events({"choices": ["a"]}, end=DONE), True),
    "half an event": (events(piece(), end=b'data: {"choi'), True),
    "nothing but the end": (events(end=DONE), True),
    "one of two choices": (events(piece(0), piece(1), piece(0, "stop")), True),
    "error in a stream": (events(piece(), {"error": {"message": "died"}}, end=DONE), True),
    "moved": (http(b"", status="302 Found"), False),
    "gzip that is none": (http(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1), False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_never_kept_and_never_the_agents_failure(tmp_path: Path, name: str) -> None:
    said, streams = BROKEN[name]
    with upstream(said) as (address, _), bench(tmp_path) as place:
        with place.trial(use_of(address)) as (url, session):
            with pytest.raises(openai.InternalServerError):
                ask(url, **({"stream": True} if streams else {}))
            with pytest.raises(InfraError):
                session.conclude(ended_well())
        assert place.calls() == 0


def test_whole_streams_are_known_by_their_end(tmp_path: Path) -> None:
    without_done = events(piece(text="a\u2028b"), piece(finish="stop"))
    with upstream(without_done, events(piece(), end=DONE)) as (address, _), bench(tmp_path) as place:
        with place.trial(use_of(address)) as (url, _):
            assert ask(url, stream=True) == "a\u2028bx"
            assert ask(url, stream=True) == "x"
        assert place.calls() == 2


def test_a_stream_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "TRIES", 2)
    endless = b"data: " + json.dumps(piece()).encode() + b"\n\n"
    with (
        upstream(events(piece()), endless=endless * 100) as (address, heads),
        bench(tmp_path) as place,
        place.trial(use_of(address)) as (url, session),
    ):
        with pytest.raises(openai.APIError):
            ask(url, stream=True)
        with pytest.raises(InfraError, match="did not end"):
            session.conclude(ended_well())
    assert len(heads) == 2


def test_what_a_server_counts_cannot_lower_what_was_spent(tmp_path: Path) -> None:
    wrong = {**GOOD, "usage": {"prompt_tokens": -1_000_000, "completion_tokens": 5}}
    with upstream(http(wrong)) as (address, _), bench(tmp_path, tokens=10**6) as place:
        with place.trial(use_of(address)) as (url, _):
            assert ask(url) == "good"
        assert place.account.spent_tokens > 10, "what the request and the answer have is guessed"
        assert place.account.reserved_tokens == 0


def test_tools_and_schemas_reach_the_model_in_the_order_they_are_written(tmp_path: Path, fake: FakeOpenAI) -> None:
    def schema(*names: str) -> Any:
        properties = {name: {"type": "string"} for name in names}
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": properties}}}

    with bench(tmp_path) as place:
        with place.trial(use_of(fake.url)) as (url, _):
            ask(url, response_format=schema("why", "answer"))
        with place.trial(use_of(fake.url)) as (url, _):
            ask(url, response_format=schema("why", "answer"))
            assert fake.count == 1
            ask(url, response_format=schema("answer", "why"))
    orders = [list(each["response_format"]["json_schema"]["schema"]["properties"]) for each in fake.requests]
    assert orders == [["why", "answer"], ["answer", "why"]], "another order is another question"


def test_equal_numbers_are_one_question_whatever_their_spelling(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place:
        for temperature in (b"1", b"1.0", b"1.00", b"1e0"):
            with place.gateway.session(trial_action(), use_of(fake.url)) as session:
                body = b'{"messages":[{"role":"user","content":"h"}],"temperature":%b}' % temperature
                assert b" 200 " in say(session.endpoint, post(body))
    assert fake.count == 1


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def say(endpoint: Endpoint, data: bytes, *, finish: bool = True) -> bytes:
    """All that is answered to these bytes."""
    with connected(endpoint) as connection:
        connection.settimeout(20)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while more := connection.recv(65536):
                answer += more
        return answer


BODY = json.dumps({"messages": HELLO}).encode()
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
ATTACKS = {
    "a chunk of less than nothing": (CHUNKED + b"-1\r\n" + b"x" * 5000, b" 400 ", False),
    "a chunk of too much": (CHUNKED + b"fffffffffffffff\r\n", b" 413 ", False),
    "a chunk that is no number": (CHUNKED + b"1_0\r\n", b" 400 ", False),
    "a length of too much": (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b" 413 ", False),
    "a length that is no number": (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b" 413 ", False),
    "a tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", b" 501 ", False),
    "another address": (post(BODY, path=b"/v1/embeddings"), b" 404 ", True),
    "a whole address": (post(BODY, path=b"http://example.com/v1/files"), b" 404 ", True),
    "a header without end": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b" 431 ", False),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n", b" 431 ", False),
    "no JSON": (post(b"{"), b" 400 ", True),
    "no object": (post(b"[]"), b" 400 ", True),
    "a number that is none": (post(b'{"messages": [], "seed": NaN}'), b" 400 ", True),
    "half a character": (post(b'{"messages": "\\ud800"}'), b" 400 ", True),
    "depth": (post(b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}"), b" 400 ", True),
    "great depth": (post(b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), b" 400 ", True),
    "a body that is cut": (post(BODY)[:-5], b" 400 ", True),
    "options of a stream that are none": (
        post(b'{"messages": [{"content": "a"}], "stream": true, "stream_options": 7}'),
        b" 200 ",
        True,
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_agent_sends_harms_nobody_else(tmp_path: Path, fake: FakeOpenAI, name: str) -> None:
    data, told, finish = ATTACKS[name]
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        answer = say(session.endpoint, data, finish=finish)
        assert told in answer.partition(b"\r\n")[0], answer[:300]
        assert session.conclude(ended_well()), "it is no failure of the infrastructure"
        assert b" 200 " in say(session.endpoint, post(BODY))


def test_requests_on_one_connection_are_answered_in_turn(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        answer = say(session.endpoint, post(BODY) + post(b"{") + post(BODY))
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.count(b"HTTP/1.1 400") == 1
        assert answer.index(b"answer 1") < answer.index(b"not valid JSON") < answer.index(b"answer 2")


def test_large_requests_wait_for_one_another(tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LARGE", 100)
    monkeypatch.setattr(server, "_LARGE_AT_ONCE", 2)
    fake.slow = 0.05
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        body = json.dumps({"messages": HELLO, "user": "x" * 200}).encode()
        chunked = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda data: say(session.endpoint, data), [post(body), chunked] * 3))
    assert all(b" 200 " in answer for answer in answers)
    assert fake.most_at_once == 2


def test_a_budget_is_not_overdrawn_by_sixteen_calls_at_once(tmp_path: Path, fake: FakeOpenAI) -> None:
    price = {"output": Decimal(100_000)}
    with bench(tmp_path, usd=Decimal(4)) as place, place.trial(use_of(fake.url, price=price)) as (url, _):

        def one(number: int) -> bool:
            with suppress(openai.PermissionDeniedError):
                return bool(ask(url, user=str(number), max_tokens=5))
            return False

        with ThreadPoolExecutor(16) as pool:
            assert 0 < sum(pool.map(one, range(16))) <= 8
        assert fake.count == 8
        assert (place.account.spent_usd, place.account.reserved_usd) == (4, 0)


def test_each_prompt_of_a_list_is_reserved_for(tmp_path: Path, fake: FakeOpenAI) -> None:
    price = {"output": Decimal(100_000)}
    with bench(tmp_path, usd=Decimal(4)) as place, place.trial(use_of(fake.url, price=price)) as (url, _):
        client = openai.OpenAI(base_url=url, api_key="mrp", max_retries=0)
        with pytest.raises(openai.PermissionDeniedError, match="budget"):
            client.completions.create(model="m", prompt=["a"] * 9, max_tokens=5)
    assert fake.count == 0


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, float("inf")),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2),
        ({}, None),
    ],
)
def test_whatever_retry_after_says_is_understood(said: dict[str, str], seconds: float | None) -> None:
    assert retry_after(said) == seconds
