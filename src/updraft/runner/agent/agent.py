"""The agent: carries frames between its keeper's socket and its server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from typing import Any

import updraft
from updraft import errors, faults, settings
from updraft.runner.agent import gpus
from updraft.runner.agent.attempts import OUTPUTS, Attempt
from updraft.runner.agent.crews import AgentCrews
from updraft.runner.agent.early import EarlyFrames
from updraft.runner.agent.keeper_process import KeeperProcess
from updraft.runner.agent.owners import Owners
from updraft.runner.agent.places import Places
from updraft.runner.agent.server_connection import Server, ServerConnection, ServerStopped
from updraft.wire import frames
from updraft.wire.packing import pack
from updraft.wire.sockets import as_standard, connect_unix
from updraft.wire.transport import FrameConnection, body_of

log = logging.getLogger("updraft.agent")

_RECONNECT_SECONDS = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_STREAM_KINDS = frozenset(
    {
        *(frames.ATTACH, frames.DETACH, frames.LIMIT, frames.CLOSE, frames.DATA, frames.EOF),
        *(frames.SHIP, frames.STORED),
    }
)
"""What comes by the data connection, and so may overtake the grant that it is about."""


class Agent:
    """Carries frames between one keeper and the server until the keeper is gone.

    ``spool`` is where tasks' output lies until the server has it, where that does not see the
    runner's files.
    """

    def __init__(
        self,
        capacity: dict[str, Any],
        keeper_socket: str,
        server: Server,
        spool: str,
        owners: Owners | None = None,
    ) -> None:
        """``owners``: maps tasks' owners to users of this machine, on a shared runner."""
        self._places = Places(spool, owners, capacity.get("gpus", []))
        self._capacity = capacity
        self._keeper_socket = keeper_socket
        self._dialled = server
        self._early = EarlyFrames()
        self._attempts: dict[int, Attempt] = {}
        self._crews = AgentCrews()
        self._keeper: FrameConnection | None = None
        self._keeper_identity = ""
        self._keeper_pid = 0
        self._keeper_release = ""
        self._release = settings.installed_release()
        self._server: ServerConnection | None = None
        self._joining: ServerConnection | None = None
        self._reported = asyncio.Event()
        self._keeper_gone = asyncio.Event()
        self._upgraded = False
        self._removed = False
        self._upgrading: asyncio.Task[None] | None = None
        self._upgrade_problem = ""
        self._lease_until = 0.0

    async def run(self) -> bool:
        """Serve until the keeper goes away (or takes a newer agent, or was told to leave for good).

        Returns whether it died.
        """
        loop = asyncio.get_running_loop()
        peer = as_standard(connect_unix(self._keeper_socket))
        try:
            process = KeeperProcess(peer)
        except ProcessLookupError:
            peer.close()
            return True
        _, self._keeper = await loop.create_connection(
            lambda: FrameConnection(_KeeperSide(self)), sock=peer
        )
        try:
            return await self._run(self._keeper, process)
        finally:
            self._keeper.close()
            process.close()

    async def _run(self, keeper: FrameConnection, process: KeeperProcess) -> bool:
        keeper.send_message(frames.HELLO, {"pid": os.getpid()})
        serving = asyncio.create_task(self._serve(), name="server connection")
        gone = asyncio.create_task(self._keeper_gone.wait(), name="keeper")
        await asyncio.wait((serving, gone), return_when=asyncio.FIRST_COMPLETED)
        if self._removed:
            await gone
        gone.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving  # what broke it ends this agent, and the keeper starts another
        # Else it has taken a newer agent, or was told to leave.
        if self._upgraded or process.lives():
            return False
        for attempt in self._attempts.values():
            attempt.end_by_force()
        return not self._removed

    # -- the server

    async def _serve(self) -> None:
        await self._reported.wait()
        folders = [attempt.folder for attempt in self._attempts.values()]
        folders += self._crews.folders()
        jobs = {attempt.report["job"] for attempt in self._attempts.values()} | self._crews.jobs()
        await asyncio.to_thread(self._places.sweep, folders, jobs)
        failures = 0
        while True:
            try:
                side = await ServerConnection.connect(self, self._dialled)
            except errors.RunnerRemoved as error:
                self._leave(error.message)
                return
            except (OSError, TimeoutError) as error:
                if failures == 0:
                    log.info("no server: %s", error)
                if isinstance(error, ServerStopped):
                    # Perhaps while this agent was away, so that it did not hear of it.
                    self._to_keeper(frames.STOP, 0, 0, pack({"cancel": False, "unless_live": True}))
            else:
                failures = 0
                # What its crews have is the keeper's to tell; whatever it says later is news.
                self._joining = side
                if self._keeper is not None:
                    self._keeper.send_message(frames.HELLO, {"pid": os.getpid()})
                await side.gone.wait()
                self._server = self._joining = None
                self._early.clear()
                for attempt in self._attempts.values():
                    attempt.detach()
                if settings.installed_release() not in (self._release, ""):
                    self.make_way()
                log.info("the server's connection closed")
            pause = _RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)]
            # A thousand agents that lost one server do not all come back at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            failures += 1

    def _leave(self, why: str) -> None:
        """The server has forgotten this runner: its tasks end, and with the last the keeper."""
        log.error("%s; ending this runner, with all that it runs", why)
        self._removed = True
        order = {"cancel": True, "status": errors.EXIT_REMOVED}
        self._to_keeper(frames.STOP, 0, 0, pack(order))
        for attempt in list(self._attempts.values()):
            if attempt.report.get("end") is not None:
                self._drop(attempt)

    def report(self) -> dict[str, Any]:
        """Return what the server has to know to reconcile."""
        return {
            "release": updraft.__version__,
            "pid": os.getpid(),
            "keeper": self._keeper_identity,
            "keeper_pid": self._keeper_pid,
            "keeper_release": self._keeper_release,
            "capacity": self._capacity,
            "upgrade": {
                "hindrance": self._dialled.hindrance,
                "running": self._upgrading is not None,
                "problem": self._upgrade_problem,
            },
            "attempts": [
                *(
                    attempt.report
                    for attempt in self._attempts.values()
                    if not attempt.forgotten and "crew" not in attempt.report
                ),
                *self._crews.reported,
            ],
        }

    def _join(self, side: ServerConnection) -> None:
        """Tell a server all, with what the keeper has just told: everything after is news."""
        self._joining, self._server = None, side
        side.control.send_message(frames.REPORT, self.report())
        self.pump()
        self._renew_keeper()

    def from_server(
        self,
        side: ServerConnection,
        kind: int,
        channel: int,
        offset: int,
        payload: bytes | memoryview,
    ) -> None:
        """Carry out or pass on one frame of the server's; ``side`` takes an answer."""
        serial = channel >> 2
        if kind == frames.UPGRADE:
            if self._upgrading is None:
                work = self._upgrade(body_of(payload)["release"])
                self._upgrading = asyncio.create_task(work, name="upgrade")
            return
        if kind == frames.SPAWN:
            self._spawn(side, serial, bytes(payload))
            return
        if kind == frames.CREW:
            self._open_crew(side, serial, body_of(payload))
            return
        if kind == frames.TASKS:
            self._crews.feed(serial, body_of(payload)["tasks"])
            self._to_keeper(kind, channel, offset, payload)
            return
        if kind == frames.FORGET:
            self._to_keeper(kind, channel, offset, payload)
            self._forget(side, body_of(payload)["attempts"])
            self._renew_keeper()
            return
        attempt = self._attempts.get(serial)
        if attempt is None and kind == frames.SHIP:
            attempt = self._of_crew(serial)
        if attempt is None:
            if kind in _STREAM_KINDS:
                if not self._early.hold(serial, (kind, channel, offset, bytes(payload))):
                    log.error("too much came for tasks that were not granted; connecting anew")
                    side.end()
            else:
                self._to_keeper(kind, channel, offset, payload)
        elif kind == frames.ATTACH:
            self._attach(side, attempt, body_of(payload))
        elif kind == frames.DETACH:
            for stream, output in attempt.outputs.items():
                if not side.ships:
                    output.detach()
                channel = frames.stream_channel(serial, stream)
                self._to_keeper(frames.LIMIT, channel, frames.NO_LIMIT)
        elif kind == frames.SHIP:
            self._ship(side, attempt, body_of(payload))
        elif kind == frames.STORED:
            attempt.outputs[channel & 3].allow(offset + frames.OUTPUT_WINDOW_BYTES)
            self.pump()
        elif kind == frames.LIMIT:
            if not side.ships:
                attempt.outputs[channel & 3].allow(offset)
            self._to_keeper(kind, channel, offset)
            self.pump()
        else:
            self._to_keeper(kind, channel, offset, payload)

    async def _upgrade(self, release: str) -> None:
        log.info("upgrading to release %s", release)
        self._upgrade_problem = ""
        problem = await self._dialled.upgrade(release)
        self._upgrading, self._upgrade_problem = None, problem
        if not problem:
            self.make_way()
            return
        log.error("cannot upgrade to release %s: %s", release, problem)
        if self._server is not None:
            self._server.control.send_message(frames.UPGRADE, {"problem": problem})

    def make_way(self) -> None:
        """Another release was installed: end, and the keeper starts its agent; tasks go on."""
        if not self._upgraded:
            log.info("upgraded: the keeper starts the new agent")
            self._upgraded = True
            self._keeper_gone.set()

    def _renew_keeper(self) -> None:
        """Let an idle keeper of another release go over to the installed one.

        On the server's own machine that is the server's business, which knows what comes next.
        """
        server = self._server
        if server is None or not server.ships or self._attempts:
            return
        if self._keeper_release != self._release == settings.installed_release():
            self._to_keeper(frames.STOP, 0, 0, pack({"cancel": False, "again": True}))

    def _attach(self, side: ServerConnection, attempt: Attempt, order: dict[str, Any]) -> None:
        """A client reads from these positions on; what it has room for is what tasks may write."""
        for name, stream in OUTPUTS:
            limit = order[name] + frames.OUTPUT_WINDOW_BYTES
            if not side.ships:
                attempt.outputs[stream].attach(order[name], limit)
            self._to_keeper(frames.LIMIT, frames.stream_channel(attempt.serial, stream), limit)
        # Behind all that is under way to an earlier client.
        side.data.send_stream(frames.ATTACH, attempt.serial << 2, 0)
        # Where the client is to go on with its input.
        taken = attempt.report.get("input", 0)
        side.control.send_stream(frames.ACK, attempt.serial << 2, taken)
        self.pump()

    def _ship(self, side: ServerConnection, attempt: Attempt, order: dict[str, Any]) -> None:
        """The server has stored output up to these positions, and takes what follows."""
        for name, stream in OUTPUTS:
            limit = order[name] + frames.OUTPUT_WINDOW_BYTES
            attempt.outputs[stream].attach(order[name], limit)
        side.data.send_stream(frames.SHIP, attempt.serial << 2, 0)
        self.pump()

    def _spawn(self, side: ServerConnection, serial: int, payload: bytes) -> None:
        faults.reached("grant-spawn")
        spec = body_of(payload)
        problem = ""
        if side.ships:
            problem = self._places.make(serial, spec)
            self._tell_way(spec)
        if granted := spec.get("gpus"):
            isolated = self._places.isolates
            told = gpus.environment(self._capacity["gpus"], granted, isolated=isolated)
            spec["environment"] = b"\0".join([spec["environment"], *told])
        if side.ships or granted:
            payload = pack(spec)
        if serial not in self._attempts:
            attempt = Attempt(serial, {"job": spec["job"], "folder": spec["folder"]})
            self._attempts[serial] = attempt
            for stream, output in attempt.outputs.items():
                if side.ships:
                    output.attach(0, frames.OUTPUT_WINDOW_BYTES)
                elif spec["attached"]:
                    output.attach(0, spec["limits"][stream - 1])
        if problem:
            self._refuse(side, serial, problem)
            return
        self._to_keeper(frames.SPAWN, serial << 2, 0, payload)
        if spec.get("fenced"):
            self._tell_lease()
        for early in self._early.take(serial):
            self.from_server(side, *early)

    def _tell_way(self, spec: dict[str, Any]) -> None:
        """Let a task that has a token know how the server is reached from here."""
        if token := spec.pop("token", ""):
            way = [*self._dialled.way, b"UPDRAFT_TOKEN=" + token.encode()]
            spec["environment"] = b"\0".join([spec["environment"], *way])

    def _open_crew(self, side: ServerConnection, number: int, spec: dict[str, Any]) -> None:
        """Prepare a place for a crew's tasks, and hand it on."""
        problem = self._places.make(number, spec) if side.ships else ""
        self._tell_way(spec)
        if granted := spec.get("gpus"):
            told = gpus.environment(self._capacity["gpus"], granted, isolated=self._places.isolates)
            spec["environment"] = b"\0".join([spec["environment"], *told])
        if problem:
            spec["refused"] = problem
        self._crews.open(number, spec)
        self._to_keeper(frames.CREW, number << 2, 0, pack(spec))
        if spec.get("fenced"):
            self._tell_lease()

    def _of_crew(self, serial: int) -> Attempt | None:
        """Return a task of a crew whose output is to be carried to the server."""
        place = self._crews.place_of(serial)
        if place is None:
            return None
        attempt = self._attempts[serial] = Attempt(serial, place)
        return attempt

    def _take_crew_ends(self, side: ServerConnection, body: dict[str, Any]) -> None:
        """Send the output of a crew's ended tasks, which the server does not see by itself."""
        for serial, end in body["ends"]:
            attempt = self._attempts.get(serial)
            if attempt is None and (end["stdout"] or end["stderr"]):
                attempt = self._shipping(serial)
            if attempt is not None:
                attempt.ended(end)
        self.pump()

    def _shipping(self, serial: int) -> Attempt | None:
        attempt = self._of_crew(serial)
        if attempt is not None:
            for output in attempt.outputs.values():
                output.attach(0, frames.OUTPUT_WINDOW_BYTES)
        return attempt

    def _refuse(self, side: ServerConnection, serial: int, why: str) -> None:
        """A task cannot be prepared here; no keeper hears of it."""
        end = {"refused": "isolation", "errno": 0, "message": why, "stdout": 0, "stderr": 0}
        self._attempts[serial].ended(end)
        side.control.send_message(frames.EXITED, end, frames.stream_channel(serial, 0))

    def _forget(self, side: ServerConnection, serials: list[int]) -> None:
        for serial in serials:
            crew = self._crews.forget(serial)
            if crew is not None:
                job, folder = crew
                self._places.remove(os.fsdecode(folder), None if self._has_others(job) else job)
            attempt = self._attempts.get(serial)
            if attempt is None:
                continue
            attempt.forgotten = True
            if side.ships:  # the server has what it wants of it
                attempt.detach()
            if attempt.is_done:
                self._drop(attempt)

    def _drop(self, attempt: Attempt) -> None:
        del self._attempts[attempt.serial]
        self._early.forget(attempt.serial)
        attempt.detach()
        job = attempt.report["job"]
        self._places.remove(attempt.folder, None if self._has_others(job) else job)

    def _has_others(self, job: str) -> bool:
        if job in self._crews.jobs():
            return True
        return any(each.report["job"] == job for each in self._attempts.values())

    def pump(self) -> None:
        """Send output, a chunk of each stream in turn, while the server's side takes it."""
        server = self._server
        if server is None:
            return
        done: set[Attempt] = set()
        again = True
        while again and server.ready:
            again = False
            for attempt in self._attempts.values():
                for output in attempt.outputs.values():
                    if output.due and server.ready:
                        output.send_some(server.data, tell_cuts=server.ships)
                        again = True
                if attempt.is_done:
                    done.add(attempt)
        for attempt in done:
            self._drop(attempt)

    # -- the keeper

    def _to_keeper(
        self, kind: int, channel: int, offset: int = 0, payload: bytes | memoryview = b""
    ) -> None:
        if self._keeper is not None:
            self._keeper.send_stream(kind, channel, offset, payload)

    def from_keeper(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview
    ) -> None:
        """Keep up with the keeper, and pass on what the server has to know."""
        serial, stream = channel >> 2, channel & 3
        if kind == frames.REPORT:
            self._take_report(body_of(payload))
            return
        if kind in (frames.STARTS, frames.ENDS):
            if self._server is not None:
                if kind == frames.ENDS and self._server.ships:
                    self._take_crew_ends(self._server, body_of(payload))
                self._server.control.send_stream(kind, channel, offset, payload)
            return
        attempt = self._attempts.get(serial)
        server = self._server
        if attempt is None and kind == frames.GREW and server is not None:
            if server.ships:
                attempt = self._shipping(serial)
            elif self._crews.place_of(serial) is not None:
                server.grew(channel, offset)
        if attempt is None:
            return
        if kind == frames.GREW:
            attempt.grew(stream, offset)
            if attempt.outputs[stream].limit is not None:
                self.pump()
            if self._server is not None:
                self._server.grew(channel, offset)
            return
        if kind == frames.ACK:
            attempt.report["input"] = offset
        elif kind == frames.STARTED:
            faults.reached("spawn-report")
            attempt.started(body_of(payload))
        elif kind == frames.STOPPED:
            attempt.report["stopped"] = True
        elif kind == frames.CONTINUED:
            attempt.report["stopped"] = False
        elif kind == frames.EXITED:
            end = body_of(payload)
            faults.reached("exit-log")
            attempt.ended(end)
            self.pump()
            if self._removed:
                self._drop(attempt)
        if self._server is not None:
            side = self._server.data if kind == frames.ACK else self._server.control
            side.send_stream(kind, channel, offset, payload)

    def _take_report(self, report: dict[str, Any]) -> None:
        self._keeper_identity = report["keeper"]
        self._keeper_pid = report["pid"]
        self._keeper_release = report["release"]
        self._crews.take_report([item for item in report["attempts"] if "crew" in item])
        first = not self._reported.is_set()
        for item in report["attempts"]:
            if first and "crew" not in item:
                serial = item.pop("attempt")
                self._attempts[serial] = Attempt(serial, item)
        self._reported.set()
        if self._joining is not None:
            self._join(self._joining)

    def lease_renewed(self, until: float) -> None:
        """The server counts on this runner up to then (seconds of the loop's clock)."""
        self._lease_until = until
        self._tell_lease()

    def _tell_lease(self) -> None:
        """Fenced tasks end by themselves when they hear no more of this."""
        server = self._server
        if server is not None and self._lease_until:
            left = self._lease_until - asyncio.get_running_loop().time()
            lease = {"ms": max(round(left * 1000), 0), "grace_ms": server.fence_grace_ms}
            self._to_keeper(frames.LEASE, 0, 0, pack(lease))

    def keeper_closed(self) -> None:
        """The keeper died, or has a newer agent."""
        self._keeper_gone.set()


class _KeeperSide:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._agent.from_keeper(kind, channel, offset, payload)

    def closed(self) -> None:
        self._agent.keeper_closed()

    def writable(self, ready: bool) -> None:
        """The keeper always reads; input under way is bounded by its window."""
