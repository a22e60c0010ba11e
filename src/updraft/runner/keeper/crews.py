"""Crews: the tasks of one array on this runner, a few at a time, in the order of their grants.

The keeper asks this module for what concerns a crew.  Tasks that need nothing done for each by
itself are run by the crew's workers; others are started by the keeper, each with a leader of its
own.  What happens is told in groups: most tasks of an array are short, and one message for many
costs no more than one for each.
"""

from __future__ import annotations

import os
import time
from collections import deque

from updraft.runner.keeper import journal, workers
from updraft.runner.keeper.workers import Worker
from updraft.wire import frames
from updraft.wire.packing import pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    from updraft.runner.keeper.cgroups import Slot
    from updraft.runner.keeper.task import Task

    class Host(Protocol):
        """The keeper, as its crews see it."""

        @property
        def is_shared(self) -> bool: ...
        @property
        def is_ending(self) -> bool: ...
        def seen_by_others(self, end: dict[str, Any]) -> dict[str, Any]: ...
        def start(self, attempt: int, spec: dict[str, Any]) -> None: ...
        def kill(self, attempt: int, why: str, grace_seconds: float) -> None: ...
        def send(self, data: bytes) -> None: ...
        def grew(self, channel: int, length: int) -> None: ...
        def watch(self, fd: int, ready: Callable[[], None]) -> None: ...
        def unwatch(self, fd: int) -> None: ...
        def take_slot(self, spec: dict[str, Any]) -> Slot | None: ...
        def give_slot(self, slot: Slot | None) -> None: ...


_MOST_TASKS = 4096
_TASK_BOUNDS = ((1 << 62) - 1, (1 << 31) - 1, (1 << 31) - 1)
_MOST_LAST_WORDS = 16
_MOST_TOLD = 1024
"""How many starts or ends go into one message: fewer than a server takes."""

_GATHER_SECONDS = 0.005
"""How long starts and ends are gathered before they are told."""


class Crew:
    """The tasks of one array that this runner was granted."""

    def __init__(self, number: int, spec: dict[str, Any], *, shared: bool) -> None:
        self.number = number
        self.spec = spec
        self.width: int = spec["width"]
        self.waiting: deque[int] = deque()
        self.tasks: dict[int, tuple[int, int]] = {}
        """The index and the number of each attempt that was not forgotten."""
        self.running: set[int] = set()
        """Those that have a leader of their own."""
        has_workers = not shared and workers.suits(spec)
        self.workers: list[Worker] | None = [] if has_workers else None
        """None: each task gets a leader, on a shared runner whatever the spec says."""
        self.worker_count = 0

    def task_spec(self, attempt: int) -> dict[str, Any]:
        """Return what a task that gets a leader is started with."""
        index, number = self.tasks[attempt]
        told = b"\0UPDRAFT_TASK_INDEX=%d\0UPDRAFT_TASK_COUNT=%d\0UPDRAFT_ATTEMPT=%d"
        environment = self.spec["environment"] + told % (index, self.spec["count"], number)
        folder = self.spec["folder"] + b"/%d.%d" % (index, number)
        return {**self.spec, "environment": environment, "folder": folder}

    def identity(self, attempt: int) -> dict[str, Any]:
        """Return what of a report says whose an attempt is."""
        index, number = self.tasks[attempt]
        return {
            "crew": self.number,
            "index": index,
            "number": number,
            "job": self.spec["job"],
            "folder": self.spec["folder"] + b"/%d.%d" % (index, number),
        }


