"""Rows as rollouts write them, for tests of what reads them."""

from decimal import Decimal
from typing import Any


def trial(id: str, reward: Any = None, /, **fields: Any) -> dict[str, Any]:
    """A trial's row; `reward` None is an unscored one, a dict gives several numbers."""
    rewards = reward if isinstance(reward, dict) or reward is None else {"reward": reward}
    row: dict[str, Any] = {
        "id": id,
        "sample": 0,
        "target": "//jobs:solve",
        "agent": "//jobs:oracle",
        "model": None,
        "matrix": {},
        "params": {},
        "outcome": "ok",
        "limit": None,
        "rewards": rewards,
        "tree": "0" * 64,
    }
    return {**row, **fields}


def decimals(*texts: str) -> list[Decimal]:
    """Decimals from their texts."""
    return [Decimal(text) for text in texts]
