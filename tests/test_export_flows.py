"""Connections in a list: what is counted of each, when it is handed out, and how it is shown."""

from __future__ import annotations

import json
import re
import tracemalloc
from datetime import UTC
from typing import Any

import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.export.flows import ConnectionTable, FlowSummaries, FlowSummary, summary_to_dict
from tlscap.export.jsonl import exchange_to_dict
from tlscap.http.exchanges import ExchangeBuilder
from tlscap.model import (
    Direction,
    Endpoint,
    Flow,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    Item,
    Library,
    Process,
    Role,
    TupleSource,
)

MS = 1_000_000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def summarized(items: list[Item]) -> tuple[list[FlowSummary], list[FlowSummary]]:
    """Return what was handed out on the way, and what at the end."""
    builder, summaries = ExchangeBuilder(), FlowSummaries()
    closed = []
    for item in items:
        for exchange in builder.feed(item):
            summaries.add(exchange, chosen=exchange.complete)
        closed += summaries.feed(item)
    for exchange in builder.finish(START_NS):
        summaries.add(exchange, chosen=exchange.complete)
    return closed, summaries.finish()


def known_flow(number: int = 1, **changes: Any) -> Flow:
    """Return a flow of which everything is known."""
    process = Process(
        4711,
        comm="curl",
        exe="/usr/bin/curl",
        libraries=(
            Library("/usr/lib/libssl.so.3", "abcd"),
            Library("/opt/libssl.so.3"),
            Library("/opt/x/libgnutls.so.30"),
        ),
    )
    values: dict[str, Any] = {
        "process": process,
        "tuple_source": TupleSource.SYSCALL,
        "alpn": "http/1.1",
        "handshake_start_ns": START_NS,
        "handshake_end_ns": START_NS + 12 * MS,
        "srtt_us": 2500,
    }
    return make_flow(number, **(values | changes))


def busy(flow: Flow) -> list[Item]:
    """Return the items of a connection with two exchanges, three gaps and an orderly end in one direction."""
    wire = Wire(flow)
    gaps: list[Item] = [
        wire.gap(Direction.INBOUND, 3),
        wire.gap(Direction.OUTBOUND, 1000),
        wire.gap(Direction.INBOUND, 20, GapReason.SNAPLEN),
    ]
    return [
        FlowOpened(flow, START_NS),
        FlowUpdated(flow, START_NS),
        wire.out(GET),
        wire.into(OK),
        wire.out(GET),
        wire.into(OK[:-3]),
        *gaps,
        wire.half_closed(Direction.OUTBOUND),
        wire.closed(),
    ]


def test_json() -> None:
    """Every documented key; the connection's own are as in an exchange."""
    flow = known_flow()
    (summary,), rest = summarized(busy(flow))
    assert rest == []
    told = json.loads(json.dumps(summary_to_dict(summary)))
    builder = ExchangeBuilder()
    (exchange,) = [exchange for item in simple_exchange(flow=flow) for exchange in builder.feed(item)]
    same = exchange_to_dict(exchange)
    assert told == same["flow"] | {
        "process": same["process"],
        "libraries": [
            {"path": "/usr/lib/libssl.so.3", "build_id": "abcd", "flavor": "openssl"},
            {"path": "/opt/libssl.so.3", "build_id": "", "flavor": "openssl"},
            {"path": "/opt/x/libgnutls.so.30", "build_id": "", "flavor": "openssl"},
        ],
        "opened": "2026-11-20T18:00:00.123456789Z",
        "closed": "2026-11-20T18:00:00.132456789Z",
        "duration": 0.009,
        "handshake": 0.012,
        "srtt": 0.0025,
        "joined_midstream": False,
        "bytes": {"in": 2 * len(OK) - 3 + 23, "out": 2 * len(GET) + 1000},
        "ended": {"in": False, "out": True},
        "gaps": {"count": 3, "bytes": {"in": 23, "out": 1000}, "reasons": {"ring-full": 1003, "snaplen": 20}},
        "exchanges": 2,
        "protocol": "http/1.1",
        "upgraded_to": None,
    }


def test_json_of_unknown() -> None:
    """What is not known is null, and the keys are the same."""
    flow = make_flow(local=None, remote=None, role=Role.UNKNOWN, sni="", process=Process(-1))
    closed, (summary,) = summarized([FlowOpened(flow, START_NS + MS)])
    assert closed == []
    told = summary_to_dict(summary)
    assert told.keys() == summary_to_dict(summarized(busy(known_flow()))[0][0]).keys()
    unknown = (
        "local",
        "remote",
        "client",
        "server",
        "sni",
        "alpn",
        "closed",
        "handshake",
        "srtt",
        "protocol",
        "upgraded_to",
    )
    assert all(told[key] is None for key in unknown)
    assert (told["libraries"], told["exchanges"], told["duration"], told["bytes"]) == (
        [],
        0,
        0.001,
        {"in": 0, "out": 0},
    )


