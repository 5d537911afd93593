"""HPACK for a listener: the vectors of RFC 7541, an independent decoder as judge, and blocks that were missed."""

from __future__ import annotations

import hpack
import pytest
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.http import hpack_state
from tlscap.http.events import Header
from tlscap.http.hpack_state import HeaderDecoder

LIMIT = 1 << 16
STATIC = HeaderTable.STATIC_TABLE


def decoder(limit: int = LIMIT) -> HeaderDecoder:
    return HeaderDecoder(limit)


def table(state: HeaderDecoder) -> list[Header | None]:
    return [entry for entry, _ in state._table]


# --- RFC 7541, appendix C: blocks in hexadecimal, the fields, and the table's entries and size after each ---

DATE_21 = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
DATE_22 = (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
LOCATION = (b"location", b"https://www.example.com")
PRIVATE = (b"cache-control", b"private")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
GZIP = (b"content-encoding", b"gzip")
AUTHORITY = (b":authority", b"www.example.com")
NO_CACHE = (b"cache-control", b"no-cache")
CUSTOM = (b"custom-key", b"custom-value")
GET: list[Header] = [(b":method", b"GET")]

REQUESTS: list[tuple[list[Header], list[Header], int]] = [
    ([*GET, (b":scheme", b"http"), (b":path", b"/"), AUTHORITY], [AUTHORITY], 57),
    ([*GET, (b":scheme", b"http"), (b":path", b"/"), AUTHORITY, NO_CACHE], [NO_CACHE, AUTHORITY], 110),
    (
        [*GET, (b":scheme", b"https"), (b":path", b"/index.html"), AUTHORITY, CUSTOM],
        [CUSTOM, NO_CACHE, AUTHORITY],
        164,
    ),
]
RESPONSES: list[tuple[list[Header], list[Header], int]] = [
    (
        [(b":status", b"302"), PRIVATE, DATE_21, LOCATION],
        [LOCATION, DATE_21, PRIVATE, (b":status", b"302")],
        222,
    ),
    (
        [(b":status", b"307"), PRIVATE, DATE_21, LOCATION],
        [(b":status", b"307"), LOCATION, DATE_21, PRIVATE],
        222,
    ),
    ([(b":status", b"200"), PRIVATE, DATE_22, LOCATION, GZIP, COOKIE], [COOKIE, GZIP, DATE_22], 215),
]

SEQUENCES: dict[str, tuple[int, list[str], list[tuple[list[Header], list[Header], int]]]] = {
    "C.3 requests": (
        4096,
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        REQUESTS,
    ),
    "C.4 requests with Huffman": (
        4096,
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
        REQUESTS,
    ),
    "C.5 responses": (
        256,
        [
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133"
                "2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d"
            ),
            "4803 3330 37c1 c0bf",
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d"
                "54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049"
                "5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31"
            ),
        ],
        RESPONSES,
    ),
    "C.6 responses with Huffman": (
        256,
        [
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6"
                "2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3"
            ),
            "4883 640e ffc1 c0bf",
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab"
                "77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f"
                "9587 3160 65c0 03ed 4ee5 b106 3d50 07"
            ),
        ],
        RESPONSES,
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_rfc_sequence(name: str) -> None:
    """Three blocks in a row give the fields and leave the table that the RFC prints."""
    size, blocks, expected = SEQUENCES[name]
    state = decoder()
    if size != 4096:
        state.decode(bytes.fromhex("3fe101"))  # 256, which the RFC's example takes from SETTINGS
    for block, (fields, entries, total) in zip(blocks, expected, strict=True):
        section = state.decode(bytes.fromhex(block))
        assert section.fields == fields
        assert not section.partial
        assert (table(state), state._size) == (entries, total)


@pytest.mark.parametrize(
    ("block", "fields", "indexed"),
    [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            [(b"custom-key", b"custom-header")],
            True,
        ),
        ("040c 2f73 616d 706c 652f 7061 7468", [(b":path", b"/sample/path")], False),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", [(b"password", b"secret")], False),
        ("82", GET, False),
    ],
)
def test_rfc_representation(block: str, fields: list[Header], indexed: bool) -> None:
    """C.2: each way to say a field; only one of them changes the table."""
    state = decoder()
    assert state.decode(bytes.fromhex(block)).fields == fields
    assert table(state) == (fields if indexed else [])


