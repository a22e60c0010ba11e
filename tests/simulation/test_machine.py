"""What the simulator tells of a run is what happened in it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updraft import errors
from updraft.simulation.generator import Machines, generate
from updraft.simulation.metrics import Metrics, bounded_slowdown, jain
from updraft.simulation.report import POLICIES, figures, page, simulate
from updraft.simulation.trace import TraceJob

SMALL = Machines(runners=4, cpus=8, memory_bytes=64 << 30, gpus=2)

JOBS = st.lists(
    st.builds(
        TraceJob,
        submit_s=st.sampled_from([0.0, 5.0, 30.0, 100.0]),
        user=st.sampled_from(["ann", "ben", "eve"]),
        duration_s=st.sampled_from([1.0, 20.0, 200.0]),
        cpus=st.sampled_from([1.0, 4.0, 8.0]),
        gpus=st.sampled_from([0, 0, 1, 2]),
        time_limit_s=st.sampled_from([None, 30.0, 300.0]),
        tasks=st.sampled_from([2, 3, 4]),
        gang=st.booleans(),
        preemptible=st.booleans(),
        priority=st.sampled_from([0, 0, 1]),
    ),
    min_size=1,
    max_size=8,
).map(lambda jobs: sorted(jobs, key=lambda job: job.submit_s))


def alone(jobs: list[TraceJob], policy: str) -> dict[str, object]:
    """The figures of a run, without the CPU time that it took."""
    found = figures(policy, simulate(jobs, SMALL, policy))
    return {key: value for key, value in found.items() if key != "decisions"}


@settings(max_examples=60, deadline=None)
@given(JOBS, st.sampled_from(sorted(POLICIES)))
def test_every_task_ends_once_under_every_policy(jobs: list[TraceJob], policy: str) -> None:
    result = simulate(jobs, SMALL, policy)
    ended = sum(waits.tasks for waits in result.metrics.waits.values())
    assert ended == sum(1 if job.gang else job.tasks for job in jobs)
    assert 0 <= result.metrics.fairness <= 1 + 1e-9
    assert result.metrics.mean_bounded_slowdown >= 1
    assert result.cpu_utilisation <= 1 + 1e-9
    assert policy == "updraft" or result.preempted == 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_trace_is_the_same_run(policy: str) -> None:
    jobs = generate(5, 400, SMALL)
    assert alone(jobs, policy) == alone(jobs, policy)


def test_nobody_is_passed_over_longer_than_the_bound_that_is_told() -> None:
    jobs = [job for job in generate(5, 400, SMALL) if job.time_limit_s is not None]
    result = simulate(jobs, SMALL, "updraft")
    assert result.gap_bound_s is not None
    assert 0 < result.longest_gap_s <= result.gap_bound_s


def test_fifo_lets_nothing_pass_and_easy_what_delays_nobody() -> None:
    jobs = [
        TraceJob(0, "ann", 100, cpus=8, time_limit_s=100, tasks=3),
        TraceJob(1, "ben", 100, cpus=8, time_limit_s=100, tasks=4, gang=True),
        TraceJob(2, "eve", 50, cpus=8, time_limit_s=60),
    ]
    waits = {
        policy: simulate(jobs, SMALL, policy).metrics.waits["single"].longest_seconds
        for policy in POLICIES
    }
    assert waits == {"fifo": 198.0, "easy": 0.0, "drf": 0.0, "updraft": 0.0}


def test_drf_gives_the_next_place_to_who_has_the_least() -> None:
    jobs = [
        TraceJob(0, "ann", 10, cpus=8, tasks=12),
        TraceJob(1, "eve", 10, cpus=8, tasks=2),
    ]
    assert simulate(jobs, SMALL, "drf").metrics.waits["array"].longest_seconds == 30.0
    metrics = simulate(jobs, SMALL, "fifo").metrics
    assert metrics.waits["array"].longest_seconds == 29.0


def test_who_gives_way_begins_again() -> None:
    jobs = [
        TraceJob(0, "ann", 100, cpus=8, tasks=4, preemptible=True),
        TraceJob(10, "eve", 10, cpus=8),
    ]
    result = simulate(jobs, SMALL, "updraft")
    assert result.preempted == 1
    assert result.end_s == 120.0
    assert result.metrics.waits["single"].longest_seconds == 0


def test_a_job_that_never_fits_is_refused_with_the_flag_to_raise() -> None:
    with pytest.raises(errors.BadRequest, match=r"never fits on 4 runners .* raise --runners"):
        simulate([TraceJob(0, "ann", 1, cpus=9)], SMALL, "updraft")
    with pytest.raises(errors.BadRequest, match="never fits"):
        simulate([TraceJob(0, "ann", 1, cpus=5, tasks=5, gang=True)], SMALL, "updraft")


def test_slowdown_and_fairness_are_what_their_definitions_say() -> None:
    assert bounded_slowdown(0, 1) == 1
    assert bounded_slowdown(19, 1) == 2
    assert bounded_slowdown(100, 50) == 3
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    metrics = Metrics()
    metrics.ended(1, "ann", "array", (3, 0.0, 10.0))
    metrics.ended(2, "eve", "single", (1, 30.0, 10.0))
    assert metrics.mean_bounded_slowdown == (3 * 1 + 4) / 4
    assert metrics.mean_bounded_slowdown_by_job == 2.5
    assert metrics.fairness == jain([1, 0.25])
    assert metrics.waits["array"].quantile(0.5) == 0


def test_a_page_of_plots_stands_alone() -> None:
    jobs = generate(5, 200, SMALL)
    results = {policy: simulate(jobs, SMALL, policy) for policy in ("updraft", "easy")}
    text = page(results, [("POLICY",), ("a<b",)])
    assert text.count("<svg") >= 4
    assert "a&lt;b" in text
    assert "http" not in text
