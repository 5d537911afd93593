"""Events to flows: which bytes belong to which connection, in which order, and what is missing.

The kernel keeps a ledger of every connection and direction, and every sample says its place in it.  So
the table needs no guess: a sample that begins behind what is known leaves a hole of exactly that size.
"""

from __future__ import annotations

import ipaddress

from tlscap import decode
from tlscap.decode import (
    NAME_ALPN,
    AddressEvent,
    CallbackEvent,
    CarryEvent,
    CloseEvent,
    DataEvent,
    EndEvent,
    Event,
    ExitEvent,
    HandshakeEvent,
    MappedEvent,
    MarkEvent,
    NameEvent,
    NoteEvent,
    OpenEvent,
    ProcessEvent,
    UnjoinedEvent,
)
from tlscap.errors import CorruptError
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
    Library,
    Process,
    Role,
    Totals,
    TupleSource,
)

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
TRANSPORTS = {6: "tcp", 17: "udp"}
REASONS = {
    1: GapReason.SNAPLEN,
    2: GapReason.UNREADABLE,
    3: GapReason.NOT_IN_MEMORY,
    4: GapReason.CALL_TOO_LARGE,
}
REWRITTEN_REASONS = {
    253: GapReason.RING_FULL,
    254: GapReason.NOT_CAPTURED,
    255: GapReason.WITHHELD,
}
"""What the kernel never says, but captures that were written from exchanges (`tlscap.rewrite`)."""
BOTH = (Direction.INBOUND, Direction.OUTBOUND)


class _State:
    """A connection object, the flow it becomes when it is used, and how far each direction is known.

    Programs make connection objects that they never connect; those are no flows, and get no number.
    """

    __slots__ = ("flow", "known", "used")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.known = [0, 0]
        self.used = False


