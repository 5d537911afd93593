"""The synthesized file, with tshark (stock configuration) as the judge of what an analyst sees."""

from __future__ import annotations

import io
import subprocess
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tlscap.model import (
    Data,
    Direction,
    Endpoint,
    Flow,
    FlowClosed,
    FlowOpened,
    FlowUpdated,
    Gap,
    GapReason,
    HalfClosed,
    Item,
    Library,
    Process,
    Role,
    TupleSource,
)
from tlscap.packets import ACK, FIN, PSH, SYN, Segment, parse_tcp
from tlscap.pcapng import EnhancedPacket, InterfaceDescription, InterfaceStatistics, SectionHeader, read_blocks
from tlscap.synth import DROPPED_COMMENT, Synthesizer, format_pairs, parse_pairs

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
NOW_NS = 1_700_000_000_000_000_000
MS = 1_000_000

CURL = Process(
    4242,
    start_ns=55,
    comm="curl",
    ppid=1,
    uid=1000,
    cmdline=("curl", "https://a.example/a b"),
    exe="/usr/bin/curl",
    libraries=(Library("/usr/lib/libssl.so.3", "abcd"),),
)
CURL_DESCRIPTION = (
    "pid=4242 ppid=1 uid=1000 comm=curl cmdline=\"curl 'https://a.example/a b'\" exe=/usr/bin/curl "
    "start_ns=55 library=/usr/lib/libssl.so.3 flavor=openssl build_id=abcd"
)
FLOW_COMMENT = (
    "tlscap flow=1 pid=4242 comm=curl local=10.0.0.2:50001 remote=93.184.216.34:443 tuple_source=syscall "
    "role=client sni=a.example alpn=http/1.1 framing=tls-null opened_ns=1700000000000000000"
)
NGINX = Process(777, start_ns=56, comm="nginx")

REQUEST = b"GET /index.html HTTP/1.1\r\nHost: a.example\r\n\r\n"
BODY = b"hello tlscap " * 3000


def response(body: bytes, kind: str = "text/plain") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind.encode(), len(body)) + body


def flow(number: int = 1, server: str = "93.184.216.34", port: int = 443, **known: object) -> Flow:
    made = Flow(number, CURL, NOW_NS, Endpoint("10.0.0.2", 50000 + number), Endpoint(server, port))
    made.tuple_source, made.role = TupleSource.SYSCALL, Role.CLIENT
    for name, value in known.items():
        setattr(made, name, value)
    return made


class Talk:
    """Writes a conversation down as items, one millisecond apart."""

    clock_ns = NOW_NS

    def __init__(self, about: Flow) -> None:
        self.flow = about
        self.offset = [0, 0]

    def __call__(self, direction: Direction, data: bytes) -> Data:
        item = Data(self.flow, direction, self.offset[direction], data, self.tick())
        self.offset[direction] += len(data)
        return item

    def gap(self, direction: Direction, length: int, reason: GapReason = GapReason.RING_FULL) -> Gap:
        item = Gap(self.flow, direction, self.offset[direction], length, reason, self.tick())
        self.offset[direction] += length
        return item

    def half(self, direction: Direction) -> HalfClosed:
        return HalfClosed(self.flow, direction, self.tick())

    def close(self) -> FlowClosed:
        return FlowClosed(self.flow, self.tick())

    def tick(self) -> int:
        Talk.clock_ns += MS
        return Talk.clock_ns


@pytest.fixture(autouse=True)
def _clock() -> None:
    Talk.clock_ns = NOW_NS


def write(items: Iterable[Item], framing: str = "auto") -> bytes:
    synthesizer = Synthesizer(framing, tool="tlscap 0.1", os="Linux 6.1", hardware="x86_64", comment="a test")
    parts = [synthesizer.start()]
    for item in items:
        parts += synthesizer.feed(item)
    return b"".join([*parts, synthesizer.finish(Talk.clock_ns)])


def packets(data: bytes) -> list[tuple[EnhancedPacket, Segment]]:
    found = []
    for block in read_blocks(io.BytesIO(data)):
        if isinstance(block, EnhancedPacket):
            segment = parse_tcp(block.data)
            assert segment is not None
            found.append((block, segment))
    return found


