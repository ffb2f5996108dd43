"""Secret values: looked up by name when an action needs them, and kept in memory only."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.specs.errors import InfraError


class Secrets:
    """Answers names from the environment, a dotenv file or a command that prints the value of its last argument."""

    def __init__(self, spec: Mapping[str, Json], workspace: Path) -> None:
        self._provider = spec.get("provider", "env")
        self._path = workspace / (spec.get("path") or ".env")
        self._command = list(spec.get("command") or ())
        self._known: dict[str, str] = {}

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Name -> value; raises InfraError that names what is missing and where it was looked for."""
        return {name: self._value(name) for name in names}

    def _value(self, name: str) -> str:
        if name not in self._known:
            value = self._look_up(name)
            if not value:
                message = f"the secret {name} has no value (provider {self._provider}); set it and build again"
                raise InfraError(message, retryable=False)
            self._known[name] = value
        return self._known[name]

    def _look_up(self, name: str) -> str | None:
        if self._provider == "env":
            return os.environ.get(name)
        if self._provider == "dotenv":
            return _read_dotenv(self._path).get(name)
        done = subprocess.run([*self._command, name], capture_output=True, text=True, check=False)
        return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("'\"")
    return found
