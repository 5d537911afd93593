"""Real captures: tcpdump on the loopback interface, real TLS with logged keys, and the stock tshark to decrypt it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    TLSCAP,
    Certificates,
    Nginx,
    accepts,
    free_port,
    run_tlscap,
    stop,
    wait_until,
)
from tlscap.capture import open_capture
from tlscap.importing.frames import FrameDecoder
from tlscap.importing.packetfile import Packet, PacketFile
from tlscap.model import Data, Direction, Flow, FlowOpened, Gap, GapReason, HalfClosed

OUT, IN = Direction.OUTBOUND, Direction.INBOUND

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("tcpdump", "tshark", "editcap"))), reason="tcpdump and tshark are not installed"
)


@contextlib.contextmanager
def tcpdump(path: Path, port: int, *options: str) -> Iterator[None]:
    """Capture the packets of a port until the end of the block, and a moment longer."""
    command = ["tcpdump", "--immediate-mode", "-i", "lo", "-U", "-B", "65536", "-w", str(path), *options]
    with subprocess.Popen(
        [*command, "tcp", "port", str(port)], stderr=subprocess.PIPE, env=CLEAN_ENVIRONMENT
    ) as process:
        assert process.stderr is not None
        assert b"listening on" in process.stderr.readline()
        try:
            yield
            size = -1
            while size != (size := path.stat().st_size):
                time.sleep(0.3)
        finally:
            stop(process)


def imported(path: Path, *options: str | Path) -> tuple[Path, str]:
    """Import a capture; return the result and what was said."""
    output = path.with_suffix(".out.pcapng")
    done = run_tlscap("import", path, "-o", output, "--force", *options)
    assert done.returncode == 0, done.stderr
    return output, done.stderr.decode()


Stream = list[bytes | int]


def streams(path: Path) -> list[tuple[Flow, dict[Direction, Stream]]]:
    """Return each flow with both its directions: bytes, and how many are missing."""
    found: dict[int, tuple[Flow, dict[Direction, Stream]]] = {}
    with open_capture(str(path)) as opened:
        for item in opened.items():
            if isinstance(item, FlowOpened):
                found[item.flow.id] = item.flow, {OUT: [], IN: []}
            if isinstance(item, Data | Gap):
                stream = found[item.flow.id][1][item.direction]
                if isinstance(item, Gap):
                    stream.append(item.length)
                elif stream and isinstance(stream[-1], bytes):
                    stream[-1] += item.data
                else:
                    stream.append(item.data)
    return list(found.values())


def whole(stream: Stream) -> bytes:
    """Return a stream that has no holes."""
    return b"".join(part for part in stream if isinstance(part, bytes))


class TlsServer:
    """Answers each connection with what it is told to, after having read as much as is announced."""

    def __init__(
        self,
        certificates: Certificates,
        answers: Sequence[bytes],
        asks: int,
        settings: Callable[[ssl.SSLContext], None],
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.leaf, certificates.key)
        settings(context)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

        def serve() -> None:
            for answer in answers:
                connection, _ = self._socket.accept()
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    read = 0
                    while read < asks:
                        read += len(wrapped.recv(1 << 16))
                    wrapped.sendall(answer)
                    with contextlib.suppress(OSError):
                        wrapped.unwrap()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(30)
        self._socket.close()


def talk(
    folder: Path,
    certificates: Certificates,
    question: bytes,
    answers: Sequence[bytes],
    settings: Callable[[ssl.SSLContext], None],
) -> tuple[Path, Path]:
    """Ask a server once on each of some connections; return the capture and the key log."""
    capture, keys = folder / "in.pcap", folder / "keys.log"
    server = TlsServer(certificates, answers, len(question), settings)
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.keylog_filename = str(keys)
    settings(context)
    with tcpdump(capture, server.port):
        for answer in answers:
            with context.wrap_socket(
                socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost"
            ) as wrapped:
                for start in range(0, len(question), 20_000):
                    wrapped.sendall(question[start : start + 20_000])
                got = b"".join(iter(lambda: wrapped.recv(1 << 16), b""))
                assert got == answer
        server.close()
    return capture, keys


def tls13(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])


def tls12(ciphers: str) -> Callable[[ssl.SSLContext], None]:
    def settings(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        context.set_alpn_protocols(["http/1.1"])

    return settings


SETTINGS = {
    "TLS 1.3": tls13,
    "TLS 1.2, GCM": tls12("ECDHE-ECDSA-AES128-GCM-SHA256"),
    "TLS 1.2, CBC": tls12("ECDHE-ECDSA-AES256-SHA384"),
    "TLS 1.2, ChaCha20": tls12("ECDHE-ECDSA-CHACHA20-POLY1305"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_python(name: str, certificates: Certificates, tmp_path: Path) -> None:
    """Every byte of the application comes out once, in order, and in its direction; names and ends do, too."""
    rng = random.Random(name)
    question = rng.randbytes(50_000)
    answers = [rng.randbytes(size) for size in (1, 300_000, 0, 70_000)]
    capture, keys = talk(tmp_path, certificates, question, answers, SETTINGS[name])
    output, said = imported(capture, "--keys", keys)
    assert said == "tlscap: imported 4 flows, 570.0 kB\n"
    found = streams(output)
    assert [flow[1][OUT] for flow in found] == [[question]] * 4
    assert [flow[1][IN] for flow in found] == [[answer] if answer else [] for answer in answers]
    for flow, _ in found:
        assert (flow.sni, flow.alpn) == ("localhost", "h2" if name == "TLS 1.3" else "http/1.1")
        assert 0 < flow.handshake_start_ns < flow.handshake_end_ns < flow.closed_ns
    with open_capture(str(output)) as opened:
        assert sum(isinstance(item, HalfClosed) for item in opened.items()) == 8


def test_keys_in_the_file(certificates: Certificates, tmp_path: Path) -> None:
    """Keys that editcap put into the capture do as well, and without any it is said what is missing."""
    capture, keys = talk(tmp_path, certificates, b"question", [b"answer"], tls13)
    with_keys = tmp_path / "with.pcapng"
    subprocess.run(["editcap", "--inject-secrets", f"tls,{keys}", capture, with_keys], check=True, capture_output=True)
    output, _ = imported(with_keys)
    assert streams(output)[0][1] == {OUT: [b"question"], IN: [b"answer"]}
    output, said = imported(capture)
    assert said.splitlines()[0] == "tlscap: 1 TLS connection without keys was left out"
    assert streams(output) == []


def rewritten(path: Path, size: int, drop: Callable[[int], bool]) -> int:
    """Cut the capture's segments from the server into small ones, and leave some of those out; return how many."""
    from scapy.all import IP, TCP, EDecimal, Ether, PcapWriter  # type: ignore[attr-defined]

    with path.open("rb") as file:
        packets = list(PacketFile(file).packets())
    decoder = FrameDecoder()
    number = dropped = 0
    with PcapWriter(str(path), nano=True) as writer:

        def write(packet: Packet, frame: bytes) -> None:
            layers = Ether(frame)
            layers.time = EDecimal(packet.time_ns) / 10**9
            writer.write(layers)

        for packet in packets:
            segment = decoder.decode(packet)
            if segment is None or len(segment.payload) <= size:
                write(packet, packet.data)
                continue
            for start in range(0, len(segment.payload), size):
                number += 1
                if drop(number):
                    dropped += 1
                    continue
                layers = Ether(packet.data)
                layers[TCP].remove_payload()
                layers[TCP].seq = (segment.seq + start) & 0xFFFFFFFF
                layers = layers / segment.payload[start : start + size]
                del layers[IP].len, layers[IP].chksum, layers[TCP].chksum
                write(packet, bytes(layers))
    return dropped


