"""The model gateway, asked by stock clients: what is recorded, what is tried again, and what agents are told."""

import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from support.fake_openai import FakeOpenAI, fake_openai, in_pairs
from support.model_bench import bench, connected, ended_well, trial_action, use_of

from mrp.cache.store import Entry, Store
from mrp.runtime.contract.check import examine
from mrp.runtime.contract.model import CHECKS, ModelBench
from mrp.runtime.models import limits, server
from mrp.runtime.models.calls import Calls, Proof
from mrp.runtime.models.limits import TokenRate
from mrp.runtime.models.protocol import Answer, Call, Refused
from mrp.runtime.models.registry import MODELS, ModelSettings
from mrp.runtime.models.scripted import Line, chosen
from mrp.runtime.money import Account, Money, OverBudget
from mrp.sdk.model import Model, ModelError
from mrp.specs.errors import InfraError
from mrp.specs.results import Outcome

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def fake() -> Any:
    with fake_openai() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_FIRST_WAIT", 0.01)


def client(url: str, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="mrp", **more)


def say(url: str, text: str = "hello", **more: Any) -> str:
    answer = client(url).chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": text}], **more)
    return str(answer.choices[0].message.content)


def streamed(url: str, text: str = "hello") -> str:
    stream = client(url).chat.completions.create(
        model="gpt-x", messages=[{"role": "user", "content": text}], stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_the_stock_client_works_unchanged(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url, sampling={"temperature": Decimal("0.7")})) as (url, _):
        assert say(url) == "answer 1 to hello"
        assert streamed(url) == "answer 2 to hello"
        made = client(url).completions.create(model="any", prompt="once", max_tokens=3)
        assert made.choices[0].text == "answer 3 to once"
        assert [model.id for model in client(url).models.list()] == ["tiny"]
        several = client(url).chat.completions.create(
            model="any",
            messages=HELLO,  # type: ignore[arg-type]
            n=2,
            stop=["."],
            seed=7,
            logprobs=True,
            tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
        )
        assert len(several.choices) == 2
        assert several.choices[0].logprobs.content[0].logprob == -0.25  # type: ignore[union-attr, index]
    assert {request["model"] for request in fake.requests} == {"tiny"}
    assert {request["temperature"] for request in fake.requests} == {0.7}
    last = fake.requests[-1]
    assert (last["n"], last["stop"], last["seed"]) == (2, ["."], 7)
    assert last["tools"][0]["function"]["name"] == "look"


def test_what_the_request_says_wins_over_the_declared_sampling(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url, sampling={"temperature": 1, "top_p": 1})) as (url, _):
        say(url, temperature=0)
    assert (fake.requests[0]["temperature"], fake.requests[0]["top_p"]) == (0, 1)


