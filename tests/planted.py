"""A capture with secrets everywhere that a capture can have them, and a search for every form in which one could be left."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import brotli
import hpack
import samples
import zstandard
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from samples import IN, MONOTONIC_NS, MS, OUT

from tlscap.replay.recording import RecordedExchange
from tlscap.sidecar import SidecarWriter

PLANTED = {
    "bearer": b"tok+en/With=every~char.9",
    "password": b'p"a\\ss/w\xc3\xb6rd&x=1',
    "cookie": b"c00kie-Value_7f3a",
    "cookie2": b"set-by-server%2F42",
    "apikey": b"AKeyInTheQuery77",
    "json": b"j5on-Secret-Value",
    "form": b"form secret+plus",
    "multipart": b"multipart-s3cret-Field",
    "github": b"ghp_" + b"a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "jwt": b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLWhlcmU",
    "aws": b"AKIAIOSFODNN7EXAMPLE",
    "stripe": b"sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "slack": b"xoxb-123456789012-abcdefGHIJKL",
    "google": b"AIzaSyA1234567890abcdefghijklmnopqrstu_",
    "pem": b"-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx1\nTHISISTHEKEYMATERIAL99\n-----END RSA PRIVATE KEY-----",
    "url": b"ur1Passw0rd",
    "cmdline": b"cmdl1nePass",
    "hunter": b"hunter2",
}
WS_KEY = b"\x01\x02\x03\x04"


def forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield every form in which a secret could be left."""
    text = secret.decode()
    yield "plain", secret
    yield "URL", quote(secret, safe="").encode()
    yield "form", quote_plus(secret).encode()
    yield "path", quote(secret).encode()
    yield "JSON", json.dumps(text)[1:-1].encode()
    yield "JSON, UTF-8", json.dumps(text, ensure_ascii=False)[1:-1].encode()
    yield "JSON, slashes", json.dumps(text)[1:-1].replace("/", "\\/").encode()
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    for skip in range(3):
        coded = base64.b64encode(bytes(skip) + secret)
        core = coded[(skip * 8 + 5) // 6 : (skip + len(secret)) * 8 // 6]
        yield f"base64 at {skip}", core
        yield f"base64url at {skip}", core.replace(b"+", b"-").replace(b"/", b"_")
    if len(secret) >= 8:
        yield "Huffman", HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(secret)[:-1]


def found_in(data: bytes) -> list[str]:
    """Return which secrets are left in bytes, and how."""
    return [f"{name}: {how}" for name, secret in PLANTED.items() for how, form in forms(secret) if form in data]


def texts_of(exchange: RecordedExchange) -> Iterator[bytes]:
    """Yield all that is said in an exchange, decoded."""
    yield exchange.url.encode()
    for message in (exchange.request, exchange.response):
        if message:
            yield b"".join(name + b": " + value + b"\n" for name, value in (*message.headers, *message.trailers))
            yield message.body
            yield message.decoded()
    for one in exchange.messages:
        yield one.data
    yield "\n".join(exchange.flow.process.cmdline).encode()


# --- Making it ---


class Plot:
    """Puts connections into a file, call by call."""

    def __init__(self) -> None:
        line = [b"curl", b"-u", b"alice:" + PLANTED["cmdline"], b"-H", b"Authorization: Bearer " + PLANTED["bearer"]]
        self.parts = [samples.start(), samples.process(b"curl", *line)]
        self.now = MONOTONIC_NS
        self.conn = 0

    def connection(self, *calls: tuple[int, bytes], alpn: bytes = b"http/1.1", cut: int = 0) -> None:
        """Add a connection; with ``cut``, each call is told in samples of so many bytes."""
        self.conn += 1
        head: dict[str, Any] = {"conn": self.conn, "time_ns": self.now}
        self.parts += [samples.opened(**head), samples.address(local_port=40000 + self.conn, **head)]
        self.parts += [samples.sni(**head), samples.alpn(alpn, **head)]
        offsets = [0, 0]
        for direction, data in calls:
            for begin in range(0, len(data), cut or len(data)):
                piece = data[begin : begin + (cut or len(data))]
                self.now += MS
                self.parts.append(samples.data(piece, offsets[direction], direction, conn=self.conn, time_ns=self.now))
                offsets[direction] += len(piece)
        self.parts.append(samples.closed(offsets[IN], offsets[OUT], conn=self.conn, time_ns=self.now))

    def write(self, path: Path) -> Path:
        with path.open("wb") as stream:
            writer = SidecarWriter(stream)
            writer.write(b"".join([*self.parts, samples.end()]))
            writer.close()
        return path


def request(line: str, *fields: bytes, body: bytes = b"") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return line.encode() + b" HTTP/1.1\r\nHost: example.org\r\n" + lines + length + b"\r\n" + body


def response(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body) + lines + b"\r\n" + body


def chunked(body: bytes, size: int, *fields: bytes) -> bytes:
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[at : at + size]), body[at : at + size]) for at in range(0, len(body), size)
    )
    lines = b"".join(field + b"\r\n" for field in (b"Transfer-Encoding: chunked", *fields))
    return b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + chunks + b"0\r\nX-Echo: " + PLANTED["bearer"] + b"\r\n\r\n"


