"""From items to exchanges: pairing, ids, protocols, URLs, times, and what is said about loss."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Any

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.export.jsonl import exchange_to_line
from tlscap.export.table import Table
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import DROPPED, Exchange, ExchangeBuilder
from tlscap.http.messages import AppMessage
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    Item,
    Role,
)

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)


def build(items: Iterable[Item], *, finish: bool = True) -> list[Exchange]:
    """Return the exchanges of a capture that consists of these items."""
    builder = ExchangeBuilder()
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    return exchanges + (builder.finish(START_NS) if finish else [])


def test_one_exchange() -> None:
    """A request and its response become one exchange as soon as the last byte passed."""
    (exchange,) = build(simple_exchange(), finish=False)
    assert exchange.request
    assert exchange.response
    assert (exchange.id, exchange.protocol, exchange.url) == (1, "http/1.1", "https://a/")
    assert (exchange.request.head.method, exchange.response.head.status) == (b"GET", 200)
    assert (exchange.request.body_size, exchange.response.body_size) == (0, 5)
    assert (exchange.complete, exchange.problems) == (True, [])


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
def test_an_answer_read_before_its_question_was_written(alpn: str) -> None:
    """One thread writes, another reads: the write began earlier, but the read was told of first."""
    flow = make_flow(alpn=alpn)
    items: list[Item] = [
        Data(flow, IN, 0, OK[:20], 884),
        Data(flow, IN, 20, OK[20:], 884),
        Data(flow, OUT, 0, GET, 266),
        Data(flow, OUT, len(GET), GET, 1000),
        Data(flow, IN, len(OK), OK, 1100),
    ]
    first, second = build(items, finish=False)
    assert (first.complete, first.problems, second.complete) == (True, [], True)
    assert first.duration_ns == 884 - 266
    late: list[Item] = [Data(flow, IN, 0, OK, 884), Data(flow, OUT, 0, GET, 900)]
    assert [exchange.complete for exchange in build(late)] == [False, False]
    assert [bool(exchange.response) for exchange in build(late)] == [True, False]


def test_an_http2_answer_read_before_its_question_was_written() -> None:
    """Go writes requests in one goroutine and reads answers in another."""
    ours, theirs = hpack.Encoder(), hpack.Encoder()

    def head(encoder: hpack.Encoder, stream: int, *fields: tuple[str, str], flags: int = 5) -> bytes:
        block = encoder.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields])
        return len(block).to_bytes(3, "big") + bytes([1, flags]) + stream.to_bytes(4, "big") + block

    def ask(stream: int) -> bytes:
        return head(
            ours, stream, (":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", f"/{stream}")
        )

    def answer(stream: int) -> bytes:
        return head(theirs, stream, (":status", "404"), ("x", "y"))

    flow = make_flow(alpn="h2")
    offsets = [0, 0]

    def passes(direction: Direction, data: bytes, time_ns: int) -> Data:
        offsets[direction] += len(data)
        return Data(flow, direction, offsets[direction] - len(data), data, time_ns)

    items: list[Item] = [
        passes(OUT, PREFACE + SETTINGS + ask(1), 100),
        passes(IN, SETTINGS + answer(1), 200),
        passes(IN, b"\0\0\4\x08\0\0\0\0\0\0\0\1\0" + answer(3), 400),  # WINDOW_UPDATE before it
        passes(IN, answer(5), 420),
        passes(OUT, ask(3) + ask(5), 300),
        passes(OUT, ask(7), 500),
        passes(IN, answer(7), 600),
    ]
    exchanges = build(items, finish=False)
    assert [exchange.url for exchange in exchanges] == ["https://a/1", "https://a/3", "https://a/5", "https://a/7"]
    assert all(exchange.complete and not exchange.problems for exchange in exchanges)
    # A question that never comes is not waited for longer than until the next one, which came later.
    late = [*items[:3], *items[5:]]
    assert [exchange.url for exchange in build(late, finish=False)] == ["https://a/1", "", "https://a/7"]
    # After a hole in what the client sends, nothing is waited for.
    hole: list[Item] = [*items[:2], Gap(flow, OUT, 400, 50, GapReason.RING_FULL, 250), items[2]]
    assert [exchange.url for exchange in build(hole, finish=False)] == ["https://a/1", ""]


def test_times() -> None:
    """Times are those of the first and the last byte of each message."""
    wire = Wire()
    items = [
        wire.out(b"POST / HTTP/1.1\r\nHo"),
        wire.out(b"st: a\r\nContent-Length: 2\r\n\r\n"),
        wire.out(b"ab"),
        wire.into(b"HTTP/1.1 100 Continue\r\n\r\n"),
        wire.into(b"HTTP/1.1 200"),
        wire.into(b" OK\r\nContent-Length: 1\r\n\r\n"),
        wire.into(b"x"),
    ]
    (exchange,) = build(items)
    assert exchange.request
    assert exchange.response
    times = [exchange.request.first_ns, exchange.request.last_ns, exchange.response.first_ns, exchange.response.last_ns]
    assert [(time_ns - START_NS) // 1_000_000 for time_ns in times] == [1, 3, 5, 7]
    assert exchange.duration_ns == 6_000_000
    assert exchange.interim == [100]


def test_ids_follow_requests_and_results_follow_completion() -> None:
    """Ids count requests in the order of their heads over all flows; exchanges come out as they complete."""
    first, second = Wire(make_flow(1)), Wire(make_flow(2))
    items = [first.out(GET), second.out(GET), second.into(OK), second.out(GET), first.into(OK), second.into(OK)]
    assert [(exchange.id, exchange.flow.id) for exchange in build(items)] == [(2, 2), (1, 1), (3, 2)]
    assert [exchange.id for exchange in build(items)] == [2, 1, 3]


def test_server_side() -> None:
    """A traced server reads requests and writes responses."""
    flow = make_flow(role=Role.SERVER, sni="", local=Endpoint("::1", 8443))
    wire = Wire(flow)
    (exchange,) = build([wire.into(b"GET /x HTTP/1.0\r\n\r\n"), wire.out(OK)])
    assert (exchange.url, exchange.protocol) == ("https://[::1]:8443/x", "http/1.0")


@pytest.mark.parametrize("asks", [IN, OUT])
@pytest.mark.parametrize("answer_first", [False, True])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_unknown_role(asks: Direction, size: int, *, answer_first: bool) -> None:
    """Without a role, the first start line tells who asks, also when it comes in pieces."""
    wire = Wire(make_flow(role=Role.UNKNOWN))
    ask, answer = (wire.out, wire.into) if asks is OUT else (wire.into, wire.out)
    items: list[Item] = []
    if answer_first:
        items += [answer(OK[start : start + size]) for start in range(0, len(OK), size)]
    items += [ask(GET[start : start + size]) for start in range(0, len(GET), size)]
    items += [answer(OK[start : start + size]) for start in range(0, len(OK), size)]
    exchanges = build(items)
    assert [bool(exchange.request) for exchange in exchanges] == [False, True][not answer_first :]
    assert all(exchange.response for exchange in exchanges)


def test_unknown_role_joined_in_the_middle() -> None:
    """Bytes that say nothing are forgotten until a start line comes."""
    wire = Wire(make_flow(role=Role.UNKNOWN))
    junk: list[Item] = [wire.into(b"hello world\n"), wire.gap(IN, 100), wire.out(b"GET is a verb\n"), wire.gap(OUT, 5)]
    (exchange,) = build([*junk, wire.out(GET), wire.into(OK)])
    assert exchange.complete


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("server_first", [False, True])
def test_h2_is_another_stream(role: Role, size: int, *, server_first: bool) -> None:
    """HTTP/2 is recognised by either side's first bytes, and counted."""
    builder = ExchangeBuilder()
    wire = Wire(make_flow(role=role))
    begin = SETTINGS if server_first else PREFACE
    for start in range(0, len(begin), size):
        assert builder.feed((wire.into if server_first else wire.out)(begin[start : start + size])) == []
    builder.feed(wire.gap(IN, 7))
    (other,) = builder.others()
    assert (other.protocol, sum(other.lengths)) == ("h2", len(begin) + 7)
    builder.feed(wire.closed())
    assert [other.protocol for other in builder.others()] == ["h2"]


