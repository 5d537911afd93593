"""A capture's synthesized packets onto a network interface, so that live tools see them.

The packets are those of the pcapng: plaintext in made-up TCP connections between the recorded addresses (`tlscap.synth`).  Those that
are longer than the interface takes are cut into segments (`segments`), with sequence numbers and checksums that are right.

A packet is due when its time comes, counted from the first one's; one that is late goes at once, so the order of the file stays.
Every further round of a loop has other sequence numbers, or its connections would be taken for repetitions of the first.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple, Protocol, cast

from tlscap.capture import Capture
from tlscap.decode import NoteEvent, decode
from tlscap.errors import PrivilegeError, TlscapError, UsageError
from tlscap.export.scapy_packets import _Rebuilt
from tlscap.packets import ACK, FIN, PSH, SYN, TcpPath, parse_tcp
from tlscap.pcapng import EnhancedPacket, read_blocks
from tlscap.sidecar import SidecarReader
from tlscap.synth import FRAMINGS

_ETHERNET_LEN: Final = 14
_SMALLEST_MTU: Final = 256  # of an interface that can be of use: headers take up to 80 bytes
_ROUND_STEP: Final = (
    1_000_000_007  # between the sequence numbers of two rounds: prime, so that they don't come again soon
)
_SEQ_MASK: Final = 0xFFFFFFFF
_NAME_LEN: Final = 15  # IFNAMSIZ - 1

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCGIFHWADDR = 0x8913, 0x8921, 0x8927  # linux/sockios.h
_IFF_UP: Final = 1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
_IFREQ_LEN: Final = 40
_ETH_P_LOOP: Final = 0x0060  # linux/if_ether.h

_PATIENCE_S: Final = 0.002  # between two tries when the interface's queue is full


class Frame(NamedTuple):
    """An Ethernet frame and its time."""

    time_ns: int
    data: bytes


class Interface(NamedTuple):
    """A network interface that takes Ethernet frames."""

    name: str
    mtu: int
    """Bytes of an IP packet."""
    is_hardware: bool
    """Whether a device is behind it: what it sends, others may hear."""


class Link(Protocol):
    """What frames are put on; scapy's layer 2 sockets are such."""

    def send(self, frame: bytes, /) -> int:
        """Send one.  Raises `OSError`."""
        ...

    def close(self) -> None:
        """Let go of the interface."""
        ...


@dataclass(slots=True)
class Sent:
    """What went out."""

    packets: int = 0
    connections: int = 0
    size: int = 0
    """Bytes of all frames."""
    cut: int = 0
    """Packets that were cut into several."""
    unsent: int = 0
    """Those of other programs in the file that are too long and can't be cut."""


# --- Frames ---


def frames(capture: Capture, framing: str | None = None) -> Iterator[Frame]:
    """Yield the packets of a capture: those of the pcapng, or what ``tlscap rebuild`` would make of the sidecar.

    Raises `tlscap.errors.FormatError`, also for a pcapng that tlscap did not write, and `UsageError` for a framing that a pcapng
    has already; `tlscap.errors.TruncatedError` after the last packet of a file that ends early.
    """
    if capture.is_sidecar:
        chosen = framing or _recorded_framing(next(SidecarReader(capture.stream).frames(), b""))
        stream = cast("BinaryIO", io.BufferedReader(_Rebuilt(capture.stream, chosen)))
    elif framing:
        raise UsageError("--framing needs the sidecar: the packets of a pcapng have their framing already")
    else:
        next(capture.items(), None)  # which complains if the file is another program's
        stream = capture.stream
    for block in read_blocks(stream):
        if isinstance(block, EnhancedPacket):
            yield Frame(block.time_ns, block.data)


def _recorded_framing(first: bytes) -> str:
    """Return the framing that the first record of a sidecar names."""
    event = next(decode(first), None)
    framing = event.body.get("framing") if isinstance(event, NoteEvent) else None
    return framing if framing in FRAMINGS else "auto"


def segments(frame: bytes, mtu: int, seq_shift: int = 0) -> list[bytes] | None:
    """Return a TCP packet as packets that fit an interface, all sequence numbers moved by ``seq_shift``.

    ``None`` for one that is too long and no TCP packet; others of that kind come back as they are.
    """
    fits = len(frame) - _ETHERNET_LEN <= mtu
    if fits and not seq_shift:
        return [frame]
    segment = parse_tcp(frame)
    if segment is None:
        return [frame] if fits else None
    path = TcpPath(segment.source, segment.source_port, segment.destination, segment.destination_port)
    seq = segment.seq + seq_shift
    ack = (segment.ack + seq_shift) & _SEQ_MASK if segment.flags & ACK else segment.ack
    room = len(segment.payload)
    if not fits:
        room = mtu - (len(frame) - _ETHERNET_LEN - len(segment.payload))
        if room <= 0:
            return None
    found = []
    for start in range(0, max(1, len(segment.payload)), max(1, room)):
        payload = segment.payload[start : start + room]
        is_last = start + room >= len(segment.payload)
        flags = segment.flags if is_last else segment.flags & ~(PSH | FIN)
        found.append(path.packet((seq + start) & _SEQ_MASK, ack, flags, payload, segment.options))
    return found


