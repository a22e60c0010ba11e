"""The agent's two sides: the keeper's socket, and a control and a data connection to the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import select
import shutil
import signal
from collections.abc import Callable
from typing import Any, Protocol

import updraft
from updraft import errors, faults, settings
from updraft.runner.agent.early import EarlyFrames
from updraft.runner.agent.output import OutputStream
from updraft.runner.agent.owners import Owners, device_nodes
from updraft.runner.keeper import processes
from updraft.wire import frames
from updraft.wire.packing import pack
from updraft.wire.sockets import as_standard, connect_unix, peer_pid
from updraft.wire.transport import FrameConnection, body_of

log = logging.getLogger("updraft.agent")

_RECONNECT_SECONDS = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_KEEPER_ENDS_SECONDS = 1.0
"""From the end of a dying keeper's connection to the keeper's own, on a busy machine."""

_DEAD_AFTER_LEASES = 2 / 3
"""A connection that was silent for this part of the lease is given up, and dialled anew."""
_BEATS_A_LEASE = 6

_MOST_UNSENT_BYTES = 64 << 20
"""A server that takes nothing of so much is given up, and told all anew when it is back."""


class Server(Protocol):
    """The agent's way to its server."""

    credentials: dict[str, str]
    """What its first frame on each connection proves itself with."""

    async def open(self, make: Callable[[], FrameConnection]) -> FrameConnection:
        """Return a new connection.  Raises ``OSError``."""


_OUTPUTS = (("stdout", frames.STDOUT), ("stderr", frames.STDERR))
_STREAM_KINDS = frozenset(
    {
        *(frames.ATTACH, frames.DETACH, frames.LIMIT, frames.CLOSE, frames.DATA, frames.EOF),
        *(frames.SHIP, frames.STORED),
    }
)
"""What comes by the data connection, and so may overtake the grant that it is about."""


class ServerStopped(ConnectionError):
    """There is no server, and none is wanted until somebody asks for one."""


