"""Holds items back for a moment, until the address of a flow is known.

Where a TLS library works in memory, its connection's socket is found when it carries a record, which may be
after the first bytes were read.  A pcapng can't take back the addresses of a packet, so writing waits: in event time,
not by a clock, so that rebuilding a file waits at the same places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from tlscap.model import Data, Flow, FlowClosed, FlowOpened, FlowUpdated, Item, TupleSource

WAIT_NS = 400_000_000
"""Longest time that one flow makes the others wait: probing a program's own functions takes a part of it."""
MAX_BYTES = 16 << 20
"""Most that is held back: payload, and what the items themselves take."""
ITEM_BYTES = 256
"""About what an item takes besides its payload: a flow of single bytes, or of none, has its end, too."""


class HoldBack:
    """`feed` items and get those whose turn it is, in the same order; `finish` gives the rest."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._since: dict[int, int] = {}
        """Flows that are waited for, and since when."""
        self._settled: set[int] = set()
        """Open flows that need no waiting, or no more."""

    def feed(self, items: Iterable[Item], now_ns: int) -> Iterator[Item]:
        """Yield what may be written now.  ``now_ns`` is the time of the latest event."""
        for item in items:
            self._see(item)
        while self._items and not self._waits(self._items[0], now_ns):
            yield self._take()

    def finish(self) -> Iterator[Item]:
        while self._items:
            yield self._take()

    def _see(self, item: Item) -> None:
        flow = item.flow
        self._items.append(item)
        self._bytes += _size(item)
        if isinstance(item, FlowClosed) or _has_address(flow):
            self._since.pop(flow.id, None)
            self._settled.add(flow.id)
        elif flow.id not in self._settled and not isinstance(item, (FlowOpened, FlowUpdated)):
            self._since.setdefault(flow.id, item.time_ns)

    def _waits(self, item: Item, now_ns: int) -> bool:
        since = self._since.get(item.flow.id)
        if since is None or isinstance(item, (FlowOpened, FlowUpdated)):
            return False
        if now_ns - since < WAIT_NS and self._bytes < MAX_BYTES:
            return True
        del self._since[item.flow.id]
        self._settled.add(item.flow.id)
        return False

    def _take(self) -> Item:
        item = self._items.popleft()
        self._bytes -= _size(item)
        if isinstance(item, FlowClosed):
            self._settled.discard(item.flow.id)
        return item


def _size(item: Item) -> int:
    return ITEM_BYTES + (len(item.data) if isinstance(item, Data) else 0)


def _has_address(flow: Flow) -> bool:
    """Whether nothing better is to come: sockets without addresses are known, too."""
    return flow.tuple_source is not TupleSource.PLACEHOLDER or flow.transport == "unix"
