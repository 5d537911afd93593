"""HTTP/2 frame by frame, as the h2 library speaks it, with holes in it, and from the middle."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import helpers
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PushedStreamReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
)
from h2.settings import SettingCodes
from helpers import REQUEST, RESPONSE, Seen, Step, accounted, cut, drips, merged, passed
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.http import http2_streams
from tlscap.http.events import (
    AnyEvent,
    BodyData,
    BodyGap,
    ControlFrame,
    Header,
    MessageEnd,
    RequestHead,
    ResponseHead,
    Side,
    Trailers,
    TunnelData,
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.http.http2 import Http2Connection
from tlscap.model import GapReason

# --- Driving the observer ---


observe = functools.partial(helpers.observe, make=Http2Connection)


def drip(steps: Sequence[Step], **options: Any) -> list[AnyEvent]:
    """Return the merged events of ``steps``, after checking that every way to cut them gives the same."""
    whole = merged(observe(steps, **options))
    for pieces in drips(steps):
        assert merged(observe(pieces, **options)) == whole, pieces
    assert accounted(whole) == passed(steps)
    return whole


def messages(events: Iterable[AnyEvent], side: Side) -> dict[int, Seen]:
    """Return one side's messages by exchange, after checking the order of their events; interim responses are left out."""
    found: dict[int, Seen] = {}
    for event in events:
        if event.side is not side or (isinstance(event, ResponseHead) and event.interim):
            continue
        message = found.get(event.exchange)
        match event:
            case RequestHead() | ResponseHead():
                assert not message or not message.end
                found[event.exchange] = Seen(event)
            case BodyData() | BodyGap():
                assert message
                assert message.head
                assert not message.end
                if isinstance(event, BodyData):
                    assert event.data
                    message.body += event.data
                else:
                    message.missing += event.length
            case Trailers():
                assert message
                assert not message.end
            case MessageEnd():
                assert not message or not message.end
                found.setdefault(event.exchange, Seen()).end = event
            case _:
                pass
    return found


Told = tuple[object, bytes, int, bool | None, str]


def told(events: Iterable[AnyEvent], side: Side = RESPONSE) -> list[Told]:
    """Return messages in few words: status or method, body, missing bytes, whether and how it ended."""
    result: list[Told] = []
    for message in messages(events, side).values():
        head, end = message.head, message.end
        name = head.method if isinstance(head, RequestHead) else head.status if head else None
        result.append((name, message.body, message.missing, end.complete if end else None, end.why if end else ""))
    return result


def unparsed(events: Iterable[AnyEvent]) -> list[tuple[int, str]]:
    """Return length and reason of each run of bytes that could not be read."""
    return [(event.length, event.why) for event in events if isinstance(event, Unparsed)]


def controls(events: Iterable[AnyEvent]) -> list[tuple[int, str, str]]:
    """Return exchange, kind and detail of each control frame but those of `START`."""
    found = [(event.exchange, event.kind, event.detail) for event in events if isinstance(event, ControlFrame)]
    start = [(0, "preface", ""), (0, "SETTINGS", ""), (0, "SETTINGS", "")]
    return [one for index, one in enumerate(found) if one not in start[index : index + 1]]


