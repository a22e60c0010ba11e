"""``updraft status``, ``stop``, ``serve`` and ``doctor``."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import updraft as package
from tests.cli.calling import (
    Gate,
    ask,
    call,
    ended,
    finish,
    served,
    start,
    submit,
    updraft,
    wait_state,
)
from tests.server.https import self_signed
from tests.waiting import until
from updraft import settings
from updraft.cli import findings
from updraft.testing.instance import Instance, instance
from updraft.wire.fleet_schemas import RunnerInfo
from updraft.wire.schemas import Status


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Instance]:
    """A fresh instance; nothing runs yet."""
    with instance(tmp_path / "home") as made:
        yield made


PATHS = {"state", "socket", "database", "logs", "log", "config"}


# -- status


def test_status_of_what_does_not_run_starts_nothing(own: Instance) -> None:
    said = updraft(own, "status")

    lines = said.out.splitlines()
    assert lines[:3] == [
        f"client    {package.__version__}",
        "server    not running; the next urun starts it",
        "runner    -",
    ]
    assert [line.split()[0] for line in lines[3:]] == [
        "state", "socket", "database", "logs", "log", "config",
    ]  # fmt: skip
    assert (said.err, said.code) == ("", 0)
    found = ask(own, "status")
    assert (found["running"], found["server"], found["runner"]) == (False, None, None)
    assert set(found["paths"]) == PATHS
    assert own.processes() == []
    assert not (own.home / "state").exists()


def test_status_json_has_processes_versions_and_paths(updraft_home: Instance) -> None:
    found = ask(updraft_home, "status")

    assert found["running"] is True
    assert found["server"]["pid"] == updraft_home.processes("server")[0]
    assert found["runner"]["pid"] == updraft_home.processes("keeper")[0]
    assert found["runner"]["agent_pid"] == updraft_home.processes("agent")[0]
    version = package.__version__
    assert found["versions"] == {"client": version, "server": version, "runner": version}
    assert found["server"]["version"] == found["runner"]["version"] == version
    assert set(found["paths"]) == PATHS
    for name in ("state", "socket", "database", "logs", "log"):
        assert Path(found["paths"][name]).exists(), name
    assert found["jobs"] == {"running": 0, "in_queue": 0}


def test_status_is_readable(updraft_home: Instance) -> None:
    lines = updraft(updraft_home, "status").out.splitlines()

    assert re.fullmatch(r"server    \S+, pid \d+, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[1])
    assert re.fullmatch(r"runner    \S+, pid \d+, agent \d+, \d+ of \d+ CPUs free", lines[2])
    assert lines[-7] == "jobs      0 running, 0 waiting"


# -- stop


def test_stop_of_what_does_not_run_says_so(own: Instance) -> None:
    said = updraft(own, "stop")

    assert (said.error, said.code) == ("updraft: the server is not running", 0)
    assert own.processes() == []


def test_stop_is_refused_while_a_job_lives(own: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert call(own, "urun", "-q", "true").code == 0
    job = submit(own, "sh", "-c", gate.read())
    said = updraft(own, "stop")

    assert said.code == 1
    assert said.error == (
        "updraft: 1 job is running and 0 waiting; wait for them with --drain, or end them with "
        "--cancel"
    ) or said.error.startswith("updraft: 0 jobs are running and 1 waiting")
    gate.open()
    assert updraft(own, "job", "wait", job).code == 0
    said = updraft(own, "stop")
    assert (said.error, said.code) == ("updraft: stopped", 0)
    until(lambda: not own.processes(), "all processes to be gone")


def test_stop_drain_waits_for_the_jobs_and_takes_no_new_ones(own: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    assert call(own, "urun", "-q", "true").code == 0
    job = submit(own, "sh", "-c", f"{gate.read()}; exit 3")
    wait_state(own, job, "RUNNING")
    draining = start(own, "updraft", "stop", "--drain")
    assert draining.stderr is not None
    assert draining.stderr.readline() == b"updraft: waiting for 1 job to end\n"
    until(lambda: call(own, "ubatch", "true").code == 125, "new jobs to be refused")
    watching = start(own, "updraft", "job", "watch", "--json", job)
    assert watching.stdout is not None
    assert b"IN_QUEUE" in watching.stdout.readline()
    gate.open()
    said = finish(draining)

    assert (said.out, said.err, said.code) == ("", "updraft: stopped\n", 0)
    assert [json.loads(line)["kind"] for line in finish(watching).out.splitlines()] == [
        "RUNNING",
        "SUCCESS",
    ]
    until(lambda: not own.processes(), "all processes to be gone")


def test_stop_cancel_ends_jobs_and_their_followers(own: Instance) -> None:
    assert call(own, "urun", "-q", "true").code == 0
    job = submit(own, "sh", "-c", "echo here; sleep 1000")
    following = start(own, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert following.stdout.readline() == b"here\n"
    said = updraft(own, "stop", "--cancel")

    assert (said.error, said.code) == ("updraft: stopped", 0)
    assert finish(following).code == 0
    until(lambda: not own.processes(), "all processes to be gone")
    assert ask_started(own, job)["state"] == "CANCELLED"


def ask_started(own: Instance, job: str) -> dict[str, object]:
    """Return a job of an instance that was stopped: asking starts it."""
    said = updraft(own, "job", "show", job, "--json")
    assert said.err.startswith("updraft: started a server for you")
    found: dict[str, object] = json.loads(said.out)
    return found


def test_stop_after_a_kill_9_of_the_server_stops_what_would_bring_it_back(own: Instance) -> None:
    assert call(own, "urun", "-q", "true").code == 0
    assert own.kill("server") == 1
    said = updraft(own, "stop")

    assert (said.err.splitlines()[-1], said.code) == ("updraft: stopped", 0)
    until(lambda: not own.processes(), "all processes to be gone")


def test_drain_and_cancel_exclude_each_other(own: Instance) -> None:
    said = updraft(own, "stop", "--drain", "--cancel")

    assert said.code == 2
    assert said.error == (
        "updraft stop: --drain and --cancel exclude each other; see: updraft stop --help"
    )


# -- serve


def test_serve_runs_in_the_foreground_until_ctrl_c(own: Instance) -> None:
    serving = start(own, "updraft", "serve")
    until(lambda: ask(own, "status")["running"], "the server")
    assert ask(own, "status")["server"]["pid"] == serving.pid
    assert call(own, "urun", "echo", "hi").out == "hi\n"
    another = updraft(own, "serve")
    assert another.code == 1
    assert another.error == (
        f"updraft: a server runs already (pid {serving.pid}); end it: updraft stop"
    )
    serving.send_signal(signal.SIGINT)

    assert finish(serving).code == 0
    until(lambda: not own.processes(), "all processes to be gone")


def test_a_team_s_server_says_whose_user_the_jobs_of_its_own_pool_are(
    own: Instance, tmp_path: Path
) -> None:
    config = tmp_path / "team.toml"
    config.write_text(
        '[server]\nlisten = "127.0.0.1:0"\ncertificate = "self-signed"\nlocal_pool = true\n'
    )
    own.environment["UPDRAFT_CONFIG"] = str(config)
    serving = start(own, "updraft", "serve")
    assert serving.stderr is not None
    lines: list[bytes] = []
    while b"local_pool" not in b"".join(lines):
        lines.append(serving.stderr.readline())
        assert lines[-1], lines
    assert b"jobs of the pool local run as this server's own user" in lines[-1]
    serving.send_signal(signal.SIGINT)
    assert finish(serving).code == 0


def test_a_team_s_server_that_is_down_is_started_by_nobody_else(own: Instance) -> None:
    flags = ("--listen", "127.0.0.1:0", "--self-signed")
    serving = start(own, "updraft", "serve", *flags)
    until(lambda: ask(own, "status")["running"], "the server")
    serving.kill()
    finish(serving)
    line = (
        f"the server of {own.state} serves other machines too and is down; start it: updraft serve "
        "--listen 127.0.0.1:0 --self-signed (or systemctl start updraft-server, if that runs it)"
    )
    said, job = updraft(own, "runner", "list"), call(own, "urun", "true")

    assert (said.error, said.code) == (f"updraft: {line}", 1)
    assert (job.error, job.code) == (f"urun: {line}", 125)
    assert own.processes() == []
    assert "not running; start it: updraft serve --listen" in updraft(own, "status").out
    alone = start(own, "updraft", "serve")
    until(lambda: ask(own, "status")["running"], "the server")
    alone.send_signal(signal.SIGINT)
    finish(alone)
    assert call(own, "urun", "-q", "true").code == 0  # it is one machine's again


def test_a_configuration_for_a_team_starts_no_server_in_the_background(
    own: Instance, tmp_path: Path
) -> None:
    config = tmp_path / "team.toml"
    config.write_text('[server]\nlisten = "127.0.0.1:0"\ncertificate = "self-signed"\n')
    own.environment["UPDRAFT_CONFIG"] = str(config)
    said = updraft(own, "job", "list")

    assert said.code == 1
    assert "is down; start it: updraft serve (or systemctl" in said.error
    assert own.processes() == []


def test_serve_reads_the_configuration_it_is_given(own: Instance, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[server]\noutput_quota = "64K"\n')
    serving = start(own, "updraft", "serve", "--config", str(config))
    until(lambda: ask(own, "status")["running"], "the server")
    job = ended(own, "head", "-c", "400000", "/dev/zero")

    assert len(updraft(own, "logs", job).out) < 200_000
    serving.send_signal(signal.SIGINT)
    assert finish(serving).code == 0


def test_serve_stays_however_long_it_is_idle(own: Instance, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[server]\nidle_stop = "100ms"\n')
    serving = start(own, "updraft", "serve", "--config", str(config))
    until(lambda: ask(own, "status")["running"], "the server")
    with pytest.raises(subprocess.TimeoutExpired):
        serving.wait(1.0)

    assert call(own, "urun", "echo", "hi").err == ""
    serving.send_signal(signal.SIGINT)
    assert finish(serving).code == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [("[server]\nidle = 1\n", "'idle'"), ("[server", "TOML")],
)
def test_serve_refuses_a_bad_configuration_in_one_line(
    own: Instance, tmp_path: Path, text: str, names: str
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text)
    said = updraft(own, "serve", "--config", str(config))

    assert said.code == 1
    assert str(config) in said.error
    assert names in said.error
    assert own.processes() == []


TLS = 'listen = "127.0.0.1:0"\ncertificate = "{folder}/tls.crt"\nkey = "{folder}/tls.key"\n'
OTHER = TLS.replace("tls.key", "other/tls.key")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[server]\nlisten = "127.0.0.1:{port}"\n', "cannot listen on 127.0.0.1:{port}: "),
        (
            '[server]\nlisten = "192.0.2.7:7443"\ncertificate = "self-signed"\n',
            "cannot listen on 192.0.2.7:7443: ",
        ),
        (
            f"[server]\n{TLS.replace('tls.crt', 'gone')}",
            "cannot read the certificate {folder}/gone",
        ),
        (f"[server]\n{TLS.replace('tls.key', 'gone')}", "cannot read the key {folder}/gone"),
        (f"[server]\n{OTHER}", "and to belong together"),
        (
            '[telemetry]\nmetrics_token_file = "{folder}/gone"\n',
            "cannot read the secret in {folder}/gone: No such file or directory",
        ),
        ('[backup]\nfolder = "/proc/backups"\n', "backup.folder: cannot make /proc/backups: "),
        (
            '[server]\ndatabase = "postgresql://anna@127.0.0.1:{closed}/updraft"\n',
            "cannot use the database updraft at 127.0.0.1: connection ",
        ),
    ],
)
def test_serve_says_in_one_line_what_it_cannot_use(
    own: Instance, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        key, certificate, _ = self_signed(folder)
        key.rename(folder / "tls.key")
        certificate.rename(folder / "tls.crt")
    config = tmp_path / "mine.toml"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        closed = free.getsockname()[1]
        free.close()
        names = {"port": taken.getsockname()[1], "folder": tmp_path, "closed": closed}
        config.write_text(text.format(**names))
        result = call(own, "updraft", "serve", "--config", str(config))

    *before, line = result.err.splitlines()
    assert " ERROR cannot serve: " in line
    assert said.format(**names) in line
    assert all("certificate fingerprint" in each for each in before), before
    assert result.code == 1
    assert own.processes() == []


# -- doctor

LINE = re.compile(r"(OK|WARN|FAIL) +([^:]+): (.+)")


def test_doctor_has_a_line_for_everything_and_starts_nothing(own: Instance) -> None:
    said = updraft(own, "doctor")

    checks = {}
    for line in said.out.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        checks[match[2]] = match[1]
        assert (match[1] == "OK") == ("; to mend it: " not in line), line
    assert checks.keys() >= {
        "python", "updraft", "user", "configuration", "state folder", "disk", "socket",
        "terminals", "open files", "server", "memory limits", "process limits", "process trees",
        "GPUs",
    }  # fmt: skip
    assert "FAIL" not in checks.values()
    assert (said.err, said.code) == ("", 0)
    assert own.processes() == []
    assert not (own.home / "state").exists()


def test_doctor_json_has_the_same_lines(updraft_home: Instance) -> None:
    found = ask(updraft_home, "doctor")

    for finding in found:
        assert set(finding) == {"level", "check", "finding", "mend"}
        assert finding["level"] in ("OK", "WARN", "FAIL")
        assert (finding["mend"] == "") == (finding["level"] == "OK"), finding
    assert {"server", "runner"} <= {finding["check"] for finding in found}


def test_a_server_without_a_local_pool_tells_of_the_runners_that_joined(own: Instance) -> None:
    with served(own, "[server]\nlocal_pool = false\n[pools.main]\n"):
        lines = updraft(own, "doctor").out.splitlines()
        assert (
            "WARN  runners: none has joined; to mend it: let a machine join: updraft runner token "
            "POOL --line"
        ) in lines
        assert [line for line in lines if " runner: " in line] == []
        shown = updraft(own, "status").out
        status = Status.model_validate(
            {key: value for key, value in ask(own, "status").items() if key in Status.model_fields}
        )
    assert "none on this machine; see: updraft runner list\n" in shown
    folders = settings.folders(own.environment)

    def found(**states: str) -> findings.Finding:
        runners = [
            RunnerInfo(
                name=name, pool="main", state=state, seen_seconds=None, serves=None, release=None,
                cpus=1, cpus_free=1, memory_bytes=0, memory_free_bytes=0, gpus=[], gpus_free=0,
                tasks=0,
            )
            for name, state in states.items()
        ]  # fmt: skip
        (said,) = (
            each for each in findings.running(folders, status, runners) if each.check == "runners"
        )
        return said

    assert found(a="ready", b="draining", c="ready") == findings.Finding(
        "OK", "runners", "1 draining, 2 ready"
    )
    assert found(a="ready", b="away", c="lost") == findings.Finding(
        "WARN", "runners", "1 away, 1 lost, 1 ready", "see the log of the runner on b, c"
    )


def test_serve_for_others_without_a_certificate_names_the_mend(own: Instance) -> None:
    said = updraft(own, "serve", "--listen", "0.0.0.0:7443")
    assert (said.error, said.code) == (
        "updraft: command line: server.listen: 0.0.0.0:7443 is reached from other machines, and "
        "credentials would pass in the clear; set server.certificate (to files, or to "
        '"self-signed"), or serve with --self-signed',
        1,
    )
    assert own.processes() == []


def test_doctor_names_what_is_wrong_and_exits_with_1(own: Instance) -> None:
    config = own.home / "config"
    config.mkdir(parents=True)
    (config / "updraft.toml").write_text("[server")
    said = updraft(own, "doctor")

    assert said.code == 1
    (failed,) = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert failed.startswith(f"FAIL  configuration: {config / 'updraft.toml'} is not valid TOML")
    assert failed.endswith("; to mend it: correct the file")


@pytest.mark.root
def test_doctor_refuses_a_state_folder_of_another_user(own: Instance) -> None:
    state = own.home / "state"
    state.mkdir(parents=True)
    os.chown(state, 12345, 12345)
    said = updraft(own, "doctor")
    os.chown(state, 0, 0)

    assert said.code == 1
    assert any(line.startswith("FAIL  state folder:") for line in said.out.splitlines())


def test_doctor_tells_a_dead_socket(own: Instance) -> None:
    assert call(own, "urun", "-q", "true").code == 0
    socket = own.state / "server.sock"
    assert updraft(own, "stop").code == 0
    socket.unlink(missing_ok=True)
    os.mknod(socket, 0o600 | 0o140000)
    said = updraft(own, "doctor")

    assert said.code == 0
    (line,) = [line for line in said.out.splitlines() if line.startswith("OK    socket: ")]
    assert line.startswith(f"OK    socket: {socket}")
    assert line.endswith("; a dead one, replaced at the next start")
