"""Captured TCP segments to the two byte streams of each connection, in order, with holes where nothing was captured.

Retransmissions are dropped, reordered segments put in their place; where copies of the same bytes differ, those that
came first win, and it is counted.  Sequence numbers may wrap around; a connection may have begun before the capture did.

*When is a hole final?*  What is missing may still come: reordered or sent again.  So later segments wait,

- until 32 packets of the connection after the other side acknowledged the missing bytes: then it has them, and the capture
  does not.  (Not at once: where several network queues are captured, an acknowledgement may overtake its data.)
- or until `PER_DIRECTION` bytes wait in one direction or `IN_ALL` in all of them,
- or until the connection ends, or the file.

*Order between the directions.*  A segment that acknowledges bytes which have not been delivered yet waits for them as well:
an answer never comes before its question.  Times within a flow never go back: bytes that waited for others have
the time at which those came.

*Flows.*  A connection becomes a flow with its first byte; those without are counted.  The client is who sent the SYN, else
who speaks like one; the flow is told from its side, so that outbound is from client to server.  It is closed when
both FINs came, or some time after an RST (bytes that were under way still count, and a forged RST ends nothing), or when
a new connection has its addresses.  Flows open at the end of the file stay open, as those of a recording do.

Memory is bounded by the two limits and by `MOST_CONNECTIONS`; beyond, the longest silent ones are given up.
"""

from __future__ import annotations

import bisect
from collections import deque
from typing import Final, NamedTuple

from tlscap.importing.frames import Captured, endpoints, reverse
from tlscap.importing.hello import is_client_hello
from tlscap.model import (
    Data,
    Direction,
    Flow,
    FlowClosed,
    FlowOpened,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Process,
    Role,
    TupleSource,
)
from tlscap.packets import ACK, FIN, RST, SYN
from tlscap.tlsnull import sniff_sender

PER_DIRECTION: Final = 4 << 20
"""Most bytes of one direction that wait for missing ones."""

IN_ALL: Final = 64 << 20
"""Most bytes of all connections that wait."""

MOST_CONNECTIONS: Final = 1 << 16

LINGER_NS: Final = 30_000_000_000
"""How long after its end a connection's late packets are still known as such."""

_ALIVE_NS = 1_000_000_000  # a connection with new bytes so long after an RST did not end
_PATIENCE = 32  # packets of a connection
_WINDOW = 1 << 30  # the largest there can be (RFC 7323 section 2.3): what is farther away is another connection's
_PENDING_COST = 200  # bytes of memory for each waiting segment, besides its data
_MASK = 0xFFFFFFFF
_SIGN = 1 << 31


class _Pending(NamedTuple):
    """A segment that waits."""

    start: int
    end: int
    """More than ``start + len(data)`` where the capture cut the packet."""
    data: bytes
    time_ns: int
    needs: int
    """How far the other direction must have been delivered: what this segment acknowledges."""


class _Half:
    """One direction of a connection.  Offsets count from its first byte and never wrap around."""

    __slots__ = (
        "acked",
        "closed",
        "connection",
        "excused",
        "fin",
        "first",
        "has_syn",
        "held",
        "next",
        "path",
        "patience",
        "peer",
        "pending",
        "ripe",
        "ripening",
    )

    peer: _Half

    def __init__(self, connection: _Connection, path: bytes) -> None:
        self.connection = connection
        self.path = path
        self.first = -1
        """The sequence number of offset 0, or -1 when not known yet."""
        self.has_syn = False
        self.next = 0
        """Where the next byte to deliver is."""
        self.acked = 0
        """How far the other side has acknowledged."""
        self.excused = 0
        """Up to here nothing waits for this direction any more: a FIN took a sequence number, or was not captured."""
        self.fin: int | None = None
        self.closed = False
        self.pending: list[_Pending] = []
        """In order, without overlaps, all of it behind ``next``."""
        self.held = 0
        self.ripe = 0
        """Missing bytes before this are lost."""
        self.ripening = 0
        """What ``ripe`` becomes when ``patience``, counted in packets, is at its end."""
        self.patience = 0

    def offset(self, seq: int) -> int:
        """Return the offset of a sequence number: the one nearest to ``next``."""
        delta = (seq - self.first - self.next) & _MASK
        return self.next + (delta - (_MASK + 1) if delta & _SIGN else delta)

    def begin(self, seq: int) -> None:
        self.first = seq & _MASK

    @property
    def reached(self) -> int:
        """How far the other direction need not wait."""
        return max(self.next, self.excused)

    @property
    def owed(self) -> int:
        """How far the bytes go that the other side is known to have; a FIN is none."""
        return self.acked if self.fin is None else min(self.acked, self.fin)


