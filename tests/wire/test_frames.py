"""Frames: however a connection cuts them up, the same stream comes out."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.wire import frames
from updraft.wire.frames import DATA, HEADER, HEADER_SIZE, MAX_PAYLOAD, FrameError, FrameReader

Frame = tuple[int, int, int, bytes]

SERIALS = st.integers(0, 2**64 - 1)
FRAMES = st.tuples(
    st.sampled_from([DATA, DATA, frames.LIMIT, frames.HELLO, 0, 255]),
    st.sampled_from([0, 1, 2**64 - 1]),
    st.integers(0, 100) | st.sampled_from([2**63, 2**64 - 1000]),
    st.binary(max_size=80),
)


def coalesced(stream: Iterable[tuple[int, int, int, bytes | memoryview]]) -> list[Frame]:
    """The stream with adjoining DATA joined, and without empty DATA."""
    joined: list[Frame] = []
    for kind, channel, offset, payload in stream:
        if kind == DATA and not payload:
            continue
        if kind == DATA and joined:
            before = joined[-1]
            if before[:2] == (DATA, channel) and before[2] + len(before[3]) == offset:
                joined[-1] = (DATA, channel, before[2], before[3] + bytes(payload))
                continue
        joined.append((kind, channel, offset, bytes(payload)))
    return joined


def chunks(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0), max_size=30))
def test_any_chunking_gives_the_same_stream(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frames.frame(*frame) for frame in sent)
    reader = FrameReader()
    read = [frame for chunk in chunks(data, cuts) for frame in reader.feed(chunk)]
    assert coalesced(read) == coalesced(sent)


@given(st.lists(FRAMES, max_size=5))
def test_one_byte_at_a_time_gives_the_same_stream(sent: list[Frame]) -> None:
    data = b"".join(frames.frame(*frame) for frame in sent)
    reader = FrameReader()
    read = [frame for at in range(len(data)) for frame in reader.feed(data[at : at + 1])]
    assert coalesced(read) == coalesced(sent)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_random_bytes_are_frames_or_an_error(received: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for chunk in received:
            for kind, channel, offset, payload in reader.feed(chunk):
                assert 0 <= kind < 256
                assert 0 <= channel < 2**64
                assert 0 <= offset < 2**64 + MAX_PAYLOAD
                assert len(payload) <= MAX_PAYLOAD
    except FrameError:
        return


def test_data_is_handed_on_as_it_comes_without_waiting_for_the_rest() -> None:
    reader = FrameReader()
    header = HEADER.pack(1000, DATA, 5, 70)
    assert list(reader.feed(header)) == []
    for at in range(0, 1000, 100):
        ((kind, channel, offset, payload),) = reader.feed(bytes(100))
        assert (kind, channel, offset, bytes(payload)) == (DATA, 5, 70 + at, bytes(100))
    assert list(reader.feed(frames.frame(frames.PING))) == [(frames.PING, 0, 0, b"")]


def test_data_is_a_view_and_not_a_copy() -> None:
    chunk = frames.frame(DATA, 1, 0, b"payload")
    ((_, _, _, payload),) = FrameReader().feed(chunk)
    assert isinstance(payload, memoryview)
    assert payload.obj is chunk


@pytest.mark.parametrize("kind", [DATA, frames.HELLO])
@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_a_byte_of_it_is_taken(
    kind: int, length: int
) -> None:
    reader = FrameReader()
    with pytest.raises(FrameError):
        list(reader.feed(HEADER.pack(length, kind, 0, 0)))


def test_the_longest_frames_pass() -> None:
    for kind in (DATA, frames.HELLO):
        sent = (kind, 1, 0, bytes(MAX_PAYLOAD))
        data = frames.frame(*sent)
        reader = FrameReader()
        received = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
        read = [frame for chunk in received for frame in reader.feed(chunk)]
        assert coalesced(read) == [sent]


def test_a_reader_can_take_shorter_messages_only() -> None:
    reader = FrameReader(max_control_bytes=10)
    assert list(reader.feed(frames.frame(frames.HELLO, payload=bytes(10))))
    assert list(reader.feed(frames.frame(DATA, payload=bytes(1000))))
    with pytest.raises(FrameError):
        list(reader.feed(HEADER.pack(11, frames.HELLO, 0, 0)))


@given(SERIALS, st.sampled_from([frames.STDIN, frames.STDOUT, frames.STDERR]))
def test_a_channel_tells_its_attempt_and_its_stream(attempt: int, stream: int) -> None:
    channel = frames.stream_channel(attempt, stream)
    assert (channel >> 2, channel & 3) == (attempt, stream)


def test_a_frame_cannot_be_taken_for_http_nor_http_for_a_frame() -> None:
    assert frames.frame(255, 2**64 - 1, 2**64 - 1, bytes(MAX_PAYLOAD))[0] == 0
    for request in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\n",
    ):
        with pytest.raises(FrameError):
            list(FrameReader().feed(request))


def test_the_kinds_have_numbers_of_their_own() -> None:
    named = {
        name: value
        for name, value in vars(frames).items()
        if name.isupper()
        and type(value) is int
        and not name.startswith("STD")
        and not name.endswith(("_BYTES", "_SIZE", "_LIMIT", "_VERSION", "_PAYLOAD"))
    }
    assert len(set(named.values())) == len(named), named
    assert all(0 < value < 256 for value in named.values())
    assert HEADER_SIZE == 21
