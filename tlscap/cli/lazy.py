"""Groups of commands that are imported when they are used: `record` must start fast."""

from __future__ import annotations

import importlib
import keyword
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands are ``tlscap.cli.NAME``, or ``tlscap.cli.GROUP_NAME`` within a group of that name.

    ``commands`` are their names, and what is said of them in the list.
    """

    def __init__(self, *, commands: dict[str, str], prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._summaries = commands
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._summaries)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._summaries:
            return None
        attribute = name + "_" * keyword.iskeyword(name)
        command = getattr(importlib.import_module(f"tlscap.cli.{self._prefix}{attribute}"), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
