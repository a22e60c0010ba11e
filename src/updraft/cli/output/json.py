"""JSON on stdout: one document, or one object a line for what is followed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def show(value: BaseModel | Sequence[BaseModel] | dict[str, Any] | list[Any]) -> None:
    """Print one indented document."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def show_line(value: BaseModel) -> None:
    """Print one compact line, at once."""
    sys.stdout.write(json.dumps(_plain(value)) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, (dict, str, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json")
