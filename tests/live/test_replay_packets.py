"""``tlscap replay packets`` on interfaces of this kernel: tshark sees live what it sees in the file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from captures import answer, get, write_capture

from live.servers import CLEAN_ENVIRONMENT, TLSCAP, run_tlscap, tshark, wait_until

FIELDS = ("-T", "fields", "-e", "tcp.stream", "-e", "http.request.method", "-e", "http.request.full_uri", "-e", "http.response.code",
          "-e", "http.file_data")  # fmt: skip
PAIR, SMALL = "veth", "veth with a small MTU"


def namespaces_work() -> bool:
    return (
        os.geteuid() == 0
        and all(shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"]) for name in ("ip", "tshark", "nsenter", "unshare"))
        and subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
    )


pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not namespaces_work(), reason="needs root, tshark, iproute2 and network namespaces"),
]


@pytest.fixture
def inside() -> Iterator[list[str]]:
    """The words before a command that run it in a network namespace of its own: nothing of this machine's network is touched."""
    process = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    try:
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own, "the namespace is there")
        yield ["nsenter", "-t", str(process.pid), "-n"]
    finally:
        process.kill()
        process.wait()


def make_interface(inside: list[str], kind: str) -> tuple[str, str]:
    """Make an interface; return where to send, and where to listen."""

    def ip(*words: str) -> None:
        done = subprocess.run([*inside, "ip", "link", *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"ip link {' '.join(words)}: {done.stderr.strip()}")

    if kind == "lo":
        ip("set", "lo", "up")
        return "lo", "lo"
    ip("add", "tlscap0", "type", "veth", "peer", "name", "tlscap1")
    for name in ("tlscap0", "tlscap1"):
        ip("set", name, "mtu", "576" if kind == SMALL else "1500", "up")
    return "tlscap0", "tlscap1"


@contextlib.contextmanager
def listening(inside: list[str], interface: str, folder: Path) -> Iterator[Path]:
    """tshark writes what passes on an interface, until everything has been there."""
    path = folder / "live.pcapng"
    with (folder / "listening").open("wb") as log:
        process = subprocess.Popen(
            [*inside, "tshark", "-i", interface, "-w", str(path)],
            env={**CLEAN_ENVIRONMENT, "HOME": str(folder)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: b"Capturing on" in (folder / "listening").read_bytes() and path.exists(), "tshark listens")
        yield path
    finally:
        process.terminate()
        process.wait(30)


def rows(folder: Path, path: Path) -> list[str]:
    return tshark(folder, "-r", path, "-Y", "http", *FIELDS).splitlines()


def has_rows(folder: Path, path: Path, number: int) -> bool:
    """Tell whether a file that is being written holds so many rows; it may end within a packet."""
    try:
        return len(rows(folder, path)) >= number
    except AssertionError:
        return False


@pytest.mark.parametrize("kind", ["lo", PAIR, SMALL])
@pytest.mark.parametrize("framing", ["tls-null", "plain"])
def test_tshark_sees_it_live(tmp_path: Path, inside: list[str], kind: str, framing: str) -> None:
    """The rows of HTTP in a live capture are those of the file: large bodies, two connections, both framings."""
    talks = [[(get(f"/{conn}/{n}"), answer(bytes([65 + n]) * 40_000 * n)) for n in range(3)] for conn in range(2)]
    recorded = write_capture(tmp_path / "c.tlscap.zst", *talks)
    pcapng = tmp_path / "c.pcapng"
    assert run_tlscap("rebuild", recorded, "-o", pcapng, "--framing", framing).returncode == 0
    send, listen = make_interface(inside, kind)
    expected = rows(tmp_path, pcapng)
    assert len(expected) == 12
    with listening(inside, listen, tmp_path) as live:
        done = subprocess.run(
            [*inside, TLSCAP, "replay", "packets", pcapng, "--iface", send, "--timing", "x1"],
            env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"sent [\d,]+ packets of 2 connections, .*\n", done.stderr)
        assert ("cut to fit" in done.stderr) == (kind in (PAIR, SMALL))
        wait_until(lambda: has_rows(tmp_path, live, len(expected)), "everything was seen")
    assert rows(tmp_path, live) == expected
    expert = tshark(
        tmp_path, "-r", live, "-Y", "tcp.analysis.flags || tcp.checksum.status == 0", "-o", "tcp.check_checksum:TRUE"
    )
    assert not expert


def test_rounds_are_connections(tmp_path: Path, inside: list[str]) -> None:
    """Each round of a loop is a new connection to Wireshark, not a repetition."""
    recorded = write_capture(tmp_path / "c.tlscap.zst", [(get("/x"), answer(b"y"))])
    send, listen = make_interface(inside, PAIR)
    with listening(inside, listen, tmp_path) as live:
        done = subprocess.run(
            [*inside, TLSCAP, "replay", "packets", recorded, "--iface", send, "--timing", "none", "--loop", "5"],
            env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        wait_until(lambda: has_rows(tmp_path, live, 10), "everything was seen")
    assert [row.split("\t")[0] for row in rows(tmp_path, live)] == [str(number // 2) for number in range(10)]


def test_refused(tmp_path: Path, inside: list[str]) -> None:
    """An interface that is down, or not there; no privileges."""
    recorded = write_capture(tmp_path / "c.tlscap.zst", [(get("/x"), answer(b"y"))])
    os.chmod(tmp_path, 0o755)
    recorded.chmod(0o644)

    def run(*words: str, iface: str = "lo") -> subprocess.CompletedProcess[str]:
        arguments = [*inside, *words, TLSCAP, "replay", "packets", str(recorded), "--iface", iface]
        return subprocess.run(arguments, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=60)

    done = run()
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "tlscap: network interface lo is down")
    assert run(iface="nothing").returncode == 1
    make_interface(inside, "lo")
    done = run("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
    assert done.returncode == 3, done.stderr
    assert "CAP_NET_RAW" in done.stderr
