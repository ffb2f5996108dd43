"""Rollouts that ask a model: what is asked, what is kept, and what comes of a trial when the model fails it."""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, fake_openai
from support.howto import follow
from support.kinds import TASKS, shell, text, trials, workspace
from support.models import AGENT, ASKER, asking, copy_packages, openai_model
from support.places import Place, kill_group

from mrp.cache.maintenance import gc
from mrp.cache.store import Store

AT_ONCE: tuple[int, dict[str, str]] = (500, {"Retry-After": "0"})


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as server:
        yield server


def outcomes(place: Place, target: str = "solve") -> list[str]:
    return [row["limit"] or row["outcome"] for row in trials(place, target)]


def test_answers_are_kept_and_asked_for_once(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake, price={"input": 1000, "output": 2000}))
    report = place.build("//:solve")
    assert (report["executed"], fake.count) == (2, 4)
    assert outcomes(place) == ["ok", "ok"]
    assert report["cost"]["usd"] == "0.08", "four calls of 10 and 5 tokens"
    assert "0: text of a" in {request["messages"][-1]["content"] for request in fake.requests}

    again = place.build("//:solve")
    assert (again["executed"], again["cached"], again["cost"]["usd"]) == (0, 2, "0")
    again = place.build("--rebuild", "//:solve", "//:solve")
    assert again["executed"] == 2
    assert fake.count == 4, "agents that run again are answered from the record"


def test_a_run_is_replayed_without_its_model(tmp_path: Path) -> None:
    with fake_openai() as fake:
        place = asking(tmp_path, openai_model(fake), samples=2)
        place.build("//:solve")
        assert fake.count == 8
    digests = place.digests()
    done = place.mrp("replay", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["runs"][0]["same"] == len(digests.splitlines()) == 4


def test_a_replay_says_which_answer_is_lost(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    place.build("//:solve")
    with Store.open(place.cache) as store:
        store.index.transact(lambda connection: connection.execute("DELETE FROM actions WHERE kind = 'call'"))
    done = place.mrp("replay")
    assert done.returncode == 4
    assert "the record has no answer to call 1 of the trial" in done.stderr + done.stdout
    assert fake.count == 4


def test_a_replay_says_that_a_refused_call_is_not_recorded(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    fake.failures = [None, (400, {})]
    place.build("-j1", "--items", "a", "//:solve")
    assert outcomes(place) == ["failed"]
    assert place.build("--items", "a", "//:solve")["executed"] == 0
    done = place.mrp("replay")
    assert done.returncode == 4
    assert (
        "no answer to call 2 of the trial" in done.stderr and "refused the call, which is never recorded" in done.stderr
    )


def test_samples_epochs_and_resample_draw_anew(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), params={"calls": 1}, samples=2)
    place.build("//:solve")
    assert fake.count == 4
    assert len({row["tree"] for row in trials(place)}) == 4, "two samples never share an answer"
    place.build("--resample", "//:solve")
    assert fake.count == 8
    place.edit("BUILD.yaml", '"samples": 2', '"samples": 2, "epoch": 1')
    place.build("//:solve")
    assert fake.count == 8, "what --resample drew is what the next epoch has"


def test_where_a_model_is_and_what_it_costs_is_in_no_key(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    place.build("//:solve")
    with fake_openai() as other:
        place.edit("BUILD.yaml", fake.url, other.url)
        place.edit(
            "BUILD.yaml", '"model": "tiny",\n', '"model": "tiny", "price": {"output": 9}, "max_concurrency": 1,\n'
        )
        assert place.build("//:solve")["executed"] == 0
        place.edit("BUILD.yaml", '"max_concurrency": 1', '"revision": "two"')
        assert place.build("//:solve")["executed"] == 2
        assert (fake.count, other.count) == (4, 4)


def test_sampling_takes_the_values_of_the_cell(tmp_path: Path, fake: FakeOpenAI) -> None:
    model = openai_model(fake, sampling={"temperature": "${params.temperature}", "stop": ["<${params.calls}>"]})
    place = asking(tmp_path, model, params={"calls": 1}, matrix={"temperature": [0, "0.70"]})
    place.edit("BUILD.yaml", '"0.70"', "0.70")
    place.build("//:solve")
    assert sorted(request["temperature"] for request in fake.requests) == [0, 0, 0.7, 0.7]
    assert {request["stop"][0] for request in fake.requests} == {"<1>"}
    place.edit("BUILD.yaml", "0.70", "0.9")
    place.build("//:solve")
    assert fake.count == 6, "only the cell that changed asks again"


def test_a_busy_model_is_waited_for_and_the_trial_goes_on_where_it_was(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), params={"calls": 3})
    fake.failures = [None, *[AT_ONCE] * 6]
    report = place.build("-j1", "--items", "a", "//:solve")
    assert report["status"] == "ok"
    assert outcomes(place) == ["ok"]
    assert fake.count == 1 + 6 + 2, "the second attempt asked for the second call, and not for the first"
    shown = json.loads(place.mrp("inspect", "--json").stdout)
    assert "//:tiny could not answer" in shown["failed_attempts"][0]["reason"]


def test_a_model_that_is_gone_is_no_score(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), params={"calls": 3}, retries=0)
    fake.failures = [None, *[AT_ONCE] * 6]
    report = place.build("-j1", "--items", "a", "//:solve", code=4)
    assert report["status"] == "infra"
    assert [row["outcome"] for row in trials(place)] == ["infra_error"]
    assert place.build("--items", "a", "//:solve")["executed"] == 1
    assert fake.count == 9


def test_a_build_killed_in_the_middle_of_a_trajectory_asks_only_for_the_rest(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), params={"calls": 5})
    go = threading.Event()
    fake.before = lambda number: number == 3 and go.wait(120)
    process = place.start("build", "-j1", "--items", "a", "//:solve")
    while fake.count < 3 and process.poll() is None:
        time.sleep(0.01)
    kill_group(process)
    go.set()
    place.build("--items", "a", "//:solve")
    assert fake.count == 6, "the third call was under way, and nothing was kept of it"
    assert text(place, "solve/trials.jsonl").count("\n") == 1
    with Store.open(place.cache) as store:
        said = store.get_bytes(store.read_tree(trials(place)[0]["tree"])["said.txt"].digest or store.put_bytes(b""))
    assert [line.split(" to ")[0] for line in said.decode().splitlines()] == [
        f"answer {number}" for number in (1, 2, 4, 5, 6)
    ]


