"""What agents say, checked: good words come out as they went in, anything else is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_packing import TEXT, VALUES
from updraft.wire import reports
from updraft.wire.packing import PackingError, pack, unpack_dict

NO_NUL = TEXT.filter(lambda text: "\0" not in text)
LENGTHS = st.integers(0, reports.MAX_LENGTH)
TIMES = st.integers(0, (1 << 63) - 1)
PIDS = st.integers(0, (1 << 31) - 1)
AMOUNTS = st.none() | TIMES

STARTS = st.fixed_dictionaries(
    {"pid": PIDS, "at": TIMES},
    optional={
        "clamped_limits": st.lists(st.integers(0, 15), max_size=3),
        "unenforced": st.lists(NO_NUL, max_size=2),
        "directory": st.binary(max_size=9),
    },
)
ENDED = {"at": TIMES, "why": st.none() | NO_NUL, "stdout": LENGTHS, "stderr": LENGTHS}
ENDS = (
    st.fixed_dictionaries(
        {"status": st.integers(0, 0xFFFF), **ENDED},
        optional={
            "cpu_ns": AMOUNTS,
            "peak_memory_bytes": AMOUNTS,
            "read_bytes": AMOUNTS,
            "written_bytes": AMOUNTS,
            "out_of_memory": st.sampled_from(["limit", "machine"]),
        },
    )
    | st.fixed_dictionaries({"lost": NO_NUL, **ENDED})
    | st.fixed_dictionaries({"refused": NO_NUL, "errno": st.just(2), "message": NO_NUL, **ENDED})
)
GPUS = st.fixed_dictionaries(
    {"index": PIDS, "minor": PIDS, "uuid": NO_NUL, "kind": NO_NUL, "memory_bytes": LENGTHS}
)
REPORTS = st.fixed_dictionaries(
    {
        "release": NO_NUL,
        "pid": PIDS,
        "keeper": NO_NUL,
        "keeper_pid": PIDS,
        "keeper_release": NO_NUL,
        "capacity": st.fixed_dictionaries(
            {"cpus_milli": PIDS, "memory_bytes": LENGTHS, "gpus": st.lists(GPUS, max_size=2)}
        ),
        "attempts": st.lists(
            st.fixed_dictionaries({"attempt": TIMES, "end": st.none() | ENDS})
            | STARTS.map(lambda start: {"attempt": 1, **start}),
            max_size=3,
        ),
    }
)
DECODERS: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], st.SearchStrategy[Any]]] = [
    (reports.started_of, STARTS),
    (reports.end_of, ENDS),
    (reports.report_of, REPORTS),
]


@given(st.sampled_from(DECODERS), st.data())
def test_what_honest_agents_say_comes_out_as_it_went_in(
    of: tuple[Callable[[dict[str, Any]], dict[str, Any]], st.SearchStrategy[Any]],
    data: st.DataObject,
) -> None:
    decode, bodies = of
    body = data.draw(bodies)
    assert decode(unpack_dict(pack(body))) == body
    assert decode({**body, "of a newer release": 1}) == body


@given(st.sampled_from(DECODERS), VALUES, st.data())
def test_a_field_of_another_kind_is_refused_or_is_as_good(
    of: tuple[Callable[[dict[str, Any]], dict[str, Any]], st.SearchStrategy[Any]],
    value: Any,
    data: st.DataObject,
) -> None:
    decode, bodies = of
    body = data.draw(bodies)
    name = data.draw(st.sampled_from(sorted(body)))
    try:
        taken = decode({**body, name: value})
    except PackingError:
        return
    assert taken[name] == value
    assert type(taken[name]) in (type(body[name]), type(None), str, bytes, int)


@pytest.mark.parametrize(("offset", "size"), [(reports.MAX_LENGTH, 1), (1 << 63, 0)])
def test_no_stream_is_longer_than_databases_can_add_up(offset: int, size: int) -> None:
    with pytest.raises(PackingError):
        reports.length_of(offset, size)
    assert reports.length_of(reports.MAX_LENGTH - 1, 1) == reports.MAX_LENGTH


SERIALS = st.integers(0, (1 << 62) - 1)
UNSTARTED = st.fixed_dictionaries(
    {"unstarted": st.just(True), "why": st.none() | NO_NUL, "stdout": LENGTHS, "stderr": LENGTHS}
)
CREW_ENDS = (
    st.tuples(
        ENDS, st.fixed_dictionaries({}, optional={"started": TIMES, "pid": st.none() | PIDS})
    ).map(lambda both: {**both[0], **both[1]})
    | UNSTARTED
)
OF_CREWS = st.fixed_dictionaries(
    {"attempt": TIMES, "crew": SERIALS, "index": PIDS, "number": PIDS, "waiting": st.booleans()},
    optional={"end": CREW_ENDS},
)


@given(st.lists(st.tuples(SERIALS, PIDS, TIMES).map(list), max_size=4))
def test_starts_of_a_crew_come_out_as_they_went_in(starts: list[list[int]]) -> None:
    assert reports.starts_of(unpack_dict(pack({"starts": starts, "newer": 1}))) == starts


@given(st.lists(st.tuples(SERIALS, CREW_ENDS), max_size=4))
def test_ends_of_a_crew_come_out_as_they_went_in(ends: list[tuple[int, dict[str, Any]]]) -> None:
    assert reports.ends_of(unpack_dict(pack({"ends": ends}))) == ends
    newer = [[serial, {**end, "of a newer release": 1}] for serial, end in ends]
    assert reports.ends_of({"ends": newer}) == ends


@given(OF_CREWS)
def test_a_report_keeps_what_a_crew_is_known_by(attempt: dict[str, Any]) -> None:
    capacity = {"cpus_milli": 1, "memory_bytes": 1, "gpus": []}
    ours = {"pid": 1, "keeper": "", "keeper_pid": 1, "release": "", "keeper_release": ""}
    report = {**ours, "capacity": capacity, "attempts": [attempt]}
    assert reports.report_of(unpack_dict(pack(report)))["attempts"] == [attempt]
    for name in ("index", "number"):
        less = {key: value for key, value in attempt.items() if key != name}
        with pytest.raises(PackingError, match=name):
            reports.report_of({**report, "attempts": [less]})


GOOD_END = {"status": 0, "stdout": 0, "stderr": 0}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"starts": {}},
        {"starts": [5]},
        {"starts": [[1, 2]]},
        {"starts": [[1, 2, 3, 4]]},
        {"starts": [[-1, 2, 3]]},
        {"starts": [[1 << 62, 2, 3]]},
        {"starts": [[1, True, 3]]},
        {"starts": [[1, 2, b"3"]]},
        {"starts": [[1, 2, 3]] * (reports.MOST_IN_GROUP + 1)},
    ],
)
def test_odd_starts_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(PackingError):
        reports.starts_of(body)


@pytest.mark.parametrize(
    "ends",
    [
        {},
        [5],
        [[1]],
        [[1, GOOD_END, 2]],
        [[b"1", GOOD_END]],
        [[1, []]],
        [[1, {"stdout": 0, "stderr": 0}]],
        [[1, {**GOOD_END, "started": -1}]],
        [[1, {**GOOD_END, "started": "now"}]],
        [[1, {**GOOD_END, "pid": 1 << 31}]],
        [[1, {"unstarted": True}]],
        [[1, {"unstarted": False, "stdout": 0, "stderr": 0}]],
        [[1, {"unstarted": 1, "stdout": 0, "stderr": 0}]],
        [[1, GOOD_END]] * (reports.MOST_IN_GROUP + 1),
    ],
)
def test_odd_ends_are_refused(ends: Any) -> None:
    with pytest.raises(PackingError):
        reports.ends_of({"ends": ends})
