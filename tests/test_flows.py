"""Events to flows, as transcripts: records of the kernel above, what the table says of them below."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from samples import CONN, IN, MONOTONIC_NS, MS, OUT, PID, WALL_NS, data

from tlscap.decode import decode
from tlscap.errors import CorruptError
from tlscap.flows import FlowTable
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Library,
    Role,
    TupleSource,
)

OTHER = CONN + 1
ARROWS = {Direction.INBOUND: "<", Direction.OUTBOUND: ">"}


def feed(table: FlowTable, records: bytes) -> list[Item]:
    return [item for event in decode(records) for item in table.feed(event)]


def line(item: Item) -> str:
    """Return an item in one line: flow, what, where."""
    match item:
        case FlowOpened():
            what = "opened"
        case FlowUpdated():
            what = "updated"
        case Data():
            what = f"{ARROWS[item.direction]} {item.offset} {item.data.decode()}"
        case Gap():
            what = f"{ARROWS[item.direction]} {item.offset} LOST {item.length} {item.reason.value}"
        case HalfClosed():
            what = f"{ARROWS[item.direction]} end"
        case FlowClosed():
            what = "closed"
    return f"{item.flow.id} {what}"


def transcript(*records: bytes) -> list[str]:
    """Return what a fresh table says of these records, as lines."""
    return [line(item) for item in feed(FlowTable(), b"".join(records))]


def items_of(*records: bytes) -> tuple[FlowTable, list[Item]]:
    table = FlowTable()
    return table, feed(table, b"".join(records))


# --- Order and numbers ---


def test_one_connection() -> None:
    """A connection from its first byte to its end, in the order of the records."""
    assert transcript(
        samples.start(),
        samples.process(b"curl", b"curl"),
        samples.opened(),
        samples.handshake(),
        samples.sni(),
        samples.address(),
        data(b"GET", 0, OUT),
        data(b"200", 0, IN),
        data(b"more", 3, IN),
        samples.eof(),
        samples.shutdown(),
        samples.closed(7, 3),
        samples.exited(),
        samples.end(calls=3),
    ) == [
        "1 opened",
        "1 updated",
        "1 updated",
        "1 updated",
        "1 > 0 GET",
        "1 < 0 200",
        "1 < 3 more",
        "1 < end",
        "1 > end",
        "1 closed",
    ]


def test_numbers_by_first_use() -> None:
    """Flows are numbered by their first use, not by the connection's making; unused ones get no number and no item."""
    assert transcript(
        samples.opened(conn=1),
        samples.opened(conn=2),
        samples.opened(conn=3),
        samples.sni(conn=1),
        data(b"c", conn=3),
        data(b"a", conn=1),
        samples.closed(0, 0, conn=2),
        samples.closed(0, 1, conn=1),
        samples.ledger(0, 1, conn=3),
    ) == ["1 opened", "1 > 0 c", "2 opened", "2 > 0 a", "2 closed"]


def test_unused_connections_are_forgotten() -> None:
    """A connection object that was never used leaves nothing behind when it is freed."""
    table, items = items_of(samples.opened(), samples.alpn(), samples.closed(0, 0))
    assert items == []
    assert (table.open_flows, table.flow_count) == (0, 0)


def test_interleaved() -> None:
    """Two connections of two processes keep their own streams and processes."""
    table, items = items_of(
        samples.process(b"one", pid=1),
        samples.process(b"two", pid=2),
        samples.opened(conn=1, pid=1),
        samples.opened(conn=2, pid=2),
        data(b"a", 0, conn=1, pid=1),
        data(b"x", 0, conn=2, pid=2),
        data(b"b", 1, conn=1, pid=1),
        data(b"y", 1, conn=2, pid=2),
    )
    assert [line(item) for item in items] == ["1 opened", "1 > 0 a", "2 opened", "2 > 0 x", "1 > 1 b", "2 > 1 y"]
    assert {item.flow.id: item.flow.process.comm for item in items} == {1: "one", 2: "two"}
    assert table.open_flows == table.flow_count == 2


def test_samples_of_unknown_connections() -> None:
    """What is said of a connection that was never seen, and moves no byte, is no flow."""
    assert transcript(samples.sni(), samples.address(), samples.handshake(), samples.eof(), samples.closed(0, 0)) == []


def test_marks_and_mappings_are_no_items() -> None:
    """Early data, peeks and mapped libraries say nothing about the streams."""
    assert transcript(samples.mark(1, 0, 3, IN), samples.mapped(), samples.exited()) == []


