"""The protocols that programs speak over TLS, one after the other, live: what `tlscap record` took down is what they said.

Programs tell what they sent and received (`peers.py`, curl's ``--write-out``, logs), and `tlscap` is compared with that: every
exchange, its method, URL and status, the SHA-256 of both bodies, and the messages in them.  tcpdump listens, too, and
`tlscap import` must find the same in the packets; where neither program writes its TLS keys, a preloaded library makes the
server do that (`keylog.c`).  A table at the end of the run says how each case went.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from live.front import BROTLI, PEERS, Front, Peer, peer
from live.peers import DETAILS, EVENTS, Digest, digest, text
from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    Certificates,
    Recorder,
    Recording,
    accepts,
    body,
    free_port,
    inspect_json,
    run_tlscap,
    stop,
    wait_until,
)
from tlscap.capture import open_capture
from tlscap.http.content import ContentDecoder
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.http.grpc import grpc_status
from tlscap.http.messages import AppMessage
from tlscap.model import Role

NOTHING = digest(b"")
KEYLOG = Path(__file__).parent / "keylog.c"
DATA_KINDS = ("text", "binary", "continuation", "unparsed")


# --- The table ---


@dataclasses.dataclass
class Row:
    """What the table says about a case."""

    case: str
    protocols: str = ""
    ends: str = ""
    expected: int = 0
    found: int = 0
    complete: int = 0
    bodies: str = ""
    messages: int = 0
    imported: str = ""
    verdict: str = ""

    def cells(self) -> list[str]:
        counts = map(str, (self.expected, self.found, self.complete))
        messages = str(self.messages or "-")
        return [self.case, self.protocols, self.ends, *counts, self.bodies, messages, self.imported, self.verdict]


TITLES = (
    "case",
    "protocol",
    "recorded",
    "exchanges",
    "found",
    "complete",
    "bodies equal",
    "messages equal",
    "import",
    "",
)


class Matrix:
    """A plugin of pytest that prints the rows at the end."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = [TITLES, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        terminalreporter.section("what was said, and what was recorded")
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            terminalreporter.line("  ".join(cells).rstrip())


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Matrix:
    plugin = Matrix()
    request.config.pluginmanager.register(plugin)
    return plugin


# --- What was recorded ---


@dataclasses.dataclass(frozen=True, order=True)
class Said:
    """An exchange; bodies without their content codings."""

    method: str
    url: str
    status: int
    request: Digest
    response: Digest


class _Hash:
    """The digests of one body: as transferred, and decoded."""

    def __init__(self, encodings: str) -> None:
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._sizes = [0, 0]
        self._decoder = ContentDecoder(encodings) if encodings else None

    def add(self, piece: bytes) -> None:
        for number, pieces in enumerate(([piece], self._decoder.feed(piece) if self._decoder else [piece])):
            for each in pieces:
                self._hashes[number].update(each)
                self._sizes[number] += len(each)

    def digests(self) -> tuple[Digest, Digest]:
        assert not self._decoder or self._decoder.complete
        raw, content = zip(self._sizes, (each.hexdigest() for each in self._hashes), strict=True)
        return raw, content


class Reading:
    """Everything in a capture file."""

    def __init__(self, path: Path) -> None:
        self.exchanges: list[Exchange] = []
        self.messages: dict[int, list[AppMessage]] = {}
        self._bodies: dict[tuple[int, Side], _Hash] = {}
        builder = ExchangeBuilder(self, self)
        with open_capture(str(path)) as capture:
            last = 0
            for item in capture.items():
                self.exchanges += builder.feed(item)
                last = item.time_ns
            self.exchanges += builder.finish(last)
        self.exchanges.sort(key=lambda exchange: exchange.id)
        self.unparsed = builder.unparsed_bytes
        self.others = [(other.protocol, other.lengths) for other in builder.others()]
        self.digests = {key: body.digests() for key, body in self._bodies.items()}

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        assert isinstance(piece, bytes), f"{exchange.url} has a hole"
        message = exchange.message(side)
        assert message
        self._bodies.setdefault((exchange.id, side), _Hash(message.encodings)).add(piece)

    def on_message(self, exchange: Exchange, message: AppMessage) -> None:
        self.messages.setdefault(exchange.id, []).append(message)

    def of(self, role: Role) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.flow.role is role]

    def raw(self, exchange: Exchange, side: Side) -> Digest:
        return self.digests.get((exchange.id, side), (NOTHING, NOTHING))[0]

    def content(self, exchange: Exchange, side: Side) -> Digest:
        return self.digests.get((exchange.id, side), (NOTHING, NOTHING))[1]

    def said(self, exchange: Exchange) -> Said:
        assert exchange.request, exchange.problems
        assert exchange.response, exchange.problems
        return Said(
            exchange.request.head.method.decode(),
            exchange.url,
            exchange.response.head.status,
            self.content(exchange, Side.REQUEST),
            self.content(exchange, Side.RESPONSE),
        )

    def all_of(self, role: Role) -> list[tuple[Any, ...]]:
        """Everything about each exchange that another way of recording must find, too, in an order of its own."""
        return sorted(
            (
                self.said(exchange),
                exchange.protocol,
                tuple(exchange.interim),
                exchange.complete,
                exchange.upgraded_to,
                [self.raw(exchange, side) for side in Side],
                [message.headers + message.trailers for message in (exchange.request, exchange.response) if message],
                [
                    (side.value, message.kind, message.name, digest(message.data), message.complete)
                    for side in Side
                    for message in self.messages.get(exchange.id, ())
                    if message.side is side
                ],
            )
            for exchange in self.of(role)
        )


