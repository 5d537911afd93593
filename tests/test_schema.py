"""docs/exchange.schema.json says exactly what --json writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given, settings
from hypothesis import strategies as st
from test_har import (
    GRPC_BODY,
    H2_CALL,
    H2_GET,
    answer,
    build,
    exchange_items,
    h2_items,
    post,
    text_frame,
    websocket_items,
)

from tlscap import capture
from tlscap.export import jsonl
from tlscap.export.jsonl import exchange_to_line
from tlscap.http.bodies import MessageCollector
from tlscap.http.exchanges import ExchangeBuilder
from tlscap.model import Direction, Endpoint, Item, Process, Role, TupleSource

ROOT = Path(__file__).parent
SCHEMA = json.loads((ROOT.parent / "docs" / "exchange.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
IN, OUT = Direction.INBOUND, Direction.OUTBOUND


def objects(items: list[Item]) -> list[dict[str, Any]]:
    """Return what is written, after the schema has seen it; without messages and with them."""
    parsed = []
    for exchange, _, _, messages in build(items):
        parsed.append(json.loads(exchange_to_line(exchange)))
        told = json.loads(exchange_to_line(exchange, messages))
        for one in (parsed[-1], told):
            VALIDATOR.validate(one)
        assert told == parsed[-1] | {"message_list": told["message_list"], "messages_left_out": 0}
        assert [(len(one["headers"]), one["size"]) for one in told["message_list"]] == [
            (len(message.headers), message.size) for message in messages
        ]
    return parsed


def messages_of(items: list[Item]) -> list[dict[str, Any]]:
    """Return the messages of one exchange, after the schema has seen them."""
    ((exchange, _, _, messages),) = build(items)
    told = json.loads(exchange_to_line(exchange, messages, 3))
    VALIDATOR.validate(told)
    assert told["messages_left_out"] == 3
    return told["message_list"]  # type: ignore[no-any-return]


def holes() -> list[Item]:
    wire = Wire()
    return [
        wire.out(post(b"abc")[:-2]),
        wire.gap(OUT, 2),
        wire.into(answer(b"hello")[:-3]),
        wire.gap(IN, 3),
        wire.gap(IN, 9),
    ]


RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
HANDSHAKE: dict[str, Any] = {"handshake_start_ns": START_NS - 5_000_000, "handshake_end_ns": START_NS - 1_000_000}
BARE: dict[str, Any] = {"role": Role.UNKNOWN, "local": None, "remote": None, "sni": "", "process": Process(-1)}
SERVER: dict[str, Any] = {
    "role": Role.SERVER,
    "local": Endpoint("::1", 8443),
    "tuple_source": TupleSource.SYSCALL,
    "transport": "udp",
}
KINDS: dict[str, list[Item]] = {
    "simple": simple_exchange(b"hello", b"X-Odd: \xff\x00"),
    "handshake": simple_exchange(flow=make_flow(**HANDSHAKE)),
    "no request": exchange_items(b"", answer(b"x")),
    "no response": exchange_items(GET, b""),
    "little known": simple_exchange(flow=make_flow(**BARE)),
    "a server's": [Wire(make_flow(**SERVER)).into(GET)],
    "HTTP/0.9": exchange_items(b"GET /\r\n", b"<p>"),
    "HTTP/1.0": exchange_items(b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nx"),
    "interim": exchange_items(GET, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\n\r\n" + answer(b"")),
    "trailers": exchange_items(
        GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n"
    ),
    "holes": holes(),
    "odd": exchange_items(b"m /\xe9 http/1\r\nHost\r\n: x\r\n folded\r\n\r\n", b"ICY 999\r\n\r\n"),
    "CONNECT": exchange_items(b"CONNECT h:1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 x\r\n\r\nsecret"),
    "websocket": websocket_items((OUT, text_frame(b"hi", masked=True)), (IN, text_frame(b"\0", opcode=2))),
    "HTTP/2": h2_items(H2_GET, [(":status", "204")]),
    "gRPC": h2_items(H2_CALL, RESPONSE, GRPC_BODY, GRPC_BODY, [("grpc-status", "5"), ("grpc-message", "%C3%A9")]),
    "odd gRPC": h2_items(H2_CALL, [*RESPONSE, ("grpc-status", "x")]),
    "events": exchange_items(
        GET, answer("id: 7\nevent: greeting\ndata: ☃\n\n:\xff\n".encode(), b"Content-Type: text/event-stream")
    ),
    "form": exchange_items(
        post(
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xc3\xa9\r\n'
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="x.bin"\r\n\r\n\x00\xff\r\n'
            b'--b\r\nContent-Disposition: form-data; name="l"\r\nContent-Type: text/plain; charset=latin1\r\n\r\n\xe9\r\n--b--',
            b"Content-Type: multipart/form-data; boundary=b",
        ),
        answer(b""),
    ),
    "early answer": [Wire().out(post(b"abc")[:-1]), Wire(start_ns=START_NS + 9).into(answer(b"no"))],
}


def test_schema() -> None:
    """The schema itself is one."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind: str) -> None:
    """Every kind of exchange is as the schema says, and nothing is there that it does not name."""
    found = objects(KINDS[kind])
    assert found
    for one in found:
        assert list(one) == SCHEMA["required"]


