"""The values that operators are given and give back. All are immutable."""

from __future__ import annotations

import json
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


class _Value:
    """Attributes are set once, when the value is made; equality and repr show all of them."""

    __slots__: tuple[str, ...] = ()

    def _set(self, **attributes: object) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed; make a new {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({shown})"


class Task(_Value):
    """What a trial works on.

    record: the operator's view of the record, from record.json ({} when there is none). dir: its files, read-only.
    work: the folder whose content is the trial's output. solution: the reference solution, for agents that declare
    `sees: solution`; else None.
    """

    __slots__ = ("dir", "record", "solution", "work")
    record: Mapping[str, Any]
    dir: Path
    work: Path
    solution: Path | None

    def __init__(self, record: Mapping[str, Any], dir: Path, work: Path, solution: Path | None = None) -> None:
        self._set(record=record, dir=dir, work=work, solution=solution)


class Result(_Value):
    """How an agent says that it ended: status "ok" or "failed", a sentence, and numbers or text by name.

    Raises ValueError for any other status.
    """

    __slots__ = ("metrics", "reason", "status")
    status: str
    reason: str
    metrics: Mapping[str, Any]

    def __init__(self, status: str = "ok", reason: str = "", metrics: Mapping[str, Any] | None = None) -> None:
        if status not in ("ok", "failed"):
            raise ValueError(f"a result's status is 'ok' or 'failed', not {status!r}")
        self._set(status=status, reason=reason, metrics=dict(metrics or {}))


class Trial(_Value):
    """One trial as a reducer sees it.

    rewards: the numbers that the grader wrote, {} for an unscored trial. tree: the folder that the trial left,
    read-only; None when it left none. agent, model, target: labels; None where there is none.
    """

    __slots__ = ("agent", "id", "matrix", "model", "outcome", "params", "rewards", "sample", "target", "tree")
    id: str
    sample: int
    matrix: Mapping[str, Any]
    params: Mapping[str, Any]
    outcome: str
    rewards: Mapping[str, float]
    tree: Path | None
    agent: str | None
    model: str | None
    target: str | None

    def __init__(
        self,
        id: str,
        sample: int = 0,
        matrix: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        outcome: str = "ok",
        rewards: Mapping[str, float] | None = None,
        tree: Path | None = None,
        agent: str | None = None,
        model: str | None = None,
        target: str | None = None,
    ) -> None:
        self._set(
            agent=agent,
            model=model,
            target=target,
            id=id,
            sample=sample,
            matrix=dict(matrix or {}),
            params=dict(params or {}),
            outcome=outcome,
            rewards=dict(rewards or {}),
            tree=tree,
        )


class Artifact(_Value):
    """What an evaluator judges or a producer publishes: a file (kind "blob") or a folder (kind "tree")."""

    __slots__ = ("path",)
    path: Path

    def __init__(self, path: Path) -> None:
        self._set(path=path)

    @property
    def kind(self) -> str:
        """ "tree" for a folder, else "blob"."""
        return "tree" if self.path.is_dir() else "blob"

    def file(self, name: str) -> Path:
        """The file itself for a blob, or file `name` of a tree."""
        return self.path / name if self.path.is_dir() else self.path

    def json(self, name: str = "result.json") -> Any:
        """The JSON value of a blob, or of file `name` in a tree; raises ValueError when it is not JSON."""
        return json.loads(self.file(name).read_bytes())

    def rows(self, name: str = "trials.jsonl") -> Iterator[Any]:
        """The JSON values of a blob of JSON lines, or of file `name` in a tree, one at a time."""
        with self.file(name).open("rb") as lines:
            for line in lines:
                yield json.loads(line)


class Write(_Value):
    """A file that a producer asks for: a relative path with `/`, and its content (text is written as UTF-8)."""

    __slots__ = ("data", "path")
    path: str
    data: bytes

    def __init__(self, path: str, data: bytes | str) -> None:
        parts = path.split("/")
        if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"a write needs a plain relative path like results/board.json, not {path!r}")
        self._set(path=path, data=data.encode() if isinstance(data, str) else bytes(data))
