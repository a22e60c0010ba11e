"""Ranges of indices are what a set of them is."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from updraft.model.ranges import Ranges

INDICES = st.integers(0, 40)
STEPS = st.one_of(
    st.tuples(st.just("add"), INDICES, INDICES),
    st.tuples(st.just("update"), INDICES, INDICES),
    st.tuples(st.just("discard"), INDICES, INDICES),
    st.tuples(st.just("take"), st.integers(0, 12), INDICES),
)


@given(st.lists(INDICES), st.lists(STEPS, max_size=30))
def test_ranges_hold_what_a_set_would(
    members: list[int], steps: list[tuple[str, int, int]]
) -> None:
    ranges, model = Ranges(members), set(members)
    for kind, one, other in steps:
        if kind == "add":
            ranges.add(one)
            model.add(one)
        elif kind == "update":
            ranges.update(one, other)
            model.update(range(one, other))
        elif kind == "discard":
            ranges.discard(one)
            model.discard(one)
        else:
            lowest = sorted(model)[:one]
            assert ranges.take(one) == lowest
            model.difference_update(lowest)
        assert_is(ranges, model)


def assert_is(ranges: Ranges, model: set[int]) -> None:
    assert list(ranges) == sorted(model)
    assert (len(ranges), bool(ranges)) == (len(model), bool(model))
    assert [each in ranges for each in range(-1, 42)] == [each in model for each in range(-1, 42)]
    if model:
        assert ranges.first() == min(model)
    spans = list(ranges.spans())
    assert all(start < stop for start, stop in spans)
    # As few as can be: none touches the next.
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(spans))
    assert Ranges.parse(str(ranges)) == ranges == Ranges(model)


@given(INDICES, INDICES)
def test_a_span_is_a_range(start: int, stop: int) -> None:
    assert_is(Ranges.span(start, stop), set(range(start, stop)))
