#!/usr/bin/env python3
"""Writes the golden captures under tests/fixtures/captures: a sidecar, its pcapng, and what `inspect --json` says of them.

They are made of samples as the kernel would have written them, every byte decided here: the same on every machine.
tests/test_golden.py compares what tlscap makes of them today with what is committed.  After a change that is meant,
run this and read the difference in `git diff` before committing it.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import samples  # noqa: E402
from samples import IN, MONOTONIC_NS, MS, OUT, data  # noqa: E402

import tlscap  # noqa: E402
from tlscap.export.jsonl import exchange_to_line  # noqa: E402
from tlscap.rebuild import PcapngBuilder  # noqa: E402
from tlscap.sidecar import SidecarWriter  # noqa: E402

CAPTURES = ROOT / "tests" / "fixtures" / "captures"

Frames = Iterator[bytes]

REQUEST = b"GET /%d HTTP/1.1\r\nHost: example.org\r\nAccept-Encoding: gzip\r\n\r\n"


def at(milliseconds: int) -> int:
    """Return a time of the probes' clock."""
    return MONOTONIC_NS + milliseconds * MS


def gzip_stored(body: bytes) -> bytes:
    """Return a gzip member that does not compress: other versions of zlib would compress differently."""
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    block = struct.pack("<BHH", 1, len(body), len(body) ^ 0xFFFF) + body
    return head + block + struct.pack("<II", zlib.crc32(body), len(body))


def response(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + lines + b"\r\n" + body


def begin(*, conn: int = samples.CONN, role: int = 1, pid: int = samples.PID, when: int = 1) -> bytes:
    """Return what comes before a connection's handshake."""
    return samples.opened(conn=conn, role=role, pid=pid, ssl=0x7F0000001000 + conn % 256, time_ns=at(when))


class Connection:
    """The samples of one connection, each a millisecond after the one before, its ledger kept."""

    def __init__(self, port: int, *, conn: int = 41, alpn: bytes = b"http/1.1", sni: bytes = b"example.org") -> None:
        self._conn = conn
        self._now = 1
        self._passed = [0, 0]
        self.start = (
            begin(conn=conn)
            + samples.address("10.2.0.1", port, "10.2.0.2", 443, conn=conn, time_ns=at(1))
            + samples.handshake(at(1), conn=conn, time_ns=at(2))
            + samples.sni(sni, conn=conn, time_ns=at(2))
            + samples.alpn(alpn, conn=conn, time_ns=at(2))
        )

    def out(self, *calls: bytes) -> bytes:
        """Return what the client writes, one call for each."""
        return b"".join(self._call(OUT, call) for call in calls)

    def into(self, *calls: bytes) -> bytes:
        """Return what it reads."""
        return b"".join(self._call(IN, call) for call in calls)

    def lose(self, direction: int, lost: bytes) -> None:
        """Let bytes pass that nobody stored."""
        self._passed[direction] += len(lost)

    def eof(self) -> bytes:
        """Return that the server said it was done, and that the client did."""
        return samples.eof(conn=self._conn, time_ns=self._tick()) + samples.shutdown(
            conn=self._conn, time_ns=self._tick()
        )

    def closed(self) -> bytes:
        """Return its end."""
        return samples.closed(*self._passed, conn=self._conn, time_ns=self._tick())

    def still_open(self) -> bytes:
        """Return what is said of it when the recording ends first."""
        return samples.ledger(*self._passed, conn=self._conn, time_ns=self._tick())

    def _call(self, direction: int, payload: bytes) -> bytes:
        offset = self._passed[direction]
        self._passed[direction] += len(payload)
        return data(payload, offset, direction, conn=self._conn, time_ns=self._tick())

    def _tick(self) -> int:
        self._now += 1
        return at(self._now)


def chunks(*parts: bytes, trailers: bytes = b"") -> bytes:
    """Return a chunked body (RFC 9112, 7.1)."""
    return (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b"")).removesuffix(b"\r\n")
        + trailers
        + b"\r\n"
    )


