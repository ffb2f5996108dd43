"""Policy: strict without being asked, refusing everything at once, and saying what it looked at."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.showcase import showcase
from support.workspaces import Workspace

from mrp.compiler.analysis import analyse
from mrp.compiler.lower import operator_digest
from mrp.compiler.policy import Subject, rules_of
from mrp.compiler.secret_texts import may_hold_secret, secret_in
from mrp.specs.errors import SpecError
from mrp.specs.ir import OperatorTask
from mrp.specs.yaml import Node, parse_yaml

HEAD = "mrp: 1\ntargets:\n"
PIN = "0" * 64


def workspace(root: Path, targets: str, policy: str | None = None, **files: str) -> Workspace:
    written = {"BUILD.yaml": HEAD + targets, **files}
    if policy is not None:
        written |= {"mrp.yaml": "mrp: 1\nname: t\npolicy: policy.yaml\n", "policy.yaml": "mrp: 1\n" + policy}
    return Workspace(root, written)


def messages(found: Workspace, *targets: str) -> list[str]:
    code, text = found.refused(*targets)
    assert code == 3, text
    return [line.split("error: policy: ")[1] for line in text.splitlines() if "error: policy: " in line]


RUN = "  run: {kind: command, outs: [o], command: [touch, o], sandbox: box}\n"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("  box: {kind: sandbox, network: open}\n", ["the network is not open"]),
        ('  box: {kind: sandbox, network: {allow: ["a.org:443"]}}\n', ["the host a.org:443 is not allowed"]),
        ("  box: {kind: sandbox, limits: {memory: 65GiB}}\n", ["65GiB of memory is more than 64GiB"]),
        ("  box: {kind: sandbox, limits: {cpus: 64.5}}\n", ["64.5 cpus are more than 64"]),
        ("  box: {kind: sandbox, limits: {wall: 3h}}\n", ["10800s is more than 7200s, the longest timeout"]),
        ("  box: {kind: sandbox, secrets: [TOKEN]}\n", ["the secret TOKEN is not allowed"]),
        (
            "  box: {kind: sandbox, image: i}\n  i: {kind: image, base: 'python:3.11'}\n",
            ["the image python:3.11 is not pinned"],
        ),
        (
            "  box: {kind: sandbox, image: i}\n  i: {kind: image, base: 'modal:///debian'}\n",
            ["modal:///debian is not among the allowed images"],
        ),
    ],
)
def test_without_a_policy_file_the_strict_policy_holds(tmp_path: Path, targets: str, expected: list[str]) -> None:
    assert messages(workspace(tmp_path, targets + RUN), "//:run") == expected


@pytest.mark.parametrize(
    ("targets", "policy"),
    [
        ("  box: {kind: sandbox, network: open}\n", "network: ['*']\n"),
        ('  box: {kind: sandbox, network: {allow: ["a.b.org:443"]}}\n', "network: ['*.b.org:443']\n"),
        (
            "  box: {kind: sandbox, limits: {memory: 65GiB, cpus: 70, wall: 3h}}\n",
            "max_memory: 66GiB\nmax_cpus: 70\nmax_timeout: 3h\n",
        ),
        ("  box: {kind: sandbox, secrets: [TOKEN]}\n", "secrets: [TOKEN]\n"),
        (
            "  box: {kind: sandbox, image: i}\n  i: {kind: image, base: 'modal:///debian'}\n",
            "images: ['//...', 'modal:///*']\n",
        ),
        (
            f"  box: {{kind: sandbox, image: i}}\n  i: {{kind: image, base: 'python@sha256:{PIN}'}}\n",
            "images: ['//...', 'python@sha256:*']\n",
        ),
    ],
)
def test_a_policy_file_may_allow_what_the_strict_one_refuses(tmp_path: Path, targets: str, policy: str) -> None:
    found = workspace(tmp_path, targets + RUN, policy)
    assert found.compile("//:run").policy_report["status"] == "pass"
    found.write({"policy.yaml": "mrp: 1\nimages: ['//...', host]\n"})
    assert found.refused("//:run")[0] == 3


@pytest.mark.parametrize(
    ("targets", "policy", "expected"),
    [
        (
            "  box: {kind: sandbox, image: i}\n  i: {kind: image, base: host}\n",
            "images: ['//ok/...', host]\n",
            ["//:i is not among the allowed images"],
        ),
        (
            "  box: {kind: sandbox}\n  other: {kind: command, outs: [p], command: [a]}\n",
            "images: []\n",
            ["host is not among the allowed images"],
        ),
    ],
)
def test_images_must_be_on_the_list(tmp_path: Path, targets: str, policy: str, expected: list[str]) -> None:
    asked = "//:other" if "other" in targets else "//:run"
    assert messages(workspace(tmp_path, targets + RUN, policy), asked) == expected


ROLLOUT = """\
  t: {kind: dataset, generate: {range: 1}}
  a: {kind: agent, version: "1", command: [sh]}
  r: {kind: rollout, over: t, agent: a, grade: {result: reward}, timeout: 3h, limits: {usd: 2}}
  e: {kind: reduction, of: [r], reducer: count}
  s: {kind: sink, type: json, path: out/a.json, acl: [":allowed"]}
  allowed: {kind: produce, of: e, sink: s}
  other: {kind: produce, of: e, sink: s}
