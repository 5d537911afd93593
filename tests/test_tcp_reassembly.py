"""TCP reassembly: a model network that loses, repeats, cuts and reorders; every case by hand; and any segments at all."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.importing.frames import Captured, reverse
from tlscap.importing.reassembly import LINGER_NS, Reassembler
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    Gap,
    HalfClosed,
    Item,
    Role,
    TupleSource,
)
from tlscap.packets import ACK, FIN, PSH, RST, SYN, TcpPath

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
CLIENT = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + (50000).to_bytes(2, "big") + (80).to_bytes(2, "big")
PATHS = {OUT: CLIENT, IN: reverse(CLIENT)}
MASK = 0xFFFFFFFF
ISNS = {OUT: 0xFFFFFFF0, IN: 7}
MILLISECOND = 1_000_000

Stream = list[bytes | int]
"""What came of one direction: bytes, and how many are missing."""


@dataclass
class Result:
    """What came out, per flow."""

    items: list[Item] = field(default_factory=list)
    time_ns: int = MILLISECOND

    def streams(self, flow: Flow | None = None) -> dict[Direction, Stream]:
        """Return both directions of a flow, by default the only one; offsets and times must fit."""
        flows = self.flows()
        if flow is None:
            (flow,) = flows
        streams: dict[Direction, Stream] = {OUT: [], IN: []}
        offsets = {OUT: 0, IN: 0}
        time_ns = 0
        for item in self.items:
            if item.flow is not flow:
                continue
            assert item.time_ns >= time_ns
            time_ns = item.time_ns
            if not isinstance(item, Data | Gap):
                continue
            stream = streams[item.direction]
            assert item.offset == offsets[item.direction]
            what = item.data if isinstance(item, Data) else item.length
            assert what
            offsets[item.direction] += len(what) if isinstance(what, bytes) else what
            if stream and type(stream[-1]) is type(what):
                stream[-1] += what  # type: ignore[operator]
            else:
                stream.append(what)
        return streams

    def flows(self) -> list[Flow]:
        """Return the flows; each must be opened first, and closed last if it is."""
        flows: list[Flow] = []
        closed: set[Flow] = set()
        for item in self.items:
            assert item.flow not in closed
            if isinstance(item, FlowOpened):
                flows.append(item.flow)
            assert item.flow in flows
            if isinstance(item, FlowClosed):
                assert item.flow.closed_ns == item.time_ns
                closed.add(item.flow)
        return flows

    def story(self) -> list[str]:
        """Return what happened in few words."""
        words = []
        for item in self.items:
            way = (">" if item.direction is OUT else "<") if isinstance(item, Data | Gap | HalfClosed) else ""
            match item:
                case Data():
                    words.append(way + item.data.decode("latin-1"))
                case Gap():
                    words.append(f"{way}{item.length} {item.reason.value}")
                case HalfClosed():
                    words.append(f"{way}fin")
                case FlowClosed():
                    words.append("closed")
                case _:
                    pass
        return words


class Wire(Result):
    """Segments by hand: offsets count from the first byte behind the SYN."""

    def __init__(self, reassembler: Reassembler | None = None) -> None:
        super().__init__()
        self.reassembler = reassembler or Reassembler()

    def send(
        self,
        direction: Direction,
        offset: int = 0,
        data: bytes = b"",
        *,
        ack: int | None = 0,
        flags: int = 0,
        missing: int = 0,
    ) -> None:
        """Capture one segment, a millisecond after the one before; ``ack`` None is one without."""
        self.time_ns += MILLISECOND
        segment = Captured(
            PATHS[direction],
            (ISNS[direction] + 1 + offset - bool(flags & SYN)) & MASK,
            0 if ack is None else (ISNS[direction.opposite] + 1 + ack) & MASK,
            flags | (0 if ack is None else ACK),
            data,
            missing,
        )
        self.items += self.reassembler.feed(segment, self.time_ns)

    def handshake(self) -> None:
        self.send(OUT, ack=None, flags=SYN)
        self.send(IN, flags=SYN)
        self.send(OUT)

    def quiet(self, count: int = 40) -> None:
        """Capture pure acknowledgements: time for what is late."""
        for _ in range(count):
            self.send(OUT)

    def done(self) -> list[str]:
        self.items += self.reassembler.finish()
        return self.story()


@pytest.fixture
def wire() -> Wire:
    """A connection whose handshake was captured."""
    wire = Wire()
    wire.handshake()
    return wire


# --- A model network ---

Sent = TypeVar("Sent")


@dataclass
class Packet:
    """What one side sends, and whether the capture gets it."""

    direction: Direction
    start: int
    data: bytes
    captured: bool
    fin: bool = False


@st.composite
def networks(draw: st.DrawFn) -> tuple[dict[Direction, bytes], list[Packet], int, random.Random]:
    """Return two streams, the packets that carry them in the order in which they are sent, and how far they are displaced."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    streams = {OUT: rng.randbytes(draw(st.integers(0, 300))), IN: rng.randbytes(draw(st.integers(0, 300)))}
    loss = draw(st.sampled_from([0, 0, 10, 40]))
    packets = []
    for direction, stream in streams.items():
        position = 0
        while position < len(stream):
            size = rng.randint(1, 40)
            start = max(0, position - rng.choice([0, 0, 0, 1, 20]))  # an overlapping retransmission
            packets.append(Packet(direction, start, stream[start : position + size], rng.randrange(100) >= loss))
            position += size
            if rng.random() < 0.2:
                packets.append(Packet(direction, start, stream[start:position], rng.randrange(100) >= loss))
        packets.append(Packet(direction, len(stream), b"", captured=rng.random() < 0.8, fin=True))
    order = sorted(range(len(packets)), key=lambda index: (packets[index].fin, rng.random()))
    one = [packets[index] for index in sorted(order, key=lambda i: packets[i].direction)]
    mixed = [packets[index] for index in order] if draw(st.booleans()) else one
    return streams, mixed, draw(st.integers(0, 12)), rng


