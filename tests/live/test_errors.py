"""What goes wrong ends with one clear line and the right exit status, and never costs what was recorded before."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    PATIENCE_S,
    TLSCAP,
    Nginx,
    Recorder,
    Started,
    inspect_json,
    run_tlscap,
    stop,
    wait_until,
)

NOBODY = pwd.getpwnam("nobody")


def complaint(*arguments: str | Path | int, status: int, **options: object) -> str:
    """Run tlscap to an error: one line that begins with "tlscap:", perhaps a hint below it, and nothing else."""
    done = run_tlscap(*arguments, **options)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == status, lines
    assert lines
    assert lines[0].startswith("tlscap: ")
    assert len(lines) <= 2
    assert all(line.startswith("  ") for line in lines[1:])
    return lines[0]


def ended_process() -> int:
    """The pid of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def recorded(nginx: Nginx, record: Recorder) -> Path:
    """A small sidecar."""
    return record(
        command=[*CURL, "--cacert", nginx.certificates.ca, "-o", "/dev/null", f"{nginx.url}/say/small"]
    ).sidecar


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder of nobody's, which nobody can reach: pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="tlscap-test-"))
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    shutil.rmtree(folder)


# --- Who and what ---


def test_not_root(tmp_path: Path) -> None:
    """Without root there is one line that says so.  (The capability lets the user read a clone in root's home.)"""
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
         "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
         TLSCAP, "record", "-o", "/tmp/never-written", "--", "true"],
        capture_output=True, text=True, env=CLEAN_ENVIRONMENT, cwd="/",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr == "tlscap: recording needs root\n  sudo tlscap record ...\n"
    assert not Path("/tmp/never-written.pcapng").exists()


@pytest.mark.parametrize("loader", ["auto", "libbpf", "bcc"])
def test_without_btf(tmp_path: Path, loader: str) -> None:
    """A kernel without BTF: said in one line, with what it needs."""
    script = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", TLSCAP, "record", "--loader", loader, "-o", tmp_path / "x", "true"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 3, done.stderr
    assert "/sys/kernel/btf/vmlinux" in done.stderr
    assert "CONFIG_DEBUG_INFO_BTF" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_such_process(tmp_path: Path) -> None:
    """A pid that nobody has."""
    pid = ended_process()
    assert complaint("record", "-p", pid, cwd=tmp_path, status=3) == f"tlscap: there is no process {pid}"
    assert list(tmp_path.iterdir()) == []


def test_process_ends(nginx: Nginx, record: Recorder) -> None:
    """When the processes that are recorded end, so does the recording: complete."""
    code = (
        "import ssl, sys, urllib.request; sys.stdin.readline();"
        "context = ssl.create_default_context(cafile=sys.argv[1]);"
        "urllib.request.urlopen(sys.argv[2], context=context).read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, nginx.certificates.ca, f"{nginx.url}/say/last"],
        stdin=subprocess.PIPE,
        env=CLEAN_ENVIRONMENT,
    ) as client:
        assert client.stdin
        wait_until(lambda: "libssl" in Path(f"/proc/{client.pid}/maps").read_text(), "the client is there")
        with record.running("-p", client.pid) as started:
            client.stdin.write(b"go\n")
            client.stdin.close()
            client.wait(PATIENCE_S)
            started.process.wait(PATIENCE_S)
    recording = started.recording()
    assert recording.status == 0
    assert recording.complete, recording.stderr
    assert [e["url"] for e in inspect_json(recording.sidecar)] == [f"{nginx.url}/say/last"]


