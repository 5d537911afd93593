"""One connection through a proxy in the same process that joins records: PORT SENT RECEIVED, for a peer with the plan below.

At "ready" the connection stands; with a line on standard input the rest happens: two records come that the proxy receives one by
one and passes on in one piece.  Prints the client's ports and bytes.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys

PLAN = "10:10,10:100,0:200,10:10"  # before the line on standard input: the first step, and what the second sends
RECORD_HEADER = 5


def receive_record(sock: socket.socket) -> bytes:
    header = b""
    while len(header) < RECORD_HEADER:
        header = sock.recv(RECORD_HEADER, socket.MSG_PEEK)
    return sock.recv(RECORD_HEADER + int.from_bytes(header[3:5]), socket.MSG_WAITALL)


class Client:
    def __init__(self, port: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.inner = socket.create_connection(listener.getsockname())
            self.accepted, _ = listener.accept()
        self.onward = socket.create_connection(("127.0.0.1", port))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def flush(self) -> None:
        if content := self.outgoing.read():
            self.inner.sendall(content)
            self.onward.sendall(self.accepted.recv(1 << 16))

    def take(self, records: int) -> None:
        """The proxy receives records one by one, and passes them on in one piece."""
        self.accepted.sendall(b"".join([receive_record(self.onward) for _ in range(records)]))
        self.incoming.write(self.inner.recv(1 << 16))

    def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                self.flush()
                return
            except ssl.SSLWantReadError:
                self.flush()
                self.take(1)

    def send(self, content: bytes) -> bytes:
        self.tls.write(content)
        self.flush()
        return content

    def receive(self, size: int, records: int) -> bytes:
        got = b""
        while len(got) < size:
            try:
                got += self.tls.read(size - len(got))
            except ssl.SSLWantReadError:
                self.take(records)
        return got


client = Client(int(sys.argv[1]))
client.handshake()
client.send(b"beginning!")
client.receive(10, 1)
client.send(b"a question")
print("ready", flush=True)
sys.stdin.readline()
received = client.receive(300, 2)
sent = client.send(b"end of it!")
received += client.receive(10, 1)
ports = {"local": client.inner.getsockname()[1], "remote": client.inner.getpeername()[1]}
print(json.dumps(ports | {"sent": sent.decode(), "received": received.decode()}))
