"""What a command says of a thing that it made or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updraft.cli.output import json, speech

if TYPE_CHECKING:
    from pydantic import BaseModel


def show(thing: BaseModel, line: str, *, as_json: bool) -> None:
    """Print the thing as JSON where that was asked for, else say the line."""
    if as_json:
        json.show(thing)
    else:
        speech.say(line)
