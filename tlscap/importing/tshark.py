"""How tshark is asked to decrypt, and how its answers are read.  Starting it is up to the caller.

Its input is not the capture but a pcapng made for it: each TLS record is one packet, in order, with nothing missing,
repeated or cut, and each connection has addresses of its own.  All keys stand in front, in Decryption Secrets Blocks: a
renegotiated connection needs some that nothing outside of it names.  Its output is a line of fields for each packet.  So every
record has an answer, which is found by counting, and of all that tshark can dissect only the TLS layer ever sees a byte: every
protocol but those in `NEEDED` is switched off.

A ChangeCipherSpec is an exception: its packet is empty, and it stands in front of its direction's next record.  Any handshake
message in a later packet than that of the ChangeCipherSpec is shown as encrypted by tshark 4.4, even when it has just
decrypted it, and Finished would be one.

A record in which bytes are missing fails its check, after which tshark can't open the following ones either, because it does
not count it.  So connections with such records are asked about again, with the check switched off (`lenient`): what is found in
the damaged records themselves is then not to be used.

Measured with tshark 4.0: about 20 MB of TLS a second, and twice the memory of what it decrypted, which it keeps to its end.
4.4 is no slower.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from tlscap import pcapng
from tlscap.errors import TlscapError
from tlscap.importing.hello import CHANGE_CIPHER_SPEC
from tlscap.importing.keylog import KeyLog
from tlscap.importing.tls import Decrypted
from tlscap.model import Direction
from tlscap.packets import ACK, PSH, TcpPath

NEEDED: Final = frozenset({"data", "eth", "ethertype", "frame", "ipv6", "tcp", "tls"})

LIST_PROTOCOLS: Final = ("-G", "protocols")

_FIELDS = (
    "frame.number",
    "tls.record.content_type",
    "tls.record.opaque_type",
    "tls.handshake.type",
    "tls.handshake.extensions_alpn_str",
    "tls.alert_message.desc",
    "data.data",
)
_NAME = 2  # the column of the filter name
_FEWEST_PROTOCOLS = 100

_DECRYPTION_SECRETS = 10
_TLS_KEY_LOG = 0x544C534B
_SECRETS = struct.Struct("<IIII")  # block type, total length, secrets type, length
_SECRETS_SIZE = 1 << 20  # of one block

_SERVER_PORT = 443
_CLIENT_PORT = 49152
_NETWORK = b"\xfd" + bytes(6)  # a unique local address (RFC 4193): prefix, which end, number of the connection


def protocol_options(listing: bytes) -> list[str]:
    """Return the options that switch off what is not needed, made from what ``tshark -G protocols`` prints.

    A line is a protocol's name, short name and filter name.  Newer ones (4.4) add whether it is on, whether by default, and
    whether that can be changed.  These refuse names that they list themselves, of parts of other protocols, but can
    switch off all at once; older ones (4.0) have no option for that.
    """
    rows = [line.split("\t") for line in listing.decode("utf-8", "replace").splitlines() if line.count("\t") >= _NAME]
    names = [row[_NAME].strip() for row in rows]
    if len(names) < _FEWEST_PROTOCOLS or not NEEDED.issubset(names):
        raise TlscapError("tshark does not list its protocols as expected")
    if len(rows[0]) > _NAME + 1:
        return ["--only-protocols", ",".join(sorted(NEEDED))]
    return [word for name in names if name not in NEEDED for word in ("--disable-protocol", name)]


def arguments(protocols: list[str], *, lenient: bool = False) -> list[str]:
    """Return the options with which tshark reads a `Feeder`'s bytes and prints what `parse` reads.

    `protocols` are those of `protocol_options`.
    """
    options = ["-r", "-", "-n", "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"]
    options += "-o", f"tls.ignore_ssl_mac_failed:{'TRUE' if lenient else 'FALSE'}"
    for field in _FIELDS:
        options += "-e", field
    return options + protocols


def parse(line: bytes) -> tuple[int, Decrypted]:
    """Return the number of a packet, counted from 1, and what was found in it.

    Raise `TlscapError` when the line is not what `arguments` asked for.
    """
    try:
        number, content, opaque, handshakes, alpn, alerts, data = line.rstrip(b"\r\n").split(b"\t")
        return int(number), Decrypted(
            content_types=tuple(kind for kind in _numbers(content) if kind != CHANGE_CIPHER_SPEC),
            is_tls13=bool(opaque),
            handshakes=_numbers(handshakes),
            alpn=alpn.decode("utf-8", "replace"),
            alerts=_numbers(alerts),
            data=bytes.fromhex(data.decode("ascii").replace(",", "").replace(":", "")),
        )
    except ValueError:
        raise TlscapError("tshark's output is not what was asked for") from None


def _numbers(text: bytes) -> tuple[int, ...]:
    return tuple(int(word, 0) for word in text.split(b",") if word)


class Feeder:
    """Makes tshark's input.  Holds a small state for each open connection."""

    def __init__(self) -> None:
        self._halves: dict[int, tuple[_Half, _Half]] = {}

    def start(self, keys: KeyLog) -> Iterator[bytes]:
        """Yield the first bytes."""
        yield pcapng.section_header(application="tlscap") + pcapng.interface_description(name="", description="")
        lines: list[bytes] = []
        size = 0
        for line in keys.lines():
            lines.append(line + b"\n")
            size += len(line)
            if size > _SECRETS_SIZE:
                yield _secrets(b"".join(lines))
                lines, size = [], 0
        yield _secrets(b"".join(lines))

    def begin(self, connection: int) -> None:
        """Make a connection's addresses."""
        number = connection.to_bytes(8, "big")
        client, server = _NETWORK + b"\x01" + number, _NETWORK + b"\x02" + number
        self._halves[connection] = (
            _Half(TcpPath(server, _SERVER_PORT, client, _CLIENT_PORT)),
            _Half(TcpPath(client, _CLIENT_PORT, server, _SERVER_PORT)),
        )

    def record(self, connection: int, direction: Direction, record: bytes, time_ns: int) -> bytes:
        """Return the packet for a record."""
        halves = self._halves[connection]
        half = halves[direction]
        # No more than one is held back, should somebody send nothing else.
        is_held = record[0] == CHANGE_CIPHER_SPEC
        payload, half.held = (half.held, record) if is_held else (half.held + record, b"")
        frame = half.path.packet(half.seq, halves[1 - direction].seq, PSH | ACK, payload)
        half.seq = (half.seq + len(payload)) & 0xFFFFFFFF
        return pcapng.enhanced_packet(interface=0, time_ns=time_ns, frame=frame)

    def end(self, connection: int) -> None:
        """Forget a connection."""
        del self._halves[connection]


class _Half:
    """One direction of a connection."""

    __slots__ = ("held", "path", "seq")

    def __init__(self, path: TcpPath) -> None:
        self.path = path
        self.seq = 1
        self.held = b""
        """A ChangeCipherSpec record that waits for the next one."""


def _secrets(lines: bytes) -> bytes:
    padding = bytes(-len(lines) % 4)
    total = _SECRETS.size + len(lines) + len(padding) + 4
    head = _SECRETS.pack(_DECRYPTION_SECRETS, total, _TLS_KEY_LOG, len(lines))
    return head + lines + padding + struct.pack("<I", total)
