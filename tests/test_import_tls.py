"""TLS in captures: what is taken for TLS, how it is cut into records, and what becomes of the answers."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterable

import pytest
from helpers import START_NS, make_flow
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap import tlsnull
from tlscap.errors import TlscapError
from tlscap.importing import hello, tshark
from tlscap.importing.keylog import KeyLog
from tlscap.importing.tls import NOT_OPENED, WITHOUT_BEGINNING, WITHOUT_KEYS, Decrypted, TlsFilter
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
    Role,
)

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
HELLO = tlsnull.client_hello(b"seed", sni="example.org", alpn="h2")
RANDOM = HELLO[11:43]
KEYS = b"CLIENT_TRAFFIC_SECRET_0 %s %s\n" % (RANDOM.hex().encode(), b"ab" * 32)
TAG = bytes(16)


def keys(text: bytes = KEYS) -> KeyLog:
    log = KeyLog()
    log.add(text)
    return log


def record(kind: int, content: bytes) -> bytes:
    return struct.pack("!BHH", kind, 0x0303, len(content)) + content


def encrypted(kind: int, content: bytes) -> bytes:
    """Return a record as the `Opener` opens it: the shape of TLS 1.3 without the encryption."""
    return record(23, content + bytes([kind]) + TAG)


def app(data: bytes) -> bytes:
    return encrypted(23, data)


SERVER_HELLO = record(22, b"\x02\0\0\0")
EXTENSIONS = encrypted(22, b"\x08\0\0\0http/1.1")
FINISHED = encrypted(22, b"\x14\0\0\0")
CLOSE_NOTIFY = encrypted(21, b"\x01\0")


class Opener:
    """A decryptor of such records; it keeps what it was asked."""

    def __init__(self, *, opens: bool = True, asks_only: bool = False) -> None:
        self.opens = opens
        self.asks_only = asks_only
        self.asked: list[tuple[int, Direction, bytes, bool]] = []
        self.open: set[int] = set()

    def begin(self, connection: int) -> None:
        assert connection not in self.open
        self.open.add(connection)

    def end(self, connection: int) -> None:
        self.open.remove(connection)

    def record(
        self, connection: int, direction: Direction, record: bytes, time_ns: int, *, damaged: bool
    ) -> Decrypted | None:
        assert connection in self.open
        self.asked.append((connection, direction, record, damaged))
        if self.asks_only:
            return None
        content = record[5:]
        if record[0] != 23:
            return Decrypted((record[0],), handshakes=(content[0],) if record[0] == 22 else ())
        if not self.opens or damaged:
            return Decrypted(is_tls13=True)
        kind, content = content[-17], content[:-17]
        if kind == 22:
            return Decrypted((22,), is_tls13=True, handshakes=(content[0],), alpn=content[4:].decode())
        if kind == 21:
            return Decrypted((21,), is_tls13=True, alerts=(content[1],))
        return Decrypted((23,), is_tls13=True, data=content)


class Wire:
    """A captured flow, by hand."""

    def __init__(self, target: TlsFilter, flow: Flow | None = None) -> None:
        self.target = target
        self.flow = flow or make_flow(1, sni="")
        self.time_ns = START_NS
        self.items: list[Item] = []
        self.feed(FlowOpened(self.flow, START_NS))

    def feed(self, item: Item) -> None:
        self.items += self.target.feed(item)

    def data(self, direction: Direction, *data: bytes) -> None:
        for one in data:
            self.time_ns += 1000
            self.feed(Data(self.flow, direction, 0, one, self.time_ns))

    def gap(self, direction: Direction, length: int) -> None:
        self.time_ns += 1000
        self.feed(Gap(self.flow, direction, 0, length, GapReason.NOT_CAPTURED, self.time_ns))

    def handshake(self) -> None:
        self.data(OUT, HELLO)
        self.data(IN, SERVER_HELLO + EXTENSIONS + FINISHED)
        self.data(OUT, FINISHED)

    def fin(self, direction: Direction) -> None:
        self.feed(HalfClosed(self.flow, direction, self.time_ns))

    def close(self) -> None:
        self.feed(FlowClosed(self.flow, self.time_ns))

    def story(self) -> list[str]:
        """Return what came out in few words; offsets must fit."""
        words = []
        offsets: dict[tuple[Flow, Direction], int] = {}
        for item in self.items:
            way = (">" if item.direction is OUT else "<") if isinstance(item, Data | Gap | HalfClosed) else ""
            if isinstance(item, Data | Gap):
                length = len(item.data) if isinstance(item, Data) else item.length
                if item.flow is not self.flow:
                    assert item.offset == offsets.get((item.flow, item.direction), 0)
                    offsets[item.flow, item.direction] = item.offset + length
            match item:
                case Data():
                    words.append(way + item.data.decode("latin-1"))
                case Gap():
                    words.append(f"{way}{item.length} {item.reason.value}")
                case HalfClosed():
                    words.append(f"{way}fin")
                case FlowOpened():
                    words.append("opened")
                case FlowClosed():
                    words.append("closed")
                case FlowUpdated():
                    pass
        return words

    def done(self) -> list[str]:
        self.items += self.target.finish()
        return self.story()


def opened(*, opens: bool = True, text: bytes = KEYS) -> Wire:
    return Wire(TlsFilter(keys(text), Opener(opens=opens)))


# --- Recognizing ---


def real_hello(name: str | None) -> bytes:
    """Return the ClientHello that OpenSSL sends."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(("data", "name"), [(HELLO, "example.org"), (real_hello("tls.example"), "tls.example")])
