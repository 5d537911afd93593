"""HTTP/2's frames: their header, types, flags, what is likely of each, and what they say in words (RFC 9113)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from tlscap.http.events import Side

_DETAIL_LIMIT: Final = 300  # characters

FRAME: Final = struct.Struct(">BHBBI")  # RFC 9113, 4.1: 24 bits of length, type, flags, a reserved bit and the stream
FRAME_LENGTH: Final = 9
STREAM_MASK: Final = 0x7FFF_FFFF

DATA: Final = 0x0
HEADERS: Final = 0x1
_PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
_PING: Final = 0x6
GOAWAY: Final = 0x7
_WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9
_ALTSVC: Final = 0xA  # RFC 7838
_ORIGIN: Final = 0xC  # RFC 8336
_PRIORITY_UPDATE: Final = 0x10  # RFC 9218
_KINDS: Final = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    _PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PUSH_PROMISE: "PUSH_PROMISE",
    _PING: "PING",
    GOAWAY: "GOAWAY",
    _WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION",
    _ALTSVC: "ALTSVC",
    _ORIGIN: "ORIGIN",
    _PRIORITY_UPDATE: "PRIORITY_UPDATE",
}
BLOCK_KINDS: Final = frozenset({HEADERS, PUSH_PROMISE, CONTINUATION})

_ACK: Final = 0x01
END_STREAM: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20

_SETTING_NAMES: Final = {
    0x1: "HEADER_TABLE_SIZE",
    0x2: "ENABLE_PUSH",
    0x3: "MAX_CONCURRENT_STREAMS",
    0x4: "INITIAL_WINDOW_SIZE",
    0x5: "MAX_FRAME_SIZE",
    0x6: "MAX_HEADER_LIST_SIZE",
    0x8: "ENABLE_CONNECT_PROTOCOL",  # RFC 8441
    0x9: "NO_RFC7540_PRIORITIES",  # RFC 9218
}
NO_ERROR: Final = 0
_ERROR_NAMES: Final = (  # RFC 9113, 7
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

# Out of step: a frame header is taken for one only if it is one that a sane peer sends.
LIKELY_LENGTH: Final = 1 << 20  # the largest frames that common implementations ask for
LIKELY_SETTINGS: Final = 50 * 6
LIKELY_FLAGS: Final = {  # by type; a type that is not here is not likely
    DATA: END_STREAM | PADDED,
    HEADERS: END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY,
    _PRIORITY: 0,
    RST_STREAM: 0,
    SETTINGS: _ACK,
    PUSH_PROMISE: END_HEADERS | PADDED,
    _PING: _ACK,
    GOAWAY: 0,
    _WINDOW_UPDATE: 0,
    CONTINUATION: END_HEADERS,
    _ALTSVC: 0,
    _ORIGIN: 0,
    _PRIORITY_UPDATE: 0,
}
ON_NO_STREAM: Final = frozenset({SETTINGS, _PING, GOAWAY, _ORIGIN, _PRIORITY_UPDATE})
ON_EITHER: Final = frozenset({_WINDOW_UPDATE, _ALTSVC})
EXACT_LENGTH: Final = {_PRIORITY: 5, RST_STREAM: 4, _PING: 8, _WINDOW_UPDATE: 4}
LEAST_LENGTH: Final = {HEADERS: 1, PUSH_PROMISE: 5, GOAWAY: 8, _ALTSVC: 2, _PRIORITY_UPDATE: 4}
ONE_SIDED: Final = {
    PUSH_PROMISE: Side.RESPONSE,
    _ALTSVC: Side.RESPONSE,
    _ORIGIN: Side.RESPONSE,
    _PRIORITY_UPDATE: Side.REQUEST,
}


# --- Words for people ---


def begun_by(stream_id: int) -> Side:
    """Return who begins streams of such a number (RFC 9113, 5.1.1)."""
    return Side.REQUEST if stream_id % 2 else Side.RESPONSE


def frame_name(kind: int) -> str:
    """Return what RFC 9113 calls a type of frames."""
    return _KINDS.get(kind) or f"unknown {kind:#04x}"


def error_name(code: int) -> str:
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"{code:#x}"


def shown(data: bytes) -> str:
    """Return bytes as one line of text, shortened."""
    text = str(data[:_DETAIL_LIMIT])[2:-1]
    return text if len(data) <= _DETAIL_LIMIT else f"{text}…"


def detail(kind: int, flags: int, payload: bytes) -> str:
    """Say what a frame says; an empty text when there is nothing to say, or when it is shorter than it has to be."""
    describe = _DETAILS.get(kind)
    if not describe:
        return ""
    try:
        text = describe(payload)
    except struct.error:
        return f"malformed: {shown(payload)}"
    if flags & _ACK and kind in (SETTINGS, _PING):
        text = f"ACK {text}".rstrip()
    return text if len(text) <= _DETAIL_LIMIT else f"{text[:_DETAIL_LIMIT]}…"


def _describe_settings(payload: bytes) -> str:
    whole = payload[: min(len(payload), _DETAIL_LIMIT) // 6 * 6]
    text = ", ".join(
        f"{_SETTING_NAMES.get(name) or f'{name:#x}'}={value}" for name, value in struct.iter_unpack(">HI", whole)
    )
    return text if len(whole) == len(payload) else f"{text}, …"


def _describe_priority(payload: bytes) -> str:
    parent, weight = struct.unpack(">IB", payload)
    exclusive = ", exclusive" if parent > STREAM_MASK else ""
    return f"after stream {parent & STREAM_MASK}, weight {weight + 1}{exclusive}"


def _describe_reset(payload: bytes) -> str:
    (code,) = struct.unpack(">I", payload)
    return error_name(code)


def _describe_goaway(payload: bytes) -> str:
    last, code = struct.unpack_from(">II", payload)
    debug = f": {shown(payload[8:])}" if payload[8:] else ""
    return f"last stream {last & STREAM_MASK}, {error_name(code)}{debug}"


def _describe_window(payload: bytes) -> str:
    (increment,) = struct.unpack(">I", payload)
    return f"+{increment & STREAM_MASK}"


def _describe_altsvc(payload: bytes) -> str:
    (length,) = struct.unpack_from(">H", payload)
    origin, value = payload[2 : 2 + length], payload[2 + length :]
    return f"{shown(origin)} {shown(value)}".strip()


def _describe_origins(payload: bytes) -> str:
    origins: list[str] = []
    while payload and len(origins) < 10:
        (length,) = struct.unpack_from(">H", payload)
        origins.append(shown(payload[2 : 2 + length]))
        payload = payload[2 + length :]
    return ", ".join([*origins, "…"] if payload else origins)


def _describe_priority_update(payload: bytes) -> str:
    (stream_id,) = struct.unpack_from(">I", payload)
    return f"stream {stream_id & STREAM_MASK}: {shown(payload[4:])}"


_DETAILS: Final[dict[int, Callable[[bytes], str]]] = {
    _PRIORITY: _describe_priority,
    RST_STREAM: _describe_reset,
    SETTINGS: _describe_settings,
    _PING: lambda payload: payload[:8].hex(),
    GOAWAY: _describe_goaway,
    _WINDOW_UPDATE: _describe_window,
    _ALTSVC: _describe_altsvc,
    _ORIGIN: _describe_origins,
    _PRIORITY_UPDATE: _describe_priority_update,
}
