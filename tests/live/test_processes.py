"""Whose bytes, and on which socket: many connections of one process, processes that come, go, fork and hide.

Programs say what they said and by which ports; the recordings are compared with that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    PATIENCE_S,
    Certificates,
    Nginx,
    Recorder,
    Recording,
    expect_no_complaints,
    inspect_json,
    stop,
    wait_until,
)
from live.stacks.heard import Conversation, compare, conversations, loopback
from live.stacks.plan import steps
from live.subjects import CIPHERTEXT, HERE, STACKS, SYSCALL, compiled, node_program
from tlscap.live.targets import system_libraries
from tlscap.model import Endpoint, Role

pytestmark = pytest.mark.live

PLACEHOLDER = "placeholder"
CROWD = 2000
TOGETHER = 100
CHILDREN = 4

PYTHON = ("env", f"PYTHONPATH={HERE.parent.parent}", sys.executable)


def script(name: str, *arguments: str | Path | int) -> list[str | Path | int]:
    """The command for a program of `stacks`."""
    if not name.endswith(".js"):
        return [*PYTHON, HERE / name, *arguments]
    return [node_program(), HERE / name, *arguments]


@contextlib.contextmanager
def running(*command: str | Path | int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program whose output is read line by line; it does not outlive the body."""
    with subprocess.Popen(
        list(map(str, command)),
        env=CLEAN_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            stop(process)


@pytest.fixture(autouse=True)
def no_complaints(record: Recorder) -> Iterator[None]:
    """tshark has no warning about any recording made here, in both framings.

    See `expect_no_complaints`.
    """
    yield
    for sidecar in sorted(record.folder.glob("recording-*.tlscap.zst")):
        expect_no_complaints(record.folder, sidecar)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended"
    return line.strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go on\n")
    process.stdin.flush()


# --- Many connections in one process ---


@pytest.fixture(scope="module")
def crowd_port(certificates: Certificates) -> Iterator[int]:
    with running(*script("crowd_server.py", certificates.leaf, certificates.key)) as server:
        yield int(line_of(server))


def expect_accounts(recording: Recording, accounts: list[dict[str, Any]]) -> None:
    """Every byte is on the right flow, at the right addresses, in either file."""
    for path in (recording.sidecar, recording.pcapng):
        assert compare(conversations(path), accounts) == [], path.name
    assert recording.complete, recording.stderr


@pytest.mark.parametrize("program", ["crowd_clients.py", "crowd_node.js"])
def test_crowd(record: Recorder, crowd_port: int, program: str) -> None:
    """2,000 connections of one event loop at once, all of them over memory: each has its own bytes, and its own port."""
    recording = record(command=script(program, crowd_port, CROWD))
    accounts = json.loads(recording.stdout)
    assert len({each["local"] for each in accounts}) == CROWD
    expect_accounts(recording, accounts)


def test_crowd_that_was_there_before(record: Recorder, crowd_port: int) -> None:
    """Connections that are all open when the recorder comes: their later records tell which is on which socket."""
    with (
        running(*script("crowd_clients.py", crowd_port, TOGETHER, "hold")) as clients,
        running(*script("crowd_clients.py", crowd_port, TOGETHER, "hold")) as others,
    ):
        assert line_of(clients) == line_of(others) == "ready"
        with record.running("--pid", clients.pid) as started:
            for process in (others, clients):
                go_on(process)
            accounts = json.loads(line_of(clients))
            assert len(json.loads(line_of(others))) == TOGETHER
            assert clients.wait(PATIENCE_S) == 0
    recording = started.recording()
    expect_accounts(recording, accounts)
    assert all(one.flow.joined_midstream for one in conversations(recording.sidecar))


@pytest.mark.parametrize("proxied", [[], ["proxied"]], ids=["direct", "proxied"])
def test_both_ends_in_one_process(record: Recorder, certificates: Certificates, proxied: list[str]) -> None:
    """Each TLS record passes through two sockets of the process, or four: the right one is found, never another's."""
    command = script("crowd_together.py", certificates.leaf, certificates.key, TOGETHER, *proxied)
    recording = record(command=command)
    told = json.loads(recording.stdout)
    expect_accounts(recording, told["clients"] + told["servers"])


def test_crowd_of_forked_children(record: Recorder, crowd_port: int) -> None:
    """Each child is watched a moment after its first call: only that connection's address may stay unknown."""
    recording = record(command=script("crowd_forked.py", crowd_port, CHILDREN, 25))
    children = [json.loads(line) for line in recording.stdout.splitlines()]
    assert len(children) == CHILDREN
    first = [accounts[0] for accounts in children]
    for path in (recording.sidecar, recording.pcapng):
        found = conversations(path)
        early = [
            one for one in found if one.digests in {(tuple(each["sent"]), tuple(each["received"])) for each in first}
        ]
        assert len(early) == CHILDREN
        assert all("placeholder" in problem for problem in compare(early, first))
        late = [one for one in found if one not in early]
        assert compare(late, [account for accounts in children for account in accounts[1:]]) == []
    assert recording.complete, recording.stderr


@pytest.mark.parametrize("proxied", [[], ["proxied"]], ids=["direct", "proxied"])
def test_both_ends_there_before(record: Recorder, certificates: Certificates, proxied: list[str]) -> None:
    """The same, with all connections open when the recorder comes: what can't be told apart is marked, nothing is wrong."""
    command = script("crowd_together.py", certificates.leaf, certificates.key, TOGETHER, "hold", *proxied)
    with running(*command) as process:
        assert line_of(process) == "ready"
        with record.running("--pid", process.pid) as started:
            go_on(process)
            told = json.loads(line_of(process))
    recording = started.recording()
    problems = compare(conversations(recording.sidecar), told["clients"] + told["servers"])
    assert [problem for problem in problems if "placeholder" not in problem] == []
    assert recording.complete, recording.stderr


@contextlib.contextmanager
def plan_peer(
    certificates: Certificates, answers: Path, plan: str, *hold: int
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The other side of a subject, and its port; it waits before it answers in the step ``hold``."""
    command = script("plan_peer.py", certificates.leaf, certificates.key, answers, plan, *hold)
    with running(*command) as peer:
        yield peer, int(line_of(peer))


def test_repackaged(record: Recorder, certificates: Certificates, tmp_path: Path) -> None:
    """A proxy in the process that joins records, and a recorder that comes late: a record's socket is not the proxy's."""
    answers = tmp_path / "answers"
    answers.write_text("".join(f"answer {number:03}" for number in range(32)))
    with (
        plan_peer(certificates, answers, "10:10,10:100,0:200,10:10", 1) as (peer, port),
        running(*script("repackaged.py", port)) as client,
    ):
        assert [line_of(peer), line_of(client)] == ["holding", "ready"]
        with record.running("-p", client.pid) as started:
            go_on(client)
            time.sleep(0.3)  # its first call finds nothing
            go_on(peer)
            told = json.loads(line_of(client))
            client.wait(PATIENCE_S)
    (found,) = conversations(started.recording().sidecar)
    assert (found.outbound.decode(), found.inbound.decode()) == (told["sent"], told["received"])
    assert found.flow.joined_midstream
    assert (found.flow.local, found.flow.remote) in ((loopback(told["local"]), loopback(told["remote"])), (None, None))


# --- Processes that come and go ---

CURLS = 500


def test_many_short_programs(record: Recorder, nginx: Nginx) -> None:
    """500 curls, one after the other, under a recording by name that began before: none is missed, by nginx's account."""
    url = f"{nginx.url}/say/short"
    once = f"{' '.join(CURL)} --cacert {nginx.certificates.ca} -o /dev/null {url}-$n"
    with record.running("--comm", "curl") as started:
        loop = f"for n in $(seq {CURLS}); do {once} || exit; done"
        subprocess.run(["sh", "-c", loop], env=CLEAN_ENVIRONMENT, check=True)
    recording = started.recording()
    assert recording.complete, recording.stderr

    def logged() -> dict[str, str]:
        return {
            line["request"].split()[1]: line["remote"] for line in nginx.log() if "/say/short-" in str(line["request"])
        }

    wait_until(lambda: len(logged()) == CURLS, "nginx has logged them")
    exchanges = [each for each in inspect_json(recording.sidecar) if each["url"].startswith(nginx.url)]
    assert len(exchanges) == CURLS  # others' curls on this machine are recorded, too
    assert all(each["status"] == 200 and each["complete"] for each in exchanges)
    found = {
        each["url"].removeprefix(nginx.url): "{address}:{port}".format(**each["flow"]["local"]) for each in exchanges
    }
    assert found == logged()
    assert {each["flow"]["tuple_source"] for each in exchanges} == {"syscall"}


RENAMES_ITSELF = """
import ctypes, ssl, sys, urllib.request
ctypes.CDLL(None).prctl(15, b"MainThread", 0, 0, 0)  # PR_SET_NAME, as Node 24 does
urllib.request.urlopen(sys.argv[1], context=ssl.create_default_context(cafile=sys.argv[2])).read()
"""


def test_program_that_renames_itself(record: Recorder, nginx: Nginx, tmp_path: Path) -> None:
    """--comm goes by the name of the program's file, too, as far as a process's name would have shown it."""
    program = tmp_path / "a-long-odd-name.bin"
    shutil.copy(os.path.realpath("/usr/bin/python3"), program)
    with record.running("--comm", program.name) as started:
        for path in (program, "/usr/bin/python3"):
            command = [path, "-c", RENAMES_ITSELF, f"{nginx.url}/say/renamed", nginx.certificates.ca]
            subprocess.run(list(map(str, command)), env=CLEAN_ENVIRONMENT, check=True)
    (exchange,) = inspect_json(started.recording().sidecar)
    assert exchange["process"]["comm"] == "MainThread"
    assert exchange["url"] == f"{nginx.url}/say/renamed"


HOLD = 3
LATE_PLAN = "100:100,997:3001,16384:16384,10:1,1:1,20000:30000,20x997:3001"
"""The recorder comes while the answer of step `HOLD` is awaited: one byte."""


NOISE = 5_000_000


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What subjects send, and what they get."""
    folder = tmp_path_factory.mktemp("noise")
    made = folder / "out", folder / "back"
    for path in made:
        path.write_bytes(os.urandom(NOISE))
    return made


@dataclasses.dataclass
class Late:
    """A subject whose connection stands, and a recording that has not begun."""

    subject: subprocess.Popen[str]
    peer: subprocess.Popen[str]
    received: Path

    def finish(self) -> dict[str, Any]:
        """Let the peer answer; returns what the subject says at its end, with status 0."""
        go_on(self.peer)
        output, _ = self.subject.communicate(timeout=PATIENCE_S)
        assert self.subject.returncode == 0
        told: dict[str, Any] = json.loads(output)
        return told


@contextlib.contextmanager
def held(
    stack: str, certificates: Certificates, noise: tuple[Path, Path], folder: Path, **environment: str
) -> Iterator[Late]:
    """A subject of `subjects`, in the middle of its connection."""
    subject = next(each for each in STACKS if each.name == stack).make(folder)
    out, back = noise
    with plan_peer(certificates, back, LATE_PLAN, HOLD) as (peer, port):
        words = [f"{name}={value}" for name, value in environment.items()]
        command = [*subject.command, "127.0.0.1", port, out, folder / "in", LATE_PLAN, *subject.extra]
        with running("env", *words, *command) as process:
            assert line_of(peer) == "holding"
            yield Late(process, peer, folder / "in")


def place_of(told: dict[str, Any], tuple_source: str) -> tuple[str, Endpoint | None, Endpoint | None]:
    if tuple_source == PLACEHOLDER:
        return tuple_source, None, None
    return tuple_source, Endpoint(*told["local"]), Endpoint(*told["remote"])


def expect_late(recording: Recording, told: dict[str, Any], noise: tuple[Path, Path], tuple_source: str) -> None:
    """Everything from the recorder's coming on; whether the call that was waiting then is in it, is the library's affair."""
    sizes = list(steps(LATE_PLAN))
    out, back = (sum(size[number] for size in sizes[: HOLD + 1]) for number in (0, 1))
    all_out, all_back = (sum(size[number] for size in sizes) for number in (0, 1))
    for path in (recording.sidecar, recording.pcapng):
        (found,) = conversations(path)
        assert found.outbound == noise[0].read_bytes()[out:all_out]
        answers = noise[1].read_bytes()[:all_back]
        assert found.inbound in (answers[back:], answers[back - 1 :])
        assert found.place == place_of(told, tuple_source)
        assert found.flow.joined_midstream
    assert recording.complete, recording.stderr


@pytest.mark.parametrize(
    ("stack", "tuple_source"),
    [
        ("CPython ssl", SYSCALL),
        ("CPython asyncio", CIPHERTEXT),
        ("Node", CIPHERTEXT),
        ("GnuTLS", SYSCALL),
        ("GnuTLS over memory", PLACEHOLDER),  # nobody saw which functions it was given to send and receive with
        ("Go crypto/tls, newest-stripped", SYSCALL),
        ("Go crypto/tls, go1.19-stripped", SYSCALL),
        ("Go crypto/tls, go1.15-stripped", SYSCALL),
    ],
)
def test_attached_midstream(
    stack: str,
    tuple_source: str,
    record: Recorder,
    certificates: Certificates,
    noise: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """A connection that is older than the recorder: what comes later is right, and that something is missing is known."""
    with held(stack, certificates, noise, tmp_path) as late, record.running("-p", late.subject.pid) as started:
        told = late.finish()
    expect_late(started.recording(), told, noise, tuple_source)


def bytes_of(told: dict[str, Any]) -> tuple[bytes, bytes]:
    return bytes.fromhex(told["sent"]), bytes.fromhex(told["received"])


@pytest.mark.parametrize(("how", "tuple_source"), [([], SYSCALL), (["memory"], CIPHERTEXT)], ids=["blocking", "memory"])
def test_forked_after_the_handshake(
    how: list[str], tuple_source: str, record: Recorder, certificates: Certificates, noise: tuple[Path, Path]
) -> None:
    """A connection that goes on in a child is two flows, each with its process's bytes, at the same addresses."""
    with plan_peer(certificates, noise[1], "5x100:200,5x300:400") as (_, port):
        recording = record(command=script("forked.py", "127.0.0.1", port, *how))
    accounts = {each["pid"]: each for each in map(json.loads, recording.stdout.splitlines())}
    found = {each.flow.process.pid: each for each in conversations(recording.sidecar)}
    assert found.keys() == accounts.keys()
    for pid, account in accounts.items():
        assert found[pid].streams == bytes_of(account)
        assert found[pid].place == (tuple_source, loopback(account["local"]), loopback(account["remote"]))
    parent, child = (found[pid].flow for pid in sorted(found, key=lambda pid: accounts[pid]["sent"], reverse=True))
    assert {parent.joined_midstream, child.joined_midstream} == {False, True}
    assert recording.complete, recording.stderr


def test_two_threads_one_connection(record: Recorder, certificates: Certificates, noise: tuple[Path, Path]) -> None:
    """One thread reads while another writes: the two streams don't disturb each other."""
    size = 2_000_000
    with plan_peer(certificates, noise[1], f"0:{size},{size}:0") as (_, port):
        recording = record(command=script("shared.py", "127.0.0.1", port, size))
    assert compare(conversations(recording.sidecar), [json.loads(recording.stdout)], SYSCALL) == []
    assert recording.complete, recording.stderr


@pytest.mark.parametrize("how", [[], ["memory"]], ids=["blocking", "memory"])
def test_unix_sockets(record: Recorder, certificates: Certificates, tmp_path: Path, how: list[str]) -> None:
    """Connections without addresses say what they are over."""
    recording = record(command=script("unix_pair.py", certificates.leaf, certificates.key, tmp_path, *how))
    client, server = bytes_of(json.loads(recording.stdout))
    found = {each.flow.role: each for each in conversations(recording.sidecar)}
    assert found.keys() == {Role.CLIENT, Role.SERVER}
    assert found[Role.CLIENT].streams == (client, server)
    assert found[Role.SERVER].streams == (server, client)
    for each in found.values():
        assert (each.flow.transport, *each.place) == ("unix", "placeholder", None, None)
    assert recording.complete, recording.stderr


def test_connection_object_reused(
    record: Recorder, certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path
) -> None:
    """Connections that one SSL object has one after the other, or that have the same address: each is a flow of its own."""
    program = compiled(tmp_path, "reused.c", "-lssl", "-lcrypto")
    with plan_peer(certificates, noise[1], "500:500") as (_, port):
        recording = record(command=[program, port, 30])
    accounts = json.loads(recording.stdout)
    assert len({each["ssl"] for each in accounts}) < 10
    expected = [(each["ssl"], each["local"], *bytes_of(each)) for each in accounts]
    found = [
        (one.flow.ssl, one.flow.local and one.flow.local.port, *one.streams) for one in conversations(recording.sidecar)
    ]
    assert found == expected
    assert recording.complete, recording.stderr


@pytest.fixture
def node_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder looks for Node in its PATH before it begins."""
    path = f"{node_program().parent}{os.pathsep}{CLEAN_ENVIRONMENT['PATH']}"
    monkeypatch.setitem(CLEAN_ENVIRONMENT, "PATH", path)


NODES = 4
NODE_PLAN = "100:100,5x2000:3000"


def expect_node(
    found: list[Conversation],
    outputs: list[str],
    noise: tuple[Path, Path],
    sources: frozenset[str] = frozenset({CIPHERTEXT}),
) -> None:
    sizes = [sum(sizes) for sizes in zip(*steps(NODE_PLAN), strict=True)]
    ports = {json.loads(line)["local"][1] for line in outputs}
    for one in found:
        assert one.streams == tuple(path.read_bytes()[:size] for path, size in zip(noise, sizes, strict=True))
        assert one.flow.tuple_source.value in sources
    known = [one.flow.local.port for one in found if one.flow.local]
    assert set(known) == ports or (PLACEHOLDER in sources and set(known) < ports)
    assert len(set(known)) == len(known)
    assert len(found) == len(ports) == len(outputs)


@pytest.mark.usefixtures("node_in_path")
def test_node_started_by_a_shell(
    record: Recorder, certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path
) -> None:
    """Node has its TLS library inside: it is hooked in time when a followed shell runs it, from the first time on."""
    with plan_peer(certificates, noise[1], NODE_PLAN) as (_, port):
        once = shlex.join(map(str, script("node.js", "127.0.0.1", port, noise[0], tmp_path / "in", NODE_PLAN)))
        recording = record(command=["sh", "-c", f"for n in $(seq {NODES}); do {once} || exit; done"])
    outputs = recording.stdout.decode().splitlines()
    assert len(outputs) == NODES
    expect_node(conversations(recording.sidecar), outputs, noise)
    assert recording.complete, recording.stderr


@pytest.mark.usefixtures("node_in_path")
def test_node_by_name(record: Recorder, certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path) -> None:
    """Node is started after the recording by name has begun, and no Node ran then."""
    outputs = []
    with (
        plan_peer(certificates, noise[1], NODE_PLAN) as (_, port),
        record.running("--comm", "node", "--comm", "MainThread") as started,  # what Node 24 calls itself
    ):
        for _ in range(NODES):
            command = script("node.js", "127.0.0.1", port, noise[0], tmp_path / "in", NODE_PLAN)
            done = subprocess.run(
                ["sh", "-c", shlex.join(map(str, command)) + "; true"],
                env=CLEAN_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            outputs += done.stdout.splitlines()
    assert len(outputs) == NODES
    # Nobody could know which process would be Node: its first connection may be over before its memory is watched.
    sources = frozenset({CIPHERTEXT, PLACEHOLDER})
    expect_node(conversations(started.recording().sidecar), outputs, noise, sources)


# --- Processes that hide ---


def own_libraries(folder: Path) -> Path:
    """Copies of the libraries that this machine's Python uses: other files than those that everybody maps."""
    folder.mkdir()
    for library in system_libraries("libssl|libcrypto"):
        if library.endswith(".so.3"):
            shutil.copy(library, folder)
    return folder


OWN_LIBRARIES = {
    "bound": """
        for library in "$0"/*; do mount --bind "$library" "$1/${library##*/}"; done
    """,
    "unreachable": """
        mount -t tmpfs none /mnt && cp "$0"/* /mnt/ && export LD_LIBRARY_PATH=/mnt
    """,
}


@pytest.mark.parametrize("how", OWN_LIBRARIES)
def test_namespaces(record: Recorder, certificates: Certificates, tmp_path: Path, how: str) -> None:
    """A process in namespaces of its own, whose library is not the file that has its path outside, or has none there."""
    (system,) = {str(Path(path).parent) for path in system_libraries("libssl") if path.endswith(".so.3")}
    inside = f'ip link set lo up && {OWN_LIBRARIES[how]}\nshift; echo $$; exec "$@"'
    command = [
        *("unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc"),
        *("sh", "-ec", inside, own_libraries(tmp_path / "own"), system),
        *script("crowd_together.py", certificates.leaf, certificates.key, 20, "late"),
    ]
    with record.running("--all", "-v") as started:
        done = subprocess.run(
            list(map(str, command)), env=CLEAN_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
    pid, output = done.stdout.splitlines()
    assert pid == "1"
    told = json.loads(output)
    mine = [one for one in conversations(started.recording().sidecar) if one.flow.process.comm.startswith("python")]
    assert compare(mine, told["clients"] + told["servers"]) == []
    (library,) = {library.path for one in mine for library in one.flow.process.libraries}
    # Through the process; where the recorder is in a root of its own, the paths of other namespaces lead nowhere there, either.
    assert re.fullmatch(r"/proc/\d+/(root/.*/libssl\.so\.3|map_files/[0-9a-f]+-[0-9a-f]+)", library)


def make_tree(folder: Path, program: str, *files: Path) -> Path:
    """A root with one program, what it maps, and some files in /."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name in [program, *re.findall(r"(/\S+) \(0x", listed)]:
        place = folder / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)
    for file in files:
        shutil.copy(file, folder)
    return folder


def test_chroot(record: Recorder, nginx: Nginx, tmp_path: Path) -> None:
    """Programs in a root of their own, with their own dynamic linker and library, that are started while recording goes on.

    All but the first ones: a library that nobody has used before is hooked a little later.
    """
    curl = shutil.which("curl")
    assert curl
    tree = make_tree(tmp_path / "tree", curl, nginx.certificates.ca)

    def get(target: str) -> None:
        url = f"https://127.0.0.1:{nginx.port}{target}"
        command = ["chroot", tree, curl, *CURL[1:], "--cacert", f"/{nginx.certificates.ca.name}", url]
        subprocess.run(list(map(str, command)), env=CLEAN_ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)

    with record.running("--comm", "curl", "-v") as started:

        def known() -> bool:
            get("/say/first")
            return re.search(rf"now probed, too: {tree}\S*/libssl", started.stderr) is not None

        wait_until(known, "the library is hooked")
        for number in range(5):
            get(f"/say/chroot-{number}")
    recording = started.recording()
    targets = [each["url"].partition(f":{nginx.port}")[2] for each in inspect_json(recording.sidecar)]
    assert [target for target in targets if target != "/say/first"] == [f"/say/chroot-{number}" for number in range(5)]
    assert recording.complete, recording.stderr


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_library_gone_from_its_path(
    how: str, record: Recorder, certificates: Certificates, noise: tuple[Path, Path], tmp_path: Path
) -> None:
    """A library that was replaced on disk, as an upgrade does, or deleted, while a process maps it."""
    own = own_libraries(tmp_path / "own")
    with held("CPython ssl", certificates, noise, tmp_path, LD_LIBRARY_PATH=str(own)) as late:
        maps = Path(f"/proc/{late.subject.pid}/maps")
        assert str(own / "libssl.so.3") in maps.read_text()
        for path in own.iterdir():
            if how == "replaced":
                shutil.copy(path, path.with_suffix(".new"))
                path.with_suffix(".new").rename(path)
            else:
                path.unlink()
        assert f"{own}/libssl.so.3 (deleted)" in maps.read_text()
        with record.running("-p", late.subject.pid) as started:
            told = late.finish()
    expect_late(started.recording(), told, noise, SYSCALL)
