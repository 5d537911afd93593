"""What is found out about processes, with real ones; control groups in a made-up tree."""

from __future__ import annotations

import ctypes
import mmap
import os
import pwd
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tlscap.errors import TargetError, UsageError
from tlscap.live import targets
from tlscap.live.quicklook import may_hold_tls
from tlscap.live.sites import Image

WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"
IS_ROOT = os.geteuid() == 0

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Return a function that starts a program that says a line when it is ready and runs until the test ends."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: str | Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in running:
        for child in targets.children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def make_script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


# --- Mapped files ---


def executable_names(pid: int) -> set[str]:
    """Return what /proc/PID/maps says is mapped as executable, read in another way."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "x" in fields[1] and len(fields) == 6 and fields[5].startswith("/"):
            found.add(fields[5])
    return found


def test_mapped_files(spawn: Spawn) -> None:
    """Every file that a process maps as executable, once, with the identity of the file."""
    process = spawn(sys.executable, "-c", "import ssl;" + WAIT)
    files = targets.mapped_files(process.pid)
    assert {file.name for file in files} == executable_names(process.pid)
    assert len({(file.device, file.inode) for file in files}) == len(files)
    for file in files:
        status = os.stat(file.path)
        assert (status.st_dev, status.st_ino) == (file.device, file.inode) or status.st_ino == file.inode
    assert "ssl" in os.path.basename(files[0].name), "TLS libraries come first"


def test_known_files_are_not_looked_up(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a known file only the name is told: where it can be opened costs system calls."""
    process = spawn(sys.executable, "-c", "import ssl;" + WAIT)
    files = {(file.device, file.inode): file for file in targets.mapped_files(process.pid)}
    known = list(files)[::2]
    looked_up: list[tuple[Any, ...]] = []
    real = targets._openable

    def openable(pid: int, *rest: Any) -> str | None:
        looked_up.append(rest)
        return real(pid, *rest)

    monkeypatch.setattr(targets, "_openable", openable)
    again = {(file.device, file.inode): file for file in targets.mapped_files(process.pid, set(known))}
    assert set(again) == set(files)
    for identity, file in again.items():
        assert file.path == ("" if identity in known else files[identity].path)
        assert file.name == files[identity].name
    assert len(looked_up) == len(files) - len(known)


# --- Places in memory ---


def test_place_of_own_function() -> None:
    """A function of the C library lies where its symbol table says."""
    libc = ctypes.CDLL(None)
    for name in ("getpid", "strlen", "qsort"):
        address = ctypes.cast(libc[name], ctypes.c_void_p).value
        assert address is not None
        place = targets.place_of(os.getpid(), address)
        assert place is not None
        assert os.path.basename(place.path).startswith(("libc.so", "libc-"))
        with open(f"/proc/{os.getpid()}/mem", "rb") as memory, open(place.path, "rb") as file:
            memory.seek(address)
            file.seek(place.offset)
            assert memory.read(16) == file.read(16)


def test_place_of_a_symbol() -> None:
    """The offset is the one that the symbol table and the program headers give."""
    address = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert address is not None
    place = targets.place_of(os.getpid(), address)
    assert place is not None
    image = Image(place.path)
    symbols = image.symbols(frozenset({"getpid", "__getpid"}))
    assert place.offset in {image.file_offset(symbol.vaddr) for symbol in symbols.values()}
    assert {image.address(place.offset)} <= {symbol.vaddr for symbol in symbols.values()}