# --- Frames made by hand ---

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def block(*fields: Header) -> bytes:
    """Return a header block that uses no table."""
    return b"".join(b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


def ask(stream: int = 1, *fields: Header, method: bytes = b"GET", flags: int = END_STREAM) -> bytes:
    head = block((b":method", method), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/"), *fields)
    return frame(HEADERS, flags | END_HEADERS, stream, head)


def answer(stream: int = 1, *fields: Header, status: bytes = b"200", flags: int = 0) -> bytes:
    return frame(HEADERS, flags | END_HEADERS, stream, block((b":status", status), *fields))


def content(stream: int = 1, data: bytes = b"hello", flags: int = END_STREAM) -> bytes:
    return frame(DATA, flags, stream, data)


def post(stream: int = 1, *fields: Header) -> bytes:
    return ask(stream, *fields, method=b"POST", flags=0)


START: list[Step] = [(REQUEST, PREFACE + frame(SETTINGS, 0, 0)), (RESPONSE, frame(SETTINGS, 0, 0))]
GET = ask()
OK = answer()
FIVE = OK + content()
END = "end of stream"
CUT = "connection closed"
WHOLE = (200, b"hello", 0, True, END)


# What passes after `START`, and what is told of the responses.
RESPONSES: dict[str, tuple[list[Step], list[Told]]] = {
    "one": ([(REQUEST, GET), (RESPONSE, FIVE)], [WHOLE]),
    "no body": ([(REQUEST, GET), (RESPONSE, answer(flags=END_STREAM))], [(200, b"", 0, True, END)]),
    "empty frames": (
        [(REQUEST, GET), (RESPONSE, OK + content(data=b"", flags=0) + content(flags=0) + content(data=b""))],
        [WHOLE],
    ),
    "padding": (
        [(REQUEST, GET), (RESPONSE, OK + content(data=b"\3hel\0\0\0", flags=PADDED) + content(data=b"\0lo", flags=9))],
        [WHOLE],
    ),
    "nothing but padding": (
        [(REQUEST, GET), (RESPONSE, OK + content(data=b"\2\0\0", flags=9))],
        [(200, b"", 0, True, END)],
    ),
    "more padding than frame": (
        [(REQUEST, GET), (RESPONSE, OK + content(data=b"\xff\0\0", flags=9))],
        [(200, b"", 0, True, END)],
    ),
    "no pad length": ([(REQUEST, GET), (RESPONSE, OK + content(data=b"", flags=9))], [(200, b"", 0, True, END)]),
    "interleaved": (
        [
            (REQUEST, GET + ask(3)),
            (RESPONSE, answer(3) + OK + content(3, b"h", 0) + content(1, b"he", 0) + content(3, b"ello")),
            (RESPONSE, content(1, b"llo")),
        ],
        [WHOLE, WHOLE],
    ),
    "interim": (
        [(REQUEST, GET), (RESPONSE, answer(status=b"100") + answer(1, (b"link", b"x"), status=b"103") + FIVE)],
        [WHOLE],
    ),
    "trailers": (
        [(REQUEST, GET), (RESPONSE, OK + content(flags=0) + frame(HEADERS, 5, 1, block((b"grpc-status", b"0"))))],
        [WHOLE],
    ),
    "length": ([(REQUEST, GET), (RESPONSE, answer(1, (b"content-length", b"5")) + content())], [WHOLE]),
    "wrong length": (
        [(REQUEST, GET), (RESPONSE, answer(1, (b"content-length", b"6")) + content())],
        [(200, b"hello", 0, True, "end of stream; content-length says 6")],
    ),
    "length of nothing": (
        [(REQUEST, GET), (RESPONSE, answer(1, (b"content-length", b"6"), flags=1))],
        [(200, b"", 0, True, "end of stream; content-length says 6")],
    ),
    "length no number": ([(REQUEST, GET), (RESPONSE, answer(1, (b"content-length", b"+6")) + content())], [WHOLE]),
    "HEAD": (
        [(REQUEST, ask(method=b"HEAD")), (RESPONSE, answer(1, (b"content-length", b"6"), flags=1))],
        [(200, b"", 0, True, END)],
    ),
    "304": (
        [(REQUEST, GET), (RESPONSE, answer(1, (b"content-length", b"6"), status=b"304", flags=1))],
        [(304, b"", 0, True, END)],
    ),
    "cut short": ([(REQUEST, GET), (RESPONSE, OK + content(flags=0))], [(200, b"hello", 0, False, CUT)]),
    "no answer": ([(REQUEST, GET)], [(None, b"", 0, False, "no response")]),
    "answer without a question": ([(RESPONSE, FIVE)], [WHOLE]),
    "perhaps an answer to HEAD": (
        [(RESPONSE, answer(1, (b"content-length", b"6"), flags=1))],
        [(200, b"", 0, True, END)],
    ),
    "data without a head": (
        [(REQUEST, GET), (RESPONSE, content())],
        [(None, b"", 0, False, "no head")],
    ),
    "stream 0": ([(RESPONSE, answer(0) + content(0)), (REQUEST, GET), (RESPONSE, FIVE)], [WHOLE]),
    "reserved bit": ([(REQUEST, ask(0x80000001)), (RESPONSE, FIVE)], [WHOLE]),
    "other frames between": (
        [
            (REQUEST, GET),
            (RESPONSE, OK + frame(PING, 0, 0, bytes(8)) + content(flags=0) + frame(0x42, 255, 77, b"x")),
            (RESPONSE, content(data=b"")),
        ],
        [WHOLE],
    ),
    "after the end": ([(REQUEST, GET + content()), (RESPONSE, FIVE + content() + OK)], [WHOLE]),
    "reset by the client": (
        [(REQUEST, GET), (RESPONSE, OK + content(flags=0)), (REQUEST, frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))],
        [(200, b"hello", 0, False, "stream reset: CANCEL, by the client")],
    ),
    "reset by the server": (
        [(REQUEST, GET), (RESPONSE, frame(RST_STREAM, 0, 1, b"\0\0\0\x07"))],
        [(None, b"", 0, False, "stream reset: REFUSED_STREAM, by the server")],
    ),
    "reset of what is over": ([(REQUEST, GET), (RESPONSE, FIVE + frame(RST_STREAM, 0, 1, bytes(4)))], [WHOLE]),
    "refused": (
        [(REQUEST, GET + ask(3) + ask(5)), (RESPONSE, frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\0")), (RESPONSE, FIVE)],
        [(None, b"", 0, False, "refused: GOAWAY"), (None, b"", 0, False, "refused: GOAWAY"), WHOLE],
    ),
    "asked after GOAWAY": (
        [(RESPONSE, frame(GOAWAY, 0, 0, bytes(8))), (REQUEST, GET)],
        [(None, b"", 0, False, "refused: GOAWAY")],
    ),
    "graceful GOAWAY": (
        [(REQUEST, GET), (RESPONSE, frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0") + FIVE)],
        [WHOLE],
    ),
    "GOAWAY taken back": (
        [
            (RESPONSE, frame(GOAWAY, 0, 0, bytes(8)) + frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0")),
            (REQUEST, GET),
        ],
        [(None, b"", 0, False, "refused: GOAWAY")],
    ),
    "client's GOAWAY": ([(REQUEST, GET + frame(GOAWAY, 0, 0, bytes(8))), (RESPONSE, FIVE)], [WHOLE]),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_response(case: str) -> None:
    """Each kind of response is told the same, however it is cut, and no byte is unaccounted for."""
    steps, expected = RESPONSES[case]
    assert told(drip([*START, *steps])) == expected


REQUESTS: dict[str, tuple[list[Step], list[Told]]] = {
    "GET": ([(REQUEST, GET)], [(b"GET", b"", 0, True, END)]),
    "POST": ([(REQUEST, post() + content())], [(b"POST", b"hello", 0, True, END)]),
    "cut short": ([(REQUEST, post() + content(flags=0))], [(b"POST", b"hello", 0, False, CUT)]),
    "reset": (
        [(REQUEST, post() + content(flags=0) + frame(RST_STREAM, 0, 1, b"\0\0\1\0"))],
        [(b"POST", b"hello", 0, False, "stream reset: 0x100, by the client")],
    ),
    "malformed reset": (
        [(REQUEST, post() + frame(RST_STREAM, 0, 1))],
        [(b"POST", b"", 0, False, "stream reset: NO_ERROR, by the client")],
    ),
    "not needed any more": (
        [(REQUEST, post() + content(flags=0)), (RESPONSE, FIVE + frame(RST_STREAM, 0, 1, bytes(4)))],
        [(b"POST", b"hello", 0, True, "stream reset: NO_ERROR, by the server")],
    ),
    "reset with NO_ERROR by the client": (
        [(REQUEST, post()), (RESPONSE, FIVE), (REQUEST, frame(RST_STREAM, 0, 1, bytes(4)))],
        [(b"POST", b"", 0, False, "stream reset: NO_ERROR, by the client")],
    ),
    "reset with NO_ERROR before the answer is over": (
        [(REQUEST, post()), (RESPONSE, OK + frame(RST_STREAM, 0, 1, bytes(4)))],
        [(b"POST", b"", 0, False, "stream reset: NO_ERROR, by the server")],
    ),
    "pushed": (
        [(REQUEST, GET), (RESPONSE, frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2" + block((b":method", b"GET"))))],
        [(b"GET", b"", 0, True, END), (b"GET", b"", 0, True, "pushed")],
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_request(case: str) -> None:
    """Each kind of request is told the same, however it is cut, and no byte is unaccounted for."""
    steps, expected = REQUESTS[case]
    assert told(drip([*START, *steps]), REQUEST) == expected


def test_heads() -> None:
    """Pseudo-header fields become what HTTP/1 has in its start line; other fields are kept as sent."""
    fields = [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-\xff", b"\x00 "), (b"te", b"trailers")]
    events = drip([*START, (REQUEST, ask(1, *fields)), (RESPONSE, answer(1, (b"server", b"x")))])
    request, response = (event for event in events if isinstance(event, RequestHead | ResponseHead))
    assert request == RequestHead(
        exchange=1,
        side=REQUEST,
        time_ns=0,
        method=b"GET",
        target=b"/",
        version=b"HTTP/2",
        headers=tuple(fields),
        started_ns=0,
        scheme=b"https",
        authority=b"a",
        length=len(ask(1, *fields)),
    )
    assert response == ResponseHead(
        exchange=1,
        side=RESPONSE,
        time_ns=0,
        status=200,
        reason=b"",
        version=b"HTTP/2",
        headers=((b"server", b"x"),),
        started_ns=0,
        length=len(answer(1, (b"server", b"x"))),
    )


NOTES: dict[str, tuple[Side, bytes]] = {
    "no :method": (REQUEST, block((b":path", b"/"))),
    "no :path": (REQUEST, block((b":method", b"GET"))),
    "unknown pseudo-header :x": (REQUEST, block((b":method", b"GET"), (b":path", b"/"), (b":x", b"y"))),
    "repeated pseudo-header :path": (REQUEST, block((b":method", b"GET"), (b":path", b"/"), (b":path", b"/2"))),
    ":path after other fields": (REQUEST, block((b":method", b"GET"), (b"a", b"b"), (b":path", b"/"))),
    "no :status": (RESPONSE, block((b"a", b"b"))),
    ":status is no number: 2e2": (RESPONSE, block((b":status", b"2e2"))),
    "unknown pseudo-header :path": (RESPONSE, block((b":status", b"200"), (b":path", b"/"))),
    "headers not decodable: no table entry 70, after 1 fields": (RESPONSE, b"\x88\xc6"),
}


@pytest.mark.parametrize("note", NOTES)
def test_oddity_is_noted(note: str) -> None:
    """What is odd about a head is said in words, and the head is read all the same."""
    side, data = NOTES[note]
    events = drip([*START, (side, frame(HEADERS, 5, 1, data))])
    (head,) = (event for event in events if isinstance(event, RequestHead | ResponseHead))
    assert head.notes == (note,)
    assert told(events, side)[0][3:] == (True, END)


def test_unknown_pseudo_headers_are_kept() -> None:
    """A pseudo-header field without a place of its own is shown among the others."""
    events = drip([*START, (REQUEST, ask(1, (b":x", b"y"), (b"a", b"b")))])
    assert messages(events, REQUEST)[1].head.headers == ((b":x", b"y"), (b"a", b"b"))  # type: ignore[union-attr]


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("flags", [0, PADDED, WITH_PRIORITY, PADDED | WITH_PRIORITY])
def test_header_block_in_pieces(pieces: int, flags: int) -> None:
    """Padding, priority and CONTINUATION frames around a block don't change it; all of it is the head's length."""
    fields = block((b":method", b"GET"), (b":path", b"/"), (b"a", bytes(100)))
    size = -(-len(fields) // pieces)
    parts = [fields[start : start + size] for start in range(0, len(fields), size)]
    first = (b"\3" if flags & PADDED else b"") + (b"\0\0\0\7\xff" if flags & WITH_PRIORITY else b"")
    first += parts[0] + (bytes(3) if flags & PADDED else b"")
    data = frame(HEADERS, END_STREAM | flags | (END_HEADERS if pieces == 1 else 0), 1, first)
    for index, part in enumerate(parts[1:], 2):
        data += frame(CONTINUATION, END_HEADERS if index == pieces else 0, 1, part)
    events = drip([*START, (REQUEST, data)])
    head = messages(events, REQUEST)[1].head
    assert isinstance(head, RequestHead)
    assert (head.method, head.headers, head.length, head.notes) == (b"GET", ((b"a", bytes(100)),), len(data), ())


@pytest.mark.parametrize("payload", [b"", b"\x09\x88", b"\x02\x88"])
def test_header_block_with_impossible_padding(payload: bytes) -> None:
    """A frame that contradicts itself has a head without fields."""
    events = drip([*START, (RESPONSE, frame(HEADERS, END_HEADERS | PADDED, 1, payload) + content())])
    head = messages(events, RESPONSE)[1].head
    assert head
    assert head.notes == ("headers not decodable: padding longer than its frame",)


def test_trailers() -> None:
    """Trailers come between the body and the end; their frames are framing."""
    trailers = frame(HEADERS, 5, 1, block((b"a", b"1"), (b"b", b"2")))
    for side, head in ((REQUEST, post()), (RESPONSE, OK)):
        events = drip([*START, (side, head + content(flags=0) + trailers)])
        assert [event.headers for event in events if isinstance(event, Trailers)] == [((b"a", b"1"), (b"b", b"2"))]
        (end,) = (event for event in events if isinstance(event, MessageEnd) and event.side is side)
        assert (end.why, end.framing_length) == (END, 9 + len(trailers))


def test_trailers_that_are_not_decodable() -> None:
    """The end says that something is missing."""
    events = drip([*START, (RESPONSE, OK + frame(HEADERS, 5, 1, block((b"a", b"1")) + b"\xc6"))])
    assert told(events) == [
        (200, b"", 0, True, "end of stream; headers not decodable: no table entry 70, after 1 fields")
    ]


def test_times() -> None:
    """A head knows when its first byte passed; an end, when the message's last one did, not when the connection closed."""
    connection = Http2Connection()
    for side, what in START:
        assert isinstance(what, bytes)
        connection.feed(side, what, 1)
    connection.feed(REQUEST, GET + GET[:4], 2)
    connection.feed(RESPONSE, OK[:4], 3)
    connection.feed(RESPONSE, OK[4:12], 4)
    (head,) = connection.feed(RESPONSE, OK[12:] + content(flags=0)[:4], 5)
    assert isinstance(head, ResponseHead)
    assert (head.started_ns, head.time_ns) == (3, 5)
    (body,) = connection.feed(RESPONSE, content(flags=0)[4:] + answer(5)[:3], 6)
    assert body.time_ns == 6
    (head, end) = connection.feed(RESPONSE, answer(5)[3:] + content(data=b""), 7)
    assert isinstance(head, ResponseHead)
    assert (head.started_ns, end.time_ns) == (6, 7)
    connection.feed(RESPONSE, answer(3) + content(3, flags=0) + content(5, flags=0)[:9], 8)
    connection.gap(RESPONSE, 5, GapReason.SNAPLEN, 9)
    connection.feed(RESPONSE, frame(PING, 0, 0, bytes(8)), 10)
    ends = connection.finish(RESPONSE, 11)
    assert [(end.exchange, end.time_ns) for end in ends] == [(2, 9), (3, 8)]


def test_exchanges_are_numbered_by_their_first_head() -> None:
    """Requests in order, then what only an answer was seen of, then what was promised."""
    promise = frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2" + block((b":method", b"GET")))
    events = drip([*START, (REQUEST, GET + ask(5)), (RESPONSE, answer(7) + answer(5) + promise + answer(2))])
    heads = [event for event in events if isinstance(event, RequestHead | ResponseHead)]
    assert [(event.exchange, event.side) for event in heads] == [
        (1, REQUEST),
        (2, REQUEST),
        (3, RESPONSE),
        (2, RESPONSE),
        (4, REQUEST),
        (4, RESPONSE),
    ]


def test_push() -> None:
    """A promise is a frame of the server that stands for a request of the client."""
    data = b"\2" + b"\0\0\0\4" + block((b":method", b"GET"), (b":path", b"/s.css"), (b"a", b"b")) + b"\0\0"
    promise = frame(PUSH_PROMISE, PADDED, 1, data) + frame(CONTINUATION, END_HEADERS, 1, block((b"c", b"d")))
    events = drip([*START, (REQUEST, GET), (RESPONSE, promise + answer(4) + content(4) + FIVE)])
    assert controls(events) == [(1, "PUSH_PROMISE", "stream 4: GET /s.css")]
    head = messages(events, REQUEST)[2].head
    assert isinstance(head, RequestHead)
    assert (head.pushed, head.length, head.target, head.headers) == (True, 0, b"/s.css", ((b"a", b"b"), (b"c", b"d")))
    assert told(events) == [WHOLE, WHOLE]


def test_push_refused() -> None:
    """A client may reset what it was promised, or say GOAWAY."""
    promise = frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2" + block((b":method", b"GET")))
    reset = frame(RST_STREAM, 0, 2, b"\0\0\0\x08")
    events = drip([*START, (REQUEST, GET), (RESPONSE, promise), (REQUEST, reset), (RESPONSE, answer(2) + content(2))])
    assert told(events)[0] == (None, b"", 0, False, "stream reset: CANCEL, by the client")
    assert unparsed(events) == [(len(answer(2) + content(2)), "stream already reset")]
    events = drip([*START, (REQUEST, GET), (RESPONSE, promise), (REQUEST, frame(GOAWAY, 0, 0, bytes(8)))])
    assert told(events)[0] == (None, b"", 0, False, "refused: GOAWAY")


def test_promise_that_makes_no_sense() -> None:
    """A client can't push, and no stream is promised twice; the frames are told, and the table is kept right."""
    promise = frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2" + block((b":method", b"GET")) + b"\x40\x01a\x01b")
    used = frame(HEADERS, 5, 3, b"\x82\x84\xbe")
    events = drip([*START, (REQUEST, promise + used), (RESPONSE, promise + promise + frame(PUSH_PROMISE, 4, 1, b"\0"))])
    assert [event.pushed for event in events if isinstance(event, RequestHead)] == [False, True]
    assert messages(events, REQUEST)[1].head.headers == ((b"a", b"b"),)  # type: ignore[union-attr]
    assert [kind for _, kind, _ in controls(events)] == ["PUSH_PROMISE"] * 4


# --- Control frames ---

CONTROLS: list[tuple[bytes, str, str]] = [
    (frame(SETTINGS, 1, 0), "SETTINGS", "ACK"),
    (frame(SETTINGS, 0, 0, bytes.fromhex("000100001000000800000001")), "SETTINGS", "HEADER_TABLE_SIZE=4096, ENABLE_CONNECT_PROTOCOL=1"),
    (frame(SETTINGS, 0, 0, bytes.fromhex("fafa00000005")), "SETTINGS", "0xfafa=5"),
    (frame(SETTINGS, 0, 0, bytes.fromhex("00030000006400")), "SETTINGS", "MAX_CONCURRENT_STREAMS=100, …"),
    (frame(PING, 0, 0, b"\0\1\2\3\4\5\6\7"), "PING", "0001020304050607"),
    (frame(PING, 1, 0, bytes(8)), "PING", "ACK 0000000000000000"),
    (frame(GOAWAY, 0, 0, b"\0\0\0\5\0\0\0\x0benough\n"), "GOAWAY", "last stream 5, ENHANCE_YOUR_CALM: enough\\n"),
    (frame(GOAWAY, 0, 0, b"\0\0"), "GOAWAY", "malformed: \\x00\\x00"),
    (frame(WINDOW_UPDATE, 0, 0, b"\x80\0\xff\xff"), "WINDOW_UPDATE", "+65535"),
    (frame(PRIORITY, 0, 3, b"\x80\0\0\1\xff"), "PRIORITY", "after stream 1, weight 256, exclusive"),
    (frame(PRIORITY, 0, 3, b"\0\0\0\1"), "PRIORITY", "malformed: \\x00\\x00\\x00\\x01"),
    (frame(RST_STREAM, 0, 9, b"\0\0\0\x0d"), "RST_STREAM", "HTTP_1_1_REQUIRED"),
    (frame(0xA, 0, 0, b"\0\x09https://ah3=:443"), "ALTSVC", "https://a h3=:443"),
    (frame(0xC, 0, 0, b"\0\x09https://a\0\x09https://b"), "ORIGIN", "https://a, https://b"),
    (frame(0xC, 0, 0, b"\0\1a" * 11), "ORIGIN", "a, a, a, a, a, a, a, a, a, a, …"),
    (frame(0x10, 0, 0, b"\0\0\0\1u=1, i"), "PRIORITY_UPDATE", "stream 1: u=1, i"),
    (frame(0x2A, 255, 5, b"anything"), "unknown 0x2a", ""),
]  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "detail"), CONTROLS)
def test_control_frame(data: bytes, kind: str, detail: str) -> None:
    """Every frame that is no message's is named, counted and put in words."""
    for side in Side:
        events = drip([*START, (side, data)])
        assert controls(events) == [(0, kind, detail)]
        assert not unparsed(events)


def test_control_frames_name_their_exchange() -> None:
    """A frame on a stream belongs to its exchange, also when that is over."""
    window = frame(WINDOW_UPDATE, 0, 3, b"\0\0\0\1")
    events = drip([*START, (REQUEST, ask(3) + window), (RESPONSE, answer(3, flags=1)), (REQUEST, window)])
    assert controls(events) == [(1, "WINDOW_UPDATE", "+1")] * 2


@pytest.mark.parametrize("kind", [PING, SETTINGS, 0x2A, GOAWAY])
def test_long_control_frame(kind: int) -> None:
    """A frame beyond what is kept is counted; what it says is shortened."""
    payload = b"\0\0\0\0\0\0\0\1" * 4000
    for size in (1 << 20, 1000):
        events = observe(cut([*START, (REQUEST, frame(kind, 0, 0, payload) + GET)], size))
        (control,) = [event for event in events if isinstance(event, ControlFrame)][3:]
        assert control.length == 32_009
        assert len(control.detail) < 1500
        assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
    connection = Http2Connection()
    connection.feed(REQUEST, PREFACE + frame(kind, 0, 0, payload)[:30_000], 0)
    assert len(connection._requests._held) == 0


def test_long_control_frame_cut_short() -> None:
    """What was counted of it is accounted for."""
    steps: list[Step] = [*START, (REQUEST, frame(0x2A, 0, 0, bytes(32_000))[:20_000])]
    events = observe(steps)
    assert controls(events) == [(0, "unknown 0x2a", "cut short: connection closed")]
    assert accounted(events) == passed(steps)
    steps += [(REQUEST, 2_009), (REQUEST, bytes(10_000) + GET)]
    events = observe(steps)
    assert controls(events) == [(0, "unknown 0x2a", "cut short: bytes missing")]
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
    assert accounted(events) == passed(steps)


# --- Tunnels ---

CONNECTS: dict[str, tuple[bytes, str]] = {
    "plain": (frame(HEADERS, 4, 1, block((b":method", b"CONNECT"), (b":authority", b"a:1"))), "tunnel"),
    "extended": (ask(1, (b":protocol", b"WebSocket"), method=b"CONNECT", flags=0), "websocket"),
}


@pytest.mark.parametrize("case", CONNECTS)
def test_tunnel(case: str) -> None:
    """After 2xx to CONNECT both messages end, and DATA is what passes through the tunnel."""
    request, protocol = CONNECTS[case]
    steps: list[Step] = [
        *START,
        (REQUEST, request),
        (RESPONSE, OK + content(1, b"\x81hello", 0)),
        (REQUEST, content(1, b"\4more\0\0\0\0", PADDED)),
        (RESPONSE, content(1, b"1234567")[:9]),
        (RESPONSE, 7),
        (REQUEST, content(1, b"")),
    ]
    events = drip(steps)
    assert [event.protocol for event in events if isinstance(event, Upgraded)] == [protocol] * 2
    for side, name in ((REQUEST, b"CONNECT"), (RESPONSE, 200)):
        assert told(events, side) == [(name, b"", 0, True, "no body")]
    assert b"".join(event.data for event in events if isinstance(event, TunnelData)) == b"\x81hellomore"
    assert [event.length for event in events if isinstance(event, TunnelGap)] == [7]
    assert controls(events) == [(1, "DATA framing", "")] * 2
    order = [type(event) for event in events if event.exchange][1:6]
    assert order == [ResponseHead, MessageEnd, Upgraded, MessageEnd, Upgraded]


def test_tunnel_refused() -> None:
    """A CONNECT that was not granted is a request like others."""
    events = drip([*START, (REQUEST, CONNECTS["plain"][0] + content()), (RESPONSE, answer(status=b"403") + content())])
    assert told(events, REQUEST) == [(b"CONNECT", b"hello", 0, True, END)]
    assert told(events) == [(403, b"hello", 0, True, END)]
    assert not any(isinstance(event, Upgraded) for event in events)


def test_tunnel_with_early_data() -> None:
    """What a client sends before the answer is its request's content."""
    events = drip([*START, (REQUEST, CONNECTS["plain"][0] + content(flags=0)), (RESPONSE, OK), (REQUEST, content())])
    assert told(events, REQUEST) == [(b"CONNECT", b"hello", 0, True, "tunnel begins")]
    assert [event.data for event in events if isinstance(event, TunnelData)] == [b"hello"]


def test_tunnel_of_one_side() -> None:
    """A side that ended with its head has an empty tunnel."""
    request = frame(HEADERS, 5, 1, block((b":method", b"CONNECT"), (b":authority", b"a:1")))
    events = drip([*START, (REQUEST, request), (RESPONSE, answer(flags=1))])
    assert told(events, REQUEST) == [(b"CONNECT", b"", 0, True, END)]
    assert [event.side for event in events if isinstance(event, Upgraded)] == [RESPONSE, REQUEST]


def test_tunnel_reset() -> None:
    """A reset ends a tunnel; header fields have no place in one."""
    reset = frame(RST_STREAM, 0, 1, b"\0\0\0\x0a")
    steps: list[Step] = [*START, (REQUEST, CONNECTS["plain"][0]), (RESPONSE, OK + content(flags=0) + OK + reset)]
    events = drip([*steps, (REQUEST, content())])
    assert unparsed(events) == [(len(OK), "header fields in a tunnel"), (14, "stream already reset")]
    assert controls(events) == [(1, "RST_STREAM", "CONNECT_ERROR"), (1, "DATA framing", "")]


def test_upgraded_from_http1() -> None:
    """After h2c, stream 1 is the answer to the request that was seen in HTTP/1; the next number is one higher."""
    steps: list[Step] = [*START, (RESPONSE, answer(1, (b"content-length", b"6"), flags=1)), (REQUEST, ask(3) + OK)]
    events = drip([*steps, (RESPONSE, answer(3) + content(3))], upgraded_exchange=7, upgraded_method=b"HEAD")
    assert [event.exchange for event in events if isinstance(event, ResponseHead)] == [7, 8]
    assert [event.exchange for event in events if isinstance(event, RequestHead)] == [8]
    assert told(events) == [(200, b"", 0, True, END), WHOLE]
    assert unparsed(events) == [(len(OK), "stream already ended")]
    assert told(drip(START, upgraded_exchange=1)) == [(None, b"", 0, False, "no response")]


# --- Frames that have no place ---

MISPLACED: dict[str, tuple[list[Step], list[tuple[int, str]]]] = {
    "data on no stream": ([(REQUEST, content(3))], [(14, "no such stream")]),
    "padded data on no stream": ([(REQUEST, content(3, b"\1hel\0", PADDED))], [(14, "no such stream")]),
    "data after the end": ([(REQUEST, GET + content())], [(14, "stream already ended")]),
    "head after the end": ([(REQUEST, GET + GET)], [(len(GET), "stream already ended")]),
    "data after a reset": (
        [(REQUEST, GET + frame(RST_STREAM, 0, 1, bytes(4))), (RESPONSE, FIVE)],
        [(len(FIVE), "stream already reset")],
    ),
    "data after GOAWAY": (
        [(REQUEST, post()), (RESPONSE, frame(GOAWAY, 0, 0, bytes(8))), (REQUEST, content())],
        [(14, "stream refused")],
    ),
    "request body without its head": ([(RESPONSE, OK), (REQUEST, content())], [(14, "stream not seen from its start")]),
    "CONTINUATION alone": (
        [(REQUEST, frame(CONTINUATION, 4, 1, b"\x82") + GET)],
        [(10, "CONTINUATION without HEADERS")],
    ),
    "no CONTINUATION": (
        [(REQUEST, frame(HEADERS, 1, 1, b"\x82\x84") + ask(3))],
        [(11, "header block without its end")],
    ),
    "another stream's CONTINUATION": (
        [(REQUEST, frame(HEADERS, 1, 1, b"\x82\x84") + frame(CONTINUATION, 4, 3, b"\x85"))],
        [(11, "header block without its end"), (10, "CONTINUATION without HEADERS")],
    ),
    "frame header cut short": ([(REQUEST, GET + b"\0\0")], [(2, CUT)]),
    "head cut short": ([(REQUEST, GET[:-1])], [(len(GET) - 1, CUT)]),
    "block cut short": ([(REQUEST, frame(HEADERS, 1, 1, b"\x82") + b"\0")], [(11, CUT)]),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_misplaced(case: str) -> None:
    """Bytes that belong to no message that is open come out as they came in."""
    steps, expected = MISPLACED[case]
    events = drip([*START, *steps])
    assert unparsed(events) == expected
    assert all(len(event.data) == event.length for event in events if isinstance(event, Unparsed))


def test_block_without_its_end_breaks_hpack() -> None:
    """What it would have added to the table is not known."""
    events = drip([*START, (REQUEST, frame(HEADERS, 1, 1, b"\x82") + frame(HEADERS, 5, 3, b"\x82\xbe"))])
    head = messages(events, REQUEST)[1].head
    assert head
    assert head.notes == ("1 of 2 header fields not decodable: header block without its end before",)


def test_head_without_its_end_does_not_spoil_the_stream() -> None:
    """Trailers that break off leave the message incomplete."""
    events = drip([*START, (RESPONSE, OK + frame(HEADERS, 1, 1, b"\x88") + frame(PING, 0, 0, bytes(8)))])
    assert told(events) == [(200, b"", 0, False, "bytes missing")]


# --- Holes ---


def test_gap_in_data() -> None:
    """A hole within a DATA frame costs its bytes and nothing else, with padding or without, at its end or not."""
    data = content(1, b"\3" + b"0123456789" + bytes(3), PADDED | END_STREAM)
    for begin in range(10, len(data)):
        for end in range(begin + 1, len(data) + 1):
            steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, OK + data[:begin]), (RESPONSE, end - begin)]
            steps += (
                [(RESPONSE, data[end:] + answer(3) + content(3))]
                if end < len(data)
                else [(RESPONSE, answer(3) + content(3))]
            )
            for pieces in (steps, cut(steps, 1)):
                events = observe(pieces)
                missing = max(0, min(20, end) - min(20, begin))
                body = data[10 : min(20, begin)] + data[end:20]
                assert told(events)[0] == (200, body, missing, not missing, "bytes missing" if missing else END)
                assert told(events)[1] == WHOLE
                assert accounted(events) == passed(steps)


def test_gap_and_length() -> None:
    """A message with a hole is incomplete, whatever its length says; one that is cut short as well says that."""
    head = answer(1, (b"content-length", b"9"))
    events = drip([*START, (RESPONSE, head + content(flags=0)[:9]), (RESPONSE, 2), (RESPONSE, b"llo" + content())])
    assert told(events) == [(200, b"llohello", 2, False, "bytes missing")]
    events = drip([*START, (RESPONSE, head + content()[:9]), (RESPONSE, 2)])
    assert told(events) == [(200, b"", 2, False, CUT)]


@pytest.mark.parametrize("point", range(9, 17))
def test_gap_in_control_frame(point: int) -> None:
    """A hole within another frame costs that frame; the next one is read, and no message is in doubt."""
    ping = frame(PING, 0, 0, bytes(8))
    for end in range(point + 1, len(ping) + 1):
        steps: list[Step] = [*START, (RESPONSE, OK + ping[:point]), (RESPONSE, end - point)]
        steps += [(RESPONSE, ping[end:])] if end < len(ping) else []
        steps += [(RESPONSE, content())]
        for pieces in (steps, cut(steps, 1)):
            events = observe(pieces)
            assert told(events) == [WHOLE]
            assert sum(length for length, _ in unparsed(events)) == len(ping)
            assert accounted(events) == passed(steps)


def test_gap_in_a_head() -> None:
    """A head with a hole is not seen, and with it what HPACK knew; the reader stays in step."""
    indexed = frame(HEADERS, 4, 3, b"\x88\x40\x01a\x01b")
    steps: list[Step] = [
        *START,
        (REQUEST, GET + ask(3) + ask(5) + ask(7)),
        (RESPONSE, FIVE + indexed[:10]),
        (RESPONSE, 2),
        (RESPONSE, indexed[12:] + content(3) + frame(HEADERS, 5, 5, b"\x88\xbe") + frame(HEADERS, 5, 7, b"\xbe\xbf")),
    ]
    events = drip(steps)
    assert told(events) == [
        WHOLE,
        (None, b"", 0, False, "bytes missing"),
        (200, b"", 0, True, END),
        (0, b"", 0, True, END),
    ]
    heads = [event for event in events if isinstance(event, ResponseHead)]
    assert heads[1].headers == ()
    assert heads[1].notes == ("1 of 2 header fields not decodable: bytes missing before",)
    assert heads[2].notes == ("2 of 2 header fields not decodable: bytes missing before",)


def test_gap_in_a_request_head() -> None:
    """The answer to a request with a hole in its head is an exchange without request."""
    steps: list[Step] = [*START, (REQUEST, post()[:12]), (REQUEST, 1), (REQUEST, post()[13:] + content())]
    events = drip([*steps, (REQUEST, frame(HEADERS, 5, 1, block((b"a", b"b")))), (RESPONSE, FIVE)])
    assert told(events) == [WHOLE]
    assert told(events, REQUEST) == []


def test_gap_in_a_head_that_ends_its_stream() -> None:
    """END_STREAM was seen before the hole."""
    head = answer(flags=1)
    steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, head[:12]), (RESPONSE, 1), (RESPONSE, head[13:])]
    assert told(drip(steps)) == [(None, b"", 0, False, "bytes missing")]


def test_gap_in_an_interim_head() -> None:
    """If the head after the hole is a whole one, the message is whole: only an interim head can come before it."""
    head = answer(status=b"103")
    steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, head[:12]), (RESPONSE, 1), (RESPONSE, head[13:] + FIVE)]
    assert told(drip(steps)) == [WHOLE]


def test_head_of_unknown_status() -> None:
    """A head whose status is not decodable may turn out to have been an interim one."""
    early = frame(HEADERS, 4, 1, b"\xbe")
    steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, 20), (RESPONSE, early), (RESPONSE, FIVE)]
    events = observe(steps)
    assert [event.status for event in events if isinstance(event, ResponseHead)] == [0, 200]
    assert told(events) == [WHOLE]
    events = observe([*steps[:-1], (RESPONSE, answer(status=b"103") + FIVE)])
    assert [event.status for event in events if isinstance(event, ResponseHead)] == [0, 103, 200]
    assert told(events) == [WHOLE]
    events = observe([*steps, (RESPONSE, answer(3, status=b"103") + frame(HEADERS, 5, 3, b"\xbe"))])
    assert told(events)[1] == (0, b"", 0, True, END)
    events = observe([*steps, (RESPONSE, frame(HEADERS, 5, 3, b"\xbe"))])
    assert told(events)[1] == (0, b"", 0, False, "bytes missing")


def test_two_heads_of_unknown_status() -> None:
    """If the second one could be trailers, nothing is called complete."""
    early = frame(HEADERS, 4, 1, b"\xbe")
    steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, OK[:15]), (RESPONSE, 1), (RESPONSE, OK[16:] + early)]
    assert told(observe([*steps, (RESPONSE, frame(HEADERS, 5, 1, b"\xbe"))])) == [(0, b"", 0, False, "bytes missing")]
    whole = (0, b"hello", 0, True, "end of stream; 1 of 1 header fields not decodable: bytes missing before")
    last = content(flags=0) + frame(HEADERS, 5, 1, b"\xbe")
    assert told(observe([*steps, (RESPONSE, last)])) == [(0, b"hello", 0, False, "bytes missing")]
    steps = [*START, (REQUEST, GET + ask(3)), (RESPONSE, OK[:15]), (RESPONSE, 1), (RESPONSE, OK[16:])]
    data = frame(HEADERS, 4, 3, b"\xbe") + content(3, flags=0) + frame(HEADERS, 5, 3, b"\xbe")
    assert told(observe([*steps, (RESPONSE, data)]))[0] == whole
    data = frame(HEADERS, 4, 3, b"\xbe") + frame(HEADERS, 5, 3, b"\xbe")
    assert told(observe([*steps, (RESPONSE, data)]))[0] == (0, b"", 0, False, "bytes missing")


def test_asked_while_the_answers_are_out_of_step() -> None:
    """What was asked then may have been answered in what could not be read."""
    steps: list[Step] = [*START, (RESPONSE, 9), (REQUEST, GET), (RESPONSE, frame(HEADERS, 5, 1, b"\xbe"))]
    assert told(observe(steps)) == [(0, b"", 0, False, "bytes missing")]


def test_gap_in_a_padded_frame_header() -> None:
    """Without the pad length, content and padding can't be told apart."""
    data = content(1, b"\3hello\0\0\0", PADDED | END_STREAM)
    steps: list[Step] = [*START, (RESPONSE, OK + data[:9]), (RESPONSE, 1), (RESPONSE, data[10:] + answer(3, flags=1))]
    events = drip(steps)
    assert told(events) == [(200, b"", 0, False, "bytes missing"), (200, b"", 0, True, END)]


def test_gap_between_continuations() -> None:
    """A block that lost some of its frames is not seen; the rest of it is passed over."""
    parts = [frame(HEADERS, 1, 1, b"\x82"), frame(CONTINUATION, 0, 1, b"\x84"), frame(CONTINUATION, 4, 1, b"\x87")]
    steps: list[Step] = [*START, (REQUEST, parts[0] + parts[1][:9]), (REQUEST, 1), (REQUEST, parts[2] + ask(3))]
    events = drip(steps)
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
    assert sum(length for length, _ in unparsed(events)) == sum(map(len, parts))


@pytest.mark.parametrize("point", range(len(content())))
def test_gap_over_a_frame_header(point: int) -> None:
    """What was open when frame headers were lost is incomplete; what begins after the next item's start is not."""
    lost = content() + answer(3) + content(3, b"hel", 0)
    steps: list[Step] = [
        *START,
        (REQUEST, GET + ask(3) + ask(5) + ask(7)),
        (RESPONSE, OK + lost[:point]),
        (RESPONSE, len(lost) - point - 2),
        (RESPONSE, lost[-2:]),
        (RESPONSE, content(3, b"lo") + answer(5)),
        (RESPONSE, content(5)),
        (RESPONSE, frame(HEADERS, 5, 7, b"\x88\xbe")),
    ]
    events = observe(steps)
    found = messages(events, RESPONSE)
    assert [found[exchange].end.complete for exchange in (1, 2, 3, 4)] == [False, False, True, True]  # type: ignore[union-attr]
    assert found[2].end.why == "bytes missing"  # type: ignore[union-attr]
    assert not found[2].head
    assert found[3].body == b"hello"
    assert found[4].head.notes == ("1 of 2 header fields not decodable: bytes missing before",)  # type: ignore[union-attr]
    assert accounted(events) == passed(steps)


def test_body_with_a_hole_in_an_unknown_place() -> None:
    """What of a message passes after the step was found again is told, and that it is incomplete."""
    steps: list[Step] = [*START, (RESPONSE, OK + content(flags=0)), (RESPONSE, 100), (RESPONSE, content())]
    assert told(observe(steps)) == [(200, b"hellohello", 0, False, "bytes missing")]


def test_no_answer_after_a_hole() -> None:
    """It can't be said that there was none."""
    steps: list[Step] = [(REQUEST, GET), (RESPONSE, 100)]
    for order in (steps, steps[::-1]):
        assert told(observe([*START, *order])) == [(None, b"", 0, False, "response not seen")]


def test_trailers_after_a_hole_are_no_head() -> None:
    """A block without pseudo-header fields on a stream whose head is not known belongs to a message that was not seen."""
    trailers = frame(HEADERS, 5, 1, block((b"grpc-status", b"0")))
    events = observe([*START, (REQUEST, GET), (RESPONSE, 50), (RESPONSE, trailers)])
    assert told(events) == [(None, b"", 0, False, "bytes missing")]
    events = observe([*START, (REQUEST, 50), (REQUEST, trailers)])
    assert told(events, REQUEST) == []
    assert unparsed(events)[1:] == [(len(trailers), "stream not seen from its start")]
    partly = frame(HEADERS, 5, 1, block((b"grpc-status", b"0")) + b"\xbe")
    events = observe([*START, (REQUEST, 50), (REQUEST, partly)])
    assert told(events, REQUEST) == []


def test_hole_after_which_no_frames_come() -> None:
    """Items that only look a little like frames are not read."""
    noise = [
        b"HTTP/1.1 200 OK\r\n\r\n",
        bytes(40),
        b"\0\0\5\0\1\0\0\0\2hello",
        bytes(range(1, 30)),
        b"\0\0\0\0\0\0\0\0\1",
    ]
    noise += [
        b"\0\0\5\0\1\x80\0\0\1hello",
        b"\0\0\4\4\0\0\0\0\0abcd",
        b"\0\0\4\6\0\0\0\0\0abcd",
        content() + b"\x50" * 20,
    ]
    for item in noise:
        steps: list[Step] = [*START, (REQUEST, GET), (RESPONSE, OK), (RESPONSE, 30), (RESPONSE, item)]
        events = observe([*steps, (RESPONSE, content(data=b"!"))])
        assert told(events) == [(200, b"!", 0, False, "bytes missing")]
        assert sum(length for length, _ in unparsed(events)) == 30 + len(item)
    for item in (frame(PUSH_PROMISE, 4, 1, bytes(5)), frame(0xC, 0, 0, bytes(5))):
        events = observe([*START, (REQUEST, 30), (REQUEST, item)])
        assert sum(length for length, _ in unparsed(events)) == 30 + len(item)


def test_false_start_is_noticed() -> None:
    """An item that began like a frame and went on like none is given up; so is a header block that can't be one."""
    false = frame(DATA, 0, 1, b"x" * 40)[:30]
    steps: list[Step] = [
        *START,
        (REQUEST, GET),
        (RESPONSE, OK),
        (RESPONSE, 9),
        (RESPONSE, false),
        (RESPONSE, bytes(90)),
    ]
    events = observe([*steps, (RESPONSE, content())])
    assert told(events)[0][1:] == (b"x" * 21 + bytes(19) + b"hello", 0, False, "bytes missing")
    for item in (frame(HEADERS, 5, 1, b"\x40\x7f"), frame(HEADERS, 0, 1, b"\x40") + frame(CONTINUATION, 4, 1, b"\x7f")):
        events = observe([*steps[:5], (RESPONSE, item + content(flags=0)), (RESPONSE, content())])
        assert told(events) == [(200, b"hello", 0, False, "bytes missing")]
        assert unparsed(merged(events))[1:] == [(len(item) + 14, "no header block")]


# --- Joined in the middle ---


def test_joined_in_the_middle() -> None:
    """The first items that begin with a frame are read; streams that are under way are not, new ones are."""
    steps: list[Step] = [
        (RESPONSE, b"rest of a frame" + OK),
        (REQUEST, b"and of another" + GET),
        (REQUEST, content(1) + ask(5)),
        (RESPONSE, content(3, b"x") + answer(1, status=b"404") + content(1)),
        (RESPONSE, answer(5) + content(5)),
    ]
    events = observe(steps)
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
    assert told(events) == [(404, b"hello", 0, True, END), WHOLE]
    assert unparsed(merged(events)) == [
        (15 + len(OK), "joined mid-stream"),
        (14 + len(GET), "joined mid-stream"),
        (14, "stream not seen from its start"),
        (10, "stream not seen from its start"),
    ]
    assert accounted(events) == passed(steps)


def test_joined_between_frames() -> None:
    """Nothing is lost but what earlier frames said."""
    steps: list[Step] = [
        (REQUEST, frame(HEADERS, 5, 9, b"\x82\x87\xc0\xbf")),
        (RESPONSE, frame(HEADERS, 5, 9, b"\x88\xbe")),
    ]
    events = observe(steps)
    assert told(events) == [(200, b"", 0, True, END)]
    request = messages(events, REQUEST)[1].head
    assert isinstance(request, RequestHead)
    assert (request.method, request.target, request.headers) == (b"GET", b"", ())
    assert request.notes == ("2 of 4 header fields not decodable: joined mid-stream",)


def test_trailers_of_an_older_stream() -> None:
    """After a join, a block of unknown fields on an older stream than the newest is no new request."""
    steps: list[Step] = [
        (REQUEST, ask(9)),
        (REQUEST, frame(HEADERS, 5, 3, b"\xbe")),
        (REQUEST, frame(HEADERS, 5, 11, b"\xbe")),
    ]
    events = observe(steps)
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END), (b"", b"", 0, False, "bytes missing")]
    assert unparsed(events) == [(10, "stream not seen from its start")]


