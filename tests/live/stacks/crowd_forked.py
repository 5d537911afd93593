"""A crowd in each of several children that are forked when the libraries are loaded: PORT CHILDREN COUNT.

Each child connects once as soon as it is forked, and a moment later so many times.  Prints a line for each: its connections'
accounts, the first one's first.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from live.stacks.crowd import crowd
from live.stacks.plan import MOMENT_S


async def work(port: int, count: int) -> list[dict[str, Any]]:
    first = await crowd(port, 1)
    await asyncio.sleep(MOMENT_S)
    return first + await crowd(port, count)


def main() -> None:
    port, children, count = map(int, sys.argv[1:])
    for _ in range(children):
        if os.fork() == 0:
            line = json.dumps(asyncio.run(work(port, count)))
            os.write(1, line.encode() + b"\n")
            os._exit(0)
    for _ in range(children):
        assert os.wait()[1] == 0


main()
