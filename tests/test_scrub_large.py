"""Scrubbing what is long or no text: nothing is missed at the borders of pieces, and much is not much slower than little."""

from __future__ import annotations

import base64
import random
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from captures import answer, get, write_capture
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.replay.recording import DECODED_LIMIT, load
from tlscap.scrub import Rules, Scrubber, is_pseudonym, scrub
from tlscap.scrub.edits import Edit, apply
from tlscap.scrub.finder import Place
from tlscap.scrub.index import SHORTEST, Index
from tlscap.scrub.views import is_binary, views
from tlscap.scrub.windows import MARGIN, WINDOW, in_windows

KEY = bytes(32)
BODY = Place("response body", is_json=True)
SECRET = b"s3cret-Value/of+mine"
BORDERS = [WINDOW - MARGIN, WINDOW - 5, WINDOW, WINDOW + MARGIN - 7, 2 * WINDOW - 1]


def scrubbed(text: bytes, *secrets: bytes, rules: Rules | None = None) -> bytes:
    scrubber = Scrubber(rules, key=KEY)
    for one in secrets:
        scrubber._secrets.add(one)
    scrubber._collect(text, BODY)
    return apply(text, scrubber._replace(text, BODY))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def prose(size: int) -> bytes:
    return (b"of many ordinary words, one after the other; " * (size // 45 + 1))[:size]


# --- Many texts at once ---


@settings(max_examples=300)
@given(
    st.lists(st.binary(min_size=SHORTEST, max_size=40), min_size=1, max_size=12),
    st.lists(st.integers(0, 20) | st.binary(max_size=9), max_size=12),
)
def test_index_finds_all(texts: list[bytes], parts: list[int | bytes]) -> None:
    """What `bytes.find` finds, text by text, wherever it stands."""
    data = b"".join(texts[part % len(texts)] if isinstance(part, int) else part for part in parts)
    index = Index()
    for number, text in enumerate(texts):
        index.add(text, number)
    expected = {
        (at, text, number) for number, text in enumerate(texts) for at in range(len(data)) if data.startswith(text, at)
    }
    found = index.within(data)
    assert set(found) == expected
    assert all(one.at <= two.at for one, two in pairwise(found))


def test_index_takes_no_short_text() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        Index().add(b"four", 0)


# --- Pieces ---


@given(st.integers(1, 5_000), st.lists(st.tuples(st.integers(0, 4_999_000), st.integers(1, 400_000)), max_size=5))
@settings(max_examples=40, deadline=None)
def test_spans_are_found_whole(margin: int, spans: list[tuple[int, int]]) -> None:
    """Runs of a letter of any length are found from their beginning to their end, as without pieces."""
    text = bytearray(5_000_000)
    for start, size in spans:
        text[start : start + size] = b"x" * len(text[start : start + size])

    def look(piece: bytes) -> list[Edit]:
        found = []
        at = 0
        while (start := piece.find(b"x", at)) >= 0:
            at = len(piece) - len(piece[start:].lstrip(b"x"))
            found.append(Edit(start, at, b"", ""))
        return found

    assert sorted(set(in_windows(bytes(text), look, margin))) == look(bytes(text))


@pytest.mark.parametrize("at", BORDERS)
@pytest.mark.parametrize("form", ["plain", "json", "base64", "base64 of much", "hex", "percent"])
def test_known_secrets_at_borders(at: int, form: str) -> None:
    """A secret is replaced in every form, wherever a piece ends."""
    written = {
        "plain": SECRET,
        "json": b"".join(b"\\u%04x" % byte for byte in SECRET),
        "base64": base64.b64encode(SECRET),
        "base64 of much": base64.b64encode(noise(200_001) + SECRET + noise(200_000)),
        "hex": SECRET.hex().encode(),
        "percent": b"".join(b"%%%02x" % byte for byte in SECRET),
    }[form]
    middle = len(written) // 2
    text = prose(at - middle) + b" " + written + b" " + prose(WINDOW * 2)
    found = scrubbed(text, SECRET)
    assert found.startswith(text[: at - middle])
    assert found.endswith(text[-WINDOW:])
    left = found[at - middle + 1 : len(found) - 2 * WINDOW - 1]
    if form == "base64 of much":
        plain = base64.b64decode(left)
        assert plain[:200_001] == noise(200_001)
        assert plain[-200_000:] == noise(200_000)
        left = plain[200_001:-200_000]
    elif form == "base64":
        left = base64.b64decode(left)
    elif form == "hex":
        left = bytes.fromhex(left.decode())
    assert is_pseudonym(left), left[:100]


@pytest.mark.parametrize("at", BORDERS[1:4])
@pytest.mark.parametrize("size", [20, MARGIN + 1, 3 * WINDOW])
@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"token": "', b'", "a": "'), (b"?token=", b"&a="), (b"<password>", b"</password>"), (b"eyJabcde.abcdef.", b" ")],
)
def test_named_secrets_at_borders(at: int, size: int, before: bytes, after: bytes) -> None:
    """So is what a rule finds, however long it is: not a byte of it stays."""
    value = b"Z9" * (size // 2)
    text = prose(at - 12) + before + value + after + prose(WINDOW * 2)
    found = scrubbed(text)
    assert b"Z9" not in found
    assert found.count(b"scrubbed-") == 1
    assert found.endswith(prose(WINDOW * 2))


def test_json_paths_in_long_texts() -> None:
    text = b'{"pad": "' + prose(3 * WINDOW) + b'", "user": {"mail": "me@x.example", "n": 5}, "mail": "kept"}'
    found = scrubbed(text, rules=Rules.none().extended(json_paths=["$.user"]))
    assert b"me@x" not in found
    assert b'"n": 5' not in found
    assert found.endswith(b'"mail": "kept"}')


# --- What is no text ---


def test_what_is_text() -> None:
    assert not is_binary("Prüfungsgebühren: größer\n".encode("latin-1") * 1000)
    assert not is_binary("日本語の文章です。\n".encode("shift-jis") * 1000)
    assert not is_binary(b"\x1b[31mred\x1b[0m and then many more words than colours, as logs have them\n" * 1000)
    assert is_binary(noise(10_000))
    assert is_binary(zlib.compress(prose(10_000) + noise(10_000)))
    assert is_binary("in UTF-16".encode("utf-16") * 1000)


@given(st.binary(max_size=200), st.integers(0, 100))
def test_texts_among_other_bytes(text: bytes, seed: int) -> None:
    """The first view of noise has the texts in it, and tells where they stand."""
    data = noise(5000, seed) + b"\x00" + b"text that stands here" + b"\x00" + text + noise(3000, seed + 1)
    first = views(data)[0]
    assert first.is_derived
    at = first.data.index(b"text that stands here")
    assert first.origin(at, at + 21) == (5001, 5022)
    assert len(first.data) < len(data) / 4


@pytest.mark.parametrize("size", [6_000, 3 * WINDOW])
def test_secrets_in_noise(size: int) -> None:
    """A form with a file, names and shapes and known values between other bytes; what is around them stays."""
    token = b"ghp_" + b"a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    raw = bytes(range(128, 150)) + b"\x00\x01 not text at all"
    parts = [
        b'\r\nContent-Disposition: form-data; name="password"\r\n\r\nmultipart-s3cret\r\n--',
        b"\x00" + token + b"\x00",
        b"\x01" + SECRET + b"\xff",
        b"\x02" + base64.b64encode(b"x" + SECRET) + b"\x00",
        b"\x02" + raw + b"\x00",
        b'\x00{"api_key": "within-binary-9"}\x00',
    ]
    text = b"".join(noise(size, number) + part for number, part in enumerate(parts)) + noise(size, 9)
    found = scrubbed(text, SECRET, raw)
    for secret in (b"multipart-s3cret", token, SECRET, base64.b64encode(b"x" + SECRET)[2:-4], raw, b"within-binary-9"):
        assert secret not in found
    for number in (*range(6), 9):
        assert noise(size, number) in found


def test_own_expressions_see_all_bytes() -> None:
    text = noise(WINDOW * 2) + b"\x00\x01\xfe-id-0815\xff" + noise(5000, 2)
    found = scrubbed(text, rules=Rules.none().extended(regexes=["\\x00\\x01..?-id-([0-9]+)"]))
    assert b"-id-scrubbed-" in found


# --- Limits ---


@pytest.mark.parametrize("coding", ["", "deflate"])
def test_too_large_is_withheld(coding: str, tmp_path: Path) -> None:
    """What is not looked into is not kept, and the report says why; `keep_undecodable` keeps it."""
    body = prose(DECODED_LIMIT + 1)
    fields = []
    if coding:
        # Not so dense that it is a bomb.
        body = zlib.compress(body + noise(1 << 20))
        fields = [f"Content-Encoding: {coding}"]
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(b"x", *fields))])
    exchanges = load(str(path)).exchanges
    sent = exchanges[0].response
    assert sent
    sent.pieces = [sent.pieces[0]._replace(data=body)]
    done = scrub(exchanges, key=KEY)
    response = done.exchanges[0].response
    assert response
    assert (response.body, response.missing, response.complete) == (b"", len(body), False)
    assert dict(done.report.withheld) == {"bodies too large to look into: more than 64 MiB": 1}
    (kept,) = scrub(exchanges, Rules().extended(keep_undecodable=True), key=KEY).exchanges
    assert kept.response
    assert kept.response.body == body
