"""Reads examples out of Markdown, and compares what a shell says with what they show.

An example is a ``console`` block; a comment before it says what becomes of it::

    <!-- run -->                     its commands are run, and the output compared
    <!-- not run: needs a terminal -->

In a block that is run, ``$ `` begins a command and ``> `` goes on with it; what follows is its
output, stderr included, up to the next command.  What differs from run to run matches by its kind:
a job's id (the same one wherever it is shown, in commands too), times, durations, sizes,
percentages, figures of three decimals or more, process ids; blanks match any number of blanks,
``…`` anything within a line, and a line that is only ``…`` any lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>run|not run: [^>]+) -->\n)?^```console\n(?P<text>.*?)^```$", re.M | re.S
)
_ID = r"\b[a-hjkmnp-tv-z][0-9a-hjkmnp-tv-z]{9}\b"
_KINDS = re.compile(
    rf"""(?P<id>{_ID})
    | (?P<when>\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:\+00:00|Z)?|\b\d\d:\d\d:\d\d\b)
    | (?P<amount>\d+(?:\.\d+)?[ ]?(?:ms|s|m|h|KiB|MiB|GiB|%)(?!\w))
    | (?P<figure>\d+\.\d{(3,)})
    | (?P<pid>(?<=pid[ ])\d+)
    | (?P<any>…)
    | (?P<blanks>[ \t]+)""",
    re.X,
)
_MATCHES = {
    "when": r"[\d:T .+Z-]+?",
    "amount": r"\d+(?:\.\d+)?[ ]?\w+%?|\d+(?:\.\d+)?%",
    "figure": r"\d+\.\d+",
    "pid": r"\d+",
    "any": r"[^\n]*",
    "blanks": r"[ \t]+",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and what it is to say."""

    line: int
    command: str
    output: str


def steps(page: Path) -> list[Step]:
    """Return what a page's runnable blocks do, in order; all of them go to one shell."""
    found: list[Step] = []
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        if block["mark"] == "run":
            first = text.count("\n", 0, block.start("text")) + 1
            found += _steps(block["text"], first)
    return found


def unmarked(page: Path) -> list[int]:
    """Return the lines of blocks of which nobody has said whether they are run."""
    text = page.read_text()
    return [
        text.count("\n", 0, block.start()) + 1
        for block in _BLOCK.finditer(text)
        if block["mark"] is None
    ]


def _steps(block: str, line: int) -> Iterator[Step]:
    command, output, at = "", "", line
    for number, text in enumerate(block.splitlines(), line):
        if text.startswith("$ "):
            if command:
                yield Step(at, command, output)
            command, output, at = text[2:], "", number
        elif text.startswith("> ") and not output:
            command += "\n" + text[2:]
        else:
            output += text + "\n"
    if command:
        yield Step(at, command, output)


class Ids:
    """Which real job each id on a page stands for."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def in_command(self, command: str) -> str:
        """Return the command with the ids that were seen so far, and their beginnings, replaced."""
        for shown, real in self._real.items():
            command = re.sub(
                rf"\b{shown[:3]}\w*\b",
                lambda word, shown=shown, real=real: (  # type: ignore[misc]
                    real[: len(word[0])] if shown.startswith(word[0]) else word[0]
                ),
                command,
            )
        return command

    def check(self, step: Step, said: str) -> None:
        """Compare; learn the ids that the page shows here for the first time."""
        pattern, new = self._pattern(step.output)
        match = re.fullmatch(pattern, said)
        if match is None:
            shown = f"line {step.line}: $ {step.command}\nis shown with\n{step.output}"
            raise AssertionError(f"{shown}\nand said\n{said}")
        self._real.update({shown: match[group] for shown, group in new.items()})

    def _pattern(self, output: str) -> tuple[str, dict[str, str]]:
        new: dict[str, str] = {}
        parts = []
        for line in output.splitlines(keepends=True):
            if line.strip() == "…":
                parts.append(r"(?:[^\n]*\n)*?")
            else:
                parts.append(self._line(line.rstrip("\n"), new) + r"[ \t]*\n")
        return "".join(parts), new

    def _line(self, line: str, new: dict[str, str]) -> str:
        pattern, at = "", 0
        for found in _KINDS.finditer(line):
            pattern += re.escape(line[at : found.start()])
            at = found.end()
            kind, shown = found.lastgroup or "", found[0]
            if kind != "id":
                pattern += f"(?:{_MATCHES[kind]})"
            elif shown in self._real:
                pattern += self._real[shown]
            elif shown in new:
                pattern += f"(?P={new[shown]})"
            else:
                new[shown] = f"id{len(new)}"
                pattern += f"(?P<{new[shown]}>{_ID})"
        return pattern + re.escape(line[at:])
