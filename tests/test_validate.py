"""Every fault of a document is one sentence at its place, in the words of the language, with a next step."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.diagnostics import build_errors, shown, target_errors
from support.reference import LANGUAGE

from mrp.specs.documents import KINDS, Dataset, Limits, PolicyFile, Rollout, WorkspaceFile
from mrp.specs.errors import Span
from mrp.specs.suggest import did_you_mean
from mrp.specs.validate import split_build, validate, validate_build
from mrp.specs.yaml import Node, Sources, parse_yaml, plain

ROLLOUT = "kind: rollout, over: tasks, agent: a"
LABELS = "a rollout, a dataset, a reduction, an evaluation or a command"
KIND_LIST = (
    "agent, command, dataset, evaluation, evaluator, image, job, model, produce, producer, reducer, reduction, "
    "rollout, sandbox, session or sink"
)

TARGETS = {
    # names of fields
    f"{{{ROLLOUT}, sampels: 2}}": "3:45 unknown field `sampels` in a rollout | did you mean `samples`?",
    "{kind: rollout, ovr: tasks, agent: a}": "3:22 unknown field `ovr` in a rollout | did you mean `over`?",
    "{kind: produce, of: eval}": "3:3 a produce needs `sink` | write `sink:` with the label of a sink",
    "{kind: produce, sink: s}": f"3:3 a produce needs `of` | write `of:` with the label of {LABELS}",
    f"{{{ROLLOUT}, limits: {{foo: 1}}}}": "3:54 unknown field `foo` in `limits` | "
    "the fields here are calls, tokens and usd",
    "{kind: sandbox, network: {alow: []}}": "3:32 unknown field `alow` in `network` | did you mean `allow`?",
    "{kind: sandbox, volumes: {/m: {}}}": "3:32 `/m` needs `name` | write `name:` with text",
    "{kind: image, base: host, layers: [{piip: x}]}": "3:42 unknown field `piip` in item 1 of `layers` | "
    "did you mean `pip`?",
    # whole numbers and numbers
    f"{{{ROLLOUT}, samples: 0}}": "3:54 `samples` must be a whole number of at least 1, not `0`",
    f"{{{ROLLOUT}, samples: 1.5}}": "3:54 `samples` must be a whole number of at least 1, not `1.5`",
    f"{{{ROLLOUT}, samples: 1e0}}": "3:54 `samples` must be a whole number of at least 1, not `1e0`",
    f"{{{ROLLOUT}, samples: true}}": "3:54 `samples` must be a whole number of at least 1, not `true`",
    f'{{{ROLLOUT}, samples: "2"}}': "3:54 `samples` must be a whole number of at least 1, not the text `2` | "
    "write 2 without quotes",
    f"{{{ROLLOUT}, epoch: -1}}": "3:52 `epoch` must be a whole number of at least 0, not `-1`",
    f"{{{ROLLOUT}, limits: {{usd: much}}}}": "3:59 `usd` must be a number, not `much`",
    "{kind: reduction, of: [e], reducer: stats, min_success: 2}": "3:62 `min_success` must be a number from 0 to 1, "
    "not `2`",
    # text
    "{kind: agent, version: 1.0, entry: 'a:B'}": '3:29 `version` must be text, not `1.0` | write "1.0" with quotes',
    "{kind: agent, version: 1.10, entry: 'a:B'}": '3:29 `version` must be text, not `1.10` | write "1.10" with quotes',
    "{kind: sandbox, env: {DEBUG: true}}": '3:35 `DEBUG` must be text, not `true` | write "true" with quotes',
    "{kind: sandbox, env: {A: [b: c]}}": "3:31 `A` must be text, not a list",
    "{kind: command, outs: [o], command: [sh, -c, echo a: b]}": "3:51 item 3 of `command` must be text, not a mapping "
    "| a text that holds `: ` must stand in quotes",
    "{kind: agent, version: '1', entry: agent.py}": "3:41 `entry` must be a module and a class, like `oracle:Oracle`, "
    "not `agent.py`",
    "{kind: image, base: host, user: root}": "3:38 `user` must be two numbers, user and group, like 1000:1000, "
    "not `root`",
    "{kind: sandbox, network: {allow: [example.org]}}": "3:40 item 1 of `allow` must be a host and a port, "
    "like example.org:443, not `example.org`",
    "{kind: dataset, fetch: {url: 'https://x', sha256: abc}}": "3:56 `sha256` must be 64 lower-case hex digits, "
    "not `abc`",
    "{kind: agent, version: '1', command: [x], files: {input: in, output: /out/x}}": "3:63 `input` must be a path "
    "that starts with /, not `in`",
    # truth values
    "{kind: agent, version: '1', entry: 'a:B', pure: yes}": "3:54 `pure` must be true or false, not `yes` | write true",
    "{kind: agent, version: '1', entry: 'a:B', pure: off}": "3:54 `pure` must be true or false, not `off` | "
    "write false",
    # choices and unions
    "{kind: dataset, srcs: [a], format: jsn}": "3:41 `format` must be `jsonl`, `json`, `csv`, `parquet`, `text`, "
    "`dir` or `harbor`, not `jsn` | did you mean `json`?",
    "{kind: model, provider: vlm}": "3:30 `provider` must be `vllm`, `openai` or `scripted`, not `vlm` | "
    "did you mean `vllm`?",
    "{kind: sandbox, network: nne}": "3:31 `network` must be `none`, `open` or a mapping with `allow`, not `nne` | "
    "did you mean `none`?",
    "{kind: sandbox, network: [a]}": "3:31 `network` must be `none`, `open` or a mapping with `allow`, not a list",
    "{kind: dataset, srcs: [a], starter: 3}": "3:42 `starter` must be a list of texts or a mapping with `fields` and "
    "`files`, not `3`",
    "{kind: dataset, srcs: [a], starter: {fields: a}}": '3:51 `fields` must be a list of texts, not `a` | write ["a"]',
    f"{{{ROLLOUT}, matrix: {{a: [[1]]}}}}": "3:58 item 1 of `a` must be text, true or false, a whole number or "
    "a number, not a list",
    # lists, mappings, labels
    "{kind: reduction, of: solve, reducer: stats}": '3:28 `of` must be a list of labels, not `solve` | write ["solve"]',
    "{kind: reduction, of: [], reducer: stats}": "3:28 `of` is empty; it needs at least one entry",
    f"{{{ROLLOUT}, matrix: {{a: []}}}}": "3:57 `a` is empty; it needs at least one entry",
    f"{{{ROLLOUT}, params: 3}}": "3:53 `params` must be a mapping, not `3`",
    "{kind: rollout, over: [tasks], agent: a}": "3:28 `over` must be the label of a dataset, not a list",
    "{kind: dataset, srcs: }": None,
    "{kind: sandbox, env: }": "3:22 `env` must be a mapping, but nothing is written after it | "
    "write it, or delete the line",
    # sizes and durations
    "{kind: sandbox, limits: {memory: 4gb}}": "3:39 `memory`: `4gb` is not a size; write a number and one of B, KiB, "
    "MiB, GiB, TiB, KB, MB, GB, TB, like 4GiB",
    "{kind: sandbox, limits: {memory: 4}}": "3:39 `memory` must be a size with its unit, like 4GiB, not `4`",
    "{kind: sandbox, limits: {wall: 3 weeks}}": "3:37 `wall`: `3 weeks` is not a duration; write a number and one of "
    "ms, s, m, h, d, like 30s",
    f"{{{ROLLOUT}, timeout: 60}}": "3:54 `timeout` must be a duration with its unit, like 30s, not `60`",
    # rules across fields
    "{kind: dataset}": "3:3 a dataset needs exactly one of srcs, fetch, generate, of",
    f"{{{ROLLOUT}, grade: {{command: [a], result: r}}}}": "3:45 grade needs exactly one of command, operator, result",
    "{kind: image, base: host, layers: [{pip: a, npm: b}]}": "3:41 a layer needs exactly one of copy, pip, npm, deb, "
    "tar, dirs, links, run",
    "{kind: dataset, fetch: {url: 'https://x'}}": "3:22 a fetch must be pinned: git by rev (40 hex digits), "
    "anything else by sha256",
    # the target itself
    "{kid: job}": "3:3 the target `t` needs a `kind` | did you mean `kind` for `kid`?",
    "{of: [a]}": f"3:3 the target `t` needs a `kind` | a kind is one of {KIND_LIST}",
    "{kind: rolout}": "3:13 unknown kind `rolout` | did you mean `rollout`?",
    "{kind: xyz}": f"3:13 unknown kind `xyz` | a kind is one of {KIND_LIST}",
    "{kind: true}": f"3:13 unknown kind `true` | a kind is one of {KIND_LIST}",
    "": "3:3 the target `t` must be a mapping with a `kind`, but nothing is written after it | "
    "write it, or delete the line",
    "kind:rollout": "3:6 the target `t` must be a mapping with a `kind`, not `kind:rollout` | "
    "write `kind: rollout`, with a space",
    "[1]": "3:6 the target `t` must be a mapping with a `kind`, not a list",
}


@pytest.mark.parametrize("text", TARGETS)
def test_a_fault_of_a_target_is_one_sentence(text: str) -> None:
    expected = TARGETS[text] or "3:3 a dataset needs exactly one of srcs, fetch, generate, of"
    assert target_errors(text) == [expected]


FILES = {
    "": "1:1 BUILD.yaml is empty | this mrp reads version 1: write `mrp: 1` as the first line",
    "[1]": "1:1 BUILD.yaml must be a mapping with `mrp` and `targets`, not a list",
    "targets: {}": "1:1 BUILD.yaml needs `mrp` | this mrp reads version 1: write `mrp: 1` as the first line",
    "mrp: 2\ntargets: {}": "1:6 `mrp` must be 1, the version of the language, not `2` | "
    "this mrp reads version 1: write `mrp: 1` as the first line",
    "mrp: true\ntargets: {}": "1:6 `mrp` must be 1, the version of the language, not `true` | "
    "this mrp reads version 1: write `mrp: 1` as the first line",
    "mrp: 1": "1:1 BUILD.yaml needs `targets` | write `targets:` with a mapping",
    "mrp: 1\ntargets: []": "2:10 `targets` must be a mapping, not a list",
    "mrp: 1\ntargets:": "2:1 `targets` must be a mapping, but nothing is written after it | "
    "write it, or delete the line",
    "mrp: 1\ntargets: {}\ntarget: {}": "3:1 unknown field `target` in BUILD.yaml | did you mean `targets`?",
    "mrp: 1\ntargets: {bad name: {kind: job, of: [a]}}": "2:11 `bad name` cannot name a target | "
    "use letters, digits and _ . + -, starting with a letter or digit, at most 128",
}


@pytest.mark.parametrize("text", FILES)
def test_a_fault_of_a_build_file_is_one_sentence(text: str) -> None:
    assert build_errors(text) == [FILES[text]]


def test_all_faults_of_a_file_are_reported_at_once() -> None:
    text = """mrp: 1