@pytest.mark.parametrize("name", ["TLS 1.3", "TLS 1.2, GCM"])
def test_lost_packets(name: str, certificates: Certificates, tmp_path: Path) -> None:
    """A lost segment inside a record costs that record and nothing more; the gap has its exact size."""
    answer = random.Random(1).randbytes(400_000)
    capture, keys = talk(tmp_path, certificates, b"question", [answer], SETTINGS[name])
    assert rewritten(capture, 1460, lambda number: number in (30, 31, 100)) == 3
    output, said = imported(capture, "--keys", keys)
    ((_, found),) = streams(output)
    assert found[OUT] == [b"question"]
    sizes = [part if isinstance(part, int) else len(part) for part in found[IN]]
    assert sum(sizes) == len(answer)
    assert [part for part in found[IN] if isinstance(part, int)] == [16384, 16384]
    assert "32,768 bytes missing in 2 holes" in said
    position = 0
    for part, size in zip(found[IN], sizes, strict=True):
        assert isinstance(part, int) or part == answer[position : position + size]
        position += size
    with open_capture(str(output)) as opened:
        assert {item.reason for item in opened.items() if isinstance(item, Gap)} == {GapReason.NOT_CAPTURED}


def test_curl_and_nginx(nginx: Nginx, tmp_path: Path) -> None:
    """HTTP/2 between real programs is what it was when nginx logged it."""
    capture, keys = tmp_path / "in.pcap", tmp_path / "keys.log"
    paths = [f"/say/{number}" for number in range(5)]
    with tcpdump(capture, nginx.port_h2):
        command = [*CURL, "--http2", "--cacert", str(nginx.certificates.ca), *(nginx.url_h2 + path for path in paths)]
        done = subprocess.run(
            command, capture_output=True, env=CLEAN_ENVIRONMENT | {"SSLKEYLOGFILE": str(keys)}, check=True
        )
    output, _ = imported(capture, "--keys", keys)
    ((flow, found),) = streams(output)
    assert (flow.sni, flow.alpn, flow.remote and flow.remote.port) == ("localhost", "h2", nginx.port_h2)
    assert whole(found[OUT]).startswith(b"PRI * HTTP/2.0")
    assert all(b"you asked for " + path.encode() in whole(found[IN]) for path in paths)
    assert done.stdout.count(b"you asked for") == 5


