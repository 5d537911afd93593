"""A server that answers as the recorded one did.

::

    from tlscap.replay.recording import load
    from tlscap.replay.serve import ReplayServer, ServeOptions

    with ReplayServer(load("login.tlscap.zst"), ServeOptions(order="strict")) as server:
        ...  # clients talk to server.url or server.https_url, whose certificate server.ca_pem vouches for
    for request in server.unmatched:
        print(request.explanation)
"""

from __future__ import annotations

from tlscap.replay.serve.options import ServeOptions
from tlscap.replay.serve.requests import ReceivedRequest
from tlscap.replay.serve.server import ReplayServer
from tlscap.replay.serve.state import Fallback, Unmatched

__all__ = ["Fallback", "ReceivedRequest", "ReplayServer", "ServeOptions", "Unmatched"]
