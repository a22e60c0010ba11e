"""A runner without processes: its keeper's memory, and frames in both directions as they are sent.

It stands where a real one cannot: its machine can be lost and cut off thousands of times a minute.
What it does with grants, recalls and repetitions is what the real keeper is tested for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from updraft.model.job import Resources
from updraft.model.pool import Runner
from updraft.scheduling.capacity import Capacity
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveRunner
from updraft.wire import frames

_pids = itertools.count(1000)


@dataclass(slots=True)
class Process:
    """A task as its keeper has it."""

    serial: int
    key: tuple[str, int, int]
    """Job, index, number."""
    need: Resources
    crew: int | None = None
    started_at: int | None = None
    pid: int | None = None
    end: dict[str, Any] | None = None
    doomed: str = ""
    """Why it was told to end."""

    @property
    def runs(self) -> bool:
        return self.started_at is not None and self.end is None


@dataclass(slots=True)
class _Crew:
    job: str
    need: Resources
    width: int


class SimulatedLink:
    """A connection to a simulated runner; what is sent when it is gone is lost."""

    def __init__(self, take: Callable[[int, dict[str, Any], int], None]) -> None:
        self._take = take
        self.open = True

    def send_message(self, kind: int, body: dict[str, Any], channel: int = 0) -> None:
        if self.open:
            self._take(kind, body, channel)

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        """Nobody reads the output of what has no processes."""

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open = False


@dataclass(slots=True, eq=False)
class SimulatedRunner:
    """One machine; ``granted`` is asked about every start: whether it is allowed."""

    name: str
    total: Capacity
    started: Callable[[Process], None]
    now_ns: Callable[[], int]
    pool: str = "local"
    keeper: str = "k1"
    processes: dict[int, Process] = field(default_factory=dict)
    crews: dict[int, _Crew] = field(default_factory=dict)
    live: LiveRunner | None = None
    control: SimulatedLink | None = None
    execution: Execution | None = None

    @property
    def connected(self) -> bool:
        return self.control is not None and self.control.open

    # -- the connection

    def connect(self, execution: Execution) -> None:
        """Dial the server, and report all that the keeper has."""
        self.disconnect()
        self.execution = execution
        self.control = SimulatedLink(self._take)
        self.live = LiveRunner(
            known=Runner(self.name, self.pool, remote=False),
            total=self.total,
            free=self.total,
            seen=0.0,
            control=self.control,
            data=self.control,
            keeper=self.keeper,
        )
        execution.runners.joined(self.live, [self._report(p) for p in self.processes.values()])

    def disconnect(self) -> None:
        """The connection breaks; the server may notice later, or is gone itself."""
        if self.control is not None:
            self.control.open = False
        if self.live is not None and self.execution is not None:
            self.execution.runners.left(self.live)
        self.live = None

    def _report(self, process: Process) -> dict[str, Any]:
        report: dict[str, Any] = {"attempt": process.serial, "job": process.key[0], "folder": b""}
        if process.crew is not None:
            waiting = process.started_at is None and process.end is None
            report |= {"crew": process.crew, "waiting": waiting}
        if process.started_at is not None:
            report |= {"pid": process.pid, "at": process.started_at}
        if process.end is not None:
            report["end"] = process.end
        return report

    # -- what the server says

    def _take(self, kind: int, body: dict[str, Any], channel: int) -> None:
        serial = channel >> 2
        match kind:
            case frames.SPAWN:
                if serial not in self.processes:
                    need = Resources(body["cpus_milli"], body["memory_bytes"], len(body["gpus"]))
                    number = int(body["environment"].rpartition(b"UPDRAFT_ATTEMPT=")[2])
                    self._start(Process(serial, (body["job"], 0, number), need))
            case frames.CREW:
                need = Resources(body["cpus_milli"], body["memory_bytes"], len(body["gpus"]))
                self.crews.setdefault(serial, _Crew(body["job"], need, 0)).width = body["width"]
            case frames.TASKS:
                crew = self.crews[serial]
                crew.width = body["width"]
                for attempt, index, number in body["tasks"]:
                    if attempt not in self.processes:
                        process = Process(attempt, (crew.job, index, number), crew.need, serial)
                        self.processes[attempt] = process
                self._fill(serial)
            case frames.KILL:
                for process in self._meant(serial):
                    self._doom(process, body["why"])
            case frames.FORGET:
                for gone in body["attempts"]:
                    self.processes.pop(gone, None)
                    self.crews.pop(gone, None)

    def _meant(self, serial: int) -> list[Process]:
        if serial in self.processes:
            return [self.processes[serial]]
        return [process for process in self.processes.values() if process.crew == serial]

    def _doom(self, process: Process, why: str) -> None:
        if process.end is not None:
            return
        if process.started_at is None:
            self._end(process, {"unstarted": True, "why": why})
        elif why != "recall":
            process.doomed = why

    def _start(self, process: Process) -> None:
        self.processes[process.serial] = process
        process.started_at, process.pid = self.now_ns(), next(_pids)
        self.started(process)
        if self.live is None or self.execution is None:
            return
        if process.crew is None:
            said = {"pid": process.pid, "at": process.started_at}
            self.execution.reports.started(process.serial, said)
        else:
            starts = [[process.serial, process.pid, process.started_at]]
            self.execution.arrays.started(process.crew, self.live, starts)

    def _fill(self, crew: int) -> None:
        """Start what a crew's width allows, in the order of its grants."""
        mine = [process for process in self.processes.values() if process.crew == crew]
        runs = sum(1 for process in mine if process.runs)
        for process in mine:
            if runs >= self.crews[crew].width:
                return
            if process.started_at is None and process.end is None:
                self._start(process)
                runs += 1

    # -- what happens on the machine

    def running(self) -> list[Process]:
        return [process for process in self.processes.values() if process.runs]

    def finish(self, process: Process, status: int = 0) -> None:
        """A command ends; one that was told to end ends by that."""
        end: dict[str, Any] = {"status": status}
        if process.doomed:
            end = {"status": 15, "why": process.doomed}
        self._end(process, end)

    def _end(self, process: Process, end: dict[str, Any]) -> None:
        process.end = {**end, "at": self.now_ns(), "stdout": 0, "stderr": 0}
        if process.crew is not None and process.crew in self.crews:
            self._fill(process.crew)
        if self.live is None or self.execution is None:
            return
        if process.crew is None:
            self.execution.reports.exited(process.serial, process.end)
        else:
            self.execution.arrays.ended(process.crew, self.live, [(process.serial, process.end)])

    def crash(self) -> None:
        """The keeper is killed, its tasks with it; the next one finds what was started."""
        self.disconnect()
        self.keeper = f"k{int(self.keeper[1:]) + 1}"
        for process in list(self.processes.values()):
            if process.end is not None:
                continue
            if process.started_at is None:
                del self.processes[process.serial]
            else:
                lost = {"lost": "its keeper was killed", "at": self.now_ns()}
                process.end = {**lost, "stdout": 0, "stderr": 0}
        self.crews.clear()