def test_curl_works_unchanged(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        body = json.dumps({"model": "x", "messages": HELLO})
        words = ["curl", "-sS", "-H", "Content-Type: application/json", "-d", body, f"{url}/chat/completions"]
        said = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        assert said["choices"][0]["message"]["content"] == "answer 1 to hello"
        words[-2] = json.dumps({"model": "x", "messages": HELLO, "stream": True})
        lines = subprocess.run(["curl", "-N", *words[1:]], capture_output=True, check=True, text=True).stdout
        assert lines.rstrip().endswith("data: [DONE]")
        chunked = ["curl", "-sS", "-H", "Transfer-Encoding: chunked", "-d", body, f"{url}/chat/completions"]
        said = json.loads(subprocess.run(chunked, capture_output=True, check=True).stdout)
        assert said["choices"][0]["message"]["content"] == "answer 3 to hello"


def test_a_trial_that_runs_again_asks_only_for_the_rest(tmp_path: Path, fake: FakeOpenAI) -> None:
    use = use_of(fake.url)
    with bench(tmp_path) as place, place.trial(use) as (url, _):
        first = [say(url), say(url), streamed(url)]
    with bench(tmp_path) as place:
        with place.trial(use) as (url, session):
            again = [say(url), say(url), streamed(url), say(url, "more")]
            attempt = session.conclude(ended_well())
        assert again[:3] == first
        assert len(set(first)) == 3, "equal requests of one trial are calls of their own"
        assert fake.count == 4
        assert len(attempt.byproducts.calls) == place.calls() == 4
        assert attempt.byproducts.usage.tokens == 60
        assert place.gateway.take_spent(trial_action().key) == (0, 15), "only one call was paid for this time"


def test_an_answer_is_served_again_byte_for_byte(tmp_path: Path, fake: FakeOpenAI) -> None:
    def raw(url: str, **more: Any) -> bytes:
        body = json.dumps({"model": "x", "messages": HELLO, **more})
        return subprocess.run(["curl", "-sS", "-d", body, f"{url}/chat/completions"], capture_output=True).stdout

    use = use_of(fake.url)
    with bench(tmp_path) as place:
        with place.trial(use) as (url, _):
            first = [raw(url), raw(url, stream=True), raw(url, logprobs=True)]
        with place.trial(use) as (url, _):
            assert [raw(url), raw(url, stream=True), raw(url, logprobs=True)] == first
    assert fake.count == 3


def test_two_trials_never_share_an_answer(tmp_path: Path, fake: FakeOpenAI) -> None:
    use = use_of(fake.url)
    with bench(tmp_path) as place, place.trial(use, "a#0") as (one, _), place.trial(use, "a#1") as (other, _):
        assert say(one) != say(other)
    assert fake.count == 2


def test_equal_requests_at_once_are_calls_of_their_own_and_come_again(tmp_path: Path, fake: FakeOpenAI) -> None:
    use, said = use_of(fake.url), []
    with bench(tmp_path) as place:
        for _ in range(2):
            with place.trial(use) as (url, _), ThreadPoolExecutor(8) as pool:
                said.append(sorted(pool.map(lambda number: say(url), range(8))))
        assert place.calls() == 8
    assert said[0] == said[1]
    assert (fake.count, len(set(said[0]))) == (8, 8)


def test_of_two_builds_that_ask_at_once_the_first_answer_stands(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.before = in_pairs()
    use = use_of(fake.url)
    with bench(tmp_path) as one, bench(tmp_path) as other, one.trial(use) as (here, _), other.trial(use) as (there, _):
        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(say, (here, there)))
        assert one.calls() == 1
    assert said[0] == said[1]
    assert fake.count == 2


def test_another_model_or_other_sampling_is_another_call(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place:
        for use in (use_of(fake.url), use_of(fake.url, model="other"), use_of(fake.url, sampling={"top_p": 1})):
            with place.trial(use) as (url, _):
                say(url)
        assert fake.count == 3
        moved = use_of("http://127.0.0.1:1/v1")
        with place.trial(moved) as (url, _):
            say(url)
        assert fake.count == 3, "where a model is says nothing of what it answers"


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "0"}), (500, {}), (503, {"Retry-After": "0"}), "cut"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_model_is_asked_again_and_its_failure_is_never_kept(
    tmp_path: Path, fake: FakeOpenAI, failure: Any, stream: bool
) -> None:
    fake.failures = [failure, failure]
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, session):
        assert (streamed if stream else say)(url) == "answer 3 to hello"
        assert session.conclude(ended_well()).result.outcome is Outcome.OK
        assert place.calls() == 1
    assert fake.count == 3


def test_retry_after_is_honoured_for_every_call_of_the_model(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(429, {"Retry-After": "1"})]
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        say(url, "one")
    assert fake.times[1] - fake.times[0] >= 1


def test_a_model_that_never_answers_is_no_failure_of_the_agent(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(500, {})] * 100
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, session):
        with pytest.raises(openai.APIStatusError) as told:
            say(url)
        assert told.value.status_code == 503
        assert fake.count == limits.TRIES, "the stock client does not try again what the gateway gave up"
        with pytest.raises(openai.APIStatusError):
            say(url, "another")
        assert fake.count == limits.TRIES, "nothing more is asked for a trial that cannot count"
        with pytest.raises(InfraError, match="//:model could not answer"):
            session.conclude(ended_well())
        assert place.calls() == 0


def test_a_wrong_key_is_no_failure_of_the_agent(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(401, {})]
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, session):
        with pytest.raises(openai.APIStatusError):
            say(url)
        assert fake.count == 1
        with pytest.raises(InfraError, match="secret") as raised:
            session.conclude(ended_well())
        assert not raised.value.retryable


def test_a_wrong_request_is_the_agents_own_fault_and_not_kept(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(400, {})]
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, session):
        with pytest.raises(openai.BadRequestError, match="as asked"):
            say(url)
        assert say(url) == "answer 2 to hello"
        assert session.conclude(ended_well()).result.outcome is Outcome.OK
        assert place.calls() == 1


