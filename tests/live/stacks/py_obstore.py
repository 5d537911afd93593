"""obstore, whose HTTP client has rustls inside: every step is a PUT of what is sent and a GET of what is received, on one connection."""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import version

import obstore  # type: ignore[import-not-found,unused-ignore]
from live.stacks.plan import task
from obstore.store import HTTPStore  # type: ignore[import-not-found,unused-ignore]

POOLED_S = 0.005
"""A connection is free for the next request a little after the response is there; else a second one is opened."""


def addresses(port: int) -> tuple[tuple[str, int], tuple[str, int]]:
    """Both ends of this process's connection to a port: the library does not say."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.getpeername()[1] == port:
                    found.add((sock.getsockname()[:2], sock.getpeername()[:2]))
        except OSError:  # it is no socket, not connected, or was closed
            continue
    ((local, remote),) = found
    return local, remote


def main() -> None:
    job = task(loaded_late=True)
    options = {"allow_invalid_certificates": True, "http1_only": True, "timeout": "60s"}
    store = HTTPStore.from_url(f"https://{job.host}:{job.port}", client_options=options)
    for content, size in job.steps():
        obstore.put(store, "0", content, use_multipart=False)
        time.sleep(POOLED_S)
        answer = bytes(obstore.get(store, str(size)).bytes())
        assert len(answer) == size, f"{len(answer)} bytes for {size}"
        job.incoming.write(answer)
        time.sleep(POOLED_S)
    local, remote = addresses(job.port)
    job.finish(local, remote, f"obstore {version('obstore')}, rustls 0.23")


main()
