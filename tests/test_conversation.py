"""Conversations for people: complete, in order, bounded, and harmless to a terminal."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC
from typing import Any

import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given, settings
from hypothesis import strategies as st
from test_har import GRPC_BODY, H2_CALL, H2_GET, answer, frame, h2_items, post, text_frame, websocket_items

from tlscap.export.conversation import conversation, find_flow
from tlscap.export.hexdump import hexdump
from tlscap.export.table import visible
from tlscap.model import Data, Direction, Endpoint, Flow, Gap, GapReason, Item, Role

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
FIRST = "connection 1 of curl[4711]: 10.0.0.1:40001 → 93.184.216.34:443 (example.org)"


def said(items: Iterable[Item], flow_id: int = 1, **options: Any) -> list[str]:
    return list(conversation(items, flow_id, zone=UTC, **options))


def body_lines(items: Iterable[Item], **options: Any) -> list[str]:
    """Return what is shown of the last body."""
    lines = said(items, **options)
    return lines[len(lines) - lines[::-1].index("") :]


# --- Hex ---


def test_hexdump() -> None:
    """Sixteen bytes a line, in two halves, and what of them is ASCII."""
    assert list(hexdump(b"", 5)) == []
    assert list(hexdump(b"0123456789abcdef\x00~\x7f\xff", 0x1000)) == [
        "00001000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|",
        "00001010  00 7e 7f ff                                       |.~..|",
    ]


@pytest.mark.skipif(not shutil.which("hexdump"), reason="hexdump is not installed")
@pytest.mark.parametrize("length", [1, 8, 9, 16, 17, 1000])
def test_hexdump_as_others_do(length: int) -> None:
    """The lines are those of hexdump -C."""
    data = bytes(number * 37 % 256 for number in range(length))
    done = subprocess.run(["hexdump", "-C", "-v"], input=data, capture_output=True, check=True)
    assert list(hexdump(data)) == done.stdout.decode().splitlines()[:-1]


# --- HTTP ---


def test_exchange() -> None:
    """A request and its answer, as sent."""
    items = simple_exchange(b"hello\r\n\tworld\n", b"Content-Type: text/plain", b"X: gr\xc3\xbcn \xff\x1b")
    assert said(items) == [
        FIRST,
        "",
        "1 → 18:00:00.124",
        "GET / HTTP/1.1",
        "Host: a",
        "",
        "1 ← 18:00:00.125  after 1.0ms",
        "HTTP/1.1 200 OK",
        "Content-Length: 14",
        "Content-Type: text/plain",
        "X: grün \\xff\\x1b",
        "",
        "hello",
        "        world",
    ]


def test_connection() -> None:
    """All exchanges of a connection, interim responses among them, and of no other."""
    one, other = Wire(make_flow(1)), Wire(make_flow(2))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    items: list[Item] = [other.out(GET), one.out(post(b"a=1")), other.into(answer(b"other")), one.into(interim)]
    items += [one.into(answer(b"first")), one.out(GET), one.into(answer(b"second")), one.closed(), other.out(GET)]
    lines = said(items)
    titles = [line for line in lines if re.match(r"\d+ [→←]", line)]
    assert titles == [
        "2 → 18:00:00.124",
        "2 ← 18:00:00.125",
        "2 ← 18:00:00.126  after 2.0ms",
        "3 → 18:00:00.127",
        "3 ← 18:00:00.128  after 1.0ms",
    ]
    assert "other" not in lines
    assert [line for line in lines if line in ("a=1", "Link: x", "first", "second")] == [
        "a=1",
        "Link: x",
        "first",
        "second",
    ]


def test_one_exchange() -> None:
    """With its number, only one exchange is shown."""
    wire = Wire()
    items: list[Item] = [wire.out(GET), wire.into(answer(b"first")), wire.out(GET), wire.into(answer(b"second"))]
    lines = said([*items, wire.into(b"junk")], exchange_id=2)
    assert "second" in lines
    assert not {"first", "junk"} & set(lines)
    assert said(items, exchange_id=7) == []
    assert said(items, flow_id=7) == []


def test_heads_only() -> None:
    """Heads without bodies."""
    assert said(simple_exchange(b"hello"), heads_only=True)[-3:] == [
        "1 ← 18:00:00.125  after 1.0ms",
        "HTTP/1.1 200 OK",
        "Content-Length: 5",
    ]
    lines = said(websocket_items((OUT, text_frame(b"hi", masked=True)), (IN, b"\x7f")), heads_only=True)
    assert "hi" not in lines
    assert "Upgrade: websocket" in lines
    wire = Wire(make_flow(alpn="mqtt"))
    assert said([wire.out(b"\x10abc")], heads_only=True) == [FIRST.replace("example.org", "example.org, mqtt")]


def test_colors() -> None:
    """Colors tell the sides apart and change nothing else."""
    items = [*simple_exchange(b"hello"), Wire(make_flow(1)).gap(IN, 3)]
    colored = said(items, color=True)
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in colored] == said(items)
    assert "\x1b[36mGET / HTTP/1.1\x1b[0m" in colored
    assert "\x1b[32mhello\x1b[0m" in colored


def test_http2() -> None:
    """HTTP/2 heads with their pseudo-header fields; frames that say something; promises."""
    settings_frame = frame(4, 0, 0, b"\0\3\0\0\0\x64")
    items = h2_items(H2_GET, [(":status", "200"), ("x", "y")], b"hi")
    lines = said(
        [*items, Wire(items[0].flow).into(settings_frame), Wire(items[0].flow).into(frame(8, 0, 0, b"\0\0\0\1"))]
    )
    start = lines.index(":method: GET")
    assert lines[start : start + 5] == [
        ":method: GET",
        ":scheme: https",
        ":authority: h2.example",
        ":path: /x?a=1",
        "accept: */*",
    ]
    assert ":status: 200" in lines
    assert "hi" in lines
    assert any("SETTINGS" in line and "100" in line for line in lines)
    assert not any("WINDOW_UPDATE" in line or "preface" in line for line in lines)


def test_halves() -> None:
    """What is missing is said."""
    assert any("no response" in line for line in said([Wire().out(GET)]))
    assert said([Wire().into(answer(b"hi"))])[-1] == "hi"
    lines = said([Wire().out(post(b"hello")[:-2])])
    assert lines[lines.index("hel") + 1] == "! recording ended"


def test_trailers() -> None:
    """Trailers follow the body."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nSum: 1\r\n\r\n"
    wire = Wire()
    assert said([wire.out(GET), wire.into(chunked)])[-2:] == ["hi", "Sum: 1"]


