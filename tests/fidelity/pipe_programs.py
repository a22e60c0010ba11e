"""Programs without a terminal: exit codes, streams, arguments and what a process inherits."""

import random
import signal
from collections.abc import Mapping

from .actions import Action, CloseInput, CloseOutput, Expect, Send
from .program import Program

ALL_BYTES = bytes(range(256))
NOISE = random.Random(2).randbytes(20_000_000)


def argv(
    name: str, *words: str | bytes, stdin: bytes = b"", actions: tuple[Action, ...] = ()
) -> Program:
    return Program(name, words, stdin=stdin, actions=actions)


def sh(name: str, script: str, *, stdin: bytes = b"", actions: tuple[Action, ...] = ()) -> Program:
    return argv(name, "sh", "-c", script, stdin=stdin, actions=actions)


def python(name: str, code: str, *words: str | bytes, actions: tuple[Action, ...] = ()) -> Program:
    return argv(name, "python3", "-c", code, *words, actions=actions)


def around(
    name: str,
    script: str,
    *,
    stdin: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    exception: str | None = None,
) -> Program:
    return Program(name, around=script, stdin=stdin, files=files or {}, exception=exception)


EXIT_CODES = (
    *(sh(f"exits-with-{code}", f"exit {code}") for code in (0, 1, 3, 125, 126, 127, 255)),
    *(
        sh(f"killed-by-{number.name}", f"kill -{number} $$")
        for number in (
            signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT,
            signal.SIGSEGV, signal.SIGABRT, signal.SIGPIPE, signal.SIGUSR1,
        )
    ),
    python("python-traceback", "def fail():\n    raise ValueError('no')\nfail()"),
    python("python-exits-with-a-message", "import sys; sys.exit('gone wrong')"),
    around("command-not-found", "$RUN no-such-command 2>/dev/null; echo $?"),
    around("path-not-found", "$RUN ./no/such/file 2>/dev/null; echo $?"),
    around("empty-command-name", "$RUN '' 2>/dev/null; echo $?"),
    around("no-execute-permission", "$RUN ./plain 2>/dev/null; echo $?", files={"plain": b"echo ran"}),
    around("directory-as-command", "mkdir directory; $RUN ./directory 2>/dev/null; echo $?"),
    around("file-as-directory", "$RUN ./plain/x 2>/dev/null; echo $?", files={"plain": b""}),
    around(
        "script-without-interpreter-line",
        "chmod +x plain; $RUN ./plain a 'b c'; echo $?",
        files={"plain": b'echo "$#: $2"; exit 4\n'},
    ),
    around(
        "script-with-a-strange-name",
        "chmod +x 'a b*'; $RUN './a b*' x",
        files={"a b*": b'#!/bin/sh\necho "$0: $1"\n'},
    ),
    around("shell-logic", "$RUN true && echo yes; $RUN false || echo no; if ! $RUN false; then echo not; fi"),
)  # fmt: skip

