"""The model `vllm`: servers that the build starts when the first call misses the record, and stops at its end."""

import os
from functools import partial
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.model import model_name
from mrp.runtime.models.protocol import Answer, Call
from mrp.runtime.models.registry import ModelSettings
from mrp.runtime.models.vllm.replicas import Replicas, Start
from mrp.runtime.models.vllm.server import ServerProcess
from mrp.runtime.models.vllm.serving import Serving, serving_of, vllm_python
from mrp.runtime.state import explained
from mrp.specs.ir import ModelTask


class VllmModel:
    """As mrp.runtime.models.protocol.Model. Raises InfraError when there is no Python with vLLM."""

    def __init__(self, settings: ModelSettings) -> None:
        python = vllm_python(os.environ)
        serving = _serving(settings)
        with explained(settings.logs):
            settings.logs.mkdir(parents=True, exist_ok=True)
        start = _start_of(serving)
        self._replicas = Replicas(settings.label, serving, python, settings.logs, start, settings.warn)

    def answer(self, call: Call) -> Answer:
        return self._replicas.answer(call)

    def close(self) -> None:
        self._replicas.close()


def lay_out_files(store: Store, tree: Digest, folder: Path) -> None:
    """Make the tree's files appear below `folder`, as links to the very files of the store, which are read-only.

    Weights are large, and the same ones serve many builds: none of their bytes is copied. Raises MissingBlob.
    """
    for path, entry in store.read_tree(tree).items():
        place = folder / path
        if entry.kind == "d":
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if entry.digest is not None:
            place.symlink_to(store.blob_path(entry.digest))
        elif entry.target is not None:
            place.symlink_to(entry.target)


def _serving(settings: ModelSettings) -> Serving:
    spec = settings.spec
    weights, template = spec["weights"], spec.get("template")
    files = settings.scratch / "files"
    with explained(files):
        lay_out_files(settings.store, settings.files, files)
    place = files / str(weights)
    return serving_of(
        spec,
        model_name(ModelTask(settings.label, spec)),
        str(place.absolute()) if place.exists() else str(weights),
        str((files / str(template)).absolute()) if template else None,
    )


def _start_of(serving: Serving) -> Start:
    if serving.place == "actor":
        from mrp.runtime.models.vllm.actor import launch_actor

        return partial(ServerProcess, launch=launch_actor)
    return ServerProcess
