"""Bodies as they are kept and written: decoded where possible, bounded, and never a failure."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import brotli
import pytest
import zstandard
from helpers import GET, Wire, make_flow
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.http.bodies import (
    Body,
    BodyCollector,
    BodyDraft,
    BodyFile,
    BodyFiles,
    Budget,
    Hole,
    MessageCollector,
    is_text_type,
    text_of,
)
from tlscap.http.events import Side
from tlscap.http.exchanges import BodySink, Exchange, ExchangeBuilder
from tlscap.http.messages import AppMessage
from tlscap.model import Direction, GapReason, Item

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
REQUEST, RESPONSE = Side.REQUEST, Side.RESPONSE
LOST = GapReason.RING_FULL
TEXT = b"".join(b"line %d\n" % number for number in range(3000))

CODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}

Piece = bytes | int


def keep(encodings: str, *pieces: Piece, limit: int = 1 << 20, complete: bool = True) -> Body:
    """Return a body made of pieces and holes."""
    draft = BodyDraft(encodings, limit=limit)
    for piece in pieces:
        if isinstance(piece, bytes):
            draft.add(piece)
        else:
            draft.gap(piece, LOST)
    return draft.done(complete=complete)


def answer(body: bytes, *headers: bytes) -> bytes:
    fields = b"".join(b"%s\r\n" % header for header in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


def run(sink: BodySink, items: list[Item]) -> list[Exchange]:
    builder = ExchangeBuilder(sink)
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    return sorted(exchanges + builder.finish(0), key=lambda exchange: exchange.id)


# --- One body ---


@pytest.mark.parametrize("encodings", CODERS)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_decoded(encodings: str, size: int) -> None:
    """A body is decoded, whatever the pieces."""
    sent = CODERS[encodings](TEXT)
    body = keep(encodings, *(sent[start : start + size] for start in range(0, len(sent), size)))
    assert body == Body(TEXT, len(TEXT), len(sent))
    assert not body.truncated


@pytest.mark.parametrize("encodings", CODERS)
def test_truncated(encodings: str) -> None:
    """Beyond the limit the first bytes are kept, and the true sizes known."""
    sent = CODERS[encodings](TEXT)
    body = keep(encodings, sent[:50], sent[50:], limit=100)
    assert body == Body(TEXT[:100], len(TEXT), len(sent))
    assert body.truncated


@pytest.mark.parametrize("encodings", [encodings for encodings in CODERS if encodings])
def test_ends_early(encodings: str) -> None:
    """What could be decoded of a body that was cut is there, and it is not complete."""
    sent = CODERS[encodings](os.urandom(300_000))
    body = keep(encodings, sent[:200_000])
    assert 0 < body.size < 300_000
    assert (body.complete, body.encoded, body.note) == (False, False, f"{encodings}: ends too early")


def test_holes() -> None:
    """Holes are told where they are; those that touch are one."""
    body = keep("", 3, b"ab", 1, 2, b"cd", 4)
    assert body.data == b"abcd"
    assert body.gaps == (Hole(0, 3, LOST), Hole(2, 3, LOST), Hole(4, 4, LOST))
    assert (body.size, body.transferred, body.missing, body.complete, body.note) == (4, 4, 10, False, "")


def test_many_holes() -> None:
    """No more than a thousand holes are remembered one by one, and no byte of the others is forgotten."""
    pieces: list[Piece] = [b"x", 2]
    body = keep("", *pieces * 1500)
    assert (len(body.gaps), body.missing, sum(gap.length for gap in body.gaps), body.size) == (1000, 3000, 3000, 1500)


def test_hole_in_coded_content() -> None:
    """Nothing can be decoded beyond a hole: the body ends there, decoded."""
    content = os.urandom(200_000)
    sent = gzip.compress(content)
    body = keep("gzip", sent[:150_000], 10, sent[150_010:])
    assert 0 < body.size < 200_000
    assert content.startswith(body.data)
    assert (body.gaps, body.missing) == ((Hole(body.size, 10, LOST),), 10)
    assert (body.transferred, body.encoded) == (len(sent) - 10, False)
    assert "beyond a hole" in body.note


def test_hole_at_the_beginning_of_coded_content() -> None:
    """When nothing was decoded at all, what passed is kept as it passed."""
    sent = gzip.compress(TEXT)
    body = keep("gzip", sent[:5], 10, sent[15:])
    assert (body.data, body.size, body.encoded) == (sent[:5] + sent[15:], len(sent) - 10, True)
    assert body.gaps == (Hole(5, 10, LOST),)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_corrupt(size: int) -> None:
    """A body that is no gzip is kept as it was transferred, in whatever pieces it came."""
    data = b"this is not compressed" * 20
    body = keep("gzip", *(data[start : start + size] for start in range(0, len(data), size)))
    assert (body.data, body.size, body.transferred, body.encoded) == (data, len(data), len(data), True)
    assert body.note.startswith("gzip: ")
    assert not body.complete


def test_corrupt_later() -> None:
    """What was decoded before an error stays."""
    sent = gzip.compress(TEXT)
    body = keep("gzip", sent[:-8], bytes(8), b"more")
    assert (body.data, body.encoded, body.complete, body.transferred) == (TEXT, False, False, len(sent) + 4)
    assert "incorrect data check" in body.note


def test_corrupt_and_long() -> None:
    """Of what can't be decoded, too, no more than the limit is kept."""
    body = keep("gzip", b"no gzip" * 100, b"x" * 1000, limit=50)
    assert (body.data, body.size, body.encoded, body.truncated) == ((b"no gzip" * 100)[:50], 1700, True, True)


