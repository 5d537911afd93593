"""asyncio's streams: ssl.SSLObject over memory BIOs."""

from __future__ import annotations

import asyncio
import ssl

from live.stacks.plan import PIECE, PROTOCOL, SERVER_NAME, task


async def main() -> None:
    job = task()
    context = ssl._create_unverified_context(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([PROTOCOL])
    reader, writer = await asyncio.open_connection(job.host, job.port, ssl=context, server_hostname=SERVER_NAME)
    local, remote = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    for content, left in job.steps():
        writer.write(content)
        await writer.drain()
        while left:
            piece = await reader.read(min(left, PIECE))
            assert piece, "the peer ended early"
            job.incoming.write(piece)
            left -= len(piece)
    writer.close()
    await writer.wait_closed()
    job.finish(local, remote, ssl.OPENSSL_VERSION)


asyncio.run(main())
