"""``tlscap import`` as users run it: formats by content, pipes, errors in one line, and what is said at the end."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tlscap import tlsnull
from tlscap.capture import open_capture
from tlscap.cli import import_ as command
from tlscap.cli import main as cli
from tlscap.cli import tshark as runner
from tlscap.errors import TlscapError
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.importing.keylog import KeyLog
from tlscap.importing.packetfile import PacketFile
from tlscap.importing.tls import TlsFilter
from tlscap.model import Data, Direction, FlowOpened, GapReason, Item, TupleSource
from tlscap.model import Gap as GapItem
from tlscap.packets import ACK, FIN, PSH, SYN, TcpPath

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
GET = b"GET /x HTTP/1.1\r\nHost: plain.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
HELLO = tlsnull.client_hello(b"seed", sni="example.org")
KEY = b"CLIENT_RANDOM %s %s\n" % (HELLO[11:43].hex().encode(), b"ab" * 48)
START_NS = 1_795_197_600_000_000_000


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    lines: list[str]


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs ``tlscap import`` as the console script does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tlscap", "import", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert not [name for name in os.listdir() if name.startswith(".")]
        code = caught.value.code
        return Outcome(0 if code is None else int(code), out, err.splitlines())

    return run


class Side:
    """A connection that is captured."""

    def __init__(self, port: int, client_port: int = 50000) -> None:
        client, server = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
        self.paths = (TcpPath(server, port, client, client_port), TcpPath(client, client_port, server, port))
        self.seqs = [100, 200]
        self.frames = [self.paths[1].packet(199, 0, SYN), self.paths[0].packet(99, 200, SYN | ACK)]

    def send(self, direction: Direction, data: bytes = b"", *, flags: int = PSH, captured: bool = True) -> Side:
        frame = self.paths[direction].packet(self.seqs[direction], self.seqs[1 - direction], flags | ACK, data)
        self.seqs[direction] += len(data) + bool(flags & FIN)
        self.frames += [frame] * captured
        return self

    def close(self) -> Side:
        return self.send(OUT, flags=FIN).send(IN, flags=FIN)


def pcap(*frames: bytes, snaplen: int = 1 << 18) -> bytes:
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, snaplen, 1)]
    for number, frame in enumerate(frames):
        cut = frame[:snaplen]
        parts += [struct.pack("<IIII", START_NS // 10**9, 1000 * number, len(cut), len(frame)), cut]
    return b"".join(parts)


def http(port: int = 80, client_port: int = 50000) -> Side:
    return Side(port, client_port).send(OUT, GET).send(IN, OK).close()


def tls(client_port: int = 50001) -> Side:
    return Side(443, client_port).send(OUT, HELLO).send(IN, tlsnull.server_flight(b"seed")).close()


def items(path: str) -> list[Item]:
    with open_capture(path) as opened:
        return list(opened.items())


def exchanges(path: str) -> list[Exchange]:
    builder = ExchangeBuilder()
    return [exchange for item in items(path) for exchange in builder.feed(item)]


HAR = {
    "log": {
        "entries": [
            {
                "startedDateTime": "2026-11-20T18:00:00Z",
                "request": {"method": "GET", "url": "https://har.example/", "httpVersion": "h2", "headers": []},
                "response": {"status": 200, "headers": [], "content": {"text": "hello"}},
            }
        ]
    }
}


# --- What comes out ---


def test_pcap(run: Run, tmp_path: Path) -> None:
    """A pcap with HTTP becomes a capture of tlscap: exchanges, true addresses and times, and a file for its owner only."""
    Path("in").write_bytes(pcap(*http().frames))
    done = run("in", "-o", "out.pcapng")
    assert done == Outcome(0, "", ["tlscap: imported 1 flow, 83 B"])
    assert stat.S_IMODE(os.stat("out.pcapng").st_mode) == 0o600
    (exchange,) = exchanges("out.pcapng")
    assert (exchange.complete, exchange.started_ns) == (True, START_NS + 2000)
    assert exchange.url.startswith("http://")
    assert exchange.flow.plaintext
    flow = exchange.flow
    assert (str(flow.local), str(flow.remote), flow.process.pid) == ("10.0.0.1:50000", "10.0.0.2:80", -1)
    assert (flow.tuple_source, flow.joined_midstream) == (TupleSource.IMPORTED, False)
    header = Path("out.pcapng").read_bytes()[:400]
    assert b"imported from a packet capture" in header
    assert b"captured by tlscap" not in header


def test_har(run: Run) -> None:
    """A HAR file becomes a capture, and it is said what is not as it was sent."""
    Path("in").write_text("\n " + json.dumps(HAR))
    done = run("in", "-o", "out.pcapng")
    assert done.lines == ["tlscap: HTTP/2 and HTTP/3 entries are written as HTTP/1.1", "tlscap: imported 1 flow, 78 B"]
    (exchange,) = exchanges("out.pcapng")
    assert not exchange.flow.plaintext
    assert (exchange.url, exchange.flow.sni, exchange.complete) == ("https://har.example/", "har.example", True)
    assert b"imported from a HAR file" in Path("out.pcapng").read_bytes()[:400]


def test_holes(run: Run) -> None:
    """What is not in the capture is a hole with its reason, and counted."""
    side = Side(80).send(OUT, GET).send(IN, OK[:10], captured=False).send(IN, OK[10:])
    Path("in").write_bytes(pcap(*side.frames))
    assert run("in", "-o", "out.pcapng").lines == ["tlscap: imported 1 flow, 73 B, 10 bytes missing in 1 hole"]
    (gap,) = [item for item in items("out.pcapng") if isinstance(item, GapItem)]
    assert (gap.length, gap.reason) == (10, GapReason.NOT_CAPTURED)
    Path("in").write_bytes(pcap(*http().frames, snaplen=60))
    assert run("in", "-o", "cut.pcapng").lines == ["tlscap: imported 1 flow, 12 B, 71 bytes missing in 2 holes"]
    assert {item.reason for item in items("cut.pcapng") if isinstance(item, GapItem)} == {GapReason.SNAPLEN}


def test_what_was_left_out(run: Run) -> None:
    """TLS without keys, and what is no TCP, is counted; how to give keys is said once."""
    udp = bytearray(http().frames[0])
    udp[23] = 17
    frames = [*http().frames, *tls().frames, *tls(50002).frames, bytes(udp), b"short"]
    Path("in").write_bytes(pcap(*frames))
    assert run("in", "-o", "out.pcapng").lines == [
        "tlscap: 2 TLS connections without keys were left out",
        "  --keys takes the file that programs write when SSLKEYLOGFILE is set",
        "tlscap: packets left out: 1 cut before the end of their headers, 1 not TCP",
        "tlscap: imported 1 flow, 83 B",
    ]


def test_contradictions(run: Run) -> None:
    """Copies with a difference are counted."""
    side = Side(80).send(OUT, b"lost", captured=False).send(OUT, b"first")
    side.frames.append(side.paths[OUT].packet(204, 100, ACK, b"other"))
    Path("in").write_bytes(pcap(*side.frames))
    assert (
        run("in", "-o", "out.pcapng").lines[0]
        == "tlscap: segments that repeat bytes with a difference: 1; the first bytes were kept"
    )


@pytest.mark.parametrize("framing", ["auto", "plain", "tls-null"])
def test_framing(run: Run, framing: str) -> None:
    """The framing can be chosen; what is in it is the same."""
    Path("in").write_bytes(pcap(*http().frames, *http(8443, 50001).frames))
    run("in", "-o", "out.pcapng", "--framing", framing)
    data = Path("out.pcapng").read_bytes()
    assert data.count(b"framing=tls-null") == {"auto": 1, "plain": 0, "tls-null": 2}[framing]
    assert [item.data for item in items("out.pcapng") if isinstance(item, Data)] == [GET, OK] * 2


def test_same_bytes(run: Run) -> None:
    """The same capture gives the same file, whatever it is called."""
    for name in ("one", "two"):
        Path(name).write_bytes(pcap(*http().frames))
        run(name, "-o", f"{name}.pcapng")
    assert Path("one.pcapng").read_bytes() == Path("two.pcapng").read_bytes()


def test_truncated(run: Run) -> None:
    """What came before the cut is imported, with a warning and success."""
    Path("in").write_bytes(pcap(*http().frames)[:-5])
    done = run("in", "-o", "out.pcapng")
    assert done.status == 0
    assert done.lines[0].startswith("tlscap: in: the file ends inside the packet at byte ")
    assert done.lines[0].endswith("; everything before was imported")
    assert len(exchanges("out.pcapng")) == 1
    two = {"log": {"entries": HAR["log"]["entries"] * 2}}
    Path("in").write_text(json.dumps(two)[:-4])
    done = run("in", "-o", "har.pcapng")
    assert (done.status, "ends inside its JSON" in done.lines[0]) == (0, True)


# --- Pipes ---

PROGRAM = [sys.executable, "-c", "from tlscap.cli.main import main; main()", "import"]


def test_from_pipe_to_pipe(tmp_path: Path, run: Run) -> None:
    """Standard input and output give the same bytes as files."""
    Path("in").write_bytes(pcap(*http().frames))
    run("in", "-o", "out.pcapng")
    with subprocess.Popen([*PROGRAM, "-", "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(Path("in").read_bytes())
    assert out == Path("out.pcapng").read_bytes()
    done = subprocess.run([*PROGRAM, "-", "-o", "-"], input=json.dumps(HAR).encode(), capture_output=True, check=True)
    assert done.stdout.startswith(b"\n\r\r\n")


def test_live_pipe() -> None:
    """What comes through a pipe goes out at once: a capture can be watched while it runs."""
    frames = http().frames
    with subprocess.Popen(
        [*PROGRAM, "-", "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pcap(*frames[:3]))
        process.stdin.flush()
        seen = b""
        while GET not in seen:
            seen += process.stdout.read1()  # type: ignore[attr-defined]
        process.stdin.write(pcap(*frames[3:])[24:])
        process.stdin.close()
        assert OK in seen + process.stdout.read()


def test_progress(run: Run, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a line says how far each pass is, and is gone before anything else is said."""
    fake()
    monkeypatch.setattr(command, "DRAW_INTERVAL_S", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Path("in").write_bytes(pcap(*open_tls(50001).frames))
    Path("keys").write_bytes(key_lines(50001))
    done = run("in", "-o", "out.pcapng", "--keys", "keys")
    drawn = [line.removeprefix("\x1b[K") for line in done.lines if line]
    assert list(dict.fromkeys(drawn)) == ["decrypting: 100 %", "importing: 100 %", "tlscap: imported 1 flow, 12 B"]
    assert done.lines[-1].startswith("\x1b[K")


# --- Errors ---


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "in: it is empty"),
        (b"   ", "in: neither a packet capture"),
        (b"PK\x03\x04", "in: neither a packet capture"),
        (b"\x1f\x8b\x08\x00", "in: it is compressed with gzip"),
        (b"\x28\xb5\x2f\xfd", "in: it is compressed with zstd"),
        (b"\xd4\xc3\xb2\xa1", "in: the file ends inside its header"),
        (b"\n\r\r\n" + bytes(40), "in: the byte-order magic at byte 8 is 00000000"),
        (pcap()[:24] + struct.pack("<IIII", 0, 0, 1 << 31, 1), "in: the packet at byte 24 says"),
        (pcap(*http().frames) + struct.pack("<IIII", 0, 0, 1 << 31, 1), "in: the packet at byte"),
        (b"{}", "in: no HAR file: it has no 'log'"),
        (b'{"log": {"entries": [{}]}}', "in: entry 1: request is missing"),
    ],
)
def test_damaged_input(run: Run, content: bytes, text: str) -> None:
    """What can't be imported is said in one line, with the name of the file, and no output is left."""
    Path("in").write_bytes(content)
    done = run("in", "-o", "out.pcapng")
    assert (done.status, done.out) == (4, "")
    assert done.lines[0].startswith(f"tlscap: {text}")
    assert len(done.lines) <= 2
    assert os.listdir() == ["in"]


