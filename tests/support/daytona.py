"""What tests of the Daytona backend start with."""

import os
import shutil
from pathlib import Path

import pytest

from mrp.cache.store import Store
from mrp.runtime.sandbox.provider import Owner
from mrp.runtime.sandbox.registry import BackendSettings


def require_emulator() -> None:
    """Skip where the emulator cannot run sandboxes."""
    pytest.importorskip("daytona", reason="the package daytona is not installed")
    missing = [name for name in ("bwrap", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"the Daytona emulator needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("the Daytona emulator needs root, for sandboxes with users of their own")


def settings_for(store: Store, scratch: Path, run: str = "run-1") -> BackendSettings:
    return BackendSettings(store, scratch, "container", Owner("workspace-1", run), lambda run: False)
