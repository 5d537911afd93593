"""Multipart bodies: the RFCs' examples, the email package as judge, malformed and hostile ones."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import re

import pytest
import requests
from helpers import REQUEST
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_messages import MessageStep, brief, cut_steps, drip, pieces, run

from tlscap.http.events import Header
from tlscap.http.messages import AppMessage, body_decoder
from tlscap.http.multipart import HEADERS_MAX, MultipartDecoder, part_names, usable_boundary

RFC2046 = (
    b"This is the preamble.  It is to be ignored, though it\r\nis a handy place for composition agents to include an\r\n"
    b"explanatory note to non-MIME conformant readers.\r\n"
    b"\r\n--simple boundary\r\n\r\nThis is implicitly typed plain US-ASCII text.\r\nIt does NOT end with a linebreak.\r\n"
    b"--simple boundary\r\nContent-type: text/plain; charset=us-ascii\r\n\r\n"
    b"This is explicitly typed plain US-ASCII text.\r\nIt DOES end with a linebreak.\r\n\r\n"
    b"--simple boundary--\r\n\r\nThis is the epilogue.  It is also to be ignored.\r\n"
)
FORM = (
    b'--AaB03x\r\ncontent-disposition: form-data; name="field1"\r\ncontent-type: text/plain;charset=UTF-8\r\n\r\n'
    b"Joe owes \xe2\x82\xac100.\r\n"
    b'--AaB03x\r\ncontent-disposition: form-data; name="pics"; filename="file1.txt"\r\n\r\n...\r\n--AaB03x--\r\n'
)


def parts(data: bytes, boundary: bytes = b"b", limit: int = 1 << 20) -> list[AppMessage]:
    return drip(lambda: MultipartDecoder(REQUEST, boundary, limit=limit), data)


def test_rfc2046() -> None:
    """The example of RFC 2046, 5.1.1: preamble, two parts, epilogue."""
    messages = parts(RFC2046, b"simple boundary")
    assert [(message.kind, message.data[-24:], message.complete, message.notes) for message in messages] == [
        ("preamble", b"-MIME conformant readers.\r\n"[-24:], True, ()),
        ("part", b"OT end with a linebreak.", True, ()),
        ("part", b"ES end with a linebreak.\r\n"[-24:], True, ()),
        ("epilogue", b"It is also to be ignored.\r\n"[-24:], True, ()),
    ]
    assert messages[2].headers == ((b"Content-type", b"text/plain; charset=us-ascii"),)


def test_form() -> None:
    """The example of RFC 7578: names and file names."""
    first, second = parts(FORM, b"AaB03x")
    assert (first.name, first.filename, first.data.decode()) == ("field1", "", "Joe owes €100.")
    assert (second.name, second.filename, second.data) == ("pics", "file1.txt", b"...")
    assert (second.size, second.complete, second.notes) == (3, True, ())


def test_requests() -> None:
    """A form that the requests library sends."""
    request = requests.Request(
        "POST",
        "https://example.org/",
        data={"a": "1", "ü": "2"},
        files=[("f", ("x y.bin", bytes(range(256)) * 40, "application/x-thing")), ("g", ("€.txt", b"--\r\n--"))],
    ).prepare()
    assert isinstance(request.body, bytes)
    content_type = str(request.headers["Content-Type"]).encode()
    decoder = body_decoder(REQUEST, ((b"Content-Type", content_type),))
    assert decoder
    messages = run(decoder, pieces(request.body, 100))
    assert [(message.name, message.filename, message.data) for message in messages] == [
        ("a", "", b"1"),
        ("ü", "", b"2"),
        ("f", "x y.bin", bytes(range(256)) * 40),
        ("g", "€.txt", b"--\r\n--"),
    ]
    assert all(message.complete and not message.notes for message in messages)


BODIES: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "one": (b"--b\r\n\r\nx\r\n--b--", [("part", b"x")]),
    "empty parts": (b"--b\r\n\r\n\r\n--b\r\nA: 1\r\n\r\n\r\n--b--\r\n", [("part", b""), ("part", b"")]),
    "boundary right after the blank line": (b"--b\r\n\r\n--b\r\nA: 1\r\n\r\n--b--\r\n", [("part", b""), ("part", b"")]),
    "bare LF": (b"pre\n--b\n\nx\ny\n--b--\n", [("preamble", b"pre"), ("part", b"x\ny")]),
    "padding": (b"--b \t \r\n\r\nx\r\n--b  \r\n\r\ny\r\n--b-- \r\n", [("part", b"x"), ("part", b"y")]),
    "longer boundary is content": (
        b"--b\r\n\r\n--bc\r\n\r\nx\r\n--bc--\r\n--b--",
        [("part", b"--bc\r\n\r\nx\r\n--bc--")],
    ),
    "boundary inside of a line is content": (b"--b\r\n\r\nx--b\r\n--b--", [("part", b"x--b")]),
    "nearly a boundary": (
        b"--b\r\n\r\n\r\n\r\n--\r\n--\n--b-\r\n--b \r--b\r\r\n--b--",
        [("part", b"\r\n\r\n--\r\n--\n--b-\r\n--b \r--b\r")],
    ),
    "too much padding": (
        b"--b\r\n\r\nx\r\n--b" + b" " * 70 + b"\r\n--b--",
        [("part", b"x\r\n--b" + b" " * 70)],
    ),
    "line breaks belong to the content": (b"--b\r\n\r\n\r\nx\r\n\r\n\r\n--b--", [("part", b"\r\nx\r\n\r\n")]),
    "epilogue": (b"--b--\r\nbye", [("epilogue", b"bye")]),
    "epilogue at once": (b"--b--bye", [("epilogue", b"bye")]),
    "epilogue of boundaries": (b"--b--\r\n--b\r\n\r\nx\r\n--b--", [("epilogue", b"--b\r\n\r\nx\r\n--b--")]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies(case: str) -> None:
    """Boundaries are found where they are and nowhere else, however the body is cut."""
    data, expected = BODIES[case]
    messages = parts(data)
    assert brief(messages) == expected
    assert all(message.complete and not message.notes for message in messages)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"--b\r\n\r\nx", ("part", b"x", False, ("no closing boundary",))),
        (b"--b\r\n\r\nx\r\n--", ("part", b"x\r\n--", False, ("no closing boundary",))),
        (b"no part at all", ("preamble", b"no part at all", False, ("no boundary",))),
        (b"--", ("preamble", b"--", False, ("no boundary",))),
        (b"--b\r\nA: 1", ("part", b"", False, ("ended inside of its header fields", "no closing boundary"))),
        (b"--b\r\nA: 1\r\n--b--", ("part", b"", True, ("no blank line after its header fields",))),
        (b"--b\r\nA 1\r\n\r\nx\r\n--b--", ("part", b"x", True, ("header line without a colon",))),
        (b"--b\nA: 1\n\nx\n--b--", ("part", b"x", True, ())),
    ],
)
def test_malformed(data: bytes, expected: tuple[str, bytes, bool, tuple[str, ...]]) -> None:
    """What is malformed is told, with a note."""
    (message,) = parts(data)
    assert (message.kind, message.data, message.complete, message.notes) == expected


def test_no_blank_line_then_more() -> None:
    """A boundary among header fields ends the part, and what follows is read."""
    messages = parts(b"--b\r\nA: 1\r\n--b\r\nB: 2\r\n\r\nx\r\n--b\r\nC: 3\r\n--b--\r\nbye")
    assert [(message.kind, message.headers, message.data) for message in messages] == [
        ("part", ((b"A", b"1"),), b""),
        ("part", ((b"B", b"2"),), b"x"),
        ("part", ((b"C", b"3"),), b""),
        ("epilogue", (), b"bye"),
    ]


def test_cut_by() -> None:
    """What cut the body stands in the notes."""
    (message,) = drip(lambda: MultipartDecoder(REQUEST, b"b"), b"--b\r\n\r\nx", why="recording ended")
    assert (message.complete, message.notes) == (False, ("recording ended",))


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        (b'form-data; name="a"; filename="b"', ("a", "b")),
        (b"form-data; name=a", ("a", "")),
        (b'form-data; name="a;b"; filename="c\\"d\\\\e"', ("a;b", 'c"d\\e')),
        (b'form-data; name="a%22b"', ("a%22b", "")),
        ('form-data; name="ä"'.encode(), ("ä", "")),
        ('form-data; name="ä"'.encode("latin-1"), ("ä", "")),
        (b"attachment; filename=\"x\"; filename*=UTF-8''%e2%82%ac%20rates", ("", "€ rates")),
        (b"attachment; filename*=iso-8859-1'en'%A3%20rates", ("", "£ rates")),
        (b"attachment; filename*=x%41", ("", "xA")),
        (b"attachment; filename*=koi8-r''%C1%ff", ("", "Áÿ")),
        (b"", ("", "")),
    ],
)
def test_part_names(disposition: bytes, expected: tuple[str, str]) -> None:
    """Names come from Content-Disposition, in any of the ways they are written."""
    headers: tuple[Header, ...] = ((b"Content-Type", b"x/y; name=no"), (b"Content-Disposition", disposition))
    assert part_names(headers) == expected
    (message,) = parts(b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\n\r\n--b--")
    assert (message.name, message.filename) == expected


def test_usable_boundary() -> None:
    """A body can't be split at nothing, at lines, or at a boundary without measure."""
    assert usable_boundary(b"b" * 256)
    assert not any(map(usable_boundary, (b"", b"b" * 257, b"a\nb", b"a\rb")))


