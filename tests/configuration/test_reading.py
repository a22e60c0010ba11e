"""The configuration: each key as described, mistakes named with their mend, secrets kept."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft import configuration, errors, settings
from updraft.configuration import reading, rules
from updraft.configuration.keys import ANY_NAME, Key, literal, values
from updraft.configuration.kinds import (
    ADDRESS,
    CPUS,
    DURATION,
    SIZE,
    UID_RANGE,
    Address,
    UidRange,
)
from updraft.configuration.schema import Configuration, Pool, Server

KEYS = {
    f"{table.name}.{name}": key
    for table in reading.TABLES.values()
    for name, (_, key) in table.members().items()
}


def where(folder: Path, text: str) -> settings.Folders:
    folders = settings.Folders(str(folder / "state"), str(folder))
    Path(folders.config_file).write_text(text)
    return folders


def load(folder: Path, text: str) -> Configuration:
    return configuration.load(where(folder, text))


def problems(folder: Path, text: str) -> list[str]:
    folders = where(folder, text)
    found = reading.read(folders).problems
    assert all(line.startswith(f"{folders.config_file}: ") for line in found)
    return [line.removeprefix(f"{folders.config_file}: ") for line in found]


# -- the description


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_one_line_of_help_and_a_default_that_it_takes(name: str) -> None:
    key = KEYS[name]
    assert key.help
    assert "\n" not in key.help
    assert not key.help.endswith(".")
    value = key.read(key.default)
    assert key.read(key.plain(value)) == value


def test_a_file_of_all_defaults_is_as_no_file(tmp_path: Path) -> None:
    lines = []
    for table in reading.TABLES.values():
        lines.append(f"[{'.'.join(table.path).replace(ANY_NAME, 'one')}]")
        lines += [f"{name} = {literal(key.default)}" for name, (_, key) in table.members().items()]
    text = "\n".join(lines).replace("[notifications.one]", '[notifications.one]\nurl = "http://x/"')
    text = text.replace('url = ""\nsecret_file', "secret_file")
    found = load(tmp_path, text)
    assert found.pools == {"one": Pool()}
    assert found.notifications["one"].events == ("ok", "not_ok")
    assert found.server == load(tmp_path, "").server
    assert found.limits == Configuration().limits


@given(st.integers(min_value=0, max_value=10 * 365 * 86400 * 1000))
def test_a_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    seconds = DURATION.read(f"{milliseconds}ms")
    assert DURATION.read(DURATION.plain(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_sizes_and_cpus_are_written_as_they_are_read(count: int) -> None:
    assert SIZE.read(SIZE.plain(count)) == count
    milli = count % 10**8
    assert CPUS.read(CPUS.plain(milli)) == milli


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8443", Address("0.0.0.0", 8443)),
        (":8443", Address("", 8443)),
        ("[::1]:443", Address("::1", 443)),
        ("updraft.example.com:1", Address("updraft.example.com", 1)),
        ("", None),
    ],
)
def test_addresses(text: str, address: Address | None) -> None:
    assert ADDRESS.read(text) == address
    assert ADDRESS.plain(address) == text


@pytest.mark.parametrize(
    "text", ["host", "8443", "host:", "host:x", "::1:80", "a b:80", "h:65536", "h:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="is not an address; write it like"):
        ADDRESS.read(text)


def test_ranges_of_user_ids() -> None:
    assert UID_RANGE.read("1000-1999") == UidRange(1000, 1999)
    for bad in ("0-5", "999-2000", "2147483000-2147483648", "9-1", "1000", "1-99999999999"):
        with pytest.raises(errors.BadRequest, match="is not a range of user ids"):
            UID_RANGE.read(bad)


# -- what is read


def test_all_kinds_of_values(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        [server]
        idle_stop = "never"
        retention = "90d"
        [pools.gpu-a100-8]
        cpus = 0.5
        memory = "64G"
        gpus = { a100 = 8 }
        labels = { "rack/row" = "b4" }
        price = 1.10
        time_limit = "1h30m"
        projects = ["x", "y"]
        [limits.user]
        running_jobs = 0
        [notifications.ops]
        kind = "email"
        from = "updraft@example.com"
        to = ["ops@example.com"]
        smtp = "mail:25"
        """,
    )
    assert found.server.idle_stop == math.inf
    assert found.server.retention == 90 * 86400
    pool = found.pools["gpu-a100-8"]
    assert (pool.cpus, pool.memory, pool.gpus) == (500, 64 << 30, {"a100": 8})
    assert (pool.labels, pool.price) == ({"rack/row": "b4"}, Decimal("1.1"))
    assert (pool.time_limit, pool.projects) == (5400, ("x", "y"))
    assert found.limits.user.running_jobs == 0
    assert found.limits.project.running_jobs is None
    assert found.notifications["ops"].sender == "updraft@example.com"