# --- Holes ---


def test_hole_before_and_within() -> None:
    """A sample that begins behind the end of the one before leaves a hole of exactly the difference."""
    assert transcript(
        samples.opened(), data(b"cd", 2, OUT), data(b"gh", 6, OUT), data(b"x", 1 << 40, IN), data(b"i", 8, OUT)
    ) == [
        "1 opened",
        "1 > 0 LOST 2 ring-full",
        "1 > 2 cd",
        "1 > 4 LOST 2 ring-full",
        "1 > 6 gh",
        f"1 < 0 LOST {1 << 40} ring-full",
        f"1 < {1 << 40} x",
        "1 > 8 i",
    ]


def test_hole_at_the_end() -> None:
    """The last ledger tells what is missing behind the last sample, in each direction."""
    assert transcript(samples.opened(), data(b"abc", 0, OUT), samples.closed(5, 10)) == [
        "1 opened",
        "1 > 0 abc",
        "1 < 0 LOST 5 ring-full",
        "1 > 3 LOST 7 ring-full",
        "1 closed",
    ]


def test_hole_at_the_end_of_the_recording() -> None:
    """The ledger of a connection that is still open shows its holes and doesn't close it."""
    table, items = items_of(samples.opened(), data(b"abc", 0, OUT), samples.ledger(0, 4))
    assert [line(item) for item in items] == ["1 opened", "1 > 0 abc", "1 > 3 LOST 1 ring-full"]
    assert table.open_flows == 1
    assert [line(item) for item in feed(table, samples.closed(0, 5))] == ["1 > 4 LOST 1 ring-full", "1 closed"]


@pytest.mark.parametrize("last", [samples.closed(3, 4), samples.orphan(3, 4)])
def test_whole_connection_lost(last: bytes) -> None:
    """A connection of which only the ledger arrived is a flow with two holes, joined midstream."""
    table, items = items_of(last)
    assert [line(item) for item in items] == [
        "1 opened",
        "1 < 0 LOST 3 ring-full",
        "1 > 0 LOST 4 ring-full",
        "1 closed",
    ]
    assert items[0].flow.joined_midstream
    assert table.totals.lost == 7
    assert table.totals.gaps == 2


def test_lost_open_sample() -> None:
    """Data of a connection whose first sample was lost makes a flow of an unknown process, joined midstream."""
    _, items = items_of(data(b"x", 0))
    flow = items[0].flow
    assert flow.joined_midstream
    assert (flow.process.pid, flow.process.comm, flow.role) == (PID, "", Role.UNKNOWN)


@pytest.mark.parametrize(
    ("reason", "text"),
    [(1, "snaplen"), (2, "unreadable"), (3, "sendfile"), (4, "call-too-large"), (0, "unknown"), (200, "unknown")],
)
def test_clipped_samples(reason: int, text: str) -> None:
    """What a sample stands for and doesn't hold is a hole behind its bytes, with its reason."""
    assert transcript(
        samples.opened(),
        data(b"ab", 0, length=10, reason=reason),
        data(b"", 10, length=5, reason=reason),
        data(b"c", 15),
    ) == ["1 opened", "1 > 0 ab", f"1 > 2 LOST 8 {text}", f"1 > 10 LOST 5 {text}", "1 > 15 c"]


def test_empty_sample() -> None:
    """A call that moved nothing makes the flow, and no item of its own."""
    assert transcript(samples.opened(), data(b"", 0)) == ["1 opened"]


def test_carried_over() -> None:
    """In a file that continues another, a stream begins in its middle without a hole."""
    table, items = items_of(samples.start(), samples.carry(100, 7), data(b"x", 7, OUT), data(b"y", 103, IN))
    assert [line(item) for item in items] == ["1 opened", "1 > 7 x", "1 < 100 LOST 3 ring-full", "1 < 103 y"]
    assert items[0].flow.joined_midstream
    assert table.totals.counted == [4, 1]


# --- Contradictions ---


@pytest.mark.parametrize(
    "records",
    [
        data(b"abc", 0) + data(b"d", 2),
        data(b"abc", 0, length=9) + data(b"d", 8),
        data(b"abc", 0) + data(b"abc", 0),
        data(b"abc", 0) + samples.closed(0, 2),
        data(b"abc", 0, IN) + samples.ledger(2, 0),
        data(b"abc", 0) + samples.orphan(9, 0),
        data(b"abc", 0) + samples.carry(0, 2),
    ],
)
def test_contradicting_ledger(records: bytes) -> None:
    """A ledger that goes back is a corrupt file, and the error names the flow."""
    with pytest.raises(CorruptError, match="flow 1"):
        items_of(samples.opened() + records)


