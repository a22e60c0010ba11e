"""The packing of control messages: what went in comes out, and bytes from anywhere do no harm."""

from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updraft.wire.packing import MAX_DEPTH, PackingError, pack, unpack, unpack_dict

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.binary() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal in type too: `True == 1` is not enough here."""
    if type(left) is not type(right):
        return False
    if type(left) is list:
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is dict:
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(VALUES)
def test_what_is_packed_comes_out_as_it_went_in(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@given(VALUES, st.data())
def test_a_value_cut_short_is_refused(value: Any, data: st.DataObject) -> None:
    packed = pack(value)
    kept = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(PackingError):
        unpack(packed[:kept])


@given(VALUES, st.binary(min_size=1, max_size=4))
def test_bytes_after_a_value_are_refused(value: Any, more: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(pack(value) + more)


@given(VALUES, st.data())
def test_a_value_with_bytes_changed_is_refused_or_is_another_value(
    value: Any, data: st.DataObject
) -> None:
    packed = bytearray(pack(value))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    refused_or_read(bytes(packed))


@given(st.text("idslentf-0123456789:", max_size=40))
def test_random_signs_of_the_format_are_refused_or_read(signs: str) -> None:
    refused_or_read(signs.encode())


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    refused_or_read(data)


def refused_or_read(data: bytes) -> None:
    """Nothing but ``PackingError`` comes out of ``unpack``; what it reads, it can write."""
    try:
        value = unpack(data)
    except PackingError:
        return
    assert same(unpack(pack(value)), value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"i",
        b"ie",
        b"i-e",
        b"i--1e",
        b"i1.5e",
        b"i 1e",
        b"i+1e",
        b"i1_0e",
        b"i9223372036854775808e",
        b"i-9223372036854775809e",
        b"i" + b"9" * 5000 + b"e",
        b"\xd9\xa3:abc",
        b"s",
        b"s:",
        b"s-1:a",
        b"s2:\xff\xff",
        b"s3:\xed\xa0\x80",  # a lone surrogate, as CESU writes it
        b"99999999999999999999:a",
        b"4294967296:a",
        b"1" * 100,
        b"d1:ai1ee",
        b"di1ei1ee",
        b"ds1:ae",
        b"l",
        b"e",
        b"le" * 2,
        b"t" * 2,
        b"\x00",
        b"\xff" * 100,
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(data)


@pytest.mark.parametrize("opening", [b"l", b"ds1:k", b"ll", b"d"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_nesting_is_bounded_however_deep_a_peer_goes(opening: bytes, depth: int) -> None:
    with pytest.raises(PackingError):
        unpack(opening * depth)


def test_nesting_is_refused_at_the_same_depth_in_both_directions() -> None:
    deepest: Any = 1
    for _ in range(MAX_DEPTH):
        deepest = [deepest]
    assert same(unpack(pack(deepest)), deepest)
    with pytest.raises(PackingError):
        pack([deepest])
    with pytest.raises(PackingError):
        unpack(b"l" + pack(deepest) + b"e")


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PackingError):
        pack(endless)


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


def test_members_of_enumerations_travel_as_their_values() -> None:
    assert same(unpack(pack([Colour.RED, Number.ONE])), ["red", 1])


def test_a_tuple_travels_as_a_list() -> None:
    assert unpack(pack((1, (2,)))) == [1, [2]]


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        {1: 2},
        {b"k": 1},
        {Colour.RED: 1},
        object(),
        {1, 2},
        bytearray(b"x"),
        memoryview(b"x"),
        "\udcff",  # text that no UTF-8 can carry: arguments and paths travel as bytes
        {"\udcff": 1},
        2**63,
        -(2**63) - 1,
        pytest.param(10**5000, id="ten to the 5000"),
    ],
)
def test_what_cannot_be_read_again_cannot_be_packed(value: Any) -> None:
    with pytest.raises(PackingError):
        pack(value)


@given(VALUES.filter(lambda value: not isinstance(value, dict)))
def test_a_message_is_a_dict(value: Any) -> None:
    with pytest.raises(PackingError):
        unpack_dict(pack(value))
