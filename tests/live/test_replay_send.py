"""``tlscap replay send`` against the nginx that was recorded: nothing differs; then one file does, and exactly that is reported."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from lxml import etree  # type: ignore[import-untyped]

from live.servers import CURL, Nginx, Recorder, run_tlscap

pytestmark = pytest.mark.live

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parents[1] / "fixtures/junit.xsd"))


@pytest.fixture
def files(nginx: Nginx) -> list[str]:
    """Names of files of several kinds that nginx serves."""
    nginx.put("send.html", b"<p>hello</p>\n" * 200)
    nginx.put("send.txt", b"line one\nline two\nline three\n" * 20)
    nginx.put("send.bin", bytes(range(256)) * 4000)
    return ["send.html", "send.txt", "send.bin", "chunked/send.txt", "gzip/send.html", "say/hello?number=1"]


def curl(nginx: Nginx, files: list[str], *options: str) -> list[str]:
    urls = [f"{nginx.url}/{name}" for name in files]
    return [*CURL, "--cacert", str(nginx.certificates.ca), "--compressed", *options, "-o", "/dev/null", urls[0],
            *(word for url in urls[1:] for word in ("-o", "/dev/null", url))]  # fmt: skip


def replay(nginx: Nginx, recorded: Path, *options: str | Path) -> subprocess.CompletedProcess[bytes]:
    return run_tlscap("replay", "send", recorded, "--to", nginx.url, "--ca-file", nginx.certificates.ca, *options)


@pytest.mark.parametrize("form", ["sidecar", "pcapng"])
def test_nginx(nginx: Nginx, record: Recorder, tmp_path: Path, files: list[str], form: str) -> None:
    """All the same; after one file changed, that one: in the text, in JSON and in JUnit's XML."""
    recording = record(command=curl(nginx, files))
    recorded = recording.sidecar if form == "sidecar" else recording.pcapng
    report = tmp_path / "report.xml"
    done = replay(nginx, recorded, "--junit", report)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == b""
    assert done.stderr.startswith(b"6 answers the same\n")
    document = etree.parse(report)
    SCHEMA.assertValid(document)
    assert [document.getroot().get(name) for name in ("tests", "failures", "errors")] == ["6", "0", "0"]

    nginx.put("send.bin", bytes(range(256)) * 3999 + b"x" * 256)
    done = replay(nginx, recorded, "--junit", report, "--concurrency", "4")
    assert done.returncode == 7, done.stdout + done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"~ GET {nginx.url}/send.bin  200  (exchange 3)"
    assert lines[-1].strip() == f"the first difference is at byte {256 * 3999}"
    assert sum(line.startswith("~") for line in lines) == 1
    assert done.stderr.startswith(b"5 answers the same, 1 different\n")
    document = etree.parse(report)
    SCHEMA.assertValid(document)
    (failure,) = document.findall(".//failure")
    assert failure.getparent().get("name") == f"3 GET {nginx.url}/send.bin"
    objects = [json.loads(line) for line in replay(nginx, recorded, "--json").stdout.splitlines()]
    assert [one["id"] for one in objects if one["outcome"] != "same"] == [3]


def test_what_goes_out(nginx: Nginx, record: Recorder, files: list[str]) -> None:
    """nginx's own log shows the same requests again: methods, targets and what its log knows of the rest."""
    before = len(nginx.log())
    recording = record(command=curl(nginx, files, "-H", "X-Odd: a"))
    recorded = len(nginx.log())
    assert replay(nginx, recording.sidecar).returncode == 0
    log = nginx.log()
    assert len(log) - recorded == recorded - before == len(files)

    def told(line: dict[str, object]) -> tuple[object, object]:
        return line["request"], line["length"]  # of the whole request, in bytes

    assert [told(line) for line in log[before:recorded]] == [told(line) for line in log[recorded:]]


def test_uploads(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """PUT is sent again, with its body: nginx has the file anew."""
    (tmp_path / "body").write_bytes(b"uploaded " * 10_000)
    recording = record(
        command=[*CURL, "--cacert", nginx.certificates.ca, "-T", tmp_path / "body", f"{nginx.url}/upload/sent.txt"]
    )
    stored = nginx.www / "upload" / "sent.txt"
    stored.write_bytes(b"")
    stored.unlink()
    done = replay(nginx, recording.sidecar)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored.read_bytes() == b"uploaded " * 10_000
    stored.unlink()
    done = replay(nginx, recording.sidecar, "--methods", "GET")
    assert (done.returncode, b"nothing to send" in done.stderr) == (1, True)
    assert not stored.exists()


def test_http2(nginx: Nginx, record: Recorder) -> None:
    """Recorded HTTP/2 is spoken again; also with the older version, on request."""
    url = f"{nginx.url_h2}/say/two"
    recording = record(command=[*CURL, "--http2", "--cacert", nginx.certificates.ca, url, "--next", *CURL[1:], "--http2", "--cacert",
                                nginx.certificates.ca, f"{url}?again"])  # fmt: skip
    ca = ("--ca-file", nginx.certificates.ca)
    done = run_tlscap("replay", "send", recording.sidecar, "--to", nginx.url_h2, *ca, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == b"2 answers the same\n"
    older = run_tlscap("replay", "send", recording.sidecar, "--to", nginx.url_h2, *ca, "--http1")
    assert older.returncode == 0, older.stdout + older.stderr
    assert b"sent with HTTP/1.1: 2 exchanges" in older.stderr
