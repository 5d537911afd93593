"""The crowd's server in a process of its own, which no test records: CERTIFICATE KEY.  Prints its port."""

from __future__ import annotations

import asyncio
import sys

from live.stacks.crowd import allow_many_files, port_of, serve


async def main() -> None:
    allow_many_files()
    server = await serve(sys.argv[1], sys.argv[2], [])
    print(port_of(server), flush=True)
    await server.serve_forever()


asyncio.run(main())
