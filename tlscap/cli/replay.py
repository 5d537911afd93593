"""``tlscap replay``: what was recorded, once more."""

from __future__ import annotations

import click

from tlscap.cli.lazy import LazyGroup

COMMANDS = {
    "serve": "Answer as the recorded server did.",
    "send": "Send the recorded requests to a server, and compare its answers.",
    "packets": "Put the packets of a capture on a network interface.",
}


@click.group(cls=LazyGroup, commands=COMMANDS, prefix="replay_")
def replay() -> None:
    """Serve, send or inject what was recorded."""
