"""How a machine without Updraft becomes a runner: a script, and the wheels that it installs.

Both are public, for they hold nothing secret: the script tells how this server is recognised, and
the wheels are what anyone can get elsewhere.  The token is neither in an address nor in the script.
"""

from __future__ import annotations

import html
import re
import shlex
from functools import cached_property
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from updraft import errors, settings
from updraft.configuration.schema import SELF_SIGNED, Server
from updraft.server.auth import certificates

_WHEEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]{0,250}\.whl")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_NONE = "this server has no wheelhouse yet; its admin makes one: updraft admin wheelhouse"


class Installing:
    """What a server offers to machines that are to become its runners."""

    def __init__(self, folders: settings.Folders, configured: Server) -> None:
        self._folders = folders
        self._configured = configured

    def script(self, host: str) -> str:
        """Return the script for a machine that reached the server as ``host`` (and port)."""
        if not self.wheels():
            return f"printf 'updraft: %s\\n' '{_NONE}' >&2\nexit 1\n"
        pin, fingerprint = self._pinned
        text = resources.files("updraft.server").joinpath("join.sh").read_text()
        for name, value in (
            ("@URL@", self.url(host)),
            ("@FINGERPRINT@", fingerprint),
            ("@PIN@", pin),
        ):
            text = text.replace(name, value)
        return text

    def url(self, host: str = "") -> str:
        """Return the server's address, as who asks knows it: by the host that they named."""
        known = self._configured.url
        if not _HOST.fullmatch(host):
            return known
        return f"{urlsplit(known).scheme or 'https'}://{host}"

    def line(self, token: str) -> str:
        """Return the line that makes a machine a runner; empty where no other machine reaches us.

        The token is in no command's arguments, which every user of a machine can read.
        """
        url = self.url()
        if not url:
            return ""
        pin, _ = self._pinned
        trust = f"--pinnedpubkey {pin} -k " if pin else ""
        # A pipe ends as its last command does: what curl could not get must fail there, too. Behind
        # a part of the script it fails as well, which is all within a group that has no end.
        fetch = f"curl {trust}-sSf {shlex.quote(url + '/join')} || printf '\\nexit 1\\n'"
        return f"({fetch}) | UPDRAFT_JOIN_TOKEN={token} sh"

    def wheels(self) -> list[str]:
        """Return the names of the wheels that there are."""
        try:
            found = [
                path.name for path in Path(self._folders.wheelhouse).iterdir() if path.is_file()
            ]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if _WHEEL.fullmatch(name))

    def need_release(self, release: str) -> None:
        """Raise ``errors.Conflict`` where there is no wheel of this release of Updraft."""
        if f"updraft_cloud-{release}-py3-none-any.whl" not in self.wheels():
            raise errors.Conflict(
                f"the wheelhouse has no wheel of release {release}; make it: updraft admin "
                "wheelhouse"
            )

    def index(self) -> str:
        """Return a page with a link to each wheel, as pip's ``--find-links`` reads it."""
        links = (
            f'<a href="{html.escape(name)}">{html.escape(name)}</a><br>' for name in self.wheels()
        )
        return "<!DOCTYPE html>\n<title>wheels</title>\n" + "\n".join(links) + "\n"

    def wheel(self, name: str) -> Path:
        """Return a wheel's file.  Raises ``errors.NotFound``."""
        if name not in self.wheels():
            raise errors.NotFound(f"there is no wheel {name[:100]!r} here; see /wheels/")
        return Path(self._folders.wheelhouse, name)

    @cached_property
    def _pinned(self) -> tuple[str, str]:
        """The key and the certificate to trust; empty where an authority vouches for us.

        Of a private authority a machine may not know, so it counts only where this one does.
        """
        certificate = self._configured.certificate
        if not certificate:
            return "", ""  # whoever stands before us has one
        if certificate == SELF_SIGNED:
            certificate = certificates.self_signed_file(self._folders.state)
        elif certificates.is_vouched_for(certificate, self._configured.key):
            return "", ""
        return certificates.key_pin(certificate), certificates.fingerprint(certificate)
