"""Finding things out about processes: what they map, who they are, which files they could load.

Everything is read through ``/proc/PID/root``, so a container's files are the container's.  A process may
end at any moment: whatever can't be read any more is simply absent from the answer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import struct
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tlscap.errors import TargetError, UsageError

SYSTEM_LIBRARIES = "libssl|libssl3|libgnutls|libwolfssl|libmbedtls"
"""What processes that start later will most likely map."""
PT_INTERP = b"\x03\0\0\0"
PROGRAM_HEADER = 56  # Elf64_Phdr
_MAPS_LINE = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) ..x. ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)\s+(/.*)$")


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file mapped as executable: where to open it, what the process calls it, and which file it is."""

    path: str
    name: str
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class User:
    """Whom the captures belong to, and as whom a command runs."""

    uid: int
    gid: int
    name: str
    home: str


def invoking_user() -> User | None:
    """The user who called sudo, or None when there is none to go back to."""
    uid = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not uid.isdigit() or uid == "0":
        return None
    try:
        entry = pwd.getpwuid(int(uid))
    except KeyError:
        gid = os.environ.get("SUDO_GID", uid)
        return User(int(uid), int(gid) if gid.isdigit() else int(uid), os.environ.get("SUDO_USER", uid), "/")
    return User(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir)


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/stat") and not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def start_time_ns(pid: int) -> int:
    """Start after boot, in nanoseconds but only as fine as clock ticks; 0 when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """All processes below one, at this moment."""
    found = []
    pending = [pid]
    while pending:
        parent = pending.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as file:
                    below = [int(word) for word in file.read().split()]
                found += below
                pending += below
    return found


def mapped_files(pid: int, known: Collection[tuple[int, int]] = ()) -> list[MappedFile]:
    """Executable mappings of files, each file once; TLS libraries by their name come first.

    Where a file can be opened is not looked up for those of which the device and inode are ``known``: they have no path.
    """
    files: dict[tuple[int, int], MappedFile] = {}
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        match = _MAPS_LINE.match(line)
        if not match:
            continue
        region, _, major, minor, inode, raw = match.groups()
        name = os.fsdecode(raw)
        identity = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        if identity in files:
            continue
        path = "" if identity in known else _openable(pid, name.removesuffix(" (deleted)"), region.decode(), identity)
        if path is not None:
            files[identity] = MappedFile(path, name, *identity)
    return sorted(files.values(), key=lambda file: "ssl" not in os.path.basename(file.name))


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file an address of a process lies."""

    path: str
    offset: int