def test_times() -> None:
    """A part lasts from its boundary to the beginning of the next."""
    decoder = MultipartDecoder(REQUEST, b"b")
    got: list[AppMessage] = []
    for time_ns, piece in enumerate([b"pre", b"amble\r\n", b"--b\r\n", b"\r\nx", b"y", b"\r\n--b--", b"bye"], 1):
        got += decoder.feed(piece, time_ns)
    got += decoder.finish(99)
    assert [(message.kind, message.started_ns, message.time_ns) for message in got] == [
        ("preamble", 1, 3),
        ("part", 3, 6),
        ("epilogue", 7, 7),
    ]


# --- Holes ---

HOLES: dict[str, tuple[list[MessageStep], list[tuple[str, bytes, bool, int]]]] = {
    "in a part": (
        [b"--b\r\n\r\nab", 5, b"cd\r\n--b\r\n\r\nef\r\n--b--"],
        [("part", b"ab", False, 5), ("unparsed", b"cd", False, 0), ("part", b"ef", True, 0)],
    ),
    "up to a boundary": (
        [b"--b\r\n\r\nab", 5, b"--b\r\n\r\nef\r\n--b--"],
        [("part", b"ab", False, 5), ("part", b"ef", True, 0)],
    ),
    "in what may be a boundary": (
        [b"--b\r\n\r\nab\r\n-", 5, b"cd"],
        [("part", b"ab\r\n-", False, 5), ("unparsed", b"cd", False, 0)],
    ),
    "in header fields": (
        [b"--b\r\nA: 1\r\nB", 5, b"cd\r\n--b--"],
        [("part", b"", False, 5), ("unparsed", b"cd", False, 0)],
    ),
    "at the beginning": (
        [5, b"cd\r\n--b\r\n\r\nef\r\n--b--"],
        [("preamble", b"", False, 5), ("unparsed", b"cd", False, 0), ("part", b"ef", True, 0)],
    ),
    "two": (
        [b"--b\r\n\r\nab", 5, b"c", 6, b"d\r\n--b--"],
        [("part", b"ab", False, 5), ("unparsed", b"cd", False, 6)],
    ),
    "in the epilogue": ([b"--b--\r\nab", 5, b"cd"], [("epilogue", b"abcd", False, 5)]),
}


