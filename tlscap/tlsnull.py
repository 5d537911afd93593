"""Plaintext in the shape of a TLS 1.2 session with a NULL cipher, which any Wireshark opens by itself.

Wireshark (3.4 to 4.6, measured) dissects application records of ``TLS_RSA_WITH_NULL_SHA`` without keys and
without checking their MAC, provided that it saw a ServerHello and a ChangeCipherSpec from *both* sides.  So a
hello from each side, the two ChangeCipherSpecs and records with a zero MAC are all that is needed; no Finished.
ALPN and SNI in the hellos pick the dissector and make the names filterable.  The plaintext stays plain in
the file.

The randoms must never be those of the real connection: with a key log that knows them Wireshark would
check the MACs and show nothing.

`sniff_alpn` and `sniff_sender` guess from a connection's first bytes what the library did not tell.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Final

from tlscap.errors import CorruptError
from tlscap.model import Role

MAX_RECORD: Final = 16384
"""Most plaintext in one record (RFC 5246 section 6.2.1); Wireshark reports an error for more."""

PLAIN_PORTS: Final = frozenset(
    {
        *(21, 22, 23, 25, 53, 79, 80, 88, 110, 119, 123, 139, 179, 389, 427, 445, 502, 514, 515, 548, 554, 587),
        *(631, 873, 1080, 1099, 1433, 1723, 1883, 1900, 1935, 2401, 3128, 3268, 3306, 4222, 5000, 5060, 5201),
        *(5222, 5432, 5672, 5900, *range(6000, 6064), 6379, 6653, 6667, 7000, 8009, 8074, 8080, 8085, 8088),
        *(8554, 8567, 9009, 9042, 9092, 9300, 9418),
    }
)
"""Server ports that Wireshark gives to another dissector before it looks for TLS.

Synthetic TLS would not be recognised there (nor is real TLS), while the plain payload is: HTTP on 8080, SMTP
after STARTTLS on 25, PostgreSQL on 5432.  Measured with 4.0, 4.4 and 4.6 over 592 registered ports; these are
the ones in use.
"""

_VERSION = 0x0303  # TLS 1.2
_SUITE = 0x0002  # TLS_RSA_WITH_NULL_SHA; 0x0000 (NULL_WITH_NULL_NULL) is not dissected
_MAC = bytes(20)

_RECORD = struct.Struct("!BHH")  # type, version, length
_CHANGE_CIPHER_SPEC_TYPE = 20
_HANDSHAKE_TYPE = 22
_APPLICATION_DATA_TYPE = 23

_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_SERVER_HELLO_DONE = 14
_SERVER_NAME = 0
_ALPN = 16
_MAX_NAME = 255  # of an ALPN protocol (RFC 7301) and of a host name (RFC 1035)

CHANGE_CIPHER_SPEC: Final = _RECORD.pack(_CHANGE_CIPHER_SPEC_TYPE, _VERSION, 1) + b"\x01"
"""What the client sends after the ServerHello: from here on its records are application data."""


def client_hello(seed: bytes, *, sni: str = "", alpn: str = "") -> bytes:
    """Return the client's first flight; `seed` names the connection and gives the random."""
    extensions = b""
    if sni:
        name = _name(sni)
        extensions += _extension(_SERVER_NAME, struct.pack("!HBH", len(name) + 3, 0, len(name)) + name)
    extensions += _alpn_extension(alpn)
    body = struct.pack("!H", _VERSION) + _random(b"client", seed) + b"\x00"  # no session id
    body += struct.pack("!HH", 2, _SUITE) + b"\x01\x00"  # one suite, no compression
    return _handshake(_CLIENT_HELLO, body + _sized(extensions))


def server_flight(seed: bytes, *, alpn: str = "") -> bytes:
    """Return ServerHello, ServerHelloDone and ChangeCipherSpec.

    The ServerHelloDone is there because without it Wireshark speaks of a resumed session.
    """
    body = struct.pack("!H", _VERSION) + _random(b"server", seed) + b"\x00"
    body += struct.pack("!H", _SUITE) + b"\x00"
    hello = _handshake(_SERVER_HELLO, body + _sized(_alpn_extension(alpn)))
    return hello + _handshake(_SERVER_HELLO_DONE, b"") + CHANGE_CIPHER_SPEC


def application_record(data: bytes) -> bytes:
    """Return one application data record around at most `MAX_RECORD` bytes."""
    if len(data) > MAX_RECORD:
        raise ValueError(f"a TLS record holds {MAX_RECORD} bytes, not {len(data)}")
    return _RECORD.pack(_APPLICATION_DATA_TYPE, _VERSION, len(data) + len(_MAC)) + data + _MAC