def test_client_hello(data: bytes, name: str) -> None:
    """Random and name are found; wherever it is cut, nothing is raised, and a whole record is needed for neither."""
    found = hello.parse_client_hello(data)
    assert found == hello.ClientHello(data[11:43], name)
    for size in range(len(data)):
        cut = hello.parse_client_hello(data[:size])
        assert (cut is not None) == (size >= 43)
        assert cut is None or (cut.random == data[11:43] and cut.sni in ("", name))


def test_client_hello_without_name() -> None:
    """Without a name there is none; an address is none."""
    for data in (real_hello(None), tlsnull.client_hello(b"x")):
        found = hello.parse_client_hello(data)
        assert found is not None
        assert found.sni == ""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\x03\x01\x02", None),
        (HELLO[:5], True),
        (b"\x17\x03\x03\x40\x11", True),
        (b"\x17\x03\x03\x48\x01", False),  # too long
        (b"\x17\x03\x03\x00\x00", False),
        (b"\x17\x03\x05\x00\x20", False),
        (b"\x16\x02", False),
        (b"GET /", False),
        (b"\x80", False),
    ],
)
def test_records(data: bytes, expected: bool | None) -> None:
    """Five bytes tell a record; fewer may become one."""
    assert hello.is_record(data) is expected


@given(st.binary(max_size=100), st.sampled_from([b"", HELLO[:43], HELLO[:11]]))
def test_any_hello(data: bytes, head: bytes) -> None:
    """Any bytes can be looked at."""
    hello.is_record(head + data)
    hello.parse_client_hello(head + data)


# --- Key logs ---


def test_key_log() -> None:
    """Lines are kept once, as they are; what is no key is passed over."""
    one, two = b"11" * 32, b"ab" * 32
    text = b"\n".join(
        [
            b"# comment",
            b"CLIENT_RANDOM " + one + b" " + b"22" * 48 + b"\r",
            b"CLIENT_RANDOM " + one + b" " + b"22" * 48,
            b"SERVER_TRAFFIC_SECRET_0 " + two.upper() + b" " + b"33" * 32,
            b"CLIENT_RANDOM 1234 5678",
            b"CLIENT_RANDOM " + one + b" " + b"22" * 1000,
            b"junk \xff" * 10,
        ]
    )
    log = keys(text)
    assert [log.has(bytes.fromhex(random.decode())) for random in (one, two, b"00" * 32)] == [True, True, False]
    assert [line[:28] for line in log.lines()] == [b"CLIENT_RANDOM 11111111111111", b"SERVER_TRAFFIC_SECRET_0 ABAB"]
    assert log
    assert not keys(b"# nothing\n")


def test_key_log_by_session() -> None:
    """Keys that name no random may be those of any connection."""
    log = keys(b"RSA 0123456789abcdef " + b"44" * 48 + b"\nRSA Session-ID:ab Master-Key:" + b"55" * 48 + b"\n")
    assert log.has(bytes(32))
    assert len(list(log.lines())) == 2


