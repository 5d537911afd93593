"""Connections in a list (``tlscap inspect --flows``): whose, from where to where, how much, and what is missing.

`FlowSummaries` takes the items of a capture and hands a connection's `FlowSummary` out when it closes, so that it holds those
that are open and no others.

`summary_to_dict`; every key is always there, ``null`` says that it is not known.  Keys may be added, never renamed::

    id, local, remote, client, server, role, sni, alpn, tuple_source, transport
                      as in the ``flow`` of an exchange (`tlscap.export.jsonl`)
    process           {...}   as in an exchange
    libraries         [{...}] path, build_id, flavor: files with TLS functions that the process has mapped
    opened            str     RFC 3339: when tlscap first saw the connection
    closed            str     when the library freed it; null when it was still open at the end of the recording
    duration          float   seconds from opened to closed, or to the last that happened on it
    handshake         float   seconds that the TLS handshake took, or null
    srtt              float   seconds: the kernel's smoothed TCP round-trip time, or null
    joined_midstream  bool    no handshake was seen: bytes may have passed before tlscap looked
    bytes             {...}   in and out, as the process sees it: what passed, stored or not
    ended             {...}   in and out: whether close_notify or an end of file said that nothing would follow
    gaps              {...}   count (int); bytes {in, out}; reasons {reason: bytes}
    exchanges         int     HTTP exchanges
    protocol          str     what they were made in, else what ALPN said; or null
    upgraded_to       str     what the connection spoke afterwards ("websocket", "tunnel"), or null
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Final, TypeVar

from tlscap.export.jsonl import flow_to_dict, process_to_dict, rfc3339
from tlscap.export.table import clock_time, human_duration, human_size, shortened, visible
from tlscap.http.exchanges import Exchange
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
    Role,
    TupleSource,
)

_Value = TypeVar("_Value", int, bool)


@dataclass(slots=True, eq=False)
class FlowSummary:
    """One connection, in numbers."""

    flow: Flow
    last_ns: int
    """When something last happened on it."""
    closed_ns: int = 0
    """0: it was still open at the end of the recording."""
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes that passed, stored or not, by `Direction`."""
    ended: list[bool] = field(default_factory=lambda: [False, False])
    """Whether an orderly end was seen, by `Direction`."""
    gap_count: int = 0
    gap_lengths: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes that passed but are not stored, by `Direction`."""
    gap_reasons: dict[GapReason, int] = field(default_factory=dict)
    """The same bytes by reason."""
    exchanges: int = 0
    chosen: int = 0
    """Of the exchanges, those that were asked for."""
    protocol: str = ""
    """What the exchanges were made in, else, once it is over, what ALPN said."""
    upgraded_to: str = ""

    @property
    def duration_ns(self) -> int:
        """From the first that was seen of it to its end, or to the last that happened."""
        return max((self.closed_ns or self.last_ns) - self.flow.opened_ns, 0)

    @property
    def handshake_ns(self) -> int | None:
        """How long the TLS handshake took, if it was seen."""
        start, end = self.flow.handshake_start_ns, self.flow.handshake_end_ns
        return end - start if start and end else None


class FlowSummaries:
    """Makes summaries from the items of one capture, and the exchanges that were made of them.

    What `ExchangeBuilder.feed` makes of an item is given to `add` before the item is given to `feed`: the item may close
    the connection.
    """

    def __init__(self) -> None:
        self._open: dict[Flow, FlowSummary] = {}

    def add(self, exchange: Exchange, *, chosen: bool = True) -> None:
        """Count an exchange of an open connection; ``chosen``: it is one of those asked for."""
        summary = self._summary(exchange.flow, exchange.started_ns)
        summary.exchanges += 1
        summary.chosen += chosen
        summary.protocol = exchange.protocol
        summary.upgraded_to = exchange.upgraded_to or summary.upgraded_to

    def feed(self, item: Item) -> list[FlowSummary]:
        """Take the next item; return the summary of the connection that it closed, if any."""
        summary = self._summary(item.flow, item.time_ns)
        summary.last_ns = max(summary.last_ns, item.time_ns)
        match item:
            case Data():
                summary.lengths[item.direction] += len(item.data)
            case Gap():
                summary.lengths[item.direction] += item.length
                summary.gap_count += 1
                summary.gap_lengths[item.direction] += item.length
                summary.gap_reasons[item.reason] = summary.gap_reasons.get(item.reason, 0) + item.length
            case HalfClosed():
                summary.ended[item.direction] = True
            case FlowClosed():
                summary.closed_ns = item.time_ns
                return [self._finished(self._open.pop(item.flow))]
            case FlowOpened() | FlowUpdated():
                pass
        return []

    def finish(self) -> list[FlowSummary]:
        """Take the end of the capture; return the connections that are still open, in the order of their ids."""
        summaries = [self._finished(summary) for summary in self._open.values()]
        self._open.clear()
        return sorted(summaries, key=lambda summary: summary.flow.id)

    def _summary(self, flow: Flow, time_ns: int) -> FlowSummary:
        summary = self._open.get(flow)
        if summary is None:
            summary = self._open[flow] = FlowSummary(flow, time_ns)
        return summary

    def _finished(self, summary: FlowSummary) -> FlowSummary:
        summary.protocol = summary.protocol or summary.flow.alpn
        return summary


def summary_to_dict(summary: FlowSummary) -> dict[str, Any]:
    """Return what this module's docstring describes."""
    flow = summary.flow
    handshake_ns = summary.handshake_ns
    return {
        **flow_to_dict(flow),
        "process": process_to_dict(flow.process),
        "libraries": [
            {"path": library.path, "build_id": library.build_id, "flavor": library.flavor}
            for library in flow.process.libraries
        ],
        "opened": rfc3339(flow.opened_ns),
        "closed": rfc3339(summary.closed_ns) if summary.closed_ns else None,
        "duration": summary.duration_ns / 1e9,
        "handshake": None if handshake_ns is None else handshake_ns / 1e9,
        "srtt": flow.srtt_us / 1e6 if flow.srtt_us >= 0 else None,
        "joined_midstream": flow.joined_midstream,
        "bytes": _by_direction(summary.lengths),
        "ended": _by_direction(summary.ended),
        "gaps": {
            "count": summary.gap_count,
            "bytes": _by_direction(summary.gap_lengths),
            "reasons": {reason.value: length for reason, length in summary.gap_reasons.items()},
        },
        "exchanges": summary.exchanges,
        "protocol": summary.protocol or None,
        "upgraded_to": summary.upgraded_to or None,
    }


