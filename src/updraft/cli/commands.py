"""The tree of ``updraft`` commands.  Each is loaded when it is called, from a file of its own."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from updraft import errors
from updraft.cli import exit_codes
from updraft.cli.lazy import LazyGroup
from updraft.cli.output import speech


class _EndedEarly(Exception):
    """Ctrl-C, or a reader that has seen enough; click would end both in a way of its own."""


class _Root(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise _EndedEarly from error


ROOT = _Root(
    "updraft",
    "Run any command on any pool of compute as if it were local.",
    {
        "run": ("updraft.cli.launch_commands:run", "run a command as if it were local (urun)"),
        "batch": ("updraft.cli.launch_commands:batch", "leave a command running (ubatch)"),
        "job": ("updraft.cli.job:command", "look at jobs and change them"),
        "flow": ("updraft.cli.flow:command", "run graphs of jobs and look after them"),
        "logs": ("updraft.cli.logs:command", "show what a job wrote"),
        "attach": ("updraft.cli.attach:command", "take over a running job's input and output"),
        "exec": ("updraft.cli.exec:command", "run a second process beside a running job"),
        "pool": ("updraft.cli.pool:command", "look at pools and change them"),
        "runner": ("updraft.cli.runner:command", "make machines runners, and look after them"),
        "login": ("updraft.cli.login:command", "sign in to a server elsewhere"),
        "logout": ("updraft.cli.logout:command", "end the session with a server elsewhere"),
        "whoami": ("updraft.cli.whoami:command", "show who you are to the server"),
        "profile": ("updraft.cli.profile:command", "choose between servers"),
        "project": ("updraft.cli.project:command", "look at projects and change them"),
        "token": ("updraft.cli.token:command", "make tokens for programs and revoke them"),
        "user": ("updraft.cli.user:command", "look at users and change them"),
        "admin": ("updraft.cli.admin:command", "administer a server"),
        "simulate": ("updraft.cli.simulate:command", "run a trace of jobs on virtual time"),
        "serve": ("updraft.cli.serve:command", "run the server in the foreground"),
        "status": ("updraft.cli.status:command", "show server and runner and where things are"),
        "stop": ("updraft.cli.stop:command", "stop the server and its runner"),
        "doctor": (
            "updraft.cli.doctor:command",
            "check what is installed, reachable and allowed",
        ),
        "config": ("updraft.cli.config:command", "check, show and explain what is configured"),
        "help": ("updraft.cli.help:command", "explain exit codes, or show what commands there are"),
        "completion": (
            "updraft.cli.completion:command",
            "print a completion script for your shell",
        ),
    },
)


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code; whatever goes wrong is one line on stderr."""
    speech.prepare_output()
    try:
        code: Any = ROOT.main(arguments or ["--help"], prog_name="updraft", standalone_mode=False)
    except NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return exit_codes.USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "updraft"
        said = error.format_message().rstrip(".")
        speech.say(f"{said[:1].lower()}{said[1:]}; see: {path} --help", path)
        return exit_codes.USAGE
    except click.ClickException as error:
        speech.say(error.format_message())
        return exit_codes.FAILED_REQUEST
    except errors.UpdraftError as error:
        speech.say(error.message)
        return exit_codes.FAILED_REQUEST
    except _EndedEarly as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return exit_codes.INTERRUPTED
        # Nothing of what is still buffered is to fail again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exit_codes.READER_GONE
    return code if isinstance(code, int) else exit_codes.OK
