"""WebSocket: the RFCs' own examples, other implementations as judges, oddities, losses."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable

import pytest
from helpers import REQUEST, RESPONSE
from hypothesis import given, settings
from hypothesis import strategies as st
from test_messages import MessageStep, brief, cut_steps, drip, peak_of, pieces, run
from websockets.extensions.permessage_deflate import PerMessageDeflate as OtherDeflate
from websockets.frames import Frame, Opcode
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from tlscap.http.content import PIECE
from tlscap.http.events import Side
from tlscap.http.messages import AppMessage
from tlscap.http.websocket import Deflate, Extensions, WebSocketDecoder, negotiated, unmask

TAKEOVER = Extensions(Deflate())
NO_TAKEOVER = Extensions(Deflate(server_no_context_takeover=True))
KEY = bytes.fromhex("37fa213d")  # of the examples in RFC 6455, 5.7


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, key: bytes = b"", wide: int = 0
) -> bytes:
    """Return a frame; ``wide`` is how many bytes its extended length takes, at least."""
    length = len(payload)
    wide = max(wide, 0 if length < 126 else 2 if length < 1 << 16 else 8)
    head = bytes([fin << 7 | rsv << 4 | opcode, bool(key) << 7 | (length if not wide else {2: 126, 8: 127}[wide])])
    head += length.to_bytes(wide, "big") if wide else b""
    return head + key + (unmask(payload, key) if key else payload)


def server(extensions: Extensions | None = None, limit: int = 1 << 20) -> Callable[[], WebSocketDecoder]:
    return lambda: WebSocketDecoder(RESPONSE, extensions, limit=limit)


def client(extensions: Extensions | None = None) -> Callable[[], WebSocketDecoder]:
    return lambda: WebSocketDecoder(REQUEST, extensions)


class Deflater:
    """Compresses messages one after the other."""

    def __init__(self, *, takeover: bool = True, bits: int = 15) -> None:
        self._takeover = takeover
        self._bits = bits
        self._stream = zlib.compressobj(wbits=-bits)

    def __call__(self, data: bytes) -> bytes:
        packed = self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        if not self._takeover:
            self._stream = zlib.compressobj(wbits=-self._bits)
        return packed[:-4]

    def text(self, data: bytes) -> bytes:
        return frame(1, self(data), rsv=4)


# --- The RFCs' examples ---

RFC6455 = {
    "text": (server(), "810548656c6c6f", [("text", b"Hello")]),
    "masked text": (client(), "818537fa213d7f9f4d5158", [("text", b"Hello")]),
    "fragmented": (server(), "010348656c80026c6f", [("text", b"Hello")]),
    "ping": (server(), "890548656c6c6f", [("ping", b"Hello")]),
    "masked pong": (client(), "8a8537fa213d7f9f4d5158", [("pong", b"Hello")]),
}
RFC7692 = {
    "one frame": ("c107f248cdc9c90700", [b"Hello"]),
    "fragmented": ("4103f248cd8004c9c90700", [b"Hello"]),
    "the same again": ("c107f248cdc9c90700c107f248cdc9c90700", [b"Hello", b"Hello"]),
    "the same by reference": ("c107f248cdc9c90700c105f200110000", [b"Hello", b"Hello"]),
    "stored": ("c10b000500faff48656c6c6f00", [b"Hello"]),
    "final block": ("c108f348cdc9c9070000", [b"Hello"]),
    "two blocks": ("c10df248050000 00ffffcac9c90700", [b"Hello"]),
    "empty": ("c10100", [b""]),
}


@pytest.mark.parametrize("case", RFC6455)
def test_rfc6455(case: str) -> None:
    """The examples of RFC 6455, 5.7, however they are cut."""
    make, data, expected = RFC6455[case]
    messages = drip(make, bytes.fromhex(data))
    assert brief(messages) == expected
    assert all(message.complete and not message.notes for message in messages)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 256, 65535, 65536, 70000])
@pytest.mark.parametrize("key", [b"", KEY])
def test_lengths(length: int, key: bytes) -> None:
    """Every form of the length is read, at its limits too."""
    payload = os.urandom(length)
    data = frame(2, payload, key=key) + frame(9, b"x", key=key)
    make = client() if key else server()
    for size in (1, 5, 1000, 1 << 30) if length < 1000 else (4999, 1 << 30):
        messages = run(make(), pieces(data, size))
        assert brief(messages) == [("binary", payload), ("ping", b"x")]
        assert all(not message.notes for message in messages)
        assert [message.size for message in messages] == [length, 1]


@pytest.mark.parametrize("case", RFC7692)
def test_rfc7692(case: str) -> None:
    """The examples of RFC 7692, 7.2.3, however they are cut."""
    data, expected = RFC7692[case]
    messages = drip(server(TAKEOVER), bytes.fromhex(data))
    assert brief(messages) == [("text", data) for data in expected]
    assert all(message.complete and not message.notes for message in messages)


def test_final_blocks_keep_the_history() -> None:
    """A message after one that ended with a final block may refer to it; a final block may be all there is at the end."""
    text = b"a text that is worth a reference, " * 3
    first = zlib.compressobj(wbits=-15)
    packed = first.compress(text) + first.flush()
    second = zlib.compressobj(wbits=-15, zdict=text)
    again = second.compress(text) + second.flush(zlib.Z_SYNC_FLUSH)
    assert len(again) < len(packed)
    for end in (b"", b"\0"):
        data = frame(1, packed + end, rsv=4) + frame(1, again[:-4], rsv=4)
        messages = drip(server(TAKEOVER), data)
        assert brief(messages) == [("text", text)] * 2
        assert all(not message.notes for message in messages)


def test_final_blocks_inside_of_a_message() -> None:
    """Blocks after a final one may refer to what was before it, in the same message, in earlier ones."""
    text = b"a text that is worth a reference, " * 3
    first = zlib.compressobj(wbits=-15)
    again = zlib.compressobj(wbits=-15, zdict=text)
    packed = first.compress(text) + first.flush() + again.compress(text) + again.flush(zlib.Z_SYNC_FLUSH)
    for extensions in (TAKEOVER, NO_TAKEOVER):
        (message,) = drip(server(extensions), frame(1, packed[:-4], rsv=4))
        assert (message.data, message.notes) == (text * 2, ())


# --- Judges ---

MESSAGES = st.lists(
    st.tuples(
        st.one_of(
            st.text(max_size=40),
            st.binary(max_size=40),
            st.sampled_from(["again and again " * 30, b"\0" * 5000, random.Random(1).randbytes(700)]),
        ),
        st.integers(1, 4),  # fragments
        st.booleans(),  # a ping between them
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    messages=MESSAGES,
    side=st.sampled_from(Side),
    no_takeover=st.tuples(st.booleans(), st.booleans()),
    bits=st.integers(9, 15),
    compressed=st.booleans(),
    size=st.integers(1, 400),
)
def test_wsproto(
    messages: list[tuple[str | bytes, int, bool]],
    side: Side,
    no_takeover: tuple[bool, bool],
    bits: int,
    compressed: bool,
    size: int,
) -> None:
    """What wsproto sends is read as wsproto reads it: both directions, with and without takeover, with any window."""
    client_forgets, server_forgets = no_takeover
    asks = PerMessageDeflate(client_forgets, bits, server_forgets, bits)
    answers = PerMessageDeflate(client_forgets, bits, server_forgets, bits)
    agreed = answers.accept(f"permessage-deflate; {asks.offer()}")
    asks.finalize(f"permessage-deflate; {agreed}")
    ends = {
        Side.REQUEST: FrameProtocol(client=True, extensions=[asks] if compressed else []),
        Side.RESPONSE: FrameProtocol(client=False, extensions=[answers] if compressed else []),
    }
    sender, receiver = ends[side], ends[side.opposite]
    wire = b""
    expected = []
    for payload, count, ping in messages:
        length = max(1, -(-len(payload) // count))
        parts = [payload[start : start + length] for start in range(0, len(payload), length)] or [payload]
        for index, part in enumerate(parts):
            wire += sender.send_data(part, fin=index == len(parts) - 1)
            if ping:
                wire += sender.ping(b"p")
        expected.append(("text", payload.encode()) if isinstance(payload, str) else ("binary", payload))
    wire += sender.close(1000, "bye")

    header = b"permessage-deflate; " + str(agreed).encode()
    extensions = negotiated(((b"Sec-WebSocket-Extensions", header),)) if compressed else None
    got = run(WebSocketDecoder(side, extensions), pieces(wire, size))
    assert all(message.complete and not message.notes for message in got)
    assert brief(message for message in got if message.kind in ("text", "binary")) == expected
    assert (got[-1].kind, got[-1].name, got[-1].data) == ("close", "1000 normal", b"bye")

    if compressed and any(ping and count > 1 for _, count, ping in messages):
        return  # wsproto forgets that a message is compressed when a ping stands between its fragments
    receiver.receive_bytes(wire)
    seen: list[tuple[int, bytes]] = []
    for got_frame in receiver.received_frames():
        if int(got_frame.opcode) in (1, 2):
            text = got_frame.payload
            assert not isinstance(text, tuple)
            data = text.encode() if isinstance(text, str) else bytes(text)
            before = seen.pop()[1] if seen and not seen[-1][0] else b""
            seen.append((int(got_frame.message_finished), before + data))
    assert [data for _, data in seen] == [data for _, data in expected]


@pytest.mark.parametrize("no_takeover", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 15])
def test_websockets(no_takeover: bool, bits: int) -> None:
    """What the websockets library sends is read: large fragmented messages, control frames in between."""
    deflate = OtherDeflate(no_takeover, no_takeover, bits, bits)
    numbers = random.Random(bits)
    words = [b"%d " % numbers.randrange(50) for _ in range(40_000)]
    wire = b""
    expected = []
    for start in range(0, len(words), 8000):
        chosen = [b"".join(words[start + part : start + part + 2000]) for part in (0, 2000, 4000, 6000)]
        expected.append(b"".join(chosen))
        for index, part in enumerate(chosen):
            opcode = Opcode.CONT if index else Opcode.BINARY
            wire += Frame(opcode, part, fin=index == 3).serialize(mask=True, extensions=[deflate])
            wire += Frame(Opcode.PONG, b"").serialize(mask=True, extensions=[deflate])
    extensions = Extensions(Deflate(client_no_context_takeover=no_takeover))
    for size in (777, 1 << 30):
        got = run(WebSocketDecoder(REQUEST, extensions), pieces(wire, size))
        assert [message.data for message in got if message.kind == "binary"] == expected
        assert not any(message.notes for message in got)


@given(data=st.binary(max_size=100), key=st.binary(min_size=4, max_size=4), repeat=st.integers(0, 1000))
def test_unmask(data: bytes, key: bytes, repeat: int) -> None:
    """Masking is what RFC 6455, 5.3 says, for any length, and undoes itself."""
    data *= repeat
    masked = unmask(data, key)
    assert masked[:500] == bytes(byte ^ key[index % 4] for index, byte in enumerate(data[:500]))
    tail = range(max(0, len(data) - 100), len(data))
    assert masked[tail.start :] == bytes(data[index] ^ key[index % 4] for index in tail)
    assert unmask(masked, key) == data


@pytest.mark.parametrize("side", Side)
def test_takeover_of_each_side(side: Side) -> None:
    """One side may take its context over while the other does not."""
    deflater = Deflater()
    text = b"the same words " * 5
    key = KEY if side is REQUEST else b""
    data = b"".join(frame(1, deflater(text), rsv=4, key=key) for _ in range(2))
    own, other = (Deflate(client_no_context_takeover=True), Deflate(server_no_context_takeover=True))[
        :: 1 if side is REQUEST else -1
    ]
    assert [m.data for m in run(WebSocketDecoder(side, Extensions(other)), [data])] == [text, text]
    assert [m.data == text for m in run(WebSocketDecoder(side, Extensions(own)), [data])] == [True, False]


# --- Negotiation ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Extensions()),
        ([b""], Extensions()),
        ([b"permessage-deflate"], TAKEOVER),
        ([b"Permessage-Deflate ; Server_No_Context_Takeover"], NO_TAKEOVER),
        (
            [b'permessage-deflate; client_no_context_takeover; server_max_window_bits="10"; client_max_window_bits=8'],
            Extensions(Deflate(client_no_context_takeover=True, server_max_window_bits=10, client_max_window_bits=8)),
        ),
        ([b"permessage-deflate; server_max_window_bits=99; foo=bar; client_max_window_bits"], TAKEOVER),
        ([b"x-foo; a=1, permessage-deflate", b"bar"], Extensions(Deflate(), ("x-foo", "bar"))),
        ([b"permessage-deflate, permessage-deflate; x"], Extensions(Deflate(), ("permessage-deflate",))),
    ],
)
def test_negotiated(values: list[bytes], expected: Extensions) -> None:
    """The server's answer says what is in use; what makes no sense counts as left out."""
    assert negotiated(tuple((b"sec-websocket-extensions", value) for value in values)) == expected