# HTTP/2 (RFC 9113, 4.1) and HPACK (RFC 7541) by hand: a library may choose another coding tomorrow.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32

GET, POST, ROOT_PATH, HTTPS, STATUS_200 = b"\x82", b"\x83", b"\x84", b"\x87", b"\x88"
AUTHORITY, PATH, CONTENT_TYPE = b"\x41", b"\x44", b"\x5f"


def text(value: bytes) -> bytes:
    """Return a string without Huffman coding (5.2)."""
    assert len(value) < 127
    return bytes((len(value),)) + value


def literal(name: bytes, value: bytes) -> bytes:
    """Return a field that enters the dynamic table (6.2.1)."""
    return b"\x40" + text(name) + text(value)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def padded(payload: bytes, length: int) -> bytes:
    return bytes((length,)) + payload + bytes(length)


def masked(first: int, payload: bytes, key: bytes = b"\x37\xfa\x21\x3d") -> bytes:
    """Return a client's WebSocket frame (RFC 6455, 5.2)."""
    hidden = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    return bytes((first, 0x80 | len(payload))) + key + hidden


def unmasked(first: int, payload: bytes) -> bytes:
    return bytes((first, len(payload))) + payload


def http1_keep_alive() -> Frames:
    """Two requests on one connection, the second answer with gzip, everything known about both ends."""
    one, two = REQUEST % 1, REQUEST % 2
    plain = response(b"first answer\n")
    packed = response(gzip_stored(b"second answer\n" * 20), b"Content-Encoding: gzip", b"Connection: close")
    yield (
        samples.start()
        + samples.details()
        + samples.process(b"curl", b"curl", b"https://example.org/1", b"https://example.org/2", time_ns=at(0))
        + begin()
        + samples.address(srtt_us=2300, time_ns=at(1))
        + samples.handshake(at(1), time_ns=at(9))
        + samples.sni(time_ns=at(9))
        + samples.alpn(time_ns=at(9))
        + data(one, 0, OUT, time_ns=at(10))
        + data(plain, 0, IN, call=1, entry_ns=at(11), time_ns=at(14))
    )
    first, rest = packed[:100], packed[100:]
    yield data(two, len(one), OUT, time_ns=at(20)) + data(first, len(plain), IN, call=1, time_ns=at(23))
    totals = len(plain) + len(packed), len(one) + len(two)
    yield (
        data(rest, len(plain) + len(first), IN, call=1, time_ns=at(24))
        + samples.eof(time_ns=at(25))
        + samples.shutdown(time_ns=at(26))
        + samples.closed(*totals, time_ns=at(26))
        + samples.exited(time_ns=at(30))
        + samples.end(calls=7, bytes_in=totals[0], bytes_out=totals[1])
    )


def _holes(port: int) -> Frames:
    answer = response(b"0123456789" * 100)
    request = REQUEST % 1
    yield (
        samples.start(snaplen=600)
        + samples.process(b"python3", b"python3", b"-m", b"client", exe=b"/usr/bin/python3", time_ns=at(0))
        + begin()
        + samples.address("2001:db8:1::5", 41000, "2001:db8:1::6", port, time_ns=at(1))
        + samples.handshake(at(1), time_ns=at(3))
        + data(request, 0, OUT, time_ns=at(4))
        + data(answer[:200], 0, IN, time_ns=at(5))
        # [200, 500) was dropped, and only 100 of the next 400 bytes were kept.
        + data(answer[500:600], 500, IN, length=400, reason=1, time_ns=at(7))
        + data(answer[900:], 900, IN, time_ns=at(8))
        + data(b"", len(request), OUT, length=5000, reason=3, time_ns=at(9))
    )
    yield samples.closed(len(answer) + 20_000, len(request) + 5000, time_ns=at(12)) + samples.end(dropped_samples=3)


