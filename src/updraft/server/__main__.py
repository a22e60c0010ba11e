"""Start the server of this machine.

``python -m updraft.server [--ready-fd N] [--set KEY=VALUE]…``
"""

from __future__ import annotations

import logging
import os
import sys

from updraft import bootstrap, errors, settings


def main(arguments: list[str]) -> int:
    """Serve until told to stop; tell through the ready descriptor when, or why not."""
    ready, overrides = None, {}
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option == "--ready-fd":
            ready = int(value)
        else:
            name, _, setting = value.partition("=")
            overrides[name] = setting
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server %(levelname)s %(message)s")
    os.umask(0o077)
    try:
        import uvloop  # noqa: PLC0415 - what fails here is told through the ready descriptor

        from updraft.server.app import Server  # noqa: PLC0415

        uvloop.run(Server(settings.folders(), overrides).run(ready))
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