# --- Oddities: said, not refused ---

NOTES: dict[str, tuple[Callable[[], WebSocketDecoder], bytes, list[tuple[str, bytes, tuple[str, ...]]]]] = {
    "unmasked client": (client(), frame(1, b"x"), [("text", b"x", ("client's frame is not masked",))]),
    "masked server": (server(), frame(1, b"x", key=KEY), [("text", b"x", ("server's frame is masked",))]),
    "long ping": (
        server(),
        frame(9, b"x" * 126),
        [("ping", b"x" * 126, ("control frame longer than 125 bytes",))],
    ),
    "fragmented ping": (
        server(),
        frame(9, b"a", fin=False) + frame(1, b"b"),
        [("ping", b"a", ("fragmented control frame",)), ("text", b"b", ())],
    ),
    "long form": (server(), frame(2, b"x", wide=2), [("binary", b"x", ("length not in its shortest form",))]),
    "longest form": (
        server(),
        frame(2, b"x" * 200, wide=8),
        [("binary", b"x" * 200, ("length not in its shortest form",))],
    ),
    "RSV1 without deflate": (server(), frame(1, b"x", rsv=4), [("text", b"x", ("reserved bits set: RSV1",))]),
    "unknown extension": (
        server(Extensions(None, ("x-foo",))),
        frame(1, b"x", rsv=7),
        [("text", b"x", ("reserved bits set: RSV1, RSV2, RSV3", "extensions not understood: x-foo"))],
    ),
    "RSV1 on a continuation": (
        server(TAKEOVER),
        frame(1, b"a", fin=False) + frame(0, b"b", rsv=4),
        [("text", b"ab", ("reserved bits set: RSV1",))],
    ),
    "RSV1 on a ping": (server(TAKEOVER), frame(9, b"a", rsv=4), [("ping", b"a", ("reserved bits set: RSV1",))]),
    "reserved opcodes": (
        server(),
        frame(3, b"a") + frame(11, b"b"),
        [("unknown", b"a", ("reserved opcode",)), ("unknown", b"b", ("reserved opcode",))],
    ),
    "no UTF-8": (server(), frame(1, b"a\xff"), [("text", b"a\xff", ("not UTF-8",))]),
    "UTF-8 cut": (server(), frame(1, "ä".encode()[:1]), [("text", b"\xc3", ("not UTF-8",))]),
    "UTF-8 over fragments": (
        server(),
        frame(1, b"\xc3", fin=False) + frame(0, b"\xa4"),
        [("text", "ä".encode(), ())],
    ),
    "binary is any": (server(), frame(2, b"\xff"), [("binary", b"\xff", ())]),
    "continuation of nothing": (
        server(),
        frame(0, b"a", fin=False) + frame(0, b"b") + frame(1, b"c"),
        [("continuation", b"ab", ("its beginning was not seen",)), ("text", b"c", ())],
    ),
    "continuation of nothing, with RSV1": (
        server(TAKEOVER),
        frame(0, b"a", rsv=4),
        [("continuation", b"a", ("its beginning was not seen", "may be compressed", "reserved bits set: RSV1"))],
    ),
    "message inside of a message": (
        server(),
        frame(1, b"a", fin=False) + frame(2, b"b"),
        [("text", b"a", ("another message began inside of it",)), ("binary", b"b", ())],
    ),
    "close of one byte": (server(), frame(8, b"x"), [("close", b"x", ("close frame of one byte",))]),
    "close with a bad code": (server(), frame(8, b"\x03\xed"), [("close", b"", ("code 1005 must not be sent",))]),
    "close with a bad reason": (server(), frame(8, b"\x03\xe8\xff"), [("close", b"\xff", ("not UTF-8",))]),
    "after close": (server(), frame(8) + frame(9), [("close", b"", ()), ("ping", b"", ("after a close frame",))]),
    "corrupt deflate": (
        server(TAKEOVER),
        frame(1, b"\xff\xff", rsv=4),
        [("text", b"\xff\xff", ("deflate: Error -3 while decompressing data: invalid block type",))],
    ),
    "deflate cut": (
        server(NO_TAKEOVER),
        frame(2, bytes.fromhex("f248cdc9"), rsv=4) + Deflater().text(b"x"),
        [("binary", b"Hel", ("compressed data ends early",)), ("text", b"x", ())],
    ),
    "deflate without a byte": (
        server(TAKEOVER),
        frame(2, b"", rsv=4),
        [("binary", b"", ("compressed data ends early",))],
    ),
    "cut in a header": (
        server(),
        frame(1, b"a", fin=False) + b"\x80",
        [("text", b"a", ("ended inside of it",)), ("unparsed", b"\x80", ("ended inside of it",))],
    ),
    "cut in a payload": (server(), b"\x81\x05Hel", [("text", b"Hel", ("ended inside of it",))]),
    "cut in a ping": (
        server(),
        frame(1, b"a", fin=False) + b"\x89\x05x",
        [("ping", b"x", ("ended inside of it",)), ("text", b"a", ("ended inside of it",))],
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_oddities(case: str) -> None:
    """What breaks the rules is told with a note, however it is cut."""
    make, data, expected = NOTES[case]
    messages = drip(make, data)
    assert [(message.kind, message.data, message.notes) for message in messages] == expected


def test_length_beyond_all() -> None:
    """A length that can't be loses the step, and the next frames that begin an item are read."""
    impossible = b"\x82\x7f\x80" + bytes(7) + b"bc"
    messages = run(WebSocketDecoder(RESPONSE), [frame(1, b"a") + impossible, frame(1, b"d")])
    assert brief(messages) == [("text", b"a"), ("unparsed", impossible), ("text", b"d")]
    assert messages[1].notes == ("no frame header",)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"", ""),
        (b"\x03\xe8", "1000 normal"),
        (b"\x03\xe9bye", "1001 going away"),
        (b"\x0f\xa0", "4000"),
    ],
)
def test_close(payload: bytes, name: str) -> None:
    """A close frame is told by its code, its reason is the data."""
    (message,) = drip(server(), frame(8, payload))
    assert (message.name, message.data, message.size, message.notes) == (name, payload[2:], len(payload), ())


