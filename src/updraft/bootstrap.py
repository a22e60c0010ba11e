"""Starting the background processes of one machine: the user's own server, and what it needs.

Whoever finds the server gone starts it (a client on its first call, the agent after a crash), under
a lock, so that two first calls at once make one server.  Nothing of the starter stays: descriptors,
session, working directory, environment, umask, signal mask and dispositions, soft limits, CPU mask
and niceness are shed.  Its control group is not: moving between groups is the business of whoever
manages them (systemd, an engine), and limits put on Updraft are to hold.  ``updraft doctor`` says
when that group may end with a login session.

Layout notes: the state folder must be on a file system with working locks and sockets; a home
directory on a network file system gets a local folder instead, reached through a symbolic link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import stat
import sys
import time

from updraft import errors, settings
from updraft.wire.sockets import connect_unix, peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

START_SECONDS = 20.0
"""How long a server may take to come up on a busy machine."""

_START_TRIES = 5
MOUNTS = "/proc/self/mountinfo"

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "lustre"})
_NETWORK_FUSE = ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs")


def connect(folders: settings.Folders) -> socket.socket:
    """Return a connection to this user's server.  Raises ``OSError`` when none listens.

    The server must run as this user: nothing is sent to anybody else's.
    """
    peer = connect_unix(folders.socket)
    uid = peer_uid(peer)
    if uid != os.geteuid():
        peer.close()
        raise errors.NotAllowed(
            f"the server at {folders.socket} runs as user {uid}, and you are user {os.geteuid()}; "
            "set HOME or UPDRAFT_HOME to a folder of your own"
        )
    return peer


def ensure_server(
    folders: settings.Folders, say: Callable[[str], None] | None = None
) -> socket.socket:
    """Return a connection, starting the server first if there is none.

    ``say`` gets the one line that tells a person about a new server.  Raises ``UpdraftError`` with
    the server's own reason when it does not come up, and where others are served from here: whoever
    runs that server starts it.
    """
    command = foreground_command(folders)
    prepare_state(folders, say)
    with start_lock(folders):
        try:
            return connect(folders)  # somebody was faster
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError as error:
            raise unusable(folders.state, error) from error
        if command:
            raise errors.Unavailable(
                f"the server of {folders.state} serves other machines too and is down; start it: "
                f"{command} (or systemctl start updraft-server, if that runs it)"
            )
        start_server(folders)
        if say is not None:
            say("started a server for you on this machine; it ends by itself when idle")
    try:
        return connect(folders)
    except OSError as error:
        raise errors.Unavailable(
            f"the server went away as it started ({error}); see {folders.server_log}"
        ) from error


def foreground_command(folders: settings.Folders) -> str:
    """Return what starts a server that other machines reach; empty where anybody may start it.

    The configuration says that others are served, or the last server in the foreground did.  Raises
    ``errors.BadConfiguration``.
    """
    from updraft import configuration  # noqa: PLC0415 - agents and keepers do without

    configured = configuration.load(folders).server
    try:
        with open(folders.served_by) as file:
            return file.read()
    except OSError:
        return "" if configured.listen is None else "updraft serve"


def prepare_state(folders: settings.Folders, say: Callable[[str], None] | None = None) -> None:
    """Make the state folder, private to this user.  Raises ``UpdraftError`` if it cannot be."""
    state = folders.state
    try:
        if not os.path.lexists(state):
            _make_state(state, say)
        elif not os.path.exists(state) and os.readlink(state) == _stand_in(state):
            _make_local_base()  # somebody cleaned up the local disk
            os.makedirs(_stand_in(state), mode=0o700, exist_ok=True)
        check_owner(state)
        if stat.S_IMODE(os.stat(state).st_mode) & 0o077:
            os.chmod(state, 0o700)
    except OSError as error:
        raise unusable(state, error) from error


def unusable(folder: str, error: OSError) -> errors.Unavailable:
    """Return the error that says why a state folder cannot be used, and the mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(f"the disk of the state folder {folder} is full; free some space")
    name = error.filename if isinstance(error.filename, str) else folder
    return errors.Unavailable(
        f"cannot use the state folder: {name}: {error.strerror}; "
        "set UPDRAFT_HOME to a folder that you can write to"
    )


def _make_state(state: str, say: Callable[[str], None] | None) -> None:
    parent = os.path.dirname(state)
    if state.startswith(settings.local_base() + "/"):  # of a user without a home
        _make_local_base()
    if os.geteuid() == 0:
        # `sudo -E` brings another user's HOME along; what root makes there would lock them out.
        check_owner(_existing(parent))
    os.makedirs(parent, mode=0o700, exist_ok=True)
    check_owner(parent)
    if not is_network(file_system(parent)):
        os.makedirs(state, mode=0o700, exist_ok=True)
        return
    local = _stand_in(state)
    _make_local_base()
    os.makedirs(local, mode=0o700, exist_ok=True)
    try:
        os.symlink(local, state)
    except FileExistsError:
        return  # another first call was faster
    if say is not None:
        say(f"your home is on a network file system, so state is kept in {local}")


