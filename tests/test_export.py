"""Exchanges as JSON and as rows: complete, stable, and harmless to a terminal."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC

import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given
from hypothesis import strategies as st

from tlscap.export.jsonl import exchange_to_dict, exchange_to_line, rfc3339
from tlscap.export.table import Table, clock_time, human_duration, human_size, shortened, visible
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Item, Process, Role


def build(items: list[Item]) -> list[Exchange]:
    builder = ExchangeBuilder()
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    return sorted(exchanges + builder.finish(0), key=lambda exchange: exchange.id)


def test_json() -> None:
    """One exchange as JSON: every documented key, values as sent."""
    (exchange,) = build(simple_exchange(b"hello", b"X-Odd: \xff"))
    assert json.loads(exchange_to_line(exchange)) == {
        "id": 1,
        "number": 1,
        "started": "2026-11-20T18:00:00.124456789Z",
        "duration": 0.001,
        "wait": 0.001,
        "handshake": None,
        "protocol": "http/1.1",
        "method": "GET",
        "url": "https://a/",
        "status": 200,
        "interim": [],
        "upgraded_to": None,
        "tunnel": None,
        "messages": None,
        "grpc": None,
        "request": {
            "method": "GET",
            "target": "/",
            "version": "HTTP/1.1",
            "scheme": None,
            "authority": None,
            "pushed": False,
            "headers": [["Host", "a"]],
            "trailers": [],
            "body_size": 0,
            "gap_bytes": 0,
            "complete": True,
        },
        "response": {
            "version": "HTTP/1.1",
            "status": 200,
            "reason": "OK",
            "headers": [["Content-Length", "5"], ["X-Odd", "ÿ"]],
            "trailers": [],
            "body_size": 5,
            "gap_bytes": 0,
            "complete": True,
        },
        "complete": True,
        "problems": [],
        "process": {
            "pid": 4711,
            "comm": "curl",
            "exe": "/usr/bin/curl",
            "cmdline": ["curl", "https://example.org/"],
            "uid": 1000,
        },
        "flow": {
            "id": 1,
            "local": {"address": "10.0.0.1", "port": 40001},
            "remote": {"address": "93.184.216.34", "port": 443},
            "client": {"address": "10.0.0.1", "port": 40001},
            "server": {"address": "93.184.216.34", "port": 443},
            "role": "client",
            "sni": "example.org",
            "alpn": None,
            "tuple_source": "placeholder",
            "transport": "tcp",
        },
    }


def test_json_of_halves() -> None:
    """A missing half is null, and what depends on it too."""
    flow = make_flow(role=Role.UNKNOWN, local=None, process=Process(1))
    asked = exchange_to_dict(build([Wire(flow).out(b"GET / HTTP/1.0\r\n\r\n")])[0])
    assert (asked["response"], asked["status"], asked["duration"]) == (None, None, None)
    assert (asked["flow"]["local"], asked["flow"]["client"], asked["process"]["uid"]) == (None, None, None)
    answered = exchange_to_dict(build([Wire().into(b"HTTP/1.0 204 x\r\n\r\n")])[0])
    assert (answered["request"], answered["method"], answered["url"]) == (None, None, None)


def test_json_is_one_line_of_ascii() -> None:
    """No byte of a header can break a line or command a terminal."""
    (exchange,) = build(simple_exchange(b"", b"X: \x1b[31m\x85\x7f"))
    line = exchange_to_line(exchange)
    assert line.isascii()
    assert not set(line) & {"\x1b", "\n"}


def test_rfc3339() -> None:
    """Times keep all their nanoseconds."""
    assert rfc3339(START_NS) == "2026-11-20T18:00:00.123456789Z"
    assert rfc3339(999) == "1970-01-01T00:00:00.000000999Z"


# --- The table ---

MANY = [
    *simple_exchange(b"x" * 2000, b"Content-Type: text/html; charset=utf-8"),
    Wire(make_flow(2), START_NS + 60_000_000_000).out(b"DELETE /" + b"long/" * 30 + b"end HTTP/1.1\r\nHost: b\r\n\r\n"),
]


def test_table() -> None:
    """A table that knows its rows is as narrow as they allow."""
    table = Table(width=136, zone=UTC)
    exchanges = build(MANY)
    table.fit(exchanges)
    assert [table.header(), *map(table.row, exchanges)] == [
        "#  TIME          PROCESS     CONN  PROTO  METHOD  URL                                        STATUS  TYPE       SENT  RECEIVED   TOOK",
        "1  18:00:00.124  curl[4711]     1  h1     GET     https://a/                                    200  text/html     0      2.0K  1.0ms",
        "2  18:01:00.124  curl[4711]     2  h1     DELETE  https://b/long/long/…g/long/long/long/end       -  -             0         -      -  !",
    ]


def test_kinds() -> None:
    """The column TYPE says what a tunnel is and how an RPC ended; sizes are those of the tunnel."""
    wire = Wire()
    (socket,) = build(
        [
            wire.out(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
            wire.into(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
        ]
    )
    assert "101  websocket, 1 message" in Table(zone=UTC).row(socket)
    wire = Wire()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc+proto\r\ngrpc-status: 5\r\nContent-Length: 0\r\n\r\n"
    (rpc,) = build([wire.out(GET), wire.into(head)])
    assert "200  grpc NOT_FOUND" in Table(zone=UTC).row(rpc)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_table_fits(width: int) -> None:
    """No line is longer than the terminal is wide, unless it is too narrow for anything."""
    table = Table(width=width, zone=UTC)
    exchanges = build(MANY)
    table.fit(exchanges)
    assert max(len(table.row(exchange)) for exchange in exchanges) <= max(width, 112)


def test_table_without_width() -> None:
    """Nothing is shortened when nobody said how wide; no tabs, no colors."""
    table = Table(zone=UTC)
    row = table.row(build(MANY)[1])
    assert "long/" * 30 in row
    assert not set(row) & {"\t", "\x1b", "…"}


def test_colors() -> None:
    """Colors mark the status class and what is incomplete, and change nothing else."""
    plain, colored = Table(zone=UTC), Table(color=True, zone=UTC)
    for exchange in build(MANY):
        row = colored.row(exchange)
        assert re.sub(r"\x1b\[\d*m", "", row) == plain.row(exchange)
        assert "\x1b[3" in row


def test_hostile_text() -> None:
    """Nothing from the network or a process reaches the terminal raw."""
    flow = make_flow(process=Process(1, comm="a\x1b]0;\u202e\udc80"))
    wire = Wire(flow)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: \x1b[2J\x9b\r\nContent-Length: 0\r\n\r\n"
    (exchange,) = build([wire.out(b"GET /\x1b[31m\x9b\x07 HTTP/1.1\r\nHost: \x00\r\n\r\n"), wire.into(head)])
    row = Table(zone=UTC).row(exchange)
    assert all(unicodedata.category(char) not in ("Cc", "Cf", "Cs") for char in row)
    assert r"https://\x00/\x1b[31m\x9b\x07" in row
    assert r"a\x1b]0;\u202e\udc80[1]" in row


@given(
    text=st.text(
        st.characters(categories=["Cc", "Cs", "Zl", "Zp", "L"]) | st.sampled_from("\u202e\u2066\u200b\ufeff\x1b")
    )
)
def test_visible(text: str) -> None:
    """What `visible` returns can be printed and moves no cursor; harmless text stays as it is."""
    safe = visible(text)
    assert all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in safe)
    assert visible(safe) == safe


def test_shortened() -> None:
    """The middle goes first."""
    assert shortened("https://host/path", 17) == "https://host/path"
    assert shortened("https://host/path", 9) == "http…path"
    assert shortened("https://host/path", 10) == "https…path"


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (10240, "10K"),
        (1 << 20, "1.0M"),
        (34 << 20, "34M"),
        (1023 << 20, "1.0G"),
        (5 << 40, "5.0T"),
    ],
)
def test_human_size(length: int, text: str) -> None:
    """Sizes take four characters at most."""
    assert human_size(length) == text


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0us"),
        (250_999, "250us"),
        (12_345_678, "12.3ms"),
        (4_560_000_000, "4.56s"),
        (723_000_000_000, "12m03s"),
        (-2_000_000, "-2.0ms"),
    ],
)
def test_human_duration(duration_ns: int, text: str) -> None:
    """Durations come in the unit that suits them."""
    assert human_duration(duration_ns) == text


def test_clock_time() -> None:
    """Milliseconds are cut, so that no second is shown before it began."""
    assert clock_time(START_NS + 876_000_000, UTC) == "18:00:00.999"
