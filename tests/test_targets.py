"""What is found out about processes, with real ones; control groups in a made-up tree."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tlscap.errors import TargetError, UsageError
from tlscap.live import targets

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


def test_may_hold_tls(tmp_path: Path) -> None:
    """A quick look finds the names of TLS functions in ELF files, and takes nothing else for one."""
    path = tmp_path / "file"
    for content, expected in (
        (b"\x7fELF" + bytes(5000) + b"\0SSL_write\0", True),
        (b"\x7fELF" + bytes(5000) + b"\0SSL_write_ex\0" + bytes(9), True),
        (b"\x7fELF" + bytes(5000) + b"\0SSL_writer\0", False),
        (b"\x7fELF\0SSL_write\0", False),
        (b"text" + bytes(5000) + b"\0SSL_write\0", False),
        (b"", False),
    ):
        path.write_bytes(content)
        assert targets.may_hold_tls(str(path)) is expected, content[-20:]
    assert not targets.may_hold_tls(str(tmp_path))
    assert not targets.may_hold_tls(str(tmp_path / "nothing"))


def test_system_libraries() -> None:
    """What the dynamic linker would find: real files, each once."""
    found = targets.system_libraries()
    assert len(set(found)) == len(found)
    for path in found:
        assert os.path.realpath(path) == path
        assert targets.may_hold_tls(path)


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
