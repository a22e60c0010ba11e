"""build: `make -j8` of a C project of 200 files, plain and with every `gcc` through `urun`."""

import shutil
from pathlib import Path

from benchmarks.install import Installation, fresh_instance
from benchmarks.report import BenchmarkError, Row, Table, Unit
from benchmarks.timing import Command, Pairs, Samples, seconds_of
from tests.building import c_project

_JOBS = 8


def run(installation: Installation, folder: Path, *, quick: bool) -> Table:
    """Needs two minutes, or half of one when quick; needs make and gcc."""
    rounds = 2 if quick else 7
    make = shutil.which("make")
    if make is None or shutil.which("gcc") is None:
        raise BenchmarkError(
            "make or gcc is not installed (Debian: apt-get install make gcc libc6-dev)"
        )
    project = folder / "project"
    c_project.write(project)
    with fresh_instance(installation, folder / "home") as instance:
        instance.warm_up()
        words = (make, "-C", str(project), f"-j{_JOBS}")
        plain = Command(f"make -j{_JOBS}", words, instance.env)
        through = Command(f"make -j{_JOBS} CC='urun gcc'", (*words, "CC=urun gcc"), instance.env)
        for command in (plain, through):
            _build(command, project)
        taken = [(_build(through, project), _build(plain, project)) for _ in range(rounds)]
    pairs = Pairs(
        Samples(tuple(pair[0] for pair in taken)), Samples(tuple(pair[1] for pair in taken))
    )
    rows = (
        Row(f"{plain.name}, p50", pairs.peer.p50, Unit.SECONDS),
        Row(f"{through.name}, p50", pairs.ours.p50, Unit.SECONDS),
        Row("through urun ÷ plain, median of the pairs", pairs.median_ratio, Unit.RATIO),
    )
    title = f"a C project of {c_project.FILES} files, {rounds} interleaved pairs"
    return Table("build", title, rows)


def _build(command: Command, project: Path) -> float:
    for made in (*project.glob("*/*.o"), project / "libmodules.a", project / "program"):
        made.unlink(missing_ok=True)
    return seconds_of(command)
