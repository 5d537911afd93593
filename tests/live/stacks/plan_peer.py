"""The other side of subjects (`subject.h`) in a process of its own: CERTIFICATE KEY BACKFILE PLAN [STEP].

Prints its port, then a line of JSON for every connection that has ended: size and SHA-256 of what came.  With STEP it prints
"holding" when it has received what that step sends, and answers only when a line comes on its standard input.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import sys
import threading

from live.stacks.plan import steps


def serve(plain: socket.socket, context: ssl.SSLContext) -> None:
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seen, size = hashlib.sha256(), 0
    with context.wrap_socket(plain, server_side=True) as sock, open(sys.argv[3], "rb") as answers:
        for number, (out, back) in enumerate(steps(sys.argv[4])):
            left = out
            while left:
                piece = sock.recv(min(left, 1 << 16))
                if not piece:
                    raise EOFError(f"the subject ended in step {number}")
                seen.update(piece)
                left -= len(piece)
            size += out
            if sys.argv[5:] == [str(number)]:
                print("holding", flush=True)
                sys.stdin.readline()
            if back:
                sock.sendall(answers.read(back))
        with contextlib.suppress(OSError):  # how a connection ends is the subject's business
            sock.unwrap()
    print(json.dumps([size, seen.hexdigest()]), flush=True)


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    context.set_alpn_protocols(["tlscap-test"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=serve, args=(plain, context), daemon=True).start()


main()
