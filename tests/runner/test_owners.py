"""Owners on a shared runner: each has a user id, no two have the same, and folders are theirs."""

import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from updraft import errors
from updraft.runner import joining
from updraft.runner.agent import __main__ as agent_main
from updraft.runner.agent import owners
from updraft.runner.agent.owners import Owners, Policy
from updraft.runner.joined import Joined

NAMES = ["alice", "bob", "alice@example.com", "../../etc", "..", ".hidden", "a/b", "ü"]


@pytest.fixture
def pool(tmp_path: Path) -> Owners:
    return Owners(tmp_path)


def test_each_owner_has_a_user_id_that_stays_and_no_two_have_the_same(
    pool: Owners, tmp_path: Path
) -> None:
    found = {name: pool.owner(name).uid for name in NAMES}
    assert len(set(found.values())) == len(NAMES)
    assert all(uid in range(owners.FIRST_UID, owners.LAST_UID + 1) for uid in found.values())
    assert {name: Owners(tmp_path).owner(name).uid for name in NAMES} == found
    for name in ("owners.json", "owners.lock"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_two_agents_at_once_give_no_user_id_twice(tmp_path: Path) -> None:
    found: list[int] = []

    def ask(agent: int) -> None:
        found.extend(Owners(tmp_path).owner(f"owner-{agent}-{each}").uid for each in range(20))

    threads = [threading.Thread(target=ask, args=(agent,)) for agent in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 80


def test_ids_that_the_machine_uses_or_lends_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "_accounts", lambda: {400_000})
    monkeypatch.setattr(owners, "_delegated", lambda path: [range(400_001, 400_003)])
    pool = Owners(tmp_path, first_uid=400_000, last_uid=400_003)
    assert pool.owner("alice").uid == 400_003
    with pytest.raises(errors.Unavailable, match="configure a larger range"):
        pool.owner("bob")
    assert pool.owner("alice").uid == 400_003


def test_ids_lent_to_containers_are_read_from_subuid(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("alice:100000:65536\nbad line\nbob:x:1\n")
    assert owners._delegated(tmp_path / "subuid") == [range(100_000, 165_536)]
    assert owners._delegated(tmp_path / "none") == []


@pytest.mark.root
def test_a_freed_id_rests_and_is_not_given_while_files_remain(tmp_path: Path) -> None:
    pool = Owners(tmp_path, first_uid=400_000, last_uid=400_002)
    alice = pool.owner("alice")
    pool.workspace(alice, "j1")
    assert not pool.forget("alice")
    assert pool.owner("alice") == alice
    bob = pool.owner("bob")
    assert pool.forget("bob")
    assert pool.owner("carol").uid not in (alice.uid, bob.uid), "the one freed last rests"
    assert pool.owner("dora").uid == bob.uid
    pool.remove(pool.put_away("j1"))
    assert pool.forget("alice")
    assert pool.owner("erwin").uid == alice.uid


def test_a_system_account_is_used_only_by_its_name_and_never_roots_or_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = {
        "alice": account("alice", 1234, 1234),
        "root": account("root", 0, 0),
        "www-data": account("www-data", 33, 33),
        "wheel": account("wheel", 1300, 0),
        "nobody": account("nobody", 65534, 65534),
    }
    monkeypatch.setattr("pwd.getpwnam", accounts.__getitem__)
    monkeypatch.setattr("os.getgrouplist", lambda name, gid: [gid, 6, 27, 999, 2000])
    found = Owners(tmp_path, Policy.SYSTEM)
    alice = found.owner("alice")
    assert (alice.uid, alice.gid, alice.groups) == (1234, 1234, (2000,))
    assert (alice.home, alice.shell) == ("/", "/bin/bash")
    for name in ("root", "www-data", "wheel", "nobody", "unknown", "nul\0"):
        assert found.owner(name).uid >= owners.FIRST_UID
    assert Owners(tmp_path, Policy.POOL).owner("alice").uid >= owners.FIRST_UID


def test_a_range_in_which_the_machine_has_an_account_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pwd.getpwall", lambda: [account("ann", 400_005, 400_005)])
    owners.check_range(400_006, 400_010)
    with pytest.raises(errors.BadConfiguration) as caught:
        owners.check_range(400_000, 400_005)
    assert caught.value.message == (
        "runner.uid_range: 400000-400005 has the user id 400005, which is ann's; choose a range "
        "without accounts"
    )


def configured(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPDRAFT_HOME", str(folder))
    monkeypatch.delenv("UPDRAFT_CONFIG", raising=False)
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "updraft.toml").write_text(text)


def test_a_joined_runner_maps_owners_as_its_machine_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(
        tmp_path, '[runner]\nusers = "system"\nuid_range = "410000-410009"\ncgroups = false\n',
        monkeypatch,
    )  # fmt: skip
    words = joining.command(str(tmp_path), shared=True)
    keeper, agent = words[: words.index("--")], words[words.index("--") + 1 :]
    assert keeper[-2:] == ["--no-cgroups", "--shared"]
    assert agent[-5:] == ["--joined", "--owners", "system", "410000", "410009"]
    monkeypatch.setattr("pwd.getpwnam", {"ann": account("ann", 1234, 1234)}.__getitem__)
    monkeypatch.setattr("os.getgrouplist", lambda name, gid: [gid])
    found = agent_main._owners(str(tmp_path), agent[-4:])
    assert found.owner("ann").uid == 1234
    assert found.owner("bob").uid in range(410_000, 410_010)
    assert agent_main._owners(str(tmp_path), []).owner("ann").uid >= owners.FIRST_UID
    assert "--owners" not in joining.command(str(tmp_path), shared=False)


@pytest.mark.root
def test_a_runner_without_isolation_joins_for_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "can_isolate", lambda: None)
    configured(tmp_path, "", monkeypatch)
    assert joining.machine()["shared"] is True
    assert joining.machine(serves="ann")["shared"] is False
    configured(tmp_path, '[runner]\nisolation = "off"\n', monkeypatch)
    assert joining.machine()["shared"] is False
    with pytest.raises(errors.BadConfiguration, match=r'runner\.isolation is "off", but this'):
        joining.command(str(tmp_path), shared=True)


@pytest.mark.parametrize(("shared", "mode"), [(True, 0o711), (False, 0o700)])
def test_a_joined_runner_makes_folders_that_its_tasks_users_pass_whatever_the_umask_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, mode: int
) -> None:
    monkeypatch.setenv("UPDRAFT_HOME", str(tmp_path / "home"))
    before = os.umask(0o077)
    try:
        folder = joining.keep(Joined("https://a", "node7", "gpu", "secret", shared=shared))
    finally:
        os.umask(before)
    made = [each for each in (Path(folder), *Path(folder).parents) if tmp_path in each.parents]
    assert {each.stat().st_mode & 0o777 for each in made} == {mode}
    assert (Path(folder) / "joined.json").stat().st_mode & 0o777 == 0o600