@pytest.mark.parametrize(("limit", "most"), [("calls", 3), ("tokens", 40), ("usd", 1)])
def test_a_limit_of_a_trial_is_its_outcome_and_is_graded(
    tmp_path: Path, fake: FakeOpenAI, limit: str, most: int
) -> None:
    place = asking(
        tmp_path,
        openai_model(fake, price={"output": 70_000}),
        params={"calls": 9},
        limits={limit: most},
        grade={"command": ["test", "-s", "said.txt"]},
    )
    place.build("//:solve")
    assert outcomes(place) == [limit, limit]
    assert [row["rewards"] for row in trials(place)] == [{"reward": 1}] * 2
    asked = fake.count
    assert asked == 6
    assert place.build("//:solve")["executed"] == 0


def test_the_budget_of_a_job_stops_the_build_and_nothing_is_lost(tmp_path: Path, fake: FakeOpenAI) -> None:
    targets: dict[str, Any] = {
        **TASKS,
        "tiny": openai_model(fake, price={"output": 100_000}, sampling={"max_tokens": 5}),
        "asker": ASKER,
        "solve": {"kind": "rollout", "over": "tasks", "agent": "asker", "model": "tiny", "params": {"calls": 4}},
        "all": {"kind": "job", "of": ["solve"], "budget": {"usd": "3.2"}},
    }
    place = workspace(tmp_path, targets, {"agent.py": AGENT})
    place.edit("BUILD.yaml", '"3.2"', "3.2")
    report = place.build("-j1", "//:all", code=3)
    assert report["status"] == "budget"
    assert "the budget of //:all is 3.2 usd" in report["reason"]
    assert Decimal(report["cost"]["usd"]) == 3
    assert fake.count == 6, "the seventh call could have cost too much, and was not sent"
    place.edit("BUILD.yaml", "3.2", "4")
    assert place.build("//:all")["status"] == "ok"
    assert fake.count == 8


def test_scripted_models_answer_from_a_file(tmp_path: Path) -> None:
    lines = [{"match": "text of a", "text": "I am a"}, {"text": "first"}, {"text": "second"}]
    script = "".join(json.dumps(line) + "\n" for line in lines)
    model = {"kind": "model", "provider": "scripted", "script": "answers.jsonl"}
    place = asking(tmp_path, model, files={"answers.jsonl": script})
    place.build("//:solve")
    assert outcomes(place) == ["ok", "ok"]
    calls = [json.loads(line) for line in place.mrp("log", "//:solve", "--calls").stdout.splitlines()]
    said = [call["answer"]["body"]["choices"][0]["message"]["content"] for call in calls]
    assert said == ["I am a", "second", "first", "second"]
    assert place.mrp("check", "//:solve").returncode == 0
    place.edit("answers.jsonl", "I am a", "You are a")
    assert place.build("//:solve")["executed"] == 2
    why = place.mrp("why", "//:solve[a]").stdout
    assert "model.script.file" in why