def test_times() -> None:
    """A message lasts from the first byte of its first header to the last of its last frame."""
    decoder = WebSocketDecoder(RESPONSE)
    data = frame(1, b"ab", fin=False) + frame(9, b"p") + frame(0, b"cd")
    got: list[AppMessage] = []
    for time_ns, byte in enumerate(data):
        got += decoder.feed(bytes([byte]), time_ns)
    assert [(message.kind, message.started_ns, message.time_ns) for message in got] == [
        ("ping", 4, 6),
        ("text", 0, 10),
    ]


# --- Holes ---


def test_hole_in_a_payload() -> None:
    """A hole inside of a payload costs that message only, whatever its place, and masking goes on rightly."""
    payload = bytes(range(100))
    data = frame(2, payload, key=KEY) + frame(1, b"next", key=KEY)
    for start in range(6, 106):
        for length in (1, 3, 106 - start):
            if start + length > 106:
                continue
            hole, after = run(WebSocketDecoder(REQUEST), [data[:start], length, data[start + length :]])
            assert hole.data == payload[: start - 6] + payload[start - 6 + length :]
            assert (hole.complete, hole.missing, hole.size) == (False, length, 100 - length)
            assert (hole.length, hole.notes) == (106, ("bytes missing",))
            assert (after.data, after.complete, after.notes) == (b"next", True, ())


