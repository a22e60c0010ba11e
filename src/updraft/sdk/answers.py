"""Reading what the server answers: a value, or the error that it is."""

from __future__ import annotations

from typing import TypeVar

import httpx

import updraft
from updraft import errors
from updraft.wire import schemas

A = TypeVar("A", bound=schemas.Answer)


def read(kind: type[A], data: bytes | str) -> A:
    """Return an answer.  A server of another release may leave out what we need."""
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        raise errors.WrongVersion(
            f"the server's answer is not one that updraft {updraft.__version__} understands; if it "
            "is of another release, end it: updraft stop"
        ) from error


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer is, if it is one."""
    if answer.is_success:
        return
    try:
        error = schemas.Error.model_validate_json(answer.content).error
    except ValueError:
        raise errors.UpdraftError(f"the server answered with HTTP {answer.status_code}") from None
    raise errors.from_code(error.code, error.message)