# --- The interface ---


def find_interface(name: str) -> Interface:
    """Return an interface that is there, up, and takes Ethernet frames.  Raises `TlscapError`."""
    request = name.encode("utf-8", "surrogateescape")
    if not 0 < len(request) <= _NAME_LEN or b"/" in request or b"\0" in request:
        raise TlscapError(f"{name!r} is no name of a network interface")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:

        def ask(what: int, layout: str) -> int:
            answer = fcntl.ioctl(asked, what, request.ljust(_IFREQ_LEN, b"\0"))
            return int(struct.unpack_from(layout, answer, _NAME_LEN + 1)[0])

        try:
            flags, mtu, kind = ask(_SIOCGIFFLAGS, "H"), ask(_SIOCGIFMTU, "i"), ask(_SIOCGIFHWADDR, "H")
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise TlscapError(f"network interface {name}: {error.strerror}") from None
            others = ", ".join(other for _, other in socket.if_nameindex())
            raise TlscapError(f"no network interface {name}", hint=f"there are {others}") from None
    if kind not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        raise TlscapError(f"{name} carries no Ethernet", hint="give lo, or a dummy or veth interface (docs/sending.md)")
    if not flags & _IFF_UP:
        raise TlscapError(f"network interface {name} is down", hint=f"ip link set {name} up")
    if mtu < _SMALLEST_MTU:
        raise TlscapError(f"{name} takes no more than {mtu} bytes at once: too few for packets of TCP")
    return Interface(name, mtu, os.path.exists(f"/sys/class/net/{name}/device"))


def open_link(interface: Interface) -> Link:
    """Return a socket for frames.  Raises `PrivilegeError` and `TlscapError`."""
    import scapy.arch  # which decides about the sockets of this system
    import scapy.layers.l2  # noqa: F401 - without it scapy warns that it can't dissect what nobody asks it to
    from scapy.config import conf

    try:
        # It receives, too, but keeps nothing: `ETH_P_LOOP` is a type that nobody sends.
        return cast("Link", conf.L2socket(iface=interface.name, type=_ETH_P_LOOP, promisc=False))
    except PermissionError:
        raise PrivilegeError(
            "sending packets needs the capability CAP_NET_RAW", hint="run it as root: sudo tlscap replay packets ..."
        ) from None
    except OSError as error:
        raise TlscapError(f"network interface {interface.name}: {error.strerror}") from None


# --- Sending ---


def inject(
    packets: Iterator[Frame],
    link: Link,
    interface: Interface,
    sent: Sent,
    *,
    speed: float | None = 1.0,
    number: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Send packets, and count them in ``sent``.

    ``speed`` is how many times as fast as recorded, ``None`` as fast as the interface takes them; ``number`` is which round
    of a loop it is, from 0.  Raises `TlscapError` when the interface fails, and what ``packets`` raises.
    """
    shift = number * _ROUND_STEP & _SEQ_MASK
    first_ns = -1
    begun = time.monotonic()
    for time_ns, frame in packets:
        if first_ns < 0:
            first_ns = time_ns
        if speed:
            due = begun + (time_ns - first_ns) / 1e9 / speed
            while (left := due - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))
                on_progress()
        pieces = segments(frame, interface.mtu, shift)
        if pieces is None:
            sent.unsent += 1
            continue
        sent.cut += len(pieces) > 1
        sent.connections += _opens(frame)
        for piece in pieces:
            _send(link, interface, piece)
            sent.packets += 1
            sent.size += len(piece)
        on_progress()


def _opens(frame: bytes) -> bool:
    segment = parse_tcp(frame) if len(frame) < _SMALLEST_MTU else None
    return segment is not None and segment.flags & (SYN | ACK) == SYN


def _send(link: Link, interface: Interface, frame: bytes) -> None:
    while True:
        try:
            link.send(frame)
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # the queue is full
                time.sleep(_PATIENCE_S)
                continue
            raise TlscapError(f"network interface {interface.name}: {error.strerror}") from None
