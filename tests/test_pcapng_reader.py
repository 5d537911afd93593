"""Reading the synthesized file back: streams equal what went in, and other input fails in one clear line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap import pcapng
from tlscap.errors import CorruptError, FormatError, TruncatedError
from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Library,
    Process,
    Role,
    TupleSource,
)
from tlscap.packets import SYN, build_tcp
from tlscap.pcapng_reader import read_items
from tlscap.synth import Synthesizer

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
NOW_NS = 1_700_000_000_000_000_000

CURL = Process(
    42,
    start_ns=55,
    comm="cu rl",
    ppid=1,
    uid=0,
    cmdline=("curl", "-H", "X: 'y' \"z\"", "é", ""),
    exe="/opt/a b/curl",
    libraries=(Library("/usr/lib/libssl.so.3", "abcd"), Library("/opt/nss.so", "", "nss")),
)
NGINX = Process(43, start_ns=56, comm="nginx")

FLOW = Flow(
    7,
    CURL,
    NOW_NS,
    local=Endpoint("fe80::1", 50000),
    remote=Endpoint("fe80::2", 8443),
    tuple_source=TupleSource.IMPORTED,
    transport="tcp",
    role=Role.SERVER,
    sni='a "b" \\ c',
    alpn="h2",
    joined_midstream=True,
    handshake_start_ns=NOW_NS - 9,
    handshake_end_ns=NOW_NS - 5,
    srtt_us=0,
    ssl=0x7FFF0000,
)


def flow(number: int, process: Process = CURL, role: Role = Role.CLIENT) -> Flow:
    """Return one of a few flows, some of which have the same endpoints, seen from either end."""
    ends = Endpoint("10.0.0.2", 50000 + number // 2), Endpoint("10.0.0.3", 443)
    local, remote = ends[::-1] if role is Role.SERVER else ends
    return Flow(number, process, NOW_NS, local, remote, TupleSource.SYSCALL, role=role)


def write(items: Iterable[Item], framing: str = "auto", tool: str = "tlscap 0.1") -> bytes:
    synthesizer = Synthesizer(framing, tool=tool)
    parts = [synthesizer.start()]
    for item in items:
        parts += synthesizer.feed(item)
    return b"".join([*parts, synthesizer.finish(NOW_NS)])


def read(data: bytes) -> list[Item]:
    return list(read_items(io.BytesIO(data)))


Stream = list[bytes | tuple[int, GapReason]]


def streams(items: Iterable[Item]) -> dict[tuple[int, Direction], Stream]:
    """Return the bytes and holes of each flow and direction; offsets must fit them."""
    found: dict[tuple[int, Direction], Stream] = {}
    offsets: dict[tuple[int, Direction], int] = {}
    for item in items:
        if isinstance(item, Data | Gap):
            key = item.flow.id, item.direction
            stream = found.setdefault(key, [])
            assert item.offset == offsets.get(key, 0)
            if isinstance(item, Gap):
                stream.append((item.length, item.reason))
                offsets[key] = item.offset + item.length
            elif stream and isinstance(stream[-1], bytes):
                stream[-1] += item.data
                offsets[key] = item.offset + len(item.data)
            else:
                stream.append(item.data)
                offsets[key] = item.offset + len(item.data)
    return found


steps = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(Direction),
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.integers(1, 40000).map(bytes),
            st.tuples(st.integers(1, 50000), st.sampled_from(GapReason)),
            st.sampled_from(["half", "close"]),
        ),
    ),
    max_size=25,
)


def as_items(script: list[tuple[int, Direction, bytes | tuple[int, GapReason] | str]]) -> list[Item]:
    """Return the items of a few interleaved flows; a flow that closed goes on as a new one."""
    flows: dict[int, Flow] = {}
    offsets: dict[tuple[int, Direction], int] = {}
    items: list[Item] = []
    number = 0
    for time_ns, (slot, direction, what) in enumerate(script, NOW_NS):
        if slot not in flows:
            role = Role.SERVER if slot % 2 else Role.CLIENT
            flows[slot] = dataclasses.replace(flow(slot, (CURL, NGINX)[slot % 2], role), id=number)
            number += 1
        about = flows[slot]
        offset = offsets.get((about.id, direction), 0)
        if isinstance(what, bytes):
            items.append(Data(about, direction, offset, what, time_ns))
            offsets[about.id, direction] = offset + len(what)
        elif isinstance(what, tuple):
            items.append(Gap(about, direction, offset, *what, time_ns))
            offsets[about.id, direction] = offset + what[0]
        elif what == "half":
            items.append(HalfClosed(about, direction, time_ns))
        else:
            items.append(FlowClosed(about, time_ns))
            del flows[slot]
    return items


@given(script=steps, framing=st.sampled_from(["tls-null", "plain", "auto"]))
def test_streams_come_back_as_they_went_in(
    script: list[tuple[int, Direction, bytes | tuple[int, GapReason] | str]], framing: str
) -> None:
    """Same bytes, same holes, same reasons in every flow and direction; what was closed is closed."""
    items = as_items(script)
    data = write(items, framing)
    again = read(data)
    assert streams(again) == streams(items)
    closed = [item.flow.id for item in items if isinstance(item, FlowClosed)]
    assert [item.flow.id for item in again if isinstance(item, FlowClosed)] == closed
    halves = {(item.flow.id, item.direction) for item in items if isinstance(item, HalfClosed)}
    assert {(item.flow.id, item.direction) for item in again if isinstance(item, HalfClosed)} == halves
    assert write(read(write(again, framing)), framing) == write(again, framing)


def test_flow_and_process_come_back() -> None:
    """All that the file says about them, also with quotes, spaces and letters of other alphabets."""
    (opened, *_) = read(write([Data(FLOW, IN, 0, b"x", NOW_NS + 1)]))
    assert isinstance(opened, FlowOpened)
    for field in dataclasses.fields(Flow):
        if field.name != "process":
            assert getattr(opened.flow, field.name) == getattr(FLOW, field.name), field.name
    for field in dataclasses.fields(Process):
        assert getattr(opened.flow.process, field.name) == getattr(CURL, field.name), field.name


def test_flows_of_a_process_share_it() -> None:
    """A process is one object, as in a live capture."""
    items = read(write([Data(flow(number), IN, 0, b"x", NOW_NS + 1) for number in range(4)]))
    assert len({id(item.flow.process) for item in items}) == 1


@pytest.mark.parametrize("local", [None, Endpoint("10.0.0.1", 5)])
def test_what_was_guessed_for_the_packets_stays_unknown(local: Endpoint | None) -> None:
    """Placeholder addresses, a guessed role and a guessed ALPN are not facts."""
    about = Flow(1, CURL, NOW_NS, local)
    (opened, *_) = read(write([Data(about, OUT, 0, b"GET / HTTP/1.1\r\n\r\n", NOW_NS)]))
    assert (opened.flow.local, opened.flow.remote) == (local, None)
    assert opened.flow.tuple_source is TupleSource.PLACEHOLDER
    assert opened.flow.role is Role.UNKNOWN
    assert opened.flow.alpn == ""


@pytest.mark.parametrize("framing", ["tls-null", "plain"])
def test_items_keep_their_times_and_order(framing: str) -> None:
    """Interleaved flows come in the order of the file."""
    items: list[Item] = [Data(flow(number % 3), OUT, number // 3, b"x", NOW_NS + number) for number in range(9)]
    again = [(item.flow.id, item.time_ns) for item in read(write(items, framing)) if isinstance(item, Data)]
    assert again == [(item.flow.id, item.time_ns) for item in items]


def test_a_huge_hole_is_one_gap_with_plain_framing() -> None:
    """The comment holds the true length where sequence numbers cannot."""
    length = 3 * 2**40
    items = read(write([Gap(flow(1), IN, 0, length, GapReason.SNAPLEN, NOW_NS)], "plain"))
    assert streams(items) == {(1, IN): [(length, GapReason.SNAPLEN)]}


def test_a_closing_time_is_noted() -> None:
    """The flow knows when it ended."""
    *_, last = read(write([FlowClosed(flow(1), NOW_NS + 5)]))
    assert isinstance(last, FlowClosed)
    assert last.flow.closed_ns == last.time_ns == NOW_NS + 5


SAMPLE = write(
    [
        Data(flow(0), OUT, 0, b"GET / HTTP/1.1\r\n\r\n", NOW_NS + 1),
        Data(flow(1, NGINX, Role.SERVER), IN, 0, b"GET / HTTP/1.1\r\n\r\n", NOW_NS + 2),
        Gap(flow(0), IN, 0, 30, GapReason.UNREADABLE, NOW_NS + 3),
        FlowClosed(flow(0), NOW_NS + 4),
    ]
)


def test_a_file_cut_anywhere_gives_the_items_before() -> None:
    """A writer that was killed loses at most its last block."""
    whole = [type(item) for item in read(SAMPLE)]
    most = 0
    for cut in range(1, len(SAMPLE)):
        got = []
        with contextlib.suppress(TruncatedError):
            for item in read_items(io.BytesIO(SAMPLE[:cut])):
                got.append(type(item))  # noqa: PERF401 - what came before the error counts
        assert got == whole[: len(got)]
        assert most <= len(got)
        most = len(got)
    assert most == len(whole)


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(SAMPLE)), st.binary(max_size=8), st.integers(0, 8)).map(
            lambda edit: SAMPLE[: edit[0]] + edit[1] + SAMPLE[edit[0] + edit[2] :]
        ),
        st.tuples(st.text(max_size=40), st.text(max_size=40), st.binary(max_size=40)).map(
            lambda texts: foreign(
                "tlscap",
                description=f"library=x pid={texts[0]} flavor={texts[1]} cmdline={texts[0]}",
                comments=[f"tlscap flow={texts[0]} local={texts[1]} ssl={texts[1]} role={texts[0]}"],
                payload=texts[2],
            )
        ),
    )
)
def test_any_bytes_are_items_or_a_format_error(data: bytes) -> None:
    """Never another exception, however a file was damaged."""
    with contextlib.suppress(FormatError):
        read(data)


def foreign(application: str, *, description: str = "", comments: Iterable[str] = (), payload: bytes = b"") -> bytes:
    """Return a file with a SYN and a data packet, as another program might write it."""
    ends = bytes([10, 0, 0, 2]), 50000, bytes([10, 0, 0, 3]), 443
    parts = [
        pcapng.section_header(application=application),
        pcapng.interface_description(name="eth0", description=description),
    ]
    for flags, data, texts in ((SYN, b"", comments), (0, payload, ())):
        frame = build_tcp(*ends, seq=1, flags=flags, payload=data)
        options = pcapng.packet_options(direction=OUT, process=0, comments=texts)
        parts.append(pcapng.enhanced_packet(interface=0, time_ns=NOW_NS, frame=frame, options=options))
    return b"".join(parts)


@pytest.mark.parametrize(
    "data",
    [
        foreign("Dumpcap (Wireshark) 4.0\n"),
        pcapng.section_header(application="Dumpcap (Wireshark) 4.0\n"),
        pcapng.section_header(application="Dumpcap (Wireshark) 4.0\n") + SAMPLE,
    ],
)
def test_a_file_of_another_program_is_refused_by_name(data: bytes) -> None:
    """At its first packet or, if it has none, at its end."""
    with pytest.raises(CorruptError) as caught:
        read(data)
    assert str(caught.value) == (
        "this is a pcapng file of another program (Dumpcap (Wireshark) 4.0?); tlscap reads only its own"
    )


def test_other_connections_in_the_file_are_passed_over() -> None:
    """A real capture merged into ours, also one with the same endpoints as an open flow of ours."""
    assert streams(read(SAMPLE + foreign("tlscap", payload=b"whatever"))) == streams(read(SAMPLE))
    merged = write([Data(flow(0), OUT, 0, b"ours", NOW_NS)])
    other = pcapng.enhanced_packet(
        interface=0, time_ns=NOW_NS, frame=build_tcp(b"\n\0\0\2", 50000, b"\n\0\0\3", 443, seq=9, flags=SYN)
    )
    late = pcapng.enhanced_packet(
        interface=0, time_ns=NOW_NS, frame=build_tcp(b"\n\0\0\2", 50000, b"\n\0\0\3", 443, seq=10, payload=b"theirs")
    )
    assert streams(read(merged + other + late + late)) == {(0, OUT): [b"ours"]}
    assert streams(read(merged + pcapng.enhanced_packet(interface=0, time_ns=0, frame=b"no tcp"))) == {
        (0, OUT): [b"ours"]
    }


def test_packets_that_were_cut_are_an_error() -> None:
    """Plaintext that another program's snaplen took away must not go unnoticed."""
    frame = build_tcp(b"\n\0\0\2", 50000, b"\n\0\0\3", 443, seq=10, payload=b"long")
    packet = bytearray(pcapng.enhanced_packet(interface=0, time_ns=NOW_NS, frame=frame[:56]))
    packet[24] = len(frame)  # original length
    with pytest.raises(CorruptError, match="cut to 56 bytes by another program"):
        read(write([Data(flow(0), OUT, 0, b"ours", NOW_NS)]) + bytes(packet))


def test_framing_that_contradicts_the_comment_is_an_error() -> None:
    """A connection said to be tls-null holds TLS records."""
    with pytest.raises(CorruptError, match="TLS record"):
        read(foreign("tlscap", comments=["tlscap flow=1 framing=tls-null"], payload=b"not a record"))


@pytest.mark.parametrize("framing", ["tls-null", "plain"])
def test_a_file_saved_again_by_wireshark_is_still_ours(tmp_path: Path, framing: str) -> None:
    """Its tools write their own name into the section header; the SYN comments remain, so do our items."""
    items: list[Item] = [
        Data(flow(1), OUT, 0, b"GET / HTTP/1.1\r\n\r\n", NOW_NS),
        Gap(flow(1), IN, 0, 9, GapReason.UNKNOWN, NOW_NS),
    ]
    data = write([*items, FlowClosed(flow(1), NOW_NS)], framing)
    (tmp_path / "in.pcapng").write_bytes(data)
    subprocess.run(
        ["tshark", "-r", tmp_path / "in.pcapng", "-w", tmp_path / "out.pcapng"],
        env={"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    saved = (tmp_path / "out.pcapng").read_bytes()
    assert saved != data
    assert streams(read(saved)) == streams(items)
