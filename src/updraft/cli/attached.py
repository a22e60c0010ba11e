"""Runs an attached job: this process's input, output, signals and terminal are the job's.

On the launch path: imports only what the import-set test allows.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time

from updraft import errors
from updraft.c_modules import signal
from updraft.cli.terminal import Terminal
from updraft.sdk.session import Session
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from updraft.sdk.ways import Way

_INPUT_BYTES = 256 * 1024
_FOREGROUND_LOOK_MS = 100
RECONNECT_SECONDS = 30.0
"""How long a client tries to find its server again; the server waits for it as long."""

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Attached:
    """An attached run, from the first connection to the exit code."""

    def __init__(
        self, session: Session, way: Way, program: str, *, tty: bool, quiet: bool = False
    ) -> None:
        self._session = session
        self._way = way
        self._program = program
        self._quiet = quiet
        self._terminal = Terminal(0) if tty else None
        self._detach_keys = b""
        self._lines: Terminal | None = None
        self._typed = b""
        self._stdin_open = True
        self._outputs = {frames.STDOUT: 1, frames.STDERR: 2}
        self._sending = False
        self._signals: list[int] = []
        self._last_signal = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._started = False
        self._detached = False
        self._stop: dict[str, Any] | None = None
        self._continued = False
        self._hung_up = False
        self._visits = session.from_now  # it took over a job that others may have submitted
        self._last_break = -RECONNECT_SECONDS
        self._break_began = 0.0
        self._told = ""

    def without_input(self) -> None:
        """Read no input: the task sees an empty one."""
        self._stdin_open = False

    def detach_on(self, keys: bytes) -> None:
        """Leave the job running when these keys are typed."""
        self._detach_keys = keys
        if keys and self._terminal is None and os.isatty(0):
            self._lines = Terminal(0)  # the job has none: ours is read by lines, for the keys too

    def run(self) -> int:
        """Run to the end and return the exit code."""
        self._take_signals()
        try:
            peer = self._way.connect()
            try:
                self._session.connect(peer)
            except ConnectionError as error:
                self._come_back(error)
            if not self._stdin_open:
                self._session.give_input(b"")
            while not self._over():
                try:
                    self._turn()
                except (ConnectionError, errors.NotReady) as error:
                    if self._over():
                        break
                    self._come_back(error)
        except errors.NotSignedIn as error:
            raise self._way.refused(error) from error
        finally:
            self._restore_terminal()
        if self._detached:
            job = self._session.job
            self.say(f"detached; job {job} goes on, come back to it: updraft attach {job}")
            return 0
        return self._exit_code()

    def _restore_terminal(self) -> None:
        for terminal in (self._terminal, self._lines):
            if terminal is not None:
                terminal.restore()

    def _over(self) -> bool:
        return self._detached or self._session.is_complete()

    # -- one turn of the loop

    def _turn(self) -> None:
        session, reading = self._session, self._stdin_open
        self._send_signals()
        poll = select.poll()
        fd = session.socket.fileno()
        poll.register(fd, select.POLLIN | (select.POLLOUT if session.wants_write else 0))
        poll.register(self._wake_read, select.POLLIN)
        wait_ms = 0 if session.has_more else None
        if (self._stdin_open and session.input_room) or (self._lines and not self._stdin_open):
            if self._may_read():
                if self._lines is not None:
                    self._lines.end_lines_on(self._detach_keys, reads=self._stdin_open)
                poll.register(0, select.POLLIN)
            else:
                wait_ms = _FOREGROUND_LOOK_MS if wait_ms is None else wait_ms
        ready = dict(poll.poll(wait_ms))
        if wait_ms and self._may_read():
            self._continue_on_terminal()  # a shell's fg tells a job that runs nothing
        if self._wake_read in ready:
            self._drain_wake()
        if fd in ready or session.has_more:
            session.flush()
            for kind, stream, payload in session.receive():
                self._handle(kind, stream, payload)
        if 0 in ready and reading == self._stdin_open:  # else the terminal is read otherwise now
            self._read_input()

    def _may_read(self) -> bool:
        # A background job must not touch the terminal: it would be stopped for it.
        terminal = self._terminal or self._lines
        return terminal is None or terminal.foreground()

    def _handle(self, kind: int, stream: int, payload: Any) -> None:
        if kind == frames.DATA:
            if not self._started and self._terminal is not None:
                self._terminal.make_raw()  # its output may be here before the word that it started
            self._write(stream, payload)
            self._stop_if_due()
        elif kind == frames.GREW:
            self.say(f"{payload} bytes of output were cut: the stored stream was over its quota")
        elif kind == frames.CLOSE:
            self._close_input()
        elif kind == frames.STARTED:
            self._started = True
            self._tell_differences(payload)
            if self._terminal is not None:
                self._terminal.make_raw()
                # Whoever attaches later has another size than the job was submitted with.
                rows, columns = self._terminal.size()
                self._session.send(frames.RESIZE, {"rows": rows, "columns": columns})
        elif kind == frames.STOPPED:
            if self._terminal is not None:
                self._stop = payload
                self._stop_if_due()
        elif kind == frames.NOTICE:
            self.say(payload["message"])

    def _tell_differences(self, started: dict[str, Any]) -> None:
        """Say in which surroundings the command is not as here."""
        if started.get("clamped_limits"):
            from updraft.cli.limits import limit_names  # noqa: PLC0415 - seldom

            names = limit_names(started["clamped_limits"])
            self.say(f"limits are lower than here: {names} (the runner's own are; restart it)")
        if started.get("directory"):
            self.say(
                "this directory is not on the runner: it runs in an empty one; choose one that is "
                "there with -C"
            )
        for name in started.get("unenforced", ()):
            self.say(f"the {name} limit is not enforced on this machine; see: updraft doctor")

    def _write(self, stream: int, data: bytes | memoryview) -> None:
        fd = self._outputs.get(stream)
        if self._terminal is not None and not self._terminal.raw:
            # In the background our terminal is not raw, and ends the lines itself.
            data = bytes(data).replace(b"\r\n", b"\n")
        view = memoryview(data)
        while view and fd is not None:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody made it non-blocking: wait as if it were not
                select.select([], [fd], [])
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise errors.UpdraftError(
                        f"cannot write the command's output: {error.strerror}; it was hung up"
                    ) from error
                # The reader is gone, or the terminal.
                del self._outputs[stream]
                self._session.close_output(stream)
                return

    def _read_input(self) -> None:
        try:
            room = self._session.input_room if self._stdin_open else _INPUT_BYTES
            data = os.read(0, min(_INPUT_BYTES, room))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and self._detach_keys:
            data = self._filter_detach_keys(data)
            if not data:
                return
        if not self._stdin_open:  # typed to nobody, but for the keys
            if not data:
                self._lines = None  # the terminal is gone
            return
        if not data:
            self._end_input()
            if self._terminal is not None and self._terminal.raw:
                # A raw terminal has no end of input (Ctrl-D is a byte like others): it is gone.
                self._signals.append(signal.SIGHUP)
                return
        self._session.give_input(data)

    def _filter_detach_keys(self, data: bytes) -> bytes:
        self._typed += data
        if self._detach_keys in self._typed:
            before = self._typed.split(self._detach_keys)[0]
            if before and self._stdin_open:
                self._session.give_input(before)
            self._session.send(frames.DETACH, {})
            self._detached = True
            return b""
        # Hold back what may be the beginning of the keys.
        held = 0
        for count in range(1, len(self._detach_keys)):
            if self._typed.endswith(self._detach_keys[:count]):
                held = count
        data = self._typed[: len(self._typed) - held]
        self._typed = self._typed[len(self._typed) - held :]
        return data

    def _close_input(self) -> None:
        """The command reads no more: who writes to us is to learn it."""
        if self._stdin_open and self._terminal is None and self._lines is None:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        self._end_input()

    def _end_input(self) -> None:
        self._stdin_open = False
        if self._lines is not None:
            self._lines.restore()  # the next look sets it up for the keys alone

    # -- signals

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if self._terminal is not None:
            signal.signal(signal.SIGWINCH, self._on_signal)
        else:
            signal.signal(signal.SIGTSTP, self._on_signal)
        signal.signal(signal.SIGCONT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        if not self._sending:
            # The loop may be blocked: in a write to a slow reader, in a server's start.
            self._send_signals()

    def _send_signals(self) -> None:
        if self._session.job is None:
            self._end_before_submission()
            return
        self._sending = True
        try:
            while self._signals:
                number = self._signals.pop(0)
                self._last_signal = number
                if number == signal.SIGWINCH and self._terminal is not None:
                    rows, columns = self._terminal.size()
                    self._session.send(frames.RESIZE, {"rows": rows, "columns": columns})
                elif number == signal.SIGTSTP:
                    self._session.send(frames.SIGNAL, {"signal": int(number)})
                    self._restore_terminal()
                    os.kill(os.getpid(), signal.SIGSTOP)
                elif number == signal.SIGCONT and self._terminal is not None:
                    self._continue_on_terminal()
                elif number == signal.SIGHUP and (self._terminal is not None or self._visits):
                    self._hang_up()
                else:
                    self._session.send(frames.SIGNAL, {"signal": int(number)})
        except OSError:
            self._signals.insert(0, self._last_signal)
        finally:
            self._sending = False

    def _hang_up(self) -> None:
        """Our terminal is gone: say so once, whether its signal or its end came first."""
        if self._visits:
            # The server hangs up a job that was submitted attached, and no other.
            self._restore_terminal()
            _die_of(signal.SIGHUP)
        if not self._hung_up:
            self._hung_up = True
            self._session.send(frames.SIGNAL, {"signal": int(signal.SIGHUP)})

    def _end_before_submission(self) -> None:
        # Nothing is acknowledged yet, so nothing is owed: end as the signal says.
        for number in self._signals:
            if number in _FORWARDED:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        self._signals.clear()

    def _continue_on_terminal(self) -> None:
        if self._terminal is None or not self._started:
            return
        self._continued = True
        if self._terminal.foreground():
            self._terminal.make_raw()
            rows, columns = self._terminal.size()
            self._session.send(frames.RESIZE, {"rows": rows, "columns": columns})
        self._session.send(frames.SIGNAL, {"signal": int(signal.SIGCONT)})

    def _stop_if_due(self) -> None:
        """Stop once all is shown that the command wrote before it was stopped."""
        stop = self._stop
        if stop is None or any(
            self._session.got[stream] < stop.get(name, 0)
            for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))
        ):
            return
        self._stop = None
        self._stop_myself(stop["signal"])

    def _stop_myself(self, number: int) -> None:
        """The command was stopped from its terminal: so are we, and the shell takes over."""
        if number != signal.SIGSTOP and _is_orphaned():
            # Nobody could continue us, so the kernel would not stop us either: the terminal stays
            # ours, and what is typed meanwhile is echoed by the command's alone.
            self._continue_on_terminal()
            return
        if self._terminal is not None:
            self._terminal.restore()
        self._continued = False
        if number == signal.SIGSTOP:
            os.kill(os.getpid(), number)
        else:
            before = signal.signal(number, signal.SIG_DFL)
            os.kill(0, number)
            signal.signal(number, before)
        # Here we go on: after an fg or bg, or at once where we were not stopped (as in a process
        # group that others have orphaned). The command goes on in either case.
        if not self._continued:
            self._continue_on_terminal()

    def _drain_wake(self) -> None:
        try:
            while os.read(self._wake_read, 512):
                pass
        except BlockingIOError:
            return

    # -- breaks

    def _come_back(self, error: ConnectionError | errors.NotReady) -> None:
        """Find the server again; it, or its runner, starts it if it was killed."""
        self._session.socket.close()
        now = time.monotonic()
        # One that was back, and goes again, is waited for anew; one that took the connection and
        # said nothing was not back.
        if self._session.answered or now - self._last_break > RECONNECT_SECONDS:
            self._break_began = now
        if isinstance(error, errors.NotReady):
            if now - self._break_began > RECONNECT_SECONDS:
                raise error
            if error.message != self._told:
                self._told = error.message
                self.say(f"{error}; trying again")
        self._last_break = now
        pause = 0.01
        while True:
            waited = time.monotonic() - self._break_began
            if signal.SIGINT in self._signals and self._session.job is not None:
                raise errors.ServerLost(
                    f"interrupted while the server was away; job {self._session.job} may go on: "
                    f"updraft job show {self._session.job}"
                )
            try:
                if self._session.job is None:  # an ending server did not take it: to a new one
                    self._session.connect(self._way.connect())
                else:
                    self._session.connect(self._way.reconnect(waited))
            except (OSError, errors.Unavailable) as failure:
                if waited > RECONNECT_SECONDS:
                    raise errors.ServerLost(
                        f"the server went away ({error}) and did not come back within "
                        f"{RECONNECT_SECONDS:.0f} s ({failure}); see: updraft job list"
                    ) from failure
                time.sleep(pause)
                pause = min(pause * 1.5, 0.25)
            else:
                # A server that accepts and closes at once is not back.
                time.sleep(pause)
                return

    # -- the end

    def say(self, message: str) -> None:
        """Write a line for the person."""
        if not self._quiet:
            raw = self._terminal is not None and self._terminal.raw
            say(self._program, message, "\r\n" if raw else "\n")

    def _end_as_the_command_did(self, code: int | None) -> None:
        """On a terminal, end by the signal that ended the command.

        The shell sees 128 + N in either case; but a loop ends on Ctrl-C only if the shell sees that
        its child was interrupted, and only then it says "Killed" or "Segmentation fault".
        """
        ended = self._session.ended or {}
        number = ended.get("signal")
        if self._terminal is not None and number and code == 128 + number:
            _die_of(number)

    def _exit_code(self) -> int:
        ended = self._session.ended or {}
        state, code = ended.get("state"), ended.get("exit_code")
        if self._terminal is not None:
            self._terminal.restore()
        if state == "SUCCESS":
            if "out of memory" in ended["message"]:
                self.say(ended["message"])  # a shell that lost its child tells no more than 137
            self._end_as_the_command_did(code)
            if code in (errors.EXIT_NOT_FOUND, errors.EXIT_NOT_EXECUTABLE) and not self._started:
                self.say(ended["message"])
            return int(code if code is not None else errors.EXIT_FAILURE)
        job = self._session.job
        if state == "EXPIRED":
            self.say(f"job {job} expired: {ended['message']}")
            return errors.EXIT_EXPIRED
        if state == "CANCELLED":
            self.say(f"job {job} was cancelled: {ended['message']}")
            if not self._started and self._last_signal:
                return 128 + self._last_signal
            return errors.EXIT_CANCELLED
        self.say(f"job {job} failed: {ended.get('message')}")
        return errors.EXIT_FAILURE


def _is_orphaned() -> bool:
    """Whether our process group surely is orphaned: we lead it, and our parent is elsewhere."""
    parent = os.getppid()
    if os.getpgrp() != os.getpid():
        return False
    try:
        return parent == 0 or os.getsid(parent) != os.getsid(0)
    except OSError:
        return True


def _die_of(number: int) -> None:
    """End by a signal, without a core dump of ours."""
    import resource  # noqa: PLC0415 - only here

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def say(program: str, message: str, end: str = "\n") -> None:
    """Write a line for the person; nobody need be there to read it."""
    try:
        os.write(2, f"{program}: {message}{end}".encode(errors="surrogateescape"))
    except OSError:
        return


def open_standard_descriptors() -> list[int]:
    """Open those of 0, 1 and 2 that are closed, lest a socket of ours takes their place.

    Returns which they were: the command finds them closed, too.
    """
    closed = []
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        closed.append(fd)
    os.close(fd)
    return closed


def is_one_output() -> bool:
    """Return whether stdout and stderr are one pipe, socket or file, as after ``2>&1``."""
    out, err = os.fstat(1), os.fstat(2)
    return os.path.samestat(out, err) and not stat.S_ISCHR(out.st_mode)


def flush_and_exit(code: int) -> None:
    """End without the interpreter's teardown, which would cost a millisecond or two."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                continue
    os._exit(code)
