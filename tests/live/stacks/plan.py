"""What the subjects in Python have in common; the contract stands in `subject.h`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SERVER_NAME = "localhost"
PROTOCOL = "tlscap-test"
MOMENT_S = 2.0
PIECE = 1 << 16
"""How much is read at once, in bytes."""


@dataclass
class Task:
    """The arguments, and the two files, open."""

    host: str
    port: int
    outgoing: BinaryIO
    incoming: BinaryIO
    plan: str
    extra: list[str]

    def steps(self) -> Iterator[tuple[bytes, int]]:
        """Yield what to send, and how many bytes to receive for it."""
        for out, back in steps(self.plan):
            yield self.outgoing.read(out), back

    def finish(self, local: tuple[Any, ...], remote: tuple[Any, ...], version: str) -> None:
        """Print the line that a subject ends with; an address is a tuple that begins with host and port."""
        self.outgoing.close()
        self.incoming.close()
        print(json.dumps({"local": local[:2], "remote": remote[:2], "version": version}))


def steps(plan: str) -> Iterator[tuple[int, int]]:
    """Yield a plan's steps: how many bytes to send, then to receive."""
    for item in plan.split(","):
        repeat, _, sizes = item.rpartition("x")
        out, back = map(int, sizes.split(":"))
        for _ in range(int(repeat or 1)):
            yield out, back


def task(*, loaded_late: bool = False) -> Task:
    """What the command line wants.  A library that was just loaded is hooked a little later: that is waited for."""
    if loaded_late:
        time.sleep(MOMENT_S)
    host, port, outgoing, incoming, plan, *extra = sys.argv[1:]
    return Task(host, int(port), Path(outgoing).open("rb"), Path(incoming).open("wb"), plan, extra)
