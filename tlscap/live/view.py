"""The view process: follows the growing sidecar and writes the pcapng from it.

It may lag: the ring and the sidecar come first, so this process is the nicest of all and reads whole frames
as far as the recorder says they are complete.  It counts flows and exchanges for the live line on its way.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from collections.abc import Callable
from typing import BinaryIO

from tlscap.errors import FormatError, TlscapError
from tlscap.http.exchanges import ExchangeBuilder
from tlscap.live.spool import Channel
from tlscap.model import Item
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarReader

Redactor = Callable[[str, BinaryIO | None, BinaryIO | None, str], list[str]]
"""Takes the path of a sidecar, where to write the sidecar and the pcapng without its secrets, and the framing; says what was done."""

REPORT_S = 0.2
REST = 15
"""Times as long as it worked, the view rests while the recording goes on: 6 % of one core at most."""
MAX_REST_S = 5.0
WRITE_SIZE = 1 << 20


def _nothing(_: Item) -> bool:
    return False


class View:
    """Reads frames as they are announced; reports to the session."""

    def __init__(
        self,
        source: BinaryIO,
        target: BinaryIO | None,
        announced: Channel,
        session: Channel,
        framing: str,
        *,
        live: bool,
    ) -> None:
        self._source = source
        self._target = target
        self._announced = announced
        self._session = session
        # Without a pcapng to write, the flows are still followed: the summary proves what is stored.
        self._builder = PcapngBuilder(framing, keep=None if target else _nothing)
        self._exchanges = ExchangeBuilder()
        self._exchange_count = 0
        self._live = live
        self._framing = framing
        self._redactor: Redactor | None = None
        self._notes: list[str] = []
        self._redacted: tuple[BinaryIO | None, BinaryIO | None] = None, None
        self._held: list[bytes] = []
        self._held_size = 0
        self._written = 0
        self._reported = 0.0
        self._ended = False
        self._reader: SidecarReader | None = None

    def redact(self, redactor: Redactor, sidecar: BinaryIO | None) -> None:
        """Write nothing while the recording goes on; at its end, what is left of it without secrets."""
        self._redactor = redactor
        self._redacted = sidecar, self._target
        self._target = None
        self._builder = PcapngBuilder(self._framing, keep=_nothing)

    def run(self) -> int:
        """Returns an exit status: 0, or 5 when the pcapng could not be written."""
        try:
            self._follow()
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # nobody is waiting but the user
            for block in self._builder.finish():
                self._hold(block)
            self._write()
            if self._redactor:
                self._notes = self._redactor(f"/proc/self/fd/{self._source.fileno()}", *self._redacted, self._framing)
        except OSError as error:
            self._session.tell(error=error.strerror or str(error), broken_pipe=isinstance(error, BrokenPipeError))
            self._report(done=True)
            return 5
        except FormatError as error:
            self._session.tell(error=f"the sidecar just written can't be read: {error}")
            self._report(done=True)
            return 5
        except TlscapError as error:
            self._session.tell(error=str(error))
            self._report(done=True)
            return 5
        self._report(done=True)
        return 0

    def _follow(self) -> None:
        while message := self._announced.receive():
            (limit,) = struct.unpack("<Q", message)
            # Several announcements may wait: the last is enough.
            while (newer := self._announced.receive(0)) is not None:
                if not newer:
                    break
                (limit,) = struct.unpack("<Q", newer)
            reader = self._reader = self._reader or SidecarReader(self._source)
            for frame in reader.frames(limit):
                began = time.monotonic()
                for block in self._builder.feed(frame, self._count):
                    self._hold(block)
                self._report()
                if not self._live:
                    self._rest(time.monotonic() - began)
            if self._live:
                self._write()  # whole blocks only: a reader at the other end of a pipe waits for the rest of a block

    def _rest(self, worked_s: float) -> None:
        """While recording goes on, use little of the machine, idle or not: caches and cores are shared.

        A calm recording is shown at once all the same; behind a storm the file is finished afterwards.
        """
        deadline = time.monotonic() + min(worked_s * REST, MAX_REST_S)
        poller = select.poll()
        poller.register(self._announced.fileno(), select.POLLRDHUP)
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            self._ended = bool(poller.poll(left * 1000))

    def _count(self, item: Item) -> None:
        self._exchange_count += len(self._exchanges.feed(item))

    def _hold(self, block: bytes) -> None:
        self._held.append(block)
        self._held_size += len(block)
        if self._held_size >= WRITE_SIZE:
            self._write()

    def _write(self) -> None:
        if self._target and self._held:
            view = memoryview(b"".join(self._held))
            while view:
                view = view[self._target.write(view) or 0 :]
        self._written += self._held_size
        self._held.clear()
        self._held_size = 0

    def _report(self, *, done: bool = False) -> None:
        now = time.monotonic()
        if not done and now - self._reported < REPORT_S:
            return
        self._reported = now
        totals = self._builder.table.totals
        self._session.tell(
            view=True,
            done=done,
            flows=self._builder.table.flow_count,
            exchanges=self._exchange_count,
            read=self._reader.position if self._reader else 0,
            written=self._written,
            counted=totals.counted,
            stored=totals.stored,
            gaps=totals.gaps,
            pid=os.getpid(),
            notes=self._notes,
        )
