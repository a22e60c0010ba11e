"""The HTTP API: pages, filters, errors of one shape, and what requests change."""

import asyncio
import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import ME, Api, lines, with_api
from updraft import errors
from updraft.model.access import Principal
from updraft.store import jobs as queries
from updraft.wire import schemas
from updraft.wire.packing import unpack_dict

pytestmark = pytest.mark.usefixtures("either_database")

OWNER = Principal(f"uid:{os.geteuid()}", server_admin=True)


def error_of(answer: Any) -> tuple[int, str, str]:
    """Check that an error has the one shape; return status, code and message."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    message = body["error"]["message"]
    assert "\n" not in message
    return answer.status_code, body["error"]["code"], message


# -- lists


def test_pages_hold_every_job_once_newest_first(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        submitted = [await made.submit(f"key-number-{n}") for n in range(7)]
        for limit in (1, 2, 3, 7, 8, 500):
            assert await made.ids(f"limit={limit}") == submitted[::-1]

    with_api(tmp_path, check)


def test_a_page_is_not_disturbed_by_jobs_that_come_meanwhile(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        old = [await made.submit(f"key-number-{n}") for n in range(4)]
        first = (await made.ask("GET", "/jobs?limit=2")).json()
        await made.submit("a-later-key")
        second = (await made.ask("GET", f"/jobs?limit=2&cursor={first['next_cursor']}")).json()
        shown = [job["id"] for page in (first, second) for job in page["jobs"]]
        assert shown == old[::-1]

    with_api(tmp_path, check)


def test_filters_hold_together_and_across_pages(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        ids = {
            n: await made.submit(f"key-number-{n}", labels={"odd": str(n % 2), "n.m": str(n)})
            for n in range(6)
        }
        for n in (1, 2, 3):
            await made.ask("POST", f"/jobs/{ids[n]}/cancel")
        assert await made.ids("state=CANCELLED&limit=1") == [ids[3], ids[2], ids[1]]
        assert await made.ids("state=IN_QUEUE&limit=2") == [ids[5], ids[4], ids[0]]
        assert await made.ids("state=IN_QUEUE&state=CANCELLED&limit=4") == [
            ids[n] for n in (5, 4, 3, 2, 1, 0)
        ]
        assert await made.ids("failed=true") == [ids[3], ids[2], ids[1]]
        assert await made.ids("label=odd=1&limit=1") == [ids[5], ids[3], ids[1]]
        assert await made.ids("label=odd=1&label=n.m=3&state=CANCELLED") == [ids[3]]
        assert await made.ids("label=odd=1&label=n.m=2") == []
        assert await made.ids("state=RUNNING") == []

    with_api(tmp_path, check)


def test_lists_cut_long_commands_and_show_has_all_of_them(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        words = ["x" * 3000] * 500
        job = await made.submit("the-long-key", argv=["echo", *words])
        (listed,) = (await made.ask("GET", "/jobs")).json()["jobs"]
        assert sum(map(len, listed["command"])) < 5000
        assert listed["command"][0] == "echo"
        assert listed["command"][-1].endswith("…")
        shown = (await made.ask("GET", f"/jobs/{job}")).json()
        assert shown["command"] == ["echo", *words]

    with_api(tmp_path, check)


# -- one job


def test_ids_may_be_cut_short_while_they_are_unique(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        # By chance two of these begin alike; 24 first letters are possible.
        ids = [await made.submit(f"key-number-{n}") for n in range(30)]
        first: dict[str, list[str]] = {}
        for job in ids:
            first.setdefault(job[0], []).append(job)
        for letter, same in first.items():
            answer = await made.ask("GET", f"/jobs/{letter}")
            if len(same) == 1:
                assert answer.json()["id"] == same[0]
            else:
                status, code, message = error_of(answer)
                assert (status, code) == (400, "bad_request")
                assert message == f"several jobs begin with {letter!r}; give more of the id"
        for job in ids:
            assert (await made.ask("GET", f"/jobs/{job}")).json()["id"] == job
        assert (await made.ask("GET", f"/jobs/{ids[0]}x")).status_code == 404
        assert (await made.ask("GET", "/jobs/%25")).status_code == 404

    with_api(tmp_path, check)


def test_a_waiting_job_has_a_reason_and_is_neither_ok_nor_not(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key", name="nightly", memory_bytes=1 << 30, cpus=0.5)
        shown = schemas.Job.model_validate((await made.ask("GET", f"/jobs/{job}")).json())
        assert shown.state == "IN_QUEUE"
        assert shown.ok is None
        assert shown.exit_code is None
        assert re.fullmatch(
            r"runner local is away, and was last heard of \d+ \w+ ago", shown.reason or ""
        )
        assert shown.attempts == []
        assert shown.resources == schemas.Resources(cpus=0.5, memory_bytes=1 << 30, gpus=0)
        assert shown.times.started is None
        (listed,) = (await made.ask("GET", "/jobs")).json()["jobs"]
        assert listed["reason"].startswith("runner local is away")

    with_api(tmp_path, check)


def test_values_of_the_environment_are_shown_nowhere(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit(
            "some-key",
            environment={"TOKEN": "hunter2-forwarded"},
            set_environment={"PASSWORD": "hunter2-set"},
        )
        await made.ask("POST", f"/jobs/{job}/rerun", json={"key": "rerun-key"})
        for path in ("/jobs", f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/wait?seconds=0"):
            assert "hunter2" not in (await made.ask("GET", path)).text
        shown = (await made.ask("GET", f"/jobs/{job}")).json()
        assert shown["environment"] == ["PASSWORD"]

    with_api(tmp_path, check)


# -- requests


def test_a_key_that_comes_twice_is_one_job(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        first = await made.submit("the-same-key")
        assert await made.submit("the-same-key") == first
        rerun = {"key": "the-rerun-key"}
        again = [await made.ask("POST", f"/jobs/{first}/rerun", json=rerun) for _ in range(2)]
        assert again[0].json()["id"] == again[1].json()["id"]
        assert len(await made.ids()) == 2

    with_api(tmp_path, check)


def test_cancel_is_done_once_and_ends_a_waiting_job(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key")
        for _ in range(2):
            answer = await made.ask("POST", f"/jobs/{job}/cancel")
            assert answer.status_code == 200
            assert answer.json()["state"] == "CANCELLED"
            assert answer.json()["ok"] is False
        events = lines(await made.ask("GET", f"/jobs/{job}/events"))
        assert [event["kind"] for event in events] == ["IN_QUEUE", "CANCELLED"]

    with_api(tmp_path, check)


def test_extend_adds_to_a_limit_and_refuses_where_there_is_none(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key", time_limit_seconds=60)
        await asyncio.gather(
            *(made.ask("POST", f"/jobs/{job}/extend", json={"seconds": 30}) for _ in range(4))
        )
        shown = (await made.ask("GET", f"/jobs/{job}")).json()
        assert shown["time_limit_seconds"] == 180
        endless = await made.submit("another-key")
        answer = await made.ask("POST", f"/jobs/{endless}/extend", json={"seconds": 30})
        assert error_of(answer) == (
            409,
            "conflict",
            f"job {endless} has no time limit to extend: it runs until it ends, or is cancelled: "
            f"updraft job cancel {endless}",
        )
        await made.ask("POST", f"/jobs/{job}/cancel")
        answer = await made.ask("POST", f"/jobs/{job}/extend", json={"seconds": 30})
        assert error_of(answer)[1:] == ("conflict", f"job {job} has ended")

    with_api(tmp_path, check)


def test_a_rerun_has_its_callers_environment_and_what_e_had_set(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit(
            "some-key",
            argv=["run", "it"],
            directory="/tmp",
            environment={"FROM_THEN": "1", "BOTH": "then"},
            set_environment={"SET": "by -e"},
            labels={"a": "b"},
            cpus=0.25,
            memory_bytes=1 << 20,
            time_limit_seconds=5,
            retries=3,
        )
        block = b"BOTH=now\0SET=now\0PWD=/elsewhere\0BYTES=\xff"
        answer = await made.ask(
            "POST",
            f"/jobs/{job}/rerun",
            json={"key": "rerun-key", "environment_base64": base64.b64encode(block).decode()},
        )
        assert answer.status_code == 201
        old = (await made.ask("GET", f"/jobs/{job}")).json()
        new = answer.json()
        own = ("id", "times", "source", "linked")
        assert {k: v for k, v in new.items() if k not in own} == {
            k: v for k, v in old.items() if k not in own
        }
        assert new["source"] == job
        assert old["linked"] == [new["id"]]
        live = made.execution.live.find(new["id"])
        assert live is not None
        row = await made.database.read(lambda c: queries.command_of(c, live.serial))
        assert unpack_dict(row.command)["set_environment"] == [b"SET=by -e"]
        environment = made.keys.decrypt(live.key_slot or 0, row.environment or b"")
        assert environment is not None
        assert set(environment.split(b"\0")) == {
            b"BOTH=now",
            b"SET=by -e",
            b"PWD=/tmp",
            b"BYTES=\xff",
        }

    with_api(tmp_path, check)


# -- following


def test_events_follow_to_the_end_and_go_on_behind_a_serial(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key")
        following = asyncio.create_task(made.ask("GET", f"/jobs/{job}/events?follow=true"))
        live = made.execution.live.find(job)
        assert live is not None
        while not made.execution.changes._followers.get(live.serial):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
        assert not following.done()
        await made.ask("POST", f"/jobs/{job}/cancel")
        events = lines(await following)
        assert [event["kind"] for event in events] == ["IN_QUEUE", "CANCELLED"]
        after = events[0]["serial"]
        rest = lines(await made.ask("GET", f"/jobs/{job}/events?after={after}&follow=true"))
        assert rest == events[1:]
        assert not made.execution.changes._followers

    with_api(tmp_path, check)


def test_wait_answers_at_the_end_or_after_its_time(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key")
        early = await made.ask("GET", f"/jobs/{job}/wait?seconds=0.01")
        assert early.json()["state"] == "IN_QUEUE"
        waiting = asyncio.create_task(made.ask("GET", f"/jobs/{job}/wait"))
        await made.ask("POST", f"/jobs/{job}/cancel")
        assert (await waiting).json()["state"] == "CANCELLED"

    with_api(tmp_path, check)


def test_logs_of_a_job_that_never_started_are_empty_and_end_with_it(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key")
        assert (await made.ask("GET", f"/jobs/{job}/logs")).content == b""
        following = asyncio.create_task(made.ask("GET", f"/jobs/{job}/logs/stdout?follow=true"))
        await made.ask("POST", f"/jobs/{job}/cancel")
        assert (await following).content == b""

    with_api(tmp_path, check)


# -- errors


@pytest.mark.parametrize(
    ("method", "path", "body", "names"),
    [
        ("GET", "/jobs?limit=0", None, "limit"),
        ("GET", "/jobs?limit=501", None, "limit"),
        ("GET", "/jobs?limit=x", None, "limit"),
        ("GET", "/jobs?state=DONE", None, "state"),
        ("GET", "/jobs?label=colour", None, "label"),
        ("GET", "/jobs?label=%22=x", None, "label"),
        ("GET", "/jobs?cursor=nothing", None, "cursor"),
        ("GET", "/jobs?failed=perhaps", None, "failed"),
        ("POST", "/jobs", None, "the body"),
        ("POST", "/jobs", {}, "key"),
        ("POST", "/jobs", {"key": "short", "argv": ["a"], "directory": "/"}, "key"),
        ("POST", "/jobs", {"key": "long-enough", "argv": [], "directory": "/"}, "argv"),
        ("POST", "/jobs", {"key": "long-enough", "argv": ["a\0"], "directory": "/"}, "argv"),
        ("POST", "/jobs", {"key": "long-enough", "argv": [1], "directory": "/"}, "argv"),
        ("POST", "/jobs", {"key": "long-enough", "argv": "ls", "directory": "/"}, "argv"),
        ("POST", "/jobs", {"key": "long-enough", "argv": ["a"], "directory": "here"}, "directory"),
        ("POST", "/jobs", {"key": "long-enough", "argv": ["a"], "directory": "/", "x": 1}, "x"),
        (
            "POST",
            "/jobs",
            {"key": "long-enough", "argv": ["a"], "directory": "/", "environment": {"a=b": "c"}},
            "environment",
        ),
        (
            "POST",
            "/jobs",
            {"key": "long-enough", "argv": ["a"], "directory": "/", "pool": "nowhere"},
            "nowhere",
        ),
        (
            "POST",
            "/jobs",
            {"key": "long-enough", "argv": ["a"], "directory": "/", "name": "a\nb"},
            "name",
        ),
        ("POST", "/jobs/{job}/extend", {"seconds": 0}, "seconds"),
        ("POST", "/jobs/{job}/extend", {"seconds": 1e300}, "seconds"),
        ("POST", "/jobs/{job}/rerun", {"key": "long-enough", "environment_base64": "*"}, "base64"),
        ("POST", "/jobs/{job}/rerun", {"key": "long-enough", "environment_base64": "é"}, "base64"),
        ("GET", "/jobs/{job}/logs?tail=-1", None, "tail"),
        ("GET", "/jobs/{job}/logs?since=yesterday", None, "since"),
        ("GET", "/jobs/{job}/logs?since=2026-01-31T12:00:00", None, "since"),
        ("GET", "/jobs/{job}/logs?stream=stdin", None, "stream"),
        ("GET", "/jobs/{job}/logs/stdin", None, "stream"),
        ("GET", "/jobs/{job}/wait?seconds=-1", None, "seconds"),
        ("GET", "/jobs/{job}/events?after=-1", None, "after"),
        ("POST", "/stop", {"mode": "now"}, "mode"),
    ],
)
def test_bad_input_gets_one_error_that_names_the_field_and_changes_nothing(
    tmp_path: Path, method: str, path: str, body: Any, names: str
) -> None:
    async def check(made: Api) -> None:
        job = await made.submit("some-key", time_limit_seconds=60)
        before = (await made.ask("GET", f"/jobs/{job}")).json()
        answer = await made.ask(method, path.replace("{job}", job), asker(path), json=body)
        status, code, message = error_of(answer)
        assert (status, code) == (400, "bad_request")
        assert names in message
        assert await made.ids() == [job]
        assert (await made.ask("GET", f"/jobs/{job}")).json() == before

    with_api(tmp_path, check)


@pytest.mark.parametrize("field", ["environment", "set_environment", "argv", "directory"])
def test_half_a_character_is_no_text_of_a_command(tmp_path: Path, field: str) -> None:
    async def check(made: Api) -> None:
        half: Any = {"argv": ["\ud800"], "directory": "/\ud800"}.get(field, {"A": "\ud800"})
        body = {"key": "some-key", "argv": ["true"], "directory": "/", field: half}
        headers = {"Content-Type": "application/json"}
        content = json.dumps(body)
        answer = await made.ask("POST", "/jobs", content=content, headers=headers)
        status, code, message = error_of(answer)
        assert (status, code) == (400, "bad_request")
        assert field.removeprefix("set_") in message

    with_api(tmp_path, check)


def asker(path: str) -> Principal:
    return OWNER if path == "/stop" else ME


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", (404, "not_found")),
        ("DELETE", "/jobs", (405, "bad_request")),
        ("GET", "/jobs/nothing", (404, "not_found")),
        ("GET", "/jobs/nothing/logs", (404, "not_found")),
        ("GET", "/jobs/nothing/events", (404, "not_found")),
        ("POST", "/jobs/nothing/cancel", (404, "not_found")),
    ],
)
def test_what_is_not_there_is_an_error_of_the_same_shape(
    tmp_path: Path, method: str, path: str, expected: tuple[int, str]
) -> None:
    async def check(made: Api) -> None:
        assert error_of(await made.ask(method, path))[:2] == expected

    with_api(tmp_path, check)


def test_a_failure_of_ours_is_told_without_its_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(made: Api) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(queries, "find_jobs", fail)
        status, code, message = error_of(await made.ask("GET", "/jobs"))
        assert (status, code) == (500, "internal")
        assert "secret" not in message

    with_api(tmp_path, check)


def test_stop_is_refused_while_a_job_lives(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await made.submit("some-key", OWNER)
        answer = await made.ask("POST", "/stop", OWNER, json={})
        assert error_of(answer) == (
            409,
            "conflict",
            "0 jobs are running and 1 waiting; wait for them with --drain, or end them with "
            "--cancel",
        )

    with_api(tmp_path, check)


# -- the document


def test_the_document_describes_every_answer_and_our_errors_only(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        answer = await made.ask("GET", "/openapi.json")
        assert answer.json() == made.document
        for path, operations in made.document["paths"].items():
            beside = ("/healthz", "/readyz", "/metrics", "/join", "/wheels/")
            assert path.startswith("/api/v1/") or path.partition("{")[0] in beside
            for operation in operations.values():
                assert operation["summary"]
                assert "422" not in operation["responses"]
                for family in ("4XX", "5XX"):
                    content = operation["responses"][family]["content"]["application/json"]
                    assert content["schema"] == {"$ref": "#/components/schemas/Error"}
        assert "HTTPValidationError" not in made.document["components"]["schemas"]

    with_api(tmp_path, check)


def test_every_error_comes_back_as_itself() -> None:
    for kind in (errors.NotFound, errors.Conflict, errors.BadRequest, errors.DiskFull):
        assert type(errors.from_code(kind.code, "m")) is kind
