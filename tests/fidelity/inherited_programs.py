"""Programs about what a process is born with: environment, directory, limits, signals; and signals sent."""

import signal

from .actions import Expect, Send, Signal
from .pipe_programs import argv, around, python, sh
from .program import Program

TO_THE_GROUP = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

SHOW_ENVIRONMENT = """
import os
for name, value in sorted(os.environb.items()):
    if name not in (b"UPDRAFT_JOB_ID", b"UPDRAFT_ATTEMPT", b"UPDRAFT_URL", b"UPDRAFT_TOKEN"):
        print(name, value)
"""

WAIT_FOR_SIGNALS = """
import signal
wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
while (number := signal.sigwait(wanted)) != signal.SIGTERM:
    print(signal.Signals(number).name, flush=True)
print("done", flush=True)
raise SystemExit(9)
"""

# Of its own shell. Not of signals 32 and 33: they are the C library's, which lets nobody else set
# them, so that what an old ancestor ignored (GNU make's spawning does) comes through to one side only.
SHOW_SIGNALS = """
while read -r name mask _; do
    case $name in
        Sig[BIC]*|ShdPnd:) printf "%s %x\\n" $name $((0x$mask & ~0x180000000)) ;;
    esac
done </proc/self/status
"""

ENVIRONMENT = (
    Program(
        "environment-unchanged",
        ("python3", "-c", SHOW_ENVIRONMENT),
        env={
            b"EMPTY": b"",
            b"LINES_": b"one\ntwo\n",
            b"NOT_UTF8": b"\xff\xfe\x80",
            b"EQUALS": b"=a=b=",
            b"SPACES": b"  x  ",
            b"UNICODE": "é☃".encode(),
            b"odd-name.with%signs": b"1",
            b"BASH_FUNC_hello%%": b"() {  echo hello\n}",
            b"LARGE": b"x" * 100_000,
        },
    ),
    around(
        "no-other-variables",
        "$RUN sh -c 'env | grep -c ^UPDRAFT_'",
        exception="UPDRAFT_JOB_ID and others tell a command that it is a job, and of which server",
    ),
    around("variable-for-one-command", "GREETING='hi  there' $RUN sh -c 'echo \"$GREETING\"'"),
    around(
        "environment-of-nothing-but-where-urun-finds-its-server",
        'env -i UPDRAFT_HOME="$UPDRAFT_HOME" $RUN /usr/bin/env '
        "| grep -v ^UPDRAFT_ || echo nothing else",
    ),
    around("variable-removed", "env -u HOME $RUN sh -c 'echo ${HOME-unset}'"),
    around(
        "found-on-the-callers-path",
        'mkdir bin; mv tool bin; chmod +x bin/tool; PATH="$PWD/bin:$PATH"; $RUN tool',
        files={"tool": b"#!/bin/sh\necho my tool\n"},
    ),
    around(
        "found-on-a-relative-path",
        'mkdir bin; mv tool bin; chmod +x bin/tool; PATH="bin:$PATH"; $RUN tool',
        files={"tool": b"#!/bin/sh\necho my tool\n"},
    ),
    sh("locale", 'locale; python3 -c "import sys; print(sys.stdout.encoding)"'),
)

DIRECTORY = (
    sh("directory", "pwd; ls -a; echo new >file"),
    around(
        "directory-with-a-strange-name",
        "d=$'a b\\n*\\xff'; mkdir \"$d\"; cd \"$d\"; $RUN python3 -c 'import os; print(os.getcwdb())'",
    ),
    around(
        "directory-through-a-link", "mkdir real; ln -s real link; cd link; $RUN sh -c 'pwd; pwd -P'"
    ),
    around(
        "directory-removed",
        "mkdir gone; cd gone; rmdir ../gone; $RUN echo fine",
        exception="the runner enters the client's directory by name, so it has to be there",
    ),
    around("umask", "umask 027; $RUN sh -c 'umask; echo x >file; mkdir directory'"),
    around("umask-zero", "umask 0; $RUN sh -c 'umask; echo x >file; mkdir directory'"),
)

LIMITS = (
    argv("limits", "cat", "/proc/self/limits"),
    around(
        "soft-limits",
        "ulimit -S -n 300; ulimit -S -s 4096; ulimit -S -c 0; $RUN cat /proc/self/limits",
    ),
    around("hard-limits", "ulimit -n 300; ulimit -t 1000; $RUN cat /proc/self/limits"),
    around("limit-reached", "ulimit -f 8; $RUN sh -c 'head -c 100000 /dev/zero >file'; echo $?"),
    around("niceness", "nice -n 5 $RUN nice"),
    argv("out-of-memory-score", "cat", "/proc/self/oom_score_adj"),
    argv(
        "privileges", "grep", "-E", "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)", "/proc/self/status"
    ),
)