class FlowTable:
    """Turns events, in the order of the ring, into items.  Holds the open connections only."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.start: dict[str, object] = {}
        """Body of the file's first record: who recorded, where and how."""
        self.end: dict[str, object] | None = None
        """Body of the last record, with the kernel's counters; None while or unless it came."""
        self.last_ns = 0
        """Wall time of the latest event."""
        self._wall_offset = 0
        self._processes: dict[int, Process] = {}
        self._details: dict[int, dict[str, object]] = {}
        self._states: dict[int, _State] = {}
        self._count = 0

    @property
    def open_flows(self) -> int:
        return len(self._states)

    @property
    def flow_count(self) -> int:
        """Flows seen so far, open or closed."""
        return self._count

    def feed(self, event: Event) -> list[Item]:
        """What one event says of flows.  Raises `CorruptError` when it contradicts the ledger."""
        if isinstance(event, NoteEvent):
            self._note(event)
            return []
        time_ns = event.time_ns + self._wall_offset
        self.last_ns = max(self.last_ns, time_ns)
        match event:
            case DataEvent():
                return self._data(event, time_ns)
            case OpenEvent():
                return self._open(event, time_ns)
            case ProcessEvent():
                self._process(event)
                return []
            case CarryEvent():
                return self._carry(event, time_ns)
            case ExitEvent():
                return self._exit(event, time_ns)
            case MappedEvent() | MarkEvent() | UnjoinedEvent() | CallbackEvent():
                return []
        state = self._states.get(event.conn)
        if state is None:
            if isinstance(event, CloseEvent) and (event.bytes_in or event.bytes_out):
                # Every sample of this connection was lost; the ledger still says how much went through it.
                state = self._new(event.conn, event.pid, 0, time_ns)
                state.flow.joined_midstream = True
                return self._close(event, state, time_ns)
            return []
        flow = state.flow
        match event:
            case AddressEvent():
                _set_address(flow, event)
                return [*self._use(state, time_ns), FlowUpdated(flow, time_ns)]
            case HandshakeEvent():
                flow.handshake_start_ns = event.start_ns + self._wall_offset
                flow.handshake_end_ns = time_ns
                flow.joined_midstream = False
                return [*self._use(state, time_ns), FlowUpdated(flow, time_ns)]
            case NameEvent():
                if event.kind == NAME_ALPN:
                    flow.alpn = event.text
                else:
                    flow.sni = event.text
            case EndEvent():
                direction = Direction.OUTBOUND if event.outbound else Direction.INBOUND
                return [*self._use(state, time_ns), HalfClosed(flow, direction, time_ns)]
            case CloseEvent():
                return self._close(event, state, time_ns)
        return [FlowUpdated(flow, time_ns)] if state.used else []

    def _use(self, state: _State, time_ns: int) -> list[Item]:
        """The first time that something happens on a connection makes it a flow."""
        if state.used:
            return []
        state.used = True
        self._count += 1
        state.flow.id = self._count
        return [FlowOpened(state.flow, time_ns)]

    def _carry(self, event: CarryEvent, time_ns: int) -> list[Item]:
        """A connection whose beginning is in an earlier file: its streams begin in their middle here."""
        state = self._states.get(event.conn) or self._new(event.conn, event.pid, 0, time_ns)
        carried = [event.bytes_in, event.bytes_out]
        if any(state.known) and state.known != carried:
            raise CorruptError(f"flow {state.flow.id}: carried over at {carried}, but {state.known} bytes are known")
        state.flow.joined_midstream = True
        state.known = carried
        return self._use(state, time_ns)

    def _note(self, event: NoteEvent) -> None:
        body = dict(event.body)
        match event.type:
            case decode.RECORD_START:
                self.start = self.start or body
                self._set_clock(body)
            case decode.RECORD_CLOCK:
                self._set_clock(body)
            case decode.RECORD_PROCESS:
                self._details[event.pid] = body
                if (known := self._processes.get(event.pid)) and known.start_ns == body.get("start_ns"):
                    _add_details(known, body)
            case decode.RECORD_END:
                self.end = body

    def _set_clock(self, body: dict[str, object]) -> None:
        wall, monotonic = body.get("wall_ns"), body.get("monotonic_ns")
        if not isinstance(wall, int) or not isinstance(monotonic, int):
            raise CorruptError("a clock record has no times")
        self._wall_offset = wall - monotonic
        self.last_ns = max(self.last_ns, wall)

    def _process(self, event: ProcessEvent) -> None:
        process = Process(
            pid=_known(event.pid),
            start_ns=event.start_ns,
            comm=event.comm,
            ppid=_known(event.ppid),
            uid=_known(event.uid),
            cmdline=event.cmdline,
            exe=event.exe,
        )
        details = self._details.pop(event.pid, None)
        if details and details.get("start_ns") == event.start_ns:
            _add_details(process, details)
        self._processes[event.pid] = process

    def _process_of(self, pid: int, start_ns: int) -> Process:
        known = self._processes.get(pid)
        if known is None or (start_ns and known.start_ns not in (0, start_ns)):
            known = self._processes[pid] = Process(pid=_known(pid), start_ns=start_ns)
        return known

    def _new(self, conn: int, pid: int, start_ns: int, time_ns: int) -> _State:
        state = _State(Flow(id=0, process=self._process_of(pid, start_ns), opened_ns=time_ns))
        self._states[conn] = state
        return state

    def _open(self, event: OpenEvent, time_ns: int) -> list[Item]:
        state = self._states.get(event.conn)
        if state is None:
            state = self._new(event.conn, event.pid, event.start_ns, time_ns)
            state.flow.joined_midstream = event.midstream
        flow = state.flow
        flow.ssl = event.ssl
        flow.plaintext |= event.plaintext
        if event.role in (Role.CLIENT, Role.SERVER):
            flow.role = Role(event.role)
        return [FlowUpdated(flow, time_ns)] if state.used else []

    def _data(self, event: DataEvent, time_ns: int) -> list[Item]:
        items: list[Item] = []
        state = self._states.get(event.conn)
        if state is None:
            state = self._new(event.conn, event.pid, 0, time_ns)
            state.flow.joined_midstream = True
        items += self._use(state, time_ns)
        flow, direction = state.flow, BOTH[event.direction]
        if direction is Direction.OUTBOUND:
            # What is written is on its way before the call returns: the other end may have answered by then.
            time_ns = event.entry_ns + self._wall_offset
        known = state.known[direction]
        if event.offset < known:
            raise CorruptError(f"flow {flow.id}: a sample at {event.offset}, but {known} bytes are known already")
        if event.offset > known:
            items.append(self._gap(flow, direction, known, event.offset - known, GapReason.RING_FULL, time_ns))
        if event.data:
            items.append(Data(flow, direction, event.offset, event.data, time_ns))
            self.totals.stored[direction] += len(event.data)
            self.totals.counted[direction] += len(event.data)
        missing = event.length - len(event.data)
        if missing:
            reason = REASONS.get(event.reason) or REWRITTEN_REASONS.get(event.reason, GapReason.UNKNOWN)
            items.append(self._gap(flow, direction, event.offset + len(event.data), missing, reason, time_ns))
        state.known[direction] = event.offset + event.length
        if event.no_state:
            # The kernel's table was full: nothing more will come under this id.
            del self._states[event.conn]
            items.append(FlowClosed(flow, time_ns))
        return items

    def _gap(self, flow: Flow, direction: Direction, offset: int, length: int, reason: GapReason, time_ns: int) -> Gap:
        self.totals.gaps += 1
        self.totals.counted[direction] += length
        return Gap(flow, direction, offset, length, reason, time_ns)

    def _close(self, event: CloseEvent, state: _State, time_ns: int) -> list[Item]:
        items: list[Item] = []
        for direction, final in zip(BOTH, (event.bytes_in, event.bytes_out), strict=True):
            known = state.known[direction]
            if final < known:
                raise CorruptError(f"flow {state.flow.id}: the ledger ends at {final}, but {known} bytes are known")
            if final > known:
                items += self._use(state, time_ns)
                items.append(self._gap(state.flow, direction, known, final - known, GapReason.RING_FULL, time_ns))
                state.known[direction] = final
        if event.final:
            state.flow.closed_ns = state.flow.closed_ns or time_ns
            if state.used:
                items.append(FlowClosed(state.flow, state.flow.closed_ns))
            del self._states[event.conn]
        return items

    def _exit(self, event: ExitEvent, time_ns: int) -> list[Item]:
        """A process is gone.  The last ledgers of what it had open follow; this was when they closed."""
        process = self._processes.pop(event.pid, None)
        for state in self._states.values():
            if state.flow.process is process:
                state.flow.closed_ns = time_ns
        return []


