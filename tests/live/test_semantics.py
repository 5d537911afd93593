"""What every hooked function means, with a program that has OpenSSL's names and returns what a scene wants.

Run with the programs of this kernel and with those for kernels without ``bpf_loop``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from live.scenes import AT_RETURNS, Runner, Scene, at_returns, bounded, compiled, modern
from live.servers import run_tlscap
from tlscap.model import Direction, GapReason, Role

pytestmark = pytest.mark.live

BIG = 3_000_000
SOURCE = Path(__file__).parent / "fake_tls.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("fake"), SOURCE)


def big() -> bytes:
    return bytes(b"0123456789abcdef"[i * 7 % 16] for i in range(BIG))


@pytest.mark.parametrize("tlscap", [modern, bounded, at_returns])
def test_reuse(program: Path, tmp_path: Path, tlscap: Runner) -> None:
    """An SSL* on another socket, freed, and in another program on the same thread: nothing old is believed."""
    done = tlscap("record", "-q", "-o", tmp_path / "scene", "--", program, "reuse", "1")
    ports = [int(port) for port in done.stdout.split()]
    scene = Scene(tmp_path / "scene.tlscap.zst")

    moved, freed, replaced = sorted(scene.flows, key=lambda flow: flow.id)
    streams = [scene.streams[flow.id, Direction.OUTBOUND] for flow in (moved, freed, replaced)]
    assert streams == [
        [b"its address is known now, on another socket"],
        [b"another connection, in one piece"],
        [b"its address is known "],
    ]
    assert moved.ssl == freed.ssl == replaced.ssl
    assert [flow.local and flow.local.port for flow in (moved, freed, replaced)] == [ports[1], ports[1], ports[2]]
    assert [event.local_port for event in scene.addresses] == [ports[0], ports[1], ports[1], ports[2]], (
        "each socket is told of once"
    )


@pytest.mark.parametrize("tlscap", [modern, bounded, at_returns])
def test_scene(program: Path, tmp_path: Path, tlscap: Runner) -> None:
    """Every function does to the streams what its documentation says, and nothing else."""
    tlscap("record", "-q", "-o", tmp_path / "scene", "--", program, BIG)
    scene = Scene(tmp_path / "scene.tlscap.zst")

    first, second, nested, inner, recycled = sorted(scene.flows, key=lambda flow: flow.id)
    sent: list[bytes | tuple[int, GapReason]]
    if tlscap is not bounded:
        sent = [b"after the fileearly" + big()]
    else:
        copied = 64 * 16384
        sent = [b"after the fileearly" + big()[:copied], (BIG - copied, GapReason.CALL_TOO_LARGE)]
    assert scene.streams[first.id, Direction.OUTBOUND] == [b"hello, world!", (1000, GapReason.NOT_IN_MEMORY), *sent]
    assert scene.streams[first.id, Direction.INBOUND] == [b"answer"]
    assert (first.role, first.sni, first.alpn, first.joined_midstream) == (Role.CLIENT, "fake.example", "h2", False)
    assert first.opened_ns <= first.handshake_start_ns <= first.handshake_end_ns
    assert [end for end in scene.ends if end[0] == first.id] == [
        (first.id, "INBOUND"),
        (first.id, "OUTBOUND"),
        (first.id, "closed"),
    ]

    assert scene.streams[second.id, Direction.OUTBOUND] == [b"another connection at the same address"]
    assert second.ssl == first.ssl
    assert second.joined_midstream

    by_stream = {inner.ssl: inner, nested.ssl: nested}
    assert scene.streams[by_stream[0x3000].id, Direction.INBOUND] == [b"inner"]
    assert scene.streams[by_stream[0x2000].id, Direction.INBOUND] == [b"outer"]
    assert (by_stream[0x2000].role, by_stream[0x2000].sni) == (Role.SERVER, "served.example")

    assert recycled.ssl == 0x2000
    assert scene.streams[recycled.id, Direction.OUTBOUND] == [
        b"recycled",
        (7, GapReason.UNREADABLE),
        b"still in step",
    ]
    closed = [flow for flow, what in scene.ends if what == "closed"]
    assert sorted(closed) == sorted(flow.id for flow in scene.flows), "the process's end closes what is open"


def test_no_return_probes(program: Path, tmp_path: Path) -> None:
    """Where return probes could harm, none is placed: each call's end is seen at a return instruction."""
    done = subprocess.run(
        [sys.executable, "-c", AT_RETURNS, "record", "-v", "-o", str(tmp_path / "scene"), "--", str(program), "10"],
        capture_output=True,
        check=True,
        text=True,
    )
    shown = [line for line in done.stderr.splitlines() if "SSL_write+" in line]
    assert shown
    assert all(re.search(r", \d+ returns?$", line) for line in shown), shown


def test_marks(program: Path, tmp_path: Path) -> None:
    """Peeks and early data are marked; they neither advance a stream nor repeat bytes."""
    modern("record", "-q", "-o", tmp_path / "scene", "--", program, "10")
    scene = Scene(tmp_path / "scene.tlscap.zst")

    peek, peek_ex, early = scene.marks
    assert [(mark.kind, mark.direction, mark.offset, mark.length) for mark in (peek, peek_ex)] == [(2, 0, 0, 4)] * 2
    at = len(b"hello, world!") + 1000 + len(b"after the file") + 5
    assert (early.kind, early.direction, early.offset, early.length) == (1, 1, at, 5)


def test_by_hand(program: Path, tmp_path: Path) -> None:
    """--probe hooks a function by its address, as nm prints it."""
    listing = subprocess.run(["nm", str(program)], capture_output=True, text=True, check=True).stdout
    address = next(int(line.split()[0], 16) for line in listing.splitlines() if line.endswith(" SSL_shutdown"))
    stripped = tmp_path / "stripped"
    subprocess.run(["gcc", "-O0", "-w", str(SOURCE), "-o", str(stripped)], check=True)
    listing = subprocess.run(["nm", str(stripped)], capture_output=True, text=True, check=True).stdout
    write, read = (
        next(int(line.split()[0], 16) for line in listing.splitlines() if line.endswith(f" {name}"))
        for name in ("SSL_write", "SSL_read")
    )
    subprocess.run(["strip", str(stripped)], check=True)
    assert address

    modern(
        *("record", "-q", "-o", tmp_path / "hand", "--probe", f"SSL_write:{stripped}+{write:#x}"),
        *("--probe", f"SSL_read:{stripped}+{read:#x}", "--", stripped, "10"),
    )
    scene = Scene(tmp_path / "hand.tlscap.zst")

    streams = [part for parts in scene.streams.values() for part in parts]
    assert b"recycled" in b"".join(part for part in streams if isinstance(part, bytes))
    assert b"answer" in b"".join(part for part in streams if isinstance(part, bytes))


@pytest.mark.parametrize("place", ["+0x3", "+0x7fffffff", "+nonsense"])
def test_wrong_by_hand(program: Path, tmp_path: Path, place: str) -> None:
    """An address outside the code is refused before anything is attached; the program is not run."""
    done = run_tlscap("record", "-o", tmp_path / "x", "--probe", f"SSL_write:{program}{place}", "--", program)

    assert done.returncode in (2, 3), done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
