"""throughput: an array of `true`, four at a time, through Updraft and peers, beside a bare loop.

Each is timed from the submission until it is known that all ended well; servers and workers are
up and warm before that. A bare loop of `posix_spawn` runs before and after each of them, and what
counts is the ratio to those two.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.install import Installation, fresh_instance
from benchmarks.peers import peer_from_pypi
from benchmarks.report import Asked, BenchmarkError, PeerUnavailable, Row, Table, Unit, skipped
from benchmarks.scratch import plain_environment
from benchmarks.slurm import HIGH_THROUGHPUT, one_machine_slurm

AT_ONCE = 4
_MANY = Path(__file__).parent / "programs" / "many.py"
_TRUE = shutil.which("true") or "/bin/true"
_WARM = 400
_SECONDS = 1800
_SLURM_MOST = 1000
_FASTEST_PEER = Asked(must=1.0, higher_is_better=True)

Timed = Callable[[int], float]
"""Runs so many tasks and returns the seconds that they took."""


@dataclass(frozen=True)
class Contender:
    """Somebody who runs tasks. `ready` raises PeerUnavailable where it can't be had."""

    name: str
    how: str
    ready: Callable[[Path], AbstractContextManager[tuple[str, Timed]]]
    """For a folder of its own: its version, and what runs its tasks."""
    most: int | None = None
    """Of how many tasks its rate is taken at most: who is slow would take the whole day."""
    ours: bool = False


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs six minutes, or two when quick; more the first time, to install the peers."""
    count = 1_000 if quick else 10_000
    rows: list[Row] = []
    ratios: dict[bool, dict[str, float]] = {True: {}, False: {}}
    floors = [_floor(count)]
    for number, contender in enumerate(_contenders(installation)):
        own = folder / str(number)
        own.mkdir()
        tasks = min(count, contender.most or count)
        try:
            with contender.ready(own) as (version, seconds):
                rate = tasks / seconds(tasks)
        except PeerUnavailable as missing:
            rows.append(skipped(contender.name, str(missing)))
            continue
        floors.append(_floor(count))
        ratio = rate / ((floors[-2] + floors[-1]) / 2)
        ratios[contender.ours][contender.name] = ratio
        of = f" ({tasks:,} tasks)" if tasks < count else ""
        rows.append(Row(f"{contender.name} ÷ bare loop", ratio, Unit.RATIO))
        note = ", ".join(part for part in (version, contender.how) if part)
        rows.append(Row(contender.name, rate, Unit.TASKS_PER_SECOND, note=f"{note}{of}"))
    rows.append(_bare(floors))
    if all(ratios.values()):
        peer, best = max(ratios[False].items(), key=lambda item: item[1])
        rows += [
            Row(f"{name} ÷ the fastest peer, {peer}", ratio / best, Unit.RATIO, _FASTEST_PEER)
            for name, ratio in ratios[True].items()
        ]
    return Table("throughput", f"{count:,} × `true`, {AT_ONCE} at a time, end to end", tuple(rows))


def _contenders(installation: Installation) -> Iterator[Contender]:
    for cgroups in (True, False):
        words = "on" if cgroups else "off"
        yield Contender(
            f"Updraft, cgroups {words}",
            "`ubatch -N`, then `updraft job wait`; every start and end on the disk",
            partial(_updraft, installation, cgroups),
            ours=True,
        )
    memory = "state in memory"
    four = f"four workers of a core, {memory}"
    yield Contender("HyperQueue", f"{four}, no output stored", _of_pypi("hyperqueue", "hyperqueue"))
    yield Contender("HyperQueue, output stored", four, _of_pypi("hyperqueue", "hyperqueue-output"))
    yield Contender("Ray", f"four CPUs, tasks that spawn, {memory}", _of_pypi("ray", "ray"))
    yield Contender(
        "Dask", f"four workers, tasks that spawn, {memory}", _of_pypi("distributed", "dask")
    )
    yield Contender(
        "GNU parallel", "-j4 --ungroup, nothing stored", partial(_parallel, "--ungroup")
    )
    yield Contender(
        "GNU parallel, output grouped",
        "-j4 --joblog, output by way of files",
        partial(_parallel, "--joblog=joblog"),
    )
    yield Contender("Slurm job array", "tuned for it, no accounting", _slurm, most=_SLURM_MOST)


@contextmanager
def _updraft(
    installation: Installation, cgroups: bool, folder: Path
) -> Iterator[tuple[str, Timed]]:
    with fresh_instance(installation, folder / "home") as instance:
        configuration = folder / "home" / "config" / "updraft.toml"
        configuration.parent.mkdir()
        configuration.write_text(f"[runner]\ncgroups = {str(cgroups).lower()}\n")
        instance.warm_up()
        cpus = (os.cpu_count() or 1) / AT_ONCE

        def array(count: int) -> float:
            start = time.perf_counter()
            submit = [installation.script("ubatch"), "-N", str(count), "--cpus", f"{cpus:g}", _TRUE]
            submitted = _run(submit, instance.env)
            if submitted.returncode:
                raise PeerUnavailable(f"this release takes no arrays: {_last(submitted.stderr)}")
            job = submitted.stdout.strip()
            waited = _run([installation.script("updraft"), "job", "wait", job], instance.env)
            if waited.returncode:
                raise BenchmarkError(f"the array did not end well: {_last(waited.stderr)}")
            return time.perf_counter() - start

        array(_WARM)
        yield "", array


def _of_pypi(
    package: str, tool: str
) -> Callable[[Path], AbstractContextManager[tuple[str, Timed]]]:
    def ready(folder: Path) -> AbstractContextManager[tuple[str, Timed]]:
        peer = peer_from_pypi(package)
        return nullcontext((peer.version, partial(_many, peer.python, tool, folder)))

    return ready


@contextmanager
def _parallel(flag: str, folder: Path) -> Iterator[tuple[str, Timed]]:
    program = shutil.which("parallel")
    version = "" if program is None else _run([program, "--version"]).stdout.partition("\n")[0]
    if program is None or not version.startswith("GNU parallel"):
        raise PeerUnavailable("GNU parallel is not installed (Debian: apt-get install parallel)")
    argv = [program, "--will-cite", f"-j{AT_ONCE}", flag, _TRUE]

    def timed(count: int) -> float:
        numbers = "".join(f"{number}\n" for number in range(count))
        start = time.perf_counter()
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**plain_environment(), "HOME": str(folder)},
            input=numbers,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"parallel ended with {done.returncode}: {_last(done.stderr)}")
        return time.perf_counter() - start

    yield version.removeprefix("GNU parallel "), timed


@contextmanager
def _slurm(folder: Path) -> Iterator[tuple[str, Timed]]:
    script = folder / "true.sh"
    script.write_text(f"#!/bin/sh\nexec {_TRUE}\n")
    with one_machine_slurm(folder / "slurm", HIGH_THROUGHPUT) as slurm:
        slurm.run_array(script, AT_ONCE)
        yield slurm.version, partial(slurm.run_array, script)


def _floor(count: int) -> float:
    """Tasks a second of the bare loop."""
    python = shutil.which("python3") or "python3"
    return count / _many(python, "bare", Path("/"), count)


def _bare(floors: list[float]) -> Row:
    mean = sum(floors) / len(floors)
    note = f"the mean of {len(floors)}, from {min(floors):,.0f} to {max(floors):,.0f}"
    return Row("bare loop of posix_spawn", mean, Unit.TASKS_PER_SECOND, note=note)


def _many(python: str, tool: str, folder: Path, count: int) -> float:
    done = _run([python, str(_MANY), tool, str(count)], folder=folder)
    try:
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
    except (IndexError, ValueError, KeyError, TypeError):
        said = _last(done.stderr)
        raise PeerUnavailable(f"{tool} ended with {done.returncode}: {said}") from None


def _run(
    argv: list[str], env: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            cwd=folder,
            env=plain_environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"`{Path(argv[0]).name}` did not end in {_SECONDS} s") from error


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