@pytest.mark.parametrize(
    ("alpn", "protocol"), [("h2", "h2"), ("mqtt", "mqtt"), ("http/1.1", "unknown"), ("", "unknown")]
)
def test_other_streams(alpn: str, protocol: str) -> None:
    """What is not understood is summed up by the name that ALPN gave it."""
    builder = ExchangeBuilder()
    wire = Wire(make_flow(alpn=alpn))
    for item in (wire.out(b"\x10abc"), wire.into(b"\x20"), wire.gap(IN, 10)):
        builder.feed(item)
    (other,) = builder.others()
    assert (other.flow, other.protocol, other.lengths) == (wire.flow, protocol, [11, 4])
    assert builder.unparsed_bytes == 0


def test_alpn_decides_at_once() -> None:
    """With ALPN http/1.1 there is nothing to wait for."""
    (exchange,) = build(simple_exchange(flow=make_flow(alpn="http/1.1")), finish=False)
    assert exchange.complete


def test_other_items_are_welcome() -> None:
    """Items that bring no bytes make no exchange and no flow."""
    flow = make_flow()
    wire = Wire(flow)
    builder = ExchangeBuilder()
    for item in (FlowOpened(flow, 0), FlowUpdated(flow, 0), wire.half_closed(IN), wire.closed()):
        assert builder.feed(item) == []
    assert (builder.flow_count, builder.others()) == (0, [])


