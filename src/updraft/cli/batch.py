"""``ubatch``: submits a job, prints its id, and if asked follows it to its end."""

from __future__ import annotations

import os
import select
import sys
import threading
import time

from updraft import errors
from updraft.c_modules import signal
from updraft.sdk.session import Session
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.sdk.ways import Way

_RETRY_SECONDS = 30.0


def submit(body: dict[str, Any], way: Way, talk: Talk, *, follow: bool) -> int:
    """Submit, print the job's id alone on stdout, and follow the job if asked.

    Returns 0 or, when following, the exit code of the job.
    """
    job = send(body, way, talk).job
    print(job, flush=True)
    return _follow(job, way, talk) if follow and job is not None else 0


class Talk:
    """Lines for the person."""

    def __init__(self, program: str, *, quiet: bool) -> None:
        self.program = program
        self.quiet = quiet

    def say(self, message: str) -> None:
        if not self.quiet:
            self.insist(message)

    def insist(self, message: str) -> None:
        """Say it even when told to be quiet."""
        sys.stderr.write(f"{self.program}: {message}\n")
        sys.stderr.flush()


def send(body: dict[str, Any], way: Way, talk: Talk) -> Session:
    """Return a session whose job is stored.  The key makes asking twice one job."""
    until = time.monotonic() + _RETRY_SECONDS
    pause, told = 0.01, ""
    while True:
        session = Session(body, way.credentials)
        try:
            session.connect(way.connect())
            _wait_until_accepted(session, talk)
            return session
        except errors.NotSignedIn as error:
            raise way.refused(error) from error
        except errors.NotReady as error:
            if time.monotonic() > until:
                raise
            if error.message != told:
                told = error.message
                talk.say(f"{error}; trying again")
        except ConnectionError as error:
            if time.monotonic() > until:
                raise errors.ServerLost(
                    f"the server went away before it stored the job ({error}); see: updraft doctor"
                ) from error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _wait_until_accepted(session: Session, talk: Talk) -> None:
    while session.job is None:
        fd = session.socket.fileno()
        if not session.has_more:
            select.select([fd], [fd] if session.wants_write else [], [])
        session.flush()
        for kind, _, body in session.receive():
            if kind == frames.NOTICE:
                talk.say(body["message"])


def _follow(job: str, way: Way, talk: Talk) -> int:
    """Show state changes and output to the job's end; Ctrl-C leaves it alone."""
    from updraft.cli import exit_codes, logs  # noqa: PLC0415 - only when following
    from updraft.sdk.client import Client  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)
    states = threading.Thread(target=_show_states, args=(job, way, talk), daemon=True)
    try:
        with Client(way) as client:
            states.start()
            logs.show(client.logs(job, follow=True), talk.program)
            ended = client.wait(job)
        states.join()
    except KeyboardInterrupt:
        talk.insist(
            f"job {job} goes on; to follow it again: updraft logs -f {job}; "
            f"to cancel it: updraft job cancel {job}"
        )
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        talk.say(f"nobody reads the output any more; job {job} goes on")
        return exit_codes.READER_GONE
    return exit_codes.of_job(str(ended.state), ended.exit_code)


def _show_states(job: str, way: Way, talk: Talk) -> None:
    from updraft.cli.output import text  # noqa: PLC0415 - only when following
    from updraft.sdk.client import Client  # noqa: PLC0415

    try:
        with Client(way) as client:
            for event in client.events(job):
                talk.say(f"job {job} {event.kind}: {text.printable(event.message)}")
    except errors.UpdraftError as error:
        talk.insist(error.message)
