"""Records to events: every type, every lie about sizes, and any bytes at all."""

from __future__ import annotations

import json
import random

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from samples import CONN, IN, MONOTONIC_NS, OUT, PID, PROCESS_START_NS

from tlscap import decode
from tlscap.decode import (
    AddressEvent,
    CallbackEvent,
    CarryEvent,
    CloseEvent,
    DataEvent,
    EndEvent,
    Event,
    ExitEvent,
    HandshakeEvent,
    MappedEvent,
    MarkEvent,
    NameEvent,
    NoteEvent,
    OpenEvent,
    ProcessEvent,
    UnjoinedEvent,
)
from tlscap.errors import CorruptError

T = MONOTONIC_NS

EVERY_TYPE: list[tuple[bytes, Event]] = [
    (
        samples.data(b"hello", 70, IN, length=9, reason=1, entry_ns=T - 9),
        DataEvent(T, T - 9, PID, CONN, IN, 70, 9, b"hello", 1, no_state=False),
    ),
    (samples.data(b"", 0, OUT, flags=1), DataEvent(T, T, PID, CONN, OUT, 0, 0, b"", 0, no_state=True)),
    (
        samples.opened(ssl=77, role=2, midstream=True),
        OpenEvent(T, PID, CONN, 77, PROCESS_START_NS, midstream=True, role=2),
    ),
    (
        samples.address("10.0.0.1", 1, "10.0.0.2", 2, srtt_us=30),
        AddressEvent(T, CONN, 2, bytes([10, 0, 0, 1]) + bytes(12), 1, bytes([10, 0, 0, 2]) + bytes(12), 2, 6, 30),
    ),
    (
        samples.address("::1", 1, "::2", 2, protocol=17),
        AddressEvent(T, CONN, 10, bytes(15) + b"\1", 1, bytes(15) + b"\2", 2, 17, 0),
    ),
    (
        samples.address("1.2.3.4", 1, "5.6.7.8", 2, flags=2),
        AddressEvent(
            T, CONN, 2, bytes([1, 2, 3, 4]) + bytes(12), 1, bytes([5, 6, 7, 8]) + bytes(12), 2, 6, 0, by_ciphertext=True
        ),
    ),
    (samples.handshake(T - 5), HandshakeEvent(T, CONN, T - 5)),
    (samples.sni(b"a.example"), NameEvent(T, CONN, 1, "a.example")),
    (samples.alpn(b"h2"), NameEvent(T, CONN, 2, "h2")),
    (samples.sni(b"\xffx"), NameEvent(T, CONN, 1, "\\xffx")),
    (samples.shutdown(), EndEvent(T, CONN, outbound=True)),
    (samples.eof(), EndEvent(T, CONN, outbound=False)),
    (samples.closed(3, 4, recycled=True), CloseEvent(T, PID, CONN, 3, 4, final=True)),
    (samples.ledger(3, 4), CloseEvent(T, PID, CONN, 3, 4, final=False)),
    (samples.carry(3, 4), CarryEvent(T, PID, CONN, 3, 4)),
    (samples.orphan(3, 4), CloseEvent(T, PID, CONN, 3, 4, final=True)),
    (
        samples.process(b"curl", b"curl", b"", b"a b", exe=b"./curl"),
        ProcessEvent(T, PID, PROCESS_START_NS, 1, 1000, "curl", "./curl", ("curl", "", "a b")),
    ),
    (samples.process(b"kworker", exe=b""), ProcessEvent(T, PID, PROCESS_START_NS, 1, 1000, "kworker", "", ())),
    (samples.mapped(5, 6), MappedEvent(T, PID, 5, 6, executable=True)),
    (samples.mapped(5, 6, executable=False), MappedEvent(T, PID, 5, 6, executable=False)),
    (samples.exited(), ExitEvent(T, PID)),
    (samples.unjoined(), UnjoinedEvent(T, PID)),
    (samples.callback(1 << 47 | 5, 23), CallbackEvent(T, PID, 1 << 47 | 5, 23)),
    (samples.mark(2, 100, 20, IN), MarkEvent(T, CONN, 2, IN, 100, 20)),
    (decode.note(decode.RECORD_START, {"tool": "tlscap ä"}), NoteEvent(0, 256, 0, {"tool": "tlscap ä"})),
    (decode.note(decode.RECORD_CLOCK, {"wall_ns": 1}), NoteEvent(0, 257, 0, {"wall_ns": 1})),
    (decode.note(decode.RECORD_PROCESS, {"exe": "/x"}, pid=9), NoteEvent(0, 258, 9, {"exe": "/x"})),
    (decode.note(decode.RECORD_END, {}, time_ns=8), NoteEvent(8, 260, 0, {})),
]
WITHOUT_BODY = {decode.SAMPLE_SHUTDOWN, decode.SAMPLE_EOF, decode.SAMPLE_EXIT, decode.SAMPLE_UNJOINED}
ONE_OF_EACH = {decode.HEADER.unpack_from(raw)[0]: raw for raw, _ in EVERY_TYPE}


