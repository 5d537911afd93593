"""Remembers the probe sites of files between recordings, so that starting takes no disassembly.

An entry belongs to one file as it was: device, inode, size, and the times of its last change of content and of
status, which nobody but root can set back.  Before an entry is believed, the code at every site is read again and compared
with what was disassembled.  The folder must belong to root and be writable by nobody else; otherwise nothing is cached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tlscap.live.loader import AttachPoint, CallKind, LifeKind, ResolvedLibrary

FOLDER = "/var/cache/tlscap"
CHOOSERS = (
    "catalogue.py",
    "golang.py",
    "methods.py",
    "returns.py",
    "rust.py",
    "signatures.py",
    "signatures.toml",
    "sites.py",
)
"""The modules that choose sites: what was chosen by others is not believed."""
CODE_SIZE = 16


class SiteCache:
    """Looks entries up and adds them.  Every failure means: not cached."""

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        self._usable = os.geteuid() == 0 and self._prepare()
        self._version = _version()

    def _prepare(self) -> bool:
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            status = os.lstat(self._folder)
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022

    def get(self, path: str, flavors: str) -> ResolvedLibrary | None:
        """What was found in this file before, if it is still the same file."""
        if not self._usable:
            return None
        try:
            status = os.stat(path)
            with open(self._entry(status, flavors), encoding="utf-8") as file:
                entry = json.load(file)
            if entry["version"] != self._version or entry["file"] != _identity(status):
                return None
            with open(path, "rb") as code:
                for point in entry["points"]:
                    if os.pread(code.fileno(), CODE_SIZE, point["file_offset"]).hex() != point["code"]:
                        return None
            return _from_entry(path, entry)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def put(self, path: str, flavors: str, library: ResolvedLibrary) -> None:
        if not self._usable:
            return
        with contextlib.suppress(OSError):
            status = os.stat(path)
            with open(path, "rb") as code:
                points = [
                    {
                        "function": point.function,
                        "life": isinstance(point.kind, LifeKind),
                        "kind": point.kind.name,  # numbers may come to mean something else
                        "count_arg": point.count_arg,
                        "length_arg": point.length_arg,
                        "returns": point.returns,
                        "stack": point.stack,
                        "indirect": point.indirect,
                        "identity": point.identity,
                        "unproven": point.unproven,
                        "vaddr": point.vaddr,
                        "file_offset": point.file_offset,
                        "site": point.site,
                        "code": os.pread(code.fileno(), CODE_SIZE, point.file_offset).hex(),
                    }
                    for point in library.points
                ]
            entry = {
                "version": self._version,
                "file": _identity(status),
                "build_id": library.build_id,
                "flavor": library.flavor,
                "notes": list(library.notes),
                "points": points,
            }
            fd, temporary = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(entry, file)
            os.replace(temporary, self._entry(status, flavors))

    def _entry(self, status: os.stat_result, flavors: str) -> str:
        return os.path.join(self._folder, f"{status.st_dev:x}-{status.st_ino:x}-{flavors}.json")


@functools.cache
def _version() -> str:
    """Changes with every change of the modules that choose."""
    folder = resources.files("tlscap.live")
    text = b"".join(folder.joinpath(name).read_bytes() for name in CHOOSERS)
    return hashlib.sha256(text + os.uname().release.encode()).hexdigest()[:16]


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _from_entry(path: str, entry: Mapping[str, Any]) -> ResolvedLibrary:
    points = tuple(
        AttachPoint(
            path=path,
            function=str(point["function"]),
            kind=LifeKind[point["kind"]] if point["life"] else CallKind[point["kind"]],
            count_arg=int(point["count_arg"]),
            length_arg=int(point["length_arg"]),
            returns=tuple(int(offset) for offset in point["returns"]),
            stack=bool(point["stack"]),
            indirect=bool(point["indirect"]),
            identity=int(point["identity"]),
            unproven=bool(point["unproven"]),
            vaddr=int(point["vaddr"]),
            file_offset=int(point["file_offset"]),
            site=str(point["site"]),
        )
        for point in entry["points"]
    )
    return ResolvedLibrary(path, str(entry["build_id"]), str(entry["flavor"]), points, tuple(entry["notes"]))