def test_hole_in_a_fragment() -> None:
    """A message with a hole in one of its frames ends where it ends."""
    data = frame(1, b"abc", fin=False) + frame(0, b"def")
    (message,) = run(WebSocketDecoder(RESPONSE), [data[:3], 2, data[5:]])
    assert (message.data, message.complete, message.missing) == (b"adef", False, 2)


HOLES: dict[str, tuple[list[MessageStep], list[tuple[str, bytes, bool, int]]]] = {
    "between messages": (
        [frame(1, b"a"), 5, frame(1, b"b") + frame(2, b"c")],
        [("text", b"a", True, 0), ("unparsed", b"", False, 5), ("text", b"b", True, 0), ("binary", b"c", True, 0)],
    ),
    "beyond a payload": (
        [frame(1, b"abc")[:3], 7, frame(9, b"b")],
        [("text", b"a", False, 2), ("unparsed", b"", False, 5), ("ping", b"b", True, 0)],
    ),
    "in a header": (
        [frame(1, b"x" * 200)[:3], 1, b"rest of it", frame(9, b"b")],
        [("unparsed", b"\x81\x7e\x00rest of it", False, 1), ("ping", b"b", True, 0)],
    ),
    "between fragments": (
        [frame(1, b"a", fin=False), 5, frame(0, b"c") + frame(1, b"d")],
        [
            ("text", b"a", False, 0),
            ("unparsed", b"", False, 5),
            ("continuation", b"c", False, 0),
            ("text", b"d", True, 0),
        ],
    ),
    "no frame at the next item's start": (
        [5, b"text in the middle" + frame(1, b"a"), frame(1, b"b")],
        [("unparsed", b"text in the middle" + frame(1, b"a"), False, 5), ("text", b"b", True, 0)],
    ),
    "the last frame goes on": (
        [5, frame(1, b"a") + frame(2, b"bcd")[:3], b"cd"],
        [("unparsed", b"", False, 5), ("text", b"a", True, 0), ("binary", b"bcd", True, 0)],
    ),
    "its header goes on": (
        [5, frame(1, b"a") + b"\x82", b"\x01c"],
        [("unparsed", b"", False, 5), ("text", b"a", True, 0), ("binary", b"c", True, 0)],
    ),
    "a header in a write of its own": (
        [5, frame(1, b"abc")[:2], b"abc"],
        [("unparsed", b"", False, 5), ("text", b"abc", True, 0)],
    ),
    "a large frame in several writes": (
        [5, frame(2, b"x" * 300)[:100], frame(2, b"x" * 300)[100:]],
        [("unparsed", b"", False, 5), ("binary", b"x" * 300, True, 0)],
    ),
    "a small frame in several writes is no proof": (
        [5, frame(2, b"abc")[:3], b"bc", frame(1, b"a")],
        [("unparsed", b"\x82\x03abc", False, 5), ("text", b"a", True, 0)],
    ),
    "mistaken, and noticed": (
        [5, frame(1, b"a") + b"\x81", b"\xff", b"no frame at all", frame(1, b"b")],
        [
            ("unparsed", b"", False, 5),
            ("text", b"a", True, 0),
            ("unparsed", b"\x81\xffno frame at all", False, 0),
            ("text", b"b", True, 0),
        ],
    ),
    "two holes": (
        [5, 6, b"?", 7, frame(1, b"b")],
        [("unparsed", b"?", False, 18), ("text", b"b", True, 0)],
    ),
}


