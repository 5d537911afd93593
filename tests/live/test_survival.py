"""Targets live on: whatever recorders do to them, they end as they would have ended, and nothing stays in them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    PATIENCE_S,
    TLSCAP,
    Certificates,
    Recording,
    check_rebuild,
    expect_no_complaints,
    run_tlscap,
    wait_until,
)
from live.stacks.heard import Conversation, conversations, digest
from live.subjects import HERE, STACKS, Subject, compiled, loading
from live.test_errors import complaint
from live.test_processes import go_on, line_of, noise, own_libraries, plan_peer, running
from tlscap.live.targets import system_libraries

pytestmark = pytest.mark.live

__all__ = ["noise"]  # a fixture

SHORT_PLAN = "2x20:20"
DURATION = "0.4s"
RUNS = 6


def normal(output: str) -> str:
    """What a subject says, without its ports, which differ from run to run."""
    told = json.loads(output)
    told["local"][1] = told["remote"][1] = 0
    return json.dumps(told)


def arguments(subject: Subject, port: int, sent: Path, received: Path, plan: str) -> list[str | Path | int]:
    return [*subject.command, "127.0.0.1", port, sent, received, plan, *subject.extra]


@dataclasses.dataclass
class Tally:
    """What became of recordings of one process."""

    finished: int = 0
    killed: int = 0
    refused: int = 0
    flows: list[Conversation] = dataclasses.field(default_factory=list)
    latest: Path | None = None
    """The sidecar of the latest that finished."""

    @property
    def enough(self) -> bool:
        """Recordings of both sorts, and something was said in one."""
        return bool(self.finished and self.killed and self.flows)


def record_again_and_again(pid: int, folder: Path, tally: Tally) -> None:
    """Attach and detach until the process has ended; every second recorder is killed, at any moment of its life."""
    chance = random.Random(pid)
    while Path(f"/proc/{pid}/maps").exists() and Path(f"/proc/{pid}/maps").read_bytes():
        base = folder / f"recording-{tally.finished + tally.killed + tally.refused}"
        command = [TLSCAP, "record", "-q", "-o", str(base), "--pid", str(pid), "--duration", DURATION]
        recorder = subprocess.Popen(command, env=CLEAN_ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        if (tally.finished + tally.killed) % 2:
            with contextlib.suppress(subprocess.TimeoutExpired):
                recorder.wait(chance.uniform(0.05, 0.7))
            recorder.kill()
        _, complaints = recorder.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in complaints, complaints
        if recorder.returncode == -signal.SIGKILL:
            tally.killed += 1
            continue
        if recorder.returncode:  # the process ended while it was looked for
            assert re.search(r"there is no process|has ended|maps no file", complaints), complaints
            tally.refused += 1
            continue
        tally.finished += 1
        tally.latest = base.with_name(base.name + ".tlscap.zst")
        tally.flows += conversations(tally.latest)


def expect_parts(flows: list[Conversation], noise: tuple[Path, Path]) -> None:
    """Each recording has a part of the connection, without a hole in it."""
    out, back = (path.read_bytes() for path in noise)
    for flow in flows:
        assert bytes(flow.outbound) in out
        assert bytes(flow.inbound) in back
        assert flow.flow.joined_midstream or out.startswith(flow.outbound)  # C programs wait before they begin


SURVIVORS = {
    "OpenSSL, Debian's": 400_000,
    "OpenSSL, Debian's, under seccomp": 400_000,
    "CPython asyncio": 250_000,
    "Node": 100_000,
    "GnuTLS": 400_000,
    "Go crypto/tls, newest-stripped": 250_000,
}
"""The subjects, and how many calls they make: enough for several recordings."""


def survivor(name: str, folder: Path) -> Subject:
    if name.endswith("under seccomp"):
        return Subject([compiled(folder, "sealed.c", "-ldl")], loading(Path("libssl.so.3"))(folder).extra)
    return next(stack for stack in STACKS if stack.name == name).make(folder)


@pytest.mark.parametrize("name", SURVIVORS)
def test_survives(name: str, certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path) -> None:
    """More than 100,000 calls while recorders come, go and are killed: the program ends as without them, and each recording is right."""
    subject = survivor(name, tmp_path)
    sent, answers = noise
    turns = SURVIVORS[name] // 2
    plan = f"{turns}x20:20"
    with plan_peer(certificates, answers, SHORT_PLAN) as (_, port):
        command = arguments(subject, port, sent, tmp_path / "short", SHORT_PLAN)
        alone = subprocess.run(
            list(map(str, command)),
            env=CLEAN_ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
    tally, took = Tally(), 0.0
    for _ in range(RUNS):  # on a busy machine a program may end before it was recorded often enough
        with plan_peer(certificates, answers, plan) as (peer, port):
            command = arguments(subject, port, sent, tmp_path / "in", plan)
            (tmp_path / "in").unlink(missing_ok=True)
            with running(*command, stderr=subprocess.PIPE) as process:
                began = time.monotonic()
                record_again_and_again(process.pid, tmp_path, tally)
                output, complaints = process.communicate(timeout=PATIENCE_S)
                took += time.monotonic() - began
            heard = json.loads(line_of(peer))
        assert (process.returncode, normal(output), complaints) == (0, normal(alone.stdout), alone.stderr)
        size = turns * 20
        assert tuple(heard) == digest(sent.read_bytes()[:size])
        assert digest((tmp_path / "in").read_bytes()) == digest(answers.read_bytes()[:size])
        if tally.enough:
            break
    print(f"{name}: {took:.1f} s, {tally.finished} finished, {tally.killed} killed, {len(tally.flows)} flows")
    assert tally.enough, tally
    assert tally.latest
    expect_parts(tally.flows, noise)
    check_rebuild(Recording(tally.latest.with_name(tally.latest.name.partition(".")[0]), 0, b"", ""))
    expect_no_complaints(tmp_path, tally.latest)


def test_seccomp_is_strict(certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path) -> None:
    """The filter of the subject above kills."""
    subject = survivor("OpenSSL, under seccomp", tmp_path)
    done = subprocess.run(list(map(str, subject.command)), env={"FORBIDDEN": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGSYS


# --- Nothing stays ---


@dataclasses.dataclass(frozen=True)
class Code:
    """The code of a library as a process has it in its memory, and as the file has it."""

    pid: int
    start: int
    original: bytes

    @property
    def changes(self) -> int:
        """Bytes that are not the file's: each probe changes the first byte of an instruction at least."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.start)
            now = memory.read(len(self.original))
        assert len(now) == len(self.original)
        return sum(one != other for one, other in zip(now, self.original, strict=True))


