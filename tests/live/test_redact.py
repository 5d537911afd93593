"""``record --redact``: no secret ever touches a disk, and what is written is as good a recording as any."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import forms

from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    Certificates,
    Nginx,
    Recorder,
    Recording,
    Started,
    all_bodies,
    body,
    check_rebuild,
    digest,
    inspect_json,
    run_tlscap,
    wait_until,
)
from tlscap.replay.recording import load
from tlscap.sidecar import SidecarReader

SECRETS = {
    "bearer": b"tok-en_With.every~char9",
    "cookie": b"c00kie-Value_7f3a",
    "set": b"set-by-server-42x",
    "query": b"AKeyInTheQuery77",
    "form": b"form-secret-plus9",
    "json": b"j5on-Secret-Value",
    "gzip": b"gz1pped-Secret-Value",
    "user": b"us3r-and-passw0rd",
}


def left(data: bytes) -> list[str]:
    """Return which secrets are in bytes, and how they are written."""
    return [f"{name}: {how}" for name, secret in SECRETS.items() for how, form in forms(secret) if form in data]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Repeats what it is told, with secrets of its own; waits when it is asked to."""

    protocol_version = "HTTP/1.1"
    reached, gate = threading.Event(), threading.Event()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.dumps({
            "access_token": SECRETS["json"].decode(), "client_secret": SECRETS["gzip"].decode(), "said": sent.decode(),
            "path": self.path, "cookie": self.headers["Cookie"], "by": self.headers["Authorization"],
        }).encode()  # fmt: skip
        if self.headers["Accept-Encoding"]:
            text = gzip.compress(text)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Set-Cookie", f"sid={SECRETS['set'].decode()}; Path=/")
        self.send_header("Content-Length", str(len(text)))
        if self.headers["Accept-Encoding"]:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if "wait" in self.path:
            self.wfile.flush()
            self.reached.set()
            self.gate.wait(60)
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(certificates: Certificates) -> Iterator[str]:
    """The URL of a server whose answers are full of secrets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.leaf, certificates.key)
    _Handler.reached.clear()
    _Handler.gate.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listener:
        listener.daemon_threads = True
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"https://localhost:{listener.server_address[1]}"
        _Handler.gate.set()
        listener.shutdown()
        thread.join()


def asking(certificates: Certificates, url: str, path: str = "/") -> list[str]:
    """Return a command that says all of the secrets but the server's, once plainly and once compressed."""
    fields = {name: secret.decode() for name, secret in SECRETS.items()}
    common = [
        *CURL, "--cacert", str(certificates.ca), "-o", "/dev/null", "-H", f"Authorization: Bearer {fields['bearer']}",
        "-b", f"sid={fields['cookie']}", "-d", f"user=me&password={fields['form']}",
        f"{url}{path}?api_key={fields['query']}",
    ]  # fmt: skip
    return [*common, "--next", *common[1:], "--compressed", "-H", "Expect:"]


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def check_clean(*folders: Path) -> None:
    """No secret is in any file: as it is, or in the records of a sidecar."""
    for folder in folders:
        for path in files_of(folder):
            data = path.read_bytes()
            assert left(data) == [], path
            if data and path.name.endswith(".tlscap.zst"):
                with path.open("rb") as stream:
                    assert left(b"".join(SidecarReader(stream).frames())) == []


def check_exchanges(recording: Recording, count: int = 2) -> None:
    """The exchanges are whole, in both files, and nothing decoded has a secret in it."""
    for path in (recording.sidecar, recording.pcapng):
        exchanges = inspect_json(path)
        assert [(one["method"], one["status"], one["complete"]) for one in exchanges] == [("POST", 200, True)] * count
        assert left(json.dumps(exchanges).encode()) == []
        for exchange in load(str(path)).exchanges:
            assert exchange.response
            said = json.loads(exchange.response.decoded())
            token = said["access_token"]
            assert token.startswith("scrubbed-")
            assert said["by"].encode() == exchange.request.values(b"authorization")[0]
            assert said["said"].encode() == exchange.request.body
            assert left(exchange.response.decoded() + exchange.request.body) == []