REMOTE = Endpoint("192.0.2.1", 443)
URLS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "Host": (b"GET /a?b HTTP/1.1\r\nHost: h:8443\r\n\r\n", {}, "https://h:8443/a?b"),
    "absolute": (b"GET http://x/y HTTP/1.1\r\nHost: h\r\n\r\n", {}, "http://x/y"),
    "URL in a query": (b"GET /?u=http://x HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h/?u=http://x"),
    "SNI": (b"GET / HTTP/1.0\r\n\r\n", {}, "https://example.org/"),
    "SNI and port": (b"GET / HTTP/1.0\r\n\r\n", {"remote": Endpoint("192.0.2.1", 4433)}, "https://example.org:4433/"),
    "address": (b"GET / HTTP/1.0\r\n\r\n", {"sni": "", "remote": REMOTE}, "https://192.0.2.1/"),
    "nothing": (b"GET / HTTP/1.0\r\n\r\n", {"sni": "", "remote": None}, "https://unknown/"),
    "CONNECT": (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", {}, "h:1"),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h"),
    "no slash": (b"GET x HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h/x"),
    "odd bytes": (b"GET /\xe9 HTTP/1.1\r\nHost: h\r\n\r\n", {}, "https://h/\xe9"),
}


@pytest.mark.parametrize("case", URLS)
def test_url(case: str) -> None:
    """The URL's authority is the best one known."""
    head, changes, url = URLS[case]
    (exchange,) = build([Wire(make_flow(**changes)).out(head)])
    assert exchange.url == url


# --- Loss and ends ---


def test_gap_in_body() -> None:
    """Missing bytes are counted on their message, once as a problem, and the exchange is not complete."""
    wire = Wire()
    answer = wire.into(OK[:-4])
    (exchange,) = build([wire.out(GET), answer, wire.gap(IN, 1), wire.gap(IN, 2), wire.into(b"o")])
    assert exchange.response
    assert (exchange.response.body_size, exchange.response.gap_bytes, exchange.complete) == (2, 3, False)
    assert exchange.problems == ["response: bytes missing (ring-full)"]


def test_no_response() -> None:
    """A request without an answer comes out when the connection or the recording ends."""
    wire = Wire()
    (exchange,) = build([wire.out(GET), wire.closed()], finish=False)
    assert exchange.problems == [f"no response: {DROPPED}"]
    (exchange,) = build([wire.out(GET)])
    assert exchange.problems == ["no response: recording ended"]
    assert not exchange.complete


