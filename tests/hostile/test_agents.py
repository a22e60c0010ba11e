"""A runner that lies: about others' attempts, about its own, and about how much they wrote."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.agent import CAPACITY, Agent, agent, join, leave
from tests.hostile.team import Frames, Team, code_of, ended, hello, submit
from tests.hostile.test_floods import flood_of
from tests.waiting import until
from updraft.wire import frames

QUOTA = 1 << 20
SETTINGS = f"output_quota = {QUOTA}\nretention_size = {64 * QUOTA}"
SANE_SECONDS = 3.0
MEMORY = 64 << 20
MOST = (1 << 64) - 1
IN = frames.stream_channel(1, frames.STDIN)

names = (f"far{number}" for number in count())


@pytest.fixture
def token(server: Team) -> Iterator[str]:
    """The token of a runner of the test's own."""
    name = next(names)
    yield join(server, name)
    leave(server, name)


@pytest.fixture
def mine(server: Team) -> Iterator[Frames]:
    """Ben's client."""
    with server.session("ben") as client:
        yield client


def job_of(client: Frames) -> str:
    """The id of a client's job."""
    job: str = dict(client.answers(frames.ACCEPTED))[frames.ACCEPTED]["job"]
    return job


def state_of(server: Team, job: str) -> tuple[str, str | None]:
    """A job's state, and the reason."""
    with server.http("ben") as client:
        shown = client.get(f"/jobs/{job}").json()
    return shown["state"], shown["reason"]


def until_over(server: Team, job: str) -> None:
    """Wait for a job's end, which must be a good one."""
    until(lambda: state_of(server, job)[0] == "SUCCESS", "the job's end", 30)


def output_of(server: Team, job: str) -> bytes:
    """What is stored of its output."""
    with server.http("ben") as client:
        return client.get(f"/jobs/{job}/logs/stdout").content


def ask(client: Frames, agent: Agent, **changes: Any) -> tuple[str, int]:
    """Submit a job to the agent's pool; return its id, and the serial of its attempt."""
    client.send(submit("cat", pool="remote", stdin=True, **changes))
    return job_of(client), agent.granted()


# -- of others


def test_a_runner_has_no_say_in_anothers_attempt(server: Team, token: str, mine: Frames) -> None:
    other = join(server, "liar")
    with agent(server, token) as honest:
        job, serial = ask(mine, honest)
        honest.starts(serial)
        assert mine.answers(frames.STARTED)
        end = {"status": 9 << 8, "at": 1, "stdout": 0, "stderr": 0}
        claimed = {"attempt": serial, "job": job, "folder": b"/", "pid": 9, "at": 1}
        for at, claim in enumerate(({**claimed, "end": end}, claimed)):
            with agent(server, other, claim) as liar:
                liar.starts(serial)
                liar.say(frames.STOPPED, serial, signal=19)
                liar.ends(serial, 9)
                liar.say(frames.EXITED, serial, lost="gone", stdout=0, stderr=0)
                said = liar.in_step()
                assert (frames.FORGET if "end" in claim else frames.KILL) in said
                mine.send(frames.frame(frames.DATA, IN, at * 6, b"secret"))
                assert honest.data.received(frames.DATA)[-1][3] == b"secret"
                liar.writes(serial, 0, b"forged")
                liar.cuts(serial, 1 << 40)
                liar.data.send(frames.frame(frames.CLOSE, serial << 2))
                # What is no frame ends the connection, behind all that was said.
                liar.data.send(b"\xff" * 64)
                assert frames.DATA not in [kind for kind, *_ in liar.data.received()]
        honest.writes(serial, 0, b"mine\n")
        honest.ends(serial, 3, stdout=5)
        heard = mine.received(frames.ENDED)
        assert b"".join(each[3] for each in heard if each[0] == frames.DATA) == b"mine\n"
        assert frames.STOPPED not in [kind for kind, *_ in heard]
        with server.http("ben") as client:
            shown = client.get(f"/jobs/{job}").json()
        assert (shown["exit_code"], len(shown["attempts"])) == (3, 1)
        assert shown["attempts"][0]["pid"] == 77
    leave(server, "liar")


