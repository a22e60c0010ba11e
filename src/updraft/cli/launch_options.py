"""The flags of ``urun`` and ``ubatch``, in one table: parsing, help and docs come from it.

On the launch path: parsed by hand, for click alone would double a launch's time.
"""

from __future__ import annotations

import os

from updraft import errors, quantities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Flag:
    """One flag: its names, its value's name (None: it has none) and its help."""

    def __init__(self, names: str, value: str | None, text: str, *, batch: bool | None = None):
        self.names = names.split()
        self.value = value
        self.text = text
        self.batch = batch
        """True: only of ``ubatch``; False: only of ``urun``; None: of both."""

    @property
    def key(self) -> str:
        """The long name, without dashes."""
        return self.names[-1].lstrip("-")


FLAGS = (
    Flag("-P --pool", "POOL", "where to run (default: the server's choice)"),
    Flag("--project", "PROJECT", "whose job it is, at a team's server (default: your own there)"),
    Flag("-C --directory", "DIR", "work in DIR instead of the current directory"),
    Flag("-e --env", "KEY[=VALUE]", "set a variable, or pass KEY on; repeatable, kept for a rerun"),
    Flag("-n --name", "NAME", "a name for the job"),
    Flag("-l --label", "KEY=VALUE", "a label to find the job by; repeatable"),
    Flag("--cpus", "N", "CPUs it needs, as 2 or 0.5 (default: 1; 0 with a terminal)"),
    Flag("--memory", "SIZE", "memory limit, as 512M or 2G (default: none)"),
    Flag("--gpus", "N", "GPUs it needs (default: 0)"),
    Flag("--time", "DURATION", "end it after 90s, 15m, 2h …; the exit code is then 124"),
    Flag("-N --tasks", "N", "run N tasks; each sees its UPDRAFT_TASK_INDEX, from 0"),
    Flag("--max-parallel", "K", "run at most K of the tasks at a time"),
    Flag("--prefix", None, "begin each line of output with its task's index (ubatch: with -f)"),
    Flag("--retries", "N", "try a task again up to N times"),
    Flag("--retry-on", "WHAT", "after lost, exit, oom, expired: a list (default: lost)"),
    Flag("--backoff", "DURATION", "wait so long before the first retry, twice as long each time"),
    Flag("--priority", "N", "before all with a lower one (default: 0)"),
    Flag("--not-before", "TIME", "do not start before then: 10m (from now), 2026-01-31T12:00"),
    Flag("--deadline", "TIME", "end it then, started or not; the exit code is then 124"),
    Flag("--after", "ID[/TASK]", "start once that job, or task, has ended; repeatable"),
    Flag("--after-ok", "ID[/TASK]", "… once it is ok; ID/* pairs the tasks of two arrays"),
    Flag("--after-fail", "ID[/TASK]", "… once it has ended without being ok"),
    Flag("--on-partition", "WHAT", "fence: end it where the server is out of reach; or rerun"),
    Flag("--shell", "COMMAND", "run one string by your shell instead of a command"),
    Flag("--tty", None, "give it a terminal even if stdin or stdout is none", batch=False),
    Flag("--no-tty", None, "give it pipes even if stdin and stdout are terminals", batch=False),
    Flag("-I --no-stdin", None, "leave stdin alone: the command sees an empty one", batch=False),
    Flag("--detach-keys", "KEYS", "leave it running on these keys, as ctrl-p,ctrl-q", batch=False),
    Flag(
        "--keep-alive",
        "DURATION",
        "let it outlive a lost client this long (default: 0)",
        batch=False,
    ),
    Flag("-f --follow", None, "stay and show state changes and output", batch=True),
    Flag("-q --quiet", None, "say nothing but errors"),
    Flag("-h --help", None, "show this help"),
    Flag("--version", None, "show the version"),
)

_RETRY_ON = ("lost", "exit", "oom", "expired")

_MOST_TASKS = 10_000_000
_LONGEST_BACKOFF_MS = 3_600_000
_LAST_MOMENT_NS = 1 << 62
"""As the server has them: what it would refuse is named here by its flag."""

_DETACH_HELP = "write detach keys as ctrl-p,ctrl-q or single characters, separated by commas"


class LaunchOptions:
    """What the flags said.  Fields have the flags' defaults."""

    def __init__(self) -> None:
        self.pool = ""
        self.project = ""
        self.directory: str | None = None
        self.environment: list[bytes] = []
        self.name = ""
        self.labels: dict[str, str] = {}
        self.cpus_milli: int | None = None
        self.memory_bytes = 0
        self.gpus = 0
        self.time_limit_ms: int | None = None
        self.tasks: int | None = None
        self.max_parallel: int | None = None
        self.prefix = False
        self.retries: int | None = None
        self.retry_on: list[str] | None = None
        self.backoff_ms = 0
        self.priority = 0
        self.not_before_ns: int | None = None
        self.deadline_ns: int | None = None
        self.after: list[dict[str, Any]] = []
        self.fenced = False
        self.shell: str | None = None
        self.tty: bool | None = None
        self.no_stdin = False
        self.detach_keys = b""
        self.keep_alive_ms = 0
        self.follow = False
        self.quiet = False
        self.help = False
        self.version = False
        self.command: list[str] = []


