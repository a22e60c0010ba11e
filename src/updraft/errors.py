"""Every public error, on one page: its stable code, its HTTP status and the exit code it ends in.

::

    UpdraftError            internal             500   125
    ├── BadRequest          bad_request          400   125   the input is wrong; nothing was changed
    │   ├── BadConfiguration bad_configuration   400   125
    │   └── Unsupported     unsupported          400   125   this pool or machine cannot do it
    ├── NotFound            not_found            404   125   no such job, pool, … (that you may see)
    ├── NotSignedIn         not_signed_in        401   125   no credential, or one that is not good
    │   ├── RunnerRemoved   runner_removed       401    77   the server has forgotten this runner
    │   └── TaskEnded       task_ended           401   125   the task whose token it is has ended
    ├── NotAllowed          not_allowed          403   125
    ├── Conflict            conflict             409   125   not in this state
    ├── WrongVersion        wrong_version        426   125   client and server do not fit
    ├── Unavailable         unavailable          503   125   the server cannot do it now; try again
    │   ├── NotReady        not_ready            503   125   nothing was done; ask again in a moment
    │   ├── StandingBy      standing_by          503   125   another server of its database serves
    │   ├── DiskFull        disk_full            507   125
    │   └── TooManyRequests too_many_requests    429   125   wait as long as it says
    └── ServerLost          server_lost          503   125   the connection is gone for good

A message is one sentence that names the thing and the mend.
"""

from __future__ import annotations

EXIT_FAILURE = 125
"""Updraft itself failed, not the command."""
EXIT_REMOVED = 77
"""A runner that its server has forgotten: what starts runners need not start it again."""
EXIT_EXPIRED = 124
EXIT_CANCELLED = 143
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


SIGN_IN = "sign in: updraft login URL"
"""The mend of a server, which does not know where a client's credential came from."""


class UpdraftError(Exception):
    """Something went wrong that a person has to know about."""

    code = "internal"
    status = 500
    exit_code = EXIT_FAILURE
    retry_after_seconds: float | None = None
    """When the same request may succeed; None: that is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(UpdraftError):
    """The input is wrong.  Nothing was changed."""

    code = "bad_request"
    status = 400


class BadConfiguration(BadRequest):
    """A configuration file cannot be used."""

    code = "bad_configuration"


class Unsupported(BadRequest):
    """This pool or this machine cannot do what was asked."""

    code = "unsupported"


class NotFound(UpdraftError):
    """There is no such thing, or none that the caller may see."""

    code = "not_found"
    status = 404


class NotSignedIn(UpdraftError):
    """The caller has no credential, or one that is not good (any more)."""

    code = "not_signed_in"
    status = 401


class RunnerRemoved(NotSignedIn):
    """The server has no such runner any more; nothing that it does will change that."""

    code = "runner_removed"
    exit_code = EXIT_REMOVED


class TaskEnded(NotSignedIn):
    """The token is no running task's: it ended, was started anew, or there never was one."""

    code = "task_ended"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the job that this token belongs to has ended")


class NotAllowed(UpdraftError):
    """The caller may not do this."""

    code = "not_allowed"
    status = 403


class Conflict(UpdraftError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    status = 409


class WrongVersion(UpdraftError):
    """Client and server, or agent and server, do not understand each other."""

    code = "wrong_version"
    status = 426


class Unavailable(UpdraftError):
    """It cannot be done now; the same request may succeed later."""

    code = "unavailable"
    status = 503


class NotReady(Unavailable):
    """The server is stopping, or its database is away: it, or another in its place, is back soon.

    Nothing was done, or what was asked may be asked again without being done twice.
    """

    code = "not_ready"
    retry_after_seconds = 1.0


class StandingBy(Unavailable):
    """The server that was asked stands by: another one of its database serves."""

    code = "standing_by"


class DiskFull(Unavailable):
    """There is no room left to store what must be stored."""

    code = "disk_full"
    status = 507


class TooManyRequests(Unavailable):
    """The caller asks too often; the same request may succeed later."""

    code = "too_many_requests"
    status = 429

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ServerLost(UpdraftError):
    """The server went away and did not come back in time."""

    code = "server_lost"
    status = 503


def _tree(root: type[UpdraftError]) -> dict[str, type[UpdraftError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_code(code: str, message: str) -> UpdraftError:
    """Return the error that a peer reported by its code; an unknown code is a plain failure."""
    return _tree(UpdraftError).get(code, UpdraftError)(message)