"""


def test_operators_rewards_timeouts_money_and_sinks_are_looked_at(tmp_path: Path) -> None:
    policy = (
        "operators: ['//ok/...']\nself_reported_rewards: false\nmax_usd: 1\nsinks: ['//b/...']\nsink_paths: ['b/**']\n"
    )
    assert messages(workspace(tmp_path, ROLLOUT, policy), "//:allowed") == [
        "//:a is not among the allowed operators",
        "agents may not report their own reward",
        "10800s is more than 7200s, the longest timeout",
        "2 USD is more than 1 USD, the most that may be spent",
        "//:s is not among the allowed sinks",
        "out/a.json is not among the allowed sink paths",
    ]


def test_a_sink_takes_only_those_that_its_acl_names(tmp_path: Path) -> None:
    found = workspace(tmp_path, ROLLOUT, "max_timeout: 3h\n")
    assert found.compile("//:allowed").policy_report["status"] == "pass"
    assert messages(found, "//:allowed", "//:other") == ["//:other may not write to //:s"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".mrp/x.json", ".mrp/x.json is where mrp keeps its own files"),
        ("mrp-out/x.json", "mrp-out/x.json is where mrp keeps its own files"),
        ("in.jsonl", "in.jsonl is a source of this plan, which a sink must not change"),
        ("data", "data is a source of this plan, which a sink must not change"),
    ],
)
def test_a_sink_never_writes_over_sources_or_into_mrps_own_folders(tmp_path: Path, path: str, expected: str) -> None:
    targets = (
        '  t: {kind: dataset, srcs: [in.jsonl, "data/*"]}\n'
        f"  s: {{kind: sink, type: json, path: {path}}}\n"
        "  p: {kind: produce, of: t, sink: s}\n"
    )
    found = workspace(tmp_path, targets, **{"in.jsonl": "{}", "data/a.jsonl": "{}"})
    assert messages(found, "//:p") == [expected]


def test_each_from_of_a_dockerfile_must_be_pinned(tmp_path: Path) -> None:
    targets = "  box: {kind: sandbox, image: i}\n  i: {kind: image, base: {dockerfile: Dockerfile, context: c}}\n"
    dockerfile = (
        f"FROM one@sha256:{PIN} AS built\nFROM --platform=linux/amd64 \\\n  two:latest\nFROM built\nFROM scratch\n"
    )
    found = workspace(tmp_path, targets + RUN, **{"Dockerfile": dockerfile, "c/a": ""})
    assert messages(found, "//:run") == ["the image two:latest is not pinned"]


SECRETS = {
    "an OpenAI or Anthropic key": "sk-" + "proj-a1" * 4,
    "a GitHub token": "ghp_" + "a1" * 18,
    "an AWS access key": "AKIA" + "ABCDEFGH12345678",
    "a Google API key": "AIza" + "a" * 35,
    "a Hugging Face token": "hf_" + "a" * 34,
    "a Slack token": "xoxb-" + "1" * 12,
    "a GitLab token": "glpat-" + "a" * 20,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize(("kind", "value"), list(SECRETS.items()))
def test_a_value_that_looks_like_a_secret_is_refused_and_never_shown(tmp_path: Path, kind: str, value: str) -> None:
    found = workspace(
        tmp_path, f"  run: {{kind: command, outs: [o], command: [a], env: {{KEY: '{value}', A: 'task-{value}'}}}}\n"
    )
    code, text = found.refused("//:run")
    assert code == 3
    assert f"a value here looks like {kind}" in text
    assert value not in text


def test_another_error_on_the_line_of_a_secret_does_not_show_it_either(tmp_path: Path) -> None:
    value = SECRETS["a GitHub token"]
    text = workspace(tmp_path, f"  run: {{kind: command, outs: [o], comand: [a], env: {{KEY: {value}}}}}\n").error(
        "//:run"
    )
    assert "unknown field `comand`" in text
    assert value not in text


@pytest.mark.parametrize(
    "text", ["task-17", "risk-free-ai-model-with-a-long-name", "sk-learn", "disk-0123456789abcdefghij"]
)
def test_ordinary_texts_are_no_secrets(text: str) -> None:
    assert secret_in(text) is None


def texts(node: Node) -> list[str]:
    """All texts of a document but its keys."""
    value = node.value
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


pieces = st.sampled_from(
    [
        *SECRETS.values(),
        "sk-",
        "1234567890abcdef" * 2,
        "\n",
        "  ",
        "- ",
        "k: ",
        "|",
        ">",
        "\n    ",
        "'",
        '"',
        "\\",
        "\\x73",
    ]
)


@given(st.lists(pieces | st.text(max_size=2), max_size=10).map("".join))
@example('k: "\\x73k-1234567890abcdef1234567890abcdef"')
@example('k: "sk-1234567890\\\n  abcdef1234567890abcdef"')
@example("k: >-\n  -----BEGIN\n  RSA PRIVATE KEY-----")
def test_a_document_whose_bytes_hold_no_start_of_a_secret_holds_none(text: str) -> None:
    try:
        node = parse_yaml(text.encode(), "BUILD.yaml")
    except SpecError:
        return
    if any(map(secret_in, texts(node))):
        assert may_hold_secret(text.encode())


def test_most_documents_are_known_to_hold_no_secret() -> None:
    assert not may_hold_secret(b"mrp: 1\ntargets:\n  task-17: {kind: command, command: [risk, -x]}\n")


def test_a_rule_is_asked_about_all_kinds_that_it_may_concern(tmp_path: Path) -> None:
    workspace = showcase(tmp_path)
    analysis = analyse(workspace.root)
    subjects = [Subject(found.unit, analysis.task(label)) for label, found in analysis.resolved.items()]
    rules = rules_of(analysis.workspace, frozenset(), analysis.problems)
    limited = [rule for rule in rules if rule.kinds is not None]
    assert len({subject.unit.kind for subject in subjects}) > 10 and len(limited) > 10
    for rule in limited:
        asked = {subject.unit.kind for subject in subjects if rule.check(subject) is not None}
        assert asked and asked <= set(rule.kinds or ()), rule.name


def test_a_rule_of_ones_own_denies_by_the_fields_of_a_target(tmp_path: Path) -> None:
    policy = """\
