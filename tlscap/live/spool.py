"""The recorder process: from the ring into the sidecar, doing the least per sample.

It runs without privileges, forked from the session that owns the probes, and speaks with it over a socket
(`Channel`).  Two threads: one moves samples from the ring into buffers, the other compresses and writes
full buffers; zstd and the ring reader release the GIL, so both really run at once.  Memory is bounded
by the number of buffers: when all are full the ring fills up, and the kernel counts what it drops.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import queue
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlscap import decode
from tlscap.live._ring import Ring
from tlscap.live.output import DirectFile
from tlscap.sidecar import FRAME_SIZE, SidecarWriter

BUFFERS = 40
"""Of 4 MiB each, touched only when a burst needs them: what the disk can't take at once waits here, not in the ring."""
HURRY = BUFFERS // 2
"""When as many are full, nothing is compressed, and the page cache takes what the disk can't."""
MAX_SAMPLE = 20 << 10
"""More than any sample takes: a buffer with less room than this is full."""
CARRIED = frozenset({decode.SAMPLE_OPEN, decode.SAMPLE_ADDRESS, decode.SAMPLE_HANDSHAKE, decode.SAMPLE_NAME})
"""What a file that continues another repeats of connections that are still open."""
NOTICES = sum(
    1 << kind
    for kind in (
        decode.SAMPLE_PROCESS,
        decode.SAMPLE_MAPPED,
        decode.SAMPLE_EXIT,
        decode.SAMPLE_UNJOINED,
        decode.SAMPLE_CALLBACK,
    )
)
"""Sample types that the session is told of at once."""
MAX_NOTICES = 512
"""How many a call of `Ring.drain` reports at most."""
BUSY_WAIT_MS, IDLE_WAIT_MS = 20, 50
DETAILS_WAIT = 0.3
"""Longest time, in seconds, that the ring waits for the session to look a new process up."""


class Channel:
    """Messages between the session and a child process, over a socket that keeps their borders."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.fds: list[int] = []
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(one), Channel(other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Data, and open files with it.  False when the other end is gone."""
        try:
            socket.send_fds(self._socket, [data], list(fds))
        except OSError:
            return False
        return True

    def tell(self, **message: object) -> bool:
        return self.send(b"J" + json.dumps(message).encode())

    def receive(self, timeout: float | None = None) -> bytes | None:
        """A message; empty when the other end is gone; None when nothing came in time.

        Descriptors that came with it are in `fds`.
        """
        self._socket.settimeout(timeout)
        try:
            data, self.fds, _, _ = socket.recv_fds(self._socket, 1 << 20, 2)
            return data
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            return b""

    def close(self) -> None:
        self._socket.close()


# What the session sends: a letter, then records.
PREPEND, APPEND, FINISH, ROTATE = b"P", b"A", b"F", b"R"


class _Carry:
    """What a later file must know of connections and processes that began in an earlier one."""

    NOTICES = sum(1 << kind for kind in CARRIED) | 1 << decode.SAMPLE_CLOSE

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._connections: dict[int, list[bytes]] = {}
        self._processes: dict[int, dict[int, bytes]] = {}

    def see(self, record: bytes) -> None:
        """One record, padded."""
        kind, _, _, _, pid, _, conn = decode.HEADER.unpack_from(record)
        if kind in CARRIED:
            self._connections.setdefault(conn, []).append(record)
        elif kind in (decode.SAMPLE_CLOSE, decode.RECORD_ORPHAN):
            self._connections.pop(conn, None)
            self._ring.forget(conn)
        elif kind in (decode.SAMPLE_PROCESS, decode.RECORD_PROCESS):
            self._processes.setdefault(pid, {})[kind] = record
        elif kind == decode.SAMPLE_EXIT:
            self._processes.pop(pid, None)

    def see_all(self, records: bytes) -> None:
        at = 0
        while at < len(records):
            size = int.from_bytes(records[at + 4 : at + 8], "little") + 7 & ~7
            self.see(records[at : at + size])
            at += size

    def records(self) -> bytes:
        """The beginning of the next file: processes, and every open connection with its ledger."""
        parts = [record for known in self._processes.values() for _, record in sorted(known.items(), reverse=True)]
        for conn, samples in self._connections.items():
            parts += samples
            _, _, _, time_ns, pid, _, _ = decode.HEADER.unpack_from(samples[-1])
            parts.append(decode.ledger(decode.RECORD_CARRY, pid, conn, *self._ring.reached(conn), time_ns=time_ns))
        return b"".join(parts)


