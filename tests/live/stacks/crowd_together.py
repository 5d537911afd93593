"""Clients and their server in one process: CERTIFICATE KEY COUNT.

Every TLS record passes through two sockets of the process.  With "proxied" as a fourth argument there is a TCP proxy between
them, also here, that cuts the streams elsewhere: then it is four.  With "late" it waits until its library, which nobody has
used before, is hooked; with "hold" as `crowd` describes.  Prints {"clients": accounts, "servers": accounts}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from typing import Any

from live.stacks.crowd import allow_many_files, crowd, port_of, serve
from live.stacks.plan import MOMENT_S


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(random.choice((700, 5000, 1 << 16))):
            writer.write(piece)
            if random.random() < 0.5:
                await asyncio.sleep(0.001)
        writer.close()


async def start_proxy(port: int) -> asyncio.Server:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, onward_writer), pass_on(onward_reader, writer))

    return await asyncio.start_server(connect, "127.0.0.1", 0, backlog=1024)


async def main() -> None:
    allow_many_files()
    certificate, key, count, *how = sys.argv[1:]
    if "late" in how:
        await asyncio.sleep(MOMENT_S)
    servers: list[dict[str, Any]] = []
    server = await serve(certificate, key, servers)
    proxy = await start_proxy(port_of(server)) if "proxied" in how else server
    clients = await crowd(port_of(proxy), int(count), holds="hold" in how)
    while len(servers) < len(clients):  # noqa: ASYNC110 - they end by themselves
        await asyncio.sleep(0.01)
    print(json.dumps({"clients": clients, "servers": servers}))


asyncio.run(main())
