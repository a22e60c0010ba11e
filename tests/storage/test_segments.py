"""Streams in segment files: what is kept is told apart from what was cut, at every length."""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.small_disk import fill, limited_file_size, small_disk
from updraft.storage.segments import SegmentReader, SegmentWriter

# Each byte tells its position, at any period that segments may have.
_CONTENT = bytes((at * 31 + at // 251) % 256 for at in range(1 << 18))


def content(start: int, end: int) -> bytes:
    """The bytes of the stream between two positions."""
    assert end <= len(_CONTENT)
    return _CONTENT[start:end]


def append(writer: SegmentWriter, count: int, keep_from: int | None = None) -> None:
    """Append the stream's next ``count`` bytes."""
    left = memoryview(content(writer.length, writer.length + count))
    while left:
        taken = writer.append(left, keep_from)
        assert 1 <= taken <= len(left)
        left = left[taken:]


def kept(folder: str | Path, size: int = 1 << 20) -> list[tuple[int, int]]:
    """Read the whole stream; return the ranges that are there, and check every byte of them."""
    ranges: list[tuple[int, int]] = []
    with SegmentReader(str(folder), "stdout") as reader:
        position = 0
        while True:
            at, data = reader.read(position, size)
            assert at >= position
            if not data:
                return ranges
            position = at + len(data)
            assert data == content(at, position)
            if ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], position)
            else:
                ranges.append((at, position))


