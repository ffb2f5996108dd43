"""Replicas of a vLLM model, of which an emulator takes the place: started, balanced, watched, started again, ended."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.howto import follow
from support.kinds import trials
from support.models import asking
from support.places import Place, kill_group
from support.tiny_model import write_tiny_model
from support.vllm_emulator import emulated_python, starts
from support.workspaces import Workspace

from mrp.cache.store import Store
from mrp.runtime.models.protocol import Answer, Busy, Call, Refused
from mrp.runtime.models.registry import ModelSettings
from mrp.runtime.models.vllm import replicas
from mrp.runtime.models.vllm.model import VllmModel
from mrp.runtime.models.vllm.serving import PYTHON, serving_of, vllm_python
from mrp.specs.errors import InfraError


class Bench:
    """A store with a model's files, and models that emulators serve; `said` holds what people were told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, list[str]()
        self.store = Store.open(folder / "store")
        weights = self.store.read_tree(self.store.put_folder(write_tiny_model(folder / "tiny")))
        self.files = self.store.put_tree({f"models/tiny/{path}": entry for path, entry in weights.items()})
        self.noted = folder / "noted"
        self.noted.mkdir()
        self._models: list[VllmModel] = []

    def model(self, *, fault: str = "", health: dict[str, Any] | None = None, **serve: Any) -> VllmModel:
        env = {"EMULATOR_FOLDER": str(self.noted), "EMULATOR_FAULT": fault, **serve.pop("env", {})}
        number = len(self._models)
        model = VllmModel(
            ModelSettings(
                label="//models:tiny",
                spec={"provider": "vllm", "weights": "models/tiny", "serve": {**serve, "env": env}, "health": health},
                files=self.files,
                store=self.store,
                scratch=self.folder / f"scratch-{number}",
                logs=self.folder / f"logs-{number}",
                warn=self.said.append,
            )
        )
        self._models.append(model)
        return model

    def starts(self) -> list[dict[str, Any]]:
        return starts(self.noted)

    def hold_all_of(self, model: VllmModel) -> None:
        """Wait until all replicas are ready; then they give no answer until `let_go_at`."""
        until(lambda: model.answer(call()) and all(r.state.value == "ready" for r in model._replicas._replicas))
        (self.noted / "hold").touch()

    def let_go_at(self, calls: int, model: VllmModel, kill: int | None = None) -> None:
        """Let the replicas answer once so many calls are under way; before that, kill a process."""
        until(lambda: sum(replica.calls for replica in model._replicas._replicas) == calls)
        if kill is not None:
            os.kill(kill, signal.SIGKILL)
        (self.noted / "hold").unlink()

    def close(self) -> None:
        for model in self._models:
            model.close()
        self.store.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv(PYTHON, str(emulated_python(tmp_path)))
    monkeypatch.setattr(replicas, "BACKOFF_SECONDS", 0.01)
    place = Bench(tmp_path)
    yield place
    place.close()


def call(text: str = "hello", **more: Any) -> Call:
    return Call("chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": text}], **more})


def text_of(answer: Answer) -> str:
    return str(answer.body["choices"][0]["message"]["content"])


def asked_again(model: VllmModel, text: str = "hello") -> Answer:
    """As the gateway does it: again while the model is busy."""
    for _ in range(100):
        try:
            return model.answer(call(text))
        except Busy:
            time.sleep(0.05)
    raise AssertionError("the model stays busy")


def until(true: Callable[[], object]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


def test_nothing_is_started_before_the_first_call(bench: Bench) -> None:
    model = bench.model()
    assert not bench.starts() and not bench.said
    answer = model.answer(call())
    (start,) = bench.starts()
    assert text_of(answer) == f"{start['pid']}: hello"
    assert (answer.input_tokens, answer.output_tokens) == (3, 2)
    assert bench.said[:1] == ["//models:tiny: starting one replica of vLLM, which takes a while"]
    model.close()
    assert is_gone(start["pid"]) and is_gone(start["engine"])
    model.close()


def test_answers_carry_the_facts_of_their_engine(bench: Bench) -> None:
    env = {"VLLM_BATCH_INVARIANT": "1"}
    facts = bench.model(engine_args={"max_num_seqs": 4}, dtype="auto", env=env).answer(call()).facts
    assert {**facts, "started": 0} == {
        "engine": "vllm",
        "version": "0.32.0",
        "dtype": "float32",
        "device": "cpu",
        "quantization": None,
        "tensor_parallel": 1,
        "max_num_seqs": 4,
        "batch_invariant": True,
        "replica": 0,
        "start": 1,
        "started": 0,
    }


def test_calls_go_to_the_replica_with_the_fewest(bench: Bench) -> None:
    model = bench.model(fault="held", replicas=3)
    bench.hold_all_of(model)
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(model.answer, call()) for _ in range(9)]
        bench.let_go_at(9, model)
        answers = [each.result() for each in asked]
    assert Counter(answer.facts["replica"] for answer in answers) == {0: 3, 1: 3, 2: 3}


