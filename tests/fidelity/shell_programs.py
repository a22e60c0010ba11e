"""Commands typed at an interactive shell's prompt: job control, and what the shell makes of how they end."""

from .actions import Action, Expect, Send
from .program import PROMPT, Program
from .terminal_programs import CTRL_BACKSLASH, CTRL_C, CTRL_D, CTRL_Z

READY = Expect(b"\r\nready\r\n")
AT_PROMPT = Expect(PROMPT)
STATUS = (Send(b"echo $?\n"), AT_PROMPT)

# Says when it has been resumed: by then it has the terminal again, as a key typed next needs.
RESUMABLE = b"""
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"resumed\\n"))
os.write(1, b"ready\\n")
while line := os.read(0, 1000):
    os.write(1, b"<%s>\\n" % line.rstrip())
"""

UNTIL_GONE = "while kill -0 %1 2>/dev/null; do :; done"

FILES = {"resumable.py": RESUMABLE}


def shell(name: str, *actions: Action, exception: str | None = None) -> Program:
    steps = (AT_PROMPT, *actions, Send(b"exit\n"))
    return Program(name, mode="shell", actions=steps, files=FILES, exception=exception)


def typed(line: str) -> Send:
    return Send(line.encode() + b"\n")


SLEEPS = typed("$RUN sh -c 'echo ready; exec sleep 1000'")
RESUMES = typed("$RUN python3 resumable.py")

PROGRAMS = (
    shell("commands-in-a-row", typed("$RUN echo one"), AT_PROMPT, typed("$RUN sh -c 'exit 3'"), AT_PROMPT, *STATUS),
    shell("ctrl-c", SLEEPS, READY, Send(CTRL_C), AT_PROMPT, *STATUS),
    shell("ctrl-backslash", SLEEPS, READY, Send(CTRL_BACKSLASH), AT_PROMPT, *STATUS),
    shell("ctrl-d", typed("$RUN sh -c 'echo ready; exec cat'"), READY, Send(CTRL_D), AT_PROMPT, *STATUS),
    shell(
        "ctrl-c-ends-a-loop",
        typed("for n in 1 2; do $RUN sh -c 'echo ready; test $0 = 2 || exec sleep 1000' $n; done"),
        READY, Send(CTRL_C), AT_PROMPT, *STATUS,
    ),
    shell(
        "ctrl-c-handled-does-not-end-a-loop",
        typed("for n in 1 2; do $RUN sh -c 'trap \"exit 3\" INT; sh -c \"echo ready; test $0 = 2 || exec cat\"' $n; done"),
        READY, Send(CTRL_C), AT_PROMPT, *STATUS,
    ),
    *(
        shell(f"{name}-as-the-shell-tells-it", typed(f"$RUN sh -c 'kill -{name} $$'"), AT_PROMPT, *STATUS)
        for name in ("TERM", "KILL", "SEGV", "INT", "PIPE")
    ),
    shell("ctrl-z-and-fg", RESUMES, READY, Send(CTRL_Z), AT_PROMPT, *STATUS, typed("jobs"), AT_PROMPT,
          typed("fg"), Expect(b"resumed\r\n"), Send(CTRL_C), AT_PROMPT, *STATUS),
    shell("ctrl-z-twice", RESUMES, READY, Send(CTRL_Z), AT_PROMPT, typed("fg"), Expect(b"resumed\r\n"),
          Send(CTRL_Z), AT_PROMPT, typed("fg"), Expect(b"resumed\r\n"), Send(CTRL_C), AT_PROMPT),
    shell("ctrl-z-and-input-after-fg", RESUMES, READY, Send(b"one\n"), Expect(b"<one>\r\n"), Send(CTRL_Z), AT_PROMPT,
          typed("fg"), Expect(b"resumed\r\n"), Send(b"two\n"), Expect(b"<two>\r\n"), Send(CTRL_D), AT_PROMPT),
    shell("ctrl-z-leaves-the-terminal-as-it-was", typed("$RUN sh -c 'stty raw isig -echo; echo ready; exec sleep 1000'"), Expect(b"\nready\n"),
          Send(CTRL_Z), AT_PROMPT, typed("stty -a"), AT_PROMPT, typed(f"kill -KILL %1; {UNTIL_GONE}"), AT_PROMPT, typed("jobs"), AT_PROMPT),
    shell("vim-suspended", typed("$RUN vim --clean -i NONE -c 'set noshowcmd' resumable.py"), Expect(b"All"), Send(CTRL_Z), AT_PROMPT, *STATUS,
          typed("stty -a"), AT_PROMPT, typed("fg"), Expect(b"All"), Send(b":q!\n"), AT_PROMPT, *STATUS, typed("stty -a"), AT_PROMPT),
    shell("ctrl-z-where-lines-are-edited", typed("set -o emacs"), AT_PROMPT, typed("bind 'set enable-bracketed-paste on'"), AT_PROMPT, RESUMES, Expect(b"\rready\r\n"), Send(CTRL_Z),
          AT_PROMPT, typed("fg"), Expect(b"resumed\r\n"), Send(CTRL_C), AT_PROMPT, *STATUS),
    shell("stops-itself", typed("$RUN sh -c 'kill -STOP $$; echo resumed'"), AT_PROMPT, *STATUS, typed("fg"), AT_PROMPT, *STATUS),
    shell("suspends-itself", typed("$RUN sh -c 'kill -TSTP $$; echo resumed'"), AT_PROMPT, *STATUS, typed("fg"), AT_PROMPT, *STATUS),
    shell("killed-while-stopped", RESUMES, READY, Send(CTRL_Z), AT_PROMPT, typed(f"kill -KILL %1; {UNTIL_GONE}; wait %1"), AT_PROMPT, *STATUS),
    shell("ended-while-stopped", RESUMES, READY, Send(CTRL_Z), AT_PROMPT, typed(f"kill %1; {UNTIL_GONE}; wait %1"), AT_PROMPT, *STATUS),
    shell("pipeline", typed("$RUN seq 3 | $RUN tac"), AT_PROMPT, *STATUS),
    shell("ctrl-c-in-a-pipeline", typed("$RUN sh -c 'echo ready; exec sleep 1000' | cat"), READY, Send(CTRL_C), AT_PROMPT,
          typed("echo ${PIPESTATUS[*]}"), AT_PROMPT),
    Program("in-place-of-the-shell", mode="shell", actions=(AT_PROMPT, typed("exec $RUN sh -c 'test -t 0; echo $?; exit 3'"))),
    Program("shell-in-a-shell", ("bash", "--noprofile", "--norc", "--noediting", "-i"), mode="pty", env={b"PS1": PROMPT}, actions=(
        AT_PROMPT, typed("sh -c 'echo ready; exec cat'"), READY, Send(CTRL_Z), AT_PROMPT, typed("jobs"), AT_PROMPT, typed("fg"),
        Expect(b"cat'\r\n"), Send(b"line\n"), Expect(b"line\r\nline\r\n"), Send(CTRL_C), AT_PROMPT, *STATUS, typed("exit 4"))),
)  # fmt: skip