@pytest.mark.parametrize("case", HOLES)
def test_holes(case: str) -> None:
    """A hole costs the part it is in; the next boundary is found."""
    steps, expected = HOLES[case]
    messages = run(MultipartDecoder(REQUEST, b"b"), steps)
    assert [(m.kind, m.data, m.complete, m.missing) for m in messages] == expected


# --- Limits ---


def test_limit() -> None:
    """Of a huge part the beginning is kept."""
    data = b"--b\r\n\r\n" + b"x\r\n" * 1000 + b"\r\n--b\r\n\r\ny\r\n--b--"
    for size in (1, 7, 1 << 30):
        huge, small = run(MultipartDecoder(REQUEST, b"b", limit=100), pieces(data, size))
        assert (huge.data, huge.size, huge.notes) == ((b"x\r\n" * 34)[:100], 3000, ("first 100 bytes kept",))
        assert (huge.complete, small.data, small.notes) == (True, b"y", ())


def test_endless_header_fields() -> None:
    """Header fields without an end are read up to a limit."""
    data = b"--b\r\n" + b"A: 1\r\n" * 20_000 + b"\r\nx\r\n--b--"
    for size in (1000, 1 << 30):
        (message,) = run(MultipartDecoder(REQUEST, b"b"), pieces(data, size))
        assert len(message.headers) == HEADERS_MAX // 6 + 1
        assert message.notes[0] == "header fields too long"
        assert message.data.endswith(b"A: 1\r\n\r\nx")
    (message,) = run(MultipartDecoder(REQUEST, b"b"), pieces(b"--b\r\n" + b"x" * 200_000, 1))
    assert message.notes[0] == "header fields too long"


