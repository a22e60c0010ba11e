"""Become a command, as if a login shell had started it; run as `python -I -S launch.py`.

A test runner hands down what it was itself started with: ignored signals (Python's SIGPIPE, a
`nohup`), blocked ones, a umask. Those are put back to the system's defaults here, in a process of
its own, since code between fork and exec is not safe in a runner that has threads. With `tty` as
the first word, standard input becomes the controlling terminal of the session that the caller made.
"""

import fcntl
import os
import resource
import signal
import sys
import termios


def main(kind: str, argv: list[str]) -> None:
    if kind == "tty":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:  # the C library keeps a few for itself
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    # Core files are written on some machines only, and into the directory that is compared.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        sys.exit(f"launch.py: cannot execute {argv[0]!r}: {e.strerror}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
