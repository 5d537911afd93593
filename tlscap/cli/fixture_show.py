"""``tlscap fixture show``: a capture as the text that is reviewed."""

from __future__ import annotations

import sys

import click

from tlscap.cli.output import quiet_broken_pipe
from tlscap.cli.units import Size
from tlscap.fixture import summary
from tlscap.replay.recording import MEMORY_LIMIT, load


@click.command()
@click.argument("file", type=click.Path(readable=False))
@click.argument("wanted", metavar="[FILTER]", default="")
@click.option(
    "--memory", type=Size(), default=MEMORY_LIMIT, help="Most memory that the capture may take. Default: 512M."
)
def show(file: str, wanted: str, *, memory: int) -> None:
    """Print the exchanges of FILE as ``fixture make`` writes them beside a fixture."""
    recording = load(file, wanted, memory=memory)
    with quiet_broken_pipe():
        click.echo(summary(recording.exchanges), nl=False)
        sys.stdout.flush()
    if recording.truncated:
        click.echo(f"warning: {recording.truncated}", err=True)
