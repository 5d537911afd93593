"""Recordings in parts."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from live.servers import Nginx, Recorder, run_tlscap
from tlscap.capture import open_capture
from tlscap.model import Data, Direction, Gap

pytestmark = pytest.mark.live


def parts(base: Path, suffix: str = ".tlscap.zst") -> list[Path]:
    return sorted(base.parent.glob(f"{base.name}-?????{suffix}"))


def test_by_size(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """Every part opens alone and is rebuilt exactly; together they hold each byte of a connection once."""
    content = nginx.put("rotate.bin", os.urandom(10_000_000))
    base = tmp_path / "parts"
    urls = [f"{nginx.url}/{content.name}"] * 4
    done = run_tlscap(
        *("record", "-o", base, "--rotate", "1MB", "--", "curl", "-s", "--cacert", nginx.certificates.ca),
        *("--limit-rate", "15M", "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", *urls),
    )
    assert done.returncode == 0, done.stderr
    assert b"complete: all" in done.stderr, done.stderr

    found = parts(base)
    assert len(found) > 2
    received = bytearray()
    ends: set[int] = set()
    for number, path in enumerate(found):
        rebuilt = tmp_path / "rebuilt.pcapng"
        assert run_tlscap("rebuild", path, "-o", rebuilt, "--force").returncode == 0
        recorded = path.with_name(path.name.replace(".tlscap.zst", ".pcapng"))
        assert rebuilt.read_bytes() == recorded.read_bytes()
        with open_capture(str(path)) as capture:
            for item in capture.items():
                assert not isinstance(item, Gap)
                if isinstance(item, Data) and item.direction is Direction.INBOUND:
                    assert item.offset == len(received)
                    received += item.data
                    assert item.flow.remote is not None
                    assert item.flow.sni == "localhost"
                    assert item.flow.joined_midstream == (number > 0)
                    ends.add(item.flow.remote.port)
    assert len(ends) == 1
    assert bytes(received).count(content.read_bytes()) == 4


def test_keep(nginx: Nginx, tmp_path: Path) -> None:
    """--keep leaves the newest parts only, of both files."""
    base = tmp_path / "kept"
    command = f"for i in 1 2 3 4 5 6 7 8; do curl -sk -o /dev/null {nginx.url}/ ; sleep 0.25; done"
    done = run_tlscap("record", "-o", base, "--rotate", "400ms", "--keep", "2", "--", "sh", "-c", command)

    assert done.returncode == 0, done.stderr
    assert b"complete: all" in done.stderr
    assert len(parts(base)) == 2
    assert [path.name.split("-")[1][:5] for path in parts(base)] == [
        path.name.split("-")[1][:5] for path in parts(base, ".pcapng")
    ]
    assert "00001" not in parts(base)[0].name


def test_probes_are_gone(nginx: Nginx, record: Recorder) -> None:
    """When `record` returns, nothing of it is left in the kernel."""

    def programs() -> str:
        listing = subprocess.run(["bpftool", "prog", "show"], capture_output=True, text=True, check=False).stdout
        return "\n".join(line for line in listing.splitlines() if "enter_any" in line or "leave_loop" in line)

    record(command=["curl", "-sk", "-o", "/dev/null", nginx.url])
    deadline = time.monotonic() + 5
    while programs() and time.monotonic() < deadline:
        time.sleep(0.1)

    assert not programs()
