"""Which providers of models there are: the visible list."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.models.protocol import Model
from mrp.specs.work import Completed, Process


@dataclass(frozen=True)
class ModelSettings:
    """What a model is started with, when the first call misses the record.

    spec: the target's document with its defaults. files: the tree of its files (weights, script, template) at their
    workspace paths, which are the ones that `spec` names. secret: the value of `spec["secret"]`, None without one.
    scratch: a new folder for what may be lost. logs: a folder that stays, for logs of servers. warn: one sentence for
    people. run: runs a process in a local sandbox. host: the image description of the machine's own /usr.
    """

    label: str
    spec: Mapping[str, Json]
    files: Digest
    store: Store
    scratch: Path
    logs: Path
    secret: str | None = None
    warn: Callable[[str], None] = lambda sentence: None
    run: Callable[[Process], Completed] | None = None
    host: Callable[[], Digest] | None = None


def _openai(settings: ModelSettings) -> Model:
    from mrp.runtime.models.openai import OpenAIModel

    return OpenAIModel(settings)


def _scripted(settings: ModelSettings) -> Model:
    from mrp.runtime.models.scripted import ScriptedModel

    return ScriptedModel(settings)


def _vllm(settings: ModelSettings) -> Model:
    from mrp.runtime.models.vllm.model import VllmModel

    return VllmModel(settings)


MODELS: dict[str, Callable[[ModelSettings], Model]] = {"openai": _openai, "scripted": _scripted, "vllm": _vllm}
"""Provider -> how to start it. Each imports what it needs when it is started, and raises InfraError when it cannot."""
