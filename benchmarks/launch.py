"""launch: how long `true` takes, started and ended, through `urun`, its peers and below them.

The whole path is measured: client start, durable insert, spawn, log stored, exit code back. Each
peer or floor is taken in turn with `urun` (A B A B), so each has `urun` figures of its own. The
first `urun` of a fresh instance, which starts the background processes, is measured apart.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.docker import local_docker
from benchmarks.install import Installation, Instance, fresh_instance
from benchmarks.report import Asked, PeerUnavailable, Row, Table, Unit, skipped
from benchmarks.scratch import plain_environment
from benchmarks.slurm import one_machine_slurm
from benchmarks.timing import Command, Pairs, Samples, seconds_of, time_in_turn

_AGAINST_SLURM = Asked(must=1.0, aim=0.7)
_COLD_START = Asked(must=1.5)


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs a minute, or a quarter of that when quick."""
    rounds = 40 if quick else 200
    rows: list[Row] = []
    rows += _cold_start(installation, folder, times=2 if quick else 5)
    with fresh_instance(installation, folder / "home") as instance:
        instance.warm_up(20)
        rows += _beside_slurm(instance, folder / "slurm", rounds)
        rows += _beside_docker(instance, rounds=5 if quick else 20)
        for floor in _floors(installation):
            rows += _pair_rows(floor, time_in_turn(instance.urun("true"), floor, rounds))
    return Table("launch", f"`true`, from start to end, {rounds} interleaved pairs", tuple(rows))


def _cold_start(installation: Installation, folder: Path, times: int) -> Iterator[Row]:
    taken = []
    for number in range(times):
        with fresh_instance(installation, folder / f"cold-{number}") as instance:
            taken.append(seconds_of(instance.urun("true")))
    note = f"median of {times}, slowest {max(taken):.2f} s"
    yield Row(
        "urun true, first of a fresh instance",
        Samples(tuple(taken)).p50,
        Unit.SECONDS,
        _COLD_START,
        note,
    )


def _beside_slurm(instance: Instance, folder: Path, rounds: int) -> list[Row]:
    try:
        with one_machine_slurm(folder) as slurm:
            pairs = time_in_turn(instance.urun("true"), slurm.srun("true"), rounds)
            note = f"Slurm {slurm.version}, 4 slurmd on this machine"
            return _pair_rows(slurm.srun("true"), pairs, _AGAINST_SLURM, note)
    except PeerUnavailable as missing:
        return [skipped("srun true", str(missing))]


def _beside_docker(instance: Instance, rounds: int) -> list[Row]:
    try:
        docker = local_docker()
    except PeerUnavailable as missing:
        return [skipped("docker run --rm busybox true", str(missing))]
    pairs = time_in_turn(instance.urun("true"), docker.run("true"), rounds)
    return _pair_rows(docker.run("true"), pairs, note=f"Docker {docker.version}, {rounds} pairs")


def _floors(installation: Installation) -> Iterator[Command]:
    """Less than any launcher can do: an interpreter that does nothing, the command alone."""
    env = plain_environment()
    yield Command("interpreter start", (installation.python, "-c", "pass"), env)
    yield Command("bare true", (shutil.which("true") or "/bin/true",), env)


def _pair_rows(
    peer: Command, pairs: Pairs, asked: Asked | None = None, note: str = ""
) -> list[Row]:
    ms = Unit.MILLISECONDS
    beside = f"urun true, beside {peer.name}"
    rows = [
        Row(f"{peer.name}, p50", pairs.peer.p50 * 1000, ms, note=note),
        Row(f"{peer.name}, p95", pairs.peer.p95 * 1000, ms),
        Row(f"{beside}, p50", pairs.ours.p50 * 1000, ms),
        Row(f"{beside}, p95", pairs.ours.p95 * 1000, ms),
        Row(f"urun ÷ {peer.name}, median of the pairs", pairs.median_ratio, Unit.RATIO, asked),
    ]
    if asked is not None:
        p50s = pairs.ours.p50 / pairs.peer.p50
        rows.append(Row(f"urun ÷ {peer.name}, p50 ÷ p50", p50s, Unit.RATIO, asked))
    return rows
