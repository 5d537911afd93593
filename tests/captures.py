"""Small captures on disk, made of what two ends said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import samples
from samples import IN, MONOTONIC_NS, MS, OUT, data

from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader, SidecarWriter

Talk = Iterable[tuple[bytes, bytes]]


def get(path: str, *fields: str, host: str = "example.org") -> bytes:
    """Return a request."""
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()


def answer(body: bytes = b"", *fields: str, status: int = 200) -> bytes:
    """Return a response."""
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def write_capture(path: Path, *talks: Talk, whole: bool = True) -> Path:
    """Write a sidecar (or, by its name, a pcapng) in which each connection asks and is answered in turn; returns its path."""
    parts = [samples.start(), samples.process(b"curl", b"curl")]
    now = MONOTONIC_NS
    for conn, talk in enumerate(talks, 1):
        parts.append(samples.opened(conn=conn, ssl=conn * 64, time_ns=now))
        parts.append(samples.address(conn=conn, local_port=40000 + conn, time_ns=now))
        sent = received = 0
        for request, response in talk:
            now += MS
            parts.append(data(request, sent, OUT, conn=conn, time_ns=now))
            sent += len(request)
            now += MS
            parts.append(data(response, received, IN, conn=conn, time_ns=now))
            received += len(response)
        if whole:
            parts.append(samples.closed(received, sent, conn=conn, time_ns=now))
    parts.append(samples.end())
    sidecar = path if path.name.endswith(".zst") else path.with_name(path.name + ".zst")
    with sidecar.open("wb") as stream:
        writer = SidecarWriter(stream)
        writer.write(b"".join(parts))
        writer.close()
    if path.suffix == ".pcapng":
        builder = PcapngBuilder()
        with sidecar.open("rb") as source, path.open("wb") as target:
            for frame in SidecarReader(source).frames():
                target.writelines(builder.feed(frame))
            target.writelines(builder.finish())
        sidecar.unlink()
    return path
