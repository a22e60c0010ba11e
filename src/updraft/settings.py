"""Where things are: the only reader of environment variables.

Everything here is cheap to import: `urun` reads its folders on every call.  What the configuration
file says is for those that need it (``updraft.configuration``).

Folders follow the XDG rules.  State (database, logs, sockets) is kept by machine, because a home
directory may be shared between machines while a server and its sockets are not.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

KEPT_ENVIRONMENT = (
    "UPDRAFT_HOME",
    "UPDRAFT_CONFIG",
    "UPDRAFT_FAULTS",
    "XDG_STATE_HOME",
    "XDG_CONFIG_HOME",
    "HOME",
)
"""What the background processes keep of the environment that happened to start them."""

BACKGROUND_MARK = "UPDRAFT_BACKGROUND"
"""A variable that they have and tasks have not: by it a keeper spares a server among orphans."""

LOCAL_BASE = "/var/tmp"  # noqa: S108 - the folder made there is checked to be ours alone
"""A local disk that survives a restart: for those without a home, or with one on a network."""


class Folders:
    """The folders and files of one instance.  All are text paths; none is made by looking."""

    def __init__(self, state: str, config: str) -> None:
        self.state = state
        self.config_file = os.path.join(config, "updraft.toml")
        self.socket = os.path.join(state, "server.sock")
        self.start_lock = os.path.join(state, "start.lock")
        self.server_lock = os.path.join(state, "server.lock")
        self.server_log = os.path.join(state, "server.log")
        self.database = os.path.join(state, "updraft.db")
        self.wheelhouse = os.path.join(state, "wheelhouse")
        self.runner = os.path.join(state, "runner")
        self.stopped = os.path.join(state, "stopped")
        self.served_by = os.path.join(state, "served-by")
        self.keep_data_in(state)

    def keep_data_in(self, folder: str) -> None:
        """Have what a server keeps beside its database in ``folder``, which another may share."""
        self.keys = os.path.join(folder, "environment.keys")
        self.logs = os.path.join(folder, "logs")

    def paths(self) -> dict[str, str]:
        """Return what a person may look for, by name."""
        return {
            "state": self.state,
            "socket": self.socket,
            "database": self.database,
            "logs": self.logs,
            "log": self.server_log,
            "config": self.config_file,
        }


def folders(environ: Mapping[str, str] | None = None) -> Folders:
    """Return the instance's folders: ``UPDRAFT_HOME``'s, or the user's own."""
    environ = os.environ if environ is None else environ
    home = environ.get("UPDRAFT_HOME")
    if home:
        state = os.path.join(os.path.abspath(home), "state")
    else:
        user = _home(environ)
        state = _absolute(environ, "XDG_STATE_HOME") or os.path.join(user, ".local", "state")
        state = os.path.join(state, "updraft")
    found = Folders(os.path.join(state, machine_key()), config_folder(environ))
    config_file = environ.get("UPDRAFT_CONFIG")
    if config_file:
        found.config_file = os.path.abspath(config_file)
    return found


def config_folder(environ: Mapping[str, str]) -> str:
    """Return the folder of what a user configures: ``updraft.toml``, and profiles of servers."""
    home = environ.get("UPDRAFT_HOME")
    if home:
        return os.path.join(os.path.abspath(home), "config")
    config = _absolute(environ, "XDG_CONFIG_HOME") or os.path.join(_home(environ), ".config")
    return os.path.join(config, "updraft")


SYSTEM_RUNNERS = "/var/lib/updraft/runners"


def runners_folder() -> str:
    """Return where joined runners have their folders: the system's for root, else the user's."""
    if os.geteuid() == 0 and not os.environ.get("UPDRAFT_HOME"):
        return SYSTEM_RUNNERS
    return os.path.join(folders().state, "runners")


def own_places() -> dict[str, str]:
    """Return what the environment says of where the instance and its configuration are."""
    named = {name: os.environ.get(name) for name in ("UPDRAFT_HOME", "UPDRAFT_CONFIG")}
    return {name: os.path.abspath(place) for name, place in named.items() if place}


def take_join_token() -> str:
    """Return ``UPDRAFT_JOIN_TOKEN``, which nothing that this process starts inherits."""
    return os.environ.pop("UPDRAFT_JOIN_TOKEN", "")


def use_config(path: str) -> None:
    """Make this process, and the servers that follow it, read ``path`` as configuration."""
    os.environ["UPDRAFT_CONFIG"] = os.path.abspath(path)


def _home(environ: Mapping[str, str]) -> str:
    """Return the home folder; of a user that the system does not know, one on a local disk."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return local_base() if home == "~" else os.path.abspath(home)


def local_base() -> str:
    """Return this user's folder on a local disk; whoever makes it checks that it is."""
    return os.path.join(LOCAL_BASE, f"updraft-{os.geteuid()}")


def _absolute(environ: Mapping[str, str], name: str) -> str | None:
    # A relative path is to be passed over, say the XDG rules.
    value = environ.get(name, "")
    return value if os.path.isabs(value) else None


def machine_key() -> str:
    """Return a name for this machine that survives restarts: its machine id, or its host name."""
    try:
        with open("/etc/machine-id") as file:
            identity = file.read(12)
    except OSError:
        identity = ""
    return identity.strip() or os.uname().nodename


def faults_folder() -> str | None:
    """Return the folder of armed crash points (tests only), None when there is none."""
    return os.environ.get("UPDRAFT_FAULTS") or None


def installed_release() -> str:
    """Return what tells this installation from the one before and after it; empty when it is gone.

    The version alone would not do: a reinstalled development version has the same one.
    """
    import updraft  # noqa: PLC0415 - its file is what is looked at

    try:
        with open(updraft.__file__) as file:
            line = next((line for line in file if line.startswith("__version__")), "")
            stat = os.fstat(file.fileno())
    except OSError:
        return ""
    return f"{line.partition('=')[2].strip()} {stat.st_ino} {stat.st_mtime_ns}"


def background_environment() -> dict[str, str]:
    """Return the environment of the background processes: nothing of the caller's but folders.

    Credentials, agents' sockets, CUDA masks and virtual environments of the shell that happened to
    be first do not end up in a server that outlives it.
    """
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if os.environ.get(name)}
    for name in ("UPDRAFT_HOME", "UPDRAFT_CONFIG", "HOME"):
        if name in kept:
            kept[name] = os.path.abspath(kept[name])
    return {
        "PATH": os.defpath + ":/usr/local/bin:/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
        BACKGROUND_MARK: "1",
        **kept,
    }