class Attempt:
    """What the agent knows of one attempt: the keeper's report, kept up to date."""

    def __init__(self, serial: int, report: dict[str, Any]) -> None:
        self.serial = serial
        self.report = {"attempt": serial, **report}
        folder = os.fsdecode(report["folder"])
        self.outputs = {
            stream: OutputStream(frames.stream_channel(serial, stream), folder, name)
            for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))
        }
        for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr")):
            self.grew(stream, report.get(name, 0))
        self.folder = folder
        self.started_ticks: int | None = None
        self.forgotten = False

    @property
    def is_done(self) -> bool:
        """Whether the server needs nothing more of it."""
        return self.forgotten and not any(output.owed for output in self.outputs.values())

    def grew(self, stream: int, length: int) -> None:
        """An output stream has grown in the spool."""
        self.outputs[stream].length = length
        self.report["stdout" if stream == frames.STDOUT else "stderr"] = length


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
        self._owners = owners
        self._capacity = capacity
        self._keeper_socket = keeper_socket
        self._dialled = server
        self._spool = spool
        self._early = EarlyFrames()
        self._attempts: dict[int, Attempt] = {}
        self._keeper: FrameConnection | None = None
        self._keeper_identity = ""
        self._keeper_pid = 0
        self._keeper_process: int | None = None
        self._keeper_release = ""
        self._release = settings.installed_release()
        self._server: _ServerSide | None = None
        self._reported = asyncio.Event()
        self._keeper_gone = asyncio.Event()
        self._upgraded = False
        self._lease_until = 0.0

    async def run(self) -> bool:
        """Serve until the keeper goes away (or takes a newer agent).  Returns whether it died."""
        loop = asyncio.get_running_loop()
        peer = as_standard(connect_unix(self._keeper_socket))
        keeper_pid = peer_pid(peer)
        if keeper_pid is not None and hasattr(os, "pidfd_open"):
            try:
                self._keeper_process = os.pidfd_open(keeper_pid)
            except ProcessLookupError:
                peer.close()
                return True
        _, self._keeper = await loop.create_connection(
            lambda: FrameConnection(_KeeperSide(self)), sock=peer
        )
        try:
            return await self._run()
        finally:
            self._keeper.close()
            if self._keeper_process is not None:
                os.close(self._keeper_process)

    async def _run(self) -> bool:
        assert self._keeper is not None  # noqa: S101 - just made
        self._keeper.send_message(frames.HELLO, {"pid": os.getpid()})
        serving = asyncio.create_task(self._serve(), name="server connection")
        gone = asyncio.create_task(self._keeper_gone.wait(), name="keeper")
        await asyncio.wait((serving, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving  # what broke it ends this agent, and the keeper starts another
        if self._upgraded or self._keeper_lives():
            return False
        self._end_orphans()
        return True

    # -- the server

    async def _serve(self) -> None:
        await self._reported.wait()
        await asyncio.to_thread(self._sweep)
        failures = 0
        while True:
            try:
                side = await _ServerSide.connect(self, self._dialled)
            except (OSError, TimeoutError) as error:
                if failures == 0:
                    log.info("no server: %s", error)
                if isinstance(error, ServerStopped):
                    # Perhaps while this agent was away, so that it did not hear of it.
                    self._to_keeper(frames.STOP, 0, 0, pack({"cancel": False, "unless_live": True}))
            else:
                failures = 0
                self._server = side
                side.control.send_message(frames.REPORT, self.report())
                self.pump()
                await side.gone.wait()
                self._server = None
                self._early.clear()
                for attempt in self._attempts.values():
                    for output in attempt.outputs.values():
                        output.detach()
                if settings.installed_release() not in (self._release, ""):
                    log.info("upgraded: the keeper starts the new agent")
                    self._upgraded = True
                    self._keeper_gone.set()
                log.info("the server's connection closed")
            pause = _RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)]
            # A thousand agents that lost one server do not all come back at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            failures += 1

    def _sweep(self) -> None:
        """Remove what an agent that was killed had still to remove; no server has us yet."""
        kept = {os.path.basename(attempt.folder) for attempt in self._attempts.values()}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._spool):
                if name not in kept:
                    shutil.rmtree(os.path.join(self._spool, name), ignore_errors=True)
        if self._owners is not None:
            jobs = {attempt.report["job"] for attempt in self._attempts.values()}
            self._owners.remove(self._owners.left_over(jobs))

    def report(self) -> dict[str, Any]:
        """Return what the server has to know to reconcile."""
        return {
            "release": updraft.__version__,
            "pid": os.getpid(),
            "keeper": self._keeper_identity,
            "keeper_pid": self._keeper_pid,
            "keeper_release": self._keeper_release,
            "capacity": self._capacity,
            "attempts": [
                attempt.report for attempt in self._attempts.values() if not attempt.forgotten
            ],
        }

    def from_server(
        self,
        side: _ServerSide,
        kind: int,
        channel: int,
        offset: int,
        payload: bytes | memoryview,
    ) -> None:
        """Carry out or pass on one frame of the server's; ``side`` takes an answer."""
        serial = channel >> 2
        if kind == frames.SPAWN:
            self._spawn(side, serial, bytes(payload))
            return
        if kind == frames.FORGET:
            self._forget(side, body_of(payload)["attempts"])
        attempt = self._attempts.get(serial)
        if attempt is None:
            if kind in _STREAM_KINDS:
                if not self._early.hold(serial, (kind, channel, offset, bytes(payload))):
                    log.error("too much came for tasks that were not granted; connecting anew")
                    side.closed()
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

    def _attach(self, side: _ServerSide, attempt: Attempt, order: dict[str, Any]) -> None:
        """A client reads from these positions on; what it has room for is what tasks may write."""
        for name, stream in _OUTPUTS:
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

    def _ship(self, side: _ServerSide, attempt: Attempt, order: dict[str, Any]) -> None:
        """The server has stored output up to these positions, and takes what follows."""
        for name, stream in _OUTPUTS:
            limit = order[name] + frames.OUTPUT_WINDOW_BYTES
            attempt.outputs[stream].attach(order[name], limit)
        side.data.send_stream(frames.SHIP, attempt.serial << 2, 0)
        self.pump()

    def _spawn(self, side: _ServerSide, serial: int, payload: bytes) -> None:
        faults.reached("grant-spawn")
        spec = body_of(payload)
        problem = ""
        if side.ships:
            spec["folder"] = os.fsencode(os.path.join(self._spool, str(serial)))
            problem = self._isolate(spec)
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

    def _isolate(self, spec: dict[str, Any]) -> str:
        """Say as whose user a task runs, on a shared runner; return what is in the way, if it is.

        What runs beside a task runs as that does.
        """
        if self._owners is None or "beside" in spec:
            return ""
        minors = [
            device["minor"]
            for device in self._capacity["gpus"]
            if device["uuid"] in spec["gpus"] and "minor" in device
        ]
        nodes = device_nodes(minors)
        try:
            spec["isolation"] = self._owners.isolation(spec["owner"], spec["job"], nodes)
        except errors.UpdraftError as error:
            return error.message
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return ""

    def _refuse(self, side: _ServerSide, serial: int, why: str) -> None:
        """A task cannot be prepared here; no keeper hears of it."""
        end = {"refused": "isolation", "errno": 0, "message": why, "stdout": 0, "stderr": 0}
        self._attempts[serial].report["end"] = end
        side.control.send_message(frames.EXITED, end, frames.stream_channel(serial, 0))

    def _forget(self, side: _ServerSide, serials: list[int]) -> None:
        for serial in serials:
            attempt = self._attempts.get(serial)
            if attempt is None:
                continue
            attempt.forgotten = True
            if side.ships:  # the server has what it wants of it
                for output in attempt.outputs.values():
                    output.detach()
            if attempt.is_done:
                self._drop(attempt)

    def _drop(self, attempt: Attempt) -> None:
        del self._attempts[attempt.serial]
        self._early.forget(attempt.serial)
        for output in attempt.outputs.values():
            output.detach()
        if os.path.dirname(attempt.folder) == self._spool:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, shutil.rmtree, attempt.folder, True)
            job = attempt.report["job"]
            if self._owners is not None and not self._has(job):
                gone = self._owners.put_away(job)
                loop.run_in_executor(None, self._owners.remove, gone)

    def _has(self, job: str) -> bool:
        return any(attempt.report["job"] == job for attempt in self._attempts.values())

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
        attempt = self._attempts.get(serial)
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
            attempt.report.update(body_of(payload))
            attempt.started_ticks = processes.start_time(attempt.report["pid"])
        elif kind == frames.STOPPED:
            attempt.report["stopped"] = True
        elif kind == frames.CONTINUED:
            attempt.report["stopped"] = False
        elif kind == frames.EXITED:
            end = body_of(payload)
            faults.reached("exit-log")
            attempt.report["end"] = end
            attempt.grew(frames.STDOUT, end["stdout"])
            attempt.grew(frames.STDERR, end["stderr"])
            self.pump()
        if self._server is not None:
            side = self._server.data if kind == frames.ACK else self._server.control
            side.send_stream(kind, channel, offset, payload)

    def _take_report(self, report: dict[str, Any]) -> None:
        self._keeper_identity = report["keeper"]
        self._keeper_pid = report["pid"]
        self._keeper_release = report["release"]
        for item in report["attempts"]:
            serial = item.pop("attempt")
            attempt = Attempt(serial, item)
            if item.get("pid"):
                attempt.started_ticks = processes.start_time(item["pid"])
            end = item.get("end")
            if end is not None:
                attempt.grew(frames.STDOUT, end.get("stdout", 0))
                attempt.grew(frames.STDERR, end.get("stderr", 0))
            self._attempts[serial] = attempt
        self._reported.set()

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

    def _keeper_lives(self) -> bool:
        """Whether it has taken a newer agent, or was told to leave, and is no zombie."""
        if self._keeper_process is not None:
            poll = select.poll()
            poll.register(self._keeper_process, select.POLLIN)
            return not poll.poll(_KEEPER_ENDS_SECONDS * 1000)
        try:
            os.kill(self._keeper_pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _end_orphans(self) -> None:
        """End what a dead keeper's leaders did not: the tasks that are still what they were."""
        for attempt in self._attempts.values():
            pid = attempt.report.get("pid")
            if pid is None or attempt.report.get("end") is not None:
                continue
            if processes.start_time(pid) == attempt.started_ticks:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)


