"""How elastic jobs share nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft import errors
from updraft.scheduling.elastic import Elastic, Resize, Size, lost, parse_size, share


@st.composite
def elastics(draw: st.DrawFn) -> list[Elastic]:
    found = []
    for serial in range(draw(st.integers(0, 6))):
        least = draw(st.integers(1, 4))
        size = Size(least, least + draw(st.integers(0, 6)))
        has = draw(st.sampled_from([0, size.least, size.most]))
        found.append(Elastic(serial, size, has))
    return found


@given(st.integers(0, 20), elastics())
def test_no_node_is_given_twice_and_every_size_is_kept(free: int, jobs: list[Elastic]) -> None:
    changes = share(free, jobs)
    after = {job.serial: job.has for job in jobs} | {each.serial: each.after for each in changes}
    assert sum(after.values()) <= free + sum(job.has for job in jobs)
    for job in jobs:
        assert after[job.serial] == 0 == job.has or (
            job.size.least <= after[job.serial] <= job.size.most
        )


@given(st.integers(0, 20), elastics())
def test_nothing_lies_idle_that_somebody_could_use(free: int, jobs: list[Elastic]) -> None:
    after = {job.serial: job.has for job in jobs}
    after |= {each.serial: each.after for each in share(free, jobs)}
    left = free + sum(job.has for job in jobs) - sum(after.values())
    if all(after.values()):
        assert left == 0 or all(after[job.serial] == job.size.most for job in jobs)
    else:
        first = next(job for job in jobs if not after[job.serial])
        spare = sum(after[job.serial] - job.size.least for job in jobs if job.has)
        assert left + spare < first.size.least


@given(st.integers(0, 20), elastics())
def test_a_second_look_changes_nothing_more(free: int, jobs: list[Elastic]) -> None:
    after = {job.serial: job.has for job in jobs}
    after |= {each.serial: each.after for each in share(free, jobs)}
    left = free + sum(job.has for job in jobs) - sum(after.values())
    again = [Elastic(job.serial, job.size, after[job.serial]) for job in jobs]
    assert not any(each.after < each.before for each in share(left, again))


def test_a_job_that_waits_takes_from_those_with_most_and_shrinking_comes_first() -> None:
    jobs = [
        Elastic(1, Size(2, 8), has=8, generation=3),
        Elastic(2, Size(2, 8), has=4),
        Elastic(3, Size(3, 8)),
    ]
    assert share(1, jobs) == [Resize(1, 4, 8, 6), Resize(3, 1, 0, 3)]


def test_free_nodes_go_to_those_with_the_fewest() -> None:
    jobs = [Elastic(1, Size(1, 8), has=5), Elastic(2, Size(1, 8), has=1)]
    assert share(4, jobs) == [Resize(2, 1, 1, 5)]


def test_a_job_goes_on_with_what_is_left_down_to_its_least() -> None:
    job = Elastic(1, Size(2, 8), has=4, generation=1)
    assert lost(job, 2) == (Elastic(1, Size(2, 8), 2, 2), Resize(1, 2, 4, 2))
    assert lost(job, 3) == (Elastic(1, Size(2, 8), 0, 2), None)


@pytest.mark.parametrize(("text", "size"), [("2:8", Size(2, 8)), ("4", Size(4, 4))])
def test_sizes_are_read(text: str, size: Size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "2:", ":8", "8:2", "0:4", "-1:3", "1:2:3"])
def test_bad_sizes_are_refused_in_a_line(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="2:8"):
        parse_size(text)
