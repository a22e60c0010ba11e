"""Who has used how much of a pool lately: what decides between users of the same priority.

A user's *dominant share* is the largest of their shares of the pool's CPUs, memory and GPUs
(Ghodsi et al., Dominant Resource Fairness, NSDI 2011).  Their *usage* is that share over time, of
which half is forgotten in each half-life.  Whose usage and present share are lowest together goes
first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from updraft.model.job import Resources


@dataclass(frozen=True, slots=True)
class Fairness:
    """How users share a pool."""

    half_life_seconds: float = 86400.0
    """After how long half of what was used is forgotten."""
    patience_seconds: float = 86400.0
    """How long a user waits at most for a next start while others with less usage go first."""


class _Account:
    __slots__ = ("amounts", "at", "share", "used")

    def __init__(self, now: float) -> None:
        self.amounts = [0, 0, 0]
        self.share = 0.0
        self.used = 0.0
        self.at = now


class Shares:
    """The usage of each user.  Each change costs the same, however many users and tasks."""

    def __init__(self, total: Sequence[int], half_life_seconds: float) -> None:
        self._total = total
        self._fades = half_life_seconds / math.log(2)
        self._accounts: dict[str, _Account] = {}

    def change(self, owner: str, need: Resources, tasks: int, now: float) -> None:
        """A user's tasks have started, or have ended (a negative number)."""
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = _Account(now)
        else:
            account.used = self._used(account, now)
            account.at = max(now, account.at)
        amounts = account.amounts
        amounts[0] += need.cpus_milli * tasks
        amounts[1] += need.memory_bytes * tasks
        amounts[2] += need.gpus * tasks
        account.share = self._dominant(amounts)

    def standing(self, owner: str, now: float) -> float:
        """Return a user's mean share of late and their share now, added; the lowest goes first."""
        account = self._accounts.get(owner)
        if account is None:
            return 0.0
        return self._used(account, now) / self._fades + account.share

    def of_task(self, need: Resources) -> float:
        """Return the dominant share of one task."""
        return self._dominant((need.cpus_milli, need.memory_bytes, need.gpus))

    def running(self, owner: str) -> float:
        """Return a user's dominant share now."""
        account = self._accounts.get(owner)
        return 0.0 if account is None else account.share

    def forget(self, now: float) -> None:
        """Drop the accounts of whom nothing runs, and whose usage has faded away."""
        for owner, account in list(self._accounts.items()):
            if not any(account.amounts) and self._used(account, now) / self._fades < _FADED:
                del self._accounts[owner]

    def _used(self, account: _Account, now: float) -> float:
        if now <= account.at:
            return account.used
        kept = math.exp((account.at - now) / self._fades)
        # What a constant share adds to a usage that fades all the while.
        return account.used * kept + account.share * self._fades * (1 - kept)

    def _dominant(self, amounts: Sequence[int]) -> float:
        return max(
            (part / whole for part, whole in zip(amounts, self._total, strict=True) if whole),
            default=0.0,
        )


_FADED = 1e-9
