"""Why nothing can be hooked in a file: which TLS implementation it holds, by what it left in the file's bytes.

The answer to "nothing was captured".  Only asked for when it is wanted: it reads files whole.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass

MAX_SEARCH = 1 << 30
"""Bytes of one file that are searched: more is no program."""
ELFCLASS32 = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """What an implementation leaves behind, and what to tell about it.  ``{0}`` is what the expression's group matched."""

    pattern: re.Pattern[bytes]
    finding: str
    advice: str = ""


TRACES = (
    Trace(
        re.compile(rb"/rustls-(\d+\.\d+\.\d+)[^/\0]*/src/"),
        "rustls {0}, without symbols",
        "rustls is only found by its symbols: build the program without stripping it",
    ),
    Trace(
        re.compile(rb"(?:third_party|external|src)/boringssl/|boringssl[-_/](?:src|sys|\w*/ssl/)"),
        "BoringSSL, without symbols",
        "name its functions by address: --probe SSL_read:PATH+ADDRESS --probe SSL_write:PATH+ADDRESS",
    ),
    Trace(
        re.compile(rb"\0OpenSSL (\d+\.\d+\.\d+\w*) {1,2}\d{1,2} \w{3} \d{4}"),
        "OpenSSL {0}, without symbols",
        "name its functions by address: --probe SSL_read:PATH+ADDRESS --probe SSL_write:PATH+ADDRESS",
    ),
    Trace(
        re.compile(rb"\0wolfSSL[_ ]|mbedtls_ssl_|gnutls_record_send"),
        "a TLS library that is linked in, without symbols",
        "name its functions by address with --probe",
    ),
    Trace(re.compile(rb"br_ssl_engine|\bbr_sslio_"), "BearSSL", "tlscap does not know its functions"),
    Trace(re.compile(rb"\0s2n_connection_|\bs2n_send\b"), "s2n", "tlscap does not know its functions"),
)
JAVA = Trace(
    re.compile(rb"libjvm\.so"),
    "Java, whose TLS is compiled while it runs",
    "there is no place for a probe; with netty-tcnative or Conscrypt, BoringSSL's library is hooked",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file holds that can't be hooked."""

    path: str
    what: str
    advice: str = ""


def diagnose(path: str, name: str = "") -> Finding | None:
    """What is known of a file without usable TLS functions; None when there is no trace of TLS in it.

    ``name`` is what the process calls the file.  A file that can't be read has no findings.
    """
    base = os.path.basename(name or path)
    if base == "libjvm.so":
        return Finding(path, JAVA.finding, JAVA.advice)
    try:
        with open(path, "rb") as file:
            head = file.read(20)
            if head[:4] != b"\x7fELF":
                return None
            if head[4] == ELFCLASS32:
                return Finding(path, "a 32-bit program or library", "only 64-bit ones are hooked")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _search(path, data)
    except (OSError, ValueError, IndexError):
        return None


def _search(path: str, data: mmap.mmap) -> Finding | None:
    for trace in TRACES:
        if match := trace.pattern.search(data, 0, MAX_SEARCH):
            matched = match[1].decode("ascii", "replace") if match.re.groups else ""
            return Finding(path, trace.finding.format(matched), trace.advice)
    return None
