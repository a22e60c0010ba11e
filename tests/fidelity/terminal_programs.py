"""Programs on a terminal: what they see of it, what is typed at it, and what is left of it."""

import signal

from .actions import Action, Expect, Resize, Send, Signal
from .inherited_programs import SHOW_SIGNALS
from .program import Program

CTRL_C = b"\x03"
CTRL_D = b"\x04"
CTRL_Q = b"\x11"
CTRL_S = b"\x13"
CTRL_Z = b"\x1a"
CTRL_BACKSLASH = b"\x1c"
ESCAPE = b"\x1b"

LEAVES_IT_CHANGED = (
    "a command's changes to its terminal's modes end with it: the client restores its own"
)
NEEDS_BOTH = "only when standard input and output are both terminals does the command get one"
NO_TERMINAL = (
    "without a terminal for both input and output the command's session has none, so no /dev/tty"
)


def sh(
    name: str,
    script: str,
    *actions: Action,
    typed: bytes = b"",
    size: tuple[int, int] = (24, 80),
    exception: str | None = None,
) -> Program:
    return Program(
        name,
        ("sh", "-c", script),
        mode="pty",
        actions=actions,
        typed=typed,
        size=size,
        exception=exception,
    )


def python(name: str, code: str, *actions: Action) -> Program:
    return Program(name, ("python3", "-c", code), mode="pty", actions=actions)


def around(name: str, script: str, *actions: Action, exception: str | None = None) -> Program:
    return Program(name, around=script, mode="pty", actions=actions, exception=exception)


SHOW_KEYS = """
import os, termios, tty
before = termios.tcgetattr(0)
tty.setraw(0)
os.write(1, b"ready")
seen = b""
while not seen.endswith(b"END"):
    seen += os.read(0, 1000)
termios.tcsetattr(0, termios.TCSADRAIN, before)
print(seen)
"""

SHOW_SIZES = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
print(os.get_terminal_size(), flush=True)
for _ in range(3):
    signal.sigwait({signal.SIGWINCH})
    print(os.get_terminal_size(), flush=True)
    os.system("stty size")
"""

INTERRUPTED = """
import time
try:
    print("ready", flush=True)
    while True:  # a signal just before one sleep begins does not cut it short: Python looks at it after the sleep
        time.sleep(0.1)
except KeyboardInterrupt:
    print("interrupted")
"""

CURSES = """
import curses
def main(screen):
    screen.addstr(2, 5, "press keys")
    while (key := screen.getkey()) != "q":
        screen.addstr(4, 5, f"{key!r} on {curses.LINES} x {curses.COLS}   ")
