"""Finding things out about processes: what they map, who they are, which files they could load.

Everything is read through ``/proc/PID/root``, so a container's files are the container's.  A process may
end at any moment: whatever can't be read any more is simply absent from the answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tlscap.errors import TargetError, UsageError

_MAPS_LINE = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+)\s+(/.*)$")
TLS_MARKERS = (b"\0SSL_write\0", b"\0SSL_write_ex\0")
"""A file without one of these names has nothing to hook: a quick look before parsing."""


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


def mapped_files(pid: int) -> list[MappedFile]:
    """Executable mappings of files, each file once; TLS libraries by their name come first."""
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
        region, major, minor, inode, raw = match.groups()
        name = os.fsdecode(raw)
        identity = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        if identity in files:
            continue
        path = _openable(pid, name.removesuffix(" (deleted)"), region.decode(), identity[1])
        if path:
            files[identity] = MappedFile(path, name, *identity)
    return sorted(files.values(), key=lambda file: "ssl" not in os.path.basename(file.name))


def _openable(pid: int, name: str, region: str, inode: int) -> str | None:
    """A path under which the mapped file itself, not a successor of the same name, can be opened."""
    try:
        if os.stat(name).st_ino == inode and os.readlink(f"/proc/{pid}/root") == "/":
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


def may_hold_tls(path: str) -> bool:
    """Whether the bytes of a file contain the name of a TLS function at all."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 4096 or file.read(4) != b"\x7fELF":
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return any(data.find(marker) >= 0 for marker in TLS_MARKERS)
    except (OSError, ValueError):
        return False


def system_libraries() -> list[str]:
    """The TLS libraries the dynamic linker would find, from its cache."""
    tool = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-p"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
    found = re.findall(r"^\s+libssl\.so\S* \(.*x86-64.*|^\s+libssl\.so\S* \(.*AArch64.*", listing, re.MULTILINE)
    paths = (line.rpartition(" => ")[2].strip() for line in found)
    return list(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.exists(path)))


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
