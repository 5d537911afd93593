"""What goes over TLS is recorded, every byte of it, from the programs that people run."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from live.servers import (
    CLEAN_ENVIRONMENT,
    CURL,
    Certificates,
    Nginx,
    Recorder,
    all_bodies,
    body,
    body_digest,
    digest,
    inspect_json,
    run_tlscap,
    s_server,
    wait_until,
)

MIB = 1 << 20
MOST_MEMORY = 400 * MIB
"""No process of tlscap may ever hold more."""


def curl(nginx: Nginx, *arguments: str | Path) -> list[str]:
    """A curl command that verifies the certificate."""
    return [*CURL, "--cacert", str(nginx.certificates.ca), *map(str, arguments)]


def run_curl(nginx: Nginx, *arguments: str | Path) -> bytes:
    return subprocess.run(curl(nginx, *arguments), env=CLEAN_ENVIRONMENT, check=True, capture_output=True).stdout


# --- Sizes ---


@pytest.mark.parametrize("size", [0, 1, 100_000, 10_000_000])
def test_response_body(nginx: Nginx, record: Recorder, size: int) -> None:
    """A response body of any size comes out of both files as the server has it."""
    file = nginx.put(f"{size}.bin", random.Random(size).randbytes(size))
    recording = record(command=curl(nginx, "-o", "/dev/null", f"{nginx.url}/{file.name}"))
    assert recording.complete, recording.stderr
    assert recording.peak < MOST_MEMORY
    for path in (recording.sidecar, recording.pcapng):
        (exchange,) = inspect_json(path)
        assert (exchange["method"], exchange["url"]) == ("GET", f"{nginx.url}/{file.name}")
        assert (exchange["status"], exchange["complete"], exchange["problems"]) == (200, True, [])
        assert exchange["response"]["body_size"] == size
        assert body_digest(path, 1) == (digest(file), size)


def test_upload(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """100 MB that a client sends: the recording, the server's copy and the file are the same."""
    file = tmp_path / "upload.bin"
    file.write_bytes(random.Random(1).randbytes(100_000_000))
    recording = record(command=curl(nginx, "-T", file, f"{nginx.url}/upload/stored.bin"))
    assert recording.complete, recording.stderr
    assert recording.peak < MOST_MEMORY
    (exchange,) = inspect_json(recording.sidecar)
    assert (exchange["method"], exchange["status"], exchange["complete"]) == ("PUT", 201, True)
    stored = nginx.www / "upload/stored.bin"
    assert body_digest(recording.sidecar, 1, "--request-body") == (digest(file), 100_000_000)
    assert digest(stored) == digest(file)
    stored.unlink()


