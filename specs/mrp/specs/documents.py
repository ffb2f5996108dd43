"""The documents that users write, as pydantic models: one class a kind, unknown fields refused.

The YAML reader (mrp.specs.yaml) hands these models plain values: str, bool, None, int, Decimal, list, dict. A label
field is marked `LabelRef`, so that the compiler finds every edge of the graph by looking at the types. `select` and
`${matrix...}` are resolved before validation, so the models know nothing of them.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from mrp.specs.quantity import parse_duration, parse_size


@dataclass(frozen=True)
class LabelRef:
    """Marks a string field as a label; `kinds` are the kinds that it may point to."""

    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expect:
    """Marks a type with the words that an error uses for what is expected there."""

    words: str


def _size(value: Any) -> int:
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError("write a size with its unit, like 4GiB")


def _duration(value: Any) -> Decimal:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("write a duration with its unit, like 30s")


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("a number is expected")
    return Decimal(value)


_SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?([KMGT]i?)?B$"
_DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$"

Size = Annotated[
    int,
    BeforeValidator(_size),
    Expect("a size with its unit, like 4GiB"),
    WithJsonSchema({"type": "string", "pattern": _SIZE_PATTERN}),
]
Duration = Annotated[
    Decimal,
    BeforeValidator(_duration),
    Expect("a duration with its unit, like 30s"),
    WithJsonSchema({"type": "string", "pattern": _DURATION_PATTERN}),
]
Number = Annotated[Decimal, BeforeValidator(_decimal), Expect("a number"), WithJsonSchema({"type": "number"})]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Version = Annotated[int, Field(ge=1, le=1), Expect("1, the version of the language"), WithJsonSchema({"const": 1})]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Expect("64 lower-case hex digits")]
GitCommit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$"), Expect("a commit, as 40 lower-case hex digits")]
Entry = Annotated[
    str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Expect("a module and a class, like `oracle:Oracle`")
]
GuestPath = Annotated[str, Field(pattern=r"^/"), Expect("a path that starts with /")]
HostAndPort = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9.*-]+:[0-9]{1,5}$"), Expect("a host and a port, like example.org:443")
]
User = Annotated[str, Field(pattern=r"^[0-9]+:[0-9]+$"), Expect("two numbers, user and group, like 1000:1000")]
Argv = Annotated[list[str], Field(min_length=1)]

AnyLabel = Annotated[str, LabelRef()]
DatasetLabel = Annotated[str, LabelRef(("dataset",))]
ImageLabel = Annotated[str, LabelRef(("image",))]
SandboxLabel = Annotated[str, LabelRef(("sandbox",))]
AgentLabel = Annotated[str, LabelRef(("agent",))]
ReducerLabel = Annotated[str, LabelRef(("reducer",))]
EvaluatorLabel = Annotated[str, LabelRef(("evaluator",))]
ModelLabel = Annotated[str, LabelRef(("model",))]
SinkLabel = Annotated[str, LabelRef(("sink",))]
ResultLabel = Annotated[str, LabelRef(("rollout", "dataset", "reduction", "evaluation", "command"))]

Scalar = str | bool | int | Decimal | None


class Document(BaseModel):
    """Base of every model here: strict types, no unknown fields, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, defer_build=True)


# -- mrp.yaml ----------------------------------------------------------------------------------------------------


class Secrets(Document):
    """Where secret values come from; only names stand in documents."""

    provider: Literal["env", "dotenv", "command"] = "env"
    path: str | None = None
    command: list[str] | None = None


class Config(Document):
    """What `--config NAME` sets; `select` reads the name."""

    engine: Literal["local", "ray", "modal"] | None = None
    sandbox: Literal["local", "docker", "modal", "daytona"] | None = None
    jobs: Positive | None = None


class WorkspaceFile(Document):
    """`mrp.yaml`, the root of a workspace."""

    mrp: Version
    name: str
    policy: str | None = None
    secrets: Secrets = Secrets()
    configs: dict[str, Config] = {}


