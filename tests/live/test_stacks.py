"""Every TLS stack, live: a program that speaks TLS with it says its bytes to a peer, and `tlscap record` takes them down.

The programs are in `stacks`, the list of them in `subjects`.  What must hold for each: one connection, both streams whole and
in the order in which they passed, the addresses that the program says, a rebuild that is the same file, and a pcapng that
tshark has nothing to say about, in both framings.  A table at the end of the run has a row for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    PATIENCE_S,
    Certificates,
    Recorder,
    Recording,
    all_bodies,
    complaints,
    run_tlscap,
    stop,
    wait_until,
)
from live.stacks.plan import steps
from live.subjects import FETCHING_S, HERE, LARGE, STACKS, Missing, Stack, wheels
from tlscap import decode
from tlscap.capture import open_capture
from tlscap.live.catalogue import FLAVORS, Flavor, Function, Funnel
from tlscap.live.loader import CallKind
from tlscap.model import Data, Direction, Endpoint, Flow, Gap, HalfClosed
from tlscap.sidecar import SidecarReader

pytestmark = [pytest.mark.live, pytest.mark.timeout(FETCHING_S)]

GRPC_PREFIX = 5  # bytes: a flag and the length, in front of every message (gRPC over HTTP/2, "Length-Prefixed-Message")
MOVES = re.compile(r"read|write|recv|send|plaintext", re.IGNORECASE)
MARKS = re.compile(r"early|sendfile|set|write_to", re.IGNORECASE)


def kinds(flavor: Flavor) -> dict[str, int]:
    """What a call of each function of a library is recorded as."""
    table = flavor.table.functions if flavor.table else ()
    rows: list[Function | Funnel] = [*flavor.functions, *flavor.funnels, *(row for _, row in table)]
    return {row.name: (CallKind.READ if row.kind is CallKind.RECV_FLAGS else row.kind).value for row in rows}


KINDS = {name: kind for flavor in FLAVORS for name, kind in kinds(flavor).items()}
"""Functions of Go's and rustls's are not in it."""


# --- The table ---


@dataclasses.dataclass
class Row:
    """What the table says about a stack."""

    stack: str
    version: str = ""
    functions: str = ""
    sent: int = 0
    received: int = 0
    tuple_source: str = ""
    result: str = ""

    def cells(self) -> list[str]:
        counts = (f"{self.sent:,}", f"{self.received:,}")
        return [self.stack, self.version, self.functions, *counts, self.tuple_source, self.result]


TITLES = ("stack", "version", "functions hooked", "sent", "received", "addresses by", "")


class Table:
    """A plugin of pytest that has the rows, and prints them at the end."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = [TITLES, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        terminalreporter.section("every TLS stack")
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            terminalreporter.line("  ".join(cells).rstrip())
        if document := os.environ.get("TLSCAP_STACKS_DOC"):
            write_table(Path(document), lines)


def write_table(document: Path, lines: Sequence[Sequence[str]]) -> None:
    """Put the table into a document, between the comments that mark its place."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    before, mark, rest = document.read_text().partition("<!-- table: ")
    comment, _, rest = rest.partition("\n")
    after = rest[rest.index("<!-- end of the table -->") :]
    document.write_text(before + mark + comment + "\n\n" + "\n".join(rows) + "\n\n" + after)


@pytest.fixture(scope="session")
def stack_table(request: pytest.FixtureRequest) -> Table:
    plugin = Table()
    request.config.pluginmanager.register(plugin)
    return plugin


# --- The peer ---


@dataclasses.dataclass(frozen=True)
class Contents:
    """Two files of noise: what subjects send, and what they get.  A run uses the first bytes of each."""

    out: Path
    back: Path


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contents]:
    folder = tmp_path_factory.mktemp("stacks")
    made = Contents(folder / "out", folder / "back")
    sizes = [total(plan) for plan in {stack.plan for stack in STACKS} | {LARGE}]
    for number, path in enumerate((made.out, made.back)):
        path.write_bytes(random.Random(number).randbytes(max(size[number] for size in sizes)))
    yield made
    made.out.unlink()
    made.back.unlink()


def total(plan: str) -> tuple[int, int]:
    """How many bytes a plan sends and receives."""
    out, back = zip(*steps(plan), strict=True)
    return sum(out), sum(back)


def head(path: Path, size: int) -> tuple[int, str]:
    """Size and SHA-256 of a file's first bytes."""
    with path.open("rb") as file:
        content = file.read(size)
    return len(content), hashlib.sha256(content).hexdigest()


