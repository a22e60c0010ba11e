"""queued: what a long queue costs: its acknowledgement, the server's memory, everybody's answers.

An array of 10 to 1,000,000 tasks waits behind a job that holds every CPU. Meanwhile people list,
show, launch and cancel; their commands are timed from start to end, so most of each is the start of
an interpreter. What counts is that the last size costs what the first does.
"""

import os
import subprocess
import time
from pathlib import Path

from benchmarks import process
from benchmarks.install import Installation, Instance, fresh_instance
from benchmarks.report import Asked, BenchmarkError, Row, Table, Unit
from benchmarks.timing import Command, Samples, seconds_of

_SIZES = (10, 1_000, 10_000, 100_000, 1_000_000)
_SUBMIT_SECONDS = 600
_AS_FEW = Asked(must=1.5)


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs four minutes, or one when quick."""
    sizes, times = (_SIZES[:3], 10) if quick else (_SIZES, 50)
    rows: list[Row] = []
    medians: list[dict[str, float]] = []
    for size in sizes:
        with fresh_instance(installation, folder / str(size)) as instance:
            instance.warm_up()
            _submit(instance, "--cpus", str(os.cpu_count() or 1), "sleep", "1000000")
            of_size, samples = _measure(instance, size, times)
        rows += of_size
        medians.append({name: taken.p50 for name, taken in samples.items()})
    rows += [
        Row(
            f"{name}, {sizes[-1]:,} queued ÷ {sizes[0]}, p50",
            medians[-1][name] / median,
            Unit.RATIO,
            _AS_FEW,
        )
        for name, median in medians[0].items()
    ]
    return Table("queued", f"an array waits; {times} of each command meanwhile", tuple(rows))


def _measure(instance: Instance, size: int, times: int) -> tuple[list[Row], dict[str, Samples]]:
    ms, queued = Unit.MILLISECONDS, f"{size:,} queued"
    server = instance.pids().server
    before = process.resident_bytes(server)
    start = time.perf_counter()
    array = _submit(instance, "-N", str(size), "true")
    acknowledged = time.perf_counter() - start
    rows = [
        Row(
            f"{queued}: acknowledged",
            1000 * acknowledged,
            ms,
            note=f"{1e6 * acknowledged / size:,.1f} µs a task",
        )
    ]
    samples = _samples(instance, array, times)
    after = process.resident_bytes(server)
    note = f"{(after - before) / 1e6:+.1f} MB by the array and the commands"
    rows.append(Row(f"{queued}: server memory", after / 1e6, Unit.MB, note=note))
    for name, taken in samples.items():
        note = f"p99 {1000 * taken.p99:.2f} ms"
        rows.append(Row(f"{queued}: {name}, p50", 1000 * taken.p50, ms, note=note))
    cancelled = seconds_of(_updraft(instance, "job", "cancel", array))
    rows.append(Row(f"{queued}: all of them cancelled", 1000 * cancelled, ms))
    return rows, samples


def _samples(instance: Instance, array: str, times: int) -> dict[str, Samples]:
    """Times the commands in turn."""
    taken: dict[str, list[float]] = {}
    for _ in range(times):
        waiting = _submit(instance, "true")
        for name, command in (
            ("updraft job list", _updraft(instance, "job", "list")),
            ("updraft job show", _updraft(instance, "job", "show", array)),
            ("updraft job cancel", _updraft(instance, "job", "cancel", waiting)),
            ("urun --cpus 0 true", instance.urun("--cpus", "0", "true")),
        ):
            taken.setdefault(name, []).append(seconds_of(command))
    return {name: Samples(tuple(seconds)) for name, seconds in taken.items()}


def _submit(instance: Instance, *arguments: str) -> str:
    """Submit with `ubatch` and return the job's id."""
    done = subprocess.run(
        [instance.installation.script("ubatch"), *arguments],
        env=instance.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SUBMIT_SECONDS,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BenchmarkError(f"`ubatch {' '.join(arguments)}` was refused: {lines[-1]}")
    return done.stdout.strip()


def _updraft(instance: Instance, *arguments: str) -> Command:
    name = " ".join(["updraft", *arguments])
    return Command(name, (instance.installation.script("updraft"), *arguments), instance.env)
