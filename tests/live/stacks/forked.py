"""A connection whose handshake and first bytes are the parent's, and whose rest is its child's: HOST PORT [memory].

With "memory", the library never sees the socket.  Prints what either process said, and the connection's ports.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import time

SIZES = (100, 200, 300, 400)  # of the parent's question and answer, then of the child's; the peer's plan
TIMES = 5
PAUSE_S = 0.05
"""A child's memory is watched a moment after its first call."""


class Blocking:
    def __init__(self, plain: socket.socket) -> None:
        context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
        self._tls = context.wrap_socket(plain, server_hostname="localhost")

    def send(self, content: bytes) -> None:
        self._tls.sendall(content)

    def receive(self, size: int) -> bytes:
        return self._tls.recv(size)


class Memory:
    def __init__(self, plain: socket.socket) -> None:
        context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
        self._plain = plain
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._exchange()
        self._plain.sendall(self._out.read())

    def _exchange(self) -> None:
        if content := self._out.read():
            self._plain.sendall(content)
        self._in.write(self._plain.recv(1 << 16))

    def send(self, content: bytes) -> None:
        self._tls.write(content)
        self._plain.sendall(self._out.read())

    def receive(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._exchange()


def talk(tls: Blocking | Memory, out: int, back: int) -> dict[str, object]:
    said = heard = b""
    for _ in range(TIMES):
        time.sleep(PAUSE_S)
        content = os.urandom(out)
        tls.send(content)
        said += content
        answer = b""
        while len(answer) < back:
            answer += tls.receive(back - len(answer))
        heard += answer
    return {"pid": os.getpid(), "sent": said.hex(), "received": heard.hex()}


def main() -> None:
    plain = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    ports = {"local": plain.getsockname()[1], "remote": plain.getpeername()[1]}
    tls = Memory(plain) if sys.argv[3:] else Blocking(plain)
    parents = talk(tls, *SIZES[:2])
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print(json.dumps(ports | parents), flush=True)
    else:
        print(json.dumps(ports | talk(tls, *SIZES[2:])), flush=True)
    os._exit(0)


main()