def test_no_request() -> None:
    """A response without a request is an exchange too."""
    (exchange,) = build([Wire().into(OK)])
    assert (exchange.url, exchange.problems, exchange.complete) == ("", ["request not seen"], False)
    assert exchange.duration_ns is None


UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"


def test_until_close() -> None:
    """A body that lasts until the close is complete after an orderly end, and only then (RFC 9112, 9.8)."""
    wire = Wire()
    begin = [wire.out(GET), wire.into(UNTIL_CLOSE)]
    assert build([*begin, wire.half_closed(IN)], finish=False)[0].complete
    (exchange,) = build([*begin, wire.closed()], finish=False)
    assert exchange.problems == [f"response cut short: {DROPPED}"]
    assert build(begin)[0].problems == ["response cut short: recording ended"]


def test_until_close_by_the_server() -> None:
    """What a traced server wrote is whole when it freed the connection, close_notify or not."""
    wire = Wire(make_flow(role=Role.SERVER))
    (exchange,) = build([wire.into(GET), wire.out(UNTIL_CLOSE), wire.closed()])
    assert exchange.complete


def test_requests_after_the_last_answer() -> None:
    """Requests sent after the peer's end stay unanswered, and are told at the close."""
    wire = Wire()
    exchanges = build([wire.out(GET), wire.into(OK), wire.half_closed(IN), wire.out(GET), wire.closed()], finish=False)
    assert [exchange.problems for exchange in exchanges] == [[], ["no response"]]


def test_interim_only() -> None:
    """An interim response alone, without its request, is an exchange of which nothing else is known."""
    (exchange,) = build([Wire().into(b"HTTP/1.1 100 Continue\r\n\r\n")])
    assert (exchange.interim, exchange.request, exchange.response) == ([100], None, None)
    assert exchange.started_ns == START_NS + 1_000_000


def test_notes_become_problems() -> None:
    """What is odd about a head is a problem of the exchange."""
    (exchange,) = build([Wire().out(b"GET / HTTP/1.1\r\n\r\n")])
    assert exchange.problems[0] == "request: no Host field"


def test_unparsed_bytes_are_counted() -> None:
    """Bytes of an HTTP connection that are no HTTP are summed up, open and closed."""
    wire = Wire()
    builder = ExchangeBuilder()
    for item in (wire.into(b"rest"), wire.out(GET), wire.into(OK), wire.gap(IN, 3)):
        builder.feed(item)
    assert builder.unparsed_bytes == 7
    builder.finish(0)
    assert builder.unparsed_bytes == 7
    assert builder.others() == []


def test_upgrade() -> None:
    """An exchange that switches protocols is complete; what follows is another stream."""
    wire = Wire()
    builder = ExchangeBuilder()
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"
    items: list[Item] = [
        wire.out(upgrade),
        wire.into(b"HTTP/1.1 101 x\r\nUpgrade: WebSocket\r\n\r\n\x81\x01a"),
        wire.out(b"\x81\x00"),
        wire.gap(IN, 10),
    ]
    assert [exchange for item in items for exchange in builder.feed(item)] == []  # not over before its tunnel
    (exchange,) = builder.feed(wire.closed())
    assert (exchange.upgraded_to, exchange.complete) == ("websocket", True)
    assert exchange.tunnel == {Side.REQUEST: 2, Side.RESPONSE: 13}
    assert exchange.message_counts == {Side.REQUEST: 1, Side.RESPONSE: 1}
    assert exchange.problems == ["websocket: bytes missing (ring-full)"]
    assert builder.others() == []


def test_encodings() -> None:
    """The codings to undo are those of the content, then those of the transfer."""
    wire = Wire()
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\ncontent-encoding: GZIP\r\nTransfer-Encoding: deflate, chunked\r\n\r\n"
    (exchange,) = build([wire.out(GET), wire.into(head)])
    assert exchange.response
    assert exchange.response.encodings == "br, gzip, deflate"


