"""``tlscap replay packets``: packets cut to size with right numbers and checksums, in their time; and what is refused."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tlscap.capture import open_capture
from tlscap.cli import replay_packets as command
from tlscap.cli.replay_packets import packets
from tlscap.errors import PrivilegeError, TlscapError, UsageError
from tlscap.importing.capture import PacketImport
from tlscap.importing.packetfile import PacketFile
from tlscap.model import Data
from tlscap.packets import ACK, FIN, PSH, SYN, SYN_OPTIONS, build_tcp
from tlscap.pcapng import enhanced_packet as packet_block
from tlscap.pcapng import interface_description, section_header
from tlscap.replay.packets import Frame, Interface, Sent, find_interface, frames, inject, segments

A4, B4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
A6, B6 = bytes(15) + b"\1", bytes(15) + b"\2"
VETH = Interface("veth9", 1500, is_hardware=False)


class Wire:
    """Keeps what is sent; fails as told."""

    def __init__(self, *failures: int) -> None:
        self.frames: list[bytes] = []
        self.failures = list(failures)

    def send(self, frame: bytes) -> int:
        if self.failures and (code := self.failures.pop(0)):
            raise OSError(code, os.strerror(code))
        self.frames.append(frame)
        return len(frame)

    def close(self) -> None:
        pass


def test_what_fits_goes_as_it_is() -> None:
    frame = build_tcp(A4, 1, B4, 2, seq=5, payload=b"x" * 1460)
    assert segments(frame, 1500) == [frame]
    assert segments(b"\0" * 1514, 1500) == [b"\0" * 1514]
    assert segments(b"\0" * 1515, 1500) is None


@given(
    family=st.sampled_from([(A4, B4), (A6, B6)]),
    payload=st.binary(min_size=1, max_size=300).map(lambda data: data * 150),
    mtu=st.integers(256, 65536),
    seq=st.integers(0, 0xFFFFFFFF),
    shift=st.integers(0, 0xFFFFFFFF),
    flags=st.sampled_from([ACK, PSH | ACK, FIN | PSH | ACK]),
)
def test_segments(family: tuple[bytes, bytes], payload: bytes, mtu: int, seq: int, shift: int, flags: int) -> None:
    """scapy agrees: checksums are right, payloads follow each other, and only the last one pushes or ends."""
    frame = build_tcp(family[0], 1, family[1], 2, seq=seq, ack=77, flags=flags, payload=payload)
    found = segments(frame, mtu, shift)
    assert found
    expected = (seq + shift) & 0xFFFFFFFF
    parts = []
    for number, raw in enumerate(found):
        assert len(raw) - 14 <= mtu or (len(found) == 1 and raw == frame)
        packet = Ether(raw)
        again = packet.copy()
        for layer, name in ((IP, "chksum"), (TCP, "chksum")):
            if layer in again:
                delattr(again[layer], name)
        assert bytes(again) == raw  # which computes the checksums
        assert packet[TCP].seq == expected
        assert packet[TCP].ack == (77 + shift) & 0xFFFFFFFF
        assert int(packet[TCP].flags) == (flags if number == len(found) - 1 else ACK)
        assert packet.haslayer(IPv6 if len(family[0]) == 16 else IP)
        parts.append(bytes(packet[TCP].payload))
        expected = (expected + len(parts[-1])) & 0xFFFFFFFF
    assert b"".join(parts) == payload


def test_a_syn_of_a_later_round() -> None:
    """It keeps its options and its acknowledgement of nothing."""
    (raw,) = segments(build_tcp(A4, 1, B4, 2, seq=5, flags=SYN, options=SYN_OPTIONS), 1500, 10) or [b""]
    packet = Ether(raw)
    assert (packet[TCP].seq, packet[TCP].ack, int(packet[TCP].flags)) == (15, 0, SYN)
    assert dict(packet[TCP].options)["MSS"] == 65495


def recorded(tmp_path: Path, name: str = "c.tlscap.zst") -> Path:
    talks = [[(get(f"/{conn}"), answer(b"%d" % conn * 5000))] for conn in range(2)]
    return write_capture(tmp_path / name, *talks)


def sent_data(sent: list[bytes]) -> list[bytes]:
    """What tlscap's own importer reads from packets, which were captured as they were sent, by connection and direction."""
    blocks = [section_header(application="test"), interface_description(name="x", description="")]
    blocks += [packet_block(interface=0, time_ns=number, frame=frame, options=b"") for number, frame in enumerate(sent)]
    streams: dict[tuple[object, int], bytes] = {}
    for item in PacketImport(PacketFile(io.BytesIO(b"".join(blocks)), b"")).items():
        if isinstance(item, Data):
            key = item.flow, item.direction
            streams[key] = streams.get(key, b"") + item.data
    return list(streams.values())


@pytest.mark.parametrize("mtu", [65536, 1500, 300])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_same_bytes_arrive(tmp_path: Path, mtu: int, rounds: int) -> None:
    """However small the packets are, and in every round: the same requests and responses, each round on connections of its own."""
    wire, sent = Wire(), Sent()
    interface = Interface("x", mtu, is_hardware=False)
    for number in range(rounds):
        with open_capture(str(recorded(tmp_path))) as capture:
            inject(frames(capture, "plain"), wire, interface, sent, speed=None, number=number)
    expected = [get("/0"), answer(b"0" * 5000), get("/1"), answer(b"1" * 5000)]
    assert sorted(sent_data(wire.frames)) == sorted(expected * rounds)
    assert sent.connections == 2 * rounds
    assert sent.packets == len(wire.frames)
    assert sent.cut == (0 if mtu > 5200 else 2 * rounds)
    assert sent.size == sum(map(len, wire.frames))