def test_what_the_gateway_does_not_know_is_said_in_the_words_of_the_api(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        with pytest.raises(openai.NotFoundError, match="chat/completions"):
            client(url).embeddings.create(model="x", input="y")
        done = subprocess.run(["curl", "-sS", "-d", "{", f"{url}/chat/completions"], capture_output=True, check=True)
        assert "not valid JSON" in json.loads(done.stdout)["error"]["message"]
    assert fake.count == 0


def test_limits_end_a_trial_whatever_its_agent_does(tmp_path: Path, fake: FakeOpenAI) -> None:
    cases: list[tuple[str, Any, int]] = [("calls", 2, 2), ("tokens", 30, 2), ("tokens", 29, 2), ("usd", Decimal(2), 2)]
    with bench(tmp_path) as place:
        for number, (name, most, upstream) in enumerate(cases):
            before = fake.count
            price = {"output": Decimal(200_000)}
            use = use_of(fake.url, price=price, **{name: most})
            with place.trial(use, f"trial-{number}") as (url, session):
                with pytest.raises(openai.PermissionDeniedError) as told:
                    for _ in range(5):
                        say(url)
                assert told.value.code == "limit"
                attempt = session.conclude(ended_well())
            assert (attempt.result.outcome, attempt.result.limit) == (Outcome.LIMIT, name)
            assert fake.count - before == upstream


def test_a_limit_is_the_same_when_answers_come_from_the_record(tmp_path: Path, fake: FakeOpenAI) -> None:
    use = use_of(fake.url, tokens=20)
    ends = []
    with bench(tmp_path) as place:
        for _ in range(2):
            with place.trial(use) as (url, session):
                say(url)
                with pytest.raises(openai.PermissionDeniedError):
                    say(url)
                ends.append(session.conclude(ended_well()).result)
    assert ends[0] == ends[1]
    assert fake.count == 2


def test_the_budget_is_asked_before_a_call_is_sent(tmp_path: Path, fake: FakeOpenAI) -> None:
    price = {"input": Decimal(0), "output": Decimal(100_000)}
    with bench(tmp_path, usd=Decimal("2")) as place:
        use = use_of(fake.url, price=price)
        with place.trial(use) as (url, session):
            say(url, max_tokens=10)
            assert place.account.spent_usd == Decimal("0.5")
            assert place.account.reserved_usd == 0
            with pytest.raises(openai.PermissionDeniedError) as told:
                say(url, max_tokens=16)
            assert told.value.code == "budget"
            with pytest.raises(OverBudget, match="//:all is 2 usd"):
                session.conclude(ended_well())
    assert fake.count == 1


def test_calls_wait_for_what_others_only_reserved(tmp_path: Path, fake: FakeOpenAI) -> None:
    price = {"output": Decimal(100_000)}
    fake.before = lambda number: time.sleep(0.05)
    with bench(tmp_path, usd=Decimal(3)) as place:
        use = use_of(fake.url, price=price)
        with place.trial(use) as (url, session), ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: say(url, f"q{number}", max_tokens=10), range(4)))
            session.conclude(ended_well())
        assert place.account.spent_usd == 2
    assert fake.count == 4


def test_no_more_calls_at_once_than_the_model_takes(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.before = in_pairs()
    with bench(tmp_path) as place:
        use = use_of(fake.url, max_concurrency=2)
        with place.trial(use) as (url, _), ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: say(url, f"q{number}"), range(6)))
    assert (fake.count, fake.most_at_once) == (6, 2)


def test_the_rate_of_tokens_is_held(tmp_path: Path) -> None:
    rate = TokenRate(600)
    assert rate.take(400, 0.0) == 0
    assert rate.take(400, 0.0) == 20
    assert rate.take(400, 20.0) == 0
    rate.settle(400, 100)
    assert rate.take(300, 20.0) == 0
    assert rate.take(10_000, 20.0) == 60, "more than a minute's worth goes when the bucket is full"
    assert rate.take(10_000, 80.0) == 0
    assert rate.take(10, 80.0) == 1, "and takes no more than that from the others"
    rate.settle(10_000, 900)
    assert rate.take(10, 80.0) == 31, "but for what it really needed"


