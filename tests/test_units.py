"""Sizes, times and speeds: what people write is understood, what they read is short."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap.cli.units import Duration, Size, Timing, count_text, size_text, time_text

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def size(text: str) -> int:
    return Size().convert(text, None, None)


def duration(text: str) -> float:
    return Duration().convert(text, None, None)


def timing(text: str) -> float:
    return Timing().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096b", 4096),
        ("64K", 64_000),
        ("64kB", 64_000),
        ("64Ki", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("1.5MiB", 3 * MIB // 2),
        ("2 GB", 2_000_000_000),
        (" 1gib ", GIB),
        ("1T", 10**12),
        ("1TiB", 1 << 40),
        ("0.4", 0),
    ],
)
def test_sizes(text: str, value: int) -> None:
    """K, M, G, T are decimal, Ki, Mi, Gi, Ti binary; case and a B don't matter."""
    assert size(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e3", "1 2", "1X", "1KK", "1Kib2", "MiB", "1.", ".5", "1,5", "inf", "nan", "1B B", "0x10"]
)
def test_no_sizes(text: str) -> None:
    """Anything else is refused in one line that shows what would do."""
    with pytest.raises(click.BadParameter, match="is not a size such as 4096") as caught:
        size(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["9" * 400, "9999999999TiB", "4611686018427387905000"])
def test_sizes_too_large(text: str) -> None:
    """A size that the kernel could not hold is refused, however many digits it has."""
    with pytest.raises(click.BadParameter, match="too large"):
        size(text)


def test_default_size() -> None:
    """A default that is a number already is taken as it is."""
    assert Size().convert(17, None, None) == 17
    assert Duration().convert(0.5, None, None) == 0.5
    assert Timing().convert(2.0, None, None) == 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("10s", 10), ("500ms", 0.5), ("2m", 120), ("2min", 120), ("1h", 3600), ("1.5 H", 5400), ("1d", 86400)],
)
def test_durations(text: str, value: float) -> None:
    """Seconds when no unit is given."""
    assert duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "-1s", "1y", "1:30", "s", "1e3", "1s2"])
def test_no_durations(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(click.BadParameter, match="is not a time such as 10s"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "speed"),
    [("none", 0), ("recorded", 1), ("x2", 2), ("x0.5", 0.5), ("0.5x", 0.5), ("10", 10), (".25", 0.25)],
)
def test_timings(text: str, speed: float) -> None:
    """How many times as fast as recorded; 0 is without delays."""
    assert timing(text) == speed


@pytest.mark.parametrize("text", ["", "x", "x0", "0", "0.0001", "-1", "xnan", "inf", "fast", "None", "x1e3", "9" * 400])
def test_no_timings(text: str) -> None:
    """A factor that would wait for ever is none."""
    with pytest.raises(click.BadParameter, match="is not none, recorded, or a factor such as x2"):
        timing(text)


@given(st.text(max_size=12))
def test_any_text(text: str) -> None:
    """Any text is a value from 0 or a usage error."""
    for convert in (size, duration, timing):
        try:
            value = convert(text)
        except click.BadParameter:
            continue
        assert value >= 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (34_567_890, "34.6 MB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (7 * 10**9, "7.0 GB"),
        (12 * 10**12, "12.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_size_text(value: int, text: str) -> None:
    """Three digits and a unit."""
    assert size_text(value) == text


@given(st.integers(1, 10**15))
def test_size_text_is_right(value: int) -> None:
    """What is shown is the value, to half a unit of the last digit, and can be typed in again."""
    shown = size(size_text(value))
    assert abs(shown - value) <= max(value * 0.06, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 s"),
        (0.424, "0.42 s"),
        (12.34, "12.3 s"),
        (60, "1:00"),
        (185, "3:05"),
        (3723.9, "1:02:03"),
        (90061, "25:01:01"),
    ],
)
def test_time_text(value: float, text: str) -> None:
    """Seconds with decimals while it is short, then minutes and hours."""
    assert time_text(value) == text


def test_count_text() -> None:
    """The noun agrees with the number, which is grouped."""
    assert [count_text(number, "flow") for number in (0, 1, 2, 12345)] == [
        "0 flows",
        "1 flow",
        "2 flows",
        "12,345 flows",
    ]
