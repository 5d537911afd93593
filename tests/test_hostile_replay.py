"""Hostile and careless input to replay, as a user meets it: a clear error, never a traceback, a hang or memory without end."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner
from serving import PATIENCE_S

from tlscap.cli.replay_packets import packets
from tlscap.cli.replay_serve import serve
from tlscap.errors import CorruptError, FormatError, OutputError, TlscapError
from tlscap.export.mitmproxy import dump
from tlscap.importing import mitmproxy, vcr
from tlscap.importing.mitmproxy import FlowFile
from tlscap.importing.vcr import CassetteFile
from tlscap.model import Data
from tlscap.replay.recording import load
from tlscap.replay.redirect import Redirection
from tlscap.replay.serve.server import ReplayServer

CASSETTE = """interactions:
- {before}
  request: {{method: GET, uri: 'http://example.org/', headers: {headers}, body: {body}}}
  response: {{status: {{code: 200, message: OK}}, headers: {{date: ['{date}']}}, body: {{string: hello}}}}
"""
NOW = "Sat, 21 Nov 2026 05:00:00 GMT"


def cassette(before: str = "x: y", headers: str = "{}", body: str = "''", date: str = NOW) -> list[Data]:
    text = CASSETTE.format(before=before, headers=headers, body=body, date=date)
    return [item for item in CassetteFile(io.BytesIO(text.encode())).items() if isinstance(item, Data)]


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999999999999 23:59:59 GMT",
        "Thu, 31 Dec 2020 23:59:59 +99999999999999999999",
        "Thu, 31 Dec 2020 99999999999999999999:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ],
)
def test_dates_beyond_all_bounds(date: str) -> None:
    times = [item.time_ns for item in cassette(date=date)]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 1 << 63


def test_aliases_deeper_than_the_file() -> None:
    """Each anchor is shallow, their chain is not."""
    lines = ["junk:", "  - &a0 x"]
    lines += [f"  - &a{n} {'{string: ' * 50}*a{n - 1}{'}' * 50}" for n in range(1, 40)]
    with pytest.raises(CorruptError, match="nested too deeply"):
        cassette("\n".join(lines), body="*a39")


def test_aliases_that_become_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcr, "MOST_FIELDS", 1 << 16)
    monkeypatch.setattr(vcr, "MOST_PENDING", 1 << 16)
    often = ",".join(["*x"] * 100)
    text = f"junk: &x {'A' * 1000}"
    with pytest.raises(CorruptError, match="headers take more"):
        cassette(text, headers=f"{{a: [{often}]}}")
    with pytest.raises(CorruptError, match="body is longer"):
        cassette(text, body=f"[{often}]")


def test_values_that_take_more_memory_than_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcr, "MOST_WEIGHT", 1 << 16)
    with pytest.raises(CorruptError, match="one interaction takes more"):
        cassette(f"junk: [{'[],' * 2000}]")
    keep = "\n".join(f"k{n}: &k{n} {{x: {'A' * 1000}}}" for n in range(100))
    with pytest.raises(CorruptError, match="what has anchors takes more"):
        list(CassetteFile(io.BytesIO(f"{keep}\ninteractions: []\n".encode())).items())
    monkeypatch.setattr(mitmproxy, "MOST_VALUES", 1000)
    with pytest.raises(CorruptError, match="more than 1,000 values"):
        list(FlowFile(io.BytesIO(dump({"version": 21, "junk": [[]] * 1000}))).items())


def flow(number: int = 0, moment: float = 1.0) -> bytes:
    times = {"timestamp_start": moment, "timestamp_end": moment}
    head = {"http_version": b"HTTP/1.1", "headers": [], "content": b"", **times}
    request = {"method": b"GET", "host": "example.org", "port": 80, "scheme": b"http", "path": b"/", **head}
    response = {"status_code": 200, "reason": b"OK", **head}
    ends = {"client_conn": {"id": f"c{number}"}, "server_conn": {"id": "s"}}
    return dump({"type": "http", "version": 21, "request": request, "response": response, **ends})


def test_times_of_flows_beyond_all_bounds() -> None:
    items = list(FlowFile(io.BytesIO(flow(moment=1e308))).items())
    assert all(item.time_ns < 1 << 63 for item in items)


def test_connections_of_flows_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitmproxy, "_MOST_OPEN", 3)
    file = FlowFile(io.BytesIO(b"".join(flow(number) for number in range(10))))
    most = max(len(file._open) for _ in file.items())
    assert most <= 4


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(b"hello"))])


def test_a_file_that_may_not_be_read(capture: Path) -> None:
    """Status 5, as the README says, not that of a wrong option; root may read everything, so another user tries."""
    if os.geteuid() == 0:
        capture = Path(shutil.copy(capture, f"/tmp/hostile-{os.getpid()}.tlscap.zst"))  # where another user may go
    capture.chmod(0)
    code = "import os, sys; os.geteuid() or os.setuid(65534); from tlscap.cli.main import main; main()"
    try:
        for words in (["serve"], ["send", "--to", "http://127.0.0.1:1"], ["packets", "--iface", "lo"]):
            command = [sys.executable, "-c", code, "replay", words[0], str(capture), *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
            assert done.returncode == 5, done.stderr
            assert "ermission denied" in done.stderr
    finally:
        capture.unlink()


def test_nothing_to_serve_is_an_error(capture: Path) -> None:
    for arguments, hint in (([str(capture), "path:/other"], "filter"), ([str(foreign(capture))], "no HTTP")):
        done = CliRunner().invoke(serve, arguments)
        assert isinstance(done.exception, TlscapError)
        assert "nothing to serve" in str(done.exception)
        assert hint in done.exception.hint


def foreign(capture: Path) -> Path:
    return write_capture(capture.with_name("foreign.tlscap.zst"), [(b"\0\1\2 no HTTP", b"\3\4\5")])


def test_hints_name_options_that_exist(capture: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    done = CliRunner().invoke(serve, [str(capture), "--ca-file", str(other)])
    assert isinstance(done.exception, OutputError)
    assert done.exception.hint == "give another name with --ca-file"
    assert other.read_text() == "mine"
    with pytest.raises(TlscapError, match="more than 1,000 bytes of memory"):
        load(str(capture), memory=1000)
    empty = tmp_path / "empty.zst"
    empty.touch()
    done = CliRunner().invoke(packets, [str(empty), "--iface", "lo"])
    assert isinstance(done.exception, FormatError)
    assert "empty.zst" in str(done.exception)


def test_urlopen_goes_to_each_replay(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``urlopen`` keeps the proxies of its first use: those of a replay that is over would be of no use to the next."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    before = urllib.request.build_opener()  # as an earlier urlopen made it
    monkeypatch.setattr(urllib.request, "_opener", before)
    for _ in range(2):
        with (
            ReplayServer(load(str(capture))) as server,
            Redirection(server.port, str(tmp_path / "none.pem"), []),
            urllib.request.urlopen("http://example.org/", timeout=PATIENCE_S) as answered,
        ):
            assert answered.read() == b"hello"
    assert urllib.request._opener is before  # type: ignore[attr-defined]
    own = urllib.request.build_opener()
    own.addheaders = [("X-Own", "1")]
    urllib.request.install_opener(own)
    with Redirection(1, str(tmp_path / "none.pem"), []):
        assert urllib.request._opener is own  # type: ignore[attr-defined]


SHARED = """
import urllib.request
import pytest

