"""Policy: what a plan may ask for, checked before anything runs; whatever is not allowed is refused.

Each rule looks at the tasks that concern it. All refusals are reported together, each at the field that asks for too
much, and the report lists every rule with what it looked at, so that a passed check can be read as one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from mrp.cache.canonical import Json, number_text
from mrp.compiler.declare import Unit
from mrp.compiler.dockerfile import bases_of
from mrp.compiler.lower import sink_path
from mrp.compiler.places import runs_in_host_sandbox
from mrp.compiler.problems import Problems
from mrp.compiler.references import OPERATORS, Location
from mrp.compiler.secret_texts import may_hold_secret, secret_in
from mrp.compiler.workspace import Workspace
from mrp.rules.globs import parse_glob
from mrp.specs import documents, ir
from mrp.specs.documents import PolicyFile
from mrp.specs.expectation import document_fields
from mrp.specs.expressions import ExpressionError, parse_condition, parse_expression
from mrp.specs.labels import parse_label, parse_patterns
from mrp.specs.quantity import size_text
from mrp.specs.suggest import did_you_mean
from mrp.specs.yaml import Node, Sources, span_at

PINNED = "@sha256:"
_RULE_FIELDS = ("kind", "label", "package", "name")
"""What a user's rule sees beside the fields of a target."""

OWN_FOLDERS = (".mrp", "mrp-out", ".git")
"""Where no sink may write, whatever the policy says."""


@dataclass(frozen=True)
class Subject:
    """A unit that the plan needs. `task` is None for sinks; `users` are the produce targets that write to a sink."""

    unit: Unit
    task: ir.Task | None
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """What is refused: the field, one sentence, the next step."""

    location: Location
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Rule:
    """`check` gives what it refuses of a subject, and None when the rule does not concern it.

    `kinds`: the only kinds of targets that it may concern, so that it need not be asked about others; None for all.
    """

    name: str
    allows: Json
    check: Callable[[Subject], Iterable[Refusal] | None]
    kinds: tuple[str, ...] | None = None


def check_policy(
    workspace: Workspace, subjects: Iterable[Subject], sources: frozenset[str], problems: Problems
) -> Json:
    """Reports every refusal to `problems`; returns the policy report. `sources` are the files that the plan reads."""
    policy = workspace.policy
    by_kind: dict[str, list[Subject]] = {}
    for subject in sorted(subjects, key=_label):
        by_kind.setdefault(subject.unit.kind, []).append(subject)
    written = [_apply(rule, by_kind, problems) for rule in rules_of(workspace, sources, problems)]
    refused = any(rule["refused"] for rule in written)
    return {
        "policy": workspace.policy_path if workspace.policy_node is not None else "built-in",
        "isolation": policy.isolation,
        "status": "refused" if refused else "pass",
        "rules": written,
    }


def rules_of(workspace: Workspace, sources: frozenset[str], problems: Problems) -> list[Rule]:
    """The built-in rules and those of the workspace's own policy."""
    return [*_Review(workspace, sources, problems.sources).rules(), *_user_rules(workspace.policy)]


def check_policy_file(workspace: Workspace, problems: Problems) -> None:
    """Reports what is wrong with the policy's own patterns and expressions."""
    node, policy = workspace.policy_node, workspace.policy
    if node is None:
        return
    checks: list[tuple[Location, Callable[[str], object], str]] = [
        ((field, number), lambda text: parse_patterns([text]), text)
        for field in ("operators", "images", "sinks")
        for number, text in enumerate(getattr(policy, field))
        if text.startswith(("//", ":"))
    ]
    checks += [(("sink_paths", number), parse_glob, text) for number, text in enumerate(policy.sink_paths)]
    checks += [(("rules", number, "deny"), _parse_deny, rule.deny) for number, rule in enumerate(policy.rules)]
    for location, parse, text in checks:
        try:
            parse(text)
        except ValueError as error:
            message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
            problems.add(span_at(node, location), f"`{location[0]}` of the policy: {message}", hint)