def test_scripted_models_answer_with_a_function_in_a_sandbox(tmp_path: Path) -> None:
    script = (
        "import os\ndef answer(request):\n    return f\"{request['call']['number']} {sorted(os.listdir('/work'))}\"\n"
    )
    model = {"kind": "model", "provider": "scripted", "script": "answers.py"}
    place = asking(tmp_path, model, files={"answers.py": script})
    place.build("//:solve")
    calls = [json.loads(line) for line in place.mrp("log", "//:solve[a]", "--calls").stdout.splitlines()]
    assert [call["answer"]["body"]["choices"][0]["message"]["content"] for call in calls] == ["0 []", "1 []"]


def test_any_program_finds_its_model(tmp_path: Path, fake: FakeOpenAI) -> None:
    script = (
        "import json, os, urllib.request as web\n"
        "body = json.dumps({'model': 'gpt', 'messages': [{'role': 'user', 'content': 'hi'}]}).encode()\n"
        "url = os.environ['OPENAI_BASE_URL'] + '/chat/completions'\n"
        "key = {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']}\n"
        "print(json.load(web.urlopen(web.Request(url, body, key)))['choices'][0]['message']['content'])\n"
        "print(json.load(open('/tmp/given/in.json'))['model'])\n"
    )
    agent = {
        **shell(script="python3 $MRP_OPERATOR_DIR/ask.py"),
        "srcs": ["ask.py"],
        "files": {"input": "/tmp/given/in.json", "output": "/tmp/left/out.json"},
    }
    place = asking(tmp_path, openai_model(fake), files={"ask.py": script})
    targets = json.loads((place.folder / "BUILD.yaml").read_text())["targets"]
    targets["asker"] = agent
    place.write({"BUILD.yaml": json.dumps({"mrp": 1, "targets": targets})})
    place.build("--items", "a", "//:solve")
    assert place.mrp("log", "//:solve[a]").stdout == "answer 1 to hi\ntiny\n"


def test_the_stock_client_in_a_sandbox_without_network(tmp_path: Path, fake: FakeOpenAI) -> None:
    if not Path("/usr/bin/python3").resolve().name.endswith(f"3.{sys.version_info.minor}"):
        pytest.skip("the machine's own python3 is not the one that the packages of this environment were made for")
    script = (
        "import sys; sys.path.insert(0, '/opt/packages')\n"
        "import openai\n"
        "client = openai.OpenAI()\n"
        "ask = dict(model='gpt', messages=[{'role': 'user', 'content': 'hi'}])\n"
        "print(client.chat.completions.create(**ask).choices[0].message.content)\n"
        "for chunk in client.chat.completions.create(**ask, stream=True):\n"
        "    print(chunk.choices[0].delta.content or '.', end='')\n"
    )
    targets: dict[str, Any] = {
        **TASKS,
        "packages": {"kind": "image", "base": "host", "layers": [{"copy": {"packages/": "/opt/packages"}}]},
        "box": {"kind": "sandbox", "image": "packages", "network": "none"},
        "tiny": openai_model(fake),
        "asker": {**shell(script="python3 $MRP_OPERATOR_DIR/ask.py"), "srcs": ["ask.py"]},
        "solve": {"kind": "rollout", "over": "tasks", "agent": "asker", "model": "tiny", "sandbox": "box"},
    }
    place = workspace(tmp_path, targets, {"ask.py": script})
    copy_packages("openai", place.folder / "packages")
    place.build("--items", "a", "//:solve")
    shown = place.mrp("log", "//:solve[a]").stdout
    assert shown.startswith("answer 1 to hi\nanswer 2 to hi."), place.mrp("log", "//:solve[a]", "--stderr").stdout