def test_a_runner_has_no_say_in_what_runs_beside_anothers_task(
    server: Team, token: str, mine: Frames
) -> None:
    other = join(server, "liar")
    with agent(server, token) as honest, server.session("ben", "exec") as beside:
        job, serial = ask(mine, honest)
        honest.starts(serial)
        assert mine.answers(frames.STARTED)
        order = {"job": job, "argv": [b"ps"], "set_environment": [], "stdin": True, "tty": None}
        beside.send(frames.message(frames.EXEC, order))
        own = honest.granted()
        end = {"status": 9 << 8, "at": 1, "stdout": 0, "stderr": 0}
        with agent(server, other, {"attempt": own, "end": end}) as liar:
            liar.ends(own, 9)
            liar.in_step()
        honest.ends(own, 4)
        assert dict(beside.answers(frames.ENDED))[frames.ENDED]["exit_code"] == 4
        mine.send(frames.message(frames.CANCEL, {}))
        honest.ends(serial, why="cancel")
        assert mine.answers(frames.ENDED)
    leave(server, "liar")


# -- of the same name


def test_a_newer_session_fences_the_older_and_nothing_runs_twice(
    server: Team, token: str, mine: Frames
) -> None:
    """Of another keeper: a copy of the token, which has none of what the first one was given."""
    with agent(server, token) as older, server.session("ben") as second:
        running, started = ask(mine, older)
        older.starts(started)
        assert mine.answers(frames.STARTED)
        starting, _ = ask(second, older)
        with agent(server, token, keeper="two") as newer:
            assert ended(older.control.peer, 5) < 5
            assert ended(older.data.peer, 5) < 5
            for client, job in ((mine, running), (second, starting)):
                assert dict(client.answers(frames.ENDED))[frames.ENDED]["state"] == "FAILURE"
                why = "its runner does not know it any more, and its processes were ended"
                assert state_of(server, job) == ("FAILURE", why)
            assert frames.SPAWN not in newer.in_step()
            # It is the runner from now on; the older one, when it is back, hears what is over.
            third, serial = ask_again(server, newer)
            with agent(server, token, {"attempt": started}) as back:
                assert frames.KILL in back.in_step()
                assert ended(newer.control.peer, 5) < 5
            assert serial != started
            assert until(lambda: state_of(server, third)[0] == "FAILURE", "the third job's end")


