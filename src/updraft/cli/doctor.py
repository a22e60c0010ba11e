"""``updraft doctor``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import click

from updraft import errors, settings
from updraft.cli import exit_codes, findings, options
from updraft.cli.output import json, table


@click.command
@options.as_json
def command(as_json: bool) -> int:
    """Check what is installed, reachable and allowed; each line that is not OK has its mend.

    Starts and changes nothing.  Exits with 1 if a line says FAIL.
    """
    folders = settings.folders()
    found = [*findings.here(folders), *_server(folders), *findings.kernel(folders)]
    if as_json:
        json.show([dataclasses.asdict(finding) for finding in found])
    else:
        for finding in found:
            mend = f"; to mend it: {finding.mend}" if finding.mend else ""
            table.show_status(finding.level, f"{finding.check}: {finding.finding}{mend}")
    failed = any(finding.level == findings.FAIL for finding in found)
    return exit_codes.FAILED_REQUEST if failed else exit_codes.OK


def _server(folders: settings.Folders) -> Iterator[findings.Finding]:
    try:
        with options.client(start=False) as client:
            status = client.status() if client.running() else None
            joined = None if status is None or status.local_pool else client.fleet.runners()
    except errors.StandingBy as error:
        yield findings.Finding(findings.OK, "server", error.message)
    except errors.UpdraftError as error:
        mend = "updraft stop, then try again"
        yield findings.Finding(findings.FAIL, "server", error.message, mend)
    else:
        yield from findings.running(folders, status, joined)