class BuildFile(Document):
    """`BUILD.yaml`: the targets of a package by name. Each is validated by its kind's own model."""

    mrp: Version
    targets: dict[str, Any]


# -- policy.yaml -------------------------------------------------------------------------------------------------


class PolicyRule(Document):
    """A user's own rule: `deny` holds an expression over a target's fields that must be false."""

    name: str
    deny: str
    message: str = ""


class PolicyFile(Document):
    """`policy.yaml`; every default is the strict built-in policy."""

    mrp: Version
    max_workers: Positive = 64
    max_wall: Duration = Decimal(24 * 3600)
    max_timeout: Duration = Decimal(2 * 3600)
    max_memory: Size = 64 * 2**30
    max_cpus: Number = Decimal(64)
    max_usd: Number | None = None
    network: list[str] = []
    """host:port patterns that sandboxes may reach; `*` allows `open`."""
    isolation: Literal["none", "landlock", "namespaces", "container", "vm"] = "namespaces"
    """The weakest isolation that results may be made under."""
    operators: list[str] = ["//..."]
    images: list[str] = ["//...", "host", "scratch", "*@sha256:*"]
    sinks: list[str] = ["//..."]
    sink_paths: list[str] = ["**"]
    """Globs below the workspace that json, parquet and files sinks may write."""
    secrets: list[str] = []
    """Names of secrets that sandboxes and fetches may be given."""
    self_reported_rewards: bool = True
    rules: list[PolicyRule] = []


# -- pieces of targets -------------------------------------------------------------------------------------------


class Fetch(Document):
    """A pinned download: exactly one of url, pypi, git, path; sha256 for archives and files, rev for git."""

    url: str | None = None
    pypi: str | None = None
    git: str | None = None
    path: str | None = None
    sha256: Sha256 | None = None
    rev: GitCommit | None = None
    size: Count | None = None
    secret: str | None = None
    downloaded_at: str | None = None

    @model_validator(mode="after")
    def _one_source_and_a_pin(self) -> "Fetch":
        if sum(x is not None for x in (self.url, self.pypi, self.git, self.path)) != 1:
            raise ValueError("fetch needs exactly one of url, pypi, git, path")
        if (self.rev if self.git else self.sha256) is None:
            raise ValueError("a fetch must be pinned: git by rev (40 hex digits), anything else by sha256")
        return self


class Generate(Document):
    """A dataset that is computed: `range: N`, a command that prints JSON lines, or an operator."""

    range: Count | None = None
    command: list[str] | None = None
    operator: AnyLabel | None = None
    srcs: list[str] = []
    sandbox: SandboxLabel | None = None
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_way(self) -> "Generate":
        if sum(x is not None for x in (self.range, self.command, self.operator)) != 1:
            raise ValueError("generate needs exactly one of range, command, operator")
        return self


class View(Document):
    """The long form of a view of row records: fields by name, and files made from templates."""

    fields: list[str] = []
    files: dict[str, str] = {}


class Dockerfile(Document):
    dockerfile: str
    context: str = "."


class Layer(Document):
    """One layer of an image: exactly one of copy, pip, npm, deb, tar, dirs, links, run."""

    copy_: Annotated[dict[str, str] | None, Field(alias="copy")] = None
    pip: str | None = None
    npm: str | None = None
    deb: list[str] | None = None
    lock: str | None = None
    tar: str | None = None
    sha256: Sha256 | None = None
    dirs: list[str] | None = None
    links: dict[str, str] | None = None
    run: list[list[str]] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Layer":
        given = (self.copy_, self.pip, self.npm, self.deb, self.tar, self.dirs, self.links, self.run)
        if sum(x is not None for x in given) != 1:
            raise ValueError("a layer needs exactly one of copy, pip, npm, deb, tar, dirs, links, run")
        if (self.deb is None) != (self.lock is None):
            raise ValueError("deb layers, and only they, need a lock")
        if (self.tar is None) != (self.sha256 is None):
            raise ValueError("tar layers, and only they, need a sha256")
        return self


