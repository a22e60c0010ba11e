"""A client's way to its server: the one of this machine, or one that its user signed in to.

On the launch path: what a server elsewhere needs (TLS) is imported only for one.
"""

from __future__ import annotations

import os
import time

from updraft import bootstrap_client, errors, settings
from updraft.sdk.targets import read_target, read_task_token

_FIRST_SECONDS = 12.0
"""How long a server may be away when it is first called: another takes its place in ten."""

_SAID_SECONDS = 1.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from updraft.sdk.targets import Target

    class Way(Protocol):
        """How a server is reached, first and again."""

        credentials: dict[str, str]
        """What the first frame of a connection proves itself with."""
        machine: str
        """This machine among those that the server's clients run on; empty: there is only it."""

        def connect(self) -> socket.socket:
            """Return a connection, non-blocking in frames; a local server is started.

            Raises ``errors.UpdraftError``.
            """

        def reconnect(self, waited_seconds: float) -> socket.socket:
            """Return a connection after a break.  Raises ``OSError`` and ``errors.Unavailable``."""

        def stopped(self) -> bool:
            """Whether the server was told to stop, so that it will not come back by itself."""

        def refused(self, error: errors.NotSignedIn) -> errors.NotSignedIn:
            """Return the error with what its reader can mend: where the credential came from."""


def find_way(
    say: Callable[[str], None] | None = None, *, start: bool = True, project: str = ""
) -> Way:
    """Return the way to the server that commands of this environment are for.

    ``start``: one of this machine that is not there is started, which ``say`` tells a person.
    ``project``: goes over the one that the environment or the profile names.

    Raises ``errors.BadConfiguration``, and ``errors.BadRequest`` for a project of this machine's.
    """
    target = read_target(os.environ)
    if target is not None:
        target.project = project or target.project
        return RemoteWay(target, say)
    if project:
        raise errors.BadRequest(
            "--project is for a server that you signed in to; sign in: updraft login URL"
        )
    return LocalWay(settings.folders(), say, start=start, token=read_task_token(os.environ))


class LocalWay:
    """To the user's own server on this machine, started where there is none."""

    def __init__(
        self,
        folders: settings.Folders,
        say: Callable[[str], None] | None = None,
        *,
        start: bool = True,
        token: str = "",
    ) -> None:
        """``token``: of the task that asks."""
        self.credentials: dict[str, str] = {"token": token} if token else {}
        self.machine = ""
        self._folders = folders
        self._say = say
        self._start = start

    def connect(self) -> socket.socket:
        if not self._start:
            return bootstrap_client.reconnect(self._folders, 0)
        return bootstrap_client.connect(self._folders, self._say)

    def reconnect(self, waited_seconds: float) -> socket.socket:
        return bootstrap_client.reconnect(self._folders, waited_seconds)

    def stopped(self) -> bool:
        return os.path.exists(self._folders.stopped)

    def refused(self, error: errors.NotSignedIn) -> errors.NotSignedIn:
        return error


class RemoteWay:
    """To a server elsewhere, over TLS."""

    def __init__(self, target: Target, say: Callable[[str], None] | None = None) -> None:
        """``say`` tells a person at a terminal what takes long."""
        self.credentials = {"token": target.token, "project": target.project or ""}
        self.machine = settings.machine_key()
        self.target = target
        self._say = say if say is not None and os.isatty(2) else None

    def connect(self) -> socket.socket:
        say, self._say = self._say, None
        if say is None:
            return self._connect()
        from threading import Timer  # noqa: PLC0415 - not on the way to a local server

        # An attempt that nobody answers is silent for longer than a person should be left alone.
        url = self.target.url
        slow = Timer(_SAID_SECONDS, lambda: say(f"cannot reach {url} yet; trying for a while"))
        slow.daemon = True
        slow.start()
        try:
            return self._connect()
        finally:
            slow.cancel()

    def _connect(self) -> socket.socket:
        until = time.monotonic() + _FIRST_SECONDS
        pause = 0.05
        while True:
            try:
                return self._dial()
            except OSError as error:
                # It may be being restarted, or another is taking its place.
                if time.monotonic() + pause > until:
                    raise errors.Unavailable(
                        f"cannot reach {self.target.url} ({error.strerror or error}); is it up, "
                        f"and the right address? it is from {self.target.source}"
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def reconnect(self, waited_seconds: float) -> socket.socket:
        # A thousand clients of one server that came back do not all ask at once.
        time.sleep(waited_seconds / 20 * os.urandom(1)[0] / 255)
        return self._dial()

    def stopped(self) -> bool:
        return False

    def refused(self, error: errors.NotSignedIn) -> errors.NotSignedIn:
        target = self.target
        if not error.message.endswith(errors.SIGN_IN):
            return error  # it is about something else, as a password
        if target.profile:
            return errors.NotSignedIn(
                f"you are not signed in at {target.url} any more; sign in again: {target.login}"
            )
        return errors.NotSignedIn(
            f"{target.url} does not know the token of UPDRAFT_TOKEN: it is mistyped, expired or "
            "revoked; make a new one: updraft token create NAME"
        )

    def _dial(self) -> socket.socket:
        from updraft.wire import tls  # noqa: PLC0415 - not on the way to a local server

        target = self.target
        known = target.fingerprint or ""
        return tls.connect(target.host, target.port, fingerprint=known, pin=target.pin)