def _known(number: int) -> int:
    """Return the number of a process or a user, -1 for the one that says that it is not known."""
    return -1 if number == decode.NO_NUMBER else number


def _add_details(process: Process, body: dict[str, object]) -> None:
    process.exe = str(body.get("exe") or process.exe)
    libraries = body.get("libraries")
    if isinstance(libraries, list):
        process.libraries = tuple(
            Library(str(one.get("path", "")), str(one.get("build_id", "")), str(one.get("flavor", "")))
            for one in libraries
            if isinstance(one, dict)
        )


def _set_address(flow: Flow, event: AddressEvent) -> None:
    flow.transport = "unix" if event.family == AF_UNIX else TRANSPORTS.get(event.protocol, str(event.protocol))
    if event.family in (AF_INET, AF_INET6):
        size = 4 if event.family == AF_INET else 16
        flow.local = Endpoint(_address(event.local[:size]), event.local_port)
        if event.imported and not event.local_port:
            flow.local = None
        # A socket that is not connected says no peer: QUIC may serve several.
        flow.remote = Endpoint(_address(event.remote[:size]), event.remote_port) if event.remote_port else None
        flow.tuple_source = TupleSource.CIPHERTEXT if event.by_ciphertext else TupleSource.SYSCALL
        if event.imported:
            flow.tuple_source = TupleSource.IMPORTED
    if event.srtt_us:
        flow.srtt_us = event.srtt_us


def _address(raw: bytes) -> str:
    """Textual form; an IPv4 address in IPv6 clothing (RFC 4291, 2.5.5.2) is shown as what it is."""
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