def test_an_evaluator_asks_a_model(tmp_path: Path, fake: FakeOpenAI) -> None:
    judge = (
        "from mrp.sdk import Evaluator\n"
        "class Judge(Evaluator):\n"
        "    def evaluate(self, subject, ctx):\n"
        "        return {'said': ctx.model.ask('judge')}\n"
    )
    targets: dict[str, Any] = {
        **TASKS,
        "tiny": openai_model(fake),
        "idle": {"kind": "rollout", "over": "tasks", "agent": "builtin:nop", "grade": {"command": ["true"]}},
        "eval": {"kind": "reduction", "of": ["idle"], "reducer": "stats"},
        "judge": {"kind": "evaluator", "version": "1", "entry": "judge:Judge", "srcs": ["judge.py"]},
        "judged": {"kind": "evaluation", "of": "eval", "evaluator": "judge", "model": "tiny"},
    }
    place = workspace(tmp_path, targets, {"judge.py": judge})
    place.build("//:judged")
    assert place.output("judged/result.json") == {"said": "answer 1 to judge"}
    assert place.build("//:judged")["executed"] == 0
    assert fake.count == 1


def test_check_serves_sampled_answers_and_proves_seeded_ones(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    done = place.mrp("check", "//:solve")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fake.count == 4, "the second run was answered from the record"
    assert place.build("//:solve")["executed"] == 2
    assert fake.count == 4, "and so is the build that follows"

    place.edit("BUILD.yaml", '"provider": "openai"', '"provider": "openai", "seeded": true')
    fake.seeded = True
    done = place.mrp("check", "//:solve")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "//:tiny is proven: 4 of 4 calls" in done.stdout
    assert fake.count == 12
    fake.seeded = False
    done = place.mrp("check", "//:solve")
    assert done.returncode == 1
    assert "declared `seeded`, and it is not" in done.stdout


def test_a_seeded_model_that_is_never_asked_the_same_is_not_proven(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.seeded = True
    agent = AGENT.replace('f"{number}: {said[-1]}"', "str(__import__('time').time_ns())").replace(
        '"\\n".join(said[1:])', '"done"'
    )
    place = asking(tmp_path, openai_model(fake, seeded=True), files={"agent.py": agent})
    done = place.mrp("check", "//:solve")
    assert (done.returncode, fake.count) == (1, 8), done.stdout + done.stderr
    assert "//:tiny is not proven: no run made a call that another run had made" in done.stdout


def test_the_calls_of_a_trial_stay_for_as_long_as_it_does(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    place.build("//:solve")

    def kept(**how: Any) -> int:
        with Store.open(place.cache) as store:
            gc(store, grace_s=0, **how)
            ((count,),) = store.index.read("SELECT count(*) FROM actions WHERE kind = 'call'")
            return int(count)

    with Store.open(place.cache) as store:
        old = int(time.time()) - 1000
        store.index.transact(lambda c: c.execute("UPDATE actions SET used = ? WHERE kind = 'call'", (old,)))
    assert kept(max_age_s=500) == 4
    place.build("--rebuild", "//:solve", "//:solve")
    assert fake.count == 4
    with Store.open(place.cache) as store:
        store.index.transact(lambda c: c.execute("UPDATE actions SET used = ?", (old,)))
    assert kept(max_age_s=500) == 0


def test_a_pure_agent_with_a_model_runs_alone(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), samples=3)
    place.edit("BUILD.yaml", '"entry": "agent:Asker"', '"entry": "agent:Asker", "pure": true')
    place.build("-j2", "//:solve")
    assert outcomes(place) == ["ok"] * 6
    assert fake.count == 12


def test_the_page_on_models_does_what_it_says(tmp_path: Path) -> None:
    place = Place(tmp_path / "ws")
    ran = follow("models", place)
    assert ran == [
        "mrp build //:eval",
        "mrp build //:eval",
        "mrp log '//:solve[france]' --calls",
        "mrp replay",
        "mrp check //:eval",
    ]
    executed = [json.loads((run / "run.json").read_text())["executed"] for run in place.runs()]
    assert executed[:2] == [5, 0]
    (call,) = place.mrp("log", "//:solve[france]", "--calls").stdout.splitlines()
    assert json.loads(call)["answer"]["body"]["choices"][0]["message"]["content"] == "Paris."
    assert place.output("eval/result.json")["reward"]["mean"] == 0.5


def test_a_second_interrupt_ends_a_build_whose_model_does_not_answer(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    go = threading.Event()
    fake.before = lambda number: go.wait(300)
    process = place.start("build", "//:solve")
    while fake.count == 0 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    # A signal that comes before the one before it was noticed is none.
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=120) == 130
    finally:
        kill_group(process)
        go.set()
    assert place.build("//:solve")["executed"] == 2
