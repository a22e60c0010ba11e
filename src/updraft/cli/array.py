"""``urun -N`` and ``ubatch -N -f``: an array that is followed, with its output and its progress."""

from __future__ import annotations

import select
import sys
import threading

from updraft import errors
from updraft.c_modules import signal
from updraft.cli import batch, exit_codes, logs
from updraft.cli.output.progress import Progress
from updraft.sdk.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.sdk.session import Session
    from updraft.sdk.ways import Way
    from updraft.wire.schemas import Job

_POLL_SECONDS = 0.5


def run(body: dict[str, Any], way: Way, talk: batch.Talk, *, prefix: bool) -> int:
    """Run an array that ends with its client, as ``urun`` does; return its exit code."""
    session = batch.send(body, way, talk)
    job = str(session.job)
    staying = threading.Thread(target=_stay, args=(session, way), daemon=True)
    staying.start()
    interrupted = False

    def cancel(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        threading.Thread(target=_cancel, args=(job, way, talk), daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, cancel)
    try:
        return _follow(job, way, talk, prefix=prefix)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def submit(body: dict[str, Any], way: Way, talk: batch.Talk, *, prefix: bool) -> int:
    """Submit an array, print its id, and follow it; Ctrl-C leaves it alone."""
    job = str(batch.send(body, way, talk).job)
    print(job, flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _follow(job, way, talk, prefix=prefix)
    except KeyboardInterrupt:
        talk.insist(
            f"job {job} goes on; to follow it again: updraft logs -f {job}; "
            f"to cancel it: updraft job cancel {job}"
        )
        return exit_codes.INTERRUPTED


def _follow(job: str, way: Way, talk: batch.Talk, *, prefix: bool) -> int:
    ended: list[Job] = []
    with Progress(talk.program, shown=not talk.quiet and sys.stderr.isatty()) as progress:
        watching = threading.Thread(target=_watch, args=(job, way, progress, ended), daemon=True)
        watching.start()
        with Client(way) as client:
            logs.show(client.logs(job, follow=True), talk.program, prefix=prefix)
        watching.join()
    if not ended:
        raise errors.ServerLost(
            f"job {job} could not be followed to its end; see: updraft job list"
        )
    (last,) = ended
    if last.ok is False and last.tasks is not None:
        failed = f"; not ok: {last.tasks.failed}" if last.tasks.failed else ""
        talk.insist(f"job {job} ended as {last.state}: {last.reason}{failed}")
    return exit_codes.of_job(str(last.state), last.exit_code)


def _watch(job: str, way: Way, progress: Progress, ended: list[Job]) -> None:
    """Show how far an array is until it has ended."""
    try:
        with Client(way) as client:
            while True:
                seen = client.wait(job, _POLL_SECONDS)
                if seen.tasks is not None:
                    progress.show(seen.tasks)
                if seen.state.terminal:
                    ended.append(seen)
                    return
    except errors.UpdraftError as error:
        progress.say(error.message)


def _cancel(job: str, way: Way, talk: batch.Talk) -> None:
    try:
        with Client(way) as client:
            client.cancel(job)
    except errors.UpdraftError as error:
        talk.insist(error.message)


def _stay(session: Session, way: Way) -> None:
    """Keep the connection by which the server knows that the array's client is there."""
    while session.ended is None:
        try:
            if not session.has_more:
                select.select([session.socket.fileno()], [], [])
            for _ in session.receive():
                pass
            session.flush()
        except ConnectionError:
            try:
                session.connect(way.reconnect(1))
            except OSError:
                continue
        except errors.UpdraftError:
            return
