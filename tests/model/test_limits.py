"""Limits: what is counted, and which one is named."""

import pytest

from updraft.model.job import Resources
from updraft.model.limits import NO_LIMITS, Limits, Usage, never_allowed, reached

JOB = Resources(cpus_milli=1500, memory_bytes=1 << 30, gpus=1)


def test_without_limits_there_is_always_room() -> None:
    assert reached(NO_LIMITS, Usage(10_000, 10**9, 10_000, 1 << 60), JOB) is None


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(running_jobs=4), "4 of 4 running jobs"),
        (Limits(cpus_milli=6000), "5 of 6 CPUs"),
        (Limits(gpus=2), "2 of 2 GPUs"),
        (Limits(memory_bytes=4 << 30), "4096 of 4096 MiB of memory"),
    ],
)
def test_a_reached_limit_is_named_with_what_is_used(limits: Limits, told: str) -> None:
    used = Usage(running_jobs=4, cpus_milli=5000, gpus=2, memory_bytes=4 << 30)
    assert reached(limits, used, JOB) == told


def test_a_limit_may_be_filled_to_the_brim() -> None:
    exact = Limits(running_jobs=1, cpus_milli=1500, gpus=1, memory_bytes=1 << 30)
    assert reached(exact, Usage(), JOB) is None
    assert reached(exact, Usage().plus(JOB), JOB) is not None


def test_a_job_above_a_limit_by_itself_can_never_start() -> None:
    assert never_allowed(Limits(gpus=0), JOB) == "0 of 0 GPUs"
    assert never_allowed(Limits(gpus=1), JOB) is None
