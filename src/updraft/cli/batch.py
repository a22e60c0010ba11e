"""``ubatch``: submits a job and prints its id."""

from __future__ import annotations

import select

from updraft import bootstrap_client
from updraft.sdk.session import Session
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.cli.launch_options import LaunchOptions
    from updraft.settings import Folders


def submit(body: dict[str, Any], folders: Folders, program: str, options: LaunchOptions) -> int:
    """Submit, print the job's id alone on stdout, and follow the job if asked."""
    session = Session(body)
    session.connect(bootstrap_client.connect(folders))
    while session.job is None:
        select.select([session.socket], [session.socket] if session.wants_write else [], [])
        session.flush()
        for kind, _, _ in session.receive():
            if kind == frames.ACCEPTED:
                break
    print(session.job, flush=True)
    return 0