class Peer(threading.Thread):
    """A TLS server that carries out the other side of a plan on every connection, by the raw contract or as HTTP/1.1.

    ``received`` has size and SHA-256 of what each connection said, ``problems`` what went wrong.
    """

    def __init__(self, certificates: Certificates, contents: Contents, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.leaf, certificates.key)
        self._context.set_alpn_protocols(["tlscap-test", "http/1.1"])
        self._contents = contents
        self._stack = stack
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.received: list[tuple[int, str]] = []
        self.problems: list[str] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                plain, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(PATIENCE_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seen = hashlib.sha256()
        try:
            with self._context.wrap_socket(plain, server_side=True) as sock, self._contents.back.open("rb") as answers:
                serve = self._http if self._stack.speaks == "http" else self._raw
                self.received.append((serve(sock, seen.update, answers.read), seen.hexdigest()))
                with contextlib.suppress(OSError):  # how a connection ends is the subject's business
                    sock.unwrap()
        except (OSError, AssertionError) as error:
            self.problems.append(f"{type(error).__name__}: {error}")

    def _raw(self, sock: ssl.SSLSocket, note: Callable[[bytes], None], answer: Callable[[int], bytes]) -> int:
        size = 0
        for out, back in steps(self._stack.plan):
            size += self._take(sock, out, note)
            sock.sendall(answer(back))
        return size

    def _http(self, sock: ssl.SSLSocket, note: Callable[[bytes], None], answer: Callable[[int], bytes]) -> int:
        """POST, PUT or GET /SIZE: the answer has so many bytes."""
        size, buffer = 0, sock.makefile("rb")
        while line := buffer.readline():
            lines = [line, *iter(buffer.readline, b"\r\n")]
            fields = {
                name.strip().lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)
            }
            body = buffer.read(int(fields.get(b"content-length", 0)))
            note(body)
            size += len(body)
            back = int(line.split()[1].lstrip(b"/"))
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % back + answer(back))
        return size

    @staticmethod
    def _take(sock: ssl.SSLSocket, size: int, note: Callable[[bytes], None]) -> int:
        left = size
        while left:
            piece = sock.recv(min(left, 1 << 16))
            assert piece, f"the subject ended {left:,} bytes early"
            note(piece)
            left -= len(piece)
        return size

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.join()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def grpc_peer(folder: Path, certificates: Certificates, contents: Contents) -> Iterator[tuple[int, Path]]:
    """A gRPC server, which is a process of its own; gives its port, and the file of what it gets."""
    received, printed = folder / "received", folder / "port"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, HERE / "grpc_peer.py", certificates.leaf, certificates.key, contents.back, received],
            stdout=output, env=CLEAN_ENVIRONMENT,
        )  # fmt: skip
    try:
        wait_until(
            lambda: printed.read_bytes().endswith(b"\n") or process.poll() is not None, "the gRPC server listens"
        )
        yield int(printed.read_text()), received
    finally:
        stop(process)


@contextlib.contextmanager
def quic_peer(
    folder: Path, certificates: Certificates, contents: Contents, stack: Stack
) -> Iterator[tuple[int, Callable[[], list[str]]]]:
    """A QUIC server, which is a process of its own; gives its port, and what it says of each stream."""
    printed = folder / "port"
    files = [HERE / "quic_peer.py", certificates.leaf, certificates.key, contents.back]
    environment = CLEAN_ENVIRONMENT | {"PYTHONPATH": f"{wheels('aioquic')}{os.pathsep}{HERE.parent.parent}"}
    with printed.open("wb") as output:
        process = subprocess.Popen([sys.executable, *map(str, files), stack.plan], stdout=output, env=environment)
    try:
        wait_until(lambda: b"\n" in printed.read_bytes() or process.poll() is not None, "the QUIC server listens")
        yield int(printed.read_text()), lambda: printed.read_text().splitlines()[1:]
    finally:
        stop(process)


# --- The judge ---


@dataclasses.dataclass
class Said:
    """What a subject did, by itself and its peer."""

    stack: Stack
    contents: Contents
    local: Endpoint
    remote: Endpoint


