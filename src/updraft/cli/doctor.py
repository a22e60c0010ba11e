"""``updraft doctor``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from updraft import errors, settings
from updraft.cli import exit_codes, findings, options
from updraft.cli.output import json, table

if TYPE_CHECKING:
    from updraft.wire.schemas import Status


@click.command
@options.as_json
def command(as_json: bool) -> int:
    """Check what is installed, reachable and allowed; each line that is not OK has its mend.

    Starts and changes nothing.  Exits with 1 if a line says FAIL.
    """
    folders = settings.folders()
    told, status = _ask_server()
    found = [*told, *findings.all_checks(folders, status, told=bool(told))]
    if as_json:
        json.show([dataclasses.asdict(finding) for finding in found])
    else:
        for finding in found:
            mend = f"; to mend it: {finding.mend}" if finding.mend else ""
            table.show_status(finding.level, f"{finding.check}: {finding.finding}{mend}")
    failed = any(finding.level == findings.FAIL for finding in found)
    return exit_codes.FAILED_REQUEST if failed else exit_codes.OK


def _ask_server() -> tuple[list[findings.Finding], Status | None]:
    try:
        with options.client(start=False) as client:
            return [], client.status() if client.running() else None
    except errors.StandingBy as error:
        return [findings.Finding(findings.OK, "server", error.message)], None
    except errors.UpdraftError as error:
        finding = findings.Finding(
            findings.FAIL, "server", error.message, "updraft stop, then try again"
        )
        return [finding], None
