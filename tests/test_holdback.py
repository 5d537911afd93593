"""Holding items back until a flow's address is known: order, time, limits."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import samples
from helpers import START_NS, Wire, make_flow
from hypothesis import given
from hypothesis import strategies as st
from samples import IN, MONOTONIC_NS, MS, OUT

from tlscap import holdback
from tlscap.holdback import ITEM_BYTES, MAX_BYTES, WAIT_NS, HoldBack
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    TupleSource,
)
from tlscap.pcapng import EnhancedPacket, read_blocks
from tlscap.rebuild import PcapngBuilder

FOUND = [TupleSource.SYSCALL, TupleSource.CIPHERTEXT, TupleSource.IMPORTED]


def flow(number: int = 1, source: TupleSource = TupleSource.PLACEHOLDER, **changes: Any) -> Flow:
    return make_flow(number, tuple_source=source, **changes)


def wire(number: int = 1, source: TupleSource = TupleSource.PLACEHOLDER, **changes: Any) -> Wire:
    return Wire(flow(number, source, **changes))


def give(held: HoldBack, *items: Item, now_ns: int | None = None) -> list[Item]:
    """Return what comes out; the time is that of the last item."""
    return list(held.feed(items, items[-1].time_ns if now_ns is None else now_ns))


# --- Who waits ---


@pytest.mark.parametrize("source", FOUND)
def test_with_an_address(source: TupleSource) -> None:
    """A flow of which the address is known waits for nothing."""
    held, one = HoldBack(), wire(source=source)
    for item in (FlowOpened(one.flow, START_NS), one.out(b"a"), one.gap(Direction.INBOUND, 9), one.closed()):
        assert give(held, item) == [item]
    assert list(held.finish()) == []


def test_unix_sockets() -> None:
    """A socket without addresses never gets any: it is known what it is."""
    held, one = HoldBack(), wire(transport="unix")
    item = one.out(b"a")
    assert give(held, item) == [item]


@pytest.mark.parametrize("kind", ["data", "gap", "end"])
def test_without_an_address(kind: str) -> None:
    """What becomes a packet waits, whichever it is."""
    held, one = HoldBack(), wire()
    items: dict[str, Item] = {
        "data": one.out(b"a"),
        "gap": one.gap(Direction.OUTBOUND, 5),
        "end": one.half_closed(Direction.OUTBOUND),
    }
    assert give(held, items[kind]) == []
    assert list(held.finish()) == [items[kind]]


def test_what_is_no_packet() -> None:
    """That a flow begins, and what is learned of it, writes nothing, so it does not wait; but it doesn't overtake, either."""
    held, one = HoldBack(), wire()
    opened, updated = FlowOpened(one.flow, START_NS), FlowUpdated(one.flow, START_NS)
    assert give(held, opened, updated) == [opened, updated]
    data = one.out(b"a")
    assert give(held, data, FlowUpdated(one.flow, data.time_ns)) == []
    assert [type(item) for item in held.finish()] == [Data, FlowUpdated]


def test_others_wait_behind() -> None:
    """Order is kept over all flows: one with an address comes out behind the one that waits."""
    held, first, second = HoldBack(), wire(1), wire(2, TupleSource.SYSCALL)
    a, b, c = first.out(b"a"), second.out(b"b"), second.closed()
    assert give(held, a, b) == []
    assert give(held, c) == []
    first.flow.tuple_source = TupleSource.CIPHERTEXT
    updated = FlowUpdated(first.flow, c.time_ns)
    assert give(held, updated) == [a, b, c, updated]


# --- How long ---


def test_address_comes() -> None:
    """When the address is found, everything comes at once."""
    held, one = HoldBack(), wire()
    items = [one.out(b"a"), one.into(b"b")]
    assert give(held, *items) == []
    one.flow.tuple_source = TupleSource.SYSCALL
    updated = FlowUpdated(one.flow, one.time_ns)
    assert give(held, updated) == [*items, updated]
    more = one.out(b"c")
    assert give(held, more) == [more]


def test_unix_is_learned_late() -> None:
    held, one = HoldBack(), wire()
    item = one.out(b"a")
    assert give(held, item) == []
    one.flow.transport = "unix"
    assert give(held, FlowUpdated(one.flow, one.time_ns))[0] is item


def test_closing_releases() -> None:
    """Of a flow that is closed nothing more will be learned."""
    held, one = HoldBack(), wire()
    a, closed = one.out(b"a"), one.closed()
    assert give(held, a) == []
    assert give(held, closed) == [a, closed]
    assert not held._settled
    assert not held._since


@pytest.mark.parametrize("after", [0, 1, WAIT_NS - 1, WAIT_NS, 10 * WAIT_NS])
def test_event_time(after: int) -> None:
    """A flow waits so long after its own first item, by the time of the events of whichever flow."""
    held, one, other = HoldBack(), wire(1), wire(2, TupleSource.SYSCALL)
    waiting = one.out(b"a")
    assert give(held, waiting) == []
    event = FlowUpdated(other.flow, waiting.time_ns + after)
    assert give(held, event) == ([waiting, event] if after >= WAIT_NS else [])