def syn_pairs(data: bytes) -> dict[str, str]:
    return dict(parse_pairs(packets(data)[0][0].comments[0]))


Tshark = Callable[..., str]


@pytest.fixture
def tshark(tmp_path: Path) -> Tshark:
    """Run tshark on a file's bytes with an empty home and return its output."""

    def run(data: bytes, *arguments: str) -> str:
        path = tmp_path / "it.pcapng"
        path.write_bytes(data)
        done = subprocess.run(
            ["tshark", "-r", path, *arguments],
            env={"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def fields(tshark: Tshark, data: bytes, display_filter: str, *names: str) -> list[list[str]]:
    arguments = [argument for name in names for argument in ("-e", name)]
    output = tshark(data, "-Y", display_filter, "-T", "fields", *arguments)
    return [line.split("\t") for line in output.splitlines()]


def conversation(about: Flow) -> list[Item]:
    talk = Talk(about)
    return [
        talk(OUT, REQUEST),
        talk(IN, response(BODY)),
        talk(OUT, REQUEST[:9]),
        talk(OUT, REQUEST[9:]),
        talk(IN, response(b"{}", "application/json")),
        talk.close(),
    ]


def complaints(tshark: Tshark, data: bytes) -> list[str]:
    """Return the lines of the expert report that name warnings or errors."""
    return [line for line in tshark(data, "-q", "-z", "expert,warn").splitlines() if line and not line.startswith("=")]


# --- What Wireshark shows ---


@pytest.mark.parametrize("port", [443, 35791])
def test_http1_opens_as_http_without_a_complaint(tshark: Tshark, port: int, tmp_path: Path) -> None:
    """On the TLS port and on any other: rows, exported objects equal to the bytes, nothing to warn about."""
    data = write(conversation(flow(port=port)))
    rows = fields(tshark, data, "http", "http.request.method", "http.response.code", "frame.packet_flags_direction")
    outbound, inbound = ["GET", "", "0x00000002"], ["", "200", "0x00000001"]
    assert rows == [outbound, inbound, outbound, inbound]
    assert fields(tshark, data, "http.request", "http.request.uri") == [["/index.html"]] * 2
    assert complaints(tshark, data) == []
    tshark(data, "-q", "--export-objects", f"http,{tmp_path / 'objects'}")
    assert (tmp_path / "objects" / "index.html").read_bytes() == BODY


def test_checksums_are_right_for_wireshark_too(tshark: Tshark) -> None:
    """With verification switched on, IPv4 and IPv6 packets are good."""
    first, second = flow(1), flow(2, server="2001:db8:ffff::2", local=Endpoint("2001:db8:ffff::1", 50002))
    verify = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    statuses = tshark(
        write([*conversation(first), *conversation(second)]),
        *verify,
        "-T",
        "fields",
        "-e",
        "tcp.checksum.status",
        "-e",
        "ip.checksum.status",
    )
    assert set(statuses.splitlines()) == {"1\t1", "1\t"}


def test_names_and_process_are_filterable(tshark: Tshark) -> None:
    """SNI and ALPN in the hello, the process as the interface, the flow's facts as the SYN's comment."""
    data = write(conversation(flow(sni="a.example", alpn="http/1.1")))
    hello = 'tls.handshake.extensions_server_name == "a.example"'
    assert fields(tshark, data, hello, "tls.handshake.extensions_alpn_str", "frame.interface_name") == [
        ["http/1.1", "curl[4242]"]
    ]
    assert fields(tshark, data, hello, "frame.interface_description") == [[CURL_DESCRIPTION]]
    comments = fields(tshark, data, "frame.comment", "frame.number", "frame.comment")
    assert comments[0] == ["1", FLOW_COMMENT]
    assert {comment for _, comment in comments[1:]} == {DROPPED_COMMENT}  # on both FINs


def h2_frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def h2_path(path: bytes) -> bytes:
    """Return a request's header block without a dynamic table: GET, https, literal path."""
    return b"\x82\x87\x04" + bytes([len(path)]) + path


def h2_items(about: Flow, *, preface: bool) -> list[Item]:
    talk = Talk(about)
    start = [
        talk(OUT, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")),
        talk(IN, h2_frame(4, 0, 0, b"")),
    ]
    return [
        *(start if preface else []),
        talk(OUT, h2_frame(1, 5, 3, h2_path(b"/page"))),
        talk(IN, h2_frame(1, 4, 3, b"\x88") + h2_frame(0, 1, 3, b"hi")),
        talk.close(),
    ]


@pytest.mark.parametrize("alpn", ["h2", ""])
@pytest.mark.parametrize("preface", [True, False])
def test_http2_opens_also_when_joined_midstream(tshark: Tshark, alpn: str, preface: bool) -> None:
    """By the ALPN the library told or, if it did not, by what the first bytes look like."""
    data = write(h2_items(flow(alpn=alpn), preface=preface))
    rows = fields(tshark, data, "http2.headers", "http2.headers.path", "http2.headers.status")
    assert rows == [["/page", ""], ["", "200"]]
    assert complaints(tshark, data) == []


def test_plain_framing_is_chosen_for_ports_of_other_dissectors(tshark: Tshark) -> None:
    """On 8080 Wireshark would not look for TLS; plain HTTP is right there."""
    data = write(conversation(flow(port=8080)))
    assert [row[0] for row in fields(tshark, data, "http", "http.response.code")] == ["", "200", "", "200"]
    assert complaints(tshark, data) == []
    assert "framing=plain" in packets(data)[0][0].comments[0]


@pytest.mark.parametrize("framing", ["tls-null", "plain"])
def test_a_hole_is_marked_and_later_responses_are_right(tshark: Tshark, framing: str) -> None:
    """The packet with the comment gets Wireshark's loss mark, and the next two responses are whole."""
    talk = Talk(flow(alpn="http/1.1"))
    first = response(BODY[:10400])
    items: list[Item] = [talk(OUT, REQUEST), talk(IN, first[:2600]), talk.gap(IN, 5200), talk(IN, first[7800:])]
    for body in (b"second", b"third!"):
        items += talk(OUT, REQUEST), talk(IN, response(body))
    data = write([*items, talk.close()], framing)
    (marked,) = fields(tshark, data, "tcp.analysis.lost_segment", "frame.comment")
    assert marked[0] in {
        "tlscap: LOST 5200 bytes (ring-full), zero filled",
        "tlscap: LOST 5200 bytes before this packet (ring-full)",
    }
    bodies = [row[0] for row in fields(tshark, data, "http.response", "http.file_data")]
    assert bodies[-2:] in (["second", "third!"], [b"second".hex(), b"third!".hex()])  # as text until Wireshark 4.2
    assert len(fields(tshark, data, "http.request", "frame.number")) == 3


@pytest.mark.parametrize("host", ["10.0.0.2", "::1"])
def test_both_ends_of_one_connection_are_two_streams(tshark: Tshark, host: str) -> None:
    """A client and a server process on one host: both see all of HTTP, and nothing is out of order."""
    here, there = Endpoint(host, 50000), Endpoint(host, 8443)
    client = Talk(flow(1, local=here, remote=there))
    server = Talk(flow(2, local=there, remote=here, role=Role.SERVER, process=NGINX))
    items: list[Item] = []
    for body in (BODY, b"two"):
        items += client(OUT, REQUEST), server(IN, REQUEST), server(OUT, response(body)), client(IN, response(body))
    data = write([*items, server.close(), client.close()])
    rows = fields(tshark, data, "http", "frame.interface_name", "tcp.stream", "http.response.code")
    for name, stream in (("curl[4242]", "0"), ("nginx[777]", "1")):
        assert [row for row in rows if row[0] == name] == [[name, stream, code] for code in ("", "200", "", "200")]
    assert complaints(tshark, data) == []
    comments = [block.comments[0] for block, _ in packets(data) if block.comments]
    assert ["view=second-end" in comment for comment in comments if comment != DROPPED_COMMENT] == [False, True]


def test_reused_addresses_are_a_new_stream(tshark: Tshark) -> None:
    """The same four numbers after the end of a connection: new sequence numbers, so a new tcp.stream."""
    data = write([*conversation(flow(1)), *conversation(flow(2, local=Endpoint("10.0.0.2", 50001)))])
    assert {row[0] for row in fields(tshark, data, "http", "tcp.stream")} == {"0", "1"}
    assert complaints(tshark, data) == []


def test_data_after_a_fin_is_still_a_valid_file(tshark: Tshark) -> None:
    """Wireshark may frown, but reads every packet."""
    talk = Talk(flow())
    data = write([talk(OUT, REQUEST), talk.half(OUT), talk(OUT, REQUEST), talk(IN, response(b"x")), talk.close()])
    assert len(tshark(data).splitlines()) == len(packets(data))


# --- What stands in the file ---


def test_the_section_says_that_framing_is_synthetic() -> None:
    """Nobody shall take the packets for real ones."""
    header = next(read_blocks(io.BytesIO(write([]))))
    assert isinstance(header, SectionHeader)
    assert header.application == "tlscap 0.1"
    assert (header.os, header.hardware) == ("Linux 6.1", "x86_64")
    assert "synthetic" in header.comments[0]
    assert header.comments[1:] == ("a test",)


def test_same_items_same_bytes() -> None:
    """Nothing comes from a clock or from chance."""
    first = write(conversation(flow()))
    Talk.clock_ns = NOW_NS
    assert write(conversation(flow())) == first


def test_nothing_is_written_before_the_first_byte() -> None:
    """News of a flow give no packet: its comment is written once, when most is known."""
    assert packets(write([FlowOpened(flow(), NOW_NS), FlowUpdated(flow(), NOW_NS)])) == []


def test_the_handshake_has_its_own_times() -> None:
    """SYN and ClientHello when it began, ServerHello when it ended, though written at the first byte."""
    about = flow(handshake_start_ns=NOW_NS - 5 * MS, handshake_end_ns=NOW_NS - 2 * MS)
    times = [block.time_ns - NOW_NS for block, _ in packets(write([Talk(about)(OUT, REQUEST)]))]
    assert times == [-5 * MS] * 4 + [-2 * MS] * 2 + [MS]


def test_time_does_not_go_back_within_a_flow() -> None:
    """Threads may report out of order; a connection's packets stay in the order of its bytes."""
    about = flow()
    items = [Data(about, OUT, 0, b"a", NOW_NS + 9), Data(about, IN, 0, b"b", NOW_NS + 5)]
    assert [block.time_ns - NOW_NS for block, _ in packets(write(items))][-2:] == [9, 9]


@pytest.mark.parametrize(
    ("framing", "sizes"),
    [("tls-null", [16409, 16409, 16409, 16409, 4489]), ("plain", [65495, 4505])],
)
def test_large_writes_are_cut_into_segments(framing: str, sizes: list[int]) -> None:
    """One record per packet, or as much as a packet holds."""
    segments = packets(write([Talk(flow())(OUT, bytes(70000))], framing))
    assert [len(segment.payload) for _, segment in segments if segment.payload][-len(sizes) :] == sizes
    assert all(segment.flags == PSH | ACK for _, segment in segments[6:])


def test_sequence_numbers_have_no_hole() -> None:
    """Each packet goes on where the last of its side ended and acknowledges all of the other side."""
    following: dict[tuple[bytes, int], int] = {}
    for _, segment in packets(write(conversation(flow()))):
        source, other = (segment.source, segment.source_port), (segment.destination, segment.destination_port)
        assert segment.seq == following.get(source, segment.seq)
        assert segment.ack == (following.get(other, 0) if segment.flags & ACK else 0)
        following[source] = (segment.seq + len(segment.payload) + bool(segment.flags & (SYN | FIN))) % 2**32


@pytest.mark.parametrize(
    ("halves", "flags"),
    [
        ([], [(OUT, FIN | ACK), (IN, FIN | ACK), (OUT, ACK)]),
        ([OUT], [(OUT, FIN | ACK), (IN, FIN | ACK), (OUT, ACK)]),
        ([IN], [(IN, FIN | ACK), (OUT, FIN | ACK), (IN, ACK)]),
        ([IN, OUT, IN, OUT], [(IN, FIN | ACK), (OUT, FIN | ACK), (IN, ACK)]),
    ],
)
def test_each_side_closes_once(halves: list[Direction], flags: list[tuple[Direction, int]]) -> None:
    """The end of a flow adds the FINs that are missing and the last acknowledgement; also without any data."""
    talk = Talk(flow())
    segments = packets(write([*map(talk.half, halves), talk.close()]))
    assert [(block.direction, segment.flags) for block, segment in segments[6:]] == flags


def test_a_server_process_answers_the_syn() -> None:
    """Role and direction are different things: the server's own packets are outbound."""
    about = flow(role=Role.SERVER, local=Endpoint("10.0.0.2", 443), remote=Endpoint("10.0.0.9", 50000))
    (syn, first), (syn_ack, second), *_ = packets(write([Talk(about)(IN, REQUEST)]))
    assert (syn.direction, first.flags, first.destination_port) == (IN, SYN, 443)
    assert (syn_ack.direction, second.flags) == (OUT, SYN | ACK)


@pytest.mark.parametrize(
    ("direction", "data", "local_port", "role"),
    [
        (OUT, REQUEST, 80, "client"),
        (IN, REQUEST, 60000, "server"),
        (OUT, response(b""), 60000, "server"),
        (IN, response(b""), 80, "client"),
        (OUT, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 80, "client"),
        (OUT, b"?", 60000, "client"),
        (OUT, b"?", 80, "server"),
    ],
)
def test_an_unknown_role_is_guessed_and_said_to_be(
    direction: Direction, data: bytes, local_port: int, role: str
) -> None:
    """First by who sends the request, else the lower port is the server's."""
    about = flow(role=Role.UNKNOWN, local=Endpoint("10.0.0.2", local_port), remote=Endpoint("10.0.0.3", 443))
    pairs = syn_pairs(write([Talk(about)(direction, data)]))
    assert (pairs["role"], pairs["role-guessed"]) == (role, "1")


def test_what_is_known_about_a_flow_is_in_its_comment() -> None:
    """Keys appear when there is something to say."""
    about = flow(joined_midstream=True, srtt_us=120, transport="unix", ssl=0xABC, handshake_end_ns=NOW_NS)
    pairs = syn_pairs(write([Talk(about)(OUT, REQUEST)]))
    assert {key: pairs[key] for key in ("joined", "srtt_us", "transport", "ssl", "alpn", "alpn-guessed")} == {
        "joined": "midstream",
        "srtt_us": "120",
        "transport": "unix",
        "ssl": "0xabc",
        "alpn": "http/1.1",
        "alpn-guessed": "1",
    }


@pytest.mark.parametrize("unknown", [None, Endpoint("/run/app.sock", 0), Endpoint("10.0.0.1", 70000)])
def test_unknown_addresses_are_placeholders(unknown: Endpoint | None) -> None:
    """Of the documentation ranges, the server on 443, and different for different flows."""
    seen = set()
    for number in range(50):
        about = flow(number, local=unknown, remote=unknown, tuple_source=TupleSource.SYSCALL)
        data = write([Talk(about)(OUT, REQUEST)])
        (_, segment), *_ = packets(data)
        assert segment.source[:3] == bytes([192, 0, 2])
        assert segment.destination[:3] == bytes([198, 51, 100])
        assert segment.destination_port == 443
        assert segment.source_port >= 49152
        assert syn_pairs(data)["tuple_source"] == "placeholder"
        seen.add((segment.source, segment.source_port))
    assert len(seen) == 50


def test_a_dual_stack_socket_is_written_as_ipv4() -> None:
    """::ffff:10.0.0.2 is 10.0.0.2."""
    about = flow(local=Endpoint("::ffff:10.0.0.2", 50001), remote=Endpoint("::ffff:93.184.216.34", 443))
    data = write([Talk(about)(OUT, REQUEST)])
    assert packets(data)[0][1].source == bytes([10, 0, 0, 2])
    assert syn_pairs(data)["local"] == "10.0.0.2:50001"


def test_more_than_two_flows_with_the_same_addresses_stay_apart() -> None:
    """TLS in TLS on one socket, or a library that never frees: each open flow has its own packets' addresses."""
    talks = [Talk(flow(number, local=Endpoint("10.0.0.2", 50000))) for number in range(4)]
    data = write([talk(OUT, REQUEST) for talk in talks])
    syns = [segment for _, segment in packets(data) if segment.flags == SYN]
    assert len({segment.source for segment in syns}) == 4
    comments = [block.comments[0] for block, _ in packets(data) if block.comments]
    assert [dict(parse_pairs(comment)).get("view") for comment in comments] == [None, "second-end", "end-3", "end-4"]


def test_each_process_is_one_interface_with_counts() -> None:
    """Described right before its first packet, counted at the end; holes on request are no drops."""
    first, second = Talk(flow(1)), Talk(flow(2, process=NGINX))
    items: list[Item] = [
        first(OUT, REQUEST),
        second(OUT, REQUEST),
        first.gap(IN, 10),
        first.gap(IN, 10, GapReason.SNAPLEN),
        first.gap(IN, 0),
    ]
    blocks = list(read_blocks(io.BytesIO(write(items))))
    order = [block.name if isinstance(block, InterfaceDescription) else "" for block in blocks]
    assert [name for name in order if name] == ["curl[4242]", "nginx[777]"]
    assert isinstance(blocks[order.index("nginx[777]") - 1], EnhancedPacket)
    counts = [(block.received, block.dropped) for block in blocks if isinstance(block, InterfaceStatistics)]
    assert counts == [(9, 1), (7, 0)]


def test_samples_dropped_by_the_kernel_add_to_the_drops() -> None:
    """What has no place in any stream is counted for its process."""
    synthesizer = Synthesizer(tool="tlscap")
    parts = [synthesizer.start(), *synthesizer.feed(Talk(flow())(OUT, REQUEST))]
    parts.append(synthesizer.finish(NOW_NS + MS, {(4242, 55): 3, (1, 1): 9}))
    *_, last = read_blocks(io.BytesIO(b"".join(parts)))
    assert last == InterfaceStatistics(
        interface=0, time_ns=NOW_NS + MS, start_ns=NOW_NS, end_ns=NOW_NS + MS, received=7, dropped=3
    )


def test_a_huge_hole_takes_no_memory() -> None:
    """Its zeros are made one record at a time; with plain framing it is one packet, however large."""
    synthesizer = Synthesizer("tls-null", tool="tlscap")
    feed = synthesizer.feed(Talk(flow()).gap(IN, 10 * 2**30))
    tracemalloc.start()
    try:
        size = sum(len(next(feed)) for _ in range(2000))
        assert size > 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(packets(write([Talk(flow()).gap(IN, 10 * 2**30)], "plain"))) == 4


def test_closed_flows_leave_nothing_behind() -> None:
    """Memory is bounded by what is open."""
    synthesizer = Synthesizer(tool="tlscap")
    for number in range(20):
        for item in conversation(flow(number)):
            list(synthesizer.feed(item))
    assert not synthesizer._connections
    assert not synthesizer._live


def test_every_chunk_is_whole_blocks() -> None:
    """A live pipe never ends in the middle of a block."""
    synthesizer = Synthesizer(tool="tlscap")
    for item in conversation(flow()):
        for chunk in synthesizer.feed(item):
            assert len(list(read_blocks(io.BytesIO(synthesizer.start() + b"".join(_describe()) + chunk)))) == 4


def _describe() -> list[bytes]:
    from tlscap.pcapng import interface_description, process_information

    return [interface_description(name="", description=""), process_information(pid=0, name="")]


@pytest.mark.parametrize(
    "value", ["", "plain", "two words", 'a "quote"', "back\\slash", "líne\nbreak", "a=b", "\0\x7f"]
)
def test_values_can_be_read_back(value: str) -> None:
    """Quoted where needed; an empty value is left out."""
    pairs = [("first", value), ("second", "x")]
    assert parse_pairs(format_pairs(pairs)) == [pair for pair in pairs if pair[1]]


def test_texts_stay_within_an_option() -> None:
    """Pairs beyond what an option holds are left out whole, and a long command line is cut after a word."""
    assert format_pairs([("a", "1"), ("b", "x" * 70000)]) == "a=1"
    process = Process(1, cmdline=("run", *["word"] * 1000))
    (_, block, *_) = read_blocks(io.BytesIO(write([Talk(flow(process=process))(OUT, b"x")])))
    assert isinstance(block, InterfaceDescription)
    assert block.description.endswith(' word ..."')
    assert len(block.description) < 1100


def test_mistakes_of_the_caller_are_value_errors() -> None:
    """An unknown framing, or a name of a tool that the reader would not accept."""
    with pytest.raises(ValueError, match="framing is one of auto, tls-null, plain"):
        Synthesizer("tls", tool="tlscap")
    with pytest.raises(ValueError, match="tlscap"):
        Synthesizer(tool="other")
