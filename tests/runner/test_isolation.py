"""P9 on a shared runner: a task reads, stops and reaches nothing of its neighbour or the runner.

Each attempt is made twice: by a task without isolation, where it works (so that the test can fail),
and by an isolated one.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner.attempts_on_a_neighbour import (
    ATTEMPTS,
    CONFINED,
    EPILOGUE,
    PRELUDE,
    SHARED,
    UNSHARE,
    VICTIM,
)
from tests.runner.bare_agent import output
from tests.runner.keeper_process import KeeperProcess
from tests.runner.users import ALICE, BOB, PYTHON, owner
from updraft.runner.keeper.isolation import _SYS_KEYCTL
from updraft.wire import frames

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("isolating")]

SECRET = "the neighbour's secret"
KEY = f"updraft-test-{os.getpid()}"


TTY: dict[str, Any] = {"rows": 24, "columns": 80, "attributes": None, "stderr": True}
GRACE = {"grace_ms": 500}


@pytest.fixture(scope="module")
def key() -> Iterator[str]:
    """A key in the session keyring that a keeper inherits from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_KEYCTL[os.uname().machine]
    add_key = {"x86_64": 248}.get(os.uname().machine, 217)
    made = libc.syscall(add_key, b"user", KEY.encode(), SECRET.encode(), len(SECRET), -3)
    if made == -1:
        pytest.skip(f"no keys here: {os.strerror(ctypes.get_errno())}")
    yield KEY
    libc.syscall(number, 9, made, -3)  # KEYCTL_UNLINK


class World:
    """A keeper with a victim on it, and what an attacker knows of both."""

    def __init__(self, folder: Path, gpu: Path, *, isolated: bool) -> None:
        assert PYTHON[0], "install a python3 that other users than root may run"
        self.isolated = isolated
        self.folder = folder
        self.keeper = KeeperProcess(folder / "runner")
        # As careless as an administrator can be.
        self.keeper.folder.chmod(0o755)
        (self.keeper.folder / "token").write_text(SECRET)
        (folder / "hidden").write_text(SECRET)
        self.agent = self.keeper.connect()
        self.gpu = gpu
        self.attempts = 100
        name = f"updraft-test-{os.getpid()}-{isolated}"
        segment = os.getpid() * 2 + isolated
        workspace = self.keeper.folder / "work/bob/job"
        self.owner(BOB, "bob")
        victim = self.keeper.spec(
            *PYTHON,
            VICTIM,
            *(str(workspace / "secret"), f"/tmp/{name}", f"/dev/shm/{name}", str(segment)),
            SECRET,
            isolation=self.owner(BOB, "bob"),
            directory=os.fsencode(workspace),
            environment=self.environment() + b"\0SECRET=" + SECRET.encode(),
        )
        self.agent.spawn(1, victim)
        self.agent.until(lambda: self.agent.started or self.agent.ends)
        assert 1 in self.agent.started, self.agent.ends
        self.victim = self.agent.wait_started(1)
        self.agent.wait_output(1, frames.STDOUT, 6)
        on_terminal = self.keeper.shell(
            "tty; cat", isolation=self.owner(BOB, "bob"), tty=TTY, **GRACE
        )
        self.agent.spawn(2, on_terminal)
        terminal = self.agent.wait_lines(2, on_terminal, 1)[0].strip()
        self.known = {
            "isolated": isolated,
            "secret": SECRET,
            "pid": self.victim,
            "workspace": str(workspace),
            "tmp": f"/tmp/{name}",
            "shm": f"/dev/shm/{name}",
            "segment": segment,
            "terminal": terminal,
            "runner": str(self.keeper.folder),
            "hidden": str(folder / "hidden"),
            "output": os.fsdecode(victim["folder"]),
            "gpu": str(gpu),
            "key": KEY,
            "keyctl": _SYS_KEYCTL[os.uname().machine],
            "files": 1000,
        }

    @staticmethod
    def environment() -> bytes:
        return b"PATH=/usr/local/bin:/usr/bin:/bin"

    def owner(self, uid: int, name: str, **changes: Any) -> dict[str, Any] | None:
        """What isolates a task of an owner's here, if anything does."""
        workspace = self.keeper.folder / "work" / name / "job"
        hidden = [os.fsencode(self.folder / "hidden")]
        made = owner(uid, workspace, **{"hidden": hidden, **changes})
        (self.keeper.folder / "work").chmod(0o755)
        workspace.parent.chmod(0o755)
        workspace.chmod(0o755)
        return made if self.isolated else None

    def attack(self, program: str, **changes: Any) -> str:
        """Run a program as the attacker's task; return what it says."""
        self.attempts += 1
        whole = PRELUDE.format(known=self.known) + UNSHARE + program + EPILOGUE
        mine = self.owner(ALICE, "alice")
        spec = self.keeper.spec(
            *PYTHON,
            whole,
            directory=os.fsencode(self.keeper.folder / "work/alice/job"),
            environment=self.environment(),
            **{"isolation": mine, **changes},
        )
        self.agent.spawn(self.attempts, spec)
        end = self.agent.wait_end(self.attempts)
        said = output(spec).decode() + output(spec, frames.STDERR).decode()
        assert end.get("status") == 0, f"{end} {said}"
        return said

    def end(self) -> None:
        self.agent.send(frames.EOF, 1, at=0)
        self.agent.wait_end(1)
        self.keeper.end()


@pytest.fixture(scope="module")
def bare(open_folder: Path, gpu: Path, key: str) -> Iterator[World]:
    (open_folder / "bare").mkdir()
    world = World(open_folder / "bare", gpu, isolated=False)
    yield world
    world.end()


@pytest.fixture(scope="module")
def isolated(open_folder: Path, gpu: Path, key: str) -> Iterator[World]:
    (open_folder / "isolated").mkdir()
    world = World(open_folder / "isolated", gpu, isolated=True)
    yield world
    world.end()


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_works_on_a_neighbour_without_isolation_fails_with_it(
    bare: World, isolated: World, attempt: str
) -> None:
    said = bare.attack(ATTEMPTS[attempt])
    if attempt not in NEEDS_OTHERS:
        assert said == "SUCCESS\n"
    assert isolated.attack(ATTEMPTS[attempt]).startswith("FAILED")
    state = Path(f"/proc/{isolated.victim}/stat").read_text()
    assert state[state.rindex(")") + 2] == "S", "the victim goes on"


NEEDS_OTHERS = {"becomes nicer to itself", "raises its limits", "stops all it can"}
"""Whether these work without isolation is the machine's matter (or would hurt it)."""


@pytest.mark.parametrize("attempt", CONFINED)
def test_a_task_that_is_root_in_a_user_namespace_uncovers_nothing(
    isolated: World, attempt: str
) -> None:
    said = isolated.attack("def attempt():\n    unshare()\n    return True\n")
    if said != "SUCCESS\n":
        pytest.skip(f"no user namespaces for users here: {said}")
    assert isolated.attack(CONFINED[attempt]).startswith("FAILED")


@pytest.mark.parametrize("attempt", SHARED)
def test_what_the_docs_call_unprotected_is(isolated: World, attempt: str) -> None:
    """When one of these begins to fail, the page is to say something better."""
    assert isolated.attack(SHARED[attempt]) == "SUCCESS\n"