rules:
  - {name: few-samples, deny: "kind == 'rollout' and samples > 3", message: ask the owner}
  - {name: small, deny: "limits.memory > 1073741824"}
"""
    targets = """\
  t: {kind: dataset, generate: {range: 1}}
  box: {kind: sandbox, limits: {memory: 2GiB}}
  r: {kind: rollout, over: t, agent: builtin:nop, samples: 4, sandbox: box}
"""
    code, text = workspace(tmp_path, targets, policy).refused("//:r")
    assert code == 3
    assert text == (
        "BUILD.yaml:4:32: error: policy: //:box breaks the rule `small`\n"
        "    box: {kind: sandbox, limits: {memory: 2GiB}}\n"
        "                                 ^^^^^^^^^^^^^^\n"
        "  it denies limits.memory > 1073741824\n"
        "BUILD.yaml:5:60: error: policy: //:r breaks the rule `few-samples`\n"
        "    r: {kind: rollout, over: t, agent: builtin:nop, samples: 4, sandbox: box}\n"
        "                                                             ^\n"
        "  ask the owner"
    )


def test_a_policy_that_is_wrong_itself_is_an_error_of_the_user(tmp_path: Path) -> None:
    policy = "operators: ['//a:b:c']\nsink_paths: ['../x']\nrules: [{name: a, deny: 'x >'}]\nmax_memroy: 1GiB\n"
    text = workspace(tmp_path, "  t: {kind: dataset, generate: {range: 1}}\n", policy).error()
    assert "unknown field `max_memroy` in policy.yaml" in text
    fixed = policy.replace("max_memroy", "max_memory")
    text = workspace(tmp_path, "  t: {kind: dataset, generate: {range: 1}}\n", fixed).error()
    assert [line.split(": error: ")[0] for line in text.splitlines() if ": error: " in line] == [
        "policy.yaml:2:13",
        "policy.yaml:3:14",
        "policy.yaml:4:25",
    ]


def test_policy_looks_at_what_is_planned_and_says_so(tmp_path: Path) -> None:
    targets = "  box: {kind: sandbox, network: open}\n  t: {kind: dataset, generate: {range: 1}}\n" + RUN
    found = workspace(tmp_path, targets)
    report: Any = found.compile("//:t").policy_report
    assert (report["policy"], report["status"]) == ("built-in", "pass")
    assert {rule["rule"]: rule["checked"] for rule in report["rules"]}["secret values"] == ["//:t"]
    assert found.refused("//:run")[0] == 3


AGENT = "  a: {kind: agent, version: '1', entry: 'm:A'}\n  t: {kind: dataset, generate: {operator: ':a'}}\n"


def pinned(root: Path, version: str, digest: str, label: str = "//:a") -> Workspace:
    lock = f"mrp: 1\noperators:\n  {label}: {{version: '{version}', digest: '{digest}'}}\n"
    return workspace(root, AGENT, **{"m.py": "pass", "operators.lock": lock})


def test_a_pinned_operator_must_be_the_one_that_was_approved(tmp_path: Path) -> None:
    task = workspace(tmp_path, AGENT, **{"m.py": "pass"}).tasks("//:t")["//:a"]
    assert isinstance(task, OperatorTask)
    digest = operator_digest(task)

    found = pinned(tmp_path, "1", digest)
    found.compile("//:t")
    assert "//:a has version 1, but 2 is pinned" in pinned(tmp_path, "2", digest).refused("//:t")[1]

    pinned(tmp_path, "1", digest).write({"m.py": "pass  # changed"})
    code, text = found.refused("//:t")
    assert code == 3
    assert "operators.lock:3:32: error: //:a is not the operator that is pinned: its digest is " in text


def test_a_pin_of_nothing_is_an_error(tmp_path: Path) -> None:
    text = pinned(tmp_path, "1", PIN, label="//:aa").error()
    assert "operators.lock:3:3: error: operators.lock pins //:aa, which is no operator" in text
