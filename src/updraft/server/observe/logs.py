"""The server's log: text or JSON, each line with the request and the job that it is about.

Whoever handles a request or a job says so once (``about``); every line that is logged meanwhile, in
whatever module, carries the ids.  Credentials are cut out of all that is written, in case one gets
into a message.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

_request: ContextVar[str] = ContextVar("updraft_request", default="")
_job: ContextVar[str] = ContextVar("updraft_job", default="")

_CREDENTIAL = re.compile(r"\b(updraft_[a-z]+_[0-9a-f]+_)[0-9a-zA-Z]+")
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@", re.IGNORECASE)

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@contextmanager
def about(*, request: str = "", job: str = "") -> Iterator[None]:
    """Put these ids on every line that is logged meanwhile."""
    tokens = [
        (variable, variable.set(value))
        for variable, value in ((_request, request), (_job, job))
        if value
    ]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def about_job(job: str) -> None:
    """Put this job's id on every line that the current task logs from now on."""
    _job.set(job)


def request_id() -> str:
    """Return the id of the request that is being handled; empty outside of one."""
    return _request.get()


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Write the log in this form (``text``, ``json``), from this level on, to stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        if type(old) is logging.StreamHandler:
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for library in ("httpx", "httpcore"):  # they tell whole URLs, which may be secret
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells each plugin that it loads


def without_credentials(text: str) -> str:
    """Return ``text`` with the secret parts of whatever looks like a credential cut out."""
    text = _CREDENTIAL.sub(r"\1…", text)
    text = _BEARER.sub(r"\1 …", text)
    return _URL_PASSWORD.sub(r"\1…@", text)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, and the ids that it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s server %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Return the line without its traceback."""
        ids = [f"{name}={value}" for name, value in _ids().items()]
        return super().formatMessage(record) + (f" ({' '.join(ids)})" if ids else "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and its traceback below it."""
        return without_credentials(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line: ``time``, ``level``, ``logger``, ``message``, the ids, and ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_credentials(json.dumps(line, ensure_ascii=False, default=str))


def _ids() -> dict[str, str]:
    found = {"request": _request.get(), "job": _job.get()}
    return {name: value for name, value in found.items() if value}