class Stream:
    """One direction of a flow."""

    def __init__(self) -> None:
        self.size = 0
        self.gaps: list[Gap] = []
        self._hash = hashlib.sha256()

    def add(self, item: Data | Gap) -> None:
        if isinstance(item, Gap):
            self.gaps.append(item)
            return
        assert item.offset == self.size
        self._hash.update(item.data)
        self.size += len(item.data)

    @property
    def digest(self) -> tuple[int, str]:
        return self.size, self._hash.hexdigest()


class Heard:
    """What a recording says: every flow that has data, and who spoke when."""

    def __init__(self, path: Path) -> None:
        self.streams: dict[int, tuple[Stream, Stream]] = {}
        self.flows: dict[int, Flow] = {}
        self.turns: list[tuple[Direction, int]] = []
        """Directions as they alternate, with the bytes of each turn."""
        self._ended: set[tuple[int, Direction]] = set()
        with open_capture(str(path)) as capture:
            for item in capture.items():
                if isinstance(item, HalfClosed):
                    self._ended.add((item.flow.id, item.direction))
                elif isinstance(item, Data | Gap):
                    assert (item.flow.id, item.direction) not in self._ended, "bytes behind the end"
                    self._take(item)

    def _take(self, item: Data | Gap) -> None:
        self.flows[item.flow.id] = item.flow
        self.streams.setdefault(item.flow.id, (Stream(), Stream()))[item.direction].add(item)
        if isinstance(item, Data):
            before = self.turns.pop()[1] if self.turns and self.turns[-1][0] is item.direction else 0
            self.turns.append((item.direction, before + len(item.data)))


def carriers(sidecar: Path) -> set[int]:
    """Kinds of the calls that moved bytes (`CallKind`): of each call, the record says what it was."""
    found = set()
    with sidecar.open("rb") as file:
        for frame in SidecarReader(file).frames():
            at = 0
            while at < len(frame):
                kind, _, size, *_ = decode.HEADER.unpack_from(frame, at)
                if kind == decode.SAMPLE_DATA:
                    found.add(decode.DATA.unpack_from(frame, at + decode.HEADER.size)[7])
                at += size + 7 & ~7
    return found


def functions(recording: Recording, flow: Flow) -> str:
    """The hooked functions that carry bytes, by file, of the process's libraries whose functions carried these, as ``--verbose`` says."""
    libraries = {library.path for library in flow.process.libraries}
    used = carriers(recording.sidecar)
    found: dict[str, list[str]] = {}
    name = ""
    for line in recording.stderr.splitlines():
        if match := re.match(r"tlscap: (/.*?): (.*), build id", line):
            path, flavor = match.groups()
            name = Path(path).name if path in libraries else ""
            how = ", by signature" if flavor.endswith("by signature") else ""
        elif (match := re.match(r"tlscap:   (\S+) +0x", line)) and name:
            function = match[1]
            if MOVES.search(function) and not MARKS.search(function):
                found.setdefault(f"{name}: {{}}{how}", []).append(function)
    # A program may map several libraries; the kinds of functions tell them apart.
    carried = {file: names for file, names in found.items() if any(KINDS.get(each) in {None, *used} for each in names)}
    return "; ".join(file.format(", ".join(names)) for file, names in carried.items())


def expect_streams(heard: Heard, flow: Flow, said: Said) -> None:
    """A raw connection: the two streams are the files, and nobody spoke out of turn."""
    contents, plan = said.contents, said.stack.plan
    inbound, outbound = heard.streams[flow.id]
    for stream, path, size in zip((outbound, inbound), (contents.out, contents.back), total(plan), strict=True):
        assert stream.digest == head(path, size)
    turns = [turn for out, back in steps(plan) for turn in ((Direction.OUTBOUND, out), (Direction.INBOUND, back))]
    assert heard.turns == turns


def expect_bodies(path: Path, said: Said) -> None:
    """A connection with HTTP: request and response bodies, one after the other, are the files."""
    prefix = GRPC_PREFIX if said.stack.speaks == "grpc" else 0
    bodies = all_bodies(path)
    sizes = list(steps(said.stack.plan))
    for number, (side, content) in enumerate((("request", said.contents.out), ("response", said.contents.back))):
        found = [body[prefix:] for (_, which), body in sorted(bodies.items()) if which == side]
        assert [len(body) for body in found] == [size[number] for size in sizes]
        whole = b"".join(found)
        assert (len(whole), hashlib.sha256(whole).hexdigest()) == head(content, len(whole))


