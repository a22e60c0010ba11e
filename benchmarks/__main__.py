"""`python -m benchmarks`: runs benchmarks and prints their tables.

Data to stdout, talk to stderr. Exit code 0 when all ran, whatever they measured; 1
when one could not.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from benchmarks import (
    build,
    echo,
    footprint,
    launch,
    load,
    machine,
    queued,
    relay,
    render,
    throughput,
)
from benchmarks.install import REPOSITORY, Installation, existing_installation, make_installation
from benchmarks.report import BenchmarkError, Report, Table
from benchmarks.scratch import scratch_folder


class Benchmark(Protocol):
    """Measures one thing. `folder` is its own; `quick` asks for a rough figure, soon."""

    def __call__(self, installation: Installation, folder: Path, *, quick: bool) -> Table: ...


BENCHMARKS: dict[str, Benchmark] = {
    "launch": launch.run,
    "relay": relay.run,
    "echo": echo.run,
    "footprint": footprint.run,
    "load": load.run,
    "throughput": throughput.run,
    "queued": queued.run,
    "build": build.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not sys.platform.startswith("linux"):
        _say("the benchmarks read /proc, and so need Linux")
        return 1
    # As Ctrl-C does: unwinds, so that what was started is stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with scratch_folder() as folder:
            return _measure(options, folder)
    except BenchmarkError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "benchmark", nargs="?", default="all", choices=[*BENCHMARKS, "all"], help="default: all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: rough figures, sooner")
    parser.add_argument(
        "--markdown", action="store_true", help="print Markdown tables, for the README"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    installed = parser.add_mutually_exclusive_group()
    installed.add_argument(
        "--source",
        default=str(REPOSITORY),
        metavar="WHAT",
        help="what pip installs for the run: a checkout, a wheel (default: this checkout)",
    )
    installed.add_argument(
        "--venv",
        type=Path,
        metavar="DIR",
        help="measure what is installed in DIR, not editable, instead of making an environment",
    )
    return parser


def _measure(options: argparse.Namespace, folder: Path) -> int:
    if options.venv is not None:
        installation = existing_installation(options.venv)
    else:
        _say("installing Updraft into an environment of its own …")
        installation = make_installation(folder / "venv", options.source)
    facts = (*machine.facts(folder), ("updraft", installation.version()))
    if not options.markdown:
        print(render.facts_as_text(facts), flush=True)
    tables, failed = [], False
    for name in BENCHMARKS if options.benchmark == "all" else (options.benchmark,):
        _say(f"measuring {name} …")
        own = folder / name
        own.mkdir()
        try:
            tables.append(BENCHMARKS[name](installation, own, quick=options.quick))
        except BenchmarkError as error:
            _say(f"{name}: {error}")
            failed = True
            continue
        if not options.markdown:
            print(f"\n{render.table_as_text(tables[-1])}", flush=True)
    report = Report(facts, tuple(tables))
    if options.markdown:
        print(render.as_markdown(report))
    if options.json is not None:
        options.json.write_text(render.as_json(report) + "\n")
    return 1 if failed else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(words: str) -> None:
    print(f"benchmarks: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