def test_gigabyte(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """1 GB passes through every process of tlscap in memory that does not depend on the size.

    At a rate at which the recorder keeps up on two cores: how losses are told is another test's subject.
    """
    if shutil.disk_usage(tmp_path).free < 6_000_000_000:
        pytest.skip("needs 6 GB of disk space")
    small = nginx.put("small.bin", random.Random(2).randbytes(10_000_000))
    large = nginx.www / "large.bin"
    block = random.Random(3).randbytes(1_000_003)  # compresses no better than noise, and never repeats in step
    with large.open("wb") as file:
        for _ in range(1000):
            file.write(block)
        file.truncate(1_000_000_000)
    peaks = []
    for file_, size in ((small, 10_000_000), (large, 1_000_000_000)):
        command = curl(nginx, "--limit-rate", "80M", "-o", "/dev/null", f"{nginx.url}/{file_.name}")
        recording = record(command=command, timeout=200)
        assert recording.complete, recording.stderr
        assert body_digest(recording.sidecar, 1) == (digest(file_), size)
        peaks.append(recording.peak)
        recording.pcapng.unlink()
        recording.sidecar.unlink()
    large.unlink()
    assert peaks[1] < MOST_MEMORY
    assert peaks[1] <= peaks[0] * 1.3 + 64 * MIB


# --- Programs ---


def test_methods(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """One curl, one connection, a few requests: in their order, with what belongs to each."""
    page = nginx.put("page.html", b"<p>hello</p>" * 100)
    commands = tmp_path / "commands.sh"
    once = " ".join(curl(nginx))
    commands.write_text(
        f"{once} -o /dev/null -o /dev/null {nginx.url}/page.html {nginx.url}/say/a\n"
        f"{once} -o /dev/null --head {nginx.url}/page.html\n"
        f"{once} -o /dev/null -d 'a=1&b=2' {nginx.url}/say/posted\n"
        f"{once} -o /dev/null --compressed {nginx.url}/gzip/page.html\n"
        f"{once} -o /dev/null {nginx.url}/missing || true\n"
    )
    recording = record(command=["sh", commands])
    assert recording.complete, recording.stderr
    exchanges = inspect_json(recording.sidecar)
    assert [(e["method"], e["url"].removeprefix(nginx.url), e["status"]) for e in exchanges] == [
        ("GET", "/page.html", 200),
        ("GET", "/say/a", 200),
        ("HEAD", "/page.html", 200),
        ("POST", "/say/posted", 200),
        ("GET", "/gzip/page.html", 200),
        ("GET", "/missing", 404),
    ]
    assert all(e["complete"] and e["process"]["comm"] == "curl" for e in exchanges)
    assert [e["flow"]["id"] for e in exchanges] == [1, 1, 2, 3, 4, 5]
    assert [e["flow"]["remote"]["port"] for e in exchanges] == [nginx.port] * 6
    assert body(recording.sidecar, 1) == page.read_bytes()
    assert body(recording.sidecar, 2) == b"you asked for /say/a, number \n"
    assert body(recording.sidecar, 3) == b""
    assert body(recording.sidecar, 4, "--request-body") == b"a=1&b=2"
    assert body(recording.sidecar, 5) == page.read_bytes()
    assert len(body(recording.sidecar, 5, "--raw")) < len(page.read_bytes())
    assert inspect_json(recording.pcapng)[0]["url"] == f"{nginx.url}/page.html"


def test_openssl_both_ends(certificates: Certificates, record: Recorder, tmp_path: Path) -> None:
    """openssl's own client and server, neither of which knows that it speaks HTTP."""
    (tmp_path / "file.bin").write_bytes(content := random.Random(4).randbytes(50_000))
    with s_server(tmp_path, certificates) as port:
        script = (
            f"printf 'GET /file.bin HTTP/1.0\\r\\nHost: h\\r\\n\\r\\n' |"
            f" openssl s_client -connect 127.0.0.1:{port} -servername localhost -CAfile {certificates.ca}"
            f" -verify_return_error -quiet"
        )
        recording = record(command=["sh", "-c", script])
    assert recording.complete, recording.stderr
    assert content in recording.stdout
    (exchange,) = inspect_json(recording.sidecar)
    assert (exchange["status"], exchange["process"]["comm"], exchange["flow"]["role"]) == (200, "openssl", "client")
    assert exchange["flow"]["remote"] == {"address": "127.0.0.1", "port": port}
    assert exchange["flow"]["sni"] == "localhost"
    assert body(recording.sidecar, 1) == content


URLLIB = """
import sys, urllib.request, ssl
context = ssl.create_default_context(cafile=sys.argv[1])
for url in sys.argv[2:]:
    sys.stdout.buffer.write(urllib.request.urlopen(url, context=context).read())
request = urllib.request.Request(sys.argv[-1], data=b"posted by urllib", method="POST")
urllib.request.urlopen(request, context=context).read()
"""

REQUESTS = """
import sys, requests
with requests.Session() as session:
    session.trust_env = False
    session.verify = sys.argv[1]
    for url in sys.argv[2:]:
        sys.stdout.buffer.write(session.get(url).content)
    session.post(sys.argv[-1], data=b"posted by requests").content
"""


@pytest.mark.parametrize(("code", "name"), [(URLLIB, b"urllib"), (REQUESTS, b"requests")])
def test_python(nginx: Nginx, record: Recorder, code: str, name: bytes) -> None:
    """CPython uses SSL_read_ex and SSL_write_ex alone."""
    page = nginx.put("python.bin", random.Random(5).randbytes(300_000))
    urls = [f"{nginx.url}/python.bin", f"{nginx.url}/say/python"]
    recording = record(command=[sys.executable, "-c", code, nginx.certificates.ca, *urls])
    assert recording.complete, recording.stderr
    exchanges = inspect_json(recording.sidecar)
    assert [(e["method"], e["url"], e["status"]) for e in exchanges] == [
        ("GET", urls[0], 200),
        ("GET", urls[1], 200),
        ("POST", urls[1], 200),
    ]
    # A link, when the process was gone before anybody looked: then its path is the one it was started by.
    assert {os.path.realpath(e["process"]["exe"]) for e in exchanges} == {os.path.realpath(sys.executable)}
    got = all_bodies(recording.sidecar)
    assert got[1, "response"] + got[2, "response"] == recording.stdout
    assert got[1, "response"] == page.read_bytes()
    assert got[3, "request"] == b"posted by " + name


def test_server(nginx: Nginx, record: Recorder) -> None:
    """nginx is recorded, by the pid of its worker, while a client talks to it that is not."""
    page = nginx.put("served.bin", random.Random(6).randbytes(200_000))
    (worker,) = nginx.workers
    with record.running("-p", worker) as started:
        assert run_curl(nginx, f"{nginx.url}/served.bin") == page.read_bytes()
        run_curl(nginx, "-T", page, f"{nginx.url}/upload/served.bin")
        logged(nginx, "/upload/served.bin")
    recording = started.recording()
    assert recording.status == 0
    assert recording.complete, recording.stderr
    get, put = inspect_json(recording.sidecar)
    assert (get["method"], get["url"], get["status"]) == ("GET", f"{nginx.url}/served.bin", 200)
    assert (put["method"], put["url"], put["status"]) == ("PUT", f"{nginx.url}/upload/served.bin", 201)
    for exchange in (get, put):
        assert (exchange["process"]["pid"], exchange["process"]["comm"]) == (worker, "nginx")
        assert exchange["flow"]["role"] == "server"
        assert exchange["flow"]["local"] == {"address": "127.0.0.1", "port": nginx.port}
        assert exchange["flow"]["sni"] == "localhost"
    assert body(recording.sidecar, 1) == body(recording.sidecar, 2, "--request-body") == page.read_bytes()


def logged(nginx: Nginx, target: str) -> dict[str, object]:
    """The line of nginx's log about a target that only one test asks for, as soon as it is there."""

    def lines() -> list[dict[str, object]]:
        return [line for line in nginx.log() if target in str(line["request"])]

    wait_until(lambda: bool(lines()), f"nginx logs {target}")
    return lines()[-1]


def test_both_ends(nginx: Nginx, record: Recorder) -> None:
    """Client and server of one connection, in one recording, are two flows that agree with each other."""
    page = nginx.put("both.bin", random.Random(7).randbytes(150_000))
    with record.running("--comm", "nginx", "--comm", "curl") as started:
        run_curl(nginx, f"{nginx.url}/both.bin")
        line = logged(nginx, "/both.bin")
    recording = started.recording()
    for path in (recording.sidecar, recording.pcapng):
        exchanges = [e for e in inspect_json(path) if e["url"] == f"{nginx.url}/both.bin"]
        ends = {e["flow"]["role"]: e for e in exchanges}
        assert sorted(ends) == ["client", "server"], path
        client, server = ends["client"]["flow"], ends["server"]["flow"]
        assert client["client"] == server["client"] == client["local"] == server["remote"]
        assert client["server"] == server["server"] == {"address": "127.0.0.1", "port": nginx.port}
        assert f"127.0.0.1:{client['client']['port']}" == line["remote"]
        for end in ends.values():
            assert body(path, end["id"]) == page.read_bytes()


# --- Options ---


def test_stdout_into_tshark(nginx: Nginx, tmp_path: Path) -> None:
    """``-w - | tshark -r -`` shows what passes."""
    (tmp_path / "home").mkdir()
    command = [*curl(nginx), "-o", "/dev/null", f"{nginx.url}/say/streamed"]
    script = (
        'tlscap="$1"; shift; "$tlscap" record -w - -- "$@" | tshark -r - -Y http.request -T fields -e http.request.uri'
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *tlscap_path(), *command],
        env={**CLEAN_ENVIRONMENT, "HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["/say/streamed"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # nothing is written beside it


def tlscap_path() -> list[str]:
    return [str(Path(sys.executable).parent / "tlscap")]


def test_stdout_while_recording(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """The stream comes while the recording goes on, in whole blocks, beside a sidecar when one is wanted."""
    (worker,) = nginx.workers
    with record.running("-p", worker, "-w", "-") as started:
        run_curl(nginx, f"{nginx.url}/say/live")
        streamed = started.base.with_name(started.base.name + ".stdout")
        wait_until(lambda: b"/say/live" in streamed.read_bytes(), "the stream shows the request")
        assert started.process.poll() is None
    recording = started.recording()
    assert not recording.pcapng.exists()
    done = run_tlscap("rebuild", recording.sidecar, "-o", "-")
    assert done.stdout == recording.stdout


def test_reader_goes_away(nginx: Nginx, tmp_path: Path) -> None:
    """When the reader of the stream ends, so does the recording, without a complaint."""
    (worker,) = nginx.workers
    script = '"$0" record -p "$1" -w - | head -c 100 >/dev/null; echo ${PIPESTATUS[0]}'
    process = subprocess.Popen(
        ["bash", "-c", script, *tlscap_path(), str(worker)],
        env=CLEAN_ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:  # whatever is written after the reader is gone tells
        run_curl(nginx, f"{nginx.url}/say/more")
    output, complaints = process.communicate()
    assert output.split() == ["0"], complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize(("option", "suffixes"), [("--no-sidecar", [".pcapng"]), ("--no-pcapng", [".tlscap.zst"])])
def test_one_file(nginx: Nginx, record: Recorder, tmp_path: Path, option: str, suffixes: list[str]) -> None:
    """One file alone has everything, too."""
    recording = record(option, command=curl(nginx, "-o", "/dev/null", f"{nginx.url}/say/one"))
    assert recording.complete, recording.stderr
    made = [path.name for path in tmp_path.iterdir() if path.suffix not in (".stderr", ".stdout")]
    assert made == [recording.base.name + suffix for suffix in suffixes]
    (exchange,) = inspect_json(tmp_path / made[0])
    assert exchange["url"] == f"{nginx.url}/say/one"
    assert body(tmp_path / made[0], 1) == b"you asked for /say/one, number \n"


def test_duration(nginx: Nginx, record: Recorder) -> None:
    """``--duration`` ends the recording."""
    (worker,) = nginx.workers
    with record.running("-p", worker, "--duration", "700ms") as started:
        run_curl(nginx, f"{nginx.url}/say/timed")
        started.process.wait(10)
    recording = started.recording()
    assert recording.status == 0
    assert [e["url"] for e in inspect_json(recording.sidecar)] == [f"{nginx.url}/say/timed"]


def test_max_exchanges(nginx: Nginx, record: Recorder) -> None:
    """``--max-exchanges`` ends the recording soon after so many."""
    (worker,) = nginx.workers
    with record.running("-p", worker, "--max-exchanges", "3") as started:
        for number in range(3):
            assert started.process.poll() is None
            run_curl(nginx, f"{nginx.url}/say/{number}")
        started.process.wait(10)
    assert len(inspect_json(started.recording().sidecar)) == 3


def test_max_size(nginx: Nginx, record: Recorder) -> None:
    """``--max-size`` ends the recording."""
    nginx.put("noise.bin", random.Random(8).randbytes(3_000_000))
    (worker,) = nginx.workers
    with record.running("-p", worker, "--max-size", "2M") as started:
        run_curl(nginx, "-o", "/dev/null", f"{nginx.url}/noise.bin")
        started.process.wait(10)
    assert 2_000_000 <= started.recording().sidecar.stat().st_size < 12_000_000


def test_snaplen(nginx: Nginx, record: Recorder) -> None:
    """``--snaplen`` keeps the beginning of each call; that bytes are missing is said everywhere, and how many."""
    nginx.put("long.bin", random.Random(9).randbytes(100_000))
    recording = record("--snaplen", "512", command=curl(nginx, "-o", "/dev/null", f"{nginx.url}/long.bin"))
    for path in (recording.sidecar, recording.pcapng):
        (exchange,) = inspect_json(path)
        assert exchange["status"] == 200
        assert exchange["complete"] is False
        assert exchange["response"]["gap_bytes"] > 90_000
        assert exchange["response"]["body_size"] + exchange["response"]["gap_bytes"] == 100_000
    assert "INCOMPLETE" in recording.stderr


def test_filter_by_pid(nginx: Nginx, record: Recorder) -> None:
    """Only the process that was asked for is in the recording."""
    recording = record(command=curl(nginx, "-o", "/dev/null", f"{nginx.url}/say/filtered"))
    exchanges = inspect_json(recording.sidecar)
    assert [e["process"]["comm"] for e in exchanges] == ["curl"]  # not nginx, which maps the same library


def test_zstd_reads_it(nginx: Nginx, record: Recorder) -> None:
    """The ordinary zstd tool unpacks a sidecar."""
    recording = record(command=curl(nginx, "-o", "/dev/null", f"{nginx.url}/say/unpacked"))
    done = subprocess.run(["zstd", "-dc", recording.sidecar], capture_output=True, check=True)
    assert b"GET /say/unpacked HTTP/1.1\r\n" in done.stdout


def test_verbose(nginx: Nginx, record: Recorder) -> None:
    """Where the probes stand: function, address, instruction."""
    recording = record("-v", command=["curl", "-s", "--cacert", nginx.certificates.ca, f"{nginx.url}/"])
    assert re.search(r"^tlscap: /\S*libssl\.so\S*: openssl, build id [0-9a-f]{40}$", recording.stderr, re.MULTILINE)
    assert re.search(
        r"^tlscap:   SSL_do_handshake +0x[0-9a-f]+  SSL_do_handshake\S* \w+, ", recording.stderr, re.MULTILINE
    )
