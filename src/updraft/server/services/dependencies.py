"""Who waits for whose end, and what comes of it.

A job that waits takes no place in its pool's queue.  It is told of an end once that is stored; what
ended before the job was there is looked up in the transaction that stores the job, so that nothing
falls between.  An end costs what it has dependants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from updraft import errors
from updraft.model.dependencies import PAIRED, Edge, On
from updraft.model.job import Kind, Submission
from updraft.model.ranges import Ranges

if TYPE_CHECKING:
    from typing import Any

    from updraft.server.services.live import LiveJob
    from updraft.server.services.live_array import LiveArray
    from updraft.store.upstreams import Ended


class Dependencies:
    """The edges between live jobs, by what they wait for.

    ``may_run``: what a job, or some of its tasks, waited for has come; ``give_up``: it never will,
    and why.
    """

    def __init__(
        self, may_run: Callable[[LiveJob], None], give_up: Callable[[LiveJob, str], None]
    ) -> None:
        self._may_run = may_run
        self._give_up = give_up
        # By the id of the upstream, and its task's index, PAIRED, or None for all of it.
        self._waiters: dict[str, dict[int | str | None, dict[int, LiveJob]]] = {}

    def add(self, job: LiveJob) -> None:
        """A job is there: it waits for all that it is to run after."""
        array = job.array
        begun = job.attempts > 0 or job.started_ns is not None  # its edges were met before
        for edge in job.after:
            if edge.task == PAIRED and array is not None:
                array.pairs[edge] = array.queued.without(Ranges())
                array.ready = Ranges()
            elif begun:
                continue
            else:
                job.waits_for[edge] = None
            tasks = self._waiters.setdefault(edge.job, {})
            tasks.setdefault(edge.task, {})[job.serial] = job

    def waiting(self) -> list[LiveJob]:
        """Return the jobs that wait for others."""
        found = {
            serial: job
            for tasks in self._waiters.values()
            for some in tasks.values()
            for serial, job in some.items()
        }
        return list(found.values())

    def settle(self, job: LiveJob, ends: Mapping[Edge, Ended | None]) -> None:
        """Take what the database says of the ends that a job waits for.

        Who ended so long ago that nothing is stored of it met its edge, or the job had ended then.
        """
        for edge in job.after:
            end = ends.get(edge)
            if edge not in ends or job.ending:
                continue
            if edge.task == PAIRED:
                if end is None:
                    everything = Ranges.span(0, 1 << 31)
                    on_ok = everything if edge.on is not On.FAIL else Ranges()
                    self._release(job, edge, on_ok, everything.without(on_ok))
                else:
                    self._release(job, edge, end.tasks_ok, end.tasks_not_ok)
            elif end is None:
                self._take(job, edge, ok=edge.on is not On.FAIL)
            elif end.ok is not None:
                self._take(job, edge, ok=end.ok)

    def job_ended(self, ended: LiveJob, *, ok: bool) -> None:
        """A job's end is stored.  Tasks of it that never came to run are not ok.

        Of those that did, ``tasks_ended`` has told; or ``settle`` is about to tell who submitted
        a job meanwhile that runs after them.
        """
        unstarted = Ranges() if ended.array is None else ended.array.queued
        for task, waiters in self._waiters.pop(ended.id, {}).items():
            for job in list(waiters.values()):
                for edge in _edges(job, ended.id, task):
                    if task == PAIRED:
                        self._release(job, edge, Ranges(), unstarted)
                    elif task is None:
                        self._take(job, edge, ok=ok)
                    elif isinstance(task, int) and task in unstarted:
                        self._take(job, edge, ok=False)

    def tasks_ended(self, job_id: str, ends: Iterable[tuple[int, bool]]) -> None:
        """The ends of an array's tasks are stored: their indices, and whether they are ok."""
        tasks = self._waiters.get(job_id)
        if not tasks:
            return
        some = (Ranges(), Ranges())
        for index, ok in ends:
            some[0 if ok else 1].add(index)
            for job in tasks.pop(index, {}).values():
                for edge in _edges(job, job_id, index):
                    self._take(job, edge, ok=ok)
        for job in list(tasks.get(PAIRED, {}).values()):
            for edge in _edges(job, job_id, PAIRED):
                self._release(job, edge, *some)

    def forget(self, job: LiveJob) -> None:
        """A job waits no more: it has ended, or could not be stored."""
        for edge in job.after:
            tasks = self._waiters.get(edge.job, {})
            waiters = tasks.get(edge.task, {})
            waiters.pop(job.serial, None)
            if not waiters:
                tasks.pop(edge.task, None)
            if not tasks:
                self._waiters.pop(edge.job, None)

    def _take(self, job: LiveJob, edge: Edge, *, ok: bool) -> None:
        """A job or a task that another one waits for has ended."""
        if edge not in job.waits_for:
            return
        if not edge.met_by(ok=ok):
            self._lose(job, edge.why_never())
            return
        del job.waits_for[edge]
        if not job.waits_for:
            self._may_run(job)

    def _release(self, job: LiveJob, edge: Edge, ok: Ranges, not_ok: Ranges) -> None:
        """Tasks whose ends tasks of an array wait for, each for its own, have ended."""
        array = job.array
        if array is None or array.ready is None or not array.pairs.get(edge):
            return
        held, before = array.pairs[edge], len(array.pairs[edge])
        for those, met in ((ok, edge.met_by(ok=True)), (not_ok, edge.met_by(ok=False))):
            for start, stop in those.spans():
                for low, high in held.cut(start, stop):
                    if met:
                        _make_ready(array, low, high)
                    else:
                        _doom(array, edge.why_never(), low, high)
        if len(held) == before:
            return
        if _is_lost(array):
            self._lose(job, Edge(edge.job, edge.on).why_never())
        else:
            self._may_run(job)

    def _lose(self, job: LiveJob, why: str) -> None:
        self.forget(job)
        self._give_up(job, why)


