"""Which files are probed, and probing more of them as they turn up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError
from tlscap.live import targets
from tlscap.live.loader import Loader
from tlscap.live.sites import ResolvedLibrary, Resolver, is_data

FileId = tuple[int, int]


@dataclass(slots=True)
class Probes:
    """The attached files of a session.  Each file, by device and inode, is looked at once."""

    resolver: Resolver
    loader: Loader | None = None
    only_pids: tuple[int, ...] = ()
    """Probe these processes only; empty: whoever maps the file."""
    attached: dict[FileId, ResolvedLibrary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _resolved: dict[FileId, ResolvedLibrary | None] = field(default_factory=dict)

    def find(self, path: str, *, required: bool = False) -> ResolvedLibrary | None:
        """What can be probed in a file.  With ``required``, raises why nothing can."""
        try:
            status = os.stat(path)
        except OSError as error:
            if required:
                raise TargetError(f"{path}: {error.strerror}") from error
            return None
        identity = (status.st_dev, status.st_ino)
        if identity not in self._resolved:
            self._resolved[identity] = None
            if required or targets.may_hold_tls(path):
                try:
                    self._resolved[identity] = self.resolver.resolve(path)
                except (TargetError, UnsupportedError):
                    if required:
                        raise
        return self._resolved[identity]

    def attach(self, path: str, *, required: bool = False, by_hand: ResolvedLibrary | None = None) -> bool:
        """Probe a file; true when it is new and now probed.  With ``required``, raises why it can't be."""
        library = by_hand or self.find(path, required=required)
        if library is None or self.loader is None:
            return False
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in self.attached and not by_hand:
            return False
        failures = [one for pid in self.only_pids or (-1,) for one in self.loader.attach(library.points, pid)]
        failed = [reason for _, reason in failures]
        lost = {point for point, _ in failures}
        if by_hand and lost:
            raise AttachError(failed[0])
        if not any(is_data(point) for point in library.points if point not in lost) and not by_hand:
            message = f"{path}: no probe could be attached ({failed[0] if failed else 'no data function'})"
            if required:
                raise AttachError(message)
            self.notes.append(message)
            return False
        self.notes += [*library.notes, *failed]
        self.attached[identity] = library
        return True

    def attach_by_hand(self, spec: str) -> None:
        """``FUNCTION:PATH[+OFFSET]``; OFFSET is the address as nm prints it.  Raises `CaptureError`."""
        function, _, rest = spec.partition(":")
        path, plus, offset = rest.rpartition("+")
        vaddr: int | None = None
        if plus:
            try:
                vaddr = int(offset, 0)
            except ValueError:
                path = rest
        else:
            path = rest
        if not function or not path:
            raise TargetError(f"--probe {spec}: expected FUNCTION:PATH or FUNCTION:PATH+OFFSET")
        self.attach(path, by_hand=self.resolver.resolve_one(function, path, vaddr))

    def attach_all(self, paths: Iterable[str]) -> int:
        """Probe what can be probed of these.  Returns how many files are new."""
        return sum(self.attach(path) for path in paths)

    def libraries_of(self, pid: int) -> list[ResolvedLibrary]:
        """The probed files that a process maps.

        When it is gone already and only one file is probed, its calls can't have come from another.
        """
        mapped = {(file.device, file.inode) for file in targets.mapped_files(pid)}
        if not mapped and len(self.attached) == 1:
            return list(self.attached.values())
        by_inode = {inode for _, inode in mapped}
        return [
            library
            for identity, library in self.attached.items()
            # Some file systems show another device number in maps than in stat.
            if identity in mapped or identity[1] in by_inode
        ]


def mapped_path(pid: int, fd: int, inode: int) -> str | None:
    """A path to a file that a process is about to map, or runs."""
    for path in (f"/proc/{pid}/fd/{fd}" if fd >= 0 else f"/proc/{pid}/exe",):
        try:
            if os.stat(path).st_ino == inode:
                real = os.readlink(path)
                try:
                    if os.stat(real).st_ino == inode:
                        return real
                except OSError:
                    pass
                return path
        except OSError:
            continue
    return next((file.path for file in targets.mapped_files(pid) if file.inode == inode), None)


__all__ = ["CaptureError", "Probes", "mapped_path"]
