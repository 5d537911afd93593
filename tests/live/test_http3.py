"""HTTP/3 by curl of Debian 13, whose QUIC is OpenSSL's: its streams are recorded as datagram flows, byte for byte."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    Certificates,
    Recorder,
    check_rebuild,
    complaints,
    run_tlscap,
    stop,
    wait_until,
)
from live.stacks.heard import conversations, digest, loopback
from live.subjects import HERE, debian, one, wheels

pytestmark = pytest.mark.live

CURL_AND_LIBRARIES = [
    "curl", "libcurl4t64", "libnghttp3-9", "libnghttp2-14", "libidn2-0", "librtmp1", "libssh2-1t64", "libpsl5t64", "libssl3t64",
    "libgssapi-krb5-2", "libldap2", "libzstd1", "libbrotli1", "zlib1g", "libc6", "libunistring5", "libgnutls30t64",
    "libhogweed6t64", "libnettle8t64", "libgmp10", "libkrb5-3", "libk5crypto3", "libcom-err2", "libkrb5support0", "libkeyutils1",
    "libsasl2-2", "libp11-kit0", "libtasn1-6", "libffi8",
]  # fmt: skip
UPLOAD, DOWNLOAD = 200_000, 900_000
DATA = 0  # RFC 9114, 7.2.1


def integer(stream: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends (RFC 9000, 16)."""
    length = 1 << (stream[at] >> 6)
    return int.from_bytes(stream[at : at + length], "big") & (1 << 8 * length - 2) - 1, at + length


def content(stream: bytes) -> bytes:
    """The body within the frames of a request stream of HTTP/3 (RFC 9114, 7.1)."""
    at, found = 0, b""
    while at < len(stream):
        kind, at = integer(stream, at)
        length, at = integer(stream, at)
        if kind == DATA:
            found += stream[at : at + length]
        at += length
    assert at == len(stream)
    return found


@pytest.fixture
def server(tmp_path: Path, certificates: Certificates) -> Iterator[tuple[int, Path]]:
    """The port of an HTTP/3 server, and what it prints."""
    body, printed = tmp_path / "body", tmp_path / "printed"
    body.write_bytes(random.Random(3).randbytes(DOWNLOAD))
    environment = CLEAN_ENVIRONMENT | {"PYTHONPATH": f"{wheels('aioquic')}{os.pathsep}{HERE.parent.parent}"}
    files = [HERE / "h3_server.py", certificates.leaf, certificates.key, body]
    with printed.open("wb") as output:
        process = subprocess.Popen([sys.executable, *map(str, files)], stdout=output, env=environment)
    try:
        wait_until(lambda: b"\n" in printed.read_bytes() or process.poll() is not None, "the HTTP/3 server listens")
        yield int(printed.read_text()), printed
    finally:
        stop(process)


def test_curl(record: Recorder, certificates: Certificates, server: tuple[int, Path], tmp_path: Path) -> None:
    port, printed = server
    root = debian("trixie", *CURL_AND_LIBRARIES)
    library, linker = one(root, "libssl.so.3"), one(root, "ld-linux-*.so.*")
    upload, download = tmp_path / "upload", tmp_path / "download"
    upload.write_bytes(random.Random(4).randbytes(UPLOAD))
    curl: list[str | Path | int] = [
        linker,
        "--library-path",
        library.parent,
        one(root, "usr/bin/curl"),
        "-q",
        "--http3-only",
        "--silent",
        "--show-error",
    ]
    recording = record(
        "--lib", library,
        command=[
            *curl, "--cacert", certificates.ca, "--data-binary", f"@{upload}", "-o", download,
            "-w", "%{local_port}", f"https://localhost:{port}/x",
        ],
    )  # fmt: skip
    assert recording.complete, recording.stderr
    assert download.read_bytes() == (tmp_path / "body").read_bytes()
    assert json.loads(printed.read_text().splitlines()[1]) == ["/x", *digest(upload.read_bytes())]
    found = conversations(recording.sidecar)
    (request,) = (one for one in found if len(one.outbound) > UPLOAD)
    assert content(bytes(request.outbound)) == upload.read_bytes()
    assert content(bytes(request.inbound)) == download.read_bytes()
    # Control streams and QPACK's are streams, too.
    for each in found:
        assert each.flow.transport == "udp"
        assert each.place == ("syscall", loopback(int(recording.stdout)), loopback(port))
    check_rebuild(recording)
    for framing in ("tls-null", "plain"):
        file = tmp_path / f"{framing}.pcapng"
        assert run_tlscap("rebuild", recording.sidecar, "-o", file, "--framing", framing).returncode == 0
        assert complaints(tmp_path, file, "-d", "udp.port==0-65535,data") == []
