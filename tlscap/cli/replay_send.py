"""``tlscap replay send``: recorded requests to a live server, and what differs in its answers."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import click

from tlscap.cli.output import count_of, quiet_broken_pipe, use_color
from tlscap.cli.progress_line import ProgressLine
from tlscap.cli.rebuild import output_file
from tlscap.cli.units import Duration, Size, Timing
from tlscap.diff import VOLATILE
from tlscap.errors import TlscapError, UsageError
from tlscap.export.table import visible
from tlscap.http.events import Header
from tlscap.replay.compare import Comparing
from tlscap.replay.recording import MEMORY_LIMIT, load
from tlscap.replay.report import Outcome, Result, junit, to_line
from tlscap.replay.send import Options, Sender, Target, Unreachable, trust, why_not
from tlscap.replay.variables import Variables, make_plan, parse_rule

DIFFERENT: Final = 7
"""Exit status: an answer is not what was recorded."""

_MARKS: Final = {Outcome.SAME: "=", Outcome.DIFFERENT: "~", Outcome.ERROR: "!", Outcome.SENT: ">", Outcome.SKIPPED: "."}
_COLORS: Final = {"-": "\x1b[31m", "+": "\x1b[32m", "~": "\x1b[33m", "!": "\x1b[31m"}
_RESET: Final = "\x1b[0m"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})


@click.command(
    epilog=f"Not compared unless asked for: the header fields {', '.join(sorted(VOLATILE))}, and the framing."
)
@click.argument("file", type=click.Path(readable=False))  # that is told when it is opened
@click.argument("filter_words", nargs=-1, metavar="[FILTER]")
@click.option("--to", "url", required=True, metavar="URL",
              help="The server: http://localhost:8000. A path is put before those of the requests.")  # fmt: skip
@click.option("--keep-host", is_flag=True, help="Say the recorded host, in Host and in the TLS handshake.")
@click.option("--header", "changed", multiple=True, metavar="'NAME: VALUE'",
              help="Add this field, or replace it. Repeatable.")  # fmt: skip
@click.option("--remove-header", "removed", multiple=True, metavar="NAME", help="Leave this field out. Repeatable.")
@click.option(
    "--methods", metavar="NAMES", help="Send only these: GET,HEAD. Default: all, also those that change things."
)
@click.option(
    "--no-response", "without_response", is_flag=True, help="Send requests, too, whose answer was not recorded."
)
@click.option("--variable", "variables", multiple=True, metavar="NAME=KIND:WHERE@ID",
              help="A value of exchange ID's answer that later requests send back: json:$.id, header:, cookie:, regex:.")  # fmt: skip
@click.option("--no-variables", is_flag=True, help="Send cookies, tokens and ids as they were recorded.")
@click.option("--concurrency", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
              help="Requests at once. What was on one connection stays in order; with 1 everything does.")  # fmt: skip
@click.option("--timing", type=Timing(), default="none", show_default=True, metavar="none|recorded|xN",
              help="The pauses of the recording, or N times as fast.")  # fmt: skip
@click.option("--timeout", type=Duration(), default="60s", show_default=True, help="For each exchange.")
@click.option("--retries", type=click.IntRange(0, 100), default=0, show_default=True,
              help="When the connection fails; POST and the like only when none could be made.")  # fmt: skip
@click.option("--http1", is_flag=True, help="HTTP/1.1 only. Default: as recorded, if the server can.")
@click.option("--http2", is_flag=True, help="HTTP/2 only.")
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option("--ca-file", type=click.Path(), help="Trust these certificates (PEM) instead of the system's.")
@click.option("--cert", type=click.Path(), help="Show this client certificate (PEM).")
@click.option("--key", type=click.Path(), help="Its key, if that is not in the same file.")
@click.option("--ignore", "ignores", multiple=True, metavar="WHAT",
              help="Don't compare: 'json:$.items[*].id', header:NAME, text:REGEX, status, body. Repeatable.")  # fmt: skip
@click.option("--ignore-header", "ignored", multiple=True, metavar="NAME", help="Don't compare this field. Repeatable.")
@click.option("--all-headers", is_flag=True, help="Compare the fields that differ every time, too.")
@click.option("--no-bodies", is_flag=True, help="Don't compare bodies.")
@click.option(
    "--junit", "junit_path", type=click.Path(), metavar="OUT", help="Write a JUnit XML file, over an existing one."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for every exchange.")
@click.option("-v", "--verbose", is_flag=True, help="Show what did not differ, too.")
@click.option(
    "--memory",
    type=Size(),
    default=MEMORY_LIMIT,
    metavar="SIZE",
    help="Most memory for the recording.  [default: 512MiB]",
)
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Color the lines by what they say.")  # fmt: skip
def send(
    file: str,
    *,
    filter_words: tuple[str, ...],
    url: str,
    keep_host: bool,
    changed: tuple[str, ...],
    removed: tuple[str, ...],
    methods: str | None,
    without_response: bool,
    variables: tuple[str, ...],
    no_variables: bool,
    concurrency: int,
    timing: float,
    timeout: float,
    retries: int,
    http1: bool,
    http2: bool,
    insecure: bool,
    ca_file: str | None,
    cert: str | None,
    key: str | None,
    ignores: tuple[str, ...],
    ignored: tuple[str, ...],
    all_headers: bool,
    no_bodies: bool,
    junit_path: str | None,
    as_json: bool,
    verbose: bool,
    memory: int,
    color: str,
) -> None:
    """Send the requests in FILE to a live server, and compare its answers with those that were recorded.

    FILTER says which ones (docs/filters.md). All of them go to URL's server and nowhere else: POST, PUT and DELETE, too, so be sure which one
    that is. docs/sending.md says what is compared.

    \b
      tlscap replay send c.tlscap.zst --to http://localhost:8000
      tlscap replay send c.tlscap.zst path:/api/ --to https://staging.example.org --junit report.xml
      tlscap replay send c.tlscap.zst --to http://localhost:8000 --ignore 'json:$..created_at'

    Exit status 0: no difference; 7: answers differ; 1: the server can't be reached, an answer is missing, or there was nothing to send.
    """
    if http1 and http2:
        raise UsageError("--http1 and --http2 contradict each other")
    if key and not cert:
        raise UsageError("--key needs --cert")
    if junit_path == "-":
        raise UsageError("--junit takes the name of a file: standard output has the differences")
    target = Target(url)
    if target.scheme == "http" and (insecure or ca_file or cert):
        raise UsageError("--insecure, --ca-file and --cert are for https")
    base = frozenset[str]() if all_headers else VOLATILE
    comparing = Comparing(base | {name.strip().lower() for name in ignored}, bodies=not no_bodies).with_ignored(ignores)
    rules = [parse_rule(text) for text in variables]
    options = Options(
        keep_host=keep_host,
        changed=tuple(_field(text) for text in changed),
        removed=frozenset(name.strip().lower().encode("latin-1", "replace") for name in removed),
        concurrency=concurrency,
        speed=timing or None,
        timeout_s=timeout,
        http2=False if http1 else True if http2 else None,
        context=trust(ca_file=ca_file, insecure=insecure, cert=cert, key=key) if target.scheme == "https" else None,
        retries=retries,
        methods=frozenset(name.strip().upper().encode() for name in methods.split(",") if name.strip())
        if methods
        else frozenset(),
        without_response=without_response,
    )
    with quiet_broken_pipe():
        recording = load(file, " ".join(filter_words), memory=memory)
        if recording.truncated:
            click.echo(f"warning: {visible(recording.truncated)}", err=True)
        skipped = {exchange.id: reason for exchange in recording.exchanges if (reason := why_not(exchange, options))}
        wanted = [exchange for exchange in recording.exchanges if exchange.id not in skipped]
        plan = make_plan(wanted, rules, automatic=not no_variables)
        values = Variables(plan, cookies=not no_variables)
        output = _Output(len(wanted), as_json=as_json, verbose=verbose, colored=use_color(color) and not as_json)
        for exchange in recording.exchanges:
            if exchange.id in skipped:
                output.add(Result(exchange, Outcome.SKIPPED, reason=skipped[exchange.id]))
        started, begun = datetime.now(UTC), time.monotonic()
        failure: Unreachable | None = None
        try:
            asyncio.run(Sender(wanted, target, options, comparing, plan, values).run(output.add))
        except Unreachable as error:
            failure = error
            output.results += [Result(exchange, Outcome.ERROR, reason=str(error)) for exchange in wanted]
        finally:
            output.clear()
        if junit_path:
            report = junit(
                output.results, name=f"tlscap replay {os.path.basename(file)}", started=started,
                seconds=time.monotonic() - begun,
            )  # fmt: skip
            with output_file(junit_path, force=True) as stream:
                stream.write(report)
        if failure:
            raise failure
    hosts = {exchange.hostname for exchange in wanted if exchange.hostname}
    for line in _closing(output.results, values, hosts, target):
        click.echo(line, err=True)
    if recording.headless:
        click.echo(f"not sent: {count_of(recording.headless, 'answer')} whose request was not seen", err=True)
    if not wanted:
        # For a CI server, a filter that fits nothing must not look like a server that says the same.
        raise TlscapError(f"{file}: nothing to send", hint="no exchange fits the filter, or none of them can be sent")
    count = Counter(result.outcome for result in output.results)
    if count[Outcome.ERROR]:
        raise SystemExit(1)
    if count[Outcome.DIFFERENT]:
        raise SystemExit(DIFFERENT)


def _field(text: str) -> Header:
    """Return a header field that the user gives."""
    name, mark, value = text.partition(":")
    if not mark or not _TOKEN.fullmatch(name.strip()) or re.search(r"[\r\n\0]", value):
        raise UsageError(f"{text!r} is no header field", hint="such as --header 'Authorization: Bearer abc'")
    if name.strip().lower() in _FRAMING:
        raise UsageError(f"{name.strip()} is what the body makes it: it can't be set")
    return name.strip().encode(), value.strip().encode("utf-8", "surrogateescape")


class _Output:
    """Shows results as they come."""

    def __init__(self, total: int, *, as_json: bool, verbose: bool, colored: bool) -> None:
        self.results: list[Result] = []
        self._total = total
        self._sent = 0
        self._as_json = as_json
        self._verbose = verbose
        self._colored = colored
        self._progress = ProgressLine()

    def add(self, result: Result) -> None:
        """Take one."""
        self.results.append(result)
        self._sent += result.outcome is not Outcome.SKIPPED
        if self._as_json:
            self.clear()
            click.echo(to_line(result))
        elif self._verbose or result.outcome in (Outcome.DIFFERENT, Outcome.ERROR):
            self.clear()
            for line in _lines(result):
                mark = _COLORS.get(line.lstrip()[:1], "") if self._colored else ""
                click.echo(f"{mark}{line}{_RESET}" if mark else line, color=True)
        self._progress.draw(lambda: f"{self._sent:,} of {self._total:,} sent")

    def clear(self) -> None:
        """Take the progress away."""
        self._progress.clear()


def _lines(result: Result) -> Iterable[str]:
    exchange = result.exchange
    reason = f"  {result.reason}" if result.reason else ""
    yield visible(f"{_MARKS[result.outcome]} {exchange.name}  {_status(result)}(exchange {exchange.id}){reason}")
    for line in result.lines:
        yield f"    {visible(line)}"
    if result.outcome is not Outcome.SAME:
        yield from (visible(f"      ({note})") for note in result.notes)


def _status(result: Result) -> str:
    return f"{result.status}  " if result.status is not None else ""


def _closing(results: list[Result], values: Variables, hosts: set[str], target: Target) -> Iterable[str]:
    """Yield what there is to say at the end."""
    count = Counter(result.outcome for result in results)
    parts = [f"{count_of(count[Outcome.SAME], 'answer')} the same"]
    for outcome, words in (
        (Outcome.DIFFERENT, "different"),
        (Outcome.SENT, "with nothing to compare"),
        (Outcome.ERROR, "missing"),
    ):
        if count[outcome]:
            parts.append(f"{count[outcome]:,} {words}")
    yield ", ".join(parts)
    reasons = Counter(result.reason for result in results if result.outcome is Outcome.SKIPPED)
    for reason, number in reasons.items():
        yield f"not sent: {count_of(number, 'exchange')} ({reason})"
    for note, number in Counter(note for result in results for note in result.notes).items():
        yield f"{note}: {count_of(number, 'exchange')}"
    if values.taken:
        yield f"{count_of(values.taken, 'value')} of today's answers sent instead of the recorded ones (--no-variables: none)"
    for variable in values.missing[:5]:
        yield visible(f"not in the live answer: {variable}")
    if len(hosts) > 1:
        yield visible(f"recorded with {len(hosts)} hosts, all sent to {target.origin}; host:NAME chooses one")