def told(messages: Iterable[AppMessage], side: Side, *kinds: str) -> list[tuple[str, Digest]]:
    """The whole messages of some kinds that one side sent."""
    return [(each.kind, digest(each.data)) for each in messages if each.side is side and each.kind in kinds]


# --- The same traffic a second way ---


class Wire:
    """tcpdump on the loopback interface."""

    def __init__(self, folder: Path, port: int) -> None:
        self.path = folder / "wire.pcap"
        self._port = port
        self._errors = folder / "tcpdump.stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                ["tcpdump", "-i", "lo", "-Z", "root", "-U", "--immediate-mode", "-s", "66000", "-B", "65536", "-w", str(self.path),
                 "port", str(port)],
                env=CLEAN_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def __enter__(self) -> Self:
        wait_until(lambda: "listening on" in self._errors.read_text() or self._process.poll() is not None, "tcpdump")
        assert self._process.poll() is None, self._errors.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process, signal.SIGINT)

    def catch_up(self) -> None:
        """Wait until everything that passed so far is in the file."""
        marker = b"that was all of it"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(marker, ("127.0.0.1", self._port))

        def arrived() -> bool:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - 100))
                return marker in file.read()

        wait_until(arrived, "tcpdump writes what it saw")
        stop(self._process, signal.SIGINT)
        assert re.search(r"^0 packets dropped by kernel", self._errors.read_text(), re.MULTILINE)


# --- Programs ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Peer]:
    with peer(folder, "http") as started:
        yield started


@pytest.fixture(scope="module")
def grpc(folder: Path) -> Iterator[Peer]:
    with peer(folder, "grpc-server") as started:
        yield started


@pytest.fixture(scope="module")
def chat(folder: Path) -> Iterator[Peer]:
    with peer(folder, "ws-server") as started:
        yield started


@pytest.fixture(scope="module")
def front(folder: Path, certificates: Certificates, backend: Peer, grpc: Peer, chat: Peer) -> Iterator[Front]:
    server = Front(folder, certificates, backend, grpc, chat)
    yield server
    server.close()


@pytest.fixture(scope="module")
def keylog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that has a program with Debian's OpenSSL write its keys."""
    path = tmp_path_factory.mktemp("keylog") / "keylog.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(KEYLOG), "-o", str(path), "-ldl"], check=True)
    return path


