"""The environment with a real vLLM: which Python has it, and how a tiny model is served there without haste."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrp.runtime.models.vllm.serving import PYTHON

ROOT = Path(__file__).parents[2]

HAS_GPU = shutil.which("nvidia-smi") is not None
"""Then vLLM chooses the GPU by itself, if it is a vLLM for GPUs."""


def real_python() -> str:
    """The Python with vLLM; the test is skipped where there is none."""
    python = os.environ.get(PYTHON) or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(python).exists():
        pytest.skip(f"there is no vLLM here: `make .venv-vllm/.installed` makes {python}, or set {PYTHON}")
    return python


def serve_tiny(**more: Any) -> dict[str, Any]:
    """`serve` of the tiny model: little memory, no compilation, small batches."""
    arguments: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True}
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if HAS_GPU:
        arguments["gpu_memory_utilization"] = "0.2"
    return {"dtype": "float32", "engine_args": arguments, "env": env, **more}