def _parse_deny(text: str) -> None:
    """Refuses what would never be true: a rule that is no condition, or asks for a field that no target has."""
    known = {*_RULE_FIELDS, *(field for kind in documents.KINDS.values() for field in document_fields(kind))}
    for path in sorted(parse_condition(text).paths()):
        if path[0] not in known:
            hint = did_you_mean(path[0], known) or "a rule sees the fields of targets, kind, label, package and name"
            raise ExpressionError(f"no target has a field `{path[0]}`", 1, hint)


def policy_spec(policy: PolicyFile) -> ir.PolicySpec:
    """What the runtime must hold to."""
    return ir.PolicySpec(
        isolation=policy.isolation,
        max_workers=policy.max_workers,
        max_wall=policy.max_wall,
        max_usd=policy.max_usd,
        secrets=tuple(sorted(set(policy.secrets))),
        sink_paths=tuple(policy.sink_paths),
    )


def _label(subject: Subject) -> str:
    return subject.unit.label


def _apply(rule: Rule, by_kind: Mapping[str, list[Subject]], problems: Problems) -> Any:
    checked: list[str] = []
    refused: list[Json] = []
    kinds = by_kind if rule.kinds is None else rule.kinds
    for subject in sorted((subject for kind in kinds for subject in by_kind.get(kind, ())), key=_label):
        found = rule.check(subject)
        if found is None:
            continue
        checked.append(subject.unit.label)
        for refusal in found:
            span = subject.unit.span(*refusal.location)
            problems.refuse(span, f"policy: {refusal.message}", refusal.hint)
            refused.append({"label": subject.unit.label, "message": refusal.message, "at": str(span)})
    return {"rule": rule.name, "allows": rule.allows, "checked": checked, "refused": refused}


