"""What people are told of a job's events, and in which form: pure.

A notice is built on whether the job is ok, not on its state alone, and shows the exit code.
Command lines are left out: they may hold what belongs into no chat and no mailbox.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from hashlib import sha256
from typing import Any

from updraft.model.states import TERMINAL, State

SIGNATURE_HEADER = "Updraft-Signature"
TIMESTAMP_HEADER = "Updraft-Timestamp"
DELIVERY_HEADER = "Updraft-Delivery"
NOTICE_HEADER = "Updraft-Event"

LONGEST_DELAY_SECONDS = 900.0
"""Between two tries."""
_FIRST_DELAY_SECONDS = 2.0
_MAX_MESSAGE = 1000
_IN_MAIL = (
    "id", "name", "project", "owner", "pool", "state", "submitted", "started", "ended", "server",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, as a receiver is told of it."""

    serial: int
    at_ns: int
    kind: str
    """``submitted``, ``started``, ``retried``, ``ok`` or ``not_ok``."""
    state: str
    message: str
    attempt: int | None
    job: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """The news in one line: ``job train (k7m2p9x4ce) failed: exited with 3``."""
        name = self.job["name"]
        who = f"{name} ({self.job['id']})" if name else self.job["id"]
        said = {
            "submitted": "was submitted",
            "started": "started",
            "retried": f"is tried again: {self.message}",
            "ok": "is done",
            "not_ok": f"ended with {self.state}, exit code {self.job['exit_code']}: {self.message}",
        }
        return f"job {who} {said[self.kind]}".replace("\n", " ")


def notice_of(row: Mapping[str, Any], url: str = "") -> Notice:
    """Return the notice of an event's row (``store.notifications.pending``)."""
    state = State(row["kind"])
    ended = state in TERMINAL
    ok = state is State.SUCCESS and row["job_exit_code"] == 0
    job = {
        "id": row["job_id"],
        "name": row["job_name"],
        "project": row["job_project"],
        "owner": row["job_owner"],
        "pool": row["job_pool"],
        "labels": json.loads(row["job_labels"]),
        "state": str(state),  # at the event: the job may be further
        "ok": ok if ended else None,
        "exit_code": row["job_exit_code"] if ended else None,
        "submitted": _time(row["job_created_ns"]),
        "started": _time(row["job_started_ns"]),
        "ended": _time(row["job_ended_ns"]) if ended else None,
        "server": url,
    }
    if ended:
        kind = "ok" if ok else "not_ok"
    elif state is State.RUNNING:
        kind = "started"
    else:
        kind = "submitted" if row["attempt"] is None else "retried"
    message = row["event_message"][:_MAX_MESSAGE]
    return Notice(row["serial"], row["at_ns"], kind, str(state), message, row["attempt"], job)


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat()


def webhook_body(notice: Notice) -> bytes:
    """Return what a webhook is sent."""
    body = {
        "event": {
            "id": notice.serial,
            "kind": notice.kind,
            "time": _time(notice.at_ns),
            "attempt": notice.attempt,
            "message": notice.message,
        },
        "job": notice.job,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return ``v1=`` and HMAC-SHA256, as hex, over ``TIMESTAMP.BODY``.

    The time is signed too, so that a receiver can refuse what somebody recorded and sends again.
    """
    signed = b"%d.%b" % (timestamp, body)
    return f"v1={hmac.new(secret.encode(), signed, sha256).hexdigest()}"


def slack_body(notice: Notice) -> bytes:
    """Return a message as Slack, Mattermost and others take it."""
    text = notice.headline
    for sign, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, escaped)
    mark = {"ok": ":white_check_mark: ", "not_ok": ":x: "}.get(notice.kind, "")
    return json.dumps({"text": mark + text}, ensure_ascii=False).encode()


def mail(notice: Notice, receiver: str, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """Return an e-mail; the same event has the same Message-ID, so that a repetition shows."""
    message = EmailMessage()
    # Nothing of a job may add a header of its own.
    message["Subject"] = "".join(c if c.isprintable() else " " for c in notice.headline)[:200]
    message["From"] = sender
    message["To"] = ", ".join(to)
    host = sender.rpartition("@")[2] or "updraft"
    message["Message-ID"] = f"<updraft-{receiver}-{notice.serial}@{host}>"
    message["Auto-Submitted"] = "auto-generated"
    about = [f"{name}: {notice.job[name]}" for name in _IN_MAIL if notice.job[name]]
    if notice.job["exit_code"] is not None:
        about.append(f"exit code: {notice.job['exit_code']}")
    lines = [notice.headline, "", *about]
    message.set_content("\n".join(lines) + "\n")
    return message


def delay_seconds(failures: int, dice: float) -> float:
    """Return how long to wait after so many failures; ``dice``, from 0 to 1, spreads them out."""
    longest = min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 30), LONGEST_DELAY_SECONDS)
    return longest * (0.5 + 0.5 * dice)