class Gpus(Document):
    count: Positive
    type: str | None = None


class Limits(Document):
    """What a sandbox may use; the outcome of going over is `limit` with the limit's name."""

    cpus: Number = Decimal(1)
    memory: Size = 2 * 2**30
    wall: Duration = Decimal(600)
    pids: Positive = 256
    disk: Size = 2**30
    gpus: Gpus | None = None
    resources: dict[str, Positive] = {}

    @model_validator(mode="after")
    def _other_resources(self) -> "Limits":
        own = [name for name in self.resources if name.lower() in ("cpu", "gpu", "memory", "object_store_memory")]
        if own:
            raise ValueError(f"`{own[0]}` is no resource of one's own; use cpus, gpus and memory of the limits")
        return self


class AllowedHosts(Document):
    allow: list[HostAndPort]


class Setup(Document):
    run: list[Argv]


class Volume(Document):
    name: str


class TrialLimits(Document):
    """Limits on one trial's use of its model."""

    calls: Count | None = None
    tokens: Count | None = None
    usd: Number | None = None


class Grade(Document):
    """How a trial is scored: exactly one of command, operator, result (a metric the agent reports itself)."""

    command: Argv | None = None
    operator: AnyLabel | None = None
    result: str | None = None
    sandbox: SandboxLabel | None = None
    timeout: Duration | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Grade":
        if sum(x is not None for x in (self.command, self.operator, self.result)) != 1:
            raise ValueError("grade needs exactly one of command, operator, result")
        return self


class Cost(Document):
    """The estimate for one action."""

    usd: Number = Decimal(0)
    tokens: Count = 0
    wall: Duration | None = None


class Budget(Document):
    usd: Number | None = None
    tokens: Count | None = None
    wall: Duration | None = None


class OperatorFiles(Document):
    """For agents that read one file and write one file instead of the folders of the contract."""

    input: GuestPath
    output: GuestPath


OUR_ENGINE_ARGS = {
    "api_key": "nothing",
    "chat_template": "`template`",
    "dtype": "`dtype`",
    "host": "nothing",
    "model": "`weights`",
    "port": "`port`",
    "quantization": "`quantization`",
    "revision": "`revision`",
    "served_model_name": "`model`",
    "tensor_parallel_size": "`tensor_parallel`",
    "uds": "nothing",
}
"""Arguments of vLLM that mrp writes itself, and the field that says what they are."""


class Serve(Document):
    """How vllm replicas are started."""

    version: str | None = None
    replicas: Positive = 1
    port: Positive | None = None
    gpus: list[int] = []
    quantization: str | None = None
    tensor_parallel: Positive = 1
    dtype: str | None = None
    engine_args: dict[str, Any] = {}
    env: dict[str, str] = {}
    as_: Annotated[Literal["process", "actor"], Field(alias="as")] = "process"

    @model_validator(mode="after")
    def _enough_gpus(self) -> "Serve":
        needed = self.replicas * self.tensor_parallel
        if self.gpus and len(self.gpus) < needed:
            raise ValueError(
                f"{needed} GPUs are needed (replicas times tensor_parallel), and `gpus` names {len(self.gpus)}"
            )
        return self

    @model_validator(mode="after")
    def _no_argument_of_ours(self) -> "Serve":
        for name in self.engine_args:
            field = OUR_ENGINE_ARGS.get(name.lstrip("-").replace("-", "_"))
            if field is not None:
                raise ValueError(f"`{name}` cannot be an engine argument: {field} sets it")
        return self


class Price(Document):
    """US dollars per million tokens."""

    input: Number = Decimal(0)
    output: Number = Decimal(0)


class Health(Document):
    path: str = "/health"
    start: Duration = Decimal(1200)
    every: Duration = Decimal(15)
    timeout: Duration = Decimal(5)