def account(name: str, uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/bash"))


@pytest.mark.root
@pytest.mark.parametrize("name", NAMES)
def test_a_workspace_is_its_owners_and_below_the_runners_folder(
    pool: Owners, tmp_path: Path, name: str
) -> None:
    owner = pool.owner(name)
    path = pool.workspace(owner, "j123")
    assert pool.workspace(owner, "j123") == path
    assert path.resolve().is_relative_to(tmp_path / "work")
    assert len(path.relative_to(tmp_path / "work").parts) == 2
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (owner.uid, owner.gid, 0o700)
    # What an owner could put a link into is root's.
    assert (path.parent.stat().st_uid, path.parent.stat().st_mode & 0o777) == (0, 0o711)
    pool.remove(pool.put_away("j123"))
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.root
def test_what_a_killed_agent_had_still_to_remove_is_found(pool: Owners, tmp_path: Path) -> None:
    kept = pool.workspace(pool.owner("alice"), "j1")
    pool.workspace(pool.owner("alice"), "j2")
    pool.workspace(pool.owner("bob"), "j3")
    pool.put_away("j3")
    pool.remove(pool.left_over({"j1"}))
    assert list((tmp_path / "work").glob("*/*")) == [kept]


@pytest.mark.root
def test_what_is_in_a_workspaces_place_is_not_given_away(pool: Owners, tmp_path: Path) -> None:
    alice, bob = pool.owner("alice"), pool.owner("bob")
    theirs = pool.workspace(bob, "j1")
    (tmp_path / "work/alice").mkdir(parents=True)
    (tmp_path / "work/alice/j1").symlink_to(theirs)
    with pytest.raises(errors.Conflict, match="move it away"):
        pool.workspace(alice, "j1")
    theirs.rename(tmp_path / "work/alice/j2")
    with pytest.raises(errors.Conflict, match="move it away"):
        pool.workspace(alice, "j2")


@pytest.mark.parametrize("job", ["", "..", "a/b", "A", "j" * 65, "j\n"])
def test_a_job_that_names_no_folder_is_refused(pool: Owners, tmp_path: Path, job: str) -> None:
    with pytest.raises(errors.BadRequest):
        pool.workspace(pool.owner("alice"), job)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("bounds", [(0, 10), (999, 2000), (3000, 2000), (3000, 1 << 31)])
def test_a_range_with_roots_or_the_systems_ids_is_refused(
    tmp_path: Path, bounds: tuple[int, int]
) -> None:
    with pytest.raises(errors.BadConfiguration):
        Owners(tmp_path, Policy.POOL, *bounds)


@pytest.mark.root
def test_a_folder_that_no_other_user_can_reach_is_refused(open_folder: Path) -> None:
    Owners(open_folder / "runner")
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(errors.BadConfiguration, match="UPDRAFT_HOME=/var/lib/updraft-runner"):
        Owners(closed / "state/runner")


@pytest.mark.root
def test_removing_a_workspace_follows_no_link_and_survives_any_depth(
    pool: Owners, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    path = pool.workspace(pool.owner("alice"), "j1")
    (path / "link").symlink_to(kept)
    (path / "dangling").symlink_to("nowhere")
    here = os.open(path, os.O_RDONLY)
    for _ in range(3000):  # deeper than a path can be, and than Python recurses
        os.mkdir("d", dir_fd=here)
        os.mkdir("e", dir_fd=here)
        os.close(os.open("f", os.O_CREAT, dir_fd=here))
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    away = pool.put_away("j1")
    again = pool.workspace(pool.owner("alice"), "j1")
    pool.remove(away)
    assert [each.name for each in path.parent.iterdir()] == ["j1"]
    assert list(again.iterdir()) == []
    assert (kept / "file").read_text() == "kept"


def test_whether_tasks_can_be_isolated_is_tried_and_a_reason_is_one_sentence() -> None:
    why = owners.can_isolate()
    if os.geteuid() != 0:
        assert why is not None
        assert "root" in why
    assert why is None or ("\n" not in why and why)


@pytest.mark.root
def test_without_the_right_to_make_namespaces_the_reason_says_so() -> None:
    program = "from updraft.runner.keeper.isolation import probe; print(probe())"
    command = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    command += [sys.executable, "-I", "-c", program]
    tried = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "CAP_SYS_ADMIN" in tried.stdout
    assert tried.stdout.count("\n") == 1


def test_doctor_is_told_whether_owners_are_kept_apart_and_what_limits_devices() -> None:
    found = {what: (holds, sentence) for what, holds, sentence in owners.describe()}
    holds, sentence = found["keeping tasks of several owners apart"]
    assert holds == (owners.can_isolate() is None)
    if not holds:
        assert sentence.startswith("not possible: ")
        assert len(found) == 1
    else:
        assert found["limiting a task to its GPUs"][0]