def test_no_place() -> None:
    """Data, anonymous memory, addresses without memory and processes without anything have none."""
    data = ctypes.create_string_buffer(100)
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anonymous = [
        int(line.split("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.split()[1][2] == "x" and len(line.split()) == 5
    ]
    assert anonymous
    for address in (0, 1, ctypes.addressof(data), *anonymous, (1 << 64) - 1, 1 << 47):
        assert targets.place_of(os.getpid(), address) is None
    code.close()
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert targets.place_of(gone.pid, 0x401000) is None


def test_borders_of_a_place() -> None:
    """The first byte of a mapping belongs to it, the first behind it does not."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if words[1] == "r-xp" and len(words) == 6 and words[5].startswith("/"):
            start, end = (int(part, 16) for part in words[0].split("-"))
            offset = int(words[2], 16)
            assert targets.place_of(os.getpid(), start) == targets.Place(os.path.realpath(words[5]), offset)
            assert targets.place_of(os.getpid(), end - 1) == targets.Place(
                os.path.realpath(words[5]), offset + end - start - 1
            )
            after = targets.place_of(os.getpid(), end)
            assert after is None or after.path != os.path.realpath(words[5])
            return
    pytest.fail("nothing is mapped")


# --- The dynamic linker a program asks for ---


def program(*headers: tuple[int, bytes], size: int = 56, count: int | None = None, at: int = 64) -> bytes:
    """Return an ELF file with program headers of these types and contents."""
    number = len(headers) if count is None else count
    head = bytearray(b"\x7fELF\2\1\1".ljust(64, b"\0"))
    struct.pack_into("<Q", head, 32, at)
    struct.pack_into("<HH", head, 54, size, number)
    place = 64 + size * len(headers)
    table, contents = b"", b""
    for kind, content in headers:
        entry = struct.pack("<IIQQQQQQ", kind, 4, place + len(contents), 0, 0, len(content), len(content), 1)
        table += entry.ljust(size, b"\0")[:size]
        contents += content
    return bytes(head) + table + contents


LINKER = os.path.realpath("/lib64/ld-linux-x86-64.so.2")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (program((3, LINKER.encode() + b"\0")), True),
        (program((6, b"x" * 56), (1, b""), (3, LINKER.encode() + b"\0")), True),
        (program((3, b"/no/such/linker\0")), False),
        (program((3, b"\0")), False),
        (program((3, b"/lib\0/x")), False),
        (program((1, LINKER.encode() + b"\0")), False),
        (program(), False),
        (program((3, LINKER.encode() + b"\0"), size=55), False),
        (program((3, LINKER.encode() + b"\0"), size=0), False),
        (program((3, LINKER.encode() + b"\0"), at=(1 << 64) - 1), False),
        (program((3, LINKER.encode() + b"\0"), at=1 << 62), False),
        (program((3, LINKER.encode() + b"\0"), count=0xFFFF), True),
        (b"\x7fELF\1" + program((3, LINKER.encode() + b"\0"))[5:], False),
        (program((3, LINKER.encode() + b"\0"))[:60], False),
        (program((3, LINKER.encode() + b"\0"))[:100], False),
        (b"#!/bin/sh\n", False),
        (b"", False),
    ],
)
def test_interpreter(tmp_path: Path, content: bytes, found: bool) -> None:
    """The linker that a program names, if it exists; from a file that is none, or broken, nothing."""
    if not os.path.exists(LINKER):
        pytest.skip("no glibc for x86-64 here")
    path = tmp_path / "program"
    path.write_bytes(content)
    assert targets.interpreter(str(path)) == (LINKER if found else None)


def test_interpreter_of_real_programs(tmp_path: Path) -> None:
    """As readelf reads it."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    said = subprocess.run(["readelf", "-lW", "/bin/true"], capture_output=True, text=True, check=True).stdout
    name = re.search(r"program interpreter: (.*)\]", said)
    assert name is not None
    assert targets.interpreter("/bin/true") == os.path.realpath(name[1])
    assert targets.interpreter(str(tmp_path)) is None
    assert targets.interpreter(str(tmp_path / "nothing")) is None


def test_interpreter_of_a_liar(tmp_path: Path) -> None:
    """Headers that would take gigabytes are not read: files of anybody are looked at here."""
    path = tmp_path / "program"
    path.write_bytes(program(size=0xFFFF, count=0xFFFF))
    os.truncate(path, 5 << 30)  # a sparse file
    tracemalloc.start()
    try:
        assert targets.interpreter(str(path)) is None
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_deleted_file_is_still_found(spawn: Spawn, tmp_path: Path) -> None:
    """A program that was deleted, or replaced by another of the same name, is opened as what is mapped."""
    if not IS_ROOT:
        pytest.skip("only root may open /proc/PID/map_files")
    program = tmp_path / "my program"
    shutil.copy("/bin/bash", program)
    process = spawn(program, "-c", "echo ready; read line")
    inode = program.stat().st_ino
    (before,) = [file for file in targets.mapped_files(process.pid) if file.inode == inode]
    assert (before.path, before.name) == (str(program), str(program))
    program.unlink()
    other = tmp_path / "other"
    shutil.copy("/bin/true", other)
    other.rename(program)
    (after,) = [file for file in targets.mapped_files(process.pid) if file.inode == inode]
    assert after.name == f"{program} (deleted)"
    assert after.path != str(program)
    assert Path(after.path).read_bytes() == Path("/bin/bash").read_bytes()


def test_odd_names(spawn: Spawn, tmp_path: Path) -> None:
    """Spaces, undecodable bytes and line ends in names don't hide a file."""
    if not IS_ROOT:
        pytest.skip("only root may open /proc/PID/map_files")
    for name in (b"a b  c", b"\xff\xfe", b"line\nend", b"x (deleted)"):
        program = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy(b"/bin/bash", program)
        process = spawn(os.fsdecode(program), "-c", "echo ready; read line")
        inode = os.stat(program).st_ino
        assert [file.inode for file in targets.mapped_files(process.pid)].count(inode) == 1, name


def test_processes_that_are_gone() -> None:
    """Of a process that ended, there is nothing, and no error."""
    process = subprocess.Popen(["true"])
    process.wait()
    pid = process.pid
    assert targets.mapped_files(pid) == []
    assert targets.children(pid) == []
    assert targets.executable(pid) == ""
    assert targets.start_time_ns(pid) == 0
    assert targets.is_zombie(pid)
    assert not targets.exists(pid)


def test_zombies() -> None:
    """A process that ended, but that nobody has waited for, doesn't exist for us."""
    process = subprocess.Popen(["true"])
    try:
        assert eventually(lambda: targets.is_zombie(process.pid))
        assert not targets.exists(process.pid)
        assert targets.mapped_files(process.pid) == []
    finally:
        process.wait()


# --- Processes ---


def test_children(spawn: Spawn) -> None:
    """Children and their children, all of them, and not the process itself."""
    script = "sleep 60 & (sleep 60 & sleep 60 & wait) & echo ready; wait"
    process = spawn("/bin/bash", "-c", script)
    assert eventually(lambda: len(targets.children(process.pid)) == 4)
    found = targets.children(process.pid)
    assert process.pid not in found
    assert len(set(found)) == 4
    assert set(found) <= set(targets.children(os.getpid()))


def test_identity(spawn: Spawn) -> None:
    """Start time and executable of a process, also with a name that is made to confuse."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    rename = "open('/proc/self/comm', 'w').write('a) Z 1 (b');"
    process = spawn(sys.executable, "-c", rename + WAIT)
    started = targets.start_time_ns(process.pid)
    assert before - 50_000_000 <= started <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert os.path.samefile(targets.executable(process.pid), sys.executable)
    assert targets.exists(process.pid)
    assert not targets.is_zombie(process.pid)
    assert process.pid in targets.all_pids()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SUDO_UID": "0"}, None),
        ({"SUDO_UID": "x"}, None),
        ({"SUDO_UID": "-5"}, None),
        (
            {"SUDO_UID": "4000123", "SUDO_GID": "55", "SUDO_USER": "ghost"},
            targets.User(4000123, 55, "ghost", "/"),
        ),
        ({"SUDO_UID": "4000123", "SUDO_GID": "x"}, targets.User(4000123, 4000123, "4000123", "/")),
    ],
)
def test_invoking_user(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: targets.User | None
) -> None:
    """Who called sudo, if anybody did; a user without an entry keeps the numbers."""
    for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert targets.invoking_user() == expected


def test_invoking_user_with_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known user comes with group, name and home from the user database, not from the environment."""
    entry = next(one for one in pwd.getpwall() if one.pw_uid > 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", str(entry.pw_uid))
    monkeypatch.setenv("SUDO_GID", "77777")
    assert targets.invoking_user() == targets.User(entry.pw_uid, entry.pw_gid, entry.pw_name, entry.pw_dir)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert targets.invoking_user() is None


# --- Files ---


def test_system_libraries() -> None:
    """What the dynamic linker would find: real files, each once."""
    found = targets.system_libraries()
    assert len(set(found)) == len(found)
    for path in found:
        assert os.path.realpath(path) == path
        assert may_hold_tls(path)
    names = [os.path.basename(path) for path in targets.system_libraries("libcrypto|libc")]
    assert any(name.startswith("libc.so") for name in names)
    assert not [name for name in names if not name.startswith(("libcrypto.so", "libc.so", "libc-"))]
    assert targets.system_libraries("no-such-library-anywhere") == []


def test_command_is_a_program() -> None:
    """A program is found in PATH or by its path."""
    real = os.path.realpath("/bin/sleep")
    assert list(targets.command_files("sleep")) == [real]
    assert list(targets.command_files("/bin/sleep")) == [real]


@pytest.mark.parametrize(
    ("first", "interpreter"),
    [
        ("#!/bin/bash", "/bin/bash"),
        ("#! /bin/bash -eu", "/bin/bash"),
        ("#!/usr/bin/env bash", "/bin/bash"),
        ("#!/usr/bin/env -S A=1 B=2 bash -x", "/bin/bash"),
        ("#!/usr/bin/env", None),
        ("#!/usr/bin/env no-such-program-anywhere", None),
        ("#!", None),
        ("#!/no/such/file", None),
        ("#!/bin/\0bash", None),
        ("#!" + "x" * 5000, None),
        ("echo no shebang", None),
    ],
)
def test_command_is_a_script(tmp_path: Path, first: str, interpreter: str | None) -> None:
    """Of a script the interpreter is named, too: that is what will map the TLS library."""
    script = make_script(tmp_path / "script", first, "exit")
    expected = [str(script), *([os.path.realpath(interpreter)] if interpreter else [])]
    assert list(targets.command_files(str(script))) == expected


def test_scripts_of_scripts(tmp_path: Path) -> None:
    """An interpreter may be a script itself; a circle of them ends."""
    inner = make_script(tmp_path / "inner", "#!/bin/bash")
    outer = make_script(tmp_path / "outer", f"#!{inner}")
    assert list(targets.command_files(str(outer))) == [str(outer), str(inner), os.path.realpath("/bin/bash")]
    loop = tmp_path / "loop"
    make_script(loop, f"#!{loop}")
    found = list(targets.command_files(str(loop)))
    assert set(found) == {str(loop)}
    assert len(found) < 10


def test_no_command(tmp_path: Path) -> None:
    """What can't be run has no files."""
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    for command in ("no-such-program-anywhere", str(tmp_path), str(plain), ""):
        assert list(targets.command_files(command)) == []


# --- Control groups and containers ---

ID = "0123456789abcdef" * 4


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is taken for the cgroup2 mount, with groups as the container engines name them."""
    for name in (
        f"system.slice/docker-{ID}.scope",
        f"docker/beef{ID[4:]}",
        f"machine.slice/libpod-cafe{ID[4:]}.scope/container",
        f"machine.slice/libpod-conmon-cafe{ID[4:]}.scope",
        f"kubepods.slice/cri-containerd-feed{ID[4:]}.scope",
        f"kubepods.slice/crio-conmon-face{ID[4:]}.scope",
        f"kubepods.slice/crio-face{ID[4:]}.scope",
        "user.slice/user-1000.slice",
        "lxc/web",
    ):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(targets, "_cgroup2_mount", lambda: str(tmp_path))
    return tmp_path


def test_cgroup(groups: Path) -> None:
    """A control group by its path, with or without the mount point."""
    inode = (groups / "user.slice/user-1000.slice").stat().st_ino
    for name in ("user.slice/user-1000.slice", "/user.slice/user-1000.slice", f"{groups}/user.slice/user-1000.slice"):
        assert targets.cgroup_id(name) == inode
    assert targets.cgroup_id("/") == groups.stat().st_ino


def test_no_cgroup(groups: Path) -> None:
    """A group that isn't there is an error that says where it was looked for."""
    (groups / "cgroup.procs").touch()
    for name in ("nothing", "/nothing", "/etc", "cgroup.procs"):
        with pytest.raises(TargetError, match=f"no control group '{name}' under {groups}"):
            targets.cgroup_id(name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (ID, f"system.slice/docker-{ID}.scope"),
        (ID[:12], f"system.slice/docker-{ID}.scope"),
        ("beef", f"docker/beef{ID[4:]}"),
        ("cafe" + ID[4:9], f"machine.slice/libpod-cafe{ID[4:]}.scope"),
        ("feed", f"kubepods.slice/cri-containerd-feed{ID[4:]}.scope"),
        ("face", f"kubepods.slice/crio-face{ID[4:]}.scope"),
    ],
)
def test_container(groups: Path, name: str, folder: str) -> None:
    """A container by its id or the beginning of it; its monitor, which has a group of the same id, is not meant."""
    assert targets.container_cgroup(name) == (groups / folder).stat().st_ino


def test_no_container(groups: Path) -> None:
    """Unknown, ambiguous and impossible ids are told apart."""
    with pytest.raises(TargetError, match="no container 'dddd' is running"):
        targets.container_cgroup("dddd")
    with pytest.raises(TargetError, match="no container"):
        targets.container_cgroup(ID[4:])  # not the beginning
    (groups / f"docker/{ID[:8]}{'f' * 56}").mkdir()
    with pytest.raises(TargetError, match="names 2 control groups") as caught:
        targets.container_cgroup(ID[:8])
    assert "more of the id" in caught.value.hint
    for name in ("", "abc", "../../etc", "a b c d", ".*.*"):
        with pytest.raises((UsageError, TargetError)):
            targets.container_cgroup(name)


def test_no_cgroup2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cgroup2 mount both say so."""
    monkeypatch.setattr(targets, "_cgroup2_mount", lambda: "")
    with pytest.raises(TargetError, match="no cgroup2 file system") as caught:
        targets.cgroup_id("/x")
    assert "mount -t cgroup2" in caught.value.hint
    with pytest.raises(TargetError, match="cgroup2"):
        targets.container_cgroup("abcd")