def parse(arguments: list[str], *, batch: bool) -> LaunchOptions:
    """Return the options; everything from the first non-flag word on is the command.

    Raises ``errors.BadRequest``.
    """
    options = LaunchOptions()
    flags = {name: flag for flag in FLAGS if flag.batch in (None, batch) for name in flag.names}
    at = 0
    while at < len(arguments):
        word = arguments[at]
        at += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            at -= 1
            break
        name, attached = _split(word, flags)
        flag = flags.get(name)
        if flag is None:
            raise errors.BadRequest(
                f"there is no flag {name!r}; see --help (a command of that name goes after --)"
            )
        if flag.value is None:
            if attached is not None:
                raise errors.BadRequest(f"{name} takes no value")
            _SWITCHES[flag.key](options)
            continue
        if attached is None:
            if at == len(arguments):
                raise errors.BadRequest(f"{name} needs a value: {name} {flag.value}")
            attached = arguments[at]
            at += 1
        try:
            _VALUES[flag.key](options, attached)
        except errors.BadRequest as error:
            raise errors.BadRequest(f"{name}: {error.message}") from None
    options.command = arguments[at:]
    return options


def _split(word: str, flags: dict[str, Flag]) -> tuple[str, str | None]:
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    name, rest = word[:2], word[2:]
    if rest and name in flags and flags[name].value is None:
        # -qI: several switches in one word are not worth their confusion with a command's.
        raise errors.BadRequest(f"write {name} and -{rest} as two words")
    return name, rest or None


def _environment(options: LaunchOptions, text: str) -> None:
    key, equals, value = text.partition("=")
    if not key:
        raise errors.BadRequest(f"{text!r} has no name; write it as KEY=VALUE or KEY")
    if not equals:
        if key not in os.environ:
            raise errors.BadRequest(f"{key!r} is not set here; write it as KEY=VALUE")
        value = os.environ[key]
    options.environment.append(os.fsencode(f"{key}={value}"))


def _text(text: str) -> str:
    # Names and labels are text; only the command, its directory and environment are bytes.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.BadRequest(f"{text!r} is not text; write it in UTF-8") from None
    return text


