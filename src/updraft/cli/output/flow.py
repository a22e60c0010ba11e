"""Flows as trees: by rich on a terminal, aligned text otherwise."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from updraft.cli.output import json, table, text
from updraft.model.flow import tree

if TYPE_CHECKING:
    from updraft.sdk.client import Client
    from updraft.sdk.flows import FlowState, StepState

HEADERS = ("STEP", "STATE", "EXIT", "ID", "RAN", "REASON")
LIST_HEADERS = ("ID", "NAME", "STEPS", "OK", "SUBMITTED")

_COLOURS = {
    "ok": "green",
    "not ok": "red",
    "skipped": "dim",
    "RUNNING": "cyan",
}


def show_new(client: Client, flow_id: str, *, follow: bool, as_json: bool) -> int:
    """Print a new flow's id, and follow it if asked; return the exit code."""
    from updraft.sdk import flows  # noqa: PLC0415

    if as_json and not follow:
        json.show(flows.look(client, flow_id).plain())
        return 0
    if not as_json:
        sys.stdout.write(f"{flow_id}\n")
        sys.stdout.flush()
    return follow_to_end(client, flow_id, as_json=as_json) if follow else 0


def show(state: FlowState) -> None:
    """Print a flow as it is."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only on a terminal

        Console().print(_rich(state))
        return
    sys.stdout.write(_title(state) + "\n")
    table.show(HEADERS, _rows(state))


def follow_to_end(client: Client, flow_id: str, *, as_json: bool) -> int:
    """Show a flow to its end; return 0 when it is ok, else 1."""
    from updraft.sdk import flows  # noqa: PLC0415

    if as_json:
        *_, state = flows.follow(client, flow_id)
        json.show(state.plain())
    elif sys.stdout.isatty():
        state = _follow_live(client, flow_id)
    else:
        state = _follow_plainly(client, flow_id)
    return 0 if state.ok else 1


def _follow_live(client: Client, flow_id: str) -> FlowState:
    from rich.live import Live  # noqa: PLC0415 - only on a terminal

    from updraft.sdk import flows  # noqa: PLC0415

    with Live(auto_refresh=False) as live:
        for state in flows.follow(client, flow_id):
            live.update(_rich(state), refresh=True)
    return state


def _follow_plainly(client: Client, flow_id: str) -> FlowState:
    from updraft.sdk import flows  # noqa: PLC0415

    told: dict[str, str] = {}
    for state in flows.follow(client, flow_id):
        for step in state.steps:
            line = f"step {step.name} {_line(step)}"
            if told.get(step.name) != line:
                told[step.name] = line
                sys.stdout.write(line + "\n")
        sys.stdout.flush()
    sys.stdout.write(_title(state) + "\n")
    return state


def _line(step: StepState) -> str:
    job = step.job
    line = f"{_state(step)} (job {job.id})"
    if job.state.terminal and not job.ok:
        line += f": {text.printable(job.reason or '-')}"
    return line


def list_row(state: FlowState) -> tuple[str, ...]:
    """Return a flow's line in a list."""
    return (
        state.id,
        text.printable(state.name) or "-",
        str(len(state.steps)),
        text.yes_no(state.ok if state.ended else None),
        text.clock(state.steps[0].job.times.submitted),
    )


def _title(state: FlowState) -> str:
    name = f" ({text.printable(state.name)})" if state.name else ""
    ok = sum(1 for step in state.steps if step.job.ok)
    title = f"flow {state.id}{name}: {ok} of {len(state.steps)} steps ok"
    if skipped := sum(1 for step in state.steps if step.skipped):
        title += f", {skipped} skipped"
    return title + (f"; restores flow {state.restores}" if state.restores else "")


def _state(step: StepState) -> str:
    return "skipped" if step.skipped else str(step.job.state)


def _rows(state: FlowState) -> list[tuple[str, ...]]:
    steps = {step.name: step for step in state.steps}
    graph = {name: list(step.needs) for name, step in steps.items()}
    return [_row(branch, steps[name], others) for branch, name, others in tree(graph)]


def _row(branch: str, step: StepState, others: list[str]) -> tuple[str, ...]:
    job = step.job
    started = job.times.started
    ended = job.times.ended or datetime.now(UTC)
    also = f" (and after {', '.join(others)})" if others else ""
    return (
        branch + step.name + also,
        _state(step),
        "-" if job.exit_code is None else str(job.exit_code),
        job.id,
        "-" if started is None else text.duration((ended - started).total_seconds()),
        text.printable(job.reason or "-"),
    )


def _rich(state: FlowState) -> Any:
    from rich import box  # noqa: PLC0415 - only on a terminal
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    steps = {step.name: step for step in state.steps}
    shown = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title=_title(state),
        title_justify="left",
    )  # fmt: skip
    for header in HEADERS:
        shown.add_column(header, overflow="ellipsis", no_wrap=True)
    graph = {name: list(step.needs) for name, step in steps.items()}
    for branch, name, others in tree(graph):
        step = steps[name]
        how = _state(step)
        if step.job.state.terminal and not step.skipped:
            how = "ok" if step.job.ok else "not ok"
        cells = _row(branch, step, others)
        style = _COLOURS.get(how, "")
        shown.add_row(cells[0], Text(cells[1], style=style), *map(Text, cells[2:]))
    return shown