def test_http09() -> None:
    """HTTP/0.9 has no heads to show but the line that asks."""
    wire = Wire()
    lines = said([wire.out(b"GET /x\r\n"), wire.into(b"<p>"), wire.half_closed(IN)])
    assert lines[3] == "GET /x"
    assert lines[-2:] == ["", "<p>"]


# --- Contents ---


def test_decoded() -> None:
    """Bodies are shown decoded; what could not be decoded is, too."""
    assert body_lines(simple_exchange(gzip.compress(b"hello"), b"Content-Encoding: gzip")) == ["hello"]
    first, *rest = body_lines(simple_exchange(b"\xffjunk", b"Content-Encoding: gzip", b"Content-Type: text/plain"))
    assert first.startswith("! gzip: ")
    assert rest == list(hexdump(b"\xffjunk"))
    assert body_lines(simple_exchange(b"gr\xfcn", b"Content-Type: text/plain; charset=latin1")) == ["grün"]


def test_binary() -> None:
    """Of what is no text the beginning is shown in hex, with its true length; on demand all of it."""
    data = bytes(range(256)) * 8
    items = simple_exchange(data, b"Content-Type: image/png")
    assert body_lines(items) == [*hexdump(data[:256]), "… 1792 more of 2048 bytes"]
    assert body_lines(items, limit=500) == [*hexdump(data[:256]), "… 1792 more of 2048 bytes"]
    assert body_lines(items, as_hex=True) == list(hexdump(data))
    assert body_lines(items, as_hex=True, limit=100) == [*hexdump(data[:100]), "… 1948 more of 2048 bytes"]
    assert body_lines(simple_exchange(b"{}"), as_hex=True) == list(hexdump(b"{}"))


def test_long_text() -> None:
    """Long texts are cut, at a character."""
    assert body_lines(simple_exchange("äöü\n".encode() * 100), limit=9) == ["äöü", "ä", "… 691 more of 700 bytes"]


