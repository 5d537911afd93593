"""``tlscap replay serve``: answer as the recorded server did."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import tempfile
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import click

from tlscap.cli.output import count_of, quiet_broken_pipe
from tlscap.cli.rebuild import output_file
from tlscap.cli.units import Size, Timing
from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.export.table import visible
from tlscap.replay.matching import DEFAULT
from tlscap.replay.recording import MEMORY_LIMIT, RecordedExchange, load
from tlscap.replay.serve.options import ORDERS, REPEATS, ServeOptions
from tlscap.replay.serve.requests import ReceivedRequest
from tlscap.replay.serve.server import ReplayServer
from tlscap.replay.serve.state import Unmatched, json_line

DIFFERENT: Final = 7
_LISTED: Final = 20
_PEM: Final = b"-----BEGIN CERTIFICATE-----"


class Listen(click.ParamType[tuple[str, int]]):
    """``8443``, ``:8443``, ``127.0.0.1:8443``, ``[::1]:8443``, ``127.0.0.1``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        if text.isdecimal():
            text = f":{text}"
        match = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\[\]]*))(?::(?P<port>\d{1,5}))?", text)
        port = int(match["port"] or 0) if match else 0
        if match is None or port > 65535:
            self.fail(f"{value!r} is not an address such as 127.0.0.1:8443, [::1]:8443 or 8443", param, ctx)
        return match["six"] or match["host"] or "127.0.0.1", port


@click.command()
@click.argument("file", type=click.Path(readable=False))  # that is told when it is opened
@click.argument("filter", default="")
@click.option("--listen", type=Listen(), default="127.0.0.1:0", show_default=True, metavar="ADDR",
              help="Address and port; port 0: a free one.")  # fmt: skip
@click.option("--tls", "tls_only", is_flag=True, help="TLS only. Default: TLS and plaintext on the same port.")
@click.option("--plain", "plain_only", is_flag=True, help="Plaintext only.")
@click.option("--http1", "http1_only", is_flag=True, help="HTTP/1.1 only.")
@click.option("--http2", "http2_only", is_flag=True, help="HTTP/2 only.")
@click.option(
    "--cert", default="", metavar="PEM", help="Certificate and chain. Default: made for what clients ask for."
)
@click.option("--key", default="", metavar="PEM", help="Its key, if that is in another file.")
@click.option(
    "--ca-file", default="", metavar="PATH", help="Write the CA certificate to trust here. Default: a temporary file."
)
@click.option("--match", "words", default="", metavar="WORDS",
              help=f'What must be equal (docs/matching.md). Default: "{DEFAULT}".')  # fmt: skip
@click.option("--order", type=click.Choice(ORDERS), default="any", show_default=True,
              help="any; sequence: requests with the same head in recorded order; strict: all.")  # fmt: skip
@click.option("--repeat", type=click.Choice(REPEATS), default="last", show_default=True,
              help="What to answer when answers are used up: the last again, none, or from the first on.")  # fmt: skip