def test_own_file(run: Run) -> None:
    """A capture that tlscap wrote needs no import."""
    Path("in").write_bytes(pcap(*http().frames))
    run("in", "-o", "out.pcapng")
    done = run("out.pcapng", "-o", "again.pcapng")
    assert done.status == 4
    assert done.lines == [
        "tlscap: out.pcapng: tlscap wrote it, there is nothing to import",
        "  tlscap inspect reads it",
    ]


def test_other_errors(run: Run) -> None:
    """Files that are missing or there already, and keys that are none or make no sense."""
    Path("in").write_bytes(pcap(*http().frames))
    Path("har").write_text(json.dumps(HAR))
    Path("keys").write_bytes(KEY)
    for arguments, status, text in (
        (["nothing", "-o", "out"], 5, "nothing: No such file or directory"),
        ([".", "-o", "out"], 5, ".: Is a directory"),
        (["in", "-o", "keys"], 5, "keys exists already"),
        (["in", "-o", "no/folder"], 5, "no/folder can't be written"),
        (["in", "-o", "out", "--keys", "nothing"], 5, "nothing: No such file or directory"),
        (["in", "-o", "out", "--keys", "in"], 4, "in holds no TLS keys"),
        (["har", "-o", "out", "--keys", "keys"], 2, "a HAR file is not encrypted"),
    ):
        done = run(*arguments)
        assert (done.status, done.lines[0]) == (status, f"tlscap: {text}") or done.lines[0].startswith(
            f"tlscap: {text}"
        )
        assert done.status == status
    assert run("in", "-o", "keys", "--force").status == 0
    assert sorted(os.listdir()) == ["har", "in", "keys"]


