"""Ethernet, IP and TCP around a payload: built with right checksums, and taken apart again.

Only what a synthesized connection needs: Ethernet II, IPv4 without options or fragments, IPv6 without
extension headers, TCP.  Addresses are in network form (4 or 16 bytes), as `ipaddress` packs them.
Nothing here knows about connections: sequence numbers come from the caller.

A `TcpPath` is one direction of a connection with all that its packets share already computed, sums
included; it is what makes this fast enough for a live writer in pure Python.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

MSS: Final = 65495
"""Largest TCP payload: the most that fits an IPv4 packet, 65535 bytes with both headers."""

SYN_OPTIONS: Final = struct.pack("!BBH", 2, 4, MSS) + b"\x04\x02" + b"\x01\x03\x03\x0e" + b"\x01\x01"
"""TCP options for a SYN: MSS, SACK permitted, window scale 14.  Wireshark 4.4+ misses SACK when absent."""

_WINDOW = 65535
_HOP_LIMIT = 64
_PROTOCOL_TCP = 6
_DONT_FRAGMENT = 0x4000  # with DF set the identification may be any value (RFC 6864 section 4.1): ours is 0

_ETHERNET = struct.Struct("!6s6sH")  # destination, source, ethertype
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD

_TCP = struct.Struct("!HHIIHHHH")  # source port, destination port, seq, ack, offset and flags, window, checksum, urgent

# A whole header in one pack: link and first bytes of IP, length, the bytes up to the checksum, checksum,
# addresses, ports, then the fields of _TCP from seq on.
_IPV4_TCP = struct.Struct("!16sH6sH8s4sIIHHHH")
_IPV6_TCP = struct.Struct("!18sH2s32s4sIIHHHH")
_IPV4_HEADER_LEN = 20
_TCP_HEADER_LEN = 20


def word_sum(data: bytes) -> int:
    """Return the sum of the 16-bit big-endian words of `data`, modulo 65535; a zero byte completes an odd length.

    Because 2**16 is 1 modulo 65535, the sum of the words is the remainder of the whole number: two
    linear passes in C, where a loop over words would take Python a hundred times as long.
    """
    return (int.from_bytes(data, "big") << (8 * (len(data) & 1))) % 0xFFFF


def checksum(total: int) -> int:
    """Return the Internet checksum (RFC 1071) for a sum of words that are not all zero.

    A one's complement sum of non-zero words is never 0 but 0xffff, so its complement is in 0..0xfffe:
    exactly the residues modulo 65535.
    """
    return -total % 0xFFFF


class TcpPath:
    """One direction of a TCP connection: makes the packets that go this way."""

    __slots__ = ("_addresses", "_ip_sum", "_link", "_ports", "_tcp_sum")

    def __init__(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> None:
        """Prepare packets between two addresses of the same family, both 4 or both 16 bytes."""
        if len(source) != len(destination) or len(source) not in {4, 16}:
            raise ValueError("addresses must be 4 or 16 bytes, both alike")
        link = _mac(destination) + _mac(source)
        if len(source) == 4:
            self._link = link + _ETHERTYPE_IPV4.to_bytes(2, "big") + b"\x45\x00"
        else:
            self._link = link + _ETHERTYPE_IPV6.to_bytes(2, "big") + b"\x60\x00\x00\x00"
        self._addresses = source + destination
        self._ports = struct.pack("!HH", source_port, destination_port)
        addresses_sum = word_sum(self._addresses)
        self._ip_sum = 0x4500 + _DONT_FRAGMENT + (_HOP_LIMIT << 8 | _PROTOCOL_TCP) + addresses_sum
        self._tcp_sum = addresses_sum + _PROTOCOL_TCP + word_sum(self._ports) + _WINDOW

    def packet(self, seq: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
        """Return an Ethernet frame with one TCP segment; `options` must be a multiple of 4 bytes long."""
        if len(payload) > MSS:
            raise ValueError(f"a TCP payload of {len(payload)} bytes is larger than {MSS}")
        offset_flags = (_TCP_HEADER_LEN + len(options)) << 10 | flags
        tcp_len = _TCP_HEADER_LEN + len(options) + len(payload)
        tcp_sum = self._tcp_sum + tcp_len + seq + ack + offset_flags + word_sum(options) + word_sum(payload)
        tail = (self._ports, seq, ack, offset_flags, _WINDOW, checksum(tcp_sum), 0)
        if len(self._addresses) == 8:
            total_len = _IPV4_HEADER_LEN + tcp_len
            header = _IPV4_TCP.pack(
                self._link,
                total_len,
                b"\x00\x00\x40\x00\x40\x06",  # identification, DF, hop limit 64, TCP
                checksum(self._ip_sum + total_len),
                self._addresses,
                *tail,
            )
        else:
            header = _IPV6_TCP.pack(self._link, tcp_len, b"\x06\x40", self._addresses, *tail)
        return b"".join((header, options, payload))


def build_tcp(
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    *,
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """Return one Ethernet frame with a TCP segment: a `TcpPath` used once."""
    return TcpPath(source, source_port, destination, destination_port).packet(seq, ack, flags, payload, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one frame says at the TCP level.  Addresses are in network form."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    seq: int
    ack: int
    flags: int
    options: bytes
    payload: bytes


def parse_tcp(frame: bytes) -> Segment | None:
    """Return the TCP segment in an Ethernet frame, or None when there is no whole, unfragmented one.

    Padding after the IP packet is left out.  Checksums are not verified: captures hold wrong ones
    whenever the network card computes them.
    """
    if len(frame) < _ETHERNET.size:
        return None
    ethertype = int.from_bytes(frame[12:14], "big")
    start = _ETHERNET.size
    if ethertype == _ETHERTYPE_IPV4:
        if len(frame) < start + _IPV4_HEADER_LEN or frame[start] >> 4 != 4 or frame[start + 9] != _PROTOCOL_TCP:
            return None
        fragment = int.from_bytes(frame[start + 6 : start + 8], "big") & 0x3FFF  # more fragments, offset
        header_len = (frame[start] & 0x0F) * 4
        if fragment or header_len < _IPV4_HEADER_LEN:
            return None
        source, destination = frame[start + 12 : start + 16], frame[start + 16 : start + 20]
        end = start + int.from_bytes(frame[start + 2 : start + 4], "big")
        tcp = start + header_len
    elif ethertype == _ETHERTYPE_IPV6:
        tcp = start + 40
        if len(frame) < tcp or frame[start] >> 4 != 6 or frame[start + 6] != _PROTOCOL_TCP:
            return None
        source, destination = frame[start + 8 : start + 24], frame[start + 24 : start + 40]
        end = tcp + int.from_bytes(frame[start + 4 : start + 6], "big")
    else:
        return None
    if len(frame) < end or end < tcp + _TCP_HEADER_LEN:
        return None
    source_port, destination_port, seq, ack, offset_flags, _, _, _ = _TCP.unpack_from(frame, tcp)
    payload = tcp + (offset_flags >> 12) * 4
    if not tcp + _TCP_HEADER_LEN <= payload <= end:
        return None
    return Segment(
        source=source,
        source_port=source_port,
        destination=destination,
        destination_port=destination_port,
        seq=seq,
        ack=ack,
        flags=offset_flags & 0xFF,
        options=frame[tcp + _TCP_HEADER_LEN : payload],
        payload=frame[payload:end],
    )


def _mac(address: bytes) -> bytes:
    """Return a locally administered MAC address that repeats the end of the IP address."""
    return b"\x02\x00" + address[-4:]
