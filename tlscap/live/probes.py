"""Which files are probed, and probing more of them as they turn up."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError, UsageError
from tlscap.live import targets
from tlscap.live.catalogue import DYNAMIC_LINKER, FLAVORS, MEMORY_BIO, Flavor
from tlscap.live.diagnosis import Finding, diagnose
from tlscap.live.loader import AttachPoint, CallKind, Loader, ResolvedLibrary, is_data
from tlscap.live.quicklook import may_hold_tls
from tlscap.live.sitecache import SiteCache

if TYPE_CHECKING:
    from tlscap.live.sites import Resolver

FileId = tuple[int, int]
MAX_JOINS = 8
"""So many processes are probed one by one for what they hand to a library; then, all that map it."""
MAX_UNHOOKED = 256
"""Files that are kept in mind to say at the end what they hold."""
MAX_CALLBACKS = 64
"""Of one process: programs have a few."""

CARRIERS = re.compile(
    r"(python|pypy|node|ruby|envoy|uwsgi)[0-9.]*(-\w+)?|_ssl\.cpython.*|cygrpc.*|libgrpc.*|libQt\dNetwork.*|_rust\.abi3\.so"
)
"""Files of programs that often carry ciphertext between the library and a socket themselves.

Where one is mapped, the library's memory is watched from the start; elsewhere after the first TLS call without a socket call, which is
too late for a connection's first records.
"""


LAUNCHERS = re.compile(
    r"env|(ba|da|z)?sh|busybox|nice|time|timeout|taskset|nohup|setsid|stdbuf|sudo|su|runuser|chroot|unshare|npm|npx|yarn|uv|poetry|make"
)
"""Programs that become others, or start them."""


@dataclass(slots=True)
class Probes:
    """The attached files of a session.  Each file, by device and inode, is looked at once."""

    loader: Loader | None = None
    only_pids: tuple[int, ...] = ()
    """Probe these processes only; empty: whoever maps the file."""
    go_symbols: str = ""
    """A copy of a Go program with its symbols."""
    signatures: str = ""
    """A file of rules to find functions by."""
    attached: dict[FileId, ResolvedLibrary] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unhooked: dict[FileId, str] = field(default_factory=dict)
    """Files that processes map and that have nothing to probe, as far as there are not too many."""
    _resolved: dict[FileId, ResolvedLibrary | None] = field(default_factory=dict)
    _tried: set[FileId] = field(default_factory=set)
    """Files that were probed, or have nothing to probe: a process that maps one more of these needs nothing."""
    _cache: SiteCache = field(default_factory=SiteCache)
    _resolver: Resolver | None = None
    _linkers: set[FileId] = field(default_factory=set)
    _joined: dict[int, set[FileId]] = field(default_factory=dict)
    """Processes whose calls of BIO_read and BIO_write are probed, and in which files."""
    _joins: Counter[FileId] = field(default_factory=Counter)
    """How many processes were probed so, by file."""
    _callbacks: dict[int, dict[int, CallKind]] = field(default_factory=dict)
    """Functions that libraries were given to send and receive with: by process and address."""

    @property
    def resolver(self) -> Resolver:
        """Made when it is needed: the disassembler takes longer to import than everything else."""
        if self._resolver is None:
            from tlscap.live.sites import Resolver  # noqa: PLC0415

            self._resolver = Resolver(self.go_symbols, self.signatures)
        return self._resolver

    def _resolve(self, path: str, flavors: tuple[Flavor, ...] = FLAVORS) -> ResolvedLibrary:
        kind = "tls" if flavors is FLAVORS else flavors[0].name.replace(" ", "-")
        special = self.go_symbols or self.signatures
        library = None if special else self._cache.get(path, kind)
        if library and not library.points:
            raise TargetError(f"{path} has no TLS functions that tlscap knows")
        if library is None:
            library = self.resolver.resolve(path, flavors)
            if not special:
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
            if required or may_hold_tls(path) or self._may_have_signature(path):
                try:
                    self._resolved[identity] = self._resolve(path)
                except (TargetError, UnsupportedError):
                    if required:
                        raise
                    # What looked as if it had TLS functions and has none is not looked at again next time.
                    if not self.go_symbols and not self.signatures:
                        self._cache.put(path, "tls", ResolvedLibrary(path, "", "", (), ()))
        return self._resolved[identity]

    def _may_have_signature(self, path: str) -> bool:
        if not self.signatures:
            return False
        from tlscap.live import signatures  # noqa: PLC0415 - rarely needed, and slow to import

        return signatures.may_hold(path, signatures.load(self.signatures))

    def attach(self, path: str, *, required: bool = False, by_hand: ResolvedLibrary | None = None) -> bool:
        """Probe a file; true when it is new and now probed.  With ``required``, raises why it can't be."""
        library = by_hand or self.find(path, required=required)
        if self.loader is None:
            return False
        try:
            status = os.stat(path)
        except OSError:  # gone by now
            return False
        identity = (status.st_dev, status.st_ino)
        self._tried.add(identity)
        if library is None:
            return False
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

    def watch_linker(self, path: str) -> bool:
        """Have the dynamic linker say when a process has mapped libraries.  True when it is new."""
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if self.loader is None or identity in self._linkers:
            return False
        self._linkers.add(identity)
        try:
            linker = self._resolve(path, (DYNAMIC_LINKER,))
            self.notes += [reason for _, reason in self.loader.attach(linker.points, -1)]
        except CaptureError as error:
            self.notes.append(f"{error}: libraries loaded later may be seen late")
        return True

    def warm_up(self) -> None:
        """Import what finding probe sites takes, beside everything else: a library that is loaded later is probed the sooner."""

        def load() -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            with contextlib.suppress(ImportError):  # it is said when it is needed
                import capstone  # noqa: F401, PLC0415

        threading.Thread(target=load, daemon=True).start()

    def look_at(self, pid: int) -> list[ResolvedLibrary]:
        """Probe what a process runs and maps, as far as it is new.  Returns what is."""
        before = len(self.attached)
        files = targets.mapped_files(pid, self._tried)
        for file in files:
            if file.path and not is_linker(file.name) and not self.attach(file.path):
                identity = file.device, file.inode
                if identity not in self.attached and len(self.unhooked) < MAX_UNHOOKED:
                    self.unhooked[identity] = file.path
        linkers = [file.path for file in files if file.path and is_linker(file.name) and not self.only_pids]
        if [path for path in linkers if self.watch_linker(path)]:
            # While it was not watched yet, it went on mapping.
            files = targets.mapped_files(pid, self._tried)
            self.attach_all(file.path for file in files if file.path)
        if any(is_carrier(file.name) for file in files):
            self.join(pid)
        return list(self.attached.values())[before:]

    def join(self, pid: int, files: Iterable[str] = ()) -> None:
        """Compare what a process's TLS libraries hand out and take in with what its sockets carry.

        These probes are for one process: those whose libraries use sockets themselves shall not pay for them.  They are put into
        what it maps and into what it will most likely map: after the first call it would be too late.  Where processes come one
        after the other, as a server's workers do, probing each would be too late again: then the file is probed for all.
        ``files`` are what it is going to run.
        """
        if self.loader is None or not self.loader.follows_one or not targets.exists(pid):
            return
        # The kernel tells of the end of those that made TLS calls only.
        for ended in [one for one in self._joined if not targets.exists(one)]:
            self.forget(ended)
        done = self._joined.setdefault(pid, set())
        points: list[AttachPoint] = []
        own = [path for path in files if self.find(path)]
        for path in [*own, *self._crypto_files(pid), *targets.system_libraries("libcrypto")]:
            try:
                status = os.stat(path)
            except OSError:  # the process is gone, or the file is
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in done:
                continue
            done.add(identity)
            if self._joins[identity] > MAX_JOINS:
                continue
            with contextlib.suppress(TargetError, UnsupportedError):
                found = self._resolve(path, (MEMORY_BIO,)).points
                self._joins[identity] += 1
                if self._joins[identity] > MAX_JOINS:
                    self.notes += [reason for _, reason in self.loader.attach(found, -1)]
                else:
                    points += found
        for address, kind in self._callbacks.get(pid, {}).items():
            if (0, address) not in done:
                done.add((0, address))
                points += self._callback_points(pid, address, kind)
        failures = self.loader.attach_process(points, pid) if points else []
        if targets.exists(pid):  # else it was too late, and nothing is wrong
            self.notes += [reason for _, reason in failures]

    def _crypto_files(self, pid: int) -> list[str]:
        """What a process maps that has BIO functions: a library of that name, or a file with the TLS functions, too."""
        return [
            file.path
            for file in targets.mapped_files(pid)
            if "crypto" in os.path.basename(file.name) or (not is_linker(file.name) and self.find(file.path))
        ]

    def remember_callback(self, pid: int, address: int, kind: CallKind) -> None:
        """A TLS library of the process was given a function.

        One of the library's own, which will call the socket, is probed only if connections can't be found without.
        """
        known = self._callbacks.setdefault(pid, {})
        if address in known or len(known) >= MAX_CALLBACKS:
            return
        known[address] = kind
        place = targets.place_of(pid, address)
        if pid in self._joined or (place and not self.find(place.path)):
            self.join(pid)

    def _callback_points(self, pid: int, address: int, kind: CallKind) -> list[AttachPoint]:
        place = targets.place_of(pid, address)
        if place is None:
            return []
        try:
            return [self.resolver.callback(place.path, place.offset, kind)]
        except (TargetError, UnsupportedError, AttachError) as error:
            self.notes.append(str(error))
            return []

    def forget(self, pid: int) -> None:
        """A process has ended."""
        self._callbacks.pop(pid, None)
        if self._joined.pop(pid, None) and self.loader:
            self.loader.detach_process(pid)

    def diagnose(self) -> list[Finding]:
        """What files that could not be hooked hold, as far as they are still there."""
        found = (diagnose(path) for path in dict.fromkeys(self.unhooked.values()))
        return [one for one in found if one]

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
        """Probe what can be probed of these, and watch the dynamic linkers that they are or ask for.  Returns how many files are new."""
        count = 0
        for path in paths:
            linker = path if is_linker(path) else targets.interpreter(path)
            if linker and not self.only_pids:
                self.watch_linker(linker)
            if not is_linker(path):
                count += self.attach(path)
        return count

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


def is_carrier(name: str) -> bool:
    """Whether a file is one of a program that carries ciphertext itself, by its name (`CARRIERS`)."""
    return CARRIERS.fullmatch(os.path.basename(name)) is not None


def may_become_carrier(path: str) -> bool:
    """Whether a command's program is a carrier, or mostly becomes another program."""
    return is_carrier(path) or LAUNCHERS.fullmatch(os.path.basename(path)) is not None


def own_linker() -> str | None:
    """The dynamic linker of this very process: most others on the machine use the same."""
    return next((file.path for file in targets.mapped_files(os.getpid()) if is_linker(file.name)), None)