@pytest.mark.parametrize(("block", "value"), [("2a", 10), ("3f9a0a", 1337)])
def test_rfc_integer(block: str, value: int) -> None:
    """C.1: integers with a prefix of 5 bits, which is what a new table size has."""
    state = decoder()
    assert not state.decode(bytes.fromhex(block)).partial
    assert state._max_size == value


def test_long_integers_everywhere() -> None:
    """Indices and lengths that need more than their prefix."""
    state = decoder(1 << 20)
    for number in range(200):
        state.decode(literal(b"n%d" % number, b"v"))
    value = bytes(300)
    block = integer(62 + 149, 7, 0x80) + integer(62 + 100, 6, 0x40) + string(value) + integer(62 + 20, 4) + string(b"x")
    assert state.decode(state_size(1 << 20) + block).fields[1:] == []  # the default table holds not so many
    state = decoder(1 << 20)
    state.decode(state_size(1 << 20))
    for number in range(200):
        state.decode(literal(b"n%d" % number, b"v"))
    assert state.decode(block).fields == [(b"n50", b"v"), (b"n99", value), (b"n180", b"x")]


# --- What an encoder may write ---


def integer(value: int, bits: int, pattern: int = 0) -> bytes:
    top = (1 << bits) - 1
    if value < top:
        return bytes([pattern | value])
    value -= top
    octets = [pattern | top]
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def string(text: bytes) -> bytes:
    return integer(len(text), 7) + text


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x40" + string(name) + string(value)


def state_size(size: int) -> bytes:
    return integer(size, 5, 0x20)


class ModelEncoder:
    """An encoder that may do everything RFC 7541 allows.  Its table is a plain list, newest first."""

    def __init__(self) -> None:
        self.entries: list[Header] = []
        self.max_size = 4096

    def resize(self, size: int) -> bytes:
        self.max_size = size
        self._evict()
        return state_size(size)

    def field(self, choice: int, name: bytes, value: bytes, how: int) -> tuple[bytes, Header]:
        """Return one field's representation, and the field; ``choice`` picks an entry where one is referred to."""
        known = [*STATIC, *self.entries]
        index = choice % len(known) if choice % 3 else len(STATIC) + choice % max(1, len(self.entries))
        if index >= len(known):
            index = choice % len(known)
        if how == 0:
            return integer(index + 1, 7, 0x80), known[index]
        bits, pattern = ((6, 0x40), (4, 0x00), (4, 0x10))[how % 3]
        if how > 3:
            name = known[index][0]
            data = integer(index + 1, bits, pattern) + string(value)
        else:
            data = bytes([pattern]) + string(name) + string(value)
        if pattern == 0x40:
            self.entries.insert(0, (name, value))
            self._evict()
        return data, (name, value)

    def _evict(self) -> None:
        while sum(len(name) + len(value) + 32 for name, value in self.entries) > self.max_size:
            self.entries.pop()


NAMES = st.sampled_from([b"a", b"bb", b"x-long-name", b"cookie"])
FIELDS = st.lists(
    st.tuples(st.integers(0, 500), NAMES, st.one_of(st.binary(max_size=3), st.just(bytes(60))), st.integers(0, 6)),
    max_size=6,
)
SIZES = st.one_of(st.none(), st.none(), st.sampled_from([0, 31, 40, 100, 200, 5000]))
BLOCKS = st.lists(st.tuples(SIZES, FIELDS, st.booleans()), max_size=12)


@settings(max_examples=400, deadline=None)
@given(blocks=BLOCKS, first_size=st.sampled_from([4096, 4096, 0, 33, 70, 150]), lost=st.booleans())
def test_never_a_wrong_field(
    blocks: list[tuple[int | None, list[tuple[int, bytes, bytes, int]], bool]], first_size: int, lost: bool
) -> None:
    """Whatever blocks are missed, every field that is told is the one that was sent, and the others are counted."""
    encoder = ModelEncoder()
    state = decoder()
    if lost:  # joined later
        encoder.resize(first_size)
        state.forget("joined mid-stream")
    missed = lost
    for size, fields, is_missed in blocks:
        block = encoder.resize(size) if size is not None else b""
        truth: list[Header] = []
        for choice, name, value, how in fields:
            data, field = encoder.field(choice, name, value, how)
            block += data
            truth.append(field)
        if is_missed and lost:
            state.forget("bytes missing before")
            missed = True
            continue
        section = state.decode(block)
        assert not section.corrupt
        assert is_subsequence(section.fields, truth)
        if not missed:
            assert section.fields == truth
            assert table(state) == encoder.entries
        unknown = len(truth) - len(section.fields)
        assert section.partial == bool(unknown)
        if unknown:
            assert section.notes[0].startswith(f"{unknown} of {len(truth)} header fields not decodable: ")


