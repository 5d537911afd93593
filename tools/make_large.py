#!/usr/bin/env python3
"""Writes a large capture for measuring how fast captures are read: a sidecar and its pcapng.

    make_large.py NAME [--exchanges 110000] [--size 10000]

Every fourth connection speaks HTTP/2, the others HTTP/1.1; each carries a few hundred exchanges, and some are open at the same time.
Bodies are pieces of one random block: they don't compress, so the files are as large as what passed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import hpack

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import samples  # noqa: E402
from samples import IN, MONOTONIC_NS, MS, OUT, data  # noqa: E402

from tlscap.rebuild import PcapngBuilder  # noqa: E402
from tlscap.sidecar import FRAME_SIZE, SidecarReader, SidecarWriter  # noqa: E402

PER_CONNECTION = 200
AT_ONCE = 8
CALL = 16384
H2_FRAME = 16384
STATUSES = (200, 200, 200, 200, 200, 304, 404, 503)
HOSTS = ("api.example.org", "www.example.org", "cdn.example.net")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Http1:
    """The bytes of one exchange after the other."""

    def begin(self) -> tuple[bytes, bytes]:
        return b"", b""

    def exchange(self, number: int, status: int, host: str, body: bytes) -> tuple[bytes, bytes]:
        request = (
            f"GET /items/{number}?page=1 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: client/1.0\r\nAccept: */*\r\n"
            f"Cookie: session=0123456789abcdef\r\n\r\n"
        )
        length = "" if status == 304 else f"Content-Length: {len(body)}\r\n"
        head = f'HTTP/1.1 {status} X\r\nServer: server\r\nContent-Type: application/octet-stream\r\n{length}ETag: "{number}"\r\n\r\n'
        return request.encode(), head.encode() + (b"" if status == 304 else body)


class Http2:
    """The same in HTTP/2."""

    def __init__(self) -> None:
        self._requests, self._responses = hpack.Encoder(), hpack.Encoder()
        self._streams = itertools.count(1, 2)

    def begin(self) -> tuple[bytes, bytes]:
        settings = frame(4, 0, 0, b"")
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings, settings

    def exchange(self, number: int, status: int, host: str, body: bytes) -> tuple[bytes, bytes]:
        stream = next(self._streams)
        request = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", f"/items/{number}?page=1"),
                   ("user-agent", "client/1.0"), ("accept", "*/*"), ("cookie", "session=0123456789abcdef")]  # fmt: skip
        response = [(":status", str(status)), ("server", "server"), ("content-type", "application/octet-stream"),
                    ("etag", f'"{number}"')]  # fmt: skip
        if status == 304:
            body = b""
        parts = [frame(1, 4 | (not body), stream, self._responses.encode(response))]
        for at in range(0, len(body), H2_FRAME):
            last = at + H2_FRAME >= len(body)
            parts.append(frame(0, int(last), stream, body[at : at + H2_FRAME]))
        return frame(1, 5, stream, self._requests.encode(request)), b"".join(parts)


def records(exchanges: int, size: int) -> Iterator[bytes]:
    """Yield the kernel's samples."""
    chance = random.Random(1)
    block = chance.randbytes(8 << 20)  # more than zstd looks back
    yield samples.start() + samples.process(b"client", b"client", time_ns=MONOTONIC_NS)
    now = MONOTONIC_NS + MS
    number, conn = 0, 0
    while number < exchanges:
        group = []
        for _ in range(AT_ONCE):
            conn += 1
            talk: Http1 | Http2 = Http2() if conn % 4 == 0 else Http1()
            host = HOSTS[conn % len(HOSTS)]
            yield samples.opened(conn=conn, role=1, ssl=0x7F0000000000 + conn * 64, time_ns=now)
            yield samples.handshake(conn=conn, start_ns=now - MS, time_ns=now)
            yield samples.sni(host.encode(), conn=conn, time_ns=now)
            yield samples.alpn(b"h2" if conn % 4 == 0 else b"http/1.1", conn=conn, time_ns=now)
            yield samples.address(conn=conn, local_port=1024 + conn % 60000, time_ns=now)
            sent, received = talk.begin()
            if sent:
                yield data(sent, 0, OUT, conn=conn, time_ns=now)
                yield data(received, 0, IN, conn=conn, time_ns=now)
            group.append((conn, host, talk, [len(received), len(sent)]))
        for _ in range(PER_CONNECTION):
            for of, host, talk, ledger in group:
                number += 1
                status = chance.choice(STATUSES)
                start = chance.randrange(len(block) - 2 * size)
                request, response = talk.exchange(
                    number, status, host, block[start : start + chance.randrange(size // 2, size * 2)]
                )
                now += 20_000
                yield data(request, ledger[1], OUT, conn=of, time_ns=now)
                ledger[1] += len(request)
                for at in range(0, len(response), CALL):
                    now += chance.randrange(50_000, 5_000_000)
                    part = response[at : at + CALL]
                    yield data(part, ledger[0], IN, conn=of, time_ns=now)
                    ledger[0] += len(part)
        for of, _, _, ledger in group:
            yield samples.closed(*ledger, conn=of, time_ns=now)
    yield samples.end()


def write(name: Path, exchanges: int, size: int) -> tuple[Path, Path]:
    """Write both files; returns their names."""
    sidecar, pcapng = name.with_name(name.name + ".tlscap.zst"), name.with_name(name.name + ".pcapng")
    with sidecar.open("wb") as stream:
        writer = SidecarWriter(stream)
        held = bytearray()
        for record in records(exchanges, size):
            held += record
            if len(held) >= FRAME_SIZE:
                writer.write(held)
                held.clear()
        writer.write(held)
        writer.close()
    builder = PcapngBuilder()
    with sidecar.open("rb") as source, pcapng.open("wb") as target:
        for unpacked in SidecarReader(source).frames():
            target.writelines(builder.feed(unpacked))
        target.writelines(builder.finish())
    return sidecar, pcapng


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("name", type=Path)
    parser.add_argument("--exchanges", type=int, default=110_000)
    parser.add_argument("--size", type=int, default=10_000, help="mean size of a body in bytes")
    arguments = parser.parse_args()
    for path in write(arguments.name, arguments.exchanges, arguments.size):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