@pytest.mark.parametrize("size", range(1, 12))
def test_joined_where_items_are_small(size: int) -> None:
    """A program that reads a frame's header on its own is followed too."""
    data = ask(3)
    steps: list[Step] = [(REQUEST, b"x" * 30), (REQUEST, data[:9]), (REQUEST, data[9:])]
    steps += [(REQUEST, ask(5)[:size]), (REQUEST, ask(5)[size:])]
    events = observe(steps)
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)] * 2


def test_item_that_only_began_like_a_frame() -> None:
    """Out of step, bytes that could have become a frame do not hide the frame that follows them."""
    for begin in (b"\0", b"\0\0\5", b"PRI * HTT", b"\0\0\5\0\1\0\0\0"):
        steps: list[Step] = [(REQUEST, b"\xff"), (REQUEST, begin), (REQUEST, ask(3))]
        events = observe(steps)
        assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
        assert accounted(events) == passed(steps)


def test_preface_after_noise() -> None:
    """A preface is unmistakable, and nothing before it counts."""
    steps: list[Step] = [
        (REQUEST, b"\xff"),
        (REQUEST, PREFACE[:7]),
        (REQUEST, PREFACE[7:] + frame(HEADERS, 5, 1, b"\x82\x84\xbe")),
    ]
    events = observe(steps)
    assert told(events, REQUEST) == [(b"GET", b"", 0, True, END)]
    assert messages(events, REQUEST)[1].head.notes == ("headers not decodable: no table entry 62, after 2 fields",)  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", bytes(100)])