def code_of(pid: int, library: Path) -> Code:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith(str(library)) and " r-xp " in line:
            (start, end), offset = (int(word, 16) for word in line.split()[0].split("-")), int(line.split()[2], 16)
            return Code(pid, start, library.read_bytes()[offset : offset + end - start])
    raise AssertionError(f"{library} is not mapped")


def links_of(pid: int) -> set[int]:
    """Ids of the BPF links that a process holds."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found |= {int(number) for number in re.findall(r"^link_id:\s+(\d+)$", path.read_text(), re.MULTILINE)}
    return found


def all_links() -> set[int]:
    """Those of everybody, by bpftool."""
    done = subprocess.run(["bpftool", "--json", "link", "show"], capture_output=True, check=True)
    return {link["id"] for link in json.loads(done.stdout)}


def test_nothing_stays(certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path) -> None:
    """After SIGKILL, the process's code is what it was before, and the kernel has no link of the recorder's any more."""
    own = own_libraries(tmp_path / "own")
    subject = survivor("CPython ssl", tmp_path)
    plan = "10:10,10:10"
    with plan_peer(certificates, noise[1], plan, 1) as (peer, port):
        command = arguments(subject, port, noise[0], tmp_path / "in", plan)
        with running("env", f"LD_LIBRARY_PATH={own}", *command) as process:
            assert line_of(peer) == "holding"
            code = code_of(process.pid, own / "libssl.so.3")
            assert code.changes == 0
            for number in range(3):
                with killed_recorder(process.pid, tmp_path / f"killed-{number}") as pid:
                    assert code.changes > 0
                    links = links_of(pid)
                    assert links
                wait_until(lambda: code.changes == 0, "the probes are gone")
                if shutil.which("bpftool"):
                    wait_until(lambda links=links: not links & all_links(), "the links are gone")  # type: ignore[misc]
            go_on(peer)
            assert process.wait(PATIENCE_S) == 0
    for number in range(3):
        sidecar = tmp_path / f"killed-{number}.tlscap.zst"
        wait_until(lambda sidecar=sidecar: run_tlscap("inspect", sidecar).returncode == 0, "the file is whole")  # type: ignore[misc]


@contextlib.contextmanager
def killed_recorder(target: int, base: Path) -> Iterator[int]:
    """A recorder that is killed when the body is through; gives its pid."""
    stderr = base.with_name("stderr")
    command = [TLSCAP, "record", "-o", str(base), "--pid", str(target)]
    with stderr.open("w") as file, subprocess.Popen(command, env=CLEAN_ENVIRONMENT, stderr=file) as recorder:
        try:
            wait_until(lambda: "tlscap: recording (" in stderr.read_text() or recorder.poll() is not None, "it records")
            yield recorder.pid
        finally:
            recorder.kill()


# --- Programs of another kind ---


def foreign(folder: Path, *options: str) -> Path:
    """A 32-bit ELF file with TLS functions."""
    path = folder / "foreign"
    command = ["gcc", "-m32", "-O1", "-nostdlib", "-fno-stack-protector", *options, HERE / "foreign.c", "-o", path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"gcc can't build it: {done.stderr.splitlines()[-1]}")
    return path


def test_library_of_32_bits(tmp_path: Path) -> None:
    """Refused, by name."""
    library = foreign(tmp_path, "-shared", "-fPIC")
    line = complaint("record", "--lib", library, "-o", tmp_path / "x", "--", "true", status=3)
    assert str(library) in line
    assert "32" in line


MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}  # e_machine (gABI, chapter 4)


@pytest.mark.parametrize("machine", sorted(MACHINES.keys() - {platform.machine()}))
def test_library_of_another_machine(tmp_path: Path, machine: str) -> None:
    """A library for another processor is refused, by name and kind; what is in it can't be proven."""
    (original,) = (path for path in system_libraries("libssl") if path.endswith(".so.3"))
    content = bytearray(Path(original).read_bytes())
    content[18:20] = MACHINES[machine].to_bytes(2, "little")
    library = tmp_path / "libssl.so.3"
    library.write_bytes(content)
    line = complaint("record", "--lib", library, "-o", tmp_path / "x", "--", "true", status=3)
    assert str(library) in line
    assert platform.machine() in line


