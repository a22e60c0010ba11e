"""Start the server of this machine.

``python -m updraft.server [--ready-fd N] [--lock-fd N] [--set KEY=VALUE]…``
"""

from __future__ import annotations

import logging
import os
import sys

from updraft import bootstrap, errors, settings


def main(arguments: list[str]) -> int:
    """Serve until told to stop; tell through the ready descriptor when, or why not."""
    ready, lock, overrides = None, None, {}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--ready-fd":
            ready = int(value)
        elif option == "--lock-fd":
            lock = int(value)
        else:
            name, _, setting = value.partition("=")
            overrides[name] = setting
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server %(levelname)s %(message)s")
    os.umask(0o077)
    try:
        import uvloop  # noqa: PLC0415 - what fails here is told through the ready descriptor

        from updraft.server.app import Server  # noqa: PLC0415

        lock = uvloop.run(Server(settings.folders(), overrides).run(ready, lock))
    except (errors.UpdraftError, OSError, ImportError) as error:
        log = logging.getLogger("updraft.server")
        if isinstance(error, OSError):
            error = bootstrap.unusable(settings.folders().state, error)
        # What a person can mend is one line; only an installation that is broken shows where.
        trace = isinstance(error, ImportError)
        log.error("cannot serve: %s", error, exc_info=trace)  # noqa: TRY400 - mostly no trace
        if ready is not None:
            try:
                os.write(ready, f"{error}\n".encode(errors="backslashreplace"))
            except OSError:
                return 1
        return 1
    if lock is not None:
        _become_the_new_release(lock, overrides)
    return 0


def _become_the_new_release(lock: int, overrides: dict[str, str]) -> None:
    """Start anew in the same process, from the files that are there now.

    The lock stays held: a server that the local agent starts meanwhile waits, and then leaves.
    """
    os.set_inheritable(lock, True)
    arguments = ["--lock-fd", str(lock)]
    for name, value in overrides.items():
        arguments += ["--set", f"{name}={value}"]
    os.execv(sys.executable, [sys.executable, "-I", "-m", "updraft.server", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
