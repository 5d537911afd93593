"""The other side of subjects that speak QUIC (`subject.h`), a process of its own: CERTIFICATE KEY BACKFILE PLAN.

Prints its port, then a line of JSON for every stream whose plan was carried out: size and SHA-256 of what came.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path

from aioquic.asyncio import serve  # type: ignore[import-not-found,unused-ignore]
from aioquic.quic.configuration import QuicConfiguration  # type: ignore[import-not-found,unused-ignore]
from live.stacks.plan import PROTOCOL, steps

PIECE = 1 << 16
ANSWERS = Path(sys.argv[3]).read_bytes()


async def carry_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    seen, size, answered = hashlib.sha256(), 0, 0
    for out, back in steps(sys.argv[4]):
        left = out
        while left:
            piece = await reader.read(min(left, PIECE))
            assert piece, "the subject ended early"
            seen.update(piece)
            left -= len(piece)
        size += out
        writer.write(ANSWERS[answered : answered + back])
        answered += back
    writer.write_eof()
    print(json.dumps([size, seen.hexdigest()]), flush=True)


tasks: set[asyncio.Task[None]] = set()
"""The event loop keeps no hold of them."""


def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tasks.add(asyncio.get_running_loop().create_task(carry_out(reader, writer)))


async def main() -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[PROTOCOL])
    configuration.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=handle)
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