def test_a_refusal_is_the_callers_own_fault(bench: Bench) -> None:
    model = bench.model()
    with pytest.raises(Refused) as refused:
        model.answer(call(max_tokens=3000))
    assert refused.value.status == 400 and "too large" in str(refused.value.body)
    assert text_of(model.answer(call("still here"))).endswith("still here")


def test_a_replica_that_is_killed_under_its_calls_is_started_again_and_no_call_is_lost(bench: Bench) -> None:
    model = bench.model(fault="held", replicas=2)
    bench.hold_all_of(model)
    first = bench.starts()[0]
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(asked_again, model, f"call {number}") for number in range(24)]
        bench.let_go_at(12, model, kill=first["pid"])
        texts = [text_of(answer.result()) for answer in answers]
    assert [text.partition(": ")[2] for text in texts] == [f"call {number}" for number in range(24)]
    until(lambda: len(bench.starts()) == 3)
    assert is_gone(first["engine"]), "an engine outlives its server, unless the keeper kills it"
    assert any("ended with exit code 137; it is started again" in sentence for sentence in bench.said)
    until(lambda: asked_again(model).facts["start"] == 2)


def test_a_replica_that_is_frozen_is_started_again(bench: Bench) -> None:
    model = bench.model(health={"every": Decimal("0.1"), "timeout": Decimal("1.5")})
    model.answer(call())
    os.kill(bench.starts()[0]["pid"], signal.SIGSTOP)
    until(lambda: len(bench.starts()) == 2)
    assert asked_again(model).facts["start"] == 2
    assert any("gave no sign 3 times" in sentence for sentence in bench.said)


def test_a_replica_that_comes_down_again_and_again_is_lost(bench: Bench) -> None:
    model = bench.model()
    model.answer(call())
    for count in range(1, replicas.RESTARTS + 2):
        until(lambda count=count: len(bench.starts()) == count)
        asked_again(model)
        os.kill(bench.starts()[-1]["pid"], signal.SIGKILL)
    until(lambda: "is lost" in bench.said[-1])
    with pytest.raises(InfraError, match="replica 0 of //models:tiny is lost: it ended with exit code 137"):
        model.answer(call())
    assert len(bench.starts()) == replicas.RESTARTS + 1


def test_a_server_that_cannot_start_is_not_tried_again_and_its_log_is_shown(bench: Bench) -> None:
    model = bench.model(fault="no-start")
    with pytest.raises(InfraError) as error:
        model.answer(call())
    assert "it ended with exit code 1" in str(error.value)
    assert "ValueError: the weights have no tensor called lm_head" in str(error.value)
    assert str(bench.folder / "logs-0" / "vllm-models-tiny-0.log") in str(error.value)
    assert not error.value.retryable and len(bench.starts()) == 1


def test_a_server_that_is_never_well_is_given_up(bench: Bench) -> None:
    model = bench.model(fault="never-well", health={"start": Decimal("1.5")})
    with pytest.raises(InfraError, match=r"it was not well after 1\.5 s \(`start` of `health` allows more\)"):
        model.answer(call())
    assert all(is_gone(start["pid"]) for start in bench.starts()), "one, unless the machine was very busy"


def test_another_free_port_is_taken_when_the_first_one_went_meanwhile(bench: Bench) -> None:
    assert bench.model(fault="taken-once").answer(call()).facts["start"] == 2
    ports = [re.search(r"--port (\d+)", " ".join(start["words"])) for start in bench.starts()]
    assert len(ports) == 2 and None not in ports


