"""Stock tshark, as Debian has it and without anybody's preferences, understands the recordings; so does scapy."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from live.servers import CLEAN_ENVIRONMENT, CURL, Nginx, Recorder, Recording, inspect_json, run_tlscap, tshark


def get(record: Recorder, nginx: Nginx, port: int, *paths: str, options: tuple[str, ...] = ()) -> Recording:
    """Record one curl that asks one connection for some things."""
    address = nginx.address443 if port == 443 else "127.0.0.1"
    outputs = [word for _ in paths for word in ("-o", "/dev/null")]
    urls = [f"https://localhost:{port}{path}" for path in paths]
    recording = record(
        command=[*CURL, "--cacert", nginx.certificates.ca, "--resolve", f"localhost:{port}:{address}",
                 *options, *outputs, *urls],
    )  # fmt: skip
    assert recording.complete, recording.stderr
    return recording


def fields(folder: Path, file: Path, only: str, *names: str) -> list[list[str]]:
    """Some fields of the packets that a display filter lets through."""
    wanted = [word for name in names for word in ("-e", name)]
    output = tshark(folder, "-r", file, "-Y", only, "-T", "fields", *wanted)
    return [line.split("\t") for line in output.splitlines()]


def complaints(folder: Path, file: Path) -> list[str]:
    """Sections of tshark's expert information that are worse than a note."""
    output = tshark(folder, "-r", file, "-q", "-z", "expert")
    return re.findall(r"^(?:Errors|Warns).*(?:\n.+)*", output, re.MULTILINE)


@pytest.fixture(params=["443", "random"])
def port(request: pytest.FixtureRequest, nginx: Nginx) -> int:
    """The port that Wireshark knows, and one that it doesn't."""
    if request.param == "443" and not nginx.address443:
        pytest.skip("port 443 is taken on every loopback address")
    return 443 if request.param == "443" else nginx.port


def test_http1(nginx: Nginx, record: Recorder, tmp_path: Path, port: int) -> None:
    """Requests and responses are rows, whatever the port."""
    nginx.put("shark.html", b"<p>shark</p>" * 50)
    recording = get(record, nginx, port, "/shark.html", "/say/more", options=("--http1.1",))
    rows = fields(tmp_path, recording.pcapng, "http", "http.request.method", "http.response.code")
    assert rows == [["GET", ""], ["", "200"], ["GET", ""], ["", "200"]]
    asked = fields(tmp_path, recording.pcapng, "http.request", "http.request.uri")  # since 4.4 responses have it, too
    assert asked == [["/shark.html"], ["/say/more"]]
    assert fields(tmp_path, recording.pcapng, "http.request", "tcp.dstport") == [[str(port)]] * 2
    assert complaints(tmp_path, recording.pcapng) == []


def test_http2(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """HTTP/2 is dissected as such, with its headers unpacked, and tlscap reads the same."""
    recording = get(record, nginx, nginx.port_h2, "/say/a", "/say/b", options=("--http2",))
    assert fields(tmp_path, recording.pcapng, "http2.headers.path", "http2.headers.path") == [["/say/a"], ["/say/b"]]
    assert fields(tmp_path, recording.pcapng, "http2.headers.status", "http2.headers.status") == [["200"], ["200"]]
    assert complaints(tmp_path, recording.pcapng) == []
    alpn = fields(tmp_path, recording.pcapng, "tls.handshake.type == 2", "tls.handshake.extensions_alpn_str")
    assert alpn == [["h2"]]
    said = [(one["url"].partition("/say")[2], one["status"], one["protocol"]) for one in inspect_json(recording.pcapng)]
    assert said == [("/a", 200, "h2"), ("/b", 200, "h2")]


def test_sni_and_alpn(nginx: Nginx, record: Recorder, tmp_path: Path, port: int) -> None:
    """Names that were negotiated can be filtered by."""
    recording = get(record, nginx, port, "/say/x")
    name = fields(
        tmp_path,
        recording.pcapng,
        'tls.handshake.extensions_server_name == "localhost"',
        "tls.handshake.extensions_server_name",
        "tcp.dstport",
    )
    assert name == [["localhost", str(port)]]
    alpn = 'tls.handshake.extensions_alpn_str == "http/1.1"'
    assert fields(tmp_path, recording.pcapng, f"{alpn} && tls.handshake.type == 2", "tcp.srcport") == [[str(port)]]


def test_process_names(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """Every packet says whose it is."""
    with record.running("--comm", "nginx", "--comm", "curl") as started:
        client = subprocess.Popen(
            [*CURL, "--cacert", nginx.certificates.ca, "-o", "/dev/null", f"{nginx.url}/say/who"], env=CLEAN_ENVIRONMENT
        )
        assert client.wait() == 0
    (worker,) = nginx.workers
    rows = fields(
        tmp_path, started.recording().pcapng, f"http.request && tcp.port == {nginx.port}", "frame.interface_name"
    )
    assert sorted(rows) == [[f"curl[{client.pid}]"], [f"nginx[{worker}]"]]


def test_export_objects(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """Wireshark's File > Export Objects gives the files that the server has."""
    noise = random.Random(10)
    for name, size in (("one.bin", 1), ("some.bin", 16_384), ("much.bin", 3_000_000)):
        nginx.put(name, noise.randbytes(size))
    recording = get(record, nginx, nginx.port, "/one.bin", "/some.bin", "/much.bin")
    objects = tmp_path / "objects"
    tshark(tmp_path, "-r", recording.pcapng, "-q", "--export-objects", f"http,{objects}")
    assert sorted(path.name for path in objects.iterdir()) == ["much.bin", "one.bin", "some.bin"]
    for path in objects.iterdir():
        assert path.read_bytes() == (nginx.www / path.name).read_bytes(), path.name


@pytest.mark.parametrize("framing", ["tls-null", "plain"])
def test_framings(nginx: Nginx, record: Recorder, tmp_path: Path, framing: str) -> None:
    """Either framing is read without complaint; a rebuild in the other one is what a recording would have been."""
    base = record.base()
    recording = record("--framing", framing, command=[*CURL, "--cacert", nginx.certificates.ca, f"{nginx.url}/say/f"])
    decoded = () if framing == "tls-null" else ("-d", f"tcp.port=={nginx.port},http")
    output = tshark(tmp_path, "-r", recording.pcapng, *decoded, "-Y", "http", "-T", "fields", "-e", "_ws.col.Protocol")
    assert output.split() == ["HTTP", "HTTP"]
    assert complaints(tmp_path, recording.pcapng) == []
    other = base.with_name("other.pcapng")
    assert run_tlscap("rebuild", recording.sidecar, "-o", other, "--framing", "plain").returncode == 0
    assert (other.read_bytes() == recording.pcapng.read_bytes()) is (framing == "plain")


def test_scapy(nginx: Nginx, record: Recorder) -> None:
    """Scapy reads the file, and agrees with every checksum."""
    from scapy.layers.inet import IP, TCP
    from scapy.utils import rdpcap

    noise = nginx.put("scapy.bin", random.Random(11).randbytes(100_001)).read_bytes()
    recording = get(record, nginx, nginx.port, "/scapy.bin", "/say/scapy")
    packets = rdpcap(str(recording.pcapng))
    assert len(packets) > 10
    received = b""
    for packet in packets:
        again = packet.copy()
        del again[IP].chksum
        del again[TCP].chksum
        assert bytes(again) == bytes(packet)  # with checksums that scapy computed
        if packet[TCP].sport == nginx.port:
            received += bytes(packet[TCP].payload)
    assert noise[:16000] in received  # one record's worth
