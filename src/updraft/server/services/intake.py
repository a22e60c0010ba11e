"""Stores the output of tasks on other machines, as it comes.

A runner that shares no files with the server *ships* what its tasks write: from the offset that is
stored here, at most a window ahead of what was acknowledged.  So what a runner has and the server
has not is always a known range, whatever breaks in between.  Attached clients are served from here
too: at once where they are as far as the store, from the files where they are behind.

Times are this machine's, of when output arrived: runners' clocks are their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from updraft.server.relay.relay import Link, Relay
from updraft.storage.segments import SegmentWriter
from updraft.storage.times import TimesWriter
from updraft.wire import frames, reports

log = logging.getLogger("updraft.intake")

_NAMES = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}
_ACKNOWLEDGE_BYTES = frames.OUTPUT_WINDOW_BYTES // 4
_DISK_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Stored:
    """An attempt whose output comes from elsewhere."""

    folder: str
    writers: dict[int, SegmentWriter]
    times: TimesWriter
    grew: Callable[[], None]
    acknowledged: dict[int, int]
    link: Link | None = None
    asked: int = 0
    """How often the runner was told where to go on and has not begun to."""
    wanted: tuple[int, int] | None = None
    """The lengths to wait for: the task has ended with them."""
    complete: Callable[[], None] | None = None
    retry: asyncio.TimerHandle | None = field(default=None)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.writers[frames.STDOUT].length, self.writers[frames.STDERR].length


class Intake:
    """The output that is being shipped, by attempt serial."""

    def __init__(self, relay: Relay, quota_bytes: int) -> None:
        self._relay = relay
        self._attempts: dict[int, _Stored] = {}
        self._quota_bytes = quota_bytes

    def holds(self, serial: int) -> bool:
        """Whether this attempt's output comes in here."""
        return serial in self._attempts

    def begin(
        self, serial: int, folder: str, grew: Callable[[], None], *, fresh: bool = True
    ) -> None:
        """Take an attempt's output into ``folder``, which is made for the first of it.

        ``grew`` is called whenever there is more.  ``fresh``: nothing of it was stored before; else
        it goes on behind what is there.
        """
        make = SegmentWriter if fresh else SegmentWriter.resume
        writers = {stream: make(folder, name, self._quota_bytes) for stream, name in _NAMES.items()}
        lengths = {stream: writer.length for stream, writer in writers.items()}
        self._attempts[serial] = _Stored(folder, writers, TimesWriter(folder), grew, lengths)

    def granted(self, serial: int, link: Link) -> None:
        """The attempt is sent to a runner, which ships its output from the beginning."""
        self._attempts[serial].link = link

    def runner_joined(self, serial: int, link: Link) -> None:
        """The attempt's runner has (re)connected: it is to go on where the store ends."""
        stored = self._attempts[serial]
        stored.link = link
        stored.asked = 0
        self._ask(serial, stored)

    def runner_left(self, link: Link) -> None:
        """A runner's connection is gone: nothing more comes, and ends will be told again."""
        for serial in self._relay.carried_by(link):
            stored = self._attempts.get(serial)
            if stored is not None:
                stored.link = None
                stored.wanted = stored.complete = None

    def when_complete(
        self, serial: int, lengths: tuple[int, int], complete: Callable[[], None]
    ) -> None:
        """Call ``complete`` once output is stored up to these lengths; perhaps at once."""
        stored = self._attempts[serial]
        stored.wanted, stored.complete = lengths, complete
        self._look(stored)

    def end(self, serial: int) -> tuple[int, int]:
        """The attempt is over, here at least; return how much of its output is stored."""
        stored = self._attempts.pop(serial, None)
        if stored is None:
            return 0, 0
        if stored.retry is not None:
            stored.retry.cancel()
        for writer in stored.writers.values():
            writer.close()
        return stored.lengths

    # -- from the runner

    def answered(self, serial: int) -> None:
        """What comes from now on begins where the runner was told to."""
        stored = self._attempts.get(serial)
        if stored is not None:
            stored.asked -= 1

    def data(self, serial: int, stream: int, offset: int, payload: bytes | memoryview) -> None:
        """Store output; what is stored already is passed over, and a gap was cut at its source.

        Raises ``PackingError`` for what lies where no stream gets.
        """
        reports.length_of(offset, len(payload))
        stored = self._attempts.get(serial)
        if stored is None or stored.asked > 0 or stored.retry is not None:
            return
        writer = stored.writers[stream]
        if offset < writer.length:
            payload = memoryview(payload)[writer.length - offset :]
            offset = writer.length
        if not payload:
            return
        try:
            if offset > writer.length:
                self._skip(stored, serial, stream, offset)
            self._append(stored, serial, stream, payload)
        except OSError as error:
            self._retry_later(serial, stored, error)
            return
        self._relay.stored(serial, stream, offset, payload)
        self._acknowledge(serial, stored, stream)
        stored.grew()
        self._look(stored)

    def ended(self, serial: int, stream: int, length: int) -> None:
        """The source has nothing before ``length`` any more: it was cut there.

        Raises as ``data`` does.
        """
        reports.length_of(length)
        stored = self._attempts.get(serial)
        if stored is None or stored.asked > 0 or stored.retry is not None:
            return
        if length > stored.writers[stream].length:
            try:
                self._skip(stored, serial, stream, length)
            except OSError as error:
                self._retry_later(serial, stored, error)
                return
            self._acknowledge(serial, stored, stream)
            stored.grew()
            self._look(stored)

    # -- inside

    def _append(
        self, stored: _Stored, serial: int, stream: int, payload: bytes | memoryview
    ) -> None:
        _make_folder(stored)
        writer = stored.writers[stream]
        stored.times.note(time.time_ns(), stream, writer.length)
        keep_from = self._keep_from(serial, stream, writer)
        left = memoryview(payload)
        while left:
            left = left[writer.append(left, keep_from) :]

    def _skip(self, stored: _Stored, serial: int, stream: int, offset: int) -> None:
        _make_folder(stored)
        writer = stored.writers[stream]
        writer.skip(offset, self._keep_from(serial, stream, writer))

    def _keep_from(self, serial: int, stream: int, writer: SegmentWriter) -> int | None:
        """Return from where on nothing is cut, for a client that is attached.

        Its task is held back meanwhile, so there is no more than what was stored here and at the
        runner: one that goes on all the same fills no disk.
        """
        most = 2 * (self._quota_bytes + frames.OUTPUT_WINDOW_BYTES)
        return self._relay.reader_at(serial, stream) if writer.kept_bytes <= most else None

    def _acknowledge(self, serial: int, stored: _Stored, stream: int) -> None:
        length = stored.writers[stream].length
        if length - stored.acknowledged[stream] >= _ACKNOWLEDGE_BYTES and stored.link is not None:
            stored.acknowledged[stream] = length
            channel = frames.stream_channel(serial, stream)
            stored.link.send_stream(frames.STORED, channel, length)

    def _retry_later(self, serial: int, stored: _Stored, error: OSError) -> None:
        log.error("cannot store output: %s; trying again", error.strerror)
        loop = asyncio.get_running_loop()
        stored.retry = loop.call_later(_DISK_RETRY_SECONDS, self._retry, serial)

    def _retry(self, serial: int) -> None:
        stored = self._attempts.get(serial)
        if stored is not None:
            stored.retry = None
            self._ask(serial, stored)

    def _ask(self, serial: int, stored: _Stored) -> None:
        if stored.link is None:
            return
        stored.asked += 1
        stdout, stderr = stored.lengths
        stored.acknowledged = {frames.STDOUT: stdout, frames.STDERR: stderr}
        body: dict[str, object] = {"stdout": stdout, "stderr": stderr}
        stored.link.send_message(frames.SHIP, body, serial << 2)

    def _look(self, stored: _Stored) -> None:
        if stored.wanted is None or stored.complete is None:
            return
        if all(have >= want for have, want in zip(stored.lengths, stored.wanted, strict=True)):
            complete, stored.complete = stored.complete, None
            complete()


def _make_folder(stored: _Stored) -> None:
    if not any(stored.lengths):
        Path(stored.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
