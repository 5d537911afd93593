"""``tlscap explain``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
int SSL_read(void *ssl, void *buffer, int n) { return n; }
int SSL_write(void *ssl, const void *buffer, int n) { return n; }
int main(void) { return 0; }
"""


def explain(*arguments: str | int | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("tlscap")), "explain", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "program"
    subprocess.run(["gcc", "-x", "c", "-", "-rdynamic", "-o", str(path)], input=PROGRAM, text=True, check=True)
    return path


def test_program(program: Path) -> None:
    """Every function with its place and the instruction."""
    done = explain(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{program}: openssl")
    assert "SSL_write" in done.stdout
    assert "emulated" in done.stdout


def test_json(program: Path) -> None:
    """For programs."""
    done = explain("--json", program)
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert (told["path"], told["library"]) == (str(program), "openssl")
    assert {one["name"]: one["data"] for one in told["functions"]} == {"SSL_read": True, "SSL_write": True}


def test_nothing_to_hook(tmp_path: Path) -> None:
    """Exit status 3, and what the file holds instead."""
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(5000) + b"external/boringssl/src/ssl/ssl_lib.cc")
    done = explain(path)
    assert done.returncode == 3
    assert "BoringSSL, without symbols" in done.stdout
    assert "--probe" in done.stdout
    assert "nothing that tlscap can hook" in done.stderr


def test_process() -> None:
    """Of a process everything that it maps."""
    done = explain(os.getpid())
    import ssl  # noqa: F401 - maps libssl into this process

    again = explain(os.getpid())
    assert "Traceback" not in done.stderr + again.stderr
    assert "libssl" in again.stdout


@pytest.mark.parametrize("subject", ["999999999", "/no/such/file", "no-such-program-anywhere"])
def test_no_subject(subject: str) -> None:
    """One line, exit status 3."""
    done = explain(subject)
    assert done.returncode == 3
    assert done.stderr.count("\n") <= 2
    assert done.stderr.startswith("tlscap: ")
