"""From a captured packet to the TCP segment in it: link layer, IP and TCP headers, nothing else.

Link layers: Ethernet, with any VLAN tags, MPLS labels or PPPoE; Linux "cooked" captures, both versions; raw IP; BSD
loopback; PPP.  IPv4 with options, IPv6 with extension headers.  Checksums are not verified: captures hold
wrong ones whenever the network card computes them.

What holds no TCP segment that can be used is counted by its kind, and left out.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from tlscap.importing.packetfile import Packet
from tlscap.model import Endpoint

NOT_TCP: Final = "not TCP"
FRAGMENTS: Final = "IP fragments"
CUT: Final = "cut before the end of their headers"
MALFORMED: Final = "malformed"

_ETHERNET = 1
_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = frozenset({0x8100, 0x88A8, 0x9100})  # 802.1Q, 802.1ad, and what came before it
_MPLS = frozenset({0x8847, 0x8848})
_PPPOE_SESSION = 0x8864
_PPP_IPV4, _PPP_IPV6 = 0x0021, 0x0057
_NOT_IP = 0

_TCP = 6
_TCP_HEADER_LEN = 20
_IPV4_FIELDS = struct.Struct("!2xH2xHxB")  # total length, flags and fragment offset, protocol
_IPV6_FIELDS = struct.Struct("!4xHB")  # payload length, next header
_TCP_FIELDS = struct.Struct("!4xIIH")  # seq, ack, header length and flags

_IPV6_HEADER_LEN = 40
_HEADERS_OF_8 = frozenset({0, 43, 60, 135, 139, 140})  # their length is in units of 8 bytes, the first not counted
_FRAGMENT, _AUTHENTICATION = 44, 51
_MOST_HEADERS = 16  # extension headers of one packet, and labels or tags: more is an attack

# Address families of the loopback header: each system has its own number for IPv6.
_FAMILIES: Final = {2: _ETHERTYPE_IPV4, **dict.fromkeys((10, 23, 24, 28, 30), _ETHERTYPE_IPV6)}


class Captured(NamedTuple):
    """A TCP segment as it was captured."""

    path: bytes
    """Source and destination address, source and destination port, in network form: which way of which connection."""
    seq: int
    ack: int
    flags: int
    payload: bytes
    missing: int
    """Bytes of the payload's end that were not captured."""


def reverse(path: bytes) -> bytes:
    """Return the path of the other direction."""
    half = (len(path) - 4) // 2
    return path[half:-4] + path[:half] + path[-2:] + path[-4:-2]


def endpoints(path: bytes) -> tuple[Endpoint, Endpoint]:
    """Return where a path begins and where it ends.  An IPv4-mapped IPv6 address is shown as what it is."""
    half = (len(path) - 4) // 2
    source_port, destination_port = struct.unpack("!HH", path[-4:])
    return Endpoint(_address(path[:half]), source_port), Endpoint(_address(path[half:-4]), destination_port)


def _address(raw: bytes) -> str:
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