@pytest.mark.parametrize("case", HOLES)
def test_holes(case: str) -> None:
    """The step is regained where bytes begin with frames that fit, and what passed meanwhile is told."""
    steps, expected = HOLES[case]
    messages = run(WebSocketDecoder(RESPONSE), steps)
    assert [(m.kind, m.data, m.complete, m.missing) for m in messages] == expected


@pytest.mark.parametrize(
    "item",
    [
        frame(1, b"a", rsv=4),
        frame(3, b"a"),
        frame(1, b"a", key=KEY),
        frame(9, b"a", fin=False),
        frame(9, b"a" * 126),
        frame(1, b"a", wide=2),
        frame(1, b"a") + b"\xff\xff",
        b"\x81",
    ],
)
def test_nothing_unusual_out_of_step(item: bytes) -> None:
    """After a hole, what a real implementation would not send is no frame."""
    assert brief(run(WebSocketDecoder(RESPONSE), [1, item])) == [("unparsed", item)]


def test_history_after_a_hole() -> None:
    """With takeover, messages after a loss are decoded if they refer to nothing that was lost, else given raw."""
    deflater = Deflater()
    numbers = random.Random(7)
    plain = [
        b"the same words " * 5,
        b"the same words, again the same words ",
        numbers.randbytes(40),
        b"the same words ",
    ]
    packed = [deflater(text) for text in plain]
    frames = [frame(2, data, rsv=4) for data in packed]
    got = run(WebSocketDecoder(RESPONSE, TAKEOVER), [frames[0], 3, *frames[1:]])
    missing = ("compressed, and its history is missing",)
    assert [(m.kind, m.data, m.complete, m.notes) for m in got] == [
        ("binary", plain[0], True, ()),
        ("unparsed", b"", False, ("bytes missing",)),
        ("binary", packed[1], True, missing),
        ("binary", plain[2], True, ()),  # random bytes refer to nothing
        ("binary", packed[3], True, missing),
    ]


