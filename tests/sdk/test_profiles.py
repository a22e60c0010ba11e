"""Profiles, and which server a command is for."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from updraft import errors
from updraft.sdk import profiles
from updraft.sdk.targets import (
    Target,
    current_profile,
    parse_fingerprint,
    parse_url,
    read_profile,
    read_target,
    url_of,
)

PIN = "sha256:" + "ab" * 32


def target(name: str = "team", **more: str) -> Target:
    return Target("https://host.test:7443", "updraft_user_1_2", profile=name, user="anna", **more)


def folder_of(tmp_path: Path) -> str:
    return str(tmp_path / "config")


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"UPDRAFT_HOME": str(tmp_path), **more}


def test_a_profile_comes_back_as_it_was_saved_and_is_in_use(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert read_target(environ(tmp_path)) is None
    profiles.save(folder, target(project="red", fingerprint=PIN))
    found = read_target(environ(tmp_path))
    assert found is not None
    assert (found.host, found.port, found.url) == ("host.test", 7443, "https://host.test:7443")
    assert (found.token, found.project, found.fingerprint) == ("updraft_user_1_2", "red", PIN)
    assert (found.user, found.profile) == ("anna", "team")
    assert "updraft_user" not in repr(found)


def test_only_its_owner_reads_a_profile_and_no_half_is_left(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    profiles.save(folder, target())
    profiles.save(folder, target(project="blue"))
    inside = tmp_path / "config" / "profiles"
    assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    assert [path.name for path in inside.iterdir()] == ["team"]
    assert stat.S_IMODE((inside / "team").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "config").iterdir()) == ["profile", "profiles"]


def test_the_environment_goes_over_the_profile_in_use(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    profiles.save(folder, target("one", project="red"))
    profiles.save(folder, target("two"))
    assert current_profile(folder) == "two"

    def chosen(**more: str) -> Target | None:
        return read_target(environ(tmp_path, **more))

    assert chosen(UPDRAFT_PROFILE="local") is None
    one = chosen(UPDRAFT_PROFILE="one")
    assert one is not None
    assert (one.profile, one.project) == ("one", "red")
    other = chosen(UPDRAFT_PROFILE="one", UPDRAFT_PROJECT="blue")
    assert other is not None
    assert other.project == "blue"
    ci = chosen(
        UPDRAFT_URL="https://ci.test", UPDRAFT_TOKEN="t", UPDRAFT_PROFILE="local",
        UPDRAFT_FINGERPRINT=PIN.upper().replace("SHA256", "sha256"),
    )  # fmt: skip
    assert ci is not None
    assert (ci.host, ci.port, ci.token, ci.project, ci.fingerprint) == (
        "ci.test", 443, "t", None, PIN,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"UPDRAFT_URL": "https://x"}, "UPDRAFT_TOKEN is not set"),
        ({"UPDRAFT_TOKEN": "x"}, "UPDRAFT_URL is not set"),
        ({"UPDRAFT_URL": "http://x", "UPDRAFT_TOKEN": "x"}, "UPDRAFT_URL: 'http://x' is no"),
        ({"UPDRAFT_URL": "https://x", "UPDRAFT_TOKEN": "x", "UPDRAFT_FINGERPRINT": "x"},
         "UPDRAFT_FINGERPRINT: 'x' is no fingerprint"),
        ({"UPDRAFT_PROFILE": "gone"}, "there is no profile 'gone'"),
        ({"UPDRAFT_PROFILE": "../profile"}, "cannot be a profile's name"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(tmp_path: Path, more: dict[str, str], says: str) -> None:
    with pytest.raises(errors.BadConfiguration, match=says):
        read_target(environ(tmp_path, **more))


def test_removing_the_profile_in_use_leads_back_to_this_machine(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    profiles.save(folder, target("one"))
    profiles.save(folder, target("two"))
    assert profiles.names(folder) == ["local", "one", "two"]
    profiles.remove(folder, "two")
    assert read_target(environ(tmp_path)) is None
    profiles.use(folder, "one")
    profiles.use(folder, "local")
    with pytest.raises(errors.BadConfiguration, match="there is no profile 'two'"):
        profiles.use(folder, "two")
    with pytest.raises(errors.BadConfiguration, match="there is no profile 'two'"):
        read_profile(folder, "two")
    with pytest.raises(errors.BadRequest):
        profiles.remove(folder, "local")


@pytest.mark.parametrize(
    ("url", "place", "shown"),
    [
        ("https://host", ("host", 443), "https://host"),
        ("https://Host:443/", ("host", 443), "https://host"),
        ("https://host:7443", ("host", 7443), "https://host:7443"),
        ("https://[2001:db8::1]:7443", ("2001:db8::1", 7443), "https://[2001:db8::1]:7443"),
        ("https://[2001:db8::1]", ("2001:db8::1", 443), "https://[2001:db8::1]"),
    ],
)
def test_addresses(url: str, place: tuple[str, int], shown: str) -> None:
    assert parse_url(url) == place
    assert url_of(*place) == shown


@pytest.mark.parametrize(
    "url",
    ["", "host", "http://host", "https://", "https://host:", "https://host:0", "https://host:99999",
     "https://user@host", "https://host/path", "https://host?x", "https://ho st", "https://h\nst"],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(errors.BadRequest, match="write it as https://HOST"):
        parse_url(url)


def test_fingerprints_are_read_as_openssl_and_ssh_write_them() -> None:
    colons = "SHA256:" + ":".join(["AB"] * 32)
    assert parse_fingerprint(colons) == parse_fingerprint(PIN) == PIN
    for wrong in ("ab" * 32, "sha1:" + "ab" * 20, PIN + "0", PIN[:-1] + "g"):
        with pytest.raises(errors.BadRequest):
            parse_fingerprint(wrong)


def test_reading_a_target_imports_next_to_nothing() -> None:
    program = "import sys; import updraft.sdk.targets; print(' '.join(sorted(sys.modules)))"

    def loaded(code: str) -> set[str]:
        command = [sys.executable, "-I", "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return set(result.stdout.split())

    plain = loaded("import sys; print(' '.join(sorted(sys.modules)))")
    assert loaded(program) - plain <= {
        "__future__", "updraft", "updraft.errors", "updraft.sdk", "updraft.sdk.targets",
        "updraft.settings",
    }  # fmt: skip