def displaced(packets: list[Sent], distance: int, rng: random.Random) -> list[Sent]:
    """Return the packets in another order, none farther than so much from where it was sent."""
    return [
        packet
        for _, packet in sorted(enumerate(packets), key=lambda pair: pair[0] + rng.uniform(-distance, distance) / 2)
    ]


def in_order(packets: list[Packet]) -> list[Packet]:
    """Return the packets so that each direction is in order, the directions mixed as they were."""
    rest = {
        direction: iter(
            sorted(
                (packet for packet in packets if packet.direction is direction),
                key=lambda packet: (packet.start, packet.fin),
            )
        )
        for direction in Direction
    }
    return [next(rest[packet.direction]) for packet in packets]


class Receiver:
    """What one side has got so far."""

    def __init__(self, size: int) -> None:
        self.got = bytearray(size)
        self.fin = False

    def take(self, packet: Packet) -> None:
        self.got[packet.start : packet.start + len(packet.data)] = b"\1" * len(packet.data)
        self.fin |= packet.fin

    @property
    def ack(self) -> int:
        missing = self.got.find(b"\0")
        return missing if missing >= 0 else len(self.got) + self.fin


def expected(stream: bytes, covered: bytearray, end: int) -> Stream:
    """Return the bytes that were captured, and the holes between and after them."""
    result: Stream = []
    position = 0
    while position < end:
        stop = position
        while stop < end and bool(covered[stop]) == bool(covered[position]):
            stop += 1
        result.append(stream[position:stop] if covered[position] else stop - position)
        position = stop
    return result