def holes() -> Frames:
    """Bytes missing within, by snaplen, in a sendfile and at the end; as TLS records with zeros in their place."""
    yield from _holes(443)


def holes_plain() -> Frames:
    """The same on a port where the bytes stand for themselves: the sequence numbers jump."""
    yield from _holes(8080)


def http2() -> Frames:
    """An HTTP/2 connection of which no ALPN is known: it is told from its first bytes."""
    settings = b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x03\0\0\0\x64"
    ack = b"\0\0\0\x04\x01\0\0\0\0"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings
    yield (
        samples.start()
        + samples.process(b"nghttp", b"nghttp", b"https://h2.example/", time_ns=at(0))
        + begin()
        + samples.address("10.1.0.1", 50123, "10.1.0.2", 443, time_ns=at(1))
        + samples.handshake(at(1), time_ns=at(2))
        + samples.sni(b"h2.example", time_ns=at(2))
        + data(preface, 0, OUT, time_ns=at(3))
        + data(settings + ack, 0, IN, time_ns=at(4))
        + data(ack, len(preface), OUT, time_ns=at(5))
        + samples.ledger(len(settings + ack), len(preface + ack), time_ns=at(6))
        + samples.end()
    )


def both_ends() -> Frames:
    """Client and server on one host, both recorded: the same endpoints twice, the other way round."""
    client, server = 21, 22
    request, answer = REQUEST % 1, response(b"hello")
    yield (
        samples.start()
        + samples.process(b"nginx", b"nginx: worker process", pid=80, ppid=79, uid=33, start_ns=7, time_ns=at(0))
        + samples.process(b"curl", b"curl", b"-k", b"https://localhost/", pid=90, time_ns=at(0))
        + begin(conn=client, pid=90)
        + begin(conn=server, pid=80, role=2)
        + samples.address("127.0.0.1", 40001, "127.0.0.1", 443, conn=client, pid=90, time_ns=at(1))
        # The server listens on [::]: its socket has the same addresses in IPv6 clothing.
        + samples.address("::ffff:127.0.0.1", 443, "::ffff:127.0.0.1", 40001, conn=server, pid=80, time_ns=at(1))
        + samples.handshake(at(1), conn=server, pid=80, time_ns=at(3))
        + samples.handshake(at(1), conn=client, pid=90, time_ns=at(4))
        + samples.sni(b"localhost", conn=server, pid=80, time_ns=at(4))
    )
    for conn, pid, outgoing, incoming in ((client, 90, request, answer), (server, 80, answer, request)):
        first = data(outgoing, 0, OUT, conn=conn, pid=pid, time_ns=at(5 if conn == client else 7))
        second = data(incoming, 0, IN, conn=conn, pid=pid, time_ns=at(8 if conn == client else 6))
        yield first + second if conn == client else second + first
    yield (
        samples.shutdown(conn=client, pid=90, time_ns=at(9))
        + samples.closed(len(answer), len(request), conn=client, pid=90, time_ns=at(9))
        + samples.eof(conn=server, pid=80, time_ns=at(10))
        + samples.closed(len(request), len(answer), conn=server, pid=80, time_ns=at(10))
        + samples.end()
    )