def test_both_files_give_the_same_packets(tmp_path: Path) -> None:
    """Those of the pcapng, and those that the sidecar's would hold; --framing makes others of the sidecar alone."""
    with open_capture(str(recorded(tmp_path))) as sidecar, open_capture(str(recorded(tmp_path, "c.pcapng"))) as pcapng:
        assert list(frames(sidecar)) == list(frames(pcapng))
    with open_capture(str(recorded(tmp_path))) as sidecar:
        assert len({frame.data for frame in frames(sidecar, "plain")} & {frame.data for frame in frames(sidecar)}) < 14
    with open_capture(str(tmp_path / "c.pcapng")) as pcapng, pytest.raises(UsageError):
        list(frames(pcapng, "plain"))


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets wait for their time, by speed; a late one does not wait, and the order stays."""
    now = 100.0
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    monkeypatch.setattr("tlscap.replay.packets.time.monotonic", lambda: now)
    monkeypatch.setattr("tlscap.replay.packets.time.sleep", sleep)
    frame = build_tcp(A4, 1, B4, 2, seq=5)
    times = [5_000_000_000, 5_300_000_000, 4_000_000_000, 6_000_000_000]
    for speed, whole in ((1.0, 1.0), (4.0, 0.25), (None, 0.0)):
        waits.clear()
        wire, sent = Wire(), Sent()
        inject(iter([Frame(time_ns, frame) for time_ns in times]), wire, VETH, sent, speed=speed)
        assert sum(waits) == pytest.approx(whole)
        assert sent.packets == 4


def test_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is waited for; an interface that vanishes is one clear error."""
    monkeypatch.setattr("tlscap.replay.packets.time.sleep", lambda _: None)
    frame = build_tcp(A4, 1, B4, 2, seq=5)
    wire = Wire(errno.ENOBUFS, errno.ENOBUFS, 0, errno.ENETDOWN)
    with pytest.raises(TlscapError, match="veth9: Network is down"):
        inject(iter([Frame(0, frame)] * 2), wire, VETH, Sent(), speed=None)
    assert wire.frames == [frame]


# --- The command ---


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(command, "open_link", lambda _: wire)
    return wire


def test_command(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_interface", lambda name: Interface(name, 1500, is_hardware=False))
    done = CliRunner().invoke(packets, [str(recorded(tmp_path)), "--iface", "veth9", "--timing", "none", "--loop", "2"])
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(f"sent {len(wire.frames)} packets of 4 connections, ")
    assert "4 packets cut to fit 1,500 bytes" in done.stderr
    assert done.stdout == ""


def test_a_cut_file(tmp_path: Path, wire: Wire) -> None:
    """What is there is sent, and said."""
    path = recorded(tmp_path, "c.pcapng")
    path.write_bytes(path.read_bytes()[:-300])
    done = CliRunner().invoke(packets, [str(path), "--iface", "lo", "--timing", "none"])
    assert done.exit_code == 0, done.output
    assert "everything before was sent" in done.stderr
    assert wire.frames


def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at once, and still says what was sent."""
    wire = Wire()

    class Interrupted(Wire):
        def send(self, frame: bytes) -> int:
            if len(wire.frames) == 5:
                raise KeyboardInterrupt
            return wire.send(frame)

    monkeypatch.setattr(command, "open_link", lambda _: Interrupted())
    done = CliRunner().invoke(packets, [str(recorded(tmp_path)), "--iface", "lo", "--timing", "none"])
    assert done.exit_code != 0
    assert done.stderr.startswith("sent 5 packets of 1 connection, ")


def test_not_onto_a_network(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plaintext goes to a network card only on request."""
    monkeypatch.setattr(command, "find_interface", lambda name: Interface(name, 1500, is_hardware=True))
    arguments = [str(recorded(tmp_path)), "--iface", "eth0", "--timing", "none"]
    done = CliRunner().invoke(packets, arguments)
    assert isinstance(done.exception, UsageError)
    assert not wire.frames
    assert CliRunner().invoke(packets, [*arguments, "--onto-network"]).exit_code == 0
    assert wire.frames


def test_loopback_is_known() -> None:
    assert find_interface("lo").mtu > 1000
    assert not find_interface("lo").is_hardware


@pytest.mark.parametrize("name", ["", "no-such-iface", "../../etc", "x" * 16, "a\0b"])
def test_no_interface(name: str) -> None:
    with pytest.raises(TlscapError):
        find_interface(name)


def test_privileges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_NET_RAW: exit status 3, and what to do."""
    import scapy.config

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(scapy.config.conf, "L2socket", refuse)
    done = CliRunner().invoke(packets, [str(recorded(tmp_path)), "--iface", "lo"])
    assert isinstance(done.exception, PrivilegeError)
    assert (done.exception.exit_status, done.exception.hint[:14]) == (3, "run it as root")


def test_other_files(tmp_path: Path, wire: Wire) -> None:
    """Another program's pcapng is refused: nobody knows what is in its packets."""
    foreign = tmp_path / "foreign.pcapng"
    frame = build_tcp(A4, 1, B4, 2, seq=5, flags=SYN)
    parts = [section_header(application="dumpcap"), interface_description(name="x", description="")]
    foreign.write_bytes(b"".join([*parts, packet_block(interface=0, time_ns=1, frame=frame, options=b"")]))
    done = CliRunner().invoke(packets, [str(foreign), "--iface", "lo"])
    assert getattr(done.exception, "exit_status", 0) == 4
    assert not wire.frames