def test_a_relative_path_counts_from_the_file(tmp_path: Path) -> None:
    server = load(
        tmp_path, '[server]\nlisten=":1"\ncertificate = "tls/chain.pem"\nkey = "/abs/key"\n'
    ).server
    assert (server.certificate, server.key) == (str(tmp_path / "tls/chain.pem"), "/abs/key")


def test_a_personal_server_is_a_pool_and_ends_when_idle(tmp_path: Path) -> None:
    server = load(tmp_path, "").server
    assert (server.local_pool, server.default_pool, server.idle_stop) == (True, "local", 1800)
    assert (server.data, server.url) == (str(tmp_path / "state"), "")


def test_a_server_that_listens_is_no_pool_and_stays_unless_told(tmp_path: Path) -> None:
    text = '[server]\nlisten = "10.0.0.1:8443"\ncertificate = "self-signed"\n'
    server = load(tmp_path, text + "[pools.a]\n").server
    assert (server.local_pool, server.default_pool, server.idle_stop) == (False, "a", math.inf)
    assert (server.url, server.certificate) == ("https://10.0.0.1:8443", "self-signed")
    server = load(tmp_path, text + 'local_pool = true\nidle_stop = "1h"\n[pools.a]\n').server
    assert (server.local_pool, server.default_pool, server.idle_stop) == (True, "local", 3600)


def test_the_command_line_goes_before_the_file_and_is_told_apart(tmp_path: Path) -> None:
    folders = where(tmp_path, '[server]\nlisten = "127.0.0.1:1"\nlog_format = "json"\n')
    found = reading.read(folders, {"server.listen": "127.0.0.1:2"})
    assert found.configuration.server.listen == Address("127.0.0.1", 2)
    assert found.configuration.server.url == "http://127.0.0.1:2"
    assert found.origins == {"server.listen": "command line", "server.log_format": "file"}
    with pytest.raises(errors.BadConfiguration, match=r"^command line: server\.listen: .* not an"):
        configuration.load(folders, {"server.listen": "8443"})
    folders = where(tmp_path, '[server]\nlisten = "what"\n')
    found = reading.read(folders, {"server.listen": "127.0.0.1:2"})
    assert (found.problems, found.configuration.server.listen) == ((), Address("127.0.0.1", 2))