def test_it_waits_once() -> None:
    """What comes after the time is over goes on at once."""
    held, one = HoldBack(), wire()
    a = one.out(b"a")
    assert give(held, a) == []
    assert give(held, now_ns=a.time_ns + WAIT_NS) == [a]
    b = one.out(b"b")
    assert give(held, b) == [b]


def test_each_flow_has_its_time() -> None:
    """A flow that begins to wait later ends later; the one before does not wait for it."""
    held, one, two = HoldBack(), wire(1), wire(2)
    a = one.out(b"a")
    two.time_ns = a.time_ns + WAIT_NS // 2
    b = two.out(b"b")
    assert give(held, a, b) == []
    assert give(held, now_ns=a.time_ns + WAIT_NS) == [a]
    assert give(held, now_ns=b.time_ns + WAIT_NS - 1) == []
    assert give(held, now_ns=b.time_ns + WAIT_NS) == [b]


def test_time_goes_on_without_items() -> None:
    """Events that say nothing of flows move the time, too."""
    held, one = HoldBack(), wire()
    a = one.out(b"a")
    assert list(held.feed([a], a.time_ns)) == []
    assert list(held.feed([], a.time_ns + WAIT_NS - 1)) == []
    assert list(held.feed([], a.time_ns + WAIT_NS)) == [a]


# --- Limits ---


def test_byte_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """When too much is held back, the oldest flow has waited long enough."""
    monkeypatch.setattr(holdback, "MAX_BYTES", 100_000)
    held, one = HoldBack(), wire()
    out: list[Item] = []
    fed: list[Item] = []
    for _ in range(50):
        fed.append(one.out(bytes(5000)))
        fed[-1].time_ns = START_NS
        out += give(held, fed[-1])
        assert held._bytes < 100_000
    assert out
    assert [*out, *held.finish()] == fed
    assert held._bytes == 0