def test_clock_without_times() -> None:
    """A clock record without its two numbers is a corrupt file."""
    for bad in (samples.start(wall_ns="1"), samples.start(monotonic_ns=None)):
        with pytest.raises(CorruptError, match="clock"):
            items_of(bad)


# --- What becomes known ---


def test_roles_and_names() -> None:
    """Role, SNI and ALPN are set when they become known, with an item only once the flow is in use."""
    table, items = items_of(samples.opened(role=0), samples.sni(b"a.example"))
    assert items == []
    (opened, _) = feed(table, data(b"x"))
    flow = opened.flow
    assert (flow.role, flow.sni, flow.alpn) == (Role.UNKNOWN, "a.example", "")
    updates = feed(table, samples.opened(role=2, ssl=5) + samples.alpn(b"h2") + samples.sni(b"b.example"))
    assert [line(item) for item in updates] == ["1 updated"] * 3
    assert {id(item.flow) for item in updates} == {id(flow)}
    assert (flow.role, flow.sni, flow.alpn, flow.ssl) == (Role.SERVER, "b.example", "h2", 5)


def test_role_is_kept() -> None:
    """An open sample that doesn't know the role leaves the one that is known, and doesn't make the flow midstream."""
    table, items = items_of(samples.opened(role=1), data(b"x"))
    feed(table, samples.opened(role=0, midstream=True) + samples.opened(role=77))
    assert items[0].flow.role is Role.CLIENT
    assert not items[0].flow.joined_midstream


def test_handshake() -> None:
    """A handshake has its two times, on the wall clock, and proves that the connection was seen from its beginning."""
    _, items = items_of(
        samples.start(),
        samples.opened(midstream=True),
        samples.handshake(MONOTONIC_NS + MS, time_ns=MONOTONIC_NS + 5 * MS),
    )
    flow = items[-1].flow
    assert (flow.handshake_start_ns, flow.handshake_end_ns) == (WALL_NS + MS, WALL_NS + 5 * MS)
    assert not flow.joined_midstream


@pytest.mark.parametrize(
    ("record", "local", "remote"),
    [
        (samples.address("10.0.0.1", 5, "10.0.0.2", 6), "10.0.0.1:5", "10.0.0.2:6"),
        (samples.address("fe80::1", 5, "2001:db8::2", 6), "[fe80::1]:5", "[2001:db8::2]:6"),
        (samples.address("::ffff:10.0.0.1", 5, "::ffff:10.0.0.2", 6), "10.0.0.1:5", "10.0.0.2:6"),
        (samples.address("::", 5, "::1", 6), "[::]:5", "[::1]:6"),
    ],
)
def test_addresses(record: bytes, local: str, remote: str) -> None:
    """Addresses are text; IPv4 in IPv6 clothing is IPv4."""
    _, items = items_of(samples.opened(), record)
    flow = items[-1].flow
    assert (str(flow.local), str(flow.remote)) == (local, remote)
    assert (flow.tuple_source, flow.transport) == (TupleSource.SYSCALL, "tcp")


@pytest.mark.parametrize(("protocol", "transport"), [(6, "tcp"), (17, "udp"), (132, "132")])
def test_transports(protocol: int, transport: str) -> None:
    """The transport has a name, or its number."""
    _, items = items_of(samples.opened(), samples.address(protocol=protocol, srtt_us=0))
    assert items[-1].flow.transport == transport
    assert items[-1].flow.srtt_us == -1


def test_unix_socket() -> None:
    """A Unix socket has no addresses: they stay unknown."""
    _, items = items_of(samples.opened(), samples.address(family=1, protocol=0))
    flow = items[-1].flow
    assert (flow.transport, flow.local, flow.remote, flow.tuple_source) == ("unix", None, None, TupleSource.PLACEHOLDER)


def test_address_by_ciphertext() -> None:
    """How an address was found is kept; what is found again later counts."""
    table = FlowTable()
    feed(table, samples.opened())
    for flags, found in ((2, TupleSource.CIPHERTEXT), (0, TupleSource.SYSCALL), (2, TupleSource.CIPHERTEXT)):
        flow = feed(table, samples.address(flags=flags))[-1].flow
        assert flow.tuple_source is found
    assert feed(table, samples.address(family=1, flags=2))[-1].flow.transport == "unix"


