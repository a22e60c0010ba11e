"""footprint: memory and CPU time of the background processes while nothing runs."""

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import process
from benchmarks.install import Installation, Pids, fresh_instance
from benchmarks.report import Asked, BenchmarkError, Row, Table, Unit

_MEMORY = Asked(must=200)
_CPU = Asked(must=1, strictly=True)
_LAUNCHES_BEFORE = 20
_SETTLE_SECONDS = 3.0


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs half a minute, or ten seconds when quick."""
    window_seconds = 5.0 if quick else 20.0
    with fresh_instance(installation, folder / "home") as instance:
        instance.warm_up(_LAUNCHES_BEFORE)
        # Asking for the processes is itself work for the server: it is over when the window opens.
        pids = instance.pids()
        time.sleep(_SETTLE_SECONDS)
        try:
            rows = [*_cpu_rows(pids, window_seconds), *_memory_rows(pids)]
        except (FileNotFoundError, ProcessLookupError) as error:
            raise BenchmarkError("a background process ended while nothing ran") from error
    title = f"idle for {window_seconds:.0f} s after {_LAUNCHES_BEFORE} jobs"
    return Table("footprint", title, tuple(rows))


def _memory_rows(pids: Pids) -> Iterator[Row]:
    sizes = {name: process.resident_bytes(pid) for name, pid in pids.named()}
    for name, size in sizes.items():
        yield Row(f"memory, {name}", size / 1e6, Unit.MB)
    yield Row("memory, server + agent + keeper", sum(sizes.values()) / 1e6, Unit.MB, _MEMORY)
    everyone = _everyone(pids)
    note = f"{len(everyone)} processes; a page that N share counts as 1/N"
    proportional = sum(process.proportional_bytes(pid) for pid in everyone)
    yield Row("memory, these and their children", proportional / 1e6, Unit.MB, note=note)


def _cpu_rows(pids: Pids, window_seconds: float) -> Iterator[Row]:
    before = {pid: process.cpu_seconds(pid) for pid in _everyone(pids)}
    start = time.monotonic()
    time.sleep(window_seconds)
    elapsed = time.monotonic() - start
    used = {pid: process.cpu_seconds(pid) - seconds for pid, seconds in before.items()}
    for name, pid in pids.named():
        yield Row(f"CPU, {name}", 100 * used[pid] / elapsed, Unit.PERCENT)
    yield Row(
        "CPU, these and their children, of one core",
        100 * sum(used.values()) / elapsed,
        Unit.PERCENT,
        _CPU,
    )


def _everyone(pids: Pids) -> set[int]:
    named = {pid for _, pid in pids.named()}
    return named.union(*(process.descendants(pid) for pid in named))