def judge(recording: Recording, said: Said, row: Row) -> None:
    """Everything that must hold of a recording, in either file; `Recorder` has compared the rebuilt one already."""
    for path in (recording.sidecar, recording.pcapng):
        heard = Heard(path)
        assert len(heard.flows) == 1, f"{len(heard.flows)} flows with data in {path.name}"
        (flow,) = heard.flows.values()
        inbound, outbound = heard.streams[flow.id]
        if path == recording.sidecar:
            row.result, row.functions = "recorded, but not right", functions(recording, flow)
            row.sent, row.received, row.tuple_source = outbound.size, inbound.size, flow.tuple_source.value
        assert not outbound.gaps + inbound.gaps
        if said.stack.speaks in ("raw", "quic"):
            expect_streams(heard, flow, said)
        else:
            expect_bodies(path, said)
        found = (flow.tuple_source.value, flow.local, flow.remote)
        assert found == (said.stack.tuple_source, said.local, said.remote), path.name
        assert flow.transport == ("udp" if said.stack.speaks == "quic" else "tcp"), path.name
    assert recording.complete, recording.stderr


def expect_no_complaints(recording: Recording, said: Said, folder: Path) -> None:
    """tshark has no warning about the recording, nor about the same in the other framing.

    It is told the protocol: in noise its heuristics find anything, and a random port may belong to something.
    """
    port, protocol = said.remote.port, {"http": "http", "grpc": "http2"}.get(said.stack.speaks, "data")
    # What HTTP/2 over TLS is, tshark takes from ALPN only.
    as_what = f"tcp.port=={port},tls" if protocol == "http2" else f"tls.port=={port},{protocol}"
    assert complaints(folder, recording.pcapng, "-d", as_what) == []
    plain = recording.base.with_name("plain.pcapng")
    assert run_tlscap("rebuild", recording.sidecar, "-o", plain, "--framing", "plain").returncode == 0
    assert plain.read_bytes() != recording.pcapng.read_bytes()
    assert complaints(folder, plain, "-d", f"tcp.port=={port},{protocol}") == []


@contextlib.contextmanager
def peer_of(
    stack: Stack, folder: Path, certificates: Certificates, contents: Contents
) -> Iterator[tuple[int, Callable[[], list[tuple[int, str]]]]]:
    """The peer that a stack needs: its port, and what it received, to be asked for at the end."""
    if stack.speaks == "grpc":
        with grpc_peer(folder, certificates, contents) as (port, received):
            yield port, lambda: [head(received, received.stat().st_size)]
        return
    if stack.speaks == "quic":
        with quic_peer(folder, certificates, contents, stack) as (port, lines):
            yield port, lambda: [tuple(json.loads(line)) for line in lines()]
        return
    with Peer(certificates, contents, stack) as peer:
        yield peer.port, lambda: peer.received
    assert not peer.problems


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
def test_stack(
    stack: Stack,
    record: Recorder,
    certificates: Certificates,
    contents: Contents,
    stack_table: Table,
    tmp_path: Path,
) -> None:
    """What the stack said is what was recorded."""
    row = Row(stack.name)
    stack_table.rows.append(row)
    try:
        subject = stack.make(tmp_path)
    except Missing as missing:
        row.result = f"skipped: {missing}"
        raise
    row.result = "the subject failed"
    extra = [*subject.extra, *([certificates.ca] if stack.speaks == "grpc" else [])]
    with peer_of(stack, tmp_path, certificates, contents) as (port, received):
        recording = record(
            *("--verbose", "--framing", "tls-null"),
            command=[*subject.command, "127.0.0.1", port, contents.out, tmp_path / "in", stack.plan, *extra],
        )
    out, back = total(stack.plan)
    assert received() == [head(contents.out, out)]
    assert head(tmp_path / "in", 2 * back) == head(contents.back, back)
    told = json.loads(recording.stdout)
    row.version = told.get("version", subject.version)
    row.result = "not recorded"
    said = Said(stack, contents, Endpoint(*told["local"]), Endpoint(*told["remote"]))
    judge(recording, said, row)
    row.result = "tshark complains"
    expect_no_complaints(recording, said, tmp_path)
    row.result = "recorded"
