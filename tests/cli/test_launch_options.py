"""The flags of ``urun`` and ``ubatch``: where they end, what they mean, what is wrong with them."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft import errors
from updraft.cli.launch_options import FLAGS, LaunchOptions, help_text, parse

VALUES = {
    "pool": ["local", "a b", "-"],
    "project": ["vision"],
    "directory": [".", "/tmp", "/tmp/\udcff"],
    "env": ["KEY=VALUE", "KEY=", "KEY==", "K\udcff=\udcff", "HOME"],
    "name": ["train", "", "--"],
    "label": ["team=a", "team=", "a=b=c"],
    "cpus": ["2", "0.5"],
    "memory": ["512M"],
    "gpus": ["1"],
    "time": ["90s"],
    "tasks": ["1", "1000"],
    "max-parallel": ["8"],
    "retries": ["3"],
    "retry-on": ["exit", "lost,oom"],
    "backoff": ["0", "90s"],
    "priority": ["10", "-5"],
    "after": ["k7m2p9x4ce", "k7m/7"],
    "after-ok": ["k7m/*"],
    "after-fail": ["k7m"],
    "not-before": ["2026-01-31T12:00"],
    "deadline": ["2026-01-31"],
    "shell": ["echo *", "--help"],
    "detach-keys": ["ctrl-p,ctrl-q", "a", "ctrl-\\"],
    "keep-alive": ["0", "2h"],
    "on-partition": ["rerun", "fence"],
}
WORDS = st.text(max_size=8) | st.sampled_from(
    ["-q", "--", "-", "--cpus", "--no-such-flag", "python", "-e", "KEY=VALUE", "\udcff", ""]
)
COMMANDS = WORDS.filter(lambda word: not word.startswith("-") or word == "-")


def spellings(batch: bool) -> list[list[str]]:
    """Every flag with its values, in every way to write it that is right."""
    found = []
    for flag in FLAGS:
        if flag.batch not in (None, batch):
            continue
        for name in flag.names:
            if flag.value is None:
                found.append([name])
            for value in VALUES[flag.key] if flag.value else ():
                found.append([name, value])
                if name.startswith("--"):
                    found.append([f"{name}={value}"])
                elif value:
                    found.append([name + value])
    return found


@pytest.fixture(autouse=True, scope="module")
def home() -> None:
    assert "HOME" in os.environ, "a flag passes HOME on"


@pytest.mark.parametrize("batch", [False, True])
@given(data=st.data(), word=COMMANDS, rest=st.lists(WORDS, max_size=5))
def test_everything_from_the_first_word_that_is_no_flag_belongs_to_the_command(
    batch: bool, data: st.DataObject, word: str, rest: list[str]
) -> None:
    flags = data.draw(st.lists(st.sampled_from(spellings(batch)), max_size=5))
    arguments = [part for flag in flags for part in flag]
    assert parse([*arguments, word, *rest], batch=batch).command == [word, *rest]


@given(data=st.data(), rest=st.lists(WORDS, max_size=5))
def test_everything_behind_two_dashes_belongs_to_the_command(
    data: st.DataObject, rest: list[str]
) -> None:
    flags = data.draw(st.lists(st.sampled_from(spellings(False)), max_size=5))
    arguments = [part for flag in flags for part in flag]
    assert parse([*arguments, "--", *rest], batch=False).command == rest


@pytest.mark.parametrize("batch", [False, True])
@given(arguments=st.lists(WORDS | st.sampled_from(["-qI", "--cpus=x", "-e=", "--=x"]), max_size=5))
def test_any_words_are_understood_or_refused_in_one_line(batch: bool, arguments: list[str]) -> None:
    message = "none"
    options = LaunchOptions()
    try:
        options = parse(arguments, batch=batch)
    except errors.BadRequest as refused:
        message = refused.message
    assert message
    assert "\n" not in message
    # What is kept as text can be sent as text.
    for text in (options.name, options.pool, *options.labels, *options.labels.values()):
        text.encode()


def one(*arguments: str) -> LaunchOptions:
    return parse([*arguments, "true"], batch=False)


@pytest.mark.parametrize("key", VALUES)
def test_a_flag_is_the_same_however_it_is_written(key: str) -> None:
    for value in VALUES[key]:
        flag = next(flag for flag in FLAGS if flag.key == key)
        written = [[flag.names[-1], value], [f"{flag.names[-1]}={value}"]]
        if len(flag.names) > 1 and value:
            written += [[flag.names[0], value], [flag.names[0] + value]]
        read = [vars(one(*words)) for words in written]
        assert all(options == read[0] for options in read)
        assert read[0] != vars(one()) or value in ("", "0", "rerun")


def test_what_flags_mean() -> None:
    options = one(
        *("--cpus", "1.5", "--memory", "2G", "--gpus", "1", "--time", "1m", "--retries", "4"),
        *("-l", "a=1", "-l", "b=2", "-l", "a=3", "-e", "X=1", "-e", "Y=", "-I", "-q"),
        *("--detach-keys", "ctrl-p,q,ctrl-[", "--keep-alive", "1.5s"),
    )
    assert options.cpus_milli == 1500
    assert options.memory_bytes == 2 << 30
    assert (options.gpus, options.retries) == (1, 4)
    assert (options.time_limit_ms, options.keep_alive_ms) == (60_000, 1500)
    assert options.labels == {"a": "3", "b": "2"}
    assert options.environment == [b"X=1", b"Y="]
    assert options.no_stdin
    assert options.quiet
    assert options.detach_keys == b"\x10q\x1b"


def test_the_last_of_two_opposite_flags_counts() -> None:
    assert one().tty is None
    assert one("--no-tty", "--tty").tty is True
    assert one("--tty", "--no-tty").tty is False


def test_a_variable_is_passed_on_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"UPDRAFT_TEST", b"\xff=\xfe")
    assert one("-e", "UPDRAFT_TEST").environment == [b"UPDRAFT_TEST=\xff=\xfe"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["-x"], "-x"),
        (["--pol", "local"], "--pol"),
        (["--cpus"], "--cpus"),
        (["--cpus", "many"], "many"),
        (["--memory", "12Q"], "12Q"),
        (["--gpus", "-1"], "-1"),
        (["--gpus", "1.5"], "1.5"),
        (["--gpus", "9999999"], "9999999"),
        (["--time", "0"], "--time"),
        (["--time", "0.0001s"], "--time"),
        (["--retries", "x"], "--retries"),
        (["--label", "team"], "team"),
        (["--label", "=a"], "=a"),
        (["--label", "a=\udcff"], "--label"),
        (["--name", "\udcff"], "--name"),
        (["--pool", "\udcff"], "--pool"),
        (["--env", "=x"], "=x"),
        (["--env", "UPDRAFT_TEST_UNSET"], "UPDRAFT_TEST_UNSET"),
        (["--env", "UPDRAFT\nUNSET"], "UNSET"),
        (["--no\nflag"], "flag"),
        (["--detach-keys", "ctrl-"], "ctrl-"),
        (["--detach-keys", "ctrl-ß"], "ctrl-ß"),
        (["--detach-keys", "ctrl-é"], "ctrl-é"),
        (["--detach-keys", ""], "--detach-keys"),
        (["--quiet=1"], "--quiet"),
        (["-qI"], "-q and -I"),
        (["--follow"], "--follow"),
    ],
)
def test_what_is_wrong_is_named(arguments: Sequence[str], named: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        one(*arguments)
    assert named in refused.value.message
    assert "\n" not in refused.value.message


def test_detach_keys_are_the_bytes_that_a_terminal_sends() -> None:
    assert one("--detach-keys", "é,\udcff").detach_keys == "é".encode() + b"\xff"


@pytest.mark.parametrize("batch", [False, True])
def test_help_names_every_flag_of_its_command_and_no_other(batch: bool) -> None:
    text = help_text("urun", batch=batch)
    for flag in FLAGS:
        assert (f"{flag.names[-1]} " in text) == (flag.batch in (None, batch)), flag.names
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_flag_does_something() -> None:
    for batch in (False, True):
        for words in spellings(batch):
            parse(words, batch=batch)
