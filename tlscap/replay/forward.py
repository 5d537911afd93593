"""Asks the real server what the recording has no answer to, and makes a recorded exchange of it.

For the record modes that add to a recording where the kernel can't be asked.  The client is told what the server said, byte for byte;
what is kept of it is what `tlscap.replay.recording` would have read from a capture, with one difference: fields of HTTP/1.1 that
concern a connection alone are the server's towards us.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
import ssl
import time
from typing import Final
from urllib.parse import urlsplit

import httpx

from tlscap.http.decoding import content_codings
from tlscap.http.events import Header
from tlscap.http.messages import field_values
from tlscap.model import Endpoint, Flow, Process, Role, TupleSource
from tlscap.replay.recording import Piece, RecordedExchange, RecordedRequest, RecordedResponse
from tlscap.replay.redirect import PORTS, resolve
from tlscap.replay.serve import ReceivedRequest
from tlscap.replay.serve.answers import UnservableError, answer_to

PATIENCE_S: Final = 60.0
BODY_LIMIT: Final = 64 << 20

# What concerns the connection that a field came over (RFC 9110, 7.6.1), and trailers, which are not passed on.
_OF_CONNECTION: Final = frozenset(
    {
        b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"proxy-authorization",
    }
)  # fmt: skip


class ForwardError(Exception):
    """The real server can't be asked; ``str(error)`` says why."""