@settings(max_examples=300, deadline=None)
@given(network=networks(), isns=st.tuples(*[st.integers(0, MASK)] * 2), jitter=st.sampled_from([0, 2, 10]))
def test_model_network(
    network: tuple[dict[Direction, bytes], list[Packet], int, random.Random], isns: tuple[int, int], jitter: int
) -> None:
    """What comes out is the original, with holes exactly where nothing was captured."""
    streams, packets, distance, rng = network
    packets = displaced(in_order(packets), distance, rng)
    captured: list[Captured] = []
    receivers = {direction: Receiver(len(stream)) for direction, stream in streams.items()}
    covered = {direction: bytearray(len(stream)) for direction, stream in streams.items()}
    known = {OUT: 0, IN: 0}  # how far the capture tells that there are bytes
    fins = {OUT: False, IN: False}

    def capture(direction: Direction, seq: int, flags: int, data: bytes = b"") -> None:
        ack = receivers[direction.opposite].ack if flags & ACK else 0
        if flags & ACK:
            known[direction.opposite] = max(known[direction.opposite], ack)
        segment = Captured(
            PATHS[direction],
            (isns[direction] + seq) & MASK,
            (isns[direction.opposite] + 1 + ack) & MASK if flags & ACK else 0,
            flags,
            data,
            0,
        )
        captured.append(segment)

    capture(OUT, 0, SYN)
    capture(IN, 0, SYN | ACK)
    for packet in packets:
        if packet.captured:
            end = packet.start + len(packet.data)
            capture(packet.direction, packet.start + 1, ACK | (FIN if packet.fin else PSH), packet.data)
            covered[packet.direction][packet.start : end] = b"\1" * len(packet.data)
            known[packet.direction] = max(known[packet.direction], end)
            fins[packet.direction] |= packet.fin
        receivers[packet.direction].take(packet)
        if rng.random() < 0.5:  # the other side acknowledges
            capture(packet.direction.opposite, receivers[packet.direction.opposite].ack + 1, ACK)
    # The capture itself may mix up what is close together: an acknowledgement and its data, too.
    captured[2:] = displaced(captured[2:], jitter, rng)
    result = Result()
    reassembler = Reassembler()
    for time_ns, segment in enumerate(captured):
        result.items += reassembler.feed(segment, time_ns)
    result.items += reassembler.finish()
    wanted = {}
    for direction, stream in streams.items():
        end = min(known[direction], len(stream) + (not fins[direction]))
        wanted[direction] = expected(stream, covered[direction] + b"\0", end)
    if any(wanted.values()):
        got = result.streams() if result.items else {OUT: [], IN: []}
        for direction, want in wanted.items():
            # The acknowledgement of a FIN that was not captured can't be told from that of one more byte.
            last = want[-1] if want and not fins[direction] and got[direction] != want else b""
            if isinstance(last, int) and (last == 1 or known[direction] > len(streams[direction])):
                want[-1:] = [last - 1] * (last > 1)
        assert got == wanted
        whole_fins = all(fins.values())
        assert any(isinstance(item, FlowClosed) for item in result.items) == whole_fins
    assert reassembler.without_data == (not result.items)
    assert reassembler.contradictions == 0
    assert (reassembler.held, reassembler.connections) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(network=networks())
def test_small_buffers(network: tuple[dict[Direction, bytes], list[Packet], int, random.Random]) -> None:
    """With almost no room to wait, every byte that comes out is right and in its place, and memory stays bounded."""
    streams, packets, _, rng = network
    rng.shuffle(packets)
    wire = Wire(Reassembler(per_direction=700, in_all=900))
    wire.handshake()
    for packet in packets:
        if packet.captured and not packet.fin:
            wire.send(packet.direction, packet.start, packet.data)
            assert wire.reassembler.held <= 900
    wire.done()
    for item in wire.items:
        if isinstance(item, Data):
            assert item.data == streams[item.direction][item.offset : item.offset + len(item.data)]
    if wire.items:
        wire.streams()


