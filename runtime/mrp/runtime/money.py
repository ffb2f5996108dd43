"""Budgets: what is estimated is reserved before an action or a call of a model starts, and settled when it ended.

Actions are reserved for by the coordinator, and calls by the threads of the gateway: every method may be called from
any thread.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from mrp.specs.ir import JobTask, Plan, needed_labels

OVERRUN = Decimal("1.2")
"""With declared costs, a run is stopped when it has spent this many times its estimate."""


class OverBudget(Exception):
    """A call of a model would go over a budget; the text says which."""


@dataclass
class Account:
    """One budget: caps (None for no cap), what was spent, and what running actions have reserved.

    `open_ended`: something draws on it whose cost nobody declared, so that no estimate can be overrun.
    """

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
    open_ended: bool = False

    def begin_pass(self) -> None:
        """Estimate anew: what was spent is certain, and what must still run is added as it is found."""
        self.estimate_usd, self.estimate_tokens = self.spent_usd, self.spent_tokens


class Money:
    """The accounts of a build, and which targets draw on which."""

    def __init__(self, accounts: Iterable[Account], members: dict[str, tuple[int, ...]]) -> None:
        self._accounts = list(accounts)
        self._members = members
        self._changed = threading.Condition(threading.RLock())

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
        with self._changed:
            return self._refusal(label, usd, tokens, reserved=True)

    def reserve_call(self, label: str, usd: Decimal, tokens: int) -> str | None:
        """Reserve the most that a call for `label` may come to; gives why it cannot be made, or None.

        What others reserved, and may not need, is waited for. Where an account has no cap, nothing is refused by it.
        """
        with self._changed:
            while True:
                refusal = self._refusal(label, usd, tokens, reserved=False)
                if refusal is not None:
                    return refusal
                if self._refusal(label, usd, tokens, reserved=True) is None:
                    self.reserve(label, usd, tokens)
                    return None
                self._changed.wait()

    def _refusal(self, label: str, usd: Decimal, tokens: int, *, reserved: bool) -> str | None:
        for account in self._of(label):
            held_usd, held_tokens = (account.reserved_usd, account.reserved_tokens) if reserved else (Decimal(0), 0)
            if account.usd is not None and account.spent_usd + held_usd + usd > account.usd:
                return f"the budget of {account.name} is {account.usd} usd, and {account.spent_usd} are spent"
            if account.tokens is not None and account.spent_tokens + held_tokens + tokens > account.tokens:
                return f"the budget of {account.name} is {account.tokens} tokens, and {account.spent_tokens} are spent"
            declared = account.estimate_usd and not account.open_ended
            if declared and account.spent_usd > OVERRUN * account.estimate_usd:
                return f"{account.name} has spent {account.spent_usd} usd, over 120% of its {account.estimate_usd}"
        return None

    def estimate(self, label: str, usd: Decimal, tokens: int, *, undeclared: bool = False) -> None:
        """An action that must run is expected to cost so much; `undeclared`: nobody said what its calls may cost."""
        if not (usd or tokens or undeclared):
            return
        with self._changed:
            for account in self._of(label):
                account.open_ended = account.open_ended or undeclared
                account.estimate_usd += usd
                account.estimate_tokens += tokens

    def reserve(self, label: str, usd: Decimal, tokens: int) -> None:
        if not (usd or tokens):
            return
        with self._changed:
            for account in self._of(label):
                account.reserved_usd += usd
                account.reserved_tokens += tokens

    def settle(self, label: str, reserved: tuple[Decimal, int], spent: tuple[Decimal, int]) -> None:
        """An action ended: what it reserved is freed, and what it spent is charged."""
        if not any((*reserved, *spent)):
            return
        with self._changed:
            for account in self._of(label):
                account.reserved_usd -= reserved[0]
                account.reserved_tokens -= reserved[1]
                account.spent_usd += spent[0]
                account.spent_tokens += spent[1]
            self._changed.notify_all()

    def begin_pass(self) -> None:
        """Estimate anew, in every account."""
        with self._changed:
            for account in self._accounts:
                account.begin_pass()

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