def test_holes() -> None:
    """Holes are shown in their place."""
    wire = Wire()
    items: list[Item] = [wire.out(GET), wire.into(answer(b"0123456789", b"Content-Type: text/plain")[:-8])]
    items += [wire.gap(IN, 3), wire.into(b"\xc3"), wire.gap(IN, 1, GapReason.SNAPLEN), wire.into(b"789")]
    lines = [
        "01",
        "… 3 bytes missing (ring-full) …",
        "\ufffd",
        "… 1 bytes missing (snaplen) …",
        "789",
        "! bytes missing",
    ]
    assert body_lines(items) == lines
    assert body_lines(items, limit=1) == ["0", "… 5 more of 6 bytes", "… 4 bytes missing later on …", "! bytes missing"]


def test_json() -> None:
    """JSON gets line breaks and keeps every token: numbers, escapes and repeated names as they were sent."""
    text = b'{"a":1.10,"a" : [ ],"b":[{},[1e999,"\\u00e9,{\\"]"]],"n":' + b"9" * 5000 + b"}"
    lines = body_lines(simple_exchange(text, b"Content-Type: application/json"))
    assert lines == [
        "{",
        '  "a": 1.10,',
        '  "a": [],',
        '  "b": [',
        "    {},",
        "    [",
        "      1e999,",
        '      "\\u00e9,{\\"]"',
        "    ]",
        "  ],",
        f'  "n": {"9" * 5000}',
        "}",
    ]


@pytest.mark.parametrize("text", [b"{", b'{"a":}', b"[" * 5000, b"[" * 60 + b"]" * 60, b"{a:1}", b"[1]]"])
def test_no_json(text: bytes) -> None:
    """What is no JSON, or absurdly deep, is shown as it is."""
    assert body_lines(simple_exchange(text, b"Content-Type: application/json")) == [text.decode()]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=VALUES, compact=st.booleans(), ascii_only=st.booleans())
def test_json_as_others_do(value: object, *, compact: bool, ascii_only: bool) -> None:
    """The lines are those of Python's own writer."""
    separators = (",", ":") if compact else None
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    items = simple_exchange(text.encode(), b"Content-Type: application/json")
    expected = json.dumps(value, indent=2, ensure_ascii=ascii_only)
    assert body_lines(items) == [visible(line) for line in expected.split("\n")]


# --- Messages ---


def test_websocket() -> None:
    """Messages one by one, with their times and directions."""
    frames = (
        (OUT, text_frame("grüß".encode(), masked=True)),
        (IN, text_frame(b"\x00\xff", opcode=2)),
        (IN, text_frame(b'{"a":[]}')),
        (IN, text_frame(b"\x03\xe8bye", opcode=8)),
    )
    lines = said(websocket_items(*frames))
    start = lines.index("1 ← 18:00:00.125  websocket begins")
    assert lines[start + 2 : start + 15] == [
        "1 → 18:00:00.126  text 6 bytes",
        "grüß",
        "",
        "1 ← 18:00:00.127  binary 2 bytes",
        "00000000  00 ff                                             |..|",
        "",
        "1 ← 18:00:00.128  text 8 bytes",
        "{",
        '  "a": []',
        "}",
        "",
        "1 ← 18:00:00.129  close 1000 normal 5 bytes",
        "bye",
    ]


def test_websocket_with_hole() -> None:
    """Holes and junk in a WebSocket are said."""
    wire = Wire()
    items = websocket_items()[:-1]
    wire = Wire(items[0].flow)
    items += [wire.into(text_frame(b"hello")[:4]), wire.gap(IN, 2), wire.into(b"o"), wire.closed()]
    lines = said(items)
    start = next(index for index, line in enumerate(lines) if line.endswith("text 3 bytes"))
    assert lines[start + 1 : start + 4] == ["heo", "… 2 bytes missing …", "! bytes missing"]