def test_too_many_zeros(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes of any size can be claimed; filling them with zeros has a limit, marking them has none."""
    monkeypatch.setattr(command, "MOST_FILLED", 1000)
    har = json.loads(json.dumps(HAR))
    har["log"]["entries"][0]["response"]["content"] = {"size": 5000}
    Path("in").write_text(json.dumps(har))
    done = run("in", "-o", "out.pcapng")
    assert done.status == 1
    assert done.lines == [
        "tlscap: holes of 5.0 kB would be filled with zeros",
        "  --framing plain does not fill them",
    ]
    assert run("in", "-o", "out.pcapng", "--framing", "plain").status == 0


# --- Decryption, with something that is not tshark ---

FAKE = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tlscap.importing.frames import FrameDecoder
from tlscap.importing.packetfile import PacketFile
if "-G" in sys.argv:
    for name in [{needed}] + ["x%d" % number for number in range(200)]:
        print("Name", "NAME", name, sep="\\t")
    sys.exit()
{how}
"""
ANSWER = """
decoder = FrameDecoder()
for number, packet in enumerate(PacketFile(sys.stdin.buffer).packets(), 1):
    payload = decoder.decode(packet).payload
    payload = payload[6:] if payload[:1] == b"\\x14" else payload  # a ChangeCipherSpec in front, or nothing
    kind = payload[0] if payload else ""
    found = ["20" if kind == 22 and payload[5] == 20 else "", "", "", payload[5:].hex() if kind == 23 else ""]
    print(number, kind, "", *found, sep="\\t")
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Return a function that puts a program in tshark's place."""
    folder = tmp_path.parent / f"{tmp_path.name}-bin"
    folder.mkdir()

    def install(how: str = ANSWER) -> None:
        needed = ", ".join(map(repr, ("data", "eth", "ethertype", "frame", "ipv6", "tcp", "tls")))
        text = FAKE.format(python=sys.executable, root=str(Path(cli.__file__).parents[2]), needed=needed, how=how)
        (folder / "tshark").write_text(text)
        (folder / "tshark").chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    yield install
    shutil.rmtree(folder)


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("!BHH", kind, 0x0303, len(content)) + content


def open_tls(client_port: int, text: bytes = b"secret") -> Side:
    """Return a connection that the program above opens: nothing in it is encrypted."""
    hello = tlsnull.client_hello(b"%d" % client_port, sni="example.org")
    side = Side(443, client_port).send(OUT, hello).send(IN, tlsnull.server_flight(b""))
    side.send(OUT, record(22, b"\x14") + record(23, text)).send(IN, record(22, b"\x14") + record(23, b"answer"))
    return side


def key_lines(*client_ports: int) -> bytes:
    hellos = [tlsnull.client_hello(b"%d" % port, sni="example.org") for port in client_ports]
    return b"".join(b"CLIENT_RANDOM %s %s\n" % (hello[11:43].hex().encode(), b"ab" * 48) for hello in hellos)


def stories(path: str) -> list[tuple[str, list[bytes]]]:
    """Return of each flow its name and its data."""
    found: dict[int, tuple[str, list[bytes]]] = {}
    for item in items(path):
        if isinstance(item, FlowOpened):
            found[item.flow.id] = item.flow.sni, []
        if isinstance(item, Data):
            found[item.flow.id][1].append(item.data)
    return list(found.values())


def test_decryption(run: Run, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plaintext and TLS stand in the order of their packets; connections are spread over several processes."""
    fake()
    monkeypatch.setattr(runner.Decryption.__init__, "__kwdefaults__", {"share": 400})
    sides = [open_tls(port) for port in range(50001, 50011)]
    frames = [frame for side in (*sides[:5], http(), *sides[5:]) for frame in side.close().frames]
    Path("in").write_bytes(pcap(*frames))
    Path("keys").write_bytes(key_lines(*range(50001, 50010)))
    started: list[runner._Tshark] = []
    start = runner.Decryption._start

    def counted(self: runner.Decryption, *, lenient: bool = False) -> runner._Tshark:
        started.append(start(self, lenient=lenient))
        return started[-1]

    monkeypatch.setattr(runner.Decryption, "_start", counted)
    done = run("in", "-o", "out.pcapng", "--keys", "keys")
    assert done.lines == ["tlscap: 1 TLS connection without keys was left out", "tlscap: imported 10 flows, 191 B"]
    assert len(started) > 2
    secret = "example.org", [b"secret", b"answer"]
    assert stories("out.pcapng") == [secret] * 5 + [("", [GET, OK])] + [secret] * 4


def test_decryption_from_a_pipe(run: Run, fake: Callable[..., None]) -> None:
    """A pipe is kept for the second pass when there are keys, and when it brings its own it is said how to use them."""
    fake()
    Path("keys").write_bytes(key_lines(50001))
    data = pcap(*open_tls(50001).frames)
    done = subprocess.run(
        [*PROGRAM, "-", "-o", "out.pcapng", "--keys", "keys"], input=data, stderr=subprocess.PIPE, check=True
    )
    assert done.stderr == b"tlscap: imported 1 flow, 12 B\n"
    assert stories("out.pcapng") == [("example.org", [b"secret", b"answer"])]


def with_secrets(*frames: bytes, keys: bytes) -> bytes:
    """Return a pcapng whose keys stand at its end."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    parts = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)), block(1, struct.pack("<HHI", 1, 0, 0))]
    parts += [block(6, struct.pack("<IIIII", 0, 0, 0, len(frame), len(frame)) + frame) for frame in frames]
    return b"".join([*parts, block(10, struct.pack("<II", 0x544C534B, len(keys)) + keys)])


def test_keys_in_the_capture(run: Run, fake: Callable[..., None]) -> None:
    """Keys in the file are found behind the packets, too; in a pipe they can't be used, and that is said."""
    fake()
    data = with_secrets(*open_tls(50001).frames, keys=key_lines(50001))
    Path("in").write_bytes(data)
    assert run("in", "-o", "out.pcapng").lines == ["tlscap: imported 1 flow, 12 B"]
    assert stories("out.pcapng") == [("example.org", [b"secret", b"answer"])]
    done = subprocess.run([*PROGRAM, "-", "-o", "-"], input=data, capture_output=True, check=True)
    assert b"holds TLS keys, which can be used when it is a file, not a pipe" in done.stderr


def test_damaged_records(run: Run, fake: Callable[..., None]) -> None:
    """A connection with a hole in a record is asked about twice: the second time without the check of each record."""
    fake(
        "fails = 'tls.ignore_ssl_mac_failed:TRUE' not in sys.argv\n"
        + ANSWER.replace("if kind == 23", "if kind == 23 and not (fails and b'after' in payload)")
    )
    side = open_tls(50001)
    data = record(23, b"0123456789") + record(23, b"after")
    side.send(OUT, data[:7]).send(OUT, data[7:10], captured=False).send(OUT, data[10:]).close()
    Path("in").write_bytes(pcap(*side.frames, *open_tls(50002).frames))
    Path("keys").write_bytes(key_lines(50001, 50002))
    done = run("in", "-o", "out.pcapng", "--keys", "keys")
    assert done.lines == ["tlscap: imported 2 flows, 29 B, 10 bytes missing in 1 hole"]
    assert stories("out.pcapng") == [
        ("example.org", [b"secret", b"answer", b"after"]),
        ("example.org", [b"secret", b"answer"]),
    ]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("sys.stdin.buffer.read(); print('x', file=sys.stderr); print('bad\\x1b luck', file=sys.stderr); sys.exit(3)",
         "tlscap: tshark ended with status 3: bad luck"),
        ("sys.exit(2)", "tlscap: tshark ended with status 2"),
        ("import os; os.kill(os.getpid(), 11)", "tlscap: tshark ended with status -11"),
        ("sys.stdin.buffer.read()", "tlscap: tshark's output is not what was asked for"),
        ("sys.stdin.buffer.read(); print('hello')", "tlscap: tshark's output is not what was asked for"),
        ("sys.stdin.buffer.read(); print(5, *[''] * 6, sep='\\t')", "tlscap: tshark answered packet 5 in place of 1"),
    ],
)  # fmt: skip
def test_tshark_fails(run: Run, fake: Callable[..., None], how: str, text: str) -> None:
    """When tshark does something else, that is one line, and no output is left."""
    fake(how)
    Path("in").write_bytes(pcap(*open_tls(50001).frames))
    Path("keys").write_bytes(key_lines(50001))
    done = run("in", "-o", "out.pcapng", "--keys", "keys")
    assert (done.status, done.lines) == (1, [text])
    assert sorted(os.listdir()) == ["in", "keys"]


