"""Server-sent events as the standard has them, and newline-delimited JSON; cut anywhere, with holes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from helpers import REQUEST, RESPONSE
from hypothesis import given, settings
from hypothesis import strategies as st
from test_messages import MessageStep, brief, cut_steps, drip, pieces, run

from tlscap.http.events import Header
from tlscap.http.messages import AppMessage
from tlscap.http.sse import TORN, EventStreamDecoder, LineDecoder


def events(limit: int = 1 << 20) -> Callable[[], EventStreamDecoder]:
    return lambda: EventStreamDecoder(RESPONSE, limit=limit)


def lines(limit: int = 1 << 20) -> Callable[[], LineDecoder]:
    return lambda: LineDecoder(REQUEST, limit=limit)


def told(messages: list[AppMessage]) -> list[tuple[str, str, bytes, tuple[Header, ...], bool]]:
    return [(m.kind, m.name, m.data, m.headers, m.complete) for m in messages]


def event(data: bytes, name: str = "message", *headers: Header) -> tuple[str, str, bytes, tuple[Header, ...], bool]:
    return "event", name, data, headers, True


Told = list[tuple[str, str, bytes, tuple[Header, ...], bool]]
EVENTS: dict[str, tuple[bytes, Told]] = {
    # The examples of the standard, 9.2.1 and 9.2.6.
    "three": (
        b"data: The first message.\n\ndata: The second message, it\ndata: has two lines.\n\ndata: The third.\n\n",
        [
            event(b"The first message."),
            event(b"The second message, it\nhas two lines."),
            event(b"The third."),
        ],
    ),
    "types": (
        b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
        [event(b"73857293", "add"), event(b"2153", "remove")],
    ),
    "stocks": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [event(b"YHOO\n+2\n10")]),
    "comment, ids": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [
            ("comment", "", b"test stream", (), True),
            event(b"first event", "message", (b"id", b"1")),
            event(b"second event", "message", (b"id", b"")),
            event(b" third event"),
        ],
    ),
    "empty data": (
        b"data\n\ndata\ndata\n\ndata:",
        [event(b""), event(b"\n"), ("event", "message", b"", (), False)],
    ),
    "the same": (b"data:test\n\ndata: test\n\n", [event(b"test"), event(b"test")]),
    # And what it says in words.
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [event(b"a\nb"), event(b"c")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [event(b"a\nb"), event(b"c")]),
    "mixed": (b"data: a\rdata: b\r\ndata: c\n\r\ndata: d\n\r", [event(b"a\nb\nc"), event(b"d")]),
    "byte order mark": (
        b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n",
        [event(b"a"), ("fields", "message", b"", (), True)],
    ),
    "no data": (
        b"event: x\nid: 7\nretry: 3000\n\ndata: a\n\n",
        [("fields", "x", b"", ((b"id", b"7"), (b"retry", b"3000")), True), event(b"a")],
    ),
    "comment inside": (b"data: a\n:c\ndata: b\n\n", [("comment", "", b"c", (), True), event(b"a\nb")]),
    "the last of each": (
        b"id: 1\nid: 2\nevent: a\nevent: b\ndata: x\n\n",
        [event(b"x", "b", (b"id", b"2"))],
    ),
    "empty type": (b"event: a\nevent:\ndata: x\n\n", [event(b"x")]),
    "blank lines": (b"\n\r\n\rdata: a\n\n\n\n", [event(b"a")]),
    "no end": (b"data: a\n", [("event", "message", b"a", (), False)]),
    "no line end": (b"id: 1\ndata: a", [("event", "message", b"a", ((b"id", b"1"),), False)]),
    "comment without an end": (b":a", [("comment", "", b"a", (), False)]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("case", EVENTS)
def test_events(case: str) -> None:
    """Each stream is read as the standard says, however it is cut."""
    data, expected = EVENTS[case]
    assert told(drip(events(), data)) == expected


@pytest.mark.parametrize(
    ("data", "headers", "notes"),
    [
        (b"id: a\0b\ndata: x\n\n", (), ("id with a NUL, hence ignored",)),
        (b"retry: 1.5\ndata: x\n\n", (), ("retry is no number, hence ignored",)),
        (b"retry:\ndata: x\n\n", (), ("retry is no number, hence ignored",)),
        (b"foo: bar\nData: x\ndata: x\n\n", (), ("field that is not known",)),
        (b" data: y\ndata: x\n\n", (), ("field that is not known",)),
        (b"data: x\n", (), ("ended inside of it",)),
    ],
)
def test_notes(data: bytes, headers: tuple[Header, ...], notes: tuple[str, ...]) -> None:
    """What the standard has browsers ignore is noted."""
    (message,) = drip(events(), data)
    assert (message.data, message.headers, message.notes) == (b"x", headers, notes)


def test_why() -> None:
    """What cut the stream stands in the notes."""
    (message,) = drip(events(), b"data: x\n", why="recording ended")
    assert (message.complete, message.notes) == (False, ("recording ended",))


def test_times_and_sizes() -> None:
    """An event lasts from its first line to the blank one; its size is that of its data."""
    decoder = EventStreamDecoder(RESPONSE)
    got: list[AppMessage] = []
    for time_ns, byte in enumerate(b"\nid:1\ndata:ab\ndata:c\n\n\n"):
        got += decoder.feed(bytes([byte]), time_ns)
    (message,) = got
    assert (message.started_ns, message.time_ns, message.size, message.length) == (1, 21, 4, 21)
    assert decoder.between == 2


HOLES: dict[str, tuple[list[MessageStep], list[tuple[str, bytes, bool, int]]]] = {
    "inside of a line": (
        [b"data: ab", 3, b"cd\ndata: e\n\ndata: f\n\n"],
        [
            ("event", b"ab", False, 3),
            ("unparsed", b"cd", False, 0),
            ("event", b"e", False, 0),
            ("event", b"f", True, 0),
        ],
    ),
    "between events": (
        [b"data: a\n\n", 9, b"data: b\n\ndata: c\n\n"],
        [("event", b"a", True, 0), ("unparsed", b"", False, 9), ("event", b"b", False, 0), ("event", b"c", True, 0)],
    ),
    "up to a blank line": (
        [b"data: a\n", 1, b"\ndata: b\n\n"],
        [("event", b"a", False, 1), ("event", b"b", True, 0)],
    ),
    "before a comment": ([1, b":c\n\n"], [("unparsed", b"", False, 1), ("comment", b"c", True, 0)]),
    "two": (
        [b"data: a\n", 1, 2, b"data: b\n\n"],
        [("event", b"a", False, 1), ("unparsed", b"", False, 2), ("event", b"b", False, 0)],
    ),
}


@pytest.mark.parametrize("case", HOLES)
def test_holes(case: str) -> None:
    """A hole costs the event it is in; of the next it can't be known whether it is whole."""
    steps, expected = HOLES[case]
    messages = run(EventStreamDecoder(RESPONSE), steps)
    assert [(m.kind, m.data, m.complete, m.missing) for m in messages] == expected
    assert all(m.complete or m.notes in (("bytes missing",), (TORN,)) for m in messages)


