"""What people read from top to bottom: conversations, connections, statistics."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click

from tlscap.capture import Capture
from tlscap.cli.inspect import Reading
from tlscap.cli.output import terminal_width, warn_of, with_progress
from tlscap.errors import TlscapError
from tlscap.export.conversation import conversation, find_flow
from tlscap.export.flows import ConnectionTable, FlowSummaries, FlowSummary, summary_to_dict
from tlscap.export.hexdump import hexdump
from tlscap.export.stats import Statistics
from tlscap.export.table import clock_time
from tlscap.filters import Filter
from tlscap.model import Data, Direction, Flow, Gap, Item

# --- One conversation ---


def follow(
    opened: Capture, exchange_id: int | None, flow_id: int | None, *, heads_only: bool, as_hex: bool, color: bool
) -> None:
    """Write all that was said on the connection of an exchange, or on a connection by its number."""
    if exchange_id is not None:
        flow = find_flow(with_progress(opened), exchange_id)
        if flow is None:
            warn_of(opened)
            raise TlscapError(f"no exchange {exchange_id} in this recording")
    else:
        flow = next((item.flow for item in with_progress(opened) if item.flow.id == flow_id), None)
        if flow is None:
            raise TlscapError(f"no connection {flow_id} in this recording", hint="--flows lists them")
    items = with_progress(opened)
    lines = _hex_lines(items, flow) if as_hex else conversation(items, flow.id, heads_only=heads_only, color=color)
    for line in lines:
        click.echo(line, color=True)
    sys.stdout.flush()
    warn_of(opened)


def _hex_lines(items: Iterator[Item], flow: Flow) -> Iterator[str]:
    """Yield every byte of a connection, call by call."""
    for item in items:
        if item.flow.id != flow.id or not isinstance(item, Data | Gap):
            continue
        arrow = "sent" if item.direction is Direction.OUTBOUND else "received"
        length = len(item.data) if isinstance(item, Data) else item.length
        missing = "" if isinstance(item, Data) else f", missing ({item.reason.value})"
        yield f"{clock_time(item.time_ns)}  {arrow} {length} bytes from byte {item.offset}{missing}"
        if isinstance(item, Data):
            yield from hexdump(item.data, item.offset)
        yield ""


# --- Connections ---


def list_flows(opened: Capture, wanted: Filter, *, as_json: bool, color: bool) -> None:
    """Write the connections that a filter wants; what it says of exchanges must hold for one of them."""
    reading = Reading(opened, wanted)
    summaries = FlowSummaries()

    def finished() -> Iterator[FlowSummary]:
        time_ns = 0
        for item in with_progress(opened):
            time_ns = item.time_ns
            for exchange in reading.builder.feed(item):
                summaries.add(exchange, chosen=reading.is_wanted(exchange))
            yield from summaries.feed(item)
        for exchange in reading.builder.finish(time_ns):
            summaries.add(exchange, chosen=reading.is_wanted(exchange))
        yield from summaries.finish()

    def chosen() -> Iterator[FlowSummary]:
        for summary in finished():
            verdict = wanted.flow_matches(summary.flow)
            if verdict or (verdict is None and summary.chosen):
                yield summary

    if as_json:
        for summary in chosen():
            click.echo(json.dumps(summary_to_dict(summary), separators=(",", ":")))
    else:
        table = ConnectionTable(width=terminal_width(), color=color)
        rows = sorted(chosen(), key=lambda summary: summary.flow.id)
        table.fit(rows)
        click.echo(table.header(), color=True)
        for summary in rows:
            click.echo(table.row(summary), color=True)
    reading.close()


# --- Statistics ---


def show_stats(opened: Capture, wanted: Filter, *, as_json: bool) -> None:
    """Write sums and latencies of the exchanges that a filter wants."""
    reading = Reading(opened, wanted)
    statistics = Statistics()
    for exchange in reading.exchanges():
        statistics.add(exchange)
    if as_json:
        click.echo(json.dumps(statistics.to_dict(), separators=(",", ":")))
    else:
        for line in statistics.lines(width=terminal_width()):
            click.echo(line)
    reading.close()
