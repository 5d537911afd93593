"""A peer for programs that need one and don't care what it says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from live.servers import PATIENCE_S


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """A TCP port of 127.0.0.1 where what is said comes back."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        port: int = listener.getsockname()[1]

        def answer(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):  # reset: not all that came back was read
                while said := connection.recv(1 << 16):
                    connection.sendall(said)

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    connection = stack.enter_context(listener.accept()[0])
                    connection.settimeout(PATIENCE_S)
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        thread.join()
