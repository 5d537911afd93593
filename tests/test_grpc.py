"""gRPC and gRPC-Web bodies, statuses, and protobuf without a schema, judged by the protobuf library."""

from __future__ import annotations

import base64
import gzip
import struct
import time
import zlib
from collections.abc import Callable
from urllib.parse import quote

import pytest
import zstandard
from google.protobuf import (  # type: ignore[import-untyped]
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    struct_pb2,
    unknown_fields,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from helpers import REQUEST, RESPONSE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_messages import MessageStep, brief, cut_steps, drip, peak_of, pieces, run

from tlscap.http.events import Header
from tlscap.http.grpc import GrpcDecoder, GrpcStatus, GrpcWebTextDecoder, grpc_status
from tlscap.http.messages import AppMessage
from tlscap.http.protobuf import describe_protobuf, protobuf_fields


def prefixed(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(message).to_bytes(4, "big") + message


def grpc(encoding: str = "", *, web: bool = False, limit: int = 1 << 20) -> Callable[[], GrpcDecoder]:
    return lambda: GrpcDecoder(REQUEST, encoding, web=web, limit=limit)


# --- Messages ---


def test_messages() -> None:
    """Messages are told one by one, empty ones too, however they are cut."""
    data = prefixed(b"hello") + prefixed(b"") + prefixed(bytes(range(200)))
    messages = drip(grpc(), data)
    assert brief(messages) == [("message", b"hello"), ("message", b""), ("message", bytes(range(200)))]
    assert [message.length for message in messages] == [10, 5, 205]
    assert all(message.complete and not message.notes for message in messages)


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP ": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_compressed(encoding: str) -> None:
    """Each message says whether it is compressed; the size is what was transferred."""
    text = b"the same words " * 20
    packed = ENCODERS[encoding](text)
    messages = drip(grpc(encoding), prefixed(packed, 1) + prefixed(text) + prefixed(packed, 1))
    assert [message.data for message in messages] == [text] * 3
    assert [message.size for message in messages] == [len(packed), 300, len(packed)]
    assert not any(message.notes for message in messages)


@pytest.mark.parametrize(
    ("encoding", "payload", "data", "note"),
    [
        ("", b"x", b"x", "compressed flag without a grpc-encoding"),
        ("identity", b"x", b"x", "compressed flag without a grpc-encoding"),
        ("snappy", b"x", b"x", "compressed with 'snappy', which is not known"),
        ("gzip, gzip", b"x", b"x", "compressed with 'gzip, gzip', which is not known"),
        ("gzip", b"no gzip", b"no gzip", "gzip: Error -3 while decompressing data: incorrect header check"),
        ("gzip", gzip.compress(b"hello", mtime=0)[:-3], b"hello", "compressed data ends early"),
    ],
)
def test_not_decompressed(encoding: str, payload: bytes, data: bytes, note: str) -> None:
    """What can't be decompressed is given as it was transferred, with a note; the next message is read."""
    first, second = drip(grpc(encoding), prefixed(payload, 1) + prefixed(b"next"))
    assert (first.data, first.notes, first.complete) == (data, (note,), True)
    assert (second.data, second.notes) == (b"next", ())


def test_cut() -> None:
    """A message that the end cut is incomplete; a prefix that it cut is no message."""
    (message,) = drip(grpc(), prefixed(b"hello")[:-2], why="stream reset")
    assert (message.data, message.complete, message.notes) == (b"hel", False, ("stream reset",))
    first, rest = drip(grpc(), prefixed(b"hello") + b"\0\0")
    assert (first.data, rest.kind, rest.data) == (b"hello", "unparsed", b"\0\0")


def test_no_grpc_at_all() -> None:
    """An error page with a gRPC content type is unparsed."""
    (message,) = run(GrpcDecoder(RESPONSE), [b"<html>", b"\0\0"])
    assert (message.kind, message.data, message.notes) == ("unparsed", b"<html>\0\0", ("no frame header",))


def test_limit() -> None:
    """Of a long message the beginning is kept, decoded or not."""
    text = b"the same words " * 1000
    data = prefixed(text) + prefixed(gzip.compress(text), 1) + prefixed(b"next")
    for size in (1, 1 << 30):
        plain, packed, after = run(GrpcDecoder(REQUEST, "gzip", limit=100), pieces(data, size))
        assert plain.data == packed.data == text[:100]
        assert plain.notes == packed.notes == ("first 100 bytes kept",)
        assert (plain.size, packed.size, plain.complete) == (15000, len(gzip.compress(text)), True)
        assert (after.data, after.notes) == (b"next", ())


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_bomb(encoding: str) -> None:
    """A bomb is decoded up to the limit, and needs no more memory."""
    data = prefixed(ENCODERS[encoding](bytes(1 << 27)), 1)
    got: list[AppMessage] = []
    assert (
        peak_of(lambda: got.extend(run(GrpcDecoder(REQUEST, encoding, limit=1 << 20), pieces(data, 10_000)))) < 4 << 20
    )
    assert (got[0].data, got[0].notes) == (bytes(1 << 20), ("first 1048576 bytes kept",))


HOLES: dict[str, tuple[list[MessageStep], list[tuple[str, bytes, bool, int]]]] = {
    "in a message": (
        [prefixed(b"hello")[:7], 2, b"o" + prefixed(b"next")],
        [("message", b"heo", False, 2), ("message", b"next", True, 0)],
    ),
    "to its end": (
        [prefixed(b"hello")[:7], 3, prefixed(b"next")],
        [("message", b"he", False, 3), ("message", b"next", True, 0)],
    ),
    "beyond": (
        [prefixed(b"hello")[:7], 4, prefixed(b"next") + prefixed(b"more")[:6], b"ore"],
        [
            ("message", b"he", False, 3),
            ("unparsed", b"", False, 1),
            ("message", b"next", True, 0),
            ("message", b"more", True, 0),
        ],
    ),
    "in a prefix": (
        [b"\0\0", 3, b"hello", prefixed(b"next")],
        [("unparsed", b"\0\0hello", False, 3), ("message", b"next", True, 0)],
    ),
    "zeros are no proof": ([1, bytes(20)], [("unparsed", bytes(20), False, 1)]),
    "a part is no proof": ([1, prefixed(b"next")[:-1]], [("unparsed", prefixed(b"next")[:-1], False, 1)]),
    "what follows must fit": ([1, prefixed(b"next") + b"\xff"], [("unparsed", prefixed(b"next") + b"\xff", False, 1)]),
}


@pytest.mark.parametrize("case", HOLES)
def test_holes(case: str) -> None:
    """A hole inside of a message costs that one; the step is regained where whole messages begin."""
    steps, expected = HOLES[case]
    messages = run(GrpcDecoder(REQUEST), steps)
    assert [(m.kind, m.data, m.complete, m.missing) for m in messages] == expected


# --- gRPC-Web ---

TRAILERS = b"grpc-status: 5\r\nGrpc-Message:not%20here\r\n"


@pytest.mark.parametrize("end", [b"\r\n", b"", b"\r\n\r\n"])
def test_web(end: bytes) -> None:
    """The trailers are a frame of their own, with or without a line end at its end."""
    data = prefixed(b"hello") + prefixed(TRAILERS.removesuffix(b"\r\n") + end, 0x80)
    message, trailers = drip(grpc(web=True), data)
    assert (message.kind, message.data) == ("message", b"hello")
    assert (trailers.kind, trailers.headers) == ("trailers", ((b"grpc-status", b"5"), (b"Grpc-Message", b"not%20here")))
    assert grpc_status((), trailers.headers) == GrpcStatus(5, "NOT_FOUND", "not here")


def test_web_compressed_and_empty_trailers() -> None:
    """Trailers may be compressed, or say nothing; outside of gRPC-Web they are no frame."""
    data = prefixed(gzip.compress(TRAILERS), 0x81) + prefixed(b"", 0x80)
    first, second = drip(grpc("gzip", web=True), data)
    assert len(first.headers) == 2
    assert second.headers == ()
    (raw,) = drip(grpc("gzip", web=True), prefixed(TRAILERS, 0x81))
    assert (raw.headers, raw.data) == ((), TRAILERS)
    assert run(GrpcDecoder(RESPONSE), [data])[0].kind == "unparsed"


def web_text() -> GrpcWebTextDecoder:
    return GrpcWebTextDecoder(RESPONSE)


def test_web_text() -> None:
    """Base64 is undone, padded once at its end or at every flush, cut anywhere."""
    first, second, last = prefixed(b"hello"), prefixed(b"you"), prefixed(TRAILERS, 0x80)
    for data in (
        base64.b64encode(first + second + last),
        base64.b64encode(first) + base64.b64encode(second) + base64.b64encode(last),
        base64.b64encode(first[:7]) + base64.b64encode(first[7:] + second) + base64.b64encode(last),
    ):
        messages = drip(web_text, data)
        assert brief(messages) == [("message", b"hello"), ("message", b"you"), ("trailers", TRAILERS)]
        assert not any(message.notes for message in messages)


def test_web_text_broken() -> None:
    """What is no base64, what a hole cut off, and what is left of a group at the end, is unparsed."""
    text = base64.b64encode(prefixed(b"hello")[:9])
    cases: list[tuple[list[MessageStep], str, bytes]] = [
        ([text + b"!!!!" + text], "not base64", b"!!!!" + text),
        ([text + b"AB", 5, text], "bytes missing", b"AB" + text),
        ([text + b"AB"], "ended inside of it", b"AB"),
    ]
    for steps, note, rest in cases:
        message, unparsed = run(web_text(), steps)
        assert (message.data, message.complete, message.notes) == (b"hell", False, (note,))
        assert (unparsed.kind, unparsed.data) == ("unparsed", rest)


# --- Status ---


@pytest.mark.parametrize(
    ("headers", "trailers", "expected"),
    [
        ((), ((b"grpc-status", b"0"),), GrpcStatus(0, "OK", "")),
        (((b"Grpc-Status", b"16"), (b"Grpc-Message", b"x")), (), GrpcStatus(16, "UNAUTHENTICATED", "x")),
        (((b"grpc-status", b"1"),), ((b"grpc-status", b"13"),), GrpcStatus(13, "INTERNAL", "")),
        ((), ((b"grpc-status", b"17"),), GrpcStatus(17, "code 17", "")),
        ((), ((b"grpc-status", b"-1"),), GrpcStatus(-1, "-1", "")),
        ((), ((b"grpc-status", b"9" * 5000),), GrpcStatus(-1, "9" * 5000, "")),
        ((), ((b"grpc-status", b"\xb2"),), GrpcStatus(-1, "²", "")),
        (
            (),
            ((b"grpc-status", b"3"), (b"grpc-message", quote("ä % ✓").encode()), (b"grpc-status-details-bin", b"CAM")),
            GrpcStatus(3, "INVALID_ARGUMENT", "ä % ✓", b"\x08\x03"),
        ),
        (
            (),
            ((b"grpc-status", b"2"), (b"grpc-message", b"100% %zz %ff"), (b"grpc-status-details-bin", b"!")),
            GrpcStatus(2, "UNKNOWN", "100% %zz \ufffd"),
        ),
        (((b"content-type", b"application/grpc"),), ((b"grpc-message", b"x"),), None),
    ],
)
def test_status(headers: tuple[Header, ...], trailers: tuple[Header, ...], expected: GrpcStatus | None) -> None:
    """The status is in the trailers, or in the headers of an answer without a body."""
    assert grpc_status(headers, trailers) == expected


# --- Anything at all ---

FRAMES = st.builds(
    prefixed,
    st.one_of(st.binary(max_size=8), st.sampled_from([gzip.compress(b"hello", mtime=0), TRAILERS])),
    st.sampled_from([0, 0, 1, 0x80, 2]),
)
DATA = st.lists(st.one_of(FRAMES, FRAMES, st.binary(max_size=6)), min_size=1, max_size=4).map(b"".join).filter(bool)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.one_of(DATA, DATA, st.integers(1, 40)), max_size=6),
    size=st.integers(1, 20),
    web=st.booleans(),
    text=st.booleans(),
    limit=st.sampled_from([0, 3, 1000]),
)
def test_anything(steps: list[MessageStep], size: int, web: bool, text: bool, limit: int) -> None:
    """Any bytes and holes, cut in any way, are told without an exception, accounted for, and bounded."""
    if text:
        steps = [step if isinstance(step, int) else base64.b64encode(step)[: 40 - len(step) // 9] for step in steps]
    for cut in (steps, cut_steps(steps, size)):
        decoder = (
            GrpcWebTextDecoder(REQUEST, "gzip", limit=limit)
            if text
            else GrpcDecoder(REQUEST, "gzip", web=web, limit=limit)
        )
        for message in run(decoder, cut):
            assert len(message.data) <= limit
            assert message.complete or message.notes


# --- Protobuf ---


def test_description() -> None:
    """A message is described field by field, nested where that is plausible."""
    data = (
        b"\x08\x96\x01"  # the example of the encoding's documentation: field 1 is 150
        b"\x12\x07testing"
        b"\x1a\x03\x08\x96\x01"
        b"\x20" + b"\xff" * 9 + b"\x01"
        b"\x29"
        + struct.pack("<d", 1.5)
        + b"\x35"
        + struct.pack("<f", -0.1)
        + b"\x39"
        + (5).to_bytes(8, "little")
        + b"\x42\x00\x4a\x03\xff\xfe\xfd\x53\x08\x01\x54"
    )
    assert describe_protobuf(data) == (
        '1: 150\n2: "testing"\n3 {\n  1: 150\n}\n4: 18446744073709551615 (-1)\n5: 0x3ff8000000000000 (1.5)\n'
        '6: 0xbdcccccd (-0.1)\n7: 0x0000000000000005 (5)\n8: ""\n9: bytes fffefd\n10 {\n  1: 1\n}'
    )


def test_text_or_message() -> None:
    """A message of one text field begins like a text with a line break, and is none."""
    inner = b"\x0a\x2d" + b"a message, though all of it looks like a text"
    assert describe_protobuf(b"\x0a" + bytes([len(inner)]) + inner) == f'1 {{\n  1: "{inner[2:].decode()}"\n}}'
    text = "two lines:\n\tthe other, with ü, \u202e and 👍\r\n".encode()
    assert describe_protobuf(b"\x0a" + bytes([len(text)]) + text) == (
        '1: "two lines:\\n\\tthe other, with ü, \\u202e and 👍\\r\\n"'
    )


def test_real_messages() -> None:
    """What the protobuf library wrote is described with all it says."""
    value = struct_pb2.Struct()
    value.update({"name": "value", "list": [1, 2, None], "nested": {"x": True}})
    description = describe_protobuf(value.SerializeToString(deterministic=True))
    assert description
    for part in ('1: "list"', '1: "name"', '3: "value"', "2: 0x3ff0000000000000 (1)", '1: "x"'):
        assert part in description
    packed = any_pb2.Any()
    packed.Pack(duration_pb2.Duration(seconds=-3, nanos=-500_000_000))
    assert describe_protobuf(packed.SerializeToString()) == (
        '1: "type.googleapis.com/google.protobuf.Duration"\n2 {\n'
        "  1: 18446744073709551613 (-3)\n  2: 18446744073209551616 (-500000000)\n}"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08\xff",
        b"\x00\x01",
        b"\x0f",
        b"\x0e",
        b"\x0c",
        b"\x0b",
        b"\x0b\x14",
        b"\x0a\x05abc",
        b"\x0d\0\0\0",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x08" + b"\xff" * 9 + b"\x02",
        b"\xff\xff\xff\xff\xff\x01\x00",
        b'{"json": true}',
        b"<html>",
    ],
)
def test_no_protobuf(data: bytes) -> None:
    """What is no message is not described."""
    assert describe_protobuf(data) is None
    assert protobuf_fields(data) is None


def test_cut_message() -> None:
    """Of a message whose end is missing the beginning is described."""
    data = b"\x08\x01\x12\x05abc"
    assert describe_protobuf(data) is None
    assert describe_protobuf(data, cut=True) == "1: 1\n…"
    assert describe_protobuf(b"", cut=True) == describe_protobuf(b"") == ""


def test_description_is_bounded() -> None:
    """Neither depth nor length nor number makes a description long, or slow."""
    nested = b"\x08\x01"
    for _ in range(300):
        nested = b"\x0a" + len(nested).to_bytes(1, "big") + nested if len(nested) < 128 else prefix(nested)
    groups = b"\x0b" * 100_000 + b"\x0c" * 100_000
    tiny = b"\x08\x01" * 1_000_000
    text = b"\x0a\x80\x80\x40" + b"x" * (1 << 20)
    blob = b"\x0a\x80\x80\x40" + b"\x08" * (1 << 20)
    for data in (nested, groups, tiny, text, blob, prefix(tiny), prefix(prefix(blob)), b"\x0b" + tiny + b"\x0c"):
        begin = time.perf_counter()
        description = describe_protobuf(data, limit=1000)
        assert time.perf_counter() - begin < 2
        assert description is None or len(description) < 3000
    assert describe_protobuf(tiny, limit=20) == "1: 1\n1: 1\n1: 1\n1: 1\n…"
    assert (describe_protobuf(text) or "").endswith('xxx"… (1048576 characters)')
    assert (describe_protobuf(blob[:4] + b"\xff" * (1 << 20)) or "").endswith("ffff… (1048576 bytes)")


def prefix(message: bytes) -> bytes:
    """Return ``message`` as field 1 of another."""
    length = len(message)
    return b"\x0a" + bytes(length >> shift & 0x7F | (0x80 if shift < 28 else 0) for shift in range(0, 35, 7)) + message


VALUES = st.one_of(
    st.builds(lambda number: descriptor_pb2.UninterpretedOption(positive_int_value=number), st.integers(0, 2**64 - 1)),
    st.builds(lambda text: descriptor_pb2.FileDescriptorProto(name=text, dependency=[text, "x"]), st.text(max_size=9)),
    st.builds(lambda number: struct_pb2.Value(number_value=number), st.floats(allow_nan=False)),
    st.builds(lambda data: any_pb2.Any(type_url="a/b", value=data), st.binary(max_size=20)),
    st.builds(
        lambda path: descriptor_pb2.SourceCodeInfo.Location(path=path), st.lists(st.integers(0, 999), max_size=9)
    ),
).map(lambda message: bytes(message.SerializeToString()))


def as_the_library_says(data: bytes) -> list[tuple[int, int, object]] | None:
    """Return numbers, types and values of a message of which no field is known, groups without their values."""
    try:
        message = empty_pb2.Empty.FromString(data)
    except DecodeError:
        return None
    fields = unknown_fields.UnknownFieldSet(message)
    return [(f.field_number, f.wire_type, f.data if f.wire_type != 3 else None) for f in fields]


@settings(max_examples=200, deadline=None)
@given(data=st.lists(VALUES, max_size=4).map(b"".join))
@example(data=b"\x0b\x08\x01\x13\x14\x0c\x10\x02")
@example(data=b"\x88\x00\xff" + b"\xff" * 8 + b"\x01" + b"\xfa\xff\xff\xff\x0f\x00")
def test_protobuf_library_agrees(data: bytes) -> None:
    """What the protobuf library writes is a message with the fields that it reads."""
    fields = protobuf_fields(data)
    assert fields is not None
    told = [(f.number, f.wire_type, f.value if f.wire_type != 3 else None) for f in fields]
    assert told == as_the_library_says(data)
    assert describe_protobuf(data) is not None


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"\x08", b"\x0a", b"\x0b", b"\x0c", b"\x01", b"\x0d", b"\x80", b"\xff", b"a"])).map(
        b"".join
    )
)
@example(data=b"\x88\x80\x80\x80\x80\x00\x01")
@example(data=b"\x12\x80\x80\x80\x80\x80\x00")
def test_protobuf_library_accepts(data: bytes) -> None:
    """What is taken for a message is one for the library too; it alone takes field number 0 and too large numbers."""
    fields = protobuf_fields(data)
    if fields is not None:
        told = [(f.number, f.wire_type, f.value if f.wire_type != 3 else None) for f in fields]
        assert told == as_the_library_says(data)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), cut=st.booleans(), limit=st.integers(0, 100))
def test_any_description(data: bytes, cut: bool, limit: int) -> None:
    """Any bytes are described or are not, without an exception."""
    description = describe_protobuf(data, limit=limit, cut=cut)
    assert description is None or len(description) < 1200