# -- what is refused


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("idle_stop = 1", "'idle_stop' stands in no table; put it under [server]"),
        ("[sever]", "'sever' is unknown; did you mean [server]?"),
        ("[server]\nidle_stopp = 1", "[server] has no key 'idle_stopp'; did you mean idle_stop?"),
        ("[runner]\nzzz = 1", "[runner] has no key 'zzz'; it has: cgroups, isolation, users, "
         "uid_range"),
        ("[limits]\ncpus = 1", "[limits] has no key 'cpus'; it has: project, user"),
        ("[pools.a]\ncpu = 1", "[pools.a] has no key 'cpu'; did you mean cpus?"),
        ("[sign_in.oidc]\nisuer = ''", "[sign_in.oidc] has no key 'isuer'; did you mean issuer?"),
        ("server = 1", "server is no table; write it as [server]"),
        ("[pools]\na = 1", "pools.a is no table; write it as [pools.NAME]"),
        ("[pools.Big]", "[pools.Big]: 'Big' is no name: use up to 63 small letters, digits "
         "and . _ -"),
        ("[server]\nmax_body = '1K'", "server.max_body: '1K' is too little; the least is 64K"),
        ("[server]\nlog_format = 'xml'", "server.log_format: 'xml' is not one of text, json"),
        ("[server]\nlocal_pool = 1", "server.local_pool: 1 is neither true nor false"),
        ("[server]\nmax_connections = true", "server.max_connections: True is not a whole number"),
        ("[server]\nurl = 'ftp://x'", "server.url: 'ftp://x' is not a URL; write it like "
         "https://updraft.example.com"),
        ("[telemetry]\nsample = 2", "telemetry.sample: 2 is too much; the most is 1"),
        ("[pools.a]\ngpus = { a = -1 }", "pools.a.gpus: a = -1 is too little; the least is 0"),
        ("[pools.a]\nlabels = { 'a b' = 'c' }", "pools.a.labels: 'a b' is no name: use up to 63 "
         "letters, digits and . _ / -"),
        ("[pools.a]\nprojects = 'x'", "pools.a.projects: 'x' is no list; put it in brackets: "
         "['x']"),
        ("[pools.a]\nprice = nan", "pools.a.price: nan is not an amount of money; write it like "
         "1.25"),
        # Between keys.
        ("[server]\nlost_after = '30s'",
         "server.lost_after: it is not longer than server.suspect_after; raise it"),
        ("[server]\nlisten = ':1'\ncertificate = 'a'", "server.key: it is missing; set it to the "
         "file of the certificate's private key"),
        ("[server]\nkey = 'a'", "server.certificate: it is missing; set it to the file that belongs"
         " to server.key"),
        ("[server]\nlisten = ':1'\ncertificate = 'self-signed'\nkey = 'a'",
         "server.key: a self-signed certificate brings its own key; remove this one"),
        ("[server]\ncertificate = 'self-signed'", "server.listen: it is missing; set where the "
         "certificate is to be used, or remove it"),
        ("[server]\nlisten = '0.0.0.0:8443'", "server.listen: 0.0.0.0:8443 is reached from other "
         "machines, and credentials would pass in the clear; set server.certificate (to files, or "
         'to "self-signed"), or serve with --self-signed'),
        ("[server]\nurl = 'http://updraft.example.com'",
         "server.url: credentials would pass in the clear; use an https URL"),
        ("[sign_in]\nsession_max = '1h'",
         "sign_in.session_max: it is shorter than sign_in.session; make it at least as long"),
        ("[sign_in.oidc]\nissuer = 'https://a'", "sign_in.oidc.client_id: it is missing; set what "
         "the provider gave for this server"),
        ("[notifications.a]", 'notifications.a.url: it is missing; kind = "webhook" needs it'),
        ("[notifications.a]\nurl = 'https://a/'\nsmtp = 'a:1'",
         'notifications.a.smtp: kind = "webhook" does not use it; remove it'),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_mend(tmp_path: Path, text: str, line: str) -> None:
    assert problems(tmp_path, text) == [line]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
def test_in_the_clear_a_server_may_listen_to_its_own_machine(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, f'[server]\nlisten = "{host}:8080"\n').server.listen is not None


def test_all_mistakes_are_found_and_the_first_is_what_stops(tmp_path: Path) -> None:
    text = "[server]\nretention = 'x'\nfoo = 1\n[runner]\ncgroups = 3\n"
    assert len(problems(tmp_path, text)) == 3
    with pytest.raises(errors.BadConfiguration) as caught:
        load(tmp_path, text)
    assert "server.retention: 'x' is not a duration" in caught.value.message
    assert caught.value.message.endswith(" (and 2 more: updraft config check)")
    assert "\n" not in caught.value.message


def test_what_keys_demand_of_each_other_is_told_beside_wrong_values(tmp_path: Path) -> None:
    text = (
        "[server]\nretention = 'x'\n[sign_in.oidc]\nissuer = 'https://id.example.com'\n"
        "[notifications.ci]\nevents = 3\n"
    )
    found = "\n".join(problems(tmp_path, text))
    for key in ("server.retention", "sign_in.oidc.client_id", "notifications.ci.events",
                "notifications.ci.url"):  # fmt: skip
        assert f"{key}: " in found
    assert len(found.splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[server]\nlost_after = '20s'\nsuspect_after = 'x'\n", "server.suspect_after"),
        ("[server]\nkey = 'k'\ncertificate = 3\nlisten = ':1'\n", "server.certificate"),
        ("[server]\nkey = 'k'\ncertificate = 'c'\nlisten = 'x'\n", "server.listen"),
        ("[notifications.ci]\nkind = 'x'\nsmtp = 'mail:25'\n", "notifications.ci.kind"),
    ],
)
def test_what_follows_from_a_wrong_value_is_not_told(tmp_path: Path, text: str, wrong: str) -> None:
    (line,) = problems(tmp_path, text)
    assert f"{wrong}: " in line