# --- The filter ---


def test_a_connection() -> None:
    """Handshake, data, close_notify: the flow has the times, the name and the protocol of its handshake."""
    wire = opened()
    wire.handshake()
    wire.data(OUT, app(b"ping"))
    wire.data(IN, app(b"pong") + app(b"!"), CLOSE_NOTIFY)
    wire.fin(IN)
    wire.fin(OUT)
    wire.close()
    assert wire.done() == ["opened", ">ping", "<pong", "<!", "<fin", ">fin", "closed"]
    assert (wire.flow.sni, wire.flow.alpn, wire.flow.role) == ("example.org", "http/1.1", Role.CLIENT)
    assert wire.flow.handshake_start_ns == START_NS + 1000
    assert wire.flow.handshake_end_ns == START_NS + 3000
    assert wire.target.left_out == {}


@settings(max_examples=100)
@given(st.lists(st.integers(1, 400), max_size=40))
def test_any_pieces(sizes: list[int]) -> None:
    """However the segments cut the records, the bytes are the same."""
    wire = opened()
    for direction, data in (
        (OUT, HELLO),
        (IN, SERVER_HELLO + EXTENSIONS + FINISHED),
        (OUT, FINISHED + b"".join(app(b"%03d " % number) for number in range(40))),
        (IN, app(b"x" * 500)),
    ):
        for size in sizes:
            wire.data(direction, *([data[:size]] if data[:size] else []))
            data = data[size:]
        wire.data(direction, *([data] if data else []))
    story = wire.done()
    assert "".join(story[1:41]).replace(">", "") == "".join(f"{number:03d} " for number in range(40))
    assert story[41:] == ["<" + "x" * 500]


def test_first_pass() -> None:
    """A decryptor without answers is asked the same, in the same order, and nothing comes out of TLS."""
    both = [Opener(asks_only=True), Opener()]
    for opener in both:
        wire = Wire(TlsFilter(keys(), opener))
        wire.handshake()
        wire.data(OUT, app(b"ping"))
        wire.gap(OUT, 3)
        wire.data(IN, app(b"pong")[:9])
        wire.gap(IN, 5)
        wire.data(IN, app(b"pong")[14:], app(b"more"))
        wire.close()
        assert (wire.items == []) == opener.asks_only
        assert opener.open == set()
    assert both[0].asked == both[1].asked
    assert [one[3] for one in both[0].asked][-2:] == [True, False]


def test_hole_in_a_record() -> None:
    """A record with missing bytes is a gap of its plaintext's size, and the next ones go on."""
    wire = opened()
    wire.handshake()
    wire.data(IN, app(b"before"), app(b"0123456789")[:12])
    wire.gap(IN, 3)
    wire.data(IN, app(b"0123456789")[15:] + app(b"after"))
    assert wire.done() == ["opened", "<before", "<10 not-captured", "<after"]
    asked = wire.target._decryptor.asked  # type: ignore[union-attr]
    assert asked[-2] == (1, IN, app(b"0123456789")[:12] + bytes(3) + app(b"0123456789")[15:], True)


def test_hole_at_the_end_of_a_record() -> None:
    """A hole may end just where the record does."""
    wire = opened()
    wire.handshake()
    wire.data(IN, app(b"0123456789")[:30])
    wire.gap(IN, 2)
    wire.data(OUT, app(b"next"))
    wire.data(IN, app(b"after"))
    assert wire.done() == ["opened", "<10 not-captured", ">next", "<after"]


@pytest.mark.parametrize("start", [0, 3, 10])
def test_hole_over_the_beginning_of_a_record(start: int) -> None:
    """When nothing tells where the next record begins, the rest of the direction is missing; the other goes on."""
    wire = opened()
    wire.handshake()
    data = app(b"0123456789") + app(b"x")
    wire.data(IN, *([data[:start]] if start else []))
    wire.gap(IN, 35)
    wire.data(OUT, app(b"still here"))
    wire.data(IN, data[start + 35 :], app(b"more"))
    wire.close()
    rest = len(data) - start - 35 + len(app(b"more"))
    assert wire.done() == [
        "opened",
        f"<{start + 35} not-captured",
        ">still here",
        f"<{rest} not-captured",
        "closed",
    ]


