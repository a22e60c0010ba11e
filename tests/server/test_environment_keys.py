"""Keys of stored environments: each job's own, private, durable before use, gone after its end."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_disk import fill, limited_file_size, make_room, small_disk
from updraft import errors
from updraft.server.auth.environment_keys import EnvironmentKeys, Predecessors

KEY_BYTES = 32
ENVIRONMENT = b"TOKEN=secret\0PATH=/usr/bin"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "environment.keys"


@pytest.fixture
def keys(path: Path) -> Iterator[EnvironmentKeys]:
    keys = EnvironmentKeys(str(path), set())
    yield keys
    keys.close()


def key_of(path: Path, slot: int) -> bytes:
    return path.read_bytes()[slot * KEY_BYTES : (slot + 1) * KEY_BYTES]


@given(environment=st.binary(max_size=500))
@settings(deadline=None)
def test_an_environment_comes_back_and_is_not_to_be_seen(
    tmp_path_factory: pytest.TempPathFactory, environment: bytes
) -> None:
    keys = EnvironmentKeys(str(tmp_path_factory.getbasetemp() / "keys"), set())
    slot, encrypted = keys.encrypt(environment)
    assert keys.decrypt(slot, encrypted) == environment
    assert len(environment) < 4 or environment not in encrypted
    assert keys.encrypt(environment)[1] != encrypted
    keys.close()


@pytest.mark.parametrize("umask", [0o000, 0o777])
@pytest.mark.parametrize("before", [None, 0o666])
def test_the_file_is_private(path: Path, umask: int, before: int | None) -> None:
    if before is not None:
        path.touch()
        path.chmod(before)
    previous = os.umask(umask)
    try:
        EnvironmentKeys(str(path), set()).close()
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_shredded_key_is_nowhere_and_opens_nothing(keys: EnvironmentKeys, path: Path) -> None:
    slot, encrypted = keys.encrypt(ENVIRONMENT)
    key = key_of(path, slot)
    assert any(key)
    keys.shred(slot)
    assert key not in path.read_bytes()
    assert keys.decrypt(slot, encrypted) is None


def test_jobs_one_after_another_take_no_more_room(keys: EnvironmentKeys, path: Path) -> None:
    for _ in range(2000):
        slot, _ = keys.encrypt(ENVIRONMENT)
        keys.shred(slot)
    assert path.stat().st_size <= 2 * 256 * KEY_BYTES


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 400))
def test_live_jobs_never_share_a_key(
    tmp_path_factory: pytest.TempPathFactory, choices: list[int], many: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "shared.keys"
    path.unlink(missing_ok=True)
    keys = EnvironmentKeys(str(path), set())
    live = dict(keys.encrypt(b"%d" % number) for number in range(many))
    for number, choice in enumerate(choices):
        if choice < 3 or not live:
            slot, encrypted = keys.encrypt(b"%d" % number)
            assert slot not in live
            live[slot] = encrypted
        elif choice < 5:
            slot = sorted(live)[number % len(live)]
            keys.shred(slot)
            assert keys.decrypt(slot, live.pop(slot)) is None
        else:  # the server is killed: nothing is closed
            keys = EnvironmentKeys(str(path), set(live))
    assert all(keys.decrypt(slot, encrypted) is not None for slot, encrypted in live.items())
    assert len({key_of(path, slot) for slot in live}) == len(live)


def test_a_new_server_opens_what_lives_and_shreds_what_the_old_one_did_not(path: Path) -> None:
    keys = EnvironmentKeys(str(path), set())
    lives, ended = keys.encrypt(ENVIRONMENT), keys.encrypt(ENVIRONMENT)
    left = key_of(path, ended[0])
    # Killed here: the end is stored, its key is not yet overwritten.
    again = EnvironmentKeys(str(path), {lives[0]})
    assert again.decrypt(*lives) == ENVIRONMENT
    assert again.decrypt(*ended) is None
    assert left not in path.read_bytes()
    again.close()


@pytest.mark.parametrize("left_bytes", [0, 5, KEY_BYTES * 3 + 1, None])
def test_a_lost_file_costs_the_environments_in_it_and_nothing_else(
    path: Path, left_bytes: int | None
) -> None:
    before = EnvironmentKeys(str(path), set())
    old = dict(before.encrypt(b"old") for _ in range(300))
    before.close()
    if left_bytes is None:
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(left_bytes)
    keys = EnvironmentKeys(str(path), set(old))
    gone = [slot for slot, encrypted in old.items() if keys.decrypt(slot, encrypted) is None]
    assert len(gone) >= 300 - 3
    new = dict(keys.encrypt(b"new") for _ in range(600))
    assert not set(new) & set(old)
    # The old jobs end; the new ones keep what is theirs.
    for slot in old:
        keys.shred(slot)
    newer = dict(keys.encrypt(b"newer") for _ in range(600))
    assert not set(newer) & set(new)
    assert all(keys.decrypt(slot, encrypted) == b"new" for slot, encrypted in new.items())
    keys.close()


def leader(path: Path, epoch: int, used: set[int]) -> EnvironmentKeys:
    return EnvironmentKeys(str(path), used, Predecessors(str(path), epoch))


def test_a_server_that_was_succeeded_spoils_no_key_of_its_successors(path: Path) -> None:
    first = leader(path, 1, set())
    live = dict(first.encrypt(b"first") for _ in range(10))
    ended = [first.encrypt(b"first")[0] for _ in range(200)]
    paused = Predecessors(str(path), 2)  # a second one stops in its start, for a while
    third = leader(path, 3, set(live))
    new = dict(third.encrypt(b"third") for _ in range(600))
    # The first one goes on where it was stopped: jobs have ended, others are submitted.
    for slot in ended:
        first.shred(slot)
    for _ in range(600):
        first.encrypt(b"of no job")
    first.close()
    EnvironmentKeys(str(path), set(live), paused).close()
    assert all(third.decrypt(slot, encrypted) == b"first" for slot, encrypted in live.items())
    assert all(third.decrypt(slot, encrypted) == b"third" for slot, encrypted in new.items())
    third.close()
    fourth = leader(path, 4, set(live) | set(new))
    assert all(fourth.decrypt(*each) == b"first" for each in live.items())
    assert all(fourth.decrypt(*each) == b"third" for each in new.items())
    for slot in live:
        fourth.shred(slot)
    assert not any(fourth.decrypt(*each) for each in live.items())
    fourth.close()


def test_a_file_of_keys_goes_with_the_last_job_that_needs_it(path: Path) -> None:
    slot, encrypted = leader(path, 1, set()).encrypt(ENVIRONMENT)
    second = leader(path, 2, {slot})
    assert second.decrypt(slot, encrypted) == ENVIRONMENT
    assert sorted(found.name for found in path.parent.iterdir()) == [
        f"{path.name}.1",
        f"{path.name}.2",
    ]
    leader(path, 3, set()).close()
    assert [found.name for found in path.parent.iterdir()] == [f"{path.name}.3"]
    # After very many epochs a number comes again, whose file a job that waits still needs.
    slot, encrypted = leader(path, 5, set()).encrypt(ENVIRONMENT)
    again = leader(path, 5 + 512, {slot})
    other, _ = again.encrypt(b"other")
    assert again.decrypt(slot, encrypted) == ENVIRONMENT
    assert other != slot
    assert max(slot, other) < 1 << 31


@given(st.binary(max_size=60), st.integers(0, 1000))
@settings(deadline=None)
def test_what_was_not_encrypted_here_is_not_an_environment(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, slot: int
) -> None:
    keys = EnvironmentKeys(str(tmp_path_factory.getbasetemp() / "other.keys"), set())
    own, encrypted = keys.encrypt(ENVIRONMENT)
    assert keys.decrypt(slot, data) is None
    assert keys.decrypt(own, encrypted[: len(data)]) is None
    assert slot == own or keys.decrypt(slot, encrypted) is None
    keys.close()


def test_no_key_is_used_before_it_is_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = b""

    def flush(_fd: int) -> None:
        nonlocal on_disk
        on_disk = path.read_bytes()

    monkeypatch.setattr(os, "fsync", flush)
    keys = EnvironmentKeys(str(path), set())
    flushes = 0
    for number in range(1000):
        before = on_disk
        slot, _ = keys.encrypt(ENVIRONMENT)
        flushes += before is not on_disk
        start = slot * KEY_BYTES
        assert on_disk[start : start + KEY_BYTES] == key_of(path, slot), number
        keys.shred(slot)
    assert flushes <= 1000 // 100
    keys.close()


def test_a_file_that_may_not_grow_is_told_as_a_full_disk(path: Path) -> None:
    keys = EnvironmentKeys(str(path), set())
    live = [keys.encrypt(ENVIRONMENT) for _ in range(256)]
    for more_bytes in (0, 100):  # nothing is written, and a part is
        with limited_file_size(path.stat().st_size + more_bytes):
            for _ in range(2):
                with pytest.raises(errors.DiskFull, match="free some space"):
                    keys.encrypt(ENVIRONMENT)
            # A job can end on a full disk.
            keys.shred(live.pop()[0])
    live.append(keys.encrypt(ENVIRONMENT))
    assert len({slot for slot, _ in live}) == len(live)
    assert all(keys.decrypt(*each) == ENVIRONMENT for each in live)
    keys.close()


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        keys = EnvironmentKeys(str(disk / "keys"), set())
        live = [keys.encrypt(ENVIRONMENT) for _ in range(256)]
        fill(disk)
        with pytest.raises(errors.DiskFull, match="free some space"):
            keys.encrypt(ENVIRONMENT)
        keys.shred(live.pop()[0])
        make_room(disk)
        live.append(keys.encrypt(ENVIRONMENT))
        assert all(keys.decrypt(*each) == ENVIRONMENT for each in live)
        keys.close()