@click.option(
    "--timing",
    type=Timing(),
    default="none",
    show_default=True,
    metavar="none|recorded|xN",
    help="Delays; xN: N times as fast as recorded.",
)
@click.option(
    "--allow-incomplete", is_flag=True, help="Leave out exchanges of which bytes are missing, serve the others."
)
@click.option("--memory", type=Size(), default=MEMORY_LIMIT, help="Most memory for what is served. Default: 512MiB.")
@click.option("--strict-unused", is_flag=True, help="Exit with status 7, too, when something was never asked for.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: what is listened on, each request, a summary."
)
def serve(
    file: str,
    filter: str,  # noqa: A002 - the name of the argument
    *,
    listen: tuple[str, int],
    tls_only: bool,
    plain_only: bool,
    http1_only: bool,
    http2_only: bool,
    cert: str,
    key: str,
    ca_file: str,
    words: str,
    order: str,
    repeat: str,
    timing: float,
    allow_incomplete: bool,
    memory: int,
    strict_unused: bool,
    as_json: bool,
) -> None:
    """Answer requests as the recorded server did, until Ctrl-C or SIGTERM.

    One port takes TLS and plaintext, HTTP/1.1, HTTP/2, WebSocket and gRPC, and clients that use it as their proxy
    (HTTPS_PROXY). The first line of output is its URL. A request that nothing matches gets status 501, and is told what
    the nearest recorded one is and what differs.

    Exit status 0: everything matched; 7: something didn't.
    """
    if (tls_only and plain_only) or (http1_only and http2_only):
        raise UsageError("--tls and --plain, --http1 and --http2 exclude each other", hint="leave both out for both")
    options = ServeOptions(
        host=listen[0],
        port=listen[1],
        tls=not plain_only,
        plain=not tls_only,
        http1=not http2_only,
        http2=not http1_only,
        certificate=cert,
        key=key,
        match=words,
        order=order,
        repeat=repeat,
        timing=timing,
        allow_incomplete=allow_incomplete,
    )
    recording = load(file, filter, memory=memory)
    if not recording.exchanges:
        raise TlscapError(
            f"{file}: nothing to serve", hint="no exchange fits the filter" if filter else "it holds no HTTP requests"
        )
    if recording.truncated:
        click.echo(f"warning: {visible(recording.truncated)}", err=True)
    lines: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()

    def unmatched(request: Unmatched) -> None:
        if as_json:
            lines.put((json_line("unmatched", **request.details), False))
        else:
            lines.put((request.explanation, True))

    def served(request: ReceivedRequest, exchange: RecordedExchange) -> None:
        lines.put((json_line("served", exchange=exchange.id, request=exchange.name), False))

    server = ReplayServer(recording, options, on_unmatched=unmatched, on_served=served if as_json else None)
    _say_left_out(server)
    with _stopping(lines), _ca_file(server, ca_file) as trusted, quiet_broken_pipe(), server:
        for line in _greeting(server, trusted, as_json=as_json):
            click.echo(line)
        while line_or_end := lines.get():
            click.echo(line_or_end[0], err=line_or_end[1])
    while not lines.empty():
        if line_or_end := lines.get():
            click.echo(line_or_end[0], err=line_or_end[1])
    _summary(server, as_json=as_json)
    if server.unmatched_count or (strict_unused and server.unused):
        raise SystemExit(DIFFERENT)


def _greeting(server: ReplayServer, trusted: str, *, as_json: bool) -> Iterator[str]:
    options = server.options
    urls = [server.https_url] * options.tls + [server.url] * options.plain
    if as_json:
        yield json_line(
            "listening",
            url=urls[0],
            https_url=server.https_url if options.tls else None,
            http_url=server.url if options.plain else None,
            port=server.port,
            ca_file=trusted or None,
        )
        return
    yield from urls
    if trusted:
        yield f"trust {trusted}: curl --cacert, or SSL_CERT_FILE, REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS in the client's environment"


def _say_left_out(server: ReplayServer) -> None:
    for exchange, why in server.left_out[:_LISTED]:
        click.echo(visible(f"warning: exchange {exchange.id} ({exchange.name}) is left out: {why}"), err=True)
    if len(server.left_out) > _LISTED:
        click.echo(f"warning: so are {len(server.left_out) - _LISTED} more", err=True)


def _summary(server: ReplayServer, *, as_json: bool) -> None:
    unused = server.unused
    if as_json:
        never = [{"exchange": exchange.id, "request": exchange.name} for exchange in unused]
        click.echo(json_line("stopped", served=server.served, unmatched=server.unmatched_count, unused=never))
    else:
        for exchange in unused[:_LISTED]:
            click.echo(visible(f"never asked for: exchange {exchange.id}, {exchange.name}"), err=True)
        if len(unused) > _LISTED:
            click.echo(f"never asked for: {len(unused) - _LISTED} more", err=True)
        click.echo(
            f"{count_of(server.served, 'request')} served, {server.unmatched_count:,} unmatched, "
            f"{count_of(len(unused), 'exchange')} never asked for",
            err=True,
        )
    for fault in server.faults[:_LISTED]:
        click.echo(f"warning: a mistake of tlscap cost a connection: {type(fault).__name__}: {fault}", err=True)


@contextlib.contextmanager
def _stopping(lines: queue.SimpleQueue[tuple[str, bool] | None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM end the loop that reads these lines."""

    def stop(number: int, frame: FrameType | None) -> None:
        lines.put(None)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ca_file(server: ReplayServer, path: str) -> Iterator[str]:
    """A file with the certificate to trust; a temporary one unless it was given a name."""
    if not server.ca_pem:
        yield ""
        return
    if path:
        is_certificate = _is_certificate(path)
        if os.path.exists(path) and not is_certificate:
            raise OutputError(f"{path} exists already, and is no certificate", hint="give another name with --ca-file")
        with output_file(path, force=is_certificate) as file:
            file.write(server.ca_pem)
        yield path
        return
    fd, temporary = tempfile.mkstemp(prefix="tlscap-ca-", suffix=".pem")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(server.ca_pem)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _is_certificate(path: str) -> bool:
    """Tell whether this is a certificate already: that of an earlier run may be replaced, another file may not."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_PEM)) == _PEM
    except OSError:
        return False