targets:
  solve: {kind: rollout, over: tasks, agent: 3, samples: 0, grade: {}}
  box: {kind: sandbox, limits: {cpus: many, pids: 0}}
  odd: {kind: nothing}
"""
    assert build_errors(text) == [
        "3:46 `agent` must be the label of an agent, not `3`",
        "3:58 `samples` must be a whole number of at least 1, not `0`",
        "3:61 grade needs exactly one of command, operator, result",
        "4:39 `cpus` must be a number, not `many`",
        "4:51 `pids` must be a whole number of at least 1, not `0`",
        f"5:15 unknown kind `nothing` | a kind is one of {KIND_LIST}",
    ]


def test_a_right_file_becomes_documents_with_their_places() -> None:
    text = b"mrp: 1\ntargets:\n  solve: {kind: rollout, over: tasks, agent: oracle, timeout: 1.5m}\n"
    targets, problems = validate_build(parse_yaml(text, "p/BUILD.yaml"), Sources())
    assert problems == []
    (target,) = targets
    assert (target.name, target.kind, target.name_span) == ("solve", "rollout", Span("p/BUILD.yaml", 3, 3, 8))
    assert isinstance(target.document, Rollout)
    assert target.document.timeout == Decimal(90)


def test_split_build_looks_at_no_field_but_the_kind() -> None:
    text = b"mrp: 1\ntargets:\n  solve: {kind: rollout, samples: {select: {gpu: 4, default: 1}}}\n"
    (target,), problems = split_build(parse_yaml(text, "BUILD.yaml"), Sources())
    assert problems == []
    assert plain(target.node) == {"samples": {"select": {"gpu": 4, "default": 1}}}


def test_a_wrong_target_does_not_hide_the_right_ones() -> None:
    text = b"mrp: 1\ntargets:\n  a: {kind: job, of: [b]}\n  b: {kind: jb}\n  c: {kind: job, of: [d]}\n"
    targets, problems = validate_build(parse_yaml(text, "BUILD.yaml"), Sources())
    assert [target.name for target in targets] == ["a", "c"]
    assert len(problems) == 1


def test_other_documents_speak_of_themselves_by_their_file() -> None:
    sources = Sources()
    workspace = parse_yaml(b"mrp: 1\nnme: x\nsecrets: {provider: file}", "mrp.yaml")
    assert shown(validate(WorkspaceFile, workspace, sources)[1]) == [
        "2:1 unknown field `nme` in mrp.yaml | did you mean `name`?",
        "3:21 `provider` must be `env`, `dotenv` or `command`, not `file`",
    ]
    policy = parse_yaml(b"mrp: 1\nrules: [{name: a}]\nmax_wall: 1", "policy.yaml")
    assert shown(validate(PolicyFile, policy, sources)[1]) == [
        "2:9 item 1 of `rules` needs `deny` | write `deny:` with text",
        "3:11 `max_wall` must be a duration with its unit, like 30s, not `1`",
    ]


def test_did_you_mean_knows_swaps_cases_and_when_to_be_silent() -> None:
    known = ["samples", "sandbox", "seed", "over"]
    assert did_you_mean("sampels", known) == "did you mean `samples`?"
    assert did_you_mean("Samples", known) == "did you mean `samples`?"
    assert did_you_mean("ovre", known) == "did you mean `over`?"
    assert did_you_mean("timeout", known) == ""
    assert did_you_mean("x", []) == ""


# -- the walk agrees with pydantic ------------------------------------------------------------------------------


def example_targets() -> list[tuple[str, Node]]:
    """Every target of the examples in docs/language.md."""
    found = []
    for block in LANGUAGE.read_text().split("```yaml\n# document: build\n")[1:]:
        node = parse_yaml(block.split("```")[0].encode(), "docs/language.md")
        found += [(raw.kind, raw.node) for raw in split_build(node, Sources())[0]]
    return found


EXAMPLES = example_targets()
WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    Decimal("0.5"),
    "",
    "word",
    "none",
    "4GiB",
    [],
    ["a"],
    [1],
    {},
    {"a": "b"},
    {"allow": ["x"]},
]


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where something stands in plain data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


def with_change(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    """`value` with what stands at `place` replaced."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = with_change(value[place[0]], place[1:], new)
    return copy