STREAMS = (
    sh("says-nothing", ":"),
    sh("stdout-and-stderr-apart", "echo out; echo err >&2; echo out again; echo err again >&2"),
    sh("no-newline-at-the-end", "printf 'no newline'; printf 'none here' >&2"),
    python(
        "all-byte-values-out",
        "import sys; b = bytes(range(256)) * 64; sys.stdout.buffer.write(b); sys.stderr.buffer.write(b[::-1])",
    ),
    argv("all-byte-values-through", "cat", stdin=ALL_BYTES * 400),
    python("one-byte-writes", "import os\nfor n in range(5000): os.write(1 + n % 2, b'%c' % (n % 251))"),
    argv("fifty-megabytes-out", "seq", "1", "6500000"),
    python(
        "both-streams-full",
        "import os\nfor n in range(100): os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)",
    ),
    argv("large-input-digested", "sha256sum", stdin=NOISE),
    argv("large-input-through", "cat", stdin=NOISE),
    argv("empty-input", "wc", "-c"),
    sh("output-after-the-end-of-input", "cat; echo more; echo most >&2", stdin=b"in"),
    sh(
        "conversation-line-by-line",
        'while read -r line; do echo "<$line>"; done; echo end',
        actions=(Send(b"a\n"), Expect(b"<a>\n"), Send(b"b c\n"), Expect(b"<b c>\n"), CloseInput(), Expect(b"end\n")),
    ),
    sh(
        "prompt-without-newline",
        "printf 'name? '; read -r name; printf 'again? ' >&2; read -r again; echo \"$name, $again\"",
        actions=(Expect(b"name? "), Send(b"Ada\n"), Expect(b"again? ", "stderr"), Send(b"Lovelace\n")),
    ),
    argv("stops-reading-early", "head", "-c", "10", stdin=NOISE),
    sh("closes-its-input", "exec <&-; echo goes on", stdin=NOISE),
    argv("output-closed-early", "yes", actions=(Expect(b"y\ny\n"), CloseOutput())),
    python("python-output-closed-early", "while True: print('y')", actions=(Expect(b"y\n"), CloseOutput())),
    around("yes-into-head", '$RUN yes | head -n 1; echo "${PIPESTATUS[*]}"'),
    around("yes-from-outside", 'yes | $RUN head -n 2; echo "${PIPESTATUS[*]}"'),
    around("yes-into-true", 'yes | $RUN true; echo "${PIPESTATUS[*]}"'),
    around("middle-of-a-pipeline", 'seq 100000 | $RUN grep 77 | wc -l; echo "${PIPESTATUS[*]}"'),
    around("whole-pipeline", "$RUN seq 100000 | $RUN sort -rn | $RUN head -n 3"),
    around("status-of-a-pipeline", 'set -o pipefail; $RUN sh -c "echo x; exit 7" | cat; echo $?'),
    around("one-stream-for-both", "$RUN sh -c 'for n in $(seq 200); do echo o$n; echo e$n >&2; done' 2>&1 | cat"),
    around("one-file-for-both", "$RUN sh -c 'for n in $(seq 200); do echo o$n; echo e$n >&2; done' >log 2>&1"),
    around("streams-swapped", "$RUN sh -c 'echo out; echo err >&2' 3>&1 1>&2 2>&3"),
    around("output-to-files", "$RUN sh -c 'echo out; echo err >&2; exit 2' >out 2>err; echo $?"),
    around("output-appended", "echo first >log; $RUN echo second >>log; echo third >>log"),
    around("input-from-a-file", "$RUN sort -n <in", files={"in": b"10\n9\n\n8"}),
    around("input-from-null", "$RUN cat </dev/null; echo $?"),
    around("input-closed", "$RUN sh -c 'cat; echo $?' <&-"),
    around("input-closed-unused", "$RUN echo fine <&-"),
    around("output-closed", "$RUN sh -c 'echo out; echo $? >&2' >&-; echo $?"),
    around("output-closed-unused", "$RUN true >&-; echo $?"),
    around("errors-closed", "$RUN sh -c 'echo out; echo err >&2; exit 3' 2>&-; echo $?"),
    around("here-document", "$RUN cat <<END\n$((1 + 1)) lines\nthis is the second\nEND"),
    around("command-substitution", 'text=$($RUN printf "a\\n\\n\\nb\\n\\n"); echo "[$text]"'),
    sh("streams-opened-by-name", "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr", stdin=b"in\n"),
    python("streams-block", "import os; print([os.get_blocking(fd) for fd in (0, 1, 2)])"),
    around("under-xargs", "seq 6 | xargs -n 2 $RUN echo"),
    around("side-by-side", "for n in 1 2 3 4 5 6; do $RUN sh -c 'echo $1 >f$1' - $n & done; wait; cat f*"),
    around("bytes-read-ahead-by-the-command", "printf 'a\\nb\\n' | { $RUN cat; echo rest; cat; }"),
)  # fmt: skip

ARGUMENTS = (
    python(
        "arguments-unchanged",
        "import os, sys; print([os.fsencode(word) for word in sys.argv[1:]])",
        "", " ", "two words", "two\nlines", "tab\t", "'", '"', "\\", "$HOME", "`id`", "*", "~", "!", "é☃",
        b"\xff\xfe", b"\x01\x1b[31m", "-", "--", "-n", "--help", "-P", "pool", "-q", "--no-tty", "a=b", "",
    ),
    python("long-argument", "import sys; print(len(sys.argv[1]), set(sys.argv[1]))", "x" * 100_000),
    python("many-arguments", "import sys; print(sys.argv[1:])", *map(str, range(3000))),
)  # fmt: skip

PROGRAMS = (*EXIT_CODES, *STREAMS, *ARGUMENTS)