# -- targets -----------------------------------------------------------------------------------------------------


class Target(Document):
    """Fields that every kind has."""

    kind: ClassVar[str]
    description: str = ""
    tags: list[str] = []


class Dataset(Target):
    kind: ClassVar[str] = "dataset"
    srcs: list[str] | None = None
    fetch: Fetch | None = None
    generate: Generate | None = None
    of: list[DatasetLabel] | None = None
    format: Literal["jsonl", "json", "csv", "parquet", "text", "dir", "harbor"] = "jsonl"
    id: str | None = None
    schema_: Annotated[str | None, Field(alias="schema")] = None
    where: str | None = None
    dedupe: list[str] = []
    split: dict[str, Number] = {}
    starter: list[str] | View = []
    private: list[str] | View = []
    solution: list[str] | View = []
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_origin(self) -> "Dataset":
        if sum(x is not None for x in (self.srcs, self.fetch, self.generate, self.of)) != 1:
            raise ValueError("a dataset needs exactly one of srcs, fetch, generate, of")
        return self


class Image(Target):
    kind: ClassVar[str] = "image"
    base: str | Dockerfile
    toolchain: list[str] = []
    layers: list[Layer] = []
    env: dict[str, str] = {}
    user: User = "1000:1000"


class Sandbox(Target):
    kind: ClassVar[str] = "sandbox"
    image: ImageLabel = "builtin:host"
    network: Literal["none", "open"] | AllowedHosts = "none"
    limits: Limits = Limits()
    allow: list[str] | None = None
    setup: Setup | None = None
    env: dict[str, str] = {}
    secrets: list[str] = []
    volumes: dict[str, Volume] = {}


