"""The BCC loader records what the libbpf loader records."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from live.servers import CLEAN_ENVIRONMENT, CURL, TLSCAP, Nginx, Recorder, Recording, all_bodies, digest, inspect_json
from tlscap.errors import LoadError
from tlscap.live.bcc import BccLoader, import_bcc
from tlscap.live.loader import Counter, Settings
from tlscap.live.session import CONNECTION

MODULES = Path("/lib/modules")
MOST_MEMORY = 600 << 20
"""A compiler is at work."""


@pytest.fixture(scope="module", autouse=True)
def bcc() -> Iterator[None]:
    """BCC, and kernel headers where it looks for them: any kernel's will do."""
    try:
        import_bcc()
    except LoadError as error:
        pytest.skip(f"{error} ({error.hint})")
    release = MODULES / os.uname().release
    made: list[Path] = []
    if not (release / "build").is_dir():
        others = sorted(path for path in MODULES.glob("*/build") if path.is_dir())
        if not others:
            pytest.skip("no kernel headers (apt-get install linux-headers-amd64)")
        if not release.exists():
            release.mkdir()
            made.append(release)
        for name in ("build", "source"):
            target = others[-1].with_name(name)
            if target.is_dir():
                link = release / name
                link.unlink(missing_ok=True)
                link.symlink_to(target.resolve())
                made.append(link)
    yield
    for path in reversed(made):
        if path.is_symlink():
            path.unlink()
        else:
            path.rmdir()


def comparable(recording: Recording) -> list[dict[str, Any]]:
    """The exchanges with all that does not differ from run to run, and what their bodies were."""
    bodies = all_bodies(recording.sidecar)
    exchanges = inspect_json(recording.sidecar)
    for exchange in exchanges:
        del (
            exchange["started"],
            exchange["duration"],
            exchange["wait"],
            exchange["handshake"],
            exchange["process"]["pid"],
        )
        for end in ("local", "client"):
            del exchange["flow"][end]["port"]
        exchange["bodies"] = [digest(bodies.get((exchange["id"], side), b"")) for side in ("request", "response")]
        for message in (exchange["request"], exchange["response"]):
            message["headers"] = [header for header in message["headers"] if header[0].lower() != "date"]
    return exchanges


def test_same_as_libbpf(nginx: Nginx, record: Recorder, tmp_path: Path) -> None:
    """Requests and responses of all sizes, several on a connection: both loaders tell the same."""
    nginx.put("bcc-large.bin", random.Random(20).randbytes(3_000_000))
    upload = tmp_path / "upload.bin"
    upload.write_bytes(random.Random(21).randbytes(300_000))
    quiet = ["--cacert", str(nginx.certificates.ca), "-o", "/dev/null"]
    client = [
        *CURL, *quiet, f"{nginx.url}/say/hello?number=1", "--next",
        "--silent", *quiet, f"{nginx.url}/bcc-large.bin", "--next",
        "--silent", *quiet, "--http1.1", "-T", str(upload), f"{nginx.url}/upload/bcc.bin", "--next",
        "--silent", *quiet, "-I", f"{nginx.url}/nowhere",
    ]  # fmt: skip
    told = {}
    for loader in ("libbpf", "bcc"):
        (nginx.www / "upload" / "bcc.bin").unlink(missing_ok=True)
        recording = record("--loader", loader, command=client)
        assert f"recording ({loader}, " in recording.stderr
        assert recording.complete, recording.stderr
        assert recording.peak < MOST_MEMORY
        told[loader] = comparable(recording)
    assert told["bcc"] == told["libbpf"]
    assert [e["status"] for e in told["bcc"]] == [200, 200, 201, 404]
    assert told["bcc"][1]["bodies"][1] == digest(nginx.www / "bcc-large.bin")
    assert told["bcc"][2]["bodies"][0] == digest(upload)
    assert told["bcc"][0]["flow"]["tuple_source"] == "syscall"
    assert told["bcc"][0]["flow"]["sni"] == "localhost"
    assert told["bcc"][0]["process"]["exe"].endswith("/curl")