def still_open(port: int) -> bool:
    """Whether a process has a connection at this local port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] != "0A" and fields[9] != "0":  # 0A: it listens
            return True
    return False


# --- A case ---


class Case:
    """Runs programs, records them, and compares."""

    def __init__(self, row: Row, record: Recorder, folder: Path, certificates: Certificates) -> None:
        self.row = row
        self.folder = folder
        self.certificates = certificates
        self._record = record
        self.ends: tuple[Role, ...] = (Role.CLIENT, Role.SERVER)
        """Those that can be recorded."""
        self.keys = folder / "client.keys"
        self.reading: Reading
        self.recording: Recording

    def run(
        self,
        *command: str | Path | int,
        server: Peer | Front | Program | None,
        port: int,
        witness: Peer | None = None,
        also: Sequence[int] = (),
        loaded: str = "",
    ) -> str:
        """Record a client, and a server that runs already; return what the client printed.

        What the witness says is then what it said meanwhile.  ``loaded``: the client has its TLS in a library of this name,
        which it loads late and calls at once; so it is the client itself that waits for a line of input then.
        """
        if witness:
            witness.forget()
        environment = {**CLEAN_ENVIRONMENT, "SSLKEYLOGFILE": str(self.keys)}
        if server is None:
            self.ends = (Role.CLIENT,)
        with contextlib.ExitStack() as stack:
            tap = stack.enter_context(Wire(self.folder, port))
            if server:
                gate = [] if loaded else ["sh", "-c", 'read go && exec "$@"', "sh"]
                client = subprocess.Popen(
                    [*gate, *map(str, command)],
                    env=environment, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                stack.callback(stop, client)
                maps = Path(f"/proc/{client.pid}/maps")
                wait_until(lambda: loaded in maps.read_text() or client.poll() is not None, f"{loaded} is loaded")
                pids = [word for pid in (client.pid, server.pid, *also) for word in ("-p", pid)]
                with self._record.running(*pids, "--follow") as started:
                    output, errors = client.communicate(b"go\n", timeout=60)
                    assert client.returncode == 0, errors.decode()
                    wait_until(lambda: not still_open(port), "the server has closed all connections")
                self.recording = started.recording()
            else:
                self.recording = self._record(command=command, environment={"SSLKEYLOGFILE": str(self.keys)})
                output = self.recording.stdout
            tap.catch_up()
        assert self.recording.complete, self.recording.stderr
        self._read()
        self._import(tap.path, server)
        return output.decode()

    def writing_keys(self, keylog: Path) -> Mapping[str, str]:
        """The environment of a server whose keys go where the client's would, had it written any."""
        return {**CLEAN_ENVIRONMENT, "LD_PRELOAD": str(keylog), "SSLKEYLOGFILE": str(self.keys)}

    def _read(self) -> None:
        """Both files say the same, and so does the command line."""
        self.reading = Reading(self.recording.sidecar)
        self.row.ends = " and ".join(end.name.lower() for end in self.ends if self.reading.of(end))
        self.row.found = len(self.reading.exchanges)
        self.row.complete = sum(exchange.complete for exchange in self.reading.exchanges)
        self.row.protocols = ", ".join(sorted({exchange.protocol for exchange in self.reading.exchanges}))
        assert self.reading.unparsed == 0
        assert self.reading.others == []
        second = Reading(self.recording.pcapng)
        for end in self.ends:
            assert second.all_of(end) == self.reading.all_of(end)
        assert [(e["id"], e["method"], e["url"], e["status"]) for e in inspect_json(self.recording.sidecar)] == [
            (e.id, said.method, said.url, said.status)
            for e, said in ((exchange, self.reading.said(exchange)) for exchange in self.reading.exchanges)
        ]

    def _import(self, wire: Path, server: Peer | Front | Program | None) -> None:
        """What was on the wire is what was recorded, exchange by exchange."""
        self.row.imported = "failed"
        keys, plain = self.folder / "all.keys", self.folder / "imported.pcapng"
        sources = [self.keys, *([server.keys] if isinstance(server, Peer) else [])]
        keys.write_bytes(b"".join(path.read_bytes() for path in sources if path.exists()))
        done = run_tlscap("import", wire, "--keys", keys, "-o", plain)
        assert done.returncode == 0, done.stderr.decode()
        for trouble in (b"missing", b"without keys"):
            assert trouble not in done.stderr, done.stderr.decode()
        imported = Reading(plain)
        assert imported.unparsed == 0
        assert imported.exchanges == imported.of(Role.CLIENT)
        for end in self.ends:
            assert imported.all_of(Role.CLIENT) == self.reading.all_of(end)
        self.row.imported = f"same {len(imported.exchanges)}"

    def expect(self, expected: Sequence[Said], protocols: set[str]) -> None:
        """Every end has exactly these exchanges, whole, with these bodies."""
        self.row.expected = len(expected) * len(self.ends)
        equal = 0
        for end in self.ends:
            exchanges = self.reading.of(end)
            found = Counter(map(self.reading.said, exchanges))
            equal += (found & Counter(expected)).total()
            self.row.bodies = f"{equal} of {self.row.expected}"
            assert sorted(found.elements()) == sorted(expected), end
            assert all(exchange.complete for exchange in exchanges), end
            assert [problem for exchange in exchanges for problem in exchange.problems] == []
            assert {exchange.protocol for exchange in exchanges} == protocols
        assert len(self.reading.exchanges) == self.row.expected

    def expect_messages(self, pairs: Iterable[tuple[Sequence[object], Sequence[object]]]) -> None:
        """Each message that was recorded equals the one that was said."""
        for found, said in pairs:
            assert found == said
            self.row.messages += len(said)
        assert self.row.messages


@pytest.fixture
def case(
    request: pytest.FixtureRequest, matrix: Matrix, record: Recorder, tmp_path: Path, certificates: Certificates
) -> Iterator[Case]:
    row = Row(request.node.name.removeprefix("test_").replace("_", " "))
    matrix.rows.append(row)
    failed = request.session.testsfailed
    yield Case(row, record, tmp_path, certificates)
    row.verdict = "FAILED" if request.session.testsfailed > failed else "ok" if row.expected else "skipped"