def test_through_a_proxy(nginx: Nginx, tmp_path: Path) -> None:
    """TLS behind CONNECT is a flow of its own, behind that of the proxy's client."""
    capture, keys = tmp_path / "in.pcap", tmp_path / "keys.log"
    proxy = socket.create_server(("127.0.0.1", 0))
    port = proxy.getsockname()[1]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = proxy.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1 << 16)
        server = socket.create_connection(("127.0.0.1", nginx.port))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=pump, args=(server, client))
        back.start()
        pump(client, server)
        back.join()
        client.close()
        server.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with tcpdump(capture, port):
        command = [
            *CURL,
            "--cacert",
            str(nginx.certificates.ca),
            "--proxy",
            f"http://127.0.0.1:{port}",
            f"{nginx.url}/say/x",
        ]
        subprocess.run(command, capture_output=True, env=CLEAN_ENVIRONMENT | {"SSLKEYLOGFILE": str(keys)}, check=True)
        thread.join(30)
    proxy.close()
    output, _ = imported(capture, "--keys", keys)
    (outer, around), (inner, found) = streams(output)
    assert whole(around[OUT]).startswith(b"CONNECT localhost:")
    assert (outer.sni, inner.sni) == ("", "localhost")
    assert whole(found[OUT]).startswith(b"GET /say/x HTTP/1.1\r\n")
    output, said = imported(capture)
    ((_, tunnel),) = streams(output)
    assert "left out" not in said
    assert b"\x16\x03\x01" in whole(tunnel[OUT])