def test_process_without_tls(tmp_path: Path) -> None:
    """A process that maps no TLS library can't be recorded, but its name can be: it may load one."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            line = complaint("record", "-p", sleeper.pid, cwd=tmp_path, status=3)
        finally:
            stop(sleeper)
    assert line.startswith(f"tlscap: process {sleeper.pid} maps no file with TLS functions")
    assert list(tmp_path.iterdir()) == []


def test_no_tls(record: Recorder) -> None:
    """A program that does not use TLS ends as it would; that nothing was seen is said."""
    recording = record(command=["true"])
    assert "tlscap: no TLS call was seen" in recording.stderr
    assert inspect_json(recording.sidecar) == []
    assert inspect_json(recording.pcapng) == []


def test_library_without_tls(tmp_path: Path) -> None:
    """A library that was asked for by name, and has nothing to hook."""
    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)
    line = complaint("record", "--lib", libc, "--", "true", cwd=tmp_path, status=3)
    assert libc in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--lib", "/no/such/libssl.so", "--", "true"], 3),
        (["--lib", "/etc/passwd", "--", "true"], 3),
        (["--probe", "SSL_read:/no/such/file", "--", "true"], 3),
        (["--cgroup", "/no/such/group", "--", "true"], 2),
        (["--cgroup", "no/such/group"], 3),
        (["--container", "0123456789abcdef"], 3),
    ],
)
def test_no_such_target(tmp_path: Path, arguments: list[str], status: int) -> None:
    """Files and groups that are not there."""
    complaint("record", *arguments, cwd=tmp_path, status=status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-p", "1", "--", "true"],
        ["-p", "zero"],
        ["-p", "0"],
        ["--no-such-option", "--", "true"],
        ["--no-pcapng", "--no-sidecar", "--", "true"],
        ["-w", "file.pcapng", "--", "true"],
        ["--ring-size", "1", "--", "true"],
        ["--ring-size", "much", "--", "true"],
        ["--duration", "soon", "--", "true"],
        ["--framing", "none", "--", "true"],
        ["-o", "folder/", "--", "true"],
        ["--probe", "SSL_read", "--", "true"],
        ["--container", "x"],
    ],
)
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    """Wrong options: status 2, nothing begins."""
    done = run_tlscap("record", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr
    assert list(tmp_path.iterdir()) == []


# --- The command ---


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["no-such-command-anywhere"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
    ],
)
def test_exit_status(record: Recorder, command: list[str], status: int) -> None:
    """The command's exit status is passed on, as a shell does."""
    recording = record(command=command, status=status)
    if status in (126, 127):
        assert recording.stderr.count(f"tlscap: {command[0]}: ") == 1