def test_not_http2(data: bytes) -> None:
    """Bytes that are no HTTP/2 come out as they came in."""
    for side in Side:
        events = drip([(side, data)])
        assert b"".join(event.data for event in events if isinstance(event, Unparsed)) == data
        assert len(events) == len(unparsed(events))


def test_gap_reason_is_kept() -> None:
    """The reason of a hole is told with it."""
    connection = Http2Connection()
    (event,) = connection.gap(REQUEST, 3, GapReason.SNAPLEN, 0)
    assert isinstance(event, Unparsed)
    assert (event.length, event.why) == (3, "missing: snaplen")


# --- Limits ---


def test_open_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of too many open streams is given up; answers that nobody sees don't pile up."""
    monkeypatch.setattr(http2_streams, "OPEN_LIMIT", 10)
    connection = Http2Connection()
    connection.feed(REQUEST, PREFACE, 0)
    events: list[AnyEvent] = []
    for number in range(100):
        events += connection.feed(REQUEST, ask(2 * number + 1), 0)
    assert len(connection._streams.open) == 10
    assert told(events) == [(None, b"", 0, False, "too many open streams")] * 90
    for number in range(5000):
        connection.feed(RESPONSE, frame(SETTINGS, 0, 0) + answer(20_001 + 2 * number, flags=1), 0)
    assert len(connection._streams._closed) + len(connection._streams._closed_before) <= 2000