def test_history_is_whole_again() -> None:
    """Once a window's worth is known again, nothing is missing, and an error is one."""
    deflater = Deflater()
    deflater(b"x")
    noise = random.Random(3).randbytes(40_000)
    frames = [frame(2, deflater(data), rsv=4) for data in (noise, noise[-20_000:])]
    got = run(WebSocketDecoder(RESPONSE, TAKEOVER), [1, *frames, frame(2, b"\xff", rsv=4)])
    assert [message.data for message in got[1:3]] == [noise, noise[-20_000:]]
    assert len(frames[1]) < 2000
    assert got[3].notes[0].startswith("deflate: ")


def test_no_takeover_needs_no_history() -> None:
    """Without takeover a loss costs only what was lost."""
    deflater = Deflater(takeover=False)
    text = b"the same words " * 5
    frames = [frame(2, deflater(text), rsv=4) for _ in range(3)]
    got = run(WebSocketDecoder(RESPONSE, NO_TAKEOVER), [frames[0], len(frames[1]), frames[2]])
    assert [message.data for message in got] == [text, b"", text]
    assert got[-1].notes == ()


def test_hole_in_a_compressed_message() -> None:
    """What could be decoded before the hole is given; the history after it is missing."""
    deflater = Deflater()
    text = b"".join(b"line %d\n" % number for number in range(3000))
    data = frame(1, deflater(text), rsv=4)
    again = frame(1, deflater(b"line 2999\nline 2998\n"), rsv=4)
    first, second = run(WebSocketDecoder(RESPONSE, TAKEOVER), [data[:3000], 10, data[3010:], again])
    assert len(first.data) > 1000
    assert text.startswith(first.data)
    assert (first.complete, first.missing, first.notes) == (False, 10, ("bytes missing",))
    assert second.notes == ("compressed, and its history is missing",)


