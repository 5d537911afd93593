"""HTTP/1.x as it really occurs, in every way it can be cut."""

from __future__ import annotations

import pytest
from helpers import GET, REQUEST, RESPONSE, Seen, Step, accounted, cut, drip, merged, observe, passed, seen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlscap.http.events import (
    BLANK_LINE,
    AnyEvent,
    RequestHead,
    ResponseHead,
    Side,
    Trailers,
    TunnelData,
    TunnelGap,
    Unparsed,
    Upgraded,
)
from tlscap.http.http1 import Http1Connection
from tlscap.model import GapReason

HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
FIVE = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def told(message: Seen) -> tuple[object, bytes, int, bool | None, str]:
    """Return a message in few words: status or method, body, missing bytes, whether and how it ended."""
    head = message.head
    name: object = None
    if isinstance(head, RequestHead):
        name = head.method
    elif head:
        name = head.status
    end = message.end
    return name, message.body, message.missing, end.complete if end else None, end.why if end else ""


# What passes, and what is told of the responses.
RESPONSES: dict[str, tuple[list[Step], list[tuple[object, bytes, int, bool | None, str]]]] = {
    "length": ([(REQUEST, GET), (RESPONSE, FIVE)], [(200, b"hello", 0, True, "length")]),
    "no bytes": ([(REQUEST, GET), (RESPONSE, OK + b"Content-Length: 0\r\n\r\n")], [(200, b"", 0, True, "length")]),
    "keep-alive": (
        [(REQUEST, GET), (RESPONSE, FIVE), (REQUEST, GET), (RESPONSE, FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "pipelined": ([(REQUEST, GET * 3), (RESPONSE, FIVE * 3)], [(200, b"hello", 0, True, "length")] * 3),
    "HEAD": (
        [(REQUEST, HEAD + GET), (RESPONSE, OK + b"Content-Length: 5\r\n\r\n" + FIVE)],
        [(200, b"", 0, True, "no body"), (200, b"hello", 0, True, "length")],
    ),
    "HEAD, chunked": (
        [(REQUEST, HEAD + GET), (RESPONSE, CHUNKED + FIVE)],
        [(200, b"", 0, True, "no body"), (200, b"hello", 0, True, "length")],
    ),
    "100 Continue": (
        [
            (REQUEST, GET),
            (RESPONSE, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + FIVE),
        ],
        [(100, b"", 0, None, ""), (103, b"", 0, None, ""), (200, b"hello", 0, True, "length")],
    ),
    "204, 304": (
        [
            (REQUEST, GET * 3),
            (RESPONSE, b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n" + FIVE),
        ],
        [(204, b"", 0, True, "no body"), (304, b"", 0, True, "no body"), (200, b"hello", 0, True, "length")],
    ),
    "chunked": (
        [(REQUEST, GET * 2), (RESPONSE, CHUNKED + b"3\r\nhel\r\n02\r\nlo\r\n0\r\n\r\n" + FIVE)],
        [(200, b"hello", 0, True, "last chunk"), (200, b"hello", 0, True, "length")],
    ),
    "chunk extensions and trailers": (
        [(REQUEST, GET * 2), (RESPONSE, CHUNKED + b'5 ;a="1;2"\r\nhello\r\n00;x\r\nA: 1\r\nB: 2\r\n\r\n' + FIVE)],
        [(200, b"hello", 0, True, "last chunk"), (200, b"hello", 0, True, "length")],
    ),
    "chunks with bare LF": (
        [(REQUEST, GET * 2), (RESPONSE, CHUNKED + b"5\nhello\n0\n\n" + FIVE)],
        [(200, b"hello", 0, True, "last chunk"), (200, b"hello", 0, True, "length")],
    ),
    "chunked beats length": (
        [(REQUEST, GET), (RESPONSE, OK + b"Content-Length: 99\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")],
        [(200, b"", 0, True, "last chunk")],
    ),
    "bad chunk size": (
        [(REQUEST, GET), (RESPONSE, CHUNKED + b"3\r\nhel\r\nzz\r\n")],
        [(200, b"hel", 0, False, "no chunk size")],
    ),
    "chunk too long": (
        [(REQUEST, GET), (RESPONSE, CHUNKED + b"3\r\nhello\r\n")],
        [(200, b"hel", 0, False, "chunk longer than announced")],
    ),
    "until close": (
        [(REQUEST, GET), (RESPONSE, b"HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")],
        [(200, b"HTTP/1.1 200 OK\r\n\r\n", 0, True, "connection closed")],
    ),
    "transfer coding without chunked": (
        [(REQUEST, GET), (RESPONSE, OK + b"Transfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nhello")],
        [(200, b"hello", 0, True, "connection closed")],
    ),
    "identity is no transfer coding": (
        [(REQUEST, GET * 2), (RESPONSE, OK + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello" + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "cut short": (
        [(REQUEST, GET), (RESPONSE, FIVE[:-2])],
        [(200, b"hel", 0, False, "connection closed")],
    ),
    "HTTP/0.9": (
        [(REQUEST, b"GET /\r\n"), (RESPONSE, b"\r\n<p>hi")],
        [(0, b"\r\n<p>hi", 0, True, "connection closed")],
    ),
    "0.9 reply to 1.1": ([(REQUEST, GET), (RESPONSE, b"Hi\n")], [(0, b"Hi\n", 0, True, "connection closed")]),
    "shoutcast": ([(REQUEST, GET), (RESPONSE, b"ICY 200 OK\r\n\r\nx")], [(200, b"x", 0, True, "connection closed")]),
    "bare LF": (
        [(REQUEST, GET.replace(b"\r", b"") * 2), (RESPONSE, FIVE.replace(b"\r", b"") * 2)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "blank lines between": (
        [(REQUEST, b"\r\n" + GET + b"\r\n\n" + GET), (RESPONSE, FIVE + b"\r\n" + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "repeated length": (
        [(REQUEST, GET * 2), (RESPONSE, OK + b"Content-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello" + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "conflicting length: the first": (
        [(REQUEST, GET * 2), (RESPONSE, OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nhello" + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "length no number": (
        [(REQUEST, GET), (RESPONSE, OK + b"Content-Length: +5\r\n\r\nhello!")],
        [(200, b"hello!", 0, True, "connection closed")],
    ),
    "length absurd": (
        [(REQUEST, GET), (RESPONSE, OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nhello!")],
        [(200, b"hello!", 0, True, "connection closed")],
    ),
    "no reason, lower case, wide": (
        [(REQUEST, GET * 2), (RESPONSE, b"http/1.1  200\r\nCONTENT-length :\t5 \r\n\r\nhello" + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
    "no answer": ([(REQUEST, GET)], [(None, b"", 0, False, "no response")]),
    "answer without a question": ([(RESPONSE, FIVE)], [(200, b"hello", 0, True, "length")]),
    "CONNECT refused": (
        [(REQUEST, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET), (RESPONSE, FIVE.replace(b"200", b"407") + FIVE)],
        [(407, b"hello", 0, True, "length"), (200, b"hello", 0, True, "length")],
    ),
    "upgrade refused": (
        [(REQUEST, UPGRADE + GET), (RESPONSE, FIVE + FIVE)],
        [(200, b"hello", 0, True, "length")] * 2,
    ),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_response(case: str) -> None:
    """Each kind of response is told the same, however it is cut, and no byte is unaccounted for."""
    steps, expected = RESPONSES[case]
    events = drip(steps)
    assert [told(message) for message in seen(events, RESPONSE)] == expected
    assert accounted(events) == passed(steps)


POST = b"POST /p HTTP/1.1\r\nHost: a\r\n"
REQUESTS: dict[str, tuple[bytes, list[tuple[object, bytes, int, bool | None, str]]]] = {
    "length": (
        POST + b"Content-Length: 3\r\n\r\nabc" + GET,
        [(b"POST", b"abc", 0, True, "length"), (b"GET", b"", 0, True, "no body")],
    ),
    "chunked": (
        POST + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET,
        [(b"POST", b"abc", 0, True, "last chunk"), (b"GET", b"", 0, True, "no body")],
    ),
    "no length": (POST + b"\r\n" + GET, [(b"POST", b"", 0, True, "no body"), (b"GET", b"", 0, True, "no body")]),
    "odd methods": (
        b"m-search * HTTP/1.1\r\n\r\nX!$ /a b HTTP/1.1\r\n\r\n",
        [(b"m-search", b"", 0, True, "no body"), (b"X!$", b"", 0, True, "no body")],
    ),
    "cut short": (POST + b"Content-Length: 3\r\n\r\nab", [(b"POST", b"ab", 0, False, "connection closed")]),
    "simple": (b"GET /HTTP/0.9\n", [(b"GET", b"", 0, True, "no body")]),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_request(case: str) -> None:
    """Each kind of request is told the same, however it is cut, and no byte is unaccounted for."""
    data, expected = REQUESTS[case]
    events = drip([(REQUEST, data)])
    assert [told(message) for message in seen(events, REQUEST)] == expected
    assert accounted(events) == passed([(REQUEST, data)])


NOTES = {
    "no Host field": b"GET / HTTP/1.1\r\n\r\n",
    "more than one Host field": b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    "bare LF in the head": b"GET / HTTP/1.0\r\nA: b\n\r\n",
    "folded header line": b"GET / HTTP/1.0\r\nA: b\r\n c\r\n\td\r\n\r\n",
    "header line without a colon": b"GET / HTTP/1.0\r\nA b\r\n\r\n",
    "repeated Content-Length": b"GET / HTTP/1.0\r\nContent-Length: 0,0\r\n\r\n",
    "conflicting Content-Length: 0, 1": b"GET / HTTP/1.0\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
    "Content-Length is no number: x": b"GET / HTTP/1.0\r\nContent-Length: x\r\n\r\n",
    "Content-Length beside Transfer-Encoding": b"GET / HTTP/1.0\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Transfer-Encoding does not end in chunked": b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
}


@pytest.mark.parametrize("note", NOTES)
def test_oddity_is_noted(note: str) -> None:
    """What is odd about a head is said in words, and the head is read all the same."""
    head = drip([(REQUEST, NOTES[note])])[0]
    assert isinstance(head, RequestHead)
    assert head.notes == (note,)


def test_headers_are_kept_as_sent() -> None:
    """Order, case and odd bytes of header fields survive; a folded value becomes one line."""
    head = drip(
        [
            (
                REQUEST,
                b"GET / HTTP/1.1\r\nhOST: a\r\nX-\xff: \x00\xe9:\x80\r\nEmpty:\r\nF: 1\r\n  2 \r\nX-\xff: 2\r\n\r\n",
            )
        ]
    )[0]
    assert isinstance(head, RequestHead)
    assert head.headers == (
        (b"hOST", b"a"),
        (b"X-\xff", b"\x00\xe9:\x80"),
        (b"Empty", b""),
        (b"F", b"1 2"),
        (b"X-\xff", b"2"),
    )


def test_trailers() -> None:
    """Trailers come between the body and the end."""
    events = drip([(RESPONSE, CHUNKED + b"0\r\nA: 1\r\nb: 2\r\n\r\n")])
    trailers = [event.headers for event in events if isinstance(event, Trailers)]
    assert trailers == [((b"A", b"1"), (b"b", b"2"))]


def test_times() -> None:
    """A head knows when its first byte passed; an end, when its last one did, not when the connection closed."""
    connection = Http1Connection()
    events = connection.feed(RESPONSE, b"HTTP/1.0 2", 1)
    events += connection.feed(RESPONSE, b"00 OK\r\n\r\n", 2)
    events += connection.feed(RESPONSE, b"abc", 3)
    events += connection.finish(RESPONSE, 9)
    head = events[0]
    assert isinstance(head, ResponseHead)
    assert (head.started_ns, head.time_ns, events[-1].time_ns) == (1, 2, 3)


def test_unclosed_body_is_incomplete() -> None:
    """A body that lasts until the close is not complete when something else ended the recording."""
    connection = Http1Connection()
    connection.feed(RESPONSE, b"HTTP/1.0 200 OK\r\n\r\nabc", 0)
    events = connection.finish(RESPONSE, 0, why="recording ended")
    assert [told(message) for message in seen(events, RESPONSE)] == [(None, b"", 0, False, "recording ended")]


# --- Upgrades ---


def tunnelled(events: list[AnyEvent], side: Side) -> bytes:
    """Return what passed after the upgrade."""
    return b"".join(event.data for event in events if isinstance(event, TunnelData) and event.side is side)


@pytest.mark.parametrize(
    ("request_bytes", "response_bytes", "protocol"),
    [
        (UPGRADE, SWITCHING, "websocket"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", OK + b"Content-Length: 5\r\n\r\n", "tunnel"),
    ],
)
@pytest.mark.parametrize("early", [b"", b"\x81early", GET])
def test_upgrade(request_bytes: bytes, response_bytes: bytes, protocol: str, early: bytes) -> None:
    """After 101, or 2xx to CONNECT, both sides are a tunnel, also for bytes that were sent before the answer."""
    steps: list[Step] = [
        (REQUEST, request_bytes + early),
        (RESPONSE, response_bytes + b"\x81hello"),
        (REQUEST, b"more"),
        (RESPONSE, 7),
        (RESPONSE, b"GET"),
    ]
    events = drip(steps)
    assert [event.protocol for event in events if isinstance(event, Upgraded)] == [protocol] * 2
    assert tunnelled(events, REQUEST) == early + b"more"
    assert tunnelled(events, RESPONSE) == b"\x81helloGET"
    assert [event.length for event in events if isinstance(event, TunnelGap)] == [7]
    assert accounted(events) == passed(steps)


def test_upgrade_before_request_is_over() -> None:
    """A request that is still being sent when its upgrade is granted ends first."""
    request = UPGRADE.replace(b"Host", b"Content-Length: 4\r\nHost")
    events = drip([(REQUEST, request + b"ab"), (RESPONSE, SWITCHING + b"x"), (REQUEST, b"cdef")])
    assert told(seen(events, REQUEST)[0]) == (b"GET", b"abcd", 0, True, "length")
    assert tunnelled(events, REQUEST) == b"ef"


def test_upgrade_without_request() -> None:
    """A 101 whose request was not seen makes both sides a tunnel."""
    events = drip([(RESPONSE, SWITCHING), (REQUEST, b"abc")])
    assert tunnelled(events, REQUEST) == b"abc"


def test_waiting_for_an_upgrade_is_bounded() -> None:
    """A client that goes on for long without an answer is taken to speak HTTP."""
    events = observe([(REQUEST, UPGRADE + GET * 30)], finish=False, head_limit=500)
    assert len(seen(events, REQUEST)) == 31


# --- Pairing ---


def exchanges(events: list[AnyEvent]) -> list[tuple[int, int]]:
    """Return exchange and status of each final response."""
    return [(event.exchange, event.status) for event in events if isinstance(event, ResponseHead) and not event.interim]


def test_early_response() -> None:
    """A response may come before its request is over; both are whole."""
    events = drip(
        [(REQUEST, POST + b"Content-Length: 4\r\n\r\nab"), (RESPONSE, FIVE), (REQUEST, b"cd" + GET), (RESPONSE, FIVE)]
    )
    assert [told(message)[1:4] for message in seen(events, REQUEST)] == [(b"abcd", 0, True), (b"", 0, True)]
    assert exchanges(events) == [(1, 200), (2, 200)]


def test_interim_without_request() -> None:
    """An interim response and the final one are one exchange, request or not."""
    events = drip([(RESPONSE, b"HTTP/1.1 100 Continue\r\n\r\n" + FIVE)])
    assert {event.exchange for event in events} == {1}


def test_answers_that_nobody_sees() -> None:
    """Requests do not pile up when the other side is not recorded."""
    connection = Http1Connection()
    events: list[AnyEvent] = []
    for _ in range(1200):
        events += connection.feed(REQUEST, GET, 0)
    assert len(seen(events, RESPONSE)) == 200
    assert len(connection._asked) == 1000


# --- Holes, and bytes out of step ---


def test_gap_in_counted_body() -> None:
    """A hole in a body of known length costs its bytes and nothing else."""
    events = drip([(REQUEST, GET * 2), (RESPONSE, FIVE[:-4]), (RESPONSE, 3), (RESPONSE, b"o" + FIVE)])
    assert [told(message) for message in seen(events, RESPONSE)] == [
        (200, b"ho", 3, False, "bytes missing"),
        (200, b"hello", 0, True, "length"),
    ]


def test_gap_to_the_end_of_a_body() -> None:
    """A hole that ends exactly with the body leaves the reader in step."""
    events = drip([(REQUEST, GET * 2), (RESPONSE, FIVE[:-4]), (RESPONSE, 4), (RESPONSE, FIVE)])
    assert exchanges(events) == [(1, 200), (2, 200)]


def test_gap_beyond_a_body() -> None:
    """A hole that takes the next head too: the reader waits for a start line and gives it to the newest request."""
    steps: list[Step] = [
        (REQUEST, GET),
        (RESPONSE, FIVE[:-4]),
        (REQUEST, GET * 2),
        (RESPONSE, 30),
        (RESPONSE, b"tail"),
        (RESPONSE, FIVE),
    ]
    events = observe(steps)
    assert [told(message) for message in seen(events, RESPONSE)] == [
        (200, b"h", 4, False, "bytes missing"),
        (None, b"", 0, False, "response not seen"),
        (200, b"hello", 0, True, "length"),
    ]
    assert exchanges(events) == [(1, 200), (3, 200)]
    assert accounted(events) == passed(steps)


@pytest.mark.parametrize("missing", range(1, 13))
def test_gap_in_chunks(missing: int) -> None:
    """A hole that ends with a chunk, or with its line end, is bridged; one that takes the next chunk's size is not."""
    data = CHUNKED + b"a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n"
    begin = len(CHUNKED) + 3
    steps: list[Step] = [(RESPONSE, data[:begin]), (RESPONSE, missing), (RESPONSE, data[begin + missing :])]
    events = drip(steps)
    message = seen(events, RESPONSE)[0]
    assert message.body == b"0123456789x"[min(missing, 10) :]
    assert message.missing == min(missing, 10)
    assert message.end
    assert (message.end.complete, message.end.why) == (False, "bytes missing")
    assert accounted(events) == passed(steps)


def test_gap_over_a_chunk_size() -> None:
    """Between chunks nothing is known after a hole: the body ends there, the rest is unparsed, the next message is read."""
    steps: list[Step] = [
        (REQUEST, GET),
        (RESPONSE, CHUNKED + b"a\r\n01234"),
        (RESPONSE, 8),
        (RESPONSE, b"\r\nfoo\r\n0\r\n\r\n"),
        (REQUEST, GET),
        (RESPONSE, FIVE),
    ]
    events = observe(steps)
    assert [told(message) for message in seen(events, RESPONSE)] == [
        (200, b"01234", 5, False, "bytes missing"),
        (200, b"hello", 0, True, "length"),
    ]
    assert accounted(events) == passed(steps)


def test_gap_in_endless_body() -> None:
    """A body that lasts until the close goes on after a hole, but is not complete."""
    events = drip([(REQUEST, GET), (RESPONSE, OK + b"\r\nab"), (RESPONSE, 3), (RESPONSE, b"fg")])
    assert [told(message) for message in seen(events, RESPONSE)] == [(200, b"abfg", 3, False, "connection closed")]


@pytest.mark.parametrize("point", range(1, len(FIVE) - 5))
def test_gap_in_head(point: int) -> None:
    """A head with a hole is unparsed, not a byte of it forgotten; the next start line is found."""
    steps: list[Step] = [
        (RESPONSE, FIVE[:point]),
        (RESPONSE, 1),
        (RESPONSE, FIVE[point + 1 :]),
        (REQUEST, GET),
        (RESPONSE, FIVE),
    ]
    events = observe(steps)
    assert exchanges(events) == [(1, 200)]
    assert accounted(events) == passed(steps)
    unparsed = b"".join(event.data for event in events if isinstance(event, Unparsed))
    assert unparsed == FIVE[:point] + FIVE[point + 1 :]


@pytest.mark.parametrize("cut_at", range(1, 20))
def test_joined_in_the_middle(cut_at: int) -> None:
    """The rest of a body is unparsed; the first item that begins with a start line is read, also one that comes in pieces."""
    steps: list[Step] = [
        (RESPONSE, b"rest of a body\r\nHTTP/1.1 200 not at the beginning\r\n"),
        (REQUEST, b"and of another"),
        (REQUEST, GET[:cut_at]),
        (REQUEST, GET[cut_at:]),
        (RESPONSE, FIVE[:cut_at]),
        (RESPONSE, FIVE[cut_at:]),
    ]
    events = observe(steps)
    assert exchanges(events) == [(1, 200)]
    assert accounted(events) == passed(steps)


def test_item_that_only_began_like_a_message() -> None:
    """Out of step, bytes that began like a start line but were none do not hide the start that follows them."""
    steps: list[Step] = [
        (RESPONSE, b"\xff"),
        (RESPONSE, b"HTTP/1."),
        (RESPONSE, FIVE),
        (REQUEST, b"\xff"),
        (REQUEST, b"GE"),
        (REQUEST, GET),
    ]
    events = observe(steps)
    assert exchanges(events) == [(1, 200)]
    assert len(seen(events, REQUEST)) == 1
    assert accounted(events) == passed(steps)


def test_body_longer_than_announced() -> None:
    """What follows a body and is no message is unparsed, and does not shift later answers."""
    steps: list[Step] = [(REQUEST, HEAD), (RESPONSE, FIVE), (REQUEST, GET), (RESPONSE, FIVE)]
    events = observe(steps)
    assert [event.data for event in events if isinstance(event, Unparsed)] == [b"hello"]
    assert exchanges(events) == [(1, 200), (2, 200)]


def test_blank_lines_are_harmless() -> None:
    """Line ends between messages are told apart from bytes that could not be read."""
    events = drip([(REQUEST, b"\r\n\n" + GET + b"\r\n")])
    assert [event.why for event in events if isinstance(event, Unparsed)] == [BLANK_LINE, BLANK_LINE]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",
        b"EHLO x\r\n",
        b"*3\r\n$3\r\n",
        b"\r\rx",
        b"GET\r\n",
        b"GET / HTTP/x\r\n",
    ],
)
def test_not_http(data: bytes) -> None:
    """Bytes that are no HTTP come out as they came in."""
    events = drip([(REQUEST, data)])
    assert b"".join(event.data for event in events if isinstance(event, Unparsed)) == data
    assert not seen(events, REQUEST)


def test_lost_at_once_found_at_the_next_item() -> None:
    """One odd byte in front of a head costs that item, not the connection."""
    events = observe([(REQUEST, b" " + GET), (REQUEST, GET)])
    assert len(seen(events, REQUEST)) == 1


def test_head_limit() -> None:
    """A head beyond the limit is unparsed, whether it ends at some time or not, and so are endless chunk lines."""
    head = b"GET / HTTP/1.1\r\nA: " + b"x" * 300 + b"\r\n\r\n"
    for data in (head, head[:-2], b"GET /" + b"x" * 300, CHUNKED + b"5;" + b"x" * 20000):
        steps: list[Step] = [(REQUEST if data.startswith(b"GET") else RESPONSE, data)]
        for pieces in (steps, cut(steps, 7)):
            events = observe(pieces, finish=False, head_limit=200)
            assert accounted(events) == passed(steps) or data.startswith(CHUNKED)
            assert any(isinstance(event, Unparsed) for event in events)


def test_whole_items_are_not_copied() -> None:
    """An item that is all body goes through as the same object."""
    connection = Http1Connection()
    connection.feed(RESPONSE, OK + b"Content-Length: 99999\r\n\r\n", 0)
    item = bytes(4096)
    (event,) = connection.feed(RESPONSE, item, 0)
    assert getattr(event, "data", None) is item


def test_byte_by_byte_is_linear() -> None:
    """A long head in single bytes takes no quadratic time (it would take minutes)."""
    head = b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nA: " + b"y" * 200_000 + b"\r\n\r\n"
    assert len(seen(observe(cut([(REQUEST, head)], 1)), REQUEST)) == 1


@pytest.mark.parametrize(
    "line", [b"GET" + b" " * 500_000, b"GET x" + b" " * 500_000 + b"y", b"HTTP/1.1 200" + b" " * 500_000]
)
def test_hostile_lines_are_linear(line: bytes) -> None:
    """No pattern backtracks over long blanks."""
    for side in Side:
        observe([(side, line + b"\r\n\r\n")])


# --- Anything at all ---

WORDS = st.sampled_from(
    [
        *(
            GET,
            HEAD,
            POST,
            FIVE,
            CHUNKED,
            UPGRADE,
            SWITCHING,
            OK,
            b"\r\n",
            b"\n",
            b"5\r\nhello\r\n",
            b"0\r\n",
            b"HTTP/1.1 1",
        ),
        *(
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r",
            b"GET /\r\n",
            b"abc",
            b"CONNECT a:1 HTTP/1.1\r\n",
        ),
    ]
)
DATA = st.lists(st.one_of(WORDS, st.binary(max_size=6)), min_size=1, max_size=4).map(b"".join).filter(bool)
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(Side), st.one_of(DATA, DATA, DATA, st.integers(1, 40))), max_size=8
)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, size=st.integers(1, 20))
def test_anything(steps: list[Step], size: int) -> None:
    """Any bytes and holes, cut in any way, are told without an exception and accounted for to the byte."""
    for pieces in (steps, cut(steps, size)):
        assert accounted(observe(pieces)) == passed(steps)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, size=st.integers(1, 20))
@example(steps=[(REQUEST, GET), (RESPONSE, CHUNKED + b"5\r\nhel"), (RESPONSE, 5), (RESPONSE, b"3")], size=1)
def test_cuts_do_not_matter_in_step(steps: list[Step], size: int) -> None:
    """Until a side loses its step, what is told does not depend on how the bytes were cut."""
    whole, pieces = merged(observe(steps)), merged(observe(cut(steps, size)))
    assert _until_lost(whole) == _until_lost(pieces)


def _until_lost(events: list[AnyEvent]) -> list[AnyEvent]:
    for index, event in enumerate(events):
        if isinstance(event, Unparsed) and event.why != BLANK_LINE:
            return events[:index]
    return events


def test_gap_reason_is_kept() -> None:
    """The reason of a hole is told with it."""
    connection = Http1Connection()
    (event,) = connection.gap(REQUEST, 3, GapReason.SNAPLEN, 0)
    assert isinstance(event, Unparsed)
    assert (event.length, event.why) == (3, "missing: snaplen")