def test_order() -> None:
    """A connection is handed out when it closes, the rest at the end in the order of their ids."""
    first, second, third, fourth = (Wire(known_flow(number)) for number in (1, 2, 3, 4))
    items: list[Item] = [
        fourth.out(GET),
        first.out(GET),
        second.out(GET),
        third.out(GET),
        second.closed(),
        third.closed(),
    ]
    closed, rest = summarized(items)
    assert [summary.flow.id for summary in closed] == [2, 3]
    assert [summary.flow.id for summary in rest] == [1, 4]
    assert [summary.closed_ns > 0 for summary in closed + rest] == [True, True, False, False]


def test_last_exchange_of_a_connection() -> None:
    """The exchange that the close ends is counted; those that were asked for apart."""
    wire = Wire(known_flow())
    (summary,), _ = summarized([wire.out(GET), wire.into(OK), wire.out(GET), wire.closed()])
    assert (summary.exchanges, summary.chosen) == (2, 1)


def test_protocols() -> None:
    """The protocol is what the exchanges were made in, else ALPN's; an upgrade is told apart."""
    wire = Wire(known_flow(alpn=""))
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    (summary,), _ = summarized([wire.out(upgrade), wire.into(switching), wire.into(b"\x81\x02hi"), wire.closed()])
    assert (summary.protocol, summary.upgraded_to) == ("http/1.1", "websocket")
    other = Wire(known_flow(alpn="imap"))
    _, (summary,) = summarized([other.into(b"* OK")])
    assert (summary.protocol, summary.upgraded_to) == ("imap", "")


def test_same_id_twice() -> None:
    """Two captures in one file may use an id twice: they are two connections."""
    one, two = Wire(known_flow()), Wire(known_flow())
    _, rest = summarized([one.out(GET), two.out(GET + GET)])
    assert [summary.lengths[Direction.OUTBOUND] for summary in rest] == [len(GET), 2 * len(GET)]


def test_memory() -> None:
    """Closed connections leave nothing behind."""
    summaries = FlowSummaries()
    tracemalloc.start()
    try:
        for number in range(1, 3001):
            for item in busy(make_flow(number)):
                summaries.feed(item)
            if number == 1000:
                before = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
    assert summaries.finish() == []


PIECES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(Direction), st.one_of(st.binary(max_size=9), st.integers(1, 99))),
    max_size=30,
)


@settings(deadline=None)
@given(pieces=PIECES)
def test_accounting(pieces: list[tuple[int, Direction, bytes | int]]) -> None:
    """Whatever passes on however many connections, every byte and every gap is in one summary."""
    wires = [Wire(known_flow(number)) for number in range(3)]
    items: list[Item] = []
    for number, direction, what in pieces:
        wire = wires[number]
        if isinstance(what, int):
            items.append(wire.gap(direction, what))
        else:
            items.append(wire.out(what) if direction is Direction.OUTBOUND else wire.into(what))
    closed, rest = summarized([*items, *(wire.closed() for wire in wires)])
    assert rest == []
    assert [summary.flow.id for summary in closed] == [0, 1, 2]
    for wire, summary in zip(wires, closed, strict=True):
        gaps = [item for item in items if isinstance(item, Gap) and item.flow is wire.flow]
        assert summary.lengths == wire.offsets
        assert summary.gap_count == len(gaps)
        assert sum(summary.gap_lengths) == sum(summary.gap_reasons.values()) == sum(gap.length for gap in gaps)


# --- The table ---


def many() -> list[FlowSummary]:
    """Return a client's connection, a server's with gaps, and one of which little is known."""
    server = known_flow(
        12,
        role=Role.SERVER,
        local=Endpoint("::1", 443),
        remote=Endpoint("::1", 50000),
        sni="",
        process=Process(9, comm="nginx"),
        joined_midstream=True,
        handshake_start_ns=0,
        srtt_us=-1,
    )
    unknown = make_flow(3, local=None, remote=None, role=Role.UNKNOWN)
    closed, rest = summarized([*busy(server), *simple_exchange(flow=known_flow()), FlowOpened(unknown, START_NS)])
    return closed + rest