segments = st.builds(
    Captured,
    st.sampled_from([CLIENT, reverse(CLIENT), bytes(12), bytes(32) + b"\0\1\0\2", bytes(32) + b"\0\2\0\1"]),
    st.one_of(st.integers(0, 60), st.integers(MASK - 60, MASK), st.integers(0, MASK)),
    st.one_of(st.integers(0, 60), st.integers(MASK - 60, MASK), st.integers(0, MASK)),
    st.sampled_from([ACK, ACK, ACK, ACK | PSH, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, 0, 0xFF]),
    st.binary(max_size=20),
    st.sampled_from([0, 0, 0, 1, 1000]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(segments, st.sampled_from([0, 1, LINGER_NS])), max_size=80))
def test_any_segments(captured: list[tuple[Captured, int]]) -> None:
    """Whatever comes, nothing is raised, bytes are accounted for flow by flow, and nothing is held at the end."""
    result = Result()
    reassembler = Reassembler(per_direction=1000, in_all=1500, most_connections=2)
    time_ns = 0
    for segment, step in captured:
        time_ns += step
        result.items += reassembler.feed(segment, time_ns)
        assert reassembler.held <= 1500
        assert reassembler.connections <= 2
    result.items += reassembler.finish()
    for flow in result.flows():
        result.streams(flow)
    assert (reassembler.held, reassembler.connections) == (0, 0)


# --- By hand ---


