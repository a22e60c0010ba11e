"""Make or restore a backup: ``python -m updraft.server.backup make|restore FILE …``.

What ``updraft admin backup`` and ``restore`` become: commands know no store, and a restore needs no
server.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from updraft import configuration, errors, settings
from updraft.server.services import backups


def main(arguments: list[str]) -> int:
    """Do it, say it, and return the exit code."""
    what, file, *flags = arguments
    folders = settings.folders()
    try:
        server = configuration.load(folders).server
        database = server.database
        folders.keep_data_in(server.data)
        if what == "make":
            made = backups.make(
                folders, database, Path(file), logs="--logs" in flags, keys="--keys" in flags
            )
            said = f"{made.jobs} jobs, {made.size_bytes} bytes, in {made.file}"
        else:
            made = backups.restore(folders, database, Path(file), force="--force" in flags)
            said = f"restored {made.jobs} jobs as of {made.created}"
            if made.replaced:
                said += f"; what was there is kept in {made.replaced}, to be removed by you"
    except errors.UpdraftError as error:
        sys.stderr.write(f"updraft: {error.message}\n")
        return 1
    sys.stdout.write(
        (json.dumps(dataclasses.asdict(made), indent=2) if "--json" in flags else said) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
