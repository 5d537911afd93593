"""Link layers and headers: scapy builds the packets, and any bytes are input."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.importing.frames import (
    CUT,
    FRAGMENTS,
    MALFORMED,
    NOT_TCP,
    Captured,
    FrameDecoder,
    endpoints,
    reverse,
)
from tlscap.importing.packetfile import Packet
from tlscap.model import Endpoint

LINK_TYPES = (0, 1, 9, 12, 14, 50, 51, 101, 108, 113, 228, 229, 276)
PAYLOAD = b"GET / HTTP/1.1\r\n\r\n"


def scapy() -> Any:
    """Return scapy's layers; it is slow to import."""
    import scapy.all

    return scapy.all


def ethernet(s: Any, **fields: Any) -> Any:
    """Return a header with addresses: without, scapy would ask the network for them."""
    return s.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


def decode(link_type: int, frame: bytes, original_len: int = 0) -> tuple[Captured | None, dict[str, int]]:
    decoder = FrameDecoder()
    segment = decoder.decode(Packet(link_type, 0, frame, original_len or len(frame)))
    assert (segment is None) == (decoder.left_out.total() == 1)
    return segment, dict(decoder.left_out)


def segment(s: Any, *options: Any) -> Any:
    return s.TCP(sport=50000, dport=80, seq=7, ack=0xFFFFFFFF, flags="PA", options=list(options)) / PAYLOAD


def v4(s: Any, **fields: Any) -> Any:
    return s.IP(src="10.0.0.1", dst="10.0.0.2", **fields)


def v6(s: Any, **fields: Any) -> Any:
    return s.IPv6(src="2001:db8::1", dst="fe80::2", **fields)


# Name: link type and what comes before TCP; the version of IP.
STACKS: dict[str, tuple[int, int, Callable[[Any], Any]]] = {
    "Ethernet": (1, 4, lambda s: ethernet(s) / v4(s)),
    "Ethernet, IPv6": (1, 6, lambda s: ethernet(s) / v6(s)),
    "VLAN": (1, 4, lambda s: ethernet(s) / s.Dot1Q(vlan=7) / v4(s)),
    "QinQ": (1, 6, lambda s: ethernet(s, type=0x88A8) / s.Dot1Q(vlan=1) / s.Dot1Q(vlan=2) / v6(s)),
    "IPv4 options": (1, 4, lambda s: ethernet(s) / v4(s, options=[s.IPOption_NOP()] * 8)),
    "raw, 101": (101, 4, v4),
    "raw, 12": (12, 6, v6),
    "raw, 14": (14, 4, v4),
    "raw, 228": (228, 4, v4),
    "raw, 229": (229, 6, v6),
    "cooked": (113, 4, lambda s: s.CookedLinux(proto=0x0800) / v4(s)),
    "cooked, VLAN": (113, 4, lambda s: s.CookedLinux(proto=0x8100) / s.Dot1Q(vlan=3) / v4(s)),
    "cooked 2": (276, 6, lambda s: s.CookedLinuxV2(proto=0x86DD) / v6(s)),
    "loopback, little": (0, 4, lambda s: s.Raw(struct.pack("<I", 2)) / v4(s)),
    "loopback, big": (0, 6, lambda s: s.Raw(struct.pack(">I", 30)) / v6(s)),
    "loopback, Windows": (0, 6, lambda s: s.Raw(struct.pack("<I", 23)) / v6(s)),
    "loopback, OpenBSD": (108, 6, lambda s: s.Raw(struct.pack(">I", 24)) / v6(s)),
    "PPP": (9, 4, lambda s: s.HDLC() / s.PPP() / v4(s)),
    "PPP, bare": (9, 6, lambda s: s.PPP(proto=0x57) / v6(s)),
    "PPP, one byte": (50, 4, lambda s: s.Raw(b"\x21") / v4(s)),
    "PPPoE": (1, 4, lambda s: ethernet(s, type=0x8864) / s.PPPoE(sessionid=5) / s.PPP() / v4(s)),
    "PPPoE, bare": (51, 4, lambda s: s.PPPoE(sessionid=5) / s.PPP() / v4(s)),
    "MPLS": (1, 4, lambda s: ethernet(s, type=0x8847) / s.Raw(b"\x00\x01\x00\x40\x00\x02\x01\x40") / v4(s)),
    "hop by hop": (1, 6, lambda s: ethernet(s) / v6(s) / s.IPv6ExtHdrHopByHop()),
    "many headers": (
        1,
        6,
        lambda s: ethernet(s) / v6(s) / s.IPv6ExtHdrHopByHop() / s.IPv6ExtHdrRouting() / s.IPv6ExtHdrDestOpt(),
    ),
    "atomic fragment": (1, 6, lambda s: ethernet(s) / v6(s) / s.IPv6ExtHdrFragment()),
    "authentication": (
        1,
        6,
        lambda s: ethernet(s) / v6(s) / s.AH(nh=6, payloadlen=4, icv=bytes(12)),
    ),
}


@functools.cache
def built(name: str) -> tuple[int, int, bytes]:
    """Return the link type, the version of IP and the bytes of a packet."""
    s = scapy()
    link_type, version, build = STACKS[name]
    return link_type, version, bytes(build(s) / segment(s))


@pytest.mark.parametrize("name", STACKS)
def test_link_layers(name: str) -> None:
    """The segment is found below every link layer and behind every header, without what pads the frame."""
    link_type, version, frame = built(name)
    ends = (Endpoint("10.0.0.1", 50000), Endpoint("10.0.0.2", 80))
    if version == 6:
        ends = (Endpoint("2001:db8::1", 50000), Endpoint("fe80::2", 80))
    found, left_out = decode(link_type, frame + b"padding")
    assert left_out == {}
    assert found is not None
    assert endpoints(found.path) == ends
    assert endpoints(reverse(found.path)) == ends[::-1]
    assert found[1:] == (7, 0xFFFFFFFF, 0x18, PAYLOAD, 0)