def test_another_version_than_the_declared_one_is_refused(bench: Bench) -> None:
    with pytest.raises(InfraError, match=r"wants vLLM 0\.31\.0 .* and the environment has 0\.32\.0"):
        bench.model(version="0.31.0").answer(call())
    assert bench.model(version="0.32.0").answer(call()).facts["version"] == "0.32.0"


def test_a_version_that_is_not_declared_is_said(bench: Bench) -> None:
    bench.model().answer(call())
    bench.model(version="0.32.0").answer(call())
    assert [sentence for sentence in bench.said if "no key names the version" in sentence] == [
        '//models:tiny: no key names the version of vLLM; declare the one that answers: serve: {version: "0.32.0"}'
    ]


def test_all_of_it_ends_when_the_build_is_killed(bench: Bench) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from test_vllm_replicas import Bench, call
        place = Bench(Path(sys.argv[1]))
        place.model(replicas=2).answer(call())
        print("answered", flush=True)
        sys.stdin.read()
    """
    (bench.folder / "build").mkdir()
    build = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines()), bench.folder / "build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert build.stdout is not None and build.stdout.readline() == b"answered\n"
    until(lambda: len(starts(bench.folder / "build" / "noted")) == 2)
    build.kill()
    build.communicate()
    left = [start[who] for start in starts(bench.folder / "build" / "noted") for who in ("pid", "engine")]
    until(lambda: all(is_gone(process) for process in left))


def test_calls_that_wait_for_a_start_end_when_the_model_is_closed(bench: Bench) -> None:
    model = bench.model(fault="never-well")
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            model.answer(call())
        except Busy as error:
            failed.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    until(bench.starts)
    model.close()
    waiting.join()
    assert "is being stopped" in str(failed[0]) and is_gone(bench.starts()[0]["pid"])


def test_a_trial_is_not_judged_by_the_time_that_its_model_took_to_start(bench: Bench) -> None:
    write_tiny_model(bench.folder / "ws" / "weights")
    env = {"EMULATOR_FOLDER": str(bench.noted), "EMULATOR_FAULT": "held-start"}
    model = {"kind": "model", "provider": "vllm", "weights": "weights", "serve": {"env": env, "version": "0.32.0"}}
    place = asking(bench.folder, model, timeout="6s", retries=5)
    (bench.noted / "hold").touch()
    build = place.start("build", "-j1", "//:solve")
    try:
        until(lambda: any("AttemptFailed" in log.read_text() for log in place.folder.glob(".mrp/runs/*/events.jsonl")))
        (bench.noted / "hold").unlink()
        assert build.wait(300) == 0
    finally:
        kill_group(build)
    assert [row["outcome"] for row in trials(place)] == ["ok", "ok"]
    (failed, *_) = json.loads(place.mrp("inspect", "--json").stdout)["failed_attempts"]
    assert "the trial's time ran out after it had waited" in failed["reason"]
    assert len(bench.starts()) == 1 and is_gone(bench.starts()[0]["pid"])
    assert (place.runs()[-1] / "vllm-tiny-0.log").exists()


def test_the_bytes_that_are_served_are_those_of_the_store(bench: Bench) -> None:
    bench.model().answer(call())
    words = bench.starts()[0]["words"]
    folder = Path(words[words.index("--model") + 1])
    assert {path.name for path in folder.iterdir()} == {path.name for path in (bench.folder / "tiny").iterdir()}
    for path in folder.iterdir():
        assert path.resolve().is_relative_to(bench.folder / "store")
        assert path.read_bytes() == (bench.folder / "tiny" / path.name).read_bytes()


def test_a_server_sees_no_secret_of_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "tell-nobody")
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "changes answers, and is in no key")
    bench.model(env={"VLLM_CPU_KVCACHE_SPACE": "1"}).answer(call())
    seen = bench.starts()[0]["env"]
    assert "VLLM_CPU_KVCACHE_SPACE" in seen and "HF_HUB_OFFLINE" in seen
    assert "GITHUB_TOKEN" not in seen and "VLLM_ATTENTION_BACKEND" not in seen


def test_replicas_share_the_gpus(bench: Bench) -> None:
    model = bench.model(replicas=2, tensor_parallel=2, gpus=[4, 5, 6, 7])
    model.answer(call())
    until(lambda: len(bench.starts()) == 2)
    assert sorted(start["gpus"] for start in bench.starts()) == ["4,5", "6,7"]


def test_the_command_line_says_what_the_document_says() -> None:
    serve = {
        "quantization": "awq",
        "tensor_parallel": 2,
        "dtype": "float16",
        "engine_args": {
            "max_model_len": 512,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "gpu_memory_utilization": Decimal("0.5"),
            "compilation_config": {"mode": 0},
            "allowed_origins": ["a", "b"],
        },
    }
    serving = serving_of({"serve": serve, "revision": "c0ffee"}, "tiny", "org/name", "/t.jinja")
    assert " ".join(serving.words("/v/bin/python", 8000)) == (
        "/v/bin/python -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port 8000 --model org/name"
        " --served-model-name tiny --revision c0ffee --chat-template /t.jinja --dtype float16 --quantization awq"
        ' --tensor-parallel-size 2 --allowed-origins a b --compilation-config {"mode":0} --no-enable-prefix-caching'
        " --enforce-eager --gpu-memory-utilization 0.5 --max-model-len 512"
    )
    folder = serving_of({"serve": serve, "revision": "c0ffee"}, "tiny", "/w/tiny", None)
    assert "--revision" not in folder.words("python", 8000), "a folder has no commits"


def test_the_python_with_vllm_is_configuration() -> None:
    with pytest.raises(InfraError, match="is /nowhere/python, which cannot be executed"):
        vllm_python({PYTHON: "/nowhere/python"})
    with pytest.raises(InfraError, match=f"make an environment of its own .* set {PYTHON}="):
        vllm_python({})


def test_the_page_on_vllm_does_what_it_says(tmp_path: Path) -> None:
    place = Place(tmp_path / "ws")
    write_tiny_model(place.folder / "weights" / "tiny")
    ran = follow("vllm", place, **{PYTHON: str(emulated_python(tmp_path))})
    assert ran == ["mrp build //:solve", "mrp log //:solve --calls", "mrp build //:solve", "mrp replay last~1"]
    logs = [sorted(path.name for path in run.glob("vllm-*.log")) for run in place.runs()]
    assert logs[:2] == [["vllm-tiny-0.log"], []]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("weights: org/name", "the weights `org/name` come from a hub, and no commit pins them"),
        ("weights: org/name, revision: main", "the weights `org/name` come from a hub, and no commit pins them"),
        ("weights: tiny, serve: {gpus: [0], replicas: 2}", "2 GPUs are needed (replicas times tensor_parallel)"),
        ("weights: tiny, serve: {engine_args: {host: 0.0.0.0}}", "`host` cannot be an engine argument"),
        ("weights: tiny, serve: {engine_args: {tensor-parallel-size: 2}}", "`tensor_parallel` sets it"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused_at_compile_time(tmp_path: Path, fields: str, said: str) -> None:
    build = f"mrp: 1\ntargets:\n  m: {{kind: model, provider: vllm, {fields}}}\n"
    workspace = Workspace(tmp_path, {"BUILD.yaml": build, "tiny/config.json": "{}"})
    assert said in workspace.error("//:m")


def test_weights_are_a_folder_where_there_is_one(tmp_path: Path) -> None:
    build = """
        mrp: 1
        targets:
          folder: {kind: model, provider: vllm, weights: weights/tiny}
          dotted: {kind: model, provider: vllm, weights: ./weights/tiny}
          hub: {kind: model, provider: vllm, weights: org/tiny, revision: c1899de289a04d12100db370d81485cdf75e47ca}
          items: {kind: dataset, generate: {range: 1}}
          roll:
            kind: rollout
            over: :items
            agent: builtin:nop
            model: "${matrix.model}"
            matrix: {model: [":folder", ":dotted", ":hub"]}
    """
    workspace = Workspace(tmp_path, {"p/BUILD.yaml": build, "p/weights/tiny/config.json": "{}"})
    tasks: dict[str, Any] = dict(workspace.tasks())
    for name in ("folder", "dotted"):
        assert tasks[f"//p:{name}"].spec["weights"] == "p/weights/tiny"
        assert [source.path for source in tasks[f"//p:{name}"].files.sources] == ["p/weights/tiny/config.json"]
    assert tasks["//p:hub"].spec["weights"] == "org/tiny" and not tasks["//p:hub"].files.sources