def ask_again(server: Team, agent: Agent) -> tuple[str, int]:
    """Submit a job that no client stays with."""
    with server.http("ben") as client:
        key = f"the-key-{time.monotonic_ns()}"
        body = {"key": key, "argv": ["cat"], "directory": "/", "pool": "remote", "cpus": 0}
        answer = client.post("/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], agent.granted()


def test_a_newer_session_of_the_same_keeper_goes_on(server: Team, token: str, mine: Frames) -> None:
    with agent(server, token) as older, server.session("ben") as second:
        job, started = ask(mine, older)
        older.starts(started)
        assert mine.answers(frames.STARTED)
        _, waiting = ask(second, older)
        with agent(server, token, {"attempt": started, "pid": 77, "at": 1}) as newer:
            assert ended(older.control.peer, 5) < 5
            # The keeper notes what it is given before it starts it: it has not been given this.
            assert newer.granted() == waiting
            newer.ends(started, 5)
            newer.ends(waiting, 6)
            for client, code in ((mine, 5), (second, 6)):
                assert dict(client.answers(frames.ENDED))[frames.ENDED]["exit_code"] == code
        assert state_of(server, job)[0] == "SUCCESS"


# -- of its own


def test_output_before_beyond_and_over_what_is_stored(
    server: Team, token: str, mine: Frames
) -> None:
    with agent(server, token) as honest:
        job, serial = ask(mine, honest)
        honest.starts(serial)
        for offset, data in (
            (0, b"hello "), (0, b"HELLO "), (3, b"lo world"), (11, b""), (5, b"x"), (100, b"end"),
            (50, b"late"), (101, b"ND."),
        ):  # fmt: skip
            honest.writes(serial, offset, data)
        honest.ends(serial, stdout=104)
        told: dict[int, bytes] = {}
        while max(told, default=0) < 103:  # the last may come behind the word of the end
            _, _, at, data = mine.received(frames.DATA)[-1]
            told |= {at + index: data[index : index + 1] for index in range(len(data))}
        assert list(told) == [*range(11), *range(100, 104)]
        assert b"".join(told.values()) == b"hello worldend."
        until_over(server, job)
        assert output_of(server, job) == b"hello worldend."


BEYOND = [
    (frames.DATA, 1 << 62, b"x"), (frames.DATA, 1 << 63, b"x"), (frames.DATA, MOST, b"x"),
    (frames.DATA, MOST - 3, b"xxxxxxx"), (frames.EOF, (1 << 62) + 1, b""), (frames.EOF, MOST, b""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "offset", "data"), BEYOND)
def test_output_where_no_stream_gets_ends_the_connection_and_no_more(
    server: Team, token: str, mine: Frames, kind: int, offset: int, data: bytes
) -> None:
    with agent(server, token) as liar:
        job, serial = ask(mine, liar)
        liar.starts(serial)
        liar.writes(serial, 0, b"good")
        channel = frames.stream_channel(serial, frames.STDOUT)
        liar.data.send(frames.frame(kind, channel, offset, data))
        answers = liar.data.answers(frames.ERROR)
        assert answers[-1][1]["code"] == "bad_request"
    with agent(server, token, {"attempt": serial, "pid": 77, "at": 1}) as again:
        again.in_step()  # the other connection says nothing before it takes part
        again.data.send(frames.frame(frames.SHIP, serial << 2))
        again.writes(serial, 4, b" and more")
        again.ends(serial, stdout=13)
        assert mine.answers(frames.ENDED)
    assert output_of(server, job) == b"good and more"


BAD_REPORTS: dict[str, dict[str, Any]] = {
    "no capacity": {"capacity": None},
    "text for CPUs": {"capacity": {**CAPACITY, "cpus_milli": "4000"}},
    "less than nothing": {"capacity": {**CAPACITY, "memory_bytes": -1}},
    "GPUs without names": {"capacity": {**CAPACITY, "gpus": [{"kind": "a100"}]}},
    "GPUs that are none": {"capacity": {**CAPACITY, "gpus": [3]}},
    "a release that is none": {"release": [1]},
    "a release with NUL": {"release": "a\0b"},
    "a release without end": {"release": "x" * 1_000_000},
    "a pid that is none": {"keeper_pid": "x"},
    "attempts that are none": {"attempts": [5]},
    "an attempt without number": {"attempts": [{"pid": 1, "at": 1}]},
    "an attempt that started at no time": {"attempts": [{"attempt": 1, "pid": 1}]},
    "an end that is none": {"attempts": [{"attempt": 1, "end": {"status": 0}}]},
}


@pytest.mark.parametrize("how", BAD_REPORTS)
def test_a_report_that_cannot_be_is_refused(server: Team, token: str, how: str) -> None:
    with agent(server, token, **BAD_REPORTS[how]) as liar:
        assert liar.control.answers(frames.ERROR)[-1][1]["code"] == "bad_request"
    with server.http("anna") as client:
        assert client.get("/runners").status_code == 200


BAD_STARTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no time": {"pid": 1},
    "text": {"pid": "1", "at": "now"},
    "a time that is none": {"pid": 1, "at": -5},
    "a pid that is none": {"pid": 1 << 40, "at": 1},
}
LENGTHS = {"stdout": 0, "stderr": 0}
BAD_ENDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no status": LENGTHS,
    "no lengths": {"status": 0},
    "text for a status": {"status": "0", **LENGTHS},
    "text for a length": {"status": 0, "stdout": "0", "stderr": 0},
    "a length that cannot be": {"status": 0, "stdout": (1 << 63) - 1, "stderr": 0},
    "a length below nothing": {"status": 0, "stdout": -1, "stderr": 0},
    "a list for a message": {"refused": "exec", "errno": 2, "message": ["x"], **LENGTHS},
    "NUL in a message": {"refused": "x", "errno": 2, "message": "a\0b", **LENGTHS},
    "a refusal without a reason": {"refused": "exec", **LENGTHS},
    "text for what it used": {"status": 0, "cpu_ns": "much", **LENGTHS},
    "a time that is none": {"status": 0, "at": "now", **LENGTHS},
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [(frames.STARTED, how) for how in BAD_STARTS] + [(frames.EXITED, how) for how in BAD_ENDS],
)
def test_a_word_that_cannot_be_leaves_an_attempt_as_it_was(
    server: Team, token: str, mine: Frames, kind: int, how: str
) -> None:
    with agent(server, token) as liar:
        job, serial = ask(mine, liar)
        body = BAD_STARTS[how] if kind == frames.STARTED else BAD_ENDS[how]
        liar.say(kind, serial, **body)
        assert liar.control.answers(frames.ERROR)[-1][1]["code"] == "bad_request"
    assert state_of(server, job)[0] == "IN_QUEUE"
    with agent(server, token, {"attempt": serial, "pid": 77, "at": 1}) as again:
        again.ends(serial, 2)
        assert dict(mine.answers(frames.ENDED))[frames.ENDED]["exit_code"] == 2


