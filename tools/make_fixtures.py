#!/usr/bin/env python3
"""Writes the golden captures under tests/fixtures/captures: a sidecar and its pcapng for each.

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


STREAMS: dict[str, Callable[[], Frames]] = {
    "http1-keep-alive": http1_keep_alive,
    "holes": holes,
    "holes-plain": holes_plain,
    "http2": http2,
    "both-ends": both_ends,
    "unknown-addresses": unknown_addresses,
    "carried-over": carried_over,
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


def write(folder: Path) -> None:
    """Write every capture into a folder, over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, stream in STREAMS.items():
        (folder / f"{name}.tlscap.zst").write_bytes(sidecar_of(stream()))
        (folder / f"{name}.pcapng").write_bytes(pcapng_of(stream()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=CAPTURES, help="where to (default: %(default)s)")
    folder = parser.parse_args().folder
    write(folder)
    print(f"{2 * len(STREAMS)} files in {folder}")


if __name__ == "__main__":
    main()