@pytest.mark.parametrize("name", STACKS)
def test_cut_packets(name: str) -> None:
    """Wherever a packet is cut: before the payload it is counted, in it the missing bytes are."""
    link_type, _, frame = built(name)
    for size in range(len(frame)):
        found, left_out = decode(link_type, frame[:size], len(frame))
        missing = len(frame) - size
        if missing > len(PAYLOAD) + 6:  # the end of a TCP header says nothing that is needed
            assert found is None
            assert left_out == {CUT: 1}
        else:
            assert found is not None
            missing = min(missing, len(PAYLOAD))
            assert (found.payload, found.missing) == (PAYLOAD[: len(PAYLOAD) - missing], missing)


def test_cut_options() -> None:
    """A packet cut within the TCP options still says how much payload there was."""
    s = scapy()
    frame = bytes(ethernet(s) / v4(s) / segment(s, ("Timestamp", (1, 2))))
    found, _ = decode(1, frame[: -len(PAYLOAD) - 5], len(frame))
    assert found is not None
    assert (found.payload, found.missing) == (b"", len(PAYLOAD))


# Name: link type, what it is, how it is counted.
LEFT_OUT: dict[str, tuple[int, Callable[[Any], Any], str]] = {
    "ARP": (1, lambda s: ethernet(s) / s.ARP(), NOT_TCP),
    "UDP": (1, lambda s: ethernet(s) / v4(s) / s.UDP() / (b"x" * 40), NOT_TCP),
    "UDP over IPv6": (1, lambda s: ethernet(s) / v6(s) / s.UDP() / (b"x" * 40), NOT_TCP),
    "ESP": (1, lambda s: ethernet(s) / v6(s, nh=50) / (b"x" * 40), NOT_TCP),
    "802.3": (1, lambda s: s.Dot3() / s.LLC() / s.STP(), NOT_TCP),
    "first fragment": (1, lambda s: ethernet(s) / v4(s, flags="MF") / segment(s), FRAGMENTS),
    "last fragment": (1, lambda s: ethernet(s) / v4(s, frag=3, proto=6) / (b"x" * 40), FRAGMENTS),
    "fragment, IPv6": (1, lambda s: ethernet(s) / v6(s) / s.IPv6ExtHdrFragment(m=1) / segment(s), FRAGMENTS),
    "later fragment, IPv6": (
        1,
        lambda s: ethernet(s) / v6(s) / s.IPv6ExtHdrFragment(offset=64) / segment(s),
        FRAGMENTS,
    ),
    "PPP control": (9, lambda s: s.PPP(proto=0xC021) / (b"x" * 40), NOT_TCP),
    "loopback, other family": (0, lambda s: s.Raw(struct.pack("<I", 7)) / (b"x" * 40), NOT_TCP),
    "raw, no IP": (101, lambda s: s.Raw(b"\x00" * 60), NOT_TCP),
    "radio": (105, lambda s: s.Raw(b"\x00" * 60), "of an unknown link layer (105)"),
    "short IPv4 header": (1, lambda s: ethernet(s) / v4(s, ihl=4) / segment(s), MALFORMED),
    "short TCP header": (1, lambda s: ethernet(s) / v4(s) / s.TCP(dataofs=4) / b"x", MALFORMED),
    "long TCP header": (1, lambda s: ethernet(s) / v4(s) / s.TCP(dataofs=15) / b"x", MALFORMED),
    "endless headers": (
        101,
        lambda s: s.Raw(bytes(v6(s, nh=60, plen=3000)) + b"\x3c\0\0\0\0\0\0\0" * 300),
        MALFORMED,
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_left_out(name: str) -> None:
    """What is no usable segment is counted by its kind."""
    link_type, build, kind = LEFT_OUT[name]
    assert decode(link_type, bytes(build(scapy()))) == (None, {kind: 1})


def test_packets_without_a_length() -> None:
    """Before the network card cuts a packet into segments its length may be 0; then the frame's counts."""
    s = scapy()
    for frame in (bytes(ethernet(s) / v4(s, len=0) / segment(s)), bytes(ethernet(s) / v6(s, plen=0) / segment(s))):
        found, _ = decode(1, frame)
        assert found is not None
        assert (found.payload, found.missing) == (PAYLOAD, 0)
        found, _ = decode(1, frame[:-3], len(frame))
        assert found is not None
        assert (found.payload, found.missing) == (PAYLOAD[:-3], 3)


def test_mapped_addresses() -> None:
    """An IPv4 address in IPv6 clothing is shown as what it is."""
    path = bytes(10) + b"\xff\xff\x0a\0\0\1" + bytes(15) + b"\1" + b"\0\1\0\2"
    assert endpoints(path) == (Endpoint("10.0.0.1", 1), Endpoint("::1", 2))


@settings(max_examples=500, deadline=None)
@given(link_type=st.sampled_from(LINK_TYPES), frame=st.binary(max_size=120), longer=st.integers(0, 100))
def test_any_bytes(link_type: int, frame: bytes, longer: int) -> None:
    """Any bytes are a segment that fits them, or are counted."""
    found, _ = decode(link_type, frame, len(frame) + longer)
    if found is not None:
        assert found.payload in frame
        assert found.missing >= 0
        assert len(found.path) in (12, 36)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(STACKS)), st.data())
def test_damaged_packets(name: str, data: st.DataObject) -> None:
    """A few changed bytes in a real packet raise nothing."""
    link_type, _, whole = built(name)
    frame = bytearray(whole)
    for _ in range(3):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode(link_type, bytes(frame))
