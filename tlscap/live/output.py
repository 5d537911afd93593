"""The sidecar on its way to the disk."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

from tlscap.sidecar import Bytes

RWF_DONTCACHE: Final = 0x80
_ALIGNMENT: Final = 4096
"""Of memory, place and length of a direct write: a multiple of every disk's block."""
_DIRECT_FROM: Final = 512 << 10
_STAGE: Final = 1 << 20
_SMALLEST_PADDING: Final = 8


class DirectFile:
    """Appends frames to a file, large ones past the page cache (open(2), O_DIRECT): a `tlscap.sidecar.FrameSink`.

    A capture would otherwise push the target's own files out of memory, and allocating page cache costs the recorder,
    and with it the target, many times what the copy does.  Small writes, and all of them in a ``hurry``, go through the
    page cache, where the kernel can without staying there (Linux 6.14, RWF_DONTCACHE).
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0
        self._cached_flags = RWF_DONTCACHE
        self._status_flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self._can_direct = True
        self._is_direct = False
        self._stage: mmap.mmap | None = None
        self.hurry = False
        """The disk doesn't keep up: let memory take what comes."""

    def padding(self, size: int) -> tuple[int, int]:
        """What lets a frame begin and end where a direct write may."""
        if self.hurry or not self._can_direct or size < _DIRECT_FROM:
            return 0, 0
        before = _to_boundary(self._position)
        return before, _to_boundary(self._position + before + size)

    def write_frame(self, parts: Sequence[Bytes]) -> None:
        """Append all of it.  Raises `OSError`."""
        size = sum(map(len, parts))
        lead = -self._position % _ALIGNMENT
        if size < _DIRECT_FROM or (self._position + size) % _ALIGNMENT or lead > size or not self._go_direct(True):
            self._write_cached(b"".join(parts))
            return
        data = _Gather(parts)
        if lead:
            self._write_cached(data.take(lead))
        self._write_direct(data, size - lead)

    def cut(self, size: int) -> None:
        """Forget everything behind `size`."""
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _write_direct(self, data: _Gather, size: int) -> None:
        self._stage = self._stage or mmap.mmap(-1, _STAGE)  # anonymous memory begins at a page
        while size:
            length = min(size, _STAGE)
            data.take_into(memoryview(self._stage)[:length])
            size -= length
            view = memoryview(self._stage)[:length]
            while view:
                # A write cut short by a full disk may end anywhere: the rest goes, or fails, through the page cache.
                if self._position % _ALIGNMENT or not self._go_direct(True):
                    self._write_cached(view)
                    break
                try:
                    written = os.pwrite(self._fd, view, self._position)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._can_direct = False  # this file system wants something else
                    continue
                self._position += written
                view = view[written:]

    def _write_cached(self, data: Bytes) -> None:
        self._go_direct(False)
        view = memoryview(data)
        while view:
            try:
                written = os.pwritev(self._fd, [view], self._position, self._cached_flags)
            except OSError as error:
                if not self._cached_flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._cached_flags = 0
                continue
            self._position += written
            view = view[written:]

    def _go_direct(self, wanted: bool) -> bool:
        """Switch the descriptor; returns whether it now is what was wanted."""
        wanted_possible = wanted and self._can_direct
        if wanted_possible != self._is_direct:
            flags = self._status_flags | (os.O_DIRECT if wanted_possible else 0)
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
                self._is_direct = wanted_possible
            except OSError:
                self._can_direct = False
        return self._is_direct == wanted


class _Gather:
    """Reads parts as if they were one piece."""

    def __init__(self, parts: Sequence[Bytes]) -> None:
        self._parts = [memoryview(part) for part in reversed(parts)]

    def take_into(self, target: memoryview) -> None:
        """Fill ``target``; there must be enough."""
        while target:
            part = self._parts.pop()
            length = min(len(part), len(target))
            target[:length] = part[:length]
            target = target[length:]
            if length < len(part):
                self._parts.append(part[length:])

    def take(self, length: int) -> bytearray:
        """Return the next bytes."""
        taken = bytearray(length)
        self.take_into(memoryview(taken))
        return taken


def _to_boundary(position: int) -> int:
    """Bytes from ``position`` to a boundary, as a skippable frame can fill them."""
    missing = -position % _ALIGNMENT
    return missing + _ALIGNMENT if 0 < missing < _SMALLEST_PADDING else missing
