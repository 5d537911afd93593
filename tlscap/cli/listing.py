"""Exchanges one after the other: as a table, as JSON, as HAR, as curl commands, as heads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

import click

from tlscap import __version__
from tlscap.capture import Capture
from tlscap.cli import output
from tlscap.cli.inspect import Reading
from tlscap.export.jsonl import exchange_to_line
from tlscap.export.table import Table, visible
from tlscap.filters import Filter
from tlscap.http.bodies import BodyCollector, MessageCollector
from tlscap.http.events import RequestHead, ResponseHead, Side
from tlscap.http.exchanges import Exchange, Message

_ROWS_TO_FIT: Final = 200  # rows that a terminal waits for, so that columns fit
_HAR_BODY: Final = 16 << 20  # bytes of one body in a HAR file, which must fit into memory whole

_COLORS: Final = {Side.REQUEST: "\x1b[36m", Side.RESPONSE: "\x1b[32m"}
_RESET: Final = "\x1b[0m"


def list_exchanges(
    opened: Capture, wanted: Filter, form: str, *, with_messages: bool, address: bool, color: bool
) -> None:
    """Write the exchanges that a filter wants in one of the forms, as they end."""
    lines: dict[str, Callable[[], Iterator[str]]] = {
        "table": lambda: _table(reading),
        "json": lambda: _json(reading, messages) if with_messages else map(exchange_to_line, reading.exchanges()),
        "headers": lambda: itertools.chain.from_iterable(_heads(one, color=color) for one in reading.exchanges()),
        "har": lambda: _har(reading, bodies, messages),
        "curl": lambda: _curl(reading, bodies, address=address),
    }
    bodies, messages = BodyCollector(limit=_HAR_BODY), MessageCollector()
    if form == "har":
        messages = MessageCollector(chosen=lambda exchange: bool(exchange.upgraded_to))
        reading = Reading(opened, wanted, body_sink=bodies, message_sink=messages)
    elif form == "curl":
        bodies = BodyCollector(limit=_HAR_BODY, chosen=lambda _, side: side is Side.REQUEST)
        reading = Reading(opened, wanted, body_sink=bodies)
    else:
        reading = Reading(opened, wanted, message_sink=messages if with_messages else None, color=color)
    for line in lines[form]():
        click.echo(line, color=True)  # whether to color was decided before
    reading.close()


# --- The table ---


def _table(reading: Reading) -> Iterator[str]:
    width = output.terminal_width()
    table = Table(width=width, color=reading.color)
    exchanges = reading.exchanges()
    first = list(itertools.islice(exchanges, _ROWS_TO_FIT)) if width else []
    if width:
        table.fit(first)
    yield table.header()
    yield from map(table.row, first)
    yield from map(table.row, exchanges)


# --- Heads ---


def _heads(exchange: Exchange, *, color: bool) -> Iterator[str]:
    """Yield both heads, marked as curl -v marks them."""
    yield f"# {exchange.id}  {visible(exchange.flow.process.label)}  {visible(exchange.url)}"
    for side, mark in ((Side.REQUEST, ">"), (Side.RESPONSE, "<")):
        message = exchange.message(side)
        for line in _head_lines(message) if message else [f"no {side.value}: {'; '.join(exchange.problems)}"]:
            shown = visible(f"{mark} {line}".rstrip())
            yield f"{_COLORS[side]}{shown}{_RESET}" if color else shown
    yield ""


def _head_lines(message: Message[RequestHead] | Message[ResponseHead]) -> Iterator[str]:
    head = message.head
    if isinstance(head, RequestHead):
        words = [head.method, head.target, head.version]
    else:
        words = [head.version, str(head.status).encode(), head.reason]
    yield b" ".join(word for word in words if word).decode("latin-1")
    if isinstance(head, RequestHead) and head.authority:
        yield f":authority: {head.authority.decode('latin-1')}"
    for name, value in (*message.headers, *message.trailers):
        yield f"{name.decode('latin-1')}: {value.decode('latin-1')}"


# --- Files for others ---


def _json(reading: Reading, messages: MessageCollector) -> Iterator[str]:
    """Yield lines of exchanges with their messages."""
    for exchange in reading.exchanges(otherwise=messages.take):
        yield exchange_to_line(exchange, *messages.take(exchange))


def _har(reading: Reading, bodies: BodyCollector, messages: MessageCollector) -> Iterator[str]:
    from tlscap.export.har import HarWriter  # noqa: PLC0415 - seldom needed

    pieces: list[str] = []
    writer = HarWriter(pieces.append, creator_version=__version__)

    def forget(exchange: Exchange) -> None:
        bodies.forget(exchange)
        messages.take(exchange)

    for exchange in reading.exchanges(otherwise=forget):
        kept, left_out = messages.take(exchange)
        taken = (bodies.take(exchange, Side.REQUEST), bodies.take(exchange, Side.RESPONSE))
        writer.add(exchange, *taken, messages=kept, left_out=left_out)
        yield "".join(pieces).rstrip("\n")
        pieces.clear()
    writer.finish()
    yield "".join(pieces).strip("\n")


def _curl(reading: Reading, bodies: BodyCollector, *, address: bool) -> Iterator[str]:
    from tlscap.export.curl import curl_command  # noqa: PLC0415 - seldom needed

    for exchange in reading.exchanges(otherwise=bodies.forget):
        yield curl_command(exchange, bodies.take(exchange, Side.REQUEST), address=address)