def unknown_addresses() -> Frames:
    """Connections of which little is known: no address, no role, no process, a Unix socket; and a clock that was set."""
    request, answer = REQUEST % 1, response(b"served")
    yield (
        samples.start()
        + samples.process(b"java", b"java", b"-jar", b"a b.jar", pid=60, time_ns=at(0))
        + begin(conn=31, role=0, pid=60)
        + data(request, 0, IN, conn=31, pid=60, time_ns=at(2))
        + data(answer, 0, OUT, conn=31, pid=60, time_ns=at(3))
        + begin(conn=32, role=0, pid=60)
        + samples.address(family=1, protocol=0, conn=32, pid=60, time_ns=at(4))
        + data(b"\0\1\2binary", 0, OUT, conn=32, pid=60, time_ns=at(5))
    )
    yield (
        samples.clock(samples.WALL_NS + 3_600_000 * MS, at(6))
        + data(b"late", 100, IN, conn=33, pid=61, time_ns=at(7))
        + data(b"no room in the table", 0, OUT, conn=1 << 62, flags=1, pid=60, time_ns=at(8))
        + samples.exited(pid=60, time_ns=at(9))
        + samples.orphan(len(request), len(answer), conn=31, pid=60, time_ns=at(20))
        + samples.orphan(5, 9, conn=32, pid=60, time_ns=at(20))
        + samples.orphan(7, 8, conn=34, pid=62, time_ns=at(21))
        + samples.ledger(104, 0, conn=33, time_ns=at(22))
    )
    yield samples.record(250, b"a type of some later version") + samples.end(table_full=1)


def carried_over() -> Frames:
    """A file that continues another: streams begin in their middle, without a hole."""
    yield (
        samples.start()
        + samples.process(b"psql", b"psql", time_ns=at(0))
        + begin()
        + samples.address(remote="10.0.0.9", remote_port=5432, time_ns=at(1))
        + samples.carry(1000, 2000, time_ns=at(1))
        + data(b"Q\0\0\0\x0dSELECT 1\0", 2000, OUT, time_ns=at(2))
        + data(b"I\0\0\0\4", 1000, IN, time_ns=at(3))
        + samples.closed(1005, 2014, time_ns=at(4))
        + samples.end()
    )


def websocket() -> Frames:
    """WebSocket with permessage-deflate: the examples of RFC 7692, 7.2.3, among them a reference to an earlier message."""
    wire = Connection(40101)
    request = (
        b"GET /chat HTTP/1.1\r\nHost: example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLBMkxaQ9kYGzzhZRbK+xOoo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00"
    stored = b"\x00\x05\x00\xfa\xffHello\x00"
    yield samples.start() + samples.process(b"chat", b"chat", time_ns=at(0)) + wire.start + wire.out(request)
    # The first message comes in the same call as the answer.
    yield wire.into(answer + unmasked(0xC1, hello), unmasked(0xC1, b"\xf2\x00\x11\x00\x00"))
    yield wire.out(
        masked(0xC1, stored), masked(0x81, b"not compressed"), masked(0x41, hello[:3]) + masked(0x80, hello[3:])
    )
    yield wire.into(
        unmasked(0x89, b"are you there?"), unmasked(0x02, bytes(range(100))) + unmasked(0x80, bytes(range(100, 200)))
    )
    yield wire.out(masked(0x8A, b"are you there?"), masked(0x88, b"\x03\xe8bye"))
    yield wire.into(unmasked(0x88, b"\x03\xe8")) + wire.eof() + wire.closed() + samples.end()


def grpc() -> Frames:
    """Two unary gRPC calls: one with compressed messages and an OK in the trailers, one refused with trailers alone."""
    wire = Connection(40102, alpn=b"h2", sni=b"greeter.example")
    packed = gzip_stored(b"\x0a\x05world")
    question = b"\x01" + len(packed).to_bytes(4, "big") + packed
    reply = b"\x00\x00\x00\x00\x0d" + b"\x0a\x0bHello world"
    method = b"/helloworld.Greeter/SayHello"
    common = CONTENT_TYPE + text(b"application/grpc") + literal(b"te", b"trailers")
    ask = POST + HTTPS + AUTHORITY + text(b"greeter.example") + PATH + text(method) + common
    yield (
        samples.start()
        + samples.process(b"greeter", b"greeter", time_ns=at(0))
        + wire.start
        + wire.out(PREFACE + frame(SETTINGS, 0, 0))
        + wire.into(frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0))
        + wire.out(frame(SETTINGS, 1, 0))
    )
    ask += literal(b"grpc-encoding", b"gzip")
    trailers = literal(b"grpc-status", b"0") + literal(b"grpc-message", b"")
    yield (
        wire.out(frame(HEADERS, END_HEADERS, 1, ask), frame(DATA, END_STREAM, 1, question))
        + wire.into(frame(HEADERS, END_HEADERS, 1, STATUS_200 + CONTENT_TYPE + text(b"application/grpc")))
        + wire.into(frame(DATA, 0, 1, reply) + frame(HEADERS, END_STREAM | END_HEADERS, 1, trailers))
    )
    again = POST + HTTPS + b"\xc2\xc1\xc0\xbf"  # :authority, :path, content-type, te
    refusal = STATUS_200 + b"\xc0" + literal(b"grpc-status", b"5") + literal(b"grpc-message", b"no%20such%20greeter")
    yield (
        wire.out(frame(HEADERS, END_HEADERS, 3, again) + frame(DATA, END_STREAM, 3, b"\0\0\0\0\0"))
        + wire.into(frame(HEADERS, END_STREAM | END_HEADERS, 3, refusal))
        + wire.eof()
        + wire.closed()
        + samples.end()
    )


