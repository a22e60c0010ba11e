"""A typed client of the server's HTTP API.

Starts the user's own server when there is none.  A server that is killed or upgraded comes back by
itself: what can be asked again is, and what is followed is taken up where it broke off.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

from updraft import errors
from updraft.sdk.access import Access, Params
from updraft.sdk.answers import check as _check
from updraft.sdk.answers import read as _read
from updraft.sdk.fleet import Fleet
from updraft.sdk.output import AttemptBegins, Cut, LogPiece, LogReading, Output
from updraft.sdk.transport import SocketTransport
from updraft.sdk.ways import find_way
from updraft.wire import schemas

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from datetime import datetime

    from updraft.sdk.ways import Way

__all__ = ["AttemptBegins", "Client", "Cut", "LogPiece", "Output"]

RECONNECT_SECONDS = 30.0
_STOPPED_SECONDS = 1.0
_SAID_SECONDS = 1.0
"""A server that is only started again is back before that, and not worth a word."""
_WAIT_SECONDS = 30.0
_PAGE = 200
_PATIENCE_SECONDS = 30.0


class Client:
    """One user at one server.  Every method raises ``errors.UpdraftError``."""

    def __init__(
        self,
        way: Way | None = None,
        *,
        start: bool = True,
        project: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """``way``: to the server, by default the one that this environment's commands are for.

        ``start``: a server of this machine that is not there is started.  ``project``: which one
        requests are about; None: the way's, or the caller's own.  ``say`` tells a person,
        once, that the server is waited for.
        """
        self._say = say
        self._way = way or find_way(start=start)
        self._start = start
        self._broke_at: float | None = None
        host = getattr(self._way, "target", None)
        # No timeouts: a server answers, or its connection breaks.
        self._http = httpx.Client(
            transport=SocketTransport(self._dial),
            base_url=("http://localhost" if host is None else host.url) + "/api/v1",
            headers=_proof(self._way.credentials, project),
            timeout=None,  # noqa: S113 - see above
            trust_env=False,
        )
        self.access = Access(self._ask)
        """Users, tokens, projects, the audit."""
        self.fleet = Fleet(self._ask)
        """Pools, runners, and the tokens that they join with."""

    @property
    def elsewhere(self) -> bool:
        """Whether the server is one of another machine, which may lack directories of this one."""
        return bool(self._way.machine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what the client holds."""
        self._http.close()

    # -- jobs

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        failed: bool = False,
        labels: Mapping[str, str] | None = None,
        owner: str | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> Iterator[schemas.JobSummary]:
        """Yield jobs, newest first, a page at a time; at most ``limit``.

        ``owner``: only this user's; ``~`` is the caller; None: the whole project's.  ``parent``:
        only what this job submitted.
        """
        params: Params = {
            "state": [str(state) for state in states],
            "failed": failed,
            "label": [f"{key}={value}" for key, value in (labels or {}).items()],
        }
        if owner is not None:
            params["owner"] = owner
        if parent is not None:
            params["parent"] = parent
        left = limit
        while left is None or left > 0:
            params["limit"] = _PAGE if left is None else min(left, _PAGE)
            answer = self._ask("GET", "/jobs", params=params)
            page = _read(schemas.JobPage, answer)
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor
            left = None if left is None else left - len(page.jobs)

    def job(self, job_id: str) -> schemas.Job:
        """Return a job; ids may be cut short as long as they are unique."""
        return _job(self._ask("GET", _path(job_id)))

    def task(self, job_id: str, index: int) -> list[schemas.Task]:
        """Return the attempts of one of a job's tasks, first to last."""
        return _tasks(self._ask("GET", _path(job_id, "tasks", str(index))))

    def tasks(self, job_id: str) -> Iterator[schemas.Task]:
        """Yield the last attempt of each of a job's tasks that has had one, by index."""
        after = -1
        while found := _tasks(
            self._ask("GET", _path(job_id, "tasks"), params={"after": after, "limit": _PAGE})
        ):
            yield from found
            after = found[-1].index

    def cancel_task(self, job_id: str, index: int) -> schemas.Job:
        """Ask for the end of one task of an array."""
        return _job(self._ask("POST", _path(job_id, "tasks", str(index), "cancel")))

    def retry_task(self, job_id: str, index: int) -> schemas.Job:
        """Queue a task of a live array anew that has ended."""
        path = _path(job_id, "tasks", str(index), "retry")
        return _job(self._ask("POST", path, again=False))

    def submit(self, request: schemas.SubmitRequest) -> schemas.Job:
        """Submit a detached job.  The same key twice is one job."""
        return _job(self._ask("POST", "/jobs", body=request))

    def cancel(self, job_id: str) -> schemas.Job:
        """Ask for a job's end; the answer comes when that is stored, not when it has ended."""
        return _job(self._ask("POST", _path(job_id, "cancel")))

    def extend(self, job_id: str, seconds: float) -> schemas.Job:
        """Add to a job's time limit."""
        body = schemas.ExtendRequest(seconds=seconds)
        return _job(self._ask("POST", _path(job_id, "extend"), body=body, again=False))

    def rerun(self, job_id: str, request: schemas.RerunRequest) -> schemas.Job:
        """Run a job again as a new one; the same key twice is one job."""
        return _job(self._ask("POST", _path(job_id, "rerun"), body=request))

    def wait(self, job_id: str, seconds: float | None = None) -> schemas.Job:
        """Return the job once it has ended, or as it is after ``seconds``."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _WAIT_SECONDS if until is None else max(until - time.monotonic(), 0)
            params: Params = {"seconds": min(left, _WAIT_SECONDS)}
            job = _job(self._ask("GET", _path(job_id, "wait"), params=params))
            if job.state.terminal or (until is not None and time.monotonic() >= until):
                return job

    def events(
        self, job_id: str, *, after: int = 0, follow: bool = True
    ) -> Iterator[schemas.Event]:
        """Yield a job's events, old ones first, and with ``follow`` new ones to its end."""
        while True:
            params: Params = {"after": after, "follow": follow}
            try:
                with self._stream(_path(job_id, "events"), params) as answer:
                    for line in answer.iter_lines():
                        self._broke_at = None
                        event = _read(schemas.Event, line)
                        after = event.serial
                        yield event
            except (httpx.TransportError, errors.NotReady) as error:
                self._pause(error)
            else:
                return

    def logs(
        self,
        job_id: str,
        *,
        task: int | None = None,
        streams: Sequence[str] = (),
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> Iterator[LogPiece]:
        """Yield what a job wrote, stdout and stderr in their order; with ``follow`` to its end.

        ``task``: of an array, only this one; without, all of them, those that run at a time beside
        each other.
        ``streams``: of ``stdout`` and ``stderr``, only these; ``tail``: only the last lines;
        ``since``: only what was written then or later (an aware time).  Both are about the attempt
        that is the last when it is asked.
        """
        asked: Params = {"follow": follow, "stream": list(streams)}
        if task is not None:
            asked["task"] = task
        params = dict(asked)
        if tail is not None:
            params["tail"] = tail
        if since is not None:
            params["since"] = since.isoformat()
        reading = LogReading()
        while True:
            try:
                with self._stream(_path(job_id, "logs"), params) as answer:
                    for chunk in answer.iter_raw():
                        self._broke_at = None
                        yield from reading.feed(chunk)
            except (httpx.TransportError, errors.NotReady) as error:
                self._pause(error)
                reading.interrupted()
                if reading.attempt:
                    params = {**asked, **reading.position()}
            else:
                return

    # -- the server

    def running(self) -> bool:
        """Whether a server is there; none is started to answer this."""
        try:
            self._way.reconnect(0).close()
        except OSError:
            return False
        return True

    def status(self) -> schemas.Status:
        """Return the state of server and runner."""
        return _read(schemas.Status, self._ask("GET", "/status"))

    def stop(self, mode: schemas.StopMode = "refuse") -> None:
        """Stop the server and its runner; answers when all jobs have ended."""
        try:
            answer = self._http.post("/stop", json=schemas.StopRequest(mode=mode).model_dump())
        except httpx.ReadError:
            return  # it ended before its answer was out
        except httpx.ConnectError as error:
            raise errors.Unavailable(f"no server is running ({error})") from error
        _check(answer)

    # -- requests

    def _dial(self) -> socket.socket:
        if self._broke_at is not None:
            return self._way.reconnect(time.monotonic() - self._broke_at)
        return self._way.connect()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: schemas.Request | None = None,
        again: bool = True,
    ) -> bytes:
        """Return the answer's body.  ``again``: asking twice does no more than asking once."""
        content = None if body is None else body.model_dump(mode="json")
        patience = _Patience()
        while True:
            try:
                answer = self._http.request(method, path, params=params, json=content)
            except httpx.ConnectError as error:
                self._pause(error)
            except httpx.TransportError as error:
                if not again:
                    raise errors.ServerLost(
                        "the server went away before it answered; look whether it was done: "
                        "updraft job show"
                    ) from error
                self._pause(error)
            else:
                if patience.waited(answer):
                    continue
                try:
                    _check(answer)
                except errors.NotReady as error:
                    self._pause(error)
                    continue
                except errors.NotSignedIn as error:
                    raise self._way.refused(error) from error
                except errors.UpdraftError:
                    self._broke_at = None
                    raise
                self._broke_at = None
                return answer.content

    def _stream(self, path: str, params: Params) -> _Streamed:
        return _Streamed(self._http, path, params, self._way)

    def _pause(self, error: httpx.TransportError | errors.NotReady) -> None:
        """Wait a moment before asking again; give up when the server does not come back."""
        now = time.monotonic()
        if self._broke_at is None:
            if not self._start and isinstance(error, httpx.ConnectError):
                raise errors.Unavailable("no server is running; any urun starts one") from error
            self._broke_at = now
        waited = now - self._broke_at
        if waited > _STOPPED_SECONDS and self._way.stopped():
            raise errors.ServerLost("the server was stopped") from error
        if self._say is not None and (isinstance(error, errors.NotReady) or waited > _SAID_SECONDS):
            away = not isinstance(error, errors.NotReady)
            why = "the server went away" if away else str(error).removesuffix("; try again")
            self._say(f"{why}; trying again for {RECONNECT_SECONDS:.0f} s")
            self._say = None
        if waited > RECONNECT_SECONDS:
            if isinstance(error, errors.NotReady):
                raise error
            raise errors.ServerLost(
                f"the server went away and did not come back within {RECONNECT_SECONDS:.0f} s "
                f"({error}); see: updraft doctor"
            ) from error
        time.sleep(min(0.01 + waited / 4, 0.25))