@dataclass(slots=True)
class _Full:
    buffer: mmap.mmap
    used: int
    before: bytes


def _memory(size: int) -> mmap.mmap:
    """Anonymous memory in large pages, where there are any: a tenth of the page faults' cost is left."""
    memory = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _FrameWriter(threading.Thread):
    """Compresses and writes full buffers, and gives them back."""

    def __init__(self, file: DirectFile, free: queue.Queue[mmap.mmap], grown: Callable[[int], None]) -> None:
        super().__init__(name="frames", daemon=True)
        self._file = file
        self._free = free
        self.full: queue.Queue[_Full | None] = queue.Queue()
        self.error: OSError | None = None
        self.writer = SidecarWriter(file)
        self._grown = grown

    def run(self) -> None:
        while (one := self.full.get()) is not None:
            if self.error is None:
                try:
                    view = memoryview(one.buffer)[: one.used]
                    hurry = self.full.qsize() >= HURRY
                    self._file.hurry = hurry
                    self.writer.write(one.before + bytes(view) if one.before else view, hurry=hurry)
                    view.release()
                    self._grown(self.writer.size)
                except OSError as error:
                    self.error = error
            self._free.put(one.buffer)


class Spooler:
    """Drains the ring until the session says FINISH, or is gone.

    With ``rotating``, it keeps what is needed to begin a file in the middle of connections (`_Carry`).
    """

    def __init__(
        self,
        ring: Ring,
        file: DirectFile,
        session: Channel,
        view: Channel | None,
        *,
        first: bytes,
        flush_s: float,
        rotating: bool = False,
    ) -> None:
        self._ring = ring
        self._session = session
        self._flush_s = flush_s
        self._carry = _Carry(ring) if rotating else None
        self._notices = NOTICES | (_Carry.NOTICES if rotating else 0)
        # The last one used is the next: it is in the CPU's cache still, and most are never touched.
        self._buffers: queue.Queue[mmap.mmap] = queue.LifoQueue()
        for _ in range(BUFFERS):
            self._buffers.put(_memory(FRAME_SIZE + MAX_SAMPLE))
        self._buffer = self._buffers.get()
        self._used = 0
        self._since = time.monotonic()
        self._finishing = False
        self._part = 0
        self._next: tuple[int, int, bytes] | None = None
        self._begin(file, view, first)

    def _begin(self, file: DirectFile, view: Channel | None, first: bytes) -> None:
        self._part += 1
        self._file = file
        self._view = view
        self._before = [first]
        self._frames = _FrameWriter(file, self._buffers, self._grown)
        self._writer = self._frames.writer
        self._frames.start()
        self._hand_over()  # so that the file says who recorded, even when nothing ever comes

    def _rotate(self, file_fd: int, view_fd: int, first: bytes) -> None:
        """Close this file and go on in the next, which begins with what is open."""
        self._hand_over()
        self._frames.full.put(None)
        self._frames.join()
        if self._close():
            return
        if self._view:
            self._view.close()
        self._file.close()
        carried = self._carry.records() if self._carry else b""
        self._begin(DirectFile(file_fd), Channel(socket.socket(fileno=view_fd)), first + carried)

    def _grown(self, size: int) -> None:
        if self._view and not self._view.send(struct.pack("<Q", size)):
            self._view = None
        self._session.tell(size=size, part=self._part)

    def run(self, ring_fd: int) -> int:
        """Returns an exit status: 0, or 5 when the file could not be written."""
        poller = select.epoll()
        poller.register(self._session.fileno(), select.EPOLLIN)
        # Edge-triggered: the ring is "readable" all the time; only the probes' wake-up call matters.
        poller.register(ring_fd, select.EPOLLIN | select.EPOLLET)
        wait_ms = IDLE_WAIT_MS
        while not self._finishing and self._frames.error is None:
            for fd, _ in poller.poll(wait_ms / 1000):
                if fd == self._session.fileno():
                    self._hear()
            if self._next:
                file_fd, view_fd, first = self._next
                self._next = None
                self._rotate(file_fd, view_fd, first)
            came = self._drain()
            wait_ms = BUSY_WAIT_MS if came else min(wait_ms * 2, IDLE_WAIT_MS)
            if self._used and time.monotonic() - self._since >= self._flush_s:
                self._hand_over()
        if self._frames.error is None:
            while self._drain():
                pass
            self._take_tail()
            self._hand_over()
        self._frames.full.put(None)
        self._frames.join()
        return self._close()

    def _drain(self) -> int:
        """Move what is there.  Returns the number of samples."""
        total = 0
        while True:
            self._used, samples, notices = self._ring.drain(self._buffer, self._used, self._notices)
            total += samples
            for at in notices:
                self._notice(at)
            if self._used > FRAME_SIZE:
                self._hand_over()
            elif len(notices) < MAX_NOTICES:
                return total  # the end of the ring, neither a full buffer nor a full list

    def _notice(self, at: int) -> None:
        sample = bytes(self._buffer[at : at + self._size(at)])
        if self._carry:
            self._carry.see(sample)
        if not NOTICES >> sample[0] & 1:
            return
        for event in decode.decode(sample):
            match event:
                case decode.ProcessEvent():
                    self._session.tell(process=event.pid, start_ns=event.start_ns)
                    self._wait_for_details()
                case decode.MappedEvent():
                    self._session.tell(
                        mapped=event.pid, inode=event.inode, executable=event.executable, time_ns=event.time_ns
                    )
                case decode.ExitEvent():
                    self._session.tell(exited=event.pid)
                case decode.UnjoinedEvent():
                    self._session.tell(unjoined=event.pid)
                case decode.CallbackEvent():
                    self._session.tell(callback=event.pid, address=event.address, kind=event.kind)

    def _size(self, at: int) -> int:
        return int.from_bytes(self._buffer[at + 4 : at + 8], "little") + 7 & ~7

    def _wait_for_details(self) -> None:
        """The session reads /proc: it may, this process may not.  The answer goes before the samples."""
        deadline = time.monotonic() + DETAILS_WAIT
        while not self._finishing and (left := deadline - time.monotonic()) > 0:
            message = self._session.receive(left)
            if message is None:
                return
            self._act(message)
            if message[:1] == PREPEND:
                return

    def _hear(self) -> None:
        """One message from the session.  An empty one means that it is gone: finish with what there is."""
        message = self._session.receive(0)
        if message is not None:
            self._act(message)

    def _act(self, message: bytes) -> None:
        kind, records = message[:1], message[1:]
        if kind == PREPEND:
            self._before.append(records)
            if self._carry:
                self._carry.see(records)
        elif kind == APPEND:
            self._append(records)
        elif kind == ROTATE:
            file_fd, view_fd = self._session.fds
            self._next = (file_fd, view_fd, records)
        else:
            self._finishing = True

    def _append(self, records: bytes) -> None:
        if self._carry:
            self._carry.see_all(records)
        if self._used + len(records) > len(self._buffer):
            self._hand_over()
        self._buffer[self._used : self._used + len(records)] = records
        self._used += len(records)

    def _take_tail(self) -> None:
        """Ledgers and counters follow the last sample."""
        while message := self._session.receive(0.5):
            kind = message[:1]
            if kind == APPEND:
                self._append(message[1:])
            elif kind == FINISH:
                return

    def _hand_over(self) -> None:
        before = b"".join(self._before)
        self._before.clear()
        if self._used or before:
            self._frames.full.put(_Full(self._buffer, self._used, before))
            self._buffer = self._buffers.get()  # waits when every buffer is full: memory stays bounded
        self._used = 0
        self._since = time.monotonic()

    def _close(self) -> int:
        error = self._frames.error
        if error is None:
            try:
                self._writer.close()
            except OSError as late:
                error = late
        if error is not None:
            # Cut off a half-written frame: what is left is whole.
            with contextlib.suppress(OSError):
                self._file.cut(self._writer.size)
            self._session.tell(error=error.strerror or str(error))
        self._session.tell(done=True, size=self._writer.size, part=self._part)
        return 5 if error else 0


def ignore_terminal_signals() -> None:
    """Ctrl-C reaches the whole group; the session decides what it means."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def parse(message: bytes) -> Mapping[str, Any]:
    """A message sent with `Channel.tell`."""
    parsed = json.loads(message[1:])
    return parsed if isinstance(parsed, dict) else {}