def test_no_records_any_more() -> None:
    """Bytes that are no record end the decryption of a direction."""
    wire = opened()
    wire.handshake()
    wire.data(IN, app(b"x") + b"garbage", b"more")
    assert wire.done() == ["opened", "<x", "<11 unknown"]


def test_undecryptable_record() -> None:
    """A record that can't be opened for another reason is a gap, too."""
    wire = opened()
    wire.handshake()
    opener = wire.target._decryptor
    assert isinstance(opener, Opener)
    opener.opens = False
    wire.data(OUT, app(b"12345"))
    opener.opens = True
    wire.data(OUT, app(b"678"))
    assert wire.done() == ["opened", ">5 unknown", ">678"]


def test_keys_that_do_not_fit() -> None:
    """A connection of which nothing could be opened is left out, and counted."""
    wire = opened(opens=False)
    wire.handshake()
    wire.data(OUT, app(b"12345"))
    wire.fin(OUT)
    wire.close()
    assert wire.done() == []
    assert wire.target.left_out == {NOT_OPENED: 1}


def test_no_keys() -> None:
    """Without keys, or without those of this connection, it is left out."""
    other = KEYS.replace(RANDOM.hex().encode(), b"00" * 32)
    for target in (TlsFilter(KeyLog(), Opener()), TlsFilter(keys(other), Opener()), TlsFilter(keys(), None)):
        wire = Wire(target)
        wire.handshake()
        wire.data(OUT, app(b"12345"))
        wire.close()
        assert wire.done() == []
        assert target.left_out == {WITHOUT_KEYS: 1}


def test_without_beginning() -> None:
    """A connection whose ClientHello is not in the capture can't be decrypted, whatever came first."""
    for first in (app(b"x"), SERVER_HELLO, FINISHED[:7]):
        wire = opened()
        wire.data(IN, first, app(b"y"))
        wire.close()
        assert wire.done() == []
        assert wire.target.left_out == {WITHOUT_BEGINNING: 1}


def test_in_the_middle_of_a_record() -> None:
    """On a port of TLS, what begins in its middle and is no HTTP is TLS; elsewhere, and HTTP, it is kept."""
    for port, data, kept in ((443, b"\x91\x92\x93", 0), (80, b"\x91\x92\x93", 1), (443, b"GET / HTTP/1.1\r\n", 1)):
        flow = make_flow(1, sni="", joined_midstream=True)
        flow.remote = Endpoint("10.0.0.9", port)
        wire = Wire(TlsFilter(KeyLog(), None), flow)
        wire.data(OUT, data)
        assert len(wire.done()) == 2 * kept
        assert wire.target.left_out == ({} if kept else {WITHOUT_BEGINNING: 1})


def test_lost_beginning() -> None:
    """The same holds when the first bytes are a hole."""
    wire = opened()
    wire.gap(OUT, 100)
    wire.data(OUT, b"\x91\x92")
    wire.data(IN, app(b"x"))
    assert wire.done() == []
    assert wire.target.left_out == {WITHOUT_BEGINNING: 1}


def test_plaintext() -> None:
    """What is no TLS goes through as it is, item by item."""
    wire = opened()
    wire.data(OUT, b"GE", b"T / HTTP/1.1\r\n\r\n")
    wire.gap(IN, 5)
    wire.data(IN, b"\x17\x03")
    wire.fin(OUT)
    wire.close()
    assert wire.done() == ["opened", ">GE", ">T / HTTP/1.1\r\n\r\n", "<5 not-captured", "<\x17\x03", ">fin", "closed"]
    assert wire.target.left_out == {}


@pytest.mark.parametrize("begin", [b"\x16", b"\x16\x03\x01\x02"])
def test_too_few_bytes(begin: bytes) -> None:
    """A flow that ends before it is clear what it is, is what it is."""
    wire = opened()
    wire.data(OUT, begin)
    wire.close()
    assert wire.done() == ["opened", ">" + begin.decode("latin-1"), "closed"]
    wire = opened()
    wire.data(OUT, begin)
    assert wire.done() == ["opened", ">" + begin.decode("latin-1")]


