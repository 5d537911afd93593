"""``tlscap inspect``: the HTTP exchanges in a recording, as a table, as JSON, or one body.

Rows go out as exchanges complete, so a pipe sees them at once.  On a terminal the first ones wait until the columns'
widths are known.  Standard output holds the answer and nothing else; the closing line and warnings go to standard error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Final

import click

from tlscap import capture
from tlscap.errors import TlscapError, UsageError
from tlscap.export.jsonl import exchange_to_line
from tlscap.export.table import Table, human_size, visible
from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Item

INCOMPLETE: Final = 6
"""Exit status: what was asked for is there, but bytes of it are missing."""

_ROWS_TO_FIT: Final = 200  # rows that a terminal waits for, so that columns fit


@click.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--body",
    "body_id",
    type=click.IntRange(min=1),
    metavar="ID",
    help="Write the body of this exchange's response to standard output.",
)
@click.option("--request-body", is_flag=True, help="With --body: the request's body instead.")
@click.option("--raw", is_flag=True, help="With --body: don't undo the content encoding.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Color the table by status.",
)
def inspect(file: str, *, as_json: bool, body_id: int | None, request_body: bool, raw: bool, color: str) -> None:
    """Show the HTTP exchanges in FILE.

    A "!" at the end of a row says that not every byte of the exchange was seen; --json says why.
    """
    if body_id is None and (request_body or raw):
        raise UsageError("--request-body and --raw need --body ID")
    if body_id is not None and as_json:
        raise UsageError("--body writes bytes: it can't be combined with --json")
    with _quiet_broken_pipe(), capture.open_capture(file) as opened:
        if body_id is None:
            _list_exchanges(opened, as_json=as_json, color=color)
        else:
            _write_body(opened, body_id, Side.REQUEST if request_body else Side.RESPONSE, raw=raw)


# --- The list ---


def _list_exchanges(opened: capture.Capture, *, as_json: bool, color: str) -> None:
    builder = ExchangeBuilder()
    count = 0

    def counted() -> Iterator[Exchange]:
        nonlocal count
        for exchange in _exchanges(builder, opened.items()):
            count += 1
            yield exchange

    for line in map(exchange_to_line, counted()) if as_json else _table_lines(counted(), color):
        click.echo(line, color=True)  # whether to color was decided above
    sys.stdout.flush()
    _warn(opened)
    click.echo(_closing_line(builder, opened, count), err=True)


def _exchanges(builder: ExchangeBuilder, items: Iterator[Item]) -> Iterator[Exchange]:
    time_ns = 0
    for item in items:
        time_ns = item.time_ns
        yield from builder.feed(item)
    yield from builder.finish(time_ns)


def _table_lines(exchanges: Iterator[Exchange], color: str) -> Iterator[str]:
    terminal = _is_terminal()
    colored = color == "always" or (color == "auto" and terminal and "NO_COLOR" not in os.environ)
    width = shutil.get_terminal_size().columns if terminal else None
    table = Table(width=width, color=colored)
    first: list[Exchange] = []
    if terminal:
        for exchange in exchanges:
            first.append(exchange)
            if len(first) == _ROWS_TO_FIT:
                break
        table.fit(first)
    yield table.header()
    yield from map(table.row, first)
    yield from map(table.row, exchanges)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _closing_line(builder: ExchangeBuilder, opened: capture.Capture, count: int) -> str:
    parts = [f"{_counted(count, 'exchange')} on {_counted(builder.flow_count, 'connection')}"]
    for protocol, number in sorted(Counter(other.protocol for other in builder.others()).items()):
        what = "something unknown" if protocol == "unknown" else f"{visible(protocol)} (not decoded yet)"
        parts.append(f"{_counted(number, 'connection')} spoke {what}")
    if builder.unparsed_bytes:
        parts.append(f"{human_size(builder.unparsed_bytes)} of HTTP connections not readable as HTTP")
    if opened.totals and not opened.totals.complete:
        parts.append(f"{_counted(opened.totals.lost, 'byte')} lost in {_counted(opened.totals.gaps, 'hole')}")
    return "; ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- One body ---


class _BodyWriter:
    """Writes one body as it passes: a `BodySink`."""

    def __init__(self, exchange_id: int, side: Side, output: BinaryIO, *, raw: bool) -> None:
        self._id = exchange_id
        self._side = side
        self._output = output
        self._raw = raw
        self._decoder: ContentDecoder | None = None
        self._stopped = False

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Write a piece, if it is one of the chosen body."""
        if exchange.id != self._id or side is not self._side or self._stopped:
            return
        encodings = "" if self._raw else _encodings(exchange, side)
        if isinstance(piece, BodyGap):
            self._stopped = bool(encodings)  # no coding can go on after a hole
            return
        try:
            self._decoder = self._decoder or ContentDecoder(encodings)
            for decoded in self._decoder.feed(piece):
                self._output.write(decoded)
        except ContentError as error:
            self._output.flush()
            raise TlscapError(
                f"the body of exchange {self._id} can't be decoded: {error}", hint="--raw writes it as it was sent"
            ) from None

    @property
    def content_complete(self) -> bool:
        """Whether what was written is all that the content coding announced."""
        return not self._decoder or self._decoder.complete


def _encodings(exchange: Exchange, side: Side) -> str:
    message = exchange.message(side)
    return message.encodings if message else ""


def _write_body(opened: capture.Capture, exchange_id: int, side: Side, *, raw: bool) -> None:
    output = sys.stdout.buffer
    writer = _BodyWriter(exchange_id, side, output, raw=raw)
    builder = ExchangeBuilder(writer)
    exchange = next((done for done in _exchanges(builder, opened.items()) if done.id == exchange_id), None)
    output.flush()
    _warn(opened)
    if exchange is None:
        there = f"the last one is {builder.exchange_count}" if builder.exchange_count else "there are none"
        raise TlscapError(f"no exchange {exchange_id} in this recording: {there}")
    message = exchange.message(side)
    if message is None:
        raise TlscapError(f"exchange {exchange_id} has no {side.value}: {visible('; '.join(exchange.problems))}")
    if not message.complete or not writer.content_complete:
        missing = f": {human_size(message.gap_bytes)} bytes missing" if message.gap_bytes else ""
        problems = "; ".join(exchange.problems) or "the encoded content ends too early"
        click.echo(f"the body of exchange {exchange_id} is incomplete{missing} ({visible(problems)})", err=True)
        raise SystemExit(INCOMPLETE)


# --- Both ---


def _warn(opened: capture.Capture) -> None:
    if opened.truncated:
        click.echo(f"warning: {visible(opened.truncated)}", err=True)


@contextlib.contextmanager
def _quiet_broken_pipe() -> Iterator[None]:
    """End quietly when the reader of standard output went away: it has what it wanted."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit, which must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
