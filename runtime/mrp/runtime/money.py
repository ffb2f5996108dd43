"""Budgets: what is estimated is reserved before an action starts, and settled when it ended. Pure accounting."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from mrp.specs.ir import JobTask, Plan, needed_labels

OVERRUN = Decimal("1.2")
"""With declared costs, a run is stopped when it has spent this many times its estimate."""


@dataclass
class Account:
    """One budget: caps (None for no cap), what was spent, and what running actions have reserved."""

    name: str
    usd: Decimal | None = None
    tokens: int | None = None
    wall: Decimal | None = None
    spent_usd: Decimal = Decimal(0)
    spent_tokens: int = 0
    reserved_usd: Decimal = Decimal(0)
    reserved_tokens: int = 0
    estimate_usd: Decimal = Decimal(0)
    estimate_tokens: int = 0

    def begin_pass(self) -> None:
        """Estimate anew: what was spent is certain, and what must still run is added as it is found."""
        self.estimate_usd, self.estimate_tokens = self.spent_usd, self.spent_tokens


class Money:
    """The accounts of a build, and which targets draw on which."""

    def __init__(self, accounts: Iterable[Account], members: dict[str, tuple[int, ...]]) -> None:
        self._accounts = list(accounts)
        self._members = members

    @property
    def is_capped(self) -> bool:
        """Whether any account limits what may be spent."""
        return any(account.usd is not None or account.tokens is not None for account in self._accounts)

    def estimate_refusal(self) -> str | None:
        """Why what must run is estimated over a cap, or None."""
        for account in self._accounts:
            if account.usd is not None and account.estimate_usd > account.usd:
                return f"{account.name} would cost {account.estimate_usd} usd, and its budget is {account.usd}"
            if account.tokens is not None and account.estimate_tokens > account.tokens:
                return f"{account.name} would need {account.estimate_tokens} tokens, and its budget is {account.tokens}"
        return None

    def refusal(self, label: str, usd: Decimal, tokens: int) -> str | None:
        """Why an action of `label` with this estimate cannot start, or None when it can."""
        for account in self._of(label):
            if account.usd is not None and account.spent_usd + account.reserved_usd + usd > account.usd:
                return f"the budget of {account.name} is {account.usd} usd, and {account.spent_usd} are spent"
            if account.tokens is not None and account.spent_tokens + account.reserved_tokens + tokens > account.tokens:
                return f"the budget of {account.name} is {account.tokens} tokens, and {account.spent_tokens} are spent"
            if account.estimate_usd and account.spent_usd > OVERRUN * account.estimate_usd:
                return f"{account.name} has spent {account.spent_usd} usd, over 120% of its {account.estimate_usd}"
        return None

    def estimate(self, label: str, usd: Decimal, tokens: int) -> None:
        """An action that must run is expected to cost so much."""
        for account in self._of(label):
            account.estimate_usd += usd
            account.estimate_tokens += tokens

    def reserve(self, label: str, usd: Decimal, tokens: int) -> None:
        for account in self._of(label):
            account.reserved_usd += usd
            account.reserved_tokens += tokens

    def settle(self, label: str, reserved: tuple[Decimal, int], spent: tuple[Decimal, int]) -> None:
        """An action ended: what it reserved is freed, and what it spent is charged."""
        for account in self._of(label):
            account.reserved_usd -= reserved[0]
            account.reserved_tokens -= reserved[1]
            account.spent_usd += spent[0]
            account.spent_tokens += spent[1]

    def wall_caps(self) -> list[tuple[str, Decimal]]:
        """(name, seconds) of the accounts that cap the build's wall time."""
        return [(account.name, account.wall) for account in self._accounts if account.wall is not None]

    def _of(self, label: str) -> Iterable[Account]:
        return (self._accounts[index] for index in self._members.get(label, ()))


def open_accounts(plan: Plan) -> tuple[list[Account], dict[str, tuple[int, ...]]]:
    """An account for each job with a budget and one for policy, and which tasks draw on which."""
    accounts = [Account("policy", usd=plan.policy.max_usd)]
    members = {task.label: [0] for task in plan.tasks}
    for task in plan.tasks:
        if not isinstance(task, JobTask) or (task.usd, task.tokens, task.wall) == (None, None, None):
            continue
        accounts.append(Account(task.label, task.usd, task.tokens, task.wall))
        for label in needed_labels(plan, [task.label]):
            members[label].append(len(accounts) - 1)
    return accounts, {label: tuple(indexes) for label, indexes in members.items()}
