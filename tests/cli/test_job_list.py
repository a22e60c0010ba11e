"""``updraft job list``: which jobs, in which form."""

import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import Gate, ask, call, ended, submit, updraft, wait_state
from updraft.testing.instance import Instance, instance
from updraft.wire import schemas


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, dict[str, str]]]:
    """An instance with one job of each kind, oldest first."""
    folder = tmp_path_factory.mktemp("jobs")
    gate = Gate(folder)
    with instance(folder / "home") as own:
        assert call(own, "urun", "-q", "-n", "first", "true").code == 0
        kinds = {"first": ask(own, "job", "list", "--all")[0]["id"]}
        kinds["failed"] = ended(own, "-n", "failed", "-l", "team=a", "sh", "-c", "exit 3")
        kinds["expired"] = ended(own, "-n", "expired", "--time", "50ms", "sleep", "60")
        kinds["running"] = submit(
            own, "-n", "running", "-l", "team=a", "--cpus", "0", "sh", "-c", gate.read()
        )
        wait_state(own, kinds["running"], "RUNNING")
        capacity = ask(own, "status")["runner"]["cpus"]
        holder = submit(
            own, "-n", "holder", "--cpus", str(capacity), "sh", "-c", Gate(folder, "2").read()
        )
        kinds["holder"] = holder
        wait_state(own, holder, "RUNNING")
        kinds["waiting"] = submit(own, "-n", "waiting", "true")
        yield own, kinds


def shown(output: str) -> list[list[str]]:
    """Return the cells of a plain table without what depends on the clock."""
    rows = [re.split(r" {2,}", line) for line in output.splitlines()]
    for row in rows[1:]:
        assert re.fullmatch(r"\d+(\.\d)?[smhd].*", row[4])
        row[4] = "AGE"
        row[5] = "-" if row[5] == "-" else "TIME"
    return rows


HEADER = ["ID", "STATE", "OK", "EXIT", "AGE", "TIME", "NAME", "COMMAND", "REASON"]


def test_list_shows_what_has_not_ended(
    jobs: tuple[Instance, dict[str, str]],
) -> None:
    own, ids = jobs
    said = updraft(own, "job", "list")

    assert (said.err, said.code) == ("", 0)
    rows = shown(said.out)
    assert rows[0] == HEADER
    assert [row[0] for row in rows[1:]] == [ids["waiting"], ids["holder"], ids["running"]]
    assert rows[1][1:8] == ["IN_QUEUE", "-", "-", "AGE", "-", "waiting", "true"]
    assert re.fullmatch(r"next in pool local, waits for 1 CPUs?; 0 are free", rows[1][8])
    assert rows[3][1:7] == ["RUNNING", "-", "-", "AGE", "TIME", "running"]


def test_list_all_tells_ok_from_success(jobs: tuple[Instance, dict[str, str]]) -> None:
    own, ids = jobs
    rows = {row[0]: row for row in shown(updraft(own, "job", "list", "--all").out)[1:]}

    assert len(rows) == 6
    assert rows[ids["first"]][1:4] == ["SUCCESS", "yes", "0"]
    assert rows[ids["failed"]][1:4] == ["SUCCESS", "no", "3"]
    assert rows[ids["failed"]][6:] == ["failed", "sh -c 'exit 3'", "exited with 3"]
    assert rows[ids["expired"]][1:3] == ["EXPIRED", "no"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--failed"], ["expired", "failed"]),
        (["--state", "EXPIRED"], ["expired"]),
        (["--state", "success"], ["failed", "first"]),
        (["--state", "SUCCESS", "--failed"], ["failed"]),
        (["--label", "team=a"], ["running"]),
        (["--all", "-l", "team=a"], ["running", "failed"]),
        (["--all", "-l", "team=b"], []),
        (["--all", "-l", "team=a", "--failed"], ["failed"]),
    ],
)
def test_filters(
    jobs: tuple[Instance, dict[str, str]], filters: list[str], expected: list[str]
) -> None:
    own, ids = jobs

    found = ask(own, "job", "list", *filters)
    assert [job["id"] for job in found] == [ids[name] for name in expected]


def test_limit_says_when_there_is_more(jobs: tuple[Instance, dict[str, str]]) -> None:
    own, ids = jobs
    said = updraft(own, "job", "list", "--all", "--limit", "2")

    assert [row[0] for row in shown(said.out)[1:]] == [ids["waiting"], ids["holder"]]
    assert said.err == "updraft: there are more than 2; raise --limit to see them\n"
    assert updraft(own, "job", "list", "--all", "--limit", "6").err == ""


def test_json_is_the_api_s_and_an_array(jobs: tuple[Instance, dict[str, str]]) -> None:
    own, _ = jobs

    found = ask(own, "job", "list", "--all")
    for job in found:
        assert set(job) == set(schemas.JobSummary.model_fields)
        assert schemas.JobSummary.model_validate(job).model_dump(mode="json") == job
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["times"]["submitted"])
        assert job["ok"] is (
            None if job["times"]["ended"] is None
            else job["state"] == "SUCCESS" and job["exit_code"] == 0
        )  # fmt: skip


def test_nothing_to_show_is_said_and_no_error(jobs: tuple[Instance, dict[str, str]]) -> None:
    own, _ = jobs
    none = updraft(own, "job", "list", "--state", "SUSPENDED")

    assert (none.error, none.code) == ("updraft: no job matches", 0)
    assert ask(own, "job", "list", "--state", "SUSPENDED") == []


def test_a_terminal_gets_a_table_and_no_control_characters_of_a_job(
    tmp_path: Path, updraft_home: Instance
) -> None:
    ended(updraft_home, "printf", "\x1b[2Jgone\n")
    main, other = pty.openpty()
    process = subprocess.Popen(
        updraft_home.command("updraft", "job", "list", "--all"),
        env={**updraft_home.environment, "TERM": "xterm-256color", "COLUMNS": "200"},
        stdin=other, stdout=other, stderr=other,
    )  # fmt: skip
    os.close(other)
    output = b""
    while True:
        try:
            output += os.read(main, 65536)
        except OSError:
            break
    os.close(main)

    assert process.wait(30) == 0
    assert b"\x1b[2J" not in output
    assert rb"\x1b[2Jgone\n" in output
    assert "─".encode() in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--label", "colour"],
            "updraft job list: invalid value for '-l' / '--label': 'colour' is no label; write it "
            "as KEY=VALUE; see: updraft job list --help",
        ),
        (
            ["--limit", "0"],
            "updraft job list: invalid value for '--limit': 0 is not in the range x>=1; see: "
            "updraft job list --help",
        ),
        (
            ["--frobnicate"],
            "updraft job list: no such option '--frobnicate'; see: updraft job list --help",
        ),
        (
            ["extra"],
            "updraft job list: got unexpected extra argument (extra); see: updraft job list --help",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    updraft_home: Instance, arguments: list[str], line: str
) -> None:
    said = updraft(updraft_home, "job", "list", *arguments)

    assert (said.error, said.code) == (line, 2)