def place_of(pid: int, address: int) -> Place | None:
    """The place in a file of an address in executable memory; None when it is in no file, or the process is gone."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        match = _MAPS_LINE.match(line)
        start, end = (int(part, 16) for part in match[1].split(b"-")) if match else (0, 0)
        if match and start <= address < end:
            name = os.fsdecode(match[6]).removesuffix(" (deleted)")
            identity = os.makedev(int(match[3], 16), int(match[4], 16)), int(match[5])
            path = _openable(pid, name, match[1].decode(), identity)
            return Place(path, address - start + int(match[2], 16)) if path else None
    return None


def _openable(pid: int, name: str, region: str, identity: tuple[int, int]) -> str | None:
    """A path under which the mapped file itself, not a successor of the same name, can be opened."""
    inode = identity[1]
    try:
        status = os.stat(name)
        # A name that leads to the same file is right, whatever the process calls it: a chroot's are shown as seen from here.
        if (status.st_dev, status.st_ino) == identity:
            return name
        # Some file systems show another device number in maps than in stat.
        if status.st_ino == inode and os.readlink(f"/proc/{pid}/root") == "/":
            return name
    except OSError:
        pass
    for path in (f"/proc/{pid}/root{name}", f"/proc/{pid}/map_files/{region}"):
        try:
            if os.stat(path).st_ino == inode:
                return path
        except OSError:
            continue
    return None


def executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


@functools.cache
def _linker_cache() -> str:
    """What ``ldconfig -p`` prints."""
    tool = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tool is None:
        return ""
    return subprocess.run([tool, "-p"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout


def system_libraries(names: str = SYSTEM_LIBRARIES) -> list[str]:
    """The libraries that the dynamic linker would find, from its cache; ``names`` is a regular expression, without ``.so``."""
    found = re.findall(rf"^\s+(?:{names})\.so\S* \(.*(?:x86-64|AArch64).*", _linker_cache(), re.MULTILINE)
    paths = (line.rpartition(" => ")[2].strip() for line in found)
    return list(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.exists(path)))


def known_programs() -> list[str]:
    """Programs that carry their TLS library with them and are often started by others: there would be no time left then."""
    found = (shutil.which(name) for name in ("node", "nodejs"))
    return list(dict.fromkeys(os.path.realpath(path) for path in found if path))


def command_files(command: str) -> Iterator[str]:
    """Files a command will certainly map: the program itself, or the interpreter of a script."""
    path = shutil.which(command)
    for _ in range(4):  # scripts may name scripts
        if path is None or not os.path.exists(path):
            return
        yield os.path.realpath(path)
        try:
            with open(path, "rb") as file:
                first = file.read(256).split(b"\n")[0]
        except OSError:
            return
        if not first.startswith(b"#!"):
            return
        words = os.fsdecode(first[2:].strip()).split()
        if words and os.path.basename(words[0]) == "env":
            words = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        path = shutil.which(words[0]) if words else None


def interpreter(path: str) -> str | None:
    """The dynamic linker that a 64-bit ELF program asks for (PT_INTERP), when it exists."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:5] != b"\x7fELF\x02":
                return None
            at, size, count = int.from_bytes(head[32:40], "little"), *struct.unpack_from("<HH", head, 54)
            if size != PROGRAM_HEADER:
                return None
            file.seek(at)
            table = file.read(size * count)
            for entry in range(0, len(table) - size + 1, size):
                if table[entry : entry + 4] == PT_INTERP:
                    start, _, _, length = struct.unpack_from("<4Q", table, entry + 8)
                    file.seek(start)
                    name = os.fsdecode(file.read(min(length, 4096)).rstrip(b"\0"))
                    return os.path.realpath(name) if os.path.exists(name) else None
    except (OSError, ValueError, OverflowError, struct.error):
        pass
    return None


def cgroup_id(name: str) -> int:
    """The id of a version 2 control group, given by its path with or without the mount point.

    Raises `TargetError`.
    """
    root = _cgroup2_mount()
    for path in (name, os.path.join(root, name.lstrip("/")) if root else name):
        if root and path.startswith(root) and os.path.isdir(path):
            return os.stat(path).st_ino
    if not root:
        raise TargetError("no cgroup2 file system is mounted here", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")
    raise TargetError(f"no control group {name!r} under {root}")


def container_cgroup(container: str) -> int:
    """The control group of a container, by its id or the beginning of it.  Raises `TargetError`."""
    if not re.fullmatch(r"[0-9a-zA-Z_.-]{4,}", container):
        raise UsageError(f"{container!r} is not a container id")
    root = _cgroup2_mount()
    if not root:
        raise TargetError("containers are found by their cgroup2 group, and none is mounted here")
    matches = {
        folder: os.stat(folder).st_ino
        for folder, _, _ in os.walk(root)
        # Podman and CRI-O give each container's monitor a group of the same id: libpod-conmon-ID.scope.
        if "conmon-" not in os.path.basename(folder)
        and re.search(rf"(^|[-_/]){re.escape(container)}[0-9a-f]*(\.scope)?$", os.path.basename(folder))
    }
    if not matches:
        raise TargetError(f"no container {container!r} is running (no control group of that name under {root})")
    if len(matches) > 1:
        raise TargetError(f"{container!r} names {len(matches)} control groups", hint="give more of the id")
    return next(iter(matches.values()))


def _cgroup2_mount() -> str:
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 2 and words[2] == "cgroup2":
                return words[1]
    return ""
