"""``updraft job …``."""

from __future__ import annotations

from updraft.cli.lazy import LazyGroup

command = LazyGroup(
    "job",
    "Look at jobs, and change them.  Ids may be cut short as long as they are unique.",
    {
        "list": ("updraft.cli.job_list:command", "list jobs that have not ended or all"),
        "show": ("updraft.cli.job_show:command", "show all about a job"),
        "wait": ("updraft.cli.job_wait:command", "wait for jobs and exit with their exit code"),
        "watch": ("updraft.cli.job_watch:command", "follow a job's state changes to its end"),
        "cancel": ("updraft.cli.job_cancel:command", "end jobs: SIGTERM and after a grace SIGKILL"),
        "extend": ("updraft.cli.job_extend:command", "add to a job's time limit"),
        "retry": ("updraft.cli.job_retry:command", "queue an ended task of an array anew"),
        "rerun": ("updraft.cli.job_rerun:command", "run a job's command again as a new job"),
    },
)
