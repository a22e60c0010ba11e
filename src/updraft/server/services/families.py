"""Parents and children among live jobs: which came from which, and what they share.

A task that waits in ``urun`` for a job that it submitted must not keep that from its own CPUs.  So
an attached child that would otherwise wait runs in what its parent holds, on the parent's runner,
beside it: it *borrows* that.  All that borrow from one attempt have at most what it has itself; a
child that borrowed lends on what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Resources, Submission
from updraft.model.states import State, Wanted
from updraft.scheduling.capacity import NOTHING, Capacity
from updraft.scheduling.queue import Grant
from updraft.store.jobs import Ancestor

if TYPE_CHECKING:
    from updraft.server.services.live import Lender, LiveAttempt, LiveJob, LiveRunner

K = TypeVar("K")

MOST_GENERATIONS = 64
"""How deep jobs nest: a command that submits itself ends there."""


class Families:
    """The families of live jobs.  ``jobs`` and ``runners`` are looked at, never changed."""

    def __init__(self, jobs: Mapping[str, LiveJob], runners: Mapping[str, LiveRunner]) -> None:
        """``jobs`` by id, ``runners`` by name: all that live."""
        self._jobs = jobs
        self._runners = runners
        self._children: dict[str, dict[int, LiveJob]] = {}  # by the parent's id, by serial
        self._waiting: dict[str, dict[int, LiveJob]] = {}  # of these, who may borrow
        self._changed: set[str] = set()  # parents whose waiting children may borrow by now
        self._borrowers: dict[int, dict[int, LiveJob]] = {}  # by lender, by borrower: attempts

    # -- who belongs to whom

    def adopt(self, who: Principal, submission: Submission) -> Submission:
        """Return the submission as a child of the job whose task submits it, if one does.

        Without a pool of its own it goes to the parent's.  Raises ``errors.TaskEnded``,
        ``errors.Conflict`` when that job is being ended, and ``errors.BadRequest`` where it is
        nested too deep.
        """
        if not who.task:
            return submission
        parent = self._jobs.get(who.task)
        if parent is None:
            raise errors.TaskEnded
        if parent.wanted is Wanted.CANCEL or parent.ending:
            raise errors.Conflict(f"job {parent.id} is being ended and submits no more jobs")
        if len(parent.lineage) + 1 >= MOST_GENERATIONS:
            raise errors.BadRequest(
                f"jobs nest at most {MOST_GENERATIONS} deep; does the command submit itself?"
            )
        return replace(submission, parent=parent.id, pool=submission.pool or parent.pool)

    def children(self, job_id: str) -> list[LiveJob]:
        """Return a job's live children, oldest first."""
        return list(self._children.get(job_id, {}).values())

    def added(self, job: LiveJob) -> None:
        """A job is there."""
        if job.parent is None:
            return
        parent = self._jobs.get(job.parent)
        before = () if parent is None else parent.lineage
        job.lineage = (*before, job.parent)
        self._children.setdefault(job.parent, {})[job.serial] = job

    def dropped(self, job: LiveJob) -> None:
        """A job has ended; its children may go on."""
        if job.parent is not None:
            _remove(self._children, job.parent, job.serial)
            _remove(self._waiting, job.parent, job.serial)
        self._changed.discard(job.id)

    # -- what they share

    def waits(self, job: LiveJob) -> None:
        """A job waits for a grant."""
        parent = self._waited_for(job)
        if parent is not None:
            self._waiting.setdefault(parent.id, {})[job.serial] = job
            self._changed.add(parent.id)

    def held(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """A job has its grant: from now on it may lend what it has."""
        if job.parent is not None:
            _remove(self._waiting, job.parent, job.serial)
        if attempt.lender is not None:
            self._borrowers.setdefault(attempt.lender.serial, {})[attempt.serial] = job
        self.look_at(job.id)

    def look_at(self, parent_id: str | None) -> None:
        """A job has something to lend that it had not."""
        if parent_id is not None and parent_id in self._waiting:
            self._changed.add(parent_id)

    def look_again(self) -> None:
        """A runner is there (again): whoever waits may have its parent on it."""
        self._changed.update(self._waiting)

    def need_room(self, submission: Submission, runners: Iterable[LiveRunner]) -> None:
        """Refuse an attached child that could never start, since those that wait for it hold more.

        ``runners``: of its pool, and its owner's to use.  Raises ``errors.BadRequest``.
        """
        parent = self._jobs.get(submission.parent or "")
        if parent is None or not submission.attached:
            return
        need, waiting = submission.resources, [parent]
        waiting += [job for each in parent.lineage if (job := self._jobs.get(each)) is not None]
        lenders = [parent.attempt] if parent.array is None else parent.array.crews.values()
        if parent.pool == submission.pool and not all(_is_too_large(need, e) for e in lenders):
            return
        for runner in runners:
            room = runner.total
            for held in (each for job in waiting for each in _holds_on(job, runner.name)):
                room = room.without(*held)
            if room.fits(need):
                return
        raise errors.BadRequest(
            f"this job would wait for ever: job {parent.id}, which waits for it, holds what it "
            "needs; ask for no more than that job has, or submit it with ubatch"
        )

    def loans(self, pool: str) -> Iterator[tuple[LiveJob, Grant, Lender]]:
        """Yield who may run in its parent's share now, first come, how, and whose that is.

        Whoever is not granted at once is not looked at again before something changes.
        """
        for parent_id in list(self._changed):
            parent = self._jobs.get(parent_id)
            if parent is not None and parent.pool != pool:
                continue  # its own pool's turn comes
            self._changed.discard(parent_id)
            for job in list(self._waiting.get(parent_id, {}).values()):
                if parent is None or not job.waiting:
                    continue
                loan = self.loan(job)
                if loan is not None:
                    yield job, *loan
                elif not _is_too_large(job.need, _lender(job, parent)):
                    break

    def loan(self, job: LiveJob) -> tuple[Grant, Lender] | None:
        """Return how an attached child may run in what its parent has left, and whose that is."""
        parent = self._waited_for(job)
        if parent is None or parent.ending or parent.wanted is not Wanted.RUN:
            return None
        lender = _lender(job, parent)
        runner = None if lender is None else self._runners.get(lender.runner)
        if lender is None or runner is None or not runner.is_there:
            return None
        gpus = self._left_of(lender, job.need)
        return None if gpus is None else (Grant(job.serial, runner.name, NOTHING, gpus), lender)

    def runner_of_parent(self, job: LiveJob) -> LiveRunner | None:
        """Return the runner where an attached child has its directory: its parent's, if any."""
        parent = self._waited_for(job)
        lender = None if parent is None else _lender(job, parent)
        return None if lender is None else self._runners.get(lender.runner)

    def _waited_for(self, job: LiveJob) -> LiveJob | None:
        """Return a job's parent, if that may wait for it and could have it beside it."""
        if job.parent is None or not job.attached or job.detached or job.array is not None:
            return None
        parent = self._jobs.get(job.parent)
        return parent if parent is not None and parent.pool == job.pool else None

    def released(self, lent: Lender, parent_id: str | None = None) -> list[LiveJob]:
        """An attempt, or crew, is over.  Return its borrowers, which now hold for themselves.

        What it had borrowed itself, of its job's parent, they borrow from whom it came from.
        """
        lender = getattr(lent, "lender", None)
        if lender is not None:
            _remove(self._borrowers, lender.serial, lent.serial)
            self.look_at(parent_id)
        borrowers = self._borrowers.pop(lent.serial, {})
        if lender is None:
            return list(borrowers.values())
        for borrower in borrowers.values():
            if borrower.attempt is not None:
                borrower.attempt.lender = lender
        if borrowers:
            self._borrowers.setdefault(lender.serial, {}).update(borrowers)
        return []

    def left(self, job: LiveJob) -> bool:
        """A job's client left it on purpose: nobody waits for it, and it waits for free capacity.

        Returns whether it had borrowed, and is to hold for itself.  A GPU has one holder: who
        borrowed one goes on so until its lender's end.
        """
        if job.parent is not None:
            _remove(self._waiting, job.parent, job.serial)
        attempt = job.attempt
        if attempt is None or attempt.lender is None or attempt.gpus:
            return False
        _remove(self._borrowers, attempt.lender.serial, attempt.serial)
        self.look_at(job.parent)
        return True

    def load(self, ancestors: Mapping[str, Ancestor]) -> list[tuple[LiveJob, str]]:
        """Take up the families of before the server was restarted, once all jobs are here.

        ``ancestors``: those that live jobs came from, by id.  Returns the jobs that are to be
        ended, and why: it was to happen when the server went.
        """
        parents = {each.id: each.parent for each in ancestors.values()}
        forsaken: list[tuple[LiveJob, str]] = []
        for parent_id, children in self._children.items():
            parent, stored = self._jobs.get(parent_id), ancestors.get(parent_id)
            why = f"job {parent_id}, which submitted it, did not come to its own end"
            if parent is not None:
                lost = parent.attempt is None and parent.array is None
                forsakes = lost or parent.wanted is Wanted.CANCEL
            else:
                forsakes = stored is not None and stored.state is not State.SUCCESS
            for child in children.values():
                child.lineage = lineage_of(parent_id, parents)
                if forsakes and child.wanted is not Wanted.CANCEL:
                    forsaken.append((child, why))
        return forsaken

    def borrow_again(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """An attempt of before the server was restarted borrows again what it fits in.

        Which did is not stored, but for GPUs.  Parents come before their children.
        """
        parent = self._waited_for(job)
        lender = None if parent is None else _lender(job, parent)
        if lender is None or lender.runner != attempt.runner:
            return
        gpus = set(attempt.gpus)
        if gpus <= set(lender.gpus) and self._left_of(lender, job.need) is not None:
            attempt.holds, attempt.borrows, attempt.lender = NOTHING, job.need, lender

    def _left_of(self, lender: Lender, need: Resources) -> tuple[str, ...] | None:
        """Return the GPUs that ``need`` gets of what an attempt has left; None: it does not fit."""
        cpus_milli, memory_bytes = lender.has.cpus_milli, lender.has.memory_bytes
        gpus = set(lender.gpus)
        for borrower in self._borrowers.get(lender.serial, {}).values():
            if borrower.attempt is not None:
                cpus_milli -= borrower.attempt.borrows.cpus_milli
                memory_bytes -= borrower.attempt.borrows.memory_bytes
                gpus.difference_update(borrower.attempt.gpus)
        left = Capacity(cpus_milli, memory_bytes, frozenset(gpus))
        return left.take(need)[1] if left.fits(need) else None


def _lender(job: LiveJob, parent: LiveJob) -> Lender | None:
    """Return what a job's parent has its task in: its attempt, or one of its crews."""
    if parent.array is None:
        return parent.attempt
    crews = parent.array.crews
    return crews.get(job.came_from) or next(iter(crews.values()), None)


def _is_too_large(need: Resources, lender: Lender | None) -> bool:
    """Whether a lender never has so much: whoever comes behind need not wait for it."""
    if lender is None:
        return False
    whole = Capacity(lender.has.cpus_milli, lender.has.memory_bytes, frozenset(lender.gpus))
    return not whole.fits(need)


def _holds_on(job: LiveJob, runner: str) -> list[tuple[Resources, tuple[str, ...]]]:
    """Return what one task of a job has taken of a runner."""
    if job.array is not None:
        crews = [crew for crew in job.array.crews.values() if crew.runner == runner]
        return [(crew.slot, crew.gpus) for crew in crews[:1]]
    attempt = job.attempt
    if attempt is None or attempt.runner != runner:
        return []
    return [(attempt.holds, attempt.own_gpus)]


def lineage_of(parent: str, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the jobs that a child of ``parent`` came from, the first one first."""
    found: list[str] = []
    at: str | None = parent
    while at is not None and at not in found and len(found) < MOST_GENERATIONS:
        found.append(at)
        at = parents.get(at)
    return tuple(reversed(found))


def _remove(table: dict[K, dict[int, LiveJob]], key: K, serial: int) -> None:
    found = table.get(key)
    if found is not None:
        found.pop(serial, None)
        if not found:
            del table[key]