def as_node(value: Any) -> Node:
    """A node with no places, for plain data."""
    span = Span("x", 1, 1, 2)
    if isinstance(value, dict):
        return Node({key: as_node(item) for key, item in value.items()}, span, dict.fromkeys(value, span))
    return Node([as_node(item) for item in value] if isinstance(value, list) else value, span)


@settings(max_examples=300)
@given(st.data())
def test_the_walk_explains_all_that_pydantic_refuses_and_nothing_else(data: st.DataObject) -> None:
    kind, node = data.draw(st.sampled_from(EXAMPLES), label="target")
    value = plain(node)
    place = data.draw(st.sampled_from(places(value)), label="place")
    changed = with_change(value, place, data.draw(st.sampled_from(WRONG), label="new value"))
    if data.draw(st.booleans(), label="add a field") and isinstance(changed, dict):
        changed = {**changed, "fileds": 1}
    document, problems = validate(KINDS[kind], as_node(changed), Sources())
    try:
        KINDS[kind].model_validate(changed)
    except ValidationError:
        assert document is None
        assert problems
        assert not any("Input should" in item.message for item in problems), problems
    else:
        assert document is not None
        assert problems == []


@pytest.mark.parametrize("model", [Dataset, Limits], ids=lambda model: model.__name__)
def test_a_document_that_is_no_mapping_is_told_so(model: type[Any]) -> None:
    _, problems = validate(model, parse_yaml(b"[]", "f.yaml"), Sources())
    assert [item.message for item in problems] == [
        f"{'a dataset' if model is Dataset else 'limits'} must be a mapping, not a list"
    ]
