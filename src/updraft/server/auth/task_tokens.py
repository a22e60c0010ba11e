"""Tokens of tasks: what a command carries to act as its job, for as long as its attempt runs.

A token reads ``updraft_task_JOB-ATTEMPT_PROOF`` and is stored nowhere: the proof is an HMAC over
whose task it is, under a key derived from the one that encrypts the job's environment.  That key is
shredded when the job ends, so that no token of it can be told from a guess any more.  Whether the
attempt is still the recognised one is for the caller to know.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from updraft.server.auth.environment_keys import EnvironmentKeys

PREFIX = "updraft_task_"
_PURPOSE = b"updraft: tokens of tasks"
_MAX_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose task carries a token."""

    job: str
    attempt: int
    """Its serial: each attempt has a token of its own."""
    owner: str
    project: str
    key_slot: int
    """Of its job's key."""


def mint(keys: EnvironmentKeys, bearer: Bearer) -> str:
    """Return the token of a task, the same each time; empty when its job's key is gone."""
    key = keys.derive(bearer.key_slot, _PURPOSE)
    if key is None:
        return ""
    whose = (bearer.job, str(bearer.attempt), bearer.owner, bearer.project)
    proof = hmac.new(key, "\0".join(whose).encode(), "sha256").hexdigest()
    return f"{PREFIX}{bearer.job}-{bearer.attempt}_{proof}"


def names(text: str) -> tuple[str, int] | None:
    """Return the job and the attempt that a token says it is of; None: it is no task's."""
    if not text.startswith(PREFIX) or len(text) > _MAX_LENGTH or not text.isascii():
        return None
    job, _, attempt = text.removeprefix(PREFIX).partition("_")[0].partition("-")
    return (job, int(attempt)) if job and attempt.isdecimal() else None


def matches(text: str, keys: EnvironmentKeys, bearer: Bearer) -> bool:
    """Whether this is the bearer's token, in a time that tells nothing of it."""
    good = mint(keys, bearer)
    return bool(good) and hmac.compare_digest(good.encode(), text.encode())
