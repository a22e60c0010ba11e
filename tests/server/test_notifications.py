"""Notifications: told at least once, in order, signed, retried, bounded, and no one for another."""

import asyncio
import hmac
import json
import queue
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection

from tests.cli.calling import call, submit
from tests.waiting import until
from updraft import errors
from updraft.configuration.kinds import Address
from updraft.configuration.schema import Notification
from updraft.model.states import State
from updraft.server.loops import notifications as loop
from updraft.server.loops.notifications import Receiver, notify
from updraft.server.observe.beats import Beats
from updraft.server.observe.measures import Measures
from updraft.server.services.notices import Notice, delay_seconds, mail, notice_of, slack_body
from updraft.server.services.senders import sender_for
from updraft.store import notifications as queries
from updraft.store import schema, tables
from updraft.store.database import Database
from updraft.testing.instance import instance

ALL = ("submitted", "started", "retried", "ok", "not_ok")
SECRET = "made-for-this-test"


class Hook:
    """A receiver of webhooks that answers what the test tells it to."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[tuple[dict[str, str], bytes]] = queue.SimpleQueue()
        self.answers: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.go_on.wait(30)
                status = hook.answers.pop(0) if hook.answers else 200
                hook.got.put((dict(self.headers), body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.close_connection = True
                try:
                    self.wfile.write(b"no\x1b[31m" * 100_000)
                except OSError:
                    return

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def bodies(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(self.got.get(timeout=20)[1]) for _ in range(count)]


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.go_on.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return str(path)


class Events:
    """A database in which things happen to jobs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.serial = 0

    async def job(
        self, *kinds: str, exit_code: int | None = 0, project: str = "default", name: str = "train",
        at_ns: int | None = None,
    ) -> str:  # fmt: skip
        """Store a job to which these events happened; ``IN_QUEUE 1`` is one with an attempt."""
        self.serial += 1
        serial, now = self.serial, at_ns or time.time_ns()
        job = {
            "serial": serial, "id": f"job{serial}", "owner": "ann", "project": project,
            "jurisdiction": "local", "submit_key": b"%d" % serial, "attached": False,
            "detached": True, "name": name, "labels": '{"a": "b"}', "pool": "local",
            "command": b"geheim", "cpus_milli": 0, "memory_bytes": 0, "gpus": 0, "retries": 0,
            "priority": 0, "keep_alive_ms": 0, "grace_ms": 0, "state": kinds[-1].split()[0],
            "wanted": "run", "message": "", "created_ns": now, "ended_ns": now, "kept": True,
            "exit_code": exit_code,
        }  # fmt: skip
        said = [
            {
                "job_serial": serial, "at_ns": now, "kind": kind.split()[0],
                "attempt": int(kind.split()[1]) if " " in kind else None, "message": "so it was",
            }
            for kind in kinds
        ]  # fmt: skip

        def store(connection: Connection) -> None:
            connection.execute(tables.jobs.insert(), job)
            connection.execute(tables.events.insert(), said)

        await self.database.write(store)
        return f"job{serial}"


def with_events(folder: Path, check: Callable[[Events], Awaitable[None]]) -> None:
    async def run() -> None:
        database = Database(f"sqlite:///{folder / 'updraft.db'}")
        schema.upgrade(database.engine)
        try:
            async with asyncio.timeout(60):
                await check(Events(database))
        finally:
            await database.close()

    asyncio.run(run())


async def receiver(
    events: Events, to: Notification, measures: Measures | None = None, **more: Any
) -> Receiver:
    await events.database.write(lambda c: queries.begin(c, ["mine"]))

    async def no_sleep(_seconds: float) -> None:
        return None

    return Receiver(
        events.database, "mine", to, sender_for("mine", to), measures or Measures(),
        **{"dice": lambda: 0.5, "sleep": no_sleep, **more},
    )  # fmt: skip


