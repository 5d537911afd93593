"""What all message decoders share: the choice of one, limits, field values; and the drip feeder for their tests."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from helpers import REQUEST, RESPONSE
from hypothesis import given
from hypothesis import strategies as st

from tlscap.http.content import ContentDecoder
from tlscap.http.events import Header
from tlscap.http.grpc import GrpcDecoder, GrpcWebTextDecoder
from tlscap.http.messages import (
    MESSAGE_LIMIT,
    AppMessage,
    Draft,
    MessageDecoder,
    body_decoder,
    field_values,
    parameters,
    tunnel_decoders,
)
from tlscap.http.multipart import MultipartDecoder
from tlscap.http.sse import EventStreamDecoder, LineDecoder
from tlscap.http.websocket import WebSocketDecoder

MessageStep = bytes | int
"""What passed: bytes, or how many are missing."""


# --- Driving a decoder ---


def run(decoder: MessageDecoder, steps: Iterable[MessageStep], *, why: str = "") -> list[AppMessage]:
    """Return the messages of these steps, after checking that every byte is accounted for."""
    messages: list[AppMessage] = []
    passed = 0
    for step in steps:
        if isinstance(step, int):
            passed += step
            messages += decoder.gap(step, 0)
        else:
            passed += len(step)
            messages += decoder.feed(step, 0)
    messages += decoder.finish(0, why=why)
    assert sum(message.length for message in messages) + decoder.between == passed
    return messages


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut ``data`` into pieces of ``size`` bytes."""
    return (data[start : start + size] for start in range(0, len(data), size))


def drip(make: Callable[[], MessageDecoder], data: bytes, *, why: str = "") -> list[AppMessage]:
    """Return the messages of ``data``, after checking that every way to cut it gives the same."""
    whole = run(make(), [data], why=why)
    for size in (1, 2, 3):
        assert run(make(), pieces(data, size), why=why) == whole, size
    for point in range(1, len(data)):
        assert run(make(), [data[:point], data[point:]], why=why) == whole, point
    return whole


def cut_steps(steps: Sequence[MessageStep], size: int) -> list[MessageStep]:
    """Return the same steps, no data longer than ``size`` bytes and no gap either."""
    result: list[MessageStep] = []
    for step in steps:
        if isinstance(step, int):
            result += [min(size, step - start) for start in range(0, step, size)]
        else:
            result += pieces(step, size)
    return result


def brief(messages: Iterable[AppMessage]) -> list[tuple[str, bytes]]:
    """Return kinds and data."""
    return [(message.kind, message.data) for message in messages]


