"""Sends recorded requests to a live server, and compares its answers with those that were recorded.

A request is sent as it was recorded: method, target, header fields (names, order, repeated ones) and body with its codings.  What has to be
another is: Host, or HTTP/2's ``:authority``, which name the server that is asked now (`Options.keep_host`); values of today
(`tlscap.replay.variables`); what the user asks for; and the framing, which is httpx's: chunks have other borders, Host comes first,
and a request recorded with one version of HTTP is rewritten when it is sent with the other (RFC 9113, 8.2.2 and 8.2.3).

Nothing but the origin that was given is ever connected to: redirects are compared, not followed, and no proxy is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx

from tlscap.errors import TlscapError, UsageError
from tlscap.http.events import Header
from tlscap.replay.compare import Answer, Comparing, Expected, compare
from tlscap.replay.recording import RecordedExchange, RecordedRequest
from tlscap.replay.report import Outcome, Result
from tlscap.replay.variables import Plan, Variables

MOST_BODY: Final = 256 << 20
"""Bytes of a live answer's body that are held."""

_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings", b"host"}
)
"""Header fields that HTTP/2 has not (RFC 9113, 8.2.2), in lower case."""

_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""Methods that may be sent twice (RFC 9110, 9.2.2)."""

_GRPC: Final = b"application/grpc"


class Target:
    """Where requests go: an origin, and a path that comes before theirs."""

    def __init__(self, url: str) -> None:
        """Raise `UsageError` for what is no URL of a server."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a server", hint="such as http://localhost:8000")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise UsageError(
                f"{url!r} has more than a server and a path", hint="a field can be added with --header 'Name: value'"
            )
        self.scheme = parts.scheme
        try:
            self.url = httpx.URL(f"{parts.scheme}://{parts.netloc}")
        except httpx.InvalidURL as error:
            raise UsageError(f"{url!r} is no URL: {error}") from None
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.authority = self.url.netloc
        self.prefix = parts.path.rstrip("/").encode()

    @property
    def origin(self) -> str:
        """``http://localhost:8000``."""
        return f"{self.scheme}://{self.authority.decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Options:
    """How requests are sent."""

    keep_host: bool = False
    """Say the recorded host in Host or ``:authority``, and in the TLS handshake."""
    changed: tuple[Header, ...] = ()
    """Fields that are added; those with the same name are replaced."""
    removed: frozenset[bytes] = frozenset()
    """Names of fields that are left out, in lower case."""
    concurrency: int = 1
    """Requests under way at once.  With 1 all go in the order of the recording; else only those of one connection do."""
    speed: float | None = None
    """Times of the recording, so many times as fast; ``None``: as soon as possible."""
    timeout_s: float = 60.0
    """For one exchange, from the request to the end of the answer."""
    http2: bool | None = None
    """``None``: as recorded, if the server can."""
    context: ssl.SSLContext | None = None
    """What is trusted, for https."""
    retries: int = 0
    methods: frozenset[bytes] = frozenset()
    """Those that are sent; empty: all."""
    without_response: bool = False
    """Send requests, too, whose answer was not recorded."""


def why_not(exchange: RecordedExchange, options: Options) -> str:
    """Return why an exchange is not sent, or an empty text."""
    request = exchange.request
    if exchange.upgraded_to == "websocket":
        return "WebSocket"
    if exchange.upgraded_to or request.method == b"CONNECT" or request.protocol:
        return "a tunnel, or a change of protocol"
    if options.methods and request.method not in options.methods:
        return "its method is not one of --methods"
    if request.pushed:
        return "pushed by the server, not asked for"
    if not request.complete:
        return "its request is incomplete"
    if exchange.response is None and not options.without_response:
        return "no response was recorded"
    return ""


# --- Requests ---


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it goes out."""

    method: bytes
    target: bytes
    headers: tuple[Header, ...]
    body: bytes
    server_name: str = ""
    """For the TLS handshake, when it is not the target's."""
    notes: tuple[str, ...] = ()


