"""What jobs wrote, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from updraft import errors
from updraft.model.job import MOST_TASKS
from updraft.server.api.requests import JobId, Who
from updraft.server.services.attempt_output import (
    MAX_TAIL,
    NAMES,
    Begins,
    Chunk,
    Ends,
    Piece,
    Window,
)
from updraft.server.services.logs import Logs
from updraft.wire import frames

FRAMES = "application/vnd.updraft.frames"
_MAX_OFFSET = 1 << 62
_NUMBERS = {name: stream for stream, name in NAMES.items()}

StreamName = Literal["stdout", "stderr"]
Streams = Annotated[list[StreamName], Query(description="only these")]
Attempt = Annotated[int | None, Query(ge=1, description="begin with this one, not with the last")]
Task = Annotated[int | None, Query(ge=0, lt=MOST_TASKS, description="of an array, only this one")]
Offset = Annotated[int, Query(ge=0, lt=_MAX_OFFSET)]
Tail = Annotated[int | None, Query(ge=0, le=MAX_TAIL, description="only the last lines")]
Since = Annotated[
    datetime | None,
    Query(description="only what was written since, to about a tenth of a second"),
]


def make_router(logs: Logs) -> APIRouter:
    """Return the routes of output."""
    router = APIRouter(tags=["logs"])

    @router.get(
        "/jobs/{job}/logs",
        summary="Read stdout and stderr in the order in which they were written",
        response_class=StreamingResponse,
        responses={200: {"content": {FRAMES: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def both(
        who: Who,
        job: JobId,
        stream: Streams = [],  # noqa: B006 - FastAPI copies it
        attempt: Attempt = None,
        task: Task = None,
        stdout: Offset = 0,
        stderr: Offset = 0,
        tail: Tail = None,
        since: Since = None,
        follow: bool = False,
    ) -> StreamingResponse:
        """Frames: length u32, kind u8, channel u64, offset u64 (big-endian), then `length` bytes.

        `channel` is attempt × 4 + stream (1 stdout, 2 stderr). Kind 32 says where in the stream the
        answer begins, 30 has bytes and their offset (a gap before it was cut: the stored stream was
        over its quota), 33 the stream's length where it ends. To go on after a break, ask for
        `attempt` and both offsets again. For all tasks of an array at once, `channel` has an
        attempt's serial instead, and kind 32 says in its payload whose it is: `INDEX.NUMBER`.
        """
        streams = tuple(sorted({_NUMBERS[name] for name in stream})) or tuple(NAMES)
        window = Window(streams, attempt, (stdout, stderr), task, tail, _nanoseconds(since), follow)
        pieces = await logs.read(who, job, window)
        return StreamingResponse(_frames(pieces), media_type=FRAMES)

    @router.get(
        "/jobs/{job}/logs/{stream}",
        summary="Read one stream as it is",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    async def one(
        who: Who,
        job: JobId,
        stream: StreamName,
        attempt: Attempt = None,
        task: Task = None,
        offset: Offset = 0,
        tail: Tail = None,
        since: Since = None,
        follow: bool = False,
    ) -> StreamingResponse:
        """Its bytes and nothing else: cuts and the beginning of a further attempt do not show."""
        number = _NUMBERS[stream]
        offsets = (offset, offset)
        window = Window((number,), attempt, offsets, task, tail, _nanoseconds(since), follow)
        pieces = await logs.read(who, job, window)

        async def data() -> AsyncIterator[bytes]:
            async for piece in pieces:
                if isinstance(piece, Chunk):
                    yield piece.data

        return StreamingResponse(data(), media_type="application/octet-stream")

    return router


async def _frames(pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        channel = frames.stream_channel(piece.attempt, piece.stream)
        match piece:
            case Begins(offset=offset, label=label):
                yield frames.frame(frames.GREW, channel, offset, label.encode())
            case Chunk(offset=offset, data=data):
                yield frames.frame(frames.DATA, channel, offset, data)
            case Ends(offset=offset):
                yield frames.frame(frames.EOF, channel, offset)


def _nanoseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise errors.BadRequest("since: a time zone is needed, as in 2026-01-31T12:00:00Z")
    return max(int(moment.timestamp() * 1e6) * 1000, 0)