def plaintext(records: bytes) -> bytes:
    """Return the application data in whole records made by this module; b"" for hellos.

    Raise `CorruptError` for anything else.
    """
    parts = []
    start = 0
    while start < len(records):
        body = start + _RECORD.size
        if body > len(records):
            raise CorruptError("a TLS record header is cut short")
        kind, version, length = _RECORD.unpack_from(records, start)
        start = body + length
        if version != _VERSION or start > len(records):
            raise CorruptError(f"not a TLS record of tlscap: type {kind}, version {version:#06x}, {length} bytes")
        if kind == _APPLICATION_DATA_TYPE:
            if length < len(_MAC):
                raise CorruptError(f"a TLS record of {length} bytes is too short for its MAC")
            parts.append(records[body : start - len(_MAC)])
        elif kind not in {_CHANGE_CIPHER_SPEC_TYPE, _HANDSHAKE_TYPE}:
            raise CorruptError(f"unexpected TLS record of type {kind}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


# --- Guessing from the first bytes ---

_H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_H2_FRAME_HEADER_LEN = 9
_H2_MAX_FRAME = 16384  # SETTINGS_MAX_FRAME_SIZE until the peer allows more (RFC 9113 section 6.5.2)
_H2_FRAMES_LOOKED_AT = 4

# Type of frame: (flags it may carry, whether on a stream, shortest, longest).  RFC 9113 section 6.
_H2_FRAMES: Final[dict[int, tuple[int, bool | None, int, int]]] = {
    0x0: (0x09, True, 0, _H2_MAX_FRAME),  # DATA
    0x1: (0x2D, True, 1, _H2_MAX_FRAME),  # HEADERS
    0x2: (0x00, True, 5, 5),  # PRIORITY
    0x3: (0x00, True, 4, 4),  # RST_STREAM
    0x4: (0x01, False, 0, 6 * 32),  # SETTINGS
    0x5: (0x0C, True, 4, _H2_MAX_FRAME),  # PUSH_PROMISE
    0x6: (0x01, False, 8, 8),  # PING
    0x7: (0x00, False, 8, _H2_MAX_FRAME),  # GOAWAY
    0x8: (0x00, None, 4, 4),  # WINDOW_UPDATE
    0x9: (0x04, True, 1, _H2_MAX_FRAME),  # CONTINUATION
}

# A request line whose target is a path, an http URL, "*" or, for CONNECT, an authority.  A version, where it is
# there already, must be HTTP/1: RTSP and SIP have the same shape.
_HTTP1_REQUEST = re.compile(
    rb"(?:[A-Z][A-Z-]{2,19} (?:/|\*|https?://)\S*|CONNECT [^\s/]+)(?: HTTP/1\.|\Z)",
)
_HTTP1_RESPONSE = b"HTTP/1."


def sniff_alpn(data: bytes) -> str:
    """Return 'h2' or 'http/1.1' when a connection's first bytes look like it, '' when they don't."""
    if _is_h2_preface(data) or _is_h2_frames(data):
        return "h2"
    if data.startswith(_HTTP1_RESPONSE) or _HTTP1_REQUEST.match(data, 0, MAX_RECORD):
        return "http/1.1"
    return ""


def sniff_sender(data: bytes) -> Role:
    """Return which end of a connection sends `data` as its first bytes; UNKNOWN if they don't tell."""
    if _is_h2_preface(data) or _HTTP1_REQUEST.match(data, 0, MAX_RECORD):
        return Role.CLIENT
    return Role.SERVER if data.startswith(_HTTP1_RESPONSE) else Role.UNKNOWN


def _is_h2_preface(data: bytes) -> bool:
    return data.startswith(b"PRI ") and _H2_PREFACE.startswith(data[: len(_H2_PREFACE)])


def _is_h2_frames(data: bytes) -> bool:
    """Tell whether the first bytes, and where they continue also the next frames' headers, are HTTP/2."""
    start = 0
    for _ in range(_H2_FRAMES_LOOKED_AT):
        header = data[start : start + _H2_FRAME_HEADER_LEN]
        if len(header) < _H2_FRAME_HEADER_LEN:
            break
        length, kind, flags = int.from_bytes(header[:3], "big"), header[3], header[4]
        stream = int.from_bytes(header[5:], "big")
        if kind not in _H2_FRAMES:
            return False
        flags_allowed, on_stream, shortest, longest = _H2_FRAMES[kind]
        if flags & ~flags_allowed or not shortest <= length <= longest or stream >> 31:
            return False
        if on_stream is not None and on_stream != bool(stream):
            return False
        if kind == 0x4 and length % 6:
            return False
        start += _H2_FRAME_HEADER_LEN + length
    return start > 0


# --- Pieces of a hello ---


def _random(side: bytes, seed: bytes) -> bytes:
    return hashlib.sha256(b"tlscap tls-null " + side + b" " + seed).digest()


def _name(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:_MAX_NAME]


def _sized(extensions: bytes) -> bytes:
    return struct.pack("!H", len(extensions)) + extensions if extensions else b""


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def _alpn_extension(alpn: str) -> bytes:
    if not alpn:
        return b""
    protocol = _name(alpn)
    return _extension(_ALPN, struct.pack("!HB", len(protocol) + 1, len(protocol)) + protocol)


def _handshake(kind: int, body: bytes) -> bytes:
    message = struct.pack("!I", kind << 24 | len(body)) + body
    return _RECORD.pack(_HANDSHAKE_TYPE, _VERSION, len(message)) + message