curses.wrapper(main)
"""

# Ends when something has been typed, and leaves it for others to read.
UNTIL_TYPED = (
    """python3 -c 'import select; print("ready", flush=True); select.select([0], [], [])'"""
)

LINES = b"".join(b"line %d\n" % n for n in range(1, 1000))

SEEN = (
    sh("is-a-terminal", "for fd in 0 1 2; do test -t $fd; echo $?; done"),
    sh("terminal-modes", "stty -a"),
    sh("terminal-size", "stty size; tput cols; tput lines", size=(50, 133)),
    sh("terminal-type", 'echo "$TERM"; tput colors'),
    python(
        "terminal-size-in-python",
        "import os, shutil; print(os.get_terminal_size(0), shutil.get_terminal_size())",
    ),
    python(
        "terminal-is-not-seekable",
        "import sys; print(sys.stdin.seekable(), sys.stdout.seekable(), sys.stdout.line_buffering)",
    ),
    around("own-modes-are-passed-on", "stty intr ^X erase ^H -ixon iutf8 -echoctl; $RUN stty -a"),
    around(
        "noncanonical-modes-are-passed-on",
        "stty -icanon min 3 time 1 -echo; $RUN stty -a; stty sane",
    ),
    sh(
        "terminal-by-name",
        'echo to the terminal >/dev/tty; read -r x </dev/tty; echo "$x"',
        Expect(b"minal"),
        Send(b"back\n"),
    ),
    sh("foreground", 'test "$(ps -o pgid= -p $$)" = "$(ps -o tpgid= -p $$)"; echo $?'),
    sh("no-other-descriptors", "ls /proc/self/fd"),
    sh("signal-dispositions", SHOW_SIGNALS),
    *(sh(f"exits-with-{code}", f"exit {code}") for code in (0, 3, 127, 255)),
    *(
        sh(f"killed-by-{name}", f"echo bye; kill -{name} $$")
        for name in ("KILL", "TERM", "INT", "HUP")
    ),
    around("command-not-found", "$RUN no-such-command 2>/dev/null; echo $?"),
)

SHOWN = (
    sh("lines-end-in-crlf", "printf 'a\\nb\\r\\nc\\n\\nno newline'"),
    sh("errors-to-the-terminal", "echo out; echo err >&2; echo out again"),
    python("all-byte-values-out", "import os; os.write(1, bytes(range(256)))"),
    sh("utf-8-out", "printf 'é☃ \\360\\237\\232\\200 \\377\\376\\n'"),
    sh("output-modes-obeyed", "stty -opost; printf 'a\\nb\\n'; stty opost; printf 'c\\n'"),
    sh("flood", "seq 1 100000"),
    sh("flood-and-exit", "seq 1 20000; exit 5"),
    sh("alternate-screen", "tput smcup; tput clear; printf hello; tput rmcup"),
)

TYPED = (
    sh("echo", "echo ready; cat", Expect(b"ready\r\n"), Send(b"hello\n"), Expect(b"hello\r\nhello\r\n"),
       Send(b"again\r"), Expect(b"again\r\nagain\r\n"), Send(CTRL_D)),
    sh("line-editing", "echo ready; cat", Expect(b"ready\r\n"),
       Send(b"ab\x7fc\n"), Expect(b"ac\r\n"), Send(b"wrong\x15right\n"), Expect(b"right\r\nright\r\n"),
       Send(b"two words\x17one\n"), Expect(b"two one\r\n"), Send(b"\x16\x03\x16\x1b\n"), Expect(b"\x03\x1b\r\n"), Send(CTRL_D)),
    sh("end-of-file-mid-line", "echo ready; cat; echo; echo ended", Expect(b"ready\r\n"),
       Send(b"part" + CTRL_D), Expect(b"partpart"), Send(CTRL_D), Expect(b"ended")),
    sh("end-of-file-is-not-the-last-word", "echo ready; cat; echo more?; cat", Expect(b"ready\r\n"),
       Send(b"one\n"), Expect(b"one\r\none\r\n"), Send(CTRL_D), Expect(b"more?\r\n"), Send(b"two\n" + CTRL_D)),
    sh("prompt", "printf 'name? '; read -r name; echo \"hello $name\"", Expect(b"name? "), Send(b"Ada\n")),
    sh("password", "stty -echo; printf 'Password: '; read -r x; stty echo; echo; echo \"got $x\"",
       Expect(b"Password: "), Send(b"secret\n")),
    Program("password-in-bash", ("bash", "-c", "read -rsp 'Password: ' x; echo; echo \"got $x\""), mode="pty",
            actions=(Expect(b"Password: "), Send(b"secret\n"))),
    python("password-in-python", "import getpass; print(repr(getpass.getpass()))", Expect(b"Password: "), Send(b"secret\n")),
    python("input-in-python", "print(repr(input('name? ')))", Expect(b"name? "), Send(b"Ada\n")),
    python("raw-keys", SHOW_KEYS, Expect(b"ready"), Send(b"a"), Send(b"\x1b[A\x1bOP\x1b[1;5C"), Send(b"\r\n\t\x7f"), Send(b"END")),
    python("raw-all-byte-values", SHOW_KEYS, Expect(b"ready"), Send(bytes(range(256)) * 3), Send(b"END")),
    python("raw-escape-alone", SHOW_KEYS, Expect(b"ready"), Send(ESCAPE), Send(b"END")),
    python("raw-tilde-and-detach-keys", SHOW_KEYS, Expect(b"ready"), Send(b"\r~.\r~?\x10\x11\x1d"), Send(b"END")),
    python("bracketed-paste", SHOW_KEYS, Expect(b"ready"), Send(b"\x1b[200~two\nlines\t\x1b[201~"), Send(b"END")),
    python("raw-paste-of-much", SHOW_KEYS, Expect(b"ready"), Send(b"0123456789" * 20_000), Send(b"END")),
    sh("key-by-key", "stty -icanon -echo; printf ready; head -c 3 | od -c; stty icanon echo", Expect(b"ready"),
       Send(b"a"), Send(b"\x00"), Send(b"\xff")),
    sh("utf-8-typed", "printf ready; head -n 1 | od -c", Expect(b"ready"), Send("é☃🚀\n".encode())),
    sh("invalid-utf-8-typed", "printf ready; head -n 1 | od -c", Expect(b"ready"), Send(b"\xff\xfe\xc3(\n")),
    around("utf-8-erased-as-one", "stty iutf8; $RUN sh -c 'printf ready; head -n 1 | od -c'",
           Expect(b"ready"), Send("aé☃\x7f\x7fb\n".encode())),
    sh("long-line", "stty -echo; printf ready; head -n 1 | wc -c; stty echo", Expect(b"ready"), Send(b"x" * 4000 + b"\n")),
    sh("line-too-long", "stty -echo; printf ready; head -n 1 | wc -c; stty echo", Expect(b"ready"), Send(b"x" * 4095), Send(b"y" * 1000 + b"\n")),
    sh("typed-ahead", "printf ready; head -n 1 >first; cat >rest; echo ended", Expect(b"ready"), Send(b"one\ntwo\n"),
       Expect(b"two\r\n"), Send(CTRL_D), Expect(b"ended")),
    around("typed-before-the-start", f"stty -echo; {UNTIL_TYPED}; $RUN sh -c 'read -r x; echo \"got $x\"'; stty echo",
           Expect(b"ready"), Send(b"early\n")),
    sh("stop-and-start-output", "printf ready; read -r x; echo \"got $x\"; echo more", Expect(b"ready"),
       Send(CTRL_S), Send(b"line\n"), Send(CTRL_Q)),
)  # fmt: skip

SIGNALLED = (
    sh("ctrl-c", "echo ready; exec sleep 1000", Expect(b"ready\r\n"), Send(CTRL_C)),
    sh("ctrl-c-trapped", "trap 'echo trapped; exit 7' INT; sh -c 'echo ready; exec cat'; echo not reached",
       Expect(b"ready\r\n"), Send(CTRL_C)),
    python("ctrl-c-in-python", INTERRUPTED, Expect(b"ready\r\n"), Send(CTRL_C)),
    sh("ctrl-c-drops-the-line", "trap : INT; sh -c 'echo ready; exec cat'; echo next; cat", Expect(b"ready\r\n"),
       Send(b"half" + CTRL_C), Expect(b"next\r\n"), Send(b"whole\n"), Expect(b"whole\r\nwhole\r\n"), Send(CTRL_D)),
    sh("ctrl-c-turned-off", "stty -isig; echo ready; head -n 1 | od -c; stty isig", Expect(b"ready\r\n"), Send(CTRL_C + CTRL_Z + b"\n")),
    sh("ctrl-backslash", "echo ready; exec sleep 1000", Expect(b"ready\r\n"), Send(CTRL_BACKSLASH)),
    sh("ctrl-backslash-trapped", "trap 'echo trapped; exit 7' QUIT; sh -c 'echo ready; exec cat'", Expect(b"ready\r\n"), Send(CTRL_BACKSLASH)),
    # Whether bash says "Done" of a job is chance, so it may not speak.
    around("background", "set -m; exec 3>&2 2>/dev/null; $RUN sh -c 'echo done >file' 2>&3 & wait; cat file"),
    around("background-shows-output", "set -m; exec 3>&2 2>/dev/null; $RUN sh -c 'echo one; echo two' 2>&3 & wait"),
    # Nobody is there to resume it: the session's leader can't be stopped from its terminal.
    sh("ctrl-z-without-a-shell", "echo ready; read -r x; echo \"got $x\"", Expect(b"ready\r\n"), Send(CTRL_Z), Expect(b"^Z"), Send(b"on\n")),
    *(
        sh(f"{number.name}-by-default", "stty raw -echo; echo ready; exec sleep 1000", Expect(b"ready"), Signal(number),
           exception=LEAVES_IT_CHANGED)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    ),
    *(
        sh(f"{number.name}-trapped", f"trap 'echo trapped; exit 7' {number}; sh -c 'echo ready; exec cat'",
           Expect(b"ready\r\n"), Signal(number))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
    ),
    python("resize", SHOW_SIZES, Expect(b"80"), Resize(40, 100), Expect(b"40 100"), Resize(2, 3), Expect(b"2 3"),
           Resize(24, 80), Expect(b"24")),
)  # fmt: skip

REDIRECTED = (
    around("errors-to-a-file", "$RUN sh -c 'for fd in 0 1 2; do test -t $fd; echo $?; done; echo err >&2' 2>err"),
    around("errors-to-a-pipe", "{ $RUN sh -c 'echo out; echo err >&2; test -t 2; echo $?' 2>&3 | cat; } 3>err"),
    around("input-redirected", "echo in | $RUN sh -c 'cat; echo out; echo err >&2'"),
    around("output-redirected", "$RUN sh -c 'read -r x; echo \"got $x\"; echo asked >&2' >out; cat out", Send(b"line\n")),
    around("into-a-pager-like-filter", "$RUN cat | tr a-z A-Z", Send(b"abc\n"), Expect(b"ABC\r\n"), Send(CTRL_D)),
    around("is-a-terminal-with-input-redirected", "$RUN sh -c 'test -t 1; echo $?' </dev/null", exception=NEEDS_BOTH),
    around("is-a-terminal-with-output-redirected", "$RUN sh -c 'test -t 0; echo $?' | cat", exception=NEEDS_BOTH),
    around("terminal-by-name-with-input-redirected", "echo in | $RUN sh -c 'cat >/dev/tty'", exception=NO_TERMINAL),
    around("password-with-output-redirected", "$RUN python3 -c 'import getpass; print(getpass.getpass())' | cat",
           Expect(b"Password: "), Send(b"secret\n"), exception=NO_TERMINAL),
)  # fmt: skip

LEFT = (
    sh("modes-left-changed", "stty -echo intr ^X", exception=LEAVES_IT_CHANGED),
    sh("raw-modes-left", "stty raw -echo; exit 3", exception=LEAVES_IT_CHANGED),
    sh("size-left-changed", "stty rows 30 cols 90; stty size", exception=LEAVES_IT_CHANGED),
    around("input-left-unread", f"$RUN {UNTIL_TYPED}; read -rt 0; echo $?", Expect(b"ready"), Send(b"for the next\n"),
           exception="what is typed while a command runs goes to it, also when it ends without reading it"),
    sh("typed-before-the-start-is-echoed-once", "echo ready; cat", Expect(b"ready\r\n"), Send(CTRL_D), typed=b"early\n",
       exception="what is typed before the command starts is echoed by both terminals, as by ssh"),
)  # fmt: skip

FULL_SCREEN = (
    Program("curses", ("python3", "-c", CURSES), mode="pty", actions=(
        Expect(b"press keys"), Send(b"a"), Expect(b"'a'"), Send(b"\x1bOA"), Expect(b"KEY_UP"), Send(b"q"))),
    Program("less", ("less", "text"), mode="pty", files={"text": LINES}, actions=(
        Expect(b"text"), Send(b" "), Expect(b"line 46"), Send(b"/line 300\n"), Expect(b"line 322"),
        Send(b"G"), Expect(b"(END)"), Send(b"q"))),
    Program("vim", ("vim", "--clean", "-i", "NONE", "-c", "set noshowcmd", "text"), mode="pty", files={"text": LINES}, actions=(
        Expect(b"Top"), Send(b"G"), Expect(b"Bot"), Send(b"o"), Expect(b"INSERT"), Send(b"new"), Expect(b"new"),
        Send(ESCAPE), Expect(b"1000,3"), Send(b":wq\n"))),
)  # fmt: skip

PROGRAMS = (*SEEN, *SHOWN, *TYPED, *SIGNALLED, *REDIRECTED, *LEFT, *FULL_SCREEN)