def test_a_webhook_tells_what_happened_signed_and_without_the_command(
    tmp_path: Path, hook: Hook, secret_file: str
) -> None:
    async def check(events: Events) -> None:
        to = Notification(url=hook.url, secret_file=secret_file, events=ALL)
        mine = await receiver(events, to, url="https://updraft.example.com")
        await events.job(State.IN_QUEUE, State.RUNNING, "IN_QUEUE 1", State.SUCCESS, exit_code=3)
        assert await mine.one_pass() is False
        got = [hook.got.get(timeout=20) for _ in range(4)]
        bodies = [json.loads(body) for _, body in got]
        assert [body["event"]["kind"] for body in bodies] == [
            "submitted", "started", "retried", "not_ok",
        ]  # fmt: skip
        assert [body["job"]["exit_code"] for body in bodies] == [None, None, None, 3]
        assert [body["job"]["ok"] for body in bodies] == [None, None, None, False]
        assert bodies[3]["job"]["state"] == "SUCCESS"
        assert bodies[0]["job"]["labels"] == {"a": "b"}
        assert bodies[0]["job"]["server"] == "https://updraft.example.com"
        for headers, body in got:
            assert b"geheim" not in body
            signed = f"{headers['Updraft-Timestamp']}.".encode() + body
            digest = hmac.new(SECRET.encode(), signed, sha256).hexdigest()
            assert headers["Updraft-Signature"] == f"v1={digest}"
            assert abs(int(headers["Updraft-Timestamp"]) - time.time()) < 60
            assert headers["Updraft-Delivery"] == f"mine-{json.loads(body)['event']['id']}"

    with_events(tmp_path, check)


def test_a_receiver_hears_only_of_what_it_asked_for_and_from_when_it_was_there(
    tmp_path: Path, hook: Hook
) -> None:
    async def check(events: Events) -> None:
        await events.job(State.FAILURE, exit_code=None)
        to = Notification(url=hook.url, events=("not_ok",), projects=("red", "blue"))
        mine = await receiver(events, to)
        await events.job(State.IN_QUEUE, State.SUCCESS, project="red")
        wanted = [
            await events.job(State.SUCCESS, project="red", exit_code=1),
            await events.job(State.CANCELLED, project="blue", exit_code=None),
            await events.job(State.EXPIRED, project="blue", exit_code=0),
        ]
        await events.job(State.FAILURE, project="green", exit_code=None)
        await mine.one_pass()
        assert [body["job"]["id"] for body in hook.bodies(3)] == wanted
        await mine.one_pass()
        assert hook.got.empty()

    with_events(tmp_path, check)


def test_what_failed_is_tried_again_with_growing_delays_and_later_ones_wait(
    tmp_path: Path, hook: Hook
) -> None:
    async def check(events: Events) -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        measures = Measures()
        to = Notification(url=hook.url)
        mine = await receiver(events, to, measures, sleep=sleep)
        hook.answers = [500, 503, 429, 302]
        first, second = await events.job(State.SUCCESS), await events.job(State.SUCCESS)
        await mine.one_pass()
        assert [body["job"]["id"] for body in hook.bodies(6)] == [*[first] * 5, second]
        assert slept == [delay_seconds(n, 0.5) for n in (1, 2, 3, 4)]
        assert measures.notified == {("mine", "failed"): 4, ("mine", "sent"): 2}

    with_events(tmp_path, check)