class Operator(Target):
    """Common to agent, reducer, producer and evaluator."""

    version: str
    entry: Entry | None = None
    command: Argv | None = None
    srcs: list[str] = []
    pure: bool = False
    sandbox: SandboxLabel | None = None
    schema_: Annotated[str | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _one_way_to_start(self) -> "Operator":
        if (self.entry is None) == (self.command is None):
            raise ValueError("an operator needs exactly one of entry, command")
        return self


class Agent(Operator):
    kind: ClassVar[str] = "agent"
    sees: Literal["public", "solution"] = "public"
    files: OperatorFiles | None = None


class Reducer(Operator):
    kind: ClassVar[str] = "reducer"


class Producer(Operator):
    kind: ClassVar[str] = "producer"


class Evaluator(Operator):
    kind: ClassVar[str] = "evaluator"


class Model(Target):
    kind: ClassVar[str] = "model"
    provider: Literal["vllm", "openai", "scripted"]
    model: str | None = None
    url: str | None = None
    secret: str | None = None
    weights: str | None = None
    revision: str | None = None
    script: str | None = None
    template: str | None = None
    sampling: dict[str, Any] = {}
    serve: Serve | None = None
    price: Price = Price()
    health: Health = Health()
    seeded: bool = False
    max_concurrency: Positive | None = None
    tokens_per_minute: Positive | None = None

    @model_validator(mode="after")
    def _what_its_provider_needs(self) -> "Model":
        needed = {"vllm": "weights", "openai": "model", "scripted": "script"}[self.provider]
        if getattr(self, needed) is None:
            raise ValueError(f"a model of provider {self.provider} needs `{needed}`")
        if self.script is not None and self.provider != "scripted":
            raise ValueError("only scripted models have a `script`")
        return self


class Rollout(Target):
    kind: ClassVar[str] = "rollout"
    over: DatasetLabel
    agent: AgentLabel
    sandbox: SandboxLabel = "builtin:host"
    model: ModelLabel | None = None
    samples: Positive = 1
    epoch: Count = 0
    seed: int = 0
    params: dict[str, Any] = {}
    matrix: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = {}
    env: dict[str, str] = {}
    limits: TrialLimits = TrialLimits()
    timeout: Duration | None = None
    retries: Count = 2
    max_parallel: Positive | None = None
    grade: Grade | None = None
    cost: Cost = Cost()


class Reduction(Target):
    kind: ClassVar[str] = "reduction"
    of: Annotated[list[ResultLabel], Field(min_length=1)]
    reducer: Annotated[str, LabelRef(("reducer",))]
    params: dict[str, Any] = {}
    group_by: list[str] = []
    min_success: Annotated[Number, Field(ge=0, le=1)] = Decimal(1)
    expect: str | None = None
    sandbox: SandboxLabel = "builtin:host"
    select: str | None = None
    """Which trials to reduce: an expression over id, sample, matrix, params, outcome, rewards."""


class Evaluation(Target):
    kind: ClassVar[str] = "evaluation"
    of: ResultLabel
    evaluator: EvaluatorLabel
    model: ModelLabel | None = None
    params: dict[str, Any] = {}
    sandbox: SandboxLabel = "builtin:host"
    expect: str | None = None


class Sink(Target):
    kind: ClassVar[str] = "sink"
    type: Literal["json", "parquet", "files", "s3"]
    path: str
    schema_: Annotated[str | None, Field(alias="schema")] = None
    mode: Literal["create", "replace", "append"] = "replace"
    acl: list[str] = []
    """Label patterns of the produce targets that may write here; empty: all of the workspace."""
    secret: str | None = None


class Produce(Target):
    kind: ClassVar[str] = "produce"
    of: ResultLabel
    rows: Literal["results", "trajectory"] = "results"
    sink: SinkLabel
    gate: str | None = None
    producer: Annotated[str, LabelRef(("producer",))] | None = None
    sandbox: SandboxLabel = "builtin:host"


class Job(Target):
    kind: ClassVar[str] = "job"
    of: Annotated[list[AnyLabel], Field(min_length=1)]
    budget: Budget = Budget()


class Command(Target):
    kind: ClassVar[str] = "command"
    srcs: list[str] = []
    outs: Annotated[list[str], Field(min_length=1)]
    command: Argv
    sandbox: SandboxLabel = "builtin:host"
    env: dict[str, str] = {}


class Session(Target):
    kind: ClassVar[str] = "session"
    agent: AgentLabel
    prompts: Annotated[list[str], Field(min_length=1)]
    sandbox: SandboxLabel = "builtin:host"
    model: ModelLabel | None = None
    starter: list[str] = []
    params: dict[str, Any] = {}
    seed: int = 0
    timeout: Duration | None = None


KINDS: dict[str, type[Target]] = {
    model.kind: model
    for model in (
        Dataset,
        Image,
        Sandbox,
        Agent,
        Reducer,
        Producer,
        Evaluator,
        Model,
        Rollout,
        Reduction,
        Evaluation,
        Sink,
        Produce,
        Job,
        Command,
        Session,
    )
}
"""Every kind that a BUILD.yaml may name."""


# -- other files -------------------------------------------------------------------------------------------------


class Resources(Document):
    cpus: Number = Decimal(1)
    memory: Size = 2**30
    gpus: Gpus | None = None


class OperatorFile(Document):
    """`operator.yaml`, an operator described apart from any BUILD.yaml."""

    mrp: Version
    kind: Literal["agent", "reducer", "producer", "evaluator"]
    name: str
    version: str
    entry: Entry | None = None
    command: Argv | None = None
    srcs: list[str] = []
    image: ImageLabel | None = None
    schema_: Annotated[str | None, Field(alias="schema")] = None
    resources: Resources = Resources()
    sees: Literal["public", "solution"] = "public"
    pure: bool = False
    files: OperatorFiles | None = None


class Pin(Document):
    version: str
    digest: Sha256
    signature: str | None = None


class OperatorsLock(Document):
    """`operators.lock`: label of an operator to its pinned digest."""

    mrp: Version
    operators: dict[str, Pin]
