"""Which socket a connection is on when its library works in memory, with a program that does what a scene wants.

Never a wrong one: what is not proven stays a placeholder.  It needs the programs for Linux 6.6 and newer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.echo import echo_server
from live.scenes import Runner, Scene, at_returns, by_system_calls, compiled, modern
from live.subjects import HERE
from tlscap.decode import DataEvent, UnjoinedEvent
from tlscap.model import Endpoint, TupleSource

pytestmark = pytest.mark.live

MODES = pytest.mark.parametrize("tlscap", [modern, at_returns])
BY_RECORD, BY_CALL, UNKNOWN = TupleSource.CIPHERTEXT, TupleSource.SYSCALL, TupleSource.PLACEHOLDER


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("fake"), HERE / "fake_memory.c")


@pytest.fixture
def echo() -> Iterator[int]:
    with echo_server() as port:
        yield port


def play(tlscap: Runner, program: Path, scene: str, echo: int, folder: Path) -> tuple[Scene, dict[int, int]]:
    """The recording, and the local port that the program says, by connection."""
    done = tlscap("record", "-q", "-o", folder / "scene", "--", program, scene, echo)
    lines = [line.split() for line in done.stdout.splitlines()]
    return Scene(folder / "scene.tlscap.zst"), {int(ssl, 16): int(port) for ssl, port in lines}


def check(scene: Scene, ports: dict[int, int], sources: dict[int, TupleSource], echo: int) -> None:
    """Each connection has the addresses that it really has, found in this way, or none."""
    assert {flow.ssl: flow.tuple_source for flow in scene.flows} == sources
    for flow in scene.flows:
        known = flow.tuple_source is not UNKNOWN
        places = [Endpoint("127.0.0.1", port) for port in (ports[flow.ssl], echo)] if known else [None, None]
        assert [flow.local, flow.remote] == places, hex(flow.ssl)


@MODES
def test_joined(program: Path, echo: int, tmp_path: Path, tlscap: Runner) -> None:
    """All that proves a socket, and all that doesn't, on one thread."""
    carrier = tmp_path / "node"  # programs of that name are watched from the start
    shutil.copy(program, carrier)
    scene, ports = play(tlscap, carrier, "memory", echo, tmp_path)

    without_proof = {
        *(0x1003, 0x1007, 0x1008, 0x1009),  # too short, like those of others, no record
        0x100C,  # what it handed out went into another connection
        *(0x2003, 0x2005),  # too short, like those of others
        0x2007,  # two sockets brought it
        *(0x2009, 0x200B, 0x200C),  # of what may be a proxy's socket
    }
    everything = (*range(0x1001, 0x100F), *range(0x2001, 0x200D), *range(0x5001, 0x5008))
    sources = {ssl: UNKNOWN if ssl in without_proof else BY_RECORD for ssl in everything}
    check(scene, ports, sources, echo)
    assert len(scene.addresses) == sum(source is not UNKNOWN for source in sources.values()), "each is told of once"


@pytest.mark.parametrize("tlscap", [modern, at_returns, by_system_calls])
def test_inside(program: Path, echo: int, tmp_path: Path, tlscap: Runner) -> None:
    """Of what is sent inside a call, a record tells the address, and so does a datagram; a line of a log does not."""
    scene, ports = play(tlscap, program, "inside", echo, tmp_path)

    check(scene, ports, {0x3001: BY_CALL, 0x3002: UNKNOWN, 0x3003: BY_CALL}, echo)
    (quic,) = scene.of(0x3003)
    assert (quic.transport, scene.received(quic)) == ("udp", [b"more"])
    assert scene.ends_of(quic) == ["closed"]
    assert {flow.transport for flow in scene.flows if flow is not quic} == {"tcp"}


@pytest.mark.parametrize(("tlscap", "begins"), [(modern, "write"), (modern, "handshake"), (at_returns, "write")])
def test_lazily(program: Path, echo: int, tmp_path: Path, tlscap: Runner, begins: str) -> None:
    """A program is watched from the first call on that must have sent something and made no socket call; it is told of once."""
    scene, ports = play(tlscap, program, begins, echo, tmp_path)

    check(scene, ports, {0x4001: BY_RECORD, 0x4002: UNKNOWN, 0x4003: BY_CALL}, echo)
    said = [b"out"] * 3 if begins == "write" else [b"out"] * 2
    story = [
        event.data if isinstance(event, DataEvent) else "unjoined"
        for event in scene.events
        if isinstance(event, DataEvent | UnjoinedEvent)
    ]
    assert story == [b"read", b"sent", "unjoined", *said]
