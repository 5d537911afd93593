"""What a file without usable TLS functions is said to hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlscap.live.diagnosis import diagnose

ELF = b"\x7fELF\x02\x01\x01" + bytes(100)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"/root/.cargo/registry/src/index.crates.io-6f17d22bba15001f/rustls-0.23.26/src/conn.rs", "rustls 0.23.26"),
        (b"external/boringssl/src/ssl/ssl_lib.cc", "BoringSSL"),
        (b"third_party/boringssl-with-bazel/src/ssl/ssl_lib.cc\0third_party/boringssl/x", "BoringSSL"),
        (b"\0OpenSSL 3.0.13 30 Jan 2024\0", "OpenSSL 3.0.13"),
        (b"\0OpenSSL 1.1.1w  11 Sep 2023\0", "OpenSSL 1.1.1w"),
        (b"\0mbedtls_ssl_write\0", "linked in"),
        (b"\0br_ssl_engine_sendapp_buf", "BearSSL"),
    ],
)
def test_traces(tmp_path: Path, content: bytes, what: str) -> None:
    """Each implementation is told by what its sources leave in a program."""
    path = tmp_path / "program"
    path.write_bytes(ELF + content)

    finding = diagnose(str(path))

    assert finding
    assert what in finding.what
    assert finding.advice


@pytest.mark.parametrize("content", [b"", b"text", ELF, ELF + b"OpenSSL is mentioned", b"rustls-0.23.26/src/"])
def test_no_trace(tmp_path: Path, content: bytes) -> None:
    """A word in a text is no library, and what is no program is not looked into."""
    path = tmp_path / "file"
    path.write_bytes(content)
    assert diagnose(str(path)) is None
    assert diagnose(str(tmp_path / "missing")) is None
    assert diagnose(str(tmp_path)) is None


def test_by_name_and_class(tmp_path: Path) -> None:
    """Java is told by its library's name, 32-bit programs by their header."""
    path = tmp_path / "file"
    path.write_bytes(b"\x7fELF\x01" + bytes(100))
    small = diagnose(str(path))
    java = diagnose(str(path), "/usr/lib/jvm/server/libjvm.so")
    assert small
    assert "32-bit" in small.what
    assert java
    assert "Java" in java.what