class _Review:
    """The built-in rules over one workspace's policy."""

    def __init__(self, workspace: Workspace, sources: frozenset[str], documents: Sources) -> None:
        self._workspace, self._policy, self._sources = workspace, workspace.policy, sources
        self._may_hold_secret = cache(lambda path: may_hold_secret(documents.text(path)))

    def rules(self) -> list[Rule]:
        policy = self._policy
        return [
            Rule("network", policy.network, self._network, ("sandbox",)),
            Rule("memory", size_text(policy.max_memory), self._memory, ("sandbox",)),
            Rule("cpus", policy.max_cpus, self._cpus, ("sandbox",)),
            Rule("timeout", policy.max_timeout, self._timeout, ("sandbox", "rollout", "session")),
            Rule("wall", policy.max_wall, self._wall, ("job",)),
            Rule("usd", policy.max_usd, self._usd, ("job", "rollout")),
            Rule("pinned images", "name@sha256:...", self._pinned, ("image",)),
            Rule("images", policy.images, self._images),
            Rule("operators", policy.operators, self._operators, OPERATORS),
            Rule("sinks", policy.sinks, self._sinks, ("sink",)),
            Rule("sink paths", policy.sink_paths, self._sink_paths, ("sink",)),
            Rule("sink acl", None, self._acl, ("sink",)),
            Rule("secrets", policy.secrets, self._secrets, ("sandbox", "dataset", "model", "sink")),
            Rule("secret values", [], self._secret_values),
            Rule("self-reported rewards", policy.self_reported_rewards, self._rewards, ("rollout",)),
        ]

    def _network(self, subject: Subject) -> Iterable[Refusal] | None:
        match subject.task:
            case ir.SandboxTask(network="none"):
                return []
            case ir.SandboxTask(network="open"):
                hint = "list the hosts it needs under `allow`, and in the policy's `network`"
                return [] if "*" in self._policy.network else [Refusal(("network",), "the network is not open", hint)]
            case ir.SandboxTask(network=tuple(hosts)):
                written = subject.unit.document.model_dump()["network"]["allow"]
                return [
                    Refusal(
                        ("network", "allow", written.index(host)),
                        f"the host {host} is not allowed",
                        f'add "{host}" to the policy\'s `network`',
                    )
                    for host in hosts
                    if not any(fnmatchcase(host, pattern) for pattern in self._policy.network)
                ]
        return None

    def _memory(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.SandboxTask):
            return None
        asked, most = subject.task.limits.memory, self._policy.max_memory
        message = f"{size_text(asked)} of memory is more than {size_text(most)}"
        return [Refusal(("limits", "memory"), message, "ask for less")] if asked > most else []

    def _cpus(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.SandboxTask):
            return None
        asked, most = subject.task.limits.cpus, self._policy.max_cpus
        message = f"{number_text(asked)} cpus are more than {number_text(most)}"
        return [Refusal(("limits", "cpus"), message, "ask for fewer")] if asked > most else []

    def _timeout(self, subject: Subject) -> Iterable[Refusal] | None:
        asked: list[tuple[Location, Decimal | None]]
        match subject.task:
            case ir.SandboxTask() as sandbox:
                asked = [(("limits", "wall"), sandbox.limits.wall)]
            case ir.MapTask() as rollout:
                grade = rollout.grade
                asked = [(("timeout",), rollout.timeout), (("grade", "timeout"), grade.timeout if grade else None)]
            case ir.SessionTask() as session:
                asked = [(("timeout",), session.spec["timeout"])]
            case _:
                return None
        return _above(asked, self._policy.max_timeout, "s", "the longest timeout")

    def _wall(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.JobTask):
            return None
        return _above([(("budget", "wall"), subject.task.wall)], self._policy.max_wall, "s", "the longest run")

    def _usd(self, subject: Subject) -> Iterable[Refusal] | None:
        most = self._policy.max_usd
        match subject.task:
            case ir.JobTask() as job:
                asked: list[tuple[Location, Decimal | None]] = [(("budget", "usd"), job.usd)]
            case ir.MapTask() as rollout:
                asked = [(("limits", "usd"), rollout.usd)]
            case _:
                return None
        return [] if most is None else _above(asked, most, " USD", "the most that may be spent")

    def _pinned(self, subject: Subject) -> Iterable[Refusal] | None:
        return None if not isinstance(subject.task, ir.ImageTask) else list(self._unpinned(subject))

    def _unpinned(self, subject: Subject) -> Iterator[Refusal]:
        for location, base in self._bases(subject):
            provided = ":///" in base and not base.startswith("registry:///")
            if base in ("host", "scratch") or base.startswith("//") or provided or PINNED in base:
                continue
            hint = f"write {base}@sha256:... with its digest, or `:name` for a target"
            yield Refusal(location, f"the image {base} is not pinned", hint)

    def _images(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.ImageTask):
            return self._host(subject)
        allowed = self._policy.images
        refused = [] if _label_in(subject.unit.label, allowed) else [_not_in("images", subject.unit.label, ())]
        for location, base in self._bases(subject):
            named = _label_in(base, allowed) if base.startswith("//") else any(fnmatchcase(base, p) for p in allowed)
            if not named and (":///" in base or PINNED in base or base in ("host", "scratch") or base[:2] == "//"):
                refused.append(_not_in("images", base, location))
        return refused

    def _host(self, subject: Subject) -> Iterable[Refusal] | None:
        """Whoever runs in builtin:host uses the image `host`."""
        if subject.task is None or not runs_in_host_sandbox(subject.task):
            return None
        return [] if "host" in self._policy.images else [_not_in("images", "host", ("sandbox",))]

    def _bases(self, subject: Subject) -> list[tuple[Location, str]]:
        task = subject.task
        assert isinstance(task, ir.ImageTask)
        if isinstance(task.base, str):
            return [(("base",), task.base)]
        location = ("base", "dockerfile")
        return [(location, base) for base in bases_of(self._workspace.root / task.base["dockerfile"])]

    def _operators(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.OperatorTask):
            return None
        label = subject.unit.label
        return [] if _label_in(label, self._policy.operators) else [_not_in("operators", label, ())]

    def _sinks(self, subject: Subject) -> Iterable[Refusal] | None:
        if subject.unit.kind != "sink":
            return None
        label = subject.unit.label
        return [] if _label_in(label, self._policy.sinks) else [_not_in("sinks", label, ())]

    def _sink_paths(self, subject: Subject) -> Iterable[Refusal] | None:
        sink = subject.unit.document
        if not isinstance(sink, documents.Sink) or sink.type == "s3":
            return None
        path = sink_path(sink, subject.unit.package)
        if path.split("/")[0] in OWN_FOLDERS:
            return [Refusal(("path",), f"{path} is where mrp keeps its own files", "write somewhere else")]
        if path in self._sources or any(source.startswith(f"{path}/") for source in self._sources):
            return [Refusal(("path",), f"{path} is a source of this plan, which a sink must not change", "rename it")]
        if any(parse_glob(pattern).matches(path) for pattern in self._policy.sink_paths):
            return []
        return [_not_in("sink_paths", path, ("path",))]

    def _acl(self, subject: Subject) -> Iterable[Refusal] | None:
        sink = subject.unit.document
        if not isinstance(sink, documents.Sink):
            return None
        return [
            Refusal(("acl",), f"{user} may not write to {subject.unit.label}", "add it to the sink's `acl`")
            for user in subject.users
            if sink.acl and not _label_in(user, sink.acl, subject.unit.package)
        ]

    def _secrets(self, subject: Subject) -> Iterable[Refusal] | None:
        asked: list[tuple[Location, str | None]] = []
        match subject.unit.document:
            case documents.Sandbox() as sandbox:
                asked = [(("secrets", number), name) for number, name in enumerate(sandbox.secrets)]
            case documents.Dataset() as dataset:
                asked = [(("fetch", "secret"), dataset.fetch.secret if dataset.fetch else None)]
            case documents.Model() as model:
                asked = [(("secret",), model.secret)]
            case documents.Sink() as sink:
                asked = [(("secret",), sink.secret)]
            case _:
                return None
        return [
            Refusal(place, f"the secret {name} is not allowed", f"add {name} to the policy's `secrets`")
            for place, name in asked
            if name is not None and name not in self._policy.secrets
        ]

    def _secret_values(self, subject: Subject) -> Iterable[Refusal]:
        unit = subject.unit
        # What the matrix fills in may complete a text that no document holds.
        if unit.cell.texts or self._may_hold_secret(unit.target.span.path):
            return self._secret_texts(subject)
        return ()

    def _secret_texts(self, subject: Subject) -> Iterator[Refusal]:
        for location, text in _texts(subject.unit.node, ()):
            kind = secret_in(text)
            if kind is not None:
                hint = "take it out of the file, revoke it, and name it under `secrets`"
                yield Refusal(location, f"a value here looks like {kind}", hint)

    def _rewards(self, subject: Subject) -> Iterable[Refusal] | None:
        if not isinstance(subject.task, ir.MapTask) or subject.task.grade is None:
            return None
        if subject.task.grade.result is None or self._policy.self_reported_rewards:
            return []
        return [Refusal(("grade", "result"), "agents may not report their own reward", "grade with a command")]


