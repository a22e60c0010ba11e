"""``updraft completion``."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from updraft.cli.launch_options import FLAGS, Flag

_VARIABLE = "_UPDRAFT_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command
@click.argument("shell", metavar="SHELL", type=click.Choice(_SHELLS))
def command(shell: str) -> None:
    """Print a script that completes updraft, urun and ubatch in SHELL: bash, zsh or fish.

    \b
    bash: eval "$(updraft completion bash)" in ~/.bashrc
    zsh:  eval "$(updraft completion zsh)" in ~/.zshrc, after compinit
    fish: updraft completion fish > ~/.config/fish/completions/updraft.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    script = made(click.Group("updraft"), {}, "updraft", _VARIABLE)
    # Not source(): it runs bash to look at its version.
    sys.stdout.write(script.source_template % script.source_vars() + "\n")
    for program, batch in (("urun", False), ("ubatch", True)):
        flags = [flag for flag in FLAGS if flag.batch in (None, batch)]
        sys.stdout.write(_LAUNCHERS[shell](program, flags) + "\n")


def _bash(program: str, flags: list[Flag]) -> str:
    words = " ".join(name for flag in flags for name in flag.names)
    function = f"_{program}_completion"
    return "\n".join(
        (
            f"{function}() {{",
            "    # Flags first; from the first word that is none, a command of its own.",
            "    local at word",
            "    for ((at = 1; at < COMP_CWORD; at++)); do",
            "        word=${COMP_WORDS[at]}",
            f"        case $word in {'|'.join(_with_value(flags))}) ((at++)) ;;",
            "            -*) ;;",
            '            *) declare -F _command_offset >/dev/null && _command_offset "$at"',
            "               return ;;",
            "        esac",
            "    done",
            "    word=${COMP_WORDS[COMP_CWORD]}",
            "    if [[ $word == -* ]]; then",
            f'        mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$word")',
            "    else",
            '        mapfile -t COMPREPLY < <(compgen -c -- "$word")',
            "    fi",
            "}",
            f"complete -o default -F {function} {program}",
        )
    )


def _zsh(program: str, flags: list[Flag]) -> str:
    lines = [f"_{program}_completion() {{", "    _arguments -S \\"]
    for flag in flags:
        value = "" if flag.value is None else f":{flag.value}:"
        text = flag.text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", " -")
        lines += [f"        '{name}[{text}]{value}' \\" for name in flag.names]
    lines += ["        '*:::command: _normal'", "}", f"compdef _{program}_completion {program}"]
    return "\n".join(lines)


def _fish(program: str, flags: list[Flag]) -> str:
    lines = [f"complete -c {program} -x -a '(__fish_complete_subcommand)'"]
    for flag in flags:
        names = " ".join(
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names
        )
        needs = "" if flag.value is None else " -r"
        text = flag.text.replace("'", "")
        lines.append(f"complete -c {program} {names}{needs} -d '{text}'")
    return "\n".join(lines)


def _with_value(flags: list[Flag]) -> list[str]:
    return [name for flag in flags if flag.value is not None for name in flag.names]


_LAUNCHERS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