def unmet_of(job: LiveJob) -> list[Edge]:
    """Return what a job, or some of its tasks, waits for."""
    pairs = {} if job.array is None else job.array.pairs
    return [*job.waits_for, *(edge for edge, held in pairs.items() if held)]


def holds_back(job: LiveJob) -> list[Edge]:
    """Return what keeps all of a job from running."""
    if job.waits_for or job.array is None or job.array.ready is None or job.array.ready:
        return list(job.waits_for)
    return unmet_of(job)


def check_edges(submission: Submission, upstreams: Mapping[str, Mapping[Any, Any]]) -> list[Edge]:
    """Return what a submission is to run after, with full ids.

    ``upstreams``: the jobs that it names, by these names.  Raises ``errors.BadRequest`` for one
    that is not there, or has no such task.
    """
    return [_checked(edge, submission, upstreams.get(edge.job)) for edge in submission.after]


def _checked(edge: Edge, submission: Submission, row: Mapping[Any, Any] | None) -> Edge:
    if row is None:
        raise errors.BadRequest(
            f"there is no job {edge.job!r} to run after; see: updraft job list --all"
        )
    job, task, tasks = row["id"], edge.task, submission.tasks
    if task == PAIRED:
        both = tasks.kind is Kind.ARRAY and row["kind"] == Kind.ARRAY
        if not both or tasks.count != row["tasks"]:
            raise errors.BadRequest(
                f"{job}/* pairs the tasks of two arrays, which need the same count; "
                f"job {job} has {row['tasks']}, and this one {tasks.count}"
            )
    elif task is not None:
        if not 0 <= task < row["tasks"]:
            raise errors.BadRequest(
                f"job {job} has no task {task} to run after; its tasks are 0 to {row['tasks'] - 1}"
            )
        if row["kind"] != Kind.ARRAY:
            task = None  # its tasks end together
    return Edge(job, edge.on, task)


def _edges(job: LiveJob, upstream: str, task: Any) -> list[Edge]:
    """Return the edges by which a job may wait for this."""
    return [Edge(upstream, on, task) for on in On]


def _make_ready(array: LiveArray, start: int, stop: int) -> None:
    others = [held for held in array.pairs.values() if held]
    if others:
        for index in range(start, stop):
            if not any(index in held for held in others):
                array.ready.add(index)  # type: ignore[union-attr]
    else:
        array.ready.update(start, stop)  # type: ignore[union-attr]


def _doom(array: LiveArray, why: str, start: int, stop: int) -> None:
    for held in array.pairs.values():
        held.cut(start, stop)
    array.doomed.setdefault(why, Ranges()).update(start, stop)


def _is_lost(array: LiveArray) -> bool:
    """Whether nothing of an array has begun, and nothing of it ever can."""
    begun = array.ended or array.tasks or array.withdrawn or array.retrying
    return not begun and sum(map(len, array.doomed.values())) == len(array.queued)
