"""Many conversations at once, each of noise of its own; what the crowd programs in Python have in common.

A turn is a header, how many bytes follow and how many are to come back, then those bytes, then the answer's bytes.  An account
is what one end of a connection says of it: its own port and the peer's, and size and SHA-256 of what it sent and received.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import ssl
import struct
import sys
from typing import Any

HEADER = struct.Struct("!II")
TURNS = 4
LEAST, MOST = 200, 4000
"""Bytes of a turn, in either direction."""
AT_ONCE = 100
"""Handshakes; connections, once they stand, all stay open."""


class End:
    """One end of a connection, and its account."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.local: int = writer.get_extra_info("sockname")[1]
        self.remote: int = writer.get_extra_info("peername")[1]
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._sizes = [0, 0]

    def _note(self, direction: int, piece: bytes) -> None:
        self._hashes[direction].update(piece)
        self._sizes[direction] += len(piece)

    async def receive(self, size: int) -> bytes:
        """As the bytes come, in many pieces."""
        whole = b""
        while len(whole) < size:
            piece = await self.reader.read(size - len(whole))
            if not piece:
                raise EOFError
            whole += piece
        self._note(0, whole)
        return whole

    async def send(self, content: bytes) -> None:
        """In a few pieces, with others' turns between them."""
        self._note(1, content)
        cut = random.randrange(len(content))
        for piece in (content[:cut], content[cut:]):
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    @property
    def account(self) -> dict[str, Any]:
        received, sent = ((size, seen.hexdigest()) for size, seen in zip(self._sizes, self._hashes, strict=True))
        return {"local": self.local, "remote": self.remote, "sent": sent, "received": received}


def allow_many_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def converse(
    port: int, gate: asyncio.Semaphore, present: asyncio.Barrier, context: ssl.SSLContext
) -> dict[str, Any]:
    """A client: connects, waits until everybody has, and takes its turns."""
    async with gate:
        end = End(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))
    await present.wait()
    for _ in range(TURNS):
        await asyncio.sleep(random.random() / 10)
        size, answer = (random.randrange(LEAST, MOST) for _ in range(2))
        await end.send(HEADER.pack(size, answer) + os.urandom(size))
        await end.receive(answer)
    await end.close()
    return end.account


async def crowd(port: int, count: int, *, holds: bool = False) -> list[dict[str, Any]]:
    """So many clients at once; returns their accounts.

    With ``holds``, "ready" is printed when all are connected, and they wait for a line on standard input.
    """
    context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
    gate, present = asyncio.Semaphore(AT_ONCE), asyncio.Barrier(count + holds)
    clients = asyncio.gather(*(converse(port, gate, present, context) for _ in range(count)))
    if holds:
        while present.n_waiting < count:  # noqa: ASYNC110 - a barrier tells nobody how full it is
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await present.wait()
    return await clients


async def serve(certificate: str, key: str, accounts: list[dict[str, Any]]) -> asyncio.Server:
    """A server on a free port of the loopback interface; accounts are appended as connections end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def take_turns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = End(reader, writer)
        try:
            while True:
                size, answer = HEADER.unpack(await end.receive(HEADER.size))
                await end.receive(size)
                await end.send(os.urandom(answer))
        except (EOFError, ConnectionError):
            accounts.append(end.account)
        await end.close()

    return await asyncio.start_server(take_turns, "127.0.0.1", 0, ssl=context, backlog=4096)


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port
