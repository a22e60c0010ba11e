"""Tables: by rich on a terminal, aligned text otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_STYLES = {"yes": "green", "no": "red", "OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def show(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout."""
    if sys.stdout.isatty():
        _show_rich(headers, rows)
        return
    lines = [headers, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def show_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print labelled values to stdout, one a line."""
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        sys.stdout.write(f"{label:<{width}}  {value}".rstrip() + "\n")


def _show_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box  # noqa: PLC0415 - only on a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        wide = header in ("COMMAND", "REASON", "NAME", "FINDING", "MEND")
        table.add_column(header, overflow="ellipsis" if wide else "fold", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def show_status(level: str, line: str) -> None:
    """Print one line that begins with OK, WARN or FAIL."""
    shown = f"{level:<4}"
    if sys.stdout.isatty():
        colour = {"OK": 32, "WARN": 33, "FAIL": 31}[level]
        shown = f"\x1b[{colour}m{shown}\x1b[0m"
    sys.stdout.write(f"{shown}  {line}\n")
