"""What tlscap reads out of a capture, judged: by tshark, and by itself when the same bytes come in other pieces."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import brotli
import pytest
import samples
import zstandard
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from helpers import REQUEST, RESPONSE
from judges import differences, digest, items_of, read, told_by_tlscap, told_by_tshark, tshark_version
from samples import IN, MONOTONIC_NS, MS, OUT
from test_http2 import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Talk, conversation, frame

from tlscap.http.events import Header
from tlscap.model import Data, Gap, Item
from tlscap.rebuild import PcapngBuilder

CAPTURES = Path(__file__).parent / "fixtures" / "captures"

# --- What two ends say to each other ---

Calls = list[tuple[int, bytes]]
"""Which way, and what: one call each."""


def get(path: str, *fields: str, method: str = "GET", body: bytes = b"", host: str = "example.org") -> bytes:
    lines = "".join(f"{line}\r\n" for line in (f"Host: {host}", *fields))
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def reply(*fields: str, status: str = "200 OK", body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    lines = "".join(f"{line}\r\n" for line in fields)
    return f"{version} {status}\r\n{lines}\r\n".encode("latin-1") + body


def sized(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    return reply(f"Content-Length: {len(body)}", *fields, status=status, body=body)


def chunked(*parts: bytes, extension: str = "", trailers: str = "") -> bytes:
    chunks = b"".join(f"{len(part):X}{extension}\r\n".encode() + part + b"\r\n" for part in parts)
    return chunks + f"0\r\n{trailers}\r\n".encode()


def cut(calls: Calls, size: int) -> Calls:
    """Return the same in calls of no more than ``size`` bytes."""
    return [(way, data[start : start + size]) for way, data in calls for start in range(0, len(data), size)]


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes in which everything occurs."""
    state, output = seed, bytearray()
    while len(output) < size:
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        output += (state >> 16).to_bytes(6, "big")
    return bytes(output[:size])


TEXT = b"".join(b"line %d of a text\n" % number for number in range(300))

