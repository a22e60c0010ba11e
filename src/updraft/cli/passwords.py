"""Asking for secrets: from stdin, or on the terminal without showing what is typed."""

from __future__ import annotations

import sys

import click

from updraft import errors

_MAX_SECRET = 4000


def from_stdin(what: str) -> str:
    """Return the first line of stdin.  Raises ``errors.BadRequest`` when there is none."""
    found = sys.stdin.readline(_MAX_SECRET).rstrip("\r\n")
    if not found:
        raise errors.BadRequest(f"stdin has no {what}; give it on one line")
    return found


def asked(prompt: str) -> str:
    """Return what the person types.  Raises ``errors.BadRequest`` when there is no terminal."""
    if not sys.stdin.isatty():
        raise errors.BadRequest("there is no terminal to ask for the password; use --stdin")
    found: str = click.prompt(prompt, hide_input=True, err=True, default="", show_default=False)
    return found


def asked_twice(prompt: str) -> str:
    """Return a new password that was typed twice alike; empty when nothing was typed."""
    found = asked(prompt)
    if found and asked("Again") != found:
        raise errors.BadRequest("these were two different passwords; nothing was changed")
    return found
