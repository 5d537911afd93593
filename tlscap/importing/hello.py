"""Recognizes TLS by its first bytes, and takes from a ClientHello what is needed to find its keys and name (RFC 8446)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

RECORD: Final = struct.Struct("!BHH")  # type, version, length
MAX_RECORD: Final = 16384 + 2048
"""Longest content of a record: TLS 1.2 allows encryption to add 2048 bytes (RFC 5246, 6.2.3), TLS 1.3 less."""

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = range(20, 25)
CLIENT_HELLO, SERVER_HELLO, ENCRYPTED_EXTENSIONS, FINISHED = 1, 2, 8, 20

_VERSIONS = frozenset(range(0x0300, 0x0305))
_RANDOM_START = 11  # behind the headers of record and message, and the version
_RANDOM_END = _RANDOM_START + 32
_SERVER_NAME = 0


class ClientHello(NamedTuple):
    """The random is what key logs go by; the name is empty when there is none, or in a later record."""

    random: bytes
    sni: str


def is_record(begin: bytes) -> bool | None:
    """Tell whether a stream's first bytes are a TLS record; None as long as they may become one."""
    if begin and not CHANGE_CIPHER_SPEC <= begin[0] <= HEARTBEAT:
        return False
    if len(begin) >= 2 and begin[1] != 3:
        return False
    if len(begin) < RECORD.size:
        return None
    _, version, length = RECORD.unpack_from(begin)
    return version in _VERSIONS and 0 < length <= MAX_RECORD


def is_client_hello(data: bytes) -> bool:
    """Tell whether data begins with a ClientHello, as far as its random."""
    return (
        len(data) >= _RANDOM_END
        and data[0] == HANDSHAKE
        and is_record(data) is True
        and data[5] == CLIENT_HELLO
        and data[9] == 3  # version; TLS 1.3 says 1.2
        and data[10] <= 3
    )


def parse_client_hello(record: bytes) -> ClientHello | None:
    """Return what a record says that begins with a ClientHello, or None when it does not."""
    return ClientHello(record[_RANDOM_START:_RANDOM_END], _server_name(record)) if is_client_hello(record) else None


def _server_name(record: bytes) -> str:
    """Return the host name in the extensions (RFC 6066, 3), or "" when there is none to be found."""
    try:
        position = _RANDOM_END
        position += 1 + record[position]  # session id
        position += 2 + int.from_bytes(record[position : position + 2], "big")  # cipher suites
        position += 1 + record[position]  # compression methods
        end = position + 2 + int.from_bytes(record[position : position + 2], "big")
        position += 2
        while position + 4 <= min(end, len(record)):
            kind, length = struct.unpack_from("!HH", record, position)
            position += 4
            if kind == _SERVER_NAME:
                # The length of the list, the kind of name (0: host), the length of the name.
                (size,) = struct.unpack_from("!H", record, position + 3)
                name = record[position + 5 : position + 5 + size]
                return name.decode("ascii") if record[position + 2] == 0 and len(name) == size else ""
            position += length
    except (IndexError, struct.error, UnicodeDecodeError):
        pass
    return ""