def server_sent_events() -> Frames:
    """Events in chunks that don't begin and end where events do; the last one is never dispatched."""
    wire = Connection(40103)
    request = b"GET /events HTTP/1.1\r\nHost: example.org\r\nAccept: text/event-stream\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream = (
        b": welcome\n\nretry: 3000\n\n"
        b'event: price\nid: 7\ndata: {"eur": 1}\n\n'
        b"data: two\r\ndata: lines\r\n\r\n"
        b"data\n\ndata: caf\xc3\xa9\n\nid: 8\ndata: never dispatched\n"
    )
    yield (
        samples.start()
        + samples.process(b"ticker", b"ticker", time_ns=at(0))
        + wire.start
        + wire.out(request)
        + wire.into(head, chunks(stream[:30], stream[30:64])[:-5])
    )
    yield (
        wire.into(chunks(stream[64:67], stream[67:])[:-5], b"0\r\n\r\n") + wire.eof() + wire.closed() + samples.end()
    )


def http2_frames() -> Frames:
    """What HTTP/2 frames can do: padding, priority, CONTINUATION, trailers both ways, interleaving, push, a reset."""
    wire = Connection(40104, alpn=b"h2")
    host = b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"  # www.example.com: RFC 7541, C.4.1
    first = GET + HTTPS + ROOT_PATH + host + literal(b"custom-key", b"custom-value")
    priority = b"\x80\0\0\0\x0f"  # exclusive, of stream 0, weight 16
    second = POST + HTTPS + PATH + text(b"/upload") + b"\xc0" + literal(b"trailer", b"x-sum")  # \xc0: the host
    yield (
        samples.start()
        + samples.process(b"browser", b"browser", time_ns=at(0))
        + wire.start
        + wire.out(PREFACE + frame(SETTINGS, 0, 0, b"\0\x04\0\1\0\0"), frame(WINDOW_UPDATE, 0, 0, b"\0\1\0\0"))
        + wire.into(frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x64") + frame(SETTINGS, 1, 0))
        + wire.out(
            frame(SETTINGS, 1, 0)
            + frame(HEADERS, END_STREAM | PADDED | WITH_PRIORITY, 1, padded(priority + first[:5], 7)),
            frame(CONTINUATION, 0, 1, first[5:20]) + frame(CONTINUATION, END_HEADERS, 1, first[20:]),
            frame(HEADERS, END_HEADERS, 3, second) + frame(DATA, PADDED, 3, padded(b"upl", 200)),
            frame(DATA, 0, 3, b"oad") + frame(HEADERS, END_HEADERS | END_STREAM, 3, literal(b"x-sum", b"6")),
        )
    )
    kind = CONTENT_TYPE + text(b"text/plain")
    reply = STATUS_200 + kind + literal(b"trailer", b"server-timing")
    promise = GET + HTTPS + PATH + text(b"/style.css") + AUTHORITY + text(b"www.example.com")
    page = frame(DATA, PADDED, 1, padded(b"inter", 3)) + frame(DATA, 0, 3, b"st") + frame(DATA, 0, 1, b"leaved")
    # The dynamic table from 62 upwards: :authority, :path, trailer, content-type.
    pushed = frame(HEADERS, END_HEADERS, 2, STATUS_200 + b"\xc1") + frame(DATA, END_STREAM, 2, b"body {}")
    yield wire.into(
        frame(HEADERS, 0, 1, reply[:7]) + frame(CONTINUATION, END_HEADERS, 1, reply[7:]),
        frame(PUSH_PROMISE, END_HEADERS | PADDED, 1, padded(b"\0\0\0\2" + promise, 2)),
        frame(HEADERS, END_HEADERS, 3, STATUS_200 + b"\xc1") + page[:20],
        page[20:] + pushed[:30],
        pushed[30:] + frame(DATA, END_STREAM | PADDED, 3, padded(b"ored", 0)),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"server-timing", b"db;dur=53")),
    )
    yield (
        wire.out(
            frame(PING, 0, 0, b"12345678")
            + frame(HEADERS, END_HEADERS | END_STREAM, 5, GET + HTTPS + ROOT_PATH + b"\xc2")
        )
        + wire.into(
            frame(PING, 1, 0, b"12345678") + frame(HEADERS, END_HEADERS, 5, STATUS_200) + frame(DATA, 0, 5, b"too ")
        )
        + wire.out(frame(RST_STREAM, 0, 5, b"\0\0\0\x08"))
        + wire.into(frame(DATA, END_STREAM, 5, b"late"), frame(GOAWAY, 0, 0, b"\0\0\0\5\0\0\0\0"))
        + wire.eof()
        + wire.closed()
        + samples.end()
    )


