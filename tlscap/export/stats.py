"""Exchanges in numbers (``tlscap inspect --stats``): how many, how fast, how much, and by what.

`Statistics` takes exchanges one after the other and keeps none of them: memory is bounded by `KEY_LIMIT` keys of each
grouping, `CONNECTION_LIMIT` connections and the buckets of the histograms, whatever the number of exchanges.

Percentiles come from histograms with logarithmic buckets: they are within 2 % of the exact nearest-rank percentile; the largest
value is exact.  A negative wait (an answer that came before the request's end) counts as 0.

`Statistics.to_dict`; every key is always there, ``null`` says that there was nothing to measure::

    exchanges     int
    complete      int     of which every byte was seen
    errors        {...}   4xx, 5xx, no_answer: int each
    connections   int     that carried them
    first, last   str     RFC 3339: when the first began, when the last byte of any passed
    seconds       float   between the two
    rate          float   exchanges a second, or null
    sent          int     bytes of the requests' bodies, as transferred
    received      int     bytes of the responses' bodies
    missing       int     bytes of bodies that passed but are not stored
    duration      {...}   p50, p90, p99, max: seconds; or null when no exchange has both messages
    wait          {...}   the same: from a request's last byte to its response's first
    by            {...}   host, status, method, type, process, protocol: for each
                              groups  [{...}]  the most frequent first: key (str), count, errors, sent, received, missing,
                                               duration, wait as above; errors: int
                              others  {...}    the same without a key, for what came after `KEY_LIMIT` keys; or null

Keys are what was sent, at most 200 characters of it; ``(unknown)`` when it was not seen, ``(none)`` when there is none.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from datetime import tzinfo
from typing import Any, Final

from tlscap.export.jsonl import rfc3339
from tlscap.export.table import clock_time, human_duration, human_size, shortened, visible
from tlscap.filters import media_type, split_url
from tlscap.http.exchanges import Exchange

KEY_LIMIT: Final = 10_000
"""Keys of each grouping that have numbers of their own: the first that come."""

CONNECTION_LIMIT: Final = 100_000
"""Connections that are remembered, the latest used.  One that pauses while so many others speak is counted again."""

UNKNOWN: Final = "(unknown)"
NONE: Final = "(none)"
OTHERS: Final = "(others)"

_KEY_LENGTH: Final = 200
_GROWTH: Final = 1.04  # of a bucket's upper end: a value is at most 0.04 / 2.04 = 1.96 % from its middle
_LOG_GROWTH: Final = math.log(_GROWTH)
_LONGEST_NS: Final = 1 << 63  # what is longer counts as that: no histogram has more than 1115 buckets
_PERCENTILES: Final = ((50, "p50"), (90, "p90"), (99, "p99"))


class Histogram:
    """Counts numbers in logarithmic buckets, of which it keeps those from the smallest to the largest in use."""

    __slots__ = ("_counts", "_first", "_zeros", "count", "max")

    def __init__(self) -> None:
        self.count = 0
        self.max = 0
        self._zeros = 0
        self._first = 0  # the bucket that _counts begins with
        self._counts = array("Q")

    def add(self, number: int) -> None:
        """Count a number; a negative one as 0."""
        self._add(*_bucketed(number))

    def _add(self, bucket: int, number: int) -> None:
        self.count += 1
        self.max = max(self.max, number)
        if bucket < 0:
            self._zeros += 1
            return
        counts = self._counts
        if not counts:
            self._first = bucket
        index = bucket - self._first
        if index < 0:
            self._counts = counts = array("Q", bytes(-index * counts.itemsize)) + counts
            self._first = bucket
            index = 0
        elif index >= len(counts):
            counts.frombytes(bytes((index + 1 - len(counts)) * counts.itemsize))
        counts[index] += 1

    def percentile(self, percent: int) -> float:
        """Return the smallest of the numbers that ``percent`` % of them don't exceed, within 2 %; 0 without numbers."""
        rank = -(-self.count * percent // 100) - self._zeros
        if rank <= 0:
            return 0.0
        for index, count in enumerate(self._counts):
            rank -= count
            if rank <= 0:
                return min(2 * _GROWTH ** (self._first + index) / (_GROWTH + 1), self.max)
        return self.max


def _bucketed(number: int) -> tuple[int, int]:
    """Return the bucket of a number, which holds what is greater than ``_GROWTH ** (bucket - 1)``, and what to take it for.

    The bucket of 0 is -1.
    """
    if number <= 0:
        return -1, 0
    number = min(number, _LONGEST_NS)
    return math.ceil(math.log(number) / _LOG_GROWTH), number


class _Measured:
    """The numbers of one exchange, which every group that it belongs to counts."""

    __slots__ = ("duration", "error", "missing", "received", "sent", "wait")

    def __init__(self, exchange: Exchange) -> None:
        request, response = exchange.request, exchange.response
        self.error = response is None or response.head.status >= 400
        self.sent = request.body_size if request else 0
        self.received = response.body_size if response else 0
        self.missing = sum(message.gap_bytes for message in (request, response) if message)
        duration_ns, wait_ns = exchange.duration_ns, exchange.wait_ns
        self.duration = None if duration_ns is None else _bucketed(duration_ns)
        self.wait = None if wait_ns is None else _bucketed(wait_ns)


class Group:
    """The numbers of some exchanges."""

    __slots__ = ("count", "duration", "errors", "missing", "received", "sent", "wait")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        """Answered with 4xx or 5xx, or not at all."""
        self.sent = 0
        self.received = 0
        self.missing = 0
        self.duration = Histogram()
        self.wait = Histogram()

    def add(self, exchange: _Measured) -> None:
        """Count an exchange."""
        self.count += 1
        self.errors += exchange.error
        self.sent += exchange.sent
        self.received += exchange.received
        self.missing += exchange.missing
        if exchange.duration:
            self.duration._add(*exchange.duration)
        if exchange.wait:
            self.wait._add(*exchange.wait)

    def to_dict(self) -> dict[str, Any]:
        """Return what the module's docstring describes."""
        return {
            "count": self.count,
            "errors": self.errors,
            "sent": self.sent,
            "received": self.received,
            "missing": self.missing,
            "duration": _latency(self.duration),
            "wait": _latency(self.wait),
        }


def _latency(histogram: Histogram) -> dict[str, float] | None:
    if not histogram.count:
        return None
    return {name: histogram.percentile(percent) / 1e9 for percent, name in _PERCENTILES} | {"max": histogram.max / 1e9}


class _Grouping:
    """Exchanges by one of their properties."""

    def __init__(self, key_of: Callable[[Exchange], str], key_limit: int) -> None:
        self._key_of = key_of
        self._key_limit = key_limit
        self._groups: dict[str, Group] = {}
        self.others: Group | None = None

    def add(self, exchange: Exchange, measured: _Measured) -> None:
        key = self._key_of(exchange)[:_KEY_LENGTH]
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) < self._key_limit:
                group = self._groups[key] = Group()
            else:
                group = self.others = self.others or Group()
        group.add(measured)

    def ranked(self) -> list[tuple[str, Group]]:
        """Return the groups, the largest first."""
        return sorted(self._groups.items(), key=lambda pair: (-pair[1].count, pair[0]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "groups": [{"key": key} | group.to_dict() for key, group in self.ranked()],
            "others": self.others.to_dict() if self.others else None,
        }


def _host(exchange: Exchange) -> str:
    return (split_url(exchange.url)[0] if exchange.url else exchange.flow.sni).lower() or UNKNOWN


def _status(exchange: Exchange) -> str:
    return str(exchange.response.head.status) if exchange.response else NONE


def _method(exchange: Exchange) -> str:
    return exchange.request.head.method.decode("latin-1") if exchange.request else UNKNOWN


def _type(exchange: Exchange) -> str:
    values = exchange.response.values(b"content-type") if exchange.response else []
    return (media_type(values[0]) if values else "") or NONE


def _process(exchange: Exchange) -> str:
    return exchange.flow.process.comm or UNKNOWN


def _protocol(exchange: Exchange) -> str:
    return exchange.protocol


_GROUPINGS: Final[dict[str, Callable[[Exchange], str]]] = {
    "host": _host,
    "status": _status,
    "method": _method,
    "type": _type,
    "process": _process,
    "protocol": _protocol,
}


class Statistics:
    """What many exchanges have in common."""

    def __init__(self, *, key_limit: int = KEY_LIMIT, connection_limit: int = CONNECTION_LIMIT) -> None:
        self.total = Group()
        self.complete = 0
        self.connections = 0
        self.first_ns: int | None = None
        self.last_ns = 0
        self._errors = {"4xx": 0, "5xx": 0, "no_answer": 0}
        self._key_limit = key_limit
        self._connection_limit = connection_limit
        self._flows: dict[int, None] = {}  # the ids of those remembered, the latest used last
        self._by = {name: _Grouping(key_of, key_limit) for name, key_of in _GROUPINGS.items()}

    def add(self, exchange: Exchange) -> None:
        """Count an exchange."""
        measured = _Measured(exchange)
        self.total.add(measured)
        self.complete += exchange.complete
        self._count_connection(exchange.flow.id)
        self._count_error(exchange)
        self.first_ns = exchange.started_ns if self.first_ns is None else min(self.first_ns, exchange.started_ns)
        ends = [message.last_ns for message in (exchange.request, exchange.response) if message]
        self.last_ns = max(self.last_ns, exchange.started_ns, *ends)
        for grouping in self._by.values():
            grouping.add(exchange, measured)

    @property
    def span_ns(self) -> int:
        """From the first byte to the last."""
        return 0 if self.first_ns is None else self.last_ns - self.first_ns

    @property
    def rate(self) -> float | None:
        """Exchanges a second; ``None`` when no time passed."""
        return self.total.count / (self.span_ns / 1e9) if self.span_ns else None

    def to_dict(self) -> dict[str, Any]:
        """Return what the module's docstring describes."""
        total = self.total.to_dict()
        del total["count"]
        return {
            "exchanges": self.total.count,
            "complete": self.complete,
            "connections": self.connections,
            "first": None if self.first_ns is None else rfc3339(self.first_ns),
            "last": None if self.first_ns is None else rfc3339(self.last_ns),
            "seconds": self.span_ns / 1e9,
            "rate": self.rate,
            **total,
            "errors": dict(self._errors),
            "by": {name: grouping.to_dict() for name, grouping in self._by.items()},
        }

    def lines(self, *, width: int | None = None, zone: tzinfo | None = None, top: int = 10) -> Iterator[str]:
        """Yield the statistics as text for people, a line each.

        ``width`` is the terminal's, or ``None`` for no limit.  Times are shown in ``zone``; ``None``: the machine's own.  Each
        grouping has a table with its ``top`` largest groups.
        """
        yield from self._summary(zone)
        if not self.total.count:
            return
        for name, grouping in self._by.items():
            yield ""
            yield from _group_table(name, grouping, width, top, self._key_limit)

    def _count_connection(self, flow_id: int) -> None:
        known = flow_id in self._flows
        self.connections += not known
        if known:
            del self._flows[flow_id]
        elif len(self._flows) >= self._connection_limit:
            del self._flows[next(iter(self._flows))]
        self._flows[flow_id] = None

    def _count_error(self, exchange: Exchange) -> None:
        status = exchange.response.head.status if exchange.response else 0
        if not exchange.response:
            self._errors["no_answer"] += 1
        elif status >= 400:
            self._errors["5xx" if status >= 500 else "4xx"] += 1

    def _summary(self, zone: tzinfo | None) -> Iterator[str]:
        total, errors = self.total, self._errors
        incomplete = total.count - self.complete
        missing = f", {human_size(total.missing)} missing" if total.missing else ""
        yield f"exchanges    {total.count:,}{f' ({incomplete:,} not complete)' if incomplete else ''}"
        if self.first_ns is None:
            return
        yield f"errors       {total.errors:,}" + (
            f": {errors['4xx']:,} 4xx, {errors['5xx']:,} 5xx, {errors['no_answer']:,} without an answer"
            if total.errors
            else ""
        )
        yield f"connections  {self.connections:,}"
        yield f"time         {clock_time(self.first_ns, zone)} to {clock_time(self.last_ns, zone)}, {human_duration(self.span_ns)}"
        if self.rate is not None:
            yield f"rate         {_human_rate(self.rate)}/s"
        yield f"bodies       {human_size(total.sent)} sent, {human_size(total.received)} received{missing}"
        for title, histogram in (("duration", total.duration), ("wait", total.wait)):
            if histogram.count:
                cells = [
                    f"{name} {human_duration(round(histogram.percentile(percent)))}" for percent, name in _PERCENTILES
                ]
                yield f"{title:12} {'  '.join(cells)}  max {human_duration(histogram.max)}"


# --- Tables ---

_KEY_MIN: Final = 16
_COLUMNS: Final = ("COUNT", "ERRORS", "SENT", "RECEIVED", "P50", "P90", "P99", "MAX", "WAIT P50", "WAIT P99")
_DROPPED: Final = ("WAIT P99", "WAIT P50", "P90", "SENT", "P99", "RECEIVED")  # where there is no room, in this order
_GAP: Final = "  "


def _group_table(name: str, grouping: _Grouping, width: int | None, top: int, key_limit: int) -> Iterator[str]:
    ranked = grouping.ranked()
    shown = [(visible(key), group) for key, group in ranked[:top]]
    if grouping.others:
        shown.append((OTHERS, grouping.others))
    rows = [[name.upper(), *_COLUMNS], *([key, *_cells(group)] for key, group in shown)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    columns = _fitting(widths, width)
    for row in rows:
        cells = [shortened(row[0], widths[0]).ljust(widths[0])] + [row[index].rjust(widths[index]) for index in columns]
        yield _GAP.join(cells)
    if len(ranked) > top:
        yield f"... and {len(ranked) - top:,} more"
    if grouping.others:
        yield f"{OTHERS}: all that came after the first {key_limit:,}"


def _fitting(widths: list[int], width: int | None) -> list[int]:
    """Return which columns fit; the first, which always does, is made narrower first, and as far as is necessary."""
    columns = list(range(1, len(widths)))
    if width is None:
        return columns
    least = min(widths[0], _KEY_MIN)
    for dropped in ("", *_DROPPED):
        if dropped:
            columns.remove(_COLUMNS.index(dropped) + 1)
        room = width - sum(len(_GAP) + widths[index] for index in columns)
        if room >= least:
            break
    widths[0] = max(min(widths[0], room), least)
    return columns


def _cells(group: Group) -> list[str]:
    duration, wait = group.duration, group.wait
    return [
        f"{group.count:,}",
        f"{group.errors:,}",
        human_size(group.sent),
        human_size(group.received),
        *(_human_percentile(duration, percent) for percent, _ in _PERCENTILES),
        human_duration(duration.max) if duration.count else "-",
        _human_percentile(wait, 50),
        _human_percentile(wait, 99),
    ]


def _human_percentile(histogram: Histogram, percent: int) -> str:
    return human_duration(round(histogram.percentile(percent))) if histogram.count else "-"


def _human_rate(rate: float) -> str:
    """Return a number in three digits or more."""
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.3g}"
