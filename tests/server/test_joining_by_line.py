"""A machine without Updraft becomes a runner with one line, and runs a job: all over real TLS."""

import base64
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cli.calling import Said, ask, call, finish, start, submit, updraft, wait_state
from tests.server.https import self_signed
from tests.waiting import until, wait_gone
from updraft import errors, settings
from updraft.configuration.kinds import Address
from updraft.configuration.schema import Server
from updraft.runner.agent import owners
from updraft.runner.agent.owners import can_isolate
from updraft.runner.keeper.processes import descendants
from updraft.server.auth import certificates
from updraft.server.listening import tls_context
from updraft.server.services.installing import Installing
from updraft.testing.instance import Instance, instance

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ONE_MINUTE = 60.0
FOR_WHOM = "" if can_isolate() is None else f" for uid:{os.geteuid()}"
"""A runner that cannot keep users apart serves one: whoever made its join token."""
JOINED = f"updraft: this machine is runner node7 of pool gpu{FOR_WHOM}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Instance, int]]:
    """A server of a team on loopback, with a certificate of its own."""
    port = free_port()
    with instance(tmp_path / "server") as own:
        words = own.command("updraft", "serve", "--listen", f"127.0.0.1:{port}", "--self-signed")
        with subprocess.Popen(words, env=own.environment, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: can_connect(port), "the server to listen", 30)
                yield own, port
            finally:
                process.terminate()
                process.wait(30)


def ci_steps() -> list[str]:
    """Return the lines with which the page's CIs run a job."""
    page = (Path(__file__).parents[2] / "docs" / "team.md").read_text()
    found = re.findall(r"^ +- (?:run: )?(.*urun.*)$", page, re.MULTILINE)
    assert len(found) == 2
    return found


def end(joined: Instance) -> None:
    """End what is left of a runner; its keeper and its agent bring each other back."""

    def gone() -> bool:
        return joined.kill("keeper") + joined.kill("agent") == 0 and not joined.processes()

    until(gone, "the runner's processes to be gone", 30)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def shell(line: str, home: Path) -> Said:
    """Run a line as on a machine that has no Updraft."""
    environment = {
        "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "UPDRAFT_HOME": str(home / "updraft"),
        "UPDRAFT_VENV": str(home / "venv"),
    }
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=ONE_MINUTE * 2, check=False, start_new_session=True,
    )  # fmt: skip
    return Said(done.stdout, done.stderr, done.returncode)


