"""WebSocket messages to frames (RFC 6455, 5.2): one for each message, not compressed, a client's with a mask of zeros."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from tlscap.http.events import Header, Side
from tlscap.replay.recording import TunnelMessage

_OPCODES: Final = {"continuation": 0x0, "text": 0x1, "binary": 0x2, "close": 0x8, "ping": 0x9, "pong": 0xA}
_RESERVED: Final = 0xB  # of what had an opcode that nobody knows
_NO_STATUS: Final = 1005  # never sent: a close frame without a code
_EXTENSIONS: Final = b"sec-websocket-extensions"
_DEFLATE: Final = b"permessage-deflate"


def frame(message: TunnelMessage) -> bytes:
    """Return the frame of a message."""
    data = message.data
    if message.kind == "close" and (message.code != _NO_STATUS or data):
        data = struct.pack("!H", message.code & 0xFFFF) + data
    is_masked = message.side is Side.REQUEST
    mask = 0x80 if is_masked else 0
    first = 0x80 | _OPCODES.get(message.kind, _RESERVED)
    if len(data) < 126:
        head = bytes([first, mask | len(data)])
    elif len(data) < 1 << 16:
        head = struct.pack("!BBH", first, mask | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(data))
    return head + (bytes(4) if is_masked else b"") + data


def without_deflate(headers: Sequence[Header]) -> tuple[Header, ...]:
    """Return the fields of a handshake without permessage-deflate (RFC 7692): messages are not compressed."""
    kept: list[Header] = []
    for name, value in headers:
        if name.lower() == _EXTENSIONS:
            offers = [offer.strip() for offer in value.split(b",")]
            others = [one for one in offers if one and one.partition(b";")[0].strip().lower() != _DEFLATE]
            if len(others) == len(offers):
                kept.append((name, value))
            elif others:
                kept.append((name, b", ".join(others)))
        else:
            kept.append((name, value))
    return tuple(kept)
