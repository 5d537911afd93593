"""What commands that read captures share: colors, warnings, progress, and readers that go away."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator

import click

from tlscap.capture import Capture
from tlscap.export.table import human_size, visible
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import BodySink, Exchange, ExchangeBuilder
from tlscap.model import Item

_PATIENCE_S = 1.0  # work that takes less shows no progress
_DRAW_S = 0.2


def count_of(number: int, noun: str) -> str:
    """Return ``1 exchange``, ``2 exchanges``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def terminal_width() -> int | None:
    """Return the width of the terminal that standard output is, or ``None``: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def use_color(choice: str) -> bool:
    """Tell whether standard output gets colors; ``choice`` is the value of ``--color``."""
    return choice == "always" or (choice == "auto" and terminal_width() is not None and "NO_COLOR" not in os.environ)


def warn_of(opened: Capture) -> None:
    """Say where a capture ends early, if it does."""
    if opened.truncated:
        click.echo(f"warning: {visible(opened.truncated)}", err=True)


class Sinks:
    """Several body sinks as one."""

    def __init__(self, *sinks: BodySink) -> None:
        self._sinks = sinks

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Hand the piece to each."""
        for sink in self._sinks:
            sink.on_body(exchange, side, piece)


def exchanges_of(items: Iterator[Item], builder: ExchangeBuilder) -> Iterator[Exchange]:
    """Yield all exchanges, at last those that the capture's end cuts short."""
    time_ns = 0
    for item in items:
        time_ns = item.time_ns
        yield from builder.feed(item)
    yield from builder.finish(time_ns)


def with_progress(opened: Capture, *, quiet: bool = False) -> Iterator[Item]:
    """Yield a capture's items; when that takes long, say on the terminal how far it is.

    Not while rows go to the same terminal: these show it.
    """
    if quiet or not sys.stderr.isatty() or sys.stdout.isatty():
        yield from opened.items()
        return
    size = os.fstat(opened.stream.fileno()).st_size
    begun = drawn = time.monotonic()
    shown = False
    try:
        for number, item in enumerate(opened.items()):
            yield item
            if number % 256 == 0 and (now := time.monotonic()) - drawn > _DRAW_S and now - begun > _PATIENCE_S:
                drawn, shown = now, True
                done = opened.position
                left = (now - begun) * (size - done) / done if done else 0
                text = f"{human_size(done)} of {human_size(size)} read, {left:.0f} s left"
                click.echo(f"\r\x1b[K{text}", err=True, nl=False)
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)


@contextlib.contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """End quietly when the reader of standard output went away: it has what it wanted."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit, which must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