def echo(coding: str = "") -> bytes:
    """Return a page that repeats every secret, in many ways, where no rule would look."""
    words = []
    for secret in PLANTED.values():
        words += [form for how, form in forms(secret) if how != "Huffman" and "base64" not in how]
        words += [base64.b64encode(b"." * skip + secret + b" and more") for skip in range(3)]
        words.append(base64.urlsafe_b64encode(b"?>" + secret))
    return b"<html><p>" + b"</p>\n<p>".join(words) + b"</p></html>" + coding.encode()


def declared() -> bytes:
    """Return JSON that names secrets, so that they are known."""
    secrets = {
        "access_token": PLANTED["bearer"].decode(),
        "nested": [{"user": {"dbPassword": PLANTED["password"].decode(), "id": 7}}],
        "client_secret": PLANTED["json"].decode(),
        "note": f"see {PLANTED['github'].decode()} and {PLANTED['aws'].decode()}",
        "pem": PLANTED["pem"].decode(),
        "tokens": {"jwt": PLANTED["jwt"].decode(), "password": PLANTED["hunter"].decode()},
        "upstream": f"https://bob:{PLANTED['url'].decode()}@db.example/",
    }
    return json.dumps(secrets, indent=1).encode()


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def grpc(message: bytes, *, compress: bool) -> bytes:
    data = gzip.compress(message) if compress else message
    return struct.pack(">BI", compress, len(data)) + data


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def websocket(data: bytes, opcode: int, *, masked: bool, fin: bool = True, deflated: bool = False) -> bytes:
    head = bytes([(0x80 if fin else 0) | (0x40 if deflated else 0) | opcode])
    mask = 0x80 if masked else 0
    head += bytes([mask | len(data)]) if len(data) < 126 else struct.pack(">BH", mask | 126, len(data))
    if masked:
        data = bytes(byte ^ WS_KEY[at % 4] for at, byte in enumerate(data))
        head += WS_KEY
    return head + data


