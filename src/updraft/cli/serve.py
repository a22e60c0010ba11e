"""``updraft serve``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from updraft import bootstrap, configuration, errors, settings
from updraft.cli import options
from updraft.configuration.schema import SELF_SIGNED


@click.command
@options.config_file
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve other machines, or on loopback a proxy.",
)
@click.option("--certificate", metavar="FILE", help="TLS certificate with its chain, as PEM.")
@click.option("--key", metavar="FILE", help="Private key of the certificate, as PEM.")
@click.option(
    "--self-signed", is_flag=True, help="Make a certificate, which users and runners pin."
)
def command(
    config: str | None,
    listen: str | None,
    certificate: str | None,
    key: str | None,
    self_signed: bool,
) -> None:
    """Run the server in the foreground; its log goes to stderr.

    It stays when it is idle.  Ctrl-C ends it, and its runner when no job lives; jobs go on.
    Flags go before what updraft.toml says of the same.
    """
    if certificate is not None and self_signed:
        raise click.UsageError("give either --certificate or --self-signed")
    given = {
        "server.listen": listen,
        "server.certificate": SELF_SIGNED if self_signed else _absolute(certificate),
        "server.key": _absolute(key),
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    if config is not None:
        settings.use_config(str(Path(config).absolute()))
    folders = settings.folders()
    # What is wrong is said before anything is started.
    configuration.load(folders, overrides)
    with options.client(start=False) as client:
        if client.running():
            raise errors.Conflict(
                f"a server runs already (pid {client.status().server.pid}); end it: updraft stop"
            )
    bootstrap.prepare_state(folders)
    command = [sys.executable, "-I", "-m", "updraft.server"]
    for name, value in overrides.items():
        command += ["--set", f"{name}={value}"]
    os.execv(command[0], command)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