def chunked() -> Frames:
    """A chunked upload that waits for 100 (Continue), and a compressed answer in chunks; trailers behind both."""
    wire = Connection(40105)
    ask = (
        b"POST /upload HTTP/1.1\r\nHost: example.org\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    )
    upload = b"11;name=value\r\n" + chunks(b'{"numbers": [1, 2', b", 3]}", trailers=b"X-Sum: 3\r\n")[4:]
    packed = gzip_stored(b'{"stored": true}\n')
    head = (
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: Server-Timing\r\n\r\n"
    )
    body = chunks(packed[:10], packed[10:11], packed[11:], trailers=b"Server-Timing: db;dur=53\r\nX-More: yes\r\n")
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    yield (
        samples.start()
        + samples.process(b"uploader", b"uploader", time_ns=at(0))
        + wire.start
        + wire.out(ask)
        + wire.into(b"HTTP/1.1 100 Continue\r\n\r\n")
        + wire.out(upload[:20], upload[20:])
        + wire.into(hint + head + body[:17], body[17:])
    )
    yield (
        wire.out(
            b"HEAD /upload HTTP/1.1\r\nHost: example.org\r\n\r\nDELETE /upload HTTP/1.1\r\nHost: example.org\r\n\r\n"
        )
        + wire.into(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n")
        + wire.eof()
        + wire.closed()
        + samples.end()
    )


def close_delimited() -> Frames:
    """HTTP/1.0 bodies that end with the connection: in an orderly way, dropped, and not before the recording did."""
    request = b"GET /old HTTP/1.0\r\nHost: example.org\r\n\r\n"
    head = b"HTTP/1.0 200 OK\r\nServer: old\r\nContent-Type: text/plain\r\n\r\n"
    orderly, dropped, left = (Connection(40106 + number, conn=41 + number) for number in range(3))
    yield (
        samples.start()
        + samples.process(b"lynx", b"lynx", b"-source", b"https://example.org/old", time_ns=at(0))
        + b"".join(wire.start + wire.out(request) + wire.into(head, b"until ") for wire in (orderly, dropped, left))
    )
    yield (
        b"".join(wire.into(b"the end\n") for wire in (orderly, dropped, left))
        + orderly.eof()
        + orderly.closed()
        + dropped.closed()
        + left.still_open()
        + samples.end()
    )


def lost_step() -> Frames:
    """Holes after which an observer can't know where a message begins, until one does at the beginning of a call."""
    one, two = Connection(40109), Connection(40110, conn=42, alpn=b"h2")
    quoted = b"quoted: HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"
    lost = response(b"0123456789" + quoted)
    yield samples.start() + samples.process(b"client", b"client", time_ns=at(0)) + one.start + two.start
    yield one.out(REQUEST % 1) + one.into(response(b"before")) + one.out(REQUEST % 2)
    one.lose(IN, lost[: -len(quoted)])
    yield one.into(quoted) + one.out(REQUEST % 3) + one.into(response(b"after")) + one.closed()
    ask = GET + HTTPS + AUTHORITY + text(b"h2.example") + PATH
    yield (
        two.out(PREFACE + frame(SETTINGS, 0, 0))
        + two.into(frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0))
        + two.out(frame(HEADERS, END_HEADERS | END_STREAM, 1, ask + text(b"/1")))
        + two.into(frame(HEADERS, END_HEADERS, 1, STATUS_200) + frame(DATA, END_STREAM, 1, b"before"))
        + two.out(frame(HEADERS, END_HEADERS | END_STREAM, 3, ask + text(b"/2")))
        + two.into(frame(HEADERS, END_HEADERS, 3, STATUS_200) + frame(DATA, 0, 3, b"the first half"))
    )
    second = frame(DATA, 0, 3, b"the second half, of which the end was seen") + frame(DATA, END_STREAM, 3, b".")
    two.lose(IN, second[:20])
    yield (
        two.into(second[20:])
        + two.out(frame(HEADERS, END_HEADERS | END_STREAM, 5, ask + text(b"/3")))
        + two.into(
            frame(HEADERS, END_HEADERS, 5, STATUS_200) + frame(DATA, 0, 5, b"af") + frame(DATA, END_STREAM, 5, b"ter")
        )
        + two.closed()
        + samples.end()
    )


STREAMS: dict[str, Callable[[], Frames]] = {
    "http1-keep-alive": http1_keep_alive,
    "holes": holes,
    "holes-plain": holes_plain,
    "http2": http2,
    "both-ends": both_ends,
    "unknown-addresses": unknown_addresses,
    "carried-over": carried_over,
    "websocket": websocket,
    "grpc": grpc,
    "server-sent-events": server_sent_events,
    "http2-frames": http2_frames,
    "chunked": chunked,
    "close-delimited": close_delimited,
    "lost-step": lost_step,
}


def sidecar_of(frames: Frames) -> bytes:
    stream = io.BytesIO()
    writer = SidecarWriter(stream)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return stream.getvalue()


def pcapng_of(frames: Frames) -> bytes:
    builder = PcapngBuilder()
    blocks = [block for frame in frames for block in builder.feed(frame)]
    return b"".join([*blocks, *builder.finish()])


def json_lines_of(sidecar: Path) -> str:
    """Return the exchanges of a capture, one JSON object a line, in the order in which they ended."""
    return "".join(exchange_to_line(exchange.core) + "\n" for exchange in tlscap.open(str(sidecar)))


def write(folder: Path) -> None:
    """Write every capture into a folder, over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stream in STREAMS.items():
        (folder / f"{name}.tlscap.zst").write_bytes(sidecar_of(stream()))
        (folder / f"{name}.pcapng").write_bytes(pcapng_of(stream()))
        (folder / f"{name}.jsonl").write_text(json_lines_of(folder / f"{name}.tlscap.zst"), encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=CAPTURES, help="where to (default: %(default)s)")
    folder = parser.parse_args().folder
    write(folder)
    print(f"{3 * len(STREAMS)} files in {folder}")


if __name__ == "__main__":
    main()
