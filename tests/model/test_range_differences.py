"""Ranges less others are the sets that they stand for, less those."""

from hypothesis import given
from hypothesis import strategies as st

from updraft.model.ranges import Ranges

SETS = st.sets(st.integers(0, 60))


@given(SETS, SETS)
def test_without_leaves_what_is_only_in_the_first(these: set[int], those: set[int]) -> None:
    left = Ranges(these).without(Ranges(those))
    assert list(left) == sorted(these - those)
    assert left == Ranges(these - those)
    assert len(left) == len(these - those)


@given(SETS, st.integers(0, 60), st.integers(0, 60))
def test_cut_takes_out_what_lies_between_and_says_what_was_there(
    these: set[int], start: int, stop: int
) -> None:
    left = Ranges(these)
    gone = {index for low, high in left.cut(start, stop) for index in range(low, high)}
    assert gone == these & set(range(start, stop))
    assert left == Ranges(these - gone)
    assert len(left) == len(these - gone)