def _by_direction(values: list[_Value]) -> dict[str, _Value]:
    return {"in": values[Direction.INBOUND], "out": values[Direction.OUTBOUND]}


# --- The table ---


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int
    """To begin with: fits what most connections have."""
    right: bool = False


_COLUMNS: Final = (
    _Column("#", 4, right=True),
    _Column("OPENED", 12),
    _Column("PROCESS", 16),
    _Column("LOCAL", 21),
    _Column("REMOTE", 24),
    _Column("FOUND", 11),
    _Column("SNI", 24),
    _Column("PROTOCOL", 8),
    _Column("LIBRARY", 12),
    _Column("EXCH", 4, right=True),
    _Column("OUT", 7, right=True),
    _Column("IN", 7, right=True),
    _Column("LASTED", 8, right=True),
    _Column("HANDSHAKE", 9, right=True),
    _Column("RTT", 7, right=True),
    _Column("NOTES", 24),
)
_TITLES: Final = [column.title for column in _COLUMNS]
_NOTES: Final = _TITLES.index("NOTES")
_NARROWED: Final = {"NOTES": 15, "SNI": 16, "PROCESS": 12}  # in this order, and no further than that
_DROPPED: Final = ("LIBRARY", "LOCAL", "RTT", "FOUND", "HANDSHAKE", "OPENED", "PROTOCOL", "SNI")
_GAP: Final = "  "

_ARROWS: Final = {Role.CLIENT: "->", Role.SERVER: "<-", Role.UNKNOWN: "--"}
"""Which way the connection was opened, from the local to the remote end."""

_RED: Final = "\x1b[31m"
_RESET: Final = "\x1b[0m"


