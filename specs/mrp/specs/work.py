"""Work: a closed description of one process in a sandbox, digests in and digests out.

It holds all that can change the result and nothing of where it runs, so that any engine and any backend can take it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from mrp.cache.digest import Digest
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import Limits

ISOLATION = ("none", "landlock", "namespaces", "container", "vm")
"""Levels of isolation, weakest first."""

ENGINE = "engine"
"""In place of a level: the engine made it itself, from stored bytes alone, and ran no user code."""

LOG_BYTES = 16 * 2**20
"""Where stdout and stderr are cut; what was cut is longer than this, by the line that says so."""

TASK, WORK, SOLUTION, OUT = "/task", "/work", "/solution", "/out"
OPERATOR_DIR = "/opt/mrp/operator"
SDK_DIR = "/opt/mrp/sdk"

MODEL_PORT = 8377
"""Where a process finds its model, on the loopback of its sandbox."""

MAX_WORD = 128 * 1024 - 1
"""Bytes that one word of a command, or one variable with its name, may have: Linux's own limit."""

_SHORT = MAX_WORD // 4
"""Characters that are no more bytes than MAX_WORD, whichever they are."""


def model_env(port: int = MODEL_PORT) -> dict[str, str]:
    """The variables that lead OpenAI-compatible clients to the gateway; the key is a word, since there is no secret."""
    return {"OPENAI_API_KEY": "mrp", "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}


@dataclass(frozen=True)
class Box:
    """A resolved sandbox. `image` is the digest of the image's canonical description, which is in the store."""

    image: Digest
    network: str | tuple[str, ...] = "none"
    limits: Limits = Limits()
    allow: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A tree that the process finds at `path`; writable ones are fresh copies."""

    path: str
    tree: Digest
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """One process: `argv`, or a Python operator's `entry` (module:Class) in `role`, started by mrp.sdk.runner.

    mounts: trees to lay out. outputs: writable guest folders to keep as trees afterwards. timeout: seconds of wall
    time, already the smaller of the action's and the sandbox's. `pure` entries may share a process; one that calls a
    `model` has an endpoint of its own, and shares none.

    Raises BuildFailed for words and variables that no process can be given.
    """

    box: Box
    argv: tuple[str, ...] = ()
    entry: str | None = None
    role: str = "command"
    pure: bool = False
    mounts: tuple[Mount, ...] = ()
    outputs: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = WORK
    timeout: Decimal = Decimal(600)
    model: bool = False

    def __post_init__(self) -> None:
        for word in self.argv:
            if len(word) > _SHORT or "\0" in word:
                _check_word("a word of the command", word)
        for env in (self.box.env, self.env):
            # Looked at together, since that is all that most need.
            text = "".join((*env, *env.values()))
            if len(text) < _SHORT and "\0" not in text:
                continue
            for name, value in env.items():
                _check_word(f"the variable {name}", f"{name}={value}")


@dataclass(frozen=True, slots=True)
class Completed:
    """How a process ended. Exactly one of exit_code and limit is set.

    limit: cpus, memory, wall, pids or disk. exit_code: 128 + N for death by signal N, as in a shell. stdout and
    stderr: blobs, with exact secret values redacted, cut at LOG_BYTES with a line that says so. outputs: guest folder
    -> tree.
    """

    exit_code: int | None
    limit: str | None
    stdout: Digest
    stderr: Digest
    outputs: Mapping[str, Digest]
    wall_s: Decimal
    cpu_s: Decimal
    max_rss: int
    isolation: str


def _check_word(what: str, word: str) -> None:
    if "\0" in word:
        raise BuildFailed(f"{what} holds a NUL character, which no process can be given; hand it over in a file")
    if len(word.encode()) > MAX_WORD:
        raise BuildFailed(f"{what} has more than {MAX_WORD} bytes, which Linux allows; hand it over in a file")
