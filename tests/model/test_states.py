"""The table of moves: what DESIGN.md says, and nothing else."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.model.states import MOVES, TERMINAL, AttemptState, State, Wanted, may_move

ENDS = {State.SUCCESS, State.FAILURE, State.EXPIRED, State.CANCELLED}


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_a_move_is_allowed_exactly_when_the_design_says_so(old: State, new: State) -> None:
    allowed = {
        State.IN_QUEUE: ENDS | {State.RUNNING},
        State.RUNNING: ENDS | {State.SUSPENDED, State.IN_QUEUE},
        State.SUSPENDED: ENDS | {State.RUNNING, State.IN_QUEUE},
    }
    assert may_move(old, new) == (new in allowed.get(old, set()))


def test_every_state_is_in_the_table() -> None:
    assert set(MOVES) == set(State)
    assert TERMINAL == ENDS
    assert {state for state in State if state.terminal} == ENDS


@given(st.lists(st.sampled_from(State), min_size=2, max_size=20))
def test_nothing_leaves_a_terminal_state_however_long_the_way(tried: list[State]) -> None:
    walked = [State.IN_QUEUE]
    for state in tried:
        if may_move(walked[-1], state):
            walked.append(state)
    assert all(old not in TERMINAL for old, _ in pairwise(walked))
    assert all(old is not new for old, new in pairwise(walked))


def test_every_state_can_be_reached_and_has_a_way_to_an_end() -> None:
    reached, new = {State.IN_QUEUE}, {State.IN_QUEUE}
    while new:
        new = {state for old in new for state in MOVES[old]} - reached
        reached |= new
    assert reached == set(State)
    assert all(MOVES[state] >= ENDS for state in State if not state.terminal)


def test_names_are_what_is_stored() -> None:
    for names in (State, AttemptState):
        assert [str(state) for state in names] == [state.name for state in names]
    assert [str(wanted) for wanted in Wanted] == ["run", "suspend", "cancel"]
