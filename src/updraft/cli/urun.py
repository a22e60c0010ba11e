"""``urun`` and ``ubatch``: run a command as if it were local, or leave it running.

On the launch path: imports only what the import-set test allows.
"""

from __future__ import annotations

import os
import sys

import updraft
from updraft import errors
from updraft.c_modules import signal
from updraft.cli import attached, launch_options
from updraft.cli.terminal import Terminal
from updraft.sdk.session import Session
from updraft.sdk.submission import environment_block, pipes, submission
from updraft.sdk.ways import find_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.sdk.ways import Way

_BATCH_RETRIES = 2


def main(arguments: list[str] | None = None, program: str = "urun") -> int:
    """Run ``urun``; ends the process with the command's exit code."""
    closed = attached.open_standard_descriptors()
    attached.flush_and_exit(_main(_arguments(arguments), program, closed, batch=False))
    return 0


def main_batch(arguments: list[str] | None = None, program: str = "ubatch") -> int:
    """Run ``ubatch``; ends the process with 0, or with the command's exit code when following."""
    closed = attached.open_standard_descriptors()
    attached.flush_and_exit(_main(_arguments(arguments), program, closed, batch=True))
    return 0


def _arguments(arguments: list[str] | None) -> list[str]:
    return sys.argv[1:] if arguments is None else arguments


def _main(arguments: list[str], program: str, closed: list[int], *, batch: bool) -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no error to be traced
    try:
        options = launch_options.parse(arguments, batch=batch)
        if options.help:
            print(launch_options.help_text(program, batch=batch))
            return 0
        if options.version:
            print(f"{program} (Updraft) {updraft.__version__}")
            return 0
        if batch:
            return _batch(options, program)
        return _run(options, program, closed)
    except errors.UpdraftError as error:
        sys.stderr.write(f"{program}: {error.message}\n")
        return error.exit_code


def _run(options: launch_options.LaunchOptions, program: str, closed: list[int]) -> int:
    if options.tasks is not None:
        return _array(options, program)
    tty = options.tty
    if tty is None:
        tty = os.isatty(0) and os.isatty(1)
    say = None if options.quiet else lambda line: attached.say(program, line)
    way = find_way(say, project=options.project)
    body = _submission(options, way, program, attached=True)
    body["closed_fds"] = closed
    body["pipes"] = pipes(way.machine)
    body["one_output"] = not tty and attached.is_one_output()
    if tty:
        terminal = Terminal(0 if os.isatty(0) else 1)
        rows, columns = terminal.size()
        body["tty"] = {
            "rows": rows,
            "columns": columns,
            "attributes": terminal.attributes(),
            "stderr": options.tty is True or os.isatty(2),
        }
        if options.cpus_milli is None:
            body["cpus_milli"] = 0  # an open shell blocks nobody
    run = attached.Attached(
        Session(body, way.credentials),
        way,
        program,
        tty=tty and os.isatty(0),
        quiet=options.quiet,
    )
    if options.no_stdin:
        body["stdin"] = tty
        run.without_input()
    run.detach_on(options.detach_keys)
    return run.run()


def _array(options: launch_options.LaunchOptions, program: str) -> int:
    from updraft.cli import array, batch  # noqa: PLC0415 - not on a single command's path

    if options.tty or options.detach_keys:
        flag = "--tty" if options.tty else "--detach-keys"
        raise errors.BadRequest(f"{flag} is about one task: those of -N have no terminal")
    talk = batch.Talk(program, quiet=options.quiet)
    way = find_way(talk.say, project=options.project)
    body = _submission(options, way, program, attached=True)
    body["stdin"] = False
    return array.run(body, way, talk, prefix=options.prefix)


def _batch(options: launch_options.LaunchOptions, program: str) -> int:
    from updraft.cli import batch  # noqa: PLC0415 - not on urun's path

    if options.prefix and not options.follow:
        raise errors.BadRequest("--prefix is about the output; to see it here, add -f")
    talk = batch.Talk(program, quiet=options.quiet)
    if options.retries is None:
        options.retries = _BATCH_RETRIES
    way = find_way(talk.say, project=options.project)
    body = _submission(options, way, program, attached=False)
    if options.tasks is not None and options.follow:
        from updraft.cli import array  # noqa: PLC0415

        return array.submit(body, way, talk, prefix=options.prefix)
    return batch.submit(body, way, talk, follow=options.follow)


def _submission(
    options: launch_options.LaunchOptions, way: Way, program: str, *, attached: bool
) -> dict[str, Any]:
    if options.shell is not None:
        if options.command:
            raise errors.BadRequest("--shell runs one string; give either it or a command")
        argv = [os.environ.get("SHELL") or "/bin/sh", "-c", options.shell]
    else:
        argv = options.command
    if not argv:
        raise errors.BadRequest(f"there is no command to run; give one, as in: {program} hostname")
    _check_policy(options)
    body = submission([os.fsencode(word) for word in argv], attached=attached)
    environment = list(options.environment)
    if options.directory is not None:
        directory = os.path.abspath(options.directory)
        if not way.machine and not os.path.isdir(directory):  # elsewhere, only the runner knows
            raise errors.BadRequest(f"--directory: there is no directory {options.directory!r}")
        body["directory"] = os.fsencode(directory)
        environment.append(b"PWD=" + os.fsencode(directory))
    elif way.machine:
        body["fallback_directory"] = True
    body.update(
        environment=environment_block(environment),
        set_environment=options.environment,
        pool=options.pool,
        name=options.name,
        labels=options.labels,
        memory_bytes=options.memory_bytes,
        gpus=options.gpus,
        time_limit_ms=options.time_limit_ms,
        retries=options.retries or 0,
        fenced=options.fenced,
        keep_alive_ms=options.keep_alive_ms,
    )
    if options.cpus_milli is not None:
        body["cpus_milli"] = options.cpus_milli
    _add_policy(body, options)
    return body


def _add_policy(body: dict[str, Any], options: launch_options.LaunchOptions) -> None:
    """Say how the job is to be treated, where that is not as usual."""
    for name in ("priority", "backoff_ms", "retry_on", "not_before_ns", "deadline_ns", "after"):
        if value := getattr(options, name):
            body[name] = value
    if options.tasks is not None:
        body["tasks"] = {
            "kind": "array",
            "count": options.tasks,
            "max_parallel": options.max_parallel,
        }


def _check_policy(options: launch_options.LaunchOptions) -> None:
    """Refuse flags that say nothing without another one.  Raises ``errors.BadRequest``."""
    if options.tasks is None and options.max_parallel is not None:
        raise errors.BadRequest("--max-parallel is about several tasks; say how many with -N")
    if options.tasks is None and options.prefix:
        raise errors.BadRequest("--prefix is about several tasks; say how many with -N")
    if not options.retries and (options.retry_on or options.backoff_ms):
        flag = "--retry-on" if options.retry_on else "--backoff"
        raise errors.BadRequest(f"{flag} is about retries; say how many with --retries")