def test_times_of_a_runner_are_within_the_servers(server: Team, token: str, mine: Frames) -> None:
    with agent(server, token) as liar:
        job, serial = ask(mine, liar)
        liar.say(frames.STARTED, serial, pid=1, at=(1 << 63) - 1)
        liar.say(frames.EXITED, serial, status=0, at=1, stdout=0, stderr=0)
        assert mine.answers(frames.ENDED)
    with server.http("ben") as client:
        shown = client.get(f"/jobs/{job}").json()
    for times in (shown["times"], shown["attempts"][0]):
        begun = times.get("submitted") or times["granted"]
        assert begun <= times["started"]
        assert begun <= times["ended"]


# -- of how much


def kept_of(server: Team, job: str) -> tuple[int, int]:
    """How many files and bytes lie on the disk for a job."""
    files = [path for path in Path(server.own.home).glob(f"state/**/{job}/**/*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("how", ["in one piece", "with gaps", "cuts only"])
@pytest.mark.parametrize("reads", [True, False])
def test_no_runner_stores_more_than_a_jobs_quota(
    server: Team, token: str, mine: Frames, how: str, reads: bool
) -> None:
    """Whatever it says was cut; its client, if there is one, holds it back in vain."""
    with agent(server, token) as liar:
        job, serial = ask(mine, liar) if reads else ask_again(server, liar)
        liar.starts(serial)
        piece, at = b"x" * 65536, 0
        for number in range(800 if how != "cuts only" else 5000):
            match how:
                case "in one piece":
                    liar.writes(serial, at, piece)
                case "with gaps":
                    liar.writes(serial, at, piece[: 65536 if number % 2 else 1])
                case _:
                    liar.cuts(serial, at + 1)
            at += len(piece) + (how != "in one piece")
        liar.cuts(serial, at)
        liar.ends(serial, stdout=at)
        if not reads:
            until_over(server, job)
            files, size = kept_of(server, job)
            assert (files < 20, size < 2 * QUOTA) == (True, True), (files, size)
        else:
            # All of it came, and was stored, before what is no frame ends the connection.
            liar.data.send(b"\xff" * 64)
            ended(liar.data.peer, 30)
            files, size = kept_of(server, job)
            windows = 4 * frames.OUTPUT_WINDOW_BYTES
            assert size < 4 * QUOTA + windows, (files, size)
            mine.close()
    assert server.good() < SANE_SECONDS


def test_no_runner_claims_a_projects_store_away(server: Team, token: str, mine: Frames) -> None:
    """What a task wrote is its runner's word; what is counted is what its job may store."""
    kept = first_output(server)
    with agent(server, token) as liar:
        for _ in range(4):  # together more than 64 bits hold
            job, serial = ask_again(server, liar)
            liar.starts(serial)
            liar.cuts(serial, 1 << 62)
            liar.ends(serial, stdout=1 << 62)
            until_over(server, job)
    try:
        server.owner("project", "limits", "default", "--stored", "32M")
        assert server.urun("ben", "-q", "true").returncode == 0
    finally:
        server.owner("project", "limits", "default", "--stored", "none")
    assert output_of(server, kept) == b"kept\n"
    with server.http("anna") as client:
        assert client.get("/status").status_code == 200


def first_output(server: Team) -> str:
    """Let ben's job write something; return its id."""
    done = server.urun("ben", "-q", "echo", "kept")
    assert done.stdout == b"kept\n"
    with server.http("ben") as client:
        job: str = client.get("/jobs?owner=~&limit=1").json()["jobs"][0]["id"]
    return job


# -- how often

FLOODS = {
    "PING": frames.frame(frames.PING),
    "GREW": frames.frame(frames.GREW, 5, 1),
    "no kind": frames.frame(250),
    "STARTED": frames.message(frames.STARTED, {"pid": 1, "at": 1}, 4),
    "REPORT": frames.message(frames.REPORT, {}),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_runners_flood_slows_nobody_down(server: Team, token: str, kind: str) -> None:
    before = server.resident_bytes()
    with agent(server, token) as liar, flood_of(liar.control, FLOODS[kind]):
        assert max(server.good() for _ in range(5)) < SANE_SECONDS
        assert server.resident_bytes() - before < 4 * MEMORY


@pytest.mark.parametrize("what", ["DATA of a byte", "rising cuts"])
def test_a_flood_of_output_slows_nobody_down(server: Team, token: str, what: str) -> None:
    before = server.resident_bytes()
    with agent(server, token) as liar:
        _, serial = ask_again(server, liar)
        liar.starts(serial)
        channel = frames.stream_channel(serial, frames.STDOUT)
        made = [
            frames.frame(frames.DATA, channel, at, b"x")
            if what == "DATA of a byte"
            else frames.frame(frames.EOF, channel, at * 2)
            for at in range(200_000)
        ]
        with flood_of(liar.data, b"".join(made)):
            assert max(server.good() for _ in range(5)) < SANE_SECONDS
            assert server.resident_bytes() - before < 4 * MEMORY


# -- who it says that it is

ODD_HELLOS: dict[str, dict[str, Any]] = {
    "a project that is none": {"project": [b"x"]},
    "a session that is none": {"role": "agent-data", "session": [b"x"]},
    "no session": {"role": "agent-data"},
    "a session of nobody": {"role": "agent-data", "session": "x" * 32},
    "a role that is none": {"role": [b"agent"]},
    "a version that is none": {"wire": "one"},
}


@pytest.mark.parametrize("how", ODD_HELLOS)
@pytest.mark.parametrize("known", [True, False])
def test_a_hello_that_cannot_be_is_refused(server: Team, token: str, how: str, known: bool) -> None:
    role, *_ = (ODD_HELLOS[how].get("role", "agent"),)
    more = {name: value for name, value in ODD_HELLOS[how].items() if name != "role"}
    with Frames(server.tls(), hello(token if known else "x", role, **more)) as peer:
        assert [kind for kind, _ in peer.answers()] == [frames.ERROR]


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": {**CAPACITY, "gpus": [{"kind": "a100"}]}},
        {"capacity": {**CAPACITY, "gpus": [{"uuid": 1, "kind": 2}]}},
        {"capacity": {**CAPACITY, "host": "a\0b"}},
        {"capacity": {**CAPACITY, "cpus_milli": -1}},
        {"name": "a\0b"},
    ],
)
def test_a_machine_that_cannot_be_does_not_join(server: Team, changes: dict[str, Any]) -> None:
    body = {"name": "", "capacity": CAPACITY, "shared": True, **changes}
    with server.http(Authorization=f"Bearer {server.join_token()}") as client:
        answer = client.post("/runners/join", json=body)
        assert (answer.status_code, code_of(answer)) == (400, "bad_request")