def test_what_is_no_flow() -> None:
    """That a call used no socket, and which functions a library was given, is for the recorder: no items, but time goes on."""
    table = FlowTable()
    feed(table, samples.start())
    assert feed(table, samples.unjoined() + samples.callback(time_ns=MONOTONIC_NS + 5)) == []
    assert table.last_ns == WALL_NS + 5
    assert table.open_flows == table.flow_count == 0


def test_address_again() -> None:
    """An address that comes again replaces the one before, and a round-trip time is kept."""
    table, items = items_of(samples.opened(), samples.address(srtt_us=1200))
    feed(table, samples.address(remote="1.2.3.4", remote_port=8443))
    flow = items[0].flow
    assert flow.remote == Endpoint("1.2.3.4", 8443)
    assert flow.srtt_us == 1200


# --- Processes ---


def test_process_details() -> None:
    """What /proc said of a process is joined to it by pid and start, whichever comes first."""
    for records in (
        samples.details() + samples.process(b"curl", b"curl", b"-v"),
        samples.process(b"curl", b"curl", b"-v") + samples.details(),
    ):
        _, items = items_of(records + samples.opened() + data(b"x"))
        process = items[0].flow.process
        assert (process.comm, process.cmdline, process.exe) == ("curl", ("curl", "-v"), "/usr/bin/curl")
        assert process.libraries == (Library("/usr/lib/libssl.so.3", "abcd"),)
        assert (process.ppid, process.uid, process.label) == (1, 1000, f"curl[{PID}]")


@pytest.mark.parametrize("before", [True, False])
def test_details_of_another_process(before: bool) -> None:
    """Details of an earlier process with the same pid are not taken."""
    records = [samples.details(start_ns=1), samples.process(b"curl", b"curl")]
    _, items = items_of(*(records if before else reversed(records)), samples.opened(), data(b"x"))
    assert items[0].flow.process.exe == "curl"
    assert items[0].flow.process.libraries == ()


def test_odd_details() -> None:
    """Details of another shape than ours are taken as far as they make sense."""
    from tlscap import decode as records

    odd: tuple[object, ...] = (None, "x", [1, None, {"path": 5}], {})
    for libraries in odd:
        body = {"start_ns": samples.PROCESS_START_NS, "exe": None, "libraries": libraries}
        _, items = items_of(
            samples.process(b"curl"), records.note(records.RECORD_PROCESS, body, pid=PID), samples.opened(), data(b"x")
        )
        assert items[0].flow.process.exe == "curl"


def test_exec() -> None:
    """A process that runs another program is another process; its old connections keep the old one."""
    table, items = items_of(samples.process(b"sh"), samples.opened(), data(b"x"))
    more = feed(table, samples.process(b"curl", start_ns=9) + data(b"y", conn=OTHER) + data(b"z", 1))
    assert items[0].flow.process.comm == "sh"
    assert [item.flow.process.comm for item in more] == ["curl", "curl", "sh"]


def test_pid_used_again() -> None:
    """A connection of a process that started at another time than the known one of that pid, is another process's."""
    table, items = items_of(samples.process(b"old", start_ns=1), samples.opened(), data(b"x"))
    process = items[0].flow.process
    assert process.start_ns == samples.PROCESS_START_NS
    assert process.comm == ""
    assert table.flow_count == 1


def test_exit_then_orphans() -> None:
    """Connections of a process that ended are closed by their orphan ledgers, at the time the process ended."""
    table, items = items_of(
        samples.start(),
        samples.process(b"curl"),
        samples.opened(),
        data(b"abc"),
        samples.exited(time_ns=MONOTONIC_NS + 7 * MS),
    )
    assert isinstance(items[-1], Data)
    last = feed(table, samples.orphan(0, 5, time_ns=MONOTONIC_NS + 900 * MS))
    assert [line(item) for item in last] == ["1 > 3 LOST 2 ring-full", "1 closed"]
    assert last[-1].time_ns == last[-1].flow.closed_ns == WALL_NS + 7 * MS
    assert table.open_flows == 0


def test_exit_of_another_process() -> None:
    """A process's end says nothing of the connections of others."""
    table, items = items_of(
        samples.process(b"a", pid=1), samples.opened(pid=2), data(b"x", pid=2), samples.exited(pid=1)
    )
    feed(table, samples.exited(pid=99))
    assert items[0].flow.closed_ns == 0