@pytest.mark.parametrize(
    "text", ["[server", "x = " + "9" * 5000, "x = " + "[" * 5000, "x = 1\nx = 2", 'x = "\\q"']
)
def test_what_is_no_toml_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(errors.BadConfiguration) as caught:
        load(tmp_path, text)
    assert "updraft.toml is not valid TOML: " in caught.value.message
    assert "\n" not in caught.value.message


NAMES = st.sampled_from(
    sorted({part for name in KEYS for part in name.split(".")} | {"mine", "Big", "", "x.y"})
)
TEXTS = st.sampled_from(["", "5", "1h", "64M", "all", "never", ":1", "http://[", "http://x:0/"])
SCALARS = st.one_of(
    st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(), TEXTS, st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_whatever_a_file_has_is_read_or_named(data: dict[str, Any]) -> None:
    found = reading._Found(Path("/folder"))
    found.visit((), data)
    configuration_of_it = found.build(Configuration, ())
    for name, said in (*found.problems, *rules.problems(configuration_of_it)):
        assert said
        assert name == "" or name.count(".") >= 1
    for name, key, value in values(configuration_of_it):
        assert isinstance(literal(key.shown(value)), str), name
        if not key.kind.is_path:
            assert key.read(key.plain(value)) == value, name


@pytest.mark.parametrize("name", KEYS)
@given(value=SCALARS | st.lists(TEXTS, max_size=2) | st.dictionaries(NAMES, TEXTS, max_size=2))
def test_every_key_takes_a_value_or_says_what_is_wrong(name: str, value: Any) -> None:
    key = KEYS[name]
    try:
        taken = key.read(value)
    except errors.BadRequest:
        return
    assert key.read(key.plain(taken)) == taken


# -- secrets


def test_a_password_in_a_url_shows_neither_in_errors_nor_in_what_is_shown(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, '[server]\ndatabase = "mysql://me:geheim@x/y"')
    assert "geheim" not in said
    key, url = KEYS["server.database"], "postgresql://me:geheim@x:5432/y?sslmode=require"
    assert key.shown(key.read(url)) == "postgresql://me:(hidden)@x:5432/y?sslmode=require"
    for query in ("password=geheim", "sslmode=require&sslpassword=geheim", "pass%77ord=geheim"):
        (said,) = problems(tmp_path, f'[server]\ndatabase = "postgresql://me@x/y?{query}"')
        assert said.endswith(
            "server.database: a password does not belong behind the question mark; write it like "
            "postgresql://user:PASSWORD@host/updraft"
        )
    key, url = KEYS["notifications.NAME.url"], "https://hooks.example.com:444/T0/geheim?k=geheim"
    assert key.shown(key.read(url)) == "https://hooks.example.com/(hidden)"
    (said,) = problems(tmp_path, '[notifications.a]\nurl = "https://me:geheim@x/y"')
    assert "geheim" not in said


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    folders = where(
        tmp_path,
        '[server]\nlisten = ":1"\ncertificate = "gone.pem"\nkey = "empty"\n'
        '[telemetry]\nmetrics_token_file = "/etc"\n',
    )
    file = folders.config_file
    assert reading.unreadable_files(reading.read(folders)) == [
        f"{file}: server.certificate: cannot read {tmp_path}/gone.pem: No such file or directory",
        f"{file}: server.key: {tmp_path}/empty is empty; put the secret into it",
        f"{file}: telemetry.metrics_token_file: cannot read /etc: Is a directory",
    ]


def test_help_finds_tables_and_keys_by_any_of_their_names() -> None:
    for name in ("pools", "pools.NAME", "pools.mine", "[pools.NAME]"):
        found = reading.find(name)
        assert found == reading.TABLES[("pools", ANY_NAME)]
    for name in ("pools.NAME.cpus", "pools.mine.cpus", "server.listen"):
        assert isinstance(reading.find(name), Key)
    assert reading.find("server.nothing") is None
    assert reading.find("nothing") is None
    assert reading.TABLES[("server",)].type is Server