class _Streamed:
    """A streamed answer, for a ``with`` block; an error answer is raised at its beginning."""

    def __init__(self, http: httpx.Client, path: str, params: Params, way: Way) -> None:
        self._http, self._path, self._params, self._way = http, path, params, way
        self._context = self._open()

    def _open(self) -> AbstractContextManager[httpx.Response]:
        return self._http.stream("GET", self._path, params=self._params)

    def __enter__(self) -> httpx.Response:
        patience = _Patience()
        answer = self._context.__enter__()
        while patience.waited(answer):
            self._context.__exit__(None, None, None)
            self._context = self._open()
            answer = self._context.__enter__()
        if answer.is_error:
            try:
                answer.read()
                _check(answer)
            except errors.NotSignedIn as error:
                raise self._way.refused(error) from error
            finally:
                self._context.__exit__(None, None, None)
        return answer

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


class _Patience:
    """Waits as a server asks that gets too much at a time; nothing was done there."""

    def __init__(self) -> None:
        self._left = _PATIENCE_SECONDS

    def waited(self, answer: httpx.Response) -> bool:
        """Whether to ask again: it was too much, it was said for how long, and that was waited."""
        if answer.status_code != errors.TooManyRequests.status:
            return False
        # Without a credential it is about failed sign-ins, which a person is to know about.
        if "Authorization" not in answer.request.headers:
            return False
        told = answer.headers.get("Retry-After", "")
        seconds = float(told) if told.isdecimal() and len(told) < 6 else math.inf
        if seconds > self._left:
            return False
        self._left -= max(seconds, 1)
        time.sleep(seconds)
        return True


def _proof(credentials: Mapping[str, str], project: str | None) -> dict[str, str]:
    """Return the headers that say who asks, and about which project."""
    headers = {}
    project = project or credentials.get("project")
    if credentials.get("token"):
        headers["Authorization"] = f"Bearer {credentials['token']}"
    if project:
        headers["Updraft-Project"] = project
    return headers


def _path(job_id: str, *rest: str) -> str:
    if not job_id:
        raise errors.BadRequest("a job's id is needed; see: updraft job list --all")
    return "/".join(("/jobs", quote(job_id, safe=""), *rest))


def _tasks(data: bytes) -> list[schemas.Task]:
    return [_read(schemas.Task, json.dumps(each)) for each in json.loads(data)]


def _job(data: bytes) -> schemas.Job:
    return _read(schemas.Job, data)
