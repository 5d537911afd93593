"""An HTTP/3 server, a process of its own: CERTIFICATE KEY BODYFILE.

Answers every request with the body.  Prints its port, then a line of JSON for each request: its path, size and SHA-256 of what came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, serve  # type: ignore[import-not-found,unused-ignore]
from aioquic.h3.connection import H3_ALPN, H3Connection  # type: ignore[import-not-found,unused-ignore]
from aioquic.h3.events import DataReceived, HeadersReceived  # type: ignore[import-not-found,unused-ignore]
from aioquic.quic.configuration import QuicConfiguration  # type: ignore[import-not-found,unused-ignore]

BODY = Path(sys.argv[3]).read_bytes()


class Server(QuicConnectionProtocol):  # type: ignore[misc,unused-ignore]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http = H3Connection(self._quic)
        self._paths: dict[int, str] = {}
        self._bodies: dict[int, bytearray] = {}

    def quic_event_received(self, event: Any) -> None:
        for each in self._http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self._paths[each.stream_id] = dict(each.headers)[b":path"].decode()
                self._bodies[each.stream_id] = bytearray()
            elif isinstance(each, DataReceived):
                self._bodies[each.stream_id] += each.data
            if each.stream_ended:
                self._answer(each.stream_id)

    def _answer(self, stream: int) -> None:
        body = self._bodies.pop(stream)
        length = str(len(BODY)).encode()
        self._http.send_headers(stream, [(b":status", b"200"), (b"content-length", length)])
        self._http.send_data(stream, BODY, end_stream=True)
        self.transmit()
        print(json.dumps([self._paths.pop(stream), len(body), hashlib.sha256(body).hexdigest()]), flush=True)


async def main() -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Server)
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
