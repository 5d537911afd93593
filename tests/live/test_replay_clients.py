"""`tlscap replay serve` for programs that know nothing of it: what they are told is what the real server had told them.

Each client is recorded with a real server, says what it got (status, reason, fields, body), and then asks the replay the same.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.front import PEERS, Front, peer
from live.go_programs import go_http_client
from live.servers import CLEAN_ENVIRONMENT, CURL, TLSCAP, Certificates, Recorder, stop, wait_until
from live.subjects import HERE, Unfetched, node_program

pytestmark = pytest.mark.live

Command = list[str | Path | int]

ASKS = [
    ["GET", "/noise/1000", ""],
    ["GET", "/noise/300000", ""],
    ["GET", "/text/20000", ""],
    ["GET", "/chunked/5000", ""],
    ["GET", "/coded/gzip/70000", ""],
    ["GET", "/events/5", ""],
    ["GET", "/empty", ""],
    ["GET", "/say/hello?a=1&b=2", ""],
    ["GET", "/redirect", ""],
    ["GET", "/no-such-thing", ""],
    ["POST", "/take/1", "x=1&y=größer"],
    ["POST", "/echo", json.dumps({"item": "tea", "count": 2})],
    ["HEAD", "/noise/1000", ""],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def front(folder: Path, certificates: Certificates) -> Iterator[Front]:
    with peer(folder, "http") as backend, peer(folder, "grpc-server") as grpc, peer(folder, "ws-server") as chat:
        server = Front(folder, certificates, backend, grpc, chat)
        yield server
        server.close()


class Served:
    """A running ``tlscap replay serve``."""

    def __init__(self, folder: Path, capture: Path, *options: str) -> None:
        self.ca = folder / "replay-ca.pem"
        self._out, self._errors = folder / "serve.out", folder / "serve.err"
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            command = [TLSCAP, "replay", "serve", capture, "--ca-file", self.ca, *options]
            self.process = subprocess.Popen(list(map(str, command)), env=CLEAN_ENVIRONMENT, stdout=out, stderr=errors)
        wait_until(lambda: self._out.read_bytes().count(b"\n") > 0 or self.process.poll() is not None, "it serves")
        assert self.process.poll() is None, self.errors
        found = re.search(r"https?://[^/\s:]+:(\d+)", self._out.read_text())
        assert found
        self.port = int(found[1])

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def end(self) -> int:
        """Stop it; returns its exit status."""
        stop(self.process)
        return self.process.returncode


@contextlib.contextmanager
def served(folder: Path, capture: Path, *options: str) -> Iterator[Served]:
    server = Served(folder, capture, *options)
    try:
        yield server
    finally:
        stop(server.process)


def run(*command: str | Path | int, stdin: str = "", **environment: str) -> list[object]:
    """What a client says, line by line."""
    done = subprocess.run(
        list(map(str, command)), env=CLEAN_ENVIRONMENT | environment, input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def python_client(name: str) -> Command:
    return [sys.executable, HERE / "http_clients.py", name]


@pytest.mark.parametrize("name", ["requests", "httpx", "httpx2", "aiohttp", "fetch", "go"])
def test_http_clients(record: Recorder, front: Front, certificates: Certificates, tmp_path: Path, name: str) -> None:
    def command(port: int, ca: Path) -> Command:
        url = f"https://localhost:{port}"
        match name:
            case "fetch":
                return ["env", f"NODE_EXTRA_CA_CERTS={ca}", node_program(), HERE / "fetch.mjs", url, asks]
            case "go":
                program = go_http_client()
                if not program.path:
                    raise Unfetched(program.missing)
                return [program.path, url, ca, asks]
        return [*python_client(name), url, ca, asks]

    asks = json.dumps(ASKS)
    port = front.port_h2 if name in ("httpx2", "go") else front.port
    recording = record(command=command(port, certificates.ca))
    assert recording.complete, recording.stderr
    told = [json.loads(line) for line in recording.stdout.splitlines()]
    assert len(told) == len(ASKS)
    with served(tmp_path, recording.sidecar) as server:
        assert run(*command(server.port, server.ca)) == told
        assert server.end() == 0, server.errors


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl(record: Recorder, front: Front, certificates: Certificates, tmp_path: Path, version: str) -> None:
    """The head as curl got it, byte for byte, and the body without decoding."""

    def command(port: int, ca: Path, folder: Path) -> Command:
        words: Command = [*CURL, version, "--cacert", ca, "--raw"]
        for number, (method, path, body) in enumerate(ASKS):
            words += [
                "--next",
                version,
                "--cacert",
                ca,
                "-sS",
                "-D",
                folder / f"{number}.head",
                "-o",
                folder / f"{number}.body",
            ]
            words += ["--head"] if method == "HEAD" else ["-X", method]
            words += [*(["--data-binary", body] if body else []), f"https://localhost:{port}{path}"]
        return words[: len(CURL)] + words[len(CURL) + 5 :]

    real, again = tmp_path / "real", tmp_path / "again"
    real.mkdir()
    again.mkdir()
    port = front.port_h2 if version == "--http2" else front.port
    recording = record(command=command(port, certificates.ca, real))
    assert recording.complete, recording.stderr
    with served(tmp_path, recording.sidecar) as server:
        subprocess.run(list(map(str, command(server.port, server.ca, again))), env=CLEAN_ENVIRONMENT, check=True)
        assert server.end() == 0, server.errors
    for path in sorted(real.iterdir()):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_grpc(record: Recorder, front: Front, certificates: Certificates, tmp_path: Path) -> None:
    """grpcio: unary, streaming both ways, each waiting for the other, compressed, an error with its details."""

    def command(port: int, ca: Path) -> Command:
        return [sys.executable, PEERS, "grpc-client", "--port", port, "--ca", ca]

    # It waits for a line, by when its library is hooked.
    go: Command = ["sh", "-c", '(sleep 2; echo) | "$@"', "sh", *command(front.port_h2, certificates.ca)]
    recording = record(command=go)
    assert recording.complete, recording.stderr
    told = [json.loads(line) for line in recording.stdout.splitlines()]
    assert len(told) == 14
    with served(tmp_path, recording.sidecar) as server:
        assert run(*command(server.port, server.ca), stdin="\n") == told
        assert server.end() == 0, server.errors


def test_websockets(record: Recorder, front: Front, certificates: Certificates, tmp_path: Path) -> None:
    """More than a hundred messages, text and binary, in fragments, pings of both, and the close."""

    def command(port: int, ca: Path) -> Command:
        return [sys.executable, PEERS, "ws-client", "--url", f"wss://localhost:{port}/chat", "--ca", ca]

    recording = record(command=command(front.port, certificates.ca))
    assert recording.complete, recording.stderr
    told = [json.loads(line) for line in recording.stdout.splitlines()]
    with served(tmp_path, recording.sidecar) as server:
        assert run(*command(server.port, server.ca)) == told
        assert server.end() == 0, server.errors
