"""``tlscap diff``: what changed from one capture to another."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Final

import click

from tlscap.capture import Capture, open_capture
from tlscap.cli.output import Sinks, count_of, exchanges_of, quiet_broken_pipe, use_color, warn_of, with_progress
from tlscap.diff import VOLATILE, Comparison, Outline, Outliner, Rules, Seen, compare, explain
from tlscap.export.table import visible
from tlscap.filters import Filter, compile_filter
from tlscap.http.bodies import BodyCollector
from tlscap.http.events import Side
from tlscap.http.exchanges import ExchangeBuilder

DIFFERENT: Final = 7
"""Exit status: the captures differ."""

_COLORS: Final = {"-": "\x1b[31m", "+": "\x1b[32m", "~": "\x1b[33m"}
_RESET: Final = "\x1b[0m"


@click.command(epilog=f"Not compared unless asked for: the header fields {', '.join(sorted(VOLATILE))}.")
@click.argument("before", type=click.Path(readable=False))
@click.argument("after", type=click.Path(readable=False))
@click.option(
    "--filter", "wanted", default="", metavar="FILTER", help="Compare only these exchanges (docs/filters.md)."
)
@click.option("--ignore-header", "ignored", multiple=True, metavar="NAME", help="Don't compare this field. Repeatable.")
@click.option("--all-headers", is_flag=True, help="Compare the fields that differ every time, too.")
@click.option("--no-bodies", is_flag=True, help="Don't compare bodies.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Explain at most this many changes."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True,
              help="Color the lines by what they say.")  # fmt: skip
def diff(
    before: str,
    after: str,
    *,
    wanted: str,
    ignored: tuple[str, ...],
    all_headers: bool,
    no_bodies: bool,
    limit: int,
    as_json: bool,
    color: str,
) -> None:
    """Show the exchanges that appeared, vanished or changed between two captures.

    Exchanges are paired by method and URL, in order. Exit status 0: nothing differs; 7: something does.
    """
    base = frozenset() if all_headers else VOLATILE
    rules = Rules(base | {name.lower() for name in ignored}, bodies=not no_bodies)
    chosen = compile_filter(wanted)
    with quiet_broken_pipe(), open_capture(before) as old, open_capture(after) as new:
        result = compare(_outlines(old, rules, chosen), _outlines(new, rules, chosen))
        shown = result.changed[:limit]
        was = _seen(old, {difference.before.id for difference in shown})
        now = _seen(new, {difference.after.id for difference in shown})
        colored = use_color(color) and not as_json
        for line in _json_lines(result, was, now, rules) if as_json else _lines(result, was, now, rules):
            click.echo(_colored(line) if colored else line, color=True)
        sys.stdout.flush()
        warn_of(old)
        warn_of(new)
    click.echo(_closing(result, len(shown)), err=True)
    if not result.equal:
        raise SystemExit(DIFFERENT)


def _outlines(capture: Capture, rules: Rules, wanted: Filter) -> list[Outline]:
    outliner = Outliner(rules)
    bodies = BodyCollector(limit=16 << 20, chosen=lambda _, side: side in wanted.needs_bodies)
    builder = ExchangeBuilder(Sinks(outliner, bodies) if wanted.needs_bodies else outliner)
    outlines = []
    for exchange in exchanges_of(with_progress(capture), builder):
        outline = outliner.outline(exchange)
        if wanted.matches(exchange, bodies):
            outlines.append(outline)
        bodies.forget(exchange)
    return outlines


def _seen(capture: Capture, ids: set[int]) -> dict[int, Seen]:
    """Read a few exchanges again, with their bodies."""
    if not ids:
        return {}
    collector = BodyCollector(chosen=lambda exchange, _: exchange.id in ids)
    found: dict[int, Seen] = {}
    for exchange in exchanges_of(with_progress(capture), ExchangeBuilder(collector)):
        if exchange.id in ids:
            found[exchange.id] = Seen(exchange, {side: collector.take(exchange, side) for side in Side})
        collector.forget(exchange)
        if len(found) == len(ids):
            break
    return found


def _lines(result: Comparison, was: dict[int, Seen], now: dict[int, Seen], rules: Rules) -> Iterator[str]:
    for outline in result.vanished:
        yield visible(f"- {outline.name}  {_status(outline)}  (exchange {outline.id})")
    for outline in result.appeared:
        yield visible(f"+ {outline.name}  {_status(outline)}  (exchange {outline.id})")
    for difference in result.changed:
        before, after = difference.before, difference.after
        yield visible(f"~ {after.name}  (exchange {before.id}, now {after.id})")
        if before.id in was and after.id in now:
            for line in explain(was[before.id], now[after.id], rules):
                yield "    " + visible(line)


def _json_lines(result: Comparison, was: dict[int, Seen], now: dict[int, Seen], rules: Rules) -> Iterator[str]:
    def of(outline: Outline) -> dict[str, object]:
        return {"id": outline.id, "method": outline.method, "url": outline.url, "status": outline.status}

    for outline in result.vanished:
        yield json.dumps({"change": "vanished", "before": of(outline), "after": None})
    for outline in result.appeared:
        yield json.dumps({"change": "appeared", "before": None, "after": of(outline)})
    for difference in result.changed:
        before, after = difference.before, difference.after
        known = before.id in was and after.id in now
        details = list(explain(was[before.id], now[after.id], rules)) if known else None
        yield json.dumps({"change": "changed", "before": of(before), "after": of(after), "details": details})


def _status(outline: Outline) -> str:
    return "no response" if outline.status is None else str(outline.status)


def _colored(line: str) -> str:
    color = _COLORS.get(line.lstrip()[:1], "")
    return f"{color}{line}{_RESET}" if color else line


def _closing(result: Comparison, shown: int) -> str:
    parts = [f"{count_of(result.same, 'exchange')} the same"]
    for name, number in (
        ("vanished", len(result.vanished)),
        ("appeared", len(result.appeared)),
        ("changed", len(result.changed)),
    ):
        if number:
            parts.append(f"{number} {name}")
    if shown < len(result.changed):
        parts.append(f"{shown} of them explained (--limit)")
    return ", ".join(parts)
