"""Edges between jobs: which end meets them, and how they read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.model.dependencies import PAIRED, Edge, On, read, why_waiting, written

EDGES = st.lists(
    st.builds(
        Edge,
        st.text("abc", min_size=1, max_size=4),
        st.sampled_from(On),
        st.none() | st.just(PAIRED) | st.integers(0, 9),
    )
)


@pytest.mark.parametrize(
    ("on", "ok", "not_ok"), [(On.ANY, True, True), (On.OK, True, False), (On.FAIL, False, True)]
)
def test_an_edge_is_met_by_the_end_that_it_names(on: On, ok: bool, not_ok: bool) -> None:
    assert Edge("abc", on).met_by(ok=True) is ok
    assert Edge("abc", on).met_by(ok=False) is not_ok


@given(EDGES)
def test_edges_are_read_as_they_were_written(edges: list[Edge]) -> None:
    assert list(read(written(edges))) == edges


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        ([Edge("abc")], "waiting for job abc"),
        ([Edge("abc", task=7)], "waiting for task abc/7"),
        ([Edge("abc", task=PAIRED)], "waiting for tasks of job abc"),
        ([Edge("abc", task=7), Edge("abc", task=8)], "waiting for 2 tasks, first abc/7"),
        ([Edge("abc"), Edge("abd", task=8)], "waiting for 2 jobs, first abc"),
    ],
)
def test_who_waits_says_for_what(edges: list[Edge], says: str) -> None:
    assert why_waiting(edges) == says