def _project(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable():
        raise errors.BadRequest(f"{text!r} is no project's name; see: updraft project list")
    return text


def _label(options: LaunchOptions, text: str) -> None:
    key, equals, value = _text(text).partition("=")
    if not key or not equals:
        raise errors.BadRequest(f"{text!r} is no label; write it as KEY=VALUE")
    options.labels[key] = value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 6:
        raise errors.BadRequest(f"{text!r} is not a count; write it as 0, 1, 2 …")
    return int(text)


def _some(text: str) -> int:
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not count:
        raise errors.BadRequest(f"{text!r} is not a count; write it as 1, 2, 3 …")
    return count


def _tasks(text: str) -> int:
    count = _some(text)
    if count > _MOST_TASKS:
        raise errors.BadRequest(f"{text} tasks are too many; a job has at most {_MOST_TASKS}")
    return count


def _priority(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 7):
        raise errors.BadRequest(f"{text!r} is no priority; write it as a number like 10 or -5")
    return int(text)


def _retry_on(text: str) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in _RETRY_ON:
            raise errors.BadRequest(f"{word!r} is none of {', '.join(_RETRY_ON)}")
    return words


def _moment(text: str) -> int:
    """Read a time, or how long from now it is, as nanoseconds of UNIX time."""
    from contextlib import suppress  # noqa: PLC0415 - not on every launch's path
    from datetime import datetime  # noqa: PLC0415
    from time import time_ns  # noqa: PLC0415

    moment: int | None = None
    try:
        moment = int(datetime.fromisoformat(text).astimezone().timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        with suppress(errors.BadRequest):
            moment = time_ns() + int(quantities.parse_duration(text) * 1e9)
    if moment is None:
        raise errors.BadRequest(
            f"{text!r} is no time; write it like 10m (from now) or 2026-01-31T12:00"
        )
    if moment > _LAST_MOMENT_NS:
        raise errors.BadRequest(f"{text!r} is too far away; choose an earlier time")
    return max(moment, 1)


def _after(on: str) -> Callable[[LaunchOptions, str], None]:
    def add(options: LaunchOptions, text: str) -> None:
        job, slash, index = text.partition("/")
        task: int | str | None = None
        if index == "*":
            task = index
        elif slash:
            if not (index.isascii() and index.isdecimal() and len(index) < 9):
                raise errors.BadRequest(f"{text!r}: write a task as ID/INDEX, or all as ID/*")
            task = int(index)
        if not job.isascii() or not job.isalnum():
            raise errors.BadRequest(f"{text!r} is no job's id; see: updraft job list")
        options.after.append({"job": job, "task": task, "on": on})

    return add


def _milliseconds(text: str) -> int:
    return int(quantities.parse_duration(text) * 1000)


def _backoff(text: str) -> int:
    wait = _milliseconds(text)
    if wait > _LONGEST_BACKOFF_MS:
        raise errors.BadRequest(f"{text!r} is longer than 1h; the wait doubles with each retry")
    return wait


def _time_limit(text: str) -> int:
    limit = _milliseconds(text)
    if limit <= 0:
        raise errors.BadRequest("a time limit is more than nothing; write it like 90s or 2h")
    return limit


def _on_partition(text: str) -> bool:
    if text not in ("rerun", "fence"):
        raise errors.BadRequest(f"{text!r} is neither rerun nor fence")
    return text == "fence"


def _keys(text: str) -> bytes:
    keys = b""
    for part in text.split(","):
        letter = part.removeprefix("ctrl-").upper()
        if len(part) == 1:
            keys += os.fsencode(part)
        elif part.startswith("ctrl-") and len(letter) == 1 and "@" <= letter < "`":
            keys += bytes([ord(letter) & 0x1F])
        else:
            raise errors.BadRequest(f"{part!r} is no key; {_DETACH_HELP}")
    return keys


def _setter(field: str, read: Callable[[str], Any]) -> Callable[[LaunchOptions, str], None]:
    def assign(options: LaunchOptions, text: str) -> None:
        setattr(options, field, read(text))

    return assign


def _switch(field: str, value: bool = True) -> Callable[[LaunchOptions], None]:
    def assign(options: LaunchOptions) -> None:
        setattr(options, field, value)

    return assign


_VALUES: dict[str, Callable[[LaunchOptions, str], None]] = {
    "pool": _setter("pool", _text),
    "project": _setter("project", _project),
    "directory": _setter("directory", str),
    "env": _environment,
    "name": _setter("name", _text),
    "label": _label,
    "cpus": _setter("cpus_milli", quantities.parse_cpus),
    "memory": _setter("memory_bytes", quantities.parse_bytes),
    "gpus": _setter("gpus", _count),
    "time": _setter("time_limit_ms", _time_limit),
    "tasks": _setter("tasks", _tasks),
    "max-parallel": _setter("max_parallel", _some),
    "retries": _setter("retries", _count),
    "retry-on": _setter("retry_on", _retry_on),
    "backoff": _setter("backoff_ms", _backoff),
    "priority": _setter("priority", _priority),
    "not-before": _setter("not_before_ns", _moment),
    "deadline": _setter("deadline_ns", _moment),
    "after": _after("any"),
    "after-ok": _after("ok"),
    "after-fail": _after("fail"),
    "shell": _setter("shell", str),
    "on-partition": _setter("fenced", _on_partition),
    "detach-keys": _setter("detach_keys", _keys),
    "keep-alive": _setter("keep_alive_ms", _milliseconds),
}

_SWITCHES: dict[str, Callable[[LaunchOptions], None]] = {
    "tty": _switch("tty"),
    "no-tty": _switch("tty", False),
    "no-stdin": _switch("no_stdin"),
    "follow": _switch("follow"),
    "prefix": _switch("prefix"),
    "quiet": _switch("quiet"),
    "help": _switch("help"),
    "version": _switch("version"),
}


def help_text(program: str, *, batch: bool) -> str:
    """Return the help of ``urun`` or ``ubatch``."""
    what = (
        "Run COMMAND in the background and print its job's id."
        if batch
        else "Run COMMAND as if it were local: its output and exit code, your terminal and signals."
    )
    lines = [f"Usage: {program} [flags] COMMAND [ARG…]", "", what, "", "Flags:"]
    for flag in FLAGS:
        if flag.batch not in (None, batch):
            continue
        names = ", ".join(flag.names) if len(flag.names) > 1 else "    " + flag.names[0]
        left = f"  {names} {flag.value or ''}".rstrip()
        lines.append(f"{left:<32}{' ' if len(left) > 31 else ''}{flag.text}")
    lines += [
        "",
        "Everything after the first word that is no flag belongs to the command; -- works too.",
        "Exit code: the command's; 124 expired, 125 Updraft failed, 143 cancelled"
        " (updraft help exit-codes).",
    ]
    return "\n".join(lines)
