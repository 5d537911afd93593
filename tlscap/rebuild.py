"""From a sidecar to its pcapng: the same steps while recording, afterwards and on request.

The pcapng depends on nothing but the sidecar's bytes and the framing, so that rebuilding gives the recorded
file again, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tlscap.decode import decode
from tlscap.flows import FlowTable
from tlscap.holdback import HoldBack
from tlscap.model import Item
from tlscap.synth import Synthesizer

OnItem = Callable[[Item], None]


class PcapngBuilder:
    """Frames of a sidecar in, pcapng blocks out."""

    def __init__(self, framing: str = "auto", *, keep: Callable[[Item], bool] | None = None) -> None:
        self.table = FlowTable()
        self._framing = framing
        self._keep = keep
        self._synthesizer: Synthesizer | None = None
        self._held = HoldBack()

    def feed(self, frame: bytes, on_item: OnItem | None = None) -> Iterator[bytes]:
        """Blocks for one unpacked frame.  Raises `CorruptError`."""
        table = self.table
        for event in decode(frame):
            items = table.feed(event)
            if not items:
                continue
            synthesizer = self._synthesizer
            if synthesizer is None:
                synthesizer = self._begin()
                yield synthesizer.start()
            if on_item:
                for item in items:
                    on_item(item)
            if self._keep:
                items = [item for item in items if self._keep(item)]
            for item in self._held.feed(items, table.last_ns):
                yield from synthesizer.feed(item)

    def finish(self) -> Iterator[bytes]:
        """What ends the file; for a truncated sidecar too."""
        synthesizer = self._synthesizer
        if synthesizer is None:
            synthesizer = self._begin()
            yield synthesizer.start()
        for item in self._held.finish():
            yield from synthesizer.feed(item)
        yield synthesizer.finish(self.table.last_ns)

    def _begin(self) -> Synthesizer:
        """What the section header says comes from the sidecar: not from the tlscap and machine that rebuild."""
        start = self.table.start
        tool = str(start.get("tool"))  # whatever a file says, what is written must be known as ours
        self._synthesizer = Synthesizer(
            self._framing,
            tool=tool if tool.startswith("tlscap") else "tlscap",
            os=str(start.get("os", "")),
            hardware=str(start.get("hardware", "")),
            origin=str(start.get("origin", "")),
        )
        return self._synthesizer