def test_interrupted_command(record: Recorder) -> None:
    """SIGTERM goes on to the command, whose end ends the recording."""
    command = ["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]
    base = record.base()
    with Started(base, (), command, CLEAN_ENVIRONMENT) as started:
        wait_until(lambda: base.with_name(base.name + ".stdout").read_bytes() == b"ready\n", "the command runs")
        started.process.terminate()
        assert started.process.wait(PATIENCE_S) == 9


def test_interrupted_set_up(record: Recorder) -> None:
    """SIGTERM before the probes are in place: the command never runs, and nothing is left behind."""
    base = record.base()
    with Started(base, (), ["sh", "-c", "echo ran"], CLEAN_ENVIRONMENT) as started:
        wait_until(base.with_name(base.name + ".pcapng").exists, "the output exists")
        started.process.terminate()
        assert started.process.wait(PATIENCE_S) == 128 + 15
        assert "interrupted before anything was recorded" in started.stderr
    assert base.with_name(base.name + ".stdout").read_bytes() == b""
    assert not base.with_name(base.name + ".pcapng").exists()
    assert not base.with_name(base.name + ".tlscap.zst").exists()


def test_interrupted_after_recording(record: Recorder) -> None:
    """A command that outlives its recording still gets the signals, and its status is still passed on."""
    command = ["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"]
    base = record.base()
    with Started(base, ("--duration", "200ms"), command, CLEAN_ENVIRONMENT) as started:
        started.wait()
        wait_until(lambda: not _has_links(started.process.pid), "the probes are gone")
        time.sleep(0.2)
        started.process.terminate()
        assert started.process.wait(PATIENCE_S) == 9
    assert "complete: all 0 bytes" in started.stderr


def _has_links(pid: int) -> bool:
    """Whether a process holds probes."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "bpf_link" in os.readlink(f"/proc/{pid}/fd/{name}"):
                return True
    return False


# --- Files ---


@pytest.mark.parametrize("suffix", [".pcapng", ".tlscap.zst"])
def test_existing_file(tmp_path: Path, suffix: str) -> None:
    """A file that is there stays as it is; --force replaces it."""
    there = tmp_path / f"x{suffix}"
    there.write_bytes(b"precious")
    line = complaint("record", "-o", tmp_path / "x", "--", "touch", tmp_path / "ran", status=5)
    assert line == f"tlscap: {there} exists already"
    assert [path.name for path in tmp_path.iterdir()] == [there.name]  # the command did not run, either
    assert there.read_bytes() == b"precious"
    assert run_tlscap("record", "--force", "-o", tmp_path / "x", "--", "true").returncode == 0
    assert there.read_bytes() != b"precious"


def test_symbolic_link(tmp_path: Path) -> None:
    """Nobody can make root write elsewhere, not even with --force."""
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "x.pcapng").symlink_to(elsewhere)
    assert "exists already" in complaint("record", "-o", tmp_path / "x", "--", "true", status=5)
    assert not elsewhere.exists()


def test_unwritable_folder(tmp_path: Path) -> None:
    """Folders that don't exist, or take no files."""
    for folder in (tmp_path / "missing", Path("/proc/self")):
        assert str(folder) in complaint("record", "-o", folder / "x", "--", "true", status=5)


def test_modes(recorded: Path) -> None:
    """Plaintext is for its owner alone."""
    for path in (recorded, recorded.with_name(recorded.name.replace(".tlscap.zst", ".pcapng"))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_sudo(nginx: Nginx, public: Path) -> None:
    """Under sudo, the command runs as who called sudo, and the files are theirs."""
    shutil.copy(nginx.certificates.ca, public / "ca.pem")
    environment = {
        **CLEAN_ENVIRONMENT, "SUDO_UID": str(NOBODY.pw_uid), "SUDO_GID": str(NOBODY.pw_gid), "SUDO_USER": "nobody"
    }  # fmt: skip
    script = f"id -u; id -g; id -G; {' '.join(CURL)} --cacert {public}/ca.pem {nginx.url}/say/sudo"
    done = run_tlscap("record", "-o", public / "x", "--", "sh", "-c", script, env=environment, cwd=public)
    assert done.returncode == 0, done.stderr
    uid, gid, groups, said = done.stdout.decode().splitlines()
    assert (uid, gid, groups) == (str(NOBODY.pw_uid), str(NOBODY.pw_gid), str(NOBODY.pw_gid))
    assert said == "you asked for /say/sudo, number "
    for name in ("x.pcapng", "x.tlscap.zst"):
        status = (public / name).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY.pw_uid, NOBODY.pw_gid, 0o600)
    (exchange,) = inspect_json(public / "x.tlscap.zst")
    assert exchange["url"] == f"{nginx.url}/say/sudo"
    assert exchange["process"]["uid"] == NOBODY.pw_uid


def test_sudo_into_a_foreign_folder(tmp_path: Path) -> None:
    """Under sudo, files go where the caller may write, not where root may."""
    environment = {**CLEAN_ENVIRONMENT, "SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}
    line = complaint("record", "-o", tmp_path / "x", "--", "true", env=environment, status=5)
    assert "Permission denied" in line


@pytest.mark.parametrize("command", ["inspect", "rebuild"])
def test_bad_files(recorded: Path, tmp_path: Path, command: str) -> None:
    """Empty, foreign and damaged files: status 4 and where it is wrong; a file that is not there: 5."""
    good = recorded.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0x55
    more = ("-o", tmp_path / "out.pcapng") if command == "rebuild" else ()
    for content in (b"", b"\x7fELF" + bytes(1000), b"GET / HTTP/1.1\r\n", bytes(5000), bytes(damaged), good[:10]):
        bad = tmp_path / "bad"
        bad.write_bytes(content)
        line = complaint(command, bad, *more, status=4) if command == "rebuild" else last_complaint(bad)
        assert str(bad) in line
        assert not (tmp_path / "out.pcapng").exists()
    assert "No such file" in complaint(command, tmp_path / "missing", *more, status=5)
    assert "directory" in complaint(command, tmp_path, *more, status=5)


def last_complaint(path: Path) -> str:
    """`inspect` may have shown rows, and their header, before it came to what is wrong."""
    done = run_tlscap("inspect", path)
    assert done.returncode == 4, done.stderr
    return next(line for line in done.stderr.decode().splitlines() if line.startswith("tlscap: "))


def test_cut_files(recorded: Path, tmp_path: Path) -> None:
    """A file that was cut anywhere gives what was before, and says that it was cut."""
    good = recorded.read_bytes()
    frames = len(good) - 60
    cut = tmp_path / "cut.tlscap.zst"
    for size in (24, 30, frames, len(good) - 1):
        cut.write_bytes(good[:size])
        shown = run_tlscap("inspect", cut)
        rebuilt = run_tlscap("rebuild", cut, "-o", tmp_path / "cut.pcapng", "--force")
        assert shown.returncode in (0, 4), (size, shown.stderr)
        assert rebuilt.returncode in (0, 4), (size, rebuilt.stderr)
        if size == len(good) - 1:
            assert shown.returncode == rebuilt.returncode == 0
            assert b"/say/small" in shown.stdout
    pcapng = recorded.with_name(recorded.name.replace(".tlscap.zst", ".pcapng"))
    cut.write_bytes(pcapng.read_bytes()[:-50])
    done = run_tlscap("inspect", cut)
    assert done.returncode == 0
    assert b"warning: " in done.stderr
    assert b"/say/small" in done.stdout


# --- Violence ---


class Load(threading.Thread):
    """A client that asks for /say/NAME-0, /say/NAME-1, ... until it is told to stop."""

    def __init__(self, nginx: Nginx, name: str) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self._nginx = nginx
        self._name = name
        self._end = threading.Event()

    def run(self) -> None:
        import http.client
        import ssl

        context = ssl.create_default_context(cafile=str(self._nginx.certificates.ca))
        connection = http.client.HTTPSConnection("localhost", self._nginx.port, context=context)
        for number in itertools.count():
            connection.request("GET", f"/say/{self._name}-{number}")
            connection.getresponse().read()
            self.done = number + 1
            if self._end.is_set():
                break
        connection.close()

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        wanted = self.done + count
        wait_until(lambda: self.done >= wanted, "the load goes on")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


def numbers(path: Path, name: str) -> list[int]:
    """Which of a `Load`'s requests are in a recording, and answered."""
    done = run_tlscap("inspect", path)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in re.findall(rf"/say/{name}-(\d+) +200 ", done.stdout.decode())]


def tlscap_processes(started: Started) -> list[int]:
    pid = started.process.pid
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def test_kill_everything(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """SIGKILL to all of tlscap under load: the sidecar has everything up to about the last half second."""
    (worker,) = nginx.workers
    with Load(nginx, "killed") as load, Started(record.base(), ("-p", worker), (), CLEAN_ENVIRONMENT) as started:
        started.wait()
        sidecar = started.base.with_name(started.base.name + ".tlscap.zst")
        first = load.done + 1  # the one after what may be under way
        load.more(100)
        seen = load.done
        size = sidecar.stat().st_size
        # More than the first frame takes, which only says who records and may come late.
        wait_until(lambda: sidecar.stat().st_size > size + 1500, "a frame of samples is written")
        size = sidecar.stat().st_size
        wait_until(lambda: sidecar.stat().st_size > size, "one more frame is written")
        for pid in tlscap_processes(started):
            os.kill(pid, signal.SIGKILL)
        started.process.wait()
        load.more(100)  # nobody is harmed: the probes are gone
    there = numbers(sidecar, "killed")
    assert there == list(range(there[0], there[-1] + 1)), "no hole before the end"
    assert there[0] <= first
    assert there[-1] >= seen - 1
    done = run_tlscap("inspect", sidecar)
    assert b"warning: " in done.stderr
    again = tmp_path / "again.pcapng"
    done = run_tlscap("rebuild", sidecar, "-o", again)
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"tlscap: {sidecar}: ")
    assert numbers(again, "killed") == there


def test_kill_session(nginx: Nginx, record: Recorder) -> None:
    """SIGKILL to the process that owns the probes: the two others finish both files."""
    (worker,) = nginx.workers
    with Load(nginx, "orphaned") as load, Started(record.base(), ("-p", worker), (), CLEAN_ENVIRONMENT) as started:
        started.wait()
        load.more(100)
        children = tlscap_processes(started)[1:]
        seen = load.done
        started.process.kill()
        started.process.wait()  # which takes the probes away: the load goes on without them
        wait_until(lambda: not any(is_tlscap(pid) for pid in children), "the others end by themselves")
    recording = started.recording()
    there = numbers(recording.sidecar, "orphaned")
    assert there == list(range(there[0], there[-1] + 1))
    assert there[-1] >= seen - 1
    assert numbers(recording.pcapng, "orphaned") == there
    again = run_tlscap("rebuild", recording.sidecar, "-o", "-")
    assert (again.returncode, again.stderr) == (0, b"")
    assert again.stdout == recording.pcapng.read_bytes()


def is_tlscap(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "Name:\ttlscap\n" in status and "State:\tZ" not in status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal(nginx: Nginx, record: Recorder, number: signal.Signals) -> None:
    """Ctrl-C and its like under load: both files are complete."""
    (worker,) = nginx.workers
    name = number.name.lower()
    with Load(nginx, name) as load:
        with record.running("-p", worker, stop_with=number) as started:
            first = load.done + 1
            load.more(200)
            seen = load.done
        recording = started.recording()
    assert recording.status == 0
    assert recording.complete, recording.stderr
    there = numbers(recording.sidecar, name)
    assert there == list(range(there[0], there[-1] + 1))
    assert there[0] <= first
    assert there[-1] >= seen - 1


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system that is soon full."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("options", [(), ("--no-pcapng",)])
def test_full_disk(nginx: Nginx, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A disk that runs full: a clear error, status 5, and what was written opens."""
    nginx.put("fills.bin", os.urandom(1_000_000))
    url = f"{nginx.url}/fills.bin"
    (worker,) = nginx.workers
    with small_disk(tmp_path / "disk", "8M") as disk:
        started = Started(disk / "x", ("-p", worker, *options), (), CLEAN_ENVIRONMENT)
        with started:
            started.wait()
            while started.process.poll() is None:
                subprocess.run(
                    [*CURL, "--cacert", nginx.certificates.ca, "-o", "/dev/null", url],
                    env=CLEAN_ENVIRONMENT,
                    check=True,
                )
        assert started.process.returncode == 5, started.stderr
        assert f"{disk}/x." in started.stderr
        assert "No space left on device" in started.stderr
        shown = run_tlscap("inspect", "--json", disk / "x.tlscap.zst")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count(f'"{url}"'.encode()) >= 1
        rebuilt = run_tlscap("rebuild", disk / "x.tlscap.zst", "-o", tmp_path / "again.pcapng")
        assert rebuilt.returncode == 0, rebuilt.stderr
        assert run_tlscap("inspect", "--json", tmp_path / "again.pcapng").stdout.count(f'"{url}"'.encode()) >= 1


def test_full_disk_with_command(nginx: Nginx, tmp_path: Path) -> None:
    """The same with a command: it may end as it likes, but what is not recorded is an error."""
    nginx.put("fills.bin", os.urandom(20_000_000))
    with small_disk(tmp_path / "disk", "8M") as disk:
        done = run_tlscap(
            "record", "-o", disk / "x", "--",
            *CURL, "--cacert", nginx.certificates.ca, "-o", "/dev/null", f"{nginx.url}/fills.bin",
        )  # fmt: skip
        assert b"No space left on device" in done.stderr
        assert done.returncode == 5


def test_busy_output(record: Recorder, tmp_path: Path) -> None:
    """Rebuilding over an existing file needs --force, and never leaves half a file."""
    recording = record(command=["true"])
    there = tmp_path / "there.pcapng"
    there.write_bytes(b"precious")
    assert "exists already" in complaint("rebuild", recording.sidecar, "-o", there, status=5)
    assert there.read_bytes() == b"precious"
    assert run_tlscap("rebuild", recording.sidecar, "-o", there, "--force").returncode == 0
    assert there.read_bytes() == recording.pcapng.read_bytes()


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_output_is_no_file(recorded: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A pipe or a device is written to, not replaced: `-o /dev/null --force` by root must not cost the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert run_tlscap("rebuild", recorded, "-o", pipe, *options).returncode == 0
        came, _ = reader.communicate(timeout=PATIENCE_S)
    assert came == recorded.with_name(recorded.name.replace(".tlscap.zst", ".pcapng")).read_bytes()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
