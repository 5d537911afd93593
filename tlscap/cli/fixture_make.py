"""``tlscap fixture make``: a part of a capture, without secrets and without what differs from recording to recording."""

from __future__ import annotations

import io
import os
from typing import Any

import click

from tlscap.capture import Capture
from tlscap.cli.inspect import INCOMPLETE
from tlscap.cli.output import count_of
from tlscap.cli.rebuild import output_file
from tlscap.cli.scrub import report_lines
from tlscap.cli.scrub_options import rules_of, scrub_options, seed_key
from tlscap.cli.units import Size, size_text
from tlscap.errors import TlscapError, UsageError
from tlscap.export.table import visible
from tlscap.fixture import normalised, summary, summary_path
from tlscap.replay.recording import MEMORY_LIMIT, RecordedExchange, load, load_from
from tlscap.rewrite import write_capture
from tlscap.scrub import Report, Scrubber
from tlscap.scrub.check import Checker


class IncompleteError(TlscapError):
    """Exchanges of which bytes are missing."""

    exit_status = INCOMPLETE


@click.command()
@click.argument("file", type=click.Path(readable=False))
@click.argument("wanted", metavar="[FILTER]", default="")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="The fixture to write: x.tlscap.zst, and x.tlscap.txt beside it.",
)
@click.option("--no-scrub", is_flag=True, help="Keep secrets.")
@scrub_options
@click.option("--seed", metavar="TEXT", envvar="TLSCAP_SEED",
              help="Give the same secret the same pseudonym in other fixtures, too; keep it secret. Also from TLSCAP_SEED. "
              "Default: pseudonyms are numbers.")  # fmt: skip
@click.option("--keep-times", is_flag=True, help="Keep the times of the recording.")
@click.option("--allow-incomplete", is_flag=True, help="Take exchanges of which bytes are missing, too.")
@click.option(
    "--memory", type=Size(), default=MEMORY_LIMIT, help="Most memory that the capture may take. Default: 512M."
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def make(
    file: str,
    wanted: str,
    *,
    output: str,
    no_scrub: bool,
    seed: str | None,
    keep_times: bool,
    allow_incomplete: bool,
    memory: int,
    force: bool,
    **options: Any,
) -> None:
    """Write the exchanges of FILE that FILTER wants as a fixture: small, without secrets, the same bytes every time.

    Beside it stands what is in it, as text that reads well in a diff.
    """
    if output == "-":
        raise UsageError("a fixture is two files", hint="give -o NAME.tlscap.zst")
    rules = rules_of(**options)
    recording = load(file, wanted, memory=memory)
    exchanges = recording.exchanges
    if not exchanges:
        raise TlscapError(f"{file}: no exchange to make a fixture of", hint="tlscap inspect shows what is in it")
    incomplete = {exchange.id for exchange in exchanges if not exchange.complete and not allow_incomplete}
    report = Report()
    if not no_scrub:
        result = Scrubber(rules, key=seed_key(seed) if seed else None).scrub(exchanges)
        exchanges, report = result.exchanges, result.report
    # Names of exchanges are shown, and there are secrets in paths: so this comes after scrubbing.
    lost = [exchange for exchange in exchanges if exchange.id in incomplete]
    _refuse(lost, "of which bytes are missing", "--allow-incomplete takes them")
    hint = "--keep-undecodable keeps them as they are, --allow-incomplete takes the exchanges without them"
    withheld = [exchange for exchange in exchanges if not exchange.complete and not allow_incomplete]
    _refuse(withheld, "of which bodies can't be looked into", hint)
    exchanges = normalised(exchanges, keep_times=keep_times)
    buffer = io.BytesIO()
    written = write_capture(exchanges, buffer, origin="fixture", level=19)
    # The summary is of what stands in the file, not of what was meant to.
    again = load_from(Capture(output, io.BytesIO(buffer.getvalue())), memory=memory)
    with output_file(output, force=force) as target, output_file(summary_path(output), force=force) as text:
        target.write(buffer.getvalue())
        text.write(summary(again.exchanges).encode())
    for line in report_lines(report, recording, written) if not no_scrub else ():
        click.echo(visible(line), err=True)
    if left := Checker(rules).exchanges(again.exchanges):
        click.echo(
            f"warning: {count_of(len(left), 'value')} in it look secret: tlscap scrub --check {output}", err=True
        )
    click.echo(f"{output}: {count_of(written.exchanges, 'exchange')}, {size_text(os.path.getsize(output))}", err=True)


def _refuse(exchanges: list[RecordedExchange], what: str, hint: str) -> None:
    if exchanges:
        names = f"{exchanges[0].id} ({visible(exchanges[0].name.partition('?')[0])})"
        more = f" and {len(exchanges) - 1:,} more" if len(exchanges) > 1 else ""
        raise IncompleteError(f"exchanges {what}: {names}{more}", hint=hint)
