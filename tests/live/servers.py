"""Servers and recordings for live tests: Debian's nginx and openssl, and ``tlscap record`` as users run it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tlscap.capture import open_capture
from tlscap.http.events import BodyGap, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder

TLSCAP = str(Path(sys.executable).parent / "tlscap")
PATIENCE_S = 30.0
"""How long anything that takes milliseconds is waited for, on a machine that has other things to do."""

CLEAN_ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Without the settings of whoever runs the tests: proxies, certificate stores, ~/.curlrc, profiles of Wireshark."""


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE_S) -> None:
    """Poll until something holds; fails the test when it never does."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(0.002)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return False
        return True


def accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def digest(data: bytes | Path) -> str:
    """SHA-256 of bytes or of a file."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(data).hexdigest()


def stop(process: subprocess.Popen[Any], number: int = signal.SIGTERM) -> None:
    """End a process that a test started, whatever it does."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- Certificates ---

OPENSSL_CONFIG = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:false
subjectAltName = DNS:localhost, IP:127.0.0.1
authorityKeyIdentifier = keyid
"""


@dataclasses.dataclass(frozen=True)
class Certificates:
    """An authority, and a certificate for localhost."""

    ca: Path
    leaf: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    config = folder / "openssl.cnf"
    config.write_text(OPENSSL_CONFIG)
    made = Certificates(folder / "ca.pem", folder / "leaf.pem", folder / "leaf.key")
    base = f"openssl req -x509 -config {config} -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    ca_key = folder / "ca.key"
    for command in (
        f"{base} -extensions authority -subj /CN=tests -keyout {ca_key} -out {made.ca}",
        f"{base} -extensions leaf -subj /CN=localhost -CA {made.ca} -CAkey {ca_key} -keyout {made.key} -out {made.leaf}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    for path in folder.iterdir():
        path.chmod(0o644)  # tests run clients as other users
    return made


# --- nginx ---

NGINX_CONFIG = """
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes {workers};
events {{ worker_connections 1024; }}
http {{
    log_format each '{{"remote":"$remote_addr:$remote_port","connection":$connection,"request":"$request",'
                    '"status":$status,"sent":$bytes_sent,"body":$body_bytes_sent,"length":$request_length}}';
    access_log {folder}/access.log each;
    client_max_body_size 0;
    client_body_temp_path {folder}/temp/body;
    proxy_temp_path {folder}/temp/proxy;
    fastcgi_temp_path {folder}/temp/fastcgi;
    uwsgi_temp_path {folder}/temp/uwsgi;
    scgi_temp_path {folder}/temp/scgi;
    keepalive_requests 1000000;
    types {{ text/html html; text/plain txt; application/octet-stream bin; }}
    ssl_certificate {certificates.leaf};
    ssl_certificate_key {certificates.key};
    root {folder}/www;
    gzip_min_length 100;
    server {{
        listen 127.0.0.1:{port} ssl;
        {listen443}
        location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
        location /say/ {{ default_type text/plain; return 200 "you asked for $request_uri, number $arg_number\\n"; }}
        location /gzip/ {{ alias {folder}/www/; gzip on; }}
        location /chunked/ {{ alias {folder}/www/; gzip on; gzip_min_length 1; gzip_types *; }}
    }}
    server {{
        listen 127.0.0.1:{port_h2} ssl http2;
        location /say/ {{ default_type text/plain; return 200 "you asked for $request_uri\\n"; }}
    }}
}}
"""


class Nginx:
    """Debian's nginx with its own configuration, in its own folder, on free ports of the loopback interface."""

    def __init__(self, folder: Path, certificates: Certificates, *, workers: int = 1) -> None:
        self.folder = folder
        self.certificates = certificates
        self.www = folder / "www"
        self.www.mkdir()
        (folder / "temp").mkdir()
        self.port, self.port_h2 = free_port(), free_port()
        self.address443 = next((a for a in (f"127.0.0.{n}" for n in range(1, 255)) if is_free(a, 443)), "")
        """A loopback address whose port 443 is this server's too, or empty when there is none."""
        config = folder / "nginx.conf"
        config.write_text(
            NGINX_CONFIG.format(
                folder=folder,
                certificates=certificates,
                workers=workers,
                port=self.port,
                port_h2=self.port_h2,
                listen443=f"listen {self.address443}:443 ssl;" if self.address443 else "",
            )
        )
        log = str(folder / "error.log")
        self.process = subprocess.Popen(
            ["nginx", "-e", log, "-c", str(config)], env=CLEAN_ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: self.process.poll() is not None or accepts("127.0.0.1", self.port), "nginx listens")
        except AssertionError:
            self.close()
            raise
        if self.process.poll() is not None:
            raise AssertionError("nginx did not start: " + (folder / "error.log").read_text())

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def url_h2(self) -> str:
        return f"https://localhost:{self.port_h2}"

    @property
    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def put(self, name: str, content: bytes) -> Path:
        path = self.www / name
        path.write_bytes(content)
        return path

    def log(self) -> list[dict[str, Any]]:
        """The access log.  nginx writes a line when the response is sent, which may be after the client got it."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def close(self) -> None:
        stop(self.process)


@contextlib.contextmanager
def s_server(folder: Path, certificates: Certificates, *options: str) -> Iterator[int]:
    """``openssl s_server`` that serves the files of a folder; gives its port."""
    port = free_port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificates.leaf, "-key", certificates.key,
         "-WWW", "-http_server_binmode", "-quiet", *options],
        cwd=folder, env=CLEAN_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: accepts("127.0.0.1", port), "s_server listens")
        yield port
    finally:
        stop(process)


# --- Recordings ---


@dataclasses.dataclass
class Recording:
    """What a run of ``tlscap record`` left."""

    base: Path
    status: int
    stdout: bytes
    stderr: str
    peaks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The largest resident set of each of tlscap's processes, in bytes, by pid."""

    @property
    def pcapng(self) -> Path:
        return self.base.with_name(self.base.name + ".pcapng")

    @property
    def sidecar(self) -> Path:
        return self.base.with_name(self.base.name + ".tlscap.zst")

    @property
    def complete(self) -> bool:
        return bool(re.search(r"^tlscap: complete: all [1-9][\d,]* bytes", self.stderr, re.MULTILINE))

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


def run_tlscap(*arguments: str | Path | int, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run tlscap; it never may show a traceback."""
    settings: dict[str, Any] = {"capture_output": True, "env": CLEAN_ENVIRONMENT, "timeout": 120} | options
    done = subprocess.run([TLSCAP, *map(str, arguments)], **settings)
    for output in (done.stderr, done.stdout):
        assert b"Traceback" not in (output or b""), output.decode(errors="replace")
    assert b"internal error" not in (done.stderr or b""), done.stderr.decode(errors="replace")
    return done


class MemoryWatch(threading.Thread):
    """Samples the resident sets of a tlscap process and of its children that are tlscap, too."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self._pid = pid
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.02):
            for pid in (str(self._pid), *self._children()):
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    if lines[0] == "Name:\ttlscap":  # the command is a child, too, once it runs
                        self.peaks[pid] = 1024 * next(int(line.split()[1]) for line in lines if line[:6] == "VmHWM:")

    def _children(self) -> list[str]:
        try:
            return Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        except OSError:
            return []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


class Recorder:
    """Runs ``tlscap record`` in a folder of its own.  Every recording is rebuilt and compared before it is handed out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def base(self) -> Path:
        return self.folder / f"recording-{next(self._numbers)}"

    def __call__(
        self,
        *options: str | Path | int,
        command: Sequence[str | Path | int],
        status: int = 0,
        environment: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> Recording:
        """Record a command to its end; checks the exit status, and that no TLS bytes are missing from the pcapng."""
        base = self.base()
        with (
            Started(base, options, command, {**CLEAN_ENVIRONMENT, **(environment or {})}) as started,
            MemoryWatch(started.process.pid) as watch,
        ):
            started.process.wait(timeout)
        recording = started.recording(watch.peaks)
        assert recording.status == status, recording.stderr
        check_rebuild(recording)
        return recording

    @contextlib.contextmanager
    def running(
        self, *options: str | Path | int, command: Sequence[str | Path | int] = (), stop_with: int = signal.SIGINT
    ) -> Iterator[Started]:
        """Record while the body of the ``with`` statement runs, then stop; ``.recording()`` has the result."""
        with Started(self.base(), options, command, CLEAN_ENVIRONMENT) as started:
            started.wait()
            yield started
            if started.process.poll() is None:
                started.process.send_signal(stop_with)
            started.process.wait(PATIENCE_S)
        check_rebuild(started.recording())


class Started:
    """A running ``tlscap record``."""

    def __init__(
        self,
        base: Path,
        options: Sequence[str | Path | int],
        command: Sequence[str | Path | int],
        environment: Mapping[str, str],
    ) -> None:
        self.base = base
        self._stderr = base.with_name(base.name + ".stderr")
        self._stdout = base.with_name(base.name + ".stdout")
        arguments = [TLSCAP, "record", "-o", base, *options, *(["--", *command] if command else [])]
        with self._stderr.open("wb") as stderr, self._stdout.open("wb") as stdout:
            self.process = subprocess.Popen(
                list(map(str, arguments)), env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def wait(self) -> None:
        """Until the probes are in place."""
        wait_until(
            lambda: "tlscap: recording (" in self.stderr or self.process.poll() is not None, "the recording begins"
        )
        assert self.process.poll() is None, self.stderr

    def recording(self, peaks: Mapping[str, int] | None = None) -> Recording:
        status = self.process.poll()
        assert status is not None
        assert "Traceback" not in self.stderr, self.stderr
        assert "internal error" not in self.stderr, self.stderr
        return Recording(self.base, status, self._stdout.read_bytes(), self.stderr, peaks or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(self.process, signal.SIGKILL)


def check_rebuild(recording: Recording) -> None:
    """The sidecar gives the recorded pcapng again, byte for byte."""
    if not (recording.sidecar.exists() and recording.pcapng.exists()):
        return
    again = recording.base.with_name(recording.base.name + ".rebuilt")
    done = run_tlscap("rebuild", recording.sidecar, "-o", again)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    compared = subprocess.run(["cmp", again, recording.pcapng], capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    again.unlink()


# --- Looking into recordings ---


def inspect_json(path: Path) -> list[dict[str, Any]]:
    """The exchanges of a recording, by ``tlscap inspect --json``, in the order of their ids."""
    done = run_tlscap("inspect", "--json", path)
    assert done.returncode == 0, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda exchange: int(exchange["id"]))


def body(path: Path, number: int, *options: str) -> bytes:
    """A body, by ``tlscap inspect --body``."""
    done = run_tlscap("inspect", "--body", number, *options, path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def body_digest(path: Path, number: int, *options: str) -> tuple[str, int]:
    """SHA-256 and size of a body that may be large."""
    with subprocess.Popen(
        [TLSCAP, "inspect", "--body", str(number), *options, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=CLEAN_ENVIRONMENT,
    ) as process:
        assert process.stdout
        assert process.stderr
        result, size = hashlib.sha256(), 0
        while chunk := process.stdout.read(1 << 20):
            result.update(chunk)
            size += len(chunk)
        complaints = process.stderr.read()
    assert process.returncode == 0, complaints
    return result.hexdigest(), size


class _Bodies:
    def __init__(self, *, holes: bool) -> None:
        self._holes = holes
        self.parts: dict[tuple[int, Side], list[bytes]] = {}

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        if isinstance(piece, bytes):
            self.parts.setdefault((exchange.id, side), []).append(piece)
        else:
            assert self._holes, f"exchange {exchange.id} has a hole"


def all_bodies(path: Path, *, holes: bool = False) -> dict[tuple[int, str], bytes]:
    """Every body of a recording, by the exchange's id and "request" or "response": one pass for many."""
    sink = _Bodies(holes=holes)
    builder = ExchangeBuilder(sink)
    with open_capture(str(path)) as capture:
        last = 0
        for item in capture.items():
            builder.feed(item)
            last = item.time_ns
        builder.finish(last)
    return {(number, side.value): b"".join(parts) for (number, side), parts in sink.parts.items()}


def tshark(folder: Path, *arguments: str | Path, status: int = 0) -> str:
    """Run Debian's tshark without anybody's preferences."""
    home = folder / "home-of-tshark"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        ["tshark", *map(str, arguments)],
        env={**CLEAN_ENVIRONMENT, "HOME": str(home)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout


def complaints(folder: Path, file: Path, *options: str) -> list[str]:
    """Sections of tshark's expert information that are worse than a note; contents are taken for what they are."""
    # gRPC's messages are noise in tests, no Protocol Buffers.
    output = tshark(folder, "-r", file, *options, "--disable-protocol", "protobuf", "-q", "-z", "expert")
    return re.findall(r"^(?:Errors|Warns).*(?:\n.+)*", output, re.MULTILINE)


def expect_no_complaints(folder: Path, sidecar: Path) -> None:
    """tshark has no warning about a recording in either framing.

    It is told to look no deeper than TLS and TCP: in noise its heuristics would find anything.
    """
    for framing, layer in (("tls-null", "tls.port==0-65535,data"), ("plain", "tcp.port==0-65535,data")):
        file = folder / f"{framing}.pcapng"
        done = run_tlscap("rebuild", sidecar, "-o", file, "--framing", framing, "--force")
        assert done.returncode == 0, done.stderr
        options = ("-d", layer, "-d", "tcp.port==0-65535,tls") if framing == "tls-null" else ("-d", layer)
        assert complaints(folder, file, *options) == [], (sidecar.name, framing)


CURL = ("curl", "--disable", "--silent", "--show-error", "--fail-with-body")
"""Without ~/.curlrc."""

TOOLS_MISSING = [
    name for name in ("nginx", "openssl", "curl", "tshark") if not shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])
]
