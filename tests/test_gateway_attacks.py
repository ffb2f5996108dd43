"""The model gateway between an agent and a server of which neither means well."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from support.fake_openai import FakeOpenAI, fake_openai, in_pairs
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
                    # All of it: closed with something unread, a connection takes its answer along.
                    with connection.makefile("rb") as request:
                        head = b"".join(iter(request.readline, b"\r\n"))
                        request.read(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
                    heads.append(head)
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
    "no choice": (http({"choices": []}), False),
    "a choice that is none": (http({"choices": ["a"]}), False),
    "an index that is none": (events({"choices": [{"index": [], "delta": {}}]}), True),
    "packed twice": (http(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip, gzip\r\n\r\n", 1), False),
    "shorter than it says": (http(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Length: 900\r\n\r\n", 1), False),
    "longer than it says": (http(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n", 1), False),
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


def test_a_stream_is_cut_when_one_of_its_choices_never_began(tmp_path: Path) -> None:
    one, both = (piece(0), piece(0, "stop")), (piece(0), piece(1), piece(1, "stop"), piece(0, "stop"))
    with upstream(events(*one), events(*both)) as (address, heads), bench(tmp_path) as place:
        with place.trial(use_of(address)) as (url, _):
            assert ask(url, stream=True, n=2) == "xxxx"
        assert (len(heads), place.calls()) == (2, 1)


def test_tools_and_characters_that_are_split_over_chunks_and_packets_come_whole(tmp_path: Path) -> None:
    def call(part: str) -> Any:
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": part}}
        return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}

    said = [call('{"wher'), call('e": "\N{SNOWMAN}"}'), piece(finish="tool_calls", text="\N{GRINNING FACE}")]
    data = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in said)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    bytewise = head + b"".join(b"1\r\n%c\r\n" % byte for byte in data + DONE) + b"0\r\n\r\n"
    with upstream(bytewise) as (address, _), bench(tmp_path) as place, place.trial(use_of(address)) as (url, _):
        client = openai.OpenAI(base_url=url, api_key="mrp", max_retries=0)
        chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
    assert "".join(call.arguments for call in calls if call and call.arguments) == '{"where": "\N{SNOWMAN}"}'
    assert deltas[-1].content == "\N{GRINNING FACE}"


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
        connection.settimeout(120)
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
    "a length of far too much": (b"POST / HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % (b"9" * 5000), b" 413 ", False),
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
    fake.before = in_pairs()
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        body = json.dumps({"messages": HELLO, "user": "x" * 200}).encode()
        chunked = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda data: say(session.endpoint, data), [post(body), chunked] * 3))
    assert all(b" 200 " in answer for answer in answers)
    assert fake.most_at_once == 2


def test_a_budget_is_not_overdrawn_by_sixteen_trials_at_once(tmp_path: Path, fake: FakeOpenAI) -> None:
    use = use_of(fake.url, price={"output": Decimal(100_000)})
    with bench(tmp_path, usd=Decimal(4)) as place:

        def one(number: int) -> bool:
            with place.trial(use, f"trial {number}") as (url, _), suppress(openai.PermissionDeniedError):
                return bool(ask(url, max_tokens=5))
            return False

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(one, range(16))) == 8
        assert fake.count == 8
        assert (place.account.spent_usd, place.account.reserved_usd) == (4, 0)


@pytest.mark.parametrize(
    "asked_for",
    [
        {"prompt": ["a"] * 9, "max_tokens": 5},
        {"max_tokens": 5, "n": 9},
        {"max_tokens": 5, "best_of": 9},
        {"max_completion_tokens": 5, "max_tokens": 45},
        {"max_tokens": "45"},
        {"max_tokens": 45.0},
        {"max_tokens": 10**400},
        {},
    ],
)
def test_whatever_a_request_may_cost_is_reserved(tmp_path: Path, fake: FakeOpenAI, asked_for: dict[str, Any]) -> None:
    price = {"output": Decimal(100_000)}
    with bench(tmp_path, usd=Decimal(4)) as place, place.trial(use_of(fake.url, price=price)) as (url, _):
        client = openai.OpenAI(base_url=url, api_key="mrp", max_retries=0)
        with pytest.raises(openai.PermissionDeniedError, match="budget"):
            client.completions.create(model="m", prompt="a", extra_body=asked_for)
    assert fake.count == 0


def test_what_one_agent_asks_for_does_not_use_up_the_rate_of_the_others(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(400, {})]
    with bench(tmp_path) as place, place.trial(use_of(fake.url, tokens_per_minute=100_000)) as (url, session):
        with pytest.raises(openai.BadRequestError):
            ask(url, max_tokens=10**12)
        assert ask(url) == "answer 2 to hello"
        assert session.conclude(ended_well()), "nothing had to wait"


def test_calls_that_wait_when_their_trial_ends_are_not_made(tmp_path: Path, fake: FakeOpenAI) -> None:
    go = threading.Event()
    fake.before = lambda number: go.wait(60)
    with bench(tmp_path, tokens=10**6) as place:
        use = use_of(fake.url, max_concurrency=1)
        with ThreadPoolExecutor(4) as pool, place.gateway.session(trial_action(), use) as session:
            for number in range(4):
                body = json.dumps({"messages": HELLO, "max_tokens": 5, "seed": number}).encode()
                pool.submit(say, session.endpoint, post(body))
            until(lambda: place.account.reserved_tokens > 3 * 100 and fake.count)
            all_four = place.account.reserved_tokens
        until(lambda: place.account.reserved_tokens < all_four / 3)
        go.set()
        until(lambda: not place.account.reserved_tokens)
    assert fake.count == 1


def test_what_a_failed_attempt_still_asks_is_not_asked_twice(tmp_path: Path, fake: FakeOpenAI) -> None:
    go = threading.Event()
    fake.before = lambda number: go.wait(60)
    use, body = use_of(fake.url, price={"output": Decimal(100_000)}), post(json.dumps({"messages": HELLO}).encode())
    with bench(tmp_path) as place, ThreadPoolExecutor(2) as pool:
        with place.gateway.session(trial_action(), use) as failed:
            pool.submit(say, failed.endpoint, body)
            until(lambda: fake.count)
        with place.gateway.session(trial_action(), use) as session:
            again = pool.submit(say, session.endpoint, body)
            time.sleep(0.3)
            go.set()
            assert b"answer 1 to hello" in again.result()
        assert (fake.count, place.account.spent_usd) == (1, Decimal("0.5"))


def test_clients_that_leave_keep_their_places_until_their_calls_have_ended(
    tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 2)
    monkeypatch.setattr(server, "_ALIVE_SECONDS", 0.01)
    go = threading.Event()
    fake.before = lambda number: go.wait(60)
    body = json.dumps({"messages": HELLO, "stream": True}).encode()
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        for number in range(2):
            with connected(session.endpoint) as leaving:
                leaving.sendall(post(body))
                until(lambda count=number + 1: fake.count == count)
        time.sleep(0.2)
        assert say(session.endpoint, post(body), finish=False) == b""
        go.set()
        until(lambda: b" 200 " in say(session.endpoint, post(BODY)))
    assert fake.count == 3


def test_a_client_of_older_http_gets_a_stream_without_frames(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        body = json.dumps({"messages": HELLO, "stream": True}).encode()
        head, _, said = say(session.endpoint, post(body).replace(b"HTTP/1.1", b"HTTP/1.0"), finish=False).partition(
            b"\r\n\r\n"
        )
    assert b"chunked" not in head
    assert said.startswith(b"data: {") and said.endswith(DONE)


def test_a_key_that_no_header_can_hold_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-very-secret\n")
    with (
        bench(tmp_path) as place,
        place.trial(use_of("http://127.0.0.1:1/v1", secret="UPSTREAM_KEY")) as (url, session),
    ):
        with pytest.raises(openai.InternalServerError) as told:
            ask(url)
        with pytest.raises(InfraError, match="the secret UPSTREAM_KEY holds a line end") as raised:
            session.conclude(ended_well())
    assert "sk-very" not in f"{told.value}{raised.value}"


def until(true: Callable[[], object]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


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