def peak_of(work: Callable[[], object]) -> int:
    """Return how many bytes more than before were in use at the worst moment of ``work``."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- The choice of a decoder ---


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"text/event-stream", EventStreamDecoder),
        (b"Text/Event-Stream; charset=utf-8", EventStreamDecoder),
        (b"application/grpc", GrpcDecoder),
        (b"application/grpc+proto", GrpcDecoder),
        (b"application/grpc+json;x=1", GrpcDecoder),
        (b"application/grpc-web", GrpcDecoder),
        (b"application/grpc-web+proto", GrpcDecoder),
        (b"application/grpc-web-text", GrpcWebTextDecoder),
        (b"application/grpc-web-text+proto", GrpcWebTextDecoder),
        (b"application/grpcx", None),
        (b"application/x-ndjson", LineDecoder),
        (b"application/jsonl", LineDecoder),
        (b"application/stream+json", LineDecoder),
        (b"application/json", None),
        (b"multipart/form-data; boundary=x", MultipartDecoder),
        (b'multipart/mixed;Boundary="a b"', MultipartDecoder),
        (b"multipart/byteranges; boundary=" + b"x" * 257, None),
        (b"multipart/related", None),
        (b"multipart/related; boundary=", None),
        (b"", None),
    ],
)
def test_body_decoder(content_type: bytes, expected: type | None) -> None:
    """The content type chooses the decoder."""
    decoder = body_decoder(RESPONSE, ((b"X", b"y"), (b"Content-Type", content_type)))
    assert (type(decoder) if decoder else None) is expected


def test_no_content_type() -> None:
    """A body that does not say what it is has no decoder."""
    assert body_decoder(RESPONSE, ()) is None


def test_chosen_decoders_work() -> None:
    """What the fields say beside the type reaches the decoder: boundary, compression, the web kind."""
    part = body_decoder(REQUEST, ((b"content-type", b'multipart/mixed; boundary="a b"'),), limit=2)
    assert part
    assert brief(run(part, [b"--a b\r\n\r\nhello\r\n--a b--"])) == [("part", b"he")]
    packed = gzip.compress(b"hello")
    fields: tuple[Header, ...] = ((b"content-type", b"application/grpc"), (b"Grpc-Encoding", b"gzip"))
    grpc = body_decoder(REQUEST, fields)
    assert grpc
    assert brief(run(grpc, [b"\x01" + len(packed).to_bytes(4, "big") + packed])) == [("message", b"hello")]
    web = body_decoder(RESPONSE, ((b"content-type", b"application/grpc-web"),))
    assert web
    assert brief(run(web, [b"\x80\0\0\0\x01x"])) == [("trailers", b"x")]


def test_tunnel_decoders() -> None:
    """WebSocket is decoded with what the server agreed to, in each direction; anything else is not."""
    fields = ((b"Sec-WebSocket-Extensions", b"permessage-deflate"),)
    decoders = tunnel_decoders("websocket", (), fields)
    assert decoders
    compressed = zlib.compressobj(wbits=-15)
    payload = (compressed.compress(b"Hello") + compressed.flush(zlib.Z_SYNC_FLUSH))[:-4]
    for decoder, side, head in zip(decoders, (REQUEST, RESPONSE), (b"\x80\0\0\0\0", b"\0"), strict=True):
        assert isinstance(decoder, WebSocketDecoder)
        frame = b"\xc1" + bytes([head[0] | len(payload)]) + head[1:] + payload
        (message,) = run(decoder, [frame])
        assert (message.side, message.kind, message.data, message.notes) == (side, "text", b"Hello", ())
    offered_only = tunnel_decoders("WebSocket", fields, ())
    assert offered_only
    (message,) = run(offered_only[1], [b"\xc1\x01x"])
    assert message.notes == ("reserved bits set: RSV1",)
    for protocol in ("tunnel", "h2c", "unknown", ""):
        assert tunnel_decoders(protocol, fields, fields) is None


# --- Field values ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"text/HTML", (b"text/html", {})),
        (b" a/b ; X=1;y = 2 ", (b"a/b", {b"x": b"1", b"y": b"2"})),
        (b'a/b; x="1; y=2"; z="\\"q\\\\"', (b"a/b", {b"x": b"1; y=2", b"z": b'"q\\'})),
        (b'f; filename="C:\\dir\\x.txt"', (b"f", {b"filename": b"C:\\dir\\x.txt"})),
        (b"a/b; x=1; x=2", (b"a/b", {b"x": b"1"})),
        (b'a/b; x="1', (b"a/b", {b"x": b'"1'})),
        (b"a/b; x; =1; y=2", (b"a/b", {b"y": b"2"})),
        (b"", (b"", {})),
    ],
)
def test_parameters(value: bytes, expected: tuple[bytes, dict[bytes, bytes]]) -> None:
    """Values with parameters are split as RFC 9110 has it, quoted or not."""
    assert parameters(value) == expected


@pytest.mark.parametrize("unit", [b';a="', b';a="\\', b"; ", b";a ", b"\\", b'"', b';a=\\"', b";"])
def test_hostile_parameters_are_linear(unit: bytes) -> None:
    """No value makes splitting slow (it would take minutes)."""
    parameters(b"a/b" + unit * 300_000)


def test_field_values() -> None:
    """Names are compared without case, and every value is found."""
    headers = ((b"A", b"1"), (b"b", b"2"), (b"a ", b"3"))
    assert field_values(headers, b"a") == [b"1", b"3"]


# --- Limits ---


def test_limit_default() -> None:
    """A message is kept up to the limit, counted beyond it, and needs no more memory than that."""
    decoder = LineDecoder(RESPONSE)
    piece = b"x" * 65536

    def work() -> list[AppMessage]:
        return run(decoder, [*[piece] * 700, b"\n"])

    assert peak_of(work) < 3 * MESSAGE_LIMIT
    (message,) = run(LineDecoder(RESPONSE), [*[piece] * 700, b"\n"])
    assert (len(message.data), message.size, message.complete) == (MESSAGE_LIMIT, 700 * 65536, True)
    assert message.notes == (f"first {MESSAGE_LIMIT} bytes kept",)


@given(data=st.binary(max_size=50), limit=st.integers(0, 60), size=st.integers(1, 20))
def test_draft_keeps_and_counts(data: bytes, limit: int, size: int) -> None:
    """What is kept is the beginning, what is counted is everything."""
    draft = Draft("line", REQUEST, 1, limit)
    for piece in pieces(data, size):
        draft.add(piece)
    message = draft.done(2)
    assert (message.data, message.size, message.length) == (data[:limit], len(data), len(data))
    assert (message.started_ns, message.time_ns, message.complete) == (1, 2, True)
    assert message.notes == ((f"first {limit} bytes kept",) if len(data) > limit else ())


@given(data=st.binary(max_size=2000), limit=st.integers(0, 2500), size=st.integers(1, 100), decode_all=st.booleans())
def test_draft_decodes(data: bytes, limit: int, size: int, decode_all: bool) -> None:
    """The limit is one of decoded bytes; the size is the compressed one."""
    packed = gzip.compress(data)
    draft = Draft("message", REQUEST, 0, limit, coding=ContentDecoder("gzip"), decode_all=decode_all)
    for piece in pieces(packed, size):
        draft.add(piece)
    message = draft.done(0)
    assert (message.data, message.size, message.complete) == (data[:limit], len(packed), True)
    assert message.notes == ((f"first {limit} bytes kept",) if len(data) > limit else ())
    assert draft.whole == (decode_all or len(data) <= limit)


def test_draft_with_a_hole() -> None:
    """After a hole nothing is decoded any more, what is not compressed goes on."""
    packed = gzip.compress(b"hello" * 100)
    compressed = Draft("message", REQUEST, 0, 1000, coding=ContentDecoder("gzip"))
    plain = Draft("message", REQUEST, 0, 1000)
    for draft in (compressed, plain):
        draft.add(packed[:15])
        draft.hole(5)
        draft.add(packed[20:])
    message = compressed.done(0)
    assert (b"hello" * 100).startswith(message.data)
    assert (message.complete, message.missing, message.notes) == (False, 5, ("bytes missing",))
    assert plain.done(0).data == packed[:15] + packed[20:]
    assert plain.done(0).length == len(packed)


def test_notes_are_bounded() -> None:
    """A message has each note once, and not too many of them."""
    draft = Draft("line", REQUEST, 0, 1)
    for number in range(100):
        draft.note(f"note {number}")
        draft.note(f"note {number}")
    assert draft.done(0).notes == tuple(f"note {number}" for number in range(16))
