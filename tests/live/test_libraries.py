"""What the functions of GnuTLS, wolfSSL, Mbed TLS and NSS mean, with a program that has their names and returns what a scene wants.

One recording has all scenes: a program may use several libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from live.scenes import Scene, at_returns, bounded, by_system_calls, compiled, modern
from live.subjects import HERE
from tlscap.decode import OpenEvent
from tlscap.model import Endpoint, Flow, GapReason, Role, TupleSource

pytestmark = pytest.mark.live

NEVER_MADE = 0x1300
PEEK = 2  # MARK_PEEK of bpf/events.h


@dataclass
class Played:
    """The recording, and the ports that the program says it used."""

    scene: Scene
    ports: list[int]
    said: str

    def only(self, ssl: int) -> Flow:
        (flow,) = self.scene.of(ssl)
        return flow

    def peeks(self, flow: Flow) -> list[tuple[int, int]]:
        """Where in the stream, and how many bytes."""
        marks = self.scene.marks_of(flow)
        assert all((mark.kind, mark.direction) == (PEEK, 0) for mark in marks)
        return [(mark.offset, mark.length) for mark in marks]


@pytest.fixture(
    scope="module", params=[modern, bounded, at_returns, by_system_calls], ids=lambda runner: runner.__name__
)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("libraries")
    program = compiled(folder, HERE / "fake_libraries.c")
    done = request.param("record", "-o", folder / "scene", "--", program)
    return Played(Scene(folder / "scene.tlscap.zst"), [int(port) for port in done.stdout.split()], done.stderr.decode())


def test_corked(played: Played) -> None:
    """What GnuTLS takes over while it is corked is counted then, and not once more when it is sent; other sessions' bytes are."""
    scene = played.scene
    first, _ = scene.of(0x1000)
    assert scene.sent(first) == [b"a, b, corked, more, after, elsewhere, and again"]
    assert scene.sent(played.only(0x1100)) == [b"through another"]


def test_packets(played: Played) -> None:
    """A packet's bytes are found behind its pointers, or it is said that they aren't; the end of the stream is one."""
    scene = played.scene
    first, _ = scene.of(0x1000)
    assert scene.received(first) == [b"plain, in order, in a packetthe rest", (9, GapReason.NOT_IN_MEMORY)]
    assert scene.ends_of(first) == ["INBOUND", "OUTBOUND", "closed"]


def test_sessions(played: Played) -> None:
    """gnutls_init says the role, and ends what was in the same place; when it fails there is nothing."""
    scene = played.scene
    first, second = scene.of(0x1000)
    assert [first.role, second.role, played.only(0x1200).role] == [Role.CLIENT, Role.SERVER, Role.CLIENT]
    assert not [event for event in scene.events if isinstance(event, OpenEvent) and event.ssl == NEVER_MADE]
    assert (first.sni, first.alpn, first.joined_midstream) == ("gnutls.example", "h2", False)
    assert 0 < first.handshake_start_ns <= first.handshake_end_ns
    assert (second.sni, second.alpn, second.joined_midstream) == ("", "", False)
    assert scene.sent(second) == [b"served"]
    assert scene.received(second) == [b"early"]
    assert scene.sent(played.only(0x1200)) == [b"sooner"]
    assert played.only(0x1100).joined_midstream


def test_sockets(played: Played) -> None:
    """A connection is on the socket that its last transport is; what never used one has no address."""
    scene = played.scene
    first, second = scene.of(0x1000)
    before, *moved, last = played.ports[:4]
    wolf = played.ports[4:]
    assert [event.local_port for event in scene.addresses] == [before, before, *moved, last, last, *wolf], (
        "it is looked at again when the socket is exchanged, and at the end"
    )
    assert (first.tuple_source, first.local) == (TupleSource.SYSCALL, Endpoint("127.0.0.1", last))
    assert scene.of(0x2000)[0].local == Endpoint("127.0.0.1", wolf[-1])
    assert (second.tuple_source, second.local) == (TupleSource.PLACEHOLDER, None)


def test_wolfssl(played: Played) -> None:
    """Its handshake functions say the role, too; a name has a length, and no more than the room for it is kept."""
    scene = played.scene
    first, second = scene.of(0x2000)
    assert (first.role, first.sni, first.joined_midstream) == (Role.CLIENT, "n" * 256, False)
    assert scene.sent(first) == [b"wolfSSL says"]
    assert scene.received(first) == [b"answer"]
    assert played.peeks(first) == [(0, 4)]
    assert scene.ends_of(first) == ["OUTBOUND", "closed"]
    assert (second.role, second.sni, second.joined_midstream) == (Role.SERVER, "", False)
    assert scene.received(second) == [b"again"]
    assert [flow.handshake_end_ns > 0 for flow in (first, second)] == [True, True]
    assert scene.ends_of(second) == ["closed"]


def test_mbedtls(played: Played) -> None:
    """A protocol that is text; a handshake whose success is 0; a reset before anything passed, and one after."""
    scene = played.scene
    first, second = scene.of(0x3000)
    assert (first.sni, first.alpn) == ("mbed.example", "mqtt")
    assert (second.sni, second.alpn) == ("", "")
    assert scene.sent(first) == [b"bed"]
    assert scene.received(second) == [b"next"]
    assert [flow.handshake_end_ns > 0 for flow in (first, second)] == [False, True]
    assert scene.ends_of(first) == ["INBOUND", "OUTBOUND", "closed"]
    assert scene.ends_of(second) == ["closed"]


def test_nss(played: Played) -> None:
    """PR_Recv peeks with one flag and reads with all others; bytes that were peeked are counted once."""
    scene = played.scene
    first, second = played.only(0x4000), played.only(0x4100)
    assert (first.role, first.sni, second.role) == (Role.CLIENT, "nss.example", Role.SERVER)
    assert scene.sent(first) == [b"data and m"]
    assert scene.received(first) == [b"hello, world!"]
    assert played.peeks(first) == [(0, 5), (0, 5)]
    assert scene.ends_of(first) == ["INBOUND", "OUTBOUND", "closed"]
    assert scene.received(second) == [b"ok"]
    assert [flow.handshake_end_ns > 0 for flow in (first, second)] == [True, False]


def test_nothing_else(played: Played) -> None:
    """Every byte was counted once, by the kernel, too."""
    scene = played.scene
    assert scene.totals
    sizes = [
        sum(len(part) if isinstance(part, bytes) else part[0] for flow in scene.flows for part in stream(flow))
        for stream in (scene.received, scene.sent)
    ]
    assert scene.totals.counted == sizes
    assert f"INCOMPLETE: 9 of {sum(sizes)} bytes are not stored, in 1 gap (0 samples dropped" in played.said