DESCRIPTORS = (
    argv("no-other-descriptors", "ls", "/proc/self/fd"),
    argv(
        "kinds-of-descriptors",
        "stat",
        "-L",
        "-c",
        "%F",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
    ),
    around(
        "descriptor-three",
        "$RUN sh -c 'echo three >&3' 3>three",
        exception="only standard input, output and error reach the command",
    ),
    around(
        "process-substitution",
        "$RUN cat <(echo inside)",
        exception="only standard input, output and error reach the command",
    ),
    around(
        "output-file-is-seekable",
        "$RUN python3 -c 'import sys; print(sys.stdout.seekable())' >out",
        exception="a file or device that the client's streams are redirected to is a pipe for the command",
    ),
    around(
        "input-file-is-seekable",
        "$RUN python3 -c 'import sys; print(sys.stdin.seekable())' <in",
        files={"in": b"x"},
        exception="a file or device that the client's streams are redirected to is a pipe for the command",
    ),
    around(
        "output-device-is-full",
        "$RUN echo hi >/dev/full 2>/dev/null; echo $?",
        exception="the command writes to a pipe; it is the client that meets a full device, and it exits with 125",
    ),
    around(
        "input-left-for-the-next",
        "printf 'a\\nb\\nc\\n' | { $RUN sh -c 'read -r x; echo \"got $x\"'; cat; }",
        exception="input is read ahead, as by ssh; -I leaves it for others",
    ),
)

SIGNALS = (
    sh("signal-dispositions", SHOW_SIGNALS),
    python(
        "signal-dispositions-in-python",
        "import signal\nfor s in sorted(signal.valid_signals()): print(s, signal.getsignal(s))",
    ),
    around("signals-ignored-by-the-caller", f"trap '' USR1 HUP; $RUN sh -c '{SHOW_SIGNALS}'"),
    *(
        sh(
            f"{number.name}-by-default",
            "echo ready; exec sleep 1000",
            actions=(Expect(b"ready\n"), Signal(number)),
        )
        for number in TO_THE_GROUP
    ),
    *(
        # The shell runs its trap only once the signal has ended its child as well.
        sh(
            f"{number.name}-reaches-the-group",
            f"trap 'echo trapped; exit 7' {number}; sh -c 'echo ready; exec cat'; echo not reached",
            actions=(Expect(b"ready\n"), Signal(number), Expect(b"trapped\n")),
        )
        for number in TO_THE_GROUP
    ),
    Program(
        "one-signal-after-another",
        ("python3", "-c", WAIT_FOR_SIGNALS),
        actions=(
            Expect(b"ready\n"),
            *(
                step
                for number in TO_THE_GROUP
                if number != signal.SIGTERM
                for step in (Signal(number), Expect(number.name.encode()))
            ),
            Signal(signal.SIGTERM),
            Expect(b"done\n"),
        ),
    ),
    sh(
        "signals-ignored",
        "trap '' TERM INT HUP; echo ready; read -r line; echo \"still here: $line\"",
        actions=(
            Expect(b"ready\n"),
            Signal(signal.SIGTERM),
            Signal(signal.SIGINT),
            Signal(signal.SIGHUP),
            Send(b"x\n"),
        ),
    ),
    sh(
        "partial-line-before-a-signal",
        "printf partial; exec sleep 1000",
        actions=(Expect(b"partial"), Signal(signal.SIGTERM)),
    ),
    around("under-timeout", "timeout 0.3 $RUN sleep 1000; echo $?"),
    around("under-nohup", "nohup $RUN echo fine"),
    around(
        "left-behind-in-the-background",
        "mkfifo alive; timeout 1 cat alive & reader=$!\n"
        "$RUN sh -c 'exec 4>alive; sleep 1000 <&- >&- 2>&- & echo $! >child'\n"
        "wait $reader; echo $?; kill $(cat child) 2>/dev/null; rm child",
        exception="processes that a command leaves behind end with it",
    ),
)

PROGRAMS = (*ENVIRONMENT, *DIRECTORY, *LIMITS, *DESCRIPTORS, *SIGNALS)