def test_events() -> None:
    """Events as they came; the head in front of them, and what is left of the end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    wire = Wire()
    items: list[Item] = [
        wire.out(GET),
        wire.into(head + b"data: one\n\n"),
        wire.into(b"event: x\nid: 7\ndata: 2\n\n"),
        wire.half_closed(IN),
    ]
    lines = said(items)
    assert lines[lines.index("Content-Type: text/event-stream") + 1 :] == [
        "",
        "1 ← 18:00:00.125  event 3 bytes",
        "one",
        "",
        '1 ← 18:00:00.126  event "x" 1 bytes',
        "id: 7",
        "2",
        "",
        "1 ← 18:00:00.126  end",
    ]


def test_events_that_can_not_be_decoded() -> None:
    """A stream in a coding that nobody knows is shown as a body."""
    lines = body_lines(
        simple_exchange(b"data: \xff\n\n", b"Content-Type: text/event-stream", b"Content-Encoding: ../x")
    )
    assert lines[0].startswith("! unknown content coding")
    assert lines[1:] == list(hexdump(b"data: \xff\n\n"))


def test_grpc() -> None:
    """Calls: what their messages say, and how they ended."""
    response = [(":status", "200"), ("content-type", "application/grpc")]
    trailers = [("grpc-status", "5"), ("grpc-message", "no%20thing")]
    lines = said(h2_items(H2_CALL, response, GRPC_BODY * 2, GRPC_BODY, trailers))
    assert sum(line == "1: 1" for line in lines) == 3
    assert lines[-3:] == ["grpc-status: 5", "grpc-message: no%20thing", "gRPC status: NOT_FOUND: no thing"]
    assert (
        sum(
            line == "00000000  08 01" + " " * 45 + "|..|"
            for line in said(h2_items(H2_CALL, response, GRPC_BODY), as_hex=True)
        )
        == 1
    )


def test_parts() -> None:
    """The parts of a form, with their fields."""
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x.bin"\r\nContent-Type: image/x\r\n\r\n\x00\x01\r\n--b--\r\n'
    lines = said([Wire().out(post(form, b"Content-Type: multipart/form-data; boundary=b"))])
    start = lines.index('1 → 18:00:00.124  part "f" file "x.bin" 2 bytes')
    assert lines[start + 2 : start + 4] == ["Content-Type: image/x", *hexdump(b"\x00\x01")]


def test_tunnel() -> None:
    """What goes through a tunnel is shown as it passed."""
    wire = Wire()
    items = [wire.out(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n"), wire.into(b"HTTP/1.1 200 OK\r\n\r\n")]
    lines = said([*items, wire.out(b"hello\r\n"), wire.into(b"\x00"), wire.gap(IN, 4), wire.closed()])
    start = lines.index("1 ← 18:00:00.125  tunnel begins")
    assert lines[start + 2 : start + 8] == [
        "1 → 18:00:00.126  7 bytes",
        "hello",
        "",
        "1 ← 18:00:00.127  1 bytes",
        *hexdump(b"\x00"),
        "",
    ]
    assert lines[start + 8] == "1 ← 18:00:00.128  … 4 bytes missing (ring-full) …"


# --- What is no HTTP ---

STREAM = [
    "- ← 18:00:00.124  16 bytes",
    "220 mail ESMTP",
    "",
    "- → 18:00:00.125  9 bytes",
    "EHLO me",
    "",
    "- ← 18:00:00.126  … 7 bytes missing (ring-full) …",
    "",
    "- → 18:00:00.127  2 bytes",
    "00000009  00 01                                             |..|",
]


@pytest.mark.parametrize(
    "changes", [{}, {"alpn": "smtp"}, {"role": Role.UNKNOWN}, {"role": Role.UNKNOWN, "alpn": "http/1.1"}]
)
def test_stream(changes: dict[str, Any]) -> None:
    """What nothing understands is shown as it passed, however it was recognised as that."""
    wire = Wire(make_flow(**changes))
    items: list[Item] = [
        wire.into(b"220 mail ESMTP\r\n"),
        wire.out(b"EHLO me\r\n"),
        wire.gap(IN, 7),
        wire.out(b"\x00\x01"),
    ]
    assert said(items)[2:] == STREAM
    assert said([*items, wire.closed()])[2:] == STREAM


def test_stream_of_a_server() -> None:
    """The arrow points from the client to the server, whoever was recorded."""
    flow = make_flow(role=Role.SERVER, alpn="smtp", sni="", remote=Endpoint("2001:db8::1", 9))
    wire = Wire(flow)
    assert said([wire.out(b"220 x\r\n"), wire.into(b"QUIT\r\n")]) == [
        "connection 1 of curl[4711]: [2001:db8::1]:9 → 10.0.0.1:40001 (smtp)",
        "",
        "- ← 18:00:00.124  7 bytes",
        "220 x",
        "",
        "- → 18:00:00.125  6 bytes",
        "QUIT",
    ]


def test_undecided_stream() -> None:
    """Bytes that might still have become HTTP are shown at the end."""
    wire = Wire(make_flow(role=Role.UNKNOWN, sni="", local=None))
    lines = said([wire.out(b"PRI * HT")])
    assert lines == [
        "connection 1 of curl[4711]: unknown → 93.184.216.34:443",
        "",
        "- → 18:00:00.124  8 bytes",
        "PRI * HT",
    ]


def test_junk_between() -> None:
    """Bytes of an HTTP connection that are none are shown where they passed."""
    wire = Wire()
    lines = said([wire.out(GET), wire.into(answer(b"x")), wire.into(b"\r\n"), wire.into(b"junk!")])
    assert lines[-2:] == ["- ← 18:00:00.127  5 bytes", "junk!"]


# --- Which connection ---


def test_find_flow() -> None:
    """The connection of an exchange, also of one that never ends."""
    first, second = Wire(make_flow(1)), Wire(make_flow(2))
    items: list[Item] = [first.out(GET), second.out(GET), first.out(GET)]
    assert [flow and flow.id for flow in (find_flow(items, number) for number in range(1, 5))] == [1, 2, 1, None]


# --- Anything ---


def at_once(flow: Flow, *pieces: tuple[Direction, bytes]) -> list[Item]:
    """Return items that all passed at the same time."""
    offsets = {IN: 0, OUT: 0}
    items: list[Item] = []
    for direction, data in pieces:
        items.append(Data(flow, direction, offsets[direction], data, START_NS))
        offsets[direction] += len(data)
    return items


CUT: dict[str, list[tuple[Direction, bytes]]] = {
    "exchange": [
        (OUT, post(b'{"a":1}', b"Content-Type: application/json")),
        (IN, answer(gzip.compress(b"hi\n"), b"Content-Encoding: gzip")),
    ],
    "chunked": [(OUT, GET), (IN, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\n\r\n")],
    "events": [(OUT, GET), (IN, answer(b"data: 1\n\n: x\n\ndata: 2\n\n", b"Content-Type: text/event-stream"))],
    "websocket": [
        (OUT, b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
        (IN, b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n" + text_frame(b"hello") + text_frame(b"\0", opcode=2)),
    ],
}


@pytest.mark.parametrize("case", CUT)
def test_cut_anywhere(case: str) -> None:
    """How the bytes were cut does not show."""
    pieces = CUT[case]
    whole = said(at_once(make_flow(), *pieces))
    for index, (direction, data) in enumerate(pieces):
        for point in range(1, len(data)):
            parts = [(direction, data[:point]), (direction, data[point:])]
            assert said(at_once(make_flow(), *pieces[:index], *parts, *pieces[index + 1 :])) == whole, (index, point)


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [GET, answer(b"hello"), post(b"\x00"), answer(b"x", b"Content-Encoding: gzip"), text_frame(b"\x1b[2J")]
    ),
    st.sampled_from(
        [
            one.data
            for case in CUT.values()
            for _, data in case
            for one in at_once(make_flow(), (IN, data))
            if isinstance(one, Data)
        ]
    ),
    st.integers(1, 30),
)


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.sampled_from([IN, OUT]), PIECES, st.booleans()), max_size=8),
    role=st.sampled_from(list(Role)),
    alpn=st.sampled_from(["", "http/1.1", "h2", "x"]),
    limit=st.integers(0, 50),
    options=st.fixed_dictionaries(
        {}, optional={"as_hex": st.booleans(), "heads_only": st.booleans(), "exchange_id": st.just(1)}
    ),
)
def test_anything(
    pieces: list[tuple[Direction, bytes | int, bool]], role: Role, alpn: str, limit: int, options: dict[str, Any]
) -> None:
    """Whatever passes: no exception, and nothing that could command a terminal."""
    wires = [Wire(make_flow(number, role=role, alpn=alpn, sni="\x1b\u202e")) for number in (1, 2)]
    items: list[Item] = []
    for direction, what, second in pieces:
        wire = wires[second]
        if isinstance(what, int):
            items.append(wire.gap(direction, what))
        else:
            items.append(wire.out(what) if direction is OUT else wire.into(what))
    lines = said(items, limit=limit, **options)
    assert all(line == visible(line) for line in lines)
    if not options:
        shown = sum(item.length for item in items if isinstance(item, Gap) and item.flow.id == 1)
        missing = [int(found) for line in lines for found in re.findall(r"(\d+) bytes missing", line)]
        assert bool(missing) == bool(shown)


def test_bounded() -> None:
    """However long bodies and streams are, what is shown of them is not."""
    wire = Wire()
    piece = b"line\n" * 20_000
    items: list[Item] = [wire.out(GET), wire.into(answer(piece * 10))]
    other = Wire(make_flow(alpn="x"))
    assert sum(map(len, said(items))) < 1 << 17
    assert sum(map(len, said([other.into(piece * 10)]))) < 1 << 17