def test_delays_double_are_spread_and_have_a_bound() -> None:
    assert [delay_seconds(n, 1.0) for n in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert [delay_seconds(n, 0.0) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert delay_seconds(1000, 1.0) == 900.0


def test_a_notice_that_is_refused_is_dropped_at_once_and_said(
    tmp_path: Path, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(events: Events) -> None:
        measures = Measures()
        mine = await receiver(events, Notification(url=hook.url), measures)
        hook.answers = [404]
        await events.job(State.SUCCESS)
        after = await events.job(State.SUCCESS)
        await mine.one_pass()
        assert hook.bodies(2)[1]["job"]["id"] == after
        assert measures.notified == {("mine", "dropped"): 1, ("mine", "sent"): 1}
        (said,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert said.startswith("notifications.mine: event 1 dropped; refused: it answered 404: no")
        assert said.isprintable()
        assert len(said) < 400

    with_events(tmp_path, check)


def test_tries_and_age_have_a_bound(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(events: Events) -> None:
        monkeypatch.setattr(loop, "MAX_TRIES", 3)
        mine = await receiver(events, Notification(url=hook.url))
        hook.answers = [500] * 4
        await events.job(State.SUCCESS)
        old = time.time_ns() - int((loop.MAX_AGE_SECONDS + 10) * 1e9)
        await events.job(State.SUCCESS, at_ns=old)
        await events.job(State.SUCCESS)
        await mine.one_pass()
        ids = [body["job"]["id"] for body in hook.bodies(5)]
        assert ids == ["job1", "job1", "job1", "job2", "job3"]

    with_events(tmp_path, check)


def test_what_lies_too_far_behind_is_skipped(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(events: Events) -> None:
        monkeypatch.setattr(loop, "MAX_BEHIND", 2)
        measures = Measures()
        mine = await receiver(events, Notification(url=hook.url), measures)
        for _ in range(5):
            await events.job(State.SUCCESS)
        await mine.one_pass()
        assert [body["job"]["id"] for body in hook.bodies(2)] == ["job4", "job5"]
        assert measures.notified["mine", "dropped"] == 1

    with_events(tmp_path, check)


def test_after_a_restart_it_goes_on_where_it_was_and_nothing_is_left_out(
    tmp_path: Path, hook: Hook
) -> None:
    async def check(events: Events) -> None:
        to = Notification(url=hook.url)
        mine = await receiver(events, to)
        await events.job(State.SUCCESS)
        await mine.one_pass()
        await events.job(State.SUCCESS)
        again = await receiver(events, to)
        await again.one_pass()
        assert [body["job"]["id"] for body in hook.bodies(2)] == ["job1", "job2"]
        assert hook.got.empty()

    with_events(tmp_path, check)


def test_more_than_a_batch_is_told_in_order(tmp_path: Path, hook: Hook) -> None:
    async def check(events: Events) -> None:
        mine = await receiver(events, Notification(url=hook.url))
        jobs = [await events.job(State.SUCCESS) for _ in range(53)]
        assert await mine.one_pass() is True
        assert await mine.one_pass() is False
        assert [body["job"]["id"] for body in hook.bodies(53)] == jobs

    with_events(tmp_path, check)


def test_a_dead_receiver_delays_no_other(tmp_path: Path, hook: Hook) -> None:
    dead = Hook()
    dead.go_on.clear()
    thread = threading.Thread(target=dead.server.serve_forever)
    thread.start()

    async def check(events: Events) -> None:
        receivers = {
            "dead": Notification(url=dead.url),
            "alive": Notification(url=hook.url),
            "away": Notification(url="http://127.0.0.1:1/"),
        }
        measures = Measures()
        task = asyncio.create_task(notify(events.database, receivers, Beats(measures), measures))
        known = await asyncio.to_thread(
            until, lambda: _cursors(events.database) == {"dead": 0, "alive": 0, "away": 0} or None
        )
        assert known
        for _ in range(3):
            await events.job(State.SUCCESS)
        got = await asyncio.to_thread(hook.bodies, 3)
        assert [body["job"]["id"] for body in got] == ["job1", "job2", "job3"]
        assert dead.got.empty()
        task.cancel()
        await asyncio.wait([task])

    try:
        with_events(tmp_path, check)
    finally:
        dead.go_on.set()
        dead.server.shutdown()
        thread.join()
        dead.server.server_close()


def test_notifications_begin_although_the_disk_was_full_at_first(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(events: Events) -> None:
        real, full = queries.begin, asyncio.Event()

        def begin(connection: Connection, names: Collection[str]) -> None:
            if not full.is_set():
                raise errors.DiskFull("the disk of the state folder is full; free some space")
            real(connection, names)

        async def sleep(_seconds: float) -> None:
            assert "notifications" in beats.late()
            full.set()

        monkeypatch.setattr(queries, "begin", begin)
        monkeypatch.setattr(loop, "_LATE_SECONDS", -1)
        measures = Measures()
        beats = Beats(measures)
        receivers = {"mine": Notification(url=hook.url)}
        work = notify(events.database, receivers, beats, measures, sleep=sleep)
        task = asyncio.create_task(work)
        await asyncio.to_thread(until, lambda: _cursors(events.database) or None)
        await events.job(State.SUCCESS)
        (body,) = await asyncio.to_thread(hook.bodies, 1)
        assert body["job"]["id"] == "job1"
        assert measures.failed_passes["notifications"] == 1
        assert beats.late() == ["notify mine"]
        task.cancel()
        await asyncio.wait([task])

    with_events(tmp_path, check)


def _cursors(database: Database) -> dict[str, int]:
    with database.engine.connect() as connection:
        return queries.cursors(connection)


def test_receivers_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    async def check(events: Events) -> None:
        await events.database.write(lambda c: queries.begin(c, ["a", "b"]))
        await events.job(State.SUCCESS)
        await events.database.write(lambda c: queries.begin(c, ["b", "c"]))
        assert _cursors(events.database) == {"b": 0, "c": 1}

    with_events(tmp_path, check)


def test_a_receiver_that_read_further_than_there_are_events_hears_of_the_next(
    tmp_path: Path,
) -> None:
    async def check(events: Events) -> None:
        for _ in range(3):
            await events.job(State.SUCCESS)
        await events.database.write(lambda c: queries.begin(c, ["a"]))
        # As releases did that let the job of the newest event go.
        await events.database.write(
            lambda c: c.execute(tables.jobs.delete().where(tables.jobs.c.serial > 1))
        )
        await events.database.write(lambda c: queries.begin(c, ["a"]))
        assert _cursors(events.database) == {"a": 1}

    with_events(tmp_path, check)


# -- chats and mail


def row(**changes: Any) -> dict[str, Any]:
    return {
        "serial": 7, "at_ns": 0, "kind": "SUCCESS", "attempt": 1,
        "event_message": "exited with 3", "job_id": "k7m2p9x4ce", "job_name": "train",
        "job_project": "default", "job_owner": "ann", "job_pool": "local", "job_labels": "{}",
        "job_state": "SUCCESS", "job_exit_code": 3, "job_created_ns": 0, "job_started_ns": None,
        "job_ended_ns": 10**9, "job_message": "", **changes,
    }  # fmt: skip


def test_a_chat_gets_one_line_in_which_nothing_is_markup() -> None:
    notice = notice_of(row(job_name="<!channel> & co"))
    assert json.loads(slack_body(notice)) == {
        "text": ":x: job &lt;!channel&gt; &amp; co (k7m2p9x4ce) ended with SUCCESS, exit code 3: "
        "exited with 3"
    }
    done = notice_of(row(job_exit_code=0, job_name=""))
    assert json.loads(slack_body(done))["text"] == ":white_check_mark: job k7m2p9x4ce is done"


def test_nothing_of_a_job_adds_a_header_to_a_mail() -> None:
    notice = notice_of(row(event_message="bad\r\nBcc: everybody@example.com"))
    message = message_from_bytes(mail(notice, "ops", "a@b.c", ("d@e.f",)).as_bytes(),
                                 policy=default)  # fmt: skip
    assert message["Bcc"] is None
    assert message["Message-ID"] == "<updraft-ops-7@b.c>"


class Mailbox:
    """What a mail server got; refuses recipients as the test wants."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers: list[str] = []

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if self.answers:
            return self.answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.got.put(envelope)
        return "250 OK"


def test_a_mail_arrives_and_what_cannot_be_is_told_apart(tmp_path: Path) -> None:
    mailbox = Mailbox()

    async def check(events: Events) -> None:
        listening = await asyncio.get_running_loop().create_server(
            lambda: SMTP(mailbox, enable_SMTPUTF8=True), "127.0.0.1", 0
        )
        port = listening.sockets[0].getsockname()[1]
        to = Notification(
            kind="email", sender="updraft@example.com", to=("ops@example.com", "b@example.com"),
            smtp=Address("127.0.0.1", port), smtp_tls="none", events=("not_ok",),
        )  # fmt: skip
        measures = Measures()
        mine = await receiver(events, to, measures)
        mailbox.answers = ["450 later"] * 2
        await events.job(State.SUCCESS, exit_code=3, name="été")
        await mine.one_pass()
        envelope = mailbox.got.get(timeout=20)
        assert envelope.rcpt_tos == ["ops@example.com", "b@example.com"]
        message = message_from_bytes(envelope.content, policy=default)
        assert message["Subject"].startswith("job été (job1) ended with SUCCESS, exit code 3")
        assert "exit code: 3" in message.get_content()
        mailbox.answers = ["550 nobody here"] * 2
        await events.job(State.SUCCESS, exit_code=3)
        await mine.one_pass()
        assert mailbox.got.empty()
        assert measures.notified == {
            ("mine", "failed"): 1, ("mine", "sent"): 1, ("mine", "dropped"): 1,
        }  # fmt: skip
        listening.close()

    with_events(tmp_path, check)


@pytest.mark.parametrize("takes_utf8", [True, False])
def test_a_recipient_beyond_ascii_gets_mail_where_the_server_can_and_holds_up_nobody_where_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, takes_utf8: bool
) -> None:
    mailbox = Mailbox()

    async def check(events: Events) -> None:
        listening = await asyncio.get_running_loop().create_server(
            lambda: SMTP(mailbox, enable_SMTPUTF8=takes_utf8), "127.0.0.1", 0
        )
        port = listening.sockets[0].getsockname()[1]
        to = Notification(
            kind="email", sender="updraft@example.com", to=("jörg@example.com",),
            smtp=Address("127.0.0.1", port), smtp_tls="none", events=("not_ok",),
        )  # fmt: skip
        measures = Measures()
        mine = await receiver(events, to, measures)
        await events.job(State.SUCCESS, exit_code=3)
        await mine.one_pass()
        await mine.one_pass()
        if takes_utf8:
            assert mailbox.got.get(timeout=20).rcpt_tos == ["jörg@example.com"]
            assert measures.notified == {("mine", "sent"): 1}
        else:
            assert measures.notified == {("mine", "dropped"): 1}
            (said,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
            assert said == (
                "notifications.mine: event 1 dropped; refused: the mail server takes only "
                "addresses in ASCII (it has no SMTPUTF8)"
            )
        listening.close()

    with_events(tmp_path, check)


def test_a_notice_that_cannot_be_sent_at_all_is_dropped_once_and_the_next_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Poisoned:
        def __init__(self) -> None:
            self.told: list[int] = []

        async def send(self, notice: Notice) -> None:
            if notice.serial == 1:
                raise UnicodeEncodeError("ascii", "ö", 0, 1, "not here")
            self.told.append(notice.serial)

        async def close(self) -> None:
            """Nothing is open."""

    async def check(events: Events) -> None:
        await events.database.write(lambda c: queries.begin(c, ["mine"]))
        measures, sender = Measures(), Poisoned()
        to = Notification(url="https://example.com")
        mine = Receiver(events.database, "mine", to, sender, measures)
        for _ in range(2):
            await events.job(State.SUCCESS)
        await mine.one_pass()
        assert sender.told == [2]
        assert measures.notified == {("mine", "dropped"): 1, ("mine", "sent"): 1}
        (said,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert said.startswith(
            "notifications.mine: event 1 dropped; not to be sent: UnicodeEncodeError: "
        )

    with_events(tmp_path, check)


def test_a_password_goes_only_over_an_encrypted_connection(
    tmp_path: Path, secret_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    mailbox = Mailbox()
    seen: list[tuple[str, bytes]] = []

    def authenticate(server: Any, session: Any, envelope: Any, how: str, data: Any) -> AuthResult:
        seen.append((data.login.decode(), data.password))
        return AuthResult(success=data.password == SECRET.encode())

    async def check(events: Events) -> None:
        loop = asyncio.get_running_loop()

        def starttls() -> SMTP:
            return SMTP(
                mailbox, tls_context=context, require_starttls=True, authenticator=authenticate
            )

        def plain() -> SMTP:
            return SMTP(mailbox)

        offers = await loop.create_server(starttls, "127.0.0.1", 0)
        offers_not = await loop.create_server(plain, "127.0.0.1", 0)
        measures = Measures()

        async def tell(server: asyncio.AbstractServer) -> None:
            port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
            to = Notification(
                kind="email", sender="updraft@example.com", to=("ops@example.com",),
                smtp=Address("127.0.0.1", port), smtp_user="updraft", secret_file=secret_file,
            )  # fmt: skip
            mine = await receiver(events, to, measures)
            await events.job(State.SUCCESS)
            await mine.one_pass()

        await tell(offers)
        assert mailbox.got.get(timeout=20).rcpt_tos == ["ops@example.com"]
        assert seen == [("updraft", SECRET.encode())]
        await tell(offers_not)
        assert mailbox.got.empty()
        assert len(seen) == 1
        assert measures.notified["mine", "dropped"] == 1
        for server in (offers, offers_not):
            server.close()

    with_events(tmp_path, check)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1; return its file and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's own")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def test_a_running_server_tells_of_its_jobs(tmp_path: Path, hook: Hook, secret_file: str) -> None:
    with instance(tmp_path / "home") as own:
        config = own.home / "config"
        config.mkdir()
        (config / "updraft.toml").write_text(
            f'[notifications.ci]\nurl = "{hook.url}"\nsecret_file = "{secret_file}"\n'
            'events = ["submitted", "started", "ok", "not_ok"]\n'
        )
        assert call(own, "updraft", "job", "list").code == 0
        first = submit(own, "--name", "train", "sh", "-c", "exit 3")
        bodies = hook.bodies(3)
        assert [body["event"]["kind"] for body in bodies] == ["submitted", "started", "not_ok"]
        assert {body["job"]["id"] for body in bodies} == {first}
        # What happened while there was no server is told by the next one.
        own.kill("server")
        second = call(own, "ubatch", "true").out.strip()
        told: set[tuple[str, str]] = set()
        while (second, "ok") not in told:
            (body,) = hook.bodies(1)
            told.add((body["job"]["id"], body["event"]["kind"]))
        log = (own.state / "server.log").read_text()
        assert SECRET not in log
        assert "Traceback" not in log