def events(raw: bytes) -> list[Event]:
    return list(decode.decode(raw))


def corrupt(raw: bytes) -> CorruptError:
    """Return the error that these bytes are."""
    with pytest.raises(CorruptError) as caught:
        events(raw)
    return caught.value


def until_corrupt(raw: bytes) -> list[Event]:
    """Return what comes before a record that can't be, if there is one; its offset must lie in the bytes."""
    seen: list[Event] = []
    where = 0
    try:
        seen.extend(decode.decode(raw))
    except CorruptError as error:
        where = error.offset
    assert 0 <= where <= len(raw)
    return seen


@pytest.mark.parametrize(("raw", "event"), EVERY_TYPE, ids=[type(event).__name__ for _, event in EVERY_TYPE])
def test_every_type(raw: bytes, event: Event) -> None:
    """A record of each type decodes to its event, field by field."""
    assert len(raw) % 8 == 0
    assert events(raw) == [event]


def test_every_type_is_tested() -> None:
    """The list above is complete: a type that is added to decode.py is added here."""
    named = {value for name, value in vars(decode).items() if name.startswith(("SAMPLE_", "RECORD_"))}
    assert set(ONE_OF_EACH) == named


def test_order() -> None:
    """Records follow each other without separators, and events come in their order."""
    assert events(b"".join(raw for raw, _ in EVERY_TYPE)) == [event for _, event in EVERY_TYPE]
    assert events(b"") == []


@pytest.mark.parametrize("flags", [0, 1, 0xFFFD])
def test_other_flags(flags: int) -> None:
    """Only its own flag says that an address was found by ciphertext."""
    (event,) = events(samples.address(flags=flags))
    assert isinstance(event, AddressEvent)
    assert not event.by_ciphertext


@given(st.lists(st.sampled_from(EVERY_TYPE)), st.integers(128, 255) | st.integers(1000, 0xFFFF), st.binary(max_size=40))
def test_unknown_types(chosen: list[tuple[bytes, Event]], kind: int, body: bytes) -> None:
    """Types that this version doesn't know are stepped over, wherever they stand."""
    unknown = samples.record(kind, body)
    raw = unknown + b"".join(record + unknown for record, _ in chosen)
    assert events(raw) == [event for _, event in chosen]


@given(st.binary(max_size=60), st.integers(0, 100))
def test_padding(payload: bytes, offset: int) -> None:
    """A record of any length is padded to 8 bytes, and what the padding holds doesn't matter."""
    raw = bytearray(samples.data(payload, offset))
    used = 32 + decode.DATA.size + len(payload)
    assert len(raw) == used + -used % 8
    raw[used:] = b"\xff" * (len(raw) - used)
    following = samples.eof()
    first, second = events(bytes(raw) + following)
    assert isinstance(first, DataEvent)
    assert (first.data, first.offset) == (payload, offset)
    assert isinstance(second, EndEvent)


@pytest.mark.parametrize("kind", sorted(ONE_OF_EACH))
def test_too_short(kind: int) -> None:
    """A record whose size leaves no room for its type's fields is an error at that record, not at the file's start."""
    before = samples.eof()
    for size in range(0, 32 + decode.DATA.size, 4):
        if kind in WITHOUT_BODY and size >= 32:
            continue
        if size - 32 >= decode._BODY_SIZES.get(kind, 1000):
            continue
        lying = samples.record(kind, bytes(max(size - 32, 0)), size=size)
        assert corrupt(before + lying).offset == len(before)