def prepare(
    exchange: RecordedExchange, target: Target, options: Options, variables: Variables, *, is_http2: bool
) -> Prepared:
    """Return what is sent for a recorded request now."""
    request = exchange.request
    notes = []
    body = request.body
    if not request.encodings:
        body = variables.body(request.headers, body)
    path = variables.target(_path(request))
    if path.startswith(b"/"):
        path = target.prefix + path
    host = request.authority if options.keep_host and request.authority else target.authority
    replaced = {name.lower() for name, _ in options.changed} | options.removed
    headers = [
        (name, host if name.lower() == b"host" else variables.header(name, value))
        for name, value in request.headers
        if name.lower() not in replaced or name.lower() == b"host"
    ]
    if not any(name.lower() == b"host" for name, _ in headers):
        headers.insert(0, (b"Host", host))  # of HTTP/2, where httpx makes :authority of it
    headers += [one for one in options.changed if one[0].lower() != b"host"]
    for name, value in options.changed:
        if name.lower() == b"host":
            headers = [(key, value if key.lower() == b"host" else old) for key, old in headers]
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    if is_http2:
        headers = _for_http2(headers)
    elif request.version == b"HTTP/2":
        headers = _for_http1(headers)
    headers = [
        (name, b"%d" % len(body) if name.lower() == b"content-length" and body else value) for name, value in headers
    ]
    if body and not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers):
        # HTTP/2 needs no length, and httpx takes this as a sign that there is a body: it does not send the field.
        headers.append((b"transfer-encoding", b"chunked") if is_http2 else (b"Content-Length", b"%d" % len(body)))
    if is_chunked and not is_http2:
        headers = [one for one in headers if one[0].lower() != b"content-length"]  # RFC 9112, 6.3
    if request.trailers:
        notes.append("the request's trailers are not sent")
    server_name = exchange.hostname if options.keep_host else ""
    return Prepared(request.method, path, tuple(headers), body, server_name, tuple(notes))


def _path(request: RecordedRequest) -> bytes:
    """Return the target without a scheme and an authority, which requests to proxies have."""
    target = request.target
    if target.startswith((b"/", b"*")):
        return target
    _, mark, rest = target.partition(b"://")
    if not mark:
        return target
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"


def _for_http2(headers: Iterable[Header]) -> list[Header]:
    """Leave out what belongs to a connection of HTTP/1.1, also by name; Host stays, for httpx."""
    headers = list(headers)
    named = {
        word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")
    }
    left_out = (_CONNECTION_FIELDS | named) - {b"host"}
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in left_out and not (name.lower() == b"te" and value.strip().lower() != b"trailers")
    ]


def _for_http1(headers: Iterable[Header]) -> list[Header]:
    """Join what HTTP/2 may send as several Cookie fields (RFC 9113, 8.2.3)."""
    found: list[Header] = []
    place = -1
    for name, value in headers:
        if name.lower() == b"cookie" and place >= 0:
            found[place] = (name, found[place][1] + b"; " + value)
            continue
        if name.lower() == b"cookie":
            place = len(found)
        found.append((name, value))
    return found


# --- Sending ---


class Unreachable(TlscapError):  # noqa: N818 - it is the server that is
    """Nobody listens at the target, or TLS can't be agreed on."""


@dataclass(slots=True)
class _Connection:
    """A connection of the recording, and the one in its place."""

    left: int
    transports: dict[bool, httpx.AsyncHTTPTransport] = field(default_factory=dict)
    """By whether it is HTTP/2: what was recorded of one connection is all of one kind, unless the user says otherwise."""

    async def close(self) -> None:
        for transport in self.transports.values():
            with contextlib.suppress(httpx.HTTPError, OSError):
                await transport.aclose()
        self.transports.clear()