class Sink:
    """Remembers every piece."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, str, bytes | int]] = []

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        assert exchange.message(side)
        self.pieces.append((exchange.id, side.value, piece if isinstance(piece, bytes) else piece.length))


def test_body_sink() -> None:
    """A sink sees the bodies' pieces and holes, by id and side, without framing."""
    sink = Sink()
    builder = ExchangeBuilder(sink)
    wire = Wire()
    for item in (
        wire.out(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        wire.into(OK[:-3]),
        wire.gap(IN, 3),
    ):
        builder.feed(item)
    assert sink.pieces == [(1, "request", b"ab"), (1, "response", b"he"), (1, "response", 3)]


def test_nothing_is_kept() -> None:
    """A builder forgets exchanges that are over and flows that are closed."""
    builder = ExchangeBuilder()
    for number in range(1, 50):
        wire = Wire(make_flow(number))
        for item in (wire.out(GET * 3), wire.into(OK * 3)):
            builder.feed(item)
        (conversation,) = builder._conversations.values()
        assert (conversation.open, conversation._over, conversation._chooser.held) == ({}, set(), [])
        builder.feed(wire.closed())
        assert not builder._conversations
    assert builder.exchange_count == 147


# --- HTTP/2 ---


def server_and_client() -> tuple[H2Connection, H2Connection]:
    """Return two ends made by others."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    return H2Connection(H2Configuration(client_side=False, header_encoding=None)), client


@pytest.mark.parametrize("alpn", ["h2", ""])
@pytest.mark.parametrize("size", [1, 1000])
def test_http2(alpn: str, size: int) -> None:
    """Two streams at once, on a connection that is known to be HTTP/2 or shows it; however it is cut."""
    server, client = server_and_client()
    client.initiate_connection()
    for stream in (1, 3):
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "h"), (":path", f"/{stream}"), ("a", "b")]
        client.send_headers(stream, fields)
        client.send_data(stream, b"body%d" % stream, end_stream=True)
    asked = client.data_to_send()
    server.receive_data(asked)
    for stream in (3, 1):
        server.send_headers(stream, [(":status", "200"), ("content-type", "text/plain")])
        server.send_data(stream, b"answer%d" % stream)
        server.send_headers(stream, [("t", "u")], end_stream=True)
    answered = server.data_to_send()
    wire = Wire(make_flow(alpn=alpn))
    items = [wire.out(asked[at : at + size]) for at in range(0, len(asked), size)]
    items += [wire.into(answered[at : at + size]) for at in range(0, len(answered), size)]
    three, one = build(items, finish=False)
    assert [(exchange.id, exchange.number, exchange.url) for exchange in (one, three)] == [
        (1, 1, "https://h/1"),
        (2, 2, "https://h/3"),
    ]
    for exchange in (one, three):
        assert exchange.request
        assert exchange.response
        assert (exchange.protocol, exchange.complete, exchange.problems) == ("h2", True, [])
        assert (exchange.request.body_size, exchange.response.body_size) == (5, 7)
        assert exchange.response.trailers == ((b"t", b"u"),)


def test_a_client_that_stops_at_the_length() -> None:
    """All that Content-Length announced came, then the client reset the stream: nothing is missing."""
    settings_frame = bytes.fromhex("000000040000000000")
    wire = Wire(make_flow(alpn="h2"))
    items = [
        wire.out(PREFACE + settings_frame + bytes.fromhex("00000601050000000182874181f384")),
        wire.into(settings_frame + bytes.fromhex("000004010400000001885c8167000003000000000001616263")),
        wire.out(bytes.fromhex("00000403000000000100000005")),
        wire.into(bytes.fromhex("000000000100000001")),
    ]
    (exchange,) = build(items)
    assert exchange.complete
    assert exchange.problems == []


def test_a_reset_before_the_request_was_sent() -> None:
    """A server that needs no more of a request ends it quietly only when its length says nothing else."""
    server, client = server_and_client()
    client.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "https"), (":authority", "h"), (":path", "/")]
    client.send_headers(1, [*fields, ("content-length", "700")])
    client.send_headers(3, fields)
    asked = client.data_to_send()
    server.receive_data(asked)
    for stream in (1, 3):
        server.send_headers(stream, [(":status", "413")], end_stream=True)
        server.reset_stream(stream, 0)
    wire = Wire(make_flow(alpn="h2"))
    announced, open_ended = build([wire.out(asked), wire.into(server.data_to_send())])
    assert (announced.complete, open_ended.complete) == (False, True)


def test_upgrade_to_http2() -> None:
    """The request in HTTP/1.1, its answer in HTTP/2, and on it goes (RFC 7540, 3.2)."""
    server, client = server_and_client()
    settings_field = client.initiate_upgrade_connection()
    server.initiate_upgrade_connection(settings_field)
    wire = Wire()
    items: list[Item] = [
        wire.out(b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        wire.into(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    ]
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200")])
    server.send_data(1, b"first", end_stream=True)
    items.append(wire.into(server.data_to_send()))
    client.send_headers(
        3, [(":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/next")], end_stream=True
    )
    sent = client.data_to_send()
    server, client = server_and_client()
    server.initiate_upgrade_connection(settings_field)
    client.initiate_upgrade_connection()
    items.append(wire.out(PREFACE + SETTINGS + sent.removeprefix(PREFACE)))
    items.append(wire.closed())
    first, second = build(items)
    assert first.response
    assert (first.url, first.response.head.status, first.response.body_size) == ("https://h/up", 200, 5)
    assert (first.interim, first.upgraded_to, first.complete, first.problems) == ([101], "h2c", True, [])
    assert (second.url, second.number, second.response) == ("https://h/next", 2, None)


def test_websocket_over_http2() -> None:
    """A stream becomes a tunnel (RFC 8441); its exchange ends with the stream, others go on beside it."""
    server, client = server_and_client()
    server.local_settings.enable_connect_protocol = 1
    server.initiate_connection()
    client.initiate_connection()
    client.receive_data(server.data_to_send())
    asks = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "h"),
        (":path", "/ws"),
    ]
    client.send_headers(1, asks)
    client.send_headers(
        3, [(":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/")], end_stream=True
    )
    asked = client.data_to_send()
    server.receive_data(asked)
    server.send_headers(1, [(":status", "200")])
    server.send_data(1, b"\x81\x02hi")
    answered = server.data_to_send()
    client.receive_data(answered)
    client.send_data(1, b"\x81\x83\0\0\0\0you", end_stream=True)
    server.send_data(1, b"\x88\x00", end_stream=True)
    sink = Messages()
    builder = ExchangeBuilder(message_sink=sink)
    wire = Wire(make_flow(alpn="h2"))
    done = [one for item in (wire.out(asked), wire.into(answered)) for one in builder.feed(item)]
    assert done == []
    done = [one for data in (client.data_to_send(),) for one in builder.feed(wire.out(data))]
    done += builder.feed(wire.into(server.data_to_send()))
    (exchange,) = done
    assert (exchange.url, exchange.upgraded_to, exchange.complete) == ("https://h/ws", "websocket", True)
    assert exchange.tunnel == {Side.REQUEST: 9, Side.RESPONSE: 6}
    assert exchange.message_counts == {Side.REQUEST: 1, Side.RESPONSE: 1}
    assert [message[2:] for message in sink.seen] == [("text", b"hi"), ("text", b"you"), ("close", b"")]
    assert [one.url for one in builder.finish(0)] == ["https://h/"]


def test_an_h2_connection_without_requests() -> None:
    """It is named, not called unknown."""
    builder = ExchangeBuilder()
    wire = Wire(make_flow(alpn="h2"))
    builder.feed(wire.out(PREFACE + SETTINGS))
    assert [other.protocol for other in builder.others()] == ["h2"]


# --- What is not HTTP ---


@pytest.mark.parametrize(
    ("first", "protocol"),
    [
        (b"220 mail.example.org ESMTP ready\r\n", "smtp"),
        (b"* OK IMAP4rev1 ready\r\n", "imap"),
        (b"+OK POP3 ready\r\n", "pop3"),
        (b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab", "mqtt"),
        (b"\x00\x00\x00\x17\x00\x03\x00\x00user\x00alice\x00\x00", "postgresql"),
        (b"*1\r\n$4\r\nPING\r\n", "redis"),
        (b"AMQP\x00\x00\x09\x01", "amqp"),
    ],
)
@pytest.mark.parametrize("role", Role)
def test_greetings(first: bytes, protocol: str, role: Role) -> None:
    """Protocols that begin in an unmistakable way are named."""
    builder = ExchangeBuilder()
    wire = Wire(make_flow(role=role))
    builder.feed((wire.out if first[0] < 0x20 else wire.into)(first))
    assert [other.protocol for other in builder.others()] == [protocol]


# --- Messages ---


class Messages:
    """Remembers every message."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, str, bytes]] = []

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        self.seen.append((exchange.id, message.side.value, message.kind, message.data))


def test_messages() -> None:
    """Events of a compressed body, and WebSocket messages after an upgrade, reach who asked for them."""
    sink = Messages()
    builder = ExchangeBuilder(message_sink=sink)
    wire = Wire()
    events = gzip.compress(b"data: one\n\ndata: two\n\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    for item in (
        wire.out(GET),
        wire.into(head % len(events) + events),
        wire.out(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
        wire.into(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
        wire.out(b"\x82\x83\0\0\0\0abc"),
        wire.closed(),
    ):
        builder.feed(item)
    assert sink.seen == [
        (1, "response", "event", b"one"),
        (1, "response", "event", b"two"),
        (2, "response", "text", b"hi"),
        (2, "request", "binary", b"abc"),
    ]


def test_messages_end_with_a_broken_coding() -> None:
    """What can't be decoded has no messages; the exchange is none the worse."""
    sink = Messages()
    builder = ExchangeBuilder(message_sink=sink)
    wire = Wire()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\nContent-Length: 14\r\n\r\ndata: broken\n\n"
    done = [
        exchange
        for coding in (b"gzip", b"rot13")
        for item in (wire.out(GET), wire.into(head % coding))
        for exchange in builder.feed(item)
    ]
    assert [exchange.complete for exchange in done] == [True, True]
    assert sink.seen == []


# --- Anything at all ---

PIECES = st.one_of(
    st.sampled_from([GET, OK, GET[:9], OK[:20], PREFACE, SETTINGS, UNTIL_CLOSE, b"\r\n"]),
    st.binary(min_size=1, max_size=9),
)


@st.composite
def captures(draw: st.DrawFn) -> list[Item]:
    """Draw the items of up to three interleaved flows."""
    flows = [
        make_flow(number, role=draw(st.sampled_from(Role)), alpn=draw(st.sampled_from(["", "h2", "http/1.1"])))
        for number in range(3)
    ]
    items: list[Item] = []
    for time_ns in range(draw(st.integers(0, 12))):
        flow: Flow = draw(st.sampled_from(flows))
        direction = draw(st.sampled_from(Direction))
        match draw(st.integers(0, 9)):
            case 0:
                items.append(Gap(flow, direction, 0, draw(st.integers(1, 50)), GapReason.UNKNOWN, time_ns))
            case 1:
                items.append(Wire(flow).half_closed(direction) if draw(st.booleans()) else Wire(flow).closed())
            case _:
                items.append(Data(flow, direction, 0, draw(PIECES), time_ns))
    return items


@settings(max_examples=300, deadline=None)
@given(items=captures())
def test_anything(items: list[Item]) -> None:
    """Any items give exchanges with ids of their own, every one once, and the same in a second pass."""
    exchanges = build(items)
    assert sorted(exchange.id for exchange in exchanges) == list(range(1, len(exchanges) + 1))
    assert all(exchange_to_line(exchange) and Table(width=80).row(exchange) for exchange in exchanges)
    again = build(items)
    assert [(one.id, one.url, one.problems) for one in exchanges] == [(one.id, one.url, one.problems) for one in again]
