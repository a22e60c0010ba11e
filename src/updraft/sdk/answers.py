"""Reading what the server answers: a value, or the error that it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

import updraft
from updraft import errors
from updraft.wire import schemas

A = TypeVar("A", bound=schemas.Answer)
R = TypeVar("R", bound=schemas.Request)


def read(kind: type[A], data: bytes | str) -> A:
    """Return an answer.  A server of another release may leave out what we need."""
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        raise errors.WrongVersion(
            f"the server's answer is not one that updraft {updraft.__version__} understands; if it "
            "is of another release, end it: updraft stop"
        ) from error


def request(kind: type[R], values: Mapping[str, Any]) -> R:
    """Return a request with these fields.  Raises ``errors.BadRequest`` that names a wrong one."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise errors.BadRequest(f"{where}: {said[:1].lower()}{said[1:]}") from None


def check(answer: httpx.Response) -> None:
    """Raise the error that an answer is, if it is one."""
    if answer.is_success:
        return
    try:
        error = schemas.Error.model_validate_json(answer.content).error
    except ValueError:
        raise errors.UpdraftError(f"the server answered with HTTP {answer.status_code}") from None
    raise errors.from_code(error.code, error.message)
