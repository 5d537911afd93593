"""``tlscap fixture``: small captures that are kept beside tests."""

from __future__ import annotations

import click

from tlscap.cli.lazy import LazyGroup

COMMANDS = {
    "make": "Cut, scrub and normalise a capture.",
    "show": "Show what is in one, as text.",
}


@click.group(cls=LazyGroup, commands=COMMANDS, prefix="fixture_")
def fixture() -> None:
    """Make and show small captures for regression tests."""