def test_unknown_coding() -> None:
    """A coding that nobody knows is said, and the bytes are kept."""
    body = keep("compress", b"abc", 2, b"d")
    assert (body.data, body.encoded, body.complete, body.missing) == (b"abcd", True, False, 2)
    assert "compress" in body.note


@settings(max_examples=60)
@given(
    content=st.binary(max_size=400) | st.just(TEXT[:2000]),
    encodings=st.sampled_from(list(CODERS)),
    coded=st.booleans(),
    cuts=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2)), max_size=30),
    limit=st.integers(0, 500),
    total=st.integers(0, 600),
)
def test_accounting(
    content: bytes, encodings: str, cuts: list[tuple[int, int]], limit: int, total: int, *, coded: bool
) -> None:
    """Whatever passes: sizes add up, limits hold, and everything that was held is given back."""
    sent = CODERS[encodings](content) if coded else content
    budget = Budget(total)
    draft = BodyDraft(encodings, limit=limit, budget=budget)
    pos = missing = 0
    for size, hole in cuts:
        draft.add(sent[pos : pos + size])
        pos += size
        if hole == 0:
            draft.gap(size, LOST)
            missing += size
        assert 0 <= budget.left <= total
    body = draft.done(complete=True)
    assert budget.left == total
    assert (body.transferred, body.missing) == (min(pos, len(sent)), missing)
    assert sum(gap.length for gap in body.gaps) == missing
    assert len(body.data) <= min(limit, total, body.size)
    assert all(0 <= gap.offset <= body.size for gap in body.gaps)
    if coded and not body.encoded and not (missing and not encodings):
        assert content.startswith(body.data)
    if body.complete and coded and encodings and body.transferred:
        assert body.size == len(content)


# --- The collector ---


def test_collector() -> None:
    """Both bodies of an exchange are handed out once."""
    wire = Wire()
    collector = BodyCollector()
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nwhat"
    (exchange,) = run(collector, [wire.out(post), wire.into(answer(gzip.compress(TEXT), b"Content-Encoding: gzip"))])
    assert (collector.content(exchange, REQUEST), collector.content(exchange, RESPONSE)) == (b"what", TEXT)
    request, response = (collector.take(exchange, side) for side in Side)
    assert request == Body(b"what", 4, 4)
    assert response
    assert (response.data, response.complete, collector.held) == (TEXT, True, 0)
    assert collector.take(exchange, RESPONSE) is None
    assert collector.content(exchange, RESPONSE) is None


def test_collector_without_body() -> None:
    """A message without a body has an empty one; a message that was not seen has none."""
    collector = BodyCollector()
    (exchange,) = run(collector, [Wire().out(GET)])
    assert (collector.take(exchange, REQUEST), collector.take(exchange, RESPONSE)) == (Body(b"", 0, 0), None)


def test_collector_cut_short() -> None:
    """A body that its message did not get whole is not complete."""
    wire = Wire()
    collector = BodyCollector()
    (exchange,) = run(collector, [wire.out(GET), wire.into(answer(b"hello")[:-2]), wire.gap(IN, 1)])
    assert collector.take(exchange, RESPONSE) == Body(b"hel", 3, 3, (Hole(3, 1, LOST),), 1, complete=False)


