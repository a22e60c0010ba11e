"""What only `urun` says or does: there is no bare command that it could be compared with."""

import pytest

from .program import Program
from .trial import Stage


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        pytest.param(("no-such-command", "x"), 127, id="not-found"),
        pytest.param(("./no/such/file",), 127, id="path-not-found"),
        pytest.param(("./plain",), 126, id="not-executable"),
        pytest.param(("/tmp",), 126, id="directory"),
    ],
)
def test_a_command_that_cannot_start_is_named_in_one_line(
    words: tuple[str, ...], exit_code: int, stage: Stage, through_urun: list[str]
) -> None:
    outcome = stage.run(Program("cannot start", words, files={"plain": b"x"}), through_urun)
    assert (outcome.exit_code, outcome.stdout) == (exit_code, b"")
    assert outcome.stderr.count(b"\n") == 1
    assert words[0].encode() in outcome.stderr


def test_a_loop_that_reads_its_input_line_by_line_works_without_input(
    stage: Stage, through_urun: list[str]
) -> None:
    loop = Program(
        "loop", around='while read -r x; do $RUN -I sh -c "cat; echo $x"; done', stdin=b"a\nb\nc\n"
    )
    outcome = stage.run(loop, through_urun)
    assert (outcome.stdout, outcome.stderr, outcome.exit_code) == (b"a\nb\nc\n", b"", 0)


def test_output_that_the_client_cannot_write_is_its_own_failure(
    stage: Stage, through_urun: list[str]
) -> None:
    outcome = stage.run(Program("full", around="$RUN echo hi >/dev/full"), through_urun)
    assert outcome.exit_code == 125
    assert outcome.stderr.count(b"\n") == 1
    assert b"No space left" in outcome.stderr
