"""One SSL object, two threads: one reads, one writes, at the same time: HOST PORT SIZE.  The peer sends as much as it gets."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import ssl
import sys
import threading


def main() -> None:
    host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    content = os.urandom(size)
    context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
    plain = socket.create_connection((host, port))
    ports = {"local": plain.getsockname()[1], "remote": plain.getpeername()[1]}
    tls = context.wrap_socket(plain, server_hostname="localhost")
    # The session tickets of TLS 1.3 come before the first byte.  While they are processed, a write of another thread would
    # find the connection in a handshake and break it: OpenSSL allows no such calls, and Python may let them happen.
    received = bytearray(tls.recv(1))

    def write() -> None:
        at = 0
        while at < size:
            at += tls.send(content[at : at + random.choice((1, 100, 3000, 16384, 20000))])

    def read() -> None:
        while len(received) < size:
            piece = tls.recv(random.choice((1, 100, 3000, 16384)))
            assert piece, "the peer ended early"
            received.extend(piece)

    threads = [threading.Thread(target=work) for work in (write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digests = [(len(each), hashlib.sha256(each).hexdigest()) for each in (content, received)]
    print(json.dumps(ports | {"sent": digests[0], "received": digests[1]}))


main()
