"""Where things are, and what is configured: the only reader of environment variables and files.

Everything here is cheap to import: `urun` reads its folders on every call.  The configuration file
is parsed only by those that need it (``load``).

Folders follow the XDG rules.  State (database, logs, sockets) is kept by machine, because a home
directory may be shared between machines while a server and its sockets are not.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

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

_TABLES = ("server", "runner")


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
        self.keys = os.path.join(state, "environment.keys")
        self.logs = os.path.join(state, "logs")
        self.runner = os.path.join(state, "runner")
        self.stopped = os.path.join(state, "stopped")

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
    found.config_file = environ.get("UPDRAFT_CONFIG") or found.config_file
    return found


def config_folder(environ: Mapping[str, str]) -> str:
    """Return the folder of what a user configures: ``updraft.toml``, and profiles of servers."""
    home = environ.get("UPDRAFT_HOME")
    if home:
        return os.path.join(os.path.abspath(home), "config")
    config = _absolute(environ, "XDG_CONFIG_HOME") or os.path.join(_home(environ), ".config")
    return os.path.join(config, "updraft")


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
    for name in ("UPDRAFT_HOME", "HOME"):
        if name in kept:
            kept[name] = os.path.abspath(kept[name])
    return {
        "PATH": os.defpath + ":/usr/local/bin:/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
        BACKGROUND_MARK: "1",
        **kept,
    }


class ServerSettings:
    """What ``[server]`` in the configuration file sets."""

    def __init__(
        self,
        idle_seconds: float = 1800.0,
        output_quota_bytes: int = 1 << 30,
        retention_days: float = 30.0,
        retention_bytes: int = 20 << 30,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.output_quota_bytes = output_quota_bytes
        self.retention_days = retention_days
        self.retention_bytes = retention_bytes


def server_settings(where: Folders) -> ServerSettings:
    """Return the server's settings.  Raises ``errors.BadConfiguration``, naming the key."""
    from updraft import errors, quantities  # noqa: PLC0415 - not on the launch path

    result = ServerSettings()
    readers = {
        "idle_stop": ("idle_seconds", quantities.parse_duration, 0.1, "100ms"),
        "output_quota": ("output_quota_bytes", quantities.parse_bytes, 1 << 16, "64K"),
        "retention": ("retention_days", _days, 0.0, ""),
        "retention_size": ("retention_bytes", quantities.parse_bytes, 0, ""),
    }
    for key, value in _table(where.config_file, "server").items():
        if key not in readers:
            raise errors.BadConfiguration(
                f"{where.config_file}: [server] has no key {key!r}; it has: {', '.join(readers)}"
            )
        name, read, least, shown = readers[key]
        try:
            amount = read(str(value))
        except errors.BadRequest as error:
            raise errors.BadConfiguration(
                f"{where.config_file}: server.{key}: {error.message}"
            ) from error
        if amount < least:
            raise errors.BadConfiguration(
                f"{where.config_file}: server.{key}: {value!r} is too little; the least is {shown}"
            )
        setattr(result, name, amount)
    return result


def _days(text: str) -> float:
    from updraft import quantities  # noqa: PLC0415 - not on the launch path

    return quantities.parse_duration(text) / 86400


class RunnerSettings:
    """What ``[runner]`` in the configuration file sets; a runner reads it when it starts."""

    def __init__(self, cgroups: bool = True) -> None:
        self.cgroups = cgroups


def runner_settings(where: Folders) -> RunnerSettings:
    """Return the runner's settings.  Raises ``errors.BadConfiguration``, naming the key."""
    from updraft import errors  # noqa: PLC0415 - not on the launch path

    result = RunnerSettings()
    for key, value in _table(where.config_file, "runner").items():
        if key != "cgroups":
            raise errors.BadConfiguration(
                f"{where.config_file}: [runner] has no key {key!r}; it has: cgroups"
            )
        if not isinstance(value, bool):
            raise errors.BadConfiguration(
                f"{where.config_file}: runner.cgroups: {value!r} is neither true nor false"
            )
        result.cgroups = value
    return result


def check(where: Folders) -> None:
    """Read all settings and use none.  Raises ``errors.BadConfiguration``, naming the key."""
    server_settings(where)
    runner_settings(where)


def _table(path: str, name: str) -> dict[str, Any]:
    """Return one table of a configuration file; an absent one is empty."""
    from updraft import errors  # noqa: PLC0415 - not on the launch path

    tables = load(path)
    for key, value in tables.items():
        if key not in _TABLES:
            known = " and ".join(f"[{table}]" for table in _TABLES)
            raise errors.BadConfiguration(f"{path}: {key!r} is unknown; settings are in {known}")
        if type(value) is not dict:
            raise errors.BadConfiguration(f"{path}: {key} is no table; write it as [{key}]")
    found: dict[str, Any] = tables.get(name, {})
    return found


def load(path: str) -> dict[str, Any]:
    """Return the configuration file's tables; an absent file is an empty one.

    Raises ``errors.BadConfiguration`` when it cannot be read, or is not TOML.
    """
    import tomllib  # noqa: PLC0415 - not on the launch path

    from updraft import errors  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise errors.BadConfiguration(
            f"cannot read {path}: {error.strerror}; make it readable, or remove it"
        ) from error
    except UnicodeDecodeError as error:
        raise errors.BadConfiguration(f"{path} is not UTF-8, as TOML must be") from error
    except tomllib.TOMLDecodeError as error:
        raise errors.BadConfiguration(f"{path} is not valid TOML: {error}") from error
