"""The last lines of a stream, found from its end."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.storage import lines
from updraft.storage.lines import last_lines
from updraft.storage.segments import SegmentReader, SegmentWriter

TEXT = st.lists(st.sampled_from([b"\n", b"a", b"bb\n", b"\n\n", b"long line ", b"\r"])).map(
    b"".join
)


def store(folder: str | Path, data: bytes, quota: int = 1 << 30) -> SegmentReader:
    writer = SegmentWriter(str(folder), "stdout", quota)
    left = memoryview(data)
    while left:
        left = left[writer.append(left) :]
    writer.close()
    return SegmentReader(str(folder), "stdout")


def starts(data: bytes) -> list[int]:
    """Where the lines of ``data`` begin; ``tail`` would count as many."""
    found, at = [], 0
    for line in data.split(b"\n"):
        if at < len(data):
            found.append(at)
        at += len(line) + 1
    return found


@given(TEXT, st.integers(0, 12), st.sampled_from([1, 2, 3, 7, 1 << 18]))
def test_last_lines_are_those_that_tail_shows(data: bytes, count: int, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block)
        with store(folder, data) as reader:
            expected = starts(data)[-count:] if count else []
            assert last_lines(reader, 0, len(data), count) == expected


@given(TEXT, st.integers(0, 12), st.integers(0, 40))
def test_lines_before_the_start_are_not_counted(data: bytes, count: int, start: int) -> None:
    start = min(start, len(data))
    with tempfile.TemporaryDirectory() as folder, store(folder, data) as reader:
        expected = [start + at for at in starts(data[start:])]
        assert last_lines(reader, start, len(data), count) == (expected[-count:] if count else [])


@pytest.mark.parametrize("block", [1, 3, 64, 1 << 18])
def test_what_follows_a_cut_begins_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    data = b"".join(b"line %04d\n" % number for number in range(1000))
    with store(tmp_path, data, quota=400) as reader:
        found = last_lines(reader, 0, len(data), 10_000)
        kept = []
        at = 0
        while piece := reader.read(at, 1 << 20)[1]:
            begin = reader.read(at, 1 << 20)[0]
            kept.append((begin, begin + len(piece)))
            at = begin + len(piece)

    merged: list[tuple[int, int]] = []
    for begin, end in kept:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    assert len(merged) == 2
    expected = [begin + at for begin, end in merged for at in starts(data[begin:end])]
    assert found == expected
