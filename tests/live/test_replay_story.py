"""The README's story of a fixture: record a client with a real server, stop the server, test the client against the recording."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    TLSCAP,
    Certificates,
    Nginx,
    Recorder,
    inspect_json,
    run_tlscap,
    stop,
    wait_until,
)

pytestmark = pytest.mark.live

CLIENT = """
import json, ssl, sys, urllib.request
url, ca, number = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
request = urllib.request.Request(f"{url}/say/order?number={number}", headers={"Authorization": "Bearer tok-9f8e7d6c5b4a"})
answer = urllib.request.urlopen(request, context=context).read().decode()
assert answer == "you asked for /say/order?number=7, number 7\\n", answer
"""


def client(url: str, ca: Path, number: int = 7) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CLIENT, url, str(ca), str(number)]
    return subprocess.run(command, env=CLEAN_ENVIRONMENT, capture_output=True, text=True)


def test_a_client_is_tested_against_its_recording(record: Recorder, certificates: Certificates, tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir()
    nginx = Nginx(folder, certificates)
    try:
        recording = record(command=[sys.executable, "-c", CLIENT, nginx.url, certificates.ca, 7])
        others = record(command=["curl", "-s", "--cacert", certificates.ca, f"{nginx.url}/say/other"])
        assert recording.complete
        assert others.complete
    finally:
        nginx.close()
    assert "Connection refused" in client(nginx.url, certificates.ca).stderr

    fixture = tmp_path / "order.tlscap.zst"
    made = run_tlscap("fixture", "make", recording.sidecar, "path:/say/order", "-o", fixture)
    assert made.returncode == 0, made.stderr
    again = tmp_path / "again.tlscap.zst"
    assert run_tlscap("fixture", "make", recording.sidecar, "path:/say/order", "-o", again).returncode == 0
    assert again.read_bytes() == fixture.read_bytes()
    summary = (tmp_path / "order.tlscap.txt").read_text()
    assert "> GET /say/order?number=7" in summary
    assert "tok-9f8e7d6c5b4a" not in summary
    assert run_tlscap("scrub", "--check", fixture).returncode == 0
    assert run_tlscap("scrub", "--check", recording.sidecar).returncode == 7
    (exchange,) = inspect_json(fixture)
    assert exchange["complete"]

    ca, out, errors = tmp_path / "replay-ca.pem", tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        command = [TLSCAP, "replay", "serve", fixture, "--ca-file", ca]
        server = subprocess.Popen(list(map(str, command)), env=CLEAN_ENVIRONMENT, stdout=stdout, stderr=stderr)
    try:
        wait_until(lambda: b"\n" in out.read_bytes() or server.poll() is not None, "it serves")
        url = out.read_text().splitlines()[0]
        done = client(url, ca)
        assert done.returncode == 0, done.stderr
        changed = client(url, ca, 8)
        assert changed.returncode != 0
        assert "HTTP Error 501" in changed.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 7
    finally:
        stop(server)
    told = errors.read_text()
    assert "nearest: exchange 1, GET" in told
    assert 'query parameter number: is "8", recorded "7"' in told
    assert "Traceback" not in told
