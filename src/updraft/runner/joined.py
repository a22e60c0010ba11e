"""What a joined runner knows of its server: kept in its folder, for itself alone."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from updraft import errors

_FILE = "joined.json"


@dataclass(frozen=True, slots=True)
class Joined:
    """A runner's place in a server's pool."""

    url: str
    name: str
    pool: str
    token: str
    """Proves that it is this runner."""
    fingerprint: str = ""
    """The server's certificate, where the system does not vouch for it."""
    shared: bool = False
    """Whether it keeps the tasks of several owners apart, each as its owner's own user."""

    def __repr__(self) -> str:
        return f"Joined({self.name!r} of {self.url!r})"

    @property
    def credential_id(self) -> str:
        """What its token is known by; no secret."""
        return self.token.split("_")[-2] if self.token.count("_") else ""

    @property
    def pin(self) -> str:
        """How a person lets it know its server's new certificate."""
        return (
            f"remove this runner and join again: updraft runner remove {self.name}; updraft runner "
            f"join {self.url} --fingerprint sha256:…"
        )

    @property
    def host(self) -> str:
        """The server's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port."""
        return urlsplit(self.url).port or 443


def save(folder: str, joined: Joined) -> None:
    """Keep it in the runner's folder; it is whole or not there."""
    path = os.path.join(folder, _FILE)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump(asdict(joined), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def load(folder: str) -> Joined:
    """Return what was saved.  Raises ``errors.NotFound`` where no runner has joined."""
    path = os.path.join(folder, _FILE)
    try:
        with open(path) as file:
            return Joined(**json.load(file))
    except FileNotFoundError:
        raise errors.NotFound(f"no runner has joined from {folder}") from None
    except (OSError, ValueError, TypeError) as error:
        raise errors.BadConfiguration(
            f"{path} cannot be used ({error}); join again: updraft runner join URL"
        ) from error