class Forwarder:
    """Takes what was received, gives what the real server answered.

    ``trusted`` are the authorities that verify real servers, as PEM.  What names no server but this one is asked of ``upstream``, a URL.
    """

    def __init__(self, trusted: bytes = b"", upstream: str = "") -> None:
        self._trust = ssl.create_default_context(cadata=trusted.decode("ascii", "replace") or None)
        self._upstream = urlsplit(upstream)
        self.problems: list[str] = []
        """What could not be asked, and why."""
        self._numbers = itertools.count(1)
        self.exchanges: list[RecordedExchange] = []
        """What was asked and answered, in the order in which it ended."""

    async def __call__(self, received: ReceivedRequest) -> RecordedExchange | None:
        """Ask the server that the request names; ``None`` when that is in vain."""
        received = self._addressed(received)
        try:
            exchange = await self._ask(received)
            answer_to(exchange)  # what the server would refuse to say is not kept
        except (
            ForwardError,
            UnservableError,
            httpx.HTTPError,
            httpx.InvalidURL,
            OSError,
            ValueError,
            ExceptionGroup,
        ) as error:
            authority = received.authority.decode("latin-1")
            self.problems.append(f"{authority} can't be asked: {error or type(error).__name__}")
            return None
        self.exchanges.append(exchange)
        return exchange

    async def _ask(self, received: ReceivedRequest) -> RecordedExchange:
        if received.websocket or received.protocol:
            raise ForwardError("a WebSocket can't be forwarded: the kernel can record it (tlscap_recorder = kernel)")
        if any(value.startswith(b"application/grpc") for value in field_values(received.headers, b"content-type")):
            raise ForwardError("gRPC can't be forwarded: the kernel can record it (tlscap_recorder = kernel)")
        host, port = _split(received.authority.decode("latin-1"), received.scheme)
        # Whoever led the client here has the resolver lead here, and the environment.
        found = await asyncio.to_thread(resolve, host, port, type=socket.SOCK_STREAM)
        address = str(found[0][4][0])
        request = self._request(received, host, address, port)
        pieces: list[Piece] = []
        size = 0
        started_ns = time.time_ns()
        async with httpx.AsyncClient(verify=self._trust, http2=True, trust_env=False, timeout=PATIENCE_S) as client:
            response = await client.send(request, stream=True)
            head_ns = time.time_ns()
            async for data in response.aiter_raw():
                size += len(data)
                if size > BODY_LIMIT:
                    raise ForwardError(f"the answer is larger than {BODY_LIMIT >> 20} MiB")
                pieces.append(Piece(data, time.time_ns(), len(received.body)))
            await response.aclose()
        return self._recorded(received, response, pieces, started_ns, head_ns, Endpoint(address, port))

    def _addressed(self, received: ReceivedRequest) -> ReceivedRequest:
        """Return the request as one to the upstream, when there is one."""
        if not self._upstream.netloc:
            return received
        authority = self._upstream.netloc.encode()
        headers = tuple((name, authority if name.lower() == b"host" else value) for name, value in received.headers)
        return dataclasses.replace(received, scheme=self._upstream.scheme, authority=authority, headers=headers)

    def _request(self, received: ReceivedRequest, host: str, address: str, port: int) -> httpx.Request:
        headers = _end_to_end(received.headers)
        if not field_values(received.headers, b"host"):
            headers.insert(0, (b"Host", received.authority))
        place = f"[{address}]" if ":" in address else address
        url = httpx.URL(f"{received.scheme}://{place}:{port}").copy_with(raw_path=received.target)
        method = received.method.decode("latin-1")
        request = httpx.Request(
            method,
            url,
            headers=headers,
            content=received.body or None,
            extensions={"sni_hostname": host} if received.scheme == "https" else {},
        )
        request.method = method  # httpx writes it in capitals
        return request

    def _recorded(
        self,
        received: ReceivedRequest,
        response: httpx.Response,
        pieces: list[Piece],
        started_ns: int,
        head_ns: int,
        remote: Endpoint,
    ) -> RecordedExchange:
        number = next(self._numbers)
        version = str(response.http_version)
        is_http2 = version == "HTTP/2"
        ended_ns = pieces[-1].time_ns if pieces else head_ns
        headers = tuple(response.headers.raw)
        authority = received.authority.decode("latin-1")
        host, _ = _split(authority, received.scheme)
        asked = tuple(
            (name.lower() if is_http2 else name, value)
            for name, value in _end_to_end(received.headers)
            if not (is_http2 and name.lower() == b"host")
        )
        if not is_http2 and not any(name.lower() == b"host" for name, _ in asked):
            asked = ((b"Host", received.authority), *asked)
        flow = Flow(
            id=number,
            process=Process(pid=-1),
            opened_ns=started_ns,
            remote=remote,
            tuple_source=TupleSource.IMPORTED,
            plaintext=received.scheme != "https",
            role=Role.CLIENT,
            sni=host if received.scheme == "https" else "",
            alpn="h2" if is_http2 else "http/1.1",
            closed_ns=ended_ns,
        )
        return RecordedExchange(
            id=number,
            number=1,
            flow=flow,
            url=f"{received.scheme}://{authority}{received.target.decode('latin-1')}",
            protocol="h2" if is_http2 else version.lower(),
            request=RecordedRequest(
                headers=asked,
                version=version.encode(),
                started_ns=started_ns,
                ended_ns=started_ns,
                encodings=content_codings(asked),
                pieces=[Piece(received.body, started_ns, 0)] if received.body else [],
                method=received.method,
                target=received.target,
                scheme=received.scheme,
                authority=received.authority,
            ),
            response=RecordedResponse(
                headers=headers,
                version=version.encode(),
                started_ns=head_ns,
                ended_ns=ended_ns,
                encodings=content_codings(headers),
                pieces=pieces,
                status=response.status_code,
                reason=b"" if is_http2 else response.reason_phrase.encode("latin-1", "replace"),
            ),
            complete=True,
            problems=(),
        )


def _end_to_end(headers: tuple[Header, ...]) -> list[Header]:
    """Return the fields that are not about the connection they came over."""
    named = {name.strip().lower() for value in field_values(headers, b"connection") for name in value.split(b",")}
    return [(name, value) for name, value in headers if name.lower() not in _OF_CONNECTION | named]


def _split(authority: str, scheme: str) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[::1]:port``.  Raises `ForwardError`."""
    try:
        url = httpx.URL(f"{scheme}://{authority}")
    except (httpx.InvalidURL, ValueError) as error:
        raise ForwardError(f"no server: {authority!r}") from error
    if url.userinfo:
        raise ForwardError("it names a user in its host")
    if not url.host:
        raise ForwardError("the request names no server")
    return url.host, url.port or PORTS.get(scheme, 443)
