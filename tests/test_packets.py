"""Packets: scapy is the oracle for what is built, any bytes are input for what is parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap.packets import ACK, FIN, MSS, PSH, SYN, SYN_OPTIONS, Segment, TcpPath, build_tcp, parse_tcp, word_sum

V4 = (bytes([10, 0, 0, 2]), bytes([93, 184, 216, 34]))
V6 = (bytes.fromhex("20010db8000000000000000000000001"), bytes.fromhex("fe80000000000000020000fffe000001"))

addresses = st.one_of(
    st.tuples(*[st.binary(min_size=4, max_size=4)] * 2),
    st.tuples(*[st.binary(min_size=16, max_size=16)] * 2),
)
pairs_of_ports = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
numbers = st.integers(0, 0xFFFFFFFF)


def scapy_says(frame: bytes) -> bytes:
    """Return the frame as scapy builds it from its fields, with lengths and checksums computed anew."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    packet = Ether(frame)
    for layer, names in ((IP, ("len", "chksum")), (IPv6, ("plen",)), (TCP, ("chksum", "dataofs"))):
        if layer in packet:
            for name in names:
                packet[layer].delfieldval(name)
    return bytes(packet)


@given(ends=addresses, ports=pairs_of_ports, seq=numbers, ack=numbers, payload=st.binary(max_size=300))
def test_lengths_and_checksums_are_those_scapy_computes(
    ends: tuple[bytes, bytes], ports: tuple[int, int], seq: int, ack: int, payload: bytes
) -> None:
    """Every frame is byte for byte what scapy makes of the same fields."""
    frame = build_tcp(ends[0], ports[0], ends[1], ports[1], seq=seq, ack=ack, flags=PSH | ACK, payload=payload)
    assert scapy_says(frame) == frame


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("size", [0, 1, 16384, 16409, MSS])
def test_large_and_odd_payloads_have_right_checksums(ends: tuple[bytes, bytes], size: int) -> None:
    """Up to the largest payload, and with an odd byte at the end."""
    frame = build_tcp(ends[0], 1, ends[1], 2, seq=3, payload=b"\xab\xff\x01" * (size // 3) + b"x" * (size % 3))
    assert scapy_says(frame) == frame


@pytest.mark.parametrize("ends", [V4, V6])
def test_a_sum_that_is_a_multiple_of_65535_gives_checksum_zero(ends: tuple[bytes, bytes]) -> None:
    """The one's complement of 0xffff is 0, and not 0xffff: the one case where the residue alone misleads."""
    without = build_tcp(ends[0], 1, ends[1], 2, seq=3, payload=b"\0\0")
    at = len(without) - 6  # the checksum, before the urgent pointer and the payload
    frame = build_tcp(ends[0], 1, ends[1], 2, seq=3, payload=without[at : at + 2])
    assert frame[at : at + 2] == b"\0\0"
    assert scapy_says(frame) == frame


@given(data=st.binary(max_size=64))
def test_word_sum_is_the_sum_of_the_words(data: bytes) -> None:
    """The trick with one big number equals the loop of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    words = [padded[at] << 8 | padded[at + 1] for at in range(0, len(padded), 2)]
    assert word_sum(data) == sum(words) % 0xFFFF


@given(ends=addresses, ports=pairs_of_ports, seq=numbers, ack=numbers, payload=st.binary())
def test_what_is_built_can_be_parsed(
    ends: tuple[bytes, bytes], ports: tuple[int, int], seq: int, ack: int, payload: bytes
) -> None:
    """All fields come back, also with options and with the padding that Ethernet adds."""
    path = TcpPath(ends[0], ports[0], ends[1], ports[1])
    frame = path.packet(seq, ack, SYN | FIN, payload, SYN_OPTIONS)
    expected = Segment(
        source=ends[0],
        source_port=ports[0],
        destination=ends[1],
        destination_port=ports[1],
        seq=seq,
        ack=ack,
        flags=SYN | FIN,
        options=SYN_OPTIONS,
        payload=payload,
    )
    assert parse_tcp(frame) == expected
    assert parse_tcp(frame + bytes(6)) == expected


@given(
    frame=st.one_of(
        st.binary(max_size=120),
        st.binary(max_size=100).map(lambda rest: bytes(12) + b"\x08\x00\x45" + rest),
        st.binary(max_size=100).map(lambda rest: bytes(12) + b"\x86\xdd\x60" + rest),
    )
)
def test_any_bytes_are_a_segment_or_none(frame: bytes) -> None:
    """Nothing in a frame raises, and no payload is longer than the frame."""
    segment = parse_tcp(frame)
    assert segment is None or len(segment.payload) < len(frame)


@given(data=st.data())
def test_a_frame_cut_anywhere_is_none(data: st.DataObject) -> None:
    """A part of a segment is not taken for the whole one."""
    ends = data.draw(st.sampled_from([V4, V6]))
    frame = build_tcp(ends[0], 1, ends[1], 2, seq=3, payload=b"payload")
    assert parse_tcp(frame[: data.draw(st.integers(0, len(frame) - 1))]) is None


def test_fragments_and_other_protocols_are_none() -> None:
    """Neither an IPv4 fragment nor UDP is a TCP segment."""
    frame = bytearray(build_tcp(*_ends(V4), seq=3))
    frame[20] |= 0x20  # more fragments
    assert parse_tcp(bytes(frame)) is None
    frame = bytearray(build_tcp(*_ends(V4), seq=3))
    frame[23] = 17
    assert parse_tcp(bytes(frame)) is None


def test_mistakes_of_the_caller_are_value_errors() -> None:
    """Mixed address families and payloads that fit no packet."""
    with pytest.raises(ValueError, match="alike"):
        TcpPath(V4[0], 1, V6[0], 2)
    with pytest.raises(ValueError, match="65496"):
        build_tcp(*_ends(V4), seq=0, payload=bytes(MSS + 1))


def _ends(pair: tuple[bytes, bytes]) -> tuple[bytes, int, bytes, int]:
    return pair[0], 1, pair[1], 2