def is_subsequence(part: list[Header], whole: list[Header]) -> bool:
    rest = iter(whole)
    return all(field in rest for field in part)


TEXTS = st.one_of(st.binary(max_size=12), st.just(b"x" * 150))
LISTS = st.lists(st.lists(st.tuples(st.one_of(NAMES, TEXTS), TEXTS, st.booleans()), max_size=5), max_size=8)


@settings(max_examples=150, deadline=None)
@given(lists=LISTS, sizes=st.lists(st.sampled_from([0, 50, 300, 4096]), max_size=8), huffman=st.booleans())
def test_against_another_decoder(lists: list[list[tuple[bytes, bytes, bool]]], sizes: list[int], huffman: bool) -> None:
    """What the hpack library encodes is decoded as the hpack library decodes it."""
    encoder, judge, state = hpack.Encoder(), hpack.Decoder(), decoder()
    for index, fields in enumerate(lists):
        if index < len(sizes):
            encoder.header_table_size = sizes[index]
        block = encoder.encode([(name, value, secret) for name, value, secret in fields], huffman=huffman)
        section = state.decode(block)
        assert section.fields == [tuple(field) for field in judge.decode(block, raw=True)]
        assert table(state) == list(judge.header_table.dynamic_entries)
        assert not section.partial


# --- Blocks that were missed ---


def test_entries_since_a_break_are_known() -> None:
    """New entries can be referred to, older ones can't; a name that is unknown makes its field unknown, and its entry too."""
    state = decoder()
    state.forget("joined mid-stream")
    assert state.decode(literal(b"a", b"1") + literal(b"b", b"2")).fields == [(b"a", b"1"), (b"b", b"2")]
    section = state.decode(b"\xbe\xbf\xc0\x82")  # newest, second, unknown, :method GET
    assert section.fields == [(b"b", b"2"), (b"a", b"1"), (b":method", b"GET")]
    assert section.notes == ["1 of 4 header fields not decodable: joined mid-stream"]
    named_by_unknown = integer(70, 6, 0x40) + string(b"3")
    assert state.decode(named_by_unknown + b"\xbe\xbf").fields == [(b"b", b"2")]


def test_a_break_heals() -> None:
    """As soon as entries were pushed out of a table of known size, the unknown ones are gone, and a bad index is an error."""
    state = decoder()
    state.forget("bytes missing before")
    block = state_size(200) + b"".join(literal(b"n", b"%d" % number) for number in range(5))
    assert not state.decode(block).partial
    assert state.decode(b"\xbe").fields == [(b"n", b"4")]
    assert not state.decode(b"\xff\x10").fields
    assert state.decode(b"\xff\x10").notes == [
        "1 of 1 header fields not decodable: an earlier header block was not decodable"
    ]


def test_an_emptied_table_is_known() -> None:
    """A table size of 0 leaves nothing that could be unknown."""
    state = decoder()
    state.forget("joined mid-stream")
    state.decode(state_size(0) + state_size(4096))
    assert state.decode(literal(b"a", b"1") + b"\xbe").fields == [(b"a", b"1")] * 2
    assert state.decode(b"\xbf").corrupt


def test_entry_larger_than_the_table() -> None:
    """It empties the table and is not in it (RFC 7541, 4.4)."""
    state = decoder()
    state.decode(literal(b"a", b"1"))
    assert state.decode(literal(b"b", bytes(4096))).fields == [(b"b", bytes(4096))]
    assert table(state) == []
    assert state.decode(b"\xbe").corrupt