def plant(path: Path) -> Path:
    """Write the capture."""
    plot = Plot()
    get = request(
        f"GET /start?api_key={quote(PLANTED['apikey'])}&page=2",
        b"Authorization: Bearer " + PLANTED["bearer"],
        b"Cookie: sid=" + PLANTED["cookie"] + b"; lang=en",
    )
    basic = b"Authorization: Basic " + base64.b64encode(b"alice:" + PLANTED["password"])
    codings = {
        "": lambda data: data,
        "gzip": gzip.compress,
        "br": brotli.compress,
        "zstd": zstandard.compress,
        "deflate": zlib.compress,
        "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    }
    for cut in (0, 7):  # whole calls, and secrets split over many
        calls = []
        for name, encode in codings.items():
            fields = [b"Content-Encoding: " + name.encode()] if name else []
            calls += [(OUT, get), (IN, response(encode(declared()), b"Content-Type: application/json", *fields))]
            calls += [
                (OUT, request("GET /echo", basic)),
                (IN, response(encode(echo()), b"Content-Type: text/html", *fields)),
            ]
        plot.connection(*calls, cut=cut)
    plot.connection(
        (OUT, get),
        (
            IN,
            chunked(
                declared(), 5, b"Set-Cookie: sid2=" + PLANTED["cookie2"] + b"; Path=/; HttpOnly", b"Trailer: X-Echo"
            ),
        ),
        (OUT, get),
        (IN, chunked(gzip.compress(echo()), 11, b"Content-Encoding: gzip")),
    )
    form = b"user=alice&password=" + quote_plus(PLANTED["form"]).encode() + b"&token=" + PLANTED["stripe"]
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="api_key"\r\n\r\n' + PLANTED["multipart"] + b"\r\n"
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n' + PLANTED["slack"] + b"\r\n--b--\r\n"
    )
    plot.connection(
        (OUT, request("POST /form", b"Content-Type: application/x-www-form-urlencoded", body=form)),
        (IN, response(echo())),
        (OUT, request("POST /parts", b"Content-Type: multipart/form-data; boundary=b", body=parts)),
        (IN, response(b'data: {"token": "' + PLANTED["google"] + b'"}\n\n', b"Content-Type: text/event-stream")),
    )
    _http2(plot)
    _websocket(plot)
    plot.connection((OUT, b"SSH-2.0-x " + PLANTED["github"]), (IN, b"SSH-2.0-y " + PLANTED["aws"]), alpn=b"ssh")
    return plot.write(path)


def _http2(plot: Plot) -> None:
    """HPACK with its dynamic table and Huffman's code, gRPC with nested and compressed messages, DATA cut anywhere."""
    client, server = hpack.Encoder(), hpack.Encoder()
    asked = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"example.org"), (b":path", b"/S/M")]
    asked += [(b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip")]
    asked += [(b"authorization", b"Bearer " + PLANTED["bearer"]), (b"cookie", b"sid=" + PLANTED["cookie"])]
    inner = delimited(1, b"name") + delimited(2, delimited(9, PLANTED["json"] * 20) + b"\x08\x2a")
    message = delimited(3, inner) + delimited(4, PLANTED["jwt"]) + delimited(5, bytes(range(256)) + PLANTED["bearer"])
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    into = frame(4, 0, 0, b"")
    for stream, compress in ((1, False), (3, True), (5, True)):
        out += frame(1, 4, stream, client.encode(asked))
        body = grpc(message, compress=compress) + grpc(b"", compress=False)
        out += frame(0, 0, stream, body[:50]) + frame(0, 1, stream, body[50:])
        into += frame(
            1,
            4,
            stream,
            server.encode([(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip")]),
        )
        into += frame(0, 0, stream, body[:31]) + frame(0, 0, stream, body[31:])
        into += frame(
            1,
            5,
            stream,
            server.encode(
                [(b"grpc-status", b"7"), (b"grpc-message", b"bad token " + quote(PLANTED["bearer"]).encode())]
            ),
        )
    plot.connection((OUT, out), (IN, into), alpn=b"h2", cut=23)


def _websocket(plot: Plot) -> None:
    handshake = request(
        "GET /ws", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Extensions: permessage-deflate"
    )
    agreed = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    text = b'{"password": "' + PLANTED["hunter"] + b'", "again": "' + PLANTED["bearer"] + b'"}'
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = (deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    plot.connection(
        (OUT, handshake),
        (IN, agreed),
        (OUT, websocket(text[:20], 1, masked=True, fin=False) + websocket(text[20:], 0, masked=True)),
        (OUT, websocket(deflated, 1, masked=True, deflated=True)),
        (IN, websocket(b"bin\0" + PLANTED["github"] + b"\0ary", 2, masked=False)),
        (IN, websocket(b"\x03\xe8" + PLANTED["hunter"] + b" is wrong", 8, masked=False)),
    )
