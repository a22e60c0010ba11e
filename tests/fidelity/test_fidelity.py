"""Every program of the table does the same through `urun` as it does bare."""

import os

import pytest

from .conftest import OVERRIDE
from .program import Program
from .programs import PROGRAMS
from .trial import Stage, differences


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.id)
def test_a_program_does_the_same_through_urun(
    program: Program, stage: Stage, urun_prefix: list[str], request: pytest.FixtureRequest
) -> None:
    bare = stage.run(program, [])
    if bare.unmet:
        pytest.fail(f"the table is wrong about the bare program: {bare.unmet}")
    # Strict, and for a difference only: a hang, or an exception that no longer is one, fails.
    if program.exception and OVERRIDE not in os.environ:
        request.applymarker(
            pytest.mark.xfail(reason=program.exception, strict=True, raises=AssertionError)
        )
    if found := differences(bare, stage.run(program, urun_prefix)):
        raise AssertionError("\n".join(found))
