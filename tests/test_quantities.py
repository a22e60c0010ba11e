"""Amounts as people write them: what is read is meant, and anything else is refused in one line."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from updraft import errors
from updraft.quantities import parse_bytes, parse_cpus, parse_duration

PARSERS = [parse_bytes, parse_cpus, parse_duration]
LIKE_AMOUNTS = st.text("0123456789.:-+ eE_smhdkKMGTiBx٣", max_size=12)

Parser = Callable[[str], float]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("512MiB", 512 << 20),
        ("2G", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("100B", 100),
        ("1T", 1 << 40),
        (" 1K ", 1 << 10),
        (".5K", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("1d2h3m4s", 93784),
        ("01:30", 90),
        ("1:00:00", 3600),
        ("100:00:00", 360000),
        (" 90s ", 90),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "milli"), [("0", 0), ("2", 2000), ("0.5", 500), ("500m", 500), (".25", 250)]
)
def test_cpus(text: str, milli: int) -> None:
    assert parse_cpus(text) == milli


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((parse, text) for parse in PARSERS for text in ("", " ", ".", "-1", "+1", "1x", "1 2")),
        *((parse, text) for parse in PARSERS for text in ("nan", "inf", "1e3", "1_000", "0x10")),
        *((parse, "9" * digits) for parse in PARSERS for digits in (30, 400, 5000)),
        (parse_bytes, "12Q"),
        (parse_bytes, "1KK"),
        (parse_bytes, "5iB"),
        (parse_bytes, "1 M"),
        (parse_bytes, "1.2.3"),
        (parse_cpus, "2 cores"),
        (parse_cpus, "0.0001"),
        (parse_duration, "90x"),
        (parse_duration, "1h30"),
        (parse_duration, "s"),
        (parse_duration, "1:2:3:4"),
        (parse_duration, "1:"),
        (parse_duration, ":30"),
        (parse_duration, "1:-5"),
        (parse_duration, "11y"),
        (parse_duration, "3651d"),
        (parse_duration, "99999:00:00"),
        (parse_duration, f"1:{'9' * 5000}"),
        (parse_duration, f"1:{'9' * 400}"),
    ],
)
def test_what_is_no_amount_is_refused_in_one_line_that_names_it(parse: Parser, text: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        parse(text)
    assert "\n" not in refused.value.message
    assert repr(text) in refused.value.message
    assert len(refused.value.message) < len(repr(text)) + 100


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.text(max_size=12) | LIKE_AMOUNTS)
@example("9" * 310)
def test_any_text_is_an_amount_or_refused(parse: Parser, text: str) -> None:
    try:
        amount = parse(text)
    except errors.BadRequest:
        return
    assert 0 <= amount < 1 << 62


@given(st.integers(0, 1 << 40), st.sampled_from(["", "K", "M"]))
def test_a_whole_number_of_units_is_exact(number: int, unit: str) -> None:
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20}[unit]
    assert parse_bytes(f"{number}{unit}") == number * scale


@given(st.integers(0, 999), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total
    assert parse_duration(f"{days * 24 + hours}:{minutes}:{seconds}") == total
