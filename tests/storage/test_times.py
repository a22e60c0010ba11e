"""The time index: one order for two streams, and where in them a moment lies."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.storage import times
from updraft.storage.times import GAP_NS, SWITCH_NS, TimesWriter

START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a task: when, to which stream, which range."""

    at_ns: int
    stream: int
    start: int
    end: int


# Pauses on both sides of the index's gaps, so that every rule of it is met.
PAUSES = st.sampled_from([0, 1000, SWITCH_NS - 1, SWITCH_NS, 20_000_000, GAP_NS, 3 * GAP_NS])
WRITES = st.lists(st.tuples(PAUSES, st.sampled_from([1, 2]), st.integers(1, 50)), max_size=40)


def written(folder: str, steps: list[tuple[int, int, int]]) -> list[Write]:
    """Let a task write, and the keeper note it."""
    writer = TimesWriter(folder)
    lengths = {1: 0, 2: 0}
    now = START_NS
    found = []
    for pause, stream, count in steps:
        now += pause
        writer.note(now, stream, lengths[stream])
        found.append(Write(now, stream, lengths[stream], lengths[stream] + count))
        lengths[stream] += count
    return found


def lengths_of(writes: list[Write]) -> dict[int, int]:
    lengths = {1: 0, 2: 0}
    for write in writes:
        lengths[write.stream] = write.end
    return lengths


def check_order(ranges: list[times.Range], writes: list[Write]) -> None:
    """Every byte is there once, each stream in its order, and the streams in theirs to 5 ms."""
    position = {1: 0, 2: 0}
    latest = 0
    for stream, start, end in ranges:
        assert start == position[stream]
        assert end > start
        position[stream] = end
        inside = [w for w in writes if w.stream == stream and w.start < end and w.end > start]
        for write in inside:
            assert write.at_ns > latest - SWITCH_NS
        latest = max([latest, *(write.at_ns for write in inside)])
    assert position == lengths_of(writes)