def test_tshark_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tshark it is said what to install; only when something could be decrypted."""
    monkeypatch.setenv("PATH", "/nonexistent")
    Path("in").write_bytes(pcap(*open_tls(50001).frames, *http().frames))
    Path("keys").write_bytes(key_lines(50001))
    done = run("in", "-o", "out.pcapng", "--keys", "keys")
    assert (done.status, done.lines) == (
        1,
        ["tlscap: decrypting TLS needs tshark, which is not installed", "  apt install tshark"],
    )
    Path("keys").write_bytes(key_lines(50002))
    assert run("in", "-o", "out.pcapng", "--keys", "keys").lines == [
        "tlscap: 1 TLS connection without keys was left out",
        "tlscap: imported 1 flow, 83 B",
    ]


def test_no_process_is_left(fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the import fails, what was started ends."""
    fake("import time; time.sleep(600)")
    keys = KeyLog()
    keys.add(key_lines(50001))
    decryption = runner.Decryption(keys, str(tmp_path))
    decryptor = next(iter(decryption.questions()))
    decryptor.begin(1)
    decryptor.record(1, OUT, HELLO, 5, damaged=False)
    (process,) = decryption._all
    assert process._process.poll() is None
    decryption.close()
    assert process._process.poll() == -9
    assert not os.listdir(tmp_path)


def test_nothing_of_the_users_settings(run: Run, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """tshark gets neither the environment nor the folder nor the settings of whoever runs it."""
    fake("import os; sys.stdin.buffer.read(); sys.exit(' '.join([os.getcwd(), *sorted(os.environ)]))")
    monkeypatch.setenv("SECRET", "x")
    Path("in").write_bytes(pcap(*open_tls(50001).frames))
    Path("keys").write_bytes(key_lines(50001))
    (line,) = run("in", "-o", "out.pcapng", "--keys", "keys").lines
    words = set(line.split("status 1: ")[1].split())
    assert words - {"LC_CTYPE"} == {"/", "HOME", "LANG", "PATH", "WIRESHARK_CONFIG_DIR", "XDG_CONFIG_HOME"}


def test_filter_without_keys_asks_nobody() -> None:
    """Without keys no decryptor is needed at all."""
    keys = KeyLog()
    target = TlsFilter(keys, None)
    assert target.finish() == []
    with pytest.raises(TlscapError):
        list(PacketFile(io.BytesIO(b"PK\3\4")).packets())