def test_reused_object() -> None:
    """An SSL object that is cleared goes on as another flow, with a ledger of its own."""
    assert transcript(
        samples.opened(ssl=1),
        data(b"one", 0),
        samples.closed(0, 3, recycled=True),
        samples.opened(ssl=1, conn=OTHER),
        data(b"two", 0, conn=OTHER),
        samples.closed(0, 3, conn=OTHER),
    ) == ["1 opened", "1 > 0 one", "1 closed", "2 opened", "2 > 0 two", "2 closed"]


def test_table_full() -> None:
    """Without room in the kernel's table, every call is a flow of its own, closed at once."""
    table, items = items_of(
        data(b"abc", 0, flags=1, conn=1 << 50),
        data(b"def", 0, IN, flags=1, conn=1 << 50 | 1, length=5, reason=1),
        data(b"ghi", 0, flags=1, conn=1 << 50),
    )
    assert [line(item) for item in items] == [
        "1 opened",
        "1 > 0 abc",
        "1 closed",
        "2 opened",
        "2 < 0 def",
        "2 < 3 LOST 2 snaplen",
        "2 closed",
        "3 opened",
        "3 > 0 ghi",
        "3 closed",
    ]
    assert table.open_flows == 0


# --- Times ---


def test_clock() -> None:
    """Times are of the wall clock; a clock record moves those behind it, not those before."""
    later = WALL_NS + 3_600_000_000_000
    table, items = items_of(
        samples.start(),
        samples.opened(),
        data(b"a", 0, time_ns=MONOTONIC_NS + MS),
        samples.clock(later, MONOTONIC_NS + 2 * MS),
        data(b"b", 1, time_ns=MONOTONIC_NS + 3 * MS),
    )
    assert [item.time_ns for item in items] == [WALL_NS + MS, WALL_NS + MS, later + MS]
    assert items[0].flow.opened_ns == WALL_NS
    assert table.last_ns == later + MS


def test_calls_that_take_time() -> None:
    """What is written has the time at which the call began, what is read that at which it returned."""
    _, items = items_of(
        samples.start(),
        samples.opened(),
        data(b"out", 0, OUT, entry_ns=MONOTONIC_NS + MS, time_ns=MONOTONIC_NS + 5 * MS),
        data(b"in", 0, IN, entry_ns=MONOTONIC_NS + 2 * MS, time_ns=MONOTONIC_NS + 4 * MS),
    )
    assert [item.time_ns - WALL_NS for item in items if isinstance(item, Data)] == [MS, 4 * MS]


def test_start_and_end() -> None:
    """The first and the last record are kept for whoever asks; the first of two starts counts."""
    table, _ = items_of(samples.start(tool="tlscap 1"), samples.start(tool="tlscap 2"))
    assert table.start["tool"] == "tlscap 1"
    assert table.end is None
    feed(table, samples.end(calls=5))
    assert table.end == {"counters": {"calls": 5}, "stopped": "command ended"}


def test_last_time_never_goes_back() -> None:
    """The latest time is that of the latest event, though one may come late."""
    table, _ = items_of(data(b"a", 0, time_ns=5000), data(b"b", 1, time_ns=4000))
    assert table.last_ns == 5000


# --- The property that everything is for ---


Call = tuple[int, int, int, int]
"""Connection, direction, bytes moved, bytes kept of them by the snaplen."""


def perform(calls: Iterable[Call], dropped: set[int], endings: dict[int, str]) -> Iterator[bytes]:
    """Yield the records of some calls, without the samples that were dropped, and the last ledgers."""
    moved: dict[int, list[int]] = {}
    for index, (conn, direction, length, kept) in enumerate(calls):
        if conn not in moved:
            moved[conn] = [0, 0]
            yield samples.opened(conn=conn)
        offset = moved[conn][direction]
        if index not in dropped:
            payload = content(conn, direction, offset, min(length, kept))
            yield data(payload, offset, direction, conn=conn, length=length, reason=1)
        moved[conn][direction] += length
    for conn, totals in moved.items():
        last = {"close": samples.closed(*totals, conn=conn), "orphan": samples.orphan(*totals, conn=conn)}
        yield last.get(endings[conn]) or samples.ledger(*totals, conn=conn)


