"""A capture file to the items of its flows: the steps from packets to plaintext, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tlscap.errors import CorruptError, TruncatedError
from tlscap.importing.frames import FrameDecoder
from tlscap.importing.keylog import KeyLog
from tlscap.importing.packetfile import PacketFile
from tlscap.importing.reassembly import Reassembler
from tlscap.importing.tls import Decryptor, TlsFilter
from tlscap.model import Data, FlowOpened, Gap, Item


class Tally:
    """Counts what passes, and numbers the flows from 1 in the order in which they come."""

    def __init__(self) -> None:
        self.flows = 0
        self.stored = 0
        """Bytes of all flows."""
        self.missing = 0
        """Bytes in holes."""
        self.holes = 0
        self.last_ns = 0

    def pass_on(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items."""
        for item in items:
            self.last_ns = max(self.last_ns, item.time_ns)
            if isinstance(item, Data):
                self.stored += len(item.data)
            elif isinstance(item, Gap):
                self.missing += item.length
                self.holes += 1
            elif isinstance(item, FlowOpened):
                self.flows += 1
                item.flow.id = self.flows
            yield item


class PacketImport:
    """One pass over a capture file."""

    def __init__(self, file: PacketFile, keys: KeyLog | None = None, decryptor: Decryptor | None = None) -> None:
        self._file = file
        self._frames = FrameDecoder()
        self._reassembler = Reassembler()
        self._tls = TlsFilter(keys or KeyLog(), decryptor)
        self.truncated = ""
        """Where and why the file ends early, if it does; everything before was yielded."""

    def items(self) -> Iterator[Item]:
        """Yield everything that happened.  Raises `FormatError` for a file that is damaged."""
        decode, feed, pass_on = self._frames.decode, self._reassembler.feed, self._tls.feed
        try:
            for number, packet in enumerate(self._file.packets()):
                if number == 0 and self._file.application.startswith("tlscap"):
                    raise CorruptError("tlscap wrote it, there is nothing to import", hint="tlscap inspect reads it")
                segment = decode(packet)
                if segment is not None:
                    for item in feed(segment, packet.time_ns):
                        yield from pass_on(item)
        except TruncatedError as error:
            if error.offset <= 0:
                raise
            self.truncated = str(error)
        for item in self._reassembler.finish():
            yield from pass_on(item)
        yield from self._tls.finish()

    @property
    def packets_left_out(self) -> Counter[str]:
        """Packets without a TCP segment that could be used, by what they are."""
        return self._frames.left_out

    @property
    def tls_left_out(self) -> Counter[str]:
        """TLS connections that could not be decrypted, by the reason."""
        return self._tls.left_out

    @property
    def notes(self) -> list[str]:
        """What else should be known about the result, a line each."""
        reassembler = self._reassembler
        lines = []
        if reassembler.contradictions:
            lines.append(
                f"segments that repeat bytes with a difference: {reassembler.contradictions:,}; the first bytes were kept"
            )
        if reassembler.given_up:
            lines.append(f"connections cut short because too many were open at once: {reassembler.given_up:,}")
        return lines