def open_files(pid: int) -> dict[str, set[str]]:
    """Return the regular files that a session and its processes hold open for writing, by process."""
    found: dict[str, set[str]] = {}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{one}/comm").read_text() != "tlscap\n":
                continue
            for fd in Path(f"/proc/{one}/fd").iterdir():
                flags = int(Path(f"/proc/{one}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0], 8)
                target = os.readlink(fd)
                if target.startswith("/") and not target.startswith("/dev/") and flags & os.O_ACCMODE != os.O_RDONLY:
                    found.setdefault(one, set()).add(target)
    return found


def test_planted_secrets(server: str, certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """Fields, cookies, queries, forms, JSON, compressed or not: none is in any file afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    recording = record("--redact", command=asking(certificates, server), environment={"TMPDIR": str(scratch)})
    assert "bytes that the kernel counted were redacted" in recording.stderr
    assert "tlscap: redacted: 2 exchanges; " in recording.stderr
    check_exchanges(recording)
    check_clean(tmp_path)
    assert not list(files_of(scratch))


def test_nothing_is_on_disk_meanwhile(
    server: str, certificates: Certificates, record: Recorder, tmp_path: Path
) -> None:
    """While it records, the recorder's processes hold no file open but their outputs, and these are empty."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**CLEAN_ENVIRONMENT, "TMPDIR": str(scratch)}
    base = record.base()
    with Started(base, ["--redact"], asking(certificates, server, "/wait"), environment) as started:
        started.wait()
        assert _Handler.reached.wait(60)  # the question with its secrets went over the wire
        outputs = {f"{base}{ending}" for ending in (".tlscap.zst", ".pcapng")}
        ours = {f"{base}{ending}" for ending in (".stderr", ".stdout")}
        seen = open_files(started.process.pid)
        held = set().union(*seen.values()) - ours
        assert {one for one in held if not one.startswith("/memfd:")} == outputs
        assert all(Path(one).stat().st_size == 0 for one in outputs)
        assert not list(files_of(scratch))
        check_clean(tmp_path)
        _Handler.gate.set()
        started.process.wait(60)
    recording = started.recording()
    assert recording.status == 0, recording.stderr
    check_rebuild(recording)
    check_exchanges(recording)
    check_clean(tmp_path)


def test_killed_session(server: str, certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """The session is killed: the recorder and the view end by themselves, and write what there is without its secrets."""
    base = record.base()
    command: list[str | Path] = ["sh", "-c", 'trap "" HUP TERM; "$@"; touch "$0"; sleep 60', tmp_path / "asked"]
    with Started(base, ["--redact"], [*command, *asking(certificates, server)], CLEAN_ENVIRONMENT) as started:
        started.wait()
        wait_until((tmp_path / "asked").exists, "curl has ended")
        started.process.send_signal(signal.SIGKILL)
        started.process.wait()
        sidecar, pcapng = (base.with_name(base.name + ending) for ending in (".tlscap.zst", ".pcapng"))
        wait_until(lambda: sidecar.stat().st_size > 0 and _is_whole(pcapng), "both files are written")
    recording = Recording(base, -9, b"", started.stderr)
    wait_until(lambda: len(inspect_json(pcapng)) == 2, "the pcapng is whole")
    check_rebuild(recording)
    check_exchanges(recording)
    check_clean(tmp_path)


def _is_whole(path: Path) -> bool:
    return run_tlscap("inspect", path).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of a given size."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
        return folder

    yield mount
    subprocess.run(["umount", folder], check=True)


def test_full_disk(nginx: Nginx, small_disk: Callable[[str], Path]) -> None:
    """There is no room for the files: one clear line, and exit status 5."""
    nginx.put("noise.bin", os.urandom(3_000_000))
    folder = small_disk("1m")
    curl = [*CURL, "--cacert", str(nginx.certificates.ca), "-o", "/dev/null", f"{nginx.url}/noise.bin"]
    done = run_tlscap("record", "--redact", "-o", folder / "x", "--", *curl)
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.decode().splitlines() if "No space left" in line]
    assert line.startswith(f"tlscap: {folder}/x.")


def test_rules_from_a_file(server: str, certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """``--redact-rules`` alone is enough: what it names is replaced, and what it keeps stays."""
    rules = tmp_path / "rules.toml"
    rules.write_text('names = ["user"]\nkeep = ["password"]\n')
    recording = record("--redact-rules", rules, command=asking(certificates, server))
    sent = body(recording.sidecar, 1, "--request-body")
    assert sent.startswith(b"user=scrubbed-")
    assert sent.endswith(b"&password=" + SECRETS["form"])
    rules.unlink()
    assert {one.split(":")[0] for path in files_of(tmp_path) for one in left(path.read_bytes())} <= {"form"}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--redact", "--rotate", "1M"], 2, "--redact needs the whole recording before it writes"),
        (["--redact", "-w", "-"], 2, "--redact needs the whole recording before it writes"),
        (["--redact-rules", "absent.toml"], 5, "absent.toml"),
        (["--redact-rules", "bad.toml"], 2, "bad.toml"),
    ],
)
def test_refusals(options: list[str], status: int, said: str, tmp_path: Path) -> None:
    """What can't be is said at once, in one line, before anything runs."""
    (tmp_path / "bad.toml").write_text("headers = 1\n")
    output: list[str | Path] = [] if "-w" in options else ["-o", tmp_path / "x"]
    done = run_tlscap("record", *options, *output, "--", "touch", tmp_path / "ran", cwd=tmp_path)
    assert done.returncode == status, done.stderr
    first, *rest = done.stderr.decode().splitlines()
    assert said in first
    assert all(line.startswith("  ") for line in rest), rest  # a hint
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


def test_no_http_is_left_out(certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """A connection that speaks something else is in neither file, and the summary says so."""
    if not shutil.which("openssl", path=CLEAN_ENVIRONMENT["PATH"]):
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.leaf, certificates.key)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as conn:
                conn.recv(100)
                conn.sendall(b"+OK " + SECRETS["user"] + b"\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"localhost:{listener.getsockname()[1]}"
        script = (
            f"(printf 'PASS {SECRETS['user'].decode()}\\r\\n'; sleep 1) | openssl s_client -quiet -connect {address}"
        )
        recording = record("--redact", command=["sh", "-c", f"{script} >/dev/null 2>&1; true"])
        thread.join()
    assert "left out: 1 connection without HTTP" in recording.stderr
    assert inspect_json(recording.sidecar) == []
    check_clean(tmp_path)


def test_large_bodies(nginx: Nginx, record: Recorder) -> None:
    """Noise without secrets stays byte for byte; what is too large to look into is withheld, and said."""
    small = nginx.put("small.bin", os.urandom(20_000_000))
    large = nginx.www / "large.bin"
    with large.open("wb") as file:
        for _ in range(10):
            file.write(os.urandom(7_000_000))
    curl = [*CURL, "--cacert", str(nginx.certificates.ca), "--limit-rate", "60M", "-o", "/dev/null", "-o", "/dev/null"]
    recording = record("--redact", command=[*curl, f"{nginx.url}/small.bin", f"{nginx.url}/large.bin"])
    assert "redacted: withheld: 1 bodies too large to look into: more than 64 MiB" in recording.stderr
    first, second = inspect_json(recording.sidecar)
    assert (first["complete"], second["complete"]) == (True, False)
    assert digest(all_bodies(recording.sidecar, holes=True)[1, "response"]) == digest(small)
    large.unlink()