def test_collector_chooses() -> None:
    """What is not chosen is not kept, and the question is asked once."""
    asked: list[tuple[int, Side]] = []

    def chosen(exchange: Exchange, side: Side) -> bool:
        asked.append((exchange.id, side))
        return exchange.id == 2

    wire = Wire()
    collector = BodyCollector(chosen=chosen)
    hello = answer(b"hello")
    items: list[Item] = [wire.out(GET * 2), wire.into(hello[:-1]), wire.into(hello[-1:] + hello)]
    first, second = run(collector, items)
    assert asked == [(1, RESPONSE), (2, RESPONSE)]
    assert collector.take(first, RESPONSE) is None
    assert collector.take(second, RESPONSE) == Body(b"hello", 5, 5)
    assert collector.held == 0


def test_collector_total() -> None:
    """All bodies together stay below a limit; what is taken or forgotten makes room."""
    wires = [Wire(make_flow(number)) for number in range(1, 5)]
    collector = BodyCollector(total_limit=120)
    items: list[Item] = [wire.out(GET) for wire in wires]
    items += [wire.into(answer(bytes([number]) * 50)) for number, wire in enumerate(wires[:3])]
    first, second, third, fourth = run(collector, items)
    third_body = collector.take(third, RESPONSE)
    assert third_body == Body(b"\x02" * 20, 50, 50)
    assert third_body.truncated
    collector.forget(first)
    collector.forget(second)
    collector.forget(fourth)
    assert collector.held == 0
    again = Wire(make_flow(5))
    (exchange,) = run(collector, [again.out(GET), again.into(answer(b"x" * 120))])
    body = collector.take(exchange, RESPONSE)
    assert body
    assert not body.truncated


# --- Messages ---


def said(data: bytes, side: Side = REQUEST) -> AppMessage:
    return AppMessage(kind="text", side=side, started_ns=0, time_ns=0, data=data, size=len(data), length=len(data))


def test_messages() -> None:
    """Messages are kept in order as long as there is room; those that find none are counted."""
    exchanges = run(BodyCollector(), [Wire(make_flow(number)).out(GET) for number in (1, 2, 3)])
    first, second, third = exchanges
    collector = MessageCollector(total_limit=1600, chosen=lambda exchange: exchange is not third)
    for exchange in exchanges:
        collector.on_message(exchange, said(b"one"))
    collector.on_message(first, said(b"x" * 90))
    collector.on_message(first, said(b"y" * 90))
    collector.on_message(second, said(b"two"))
    assert collector.take(first) == ([said(b"one"), said(b"x" * 90)], 1)
    assert collector.take(first) == ([], 0)
    assert collector.take(second) == ([said(b"one")], 1)
    assert collector.take(third) == ([], 0)
    collector.on_message(third, said(b""))
    collector.on_message(second, said(b"z" * 1000))
    assert collector.take(second) == ([said(b"z" * 1000)], 0)


# --- Files ---


class Folder:
    """Opens files as the command line does, and counts them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[BinaryIO] = []
        self.most_open = 0

    def __call__(self, name: str, *, again: bool) -> BinaryIO:
        flags = os.O_APPEND if again else os.O_CREAT | os.O_EXCL
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_NOFOLLOW | flags, 0o600)
        self.open = [file for file in self.open if not file.closed]
        self.open.append(os.fdopen(descriptor, "wb"))
        self.most_open = max(self.most_open, len(self.open))
        return self.open[-1]

    def contents(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(self.path.iterdir())}


def written(folder: Folder, items: list[Item]) -> list[BodyFile]:
    files = BodyFiles(folder)
    done = [file for exchange in run(files, items) for file in files.finish(exchange)]
    assert files.close() == []
    assert all(file.closed for file in folder.open)
    return done


def test_files(tmp_path: Path) -> None:
    """Each body gets its file, decoded and readable by its owner alone; what was written is told."""
    wire = Wire()
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nwhat"
    sent = gzip.compress(b'{"a":1}')
    items: list[Item] = [
        wire.out(post + GET),
        wire.into(answer(sent, b"Content-Type: application/json; charset=utf-8", b"Content-Encoding: gzip")),
        wire.into(answer(b"")),
    ]
    folder = Folder(tmp_path)
    assert written(folder, items) == [
        BodyFile("0001-request.txt", 1, REQUEST, 4, 4, 0, complete=True, encoded=False, note=""),
        BodyFile("0001-response.json", 1, RESPONSE, 7, len(sent), 0, complete=True, encoded=False, note=""),
    ]
    assert folder.contents() == {"0001-request.txt": b"what", "0001-response.json": b'{"a":1}'}
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_files_never_overwrite(tmp_path: Path) -> None:
    """A file that is there already is the caller's problem, and stays as it is."""
    (tmp_path / "0001-response.bin").write_bytes(b"mine")
    wire = Wire()
    with pytest.raises(FileExistsError):
        written(Folder(tmp_path), [wire.out(GET), wire.into(answer(b"theirs"))])
    assert (tmp_path / "0001-response.bin").read_bytes() == b"mine"