# --- curl ---


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request that curl makes."""

    method: str
    path: str
    status: int = 200
    options: tuple[str, ...] = ()


class Curl:
    """One curl with many requests; what it says about each."""

    def __init__(self, case: Case, url: str) -> None:
        self._case = case
        self._url = url
        self._words: list[str] = []
        self._count = 0

    def ask(self, *asks: Ask, options: Sequence[str] = ()) -> Self:
        for ask in asks:
            self._count += 1
            method = ["--head"] if ask.method == "HEAD" else ["--request", ask.method]
            self._words += [
                *(["--next"] if self._count > 1 else []),
                *("--silent", "--show-error", "--cacert", str(self._case.certificates.ca), "--write-out", "%{json}\\n"),
                *("--output", f"{self._count}.out", *method, *options, *ask.options, self._url + ask.path),
            ]
        return self

    @property
    def command(self) -> list[str]:
        return ["curl", "--disable", *self._words]

    def results(self, output: str) -> list[tuple[str, str, int, Digest]]:
        """Method, URL, status and body of each, in the order in which they were asked for."""
        reports = {}
        for line in output.splitlines():
            report = json.loads(line)
            file = self._case.folder / (report["filename_effective"] or "nothing")
            content = digest(file.read_bytes() if file.exists() and report["method"] != "HEAD" else b"")
            reports[report["urlnum"], report["filename_effective"]] = (
                report["method"],
                report["url_effective"],
                report["http_code"],
                content,
            )
        assert len(reports) == self._count
        return list(reports.values())


def expected(said: Iterable[dict[str, Any]], url: str) -> list[Said]:
    """What a peer said, as exchanges; for bodies without content codings."""
    return [
        Said(each["method"], url + each["target"], each["status"], tuple(each["request"]), tuple(each["response"]))
        for each in said
    ]


@pytest.mark.parametrize(
    ("options", "parallel", "protocol"),
    [
        pytest.param(["--http1.1"], [], "http/1.1", id="h1"),
        pytest.param(["--http2"], [], "h2", id="h2"),
        pytest.param(["--http2"], ["--parallel"], "h2", id="h2 parallel"),
    ],
)
def test_curl(case: Case, front: Front, backend: Peer, options: list[str], parallel: list[str], protocol: str) -> None:
    """Methods, statuses, bodies of all sorts, both ways."""
    (case.folder / "small").write_bytes(small := text(3000))
    (case.folder / "large").write_bytes(large := text(2_000_000))
    port = front.port if protocol == "http/1.1" else front.port_h2
    url = f"https://localhost:{port}"
    asks = [
        Ask("GET", "/text/1000"),
        Ask("GET", "/noise/300000"),
        Ask("GET", "/chunked/300000"),
        Ask("HEAD", "/noise/5000"),
        Ask("POST", "/echo", options=("--data-binary", "@small")),
        Ask("PUT", "/echo/large", options=("--upload-file", "large")),
        Ask("POST", "/echo/chunked", options=("--header", "Transfer-Encoding: chunked", "--data-binary", "@large")),
        Ask("GET", "/empty", 204),
        Ask("GET", "/fresh", 304, options=("--header", 'If-None-Match: "fresh"')),
        Ask("GET", "/missing", 404),
        Ask("GET", "/redirect/text/700", options=("--location",)),
    ]
    curl = Curl(case, url).ask(*asks, options=options)
    output = case.run(*curl.command, *parallel, server=front, port=port, witness=backend)
    said = expected(backend.said(len(asks) + 1), url)
    case.expect(said, {protocol})
    uploads = {each.url.removeprefix(url): each.request for each in said if each.request != NOTHING}
    assert uploads == {"/echo": digest(small), "/echo/large": digest(large), "/echo/chunked": digest(large)}
    behind = {(ask.method, url + ask.path, ask.status) for ask in asks[:-1]} | {("GET", f"{url}/text/700", 200)}
    results = curl.results(output)
    assert {result[:3] for result in results} == behind
    assert Counter(results) <= Counter((each.method, each.url, each.status, each.response) for each in said)


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"], ids=["h1", "h2"])
def test_compression(case: Case, front: Front, backend: Peer, protocol: str) -> None:
    """Content codings, by nginx and behind it: raw as curl got it without decoding, decoded as the server meant it."""
    if not BROTLI.exists():
        pytest.skip("nginx has no brotli module (libnginx-mod-http-brotli-filter)")
    size = 150_000
    codings = {"gzip": "/text", "br": "/text", "zstd": "/coded/zstd", "deflate": "/coded/deflate"}
    asks = [
        *(
            Ask("GET", f"{path}/{size}", options=("-H", f"Accept-Encoding: {coding}"))
            for coding, path in codings.items()
        ),
        Ask("GET", f"/text/{size}", options=("--compressed",)),
    ]
    port = front.port if protocol == "http/1.1" else front.port_h2
    url = f"https://localhost:{port}"
    curl = Curl(case, url).ask(*asks, options=["--http2"])
    output = case.run(*curl.command, server=front, port=port, witness=backend)
    content = digest(text(size))
    case.expect([Said("GET", url + ask.path, 200, NOTHING, content) for ask in asks], {protocol})
    # By target: nginx asks on several connections, and which of them is told of first is no matter.
    sent = {each["target"]: tuple(each["response"]) for each in backend.said(len(asks))}
    for end in case.ends:
        for number, (exchange, result) in enumerate(zip(case.reading.of(end), curl.results(output), strict=True)):
            assert exchange.response
            coding = [*codings, "br"][number]
            assert exchange.response.encodings == coding
            raw = case.reading.raw(exchange, Side.RESPONSE)
            assert 0 < raw[0] < size / 3
            assert result[3] == (content if number == len(codings) else raw), coding
            assert sent[asks[number].path] == (raw if coding in ("zstd", "deflate") else content), coding
            if end is Role.CLIENT and number < len(codings):
                assert digest(body(case.recording.sidecar, exchange.id, "--raw")) == raw
                assert digest(body(case.recording.sidecar, exchange.id)) == content


# --- nghttp2's programs ---


@dataclasses.dataclass
class Program:
    """A server that isn't a `Peer`."""

    pid: int