def test_header_block_limit() -> None:
    """A block beyond the limit is counted, not kept: its message has a head without fields, and HPACK starts anew."""
    long = block(*[(b"a", bytes(100))] * 10)
    whole = frame(HEADERS, 5, 1, block((b":method", b"GET")) + long)
    parts = frame(HEADERS, 1, 1, block((b":method", b"GET"))) + frame(CONTINUATION, 0, 1, long[:300])
    parts += frame(CONTINUATION, 0, 1, long[300:]) + frame(CONTINUATION, 4, 1)
    for data in (whole, parts):
        events = drip([*START, (REQUEST, data + frame(HEADERS, 5, 3, b"\x82\xbe"))], head_limit=400)
        heads = [event for event in events if isinstance(event, RequestHead)]
        assert (heads[0].headers, heads[0].length) == ((), len(data))
        assert heads[0].notes == ("headers not decodable: more than 400 bytes",)
        assert heads[1].notes == ("1 of 2 header fields not decodable: an earlier header block was not decodable",)
    for point in range(410, len(parts)):
        steps: list[Step] = [*START, (REQUEST, parts[:point]), (REQUEST, 1), (REQUEST, bytes(99))]
        assert accounted(observe(steps, head_limit=400)) == passed(steps)
        assert accounted(observe(steps[:3], head_limit=400)) == passed(steps[:3])