@pytest.mark.parametrize("path", sorted((ROOT / "fixtures" / "captures").glob("*.zst")), ids=lambda path: path.stem)
def test_captures(path: Path) -> None:
    """So are the exchanges of real files."""
    messages = MessageCollector()
    builder = ExchangeBuilder(None, messages)
    with capture.open_capture(str(path)) as opened:
        exchanges = [exchange for item in opened.items() for exchange in builder.feed(item)]
    for exchange in exchanges + builder.finish(START_NS):
        VALIDATOR.validate(json.loads(exchange_to_line(exchange)))
        VALIDATOR.validate(json.loads(exchange_to_line(exchange, *messages.take(exchange))))


def test_http2() -> None:
    """What HTTP/2 and gRPC add."""
    (one,) = objects(KINDS["gRPC"])
    assert (one["protocol"], one["request"]["scheme"], one["request"]["authority"]) == (
        "h2",
        "https",
        "h2.example:8443",
    )
    assert one["request"]["pushed"] is False
    assert one["grpc"] == {"code": 5, "name": "NOT_FOUND", "message": "é"}
    (odd,) = objects(KINDS["odd gRPC"])
    assert odd["grpc"] == {"code": -1, "name": "x", "message": ""}


def test_times() -> None:
    """The handshake counts for the first exchange of a connection, and the wait is the server's."""
    wire = Wire(make_flow(**HANDSHAKE))
    first, second = objects([wire.out(GET), wire.into(answer(b"x")), wire.out(GET), wire.into(answer(b"x"))])
    assert (first["number"], first["handshake"], first["wait"]) == (1, 0.004, 0.001)
    assert (second["number"], second["handshake"]) == (2, None)


def test_websocket() -> None:
    """What passed after an upgrade is counted."""
    (one,) = objects(KINDS["websocket"])
    assert one["upgraded_to"] == "websocket"
    assert one["messages"] == {"request": 1, "response": 1}
    assert one["tunnel"] == {"request": 8, "response": 3}
    (tunnel,) = objects(KINDS["CONNECT"])
    assert (tunnel["messages"], tunnel["tunnel"]) == (None, {"request": 0, "response": 6})
    (plain,) = objects(KINDS["simple"])
    assert (plain["messages"], plain["tunnel"]) == (None, None)


