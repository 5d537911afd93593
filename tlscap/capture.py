"""Opens a capture, whichever of the two files it is, and yields what happened on its flows.

The one module of the core that opens files.  Memory is bounded by the open connections and one frame,
not by the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, Self

from tlscap.decode import decode
from tlscap.errors import CorruptError, FormatError, OutputError, TruncatedError
from tlscap.flows import FlowTable
from tlscap.model import Item, Totals
from tlscap.sidecar import SidecarReader, identity, is_sidecar

PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"


class Capture:
    """An open capture file.  `items` may be called again, for a second pass.

    ``truncated`` is set, after a pass, to a line that says where and why the file ends early; everything
    before was yielded.  ``totals`` are known after a pass over a sidecar.
    """

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self.path = path
        self.truncated: str | None = None
        self.totals: Totals | None = None
        self.table: FlowTable | None = None
        """The flow table of the latest pass over a sidecar."""
        self.is_sidecar = True
        self._stream = stream
        self._reader: SidecarReader | None = None
        head = stream.read(len(identity()))
        if is_sidecar(head) or identity().startswith(head):
            return  # SidecarReader says what is wrong with an empty or cut file
        if head[:4] != PCAPNG_MAGIC:
            raise CorruptError(
                f"{path} is neither a tlscap sidecar nor a pcapng file",
                offset=0,
                hint="give NAME.tlscap.zst or NAME.pcapng; other captures, HAR files, cassettes of vcrpy and flows of mitmproxy: "
                "tlscap import FILE -o NAME.pcapng",
            )
        self.is_sidecar = False

    @property
    def stream(self) -> BinaryIO:
        """The file, from its beginning."""
        self._stream.seek(0)
        return self._stream

    @property
    def position(self) -> int:
        """Bytes of the file that the present pass has consumed."""
        return self._reader.position if self._reader else self._stream.tell()

    @property
    def note(self) -> str:
        """Who made the capture and where, in one line; known after a pass over a sidecar."""
        start = self.table.start if self.table else {}
        return " ".join(str(start[key]) for key in ("tool", "origin", "host", "os") if start.get(key))

    def items(self) -> Iterator[Item]:
        """Everything that happened, in order.  Raises `FormatError` naming the file; `TruncatedError` becomes a note."""
        self._stream.seek(0)
        self.truncated = None
        try:
            yield from self._sidecar_items() if self.is_sidecar else self._pcapng_items()
        except TruncatedError as error:
            if error.offset <= 0:
                raise TruncatedError(f"{self.path}: {error}", offset=error.offset) from error
            self.truncated = f"{self.path}: {error}; everything before is shown"
        except FormatError as error:
            raise type(error)(f"{self.path}: {error}", offset=error.offset, hint=error.hint) from error

    def _sidecar_items(self) -> Iterator[Item]:
        self.table = table = FlowTable()
        self.totals = table.totals
        feed = table.feed
        self._reader = SidecarReader(self._stream)
        for frame in self._reader.frames():
            for event in decode(frame):
                yield from feed(event)

    def _pcapng_items(self) -> Iterator[Item]:
        from tlscap.pcapng_reader import read_items  # noqa: PLC0415 - not needed for sidecars

        yield from read_items(self._stream)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_capture(path: str) -> Capture:
    """Open a sidecar or a pcapng file that tlscap wrote.

    Raises `OutputError` when it can't be opened, `FormatError` when it is something else.
    """
    try:
        stream = open(path, "rb")  # noqa: SIM115 - the Capture owns it
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if not stream.seekable():
        stream.close()
        raise OutputError(f"{path} is a pipe", hint="a capture is read from a file, more than once")
    try:
        return Capture(path, stream)
    except BaseException:
        stream.close()
        raise
