"""``updraft status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import updraft
from updraft import bootstrap, errors, settings
from updraft.cli import options
from updraft.cli.output import json, table, text
from updraft.wire import frames

if TYPE_CHECKING:
    from updraft.wire.schemas import Status


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """Show whether the server runs, its runner, their versions and where things are.

    Starts nothing.
    """
    folders = settings.folders()
    status, stands_by = None, None
    with options.client(start=False) as client:
        try:
            status = client.status() if client.running() else None
        except errors.StandingBy as error:
            stands_by = error.message
    if as_json:
        json.show(_document(status, stands_by, folders))
    else:
        table.show_pairs(_pairs(status, stands_by, folders))


def _document(
    status: Status | None, stands_by: str | None, folders: settings.Folders
) -> dict[str, Any]:
    found: dict[str, Any] = {"server": None, "runner": None, "jobs": None}
    if status is not None:
        found = status.model_dump(mode="json")
    found["running"] = status is not None
    found["standing_by"] = stands_by
    found["client"] = {"version": updraft.__version__, "wire": frames.WIRE_VERSION}
    found["versions"] = {
        "client": updraft.__version__,
        "server": None if status is None else status.server.version,
        "runner": None if status is None else status.runner.version,
    }
    found["paths"] = folders.paths()
    return found


def _pairs(
    status: Status | None, stands_by: str | None, folders: settings.Folders
) -> list[tuple[str, str]]:
    pairs = [("client", updraft.__version__)]
    if stands_by is not None:
        pairs += [("server", stands_by), ("runner", "-")]
    elif status is None:
        pairs += [("server", f"not running; {_start(folders)}"), ("runner", "-")]
    else:
        server, runner = status.server, status.runner
        since = text.clock(server.started)
        pairs.append(("server", f"{server.version}, pid {server.pid}, since {since}"))
        if runner.connected:
            pairs.append(
                (
                    "runner",
                    f"{runner.version}, pid {runner.pid}, agent {runner.agent_pid}, "
                    f"{runner.cpus_free:g} of {runner.cpus:g} CPUs free",
                )
            )
        elif status.local_pool:
            pairs.append(("runner", "not connected"))
        else:
            pairs.append(("runner", "none on this machine; see: updraft runner list"))
        pairs += [("gpu", f"{gpu.kind}, {text.size(gpu.memory_bytes)}") for gpu in runner.gpus]
        pairs.append(("jobs", f"{status.jobs.running} running, {status.jobs.in_queue} waiting"))
    return pairs + list(folders.paths().items())


def _start(folders: settings.Folders) -> str:
    try:
        command = bootstrap.foreground_command(folders)
    except errors.BadConfiguration as error:
        return error.message
    return f"start it: {command}" if command else "the next urun starts it"
