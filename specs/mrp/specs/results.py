"""What an action leaves behind: an outcome, outputs by digest, and byproducts that enter no key.

The result's digest covers what later actions may depend on (outcome, outputs, values). Logs, cost, times and the
isolation that was achieved are byproducts: kept for every attempt, never hashed into a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from mrp.cache.canonical import Json, Spelled, canonical_text, number_text, quoted
from mrp.cache.digest import ActionKey, Digest, digest_bytes


class Outcome(StrEnum):
    """How an action ended. Only the first three are results; the rest are never cached and never a score."""

    OK = "ok"
    FAILED = "failed"
    LIMIT = "limit"
    INFRA_ERROR = "infra_error"
    CANCELLED = "cancelled"
    BUDGET = "budget"
    DENIED = "denied"

    @property
    def is_result(self) -> bool:
        return self is Outcome.OK or self is Outcome.FAILED or self is Outcome.LIMIT


@dataclass(frozen=True, slots=True)
class Ref:
    """An artifact: a blob or a tree in the store."""

    kind: Literal["blob", "tree"]
    digest: Digest

    def to_json(self) -> Json:
        return {self.kind: self.digest}


def ref_from_json(value: Mapping[str, str]) -> Ref:
    ((kind, digest),) = value.items()
    return Ref("tree" if kind == "tree" else "blob", Digest(digest))


@dataclass(frozen=True, slots=True)
class Result:
    """What is cached under a key. `limit` names the limit that was hit; `values` are e.g. a grade's rewards.

    `reproducible` is false where the outcome depended on the machine's speed (a wall limit) or on such a result.
    """

    outcome: Outcome
    limit: str | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    values: Mapping[str, Json] = field(default_factory=dict)
    reproducible: bool = True

    def digest(self) -> Digest:
        """Covers outcome, limit, outputs and values, in canonical form."""
        return digest_bytes(self._text("").encode())

    def spelled(self) -> Spelled:
        """The canonical text of `to_json`."""
        return Spelled(self._text(f'"reproducible":{"true" if self.reproducible else "false"},'))

    def _text(self, after_outputs: str) -> str:
        outputs = [f'{quoted(name)}:{{"{ref.kind}":"{ref.digest}"}}' for name, ref in sorted(self.outputs.items())]
        limit = "null" if self.limit is None else quoted(self.limit)
        return (
            f'{{"limit":{limit},"outcome":"{self.outcome.value}","outputs":{{{",".join(outputs)}}},{after_outputs}'
            f'"values":{canonical_text(self.values) if self.values else "{}"}}}'
        )

    def to_json(self) -> Json:
        return {
            "outcome": self.outcome.value,
            "limit": self.limit,
            "outputs": {name: ref.to_json() for name, ref in self.outputs.items()},
            "values": self.values,
            "reproducible": self.reproducible,
        }


def result_from_json(value: Mapping[str, Json]) -> Result:
    return Result(
        outcome=Outcome(value["outcome"]),
        limit=value["limit"],
        outputs={name: ref_from_json(ref) for name, ref in value["outputs"].items()},
        values=value["values"],
        reproducible=value["reproducible"],
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used: seconds, bytes, US dollars, tokens."""

    wall_s: Decimal = Decimal(0)
    cpu_s: Decimal = Decimal(0)
    max_rss: int = 0
    usd: Decimal = Decimal(0)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Byproducts:
    """What is kept of an attempt beside its result; `reason` is one sentence for people.

    `attempt` counts from 1. `isolation` is the level that was achieved (see mrp.specs.work.ISOLATION). `calls` are the
    keys under which the calls of a model are kept that were answered, in order. `determinism` is `pure`, or `sampled`
    for what a model or a network had a part in, or `seeded` where the model is declared so.
    """

    attempt: int = 1
    exit_code: int | None = None
    reason: str = ""
    stdout: Digest | None = None
    stderr: Digest | None = None
    diff: Digest | None = None
    trajectory: Digest | None = None
    metrics: Mapping[str, Json] = field(default_factory=dict)
    isolation: str = "namespaces"
    usage: Usage = Usage()
    calls: tuple[ActionKey, ...] = ()
    determinism: str = "pure"

    def to_json(self) -> Json:
        usage = self.usage
        rare: dict[str, Json] = {"calls": list(self.calls)} if self.calls else {}
        if self.determinism != "pure":
            rare["determinism"] = self.determinism
        return {
            **rare,
            "attempt": self.attempt,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "diff": self.diff,
            "trajectory": self.trajectory,
            "metrics": self.metrics,
            "isolation": self.isolation,
            "usage": {
                "wall_s": usage.wall_s,
                "cpu_s": usage.cpu_s,
                "max_rss": usage.max_rss,
                "usd": usage.usd,
                "tokens": usage.tokens,
            },
        }

    def spelled(self) -> Spelled:
        """The canonical text of `to_json`."""
        usage = self.usage
        calls = f'"calls":{canonical_text(self.calls)},' if self.calls else ""
        determinism = f'"determinism":{quoted(self.determinism)},' if self.determinism != "pure" else ""
        stdout, stderr, diff, trajectory = (
            "null" if digest is None else f'"{digest}"'
            for digest in (self.stdout, self.stderr, self.diff, self.trajectory)
        )
        return Spelled(
            f'{{"attempt":{self.attempt},{calls}{determinism}"diff":{diff},"exit_code":{canonical_text(self.exit_code)}'
            f',"isolation":{quoted(self.isolation)}'
            f',"metrics":{canonical_text(self.metrics) if self.metrics else "{}"},"reason":{quoted(self.reason)}'
            f',"stderr":{stderr},"stdout":{stdout},"trajectory":{trajectory}'
            f',"usage":{{"cpu_s":{number_text(usage.cpu_s)},"max_rss":{number_text(usage.max_rss)}'
            f',"tokens":{number_text(usage.tokens)},"usd":{number_text(usage.usd)}'
            f',"wall_s":{number_text(usage.wall_s)}}}}}'
        )

    def blobs(self) -> list[Digest]:
        """The blobs that must be kept for `inspect` to show this attempt."""
        return [d for d in (self.stdout, self.stderr, self.diff, self.trajectory) if d is not None]


def byproducts_from_json(value: Mapping[str, Json]) -> Byproducts:
    usage = value["usage"]
    return Byproducts(
        **{name: value[name] for name in value if name not in ("usage", "calls")},
        calls=tuple(value.get("calls", ())),
        usage=Usage(
            wall_s=Decimal(usage["wall_s"]),
            cpu_s=Decimal(usage["cpu_s"]),
            max_rss=usage["max_rss"],
            usd=Decimal(usage["usd"]),
            tokens=usage["tokens"],
        ),
    )