def test_a_stream_is_kept_alive_until_the_answer_is_there(
    tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ALIVE_SECONDS", 0.02)
    go = threading.Event()
    fake.before = lambda number: go.wait(60)
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        body = json.dumps({"model": "x", "messages": HELLO, "stream": True})
        words = ["curl", "-sSN", "-d", body, f"{url}/chat/completions"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == ": waiting for the model\n"
            go.set()
            assert waiting.stdout.read().endswith("data: [DONE]\n\n")
        assert streamed(url) == "answer 2 to hello"
        fake.before = lambda number: time.sleep(0.1)
        fake.failures = [(400, {})]
        with pytest.raises(openai.APIError, match="as asked"):
            streamed(url)


def test_a_connection_must_say_whose_it_is(tmp_path: Path, fake: FakeOpenAI) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with bench(tmp_path) as place, place.gateway.session(trial_action(), use_of(fake.url)) as session:
        for preface in (b"MRP 0000\n", b"", b"MRP " + b"x" * 500 + b"\n"):
            with connected(session.endpoint, preface) as connection:
                connection.settimeout(120)
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(request)
                    assert connection.recv(100) == b""
        with connected(session.endpoint) as connection:
            connection.sendall(request)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        left = connected(session.endpoint)
        left.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert left.recv(100).startswith(b"HTTP/1.1 200")
    with left:
        while left.recv(1000):
            pass


def test_the_door_opens_on_a_port_for_engines_elsewhere(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path, host="127.0.0.1") as place, place.trial(use_of(fake.url)) as (url, session):
        assert session.endpoint.address.startswith("tcp:127.0.0.1:")
        assert say(url) == "answer 1 to hello"


def test_a_long_path_still_has_a_socket(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path / ("x" * 120)) as place, place.trial(use_of(fake.url)) as (url, _):
        assert say(url) == "answer 1 to hello"


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-very-secret")
    with bench(tmp_path) as place, place.trial(use_of(fake.url, secret="UPSTREAM_KEY")) as (url, _):
        assert say(url, "key?") == "answer 1 to key? Bearer [secret UPSTREAM_KEY]"
        fake.failures = [(401, {})]
        with pytest.raises(openai.APIStatusError):
            say(url, "no")
    assert fake.keys[0] == "Bearer sk-very-secret"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes()]


def test_a_missing_secret_names_it(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url, secret="NOT_SET_ANYWHERE")) as (url, session):
        with pytest.raises(openai.APIStatusError):
            say(url)
        with pytest.raises(InfraError, match="NOT_SET_ANYWHERE"):
            session.conclude(ended_well())


def test_a_replay_asks_no_model(tmp_path: Path, fake: FakeOpenAI) -> None:
    use = use_of(fake.url)
    with bench(tmp_path / "first") as first:
        with first.trial(use) as (url, _):
            said = say(url)
        calls = Calls(first.store, upstream=False)
        with bench(tmp_path / "second", calls=calls) as second, second.trial(use) as (url, session):
            assert say(url) == said
            with pytest.raises(openai.APIStatusError, match="record has no answer to call 2"):
                say(url)
            with pytest.raises(InfraError, match="record has no answer to call 2"):
                session.conclude(ended_well())
    assert fake.count == 1


def test_a_seeded_model_gets_a_seed_with_each_call_and_is_asked_anew(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.seeded = True
    use = use_of(fake.url, seeded=True)
    with bench(tmp_path / "first") as first:
        with first.trial(use) as (url, _):
            said = [say(url), say(url)]
        assert len(set(said)) == 2
        proof = Proof()
        for name in ("second", "third", "fourth"):
            fake.seeded = name != "fourth"
            with (
                bench(tmp_path / name, calls=Calls(first.store, proof=proof)) as other,
                other.trial(use) as (url, _),
            ):
                assert ([say(url), say(url)] == said) is fake.seeded
    assert proof.counts == {"//:model": (4, 2)}, "two that are the same, and two that are not"
    assert fake.count == 8
    seeds = [request["seed"] for request in fake.requests]
    assert seeds[:2] == seeds[2:4]
    assert len(set(seeds)) == 2


def test_nothing_waits_once_the_build_is_stopped(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.failures = [(429, {"Retry-After": "300"})] * 9
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        failed: list[Exception] = []

        def ask() -> None:
            try:
                say(url)
            except openai.APIError as error:
                failed.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while fake.count == 0:
            time.sleep(0.01)
        place.gateway.stop()
        thread.join(120)
        assert failed


def test_openai_and_scripted_models_keep_the_contract_of_models(tmp_path: Path, fake: FakeOpenAI) -> None:
    with Store.open(tmp_path / "cache") as store:
        script = Entry("f", store.put_bytes(b'{"match": "", "text": "a word"}\n'), None)
        files = store.put_tree({"answers.jsonl": script})
        for spec in ({"provider": "openai", "url": fake.url}, {"provider": "scripted", "script": "answers.jsonl"}):
            settings = ModelSettings("//:model", spec, files, store, tmp_path, tmp_path)
            model = MODELS[spec["provider"]](settings)
            found = list(examine(CHECKS, ModelBench(model, "tiny")))
            model.close()
            assert [finding for finding in found if not finding.kept] == []


def test_a_model_that_takes_anything_and_counts_nothing_breaks_the_contract() -> None:
    class Careless:
        def answer(self, call: Call) -> Answer:
            return Answer({"choices": [{"message": {"content": "yes"}}]})

        def close(self) -> None:
            """Nothing was started."""

    broken = [finding.name for finding in examine(CHECKS, ModelBench(Careless(), "tiny")) if not finding.kept]
    assert broken == [
        "tokens are counted",
        "a stream comes whole, in chunks",
        "a wrong call is refused, as the caller's fault",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "answers.jsonl:1 is not valid JSON"),
        ('{"match": "a"}', "answers.jsonl:1 needs exactly one of text, message and body"),
        ('{"text": "a", "txet": "b"}', "answers.jsonl:1 needs exactly one of text, message and body"),
    ],
)
def test_a_script_that_is_wrong_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    with Store.open(tmp_path / "cache") as store:
        files = store.put_tree({"answers.jsonl": Entry("f", store.put_bytes(line.encode()), None)})
        spec = {"provider": "scripted", "script": "answers.jsonl"}
        with pytest.raises(InfraError, match=said):
            MODELS["scripted"](ModelSettings("//:model", spec, files, store, tmp_path, tmp_path))


