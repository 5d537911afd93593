"""TLS over Unix sockets, both ends in one process: CERTIFICATE KEY FOLDER [memory].  Prints what the client said and heard.

Without "memory" it is a pair of blocking sockets and a thread for the server, with it asyncio's streams.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import threading

OUT, BACK = os.urandom(50_000), os.urandom(70_000)


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(sys.argv[1], sys.argv[2])
    return ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT), server


def receive(sock: ssl.SSLSocket, size: int) -> bytes:
    whole = b""
    while len(whole) < size:
        whole += sock.recv(size - len(whole))
    return whole


def blocking() -> None:
    client_context, server_context = contexts()
    near, far = socket.socketpair()

    def serve() -> None:
        with server_context.wrap_socket(far, server_side=True) as sock:
            assert receive(sock, len(OUT)) == OUT
            sock.sendall(BACK)
            sock.unwrap()

    thread = threading.Thread(target=serve)
    thread.start()
    with client_context.wrap_socket(near, server_hostname="localhost") as sock:
        sock.sendall(OUT)
        assert receive(sock, len(BACK)) == BACK
        sock.unwrap()
    thread.join()


async def streams() -> None:
    client_context, server_context = contexts()
    path = os.path.join(sys.argv[3], "socket")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(OUT)) == OUT
        writer.write(BACK)
        await writer.drain()
        writer.close()

    await asyncio.start_unix_server(serve, path, ssl=server_context)
    reader, writer = await asyncio.open_unix_connection(path, ssl=client_context, server_hostname="localhost")
    writer.write(OUT)
    assert await reader.readexactly(len(BACK)) == BACK
    writer.close()
    await writer.wait_closed()


asyncio.run(streams()) if sys.argv[4:] else blocking()
print(json.dumps({"sent": OUT.hex(), "received": BACK.hex()}))
