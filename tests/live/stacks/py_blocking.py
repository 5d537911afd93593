"""CPython's ssl.SSLSocket, blocking."""

from __future__ import annotations

import socket
import ssl

from live.stacks.plan import PIECE, PROTOCOL, SERVER_NAME, task


def main() -> None:
    job = task()
    context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([PROTOCOL])
    with socket.create_connection((job.host, job.port)) as plain:
        local, remote = plain.getsockname(), plain.getpeername()
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as sock:
            for content, left in job.steps():
                sock.sendall(content)
                while left:
                    piece = sock.recv(min(left, PIECE))
                    assert piece, "the peer ended early"
                    job.incoming.write(piece)
                    left -= len(piece)
            sock.unwrap()
    job.finish(local, remote, ssl.OPENSSL_VERSION)


main()