def test_table() -> None:
    """Without a width everything is shown; a table that knows its rows aligns them."""
    table = ConnectionTable(zone=UTC)
    table.fit(many())
    lines = [table.header(), *map(table.row, many())]
    titles, *rows = (re.split(" {2,}", line.strip()) for line in lines)
    assert [dict(zip(titles, row, strict=True)) for row in rows] == [
        {
            "#": "12",
            "OPENED": "18:00:00.123",
            "PROCESS": "nginx[9]",
            "LOCAL": "[::1]:443",
            "REMOTE": "<- [::1]:50000",
            "FOUND": "syscall",
            "SNI": "-",
            "PROTOCOL": "http/1.1",
            "LIBRARY": "-",
            "EXCH": "0",
            "OUT": "1.0K",
            "IN": "106",
            "LASTED": "9.0ms",
            "HANDSHAKE": "-",
            "RTT": "-",
            "NOTES": "! 1.0K missing in 3 gaps (ring-full, snaplen); joined mid-stream",
        },
        {
            "#": "1",
            "OPENED": "18:00:00.123",
            "PROCESS": "curl[4711]",
            "LOCAL": "10.0.0.1:40001",
            "REMOTE": "-> 93.184.216.34:443",
            "FOUND": "syscall",
            "SNI": "example.org",
            "PROTOCOL": "http/1.1",
            "LIBRARY": "libssl.so.3, libgnutls.so.30",
            "EXCH": "1",
            "OUT": "27",
            "IN": "43",
            "LASTED": "2.0ms",
            "HANDSHAKE": "12.0ms",
            "RTT": "2.5ms",
            "NOTES": "still open",
        },
        {
            "#": "3",
            "OPENED": "18:00:00.123",
            "PROCESS": "curl[4711]",
            "LOCAL": "?",
            "REMOTE": "-- ?",
            "FOUND": "placeholder",
            "SNI": "example.org",
            "PROTOCOL": "-",
            "LIBRARY": "-",
            "EXCH": "0",
            "OUT": "0",
            "IN": "0",
            "LASTED": "0us",
            "HANDSHAKE": "-",
            "RTT": "-",
            "NOTES": "still open",
        },
    ]
    assert {lines[0].index("REMOTE")} == {
        line.index(mark) for line, mark in zip(lines[1:], ("<-", "->", "--"), strict=True)
    }
    assert {lines[0].index("NOTES")} == {
        line.index(mark) for line, mark in zip(lines[1:], ("!", "still", "still"), strict=True)
    }


def test_one_gap() -> None:
    """One gap is one gap, and what was spoken afterwards is told."""
    wire = Wire(known_flow())
    tunnel = [wire.out(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), wire.into(b"HTTP/1.1 200 OK\r\n\r\n")]
    (summary,), _ = summarized([*tunnel, wire.gap(Direction.INBOUND, 7), wire.closed()])
    assert ConnectionTable().row(summary).endswith("! 7 missing in 1 gap (ring-full); then tunnel")


def test_placeholder() -> None:
    """An address that was not found is marked, also where there is no room for how it was found."""
    _, (summary,) = summarized([Wire(make_flow()).out(GET)])
    for width in (60, 100, None):
        table = ConnectionTable(width=width)
        table.fit([summary])
        assert "-> 93.184.216.34:443?" in table.row(summary)
    assert "placeholder" in table.row(summary)


@pytest.mark.parametrize("width", [80, 100, 120, 160, 300])
def test_width(width: int) -> None:
    """No line is longer than the terminal is wide, and the numbers that identify a connection stay."""
    flow = known_flow(1, sni="a-very-long-name.of-a-host.example.org", process=Process(4194304, comm="a-long-process"))
    summaries = [*many(), *summarized(busy(flow))[0]]
    table = ConnectionTable(width=width, zone=UTC)
    table.fit(summaries)
    lines = [table.header(), *map(table.row, summaries)]
    assert max(map(len, lines)) <= width
    assert {"#", "PROCESS", "REMOTE", "EXCH", "OUT", "IN", "NOTES"} <= set(lines[0].split())
    assert ("LIBRARY" in lines[0]) is (width == 300)
    assert "! 1.0K missing" in lines[1]
    assert ("…" in lines[-1]) is (width < 300)


def test_header_before_rows() -> None:
    """A table that has seen no row yet fits, too."""
    assert len(ConnectionTable(width=120).header()) <= 120
    assert ConnectionTable().header().split()[-1] == "NOTES"


def test_colors() -> None:
    """Colors mark what is missing, and change nothing else."""
    plain, colored = ConnectionTable(zone=UTC), ConnectionTable(color=True, zone=UTC)
    for summary in many():
        row = colored.row(summary)
        assert re.sub(r"\x1b\[\d*m", "", row) == plain.row(summary)
        assert ("\x1b[31m" in row) is bool(summary.gap_count)


def test_hostile_text() -> None:
    """Nothing from the network, a process or a file reaches the terminal raw."""
    bad = "\x1b[2J\u202e\x9b"
    flow = known_flow(
        sni=bad,
        alpn=bad,
        remote=Endpoint(bad, 1),
        process=Process(1, comm=bad, libraries=(Library(f"/{bad}"),)),
    )
    (summary,), _ = summarized([FlowOpened(flow, START_NS), Wire(flow).closed()])
    summary.upgraded_to = bad
    row = ConnectionTable(zone=UTC).row(summary)
    assert row.isprintable()
    assert row.count(r"\x1b[2J\u202e\x9b") == 6
