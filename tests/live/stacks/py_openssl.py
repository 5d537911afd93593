"""pyOpenSSL, with the OpenSSL that PyPI's cryptography carries."""

from __future__ import annotations

import socket

from live.stacks.plan import PIECE, PROTOCOL, SERVER_NAME, task
from OpenSSL import SSL  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    job = task(loaded_late=True)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([PROTOCOL.encode()])
    with socket.create_connection((job.host, job.port)) as plain:
        local, remote = plain.getsockname(), plain.getpeername()
        connection = SSL.Connection(context, plain)
        connection.set_tlsext_host_name(SERVER_NAME.encode())
        connection.set_connect_state()
        connection.do_handshake()
        for content, left in job.steps():
            connection.sendall(content)
            while left:
                piece = connection.recv(min(left, PIECE))
                job.incoming.write(piece)
                left -= len(piece)
        if not connection.shutdown():
            connection.shutdown()
    job.finish(local, remote, SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode())


main()
