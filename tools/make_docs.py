#!/usr/bin/env python3
"""Writes docs/cli.md, or with ``-`` standard output: every command with its help, as the program itself prints it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 110


def contexts() -> list[click.Context]:
    """Return a context for every command, the program's own first."""
    from tlscap.cli.main import tlscap

    def context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
        settings = {"terminal_width": WIDTH, "max_content_width": WIDTH, **command.context_settings}
        return click.Context(command, info_name=name, parent=parent, **settings)

    def of(command: click.Command, name: str, parent: click.Context | None) -> list[click.Context]:
        found = [context(command, name, parent)]
        if isinstance(command, click.Group):
            for each in command.list_commands(found[0]):
                inner = command.get_command(found[0], each)
                assert inner is not None
                found += of(inner, each, found[0])
        return found

    return of(tlscap, "tlscap", None)


def text() -> str:
    """Return the page."""
    parts = [
        "# The command line\n",
        "Written by `tools/make_docs.py` from the program's own help; exit statuses are in the [README](../README.md#exit-statuses).\n",
    ]
    parts += [f"## {one.command_path}\n\n```\n{one.command.get_help(one)}\n```\n" for one in contexts()]
    return "\n".join(parts)


def main() -> None:
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(text())
        return
    page = ROOT / "docs" / "cli.md"
    page.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