def test_messages() -> None:
    """Messages stand there with what they say: as text where they are, else as base64."""
    hi, binary, close = messages_of(
        websocket_items(
            (OUT, text_frame(b"h\0i", masked=True)),
            (IN, text_frame(b"hi", opcode=2)),
            (IN, text_frame(b"\x03\xe8bye", opcode=8)),
        )
    )
    assert list(hi) == SCHEMA["$defs"]["message"]["required"]
    assert hi == {
        "side": "request",
        "kind": "text",
        "started": hi["started"],
        "ended": hi["started"],
        "size": 3,
        "text": "h\0i",
        "base64": None,
        "name": None,
        "filename": None,
        "headers": [],
        "complete": True,
        "gap_bytes": 0,
        "notes": [],
    }
    assert [binary[key] for key in ("side", "kind", "text", "base64")] == ["response", "binary", None, "aGk="]
    assert [close[key] for key in ("kind", "name", "text")] == ["close", "1000 normal", "bye"]
    asked, answered = messages_of(KINDS["gRPC"])
    assert (asked["side"], asked["kind"], asked["text"], asked["base64"]) == ("request", "message", None, "CAE=")
    assert (answered["side"], answered["base64"]) == ("response", "CAE=")
    event, comment = messages_of(KINDS["events"])
    assert [event[key] for key in ("kind", "name", "headers", "text")] == ["event", "greeting", [["id", "7"]], "☃"]
    assert [comment[key] for key in ("kind", "text")] == ["comment", "ÿ"]
    parts = [one for one in messages_of(KINDS["form"]) if one["kind"] == "part"]
    assert [(part["name"], part["filename"], part["text"], part["base64"]) for part in parts] == [
        ("a", None, "é", None),
        ("f", "x.bin", None, "AP8="),
        ("l", None, "é", None),
    ]
    (lossy,) = messages_of(websocket_items((IN, b"\x81\x02\xff\xfe")))
    assert (lossy["kind"], lossy["text"], lossy["base64"]) == ("text", None, "//4=")
    wire = Wire()
    head = answer(b"abcde", b"Content-Type: application/grpc")[:-5]
    (cut,) = messages_of([wire.out(GET), wire.into(head + b"\0\0\0\0\5"), wire.closed()])
    assert (cut["complete"], cut["size"], bool(cut["notes"])) == (False, 0, True)


def test_docstring_names_every_key() -> None:
    """The docstring names what the schema has, and no more."""
    text = jsonl.__doc__ or ""
    table = text[text.index("::\n") : text.index("Text that came")]
    named = {
        name
        for line in table.splitlines()
        if (match := re.match(r" {4}(\w+(?:, \w+)*) {2,}", line))
        for name in match[1].split(", ")
    }
    assert named == set(SCHEMA["properties"])
    for name in ("request", "response", "process", "flow", "message"):
        for key in SCHEMA["$defs"][name]["properties"]:
            assert re.search(rf"\b{key}\b", table), key


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(
            st.sampled_from([IN, OUT]),
            st.binary(max_size=30)
            | st.sampled_from([GET, answer(b"x"), post(b"y"), KINDS["websocket"][1].data])  # type: ignore[union-attr]
            | st.integers(1, 20),
        ),
        max_size=8,
    ),
    role=st.sampled_from(list(Role)),
    alpn=st.sampled_from(["", "http/1.1", "h2"]),
)
def test_anything(pieces: list[tuple[Direction, bytes | int]], role: Role, alpn: str) -> None:
    """Whatever passes, the schema holds."""
    wire = Wire(make_flow(role=role, alpn=alpn))
    items: list[Item] = []
    for direction, what in pieces:
        if isinstance(what, int):
            items.append(wire.gap(direction, what))
        else:
            items.append(wire.out(what) if direction is OUT else wire.into(what))
    objects(items)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("id",), 0),
        (("started",), "2026-11-20T18:00:00Z"),
        (("duration",), "1"),
        (("extra",), 1),
        (("request", "headers"), [["a"]]),
        (("request", "headers"), [["a", "€"]]),
        (("request", "extra"), 1),
        (("flow", "role"), "peer"),
        (("flow", "local"), {"address": "::1"}),
        (("grpc",), {"code": 0}),
    ],
)
def test_schema_is_strict(path: tuple[str, ...], value: object) -> None:
    """The schema refuses what is never written."""
    (one,) = objects(simple_exchange())
    place = one
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(one)


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"base64": "aGk="},
        {"kind": "frame"},
        {"side": "client"},
        {"extra": 1},
        {"name": ""},
        {"size": -1},
    ],
)
def test_schema_is_strict_with_messages(change: dict[str, Any]) -> None:
    """The same for messages; and their list stands there with the number of those that it lacks."""
    ((exchange, _, _, messages),) = build(KINDS["events"])
    one = json.loads(exchange_to_line(exchange, messages))
    assert VALIDATOR.is_valid(one)
    one["message_list"][0] |= change
    assert not VALIDATOR.is_valid(one)
    del one["message_list"]
    assert not VALIDATOR.is_valid(one)