def test_continuation_flood() -> None:
    """Endless CONTINUATION frames are not kept."""
    connection = Http2Connection(head_limit=50_000)
    connection.feed(REQUEST, PREFACE + frame(HEADERS, 1, 1, b"\x82"), 0)
    flood = frame(CONTINUATION, 0, 1, b"\x82") * 20_000
    for start in range(0, len(flood), 1500):
        assert connection.feed(REQUEST, flood[start : start + 1500], 0) == []
        assert len(connection._requests._held) < 1500
    block = connection._requests._block
    assert block
    assert (block.too_long, block.frames) == (True, [])
    events = connection.finish(REQUEST, 0)
    assert accounted(events)[REQUEST] == len(flood) + 10


def test_goaway_flood() -> None:
    """Each GOAWAY takes back a little more; what was refused says so at the end, if not at once."""
    asked: list[Step] = [(REQUEST, ask(stream)) for stream in range(1, 41, 2)]
    refused: list[Step] = [(RESPONSE, frame(GOAWAY, 0, 0, last.to_bytes(4) + bytes(4))) for last in range(40, 0, -2)]
    events = observe([*START, *asked, *refused], finish=False)
    assert len(told(events)) == http2_streams._HEEDED_GOAWAYS - 1
    whys = [why for *_, why in told(observe([*START, *asked, *refused]))]
    assert sorted(whys) == ["no response"] + ["refused: GOAWAY"] * 19