class Stream(RuleBasedStateMachine):
    """One writer, a reader that is attached, one that follows, and what they are promised."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    @initialize(quota=st.integers(1, 40) | st.integers(1, 500))
    def start(self, quota: int) -> None:
        self.writer = SegmentWriter(str(self.folder), "stdout", quota)
        self.follower = SegmentReader(str(self.folder), "stdout")
        self.followed = 0
        self.attached: int | None = None
        self.cut_to = 0
        self.held_from: int | None = None  # what had to be kept since the quota last held
        self.quota = quota
        # Parts are never empty, so the smallest quotas are rounded up.
        self.head = max(quota // 2, 1)
        self.segment = max(quota // 16, 1)

    @rule(count=st.integers(0, 700))
    def write(self, count: int) -> None:
        append(self.writer, count, self.attached)
        if self.attached is None:
            if count > self.segment:
                self.held_from = None
        elif self.held_from is None or self.attached < self.held_from:
            self.held_from = self.attached

    @rule(back=st.integers(0, 100))
    def attach(self, back: int) -> None:
        self.attached = max(self.writer.length - back, self.cut_to)

    @rule()
    def detach(self) -> None:
        self.attached = None

    @rule(count=st.integers(0, 300))
    def read_attached(self, count: int) -> None:
        """An attached reader misses nothing, whatever the quota."""
        if self.attached is None:
            return
        end = min(self.attached + count, self.writer.length)
        with SegmentReader(str(self.folder), "stdout") as reader:
            while self.attached < end:
                at, data = reader.read(self.attached, end - self.attached)
                assert at == self.attached
                assert data
                self.attached += len(data)

    @rule(size=st.integers(1, 400))
    def follow(self, size: int) -> None:
        """A reader that keeps its files open gets every byte in order, or is told of a gap."""
        at, data = self.follower.read(self.followed, size)
        assert at >= self.followed
        assert len(data) <= size
        assert data == content(at, at + len(data))
        assert data or self.followed == self.writer.length
        if data:
            self.followed = at + len(data)

    @rule(offset=st.integers(0, 2000), size=st.integers(1, 50))
    def look(self, offset: int, size: int) -> None:
        """A read anywhere gives the bytes there, or those behind the cut, or nothing at the end."""
        with SegmentReader(str(self.folder), "stdout") as reader:
            at, data = reader.read(offset, size)
        assert at >= offset
        assert data == content(at, at + len(data))
        assert bool(data) == (offset < self.writer.length)

    @invariant()
    def what_is_kept_is_the_head_and_the_tail(self) -> None:
        length = self.writer.length
        with SegmentReader(str(self.folder), "stdout") as reader:
            assert reader.length() == length
        ranges = kept(self.folder)
        if not length:
            assert ranges == []
            assert list(self.folder.iterdir()) == []
            return
        assert ranges[0][0] == 0
        assert ranges[0][1] >= min(length, self.head)
        assert ranges[-1][1] == length
        assert len(ranges) <= 2
        if len(ranges) == 2:
            assert ranges[1][0] >= self.cut_to
            self.cut_to = ranges[1][0]

    @invariant()
    def what_is_stored_stays_within_the_quota(self) -> None:
        length = self.writer.length
        stored = sum(file.stat().st_size for file in self.folder.iterdir())
        assert stored >= min(length, self.head + 7 * self.segment)
        bound = self.head + 8 * self.segment
        assert bound <= self.quota or self.quota < 16
        if self.held_from is not None:
            bound += length - self.held_from + self.segment
        assert stored <= bound

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.follower.close()
        shutil.rmtree(self.folder)


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@given(st.integers(1, 2000), st.integers(1, 200), st.integers(1, 100))
def test_any_quota_and_any_size_of_reads_show_the_same_stream(
    length: int, quota: int, size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = SegmentWriter(folder, "stdout", quota)
        append(writer, length)
        writer.close()
        assert kept(folder, size) == kept(folder)


def test_a_stream_without_a_byte_has_no_file(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), "stdout")
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with SegmentReader(str(tmp_path / "no folder"), "stdout") as reader:
        assert reader.read(0, 10) == (0, b"")
        assert reader.read(7, 10) == (7, b"")
        assert reader.length() == 0


def test_streams_in_one_folder_are_apart(tmp_path: Path) -> None:
    for name, data in (("stdout", b"out"), ("stderr", b"err")):
        SegmentWriter(str(tmp_path), name, 100).append(data)
    with SegmentReader(str(tmp_path), "stderr") as reader:
        assert reader.read(0, 10) == (0, b"err")


def test_what_is_written_is_read_before_the_writer_is_closed(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), "stdout", 64)
    with SegmentReader(str(tmp_path), "stdout") as reader:
        for length in range(1, 200):
            append(writer, 1)
            assert reader.read(length - 1, 10) == (length - 1, content(length - 1, length))
            assert reader.read(length, 10) == (length, b"")
    writer.close()


def test_a_segment_that_is_cut_while_it_is_read_can_be_read_to_its_end(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), "stdout", 160)  # 80 and 8 × 10
    append(writer, 160)
    with SegmentReader(str(tmp_path), "stdout") as reader:
        assert reader.read(80, 1) == (80, content(80, 81))
        append(writer, 20)
        assert not (tmp_path / f"stdout.{80:016x}").exists()
        assert reader.read(81, 100) == (81, content(81, 90))
        assert reader.read(90, 100) == (100, content(100, 110))
    writer.close()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        writer = SegmentWriter(str(tmp_path), "stdout", 16)
        append(writer, 100)
    finally:
        os.umask(before)
    writer.close()
    files = list(tmp_path.iterdir())
    assert len(files) > 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_file_that_is_there_already_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"another attempt's")
    with pytest.raises(FileExistsError):
        SegmentWriter(str(tmp_path), "stdout").append(b"new")
    assert (tmp_path / "stdout").read_bytes() == b"another attempt's"


def test_a_full_disk_loses_nothing_and_there_is_more_once_there_is_room(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), "stdout", 1600)
    with limited_file_size(70):
        with pytest.raises(OSError, match="too large"):
            append(writer, 500)
        assert writer.length == 70
        assert kept(tmp_path) == [(0, 70)]
        with pytest.raises(OSError, match="too large"):
            append(writer, 1)
    append(writer, 930)
    with limited_file_size(40):  # now in the tail
        with pytest.raises(OSError, match="too large"):
            append(writer, 500)
        assert writer.length == 1040
    append(writer, 60)
    writer.close()
    assert kept(tmp_path) == [(0, 1100)]


@pytest.mark.root
@pytest.mark.parametrize("short_of", ["blocks", "inodes"])
def test_a_disk_that_is_really_full(tmp_path: Path, short_of: str) -> None:
    with small_disk(tmp_path / "disk", kib=400, inodes=9) as disk:
        writer = SegmentWriter(str(disk), "stdout", 160 << 10)  # 80 KiB and 8 × 10 KiB
        append(writer, 30 << 10)
        if short_of == "blocks":
            fill(disk)
        else:
            with contextlib.suppress(OSError):
                for number in range(10):
                    (disk / f"blocker.{number}").touch()
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                append(writer, 100 << 10)
            assert kept(disk) == [(0, writer.length)]
        assert writer.length < 130 << 10
        for file in disk.iterdir():
            if not file.name.startswith("stdout"):
                file.unlink()
        append(writer, (130 << 10) - writer.length)
        writer.close()
        assert kept(disk) == [(0, 130 << 10)]


@settings(max_examples=60, deadline=None)
@given(
    quota=st.integers(1, 400),
    before=st.integers(0, 900),
    writes=st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=30),
)
def test_a_writer_that_was_succeeded_and_goes_on_changes_nothing_of_the_stream(
    tmp_path_factory: pytest.TempPathFactory,
    quota: int,
    before: int,
    writes: list[tuple[bool, int]],
) -> None:
    """As of a server that was stopped: what its runner had sent it lies before it still."""
    folder = tmp_path_factory.mktemp("stream")
    stale = SegmentWriter(str(folder), "stdout", quota)
    append(stale, before)
    successor = SegmentWriter.resume(str(folder), "stdout", quota)
    for is_stale, count in writes:
        if is_stale:
            with contextlib.suppress(FileExistsError):  # it may find a file of its successor's
                append(stale, count)
        else:
            append(successor, count)
    stale.close()
    append(successor, max(stale.length - successor.length, 0) + 1)
    successor.close()
    with SegmentReader(str(folder), "stdout") as reader:
        assert reader.length() == successor.length
    ranges = kept(folder)
    assert ranges[-1][1] == successor.length
    if successor.length <= quota:
        assert ranges == [(0, successor.length)]
    shutil.rmtree(folder)
