"""Help, versions, completion, and how little is loaded for them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import updraft
from tests.cli.calling import Said
from updraft import errors
from updraft.cli import exit_codes
from updraft.cli.commands import ROOT
from updraft.cli.launch_options import FLAGS
from updraft.cli.lazy import LazyGroup

COMMANDS = Path(sys.executable).parent


def run(program: str, *arguments: str, **environment: str) -> Said:
    """Run a command that needs no server, and may not touch a home."""
    result = subprocess.run(
        [str(COMMANDS / program), *arguments],
        env={**os.environ, "UPDRAFT_HOME": "/nonexistent/home", **environment},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False, text=True,
    )  # fmt: skip
    return Said(result.stdout, result.stderr, result.returncode)


def paths(group: LazyGroup, *before: str) -> list[tuple[str, ...]]:
    """Return the words of every command below a group."""
    import click

    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        found.append((*before, name))
        command = group.get_command(context, name)
        if isinstance(command, LazyGroup):
            found += paths(command, *before, name)
    return found


ALL = paths(ROOT)


def test_the_commands_are_those_of_the_documentation() -> None:
    assert {" ".join(words) for words in ALL} == {
        "run", "batch", "logs", "attach", "exec", "serve", "status", "stop", "doctor", "help",
        "config", "config check", "config show", "config help",
        "completion", "simulate", "flow", "flow run", "flow show", "flow list", "flow cancel",
        "flow restore",
        "job", "job list", "job show", "job wait", "job watch", "job cancel",
        "job extend", "job rerun", "job retry",
        "pool", "pool list", "pool show", "pool create", "pool update", "pool drain",
        "pool delete", "runner", "runner join", "runner run", "runner token", "runner tokens",
        "runner tokens list", "runner tokens revoke", "runner list", "runner show", "runner drain",
        "runner upgrade", "runner remove", "runner stop",
        "login", "logout", "whoami", "profile", "profile list", "profile use", "profile remove",
        "user", "user add", "user list", "user show", "user disable", "user enable",
        "user password", "user remove", "token", "token create", "token list", "token revoke",
        "project", "project create", "project list", "project show", "project members",
        "project limits", "project archive",
        "admin", "admin audit", "admin backup", "admin restore",
        "admin wheelhouse",
    }  # fmt: skip


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        said = run("updraft", *words, flag)
        assert said.code == 0
        assert said.err == ""
        assert said.out.startswith(f"Usage: updraft {' '.join(words)} ")


def test_updraft_alone_shows_its_commands() -> None:
    said = run("updraft")

    assert said.code == 0
    assert said.out == run("updraft", "--help").out == run("updraft", "help").out
    for words in ALL:
        if len(words) == 1:
            assert f"\n  {words[0]} " in said.out
    group = run("updraft", "job")
    assert (group.code, group.out) == (2, "")
    assert "rerun" in group.err


@pytest.mark.parametrize("program", ["updraft", "urun", "ubatch"])
def test_versions(program: str) -> None:
    said = run(program, "--version")

    assert updraft.__version__ in said.out.split()[-1]
    assert (said.err, said.code) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frobnicate"], "updraft: no such command 'frobnicate'; see: updraft --help"),
        (["job", "x"], "updraft job: no such command 'x'; see: updraft job --help"),
        (["--x"], "updraft: no such option '--x'; see: updraft --help"),
        (["status", "x"], "updraft status: got unexpected extra argument (x); see: "
         "updraft status --help"),
        (["help", "x"], "updraft help: invalid value for 'TOPIC': 'x' is not 'exit-codes'; see: "
         "updraft help --help"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_code_2(arguments: list[str], line: str) -> None:
    said = run("updraft", *arguments)

    assert (said.error, said.code) == (line, 2)


# -- exit codes


def test_help_exit_codes_is_the_one_table() -> None:
    said = run("updraft", "help", "exit-codes")

    assert said.out == exit_codes.text() + "\n"
    for code in ("124", "125", "126", "127", "143", "128+N"):
        assert f"\n  {code} " in said.out


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [
        ("SUCCESS", 0, 0),
        ("SUCCESS", 3, 3),
        ("SUCCESS", 137, 137),
        ("SUCCESS", None, errors.EXIT_FAILURE),
        ("EXPIRED", 143, errors.EXIT_EXPIRED),
        ("CANCELLED", 143, errors.EXIT_CANCELLED),
        ("CANCELLED", None, errors.EXIT_CANCELLED),
        ("FAILURE", 137, errors.EXIT_FAILURE),
        ("FAILURE", None, errors.EXIT_FAILURE),
    ],
)
def test_a_job_s_exit_code(state: str, exit_code: int | None, expected: int) -> None:
    assert exit_codes.of_job(state, exit_code) == expected


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_of_their_shell(shell: str, tmp_path: Path) -> None:
    said = run("updraft", "completion", shell)

    assert (said.err, said.code) == ("", 0)
    for program in ("updraft", "urun", "ubatch"):
        assert program in said.out
    if (found := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} here to read it")
    script = tmp_path / "script"
    script.write_text(said.out)
    subprocess.run([found, "-n", str(script)], check=True, timeout=30)


def complete(*words: str) -> list[str]:
    """Return what bash would be offered for the last word."""
    said = run(
        "updraft",
        _UPDRAFT_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["updraft", *words]),
        COMP_CWORD=str(len(words)),
    )
    return [line.partition(",")[2] for line in said.out.splitlines() if line]


def test_completion_knows_commands_flags_and_values() -> None:
    assert complete("st") == ["status", "stop"]
    assert complete("job", "re") == ["retry", "rerun"]
    assert complete("job", "list", "--st") == ["--state"]
    assert complete("job", "list", "--state", "EXP") == ["expired"]
    assert complete("completion", "z") == ["zsh"]
    assert set(complete("run", "--")) == {
        name for flag in FLAGS if flag.batch is not True for name in flag.names
        if name.startswith("--")
    }  # fmt: skip
    # Ids of jobs, where there is a server; there is none, and none is started.
    assert complete("job", "show", "") == []


def test_bash_completes_urun(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("updraft", "completion", "bash").out)
    asked = f"""
        source {script}
        offered() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            "_$1_completion"; echo "${{COMPREPLY[*]}}"; }}
        offered urun --me
        offered urun --memory 2G --cp
        offered ubatch --fo
        offered urun sleep --me
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", asked], capture_output=True, text=True, timeout=30, check=True
    )

    assert result.stdout.splitlines() == ["--memory", "--cpus", "--follow", ""]


