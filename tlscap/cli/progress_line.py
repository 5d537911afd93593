"""A line on the terminal that says how far a command is, and goes away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import click

_DRAW_S: Final = 0.2


class ProgressLine:
    """Standard error's last line, if that is a terminal; else nothing is shown."""

    def __init__(self) -> None:
        self._draws = sys.stderr.isatty()
        self._drawn = time.monotonic()

    def draw(self, text: Callable[[], str]) -> None:
        """Show a text, unless the last one was shown just now."""
        if self._draws and time.monotonic() - self._drawn > _DRAW_S:
            self._drawn = time.monotonic()
            click.echo(f"\r\x1b[K{text()}", err=True, nl=False)

    def clear(self) -> None:
        """Take the line away: something else is printed."""
        if self._draws:
            click.echo("\r\x1b[K", err=True, nl=False)
