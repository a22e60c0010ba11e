"""Sends one notice to one receiver: a signed webhook, a Slack-compatible message, an e-mail.

Addresses come from updraft.toml only, so an administrator has chosen each.  All the same no
redirect is followed, no proxy or credential is taken from the environment, and of an answer no more
is read than what a log line shows.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import time
from collections.abc import Callable
from email.message import EmailMessage
from typing import Protocol

import httpx

import updraft
from updraft import errors
from updraft.configuration import reading
from updraft.configuration.schema import Notification
from updraft.server.services.notices import (
    DELIVERY_HEADER,
    NOTICE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Notice,
    mail,
    signature,
    slack_body,
    webhook_body,
)

_SECONDS = 10.0
_MAX_ANSWER = 4096
_WORTH_TRYING_AGAIN = frozenset({408, 425, 429})
_MAIL_REFUSED_FROM = 500


class Refused(Exception):
    """The receiver does not want this notice; sending it again would not help."""


class NotSent(Exception):
    """It could not be sent now."""


class Sender(Protocol):
    """Sends notices to one receiver."""

    async def send(self, notice: Notice) -> None:
        """Return once the receiver has it.  Raises ``Refused`` and ``NotSent``."""

    async def close(self) -> None:
        """Let go of connections."""


def sender_for(name: str, to: Notification, clock: Callable[[], float] = time.time) -> Sender:
    """Return what sends to the receiver ``[notifications.NAME]``."""
    return MailSender(name, to) if to.kind == "email" else HttpSender(name, to, clock)


class HttpSender:
    """Webhooks, and messages for chats."""

    def __init__(self, name: str, to: Notification, clock: Callable[[], float]) -> None:
        self._name = name
        self._to = to
        self._clock = clock
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=_SECONDS,
            verify=ssl.create_default_context(),
            headers={"User-Agent": f"Updraft/{updraft.__version__}"},
        )

    async def send(self, notice: Notice) -> None:
        headers = {"Content-Type": "application/json"}
        if self._to.kind == "slack":
            body = slack_body(notice)
        else:
            body = webhook_body(notice)
            headers |= self._signed(notice, body)
        try:
            async with (
                asyncio.timeout(_SECONDS),
                self._client.stream("POST", self._to.url, content=body, headers=headers) as answer,
            ):
                said = await _beginning(answer)
        except TimeoutError as error:
            raise NotSent(f"no answer within {_SECONDS:.0f} s") from error
        except httpx.HTTPError as error:
            raise NotSent(f"{type(error).__name__}: {error}"[:200]) from error
        if answer.is_success:
            return
        why = f"it answered {answer.status_code}{f': {said}' if said else ''}"
        if answer.is_client_error and answer.status_code not in _WORTH_TRYING_AGAIN:
            raise Refused(why)
        raise NotSent(why)

    def _signed(self, notice: Notice, body: bytes) -> dict[str, str]:
        headers = {
            NOTICE_HEADER: notice.kind,
            DELIVERY_HEADER: f"{self._name}-{notice.serial}",
        }
        # Read each time: a secret that is changed takes effect.
        if secret := _secret(self._to.secret_file):
            timestamp = int(self._clock())
            headers[TIMESTAMP_HEADER] = str(timestamp)
            headers[SIGNATURE_HEADER] = signature(secret, timestamp, body)
        return headers

    async def close(self) -> None:
        await self._client.aclose()


async def _beginning(answer: httpx.Response) -> str:
    """Return the printable beginning of an answer; the rest is not read."""
    found = b""
    async for piece in answer.aiter_raw(_MAX_ANSWER):
        found += piece
        if len(found) >= _MAX_ANSWER:
            break
    text = found[:200].decode("ascii", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


class MailSender:
    """E-mails, over a connection each: they are few."""

    def __init__(self, name: str, to: Notification) -> None:
        self._name = name
        self._to = to

    async def send(self, notice: Notice) -> None:
        message = mail(notice, self._name, self._to.sender, self._to.to)
        try:
            await asyncio.to_thread(self._send, message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            why = f"no recipient was taken: {codes}"
            raise (Refused if min(codes) >= _MAIL_REFUSED_FROM else NotSent)(why) from error
        except smtplib.SMTPAuthenticationError as error:
            raise NotSent(f"the mail server takes no such sign-in ({error.smtp_code})") from error
        except smtplib.SMTPResponseException as error:
            why = f"the mail server answered {error.smtp_code}"
            raise (Refused if error.smtp_code >= _MAIL_REFUSED_FROM else NotSent)(why) from error
        except (smtplib.SMTPException, OSError) as error:
            raise NotSent(f"{type(error).__name__}: {error}"[:200]) from error

    def _send(self, message: EmailMessage) -> None:
        to = self._to
        assert to.smtp is not None  # noqa: S101 - the configuration was checked
        host, port = to.smtp
        encrypted = ssl.create_default_context()
        connection = (
            smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=encrypted)
            if to.smtp_tls == "tls"
            else smtplib.SMTP(host, port, timeout=_SECONDS)
        )
        with connection:
            if to.smtp_tls == "starttls":
                connection.starttls(context=encrypted)
            if to.smtp_user:
                connection.login(to.smtp_user, _secret(to.secret_file))
            try:
                connection.send_message(message, to.sender, list(to.to))
            except smtplib.SMTPNotSupportedError as error:
                raise Refused(
                    "the mail server takes only addresses in ASCII (it has no SMTPUTF8)"
                ) from error

    async def close(self) -> None:
        """Nothing is kept open."""


def _secret(file: str) -> str:
    try:
        return reading.secret(file)
    except errors.BadConfiguration as error:
        raise NotSent(error.message) from error
