"""What exit codes mean: the one table that help and documentation show."""

from __future__ import annotations

from updraft import errors

OK = 0
FAILED_REQUEST = 1
USAGE = 2
INTERRUPTED = 130
READER_GONE = 141

AS_ITS_JOB = "urun, ubatch -f, updraft job wait, updraft attach, updraft exec"
"""The commands whose exit code is the job's."""

JOB_CODES = (
    ("0-255", "the command's own exit code"),
    ("128+N", "signal N ended the command (130: Ctrl-C, 137: killed, 143: terminated)"),
    (str(errors.EXIT_NOT_EXECUTABLE), "the command was found but could not be executed"),
    (str(errors.EXIT_NOT_FOUND), "the command was not found"),
    (str(errors.EXIT_EXPIRED), "the job EXPIRED: its --time was over"),
    (str(errors.EXIT_CANCELLED), "the job was CANCELLED"),
    (str(errors.EXIT_FAILURE), "Updraft itself failed, or the job is a FAILURE; stderr says why"),
)

OTHER_CODES = (
    (str(OK), "done"),
    (str(FAILED_REQUEST), "the request failed: not found, not in that state, no server …"),
    (str(USAGE), "the command line is wrong; nothing was done"),
    (str(errors.EXIT_REMOVED), "updraft runner run: the server has forgotten this runner"),
    (str(INTERRUPTED), "interrupted by Ctrl-C; what was followed goes on"),
    (str(READER_GONE), "nobody reads its output any more (as with | head)"),
)

NOTES = (
    "Within a task whose job has ended: 125 of urun and ubatch, 1 of updraft; stderr says so.",
    "ubatch without -f exits with 0 once the job is stored.",
    "updraft job wait with several jobs: 0 if all are ok, else the code of the first that is not.",
    "A job is ok when its state is SUCCESS and its exit code 0; SUCCESS alone says that Updraft did"
    " its part.",
)


def of_job(state: str, exit_code: int | None) -> int:
    """Return what a command whose exit code is its job's exits with."""
    match state:
        case "SUCCESS" if exit_code is not None:
            return exit_code
        case "EXPIRED":
            return errors.EXIT_EXPIRED
        case "CANCELLED":
            return errors.EXIT_CANCELLED
    return errors.EXIT_FAILURE


def text() -> str:
    """Return the table for a terminal."""
    lines = [f"{AS_ITS_JOB}:"]
    lines += [f"  {code:<6} {meaning}" for code, meaning in JOB_CODES]
    lines += ["", "Every other updraft command:"]
    lines += [f"  {code:<6} {meaning}" for code, meaning in OTHER_CODES]
    return "\n".join([*lines, "", *NOTES])