@pytest.mark.parametrize("kind", ["single bytes", "ends", "gaps", "updates"])
def test_items_have_a_size(kind: str) -> None:
    """Millions of items of next to nothing are much, too: at one time, by one flow without an address."""
    held, one = HoldBack(), wire()
    direction = Direction.OUTBOUND
    first = one.out(b"a")
    assert give(held, first) == []
    items: dict[str, Item] = {
        "single bytes": Data(one.flow, direction, 1, b"x", first.time_ns),
        "ends": HalfClosed(one.flow, direction, first.time_ns),
        "gaps": Gap(one.flow, direction, 1, 1 << 30, GapReason.RING_FULL, first.time_ns),
        "updates": FlowUpdated(one.flow, first.time_ns),
    }
    most = 0
    for _ in range(2 * MAX_BYTES // ITEM_BYTES):
        for _ in held.feed([items[kind]], first.time_ns):
            pass
        most = max(most, len(held._items))
    assert 0 < most <= MAX_BYTES // ITEM_BYTES


KINDS = st.sampled_from(["opened", "updated", "data", "gap", "half", "closed", "address", "unix"])
STEPS = st.lists(st.tuples(KINDS, st.integers(0, 3), st.integers(0, 2 * WAIT_NS), st.integers(0, 30_000)), max_size=60)


def as_items(steps: list[tuple[str, int, int, int]]) -> Iterator[Item]:
    """Yield the items of some flows; an address is found when it is its turn."""
    flows = [flow(number + 1) for number in range(4)]
    now = START_NS
    for kind, number, pause, size in steps:
        now += pause
        one = flows[number]
        match kind:
            case "opened":
                yield FlowOpened(one, now)
            case "data":
                yield Data(one, Direction.INBOUND, 0, bytes(size), now - pause // 2)
            case "gap":
                yield Gap(one, Direction.OUTBOUND, 0, size + 1, GapReason.SNAPLEN, now)
            case "half":
                yield HalfClosed(one, Direction.INBOUND, now)
            case "closed":
                yield FlowClosed(one, now)
            case _:
                if kind == "address":
                    one.tuple_source = TupleSource.CIPHERTEXT
                if kind == "unix":
                    one.transport = "unix"
                yield FlowUpdated(one, now)


@given(STEPS, st.sampled_from([1, 3000, 50_000, MAX_BYTES]), st.integers(1, 5))
def test_any_items(steps: list[tuple[str, int, int, int]], limit: int, group: int) -> None:
    """Whatever comes, the same comes out, in the same order, and what is inside is bounded."""
    held = HoldBack()
    seen: list[Item] = []
    out: list[Item] = []
    waiting: list[Item] = []
    last = 0
    before = holdback.MAX_BYTES
    holdback.MAX_BYTES = limit
    try:
        for item in as_items(steps):
            seen.append(item)
            waiting.append(item)
            last = max(last, item.time_ns)
            if len(waiting) == group:
                out += held.feed(waiting, last)
                waiting = []
                assert held._bytes < limit or not held._items
        out += held.feed(waiting, last)
        out += held.finish()
    finally:
        holdback.MAX_BYTES = before
    assert len(out) == len(seen)
    assert all(one is other for one, other in zip(out, seen, strict=True))
    assert held._bytes == 0
    assert len(held._settled) + len(held._since) <= 4


# --- In a pcapng ---


def at(milliseconds: int) -> int:
    return MONOTONIC_NS + milliseconds * MS


def late(address: bytes, *more: bytes) -> bytes:
    """Return the records of a connection of which the address comes after its first bytes."""
    return b"".join(
        [
            samples.start(),
            samples.process(b"p"),
            samples.opened(),
            samples.data(b"GET / HTTP/1.1\r\n\r\n", 0, OUT, time_ns=at(1)),
            samples.data(b"HTTP/1.1 200 OK\r\n", 0, IN, time_ns=at(2)),
            address,
            *more,
            samples.data(b"\r\n", 17, IN, time_ns=at(1000)),
            samples.closed(19, 18, time_ns=at(1001)),
            samples.end(),
        ]
    )


def endpoints(*frames: bytes) -> set[tuple[bytes, bytes, int, int]]:
    """Return both ends of every packet, the smaller address first, as an IPv4 and a TCP header have them."""
    builder = PcapngBuilder()
    blocks = [block for frame in frames for block in builder.feed(frame)]
    raw = b"".join([*blocks, *builder.finish()])
    found = set()
    for block in read_blocks(io.BytesIO(raw)):
        if isinstance(block, EnhancedPacket):
            ports = struct.unpack_from(">HH", block.data, 34)
            ends = sorted(zip((block.data[26:30], block.data[30:34]), ports, strict=True))
            found.add((ends[0][0], ends[1][0], ends[0][1], ends[1][1]))
    return found


REAL = (bytes([10, 0, 0, 1]), bytes([93, 184, 216, 34]), 40000, 443)


@pytest.mark.parametrize("milliseconds", [3, 100, 400])
def test_late_address(milliseconds: int) -> None:
    """All packets carry the real address, those of the bytes before it was known, too."""
    records = late(samples.address(flags=2, time_ns=at(milliseconds)))
    assert endpoints(records) == {REAL}


def test_too_late() -> None:
    """After the time is over, the flow is written with placeholders, and stays what it is."""
    records = late(samples.alpn(time_ns=at(402)), samples.address(flags=2, time_ns=at(403)))
    (ends,) = endpoints(records)
    assert ends != REAL
    assert {ends[0][:3], ends[1][:3]} == {bytes([192, 0, 2]), bytes([198, 51, 100])}


def test_frames_dont_matter() -> None:
    """Where the recorder cut its frames changes no byte: the view and a rebuild wait at the same places."""
    records = late(samples.address(flags=2, time_ns=at(300)), samples.sni(time_ns=at(301)))
    pieces, rest = [], records
    while rest:
        size = int.from_bytes(rest[4:8], "little") + 7 & ~7
        pieces.append(rest[:size])
        rest = rest[size:]
    whole, parts = PcapngBuilder(), PcapngBuilder()
    expected = b"".join([*whole.feed(records), *whole.finish()])
    blocks = [block for piece in pieces for block in parts.feed(piece)]
    assert b"".join([*blocks, *parts.finish()]) == expected


def test_truncated_while_waiting() -> None:
    """A sidecar that ends while a flow waits gives its bytes all the same."""
    records = samples.start() + samples.opened() + samples.data(b"secret", 0, OUT)
    builder = PcapngBuilder()
    fed = b"".join(builder.feed(records))
    assert b"secret" not in fed
    assert b"secret" in b"".join(builder.finish())


def test_items_are_told_at_once() -> None:
    """Who listens to items hears them without waiting; only packets wait."""
    builder = PcapngBuilder()
    heard: list[Item] = []
    list(builder.feed(samples.start() + samples.opened() + samples.data(b"x", 0, OUT), heard.append))
    assert [type(item) for item in heard] == [FlowOpened, Data]


def test_endpoint_of_a_flow_is_live() -> None:
    """An item holds its flow, not a copy: what is learned while it waits is there when it is written."""
    held, one = HoldBack(), wire()
    held_back = one.out(b"a")
    assert give(held, held_back) == []
    one.flow.tuple_source, one.flow.remote = TupleSource.SYSCALL, Endpoint("1.2.3.4", 5)
    (item, _) = give(held, FlowUpdated(one.flow, one.time_ns))
    assert item.flow.remote == Endpoint("1.2.3.4", 5)