def test_uncompressed_messages_leave_the_history_alone() -> None:
    """With takeover, a message that is not compressed is not referred to."""
    deflater = Deflater()
    text = b"the same words " * 5
    data = deflater.text(text) + frame(1, b"plain") + frame(1, b"cut", fin=False) + deflater.text(text)
    got = drip(server(TAKEOVER), data)
    assert [message.data for message in got] == [text, b"plain", b"cut", text]


# --- Limits ---


def test_limit() -> None:
    """Of a long message the beginning is kept, and the next one is read as ever."""
    data = frame(1, b"x" * 500, fin=False, key=KEY) + frame(0, b"y" * 500, key=KEY) + frame(1, b"next", key=KEY)
    for size in (1, 7, 1 << 30):
        decoder = WebSocketDecoder(REQUEST, limit=300)
        first, second = run(decoder, pieces(data, size))
        assert (first.data, first.size, first.complete) == (b"x" * 300, 1000, True)
        assert first.notes == ("first 300 bytes kept",)
        assert (second.data, second.notes) == (b"next", ())


def test_limit_cuts_a_character() -> None:
    """A text that the limit cuts inside of a character is still UTF-8."""
    (message,) = run(WebSocketDecoder(RESPONSE, limit=3), [frame(1, "ääää".encode())])
    assert message.notes == ("first 3 bytes kept",)
    (message,) = run(WebSocketDecoder(RESPONSE, TAKEOVER, limit=3), [Deflater().text("ääää".encode())])
    assert message.notes == ("first 3 bytes kept",)