def test_header_bomb() -> None:
    """Fields beyond the limit are left out, and that is said."""
    bomb = b"\x82\x40\x01a\x7f\x81\x07" + bytes(1024) + b"\xbe" * 5000
    events = observe([*START, (REQUEST, frame(HEADERS, 5, 1, bomb))], head_limit=10_000)
    head = messages(events, REQUEST)[1].head
    assert head
    assert len(head.headers) == 9
    assert head.notes == ("more than 10000 bytes of headers: 4992 fields left out",)


def test_data_is_not_held() -> None:
    """Content passes as it comes; an item that is all content goes through as the same object."""
    connection = Http2Connection()
    connection.feed(RESPONSE, frame(SETTINGS, 0, 0) + OK + content(1, bytes(99_999))[:9], 0)
    item = bytes(4096)
    (event,) = connection.feed(RESPONSE, item, 0)
    assert getattr(event, "data", None) is item


def test_byte_by_byte_is_linear() -> None:
    """Long frames in single bytes take no quadratic time (it would take minutes)."""
    head = ask(1, *[(b"a", bytes(120))] * 1500)
    steps: list[Step] = [
        *START,
        (REQUEST, head + frame(GOAWAY, 0, 0, bytes(16_000)) + frame(0x2A, 0, 0, bytes(99_999))),
    ]
    assert told(observe(cut(steps, 1)), REQUEST) == [(b"GET", b"", 0, True, END)]


# --- Conversations of the h2 library, which is the judge ---


@dataclass
class Truth:
    """What h2 understood of one stream's message."""

    headers: list[Header] = field(default_factory=list)
    interim: list[list[Header]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[Header] = field(default_factory=list)
    ended: bool = False


class Talk:
    """A client and a server, wired in memory.  What they send is kept as steps; what they understand, as truth."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.steps: list[Step] = []
        self.truth: dict[tuple[int, Side], Truth] = {}
        self.reset: set[int] = set()
        self.speaking: dict[Side, list[int]] = {REQUEST: [], RESPONSE: []}  # streams on which a head was sent
        self.waiting: list[int] = []  # for their answer
        self.ends: dict[Side, H2Connection] = {}
        for side in Side:
            config = H2Configuration(client_side=side is REQUEST, header_encoding=None, normalize_inbound_headers=False)
            self.ends[side] = H2Connection(config)
            self.ends[side].initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Let each end have what the other one said, until there is nothing more to say."""
        while self._send(REQUEST) or self._send(RESPONSE):
            pass

    def _send(self, side: Side) -> bool:
        data = self.ends[side].data_to_send()
        if data:
            self.steps.append((side, data))
            for event in self.ends[side.opposite].receive_data(data):
                self._understand(side, event)
        return bool(data)

    def _understand(self, side: Side, event: object) -> None:
        if isinstance(event, PushedStreamReceived):
            self._truth(event.pushed_stream_id, REQUEST).headers = _plain(event.headers)
        elif isinstance(event, RequestReceived | ResponseReceived):
            self._truth(event.stream_id, side).headers = _plain(event.headers)
        elif isinstance(event, InformationalResponseReceived):
            self._truth(event.stream_id, side).interim.append(_plain(event.headers))
        elif isinstance(event, DataReceived):
            self._truth(event.stream_id, side).body += event.data
            if event.stream_id and event.flow_controlled_length:
                self.ends[side.opposite].acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            self._truth(event.stream_id, side).trailers = _plain(event.headers)
        elif isinstance(event, StreamEnded):
            self._truth(event.stream_id, side).ended = True

    def _truth(self, stream: int | None, side: Side) -> Truth:
        assert stream
        return self.truth.setdefault((stream, side), Truth())

    def act(self) -> None:
        """Do something that is allowed, sometimes without sending it at once."""
        chance = self.chance
        actions = [self.ask, self.answer, self.answer, self.send, self.send, self.send, self.finish, self.other]
        chance.choice(actions)()
        if chance.random() < 0.7:
            self.flush()

    def fields(self, stream: int, count: int) -> list[Header]:
        """Return fields that sometimes repeat; one is never indexed and says the stream."""
        chance = self.chance
        values = [
            b"",
            b"v",
            b"value-%d" % chance.randrange(9),
            b"x" * chance.randrange(300),
            b"%030d" % chance.randrange(10**30),
        ]
        fields = [(b"x-%d" % chance.randrange(6), chance.choice(values)) for _ in range(count)]
        return [(b"authorization", b"%d" % stream), *fields, (b"cookie", b"a=b")]

    def ask(self) -> None:
        client = self.ends[REQUEST]
        stream = client.get_next_available_stream_id()
        pseudo = [(b":method", self.chance.choice([b"GET", b"POST", b"PUT"])), (b":scheme", b"https")]
        pseudo += [(b":authority", b"example.org"), (b":path", self.chance.choice([b"/", b"/%d" % stream]))]
        end = self.chance.random() < 0.4
        client.send_headers(stream, pseudo + self.fields(stream, self.chance.randrange(5)), end_stream=end)
        self.waiting.append(stream)
        if not end:
            self.speaking[REQUEST].append(stream)

    def answer(self) -> None:
        if not self.waiting:
            return
        self.flush()
        stream = self.chance.choice(self.waiting)
        statuses = [b"200", b"200", b"302", b"404", b"103"]
        status = self.chance.choice(statuses if stream % 2 else statuses[:4])  # h2 knows no interim answer to a push
        end = self.chance.random() < 0.2 and status != b"103"
        self.ends[RESPONSE].send_headers(stream, [(b":status", status), *self.fields(stream, 3)], end_stream=end)
        if status != b"103":
            self.waiting.remove(stream)
            if not end:
                self.speaking[RESPONSE].append(stream)

    def send(self) -> None:
        chance = self.chance
        side = chance.choice([REQUEST, RESPONSE, RESPONSE])
        if not self.speaking[side]:
            return
        stream = chance.choice(self.speaking[side])
        data = chance.choice([b"", bytes(chance.randrange(40)), b"text " * chance.randrange(60), chance.randbytes(20)])
        end = chance.random() < 0.3
        self.ends[side].send_data(stream, data, pad_length=chance.choice([None, None, 0, 5, 255]), end_stream=end)
        if end:
            self.speaking[side].remove(stream)

    def finish(self) -> None:
        side = self.chance.choice([REQUEST, RESPONSE, RESPONSE])
        if not self.speaking[side]:
            return
        stream = self.speaking[side].pop(self.chance.randrange(len(self.speaking[side])))
        if self.chance.random() < 0.5:
            self.ends[side].send_headers(stream, [(b"x-trailer", b"%d" % stream), (b"x-1", b"v")], end_stream=True)
        else:
            self.ends[side].end_stream(stream)

    def other(self) -> None:
        chance = self.chance
        self.flush()
        side = chance.choice([REQUEST, RESPONSE])
        end = self.ends[side]
        kind = chance.randrange(5)
        streams = [*self.speaking[side], *self.waiting]
        parents = [stream for stream in [*self.waiting, *self.speaking[RESPONSE]] if stream % 2]
        if kind == 0 and streams:
            stream = chance.choice(streams)
            end.reset_stream(stream, chance.choice(list(ErrorCodes)))
            self.reset.add(stream)
            for streams in (self.waiting, *self.speaking.values()):
                if stream in streams:
                    streams.remove(stream)
        elif kind == 1 and not self.ends[side.opposite].encoder.header_table.resized:
            # One change after another: hpack's encoder announces two at once in a way that its decoder refuses.
            end.update_settings({SettingCodes.HEADER_TABLE_SIZE: chance.choice([0, 60, 200, 4096, 65536])})
        elif kind == 2:
            end.ping(chance.randbytes(8))
        elif kind == 3:
            end.increment_flow_control_window(1000)
        elif parents:
            server = self.ends[RESPONSE]
            promised = server.get_next_available_stream_id()
            pseudo = [
                (b":method", b"GET"),
                (b":scheme", b"https"),
                (b":authority", b"example.org"),
                (b":path", b"/pushed"),
            ]
            server.push_stream(chance.choice(parents), promised, pseudo + self.fields(promised, 2))
            self.waiting.append(promised)
        self.flush()


def _plain(headers: Iterable[Any] | None) -> list[Header]:
    return [(bytes(name), bytes(value)) for name, value in headers or ()]


def conversation(seed: int, actions: int = 40) -> Talk:
    """Return a conversation that is the same for the same seed."""
    talk = Talk(random.Random(seed))
    for _ in range(actions):
        talk.act()
    talk.flush()
    return talk


def fields_of(head: RequestHead | ResponseHead) -> list[Header]:
    """Return a head's fields as h2 tells them."""
    if isinstance(head, ResponseHead):
        pseudo = [(b":status", b"%d" % head.status)]
    else:
        pseudo = [
            (b":method", head.method),
            (b":scheme", head.scheme),
            (b":authority", head.authority),
            (b":path", head.target),
        ]
    return [*(item for item in pseudo if item[1] not in (b"", b"0")), *head.headers]


SEEDS = st.integers(0, 10**9)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 60))
def test_against_h2(seed: int, size: int) -> None:
    """Of a whole conversation, everything is understood as h2 understands it, however it is cut."""
    talk = conversation(seed)
    events = observe(talk.steps)
    assert accounted(events) == passed(talk.steps)
    assert not unparsed(events)
    assert merged(observe(cut(talk.steps, size))) == merged(events)
    streams = by_stream(events, is_whole=True)
    assert len(streams) == len({stream for stream, _ in talk.truth})
    for (stream, side), truth in talk.truth.items():
        message = messages(events, side)[streams[stream]]
        exchange = [event for event in events if event.exchange == streams[stream] and event.side is side]
        if not truth.headers:
            assert not message.head
        else:
            assert message.head
            assert fields_of(message.head) == truth.headers
            assert not message.head.notes
        interim = [fields_of(event) for event in exchange if isinstance(event, ResponseHead) and event.interim]
        assert interim == truth.interim
        assert message.body == truth.body
        assert [list(event.headers) for event in exchange if isinstance(event, Trailers)] == [truth.trailers] * bool(
            truth.trailers
        )
        assert message.end
        pushed = side is REQUEST and stream % 2 == 0
        quiet = message.end.why == "stream reset: NO_ERROR, by the server"
        assert message.end.complete == (truth.ended or pushed or (quiet and message.end.complete))
        if not truth.ended and not pushed:
            resets = message.end.why.startswith("stream reset: ")
            assert resets == (stream in talk.reset)