def test_server(nginx: Nginx, record: Recorder) -> None:
    """A running server, by process number; nothing but the one line is on stderr while it starts."""
    (worker,) = nginx.workers
    with record.running("--loader", "bcc", "-p", worker) as started:
        assert started.stderr.count("\n") == 1, started.stderr
        subprocess.run(
            [*CURL, "--cacert", str(nginx.certificates.ca), "-o", "/dev/null", f"{nginx.url}/say/served"],
            env=CLEAN_ENVIRONMENT, check=True,
        )  # fmt: skip
    recording = started.recording()
    assert recording.complete, recording.stderr
    assert recording.stdout == b""
    (exchange,) = inspect_json(recording.sidecar)
    assert exchange["url"] == f"{nginx.url}/say/served"
    assert (exchange["status"], exchange["flow"]["role"], exchange["process"]["pid"]) == (200, "server", worker)


LIBRARY = 'int SSL_write(void *ssl, const void *data, int n) { asm volatile("" : : "r"(data)); return n; }'
PROGRAM = """
int SSL_write(void *ssl, const void *data, int n);
static char ssl[64], data[5000] = "present in memory";
int main(void) { for (int i = 0; i < 3; i++) SSL_write(ssl, data, sizeof(data)); return 0; }
"""


@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_address_is_not_offset(record: Recorder, tmp_path: Path, loader: str) -> None:
    """The probe lies where the function is, in a file whose addresses are not its offsets."""
    library, program = tmp_path / "libapart.so", tmp_path / "apart"
    (tmp_path / "library.c").write_text(LIBRARY)
    (tmp_path / "program.c").write_text(PROGRAM)
    commands: list[list[str | Path]] = [
        ["gcc", "-O1", "-shared", "-fPIC", "-Wl,--section-start=.text=0x40000", "library.c", "-o", library],
        ["gcc", "program.c", library, "-o", program],
    ]
    for command in commands:
        subprocess.run(command, cwd=tmp_path, check=True)
    with library.open("rb") as file:
        segments = [s for s in ELFFile(file).iter_segments("PT_LOAD") if s["p_flags"] & 1]
        assert any(
            s["p_vaddr"] <= 0x40000 < s["p_vaddr"] + s["p_memsz"] and s["p_vaddr"] != s["p_offset"] for s in segments
        )
    recording = record("--loader", loader, "--probe", f"SSL_write:{library}", command=[program])
    assert "complete: all 15,000 bytes" in recording.stderr


def test_maps(capfd: pytest.CaptureFixture[str]) -> None:
    """What the session does with maps, and that nothing is printed."""
    loader = BccLoader(Settings(ring_size=65536, targets={7}))
    try:
        assert list(loader.items("targets")) == [(struct.pack("=I", 7), struct.pack("=I", 1))]
        loader.update("targets", struct.pack("=I", 8), struct.pack("=I", 2))
        assert dict(loader.items("targets"))[struct.pack("=I", 8)] == struct.pack("=I", 2)
        loader.delete("targets", struct.pack("=I", 7))
        loader.delete("targets", struct.pack("=I", 7))  # is gone already
        assert [key for key, _ in loader.items("targets")] == [struct.pack("=I", 8)]
        assert loader.counters() == dict.fromkeys(Counter, 0)
        information = dict(
            line.split(":\t") for line in Path(f"/proc/self/fdinfo/{loader.ring_fd}").read_text().splitlines()
        )
        assert information["max_entries"] == "65536"
        for name, key, value in (
            ("connections", 16, CONNECTION.size),
            ("processes", 4, 16),
            ("orphans", 8, CONNECTION.size),
        ):
            loader.update(name, bytes(key), bytes(value))
            assert list(loader.items(name)) == [(bytes(key), bytes(value))]
    finally:
        loader.close()
        loader.close()
    assert capfd.readouterr() == ("", "")


def test_without_headers(tmp_path: Path) -> None:
    """The reason and what to do are said; the compiler's complaints are kept, not shown."""
    script = 'mount -t tmpfs none /lib/modules && exec "$0" record --loader bcc -o "$1" -- true'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, TLSCAP, tmp_path / "never"],
        env={**CLEAN_ENVIRONMENT, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == LoadError.exit_status, done.stderr
    assert "kernel headers are missing" in done.stderr
    assert "apt-get install linux-headers-" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("never*"))
    assert len(done.stderr.splitlines()) <= 3, done.stderr
