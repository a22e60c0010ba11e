"""Feeds bytes to whatever reads a stranger's: ``python -m tests.hostile.fuzz FOLDER -runs=N``.

libFuzzer looks for bytes that take new ways through ``updraft.wire`` and the door.  The first byte
of an input chooses its reader.  ``FOLDER`` keeps the inputs; in an empty one good ones are put, to
begin with.  An error that no caller expects ends the program, with the input in ``crash-…``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import atheris

with atheris.instrument_imports(include=["updraft.wire", "updraft.server.api.door"]):
    from updraft.server.api.door import Door, Doors
    from updraft.wire import frames, packing, reports, transport


def framing(data: bytes) -> None:
    """However they arrive, bytes are the same frames, or the same error."""
    size = data[0] + 1 if data else 1
    whole = _read([data])
    assert _read([data[at : at + size] for at in range(0, len(data), size)]) == whole


def _read(chunks: list[bytes]) -> tuple[list[Any], bool]:
    reader = frames.FrameReader()
    found: list[Any] = []
    try:
        for chunk in chunks:
            for kind, channel, offset, payload in reader.feed(chunk):
                last: Any = found[-1] if found else (0, 0, 0, b"")
                goes_on = kind == frames.DATA and last[:2] == (kind, channel)
                if goes_on and last[2] + len(last[3]) == offset:  # the same frame's, or as good
                    found[-1] = (*last[:3], last[3] + bytes(payload))
                    continue
                found.append((kind, channel, offset, bytes(payload)))
            assert reader.held_bytes <= frames.HEADER_SIZE + frames.MAX_PAYLOAD
    except frames.FrameError:
        return found, True
    return found, False


def unpacking(data: bytes) -> None:
    """What is read can be packed, and read again."""
    try:
        value = packing.unpack(data)
    except packing.PackingError:
        return
    assert packing.unpack(packing.pack(value)) == value


def reporting(data: bytes) -> None:
    """What an agent says is refused, or can be packed again."""
    decoders: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
        reports.report_of, reports.started_of, reports.end_of, reports.said_of,
    )  # fmt: skip
    try:
        body = transport.body_of(data[1:])
        packing.pack(decoders[data[0] % len(decoders)](body))
    except packing.PackingError:
        return


def signalling(data: bytes) -> None:
    """So is what a client says of signals and terminals."""
    for decode in (transport.signal_of, transport.size_of):
        try:
            decode(data)
        except packing.PackingError:
            continue


def greeting(data: bytes) -> None:
    """Bytes of nobody known are answered with an error, or wait for more; no session begins."""
    _LOOP.run_until_complete(_greet(data))


async def _greet(data: bytes) -> None:
    doors = Doors({"client": _nobody, "exec": _nobody}, {"agent": _nobody}, _nobody)
    guest = doors.arrive("192.0.2.1")
    assert guest is not None
    peer = _Peer()
    door = Door(doors, guest)
    door.connection_made(cast(asyncio.Transport, peer))
    half = len(data) // 2
    door.data_received(b"\0" + data[:half])
    if peer.protocol is not None and not peer.paused:
        peer.protocol.data_received(data[half:])
    admitting = [task for task in asyncio.all_tasks() if task.get_name() == "admit"]
    await asyncio.gather(*admitting)
    assert not doors.clients
    assert peer.protocol is not None
    peer.protocol.connection_lost(None)
    assert (doors.connections, doors.half_messages_bytes) == (0, 0)


def _nobody(*_: Any) -> Any:
    raise AssertionError("a stranger was let in")


class _Peer:
    """A transport that takes all."""

    def __init__(self) -> None:
        self.protocol: asyncio.Protocol | None = None
        self.paused = self.closing = False

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        """It reads all."""

    abort = close

    def set_write_buffer_limits(self, high: int) -> None:
        """It has none."""


TARGETS = (framing, unpacking, reporting, signalling, greeting)
_LOOP = asyncio.new_event_loop()


def one_input(data: bytes) -> None:
    """Give an input to its reader."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def good_inputs() -> list[bytes]:
    """Return inputs that honest peers send, for each reader."""
    end = {"status": 0, "at": 1, "why": None, "cpu_ns": 5, "stdout": 3, "stderr": 0}
    refusal = {"refused": "exec", "errno": 2, "message": "no", "stdout": 0, "stderr": 0}
    start = {"pid": 7, "at": 1, "clamped_limits": [7], "unenforced": ["memory"]}
    gpu = {"index": 0, "minor": 0, "uuid": "GPU-0", "kind": "a100", "memory_bytes": 1}
    report = {
        "release": "1", "pid": 1, "keeper": "a", "keeper_pid": 2, "keeper_release": "1",
        "capacity": {"cpus_milli": 1, "memory_bytes": 1, "gpus": [gpu], "host": "h"},
        "attempts": [{"attempt": 5, "end": end}, {"attempt": 6, **start, "end": None}],
    }  # fmt: skip
    hello = {"role": "client", "wire": frames.WIRE_VERSION, "token": "x", "project": "y"}
    messages = [
        frames.message(frames.HELLO, hello),
        frames.message(frames.SUBMIT, {"argv": [b"a"]}, 4),
        frames.frame(frames.DATA, 5, 9, b"some bytes"),
    ]
    bodies: list[tuple[int, dict[str, Any]]] = [(0, report), (1, start), (2, end), (2, refusal)]
    return [
        *(bytes([0, 3]) + message for message in messages),
        *(bytes([1]) + packing.pack(body) for _, body in bodies),
        *(bytes([2, which]) + packing.pack(body) for which, body in bodies),
        bytes([2, 3]) + packing.pack({"signal": 19, "stdout": 1, "stderr": 1}),
        bytes([3]) + packing.pack({"signal": 2, "rows": 9, "columns": 9}),
        *(bytes([4]) + message[1:] for message in messages),
    ]


def main() -> None:
    """Run libFuzzer."""
    folder = Path(sys.argv[1])
    if not any(folder.iterdir()):
        for number, data in enumerate(good_inputs()):
            (folder / f"good-{number}").write_bytes(data)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