@pytest.mark.parametrize("options", [[], ["-s", "400"], ["--time-stamp-precision", "nano"]])
def test_plain_http(tmp_path: Path, options: list[str]) -> None:
    """Plaintext HTTP from a real server is shown by inspect; a capture that was cut says how much is missing."""
    body = random.Random(3).randbytes(200_000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "x.bin").write_bytes(body)
    port = free_port()
    capture = tmp_path / "in.pcap"
    server = subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path / "www", str(port)],
        env=CLEAN_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: accepts("127.0.0.1", port), "the server listens")
        with tcpdump(capture, port, *options):
            command = [
                *CURL,
                "-o",
                "/dev/null",
                f"http://127.0.0.1:{port}/x.bin",
            ]
            subprocess.run(command, check=True, env=CLEAN_ENVIRONMENT)
    finally:
        stop(server)
    output, said = imported(capture)
    done = run_tlscap("inspect", "--json", output)
    (exchange,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (exchange["method"], exchange["status"], exchange["process"]["pid"]) == ("GET", 200, -1)
    assert exchange["complete"] == ("-s" not in options)
    if "-s" in options:
        assert "missing in" in said
    else:
        assert run_tlscap("inspect", output, "--body", str(exchange["id"])).stdout == body
        assert said.startswith("tlscap: imported 1 flow, 200.")


def test_live_pipe(tmp_path: Path) -> None:
    """What tcpdump writes into a pipe comes out of the import while it runs."""
    output = tmp_path / "out.pcapng"
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        port = server.getsockname()[1]
        command = ["tcpdump", "--immediate-mode", "-i", "lo", "-U", "-w", "-", "tcp", "port", str(port)]
        capture = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN_ENVIRONMENT)
        )
        stack.callback(stop, capture)
        assert capture.stderr is not None
        capture.stderr.readline()
        target = stack.enter_context(output.open("wb"))
        importing = stack.enter_context(
            subprocess.Popen(
                [TLSCAP, "import", "-", "-o", "-"], stdin=capture.stdout, stdout=target, stderr=subprocess.DEVNULL
            )
        )
        stack.callback(stop, importing)

        def seen() -> bool:
            client.sendall(
                b"this is seen at once"
            )  # again and again: tcpdump says that it listens a moment before it does
            return b"this is seen at once" in output.read_bytes()

        with socket.create_connection(("127.0.0.1", port)) as client:
            wait_until(seen, "the bytes come through")
        stop(capture)
        assert importing.wait(30) == 0


def test_tshark_runs_without_privileges(certificates: Certificates, tmp_path: Path) -> None:
    """Under sudo tshark runs as the invoking user, else without any capability; it can't gain new ones either way."""
    capture, keys = talk(tmp_path, certificates, b"question", [b"answer"], tls13)
    folder = tmp_path / "bin"
    folder.mkdir()
    fake = folder / "tshark"
    fake.write_text(
        "#!/bin/sh\ngrep -E '^(Uid|Gid|Groups|CapPrm|CapEff|NoNewPrivs)' /proc/self/status | tr '\\n\\t' '; ' >&2\nexit 7\n"
    )
    # The list of protocols is real, so that the second start, the one with the capture, is that of the script above.
    fake.write_text(fake.read_text().replace("#!/bin/sh\n", '#!/bin/sh\n[ "$1" = -G ] && exec /usr/bin/tshark "$@"\n'))
    for path in (tmp_path, folder, fake, *tmp_path.parents):
        if path.is_relative_to(tmp_path.parents[1]):
            path.chmod(0o755)
    environment = CLEAN_ENVIRONMENT | {"PATH": f"{folder}:{CLEAN_ENVIRONMENT['PATH']}"}
    nobody = pwd.getpwnam("nobody")
    for more, uid, gid in (
        ({}, 0, 0),
        ({"SUDO_UID": str(nobody.pw_uid), "SUDO_GID": str(nobody.pw_gid)}, nobody.pw_uid, nobody.pw_gid),
    ):
        done = run_tlscap("import", capture, "--keys", keys, "-o", tmp_path / "out", env=environment | more)
        said = done.stderr.decode()
        assert done.returncode == 1
        assert f"Uid: {uid} {uid} {uid} {uid};Gid: {gid} {gid} {gid} {gid};" in said
        assert "CapPrm: 0000000000000000;CapEff: 0000000000000000;NoNewPrivs: 1" in said
    assert not os.path.exists(tmp_path / "out")
