"""Run a program in a fresh directory; tell what came of it, and what differs between two runs."""

import os
import shutil
import stat
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .conversation import Argv, Conversation, Ended, Setting
from .pipes import Pipes
from .program import PROMPT, Program
from .terminal import Terminal, TerminalState

SHOWN_BYTES = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a program does to the world around it, as far as these tests look."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    terminal: TerminalState | None
    files: Mapping[str, tuple[str, bytes]]
    """Of its directory, by path: the mode as `ls -l` shows it, and the content."""
    unmet: str = ""
    """The step of its script that it ended without reaching."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where programs run: the same paths and variables, bare and prefixed, empty before each."""

    root: Path
    env: Mapping[bytes, bytes]

    def setting(self, program: Program) -> Setting:
        home, work = self.root / "home", self.root / "work"
        for directory in (home, work):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        for name, content in program.files.items():
            (work / name).write_bytes(content)
        return Setting(work, {**self.env, b"HOME": os.fsencode(home), **program.env})

    def converse(self, program: Program, prefix: Sequence[str]) -> Conversation:
        """Start a program, with nothing of its script done yet."""
        setting = self.setting(program)
        argv = self._argv(program, prefix)
        if program.mode == "pipes":
            return Pipes(argv, setting)
        rows, columns = program.size
        return Terminal(argv, setting, rows=rows, columns=columns, typed=program.typed)

    def run(self, program: Program, prefix: Sequence[str]) -> Outcome:
        unmet = ""
        with self.converse(program, prefix) as conversation:
            conversation.send(program.stdin)
            try:
                for action in program.actions:
                    conversation.perform(action)
            except Ended as e:
                unmet = str(e)
            if program.mode == "pipes":
                conversation.close_input()
            conversation.finish()
            return Outcome(
                exit_code=conversation.exit_code,
                stdout=conversation.stdout,
                stderr=conversation.stderr,
                terminal=conversation.state() if isinstance(conversation, Terminal) else None,
                files=snapshot(self.root / "work"),
                unmet=unmet,
            )

    def _argv(self, program: Program, prefix: Sequence[str]) -> Argv:
        if program.mode != "shell" and not program.around:
            return [*prefix, *program.argv]
        # Unquoted, `$RUN` becomes the words of the prefix, or none. So would a function or alias,
        # but bash would then tell of its jobs by other names than when bare.
        if any(character.isspace() for word in prefix for character in word):
            raise ValueError(f"the prefix {prefix!r} has a word with a space in it")
        run = f"RUN='{' '.join(prefix)}'"
        if program.mode != "shell":
            return ["bash", "--noprofile", "--norc", "-c", f"{run}\n{program.around}"]
        startup = self.root / "startup.bash"
        startup.write_text(f"{run}\nPS1='{PROMPT.decode()}'\nunset HISTFILE\n")
        return ["bash", "--noprofile", "--rcfile", str(startup), "--noediting", "-i"]


def snapshot(directory: Path) -> dict[str, tuple[str, bytes]]:
    """Every file below `directory`: its mode as `ls -l` shows it, and its content or target."""
    found = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        content = b""
        if stat.S_ISREG(mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(mode):
            content = os.fsencode(path.readlink())
        found[str(path.relative_to(directory))] = (stat.filemode(mode), content)
    return found


def differences(bare: Outcome, through: Outcome) -> list[str]:
    """What differs, if anything; of bytes, what stands around the first that does."""
    found = []
    for name in (field.name for field in fields(Outcome)):
        expected, got = getattr(bare, name), getattr(through, name)
        if isinstance(expected, bytes) and isinstance(got, bytes):
            if expected != got:
                found.append(f"{name}: {_first_difference(expected, got)}")
        elif isinstance(expected, Mapping) and isinstance(got, Mapping):
            found += [
                f"file {path!r}: bare {expected.get(path)}, through urun {got.get(path)}"
                for path in sorted({*expected, *got})
                if expected.get(path) != got.get(path)
            ]
        elif isinstance(expected, TerminalState) and isinstance(got, TerminalState):
            kept, left = asdict(expected), asdict(got)
            found += [
                f"terminal's {part}: bare {kept[part]}, through urun {left[part]}"
                for part in kept
                if kept[part] != left[part]
            ]
        elif expected != got:
            found.append(f"{name}: bare {expected!r}, through urun {got!r}")
    return found


def _first_difference(expected: bytes, got: bytes) -> str:
    shorter = min(len(expected), len(got))
    at = bisect_left(range(shorter), True, key=lambda n: expected[: n + 1] != got[: n + 1])
    start, end = max(0, at - SHOWN_BYTES), at + SHOWN_BYTES
    return (
        f"at byte {at} of {len(expected)} bare and {len(got)} through urun:\n"
        f"    bare         …{expected[start:end]!r}\n"
        f"    through urun …{got[start:end]!r}"
    )