class Sender:
    """One replay of some exchanges."""

    def __init__(
        self, exchanges: Iterable[RecordedExchange], target: Target, options: Options, comparing: Comparing, plan: Plan,
        variables: Variables,
    ) -> None:  # fmt: skip
        self._exchanges = list(exchanges)
        self._target = target
        self._options = options
        self._comparing = comparing
        self._plan = plan
        self._variables = variables
        self._done = {exchange.id: asyncio.Event() for exchange in self._exchanges}
        self._turn = asyncio.Semaphore(options.concurrency)
        self._connections: dict[int, _Connection] = {}
        self._can_http2 = False
        self._started = 0.0
        self._first_ns = min((exchange.request.started_ns for exchange in self._exchanges), default=0)
        for exchange in self._exchanges:
            self._connections.setdefault(exchange.flow.id, _Connection(0)).left += 1

    async def run(self, report: Callable[[Result], None]) -> None:
        """Send everything; each result is reported as it comes.  Raises `Unreachable` before anything is sent."""
        if not self._exchanges:
            return
        self._can_http2 = await self._probe()
        self._started = time.monotonic()
        try:
            if self._options.concurrency == 1:
                for exchange in self._exchanges:
                    report(await self._one(exchange))
                return
            lanes: dict[int, list[RecordedExchange]] = {}
            for exchange in self._exchanges:
                lanes.setdefault(exchange.flow.id, []).append(exchange)
            try:
                async with asyncio.TaskGroup() as group:
                    for lane in lanes.values():
                        group.create_task(self._lane(lane, report))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None  # such as a pipe that nobody reads any more
        finally:
            for connection in self._connections.values():
                await connection.close()

    async def _lane(self, exchanges: list[RecordedExchange], report: Callable[[Result], None]) -> None:
        for exchange in exchanges:
            # An answer that this one depends on is always of an earlier request: nobody waits for each other.
            for origin in self._plan.needs.get(exchange.id, ()):
                await self._done[origin].wait()
            async with self._turn:
                result = await self._one(exchange)
            report(result)

    async def _probe(self) -> bool:
        """Connect once: a wrong address is one error, not one for each request.  Return whether the server speaks HTTP/2."""
        target, options = self._target, self._options
        context = options.context if target.scheme == "https" else None
        if context:
            context.set_alpn_protocols(["h2", "http/1.1"] if options.http2 is not False else ["http/1.1"])
        name = self._server_name(self._exchanges[0]) if context else None
        try:
            async with asyncio.timeout(options.timeout_s):
                _, writer = await asyncio.open_connection(target.host, target.port, ssl=context, server_hostname=name)
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(
                f"{target.origin}: the server's certificate is not trusted: {error.verify_message}",
                hint="--ca-file says whom to trust, --insecure trusts everybody",
            ) from None
        except ssl.SSLError as error:
            raise Unreachable(f"{target.origin}: TLS failed: {error.reason or error}") from None
        except TimeoutError:
            raise Unreachable(f"{target.origin} does not answer") from None
        except OSError as error:
            raise Unreachable(f"{target.origin} can't be reached: {error.strerror or error}") from None
        agreed = writer.get_extra_info("ssl_object")
        protocol = agreed.selected_alpn_protocol() if agreed else None
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
        if options.http2 and context and protocol != "h2":
            raise Unreachable(f"{target.origin} does not speak HTTP/2", hint="leave out --http2")
        return protocol == "h2"

    def _server_name(self, exchange: RecordedExchange) -> str:
        return (self._options.keep_host and exchange.hostname) or self._target.host

    def _is_http2(self, exchange: RecordedExchange) -> bool:
        """Choose the version: as recorded, as far as that can be."""
        if self._options.http2 is not None:
            return self._options.http2
        if exchange.protocol != "h2":
            return False
        if self._target.scheme == "https":
            return self._can_http2
        # Without TLS nothing is negotiated.  What was recorded so is spoken so again, and gRPC has nothing else.
        is_grpc = any(value.startswith(_GRPC) for value in exchange.request.values(b"content-type"))
        return exchange.flow.plaintext or is_grpc

    async def _one(self, exchange: RecordedExchange) -> Result:
        """Send one request, and compare."""
        await self._wait(exchange)
        is_http2 = self._is_http2(exchange)
        prepared = prepare(exchange, self._target, self._options, self._variables, is_http2=is_http2)
        notes = list(prepared.notes)
        if exchange.protocol == "h2" and not is_http2:
            notes.append("recorded with HTTP/2, sent with HTTP/1.1")
        began = time.monotonic()
        connection = self._connections[exchange.flow.id]
        try:
            live = await self._answer(connection, prepared, is_http2=is_http2)
        except _NoAnswer as error:
            return Result(exchange, Outcome.ERROR, reason=str(error), notes=notes, seconds=time.monotonic() - began)
        else:
            seconds = time.monotonic() - began
            return self._compared(exchange, live, notes, seconds)
        finally:
            self._done[exchange.id].set()
            connection.left -= 1
            if not connection.left:
                await connection.close()

    async def _wait(self, exchange: RecordedExchange) -> None:
        if self._options.speed:
            due = self._started + (exchange.request.started_ns - self._first_ns) / 1e9 / self._options.speed
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _compared(self, exchange: RecordedExchange, live: Answer, notes: list[str], seconds: float) -> Result:
        expected = self._variables.learn(exchange, live)
        response = exchange.response
        if response is None:
            return Result(exchange, Outcome.SENT, notes=notes, status=live.status, seconds=seconds)
        if response.trailers:
            notes.append("trailers are not compared")
        if not response.complete:
            notes.append("the recorded body is incomplete and not compared")
        recorded = Answer(response.status, response.headers, response.body, response.encodings, response.complete)
        expected.rename = self._renamed(exchange, expected)
        found = compare(recorded, live, self._comparing, method=exchange.request.method, expected=expected)
        outcome = Outcome.DIFFERENT if found else Outcome.SAME
        return Result(exchange, outcome, found, notes=notes, status=live.status, seconds=seconds)

    def _renamed(self, exchange: RecordedExchange, expected: Expected) -> Callable[[str], str]:
        """Return what puts today's origin, too, into a recorded text: a server writes its own address into what it says."""
        rename = expected.rename
        request = exchange.request
        if self._options.keep_host or not request.authority:
            return rename
        before = f"{request.scheme}://{request.authority.decode('latin-1')}"
        after = self._target.origin
        return lambda text: rename(text.replace(before, after) if before in text else text)

    async def _answer(self, connection: _Connection, prepared: Prepared, *, is_http2: bool) -> Answer:
        tries = 1 + self._options.retries
        while True:
            tries -= 1
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    return await self._exchange(self._transport(connection, is_http2=is_http2), prepared)
            except TimeoutError:
                raise _NoAnswer(f"no answer within {self._options.timeout_s:g} s") from None
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if tries <= 0:
                    raise _NoAnswer(f"can't connect: {error}") from None
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
                raise _NoAnswer(f"can't be sent as it was recorded: {error}") from None
            except httpx.TransportError as error:
                if tries <= 0 or prepared.method not in _SAFE:
                    raise _NoAnswer(_reason(error)) from None
            await connection.close()

    def _transport(self, connection: _Connection, *, is_http2: bool) -> httpx.AsyncHTTPTransport:
        transport = connection.transports.get(is_http2)
        if transport is None:
            transport = connection.transports[is_http2] = httpx.AsyncHTTPTransport(
                verify=self._options.context or False,
                http1=not is_http2,
                http2=is_http2,
                trust_env=False,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None),
            )
        return transport

    async def _exchange(self, transport: httpx.AsyncHTTPTransport, prepared: Prepared) -> Answer:
        """Send one request, and take its answer."""
        extensions: dict[str, object] = {"target": prepared.target, "timeout": {}}
        if prepared.server_name and self._target.scheme == "https":
            extensions["sni_hostname"] = prepared.server_name
        request = httpx.Request(
            prepared.method.decode("latin-1"),
            self._target.url,
            headers=list(prepared.headers),
            stream=_Body(prepared.body),
            extensions=extensions,
        )
        request.method = prepared.method.decode("latin-1")  # which the constructor puts in capitals
        response = await transport.handle_async_request(request)
        try:
            body = bytearray()
            async for piece in response.stream:  # type: ignore[union-attr]
                body += piece
                if len(body) > MOST_BODY:
                    raise _NoAnswer(f"the answer's body is longer than {MOST_BODY >> 20} MiB")
        finally:
            await response.aclose()
        headers = tuple(response.headers.raw)
        encodings = ", ".join(value.decode("latin-1") for name, value in headers if name.lower() == b"content-encoding")
        return Answer(response.status_code, headers, bytes(body), encodings)


class _NoAnswer(Exception):  # noqa: N818 - never leaves this module
    """Why there is none."""


class _Body(httpx.AsyncByteStream):
    """A body that may be sent again."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._data:
            yield self._data


def _reason(error: httpx.TransportError) -> str:
    text = str(error) or type(error).__name__
    return f"{'the connection broke' if isinstance(error, httpx.NetworkError) else 'no valid answer'}: {text}"


def trust(
    *, ca_file: str | None = None, insecure: bool = False, cert: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return whom to trust, and a client's certificate if there is one.  Raises `TlscapError`."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TlscapError(f"{ca_file}: no certificates to trust: {_of(error)}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise TlscapError(f"{cert}: no certificate with its key: {_of(error)}") from None
    return context


def _of(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