def _user_rules(policy: PolicyFile) -> Iterator[Rule]:
    for rule in policy.rules:
        yield Rule(rule.name, f"not ({rule.deny})", _denier(rule))


def _denier(rule: documents.PolicyRule) -> Callable[[Subject], Iterable[Refusal]]:
    expression = parse_expression(rule.deny)

    def check(subject: Subject) -> list[Refusal]:
        unit = subject.unit
        fields = unit.document.model_dump(by_alias=True)
        known = dict(zip(_RULE_FIELDS, (unit.kind, unit.label, unit.package, unit.target.name), strict=True))
        if not expression.holds({**fields, **known}):
            return []
        place = next((path[:1] for path in sorted(expression.paths()) if path[0] in unit.node.key_spans), ())
        return [Refusal(place, f"{unit.label} breaks the rule `{rule.name}`", rule.message or f"it denies {rule.deny}")]

    return check


def _above(asked: list[tuple[Location, Decimal | None]], most: Decimal, what: str, cap: str) -> list[Refusal]:
    return [
        Refusal(place, f"{number_text(value)}{what} is more than {number_text(most)}{what}, {cap}", "ask for less")
        for place, value in asked
        if value is not None and value > most
    ]


def _not_in(field: str, name: str, location: Location) -> Refusal:
    message = f"{name} is not among the allowed {field.replace('_', ' ')}"
    return Refusal(location, message, f"add it to the policy's `{field}`, or use another")


def _label_in(label: str, patterns: list[str], package: str = "") -> bool:
    labels = [text for text in patterns if text.startswith(("//", ":"))]
    return bool(labels) and parse_patterns(labels, package).matches(parse_label(label))


def _texts(node: Node, location: Location) -> Iterator[tuple[Location, str]]:
    value: Any = node.value
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*location, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*location, number))