def test_program_of_32_bits(tmp_path: Path) -> None:
    """It runs as it does alone, as a command, and while everything is recorded."""
    program = foreign(tmp_path, "-static", "-Wl,--export-dynamic")
    try:
        alone = subprocess.run([program], capture_output=True)
    except OSError as error:
        pytest.skip(f"this kernel does not run it: {error.strerror}")
    assert (alone.returncode, alone.stdout) == (42, b"hello\n")
    done = run_tlscap("record", "-o", tmp_path / "x", "--", program)
    assert (done.returncode, done.stdout) == (42, b"hello\n")
    stderr = tmp_path / "stderr"
    command = [TLSCAP, "record", "--all", "-o", str(tmp_path / "all")]
    with stderr.open("w") as file, subprocess.Popen(command, env=CLEAN_ENVIRONMENT, stderr=file) as recorder:
        try:
            wait_until(lambda: "tlscap: recording (" in stderr.read_text() or recorder.poll() is not None, "it records")
            for _ in range(20):
                beside = subprocess.run([program], capture_output=True)
                assert (beside.returncode, beside.stdout) == (42, b"hello\n")
        finally:
            recorder.send_signal(signal.SIGINT)
        assert recorder.wait(PATIENCE_S) == 0, stderr.read_text()
    assert "Traceback" not in stderr.read_text()
