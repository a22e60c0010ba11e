"""``updraft simulate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from updraft import errors, quantities
from updraft.cli import options
from updraft.cli.output import json, speech, table, text

if TYPE_CHECKING:
    from updraft.simulation.generator import Machines

_POLICIES = ("updraft", "fifo", "easy", "drf")
_SUMMARY = ("POLICY", "SLOWDOWN", "BY JOB", "FAIRNESS", "CPUS", "GPUS", "LONGEST GAP", "P99")
_WAITS = ("POLICY", "CLASS", "TASKS", "MEAN", "MEDIAN", "P95", "LONGEST")


def _memory(text: str) -> int:
    try:
        return quantities.parse_bytes(text)
    except errors.BadRequest as error:
        raise click.BadParameter(error.message) from error


@click.command
@click.argument("trace", required=False, metavar="TRACE", type=click.Path(dir_okay=False))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("updraft",),
    show_default=True,
    metavar="POLICY",
    type=click.Choice(_POLICIES),
    help="Decide by this policy: updraft, fifo, easy or drf; repeatable, to compare.",
)
@click.option(
    "--runners",
    default=200,
    show_default=True,
    metavar="N",
    type=click.IntRange(1, 100_000),
    help="How many runners the pool has.",
)
@click.option(
    "--cpus", default=64, show_default=True, metavar="N", type=click.IntRange(1, 4096),
    help="CPUs of a runner.",
)  # fmt: skip
@click.option(
    "--memory", default="512G", show_default=True, metavar="SIZE", type=_memory,
    help="Memory of a runner.",
)  # fmt: skip
@click.option(
    "--gpus", default=8, show_default=True, metavar="N", type=click.IntRange(0, 1024),
    help="GPUs of a runner.",
)  # fmt: skip
@click.option("--plot", metavar="FILE", help="Also write a page with plots: HTML, by itself.")
@click.option(
    "--generate", "seed", metavar="SEED", type=int,
    help="Make a trace up instead, of which SEED makes the same every time.",
)  # fmt: skip
@click.option(
    "--tasks", default=100_000, show_default=True, metavar="N", type=click.IntRange(1, 10_000_000),
    help="How many tasks the made-up trace has.",
)  # fmt: skip
@click.option(
    "--load", default=0.95, show_default=True, metavar="SHARE", type=click.FloatRange(0.01, 10),
    help="How much of the runners the made-up trace asks for.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE", help="Write the made-up trace there, not to stdout."
)
@options.as_json
@click.pass_context
def command(context: click.Context, /, trace: str | None, seed: int | None, **given: Any) -> None:
    """Run a TRACE of jobs on virtual time, and tell how a policy fared.

    TRACE is CSV or JSON, with the columns submit_s, user and duration_s, and, where it is not the
    default, project, cpus, memory_bytes, gpus, time_limit_s, tasks, gang, priority and preemptible.
    The decisions are those of the server. Needs no server.
    """
    from updraft.simulation.generator import Machines  # noqa: PLC0415 - only when it is called

    machines = Machines(given["runners"], given["cpus"], given["memory"], given["gpus"])
    if (trace is None) == (seed is None):
        raise click.UsageError("give a TRACE, or make one up: --generate SEED -o FILE")
    if seed is not None:
        _generate(seed, machines, given)
        return
    if given["output"] is not None:
        raise click.UsageError("-o is for --generate; plots go to --plot FILE")
    try:
        _simulate(str(trace), machines, given)
    except errors.BadRequest as error:
        raise click.UsageError(error.message, context) from error


def _generate(seed: int, machines: Machines, given: dict[str, Any]) -> None:
    from updraft.simulation import generator, trace  # noqa: PLC0415

    lines = trace.write(generator.generate(seed, given["tasks"], machines, given["load"]))
    output = given["output"]
    if output is None:
        sys.stdout.writelines(lines)
        return
    try:
        with Path(output).open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise click.UsageError(f"{output}: {error.strerror}; choose another file") from error


def _simulate(name: str, machines: Machines, given: dict[str, Any]) -> None:
    from updraft.simulation import report, trace  # noqa: PLC0415

    try:
        content = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise errors.BadRequest(f"{name}: {error.strerror}; name a trace that is there") from error
    except UnicodeDecodeError as error:
        raise errors.BadRequest(f"{name} is no text; write it as CSV or JSON in UTF-8") from error
    jobs = trace.parse(content, name)
    policies = list(dict.fromkeys(given["policies"]))
    results = {policy: report.simulate(jobs, machines, policy) for policy in policies}
    found = [report.figures(policy, result) for policy, result in results.items()]
    summary = [_summary(each) for each in found]
    if given["plot"] is not None:
        try:
            Path(given["plot"]).write_text(report.page(results, [_SUMMARY, *summary]))
        except OSError as error:
            raise errors.BadRequest(
                f"--plot: {given['plot']}: {error.strerror}; choose another file"
            ) from error
    if given["as_json"]:
        json.show(found)
        return
    first = found[0]
    speech.say(f"{first['jobs']} jobs, {first['tasks']} tasks, {machines.runners} runners")
    table.show(_SUMMARY, summary)
    sys.stdout.write("\n")
    table.show(_WAITS, [row for each in found for row in _waits(each)])


def _summary(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        found["policy"],
        f"{found['mean_bounded_slowdown']:.2f}",
        f"{found['mean_bounded_slowdown_by_job']:.2f}",
        f"{found['jain_fairness']:.3f}",
        f"{found['utilisation']['cpus']:.1%}",
        f"{found['utilisation']['gpus']:.1%}",
        text.duration(found["longest_gap_seconds"]),
        f"{found['decisions']['p99_ms']:.2f} ms",
    )


def _waits(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            found["policy"],
            kind,
            str(waits["tasks"]),
            *(
                text.duration(waits[f"{name}_seconds"])
                for name in ("mean", "median", "p95", "longest")
            ),
        )
        for kind, waits in found["waits"].items()
    ]
