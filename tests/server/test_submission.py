"""What a server takes for a job: anything else is refused in one line that names the field."""

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft import errors
from updraft.model.job import Resources
from updraft.sdk.submission import submission
from updraft.server.services.submission import parse_submission
from updraft.wire.packing import pack

TTY = {"rows": 24, "columns": 80, "attributes": [0, 1, 2, 3, 4, 5, [b"\x03", 1]], "stderr": True}
YEARS_MS = 10 * 365 * 86_400_000


def valid(**changes: Any) -> dict[str, Any]:
    return {**submission([b"true"], attached=True), **changes}


# As they come: packed over the socket, or as JSON over HTTP.
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([-1, 0, 65536, 2**31, 2**62, 2**63])
    | st.floats()
    | st.binary(max_size=12)
    | st.text(max_size=12)
    | st.sampled_from(["\ud800", "\0", "a\nb", b"/a\0b", b"/"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("\ud800"), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_what_urun_sends_is_taken_as_it_is() -> None:
    body = valid(
        argv=[b"python", b"\xff"], environment=b"A=1\0B=\xfe", tty=TTY, labels={"team": "é"}
    )
    taken, environment = parse_submission(body)
    assert taken.command.argv == [b"python", b"\xff"]
    assert environment == b"A=1\0B=\xfe"
    assert taken.resources == Resources(1000, 0, 0)
    assert taken.command.terminal is not None
    assert taken.command.terminal.rows == 24
    assert taken.command.rlimits == body["rlimits"]
    assert taken.labels == {"team": "é"}


@given(st.dictionaries(st.sampled_from([*sorted(valid()), "pipes"]), ODD, max_size=3))
def test_any_submission_is_taken_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    message = "none"
    taken = None
    try:
        taken, _ = parse_submission(valid(**changes))
    except errors.BadRequest as error:
        message = error.message
    assert message
    assert "\n" not in message
    message.encode()
    if taken is None:
        return
    # What is taken can be stored, sent and run.
    pack(asdict(taken.command))
    for text in (taken.name, taken.pool, taken.source or "", *taken.pipes):
        text.encode()
    for key, value in taken.labels.items():
        (key + value).encode()
    assert 0 <= taken.resources.cpus_milli < 2**31
    assert 0 <= taken.resources.gpus < 2**31
    assert 0 <= taken.resources.memory_bytes < 2**63
    assert -(2**31) <= taken.policy.priority < 2**31
    for duration_ms in (taken.policy.grace_ms, taken.policy.keep_alive_ms):
        assert 0 <= duration_ms <= YEARS_MS
    assert taken.policy.time_limit_ms is None or 0 < taken.policy.time_limit_ms <= YEARS_MS
    assert all(b"\0" not in part for part in (taken.command.directory, *taken.command.argv))
    assert all([type(each) for each in limit] == [int] * 3 for limit in taken.command.rlimits)
    assert all(type(number) is int for number in taken.command.ignored_signals)


@given(st.lists(st.sampled_from(sorted(valid())), min_size=1, max_size=3))
def test_a_field_that_is_missing_is_named(missing: list[str]) -> None:
    body = {name: value for name, value in valid().items() if name not in missing}
    optional = {"tty", "time_limit_ms", "source", "closed_fds", "one_output", "pipes", "fenced"}
    if set(missing) <= optional:
        parse_submission(body)
        return
    with pytest.raises(errors.BadRequest) as refused:
        parse_submission(body)
    assert any(name in refused.value.message for name in missing)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("argv", []),
        ("argv", "true"),
        ("argv", ["true"]),
        ("argv", [b"a\0b"]),
        ("argv", [b"x" * (5 << 20)] * 2),
        ("directory", b"relative"),
        ("directory", b""),
        ("directory", b"/a\0b"),
        ("rlimits", [[1, 2]]),
        ("rlimits", [[1, 2, "x"]]),
        ("rlimits", [5]),
        ("ignored_signals", ["x"]),
        ("cpus_milli", -1),
        ("cpus_milli", True),
        ("cpus_milli", 2**40),
        ("memory_bytes", 2**63),
        ("gpus", 1.0),
        ("time_limit_ms", 0),
        ("time_limit_ms", YEARS_MS + 1),
        ("grace_ms", 2**61),
        ("keep_alive_ms", -5),
        ("priority", 2**31),
        ("name", "x" * 201),
        ("name", "a\nb"),
        ("labels", {"": "x"}),
        ("labels", {"a": 5}),
        ("labels", {'"': "x"}),
        ("labels", {"a": "\ud800"}),
        ("labels", {str(number): "x" for number in range(65)}),
        ("key", b"short"),
        ("key", b"x" * 65),
        ("tty", {"rows": 24}),
        ("tty", {**TTY, "rows": 65536}),
        ("tty", {**TTY, "attributes": 5}),
        ("tty", {**TTY, "attributes": [1, 2]}),
        ("tty", {**TTY, "attributes": [0, 1, 2, 3, 4, 5, [1.5]]}),
        ("source", 5),
        ("source", "x" * 17),
        ("closed_fds", 5),
        ("pool", "\ud800"),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, value: Any) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        parse_submission(valid(**{field: value}))
    words = {"argv": "command", "labels": "label", "tty": ""}
    assert field in refused.value.message or words.get(field, field) in refused.value.message


def test_more_retries_than_anybody_needs_are_taken_as_the_most() -> None:
    assert parse_submission(valid(retries=10**9))[0].policy.retries == 1000