class FrameDecoder:
    """Packets in, TCP segments out."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        """Packets without a usable segment, by what they are."""

    def decode(self, packet: Packet) -> Captured | None:
        """Return the segment, or None after counting why there is none."""
        link_type, _, frame, original_len = packet
        try:
            if link_type == _ETHERNET:
                ethertype, start = frame[12] << 8 | frame[13], 14
            else:
                ethertype, start = self._link(link_type, frame)
            if ethertype not in (_ETHERTYPE_IPV4, _ETHERTYPE_IPV6):
                ethertype, start = _unwrap(frame, ethertype, start)
            if ethertype == _ETHERTYPE_IPV4:
                return self._ipv4(frame, start, original_len)
            if ethertype == _ETHERTYPE_IPV6:
                return self._ipv6(frame, start, original_len)
        except (IndexError, struct.error):
            self.left_out[CUT] += 1
            return None
        if ethertype == _NOT_IP:
            self.left_out[NOT_TCP] += 1
        return None

    def _link(self, link_type: int, frame: bytes) -> tuple[int, int]:
        """Return the ethertype of what a frame holds, and where that begins."""
        decode = _LINKS.get(link_type)
        if decode is None:
            self.left_out[f"of an unknown link layer ({link_type})"] += 1
            return -1, 0
        return decode(frame)

    def _ipv4(self, frame: bytes, start: int, original_len: int) -> Captured | None:
        total, fragment, protocol = _IPV4_FIELDS.unpack_from(frame, start)
        if protocol != _TCP:
            self.left_out[NOT_TCP] += 1
            return None
        if fragment & 0x3FFF:  # more fragments, or an offset
            self.left_out[FRAGMENTS] += 1
            return None
        # A packet that the network card will cut into segments has no length yet when the sending host captures it.
        end = start + total if total else original_len
        tcp = start + (frame[start] & 0x0F) * 4
        if tcp < start + 20:
            self.left_out[MALFORMED] += 1
            return None
        return self._tcp(frame, tcp, end, frame[start + 12 : start + 20])

    def _ipv6(self, frame: bytes, start: int, original_len: int) -> Captured | None:
        length, protocol = _IPV6_FIELDS.unpack_from(frame, start)
        position = start + _IPV6_HEADER_LEN
        end = position + length if length else original_len  # 0: as above, or a jumbogram (RFC 2675)
        headers = 0
        while protocol != _TCP:
            if protocol in _HEADERS_OF_8:
                size = frame[position + 1] * 8 + 8
            elif protocol == _FRAGMENT:
                if frame[position + 2] | frame[position + 3] & 0xF9:  # an offset, or more fragments
                    self.left_out[FRAGMENTS] += 1
                    return None
                size = 8
            elif protocol == _AUTHENTICATION:
                size = frame[position + 1] * 4 + 8
            else:
                self.left_out[NOT_TCP] += 1
                return None
            headers += 1
            if headers > _MOST_HEADERS:
                self.left_out[MALFORMED] += 1
                return None
            protocol = frame[position]
            position += size
        return self._tcp(frame, position, end, frame[start + 8 : start + 40])

    def _tcp(self, frame: bytes, start: int, end: int, addresses: bytes) -> Captured | None:
        seq, ack, offset_flags = _TCP_FIELDS.unpack_from(frame, start)
        payload = start + (offset_flags >> 12) * 4
        if not start + _TCP_HEADER_LEN <= payload <= end:
            self.left_out[MALFORMED] += 1
            return None
        data = frame[payload:end]
        return Captured(
            addresses + frame[start : start + 4], seq, ack, offset_flags & 0xFF, data, end - payload - len(data)
        )


# --- Link layers: frame in, ethertype and start of what it holds out ---


def _unwrap(frame: bytes, ethertype: int, start: int) -> tuple[int, int]:
    """Return the ethertype and start of what lies inside tags, labels and PPPoE."""
    for _ in range(_MOST_HEADERS):
        if ethertype in _VLAN_TAGS:
            ethertype, start = frame[start + 2] << 8 | frame[start + 3], start + 4
        elif ethertype in _MPLS:
            is_last = frame[start + 2] & 1
            start += 4
            if is_last:
                return _by_version(frame, start)
        elif ethertype == _PPPOE_SESSION:
            return _ppp(frame, start + 6)
        else:
            break
    return (ethertype, start) if ethertype in (_ETHERTYPE_IPV4, _ETHERTYPE_IPV6) or ethertype < 0 else (_NOT_IP, start)


def _by_version(frame: bytes, start: int = 0) -> tuple[int, int]:
    return {4: _ETHERTYPE_IPV4, 6: _ETHERTYPE_IPV6}.get(frame[start] >> 4, _NOT_IP), start


def _loopback(frame: bytes) -> tuple[int, int]:
    """BSD loopback: an address family in the byte order of the capturing machine, or the network's."""
    (family,) = struct.unpack_from("<I", frame)
    return _FAMILIES.get(family, _FAMILIES.get(family >> 24, _NOT_IP)), 4


def _cooked(frame: bytes) -> tuple[int, int]:
    return frame[14] << 8 | frame[15], 16


def _cooked_v2(frame: bytes) -> tuple[int, int]:
    return frame[0] << 8 | frame[1], 20


def _ppp(frame: bytes, start: int = 0) -> tuple[int, int]:
    """PPP (RFC 1661, 1662): address and control may be left out, and the first byte of a small protocol number, too."""
    if frame[start] == 0xFF and frame[start + 1] == 0x03:
        start += 2
    if frame[start] & 1:
        protocol, start = frame[start], start + 1
    else:
        protocol, start = frame[start] << 8 | frame[start + 1], start + 2
    return {_PPP_IPV4: _ETHERTYPE_IPV4, _PPP_IPV6: _ETHERTYPE_IPV6}.get(protocol, _NOT_IP), start


_LINKS: Final[dict[int, Callable[[bytes], tuple[int, int]]]] = {
    0: _loopback,
    9: _ppp,
    12: _by_version,  # raw IP, as some systems number it
    14: _by_version,
    50: _ppp,
    51: lambda frame: _ppp(frame, 6),  # PPPoE without Ethernet around it
    101: _by_version,
    108: _loopback,
    113: _cooked,
    228: lambda _: (_ETHERTYPE_IPV4, 0),
    229: lambda _: (_ETHERTYPE_IPV6, 0),
    276: _cooked_v2,
}