@pytest.mark.parametrize("size", [33, 40, 1 << 20, 0xFFFFFFF9, 0xFFFFFFFF])
def test_too_long(size: int) -> None:
    """A record that claims more than there is, is an error: nothing is read behind the end."""
    before = samples.opened()
    error = corrupt(before + samples.record(decode.SAMPLE_EXIT, size=size))
    assert error.offset == len(before)
    assert str(size) in str(error)


@pytest.mark.parametrize("cut", [1, 7, 8, 31])
def test_ends_inside_header(cut: int) -> None:
    """Fewer bytes than a header are an error where they begin."""
    before = samples.opened()
    assert corrupt(before + samples.eof()[:cut]).offset == len(before)


def test_padding_is_missing() -> None:
    """The padding belongs to the record: without it the record is cut off."""
    assert corrupt(samples.data(b"x")[:-1]).offset == 0


@pytest.mark.parametrize(
    "lie",
    [
        samples.data(b"abc", captured=4, length=9),  # would take a byte of padding
        samples.data(b"abc", captured=4000, length=4000),  # would take the next records
        samples.data(b"abc", captured=0xFFFFFFFF, length=0xFFFFFFFF),
        samples.data(b"abc", length=2),  # captured more than it stands for
        samples.data(b"abc", direction=2),
    ],
)
def test_data_contradicts_itself(lie: bytes) -> None:
    """What a data record captured lies inside it, is part of what it stands for, and went in or out."""
    before = samples.opened()
    assert corrupt(before + lie + samples.eof() * 200).offset == len(before)


@pytest.mark.parametrize("length", [0, 3, 256, 257, 60000, 65535])
def test_name_length(length: int) -> None:
    """A name's length never reaches outside its record."""
    (event,) = events(samples.sni(b"abcdef", length=length) + samples.sni(b"next"))[:1]
    assert isinstance(event, NameEvent)
    assert event.text == "abcdef".ljust(256, "\0")[:length]


def test_command_line_length() -> None:
    """A command line's length never reaches outside its record, and a cut one keeps its last word."""
    (event, _) = events(samples.process(b"a", b"one", b"two", length=0xFFFFFFFF) + samples.eof())
    assert isinstance(event, ProcessEvent)
    assert event.cmdline == ("one", "two")
    (event,) = events(samples.process(b"a", b"one", b"two", length=6))
    assert isinstance(event, ProcessEvent)
    assert event.cmdline == ("one", "tw")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: body[:8].hex(),
)
def test_notes_must_be_objects(body: bytes) -> None:
    """Records of user space hold one JSON object; nothing else, however deep or long, is more than a corrupt record."""
    before = samples.opened()
    assert corrupt(before + samples.record(decode.RECORD_START, body)).offset == len(before)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.integers(0, 2**32 - 1))
def test_notes_round_trip(body: dict[str, object], pid: int) -> None:
    """What is written as a note is read as the same note, whatever text it holds."""
    raw = decode.note(decode.RECORD_PROCESS, body, pid=pid, time_ns=12)
    assert len(raw) % 8 == 0
    (event,) = events(raw)
    assert event == NoteEvent(12, decode.RECORD_PROCESS, pid, json.loads(json.dumps(body)))


@given(st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    """Any bytes are events or a `CorruptError` that says where, and nothing else."""
    until_corrupt(raw)


@given(st.lists(st.sampled_from(EVERY_TYPE), min_size=1, max_size=6), st.integers(), st.integers(1, 8))
def test_damaged_records(chosen: list[tuple[bytes, Event]], seed: int, changes: int) -> None:
    """Good records with some bytes replaced are events or a `CorruptError`; what lies before the damage is yielded."""
    raw = bytearray(b"".join(record for record, _ in chosen))
    dice = random.Random(seed)
    touched = [dice.randrange(len(raw)) for _ in range(changes)]
    for at in touched:
        raw[at] = dice.randrange(256)
    seen = until_corrupt(bytes(raw))
    whole, at = 0, 0
    for record, _ in chosen:
        at += len(record)
        if at > min(touched):
            break
        whole += 1
    assert seen[:whole] == [event for _, event in chosen[:whole]]