# -- what is loaded


def modules_of(code: str) -> set[str]:
    """Return the modules that are loaded after a program."""
    program = f"import json, sys; {code}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


HEAVY = {"httpx", "pydantic", "rich", "fastapi", "sqlalchemy", "asyncio", "uvicorn"}


def test_importing_updraft_loads_nothing_else() -> None:
    plain = modules_of("pass")
    assert {m for m in modules_of("import updraft") - plain if "." not in m} == {"updraft"}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        (["help", "exit-codes"], set()),
        (["job", "list", "--help"], set()),
        (["config", "help"], set()),
        (["completion", "bash"], set()),
        (["--version"], set()),
    ],
)
def test_help_is_quick_for_what_it_does_not_load(arguments: list[str], allowed: set[str]) -> None:
    loaded = modules_of(
        f"from updraft.cli.main import main; sys.argv = ['updraft']; main({arguments!r})"
    )
    assert loaded & HEAVY <= allowed


def test_version_loads_no_click() -> None:
    loaded = modules_of("from updraft.cli.main import main; main(['--version'])")
    assert "click" not in loaded


def test_a_command_that_asks_the_server_loads_no_progress_bars() -> None:
    loaded = modules_of("from updraft.cli import options; options.client(start=False)")
    assert "httpx" in loaded
    assert not any(name.startswith("rich") for name in loaded)


def test_the_client_does_without_the_server_s_parts() -> None:
    loaded = modules_of("import updraft.sdk.client")
    assert not loaded & {"fastapi", "sqlalchemy", "uvicorn", "alembic"}
    assert not any(name.startswith(("updraft.server", "updraft.store")) for name in loaded)