class _Connection:
    """Both directions, and the flow as soon as there is a byte."""

    __slots__ = (
        "clock_ns",
        "closed",
        "data_ns",
        "flow",
        "halves",
        "is_gone",
        "last_ns",
        "opened_ns",
        "outbound",
        "reset_ns",
    )

    def __init__(self, path: bytes, time_ns: int) -> None:
        one, other = _Half(self, path), _Half(self, reverse(path))
        one.peer, other.peer = other, one
        self.halves = (one, other)
        self.flow: Flow | None = None
        self.outbound: _Half | None = None
        """The direction that the client sends, when known."""
        self.opened_ns = time_ns
        self.last_ns = time_ns
        self.data_ns = time_ns
        """When new bytes came last."""
        self.clock_ns = 0
        """The time of the latest item."""
        self.reset_ns = 0
        self.closed = False
        self.is_gone = False
        """No longer in the table."""

    def tick(self, time_ns: int) -> int:
        """Return a time that is not before that of the item before."""
        self.clock_ns = max(self.clock_ns, time_ns)
        return self.clock_ns


class Reassembler:
    """Segments in the order of the capture in, items of flows out.  Flows have the number 0: whoever keeps them counts."""

    def __init__(
        self, *, per_direction: int = PER_DIRECTION, in_all: int = IN_ALL, most_connections: int = MOST_CONNECTIONS
    ) -> None:
        self._per_direction = per_direction
        self._in_all = in_all
        self._most_connections = most_connections
        self._process = Process(pid=-1)  # packets don't tell
        self._halves: dict[bytes, _Half] = {}
        self._held = 0
        self._waiting: dict[_Half, None] = {}
        """Directions with pending segments, the one that waits longest first."""
        self._lingering: deque[tuple[int, _Connection]] = deque()
        """Connections that ended, and when they are forgotten."""
        self._items: list[Item] = []
        self.without_data = 0
        """Connections that carried no byte."""
        self.given_up = 0
        """Connections that were forgotten because there were too many."""
        self.contradictions = 0
        """Segments whose bytes differ from those seen before.  Only what still waits can be compared."""

    @property
    def held(self) -> int:
        """The memory that waiting segments take."""
        return self._held

    @property
    def connections(self) -> int:
        """How many are known."""
        return len(self._halves) // 2

    def feed(self, segment: Captured, time_ns: int) -> list[Item]:
        """Take the next packet; return what became clear with it."""
        _, seq, ack, flags, payload, missing = segment
        self._items = []
        if self._lingering and self._lingering[0][0] <= time_ns:
            self._forget(time_ns)
        half = self._find(segment, time_ns)
        if half is None:
            return self._items
        connection, peer = half.connection, half.peer
        connection.last_ns = time_ns
        if flags & RST:
            self._reset(connection, time_ns)
            return self._items
        if flags & SYN:
            seq = (seq + 1) & _MASK
            half.has_syn = True
            if connection.flow is None:
                connection.outbound = peer if flags & ACK else half
        if half.first < 0:
            half.begin(seq)
        needs = self._acknowledge(peer, ack) if flags & ACK else 0
        start = half.offset(seq)
        end = start + len(payload) + missing
        if end > half.next and end > start and not half.closed and (half.fin is None or end <= half.fin):
            connection.data_ns = time_ns
            if start == half.next and not half.pending and not missing and needs <= peer.reached:
                self._data(half, payload, time_ns)
            else:
                self._insert(half, _Pending(start, end, payload, time_ns, needs))
        if flags & FIN and half.fin is None and end >= (half.pending[-1].end if half.pending else half.next):
            half.fin = end
        if half.pending or peer.pending or half.fin is not None or peer.fin is not None or peer.acked > peer.reached:
            self._settle(connection)
            while half.held > self._per_direction:
                self._force(half)
            while self._held > self._in_all:
                self._force(next(iter(self._waiting)))
        return self._items

    def finish(self) -> list[Item]:
        """Take the end of the capture: what is missing now stays so.  Flows that are open stay open."""
        self._items = []
        for connection in list({half.connection: None for half in self._halves.values()}):
            self._flush(connection)
            if connection.reset_ns:
                self._close(connection, connection.reset_ns)
            self._remove(connection)
        return self._items

    # --- Which connection ---

    def _find(self, segment: Captured, time_ns: int) -> _Half | None:
        """Return the direction of the connection that a segment belongs to, a new one if need be."""
        path, seq, _, flags, payload, missing = segment
        half = self._halves.get(path)
        if half is None:
            return None if flags & RST else self._begin(path, time_ns)
        if half.first < 0 or flags & RST:
            return half
        if flags & SYN:
            return half if half.first == (seq + 1) & _MASK else self._replace(half, time_ns)
        start = half.offset(seq)
        if not half.next - _WINDOW < start < half.next + _WINDOW:
            # As far away as no window reaches: the SYN of another connection was not captured.
            return self._replace(half, time_ns) if payload else None
        if half.connection.closed:
            # A late copy, or what follows a FIN where nothing can.
            return self._replace(half, time_ns) if start + len(payload) + missing > half.next + 1 else None
        return half

    def _begin(self, path: bytes, time_ns: int) -> _Half:
        if self.connections >= self._most_connections:
            self._evict()
        connection = _Connection(path, time_ns)
        for half in connection.halves:
            self._halves[half.path] = half
        return connection.halves[0]

    def _replace(self, half: _Half, time_ns: int) -> _Half:
        """End a connection whose addresses another one has now."""
        self._end(half.connection, time_ns)
        return self._begin(half.path, time_ns)

    def _reset(self, connection: _Connection, time_ns: int) -> None:
        if connection.closed or connection.reset_ns:
            return
        if connection.flow is None and not any(half.pending for half in connection.halves):
            self._remove(connection)
            return
        connection.reset_ns = max(time_ns, 1)
        self._linger(connection, time_ns)

    def _linger(self, connection: _Connection, time_ns: int) -> None:
        self._lingering.append((time_ns + LINGER_NS, connection))
        if len(self._lingering) > self._most_connections:
            self._forget(self._lingering[0][0])

    def _forget(self, time_ns: int) -> None:
        """Let go of connections that ended long ago."""
        while self._lingering and self._lingering[0][0] <= time_ns:
            _, connection = self._lingering.popleft()
            if connection.is_gone:
                continue
            if not connection.closed and connection.data_ns > connection.reset_ns + _ALIVE_NS:
                connection.reset_ns = 0
            else:
                self._end(connection, connection.reset_ns)

    def _evict(self) -> None:
        """Give up a quarter of the connections: those that ended, then those that were silent longest."""
        connections = {half.connection: None for half in self._halves.values()}
        order = sorted(connections, key=lambda connection: (not connection.closed, connection.last_ns))
        for connection in order[: max(1, len(order) // 4)]:
            self.given_up += not connection.closed
            self._end(connection, connection.last_ns)

    def _end(self, connection: _Connection, time_ns: int) -> None:
        self._flush(connection)
        self._close(connection, time_ns)
        self._remove(connection)

    def _close(self, connection: _Connection, time_ns: int) -> None:
        if connection.closed:
            return
        connection.closed = True
        if connection.flow is not None:
            time_ns = connection.tick(time_ns)
            connection.flow.closed_ns = time_ns
            self._items.append(FlowClosed(connection.flow, time_ns))

    def _remove(self, connection: _Connection) -> None:
        if connection.is_gone:
            return
        connection.is_gone = True
        self.without_data += connection.flow is None
        for half in connection.halves:
            self._halves.pop(half.path, None)  # the two are one where a socket is connected to itself

    # --- What a segment says ---

    def _acknowledge(self, half: _Half, ack: int) -> int:
        """Take an acknowledgement of what `half` sent; return how far it goes."""
        if half.first < 0:
            half.begin(ack)
            return 0
        acked = half.offset(ack)
        if acked <= half.acked:
            return acked
        if acked - half.next >= _WINDOW:
            return 0
        if not (half.next or half.pending or half.has_syn or half.peer.has_syn or half.fin is not None):
            # The capture began in the middle, and nothing of this side was seen: its stream begins here.
            half.begin(ack)
            return 0
        half.acked = acked
        return acked

    def _insert(self, half: _Half, new: _Pending) -> None:
        """Put a segment among those that wait, without what is known already."""
        start = max(new.start, half.next)
        pending = half.pending
        if pending and start < pending[-1].end:
            index = bisect.bisect_right(pending, start, key=lambda one: one.start) - 1
            index += index < 0 or pending[index].end <= start
            while index < len(pending) and pending[index].start < new.end:
                known = pending[index]
                if start < known.start:
                    self._add(half, index, _part(new, start, known.start))
                    index += 1
                self._compare(known, new)
                start = known.end
                index += 1
            if start < new.end:
                self._add(half, index, _part(new, start, new.end))
        else:
            self._add(half, len(pending), _part(new, start, new.end))

    def _add(self, half: _Half, index: int, part: _Pending) -> None:
        half.pending.insert(index, part)
        self._hold(half, len(part.data) + _PENDING_COST)

    def _compare(self, known: _Pending, new: _Pending) -> None:
        start = max(known.start, new.start)
        end = min(known.start + len(known.data), new.start + len(new.data))
        if start < end and (
            known.data[start - known.start : end - known.start] != new.data[start - new.start : end - new.start]
        ):
            self.contradictions += 1

    def _hold(self, half: _Half, size: int) -> None:
        half.held += size
        self._held += size
        if half.pending:
            self._waiting.setdefault(half)
        else:
            self._waiting.pop(half, None)

    # --- What can be delivered ---

    def _settle(self, connection: _Connection) -> None:
        """Deliver what need not wait any longer."""
        for half in connection.halves:
            if half.acked > half.next:
                _ripen(half)
        moved = True
        while moved:
            moved = False
            for half in connection.halves:
                moved |= self._deliver(half)
            if not moved:
                for half in connection.halves:
                    moved |= self._lose(half, min(half.owed, half.ripe))
            if not moved:
                moved = _untie(*connection.halves)
        if not connection.closed and all(half.closed for half in connection.halves):
            self._close(connection, connection.clock_ns)
            self._linger(connection, connection.clock_ns)

    def _deliver(self, half: _Half) -> bool:
        """Deliver all waiting segments that follow on each other; tell whether there was anything."""
        count = size = 0
        reached = half.peer.reached
        for one in half.pending:
            if one.start > half.next or one.needs > reached:
                break
            if one.data:
                self._data(half, one.data, one.time_ns)
            if one.end > half.next:
                self._gap(half, one.end, GapReason.SNAPLEN, one.time_ns)
            count += 1
            size += len(one.data) + _PENDING_COST
        if count:
            del half.pending[:count]
            self._hold(half, -size)
        if half.fin is not None and half.next >= half.fin and not half.closed:
            half.closed = True
            half.excused = half.next + 1
            connection = half.connection
            if connection.flow is not None:
                self._items.append(
                    HalfClosed(connection.flow, self._direction(half), connection.tick(connection.last_ns))
                )
            return True
        return count > 0

    def _lose(self, half: _Half, end: int) -> bool:
        """Declare missing bytes up to `end`, or the next that are there, lost; tell whether anything changed."""
        if half.pending:
            end = min(end, half.pending[0].start)
        elif end == half.next + 1 and half.fin is None:
            # One more than all bytes: that is a FIN which was not captured.
            changed = half.excused < end
            half.excused = end
            return changed
        if end <= half.next:
            return False
        time_ns = half.pending[0].time_ns if half.pending else half.connection.last_ns
        self._gap(half, end, GapReason.NOT_CAPTURED, time_ns)
        return True

    def _force(self, half: _Half) -> None:
        """Make the first segment that waits in a direction wait no longer."""
        first = half.pending[0]
        if first.start > half.next:
            self._lose(half, first.start)
        elif not self._lose(half.peer, first.needs if half.peer.fin is None else min(first.needs, half.peer.fin)):
            half.peer.excused = max(half.peer.excused, first.needs)
        self._settle(half.connection)

    def _flush(self, connection: _Connection) -> None:
        """Deliver everything: what is missing now stays so."""
        waiting = [half for half in connection.halves if half.pending]
        while waiting:
            self._force(min(waiting, key=lambda half: half.pending[0].time_ns))
            waiting = [half for half in connection.halves if half.pending]
        for half in connection.halves:
            self._lose(half, half.acked if half.fin is None else half.fin)
        self._settle(connection)

    # --- Items ---

    def _data(self, half: _Half, data: bytes, time_ns: int) -> None:
        connection = half.connection
        flow = connection.flow
        if flow is None:
            flow = self._open(connection, half, data, time_ns)
        self._items.append(Data(flow, self._direction(half), half.next, data, connection.tick(time_ns)))
        half.next += len(data)

    def _gap(self, half: _Half, end: int, reason: GapReason, time_ns: int) -> None:
        connection = half.connection
        flow = connection.flow or self._open(connection, half, b"", time_ns)
        time_ns = connection.tick(time_ns)
        self._items.append(Gap(flow, self._direction(half), half.next, end - half.next, reason, time_ns))
        half.next = end

    def _direction(self, half: _Half) -> Direction:
        return Direction.OUTBOUND if half is half.connection.outbound else Direction.INBOUND

    def _open(self, connection: _Connection, half: _Half, data: bytes, time_ns: int) -> Flow:
        """Make a flow of a connection, whose first bytes these are; `half` sent them."""
        role = Role.CLIENT
        if connection.outbound is None:
            sender = Role.CLIENT if is_client_hello(data) else sniff_sender(data)
            if sender is Role.UNKNOWN:
                role = sender
                source, destination = endpoints(half.path)
                sender = Role.CLIENT if source.port >= destination.port else Role.SERVER
            connection.outbound = half if sender is Role.CLIENT else half.peer
        local, remote = endpoints(connection.outbound.path)
        connection.flow = Flow(
            id=0,
            process=self._process,
            opened_ns=connection.opened_ns,
            local=local,
            remote=remote,
            tuple_source=TupleSource.IMPORTED,
            role=role,
            joined_midstream=not any(one.has_syn for one in connection.halves),
        )
        self._items.append(FlowOpened(connection.flow, connection.tick(time_ns)))
        return connection.flow


def _untie(one: _Half, other: _Half) -> bool:
    """Resolve a tie, in which each direction waits for the other; tell whether there was one.

    A segment that acknowledges others proves that they were there before.  If they were captured later all the same, that
    was another copy of them, whose acknowledgement is newer than the bytes.
    """
    if not one.pending or not other.pending:
        return False
    first, second = one.pending[0], other.pending[0]
    if first.start > one.next or second.start > other.next:
        return False
    later, half = max((first, one), (second, other), key=lambda pair: pair[0].time_ns)
    half.peer.excused = max(half.peer.excused, later.needs)
    return True


def _ripen(half: _Half) -> None:
    """Count one more packet for which acknowledged bytes did not come."""
    if half.ripening <= half.next:
        half.ripening, half.patience = half.acked, _PATIENCE
        return
    half.patience -= 1
    if half.patience == 0:
        half.ripe = half.ripening
        half.ripening, half.patience = half.acked, _PATIENCE


def _part(segment: _Pending, start: int, end: int) -> _Pending:
    """Return a part of a segment; bytes that the capture cut stay cut."""
    if start == segment.start and end == segment.end:
        return segment
    data = segment.data[start - segment.start : end - segment.start]
    return _Pending(start, end, data, segment.time_ns, segment.needs)