def test_inside_another_flow() -> None:
    """After CONNECT, TLS with keys is a flow of its own; the one around it ends where it begins."""
    wire = opened()
    wire.data(OUT, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
    wire.data(IN, b"HTTP/1.1 200 OK\r\n\r\n")
    wire.handshake()
    wire.data(OUT, app(b"GET / HTTP/1.1\r\n\r\n"))
    wire.fin(OUT)
    wire.close()
    story = wire.done()
    assert story[3:] == ["closed", "opened", ">GET / HTTP/1.1\r\n\r\n", ">fin", "closed"]
    inner = wire.items[-1].flow
    assert inner is not wire.flow
    assert (inner.sni, inner.local, inner.remote) == ("example.org", wire.flow.local, wire.flow.remote)
    assert (inner.opened_ns, inner.joined_midstream) == (wire.flow.closed_ns, False)


def test_inside_another_flow_without_keys() -> None:
    """Without its keys, it is bytes in a tunnel."""
    wire = opened(text=b"")
    wire.data(OUT, b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")
    wire.handshake()
    assert len(wire.done()) == 5
    assert wire.target.left_out == {}


def test_tls_12() -> None:
    """Before TLS 1.3, an empty record is no gap, and a Finished that can be read says that the keys fit."""

    class Old(Opener):
        def record(
            self, connection: int, direction: Direction, record: bytes, time_ns: int, *, damaged: bool
        ) -> Decrypted | None:
            content = record[5:-24]
            if record[0] == 22:
                return Decrypted((22,), handshakes=(record[5],), alpn="h2" if record[5] == 2 else "")
            return Decrypted((record[0],), data=content)

    wire = Wire(TlsFilter(keys(), Old()))
    wire.data(OUT, HELLO)
    wire.data(IN, SERVER_HELLO, record(20, b"\1"), record(22, b"\x14"))
    wire.data(OUT, record(20, b"\1"), record(22, b"\x14"), record(23, bytes(56)), record(23, b"data" + bytes(24)))
    wire.data(IN, record(23, bytes(24)))
    assert wire.done() == ["opened", ">" + "\0" * 32, ">data"]
    assert wire.flow.alpn == "h2"


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([OUT, IN]),
            st.one_of(
                st.integers(1, 30000),
                st.binary(min_size=1, max_size=60),
                st.sampled_from(
                    [HELLO, SERVER_HELLO, EXTENSIONS, FINISHED, app(b"data"), app(bytes(9000)), CLOSE_NOTIFY]
                ),
            ),
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_anything(steps: list[tuple[Direction, bytes | int]], closes: bool) -> None:
    """Any bytes and gaps give items that fit together; a decryptor is told of every end."""
    opener = Opener()
    wire = Wire(TlsFilter(keys(), opener))
    if steps:
        for direction, what in steps:
            if isinstance(what, int):
                wire.gap(direction, what)
            else:
                wire.data(direction, what)
        if closes:
            wire.close()
    wire.done()
    assert opener.open == set()
    assert flows_are_whole(wire.items)


def flows_are_whole(items: Iterable[Item]) -> bool:
    """Tell whether flows are opened first and closed last."""
    state: dict[Flow, bool] = {}
    for item in items:
        if isinstance(item, FlowOpened):
            if item.flow in state:
                return False
            state[item.flow] = True
        elif not state.get(item.flow):
            return False
        if isinstance(item, FlowClosed):
            state[item.flow] = False
    return True


# --- tshark's side ---

PROTOCOLS = [*sorted(tshark.NEEDED), *(f"proto{number}" for number in range(200))]


def test_protocols() -> None:
    """All but the needed protocols are switched off; a list that looks different is refused."""
    listing = "".join(f"Long name\tSHORT\t{name}\n" for name in PROTOCOLS).encode()
    old = tshark.protocol_options(listing)
    assert old == [word for number in range(200) for word in ("--disable-protocol", f"proto{number}")]
    new = tshark.protocol_options(listing.replace(b"\n", b"\tT\tT\tF\n"))
    assert new == ["--only-protocols", "data,eth,ethertype,frame,ipv6,tcp,tls"]
    for bad in (b"", b"tls\n", listing.replace(b"\ttls\n", b"\tssl\n"), listing[:500]):
        with pytest.raises(TlscapError, match="does not list its protocols"):
            tshark.protocol_options(bad)
    words = tshark.arguments(new, lenient=True)
    assert words[:2] == ["-r", "-"]
    assert words[-2:] == new
    assert "tls.ignore_ssl_mac_failed:TRUE" in words


def test_answers() -> None:
    """A line of fields is what was found in a record."""
    assert tshark.parse(b"7\t22,23\t23\t8,0x0b\th2\t\t6162,63\n") == (
        7,
        Decrypted((22, 23), True, (8, 11), "h2", (), b"abc"),
    )
    assert tshark.parse(b"1\t\t\t\t\t0\t\r\n") == (1, Decrypted(alerts=(0,)))
    # The ChangeCipherSpec that stands in front of a record tells nothing of that.
    assert tshark.parse(b"1\t20\t23\t\t\t\t\n") == (1, Decrypted((), True))
    assert tshark.parse(b"1\t20,22\t\t20\t\t\t\n") == (1, Decrypted((22,), False, (20,)))
    for bad in (b"", b"1\t2\n", b"x\t\t\t\t\t\t\n", b"1\t\t\t\t\t\tzz\n", b"1\tx\t\t\t\t\t\n"):
        with pytest.raises(TlscapError, match="not what was asked for"):
            tshark.parse(bad)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from([OUT, IN]),
            st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(20, 23), st.binary(max_size=300)),
        )
    )
)
def test_feeder(records: list[tuple[int, Direction, bytes]]) -> None:
    """Each record is the payload of one packet; its packets are a connection, in order, with addresses of its own.

    Only a ChangeCipherSpec comes late: in front of the direction's next record.
    """
    import io

    from tlscap import pcapng
    from tlscap.importing.frames import FrameDecoder
    from tlscap.importing.packetfile import Packet, PacketFile
    from tlscap.importing.reassembly import Reassembler

    feeder = tshark.Feeder()
    log = keys(KEYS + b"RSA 0123456789abcdef " + b"44" * 48)
    data = b"".join(feeder.start(log))
    for number in (1, 2, 3):
        feeder.begin(number)
    for number, (connection, direction, content) in enumerate(records):
        data += feeder.record(connection, direction, content, START_NS + number)
    file = PacketFile(io.BytesIO(data))
    packets = list(file.packets())
    assert b"".join(file.secrets).splitlines() == list(log.lines())
    assert [block.kind for block in pcapng.read_blocks(io.BytesIO(data)) if isinstance(block, pcapng.UnknownBlock)] == [
        10
    ]
    assert [packet.time_ns - START_NS for packet in packets] == list(range(len(records)))
    decoder, reassembler = FrameDecoder(), Reassembler()
    streams: dict[tuple[int, Direction], bytes] = {}
    held: dict[tuple[int, Direction], bytes] = {}
    for packet, (connection, direction, content) in zip(packets, records, strict=True):
        assert isinstance(packet, Packet)
        segment = decoder.decode(packet)
        assert segment is not None
        waiting = held.pop((connection, direction), b"")
        if content[0] == hello.CHANGE_CIPHER_SPEC:
            held[connection, direction] = content
            assert segment.payload == waiting
        else:
            assert segment.payload == waiting + content
        for item in reassembler.feed(segment, packet.time_ns):
            assert not isinstance(item, Gap)
            if isinstance(item, Data):
                key = connection, item.direction
                streams[key] = streams.get(key, b"") + item.data
    for connection in (1, 2, 3):
        for direction in Direction:
            wanted = b"".join(content for one, way, content in records if (one, way) == (connection, direction))
            assert streams.get((connection, direction), b"") + held.get((connection, direction), b"") == wanted
        feeder.end(connection)
    assert reassembler.finish() == []


def test_large_key_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many keys are several blocks: none may be larger than tshark reads."""
    monkeypatch.setattr(tshark, "_SECRETS_SIZE", 1000)
    lines = [b"CLIENT_RANDOM %064x %s" % (number, b"00" * 48) for number in range(100)]
    blocks = list(tshark.Feeder().start(keys(b"\n".join(lines))))
    assert len(blocks) > 10
    assert max(map(len, blocks[1:])) < 1500