@pytest.mark.parametrize(
    "unit", [b"\r\n--" + b"b" * 255, b"\n", b"\r", b"\r\n--", b"\r\n--" + b"b" * 256 + b" " * 70, b"x"]
)
def test_hostile_content_is_linear(unit: bytes) -> None:
    """No content is slow, whole or in single bytes (it would take minutes)."""
    boundary = b"b" * 256
    head = b"--" + boundary + b"\r\n\r\n"
    (message,) = run(MultipartDecoder(REQUEST, boundary), [head, unit * (1_000_000 // len(unit))])
    assert message.size == 1_000_000 // len(unit) * len(unit)
    run(MultipartDecoder(REQUEST, boundary), pieces(head + unit * (60_000 // len(unit)), 1))


# --- A judge, and anything at all ---

A_BOUNDARY = re.compile(rb"(?:\A|\n)--b(?:--|[ \t]*\r?\n|[ \t]*\Z)")
CONTENT = (
    st.lists(st.sampled_from([b"x", b"\r\n", b"--b", b"--", b"b", b" ", b"\xff\0", b"--bb", b"-"]), max_size=8)
    .map(b"".join)
    .filter(lambda content: not A_BOUNDARY.search(content))
)


def judged(body: bytes) -> list[bytes]:
    """Return the parts' contents as the email package reads them."""
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    payload = message.get_payload()
    assert isinstance(payload, list)
    result = []
    for part in payload:
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        result.append(content)
    return result


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=4), size=st.integers(1, 30))
@example(contents=[b"\r\n--b-\r\n"], size=1)
@example(contents=[b"--bb\r\n", b"", b"--b x"], size=2)
def test_email_agrees(contents: list[bytes], size: int) -> None:
    """What stands between boundaries is what the email package finds there."""
    # Content of this type is never decoded as text.
    body = b"".join(
        b"--b\r\nContent-Type: application/octet-stream\r\n\r\n" + content + b"\r\n" for content in contents
    )
    got = run(MultipartDecoder(REQUEST, b"b"), pieces(body + b"--b--\r\n", size))
    assert [message.data for message in got] == contents == judged(body + b"--b--\r\n")


PIECES = st.lists(
    st.sampled_from(
        [
            b"--b\r\n",
            b"--b--",
            b"--b",
            b"\r\n",
            b"\n",
            b"\r",
            b"A: 1\r\n",
            b"x",
            b"--",
            b" ",
            b"-",
            b"\r\n--b\r\n",
            b"\xff",
        ]
    ),
    min_size=1,
    max_size=10,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.one_of(PIECES, PIECES, st.integers(1, 30)), max_size=5),
    size=st.integers(1, 10),
    limit=st.sampled_from([0, 3, 1000]),
)
def test_anything(steps: list[MessageStep], size: int, limit: int) -> None:
    """Any bytes and holes, cut in any way, are told without an exception, accounted for, and bounded."""
    for cut in (steps, cut_steps(steps, size)):
        for message in run(MultipartDecoder(REQUEST, b"b", limit=limit), cut):
            assert len(message.data) <= limit
            assert message.complete or message.notes


@settings(max_examples=300, deadline=None)
@given(data=PIECES, size=st.integers(1, 10))
def test_cuts_do_not_matter(data: bytes, size: int) -> None:
    """What is told does not depend on how the bytes were cut."""
    whole = run(MultipartDecoder(REQUEST, b"b"), [data])
    assert run(MultipartDecoder(REQUEST, b"b"), pieces(data, size)) == whole