def test_a_connection(wire: Wire) -> None:
    """Handshake, a question, an answer, orderly end: the flow has the client's point of view."""
    wire.send(OUT, 0, b"ping")
    wire.send(IN, 0, b"pong", ack=4)
    wire.send(OUT, 4, flags=FIN, ack=4)
    wire.send(IN, 4, flags=FIN, ack=5)
    wire.send(OUT, 5, ack=5)
    assert wire.done() == [">ping", "<pong", ">fin", "<fin", "closed"]
    (flow,) = wire.flows()
    assert (flow.local, flow.remote) == (Endpoint("10.0.0.1", 50000), Endpoint("10.0.0.2", 80))
    assert (flow.role, flow.tuple_source, flow.process.pid) == (Role.CLIENT, TupleSource.IMPORTED, -1)
    assert (flow.opened_ns, flow.joined_midstream) == (2 * MILLISECOND, False)
    assert [item.time_ns // MILLISECOND for item in wire.items] == [5, 5, 6, 7, 8, 8]


def test_retransmissions(wire: Wire) -> None:
    """Copies are dropped, also of the SYN and the FIN, in part and in larger pieces."""
    wire.send(OUT, ack=None, flags=SYN)
    wire.send(IN, flags=SYN)
    wire.send(OUT, 0, b"abc")
    wire.send(OUT, 0, b"abc")
    wire.send(OUT, 0, b"abcdef")
    wire.send(OUT, 2, b"c")
    wire.send(OUT, 6, flags=FIN)
    wire.send(OUT, 4, b"ef", flags=FIN)
    wire.send(IN, flags=FIN, ack=7)
    wire.send(OUT, 6, flags=FIN)
    wire.send(OUT, 0, b"abcdef")
    assert wire.done() == [">abc", ">def", ">fin", "<fin", "closed"]


def test_reordering(wire: Wire) -> None:
    """Late segments are put in their place; those that waited have the time at which they could go on."""
    wire.send(OUT, 6, b"ghi", flags=FIN)
    wire.send(OUT, 3, b"def")
    wire.send(OUT, 0, b"abc")
    assert [item.time_ns // MILLISECOND for item in wire.items] == [7] * 5
    assert wire.done() == [">abc", ">def", ">ghi", ">fin"]


def test_first_bytes_win(wire: Wire) -> None:
    """Of two copies with a difference the first is kept, wherever they overlap; each such segment is counted."""
    wire.send(OUT, 4, b"EEEE")
    wire.send(OUT, 12, b"MMMM")
    wire.send(OUT, 2, b"xxxxxxxxxxxx")
    wire.send(OUT, 12, b"MMMM")
    wire.send(OUT, 0, b"AA")
    assert "".join(wire.done()) == ">AA>xx>EEEE>xxxx>MMMM"
    assert wire.reassembler.contradictions == 2
    late = Wire()
    late.handshake()
    late.send(OUT, 0, b"first")
    late.send(OUT, 0, b"FIRST")
    assert late.done() == [">first"]


def test_an_acknowledged_hole(wire: Wire) -> None:
    """What the other side has, and the capture does not, is missing; it is waited for a little while."""
    wire.send(OUT, 3, b"def")
    wire.send(IN, ack=6)
    assert wire.story() == []
    wire.quiet()
    assert wire.story() == [">3 not-captured", ">def"]
    (gap,) = [item for item in wire.items if isinstance(item, Gap)]
    assert gap.time_ns == 5 * MILLISECOND  # of the packet behind it


def test_an_acknowledgement_overtakes_its_data(wire: Wire) -> None:
    """An answer that was captured before its question comes after it."""
    wire.send(IN, 0, b"pong", ack=4)
    wire.send(IN, 4, flags=FIN, ack=4)
    assert wire.story() == []
    wire.send(OUT, 0, b"ping")
    assert wire.done() == [">ping", "<pong", "<fin"]


def test_a_hole_that_is_not_acknowledged(wire: Wire) -> None:
    """It is waited for as long as there is room: the segment may be sent again."""
    wire.send(OUT, 3, b"def")
    wire.quiet()
    assert wire.story() == []
    wire.send(OUT, 0, b"abc")
    assert wire.done() == [">abc", ">def"]


def test_room_for_one_direction() -> None:
    """When the room is used up, the hole is declared."""
    wire = Wire(Reassembler(per_direction=1000))
    wire.handshake()
    for number in range(1, 5):
        wire.send(OUT, 100 * number, b"%d" % number * 100)
    assert [word[:5] for word in wire.story()] == [">100 ", ">1111", ">2222", ">3333", ">4444"]
    assert wire.reassembler.held == 0


def test_room_in_all() -> None:
    """When all directions together use up the room, the one that waits longest goes on."""
    reassembler = Reassembler(in_all=1000)
    wires = [Wire(reassembler) for _ in range(4)]
    for number, wire in enumerate(wires):
        path = CLIENT[:-4] + bytes([1, number]) + CLIENT[-2:]
        for way, flags, seq, data in ((path, SYN, 0, b""), (path, ACK, 11, b"x" * 100)):
            wire.items += reassembler.feed(Captured(way, seq, 0, flags, data, 0), 5)
    assert [wire.story() for wire in wires] == [[], [], [], [">10 not-captured", ">" + "x" * 100]]
    assert wires[3].items[0].flow.local == Endpoint("10.0.0.1", 256)  # the first connection's, though the fourth came
    assert reassembler.held <= 1000


def test_an_answer_to_something_that_was_lost(wire: Wire) -> None:
    """The hole comes before its answer, also when the file ends."""
    wire.send(IN, 0, b"pong", ack=4)
    assert wire.done() == [">4 not-captured", "<pong"]


def test_nothing_but_acknowledgements(wire: Wire) -> None:
    """A side that was not captured at all is one hole."""
    for number in range(1, 101):
        wire.send(IN, ack=10 * number)
    story = wire.done()
    assert sum(int(word[1:].split()[0]) for word in story) == 1000
    assert len(story) < 8


def test_cut_packets(wire: Wire) -> None:
    """What the capture's length limit cut off is a hole with its own reason; the next bytes follow behind it."""
    wire.send(OUT, 0, b"abc", missing=7)
    wire.send(OUT, 10, b"", missing=5)
    wire.send(OUT, 15, b"xyz")
    wire.send(OUT, 8, b"-- the end", missing=1)
    assert wire.done() == [">abc", ">7 snaplen", ">5 snaplen", ">xyz", ">1 snaplen"]


def test_lost_fin(wire: Wire) -> None:
    """The acknowledgement of a FIN that was not captured is no hole of one byte."""
    wire.send(OUT, 0, b"abc")
    wire.send(IN, 0, b"x", ack=4)
    wire.quiet()
    wire.send(IN, 1, b"y", ack=4)
    assert wire.done() == [">abc", "<x", "<y"]


def test_lost_bytes_before_a_fin(wire: Wire) -> None:
    """A FIN says how much should have come."""
    wire.send(OUT, 4, flags=FIN)
    assert wire.done() == [">4 not-captured", ">fin"]


def test_keep_alive(wire: Wire) -> None:
    """Keep-alive probes repeat the byte before the next, or carry none; neither is new."""
    wire.send(OUT, 0, b"abc")
    wire.send(OUT, 2, b"\0", ack=0)
    wire.send(OUT, 2)
    wire.send(IN, ack=3)
    wire.send(OUT, 3, b"def")
    assert wire.done() == [">abc", ">def"]


def test_keep_alive_first() -> None:
    """A capture that begins with a probe does not miss a byte."""
    wire = Wire()
    wire.send(OUT, 99, ack=50)
    wire.send(IN, 50, ack=100)
    wire.send(OUT, 100, b"GET / HTTP/1.1\r\n\r\n", ack=50)
    wire.quiet()
    assert wire.done() == [">GET / HTTP/1.1\r\n\r\n"]


def test_wrap_around() -> None:
    """Sequence numbers go around more than once; offsets do not."""
    wire = Wire()
    wire.handshake()
    chunk = bytes(1 << 29)
    for number in range(10):
        wire.send(OUT, number << 29, chunk)
        wire.send(IN, ack=(number + 1) << 29)
    wire.send(OUT, 11 << 29, b"after")
    wire.send(OUT, 10 << 29, chunk)
    data = [item for item in wire.items if isinstance(item, Data)]
    assert [item.offset for item in data] == [number << 29 for number in range(12)]


def test_a_reset(wire: Wire) -> None:
    """After an RST, what was under way still counts; the flow has the time of the RST, or of what came after."""
    wire.send(OUT, 0, b"abc")
    wire.send(OUT, 3, flags=RST)
    reset_ns = wire.time_ns
    wire.send(IN, 0, b"xyz", ack=3)
    assert wire.story() == [">abc", "<xyz"]
    wire.time_ns += LINGER_NS
    wire.send(IN, 3)  # known as late no longer: a connection without data
    assert wire.story() == [">abc", "<xyz", "closed"]
    assert wire.flows()[0].closed_ns == reset_ns + MILLISECOND
    assert wire.done() == [">abc", "<xyz", "closed"]
    assert wire.reassembler.without_data == 1


def test_a_forged_reset(wire: Wire) -> None:
    """An RST after which the connection goes on ended nothing."""
    wire.send(OUT, 0, b"abc")
    wire.send(OUT, 3, flags=RST)
    wire.time_ns += LINGER_NS - 5 * MILLISECOND
    wire.send(IN, 0, b"still ", ack=3)
    wire.time_ns += LINGER_NS
    wire.send(IN, 6, b"here", ack=3)
    assert wire.done() == [">abc", "<still ", "<here"]


def test_refused() -> None:
    """A connection that was never made is none."""
    wire = Wire()
    wire.send(OUT, ack=None, flags=SYN)
    wire.send(IN, flags=RST)
    assert wire.reassembler.connections == 0
    assert wire.done() == []
    assert wire.reassembler.without_data == 1


def test_port_reuse(wire: Wire) -> None:
    """A new SYN is a new connection, whether the old one ended or not."""
    wire.send(OUT, 0, b"one")
    wire.send(OUT, 5, b"lost before")
    for start in (1000, 2000):
        wire.send(OUT, start, ack=None, flags=SYN)
        wire.send(IN, start + 77, ack=start, flags=SYN)
        wire.send(OUT, start, b"again", ack=start + 77)
    assert wire.done() == [">one", ">2 not-captured", ">lost before", "closed", ">again", "closed", ">again"]
    assert len(wire.flows()) == 3


def test_port_reuse_without_syn(wire: Wire) -> None:
    """Bytes farther away than any window reaches are another connection's; an empty segment there says nothing."""
    wire.send(OUT, 0, b"one")
    wire.send(OUT, 1 << 30)
    wire.send(OUT, 1 << 31, b"two")
    assert wire.done() == [">one", "closed", ">two"]
    assert [flow.joined_midstream for flow in wire.flows()] == [False, True]


def test_fast_open(wire: Wire) -> None:
    """A SYN may carry data (RFC 7413)."""
    wire.send(OUT, 1000, b"early", ack=None, flags=SYN)
    wire.send(IN, 500, ack=1005, flags=SYN)
    wire.send(OUT, 1005, b"late", ack=500)
    assert wire.done() == [">early", ">late"]


def test_one_way_only() -> None:
    """Where only one direction was captured, it is there, and nothing is said of the other."""
    wire = Wire()
    wire.send(IN, 1000, b"HTTP/1.1 200 OK\r\n", ack=5)
    wire.send(IN, 1017, b"\r\nhello", ack=5)
    assert wire.done() == ["<HTTP/1.1 200 OK\r\n", "<\r\nhello"]
    (flow,) = wire.flows()
    assert flow.joined_midstream
    assert flow.role is Role.CLIENT


CLIENT_HELLO = b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03" + bytes(32)


@pytest.mark.parametrize(
    ("direction", "data", "role", "local"),
    [
        (OUT, b"GET / HTTP/1.1\r\n", Role.CLIENT, 50000),
        (IN, b"GET / HTTP/1.1\r\n", Role.CLIENT, 80),
        (IN, b"HTTP/1.1 200 OK\r\n", Role.CLIENT, 50000),
        (OUT, b"HTTP/1.1 200 OK\r\n", Role.CLIENT, 80),
        (IN, CLIENT_HELLO, Role.CLIENT, 80),
        (OUT, b"whatever", Role.UNKNOWN, 50000),
        (IN, b"whatever", Role.UNKNOWN, 50000),
    ],
)
def test_who_is_the_client(direction: Direction, data: bytes, role: Role, local: int) -> None:
    """Without a SYN the first bytes tell, else the ports, and then the role stays unknown."""
    wire = Wire()
    wire.send(direction, 100, data)
    (flow,) = wire.flows()
    assert flow.local is not None
    assert (flow.role, flow.local.port) == (role, local)
    assert isinstance(wire.items[1], Data)
    assert wire.items[1].direction is (direction if local == 50000 else direction.opposite)


def test_only_the_answer_to_the_syn() -> None:
    """A SYN-ACK alone tells who is the server, and where both streams begin."""
    wire = Wire()
    wire.send(IN, 0, flags=SYN)
    wire.send(IN, 3, b"lo", ack=2)
    wire.send(IN, 0, b"hel", ack=2)
    wire.send(OUT, 0, b"hi", ack=5)
    assert wire.done() == [">hi", "<hel", "<lo"]
    assert wire.flows()[0].role is Role.CLIENT


def test_too_many_connections() -> None:
    """The longest silent ones are given up, those that have ended first."""
    reassembler = Reassembler(most_connections=8)
    items = []
    for number in range(100):
        path = CLIENT[:-4] + number.to_bytes(2, "big") + CLIENT[-2:]
        items += reassembler.feed(Captured(path, 5, 0, SYN, b"", 0), number)
        items += reassembler.feed(Captured(path, 6, 0, ACK, b"x", 0), number)
        assert reassembler.connections <= 8
    items += reassembler.finish()
    assert sum(isinstance(item, Data) for item in items) == 100
    assert sum(isinstance(item, FlowClosed) for item in items) == reassembler.given_up == 100 - 8


def test_connected_to_itself() -> None:
    """A socket may be connected to itself: both directions look alike, and nothing is raised."""
    reassembler = Reassembler()
    path = bytes([10, 0, 0, 1]) * 2 + b"\1\2" * 2
    items = []
    for flags, seq, data in (
        (SYN, 5, b""),
        (SYN | ACK, 5, b""),
        (ACK, 6, b"hello"),
        (FIN | ACK, 11, b""),
        (RST, 1, b""),
    ):
        items += reassembler.feed(Captured(path, seq, 6, flags, data, 0), 1)
    items += reassembler.finish()
    assert [item.data for item in items if isinstance(item, Data)] == [b"hello"]
    assert reassembler.connections == 0


def test_linger_is_bounded() -> None:
    """Connections that ended are not kept in any number, even when time stands still."""
    reassembler = Reassembler(most_connections=4)
    for number in range(100):
        path = CLIENT[:-4] + number.to_bytes(2, "big") + CLIENT[-2:]
        reassembler.feed(Captured(path, 5, 0, SYN, b"", 0), 1)
        reassembler.feed(Captured(path, 6, 6, ACK | FIN, b"x", 0), 1)
        reassembler.feed(Captured(reverse(path), 6, 8, ACK | FIN, b"x", 0), 1)
        assert reassembler.connections <= 5
    assert reassembler.given_up == 0


# --- tshark as the judge ---


def conversation(rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """Yield the frames of a few connections: cut, repeated, out of order, nothing lost."""
    for number in range(4):
        ends = bytes([10, 0, 0, 1]), 40000 + number, bytes([10, 0, 0, 2]), 8000
        paths = (TcpPath(*ends[2:], *ends[:2]), TcpPath(*ends))
        isns = rng.randrange(MASK), rng.randrange(MASK)
        yield 1, paths[1].packet(isns[1], 0, SYN)
        yield 0, paths[0].packet(isns[0], (isns[1] + 1) & MASK, SYN | ACK)
        yield 1, paths[1].packet((isns[1] + 1) & MASK, (isns[0] + 1) & MASK, ACK)
        sent = [1, 1]
        for turn in range(6):
            side = 1 - turn % 2
            parts = [rng.randbytes(rng.randint(1, 900)) for _ in range(rng.randint(1, 6))]
            frames = []
            for part in parts:
                ack = (isns[1 - side] + sent[1 - side]) & MASK
                frames.append((side, paths[side].packet((isns[side] + sent[side]) & MASK, ack, PSH | ACK, part)))
                sent[side] += len(part)
            rng.shuffle(frames)
            yield from frames
            yield rng.choice(frames)
            yield (
                1 - side,
                paths[1 - side].packet((isns[1 - side] + sent[1 - side]) & MASK, (isns[side] + sent[side]) & MASK, ACK),
            )


def followed(path: Path, stream: int) -> dict[Direction, bytes]:
    """Return both directions of a stream as tshark follows it: lines in hex, the server's indented."""
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-q", "-z", f"follow,tcp,raw,{stream}"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(path.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line and all(char in "\t0123456789abcdef" for char in line)]
    return {
        OUT: bytes.fromhex("".join(line for line in lines if not line.startswith("\t"))),
        IN: bytes.fromhex("".join(line for line in lines if line.startswith("\t"))),
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_tshark_agrees(tmp_path: Path, seed: int) -> None:
    """Following the streams gives the same bytes."""
    from scapy.utils import PcapWriter

    from tlscap.importing.capture import PacketImport
    from tlscap.importing.packetfile import PacketFile

    path = tmp_path / "in.pcap"
    with PcapWriter(str(path), linktype=1) as writer:
        for _, frame in conversation(random.Random(seed)):
            writer.write(frame)
    with path.open("rb") as file:
        result = Result(list(PacketImport(PacketFile(file)).items()))
    flows = result.flows()
    assert len(flows) == 4
    for number, flow in enumerate(flows):
        ours = {direction: joined(stream) for direction, stream in result.streams(flow).items()}
        assert ours == followed(path, number)
        assert all(ours.values())


def joined(stream: Iterable[bytes | int]) -> bytes:
    """Return a stream without holes."""
    return b"".join(part for part in stream if isinstance(part, bytes))