@pytest.mark.parametrize("extensions", [TAKEOVER, NO_TAKEOVER])
def test_limit_of_compressed(extensions: Extensions) -> None:
    """The limit is one of decoded bytes; what is beyond it still counts as history where that matters."""
    deflater = Deflater(takeover=extensions is TAKEOVER)
    text = random.Random(5).randbytes(3000)
    data = frame(2, deflater(text * 3), rsv=4) + frame(2, deflater(text), rsv=4)
    for size in (100, 1 << 30):
        first, second = run(WebSocketDecoder(RESPONSE, extensions, limit=4000), pieces(data, size))
        assert (first.data, first.notes) == ((text * 3)[:4000], ("first 4000 bytes kept",))
        assert (second.data, second.notes) == (text, ())


@pytest.mark.parametrize("extensions", [TAKEOVER, NO_TAKEOVER])
def test_bomb(extensions: Extensions) -> None:
    """A bomb needs no more memory than the limit; its expansion stops, and connections go on."""
    bomb = Deflater()(bytes(1 << 27))
    data = frame(2, bomb, rsv=4) + Deflater().text(b"Hello, new history")
    got: list[AppMessage] = []

    def work() -> None:
        got.extend(run(WebSocketDecoder(RESPONSE, extensions, limit=1 << 20), pieces(data, 10_000)))

    assert peak_of(work) < 4 << 20
    first, second = got
    if extensions is TAKEOVER:
        assert (first.data, first.size) == (bomb, len(bomb))
        assert first.notes[0].endswith("times as much: a bomb")
    else:
        assert (first.data, first.notes) == (bytes(1 << 20), ("first 1048576 bytes kept",))
    assert (second.data, second.notes) == (b"Hello, new history", ())
    assert len(first.data) <= max(1 << 20, 4 * PIECE)


def test_many_final_blocks() -> None:
    """A message of nothing but final blocks is no way to make the observer slow."""
    (message,) = run(WebSocketDecoder(RESPONSE, TAKEOVER), [frame(2, b"\x03\x00" * 100_000, rsv=4)])
    assert message.notes == ("deflate: too many final blocks",)
    few = b"\x03\x00" * 500 + b"\x00"
    (message,) = run(WebSocketDecoder(RESPONSE, TAKEOVER), [frame(2, few, rsv=4)])
    assert (message.data, message.notes) == (b"", ())


def test_byte_by_byte_is_linear() -> None:
    """A long message in single bytes takes no quadratic time (it would take minutes)."""
    data = frame(2, bytes(300_000), key=KEY)
    (message,) = run(WebSocketDecoder(REQUEST), pieces(data, 1))
    assert message.size == 300_000


# --- Anything at all ---

FRAMES = st.builds(
    frame,
    st.sampled_from([0, 1, 2, 8, 9, 10, 3]),
    st.one_of(st.binary(max_size=8), st.sampled_from([b"Hello", bytes.fromhex("f248cdc9c90700"), b"x" * 130])),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 4, 2]),
    key=st.sampled_from([b"", KEY]),
)
DATA = st.lists(st.one_of(FRAMES, st.binary(max_size=6)), min_size=1, max_size=4).map(b"".join).filter(bool)
STEPS: st.SearchStrategy[list[MessageStep]] = st.lists(st.one_of(DATA, DATA, st.integers(1, 300)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    size=st.integers(1, 20),
    side=st.sampled_from(Side),
    extensions=st.sampled_from([None, TAKEOVER, NO_TAKEOVER]),
    limit=st.sampled_from([0, 3, 1000]),
)
def test_anything(steps: list[MessageStep], size: int, side: Side, extensions: Extensions | None, limit: int) -> None:
    """Any bytes and holes, cut in any way, are told without an exception, accounted for, and bounded."""
    for cut in (steps, cut_steps(steps, size)):
        for message in run(WebSocketDecoder(side, extensions, limit=limit), cut):
            assert len(message.data) <= limit
            assert message.complete or message.notes


@settings(max_examples=200, deadline=None)
@given(data=DATA, size=st.integers(1, 20))
def test_cuts_do_not_matter_in_step(data: bytes, size: int) -> None:
    """Until the step is lost, what is told does not depend on how the bytes were cut."""
    whole = run(WebSocketDecoder(RESPONSE, TAKEOVER), [data])
    parts = run(WebSocketDecoder(RESPONSE, TAKEOVER), pieces(data, size))
    lost = next((index for index, m in enumerate(whole) if m.notes[:1] == ("no frame header",)), len(whole))
    assert parts[:lost] == whole[:lost]