NAMES: dict[bytes, str] = {
    b"text/html; charset=x": "html",
    b"image/PNG": "png",
    b"application/problem+json": "json",
    b"application/atom+xml": "xml",
    b"application/grpc+proto": "grpc",
    b"text/x-python": "txt",
    b"../../etc/passwd": "bin",
    b"text/../../x": "txt",
    b"\x00/\xff": "bin",
    b"": "bin",
}


@pytest.mark.parametrize("content_type", NAMES)
def test_file_names(tmp_path: Path, content_type: bytes) -> None:
    """The suffix comes from a table, and nothing from the network gets into a name."""
    wire = Wire()
    (file,) = written(Folder(tmp_path), [wire.out(GET), wire.into(answer(b"x", b"Content-Type: " + content_type))])
    assert file.name == "0001-response." + NAMES[content_type]


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [
        (b"gzip", "gz"),
        (b"br", "br"),
        (b"gzip, zstd", "gz.zst"),
        (b"../x", "encoded"),
        (b"gzip, " * 300 + b"br", "encoded"),
    ],
)
def test_file_that_can_not_be_decoded(tmp_path: Path, encoding: bytes, suffix: str) -> None:
    """A body that can't be decoded is written as it was transferred, and its name says so."""
    wire = Wire()
    head = answer(b"no such coding", b"Content-Type: text/css", b"Content-Encoding: " + encoding)
    folder = Folder(tmp_path)
    (file,) = written(folder, [wire.out(GET), *(wire.into(head[pos : pos + 5]) for pos in range(0, len(head), 5))])
    assert (file.name, file.encoded, file.complete, file.size) == (f"0001-response.css.{suffix}", True, False, 14)
    assert file.note
    assert folder.contents() == {file.name: b"no such coding"}


def test_file_with_hole(tmp_path: Path) -> None:
    """What is around a hole is written without anything in between, and the hole is told."""
    wire = Wire()
    items: list[Item] = [wire.out(GET), wire.into(answer(b"hello")[:-4]), wire.gap(IN, 2), wire.into(b"lo")]
    folder = Folder(tmp_path)
    (file,) = written(folder, items)
    assert (file.size, file.missing, file.complete) == (3, 2, False)
    assert folder.contents() == {"0001-response.bin": b"hlo"}


def test_many_files(tmp_path: Path) -> None:
    """However many bodies pass at the same time, few files are open, and none loses a byte."""
    wires = [Wire(make_flow(number)) for number in range(1, 21)]
    body = bytes(range(30))
    items: list[Item] = [wire.out(GET) for wire in wires]
    for pos in range(0, len(answer(body)), 9):
        items += [wire.into(answer(body)[pos : pos + 9]) for wire in wires]
    folder = Folder(tmp_path)
    files = BodyFiles(folder, open_limit=3)
    exchanges = run(files, items)
    assert [len(files.finish(exchange)) for exchange in exchanges] == [1] * 20
    assert folder.most_open <= 3
    assert set(folder.contents().values()) == {body}


def test_files_chosen_and_left_open(tmp_path: Path) -> None:
    """Bodies that are not chosen are not written; what is open at the end is closed and told."""
    wire, other = Wire(make_flow(1)), Wire(make_flow(2))
    folder = Folder(tmp_path)
    files = BodyFiles(folder, chosen=lambda exchange, side: exchange.id == 2)
    builder = ExchangeBuilder(files)
    for item in (wire.out(GET), wire.into(answer(b"one")), other.out(GET), other.into(answer(b"two")[:-1])):
        builder.feed(item)
    (file,) = files.close()
    assert (file.name, file.size, file.complete) == ("0002-response.bin", 2, False)
    assert folder.contents() == {"0002-response.bin": b"tw"}