def test_nghttp(case: Case, keylog: Path) -> None:
    """nghttp and nghttpd: pushed responses, trailers both ways, padding, header blocks in parts, small windows."""
    site = case.folder / "site"
    site.mkdir()
    files = {"/index.html": text(5000), "/style.css": text(70_000), "/large.bin": text(1_000_000), "/empty": b""}
    for path, content in files.items():
        (site / path[1:]).write_bytes(content)
    (case.folder / "posted").write_bytes(posted := text(200_000))
    port = free_port()
    url = f"https://localhost:{port}"
    nghttpd = subprocess.Popen(
        ["nghttpd", "-d", str(site), "--push=/index.html=/style.css", "--trailer=served-by: nghttpd", "--echo-upload",
         "--padding=100", "-a", "127.0.0.1", str(port), str(case.certificates.key), str(case.certificates.leaf)],
        env=dict(case.writing_keys(keylog)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: accepts("127.0.0.1", port), "nghttpd listens")
        urls = " ".join(f"{url}{path}" for path in files if path != "/style.css")
        script = (
            f"nghttp --no-verify-peer --null-out --stat --continuation --padding=50 --window-bits=14 {urls};"
            f"nghttp --no-verify-peer {url}/large.bin > got;"
            f"nghttp --no-verify-peer --trailer='checked: yes' --no-content-length --data=posted {url}/post > echoed"
        )
        output = case.run("sh", "-c", script, server=Program(nghttpd.pid), port=port)
    finally:
        stop(nghttpd)
    statistics = re.findall(r"^ *\d+ +\S+ +(\*)? *\S+ +\S+ +(\d+) +\S+ (/\S*)$", output, re.MULTILINE)
    assert sorted(statistics) == sorted(("*" if path == "/style.css" else "", "200", path) for path in files)
    assert (case.folder / "got").read_bytes() == files["/large.bin"]
    assert (case.folder / "echoed").read_bytes() == posted
    case.expect(
        [
            *(Said("GET", url + path, 200, NOTHING, digest(content)) for path, content in files.items()),
            Said("GET", f"{url}/large.bin", 200, NOTHING, digest(files["/large.bin"])),
            Said("POST", f"{url}/post", 200, digest(posted), digest(posted)),
        ],
        {"h2"},
    )
    for exchange in case.reading.exchanges:
        assert exchange.request
        assert exchange.response
        assert exchange.request.head.pushed is exchange.url.endswith("/style.css")
        assert exchange.request.trailers == (((b"checked", b"yes"),) if exchange.url.endswith("/post") else ())
        assert exchange.response.trailers == ((b"served-by", b"nghttpd"),)


def test_h2load(case: Case, front: Front) -> None:
    """Ten connections with 100 streams at a time on each; and two whose requests bring something along."""
    url = f"https://localhost:{front.port_h2}"
    for what in ("say", "take"):
        (case.folder / what).write_text("".join(f"{url}/{what}/{number}\n" for number in range(25)))
    (case.folder / "posted").write_bytes(posted := text(700))
    before = len(front.log())
    script = (
        "h2load --requests=1000 --clients=10 --max-concurrent-streams=100 --input-file=say;"
        "h2load --requests=200 --clients=2 --max-concurrent-streams=100 --input-file=take --data=posted"
    )
    output = case.run("sh", "-c", script, server=front, port=front.port_h2)
    for count in (1000, 200):
        assert f"{count} total, {count} started, {count} done, {count} succeeded, 0 failed" in output
    wait_until(lambda: len(front.log()) == before + 1200, "nginx has logged all requests")
    expected_ = []
    for line in front.log()[before:]:
        method, path, _ = line["request"].split()
        words, sent = ("taken by", digest(posted)) if method == "POST" else ("you asked for", NOTHING)
        content = f"{words} {path}\n".encode()
        assert line["body"] == len(content)
        expected_.append(Said(method, url + path, line["status"], sent, digest(content)))
    case.expect(expected_, {"h2"})
    assert len({exchange.flow.id for exchange in case.reading.of(Role.CLIENT)}) == 12


# --- gRPC ---


def test_grpc(case: Case, backend: Peer, grpc: Peer, chat: Peer, keylog: Path) -> None:
    """PyPI's grpcio, in which functions have no names, against nginx: unary, streaming both ways, compressed, an error."""
    front = Front(case.folder, case.certificates, backend, grpc, chat, case.writing_keys(keylog))
    try:
        url = f"https://localhost:{front.port_h2}"
        output = case.run(
            *(sys.executable, PEERS, "grpc-client", "--port", front.port_h2, "--ca", case.certificates.ca),
            server=front, port=front.port_h2, witness=grpc, loaded="cygrpc",
        )  # fmt: skip
    finally:
        front.close()
    calls = [json.loads(line) for line in output.splitlines()]
    keys = ("call", "requests", "responses", "code")
    assert [[each[key] for key in keys] for each in grpc.said(len(calls))] == [
        [each[key] for key in keys] for each in calls
    ]
    case.row.expected = len(calls) * len(case.ends)
    assert len(case.reading.exchanges) == case.row.expected
    for end in case.ends:
        exchanges = case.reading.of(end)
        assert [exchange.url for exchange in exchanges] == [f"{url}/tests.Echo/{call['call']}" for call in calls]
        expect_calls(case, exchanges, calls)
    assert [call["code"] for call in calls].count("NOT_FOUND") == 2
    assert DETAILS in [call.get("details") for call in calls]
    case.row.bodies = f"{case.row.expected} of {case.row.expected}"


def expect_calls(case: Case, exchanges: Sequence[Exchange], calls: Sequence[dict[str, Any]]) -> None:
    """Each exchange is one of the calls, with its messages; those of the second half are compressed."""
    pairs: list[tuple[Sequence[object], Sequence[object]]] = []
    for number, (exchange, call) in enumerate(zip(exchanges, calls, strict=True)):
        assert exchange.request
        assert exchange.response
        assert exchange.complete
        assert not exchange.problems
        assert (exchange.protocol, exchange.request.head.method, exchange.response.head.status) == ("h2", b"POST", 200)
        status = grpc_status(exchange.response.headers, exchange.response.trailers)
        assert status
        assert (status.name, status.message) == (call["code"], call.get("details", ""))
        messages = case.reading.messages[exchange.id]
        for side, said in ((Side.REQUEST, call["requests"]), (Side.RESPONSE, call["responses"])):
            pairs.append((told(messages, side, "message", "unparsed"), [("message", tuple(each)) for each in said]))
        assert all(message.complete and not message.notes for message in messages)
        small = sum(message.size < len(message.data) for message in messages if len(message.data) > 1000)
        assert bool(small) == (number >= len(calls) / 2 and any(len(message.data) > 1000 for message in messages))
    case.expect_messages(pairs)


def test_grpc_by_curl(case: Case, front: Front, grpc: Peer) -> None:
    """The same service, asked by a program that writes its keys."""
    url = f"https://localhost:{front.port_h2}"
    (case.folder / "request").write_bytes(framed(b"from curl"))
    output = case.run(
        *(*CURL, "--cacert", case.certificates.ca, "--http2", "--data-binary", "@request", "--output", "got"),
        *("-H", "Content-Type: application/grpc", "-H", "TE: trailers", "-H", "sizes: [3, 20000]"),
        *("--write-out", "%{http_code}", f"{url}/tests.Echo/Spread"),
        server=front, port=front.port_h2, witness=grpc,
    )  # fmt: skip
    assert output == "200"
    got = (case.folder / "got").read_bytes()
    assert got == framed(text(3)) + framed(text(20_000))
    case.expect(
        [Said("POST", f"{url}/tests.Echo/Spread", 200, digest(framed(b"from curl")), digest(got))],
        {"h2"},
    )
    (call,) = grpc.said(1)
    for exchange in case.reading.exchanges:
        assert exchange.response
        assert exchange.response.trailers[0] == (b"grpc-status", b"0")
        messages = case.reading.messages[exchange.id]
        case.expect_messages(
            (told(messages, side, "message"), [("message", tuple(each)) for each in said])
            for side, said in ((Side.REQUEST, call["requests"]), (Side.RESPONSE, call["responses"]))
        )


def framed(message: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


# --- WebSocket ---


def expect_chat(case: Case, exchange: Exchange, client: dict[str, Any], server: dict[str, Any]) -> None:
    """The messages in a tunnel are those that both ends tell."""
    messages = case.reading.messages[exchange.id]
    for mine, theirs in ((client, server), (server, client)):
        assert mine["sent"] == theirs["received"]
        assert mine["close"] == 1000

    def said(end: dict[str, Any]) -> list[tuple[str, Digest]]:
        return [(kind, tuple(content)) for kind, content in end["sent"]]

    def control(kind: str, end: dict[str, Any]) -> list[tuple[str, Digest]]:
        return [(kind, tuple(content)) for content in end["pings"]]

    case.expect_messages(
        [
            (told(messages, Side.REQUEST, *DATA_KINDS), said(client)),
            (told(messages, Side.RESPONSE, *DATA_KINDS), said(server)),
            (told(messages, Side.REQUEST, "ping"), control("ping", client)),
            (told(messages, Side.RESPONSE, "pong"), control("pong", client)),
            (told(messages, Side.RESPONSE, "ping"), control("ping", server)),
            (told(messages, Side.REQUEST, "pong"), control("pong", server)),
        ]
    )
    closes = {message.side: (message.name, message.data) for message in messages if message.kind == "close"}
    assert {name.split()[0] for name, _ in closes.values()} == {"1000"}
    assert closes[Side.REQUEST][1] == b"that's all"
    assert set(closes) == set(Side)
    assert all(message.complete and not message.notes for message in messages), [m for m in messages if m.notes]
    deflated = [message for message in messages if message.size < len(message.data)]
    assert len(deflated) > 2


@pytest.mark.parametrize("kind", ["nginx", "asyncio", "blocking"])
def test_websocket(case: Case, front: Front, chat: Peer, kind: str) -> None:
    """websockets with permessage-deflate: behind nginx, by asyncio (memory BIOs), and with a thread that reads and one that writes."""
    certificate = ("--cert", case.certificates.leaf, "--key", case.certificates.key)
    with contextlib.ExitStack() as stack:
        server: Peer | Front = front
        witness, port = chat, front.port
        if kind != "nginx":
            options = ["--blocking"] if kind == "blocking" else []
            witness = stack.enter_context(peer(case.folder, "ws-server", *certificate, *options))
            server, port = witness, witness.port
        url = f"localhost:{port}/chat"
        output = case.run(
            *(sys.executable, PEERS, "ws-client", "--url", f"wss://{url}", "--ca", case.certificates.ca),
            server=server, port=port, witness=witness,
        )  # fmt: skip
        client, (said,) = json.loads(output), witness.said(1)
    assert (client["status"], client["reason"]) == (101, "that's all")
    assert said["path"] == "/chat"
    case.expect([Said("GET", f"https://{url}", 101, NOTHING, NOTHING)], {"http/1.1"})
    for exchange in case.reading.exchanges:
        assert exchange.upgraded_to == "websocket"
        assert list(exchange.message_counts.values()) == [len(client["sent"]), len(client["received"])]
        expect_chat(case, exchange, client, said)


def test_websocket_in_h2(case: Case) -> None:
    """Extended CONNECT (RFC 8441), by h2 and wsproto, with requests beside it on the connection."""
    with peer(case.folder, "h2-server", "--cert", case.certificates.leaf, "--key", case.certificates.key) as server:
        url = f"https://localhost:{server.port}"
        output = case.run(
            *(sys.executable, PEERS, "h2-ws-client", "--port", server.port, "--ca", case.certificates.ca),
            server=server, port=server.port, witness=server,
        )  # fmt: skip
        lines = [json.loads(line) for line in output.splitlines()]
        said = server.said(len(lines))
    (client,) = (line for line in lines if "sent" in line)
    (chat,) = (line for line in said if "sent" in line)
    assert client["status"] == 200
    asked = [line for line in lines if "method" in line]
    assert asked == [line for line in said if "method" in line]
    chatted = Said("CONNECT", f"{url}/chat", 200, NOTHING, NOTHING)
    case.expect([*expected(asked, url), chatted], {"h2"})
    for exchange in case.reading.exchanges:
        if exchange.url == chatted.url:
            assert exchange.upgraded_to == "websocket"
            expect_chat(case, exchange, client, chat)


# --- Upgrade to HTTP/2 ---


def test_h2c(case: Case) -> None:
    """HTTP/1.1 that becomes HTTP/2 on a TLS connection: nghttp, which does that on plain ones, through a tunnel."""
    (case.folder / "posted").write_bytes(text(40_000))
    certificate = ("--cert", case.certificates.leaf, "--key", case.certificates.key)
    with (
        peer(case.folder, "h2-server", *certificate) as server,
        peer(case.folder, "tunnel", "--port", server.port, "--ca", case.certificates.ca) as tunnel,
    ):
        host = f"localhost:{tunnel.port}"
        nghttp = "nghttp --upgrade --null-out --stat"
        script = f"{nghttp} http://{host}/a http://{host}/b; {nghttp} --data=posted http://{host}/c http://{host}/d"
        case.keys = tunnel.keys
        output = case.run("sh", "-c", script, server=server, port=server.port, witness=server, also=[tunnel.pid])
        said = server.said(5)
    assert sorted(re.findall(r" 200 +\S+ (/\S*)$", output, re.MULTILINE)) == ["/a", "/b", "/c", "/d"]
    upgraded = ("/a", "*")  # with a body nghttp upgrades by OPTIONS first
    expected_ = [
        dataclasses.replace(
            exchange,
            url=f"https://{host}{'' if each['target'] == '*' else each['target']}"
            if each["target"] in upgraded
            else f"http://{host}{each['target']}",  # the scheme that nghttp says
        )
        for exchange, each in zip(expected(said, ""), said, strict=True)
    ]
    case.expect(expected_, {"http/1.1", "h2"})
    for exchange in case.reading.exchanges:
        first = exchange.number == 1
        assert (exchange.interim, exchange.upgraded_to) == (([101], "h2c") if first else ([], ""))


# --- The rest of HTTP/1 ---


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"], ids=["h1", "h2"])
def test_events(case: Case, front: Front, backend: Peer, protocol: str) -> None:
    """Server-sent events."""
    port = front.port if protocol == "http/1.1" else front.port_h2
    url = f"https://localhost:{port}"
    curl = Curl(case, url).ask(Ask("GET", "/events"), options=["--no-buffer", "--http2"])
    output = case.run(*curl.command, server=front, port=port, witness=backend)
    said = expected(backend.said(1), url)
    case.expect(said, {protocol})
    assert curl.results(output) == [(each.method, each.url, each.status, each.response) for each in said]
    sent = [(event.get("event", "message"), event["id"], digest(event["data"].encode())) for event in EVENTS]
    for exchange in case.reading.exchanges:
        events = [message for message in case.reading.messages[exchange.id] if message.kind == "event"]
        found = [(event.name or "message", dict(event.headers)[b"id"].decode(), digest(event.data)) for event in events]
        case.expect_messages([(found, sent)])
        assert [m.data for m in case.reading.messages[exchange.id] if m.kind == "comment"] == [b"hello"]


def test_http10(case: Case) -> None:
    """HTTP/1.0: bodies that end with the connection, and connections that are kept (ab)."""
    (case.folder / "posted").write_bytes(text(5000))
    certificate = ("--cert", case.certificates.leaf, "--key", case.certificates.key)
    with peer(case.folder, "http", *certificate) as server:
        url = f"https://localhost:{server.port}"
        asks = [Ask("GET", "/close/100000"), Ask("GET", "/chunked/70000"), Ask("GET", "/text/3000"),
                Ask("HEAD", "/text/3000"), Ask("POST", "/echo", options=("--data-binary", "@posted"))]  # fmt: skip
        curl = Curl(case, url).ask(*asks, options=["--http1.0"])
        script = case.folder / "script"
        words = " ".join(f"'{word}'" for word in curl.command)
        ab = "ab -q -k -c 4 -n 40"
        script.write_text(f"{words} > said; {ab} {url}/text/2000; {ab} -p posted -T text/plain {url}/echo\n")
        output = case.run("sh", script, server=server, port=server.port, witness=server)
        said = expected(server.said(len(asks) + 80), url)
    assert len(re.findall(r"^Complete requests: +40$", output, re.MULTILINE)) == 2
    assert len(re.findall(r"^Failed requests: +0$", output, re.MULTILINE)) == 2
    assert len(re.findall(r"^Keep-Alive requests: +40$", output, re.MULTILINE)) == 2
    case.expect(said, {"http/1.0"})
    results = curl.results((case.folder / "said").read_text())
    assert results == [(each.method, each.url, each.status, each.response) for each in said[: len(asks)]]


def test_large(case: Case) -> None:
    """100 MB in chunks, down and up."""
    size = 100_000_000
    certificate = ("--cert", case.certificates.leaf, "--key", case.certificates.key)
    with peer(case.folder, "http", *certificate) as server:
        url = f"https://localhost:{server.port}"
        curl = " ".join([*CURL, f"--cacert {case.certificates.ca}"])
        script = (
            f"set -e; {curl} {url}/chunked/{size} | tee all | sha256sum;"
            f"{curl} -H Transfer-Encoding:chunked -T - {url}/take < all; rm all"
        )
        output = case.run("sh", "-c", script, server=None, port=server.port, witness=server)
        said = expected(server.said(2), url)
    case.expect(said, {"http/1.1"})
    assert output.split()[0] == said[0].response[1] == said[1].request[1]
    assert said[0].response[0] == said[1].request[0] == size
