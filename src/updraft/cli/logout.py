"""``updraft logout``."""

from __future__ import annotations

import os

import click

from updraft import errors, settings
from updraft.cli.output import speech


@click.command
@click.argument("profile", metavar="[PROFILE]", required=False)
def command(profile: str | None) -> None:
    """End the session of PROFILE, or of the one in use, and forget it."""
    from updraft.sdk import profiles, targets  # noqa: PLC0415
    from updraft.sdk.signing_in import SigningIn  # noqa: PLC0415

    folder = settings.config_folder(os.environ)
    name = profile or os.environ.get("UPDRAFT_PROFILE") or targets.current_profile(folder)
    if name == targets.LOCAL:
        raise errors.BadRequest("nobody signed in; the server on this machine knows you by itself")
    target = targets.read_profile(folder, name)
    try:
        with SigningIn(target.url, target.fingerprint) as signing_in:
            signing_in.sign_out(target.token)
    except errors.NotSignedIn:
        pass  # it had ended by itself
    except errors.UpdraftError as error:
        speech.say(f"the server was not told: {error.message}")
    profiles.remove(folder, name)
    speech.say(f"signed out of {target.url}")