@given(data=st.binary(max_size=300), encodings=st.sampled_from([*CODERS, "compress"]), size=st.integers(1, 40))
@settings(max_examples=30)
def test_files_and_collector_agree(data: bytes, encodings: str, size: int) -> None:
    """What is written is what would be kept."""
    sent = answer(data, b"Content-Encoding: " + encodings.encode())
    memory: dict[str, Memory] = {}

    def opened(name: str, *, again: bool) -> BinaryIO:
        assert again == (name in memory)
        memory.setdefault(name, Memory())
        return memory[name]  # type: ignore[return-value]

    def items() -> Iterator[Item]:
        wire = Wire()
        yield wire.out(GET)
        yield from (wire.into(sent[pos : pos + size]) for pos in range(0, len(sent), size))

    files, collector = BodyFiles(opened), BodyCollector()
    (exchange,) = run(files, list(items()))
    told = files.finish(exchange)
    (exchange,) = run(collector, list(items()))
    body = collector.take(exchange, RESPONSE)
    assert body
    assert b"".join(part for file in memory.values() for part in file.parts) == body.data
    if told:
        assert (told[0].size, told[0].note, told[0].encoded) == (body.size, body.note, body.encoded)


class Memory:
    """A file in memory that keeps what was written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(data)
        return len(data)

    def close(self) -> None:
        pass


# --- Text ---


@pytest.mark.parametrize(
    ("data", "content_type", "text"),
    [
        (b"", b"", ""),
        ("grün".encode(), b"", "grün"),
        ("grün".encode(), b"text/html; charset=UTF-8", "grün"),
        ("grün".encode("latin-1"), b'text/html; charset="iso-8859-1"', "grün"),
        ("緑".encode("shift_jis"), b"text/html; charset=Shift_JIS", "緑"),
        ("grün".encode("utf-16-le"), b"text/plain; charset=utf-16le", "grün"),
        ("grün".encode("latin-1"), b"text/html", None),
        (b"\xff\xff", b"text/html; charset=shift_jis", None),
        (b"a\x00b", b"text/plain", "a\x00b"),
        (b"a\x00b", b"image/png", None),
        (b"a\x1b[1m\tb\r\n", b"", "a\x1b[1m\tb\r\n"),
        (b"{}", b"application/octet-stream", "{}"),
        (b"abc", b"text/plain; charset=no-such-thing", "abc"),
        (b"abc-9fa", b"text/plain; charset=punycode", "abc-9fa"),
        (b"\\x41", b"text/plain; charset=unicode_escape", "\\x41"),
        (b"abc", b"text/plain; charset=\xff\x00", "abc"),
        (b"\xef\xbb\xbfa", b"text/plain", "\ufeffa"),
    ],
)
def test_text_of(data: bytes, content_type: bytes, text: str | None) -> None:
    """A body is text when its charset, or UTF-8, says so, and when nothing speaks against it."""
    assert text_of(data, content_type) == text


def test_text_that_would_not_come_back() -> None:
    """Bytes that a charset reads, but would write differently, are no text."""
    assert text_of("a".encode("utf-16-be"), b"text/plain; charset=utf-16-be") == "a"
    assert text_of(b"\xfe\xff\x00a", b"text/plain; charset=utf-16") is None  # its writer would choose the other order


def test_cut_text() -> None:
    """A character that a limit cut in two is left out."""
    assert text_of("grün".encode()[:3], b"") is None
    assert text_of("grün".encode()[:3], b"", cut=True) == "gr"


@given(data=st.binary(max_size=60), content_type=st.binary(max_size=30) | st.sampled_from([b"text/x; charset=cp1252"]))
def test_text_is_exact(data: bytes, content_type: bytes) -> None:
    """Nothing raises, and what is called UTF-8 text is those bytes."""
    text = text_of(data, content_type)
    if text is not None and b"charset" not in content_type:
        assert text.encode() == data


def test_text_types() -> None:
    """Types that promise text."""
    assert all(map(is_text_type, [b"text/x", b"application/json", b"image/svg+xml", b"application/X-NDJSON; a=b"]))
    assert not any(map(is_text_type, [b"", b"image/png", b"application/octet-stream", b"application/jsonx"]))