def _existing(folder: str) -> str:
    """Return the nearest folder above that is there."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return folder


def check_owner(folder: str) -> None:
    """Refuse a folder of another user's (as ``su`` and ``sudo -E`` would have us use)."""
    owner = os.stat(folder).st_uid
    if owner != os.geteuid():
        raise errors.NotAllowed(
            f"{folder} belongs to user {owner}, and you are user {os.geteuid()}; "
            "set HOME or UPDRAFT_HOME to a folder of your own"
        )


def file_system(path: str) -> str:
    """Return the type of the file system that ``path`` lies on, empty where it cannot be told."""
    try:
        with open(MOUNTS, "rb") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return ""
    real = os.fsencode(os.path.realpath(path))
    best, kind = b"", b""
    for fields in mounts:
        point = _unescaped(fields[4])
        inside = real == point or real.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index(b"-") + 1]
    return kind.decode()


def _unescaped(field: bytes) -> bytes:
    """Undo what the kernel does to blanks, tabs, newlines and backslashes in a mount's fields."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def is_network(file_system_type: str) -> bool:
    """Whether locks and sockets on such a file system are not to be relied on."""
    return file_system_type in _NETWORK_FILE_SYSTEMS or file_system_type.startswith(_NETWORK_FUSE)


def _stand_in(state: str) -> str:
    """Return the folder on a local disk that stands in for ``state``."""
    from hashlib import blake2b  # noqa: PLC0415 - seldom

    return os.path.join(
        settings.local_base(), blake2b(os.fsencode(state), digest_size=8).hexdigest()
    )


def _make_local_base() -> None:
    """Make our folder where everybody may make some, and check that it is ours alone."""
    base = settings.local_base()
    os.makedirs(base, mode=0o700, exist_ok=True)
    made = os.lstat(base)
    if not stat.S_ISDIR(made.st_mode) or made.st_uid != os.geteuid():
        raise errors.NotAllowed(f"{base} is not a folder of yours; set UPDRAFT_HOME to one")
    os.chmod(base, 0o700)


def start_server(folders: settings.Folders) -> None:
    """Start a server and wait until it listens.  The caller holds the start lock.

    One that dies without a word (killed as it starts) is started again; one that says what is wrong
    is not.  Raises ``errors.Unavailable``.
    """
    for _ in range(_START_TRIES):
        if _try_start(folders):
            return
    raise errors.Unavailable(
        f"the server crashed {_START_TRIES} times as it started; see {folders.server_log}"
    )


def _try_start(folders: settings.Folders) -> bool:
    ready_read, ready_write = os.pipe()
    spawn_background(
        [sys.executable, "-I", "-m", "updraft.server", "--ready-fd", "3"],
        log=folders.server_log,
        extra_fd=ready_write,
    )
    os.close(ready_write)
    said = b""
    deadline = time.monotonic() + START_SECONDS
    with open(ready_read, "rb", buffering=0) as ready:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        while not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise errors.Unavailable(
                    f"the server did not start within {START_SECONDS:.0f} s; "
                    f"see {folders.server_log}"
                )
            part = ready.read(4096)
            if not part:
                break
            said += part
    if said and said != b"ready\n":
        why = said.decode(errors="replace").strip()
        raise errors.Unavailable(f"the server could not start: {why}")
    return bool(said)


def spawn_background(command: list[str], *, log: str, extra_fd: int | None = None) -> None:
    """Start ``command`` as a process of nobody's: own session, no terminal, clean environment.

    ``extra_fd`` becomes its descriptor 3.  Output goes to ``log``.  A double fork leaves it to the
    system's init, so that its starter has nothing to wait for.
    """
    environment = settings.background_environment()
    child = os.fork()
    if child:
        try:
            os.waitpid(child, 0)
        except ChildProcessError:  # our own starter ignores SIGCHLD: the kernel has waited
            pass
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(0o077)
        os.chdir("/")
        _shed_limits()
        extra = 3
        if extra_fd is not None:
            os.dup2(extra_fd, extra)
            os.set_inheritable(extra, True)  # dup2 onto itself leaves the flag as it was
        null = os.open(os.devnull, os.O_RDWR)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(extra + (extra_fd is not None), 1 << 20)
        os.execve(command[0], command, environment)
    finally:
        os._exit(127)


def _shed_limits() -> None:
    """Drop what the starter limited for itself (``ulimit -S``, ``taskset``, ``nice``)."""
    for name in ("AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC", "RSS"):
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            hard = resource.getrlimit(number)[1]
            try:
                resource.setrlimit(number, (hard, hard))
            except (OSError, ValueError):  # macOS bounds open files below "unlimited"
                continue
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a container's own bounds stay
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:  # only root may be less nice than it was
        pass


def start_lock(folders: settings.Folders) -> _Lock:
    """Return the lock under which a server starts, and closes its door when idle."""
    return _Lock(folders.start_lock)


def is_locked(path: str) -> bool:
    """Whether a process lives that holds this lock: a server's, or a keeper's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class _Lock:
    """An exclusive lock on a file, for a ``with`` block; dies with its process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            raise unusable(os.path.dirname(self._path), error) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