def content(conn: int, direction: int, offset: int, length: int) -> bytes:
    """Return what a connection says from one offset on: any piece can be checked by its place."""
    return bytes((conn * 71 + direction * 37 + at * 13) & 0xFF for at in range(offset, offset + length))


call_lists = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(0, 40), st.integers(0, 40)), max_size=25
)


@given(call_lists, st.integers(0, 2**32))
def test_every_byte_is_accounted_for(calls: list[Call], seed: int) -> None:
    """Whatever calls are made and whatever samples are dropped, each stream is whole: every byte is stored or missing."""
    dice = random.Random(seed)
    dropped = {index for index in range(len(calls)) if dice.random() < 0.4}
    endings = {conn: dice.choice(("close", "orphan", "ledger")) for conn in (1, 2, 3)}
    table, items = items_of(*perform(calls, dropped, endings))
    expected = {
        (conn, direction): sum(call[2] for call in calls if call[:2] == (conn, direction))
        for conn in (1, 2, 3)
        for direction in (IN, OUT)
    }
    conn_of = {id(flow): conn for conn, flow in flows_by_conn(calls, dropped, endings, items).items()}
    known = dict.fromkeys(expected, 0)
    stored = 0
    for item in items:
        if not isinstance(item, Data | Gap):
            continue
        stream = conn_of[id(item.flow)], int(item.direction)
        assert item.offset == known[stream], "streams have neither overlaps nor unsaid holes"
        if isinstance(item, Data):
            assert item.data == content(*stream, item.offset, len(item.data))
            assert item.data
            stored += len(item.data)
        length = len(item.data) if isinstance(item, Data) else item.length
        assert length > 0
        known[stream] += length
    assert known == expected
    totals = table.totals
    for direction in Direction:
        assert totals.counted[direction] == sum(size for stream, size in expected.items() if stream[1] == direction)
    assert sum(totals.stored) == stored
    assert totals.gaps == sum(isinstance(item, Gap) for item in items)
    assert totals.complete == (not any(isinstance(item, Gap) for item in items))
    assert [item.flow.id for item in items if isinstance(item, FlowOpened)] == list(range(1, table.flow_count + 1))


def flows_by_conn(
    calls: list[Call], dropped: set[int], endings: dict[int, str], items: list[Item]
) -> dict[int, object]:
    """Return which flow each connection became: by the order of their first samples, else of their ledgers."""
    order = [call[0] for index, call in enumerate(calls) if index not in dropped]
    seen = dict.fromkeys(order)
    for conn in dict.fromkeys(call[0] for call in calls):
        if sum(call[2] for call in calls if call[0] == conn):
            seen.setdefault(conn)
    flows = [item.flow for item in items if isinstance(item, FlowOpened)]
    return dict(zip(seen, flows, strict=True))


@given(st.lists(st.sampled_from(range(15)), max_size=30), st.integers(0, 2**32))
def test_any_order_of_events(kinds: list[int], seed: int) -> None:
    """Events in any order are items or a `CorruptError`; what is closed is not heard of again under its number."""
    dice = random.Random(seed)
    table = FlowTable()
    gone: set[int] = set()
    for kind in kinds:
        conn = dice.choice((1, 2))
        size, way = dice.randrange(9), dice.randrange(2)
        raw = (
            samples.opened(conn=conn, role=dice.randrange(4)),
            data(b"abcdefgh"[:size], dice.randrange(30), way, conn=conn, flags=dice.randrange(2)),
            samples.handshake(conn=conn),
            samples.sni(conn=conn),
            samples.address(conn=conn),
            samples.shutdown(conn=conn),
            samples.eof(conn=conn),
            samples.closed(size, 30, conn=conn),
            samples.ledger(size, 30, conn=conn),
            samples.orphan(size, 30, conn=conn),
            samples.process(),
            samples.exited(),
            samples.details(),
            samples.clock(dice.randrange(1 << 60), 1),
            samples.carry(size, dice.randrange(30), conn=conn),
        )[kind]
        try:
            items = feed(table, raw)
        except CorruptError:
            return
        for item in items:
            assert item.flow.id not in gone
            if isinstance(item, FlowClosed):
                gone.add(item.flow.id)
    assert table.open_flows <= 2


def test_reasons_are_complete() -> None:
    """Every reason of the kernel has a name."""
    from tlscap.flows import REASONS

    assert sorted(REASONS) == [1, 2, 3, 4]
    assert GapReason.UNKNOWN not in REASONS.values()