pytestmark = pytest.mark.tlscap("shared.tlscap.zst", hosts=["localhost:{port}"])

@pytest.mark.parametrize("path", ["/a", "/b"])
def test_it(path):
    assert urllib.request.urlopen("http://localhost:{port}" + path, timeout=60).read() == path.encode()
"""


class Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", "-c", os.devnull]
    command += ["-o", "tlscap_recorder=forward", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False
    )


@pytest.mark.parametrize("mode", ["once", "all"])
def test_tests_that_share_a_capture(tmp_path: Path, mode: str) -> None:
    """What one test recorded is not lost to the next; all of them pass offline."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    (tmp_path / "test_shared.py").write_text(SHARED.format(port=server.server_port))
    for _ in range(2):
        done = run_pytest(tmp_path, "test_shared.py", f"--tlscap-record={mode}")
        assert "2 passed" in done.stdout, done.stdout + done.stderr
    server.shutdown()
    server.server_close()
    assert len(load(str(tmp_path / "shared.tlscap.zst")).exchanges) == 2
    done = run_pytest(tmp_path, "test_shared.py")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("5", "takes the name of a file, not 5"),
        ("'x.zst', timing=2", "timing is a text, not 2"),
        ("'x.zst', hosts=5", "hosts is a list of texts, not 5"),
        ("'x.zst', hosts=['a:99999']", "'a:99999' in hosts has no port"),
        ("'x.zst', upstream='there', record='once'", "upstream='there' is no URL"),
        ("'cut.zst'", "nothing is left of a damaged capture"),
    ],
)
def test_wrong_markers_are_told_without_a_trace(capture: Path, marker: str, told: str) -> None:
    capture.with_name("x.zst").write_bytes(capture.read_bytes())
    capture.with_name("cut.zst").write_bytes(capture.read_bytes()[:100])
    (capture.parent / "test_x.py").write_text(f"import pytest\n@pytest.mark.tlscap({marker})\ndef test_x(): pass\n")
    done = run_pytest(capture.parent, "test_x.py")
    assert done.returncode == 1
    assert told in done.stdout
    assert "1 error" in done.stdout
    for trace in ("pytest_plugin.py", "During handling", "Traceback"):
        assert trace not in done.stdout
