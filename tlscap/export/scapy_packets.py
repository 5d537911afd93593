"""A capture's synthesized packets as scapy packets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

from tlscap.pcapng import EnhancedPacket, read_blocks
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader

if TYPE_CHECKING:
    from scapy.packet import Packet


def packets(stream: BinaryIO, *, is_sidecar: bool, framing: str = "auto") -> Iterator[Packet]:
    """Yield the packets of a capture, each with its ``time`` in seconds and its comments as ``comments``.

    A sidecar's are synthesized with ``framing``, as `tlscap rebuild` does it.  Raises `tlscap.errors.FormatError`.
    """
    import scapy.layers.inet  # what is not imported, scapy does not dissect
    import scapy.layers.inet6  # noqa: F401
    from scapy.layers.l2 import Ether
    from scapy.utils import EDecimal

    source = cast("BinaryIO", io.BufferedReader(_Rebuilt(stream, framing))) if is_sidecar else stream
    for block in read_blocks(source):
        if isinstance(block, EnhancedPacket):
            packet = Ether(block.data)
            packet.time = EDecimal(block.time_ns) / 1_000_000_000
            packet.comments = [comment.encode() for comment in block.comments]
            yield packet


class _Rebuilt(io.RawIOBase):
    """A pcapng file that is made while it is read."""

    def __init__(self, stream: BinaryIO, framing: str) -> None:
        self._blocks = _blocks(stream, framing)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        length = min(len(self._rest), len(target))
        target[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length


def _blocks(stream: BinaryIO, framing: str) -> Iterator[bytes]:
    builder = PcapngBuilder(framing)
    for frame in SidecarReader(stream).frames():
        yield from builder.feed(frame)
    yield from builder.finish()
