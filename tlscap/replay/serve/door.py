"""The door of a replay server: one port for TLS and plaintext, HTTP/1.1 and HTTP/2, direct and through CONNECT.

What a connection speaks is seen in its first bytes, without taking them (MSG_PEEK): whoever gets the connection then reads it from its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from tlscap.replay.serve.certificates import Certificates
from tlscap.replay.serve.http1 import HEAD_LIMIT, Http1Protocol
from tlscap.replay.serve.http2 import Http2Protocol
from tlscap.replay.serve.state import ReplayState, refusal

Served = Http1Protocol | Http2Protocol

_FIRST_BYTES_S: Final = 30.0
_TLS_HANDSHAKE: Final = b"\x16"  # RFC 8446, 5.1
_PREFACE: Final = b"PRI * HTTP/2.0"  # RFC 9113, 3.4
_CONNECT: Final = b"CONNECT "
_CONNECT_LINE = re.compile(rb"CONNECT ([^\s/?#]+) HTTP/1\.[01]\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_TICK_S: Final = 5.0
_FAREWELL_S: Final = 0.5  # for clients to take note of the end


class Door:
    """Accepts connections, and knows those that are open."""

    def __init__(
        self, state: ReplayState, listener: socket.socket, certificates: Certificates | None, *, websockets: bool
    ) -> None:
        self._state = state
        self._listener = listener
        self._certificates = certificates
        self._websockets = websockets
        self._open: set[Served] = set()
        self._entering: dict[asyncio.Task[None], socket.socket] = {}
        self._left = asyncio.Event()
        """Set when a connection ends."""
        self._places = asyncio.Semaphore(state.options.connections)

    async def run(self) -> None:
        """Serve, until cancelled."""
        ticking = asyncio.create_task(self._tick())
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._places.acquire()
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError:  # too many open files, or a client that was gone before it was let in
                    self._places.release()
                    await asyncio.sleep(0.05)
                    continue
                task = asyncio.create_task(self._enter(connection))
                self._entering[task] = connection
                task.add_done_callback(self._entered)
        finally:
            ticking.cancel()
            for task in self._entering:
                task.cancel()
            for served in list(self._open):
                served.shut_down()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    while self._open or self._entering:
                        self._left.clear()
                        await self._left.wait()
            for served in list(self._open):
                served.abort()

    def _entered(self, task: asyncio.Task[None]) -> None:
        connection = self._entering.pop(task)
        self._left.set()
        if task.cancelled():
            connection.close()  # it may never have begun
        elif error := task.exception():
            self._state.faults.append(error)

    async def _tick(self) -> None:
        """Close connections on which nothing happens."""
        while True:
            await asyncio.sleep(_TICK_S)
            for served in list(self._open):
                served.silent_s += _TICK_S
                if served.idle and served.silent_s > self._state.options.idle_s:
                    served.shut_down()

    # --- One connection ---

    async def _enter(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        handed_over = False
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(_FIRST_BYTES_S):
                first = await _first_bytes(connection)
                authority = b""
                if first.startswith(_CONNECT) and self._state.options.http1:
                    authority = await _take_connect(connection)
                    first = await _first_bytes(connection) if authority else b""
            if first:
                handed_over = await self._hand_over(connection, first, authority)
        except (OSError, TimeoutError):
            pass  # gone, or silent
        finally:
            if not handed_over:
                connection.close()
                self._places.release()

    async def _hand_over(self, connection: socket.socket, first: bytes, authority: bytes) -> bool:
        """Give a connection to whoever speaks its protocol; return whether there is one."""
        options = self._state.options
        loop = asyncio.get_running_loop()
        if first.startswith(_TLS_HANDSHAKE):
            if not options.tls or self._certificates is None:
                return False
            context = self._certificates.context(_host_of(authority))
            factory: Callable[[], asyncio.Protocol] = lambda: _Chooser(self, authority)  # noqa: E731
            await loop.connect_accepted_socket(factory, connection, ssl=context, ssl_handshake_timeout=_FIRST_BYTES_S)
            return True
        http2 = first.startswith(_PREFACE[: len(first)])
        if not (options.plain and self.allows(http2=http2)):
            if not http2:
                _refuse(
                    connection, f"This server speaks {'TLS' if options.tls and not options.plain else 'HTTP/2'} only."
                )
            return False
        await loop.connect_accepted_socket(lambda: self.protocol("http", authority, http2=http2), connection)
        return True

    def protocol(self, scheme: str, authority: bytes, *, http2: bool) -> Served:
        """Return what serves one connection."""
        if http2:
            served: Served = Http2Protocol(
                self._state, scheme=scheme, authority=authority, websockets=self._websockets, on_close=self.closed
            )
        else:
            served = Http1Protocol(self._state, scheme=scheme, authority=authority, on_close=self.closed)
        self._open.add(served)
        return served

    def closed(self, served: Served | None) -> None:
        """Note that a connection is over."""
        if served:
            self._open.discard(served)
            self._left.set()
        self._places.release()

    def allows(self, *, http2: bool) -> bool:
        """Tell whether a protocol is spoken here."""
        options = self._state.options
        return options.http2 if http2 else options.http1


class _Chooser(asyncio.Protocol):
    """A TLS connection until its handshake says which protocol it speaks."""

    def __init__(self, door: Door, authority: bytes) -> None:
        self._door = door
        self._authority = authority
        self._served: Served | None = None

    def connection_made(self, transport: Any) -> None:
        connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
        http2 = connection.selected_alpn_protocol() == "h2"
        if not self._door.allows(http2=http2):
            transport.abort()
            return
        self._served = self._door.protocol("https", self._authority, http2=http2)
        transport.set_protocol(self._served)
        self._served.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.closed(self._served)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, note)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


async def _peek(connection: socket.socket, enough: Callable[[bytes], bool], limit: int) -> bytes:
    """Wait for bytes that say enough, or for the end; take none of them."""
    seen = b""
    try:
        while True:
            # Level-triggered waiting for bytes that are not taken would never pause without this.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(seen) + 1)
            await _readable(connection)
            data = connection.recv(limit, socket.MSG_PEEK)
            if len(data) == len(seen) or len(data) >= limit or enough(data):
                return data
            seen = data
    finally:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _first_bytes(connection: socket.socket) -> bytes:
    """Return as many bytes as say what is spoken."""

    def enough(data: bytes) -> bool:
        return not any(word.startswith(data) and len(data) < len(word) for word in (_PREFACE, _CONNECT))

    return await _peek(connection, enough, len(_PREFACE))


async def _take_connect(connection: socket.socket) -> bytes:
    """Read a CONNECT request and accept it; return the authority that it names, or nothing if it is none."""
    head = await _peek(connection, lambda data: bool(_HEAD_END.search(data)), HEAD_LIMIT)
    line, end = _CONNECT_LINE.match(head), _HEAD_END.search(head)
    if line is None or end is None:
        _refuse(connection, "This is no CONNECT request.")
        return b""
    connection.recv(end.end())
    connection.send(_ESTABLISHED)
    return line[1]


def _refuse(connection: socket.socket, why: str) -> None:
    """Answer a client of HTTP/1 that nobody will serve."""
    with contextlib.suppress(OSError):
        connection.recv(
            HEAD_LIMIT
        )  # what is not taken would make the kernel reset the connection, and the answer with it
        connection.send(refusal(400, why).http1(bodiless=False, old=False).whole or b"")


def _host_of(authority: bytes) -> str:
    """Return the host of ``host:port``, without brackets."""
    return authority.decode("latin-1").rpartition(":")[0].strip("[]")
