"""What the probes make of rustls's functions, with a program that has their names and does what a scene wants."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.servers import Recorder
from live.subjects import HERE
from tlscap.capture import open_capture
from tlscap.model import Data, Direction, Endpoint, Flow, FlowClosed, Gap, GapReason, Item

pytestmark = pytest.mark.live

BYTES = bytes(range(256)) * 16
"""What every buffer of the program begins with."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fake") / "fake_rustls"
    subprocess.run(["gcc", "-O0", "-w", str(HERE / "fake_rustls.c"), "-o", str(path)], check=True)
    return path


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def play(record: Recorder, program: Path, peer: socket.socket, scene: str) -> list[Item]:
    """What a recording of the scene has, in order."""
    recording = record(command=[program, scene, peer.getsockname()[1]])
    with open_capture(str(recording.sidecar)) as capture:
        return list(capture.items())


def flows(items: list[Item]) -> list[Flow]:
    return list({item.flow.id: item.flow for item in items if isinstance(item, Data | Gap)}.values())


def stream(items: list[Item], flow: Flow, direction: Direction) -> bytes:
    """The bytes of one direction; a zero for each that is missing."""
    parts = [
        item for item in items if isinstance(item, Data | Gap) and item.flow is flow and item.direction is direction
    ]
    return b"".join(part.data if isinstance(part, Data) else bytes(part.length) for part in parts)


def test_moves(record: Recorder, program: Path, peer: socket.socket) -> None:
    """A connection that moves in memory stays one; another one in the same place, with a cipher in the same place, is another one."""
    items = play(record, program, peer, "moves")
    first, second = flows(items)
    assert stream(items, first, Direction.OUTBOUND) == BYTES[:100]
    assert stream(items, first, Direction.INBOUND) == BYTES[:50] + BYTES[:60] + BYTES[:70]
    assert first.remote == Endpoint(*peer.getsockname())
    assert stream(items, second, Direction.OUTBOUND) == BYTES[:7]
    assert stream(items, second, Direction.INBOUND) == b""
    assert second.remote is None
    assert not first.joined_midstream
    assert not second.joined_midstream
    assert {item.flow.id for item in items if isinstance(item, FlowClosed)} >= {first.id, second.id}


def test_early(record: Recorder, program: Path, peer: socket.socket) -> None:
    """What is written before there are keys belongs to the connection; the start of one whose place is in use ends the other."""
    items = play(record, program, peer, "early")
    first, second, third = flows(items)
    assert stream(items, first, Direction.OUTBOUND) == BYTES[:10] + BYTES[:20]
    assert stream(items, first, Direction.INBOUND) == BYTES[:5]
    assert first.remote is None  # the records that were sent belong to something else
    assert stream(items, second, Direction.OUTBOUND) == BYTES[:3]
    assert stream(items, third, Direction.OUTBOUND) == BYTES[:4]
    assert [flow.joined_midstream for flow in (first, second, third)] == [False, False, True]


def test_pieces(record: Recorder, program: Path, peer: socket.socket) -> None:
    """A write of many pieces: as many bytes as it took, each from its place; what can't be read is a gap of the right size."""
    items = play(record, program, peer, "pieces")
    (flow,) = flows(items)
    expected = BYTES[:2] + b"\0\0\2" + BYTES[:1024] + bytes(1100 - 1024)
    assert stream(items, flow, Direction.OUTBOUND) == expected
    gaps = [item for item in items if isinstance(item, Gap)]
    assert [(gap.offset, gap.length) for gap in gaps] == [(3, 1), (5 + 1024, 76)]
    assert {gap.reason for gap in gaps} == {GapReason.UNREADABLE}
