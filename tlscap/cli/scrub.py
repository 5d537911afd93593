"""``tlscap scrub``: a capture without its secrets; ``--check``: does one have any?"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from tlscap.cli.output import count_of, quiet_broken_pipe
from tlscap.cli.rebuild import output_file
from tlscap.cli.scrub_options import rules_of, scrub_options, seed_key
from tlscap.cli.units import Size, size_text
from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.export.table import visible
from tlscap.replay.recording import MEMORY_LIMIT, Recording, load
from tlscap.rewrite import Written, write_capture
from tlscap.scrub import Report, Rules, Scrubber, random_key
from tlscap.scrub.check import Checker, Suspicion

FOUND: Final = 7
"""Exit status: there are secrets in it."""


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(readable=False))
@click.option("-o", "--output", metavar="OUT", help="The sidecar to write; - for standard output.")
@click.option("--check", is_flag=True, help="Write nothing; say whether there are secrets: exit status 7.")
@scrub_options
@click.option("--seed", metavar="TEXT", envvar="TLSCAP_SEED",
              help="Makes pseudonyms the same in every run; keep it secret. Also from TLSCAP_SEED. Default: random.")  # fmt: skip
@click.option("--memory", type=Size(), default=MEMORY_LIMIT, help="Most memory that a capture may take. Default: 512M.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON; with --check one object a line.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def scrub(
    files: tuple[str, ...],
    output: str | None,
    *,
    check: bool,
    seed: str | None,
    memory: int,
    as_json: bool,
    force: bool,
    **options: Any,
) -> None:
    """Write FILE, a sidecar or a pcapng, without its secrets, or find them.

    Passwords, tokens, keys and cookies become pseudonyms: the same secret becomes the same pseudonym everywhere.
    Bodies are decoded, scrubbed and encoded again; what can't be looked into is left out.
    """
    rules = rules_of(**options)
    if check:
        if output:
            raise UsageError("--check writes nothing", hint="leave out -o, or --check")
        with quiet_broken_pipe():
            found = _check(files, rules, memory, as_json=as_json)
        raise SystemExit(FOUND if found else 0)
    if not output:
        raise UsageError("where to?", hint="give -o OUT.tlscap.zst, or --check")
    if len(files) > 1:
        raise UsageError("one file at a time is scrubbed", hint="--check takes several")
    if output == "-" and (as_json or sys.stdout.isatty()):
        raise UsageError(
            "-o - writes binary data to standard output", hint="pipe it without --json, or give a file name"
        )
    recording = load(files[0], memory=memory)
    result = Scrubber(rules, key=seed_key(seed) if seed else random_key()).scrub(recording.exchanges)
    with output_file(output, force=force) as target:
        written = write_capture(result.exchanges, target, origin="scrubbed")
    if as_json:
        click.echo(json.dumps(result.report.to_dict() | left_out(recording, written), indent=2))
        return
    for line in report_lines(result.report, recording, written):
        click.echo(visible(line), err=True)


def left_out(recording: Recording, written: Written) -> dict[str, Any]:
    """Return what is not in the result, for JSON."""
    return {
        "exchanges": written.exchanges,
        "left_out": {
            "exchanges": dict(written.left_out),
            "connections without HTTP": recording.others,
            "bytes that are no HTTP": recording.unparsed,
            "answers without a request": recording.headless,
            "exchanges recorded at both ends": recording.left_out,
        },
        "truncated": recording.truncated,
    }


def report_lines(report: Report, recording: Recording, written: Written) -> list[str]:
    """Return what was done and what was left out, for people.  Names no secret."""
    total = sum(report.replaced.values())
    lines = [
        f"{count_of(written.exchanges, 'exchange')}; {count_of(report.secrets, 'secret')} replaced in {count_of(total, 'place')}"
    ]
    for (rule, place), count in sorted(report.replaced.items(), key=lambda one: (-one[1], one[0])):
        lines.append(f"  {count:>6,}  {rule}: {place}")
    lines += [f"withheld: {count:,} {what}" for what, count in sorted(report.withheld.items())]
    if report.decoded:
        lines.append(f"stored decoded: {count_of(report.decoded, 'body').replace('bodys', 'bodies')}")
    if written.inflated:
        lines.append(f"stored without permessage-deflate: {count_of(written.inflated, 'WebSocket')}")
    parts = [f"{count:,} {what}" for what, count in sorted(written.left_out.items())]
    if recording.others:
        parts.append(f"{count_of(recording.others, 'connection')} without HTTP")
    if recording.unparsed:
        parts.append(f"{size_text(recording.unparsed)} that are no HTTP")
    if recording.headless:
        parts.append(f"{count_of(recording.headless, 'answer')} without a request")
    if recording.left_out:
        parts.append(f"{count_of(recording.left_out, 'exchange')} recorded a second time at the other end")
    if parts:
        lines.append(f"left out: {', '.join(parts)}")
    if recording.truncated:
        lines.append(f"warning: {recording.truncated}")
    return lines


def _check(files: tuple[str, ...], rules: Rules, memory: int, *, as_json: bool) -> int:
    """Print what seems secret; return how much that is.  A file that can't be read is an error, after all others were."""
    found = 0
    failed: TlscapError | None = None
    for path in files:
        checker = Checker(rules)
        try:
            suspicions = checker.file(path, memory=memory)
        except TlscapError as error:
            if failed:
                click.echo(f"tlscap: {failed}", err=True)
            failed = error if str(error).startswith(path) else _named(error, path)
            continue
        found += len(suspicions)
        for one in suspicions:
            click.echo(json.dumps({"file": path} | one.to_dict()) if as_json else _line(path, one))
        if checker.unopened:
            click.echo(f"warning: {path}: could not look into {checker.unopened} of its bodies", err=True)
    if failed and not found:
        raise failed
    if failed:
        click.echo(f"tlscap: {failed}", err=True)
    if found and not as_json:
        click.echo(
            f"found {count_of(found, 'secret')}: tlscap scrub takes them out, --keep NAME lets one pass", err=True
        )
    return found


def _named(error: TlscapError, path: str) -> TlscapError:
    return OutputError(f"{path}: {error}", hint=error.hint) if isinstance(error, OutputError) else error


def _line(path: str, one: Suspicion) -> str:
    where = f"exchange {one.exchange} {one.name}" if one.exchange else one.name
    return visible(f"{path}: {where}: {one.place}: {one.rule}: {one.shown} ({one.length} bytes)")