class ConnectionTable:
    """Formats connections as rows, as `tlscap.export.table.Table` does exchanges, and under the same options.

    A ``?`` behind an address says that it was not found: it is a placeholder, or nothing is known.  OUT and IN are bytes as the
    process sees them.  Where there is no room, notes and names are shortened, then columns go.
    """

    def __init__(self, *, width: int | None = None, color: bool = False, zone: tzinfo | None = None) -> None:
        self._width = width
        self._color = color
        self._zone = zone
        self._widths = [column.width for column in _COLUMNS]
        self._limit()

    def fit(self, summaries: Iterable[FlowSummary]) -> None:
        """Make the columns as wide as these connections and the titles need, and no wider."""
        rows = [_TITLES, *(self._cells(summary) for summary in summaries)]
        self._widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        self._limit()

    def header(self) -> str:
        """Return the line of titles."""
        return self._line(list(_TITLES))

    def row(self, summary: FlowSummary) -> str:
        """Return one connection as a line, without a newline."""
        return self._line(self._cells(summary), marked=bool(summary.gap_count))

    def _limit(self) -> None:
        self._shown = list(range(len(_COLUMNS)))
        if self._width is None:
            return
        natural = list(self._widths)
        for dropped in ("", *_DROPPED):
            if dropped:
                self._shown.remove(_TITLES.index(dropped))
            self._widths = list(natural)
            excess = sum(natural[column] for column in self._shown) + len(_GAP) * (len(self._shown) - 1) - self._width
            for title, least in _NARROWED.items():
                column = _TITLES.index(title)
                spare = min(max(excess, 0), max(natural[column] - least, 0)) if column in self._shown else 0
                self._widths[column] -= spare
                excess -= spare
            if excess <= 0:
                return

    def _cells(self, summary: FlowSummary) -> list[str]:
        flow = summary.flow
        handshake_ns = summary.handshake_ns
        libraries = dict.fromkeys(library.path.rpartition("/")[2] for library in flow.process.libraries)
        return [
            str(flow.id),
            clock_time(flow.opened_ns, self._zone),
            visible(flow.process.label),
            _address(flow, flow.local),
            f"{_ARROWS[flow.role]} {_address(flow, flow.remote)}",
            flow.tuple_source.value,
            visible(flow.sni) or "-",
            visible(summary.protocol or flow.alpn) or "-",
            visible(", ".join(libraries)) or "-",
            str(summary.exchanges),
            human_size(summary.lengths[Direction.OUTBOUND]),
            human_size(summary.lengths[Direction.INBOUND]),
            human_duration(summary.duration_ns),
            "-" if handshake_ns is None else human_duration(handshake_ns),
            human_duration(flow.srtt_us * 1000) if flow.srtt_us >= 0 else "-",
            _notes(summary),
        ]

    def _line(self, cells: list[str], *, marked: bool = False) -> str:
        if self._width is not None:
            for title in _NARROWED:
                column = _TITLES.index(title)
                shorten = _beginning if title == "NOTES" else shortened
                cells[column] = shorten(cells[column], self._widths[column])
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, width, cell in zip(_COLUMNS, self._widths, cells, strict=True)
        ]
        padded[_NOTES] = cells[_NOTES]
        if self._color and marked:
            padded[_NOTES] = f"{_RED}{padded[_NOTES]}{_RESET}"
        return _GAP.join(padded[column] for column in self._shown).rstrip()


def _beginning(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _address(flow: Flow, endpoint: Endpoint | None) -> str:
    found = endpoint is not None and flow.tuple_source is not TupleSource.PLACEHOLDER
    return visible(str(endpoint) if endpoint else "") + "?" * (not found)


def _notes(summary: FlowSummary) -> str:
    """Return what is special about a connection; what is missing comes first."""
    notes = []
    if summary.gap_count:
        reasons = ", ".join(reason.value for reason in summary.gap_reasons)
        gaps = "1 gap" if summary.gap_count == 1 else f"{summary.gap_count} gaps"
        notes.append(f"! {human_size(sum(summary.gap_lengths))} missing in {gaps} ({reasons})")
    if summary.flow.joined_midstream:
        notes.append("joined mid-stream")
    if summary.upgraded_to:
        notes.append(f"then {visible(summary.upgraded_to)}")
    if not summary.closed_ns:
        notes.append("still open")
    return "; ".join(notes)