@pytest.mark.parametrize("said", ["5", "[]", "null", '"text": 5', '{"choices": 7}', '{"choices": ["a"]}'])
def test_a_script_that_says_what_is_no_answer_is_named(tmp_path: Path, said: str) -> None:
    line = f'{{"body": {said}}}' if not said.startswith('"text') else f"{{{said}}}"
    with Store.open(tmp_path / "cache") as store:
        files = store.put_tree({"answers.jsonl": Entry("f", store.put_bytes(line.encode()), None)})
        spec = {"provider": "scripted", "script": "answers.jsonl"}
        model = MODELS["scripted"](ModelSettings("//:model", spec, files, store, tmp_path, tmp_path))
        with pytest.raises(InfraError, match=r"//:model: answers\.jsonl says .*, which is no text, message or body"):
            model.answer(Call("chat/completions", {"messages": HELLO, "stream": True}))


def test_a_scripted_model_answers_by_the_trial_alone() -> None:
    lines = (Line("a", "one"), Line(None, "first"), Line("a", "two"), Line(None, "second"))

    def said(text: str, number: int, occurrence: int = 0) -> Any:
        body = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]}
        return chosen(lines, Call("chat/completions", body, number=number, occurrence=occurrence))

    assert [said("a", 5, occurrence) for occurrence in range(3)] == ["one", "two", "two"]
    assert [said("b", number) for number in range(2)] == ["first", "second"]
    with pytest.raises(Refused, match="400"):
        said("b", 2)


def test_the_client_of_the_sdk_needs_nothing_but_the_standard_library(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url, calls=4)) as (url, _):
        model = Model(url, "tiny")
        answer = model.chat.completions.create(messages=HELLO, temperature=0.5)
        assert answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == "answer 1 to hello"
        assert answer.usage.prompt_tokens == 10
        assert model.completions.create(prompt="once").choices[0].text == "answer 2 to once"
        chunks = list(model.chat.completions.create(messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "answer 3 to hello"
        fake.failures = [(400, {})]
        with pytest.raises(ModelError, match="as asked"):
            model.ask("wrong")
        assert model.ask("last") == "answer 5 to last"
        with pytest.raises(ModelError) as told:
            model.ask("one more")
        assert (told.value.status, told.value.code) == (403, "limit")
    with pytest.raises(ModelError, match="cannot be reached"):
        model.ask("after the end")


def test_methods_that_are_none_are_declined_in_the_words_of_the_api(tmp_path: Path, fake: FakeOpenAI) -> None:
    with bench(tmp_path) as place, place.trial(use_of(fake.url)) as (url, _):
        done = subprocess.run(["curl", "-sS", "-X", "PATCH", f"{url}/models"], capture_output=True, check=True)
        assert "PATCH" in json.loads(done.stdout)["error"]["message"]


def test_an_estimate_is_overrun_only_where_all_costs_were_declared() -> None:
    for undeclared in (False, True):
        account = Account("//:all")
        money = Money([account], {"//:solve": (0,)})
        money.estimate("//:solve", Decimal(1), 0, undeclared=undeclared)
        money.settle("//:solve", (Decimal(0), 0), (Decimal(2), 0))
        refusal = money.reserve_call("//:solve", Decimal(0), 1)
        assert (refusal is None) is undeclared
