"""Exchanges as a table for people: one aligned line each, without tabs.

`Table` knows the width of its columns from the start, so rows can be printed while a capture is still being read;
`Table.fit` makes them as wide as a first batch of exchanges needs.  Columns that come too narrow shift a line rather
than hide something; only the URL is shortened, in the middle, and only when the table has a width.

What comes from the network or from a process is never printed as it is: `visible` turns control characters, escape
sequences and bidirectional overrides into text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final

from tlscap.http.events import Side
from tlscap.http.exchanges import Exchange
from tlscap.http.grpc import grpc_status

_URL_GOOD: Final = 32  # the URL is what people look for: other columns give way before it gets shorter than this
_TYPE_MIN: Final = 10
_PROCESS_MIN: Final = 12
_URL_MIN: Final = 20  # a narrower URL says nothing: rather let the line wrap

# C0, DEL, C1; what moves or hides text (zero width, bidirectional, line separators); what can't be encoded.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

_RESET: Final = "\x1b[0m"
_COLOR_BY_CLASS: Final = {1: "\x1b[36m", 2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31m"}
_COLOR_OF_PROBLEM: Final = "\x1b[31m"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int
    """To begin with: fits what most exchanges have."""
    right: bool = False


_COLUMNS: Final = (
    _Column("#", 4, right=True),
    _Column("TIME", 12),
    _Column("PROCESS", 16),
    _Column("CONN", 4, right=True),
    _Column("PROTO", 5),
    _Column("METHOD", 6),
    _Column("URL", 40),
    _Column("STATUS", 6, right=True),
    _Column("TYPE", 16),
    _Column("SENT", 7, right=True),
    _Column("RECEIVED", 8, right=True),
    _Column("TOOK", 8, right=True),
    _Column("", 1),  # the mark of what is not complete
)
_TITLES: Final = [column.title for column in _COLUMNS]
_PROCESS: Final = _TITLES.index("PROCESS")
_CONNECTION: Final = _TITLES.index("CONN")
_PROTOCOL: Final = _TITLES.index("PROTO")
_URL: Final = _TITLES.index("URL")
_STATUS: Final = _TITLES.index("STATUS")
_TYPE: Final = _TITLES.index("TYPE")
_SENT: Final = _TITLES.index("SENT")
_MARK: Final = len(_COLUMNS) - 1
_PROTOCOLS: Final = {"http/1.1": "h1", "http/1.0": "h1.0", "http/0.9": "h0.9"}
"""Protocols with a name too long for their column."""
_GAP: Final = "  "


class Table:
    """Formats exchanges as rows.

    ``width`` is the terminal's, or ``None`` for no limit.  ``color`` adds escape sequences.  Times are shown in ``zone``; ``None``:
    the machine's own.
    """

    def __init__(self, *, width: int | None = None, color: bool = False, zone: tzinfo | None = None) -> None:
        self._width = width
        self._color = color
        self._zone = zone
        self._widths = [column.width for column in _COLUMNS]
        self._limit()

    def fit(self, exchanges: Iterable[Exchange]) -> None:
        """Make the columns as wide as these exchanges and the titles need, and no wider."""
        rows = [[column.title for column in _COLUMNS], *(self._cells(exchange) for exchange in exchanges)]
        self._widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        self._limit()

    def header(self) -> str:
        """Return the line of titles."""
        return self._line([column.title for column in _COLUMNS])

    def row(self, exchange: Exchange) -> str:
        """Return one exchange as a line, without a newline."""
        return self._line(self._cells(exchange), status=exchange.response.head.status if exchange.response else 0)

    def _limit(self) -> None:
        """Fit the width: the URL gives first, then what the type and the process can spare, then whole columns go."""
        self._shown = list(range(len(_COLUMNS)))
        if self._width is None:
            return
        natural = self._widths
        for dropped in (None, _CONNECTION, _SENT, _PROTOCOL, _TYPE, _PROCESS):
            if dropped is not None:
                self._shown.remove(dropped)
            self._widths = list(natural)
            least = _URL_MIN if dropped == _PROCESS else _URL_GOOD
            excess = sum(natural[column] for column in self._shown) + len(_GAP) * (len(self._shown) - 1) - self._width
            for column, minimum in ((_URL, least), (_TYPE, _TYPE_MIN), (_PROCESS, _PROCESS_MIN)):
                if column in self._shown:
                    spare = min(max(excess, 0), max(natural[column] - minimum, 0))
                    self._widths[column] -= spare
                    excess -= spare
            if excess <= 0:
                return

    def _cells(self, exchange: Exchange) -> list[str]:
        request, response = exchange.request, exchange.response
        tunnel = exchange.tunnel
        duration_ns = exchange.duration_ns
        return [
            str(exchange.id),
            clock_time(exchange.started_ns, self._zone),
            visible(exchange.flow.process.label),
            str(exchange.flow.id),
            _PROTOCOLS.get(exchange.protocol, visible(exchange.protocol)),
            visible(request.head.method.decode("latin-1")) if request else "-",
            visible(exchange.url) if request else "-",
            str(response.head.status or "-") if response else "-",
            visible(_kind(exchange)) or "-",
            human_size(request.body_size + tunnel.get(Side.REQUEST, 0)) if request else "-",
            human_size(response.body_size + tunnel.get(Side.RESPONSE, 0)) if response else "-",
            "-" if duration_ns is None else human_duration(duration_ns),
            "" if exchange.complete else "!",
        ]

    def _line(self, cells: list[str], status: int = 0) -> str:
        if self._width is not None:
            for column in (_URL, _TYPE, _PROCESS):
                cells[column] = shortened(cells[column], self._widths[column])
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, width, cell in zip(_COLUMNS, self._widths, cells, strict=True)
        ]
        padded[_MARK] = cells[_MARK]
        if self._color:
            padded[_STATUS] = _colored(padded[_STATUS], _COLOR_BY_CLASS.get(status // 100, ""))
            padded[_MARK] = _colored(padded[_MARK], _COLOR_OF_PROBLEM)
        return _GAP.join(padded[column] for column in self._shown).rstrip()


def _kind(exchange: Exchange) -> str:
    """Say what an answer is: its content type; what the connection became; how an RPC ended."""
    response = exchange.response
    if response is None:
        return ""
    if exchange.tunnel:
        count = sum(exchange.message_counts.values())
        return (
            f"{exchange.upgraded_to}, {count} message{'' if count == 1 else 's'}"
            if exchange.message_counts
            else exchange.upgraded_to
        )
    content_type = (response.values(b"content-type") or [b""])[0].partition(b";")[0].strip()
    if content_type.startswith(b"application/grpc") and (status := grpc_status(response.headers, response.trailers)):
        return f"grpc {status.name}"
    return content_type.decode("latin-1")


def visible(text: str) -> str:
    r"""Return ``text`` with everything that could command a terminal, or deceive its reader, as ``\x1b`` or ``\u202e``."""
    return _UNSAFE.sub(lambda match: _escape(ord(match[0])), text)


def shortened(text: str, width: int) -> str:
    """Return ``text`` with its middle replaced by ``…`` if it is longer than ``width``; both ends of a URL tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def clock_time(time_ns: int, zone: tzinfo | None = None) -> str:
    """Return ``HH:MM:SS.mmm`` in ``zone``, cut and not rounded: a minute has no second 60."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone(zone):%H:%M:%S}.{nanoseconds // 1_000_000:03d}"


def human_size(length: int) -> str:
    """Return a number of bytes in three or four digits: ``0``, ``999``, ``1.2K``, ``34M``."""
    if length < 1000:
        return str(length)
    size = float(length)
    for unit in "KMGTPE":
        size /= 1024
        if size < 9.95:
            return f"{size:.1f}{unit}"
        if size < 999.5:
            break
    return f"{size:.0f}{unit}"


def human_duration(duration_ns: int) -> str:
    """Return a duration in the unit that suits it: ``250us``, ``12.3ms``, ``4.56s``, ``12m03s``.  May be negative."""
    length = abs(duration_ns)
    sign = "-" if duration_ns < 0 else ""
    if length < 1_000_000:
        return f"{sign}{length // 1000}us"
    if length < 1_000_000_000:
        return f"{sign}{length / 1e6:.1f}ms"
    if length < 60_000_000_000:
        return f"{sign}{length / 1e9:.2f}s"
    minutes, seconds = divmod(length // 1_000_000_000, 60)
    return f"{sign}{minutes}m{seconds:02d}s"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _colored(text: str, color: str) -> str:
    return f"{color}{text}{_RESET}" if color and text.strip() else text
