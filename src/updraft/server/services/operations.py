"""How the server is: alive, ready, and what it counts."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256

from sqlalchemy import text

from updraft import errors
from updraft.model.access import Principal
from updraft.server.observe.beats import Beats
from updraft.server.observe.measures import Live, Measures
from updraft.server.observe.traces import NO_TRACES, Traces
from updraft.server.services.execution import Execution
from updraft.server.services.instance import Instance
from updraft.store.database import Database

_DATABASE_SECONDS = 2.0
_ASK_AGAIN_SECONDS = 1.0


class Operations:
    """What operators ask of one server."""

    def __init__(
        self,
        execution: Execution,
        database: Database,
        instance: Instance,
        *,
        measures: Measures | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._execution = execution
        self._database = database
        self._instance = instance
        self.measures = measures or Measures()
        self.beats = Beats(self.measures)
        self.traces = traces
        self.connections: Callable[[], Mapping[str, int]] = dict
        """Looks how many connections there are, by what they are."""
        self._metrics_digest: bytes | None = None
        self._asking = asyncio.Lock()
        self._asked = -math.inf
        self._answered = False

    def open_metrics(self, token: str) -> None:
        """Let this token, beside server admins, read the measures."""
        self._metrics_digest = sha256(token.encode()).digest()

    def is_metrics_token(self, token: str) -> bool:
        """Whether this is the token of ``open_metrics``, in a time that tells nothing."""
        given = sha256(token.encode()).digest()
        return self._metrics_digest is not None and hmac.compare_digest(self._metrics_digest, given)

    async def check_ready(self) -> None:
        """Raise ``errors.Unavailable`` with what keeps the server from working."""
        problems = []
        if self._instance.stopping or self._instance.stop_requested.is_set():
            problems.append("the server is stopping")
        problems += [f"the loop {loop!r} is late" for loop in self.beats.late()]
        if not await self._database_answers():
            problems.append("the database does not answer")
        if problems:
            raise errors.Unavailable(f"not ready: {'; '.join(problems)}")

    async def _database_answers(self) -> bool:
        """Ask it, at most once a second: whoever asks how we are may be anybody."""
        async with self._asking:
            if time.monotonic() - self._asked >= _ASK_AGAIN_SECONDS:
                try:
                    async with asyncio.timeout(_DATABASE_SECONDS):
                        await self._database.read(lambda c: c.execute(text("SELECT 1")))
                    self._answered = True
                except Exception:  # noqa: BLE001 - the answer is public, and says no more than this
                    self._answered = False
                self._asked = time.monotonic()
            return self._answered

    def render(self, who: Principal, *, with_token: bool = False) -> bytes:
        """Return all measures as Prometheus reads them.  Raises ``errors.NotAllowed``."""
        from updraft.server.observe.exposition import render  # noqa: PLC0415 - slow to import

        if not (with_token or who.may_administer()):
            raise errors.NotAllowed(
                "measures are for server admins, and for telemetry.metrics_token_file's token"
            )
        return render(self.measures, self.live())

    def live(self) -> Live:
        """Return what is true at the moment."""
        live = self._execution.live
        queued = Counter(live.waiting())
        running = Counter(job.pool for job in live.by_attempt.values())
        runners: Counter[tuple[str, str]] = Counter()
        for runner in live.runners.values():
            queued[runner.pool] += 0
            running[runner.pool] += 0
            runners[runner.pool, "away" if runner.control is None else "connected"] += 1
        return Live(
            queued=queued,
            running=running,
            runners=runners,
            connections=self.connections(),
            commits=self._database.commits,
            writes=self._database.writes,
        )
