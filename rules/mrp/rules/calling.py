"""What an action is told of the model that it may call."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest

_MILLION = 1_000_000


@dataclass(frozen=True)
class ModelUse:
    """A model as one target calls it. `description` is the digest of all of it that can change an answer.

    name: what it is called in requests and answers. spec: its document with the defaults. files: the tree of its files
    at their workspace paths. sampling: filled in. calls, tokens, usd: what each action may use; None for no limit.
    """

    label: str
    name: str
    spec: Mapping[str, Json]
    files: Digest
    sampling: Mapping[str, Json]
    description: Digest
    calls: int | None = None
    tokens: int | None = None
    usd: Decimal | None = None

    @property
    def seeded(self) -> bool:
        """Whether it is declared to give the same answer to the same request with the same seed."""
        return bool(self.spec.get("seeded"))

    def price(self, input_tokens: int, output_tokens: int) -> Decimal:
        """US dollars for so many tokens."""
        price = self.spec["price"]
        return (Decimal(price["input"]) * input_tokens + Decimal(price["output"]) * output_tokens) / _MILLION

    def most_usd(self) -> Decimal | None:
        """What the calls of one action may come to; None where no limit says."""
        return most_usd(self.spec, self.tokens, self.usd)


def most_usd(spec: Mapping[str, Json], tokens: int | None, usd: Decimal | None) -> Decimal | None:
    """US dollars that calls of a model may come to within these limits; None where they do not say."""
    dearest = max(Decimal(price) for price in spec["price"].values())
    by_tokens = dearest * tokens / _MILLION if tokens is not None else None
    return min((most for most in (usd, by_tokens) if most is not None), default=None) if dearest else Decimal(0)
