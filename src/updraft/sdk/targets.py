"""Which server a command is for: the user's own on this machine, or one that they signed in to.

On the launch path: imports only what the import-set test allows, and reads at most two small files.

``UPDRAFT_URL`` and ``UPDRAFT_TOKEN`` together come before everything, for CI; then
``UPDRAFT_PROFILE`` names a profile; then the file ``profile`` does; else it is the server on this
machine.  A task finds the first two set to its own server and a token of its own; there, a profile
that is named goes before them.
``UPDRAFT_PROJECT`` goes over the profile's project.
"""

from __future__ import annotations

import os

from updraft import errors, settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

TASK_TOKEN = "updraft_task_"  # noqa: S105 - how one begins
"""Of a task, which the server let have it."""

ON_THIS_MACHINE = "unix://"
"""Begins the address of a server's socket, as its own machine's tasks find it."""

LOCAL = "local"
"""The profile that is no file: the server on this machine."""

DEFAULT_PORT = 443
_FIELDS = ("url", "token", "project", "user", "fingerprint")
_NAME_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_FINGERPRINT_SIGNS = frozenset("0123456789abcdef")


class Target:
    """A server elsewhere, and who the user is there."""

    __slots__ = ("fingerprint", "host", "port", "profile", "project", "token", "url", "user")

    def __init__(
        self,
        url: str,
        token: str,
        project: str | None = None,
        fingerprint: str | None = None,
        user: str = "",
        profile: str = "",
    ) -> None:
        """``url``: ``https://HOST[:PORT]``.  Raises ``errors.BadRequest``."""
        self.host, self.port = parse_url(url)
        self.url = url_of(self.host, self.port)
        self.token = token
        self.project = project
        """None: the token's, or the user's only one."""
        self.fingerprint = None if fingerprint is None else parse_fingerprint(fingerprint)
        """``sha256:`` and 64 hexadecimal digits, of the one certificate to trust; None: the
        system's authorities."""
        self.user = user
        self.profile = profile
        """What it was read from; empty: variables of the environment."""

    @property
    def source(self) -> str:
        """Where its address is from, for a person who may have to change it."""
        return f"profile {self.profile}" if self.profile else "UPDRAFT_URL"

    @property
    def login(self) -> str:
        """The command that signs in there again."""
        return f"updraft login {self.url} --profile {self.profile}"

    @property
    def pin(self) -> str:
        """How another fingerprint is given."""
        if self.profile:
            return f"sign in again: {self.login} --fingerprint sha256:…"
        return "set UPDRAFT_FINGERPRINT=sha256:…"

    def __repr__(self) -> str:
        return f"Target({self.url!r}, …)"


def read_target(environ: Mapping[str, str]) -> Target | None:
    """Return the server that commands are for; None: the one on this machine.

    Raises ``errors.BadConfiguration`` when what is configured cannot be used.
    """
    project = environ.get("UPDRAFT_PROJECT") or None
    url, token = environ.get("UPDRAFT_URL"), environ.get("UPDRAFT_TOKEN")
    if token and token.startswith(TASK_TOKEN) and environ.get("UPDRAFT_PROFILE"):
        url = token = None  # chosen within the task: what its submitter had chosen was left out
    elif token and url and url.startswith(ON_THIS_MACHINE):
        if read_task_token(environ):
            return None
        url = token = None  # another instance than the one whose task this is was chosen
    if url or token:
        if not url or not token:
            missing = "UPDRAFT_TOKEN" if url else "UPDRAFT_URL"
            raise errors.BadConfiguration(
                f"{missing} is not set; UPDRAFT_URL and UPDRAFT_TOKEN go together"
            )
        fingerprint = environ.get("UPDRAFT_FINGERPRINT") or None
        name = "UPDRAFT_URL"
        try:
            parse_url(url)
            name = "UPDRAFT_FINGERPRINT"
            return Target(url, token, project, fingerprint)
        except errors.BadRequest as error:
            raise errors.BadConfiguration(f"{name}: {error.message}") from None
    folder = settings.config_folder(environ)
    name = environ.get("UPDRAFT_PROFILE") or current_profile(folder)
    if name == LOCAL:
        return None
    found = read_profile(folder, name)
    if project is not None:
        found.project = project
    return found


def read_task_token(environ: Mapping[str, str]) -> str:
    """Return the token of the task that this is, if that is one of this machine's server.

    Not where commands are for another server than the one whose task it is.
    """
    token = environ.get("UPDRAFT_TOKEN", "")
    if not token.startswith(TASK_TOKEN) or environ.get("UPDRAFT_PROFILE"):
        return ""
    socket = ON_THIS_MACHINE + settings.folders(environ).socket
    return token if environ.get("UPDRAFT_URL") == socket else ""


def current_profile(folder: str) -> str:
    """Return the name of the profile in use."""
    return _read(os.path.join(folder, "profile")).strip() or LOCAL


def read_profile(folder: str, name: str) -> Target:
    """Return a profile.  Raises ``errors.BadConfiguration`` when there is none, or it is broken."""
    check_name(name)
    path = os.path.join(folder, "profiles", name)
    text = _read(path)
    if not text:
        raise errors.BadConfiguration(
            f"there is no profile {name!r}; see: updraft profile list, or sign in: updraft login "
            f"URL --profile {name}"
        )
    values = dict.fromkeys(_FIELDS, "")
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in values:
            values[key] = value
    try:
        return Target(
            values["url"],
            values["token"],
            values["project"] or None,
            values["fingerprint"] or None,
            values["user"],
            name,
        )
    except errors.BadRequest as error:
        raise errors.BadConfiguration(f"{path}: {error.message}") from None


def check_name(name: str) -> None:
    """Raise ``errors.BadConfiguration`` for what cannot be a profile's name."""
    if not name or len(name) > 100 or name[0] in "._-" or not _NAME_SIGNS.issuperset(name):
        raise errors.BadConfiguration(
            f"{name!r} cannot be a profile's name; small letters, digits, '.', '_' and '-' can"
        )


def parse_url(url: str) -> tuple[str, int]:
    """Return host and port of a server's address.  Raises ``errors.BadRequest``."""
    scheme, _, rest = url.partition("://")
    place = rest.rstrip("/")
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, port = place, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    good = scheme == "https" and host and not set(host) & set("/@?# \\[]")
    if not good or not host.isprintable() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise errors.BadRequest(f"{url!r} is no server's address; write it as https://HOST[:PORT]")
    return host.lower(), int(port)


def url_of(host: str, port: int) -> str:
    """Return the address of a server in its one form."""
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}" + ("" if port == DEFAULT_PORT else f":{port}")


def parse_fingerprint(text: str) -> str:
    """Return a fingerprint in its one form.  Raises ``errors.BadRequest``."""
    kind, _, digits = text.strip().lower().partition(":")
    digits = digits.replace(":", "")
    if kind != "sha256" or len(digits) != 64 or not _FINGERPRINT_SIGNS.issuperset(digits):
        raise errors.BadRequest(
            f"{text!r} is no fingerprint; write it as sha256: and 64 hexadecimal digits"
        )
    return f"sha256:{digits}"


def _read(path: str) -> str:
    """Return a file's text; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(65536)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadConfiguration(f"cannot read {path}: {error}") from None
