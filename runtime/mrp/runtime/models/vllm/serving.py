"""How vLLM is started: a model's document as the words and variables of a server, and the Python that has vLLM."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from mrp.cache.canonical import Json, canonical_text, number_text
from mrp.specs.errors import InfraError

PYTHON = "MRP_VLLM_PYTHON"
"""The variable that names the Python of the environment with vLLM. It is configuration, and in no key."""

INHERITED = (
    "HOME PATH LANG LC_ALL USER LOGNAME LD_LIBRARY_PATH LD_PRELOAD CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES"
    " NVIDIA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE"
    " XDG_CACHE_HOME VLLM_CACHE_ROOT HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy SSL_CERT_FILE"
    " REQUESTS_CA_BUNDLE"
).split()
"""What a server sees of the build's environment: where things are. What changes answers stands in `serve.env`."""

_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Serving:
    """The servers of one model, all alike.

    name: what requests call the model. weights: a folder, or a name on a hub with its revision. template: a chat
    template file. start, every, timeout: seconds until a new server must be well, between two looks at one, and for an
    answer to one look.
    """

    name: str
    weights: str
    revision: str | None = None
    template: str | None = None
    version: str | None = None
    replicas: int = 1
    port: int | None = None
    gpus: tuple[int, ...] = ()
    quantization: str | None = None
    tensor_parallel: int = 1
    dtype: str | None = None
    engine_args: Mapping[str, Json] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    place: str = "process"
    health: str = "/health"
    start: float = 1200
    every: float = 15
    timeout: float = 5

    @property
    def local(self) -> bool:
        """Whether the weights are a folder of this machine."""
        return self.weights.startswith("/")

    def words(self, python: str, port: int) -> list[str]:
        """The command line of a server on loopback."""
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--model", self.weights, "--served-model-name", self.name]
        for option, value in (
            ("--revision", None if self.local else self.revision),
            ("--chat-template", self.template),
            ("--dtype", self.dtype),
            ("--quantization", self.quantization),
            ("--tensor-parallel-size", str(self.tensor_parallel) if self.tensor_parallel > 1 else None),
        ):
            if value is not None:
                words += [option, value]
        for name, value in sorted(self.engine_args.items()):
            words += _option(name, value)
        return words

    def variables(self, python: str, around: Mapping[str, str], number: int) -> dict[str, str]:
        """The environment of replica `number`, for a build whose own is `around`."""
        env = {name: around[name] for name in INHERITED if name in around}
        env["PATH"] = os.pathsep.join([os.path.dirname(python), env.get("PATH", os.defpath)])
        env |= _QUIET
        if self.local:
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        gpus = self.gpus_of(number, around)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return {**env, **self.env}

    def gpus_of(self, number: int, around: Mapping[str, str]) -> Sequence[str]:
        """The GPUs of replica `number`: its share of the declared ones, else of those that the build may see."""
        pool = [str(gpu) for gpu in self.gpus] or _visible(around)
        return pool[number * self.tensor_parallel : (number + 1) * self.tensor_parallel]


def serving_of(spec: Mapping[str, Json], name: str, weights: str, template: str | None) -> Serving:
    """What a model's document asks for; `weights` and `template` are where these are now."""
    serve, health = spec.get("serve") or {}, spec.get("health") or {}
    return Serving(
        name=name,
        weights=weights,
        revision=spec.get("revision"),
        template=template,
        version=serve.get("version"),
        replicas=int(serve.get("replicas", 1)),
        port=serve.get("port"),
        gpus=tuple(serve.get("gpus") or ()),
        quantization=serve.get("quantization"),
        tensor_parallel=int(serve.get("tensor_parallel", 1)),
        dtype=serve.get("dtype"),
        engine_args=serve.get("engine_args") or {},
        env={key: str(value) for key, value in (serve.get("env") or {}).items()},
        place=serve.get("as", "process"),
        health=health.get("path", "/health"),
        start=float(health.get("start", 1200)),
        every=float(health.get("every", 15)),
        timeout=float(health.get("timeout", 5)),
    )


def vllm_python(around: Mapping[str, str]) -> str:
    """The Python that starts servers. Raises InfraError when there is none with vLLM."""
    named = around.get(PYTHON)
    if named:
        python = os.path.abspath(named)
        if not os.access(python, os.X_OK):
            raise InfraError(
                f"{PYTHON} is {named}, which cannot be executed; name a Python that has vLLM", retryable=False
            )
        return python
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    raise InfraError(
        f"the model needs vLLM, which this Python lacks; make an environment of its own for it"
        f" (python3 -m venv V; V/bin/python -m pip install vllm) and set {PYTHON}=V/bin/python; docs/vllm.md says more",
        retryable=False,
    )


def _visible(around: Mapping[str, str]) -> list[str]:
    named = around.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",") if word.strip()]
    found = [re.fullmatch(r"nvidia(\d+)", name) for name in os.listdir("/dev")]
    return [str(number) for number in sorted(int(match[1]) for match in found if match)]


def _option(name: str, value: Json) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [option, canonical_text(value)]
    if isinstance(value, list | tuple):
        return [option, *map(_word, value)]
    return [option, _word(value)]


def _word(value: Json) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return number_text(value)
    return json.dumps(value)
