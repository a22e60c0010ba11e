"""What keys demand of each other, and the defaults that follow from others.  Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import urlsplit

from updraft.configuration.kinds import Address
from updraft.configuration.schema import SELF_SIGNED, Configuration, Notification, Server

LOCAL_POOL = "local"

Problem = tuple[str, str]
"""A key's full name, and what is wrong with it and how to mend it."""


def problems(found: Configuration) -> Iterator[Problem]:
    """Yield what is wrong between keys that are each right."""
    yield from _server(found.server)
    if found.sign_in.session_max < found.sign_in.session:
        yield "sign_in.session_max", "it is shorter than sign_in.session; make it at least as long"
    oidc = found.sign_in.oidc
    if oidc.issuer and not oidc.client_id:
        yield "sign_in.oidc.client_id", "it is missing; set what the provider gave for this server"
    if not oidc.issuer and oidc.client_id:
        yield "sign_in.oidc.issuer", "it is missing; set the provider's issuer URL"
    if _is_plain(oidc.issuer):
        yield "sign_in.oidc.issuer", "it is not encrypted; use an https URL"
    if not found.sign_in.passwords and not oidc.issuer and found.server.listen is not None:
        yield (
            "sign_in.passwords",
            "nobody could sign in; set it to true, or set sign_in.oidc.issuer",
        )
    for name, pool in found.pools.items():
        for kind, count in pool.gpus.items():
            if count < 0:
                yield f"pools.{name}.gpus", f"{kind} = {count} is too little; the least is 0"
    for name, notification in found.notifications.items():
        yield from _notification(f"notifications.{name}", notification)


def _server(server: Server) -> Iterator[Problem]:
    if server.lost_after <= server.suspect_after:
        yield "server.lost_after", "it is not longer than server.suspect_after; raise it"
    if server.certificate == SELF_SIGNED and server.key:
        yield "server.key", "a self-signed certificate brings its own key; remove this one"
    elif server.certificate and server.certificate != SELF_SIGNED and not server.key:
        yield "server.key", "it is missing; set it to the file of the certificate's private key"
    elif server.key and not server.certificate:
        yield "server.certificate", "it is missing; set it to the file that belongs to server.key"
    if server.certificate and server.listen is None:
        yield (
            "server.listen",
            "it is missing; set where the certificate is to be used, or remove it",
        )
    if server.listen is not None and not server.certificate and not is_loopback(server.listen):
        yield (
            "server.listen",
            f"{server.listen} is reached from other machines, and credentials would pass in the "
            f'clear; set server.certificate (to files, or to "{SELF_SIGNED}"), or serve with '
            "--self-signed",
        )
    if _is_plain(server.url):
        yield "server.url", "credentials would pass in the clear; use an https URL"
    if server.connections_per_peer > server.max_connections:
        yield (
            "server.connections_per_peer",
            "it is more than server.max_connections; make it at most that",
        )


def _notification(table: str, one: Notification) -> Iterator[Problem]:
    mail = one.kind == "email"
    wanted = {"from": one.sender, "to": one.to, "smtp": one.smtp} if mail else {"url": one.url}
    for name, value in wanted.items():
        if not value:
            yield f"{table}.{name}", f'it is missing; kind = "{one.kind}" needs it'
    unused = {"url": one.url} if mail else {"smtp": one.smtp, "to": one.to, "from": one.sender}
    for name, value in unused.items():
        if value:
            yield f"{table}.{name}", f'kind = "{one.kind}" does not use it; remove it'
    if mail and one.smtp_user and not one.secret_file:
        yield f"{table}.secret_file", "it is missing; set the file with the password of smtp_user"
    if one.smtp_user and one.smtp_tls == "none" and one.smtp and not is_loopback(one.smtp):
        yield f"{table}.smtp_tls", 'the password would pass in the clear; use "starttls" or "tls"'
    for address in (one.sender, *one.to):
        if mail and address and ("@" not in address or any(sign in address for sign in " ,<>")):
            yield f"{table}.to", f"{address!r} is not an e-mail address"


def completed(
    found: Configuration, given: AbstractSet[str], state: str, machine: str
) -> Configuration:
    """Return the configuration with the defaults that follow from other keys.

    ``given``: the full names of what is set; ``state``: the state folder; ``machine``: this
    machine's name in the network.
    """
    server = found.server
    changes: dict[str, Any] = {}
    if server.listen is not None:
        if "server.local_pool" not in given:
            changes["local_pool"] = False
        if "server.idle_stop" not in given:
            changes["idle_stop"] = float("inf")
        if not server.url:
            changes["url"] = _url(server, machine)
    if not server.data:
        changes["data"] = state
    if not server.default_pool:
        if changes.get("local_pool", server.local_pool):
            changes["default_pool"] = LOCAL_POOL
        elif len(found.pools) == 1:
            changes["default_pool"] = next(iter(found.pools))
    return dataclasses.replace(found, server=dataclasses.replace(server, **changes))


def _url(server: Server, machine: str) -> str:
    assert server.listen is not None  # noqa: S101 - the caller's condition
    host, port = server.listen
    reached = machine if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - compared
    return f"{'https' if server.certificate else 'http'}://{Address(reached, port)}"


def is_loopback(address: Address) -> bool:
    """Whether only this machine reaches an address."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def _is_plain(url: str) -> bool:
    """Whether a URL leads over a network in the clear."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(Address(parts.hostname or "", 0))
