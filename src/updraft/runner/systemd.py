"""A joined runner as a unit of systemd, where that is what starts things on this machine.

``packaging/updraft-runner.service`` is the same unit for those who write theirs by hand; a test
holds both together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from updraft import errors

_RUNS = "/run/systemd/system"
_UNITS = "/etc/systemd/system"
_SYSTEMCTL_SECONDS = 60.0

_UNIT = """\
# Written by `updraft runner join`; `updraft runner remove` on the server ends what it is good for.
[Unit]
Description=Updraft runner {name}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
{environment}ExecStart={command}
Restart=always
RestartSec=2s
# The server has forgotten it: it would be refused for ever.
RestartPreventExitStatus={removed}
# The keeper ends its tasks itself, each with its grace; control groups below this unit are its own.
Delegate=yes
KillMode=mixed
TimeoutStopSec=90s
UMask=0077
LimitNOFILE=1048576
OOMPolicy=continue
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""


def starts_units(runs: str = _RUNS) -> bool:
    """Whether units can be installed: systemd runs, and we are root."""
    return os.geteuid() == 0 and os.path.isdir(runs)


def unit_of(folder: str, environment: Mapping[str, str]) -> str:
    """Return the text of a runner's unit; ``environment``: where its instance is."""
    program = os.path.join(os.path.dirname(sys.executable), "updraft")
    words = [sys.executable, program, "runner", "run", "--folder", folder]
    return _UNIT.format(
        name=os.path.basename(folder),
        environment="".join(
            f"Environment={_quoted(f'{name}={value}')}\n" for name, value in environment.items()
        ),
        removed=errors.EXIT_REMOVED,
        command=" ".join(_quoted(word).replace("$", "$$") for word in words),
    )


def unit_that_runs(folder: str, units: str = _UNITS) -> str:
    """Return the unit that starts a runner whenever it ends; empty where none does."""
    unit = _name_of(folder)
    return unit if os.path.isdir(_RUNS) and Path(units, unit).exists() else ""


def _name_of(folder: str) -> str:
    return f"updraft-runner-{os.path.basename(folder)}.service"


def install(folder: str, environment: Mapping[str, str], units: str = _UNITS) -> str:
    """Install a runner's unit, start it now and at every start of the machine; return its name.

    Raises ``errors.BadConfiguration`` with what systemctl said.
    """
    unit = _name_of(folder)
    Path(units, unit).write_text(unit_of(folder, environment))
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", unit)
    return unit


def _systemctl(*words: str) -> None:
    try:
        done = subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.BadConfiguration(f"systemctl {' '.join(words)}: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise errors.BadConfiguration(
            f"systemctl {' '.join(words)}: {said}; the runner has joined: start it with updraft "
            "runner run"
        )


def _quoted(word: str) -> str:
    """Return a word as a unit file takes it: % means something there."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word}"' if set(word) & set(" \t'\"\\") else word
