"""``tlscap replay serve`` as a program: its output, its signals, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner
from serving import PATIENCE_S

from tlscap.cli.replay_serve import DIFFERENT, Listen, serve
from tlscap.errors import OutputError, TlscapError, UsageError

CAPTURES = Path(__file__).parent / "fixtures" / "captures"


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "x.tlscap.zst", [(get("/1"), answer(b"one")), (get("/2"), answer(b"two"))])


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    code = "from tlscap.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "replay", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fetch(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE_S) as answered:
            return answered.status, answered.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_matched(capture: Path, number: signal.Signals) -> None:
    with running(str(capture), "path:/1") as process:
        https, url, trust = line(process), line(process), line(process)
        assert https == url.replace("http:", "https:")
        authority = trust.removeprefix("trust ").partition(":")[0]
        assert Path(authority).read_text().startswith("-----BEGIN CERTIFICATE-----")
        assert fetch(url + "/1") == (200, "one")
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out, err) == (0, "", "1 request served, 0 unmatched, 0 exchanges never asked for\n")
        assert not Path(authority).exists()


def test_unmatched_and_unused(capture: Path) -> None:
    with running(str(capture), "--plain", "--listen", "localhost:0") as process:
        url = line(process)
        assert fetch(url + "/3")[0] == 501
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (DIFFERENT, "")
        assert "No recorded request matches: GET http://localhost:" in err
        assert "    path: is /3, recorded /1" in err
        assert "never asked for: exchange 2, GET https://example.org/2\n" in err
        assert err.endswith("0 requests served, 1 unmatched, 2 exchanges never asked for\n")


def test_json(capture: Path, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    with running(str(capture), "--json", "--strict-unused", "--ca-file", str(authority)) as process:
        listening = json.loads(line(process))
        assert listening["event"] == "listening"
        assert listening["ca_file"] == str(authority)
        assert listening["http_url"] == f"http://127.0.0.1:{listening['port']}"
        fetch(listening["http_url"] + "/2")
        assert json.loads(line(process)) == {"event": "served", "exchange": 2, "request": "GET https://example.org/2"}
        fetch(listening["http_url"] + "/2?x=1")
        unmatched = json.loads(line(process))
        assert unmatched["differences"] == ['query parameter x: is "1", not in the recorded one']
        process.send_signal(signal.SIGINT)
        stopped = json.loads(process.communicate(timeout=PATIENCE_S)[0])
        unused = [{"exchange": 1, "request": "GET https://example.org/1"}]
        assert stopped == {"event": "stopped", "served": 1, "unmatched": 1, "unused": unused}
        assert process.returncode == DIFFERENT
    assert authority.exists()


def test_only_unused(capture: Path) -> None:
    with running(str(capture), "--strict-unused", "--tls") as process:
        assert line(process).startswith("https://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == DIFFERENT


def test_incomplete(capture: Path) -> None:
    done = CliRunner().invoke(serve, [str(CAPTURES / "holes.tlscap.zst")])
    assert isinstance(done.exception, TlscapError)
    assert "bytes are missing in exchange 1 (GET https://example.org/1)" in str(done.exception)
    assert "--allow-incomplete" in done.exception.hint
    with running(str(CAPTURES / "lost-step.tlscap.zst"), "--allow-incomplete", "--plain") as process:
        url = line(process)
        assert fetch(url + "/3")[0] == 200
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=PATIENCE_S)[1]
        assert err.startswith("warning: exchange 2 (GET https://example.org/2) is left out: it has no response\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--tls", "--plain"], UsageError),
        (["--http1", "--http2"], UsageError),
        (["--match", "nonsense"], UsageError),
        (["--key", "x"], UsageError),
        (["--cert", "/nowhere/x.pem"], OutputError),
        (["--ca-file", "/nowhere/x.pem"], OutputError),
        (["--memory", "1"], TlscapError),
    ],
)
def test_refused(capture: Path, arguments: list[str], error: type[Exception]) -> None:
    assert isinstance(CliRunner().invoke(serve, [str(capture), *arguments]).exception, error)


def test_a_file_that_is_no_certificate_is_kept(capture: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    done = CliRunner().invoke(serve, [str(capture), "--ca-file", str(precious)])
    assert isinstance(done.exception, OutputError)
    assert precious.read_text() == "precious"
    assert os.listdir(tmp_path).count("precious") == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8443", ("127.0.0.1", 8443)),
        (":8443", ("127.0.0.1", 8443)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:1", ("::1", 1)),
        ("[::1]", ("::1", 0)),
        ("localhost", ("localhost", 0)),
        ("a:b", None),
        ("a:99999", None),
        ("::1", None),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    import click

    if address is None:
        with pytest.raises(click.BadParameter):
            Listen().convert(text, None, None)
    else:
        assert Listen().convert(text, None, None) == address