class _KeeperSide:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._agent.from_keeper(kind, channel, offset, payload)

    def closed(self) -> None:
        self._agent.keeper_closed()

    def writable(self, ready: bool) -> None:
        """The keeper always reads; input under way is bounded by its window."""


class _ServerSide:
    """The two connections to a server; when either ends, both do."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.control: FrameConnection
        self.data: FrameConnection
        self.gone = asyncio.Event()
        self.ready = False
        self.ships = False
        """Whether output is stored by the server, and not where it is spooled."""
        self._lease_seconds = 0.0
        self.fence_grace_ms = 0
        """How long a fenced task has to end once its lease ran out."""
        self._heard = 0.0
        self._beating: asyncio.TimerHandle | None = None
        self._welcomed: asyncio.Future[dict[str, Any]] | None = None
        self._grown: dict[int, int] = {}
        self._grown_due = False

    @classmethod
    async def connect(cls, agent: Agent, server: Server) -> _ServerSide:
        """Dial both connections and say hello on each."""
        side = cls(agent)
        hello = {"wire": frames.WIRE_VERSION, "release": updraft.__version__, **server.credentials}
        try:
            side.control = await server.open(lambda: FrameConnection(side))
            welcome = await side._greet(side.control, {"role": "agent", **hello})
            side.ships = welcome["ships"]
            side.data = await server.open(lambda: FrameConnection(side))
            session = {"session": welcome["session"]}
            await side._greet(side.data, {"role": "agent-data", **hello, **session})
            for connection in (side.control, side.data):
                connection.max_unsent_bytes = _MOST_UNSENT_BYTES
        except BaseException:
            side.closed()
            raise
        side.ready = True
        side._lease_seconds = welcome["lease_ms"] / 1000
        side.fence_grace_ms = welcome.get("fence_grace_ms", 0)
        side._heard = asyncio.get_running_loop().time()
        if side._lease_seconds:
            side._beat()
        return side

    async def _greet(self, connection: FrameConnection, body: dict[str, Any]) -> dict[str, Any]:
        self._welcomed = asyncio.get_running_loop().create_future()
        connection.send_message(frames.HELLO, body)
        async with asyncio.timeout(10):
            return await self._welcomed

    def _beat(self) -> None:
        """Tell that we are there, and look whether the server is."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard > self._lease_seconds * _DEAD_AFTER_LEASES:
            log.info("the server was silent for %.0f s", loop.time() - self._heard)
            self.closed()
            return
        self.control.send_stream(frames.PING, 0, int(loop.time() * 1000))
        pause = self._lease_seconds / _BEATS_A_LEASE
        self._beating = loop.call_later(pause, self._beat)

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._heard = asyncio.get_running_loop().time()
        if kind == frames.WELCOME and self._welcomed is not None:
            if not self._welcomed.done():
                self._welcomed.set_result(body_of(payload))
        elif kind == frames.ERROR:
            log.error("the server refuses this agent: %s", body_of(payload)["message"])
        elif kind == frames.PING:
            self.control.send_stream(frames.PONG, 0, offset)
        elif kind == frames.PONG:
            self._agent.lease_renewed(offset / 1000 + self._lease_seconds)
        else:
            self._agent.from_server(self, kind, channel, offset, payload)

    def grew(self, channel: int, length: int) -> None:
        """Tell of a stream's growth, at most every 20 ms: followers need no more."""
        if self.ships:
            return  # the server stores it itself
        self._grown[channel] = length
        if not self._grown_due:
            self._grown_due = True
            asyncio.get_running_loop().call_later(0.02, self._tell_growth)

    def _tell_growth(self) -> None:
        self._grown_due = False
        for channel, length in self._grown.items():
            self.control.send(frames.frame(frames.GREW, channel, length))
        self._grown.clear()

    def writable(self, ready: bool) -> None:
        self.ready = ready
        if ready:
            self._agent.pump()

    def closed(self) -> None:
        self.ready = False
        self.gone.set()
        if self._beating is not None:
            self._beating.cancel()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError("the server closed the connection"))
        for connection in (getattr(self, "control", None), getattr(self, "data", None)):
            if connection is not None:
                connection.abort()  # its peer is silent, or gone