def by_stream(events: Iterable[AnyEvent], *, is_whole: bool) -> dict[int, int]:
    """Return the exchange of each stream, by the field that says it."""
    streams: dict[int, int] = {}
    for event in events:
        if isinstance(event, RequestHead | ResponseHead):
            marks = [value for name, value in event.headers if name == b"authorization"]
            if not marks and event.notes and not is_whole:
                continue  # nothing of it was decodable
            assert len(marks) == 1
            assert streams.setdefault(int(marks[0]), event.exchange) == event.exchange
    return streams


def is_subsequence(part: Iterable[Header], whole: Iterable[Header]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


def holed(steps: list[Step], chance: random.Random, holes: int, *, joined: bool) -> list[Step]:
    """Return the steps with some bytes missing; ``joined``: without their beginning."""
    if joined:
        steps = steps[chance.randrange(len(steps)) :]
        side, what = steps[0]
        assert isinstance(what, bytes)
        steps = [(side, what[chance.choice([0, chance.randrange(len(what))]) :]), *steps[1:]]
    for _ in range(holes):
        index = chance.randrange(len(steps))
        side, what = steps[index]
        if isinstance(what, int):
            continue
        begin = chance.randrange(len(what))
        end = chance.choice([begin + 1, len(what), chance.randint(begin + 1, len(what))])
        parts: list[Step] = [(side, what[:begin]), (side, end - begin), (side, what[end:])]
        steps = [*steps[:index], *(part for part in parts if part[1]), *steps[index + 1 :]]
    return steps


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, holes=st.integers(0, 4), joined=st.booleans(), size=st.sampled_from([0, 0, 1, 7, 50]))
def test_with_holes(seed: int, holes: int, joined: bool, size: int) -> None:
    """Whatever is missing, nothing is told that was not said, and what is called complete is."""
    talk = conversation(seed)
    steps = holed(talk.steps, random.Random(seed), holes, joined=joined)
    if size:
        steps = cut(steps, size)
    events = observe(steps)
    assert accounted(events) == passed(steps)
    numbers = {exchange: stream for stream, exchange in by_stream(events, is_whole=False).items()}
    for side in Side:
        for exchange, message in messages(events, side).items():
            if exchange not in numbers:
                continue
            truth = talk.truth.get((numbers[exchange], side), Truth())
            if message.head:
                missing = [note for note in message.head.notes if "not decodable" in note]
                assert missing == list(message.head.notes)
                shown = fields_of(message.head)
                candidates = [truth.headers]
                if missing:  # without a status, which one is it?
                    candidates += [*truth.interim, truth.trailers]
                assert any(is_subsequence(shown, headers) for headers in candidates)
                assert missing or shown == truth.headers
            assert message.end
            if message.end.complete:
                assert message.body == truth.body
            trailers = [
                event.headers
                for event in events
                if isinstance(event, Trailers) and (event.exchange, event.side) == (exchange, side)
            ]
            for fields in trailers:
                assert is_subsequence(fields, truth.trailers)
            if message.end.complete and "not decodable" not in message.end.why:
                assert [list(fields) for fields in trailers] == [truth.trailers] * bool(truth.trailers)


# --- Anything at all ---

WORDS = st.sampled_from(
    [
        *(PREFACE, frame(SETTINGS, 0, 0), GET, post(), FIVE, OK, answer(3), content(), content(flags=0), content(3)),
        *(content(1, b"\2ab\0\0", PADDED), frame(HEADERS, 0, 1, b"\x82"), frame(CONTINUATION, 4, 1, b"\x84\xbe")),
        *(frame(HEADERS, 5, 3, b"\xbe\x40\x01a\x01b"), frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), answer(2)),
        *(frame(RST_STREAM, 0, 1, bytes(4)), frame(GOAWAY, 0, 0, bytes(8)), frame(0x2A, 0, 0, bytes(40))),
        *(CONNECTS["plain"][0], CONNECTS["extended"][0], frame(HEADERS, 12, 1, b"\5"), b"\0\0", b"\0\0\1\0\1\0\0\0\1"),
    ]
)
PIECES = st.lists(st.one_of(WORDS, WORDS, st.binary(max_size=6)), min_size=1, max_size=4).map(b"".join).filter(bool)
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(Side), st.one_of(PIECES, PIECES, PIECES, st.integers(1, 40))), max_size=8
)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, size=st.integers(1, 20), start=st.booleans())
def test_anything(steps: list[Step], size: int, start: bool) -> None:
    """Any bytes and holes, cut in any way, are told without an exception and accounted for to the byte."""
    if start:
        steps = START + steps
    for pieces in (steps, cut(steps, size)):
        events = observe(pieces, head_limit=60)
        assert accounted(events) == passed(steps)
        for side in Side:
            messages(events, side)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, size=st.integers(1, 20))
def test_cuts_do_not_matter_in_step(steps: list[Step], size: int) -> None:
    """Until a side loses its step, what is told does not depend on how the bytes were cut."""
    steps = START + steps
    whole, pieces = merged(observe(steps)), merged(observe(cut(steps, size)))
    assert _until_lost(whole) == _until_lost(pieces)


def _until_lost(events: list[AnyEvent]) -> list[AnyEvent]:
    for index, event in enumerate(events):
        if isinstance(event, Unparsed) and event.why.startswith("missing: "):
            return events[:index]
    return events