class Crews:
    """All crews of one keeper; ``folder`` is for the notes of their workers."""

    def __init__(self, host: Host, folder: str) -> None:
        self._host = host
        self._folder = folder
        # The notes that an earlier keeper left are kept, and may be of the same crews.
        self._mark = os.urandom(4).hex()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._crews: dict[int, Crew] = {}
        self._of: dict[int, Crew] = {}
        self._ended: dict[int, bytes] = {}
        """Packed ends that the server has not stored yet."""
        self._left: dict[int, dict[str, Any]] = {}
        """Reports of what an earlier keeper left."""
        self._left_notes: dict[str, set[int]] = {}
        self._starts: dict[int, dict[int, tuple[int, int]]] = {}
        self._ends: dict[int, list[tuple[int, bytes]]] = {}
        self._dead: list[tuple[Crew, Worker]] = []
        self._filling = False
        self.due: float | None = None
        """When to call ``tell`` (monotonic seconds), None while there is nothing to tell."""
        self._adopt_notes()

    # -- what the server says

    def open(self, number: int, spec: dict[str, Any]) -> None:
        """Make a crew; one that is known only gets its width."""
        _checked([], spec["width"])
        crew = self._crews.get(number)
        if crew is None:
            self._crews[number] = Crew(
                number, {**spec, "crew": number}, shared=self._host.is_shared
            )
        else:
            self._set_width(crew, spec["width"])

    def feed(self, number: int, body: dict[str, Any]) -> None:
        """Take attempts for a crew; those that are known are passed over (P2)."""
        crew = self._crews.get(number)
        if crew is None:
            return  # its CREW went to an earlier keeper; the server finds out by our report
        for attempt, index, task_number in _checked(body["tasks"], body["width"]):
            if attempt not in self._of and attempt not in self._left:
                crew.tasks[attempt] = (index, task_number)
                crew.waiting.append(attempt)
                self._of[attempt] = crew
        self._set_width(crew, body["width"])

    def _set_width(self, crew: Crew, width: int) -> None:
        crew.width = width
        self._fill(crew)
        while crew.workers and len(crew.workers) > crew.width:
            idle = next((each for each in crew.workers if not each.given), None)
            if idle is None:
                return  # one of them ends with its task
            self._dismiss(crew, idle)

    def limit(self, number: int, limit_ms: int | None) -> list[int]:
        """Change a crew's time limit; return the attempts that have leaders."""
        if not (limit_ms is None or (type(limit_ms) is int and limit_ms >= 0)):
            raise ValueError("no such limit")
        crew = self._crews[number]
        crew.spec["deadline_ms"] = limit_ms
        for worker in crew.workers or ():
            worker.tell(frames.DEADLINE, {"limit_ms": limit_ms})
        return list(crew.running)

    def holds(self, number: int) -> bool:
        """Whether this is the number of a crew, or of an attempt of one."""
        return number in self._crews or number in self._of

    def is_ours(self, attempt: int) -> bool:
        """Whether an attempt is of a crew."""
        return attempt in self._of

    def end(self, number: int, why: str, grace_seconds: float) -> None:
        """End an attempt, or all of a crew; ``why`` recall: only what has not started."""
        if type(why) is not str:
            raise TypeError("no such reason")
        crew = self._crews.get(number)
        meant = [number] if crew is None else [each for each in crew.tasks if self._is_open(each)]
        crew = crew or self._of[number]
        waiting = set(crew.waiting).intersection(meant)
        crew.waiting = deque(each for each in crew.waiting if each not in waiting)
        for attempt in meant:
            if attempt in waiting:
                body = {"unstarted": True, "why": why, "stdout": 0, "stderr": 0}
                self._note_end(crew, attempt, pack(body))
            elif attempt in crew.running:
                if why != "recall":
                    self._host.kill(attempt, why, grace_seconds)
            else:
                order = {"why": why, "grace_ms": int(grace_seconds * 1000)}
                for worker in crew.workers or ():
                    if attempt in worker.given:
                        worker.tell(frames.KILL, order, attempt)

    def end_all(self, why: str, grace_seconds: float | None = None) -> None:
        """End all of every crew; without a grace each has its own."""
        for crew in list(self._crews.values()):
            grace = crew.spec["grace_ms"] / 1000 if grace_seconds is None else grace_seconds
            self.end(crew.number, why, grace)

    def signal(self, attempt: int, number: int) -> None:
        """Send a signal to the command of a worker's task."""
        for worker in self._of[attempt].workers or ():
            if attempt in worker.given:
                worker.tell(frames.SIGNAL, {"signal": number}, attempt)

    def _is_open(self, attempt: int) -> bool:
        return attempt not in self._ended

    def forget(self, number: int) -> None:
        """The server needs no more of an attempt or a crew."""
        crew = self._of.get(number)
        if crew is not None:
            if self._is_open(number):
                return  # it still runs or waits
            del self._of[number], self._ended[number]
            crew.tasks.pop(number, None)
            self._forget_notes(number)
        elif number in self._crews and not self._crews[number].tasks:
            for worker in list(self._crews[number].workers or ()):
                self._dismiss(self._crews[number], worker)
            del self._crews[number]
        elif self._left.pop(number, None) is not None:
            self._forget_notes(number)

    def _forget_notes(self, number: int) -> None:
        for path, attempts in list(self._left_notes.items()):
            attempts.discard(number)
            if not attempts:
                journal.remove(path)
                del self._left_notes[path]

    def _keep_notes(self, path: str) -> None:
        """A worker is gone: its notes are needed for as long as the server has not stored them.

        Without them the keeper after a crash of ours would not know that these attempts ran.
        """
        noted = {each for each in journal.read_both(path)[1] if each in self._of}
        if noted:
            self._left_notes[path] = noted
        else:
            journal.remove(path)

    # -- tasks with leaders

    def started(self, task: Task) -> None:
        """The command of a task with a leader runs."""
        if task.pid is not None and task.started_at is not None:
            self._note_start(self._of[task.attempt], task.attempt, task.pid, task.started_at)

    def ended(self, attempt: int, end: dict[str, Any]) -> None:
        """A task with a leader has ended, or could not be started: the next one has its place."""
        crew = self._of[attempt]
        crew.running.discard(attempt)
        pid, at = self._starts.get(crew.number, {}).pop(attempt, (None, None))
        if pid is not None:
            end = {**end, "pid": pid, "started": at}
        self._note_end(crew, attempt, pack(end))
        self._fill(crew)

    def adopt(self, attempt: int, intent: dict[str, Any], end: dict[str, Any]) -> None:
        """An earlier keeper left this end of an attempt of a crew's."""
        self._left[attempt] = {**intent, "end": end}

    def _adopt_notes(self) -> None:
        for path in journal.left_in(self._folder):
            whose, notes = journal.read_both(path)
            if not whose or not notes:
                journal.remove(path)
                continue
            self._left_notes[path] = set(notes)
            for attempt, (index, number, end) in notes.items():
                folder = whose["folder"] + b"/%d.%d" % (index, number)
                end = end or journal.lost_end("its keeper was killed", folder)
                about = {**whose, "index": index, "number": number, "folder": folder}
                self._left[attempt] = {**about, "end": unpack_dict(end)}

    # -- workers

    def pids(self) -> set[int]:
        """Return the process ids of all workers."""
        return {worker.pid for crew in self._crews.values() for worker in crew.workers or ()}

    def _fill(self, crew: Crew) -> None:
        if self._filling:
            return  # a task that could not be started has ended: the loop below goes on
        self._filling = True
        try:
            if crew.workers is None:
                self._start_tasks(crew)
            else:
                self._feed_workers(crew, crew.workers)
        finally:
            self._filling = False

    def _start_tasks(self, crew: Crew) -> None:
        while crew.waiting and len(crew.running) < crew.width:
            attempt = crew.waiting.popleft()
            crew.running.add(attempt)
            if "refused" in crew.spec:
                why = {"refused": "isolation", "errno": 0, "message": crew.spec["refused"]}
                self.ended(attempt, {**why, "stdout": 0, "stderr": 0})
            else:
                self._host.start(attempt, crew.task_spec(attempt))

    def _feed_workers(self, crew: Crew, found: list[Worker]) -> None:
        while crew.waiting and len(found) < crew.width and all(each.given for each in found):
            try:
                self._hire(crew, found)
            except OSError:
                if not found:  # no more processes or descriptors: leaders are refused one by one
                    crew.workers = None
                    self._start_tasks(crew)
                    return
                break
            self._give(crew, found[-1], 1)
        # Who has nothing first: what was taken from a busy one is not to go back to it.
        for worker in sorted(found[: crew.width], key=lambda each: len(each.given)):
            if crew.waiting and (room := worker.room) > 0:
                self._give(crew, worker, room)
        if not crew.waiting:
            self._share_out(found[: crew.width], crew.width)

    def _give(self, crew: Crew, worker: Worker, most: int) -> None:
        attempts = [crew.waiting.popleft() for _ in range(min(most, len(crew.waiting)))]
        worker.give([(attempt, *crew.tasks[attempt]) for attempt in attempts])

    @staticmethod
    def _share_out(found: list[Worker], width: int) -> None:
        """Take from whoever has tasks ahead for who has nothing left, or could be hired.

        They come back to us.
        """
        idle = width - sum(1 for worker in found if worker.given)
        if not idle or not found:
            return
        most = max(found, key=lambda worker: len(worker.given))
        for attempt in list(most.given)[1:][-idle:]:
            most.tell(frames.KILL, {"why": _SHARED, "grace_ms": 0}, attempt)

    def _hire(self, crew: Crew, found: list[Worker]) -> None:
        crew.worker_count += 1
        path = os.path.join(self._folder, f"{self._mark}-{crew.number}-{crew.worker_count}")
        slot = self._host.take_slot(crew.spec)
        try:
            worker = Worker({**crew.spec, "journal": path}, slot)
        except OSError:
            self._host.give_slot(slot)
            raise
        found.append(worker)
        self._host.watch(worker.socket.fileno(), lambda: self._hear(crew, worker))

    def _dismiss(self, crew: Crew, worker: Worker) -> None:
        """Let a worker end that has nothing to do."""
        assert crew.workers is not None  # noqa: S101 - it is one of them
        crew.workers.remove(worker)
        self._hang_up(worker)
        self._host.give_slot(worker.slot)
        self._keep_notes(worker.path)

    def _hang_up(self, worker: Worker) -> None:
        if worker.socket.fileno() >= 0:
            self._host.unwatch(worker.socket.fileno())
            worker.socket.close()

    def _hear(self, crew: Crew, worker: Worker) -> None:
        said = worker.hear()
        if said is None:
            self._hang_up(worker)
            return  # it is dead: see ``died``
        over = given_back = 0
        for kind, channel, offset, payload in said:
            attempt = channel >> 2
            if kind == frames.EXITED:
                ran = self._take_end(crew, worker, attempt, payload)
                over += ran
                given_back += not ran
            elif kind == frames.STARTED:
                body = unpack_dict(payload)
                worker.told[attempt] = (body["pid"], body["at"])
                self._note_start(crew, attempt, body["pid"], body["at"])
            elif kind == frames.GREW:
                self._host.grew(channel, offset)
        if over:
            worker.ended(over)
            if crew.workers is not None and len(crew.workers) > crew.width and not worker.given:
                self._dismiss(crew, worker)
        if over or given_back:
            self._fill(crew)

    def _take_end(self, crew: Crew, worker: Worker, attempt: int, end: bytes) -> bool:
        """Take an end that a worker tells; return whether it ran the attempt."""
        worker.given.pop(attempt, None)
        worker.told.pop(attempt, None)
        if end == SHARED_END:
            crew.waiting.append(attempt)
            return False
        self._starts.get(crew.number, {}).pop(attempt, None)
        if self._host.is_ending:
            end = pack(self._host.seen_by_others(unpack_dict(end)))
        self._note_end(crew, attempt, end)
        return True

    def died(self, dead: Iterable[int]) -> bool:
        """Processes have ended; return whether a worker was among them, and left orphans."""
        gone = set(dead)
        for crew in self._crews.values():
            for worker in list(crew.workers or ()):
                if worker.pid in gone and crew.workers is not None:
                    self._hear_the_last(crew, worker)
                    if worker in crew.workers:  # else it had nothing to do, and was let go
                        crew.workers.remove(worker)
                        self._dead.append((crew, worker))
        return bool(self._dead)

    def _hear_the_last(self, crew: Crew, worker: Worker) -> None:
        """Take what a dead worker had said; its death may be noticed first."""
        for _ in range(_MOST_LAST_WORDS):
            if worker.socket.fileno() < 0:
                return
            self._hear(crew, worker)
        self._hang_up(worker)

    def bury(self) -> None:
        """What dead workers left has been ended: tell of their tasks, and run the rest."""
        dead, self._dead = self._dead, []
        for crew, worker in dead:
            _, notes = journal.read_both(worker.path)
            for attempt, (index, number) in reversed(worker.given.items()):
                if attempt not in notes:
                    crew.waiting.appendleft(attempt)
                    continue
                end = notes[attempt][2]
                folder = crew.spec["folder"] + b"/%d.%d" % (index, number)
                self._note_end(
                    crew, attempt, end or journal.lost_end("its worker was killed", folder)
                )
            self._keep_notes(worker.path)
            self._host.give_slot(worker.slot)
            self._fill(crew)

    # -- what the server is told

    def _note_start(self, crew: Crew, attempt: int, pid: int, at_ns: int) -> None:
        self._starts.setdefault(crew.number, {})[attempt] = (pid, at_ns)
        self._gather()

    def _note_end(self, crew: Crew, attempt: int, end: bytes) -> None:
        self._ended[attempt] = end
        self._ends.setdefault(crew.number, []).append((attempt, end))
        self._gather()

    def _gather(self) -> None:
        if self.due is None:
            self.due = time.monotonic() + _GATHER_SECONDS

    def tell(self) -> None:
        """Tell what has happened, a message for each crew and kind."""
        self.due = None
        starts, self._starts = self._starts, {}
        ends, self._ends = self._ends, {}
        for number, began in starts.items():
            told = [[attempt, pid, at] for attempt, (pid, at) in began.items()]
            for at in range(0, len(told), _MOST_TOLD):
                some = {"starts": told[at : at + _MOST_TOLD]}
                self._host.send(frames.message(frames.STARTS, some, number << 2))
        for number, over in ends.items():
            for at in range(0, len(over), _MOST_TOLD):
                some_ends = _packed(over[at : at + _MOST_TOLD])
                self._host.send(frames.frame(frames.ENDS, number << 2, 0, some_ends))

    def report(self) -> Iterator[dict[str, Any]]:
        """Yield what an agent that knows nothing has to know; of what has a leader see its task."""
        for crew in self._crews.values():
            for attempt in crew.tasks:
                if attempt in crew.running:
                    continue
                about: dict[str, Any] = {"attempt": attempt, **crew.identity(attempt)}
                if attempt in self._ended:
                    yield {**about, "end": unpack_dict(self._ended[attempt]), "waiting": False}
                elif began := self._began(crew, attempt):
                    yield {**about, "waiting": False, "pid": began[0], "at": began[1]}
                else:
                    yield {**about, "waiting": True}
        for attempt, report in self._left.items():
            yield {"attempt": attempt, **report, "waiting": False}

    @staticmethod
    def _began(crew: Crew, attempt: int) -> tuple[int, int] | None:
        found = (worker.told.get(attempt) for worker in crew.workers or ())
        return next(filter(None, found), None)

    def identity(self, attempt: int) -> dict[str, Any]:
        """Return what of a report says whose an attempt is."""
        return self._of[attempt].identity(attempt)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a crew runs, waits, or has ended without being stored."""
        return not self._left and not any(crew.tasks for crew in self._crews.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing of a crew runs or waits."""
        return not any(self._is_open(each) for crew in self._crews.values() for each in crew.tasks)

    def close(self) -> None:
        """Let all workers end."""
        for crew in self._crews.values():
            for worker in list(crew.workers or ()):
                self._hang_up(worker)


def _checked(tasks: list[list[int]], width: int) -> list[list[int]]:
    """Return tasks that can be noted and told.  Raises ``ValueError``."""
    if type(width) is not int or width < 0 or len(tasks) > _MOST_TASKS:
        raise ValueError("no such TASKS")
    for task in tasks:
        if not all(
            type(number) is int and 0 <= number <= most
            for number, most in zip(task, _TASK_BOUNDS, strict=True)
        ):
            raise ValueError("no such task")
    return tasks


_SHARED = "share"
"""Why a worker is to give back a task that it has ahead: another one has nothing to do."""

SHARED_END = pack({"unstarted": True, "why": _SHARED, "stdout": 0, "stderr": 0})


def _packed(ends: list[tuple[int, bytes]]) -> bytes:
    """Return the packed body of ENDS, made of ends that are packed already."""
    items = b"".join(b"li%de%be" % (attempt, end) for attempt, end in ends)
    return b"ds4:endsl" + items + b"ee"
