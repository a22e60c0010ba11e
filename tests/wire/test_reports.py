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
