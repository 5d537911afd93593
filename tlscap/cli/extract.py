"""Bodies out of a capture: one to standard output, or all into a folder; and flows for mitmproxy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import BinaryIO

import click

from tlscap.capture import Capture
from tlscap.cli.inspect import INCOMPLETE, Reading
from tlscap.cli.output import count_of, exchanges_of, warn_of, with_progress
from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.export.hexdump import hexdump
from tlscap.export.table import human_size, visible
from tlscap.filters import Filter
from tlscap.http.bodies import BodyFile, BodyFiles
from tlscap.http.content import ContentDecoder, ContentError
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder

# --- One body ---


class _HexWriter:
    """Hexadecimal lines to a binary stream, whole rows at a time."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._held = b""
        self._offset = 0

    def write(self, data: bytes) -> None:
        data = self._held + data
        whole = len(data) - len(data) % 16
        self._held = data[whole:]
        self._lines(data[:whole])

    def finish(self) -> None:
        self._lines(self._held)
        self._held = b""

    def _lines(self, data: bytes) -> None:
        for line in hexdump(data, self._offset):
            self._output.write(line.encode() + b"\n")
        self._offset += len(data)


class _BodyWriter:
    """Writes one body as it passes: a `BodySink`."""

    def __init__(self, exchange_id: int, side: Side, write: Callable[[bytes], object], *, raw: bool) -> None:
        self._id = exchange_id
        self._side = side
        self._write = write
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
                self._write(decoded)
        except ContentError as error:
            sys.stdout.buffer.flush()
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


def write_body(opened: Capture, exchange_id: int, side: Side, *, raw: bool, as_hex: bool) -> None:
    """Write one body to standard output; exits with `INCOMPLETE` when bytes of it are missing."""
    output = sys.stdout.buffer
    lines = _HexWriter(output)
    writer = _BodyWriter(exchange_id, side, lines.write if as_hex else output.write, raw=raw)
    builder = ExchangeBuilder(writer)
    exchanges = exchanges_of(with_progress(opened), builder)
    exchange = next((done for done in exchanges if done.id == exchange_id), None)
    lines.finish()
    output.flush()
    warn_of(opened)
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


# --- All of them ---


def write_bodies(opened: Capture, wanted: Filter, folder: str) -> None:
    """Write the bodies of the exchanges that a filter wants into a folder, which may exist; files may not."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be created: {error.strerror}") from error
    files = BodyFiles(lambda name, *, again: _create(os.path.join(folder, name), again=again))
    reading = Reading(opened, wanted, body_sink=files)
    try:
        for exchange in reading.exchanges(otherwise=lambda one: _remove(files.finish(one), folder)):
            _report(files.finish(exchange), folder)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    finally:
        files.close()
    reading.close()


def _remove(files: list[BodyFile], folder: str) -> None:
    """Take back what was written before the filter could say no."""
    for file in files:
        os.unlink(os.path.join(folder, file.name))


def _report(files: list[BodyFile], folder: str) -> None:
    for file in files:
        marks = [] if file.complete else ["incomplete"]
        marks += [f"{count_of(file.missing, 'byte')} missing"] if file.missing else []
        marks += [file.note] if file.note else []
        remark = f"  ({'; '.join(marks)})" if marks else ""
        click.echo(visible(f"{os.path.join(folder, file.name)}  {human_size(file.size)}{remark}"))


def _create(path: str, *, again: bool) -> BinaryIO:
    """Open a file that only its owner may read: captures hold passwords."""
    try:
        if again:
            return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), "ab")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(path, flags, 0o600), "wb")
    except FileExistsError as error:
        raise OutputError(f"{path} exists already", hint="give an empty folder") from error
    except OSError as error:
        raise OutputError(f"{path} can't be created: {error.strerror}") from error


# --- For mitmproxy ---


def write_flows(opened: Capture, wanted: Filter, path: str) -> None:
    """Write the exchanges that a filter wants as a flow file of mitmproxy."""
    from tlscap.cli.rebuild import output_file  # noqa: PLC0415 - seldom needed
    from tlscap.export.mitmproxy import flow_to_bytes  # noqa: PLC0415
    from tlscap.replay.recording import load_from  # noqa: PLC0415

    if path == "-" and sys.stdout.isatty():
        raise UsageError("--mitmproxy - writes binary data to the terminal", hint="pipe it, or give a file name")
    recording = load_from(opened, wanted)
    with output_file(path, force=False) as target:
        for exchange in recording.exchanges:
            target.write(flow_to_bytes(exchange))
    warn_of(opened)
    click.echo(f"{count_of(len(recording.exchanges), 'flow')} written", err=True)