def test_huge_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table beyond what is kept, the newest entries are known; an entry too large to be kept hides what is behind it."""
    monkeypatch.setattr(hpack_state, "TABLE_LIMIT", 1000)
    state = decoder(1 << 20)
    block = state_size(1 << 30) + b"".join(literal(b"n", b"%03d" % number) for number in range(100))
    assert not state.decode(block).partial
    assert len(table(state)) == 1000 // 36
    section = state.decode(b"\xbe" + integer(62 + 50, 7, 0x80))
    assert section.fields == [(b"n", b"099")]
    assert section.notes == ["1 of 2 header fields not decodable: only 1000 bytes of the table are kept"]
    assert not state.decode(literal(b"big", bytes(2000)) + literal(b"a", b"1")).partial
    assert state.decode(b"\xbe").fields == [(b"a", b"1")]
    section = state.decode(b"\xbf")
    assert section.notes == ["1 of 1 header fields not decodable: only 1000 bytes of the table are kept"]


def test_after_a_break_no_size_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's table may be larger than the default, and larger than what is kept."""
    state = decoder()
    state.forget("joined mid-stream")
    state.decode(b"".join(literal(b"n%03d" % number, b"v") for number in range(500)))
    assert state.decode(integer(62 + 499, 7, 0x80)).fields == [(b"n000", b"v")]
    monkeypatch.setattr(hpack_state, "TABLE_LIMIT", 1000)
    for entry in (bytes(2000), bytes(500)):
        state.forget("joined mid-stream")
        state.decode(literal(b"n", entry) * 3)
        assert state.decode(integer(62 + 50, 7, 0x80)).notes == [
            "1 of 1 header fields not decodable: joined mid-stream"
        ]


# --- Hostile blocks ---


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (b"\x82\xbe", "no table entry 62, after 1 fields"),
        (b"\x80", "no table entry 0, after 0 fields"),
        (b"\xff\x80", "the block ends within a field, after 0 fields"),
        (b"\x82\x40", "the block ends within a field, after 1 fields"),
        (b"\x40\x01a", "the block ends within a field, after 0 fields"),
        (b"\x40\x05a", "string longer than the block, after 0 fields"),
        (b"\xff" + b"\x80" * 20, "integer too long, after 0 fields"),
        (b"\xff" + b"\xff" * 20, "integer too long, after 0 fields"),
        (b"\x40\x01a\x84\xff\xff\xff\xff", "invalid Huffman code, after 0 fields"),  # EOS
        (b"\x40\x01a\x82\x1f\xff", "invalid Huffman code, after 0 fields"),  # more than 7 bits of padding
        (b"\x40\x01a\x81\x18", "invalid Huffman code, after 0 fields"),  # padding of zeros
        (b"\x40\x01a\xff\x49" + b"\xff" * 200, "invalid Huffman code, after 0 fields"),
    ],
)
def test_corrupt(block: bytes, what: str) -> None:
    """What no encoder writes is said in words; nothing that came before counts on."""
    state = decoder()
    state.decode(literal(b"a", b"1") + state_size(0))
    section = state.decode(block)
    assert section.corrupt
    assert section.notes == [f"headers not decodable: {what}"]
    assert state.decode(b"\xbe").notes == [
        "1 of 1 header fields not decodable: an earlier header block was not decodable"
    ]


def test_bomb() -> None:
    """A small block that stands for a huge one is cut at the limit; the table stays right."""
    state = decoder(100_000)
    block = literal(b"a", bytes(4000)) + b"\xbe" * 100_000 + literal(b"b", b"1")
    section = state.decode(block)
    assert len(section.fields) == 100_000 // 4033
    assert section.notes == [f"more than 100000 bytes of headers: {100_002 - len(section.fields)} fields left out"]
    assert state.decode(b"\xbe").fields == [(b"b", b"1")]


def test_a_table_of_the_smallest_entries_is_bounded() -> None:
    """The table's overhead for each entry bounds their number."""
    state = decoder()
    state.decode(state_size(1 << 34) + b"\x40\x00\x00" * 100_000)
    assert len(table(state)) == hpack_state.TABLE_LIMIT // 32


PIECES = st.sampled_from(
    [b"\x82", b"\xbe", b"\xbf", b"\x40\x01a\x01b", b"\x20", b"\x3f\xe1\x1f", b"\x7f\x00\x02xy", b"\xff\x01"]
)


@settings(max_examples=300, deadline=None)
@given(blocks=st.lists(st.lists(st.one_of(PIECES, st.binary(max_size=4)), max_size=6).map(b"".join), max_size=5))
def test_anything(blocks: list[bytes]) -> None:
    """Any blocks are decoded without an exception, and no more comes out than is allowed."""
    state = decoder(500)
    for block in blocks:
        section = state.decode(block)
        assert sum(len(name) + len(value) + 32 for name, value in section.fields) <= 500
        assert section.corrupt <= section.partial
