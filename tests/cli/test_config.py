"""``updraft config``: what is said of a configuration, without starting anything."""

import json
from pathlib import Path

import pytest

from tests.cli.test_help import run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "updraft.toml"
    path.write_text(
        '[server]\nidle_stop = "90s"\ndatabase = "postgresql://me:geheim@db/updraft"\n'
        '[notifications.chat]\nkind = "slack"\nurl = "https://hooks.example.com/geheim"\n'
    )
    return path


def test_check_says_that_all_is_well(file: Path) -> None:
    said = run("updraft", "config", "check", "--config", str(file))
    assert (said.out, said.err, said.code) == (f"OK    {file}: 4 keys set\n", "", 0)
    said = run("updraft", "config", "check")
    assert said.out.startswith("OK    none at /nonexistent/home/config/updraft.toml")
    assert said.code == 0


def test_check_has_a_line_for_each_mistake_and_exits_with_1(file: Path) -> None:
    file.write_text("[server]\nlog_levl = 1\nmax_body = 'x'\n")
    lines = [
        f"{file}: [server] has no key 'log_levl'; did you mean log_level?",
        f"{file}: server.max_body: 'x' is not a size; write it like 512M, 2G or 1.5G",
    ]
    said = run("updraft", "config", "check", "--config", str(file))
    assert said.out == "".join(f"FAIL  {line}\n" for line in lines)
    assert (said.err, said.code) == ("", 1)
    said = run("updraft", "config", "check", "--json", "--config", str(file))
    assert json.loads(said.out) == {"file": str(file), "ok": False, "problems": lines}
    assert said.code == 1


def test_check_names_mistakes_of_all_kinds_at_once(file: Path) -> None:
    file.write_text(
        "[server]\nmax_body = 'x'\n"
        "[sign_in.oidc]\nissuer = 'https://id.example.com'\nclient_secret_file = 'gone'\n"
        "[notifications.ci]\nsecret_file = 'gone too'\n"
    )
    said = run("updraft", "config", "check", "--config", str(file))
    keys = [line.removeprefix(f"FAIL  {file}: ").split(": ")[0] for line in said.out.splitlines()]
    assert keys == [
        "server.max_body", "sign_in.oidc.client_id", "notifications.ci.url",
        "sign_in.oidc.client_secret_file", "notifications.ci.secret_file",
    ]  # fmt: skip
    assert said.code == 1


def test_check_tells_what_is_no_toml(file: Path) -> None:
    file.write_text("[server")
    said = run("updraft", "config", "check", "--config", str(file))
    assert said.out.startswith(f"FAIL  {file} is not valid TOML: ")
    assert said.code == 1


def test_show_has_all_values_and_their_origins_and_no_secret(file: Path) -> None:
    said = run("updraft", "config", "show", "--json", "--config", str(file))
    assert (said.err, said.code) == ("", 0)
    assert "geheim" not in said.out
    found = {each["key"]: (each["value"], each["from"]) for each in json.loads(said.out)["keys"]}
    assert found["server.idle_stop"] == ("1m30s", "file")
    assert found["server.output_quota"] == ("1G", "default")
    assert found["notifications.chat.url"] == ("https://hooks.example.com/(hidden)", "file")
    said = run("updraft", "config", "show", "--config", str(file))
    assert "geheim" not in said.out
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["KEY", "VALUE", "FROM"]
    assert ["server.idle_stop", '"1m30s"', "file"] in rows


def test_show_refuses_what_check_refuses(file: Path) -> None:
    file.write_text("[server]\nlog_levl = 1\n")
    said = run("updraft", "config", "show", "--config", str(file))
    assert said.code == 1
    assert "'log_levl'; did you mean log_level?; for all: updraft config check" in said.error


def test_help_explains_keys_and_tables() -> None:
    said = run("updraft", "config", "help", "server.idle_stop")
    assert said.out == (
        "key      server.idle_stop\n"
        "is       end server and runner after this long without jobs\n"
        'type     duration or "never"\n'
        'default  "30m" (never when listen is set)\n'
        "bounds   at least 100ms\n"
    )
    assert '\n  max_runners = "unlimited"  ' in run("updraft", "config", "help", "pools").out
    everything = run("updraft", "config", "help").out
    assert "[notifications.NAME]" in everything
    said = run("updraft", "config", "help", "server.idlestop")
    assert said.error == (
        "updraft: there is no key 'server.idlestop'; did you mean server.idle_stop?"
    )
    assert said.code == 1
