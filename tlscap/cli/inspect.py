"""``tlscap inspect``: what a capture holds, as a table, for programs, or one thing taken out of it.

Rows go out as exchanges end, so a pipe sees them at once.  On a terminal the first ones wait until the columns'
widths are known.  Standard output holds the answer and nothing else; the closing line and warnings go to standard error.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import click

from tlscap import capture
from tlscap.cli.output import Sinks, count_of, exchanges_of, quiet_broken_pipe, use_color, warn_of, with_progress
from tlscap.errors import UsageError
from tlscap.export.table import human_size, visible
from tlscap.filters import Filter, compile_filter
from tlscap.http.bodies import BodyCollector
from tlscap.http.events import Side
from tlscap.http.exchanges import BodySink, Exchange, ExchangeBuilder, MessageSink

INCOMPLETE: Final = 6
"""Exit status: what was asked for is there, but bytes of it are missing."""

SEARCH_LIMIT: Final = 16 << 20
"""Bytes of a body that a filter looks at."""


class Reading:
    """One pass over a capture: the exchanges that are wanted, and what is said of the others at the end."""

    def __init__(
        self,
        opened: capture.Capture,
        wanted: Filter,
        *,
        body_sink: BodySink | None = None,
        message_sink: MessageSink | None = None,
        color: bool = False,
    ) -> None:
        self.opened = opened
        self.wanted = wanted
        self.color = color
        self.count = 0
        self._bodies = None
        sinks = [body_sink] if body_sink else []
        if wanted.needs_bodies:
            self._bodies = BodyCollector(limit=SEARCH_LIMIT, chosen=lambda _, side: side in wanted.needs_bodies)
            sinks.append(self._bodies)
        sink = None if not sinks else sinks[0] if len(sinks) == 1 else Sinks(*sinks)
        self.builder = ExchangeBuilder(sink, message_sink)

    def exchanges(self, otherwise: Callable[[Exchange], object] | None = None) -> Iterator[Exchange]:
        """Yield those that are wanted; the others are shown to ``otherwise``."""
        for exchange in exchanges_of(with_progress(self.opened), self.builder):
            if self.is_wanted(exchange):
                yield exchange
            elif otherwise:
                otherwise(exchange)

    def is_wanted(self, exchange: Exchange) -> bool:
        """Tell whether the filter takes an exchange that ended, and count it."""
        matches = self.wanted.matches(exchange, self._bodies)
        if self._bodies:
            self._bodies.forget(exchange)
        self.count += matches
        return matches

    def close(self) -> None:
        """Say what else there is to know."""
        sys.stdout.flush()
        warn_of(self.opened)
        click.echo(self._closing_line(), err=True)

    def _closing_line(self) -> str:
        builder, totals = self.builder, self.opened.totals
        shown = f"{self.count:,} of " if self.wanted.text.strip() else ""
        parts = [
            f"{shown}{count_of(builder.exchange_count, 'exchange')} on {count_of(builder.flow_count, 'connection')}"
        ]
        for protocol, number in sorted(Counter(other.protocol for other in builder.others()).items()):
            if protocol == "h2":
                what = "was HTTP/2 without an exchange" if number == 1 else "were HTTP/2 without an exchange"
            else:
                what = f"spoke {'something unknown' if protocol == 'unknown' else visible(protocol)}"
            parts.append(f"{count_of(number, 'connection')} {what}")
        if builder.unparsed_bytes:
            parts.append(f"{human_size(builder.unparsed_bytes)} of HTTP connections not readable as HTTP")
        if totals and not totals.complete:
            parts.append(f"{count_of(totals.lost, 'byte')} lost in {count_of(totals.gaps, 'hole')}")
        return "; ".join(parts)


@click.command()
@click.argument("file", type=click.Path(readable=False))
@click.argument("filter_words", nargs=-1, metavar="[FILTER]")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object a line (docs/exchange.schema.json); also with --flows and --stats.",
)
@click.option(
    "--messages",
    is_flag=True,
    help="With --json: also every message in WebSockets, gRPC calls, event streams and multipart bodies.",
)
@click.option("--har", is_flag=True, help="A HAR file, for the developer tools of browsers.")
@click.option("--mitmproxy", "flows_file", type=click.Path(allow_dash=True), metavar="OUT",
              help="Write a flow file, for mitmproxy; - for standard output.")  # fmt: skip
@click.option("--curl", is_flag=True, help="Commands that repeat the requests.")
@click.option(
    "--address", is_flag=True, help="With --curl: connect to the recorded address, not to what the name means today."
)
@click.option("--headers", is_flag=True, help="The heads of requests and responses, as they were sent.")
@click.option(
    "--flows", is_flag=True, help="Connections: process, addresses and how they were found, names, bytes, holes."
)
@click.option("--stats", is_flag=True, help="Sums and latencies by host, status, type and process.")
@click.option("--follow", "follow_id", type=click.IntRange(min=1), metavar="ID",
              help="The whole conversation on the connection of this exchange.")  # fmt: skip
@click.option("--follow-flow", "flow_id", type=click.IntRange(min=1), metavar="FLOW",
              help="The same for a connection by its number in --flows, also when it is not HTTP.")  # fmt: skip
@click.option("--body", "body_id", type=click.IntRange(min=1), metavar="ID",
              help="Write the body of this exchange's response to standard output.")  # fmt: skip
@click.option("--request-body", is_flag=True, help="With --body: the request's body instead.")
@click.option("--raw", is_flag=True, help="With --body: don't undo the content encoding.")
@click.option(
    "--hex", "as_hex", is_flag=True, help="With --body, --follow or --follow-flow: every byte, in hexadecimal."
)
@click.option("--bodies", "bodies_folder", type=click.Path(), metavar="DIR",
              help="Write every body to a file of its own in this folder.")  # fmt: skip
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Color what goes to standard output.")  # fmt: skip
def inspect(
    file: str,
    *,
    filter_words: tuple[str, ...],
    as_json: bool,
    messages: bool,
    har: bool,
    flows_file: str | None,
    curl: bool,
    address: bool,
    headers: bool,
    flows: bool,
    stats: bool,
    follow_id: int | None,
    flow_id: int | None,
    body_id: int | None,
    request_body: bool,
    raw: bool,
    as_hex: bool,
    bodies_folder: str | None,
    color: str,
) -> None:
    """Show the HTTP exchanges in FILE, a sidecar or a pcapng that tlscap wrote.

    FILTER says which ones (docs/filters.md). A "!" at the end of a row says that not every byte of the exchange was seen; --json
    says why.

    \b
      tlscap inspect c.pcapng
      tlscap inspect c.pcapng host:api.example.com status:5xx
      tlscap inspect c.pcapng 'method:POST body~"token" time>1s' --json
      tlscap inspect c.pcapng --follow 3
    """
    modes = {
        "--json": as_json and not (flows or stats),
        "--har": har,
        "--mitmproxy": flows_file is not None,
        "--curl": curl,
        "--flows": flows,
        "--stats": stats,
        "--follow": follow_id is not None,
        "--follow-flow": flow_id is not None,
        "--body": body_id is not None,
        "--bodies": bodies_folder is not None,
    }
    chosen = [name for name, is_chosen in modes.items() if is_chosen]
    _check(
        chosen,
        request_body=request_body,
        raw=raw,
        as_hex=as_hex,
        address=address,
        headers=headers,
        messages=messages,
    )
    wanted = compile_filter(" ".join(filter_words))
    if filter_words and any(mode in chosen for mode in ("--body", "--follow", "--follow-flow")):
        raise UsageError(f"{chosen[0]} names what to show: it takes no filter")
    with quiet_broken_pipe(), capture.open_capture(file) as opened:
        # What a mode needs is imported when it is used: the table comes at once.
        if body_id is not None:
            from tlscap.cli.extract import write_body  # noqa: PLC0415

            write_body(opened, body_id, Side.REQUEST if request_body else Side.RESPONSE, raw=raw, as_hex=as_hex)
        elif bodies_folder is not None:
            from tlscap.cli.extract import write_bodies  # noqa: PLC0415

            write_bodies(opened, wanted, bodies_folder)
        elif flows_file is not None:
            from tlscap.cli.extract import write_flows  # noqa: PLC0415

            write_flows(opened, wanted, flows_file)
        elif follow_id is not None or flow_id is not None:
            from tlscap.cli.reading import follow  # noqa: PLC0415

            follow(opened, follow_id, flow_id, heads_only=headers, as_hex=as_hex, color=use_color(color))
        elif flows:
            from tlscap.cli.reading import list_flows  # noqa: PLC0415

            list_flows(opened, wanted, as_json=as_json, color=use_color(color))
        elif stats:
            from tlscap.cli.reading import show_stats  # noqa: PLC0415

            show_stats(opened, wanted, as_json=as_json)
        else:
            from tlscap.cli.listing import list_exchanges  # noqa: PLC0415

            form = chosen[0].removeprefix("--") if chosen else "headers" if headers else "table"
            list_exchanges(opened, wanted, form, with_messages=messages, address=address, color=use_color(color))


def _check(
    chosen: list[str],
    *,
    request_body: bool,
    raw: bool,
    as_hex: bool,
    address: bool,
    headers: bool,
    messages: bool,
) -> None:
    """Refuse options that make no sense together."""
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} are two answers: ask for one of them")
    mode = chosen[0] if chosen else ""
    if (request_body or raw) and mode != "--body":
        raise UsageError("--request-body and --raw need --body ID")
    if as_hex and mode not in ("--body", "--follow", "--follow-flow"):
        raise UsageError("--hex needs --body, --follow or --follow-flow")
    if messages and mode != "--json":
        raise UsageError("--messages needs --json, without --flows and --stats")
    if address and mode != "--curl":
        raise UsageError("--address needs --curl")
    if headers and mode not in ("", "--follow", "--follow-flow"):
        raise UsageError(f"--headers and {mode} are two answers: ask for one of them")