def test_limits() -> None:
    """Of long lines and of many the beginning is kept, the size is the true one."""
    data = b"data: " + b"x" * 400 + b"\ndata: y\nid: 1\n\n:" + b"c" * 400 + b"\n" + b"data: " + b"z" * 30 + b"\n" * 2
    for size in (1, 7, 1 << 30):
        first, comment, last = run(EventStreamDecoder(RESPONSE, limit=50), pieces(data, size))
        assert (first.data, first.size, first.headers) == (b"x" * 50, 402, ((b"id", b"1"),))
        assert (comment.data, comment.size) == (b"c" * 50, 400)
        assert first.notes == comment.notes == ("first 50 bytes kept",)
        assert (last.data, last.notes) == (b"z" * 30, ())


def test_byte_by_byte_is_linear() -> None:
    """Long lines in single bytes take no quadratic time (it would take minutes)."""
    (message,) = run(EventStreamDecoder(RESPONSE), pieces(b"data: " + b"x" * 300_000 + b"\n\n", 1))
    assert message.size == 300_000


def as_the_standard_says(stream: bytes) -> list[tuple[str, str]]:
    """Return types and data of what a browser dispatches: 9.2.6, step by step, for a stream that is whole."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    dispatched: list[tuple[str, str]] = []
    data = kind = ""
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                dispatched.append((kind or "message", data.removesuffix("\n")))
            data = kind = ""
            continue
        field, colon, value = line.partition(":")
        if colon and not field:
            continue
        value = value.removeprefix(" ")
        if field == "data":
            data += value + "\n"
        elif field == "event":
            kind = value
    return dispatched


STREAM = st.lists(
    st.one_of(
        st.sampled_from(
            [b"data: a", b"data", b"data:", b"event: x", b"event:", b"id: 1", b":c", b"\n", b"\r", b"\r\n"]
        ),
        st.sampled_from([b"\n\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"retry: 5", b"retry:x"]),
        st.text(max_size=4).map(str.encode),
    ),
    max_size=20,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(stream=STREAM, size=st.integers(1, 10))
def test_standard(stream: bytes, size: int) -> None:
    """What a browser would dispatch is what is told as whole events."""
    got = run(EventStreamDecoder(RESPONSE), pieces(stream, size))
    whole = [(m.name, m.data.decode()) for m in got if m.kind == "event" and m.complete]
    assert whole == as_the_standard_says(stream)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.one_of(STREAM.filter(bool), st.binary(min_size=1, max_size=9), st.integers(1, 30)), max_size=6),
    size=st.integers(1, 10),
    limit=st.sampled_from([0, 3, 1000]),
    whole_lines=st.booleans(),
)
def test_anything(steps: list[MessageStep], size: int, limit: int, whole_lines: bool) -> None:
    """Any bytes and holes, cut in any way, are told without an exception, accounted for, and bounded."""
    for cut in (steps, cut_steps(steps, size)):
        decoder = LineDecoder(RESPONSE, limit=limit) if whole_lines else EventStreamDecoder(RESPONSE, limit=limit)
        for message in run(decoder, cut):
            assert len(message.data) <= limit
            assert message.complete or message.notes


# --- Newline-delimited JSON ---


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
        (b"1\n2", [b"1", b"2"]),
        (b"\n \n1\n\n", [b"1"]),
        (b"a\rb\r\r\n", [b"a\rb\r"]),
        (b"a\r", [b"a"]),
        (b"\r\n\r", []),
        (b"", []),
    ],
)
def test_lines(data: bytes, expected: list[bytes]) -> None:
    """Lines are told without their ends, blank ones are none, the last needs no end."""
    messages = drip(lines(), data)
    assert brief(messages) == [("line", line) for line in expected]
    assert all(message.complete and message.size == len(message.data) for message in messages)


def test_lines_cut_short() -> None:
    """A last line without an end is incomplete when the body was cut."""
    first, last = drip(lines(), b"1\n2", why="connection dropped")
    assert (first.complete, last.complete, last.notes) == (True, False, ("connection dropped",))


def test_lines_with_holes() -> None:
    """A hole cuts the line it is in, and perhaps the one that ends after it."""
    messages = run(LineDecoder(REQUEST), [b"1\n2\r", 5, b"3\n4\n", 6, b"\n5\n", 7])
    assert [(m.kind, m.data, m.complete, m.missing) for m in messages] == [
        ("line", b"1", True, 0),
        ("line", b"2\r", False, 5),
        ("line", b"3", False, 0),
        ("line", b"4", True, 0),
        ("unparsed", b"", False, 6),
        ("line", b"5", True, 0),
        ("unparsed", b"", False, 7),
    ]
    assert messages[2].notes == (TORN,)


@settings(deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9))), size=st.integers(1, 40)
)
def test_json(values: list[object], size: int) -> None:
    """What is written a line each is read a line each."""
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    assert [json.loads(message.data) for message in run(LineDecoder(REQUEST), pieces(data, size))] == values