def test_a_line_makes_a_machine_a_runner_that_runs_jobs(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, _ = server
    machine = os.uname().machine
    built = call(
        own, "updraft", "admin", "wheelhouse", "--python", THIS_PYTHON, "--machine", machine
    )
    if built.code:
        pytest.skip(f"wheels cannot be had here: {built.err}")
    updraft(own, "pool", "create", "gpu")
    made = updraft(own, "runner", "token", "gpu", "--line", "--uses", "1")
    assert (made.err, made.code) == ("", 0)
    line = made.out.rstrip("\n")
    assert re.fullmatch(
        r"\(curl --pinnedpubkey sha256//\S{44} -k -sSf https://\S+/join \|\| "
        r"printf '\\nexit 1\\n'\) \| UPDRAFT_JOIN_TOKEN=\S+ sh",
        line,
    )
    home = tmp_path / "machine"
    began = time.monotonic()
    said = shell(line + " -s -- --name node7", home)
    took = time.monotonic() - began
    try:
        assert said == Said("", f"{JOINED}\n", 0)
        until(lambda: ask(own, "runner", "show", "node7")["state"] == "ready", "the runner", 30)
        assert took < ONE_MINUTE
        ran = call(
            own, "urun", "-P", "gpu", "-C", "/", "sh", "-c", "echo $UPDRAFT_JOB_ID >&2; echo there"
        )
        assert (ran.out, ran.code) == ("there\n", 0), ran.err
        checkout = tmp_path / "checkout"
        checkout.mkdir()
        (checkout / "train.py").write_text("print('trained')")
        for made_so in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
            subprocess.run(["git", *made_so.split()], cwd=checkout, check=True)
        for step in ci_steps():
            done = subprocess.run(
                ["/bin/sh", "-c", f"set -e; PATH={own.commands}:$PATH; {step}"],
                env=own.environment, cwd=checkout, capture_output=True, text=True, check=False,
                timeout=ONE_MINUTE,
            )  # fmt: skip
            assert (done.stdout, done.returncode) == ("trained\n", 0), done.stderr
        assert updraft(own, "runner", "remove", "node7").code == 0
        joined = Instance(home / "updraft", home / "venv" / "bin")
        until(lambda: not joined.processes(), "the runner to end by itself", 30)
    finally:
        end(Instance(home / "updraft", home / "venv" / "bin"))


def test_a_joined_runner_goes_on_in_the_background_and_is_run_in_the_foreground(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    updraft(own, "pool", "create", "gpu")
    token = updraft(own, "runner", "token", "gpu").out
    joined = Instance(tmp_path / "runner")
    none = updraft(joined, "runner", "run")
    assert none.error == "updraft: no runner has joined from here; let one: updraft runner join URL"
    words = ("runner", "join", f"https://127.0.0.1:{port}", "--name", "node7", "--fingerprint")
    certificate = (own.state / "server.crt").read_text()
    pin = "sha256:" + sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
    said = call(joined, "updraft", *words, pin, data=token.encode())
    assert said.error == JOINED

    def state() -> str:
        found: str = ask(own, "runner", "show", "node7")["state"]
        return found

    try:
        # What it has already, it does not become a second time, by whatever name.
        again = call(joined, "updraft", *words[:3], "--fingerprint", pin, data=token.encode())
        assert (again.error, again.code) == (
            "updraft: this machine is runner node7 already; to join it anew, remove that first: "
            "updraft runner remove node7",
            1,
        )
        until(lambda: state() == "ready", "the runner in the background", 30)
        joined.kill_all()  # at once: whoever is left starts the others anew
        until(lambda: not joined.processes(), "its end", 30)
        until(lambda: state() == "away", "the server to notice", 30)
        (folder,) = (path.parent for path in joined.state.glob("runners/*/joined.json"))
        command = joined.command("updraft", "runner", "run", "--folder", str(folder))
        with subprocess.Popen(command, env=joined.environment) as process:
            until(lambda: state() == "ready", "the runner in the foreground", 30)
            assert process.poll() is None
            job = submit(own, "-P", "gpu", "-C", "/", "sleep", "600")
            wait_state(own, job, "RUNNING")
            below = descendants(process.pid)
            assert updraft(own, "runner", "remove", "node7", "--force").code == 0
            # Whatever starts it, as systemd does, is told not to start it again.
            assert process.wait(30) == errors.EXIT_REMOVED
            for pid in below:
                wait_gone(pid, 30)
        until(lambda: not joined.processes(), "its processes to be gone", 30)
    finally:
        end(joined)


def test_a_runner_in_the_background_is_stopped_and_stays_so(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    updraft(own, "pool", "create", "gpu")
    token = updraft(own, "runner", "token", "gpu").out
    joined = Instance(tmp_path / "runner")
    words = ("runner", "join", f"https://127.0.0.1:{port}", "--name", "node7", "--fingerprint")
    certificate = (own.state / "server.crt").read_text()
    pin = "sha256:" + sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
    assert call(joined, "updraft", *words, pin, data=token.encode()).code == 0
    try:
        until(lambda: ask(own, "runner", "show", "node7")["state"] == "ready", "the runner", 30)
        (keeper,) = joined.processes("keeper")
        (folder,) = (path.parent for path in joined.state.glob("runners/*/joined.json"))
        again = updraft(joined, "runner", "run")
        assert (again.error, again.code) == (
            f"updraft: runner node7 runs already (pid {keeper}); end it: "
            f"updraft runner stop --folder {folder}",
            1,
        )
        job = submit(own, "-P", "gpu", "-C", "/", "--retries", "0", "sleep", "600")
        wait_state(own, job, "RUNNING")
        refused = updraft(joined, "runner", "stop")
        assert (refused.error, refused.code) == (
            "updraft: runner node7 has 1 task; let them end (on the server: updraft runner drain "
            "node7), or end them with --cancel",
            1,
        )
        said = updraft(joined, "runner", "stop", "--cancel")
        assert said.error == (
            "updraft: runner node7 was stopped; to start it again: updraft runner run"
        )
        until(lambda: not joined.processes(), "its processes to be gone", 30)
        ended = wait_state(own, job, "FAILURE")
        assert ended["reason"] == "its runner was stopped, and its processes were ended"
        assert updraft(joined, "runner", "stop").error == "updraft: runner node7 is not running"
        with subprocess.Popen(
            joined.command("updraft", "runner", "run"), env=joined.environment
        ) as process:
            until(lambda: ask(own, "runner", "show", "node7")["state"] == "ready", "it again", 30)
            process.terminate()
            assert process.wait(30) == 0
        assert joined.processes() == []
    finally:
        end(joined)


def test_a_container_that_is_started_again_goes_on_as_its_runner(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    updraft(own, "pool", "create", "gpu")
    joined = Instance(tmp_path / "runner")
    joined.environment["UPDRAFT_JOIN_TOKEN"] = updraft(
        own, "runner", "token", "gpu", "--uses", "1"
    ).out.strip()
    certificate = (own.state / "server.crt").read_text()
    pin = "sha256:" + sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
    words = ("runner", "join", f"https://127.0.0.1:{port}", "--foreground", "--fingerprint", pin)

    def state() -> str:
        (runner,) = ask(own, "runner", "list")
        return str(runner["state"])

    try:
        first = start(joined, "updraft", *words)
        assert first.stderr is not None
        name = first.stderr.readline().split()[5].decode()
        until(lambda: state() == "ready", "the runner", 30)
        first.terminate()
        assert finish(first).code == 0
        until(lambda: state() == "away", "the server to notice", 30)
        again = start(joined, "updraft", *words)
        assert again.stderr is not None
        said = again.stderr.readline().decode()
        assert said == f"updraft: this machine goes on as runner {name} of pool gpu\n"
        until(lambda: state() == "ready", "the runner again", 30)
        again.terminate()
        assert finish(again).code == 0
    finally:
        end(joined)


@pytest.mark.root
def test_owners_get_user_ids_of_the_range_that_the_machine_is_configured_with(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    if (why := owners.can_isolate()) is not None:
        pytest.skip(why)
    own, port = server
    updraft(own, "pool", "create", "gpu")
    token = updraft(own, "runner", "token", "gpu").out
    joined = Instance(tmp_path / "runner")
    config = joined.home / "config"
    config.mkdir(parents=True)
    words = ("runner", "join", f"https://127.0.0.1:{port}", "--name", "node7", "--fingerprint")
    certificate = (own.state / "server.crt").read_text()
    pin = "sha256:" + sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()

    def join(uids: str) -> Said:
        (config / "updraft.toml").write_text(f'[runner]\nuid_range = "{uids}"\n')
        return call(joined, "updraft", *words, pin, data=token.encode())

    refused = join("60000-70000")
    assert refused.error == (
        "updraft: runner.uid_range: 60000-70000 has the user id 65534, which is nobody's; choose a "
        "range without accounts"
    )
    assert ask(own, "runner", "list") == []
    try:
        assert join("410000-410009").code == 0
        until(lambda: ask(own, "runner", "show", "node7")["state"] == "ready", "the runner", 30)
        ran = call(own, "urun", "-P", "gpu", "-C", "/", "id", "-u")
        assert ran.code == 0, ran.err
        assert int(ran.out) in range(410_000, 410_010)
    finally:
        end(joined)


def test_what_is_served_is_public_and_only_what_is_in_the_wheelhouse(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    url = f"https://127.0.0.1:{port}"

    def get(path: str) -> tuple[str, str]:
        done = shell(
            f"curl -k -s --path-as-is -w '\\n%{{http_code}}' '{url}{path}'", tmp_path / "m"
        )
        body, _, code = done.out.rpartition("\n")
        return code, body

    said = shell(f"curl -k -sSf {url}/join | sh", tmp_path / "m")
    assert (said.error, said.code) == (
        "updraft: this server has no wheelhouse yet; its admin makes one: updraft admin wheelhouse",
        1,
    )
    house = own.state / "wheelhouse"
    house.mkdir()
    (house / "some_thing-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    (house / "secret.txt").write_text("no wheel")
    (house / "link.whl").mkdir()
    assert get("/wheels/some_thing-1.0-py3-none-any.whl") == ("200", "a wheel")
    code, index = get("/wheels/")
    assert (code, index.count("<a href"), "secret" in index) == ("200", 1, False)
    for path in ("secret.txt", "link.whl", "nosuch.whl", "%2e%2e%2fupdraft.db"):
        assert get(f"/wheels/{path}")[0] in ("401", "404"), path
    assert get("/wheels/../updraft.db")[0] in ("401", "404")
    code, script = get("/join")
    assert (code, f"url='{url}'" in script) == ("200", True)
    assert re.search(r"^fingerprint='sha256:[0-9a-f]{64}'$", script, re.MULTILINE)
    assert re.search(r"^pin='sha256//\S{44}'$", script, re.MULTILINE)
    # A host that is none is not put into a script.
    told = shell(f'curl -k -s -H "Host: x\'; rm -rf /" {url}/join', tmp_path / "m").out
    assert "rm -rf /'" not in told


def test_the_line_fails_where_curl_gets_nothing(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    updraft(own, "pool", "create", "gpu")
    line = updraft(own, "runner", "token", "gpu", "--line").out.rstrip("\n")
    other = base64.b64encode(bytes(32)).decode()
    for wrong in (
        line.replace(f":{port}/", f":{free_port()}/"),
        re.sub(r"sha256//\S{44}", f"sha256//{other}", line),
        line.replace("/join ", "/nosuch "),
    ):
        assert wrong != line
        said = shell(wrong, tmp_path / "m")
        assert re.match(r"curl: \(\d+\) ", said.error)
        assert said.code == 1


def test_no_part_of_the_script_does_anything_and_each_fails(
    server: tuple[Instance, int], tmp_path: Path
) -> None:
    own, port = server
    house = own.state / "wheelhouse"
    house.mkdir()
    (house / "some_thing-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    script = shell(f"curl -k -sSf https://127.0.0.1:{port}/join", tmp_path / "m").out
    assert script.endswith('{ main "$@"; }\n')
    cuts = {0, 1, script.index("set -eu") + 3, script.index("main()"), len(script) // 2}
    cuts |= set(range(script.index('{ main "$@"; }'), len(script) - 2))
    for at in sorted(cuts):
        part = tmp_path / "part"
        part.write_text(script[:at])
        said = shell(
            f"(cat {part}; printf '\\nexit 1\\n') | UPDRAFT_JOIN_TOKEN=x sh", tmp_path / "m"
        )
        assert said.code != 0, at
        assert "updraft:" not in said.err, at


@pytest.mark.parametrize("program", ["urun", "ubatch"])
def test_a_job_whose_token_is_not_good_is_told_which_variable_has_it(
    server: tuple[Instance, int], tmp_path: Path, program: str
) -> None:
    own, port = server
    client = Instance(tmp_path / "client")
    client.environment.update(
        UPDRAFT_URL=f"https://127.0.0.1:{port}",
        UPDRAFT_TOKEN="updraft_user_1_2",
        UPDRAFT_FINGERPRINT=certificates.fingerprint(str(own.state / "server.crt")),
    )
    assert call(client, program, "true").error == (
        f"{program}: https://127.0.0.1:{port} does not know the token of UPDRAFT_TOKEN: it is "
        "mistyped, expired or revoked; make a new one: updraft token create NAME"
    )


def test_a_certificate_that_no_authority_here_vouches_for_is_pinned_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, certificate, fingerprint = self_signed(tmp_path)
    configured = Server(
        listen=Address("127.0.0.1", 7443), url="https://lab.test:7443", key=str(key),
        certificate=str(certificate),
    )  # fmt: skip
    folders = settings.Folders(str(tmp_path), str(tmp_path))
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse" / "some_thing-1.0-py3-none-any.whl").touch()
    offered = Installing(folders, configured)
    pin = certificates.key_pin(str(certificate))
    assert f"curl --pinnedpubkey {pin} -k -sSf https://lab.test:7443/join " in offered.line("x")
    assert f"fingerprint='{fingerprint}'" in offered.script("")
    with caplog.at_level("INFO", "updraft.server"):
        assert tls_context(folders, configured, "127.0.0.1") is not None
    assert caplog.messages == [f"certificate fingerprint: {fingerprint}"]


def test_a_certificate_that_an_authority_vouches_for_is_not_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate, _ = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # the system's trust, to OpenSSL
    configured = Server(url="https://lab.test", key=str(key), certificate=str(certificate))
    offered = Installing(settings.Folders(str(tmp_path), str(tmp_path)), configured)
    assert offered.line("x").startswith("(curl -sSf https://lab.test/join ")


def test_without_a_token_nothing_is_installed(server: tuple[Instance, int], tmp_path: Path) -> None:
    own, port = server
    house = own.state / "wheelhouse"
    house.mkdir()
    (house / "some_thing-1.0-py3-none-any.whl").write_bytes(b"a wheel")
    said = shell(f"curl -k -sSf https://127.0.0.1:{port}/join | sh", tmp_path / "m")
    assert (said.error, said.code) == (
        "updraft: a join token is needed, in UPDRAFT_JOIN_TOKEN; make one: updraft runner token "
        "POOL",
        1,
    )
    assert not (tmp_path / "m" / "venv").exists()