HTTP1: dict[str, Calls] = {
    "keep-alive": [
        (OUT, get("/keep/1?q=a%20b", "Accept: */*", "X-Empty:", "x-lower:  spaces  within   ")),
        (IN, sized(b"first", "Set-Cookie: a=1; Path=/", "Content-Type: text/plain", "Set-Cookie: b=2")),
        (OUT, get("/keep/2", "User-Agent: client", "Cookie: a=1; b=2")),
        (IN, sized(b"", "X-Latin: caf\xe9", "X-Colon: a:b: c")),
        (OUT, get("/keep/3", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 7", method="POST", body=b"a=1&b=2")),
        (IN, sized(b'{"done": true}', "Content-Type: application/json", status="201 Created at last")),
    ],
    "pipelined": [
        (OUT, get("/pipe/1") + get("/pipe/2") + get("/pipe/3")),
        (IN, sized(b"one") + sized(b"two", status="404 Not Found") + sized(b"three")),
    ],
    "pipelined, one at a time": [
        (OUT, get("/pipe/4")), (OUT, get("/pipe/5")),
        (IN, sized(b"four")), (IN, sized(b"five")),
    ],
    "pipelined, cut": cut([(OUT, get("/pipe/6") + get("/pipe/7")), (IN, sized(TEXT) + sized(b"seven"))], 77),
    "chunked": [
        (OUT, get("/chunked/1", "Transfer-Encoding: chunked", method="PUT", body=chunked(b"up", b"load", extension=";a=b"))),
        (IN, reply("Transfer-Encoding: chunked", "Content-Type: text/plain", body=chunked(b"a", b"bc", TEXT))),
        (OUT, get("/chunked/2", "TE: trailers")),
        (IN, reply("Transfer-Encoding: chunked", "Trailer: X-Sum", body=chunked(b"summed", trailers="X-Sum: 6\r\nX-Sum: six\r\n"))),
        (OUT, get("/chunked/3")),
        (IN, reply("Transfer-Encoding: chunked", body=chunked())),
        (OUT, get("/chunked/4")),
        (IN, sized(b"behind")),
    ],
    "chunked, cut": cut(
        [(OUT, get("/chunked/5")), (IN, reply("Transfer-Encoding: chunked", body=chunked(b"in", b"pieces", trailers="A: b\r\n")))], 5
    ),
    "head": [
        (OUT, get("/head/1", method="HEAD")), (IN, reply("Content-Length: 100")),
        (OUT, get("/head/2", method="HEAD")), (IN, reply("Transfer-Encoding: chunked")),
        (OUT, get("/head/3")), (IN, sized(b"body")),
    ],
    "interim": [
        (OUT, get("/interim/1", "Expect: 100-continue", "Content-Length: 6", method="POST")),
        (IN, reply(status="100 Continue")),
        (OUT, b"upload"),
        (IN, reply("Link: </a.css>; rel=preload", status="103 Early Hints")),
        (IN, sized(b"done")),
        (OUT, get("/interim/2")),
        (IN, sized(b"next")),
    ],
    "no content": [
        (OUT, get("/empty/1", method="DELETE")), (IN, reply(status="204 No Content")),
        (OUT, get("/empty/2", 'If-None-Match: "x"')), (IN, reply('ETag: "x"', "Content-Length: 5", status="304 Not Modified")),
        (OUT, get("/empty/3")), (IN, sized(b"full")),
    ],
    "until close": [
        (OUT, get("/close/1")),
        (IN, reply("Content-Type: text/plain", "Connection: close", body=b"until ")), (IN, b"the end"),
    ],
    "HTTP/1.0": [
        (OUT, b"GET /old/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        (IN, reply("Connection: keep-alive", "Content-Length: 3", body=b"old", version="HTTP/1.0")),
        (OUT, b"GET /old/2 HTTP/1.0\r\nHost: example.org\r\n\r\n"),
        (IN, reply("Content-Length: 5", body=b"older", version="HTTP/1.0")),
    ],
    "gzip": [
        (OUT, get("/coded/1")), (IN, sized(gzip.compress(TEXT, mtime=0), "Content-Encoding: gzip")),
        (OUT, get("/coded/2")),
        (IN, reply("Transfer-Encoding: chunked", "Content-Encoding: x-gzip", body=chunked(*(gzip.compress(TEXT, mtime=0)[at : at + 9] for at in range(0, 2000, 9) if gzip.compress(TEXT, mtime=0)[at : at + 9])))),
        (OUT, get("/coded/3", "Content-Encoding: gzip", "Content-Length: 0", method="POST")), (IN, sized(b"")),
    ],
    "deflate": [(OUT, get("/coded/4")), (IN, sized(zlib.compress(TEXT), "Content-Encoding: deflate"))],
    "raw deflate": [(OUT, get("/coded/5")), (IN, sized(zlib.compress(TEXT)[2:-4], "Content-Encoding: deflate"))],
    "br": [(OUT, get("/coded/6")), (IN, sized(brotli.compress(TEXT), "Content-Encoding: br"))],
    "zstd": [(OUT, get("/coded/7")), (IN, sized(zstandard.compress(TEXT), "Content-Encoding: zstd"))],
    "two codings": [(OUT, get("/coded/8")), (IN, sized(brotli.compress(gzip.compress(TEXT, mtime=0)), "Content-Encoding: gzip, br"))],
    "large": cut([(OUT, get("/large/1", "Content-Length: 100001", method="PUT", body=noise(100_001))), (IN, sized(noise(200_003, 2)))], 16_000),
    "targets": [
        (OUT, get("http://other.example/absolute?x", host="other.example")), (IN, sized(b"absolute")),
        (OUT, get("*", method="OPTIONS")), (IN, reply("Allow: GET", status="204 No Content")),
        (OUT, get("/with-port", host="example.org:8443")), (IN, sized(b"port")),
    ],
    "connect": [
        (OUT, get("example.net:443", method="CONNECT", host="example.net:443")), (IN, reply(status="200 Connection established")),
        (OUT, b"\x00\x01 no HTTP"), (IN, b"nor here"),
    ],
    "byte by byte": cut([(OUT, get("/bytes")), (IN, sized(b"slowly"))], 1),
    "answered early": [
        (OUT, get("/early/1", "Content-Length: 6", method="POST", body=b"up")),
        (IN, sized(b"too large", status="413 Content Too Large")),
        (OUT, b"load"),
        (OUT, get("/early/2")), (IN, sized(b"well")),
    ],
    "odd lines": [
        (OUT, b"\r\nGET /odd/1 HTTP/1.1\r\nHost: example.org\r\nX-Folded: one\r\n  two\r\nX-Tab:\ttab\t\r\n\r\n"), (IN, sized(b"folded")),
        (OUT, b"GET /odd/2 HTTP/1.1\nHost: example.org\n\n"), (IN, b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbare"),
        (OUT, get("/odd/3")), (IN, b"HTTP/1.1 200\r\ncontent-length:5\r\n\r\nplain"),
    ],
    "no answer": [(OUT, get("/alone/1")), (IN, sized(b"answered")), (OUT, get("/alone/2"))],
    "cut short": [(OUT, get("/short")), (IN, reply("Content-Length: 100", body=b"only this"))],
}  # fmt: skip


class Http2(Talk):
    """Both ends of an HTTP/2 connection; each of these says one thing, which is sent at once."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))
        self.client, self.server = self.ends[REQUEST], self.ends[RESPONSE]

    def request(self, path: str, *fields: Header, method: str = "GET", end: bool = True) -> int:
        """Ask; returns the stream's number."""
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, [*pseudo(path, method), *fields], end_stream=end)
        self.flush()
        return stream

    def response(self, stream: int, *fields: Header, status: int = 200, end: bool = False) -> None:
        self.server.send_headers(stream, [(b":status", b"%d" % status), *fields], end_stream=end)
        self.flush()

    def body(self, stream: int, *parts: bytes, end: bool = True, padding: int | None = None) -> None:
        """Send the response's body; the last part ends it."""
        for index, part in enumerate(parts, 1):
            self.server.send_data(stream, part, end_stream=end and index == len(parts), pad_length=padding)
        self.flush()

    def calls(self) -> Calls:
        return [(OUT if side is REQUEST else IN, data) for side, data in self.steps if isinstance(data, bytes)]


def pseudo(path: str, method: str = "GET") -> list[Header]:
    return [
        (b":method", method.encode()),
        (b":scheme", b"https"),
        (b":authority", b"h2.example"),
        (b":path", path.encode()),
    ]


def interleaved(talk: Http2) -> None:
    """Streams whose bodies come in turns, ended in another order than begun."""
    streams = [talk.request(f"/turn/{number}", (b"x-number", b"%d" % number)) for number in range(4)]
    for stream in reversed(streams):
        talk.response(stream, (b"x-stream", b"%d" % stream), (b"content-type", b"text/plain"))
    for turn in range(3):
        for stream in streams:
            talk.body(stream, b"turn %d of stream %d\n" % (turn, stream), end=False)
    for stream in (streams[2], streams[0], streams[3], streams[1]):
        talk.body(stream, b"")


def long_heads(talk: Http2) -> None:
    """Header blocks longer than a frame: h2 goes on in CONTINUATION frames."""
    long = [(b"x-long-%d" % number, noise(9000, number).hex().encode()) for number in range(3)]
    stream = talk.request("/long", *long)
    talk.response(stream, *long, status=200)
    talk.body(stream, b"body")
    stream = talk.request("/short")
    talk.response(stream, status=204, end=True)


def padding(talk: Http2) -> None:
    """Padding around every byte, and an empty frame of nothing else."""
    stream = talk.request("/padded")
    talk.response(stream)
    talk.body(stream, *(bytes((byte,)) for byte in b"padded"), b"", padding=9)


def trailers(talk: Http2) -> None:
    """Fields behind both bodies."""
    stream = talk.request("/trailers", (b"trailer", b"x-sum"), method="PUT", end=False)
    talk.client.send_data(stream, b"upload")
    talk.client.send_headers(stream, [(b"x-sum", b"6"), (b"x-more", b"")], end_stream=True)
    talk.response(stream)
    talk.body(stream, b"answer", end=False)
    talk.server.send_headers(stream, [(b"server-timing", b"db;dur=53")], end_stream=True)
    talk.flush()


def push(talk: Http2) -> None:
    """A promised stream, answered before the one that promised it."""
    stream = talk.request("/page")
    promised = talk.server.get_next_available_stream_id()
    talk.server.push_stream(stream, promised, [*pseudo("/pushed.css"), (b"accept", b"text/css")])
    talk.response(stream, (b"content-type", b"text/html"))
    talk.response(promised, (b"content-type", b"text/css"))
    talk.body(promised, b"body {}")
    talk.body(stream, b"<p>page</p>")


def reset(talk: Http2) -> None:
    """Streams that either end breaks off."""
    first, second, third = (talk.request(f"/reset/{number}") for number in range(3))
    talk.response(first)
    talk.body(first, b"the beginning of ", end=False)
    talk.client.reset_stream(first, ErrorCodes.CANCEL)
    talk.flush()
    talk.server.reset_stream(second, ErrorCodes.REFUSED_STREAM)
    talk.flush()
    talk.response(third)
    talk.body(third, b"whole")


def large(talk: Http2) -> None:
    """Bodies of many frames, both ways at once."""
    stream = talk.request("/large", method="PUT", end=False)
    talk.response(stream)
    up, down = noise(60_000, 3), noise(150_000, 4)
    while up or down:
        size = min(16_000, talk.client.local_flow_control_window(stream))
        talk.client.send_data(stream, up[:size], end_stream=size >= len(up)) if up else None
        up = up[size:]
        size = min(16_384, talk.server.local_flow_control_window(stream))
        talk.server.send_data(stream, down[:size], end_stream=size >= len(down)) if down else None
        down = down[size:]
        talk.flush()


def table_sizes(talk: Http2) -> None:
    """HPACK's tables shrink to nothing and grow, on both sides; the same fields all the time."""
    fields = [(b"x-kept", b"in the table"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-long", b"v" * 90)]
    for number, size in enumerate((4096, 0, 100, 65536, 200)):
        for end in (talk.client, talk.server):
            end.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
            talk.flush()
        for again in range(2):
            stream = talk.request(f"/table/{number}/{again}", *fields, (b"x-number", b"%d" % number))
            talk.response(stream, *fields, (b"x-again", b"%d" % again), end=True)


def coded(talk: Http2) -> None:
    """Content codings, and messages without content."""
    for path, data, coding in (
        ("/gzip", gzip.compress(TEXT, mtime=0), b"gzip"),
        ("/deflate", zlib.compress(TEXT), b"deflate"),
        ("/br", brotli.compress(TEXT), b"br"),
        ("/zstd", zstandard.compress(TEXT), b"zstd"),
    ):
        stream = talk.request(path)
        talk.response(stream, (b"content-encoding", coding), (b"content-type", b"text/plain"))
        talk.body(stream, data[:10], data[10:])
    stream = talk.request("/head", method="HEAD")
    talk.response(stream, (b"content-length", b"100"), end=True)
    stream = talk.request("/unchanged")
    talk.response(stream, (b"content-length", b"100"), status=304, end=True)


def informed(talk: Http2) -> None:
    """Interim answers."""
    stream = talk.request("/informed", (b"expect", b"100-continue"), method="POST", end=False)
    talk.response(stream, status=100)
    talk.client.send_data(stream, b"go on", end_stream=True)
    talk.flush()
    talk.response(stream, (b"link", b"</a.css>; rel=preload"), status=103)
    talk.response(stream, status=201)
    talk.body(stream, b"done")


def one_padded_frame(talk: Http2) -> None:
    """A body in a single frame, padded."""
    stream = talk.request("/padded-frame")
    talk.response(stream)
    talk.body(stream, b"padded", padding=9)


def small_table(talk: Http2) -> None:
    """A table that is made smaller before any header block was sent."""
    talk.client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 200})
    talk.flush()
    stream = talk.request("/small-table")
    talk.response(stream)
    talk.body(stream, b"small")


def by_hand(talk: Http2) -> None:
    """What h2 does not write: a head of many frames, padded, with a priority, some of them empty; unknown frames."""
    block = talk.client.encoder.encode([*pseudo("/by-hand"), (b"x-one", b"1"), (b"x-two", b"2")])
    first = bytes((4,)) + b"\0\0\0\0\x0f" + block[:1] + bytes(4)
    pieces = [block[at : at + 3] for at in range(1, len(block), 3)]
    request = frame(HEADERS, END_STREAM | 8 | 32, 1, first) + frame(CONTINUATION, 0, 1)
    request += b"".join(frame(CONTINUATION, 0, 1, piece) for piece in pieces) + frame(CONTINUATION, END_HEADERS, 1)
    talk.steps.append((REQUEST, frame(0x2A, 0xFF, 0, b"unknown") + request))
    answer = talk.server.encoder.encode([(b":status", b"200"), (b"x-three", b"3")])
    talk.steps.append((RESPONSE, frame(HEADERS, 0, 1, answer[:2]) + frame(CONTINUATION, END_HEADERS, 1, answer[2:])))
    talk.steps.append((RESPONSE, frame(0, 0, 1) + frame(0, END_STREAM, 1, b"by hand") + frame(0x2A, 0, 1, b"unknown")))


HTTP2: dict[str, Callable[[Http2], None]] = {
    "h2 interleaved": interleaved,
    "h2 long heads": long_heads,
    "h2 padding": padding,
    "h2 trailers": trailers,
    "h2 push": push,
    "h2 reset": reset,
    "h2 large": large,
    "h2 table sizes": table_sizes,
    "h2 coded": coded,
    "h2 informed": informed,
    "h2 one padded frame": one_padded_frame,
    "h2 small table": small_table,
    "h2 by hand": by_hand,
}
SEEDS = (0, 1, 2, 3, 5)
"""Conversations of `test_http2` that avoid what tshark gets wrong in the talks above."""


def http2_calls(make: Callable[[Http2], None]) -> Calls:
    talk = Http2()
    make(talk)
    return talk.calls()


def talks() -> dict[str, Calls]:
    """Return everything that is said, by name."""
    everything = HTTP1 | {name: http2_calls(make) for name, make in HTTP2.items()}
    (preface, *rest) = http2_calls(interleaved)
    everything["h2 cut"] = [preface, *cut(rest, 11)]
    (preface, *rest) = http2_calls(informed)
    everything["h2 preface cut"] = [*cut([preface], 11), *rest]
    for seed in SEEDS:
        steps = conversation(seed).steps
        everything[f"h2 random {seed}"] = [(OUT if side is REQUEST else IN, bytes(data)) for side, data in steps]
    return everything


PORTS = (443, 8080)
"""Of servers: the first makes the framing tls-null, the second plain."""


def write(path: Path, calls: dict[str, Calls]) -> dict[int, str]:
    """Write a pcapng in which every talk takes place in either framing; returns the names of the connections."""
    parts = [samples.start(), samples.process(b"client", b"client")]
    names: dict[int, str] = {}
    now = MONOTONIC_NS
    for name, talk in calls.items():
        for port in PORTS:
            conn = len(names) + 1
            names[conn] = name
            parts.append(samples.opened(conn=conn, ssl=conn * 64, time_ns=now))
            parts.append(samples.address(conn=conn, local_port=20000 + conn, remote_port=port, time_ns=now))
            parts.append(samples.alpn(b"h2" if name.startswith("h2 ") else b"http/1.1", conn=conn, time_ns=now))
            passed = [0, 0]
            for way, call in talk:
                now += MS
                parts.append(samples.data(call, passed[way], way, conn=conn, time_ns=now))
                passed[way] += len(call)
            parts.append(samples.eof(conn=conn, time_ns=now) + samples.shutdown(conn=conn, time_ns=now))
            parts.append(samples.closed(*passed, conn=conn, time_ns=now))
    parts.append(samples.end())
    builder = PcapngBuilder()
    with path.open("wb") as file:
        for part in parts:
            file.writelines(builder.feed(part))
        file.writelines(builder.finish())
    return names


# --- tshark ---


@dataclass(frozen=True)
class Known:
    """A way in which tshark is known to differ, and why; docs/tshark.md lists them."""

    why: str
    lines: tuple[str, ...] = ()
    """What is then found, tlscap's word first: with either version of tshark, or only with one."""
    only_40: tuple[str, ...] = ()
    only_44: tuple[str, ...] = ()

    def expected(self, version: str) -> tuple[str, ...]:
        return self.lines + (self.only_40 if version == "4.0" else self.only_44)

    def row(self) -> str:
        """Return its row in docs/tshark.md."""
        versions = ["4.0" if self.lines or self.only_40 else "", "4.4" if self.lines or self.only_44 else ""]
        where = {re.split(r" #|: | bytes of no", line)[0] for line in self.lines + self.only_40 + self.only_44}
        return f"| {self.why} | {', '.join(filter(None, versions))} | {'; '.join(sorted(where))} |"


REST_OF_204 = b"ontent\r\n\r\n"
BEHIND_FOLD = b"  two\r\nX-Tab:\ttab\t\r\n\r\n"
UNTIL_END = b"until the end\n"
GRPC_REPLY = b"\0\0\0\0\x0d\n\x0bHello world"
SENT = [f"text {b'Hello'.hex()}", f"text {b'not compressed'.hex()}", f"text {b'Hello'.hex()}"]
SENT += [f"pong {b'are you there?'.hex()}", f"close {b'bye'.hex()}"]
STILL_PACKED = "text f248cdc9c90700"

KNOWN = (
    Known(
        "In plain framing every URL begins with `http:`, as nothing says that the connection was encrypted",
        ("generated: every URL: https | http", "holes-plain: every URL: https | http"),
    ),
    Known(
        "A request without a Host field has no URL; tlscap takes the name in the TLS handshake, or the address",
        (
            "HTTP/1.0 #1 request url: https://93.184.216.34/old/1 | nothing (tls-null)",
            "HTTP/1.0 #1 response answers: https://93.184.216.34/old/1 | nothing (tls-null)",
            "HTTP/1.0 #1 request url: https://93.184.216.34:8080/old/1 | nothing (plain)",
            "HTTP/1.0 #1 response answers: https://93.184.216.34:8080/old/1 | nothing (plain)",
        ),
    ),
    Known(
        "The target `*` stands in the URL, which then is that of another host (RFC 9112, 3.2.4)",
        (
            "targets #2 request url: https://example.org | https://example.org*",
            "targets #2 response answers: https://example.org | https://example.org*",
        ),
    ),
    Known(
        "With pipelining, the first response is linked to the newest request and the others to none",
        (
            "pipelined #1 response answers: https://example.org/pipe/1 | https://example.org/pipe/3",
            "pipelined #2 response answers: https://example.org/pipe/2 | nothing",
            "pipelined #3 response answers: https://example.org/pipe/3 | nothing",
            "pipelined, one at a time #1 response answers: https://example.org/pipe/4 | https://example.org/pipe/5",
            "pipelined, one at a time #2 response answers: https://example.org/pipe/5 | nothing",
            "pipelined, cut #1 response answers: https://example.org/pipe/6 | https://example.org/pipe/7",
            "pipelined, cut #2 response answers: https://example.org/pipe/7 | nothing",
        ),
    ),
    Known(
        "For the same reason, the response to a pipelined HEAD is given a body: bytes of the next response",
        (
            f"chunked/1 #2 response body: nothing | {digest(b'HTTP/1.1 204 No C')}",
            "chunked/1 #3 response: HTTP/1.1 204 No Content | nothing",
            "chunked/1 bytes of no message: none | some",
            f"chunked: object nothing | {digest(b'HTTP/1.1 204 No C')}",
            f"chunked: object nothing | {digest(REST_OF_204)}",
        ),
    ),
    Known(
        "A response that begins before its request is over is not linked to it",
        ("answered early #1 response answers: https://example.org/early/1 | nothing",),
    ),
    Known(
        "A response behind an interim one is not linked to its request",
        only_40=(
            "interim #1 response answers: https://example.org/interim/1 | nothing",
            "chunked/1 #1 response answers: https://example.org/upload | nothing",
        ),
    ),
    Known(
        "Within TLS, a body that lasts until the connection closes never ends, and its response is not shown",
        (
            "until close #1 response: HTTP/1.1 200 OK | nothing (tls-null)",
            f"generated: object {digest(b'until the end')} | nothing",
            "close-delimited/1 #1 response: HTTP/1.0 200 OK | nothing",
            "close-delimited/2 #1 response: HTTP/1.0 200 OK | nothing",
            "close-delimited/3 #1 response: HTTP/1.0 200 OK | nothing",
            f"close-delimited: object {digest(UNTIL_END)} | nothing",
        ),
    ),
    Known(
        "A message that is cut short, or in plain framing has a hole, is not shown; nor are bytes that are missing behind it",
        (
            "cut short #1 response: HTTP/1.1 200 OK | nothing",
            "holes-plain/1 #1 response: HTTP/1.1 200 OK | nothing",
            "holes-plain/1 bytes of no message: some | none",
        ),
    ),
    Known(
        "In tls-null framing zeros take the place of missing bytes, and count as content",
        (
            "holes/1 #1 response body: 400 bytes 5db999e69b23b7a8 | 1000 bytes 029d5e4d6e391c42",
            "holes: object nothing | 1000 bytes 029d5e4d6e391c42",
        ),
    ),
    Known(
        "zstd is not undone, nor are two content codings, one upon the other",
        (
            f"zstd #1 response body: {digest(TEXT)} | nothing",
            f"two codings #1 response body: {digest(TEXT)} | nothing",
            f"h2 coded #4 response body: {digest(TEXT)} | {digest(zstandard.compress(TEXT))}",
            f"generated: object {digest(TEXT)} | nothing",
        ),
        only_44=(f"generated: object nothing | {digest(zstandard.compress(TEXT))}",),
    ),
    Known(
        "A folded line ends the head; what follows, and an empty line in front of a request, are shown as continuation",
        (
            "odd lines #1 request fields: Host: example.org; X-Folded: one two; X-Tab: tab | Host: example.org; X-Folded: one",
            "odd lines bytes of no message: none | some",
            f"generated: object nothing | {digest(BEHIND_FOLD)}",
        ),
    ),
    Known(
        "The empty line that ends trailers is shown as continuation when it comes alone",
        ("chunked, cut bytes of no message: none | some",),
    ),
    Known(
        "What passes through a tunnel is shown as continuation",
        ("connect bytes of no message: none | some",),
    ),
    Known(
        "In plain framing the preface of HTTP/2 is exported as an object of HTTP/1",
        ("generated: object nothing | preface of HTTP/2",),
    ),
    Known(
        "The URL is made of the fields in one frame: what a CONTINUATION frame adds is not in it",
        (
            "h2 by hand #1 request url: https://h2.example/by-hand | (null)://h2.example(null)",
            "http2-frames/1 #1 request url: https://www.example.com/ | (null)://www.example.com(null)",
        ),
    ),
    Known(
        "When a peer makes HPACK's table smaller, but not empty, before it was sent a header block, none is decoded (RFC 7541, 4.2)",
        ("h2 small table #1 response: HTTP/2 200 | nothing",),
        only_44=(f"generated: object {digest(b'small')} | nothing",),
    ),
    Known(
        "A padded DATA frame that is all of a body: the padding counts as content",
        only_40=(f"h2 one padded frame #1 response body: {digest(b'padded')} | {digest(b'padded' + bytes(9))}",),
    ),
    Known(
        "A preface that comes in pieces is not recognised",
        only_40=(
            "h2 preface cut #1 request: POST https h2.example /informed | nothing",
            "h2 preface cut #1 interim: 100, 103 | nothing (plain)",
            "h2 preface cut #1 response: HTTP/2 201 | nothing (plain)",
        ),
    ),
    Known(
        "What still comes on a stream that was reset counts as content",
        (f"http2-frames/1 #4 response body: {digest(b'too ')} | {digest(b'too late')}",),
        only_44=(f"http2-frames: object nothing | {digest(b'too late')}",),
    ),
    Known(
        "Behind a hole over a frame header nothing of that direction is understood any more",
        ("lost-step/2 #3 response: HTTP/2 200 | nothing",),
        only_44=(f"lost-step: object {digest(b'after')} | nothing",),
    ),
    Known(
        "A response that is quoted in a damaged body is exported, though not shown",
        (f"lost-step: object nothing | {digest(b'fake')}",),
    ),
    Known(
        "Fragments of a compressed WebSocket message are put together, but not inflated",
        only_40=(
            "websocket/1 #1 request messages: "
            + ", ".join(SENT)
            + " | "
            + ", ".join((*SENT[:2], STILL_PACKED, *SENT[3:])),
        ),
    ),
    Known(
        "Bodies of gRPC are not exported, unlike others of HTTP/2",
        only_44=(
            "grpc: object 35 bytes 209e41046a1cfaa5 | nothing",
            f"grpc: object {digest(GRPC_REPLY)} | nothing",
            f"grpc: object {digest(bytes(5))} | nothing",
        ),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return tshark's home, and the place for what it writes."""
    return tmp_path_factory.mktemp("tshark")


@pytest.fixture(scope="module")
def version() -> str:
    version = tshark_version()
    if version not in ("4.0", "4.4"):
        pytest.skip(f"what to expect is known of tshark 4.0 and 4.4, not of {version}")
    return version


def found(path: Path, folder: Path, version: str, names: dict[int, str]) -> set[str]:
    """Return every difference over a capture in words; ``names`` are those of its connections.

    What the two framings have in common is said once.
    """
    ours, theirs = told_by_tlscap(path, http2_objects=version != "4.0"), told_by_tshark(path, folder)
    lines: dict[str, set[str]] = {}
    for one in differences(ours, theirs):
        framing = theirs.framings[one.flow]
        if framing == "plain" and one.is_url:
            one = replace(one, tshark=one.tshark.replace("http:", "https:", 1))
        if one.tshark == one.tlscap:
            lines[f"{path.stem}: every URL: https | http"] = set(theirs.framings.values())
        else:
            lines.setdefault(f"{names[one.flow]} {one}", set()).add(framing)
    for flow in ours.strays ^ theirs.strays:
        what = "some | none" if flow in ours.strays else "none | some"
        lines.setdefault(f"{names[flow]} bytes of no message: {what}", set()).add(theirs.framings[flow])
    everywhere = set(theirs.framings.values())
    texts = {line if at == everywhere else f"{line} ({', '.join(at)})" for line, at in lines.items()}
    texts |= {f"{path.stem}: object {body} | nothing" for body in ours.objects - theirs.objects}
    return texts | {f"{path.stem}: object nothing | {body}" for body in theirs.objects - ours.objects}


def expected(version: str, capture: str = "") -> set[str]:
    """Return the differences that are known: over a golden capture, or else over what was said here."""
    golden = tuple(f"{path.stem}{mark}" for path in CAPTURES.glob("*.pcapng") for mark in "/:")
    mine = (f"{capture}/", f"{capture}:") if capture else golden
    lines = {line for known in KNOWN for line in known.expected(version)}
    return {line for line in lines if line.startswith(mine) is bool(capture)}


@pytest.fixture(scope="module")
def generated(folder: Path) -> tuple[Path, dict[int, str]]:
    """Return a capture of everything that is said above, and what its connections are."""
    path = folder / "generated.pcapng"
    return path, write(path, talks())


def test_generated(generated: tuple[Path, dict[int, str]], folder: Path, version: str) -> None:
    """tshark and tlscap say the same of it, but for what is known and explained."""
    path, names = generated
    assert found(path, folder, version, names) == expected(version)


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.pcapng")), ids=lambda path: path.stem)
def test_captures(path: Path, folder: Path, version: str) -> None:
    """And of every golden capture."""
    names = {flow: f"{path.stem}/{flow}" for flow in items_of(path)}
    assert found(path, folder, version, names) == expected(version, path.stem)


def test_everything_is_there(generated: tuple[Path, dict[int, str]]) -> None:
    """That they agree is no silence: hundreds of exchanges, on every connection, and every kind of fact."""
    path, names = generated
    told = told_by_tlscap(path, http2_objects=True)
    assert told.flows.keys() == names.keys()
    assert len(told.objects) > 50
    facts = Counter(what for flow in told.flows.values() for said in flow for what in said)
    assert facts["request"] > 200
    for side in ("request", "response"):
        assert all(facts[f"{side} {part}"] >= 6 for part in ("fields", "trailers", "body")), facts


def test_docs() -> None:
    """docs/tshark.md lists what is known, and nothing else."""
    page = (Path(__file__).parent.parent / "docs" / "tshark.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| tshark ")]
    assert rows == [known.row() for known in KNOWN]


# --- The same bytes in other pieces ---


def in_pieces(items: Iterable[Item], size: int) -> list[Item]:
    """Return the same items, no data and no hole longer than ``size`` bytes."""
    return [piece for item in items for piece in pieces(item, *range(size, length_of(item), size))]


def length_of(item: Item) -> int:
    return len(item.data) if isinstance(item, Data) else item.length if isinstance(item, Gap) else 0


def pieces(item: Item, *points: int) -> list[Item]:
    """Return an item, cut at these points if it is data or a hole."""
    edges = pairwise((0, *points, length_of(item)))
    if isinstance(item, Data):
        return [replace(item, offset=item.offset + start, data=item.data[start:end]) for start, end in edges]
    if isinstance(item, Gap):
        return [replace(item, offset=item.offset + start, length=end - start) for start, end in edges]
    return [item]


def halves(items: list[Item]) -> Iterator[tuple[int, int, list[Item]]]:
    """Yield an item's index, a point in it, and the items with that one cut in two there.

    For all points in all data, and some in holes: these have nothing in them.
    """
    for index, item in enumerate(items):
        length = length_of(item)
        points = {1, 2, length // 2, length - 1} - {0, length} if isinstance(item, Gap) else range(1, length)
        for point in points:
            yield index, point, [*items[:index], *pieces(item, point), *items[index + 1 :]]


def joined(items: Iterable[Item]) -> list[Item]:
    """Return items at one time, those joined that have nothing between them."""
    result: list[Item] = []
    for item in items:
        before = result[-1] if result else None
        if isinstance(before, Data) and isinstance(item, Data) and before.direction is item.direction:
            result[-1] = replace(before, data=before.data + item.data)
        else:
            result.append(replace(item, time_ns=0))
    return result


FLOWS = [
    pytest.param(
        path.name.removesuffix(".tlscap.zst"), flow, items, id=f"{path.name.removesuffix('.tlscap.zst')}/{flow}"
    )
    for path in sorted(CAPTURES.glob("*.tlscap.zst"))
    for flow, items in items_of(path).items()
]

MATTERS = {
    # The rest of a body of which a hole took the head and the beginning.  It quotes a response.
    ("lost-step", 1): b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake",
    # The rest of a frame of which a hole took the header; here the next frame begins.
    ("lost-step", 2): b"\0\0\1\0\1\0\0\0\3.",
}
"""Where it matters how bytes are cut: the data behind the only points at which it does.

An observer that a hole put out of step looks for the next message where an *item begins*.  What begins one in the middle of an
item is passed over, and taken for one when the item is cut just there: wrongly in the first case, rightly in the second."""


@pytest.mark.parametrize(("name", "flow", "items"), FLOWS)
def test_every_split_point(name: str, flow: int, items: list[Item]) -> None:
    """Everything that is said of a connection is the same wherever its data and holes are cut in two, and byte by byte.

    Everything: heads, times, bodies, messages, what is complete and what is odd, what is not readable.
    """
    whole = read(items)
    odd = [(items[index], point, read(cut)) for index, point, cut in halves(items) if read(cut) != whole]
    rests = [item.data[point:] if isinstance(item, Data) else item for item, point, _ in odd]
    assert rests == [data for place, data in MATTERS.items() if place == (name, flow)]
    for size in (1, 2, 3, 7, 64):
        again = read(in_pieces(items, size))
        assert again in (whole, *(result for _, _, result in odd))
        if size == 1 and odd:
            assert again == odd[0][2]


@pytest.mark.parametrize(("name", "flow", "items"), FLOWS)
def test_joined(name: str, flow: int, items: list[Item]) -> None:
    """Nor does it matter that data came in several items, times aside."""
    assert read(joined(items)) == read([replace(item, time_ns=0) for item in items])


@pytest.mark.parametrize(("name", "flow", "items"), [flow for flow in FLOWS if tuple(flow.values[:2]) in MATTERS])
def test_where_it_matters(name: str, flow: int, items: list[Item]) -> None:
    """Even there, what was complete stays what it was, requests are the same, and no more bytes are unreadable."""
    exchanges, unreadable = read(items)
    changed, still_unreadable = read(in_pieces(items, 1))
    assert still_unreadable < unreadable
    after = {one.line["number"]: one for one in changed}
    assert len(after) == len(exchanges)
    for before in exchanges:
        now = after[before.line["number"]]
        assert now.line["request"] == before.line["request"]
        if before.line["complete"]:
            assert now.line | {"id": 0} == before.line | {"id": 0}
            assert (now.bodies, now.messages) == (before.bodies, before.messages)
