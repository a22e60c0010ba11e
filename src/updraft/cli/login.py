"""``updraft login``."""

from __future__ import annotations

import os
import sys

import click

from updraft import errors, settings
from updraft.cli import passwords
from updraft.cli.output import speech


@click.command
@click.argument("url", metavar="URL")
@click.option("--token-stdin", is_flag=True, help="Read a token from stdin, instead of a browser.")
@click.option("--user", metavar="NAME", help="Sign in with NAME's password, which is asked for.")
@click.option("--password-stdin", is_flag=True, help="With --user: read the password from stdin.")
@click.option("--project", metavar="PROJECT", help="Which project commands are about.")
@click.option("--profile", metavar="PROFILE", help="What to call the server; by default its name.")
@click.option(
    "--fingerprint",
    metavar="SHA256",
    help="Trust the one certificate with this fingerprint (sha256:…), as a self-signed one.",
)
def command(
    url: str,
    token_stdin: bool,
    user: str | None,
    password_stdin: bool,
    project: str | None,
    profile: str | None,
    fingerprint: str | None,
) -> None:
    """Sign in to the server at URL, https://HOST[:PORT], and make it the one that commands use.

    Without more, it shows a code and a page to confirm it on, in any browser.  The session is kept
    in a profile; to end it: updraft logout.  Back to this machine: updraft profile use local.
    """
    from updraft.sdk import profiles, targets  # noqa: PLC0415
    from updraft.sdk.signing_in import SigningIn  # noqa: PLC0415

    if token_stdin and user is not None:
        raise click.UsageError("--token-stdin and --user are two ways to sign in; take one")
    if password_stdin and user is None:
        raise click.UsageError("--password-stdin goes with --user")
    host, port = targets.parse_url(url)
    name = profile or (host if port == targets.DEFAULT_PORT else f"{host}-{port}").replace(":", "-")
    targets.check_name(name)
    if fingerprint is not None:
        fingerprint = targets.parse_fingerprint(fingerprint)
    else:
        fingerprint = _trusted_on_sight(host, port)
    client = f"updraft on {os.uname().nodename}"
    with SigningIn(url, fingerprint) as signing_in:
        if token_stdin:
            token = passwords.from_stdin("token")
        elif user is not None:
            read = passwords.from_stdin if password_stdin else passwords.asked
            token = signing_in.with_password(user, read(f"password of {user}"), client).token
        else:
            token = signing_in.with_browser(client, _show_code).token
        me = signing_in.me(token, project)
    target = targets.Target(url, token, project, fingerprint, me.name, name)
    profiles.save(settings.config_folder(os.environ), target)
    speech.say(f"you are {me.name} at {target.url}; commands go there from now on")
    if me.project is None and me.projects:
        names = ", ".join(each.project for each in me.projects)
        speech.say(f"you are in several projects ({names}); choose one: UPDRAFT_PROJECT=NAME")
    elif me.project is None:
        speech.say("you are in no project yet; ask an admin of one to add you")


def _show_code(address: str, code: str) -> None:
    speech.say(f"open {address} and confirm this code: {code}")


def _trusted_on_sight(host: str, port: int) -> str | None:
    """Return the fingerprint of a certificate that only the person can vouch for, as ssh asks."""
    from updraft.sdk import pinning  # noqa: PLC0415
    from updraft.wire import tls  # noqa: PLC0415

    if pinning.is_trusted(host, port):
        return None
    found = tls.fingerprint_of(pinning.certificate_of(host, port))
    if not sys.stdin.isatty():
        raise errors.NotAllowed(
            f"no authority vouches for {host}:{port}; if this is its certificate, add: "
            f"--fingerprint {found}"
        )
    speech.say(f"no authority vouches for {host}:{port}; its certificate is {found}")
    if not click.confirm("Is this what its admin told you? Trust it", err=True):
        raise errors.NotAllowed("not signed in: the certificate was not trusted")
    return found
