"""Which files are probed, and probing more of them as they turn up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError, UsageError
from tlscap.live import targets
from tlscap.live.catalogue import DYNAMIC_LINKER, FLAVORS, Flavor
from tlscap.live.loader import Loader, ResolvedLibrary, is_data
from tlscap.live.sitecache import SiteCache

if TYPE_CHECKING:
    from tlscap.live.sites import Resolver

FileId = tuple[int, int]


@dataclass(slots=True)
class Probes:
    """The attached files of a session.  Each file, by device and inode, is looked at once."""

    loader: Loader | None = None
    only_pids: tuple[int, ...] = ()
    """Probe these processes only; empty: whoever maps the file."""
    attached: dict[FileId, ResolvedLibrary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _resolved: dict[FileId, ResolvedLibrary | None] = field(default_factory=dict)
    _cache: SiteCache = field(default_factory=SiteCache)
    _resolver: Resolver | None = None
    _linkers: set[FileId] = field(default_factory=set)

    @property
    def resolver(self) -> Resolver:
        """Made when it is needed: the disassembler takes longer to import than everything else."""
        if self._resolver is None:
            from tlscap.live.sites import Resolver  # noqa: PLC0415

            self._resolver = Resolver()
        return self._resolver

    def _resolve(self, path: str, flavors: tuple[Flavor, ...] = FLAVORS) -> ResolvedLibrary:
        kind = "linker" if DYNAMIC_LINKER in flavors else "tls"
        library = self._cache.get(path, kind)
        if library is None:
            library = self.resolver.resolve(path, flavors)
            self._cache.put(path, kind, library)
        return library

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
                    self._resolved[identity] = self._resolve(path)
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
        self.notes += failed
        self.attached[identity] = library
        return True

    def watch_linker(self, path: str) -> None:
        """Have the dynamic linker say when a process has mapped libraries."""
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if self.loader is None or identity in self._linkers:
            return
        self._linkers.add(identity)
        try:
            linker = self._resolve(path, (DYNAMIC_LINKER,))
            self.notes += [reason for _, reason in self.loader.attach(linker.points, -1)]
        except CaptureError as error:
            self.notes.append(f"{error}: libraries loaded later may be seen late")

    def look_at(self, pid: int) -> list[ResolvedLibrary]:
        """Probe what a process runs and maps, as far as it is new.  Returns what is."""
        before = len(self.attached)
        for file in targets.mapped_files(pid):
            if is_linker(file.name):
                self.watch_linker(file.path)
            else:
                self.attach(file.path)
        return list(self.attached.values())[before:]

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
            raise UsageError(f"--probe {spec}: expected FUNCTION:PATH or FUNCTION:PATH+ADDRESS")
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


def is_linker(name: str) -> bool:
    """Whether a mapped file is a dynamic linker, by the names that ABIs give it."""
    base = os.path.basename(name)
    return base.startswith(("ld-linux", "ld-musl", "ld64.so", "ld.so", "ld-2."))


def own_linker() -> str | None:
    """The dynamic linker of this very process: most others on the machine use the same."""
    return next((file.path for file in targets.mapped_files(os.getpid()) if is_linker(file.name)), None)
