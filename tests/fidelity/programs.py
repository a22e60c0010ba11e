"""The fidelity table. `python -m tests.fidelity.programs` prints its exceptions, for the docs."""

from collections.abc import Iterator

from . import inherited_programs, pipe_programs, shell_programs, terminal_programs
from .program import Program

PROGRAMS: tuple[Program, ...] = (
    *pipe_programs.PROGRAMS,
    *inherited_programs.PROGRAMS,
    *terminal_programs.PROGRAMS,
    *shell_programs.PROGRAMS,
)


def exceptions() -> Iterator[str]:
    """A Markdown item for each reason why `urun` differs, with the programs that show it."""
    programs: dict[str, list[str]] = {}
    for program in PROGRAMS:
        if program.exception:
            programs.setdefault(program.exception, []).append(program.id)
    for reason, names in programs.items():
        yield f"- {reason[0].upper()}{reason[1:]} ({', '.join(f'`{name}`' for name in names)})."


if __name__ == "__main__":
    print("\n".join(exceptions()))