@given(WRITES)
def test_streams_are_merged_in_the_order_of_their_writes(steps: list[tuple[int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writes = written(folder, steps)
        merge = times.Merge(folder, {1: 0, 2: 0})
        check_order(list(merge.advance(lengths_of(writes))), writes)


@given(WRITES, st.integers(0, 40))
def test_what_comes_later_is_merged_behind_what_was_told(
    steps: list[tuple[int, int, int]], told: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writes = written(folder, steps)
        merge = times.Merge(folder, {1: 0, 2: 0})
        first = lengths_of(writes[:told])
        ranges = list(merge.advance(first))
        assert merge.positions == first
        ranges += merge.advance(lengths_of(writes))
        seen = {1: 0, 2: 0}
        for stream, start, end in ranges:
            assert start == seen[stream]
            seen[stream] = end
        assert seen == lengths_of(writes)


@given(WRITES, st.integers(0, 10 * GAP_NS))
def test_since_shows_all_that_was_written_since_and_at_most_a_tenth_of_a_second_more(
    steps: list[tuple[int, int, int]], ago: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writes = written(folder, steps)
        moment = START_NS + ago
        found = times.since(folder, moment, lengths_of(writes))
        for write in writes:
            if write.at_ns >= moment:
                assert write.start >= found[write.stream]
            elif write.at_ns <= moment - GAP_NS:
                assert write.end <= found[write.stream]


def test_a_burst_on_the_other_stream_has_a_time_of_its_own(tmp_path: Path) -> None:
    # `echo out; echo err >&2`, an hour after the last error.
    writer = TimesWriter(str(tmp_path))
    writer.note(START_NS, 2, 0)
    now = START_NS + 3600 * 10**9
    writer.note(now, 1, 0)
    writer.note(now + 1000, 2, 10)

    assert times.since(str(tmp_path), now, {1: 5, 2: 20}) == {1: 0, 2: 10}


def test_since_counts_from_the_last_time_when_the_clock_was_set_back(tmp_path: Path) -> None:
    writer = TimesWriter(str(tmp_path))
    writer.note(START_NS + 10 * GAP_NS, 1, 0)
    writer.note(START_NS, 1, 100)
    writer.note(START_NS + 9 * GAP_NS, 1, 200)

    assert times.since(str(tmp_path), START_NS + 5 * GAP_NS, {1: 300, 2: 0}) == {1: 200, 2: 0}


@given(WRITES, st.integers(0, 10))
def test_last_marks_are_the_last_of_all_streams_together(
    steps: list[tuple[int, int, int]], count: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writes = written(folder, [(pause + GAP_NS, stream, n) for pause, stream, n in steps])
        marks = {
            stream: [write.start for write in writes if write.stream == stream] for stream in (1, 2)
        }
        last = writes[-count:] if count else []
        expected = {
            stream: next((write.start for write in last if write.stream == stream), None)
            for stream in (1, 2)
        }
        assert times.last_marks(folder, marks, count) == expected


def test_a_record_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    TimesWriter(str(tmp_path)).note(START_NS, 1, 0)
    with (tmp_path / times.NAME).open("ab") as index:
        index.write(b"\0" * (times.RECORD.size - 1))

    assert list(times.records(str(tmp_path))) == [(START_NS, 1, 0)]


def test_no_index_is_an_empty_one(tmp_path: Path) -> None:
    assert list(times.records(str(tmp_path))) == []
    assert times.since(str(tmp_path), START_NS, {1: 7}) == {1: 7}


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TimesWriter(str(tmp_path))
    writer.note(START_NS, 1, 0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    writer.note(START_NS + GAP_NS, 1, 10)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer.note(START_NS + 2 * GAP_NS, 1, 20)
    monkeypatch.undo()
    writer.note(START_NS + 3 * GAP_NS, 1, 30)

    assert list(times.records(str(tmp_path))) == [(START_NS, 1, 0), (START_NS + 3 * GAP_NS, 1, 30)]


def test_the_index_is_the_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        TimesWriter(str(tmp_path)).note(START_NS, 1, 0)
    finally:
        os.umask(before)

    assert (tmp_path / times.NAME).stat().st_mode & 0o777 == 0o600


# -- an index that is full

FULL = 40
DIVISOR = 4


@contextlib.contextmanager
def soon_full() -> Iterator[None]:
    """Let an index be full after a few records, and be thinned coarsely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "MAX_RECORDS", FULL)
        patch.setattr(times, "_THINNED_RECORDS", FULL * 3 // 4)
        patch.setattr(times, "AGE_DIVISOR", DIVISOR)
        yield


def precision(folder: str, at_ns: int) -> int:
    """How far off the index may be about a moment, as its documentation has it."""
    first = next(times.records(folder), (0, 1, 0))
    return max(0, first[0] - at_ns) // first[2] if first[1] == 0 else 0


LONG = st.lists(
    st.tuples(
        st.sampled_from([SWITCH_NS, GAP_NS, 2 * GAP_NS, 10 * GAP_NS]),
        st.sampled_from([1, 2]),
        st.integers(1, 50),
    ),
    min_size=60,
    max_size=200,
)


def check_rough_order(ranges: list[times.Range], writes: list[Write], folder: str) -> None:
    """As ``check_order``, to a part of the age of what was thinned."""
    latest = 0
    for stream, start, end in ranges:
        inside = [w for w in writes if w.stream == stream and w.start < end and w.end > start]
        for write in inside:
            off = SWITCH_NS + GAP_NS + precision(folder, write.at_ns - GAP_NS)
            assert write.at_ns > latest - off * DIVISOR // (DIVISOR - 1)
        latest = max([latest, *(write.at_ns for write in inside)])


@given(LONG)
def test_a_thinned_index_is_small_and_in_order_to_a_part_of_the_age(
    steps: list[tuple[int, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, soon_full():
        writes = written(folder, steps)
        assert len(list(times.records(folder))) <= FULL
        merge = times.Merge(folder, {1: 0, 2: 0})
        ranges = list(merge.advance(lengths_of(writes)))
        assert merge.positions == lengths_of(writes)
        check_rough_order(ranges, writes, folder)


@given(LONG, st.integers(0, 150), st.integers(-GAP_NS, 10 * GAP_NS))
def test_since_of_a_thinned_index_shows_all_that_was_written_since(
    steps: list[tuple[int, int, int]], number: int, later: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, soon_full():
        writes = written(folder, steps)
        moment = writes[number % len(writes)].at_ns + later
        found = times.since(folder, moment, lengths_of(writes))
        off = GAP_NS + precision(folder, moment - GAP_NS) * 2
        for write in writes:
            if write.at_ns >= moment:
                assert write.start >= found[write.stream]
            elif write.at_ns <= moment - off * 2:
                assert write.end <= found[write.stream]


@given(LONG, st.integers(0, 150), st.integers(0, 150))
def test_a_follower_misses_and_repeats_nothing_while_the_index_is_thinned(
    steps: list[tuple[int, int, int]], first: int, second: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, soon_full():
        writer = TimesWriter(folder)
        merge = times.Merge(folder, {1: 0, 2: 0})
        now, lengths, told = START_NS, {1: 0, 2: 0}, {1: 0, 2: 0}
        looks = {first, second, len(steps) - 1}
        unseen: list[Write] = []
        for number, (pause, stream, count) in enumerate(steps):
            now += pause
            writer.note(now, stream, lengths[stream])
            unseen.append(Write(now, stream, lengths[stream], lengths[stream] + count))
            lengths[stream] += count
            if number in looks:
                ranges = list(merge.advance(dict(lengths)))
                for told_stream, start, end in ranges:
                    assert start == told[told_stream]
                    told[told_stream] = end
                assert told == lengths
                check_rough_order(ranges, unseen, folder)
                unseen.clear()


@given(st.lists(st.tuples(st.integers(-9, 9), st.sampled_from([1, 2])), max_size=200))
def test_a_clock_that_jumps_does_not_let_the_index_grow(jumps: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, soon_full():
        writer = TimesWriter(folder)
        for number, (jump, stream) in enumerate(jumps):
            writer.note(START_NS + jump * 3600 * 10**9, stream, number)
        assert len(list(times.records(folder))) <= FULL


def test_months_of_writing_in_turns_fit_into_the_index() -> None:
    """What `note` would have written, thinned as it would have been: 5 ms at first, then rarer."""
    now, index, largest = START_NS, b"", 0
    pause = SWITCH_NS
    for _ in range(12):
        count = times.MAX_RECORDS - len(index) // times.RECORD.size
        index += b"".join(
            times.RECORD.pack(now + number * pause, 1 + number % 2, number)
            for number in range(count)
        )
        now += count * pause
        index = times.thinned(index, now)
        largest = max(largest, len(index) // times.RECORD.size)
        pause *= 3

    assert now - START_NS > 90 * 86400 * 10**9
    assert largest <= times.MAX_RECORDS * 3 // 4
    kept = list(times.RECORD.iter_unpack(index))
    assert kept[0] == (now, 0, times.AGE_DIVISOR)
    assert [record[1:] for record in kept[1:3]] == [(1, 0), (2, 1)]


def test_an_index_that_cannot_be_thinned_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with soon_full():
        writer = TimesWriter(str(tmp_path))
        now = START_NS
        for number in range(FULL):
            now += GAP_NS
            writer.note(now, 1, number)
        full = list(times.records(str(tmp_path)))
        monkeypatch.setattr(os, "replace", _no_room)
        writer.note(now + GAP_NS, 1, FULL)
        assert list(times.records(str(tmp_path))) == full
        monkeypatch.undo()
        writer.note(now + 10 * GAP_NS, 1, FULL + 1)  # not tried again at once
        assert list(times.records(str(tmp_path))) == full
        writer.note(now + 70 * 10**9, 1, FULL + 2)

    assert list(times.records(str(tmp_path)))[-1] == (now + 70 * 10**9, 1, FULL + 2)


def _no_room(source: str, target: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
