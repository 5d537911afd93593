"""Scrubbing: nothing of a planted secret is left in any form, and what is left is a capture that fits together."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import planted
import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import PLANTED, found_in, texts_of
from samples import IN, OUT

from tlscap.capture import Capture
from tlscap.cli.scrub import scrub as command
from tlscap.errors import TlscapError, UsageError
from tlscap.fixture import normalised, summary
from tlscap.http.protobuf import describe_protobuf
from tlscap.model import GapReason
from tlscap.rebuild import PcapngBuilder
from tlscap.replay.recording import Hole, RecordedExchange, load, load_from
from tlscap.rewrite import write_capture as write
from tlscap.scrub import Rules, Scrubber, is_pseudonym, key_of_seed, read_rules, scrub
from tlscap.scrub.edits import Edit, Moves, apply, without_overlaps
from tlscap.scrub.finder import Finder, Place
from tlscap.scrub.jsonpaths import chosen, compile_path, leaves
from tlscap.scrub.pseudonyms import SHAPE
from tlscap.scrub.views import unescaped_json, views
from tlscap.sidecar import SidecarReader, SidecarWriter

KEY = bytes(32)
CAPTURES = Path(__file__).parent / "fixtures" / "captures"


def frames(path: Path) -> bytes:
    with path.open("rb") as stream:
        return b"".join(SidecarReader(stream).frames())


def rebuilt(path: Path) -> bytes:
    builder = PcapngBuilder()
    with path.open("rb") as stream:
        blocks = [block for frame in SidecarReader(stream).frames() for block in builder.feed(frame)]
    return b"".join([*blocks, *builder.finish()])


def run(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.plant(tmp_path_factory.mktemp("planted") / "x.tlscap.zst")


@pytest.fixture(scope="module")
def scrubbed(original: Path) -> Path:
    out = original.with_name("clean.tlscap.zst")
    run(original, "-o", out)
    return out


# --- All of it ---


def test_they_were_planted(original: Path) -> None:
    """The test would notice: every secret is in the original, in all forms."""
    texts = b"\n".join(text for exchange in load(str(original)).exchanges for text in texts_of(exchange))
    found = {one.split(":")[0] for one in found_in(texts + frames(original))}
    assert found == PLANTED.keys()
    assert len(found_in(texts)) > 10 * len(PLANTED)


def test_nothing_is_left(scrubbed: Path) -> None:
    """Not in the records, not in the packets, not in any body or message, in no form."""
    assert found_in(frames(scrubbed)) == []
    assert found_in(rebuilt(scrubbed)) == []
    for exchange in load(str(scrubbed)).exchanges:
        for text in texts_of(exchange):
            assert found_in(text) == []


def test_the_rest_is_whole(original: Path, scrubbed: Path) -> None:
    """The same exchanges, complete, their bodies decodable, their lengths right."""
    before, after = load(str(original)).exchanges, load(str(scrubbed)).exchanges
    assert len(after) == len(before)
    assert all(exchange.complete for exchange in after)
    for one, two in zip(before, after, strict=True):
        assert one.request.method == two.request.method
        assert one.request.target.partition(b"?")[0] == two.request.target.partition(b"?")[0]
        assert [name for name, _ in one.request.headers if name != b"Sec-WebSocket-Extensions"] == [
            name for name, _ in two.request.headers
        ]
        assert one.response
        assert two.response
        assert one.response.encodings == two.response.encodings
        assert len(two.response.decoded()) >= 0.2 * len(one.response.decoded())
        assert len(one.messages) == len(two.messages)
        # Times stay, and so does what passed before what.
        assert {piece.time_ns for piece in two.response.pieces} <= {piece.time_ns for piece in one.response.pieces}


def test_flows_still_match(scrubbed: Path) -> None:
    """The token of the JSON is the one of the header, of the trailer, of the command line, of WebSocket and gRPC."""
    exchanges = load(str(scrubbed)).exchanges
    first = exchanges[0]
    assert first.response
    token = json.loads(first.response.decoded())["access_token"].encode()
    assert is_pseudonym(token)
    assert first.request.values(b"authorization") == [b"Bearer " + token]
    with_trailer = next(one.response for one in exchanges if one.response and one.response.trailers)
    assert with_trailer.trailers == ((b"X-Echo", token),)
    assert f"Authorization: Bearer {token.decode()}" in first.flow.process.cmdline
    rpc = next(one for one in exchanges if one.protocol == "h2")
    assert rpc.request.values(b"authorization") == [b"Bearer " + token]
    assert rpc.response
    assert dict(rpc.response.trailers)[b"grpc-message"] == b"bad token " + token
    chat = next(one for one in exchanges if one.messages)
    assert [json.loads(one.data)["again"].encode() for one in chat.messages[:2]] == [token, token]


def test_protobuf_stays_readable(scrubbed: Path) -> None:
    rpcs = [one for one in load(str(scrubbed)).exchanges if one.protocol == "h2"]
    assert len(rpcs) == 3
    for rpc in rpcs:
        body = rpc.request.body
        size = int.from_bytes(body[1:5], "big")
        message = gzip.decompress(body[5 : 5 + size]) if body[0] else body[5 : 5 + size]
        described = describe_protobuf(message) or ""
        assert described.count("scrubbed-") >= 21, described
        assert '1: "name"' in described
        assert body[5 + size :] == bytes(5)


def test_json_keeps_its_formatting(original: Path, scrubbed: Path) -> None:
    old, new = (load(str(path)).exchanges[0].response for path in (original, scrubbed))
    assert old
    assert new
    assert new.decoded().count(b"\n") == old.decoded().count(b"\n")
    assert b'\n "nested": [\n  {\n   "user": {' in new.decoded()
    assert json.loads(new.decoded())["nested"][0]["user"]["id"] == 7


def test_report_names_no_secret(original: Path, tmp_path: Path) -> None:
    out = run(original, "-o", tmp_path / "x.tlscap.zst", "--json", "--regex", "ur1Passw0rd")
    assert found_in(out.encode()) == []
    report = json.loads(out)
    assert report["secrets"] > len(PLANTED)
    assert report["left_out"]["connections without HTTP"] == 1
    assert {one["rule"] for one in report["replaced"]} >= {"jwt", "github-token", "private-key", "regex 1", "cookie"}
    shown = run(original, "-o", tmp_path / "y.tlscap.zst")
    assert found_in(shown.encode()) == []
    assert "1 connection without HTTP" in shown


def test_a_seed_decides(tmp_path: Path) -> None:
    original = write_capture(tmp_path / "x.tlscap.zst", [(get("/?token=abcdefgh-1"), answer())])
    paths = [tmp_path / f"{number}.tlscap.zst" for number in range(4)]
    seed = "a seed that is long"
    run(original, "-o", paths[0], "--seed", seed)
    run(original, "-o", paths[1], "--seed", seed)
    run(original, "-o", paths[2], "--seed", seed + ".")
    run(original, "-o", paths[3])
    texts = [path.read_bytes() for path in paths]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    with pytest.raises(UsageError):
        run(original, "-o", tmp_path / "z", "--seed", "short")


def test_scrubbing_twice_changes_nothing(scrubbed: Path, tmp_path: Path) -> None:
    again = tmp_path / "x.tlscap.zst"
    report = json.loads(run(scrubbed, "-o", again, "--json"))
    assert report["replaced"] == []
    assert again.read_bytes() == scrubbed.read_bytes()


def test_what_is_given_is_not_changed(original: Path) -> None:
    before = load(str(original)).exchanges
    twin = load(str(original)).exchanges
    scrub(before, key=KEY)
    for one, two in zip(before, twin, strict=True):
        assert (one.request, one.response, one.messages, one.url) == (two.request, two.response, two.messages, two.url)
        assert one.flow.process.cmdline == two.flow.process.cmdline


# --- Single things ---


def one(tmp_path: Path, request: bytes, response: bytes, rules: Rules | None = None) -> RecordedExchange:
    path = write_capture(tmp_path / "one.tlscap.zst", [(request, response)])
    (exchange,) = scrub(load(str(path)).exchanges, rules, key=KEY).exchanges
    return exchange


def body_of(tmp_path: Path, body: bytes, rules: Rules | None = None, kind: str = "application/json") -> bytes:
    response = one(tmp_path, get("/"), answer(body, f"Content-Type: {kind}"), rules).response
    assert response
    return response.body


def test_basic_keeps_its_form(tmp_path: Path) -> None:
    secret = base64.b64encode(b"alice:open-sesame-1").decode()
    exchange = one(tmp_path, get("/?x=open-sesame-1", f"Authorization: Basic {secret}"), answer())
    value = exchange.request.values(b"authorization")[0].removeprefix(b"Basic ")
    user, _, password = base64.b64decode(value).partition(b":")
    assert is_pseudonym(user)
    assert is_pseudonym(password)
    assert exchange.request.target == b"/?x=" + password


def test_cookie_is_the_one_that_was_set(tmp_path: Path) -> None:
    exchange = one(
        tmp_path,
        get("/", "Cookie: a=1; sid=0123abcdef; b=x%20y"),
        answer(b"", "Set-Cookie: sid=0123abcdef; Path=/; HttpOnly"),
    )
    assert exchange.response
    cookie, other = exchange.request.values(b"cookie")[0], exchange.response.values(b"set-cookie")[0]
    values = dict(part.strip().split(b"=") for part in cookie.split(b";"))
    assert list(values) == [b"a", b"sid", b"b"]
    assert all(map(is_pseudonym, values.values()))
    assert other == b"sid=" + values[b"sid"] + b"; Path=/; HttpOnly"


def test_authorization_with_parameters(tmp_path: Path) -> None:
    line = 'Authorization: Digest username="bob", realm="r", nonce="n0nce-123456", uri="/", response="6629fae49393a05397450978507c4ef1"'
    value = one(tmp_path, get("/", line), answer()).request.values(b"authorization")[0]
    assert b'realm="r"' in value
    assert b'uri="/"' in value
    assert b"6629fae4" not in value
    assert value.count(b"scrubbed-") == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"password": "short"}', b'{"password": "P"}'),
        (b'{"a": {"pin" : 1234}}', b'{"a": {"pin" : "P"}}'),
        (b'{"token": null, "password": "", "secret": true, "auth": "none"}', None),
        (b'{"passwords": ["x"], "tokens": 3, "token_type": "bearer", "expires_in": 3600}', None),
        (b'{"sessionToken":["abc","def"]}', b'{"sessionToken":["P","P"]}'),
        (b'{"pass\\u0077ord": "q\\u0022uoted\\/"}', b'{"pass\\u0077ord": "P"}'),
        (b'"{\\"apiKey\\": \\"inner-text\\"}"', b'"{\\"apiKey\\": \\"P\\"}"'),
        (b"callback({'api-key': 'jsonp-value'})", b"callback({'api-key': 'P'})"),
        (b"<x:Password type='t'>xml-&amp;-pass</x:Password>", b"<x:Password type='t'>P</x:Password>"),
        (
            b'<input type="hidden" name="csrf_token" value="abcdef">',
            b'<input type="hidden" name="csrf_token" value="P">',
        ),
        (b"see https://u:pw1@h/ and /x?access_token=abc#f", b"see https://u:P@h/ and /x?access_token=P#f"),
        (b"max_tokens=5&completion=keyboard&monkey=1", None),
        (b"Authorization: Bearer abc\r\nX: y", b"Authorization: Bearer P\r\nX: y"),
    ],
)
def test_bodies(body: bytes, expected: bytes | None, tmp_path: Path) -> None:
    assert SHAPE.sub(b"P", body_of(tmp_path, body)) == (body if expected is None else expected)


def test_words_are_not_replaced_everywhere(tmp_path: Path) -> None:
    """A password that is an ordinary word goes where it is one, and stays in the text."""
    body = b'{"password": "standard", "plan": "standard", "token": "1700000000", "iat": 1700000000}'
    found = body_of(tmp_path, body)
    assert SHAPE.sub(b"P", found) == b'{"password": "P", "plan": "standard", "token": "P", "iat": 1700000000}'


def test_short_ones_go_where_they_stand_alone(tmp_path: Path) -> None:
    body = b'{"password": "hunter2", "text": "hunter2 is no good, hunter22 neither"}'
    assert SHAPE.sub(b"P", body_of(tmp_path, body)) == b'{"password": "P", "text": "P is no good, hunter22 neither"}'


def test_what_only_looks_like_protobuf(tmp_path: Path) -> None:
    """Bytes that can be read as a message without a text in it, though one stands there."""
    message = b"\x08\x01\x0d12341abcdefgh"  # a number, one of 32 bits, and one of 64
    assert describe_protobuf(message) is not None
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    response = one(tmp_path, get("/?token=1abcdefgh"), answer(body, "Content-Type: application/grpc")).response
    assert response
    assert SHAPE.sub(b"P", response.body[5:]) == b"\x08\x01\x0d1234P"
    assert int.from_bytes(response.body[1:5], "big") == len(response.body) - 5


def test_own_rules(tmp_path: Path) -> None:
    rules = Rules.none().extended(
        headers=["X-Customer"],
        query=["email"],
        names=["ssn"],
        json_paths=["$.user.mail", "$.list[*].id"],
        regexes=["CUST-([0-9]+)"],
    )
    body = b'{"user": {"mail": "a@b.example", "name": "n"}, "list": [{"id": 5}, {"id": "x"}], "ssn": "1", "password": "kept"}'
    exchange = one(
        tmp_path,
        get("/?email=me&mail=you", "X-Customer: acme corp", "Authorization: Bearer kept", "X-Ref: CUST-77"),
        answer(body, "Content-Type: application/json"),
        rules,
    )
    assert exchange.response
    assert SHAPE.sub(b"P", exchange.response.body) == (
        b'{"user": {"mail": "P", "name": "n"}, "list": [{"id": "P"}, {"id": "P"}], "ssn": "P", "password": "kept"}'
    )
    assert SHAPE.sub(b"P", exchange.request.target) == b"/?email=P&mail=you"
    assert [SHAPE.sub(b"P", value) for _, value in exchange.request.headers[1:]] == [b"P", b"Bearer kept", b"CUST-P"]


def test_keep(tmp_path: Path) -> None:
    rules = Rules().extended(keep=["Cookie", "api_key", "jwt", "github-token"])
    text = PLANTED["github"].decode()
    exchange = one(tmp_path, get(f"/?apiKey=kept&token=gone&x={text}", "Cookie: a=bcdefghijk"), answer(), rules)
    assert SHAPE.sub(b"P", exchange.request.target) == f"/?apiKey=kept&token=P&x={text}".encode()
    assert exchange.request.values(b"cookie") == [b"a=bcdefghijk"]


def test_digests_fit_and_tags_are_renamed(tmp_path: Path) -> None:
    body = b'{"token": "abcdefgh-1"}'
    fields = [
        "Content-MD5: x",
        "Digest: SHA-256=x, unknown=y",
        "Content-Digest: sha-512=:x:",
        'ETag: W/"t1"',
        "x-amz-checksum-crc32: y",
    ]
    path = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/"), answer(body, *fields)), (get("/", 'If-None-Match: W/"t1"'), answer())]
    )
    first, second = scrub(load(str(path)).exchanges, key=KEY).exchanges
    assert first.response
    headers = dict(first.response.headers)
    new = first.response.body
    assert headers[b"Content-MD5"] == base64.b64encode(hashlib.md5(new).digest())
    assert headers[b"Digest"] == b"SHA-256=" + base64.b64encode(hashlib.sha256(new).digest())
    assert headers[b"Content-Digest"] == b"sha-512=:" + base64.b64encode(hashlib.sha512(new).digest()) + b":"
    assert b"x-amz-checksum-crc32" not in headers
    tag = headers[b"ETag"].removeprefix(b'W/"').removesuffix(b'"')
    assert is_pseudonym(tag)
    assert second.request.values(b"if-none-match") == [b'W/"%s"' % tag]


def test_untouched_bodies_stay_as_they_are(tmp_path: Path) -> None:
    """Not even coded again: the same bytes, with their digest and tag."""
    coded = gzip.compress(b"nothing to see", 1)
    response = one(tmp_path, get("/"), answer(coded, "Content-Encoding: gzip", 'ETag: "x"', "Content-MD5: y")).response
    assert response
    assert response.body == coded
    assert response.headers[2:] == ((b"ETag", b'"x"'), (b"Content-MD5", b"y"))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"\x1f\x8b broken token=abcdefgh-1"),
        ("unknown", b"token=abcdefgh-1"),
        ("gzip", gzip.compress(b"token=abcdefgh-1")[:-9]),
        ("br", bytes(range(200))),
        (", ".join(["gzip"] * 20), gzip.compress(b"x")),
    ],
)
def test_what_cannot_be_opened_is_withheld(coding: str, body: bytes, tmp_path: Path) -> None:
    """A hole takes its place, which says so; on request it is kept."""
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(body, f"Content-Encoding: {coding}"))])
    out = tmp_path / "out.tlscap.zst"
    assert "withheld: 1 bodies that can't be decoded" in run(path, "-o", out)
    (exchange,) = load(str(out)).exchanges
    assert exchange.response
    assert (exchange.response.body, exchange.response.missing, exchange.complete) == (b"", len(body), False)
    assert exchange.problems == ("response: bytes missing (withheld)",)
    run(path, "-o", out, "--force", "--keep-undecodable")
    (exchange,) = load(str(out)).exchanges
    assert exchange.response
    assert exchange.response.body == body


def test_around_a_coding(tmp_path: Path) -> None:
    """What follows a gzip member is nothing to a client, and a place to forget something in."""
    body = gzip.compress(b"harmless") + b"AKIAIOSFODNN7EXAMPLE"
    response = one(tmp_path, get("/"), answer(body, "Content-Encoding: gzip")).response
    assert response
    assert gzip.decompress(response.body) == b"harmless"
    assert b"AKIA" not in response.body


def test_beside_a_hole(tmp_path: Path) -> None:
    """Half of a secret is one, too: a body that was cut in its middle."""
    half = answer(b"x" * 500, "X: y")[:-500] + b"and then sekret-t0k"
    path = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/", "Authorization: Bearer sekret-t0ken-value"), half)], whole=False
    )
    (exchange,) = scrub(load(str(path)).exchanges, key=KEY).exchanges
    assert exchange.response
    assert SHAPE.sub(b"P", exchange.response.body) == b"and then P"
    assert not exchange.response.complete


def test_cut_in_a_json_string(tmp_path: Path) -> None:
    half = answer(b"x" * 500, "Content-Type: application/json")[:-500] + b'{"password": "only the begin'
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), half)], whole=False)
    (exchange,) = scrub(load(str(path)).exchanges, key=KEY).exchanges
    assert exchange.response
    assert SHAPE.sub(b"P", exchange.response.body) == b'{"password": "P'


def test_around_a_hole(tmp_path: Path) -> None:
    """A hole keeps its size and its place in the text, and the next message is where it was."""
    secret = "a-secret-that-is-longer-than-its-pseudonym"
    body = b"before a-secret-that-is-longer-than-its-pseudonym " + bytes(40) + b" after"
    head = answer(body)[: -len(body)]
    plot = planted.Plot()
    plot.connection(
        (OUT, get("/1", f"Authorization: Bearer {secret}")), (IN, head + body), (OUT, get("/2")), (IN, answer(b"next"))
    )
    raw = plot.write(tmp_path / "x.tlscap.zst")
    exchanges = load(str(raw)).exchanges
    first = exchanges[0].response
    assert first
    (piece,) = first.pieces
    begin = body.index(bytes(40))
    first.pieces = [piece._replace(data=body[:begin]), piece._replace(data=body[begin + 40 :])]
    first.holes = [Hole(begin, 40, GapReason.RING_FULL, piece.time_ns)]
    first.missing, first.complete, exchanges[0].complete = 40, False, False
    stream = io.BytesIO()
    write(scrub(exchanges, key=KEY).exchanges, stream, origin="x")
    one, two = load_from(Capture("x", io.BytesIO(stream.getvalue()))).exchanges
    assert one.response
    assert [SHAPE.sub(b"P", piece.data) for piece in one.response.pieces] == [b"before P ", b" after"]
    assert [(hole.offset, hole.length) for hole in one.response.holes] == [(len(one.response.pieces[0].data), 40)]
    assert not one.complete
    assert two.complete
    assert two.response
    assert two.response.body == b"next"


@pytest.mark.parametrize("kind", ["application/json", "application/grpc"])
def test_a_talk_stays_in_step(kind: str, tmp_path: Path) -> None:
    """Each answer still comes after its question, in the pieces in which they came, though all lengths changed."""

    def part(number: int) -> bytes:
        text = b'{"token": "a-very-long-secret-%d-%s"}\n' % (number, b"x" * 30)
        data = planted.grpc(planted.delimited(1, text), compress=True) if "grpc" in kind else text
        return b"%x\r\n%s\r\n" % (len(data), data)

    head = f"Content-Type: {kind}\r\nGrpc-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    calls = [(OUT, b"POST / HTTP/1.1\r\nHost: a\r\n" + head), (IN, b"HTTP/1.1 200 OK\r\n" + head)]
    for number in range(4):
        calls += [(OUT, part(number)), (IN, part(number + 10))]
    calls += [(OUT, b"0\r\n\r\n"), (IN, b"0\r\n\r\n")]
    plot = planted.Plot()
    plot.connection(*calls)
    exchanges = load(str(plot.write(tmp_path / "x.tlscap.zst"))).exchanges
    stream = io.BytesIO()
    scrubbed = scrub(exchanges, key=KEY).exchanges
    write(scrubbed, stream, origin="x")
    for exchange in (*scrubbed, *load_from(Capture("x", io.BytesIO(stream.getvalue()))).exchanges):
        response = exchange.response
        assert response
        assert len(response.body) != len(exchanges[0].response.body)  # type: ignore[union-attr]
        sent = received = 0
        for question, reply in zip(exchange.request.pieces, response.pieces, strict=True):
            assert question.other_bytes == received
            sent += len(question.data)
            assert reply.other_bytes == sent
            received += len(reply.data)
            if "grpc" in kind:
                assert b"scrubbed-" in gzip.decompress(reply.data[5:])
            else:
                assert is_pseudonym(json.loads(reply.data)["token"].encode())


# --- Parts ---


@given(st.text(max_size=60), st.sampled_from(["percent", "json", "html", "twice"]))
def test_views_find_what_is_escaped(text: str, how: str) -> None:
    """Whatever is escaped is found in a view, and is traced to where it stands."""
    escaped = {
        "percent": "".join(f"%{byte:02x}" for byte in text.encode()),
        "json": json.dumps(text)[1:-1],
        "html": "".join(f"&#{ord(letter)};" for letter in text),
        "twice": json.dumps(json.dumps(text)[1:-1])[1:-1],
    }[how].encode()
    whole = b"before " + escaped + b" after"
    wanted = text.encode()
    hits = [view.origin(at, at + len(wanted)) for view in views(whole) if (at := view.data.find(wanted, 7)) == 7]
    if wanted and not any(mark in text for mark in "%+\\&"):
        assert (7, 7 + len(escaped)) in hits


@given(
    st.binary(max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.binary(max_size=6)), max_size=4),
)
def test_edits_and_moves(text: bytes, raw: list[tuple[int, int, bytes]]) -> None:
    """A byte that was not changed stands where the moves say."""
    edits = without_overlaps(
        Edit(start, start + size, new, "r") for start, size, new in raw if start + size <= len(text) and size
    )
    changed = apply(text, edits)
    moves = Moves.of(len(text), edits)
    assert moves(len(text)) == len(changed)
    for at in range(len(text)):
        if not any(edit.start <= at < edit.end for edit in edits):
            assert changed[moves(at)] == text[at]
        assert moves(at) <= moves(at + 1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.text(max_size=3), kids, max_size=3),
        max_leaves=12,
    ),
    st.sampled_from([None, 2]),
)
def test_json_leaves(value: Any, indent: int | None) -> None:
    """Every text and number of a JSON text is found where it stands, under its path."""
    text = json.dumps({"k": value}, indent=indent).encode()
    expected = []

    def collect(at: Any, path: tuple[Any, ...]) -> None:
        if isinstance(at, dict):
            for name, below in at.items():
                collect(below, (*path, name.encode("utf-8", "surrogatepass")))
        elif isinstance(at, list):
            for index, below in enumerate(at):
                collect(below, (*path, index))
        elif at is not None and not isinstance(at, bool):
            expected.append((path, at))

    collect({"k": value}, ())
    found = [
        (
            leaf.path,
            unescaped_json(text[leaf.start : leaf.end]).decode("utf-8", "surrogatepass")
            if leaf.is_string
            else json.loads(text[leaf.start : leaf.end]),
        )
        for leaf in leaves(text)
    ]
    assert found == expected


def test_json_paths() -> None:
    assert compile_path("$.a.b[*]['c d'][0]") == ("a", "b", "*", "c d", 0)
    assert compile_path("..secret") == (None, "secret")
    for path, wanted, fits in [
        ((b"a", 3, b"b"), "$.a[*].b", True),
        ((b"a", 3, b"b", b"below"), "a[3].b", True),
        ((b"a", 3), "a[3].b", False),
        ((b"x", 0, b"y", b"secret", b"z"), "..secret", True),
        ((b"x",), "..secret", False),
        ((b"a", b"b"), "$.*.b", True),
    ]:
        assert chosen(path, compile_path(wanted)) is fits
    for bad in ("$", "a[", "a[x]"):
        with pytest.raises(UsageError):
            compile_path(bad)


def test_rules_from_a_file() -> None:
    rules = read_rules(
        'defaults = false\nheaders = ["X-A"]\njson-paths = ["$.a"]\nregexes = ["b+"]\nkeep-undecodable = true\n'
    )
    assert rules.is_secret_header("x-a")
    assert not rules.is_secret_header("authorization")
    assert rules.keep_undecodable
    assert read_rules("").is_secret_header("authorization")
    for bad in (
        "x",
        "headers = 1",
        "what = []",
        "regexes = ['(']",
        "regexes = ['a*']",
        "defaults = 1",
        "json-paths = ['$']",
    ):
        with pytest.raises(UsageError):
            read_rules(bad)


def test_pseudonyms_are_keyed() -> None:
    """Without the key, a guess of the secret can't be tested."""
    names = {Scrubber(key=key)._secrets.add(b"hunter2") for key in (KEY, key_of_seed("x"), key_of_seed("y"), None)}
    assert len(names) == 4
    assert all(map(is_pseudonym, names))


def test_hash_seed_changes_nothing(original: Path) -> None:
    code = (
        "import sys,hashlib,io;from tlscap.replay.recording import load;from tlscap.scrub import scrub;from tlscap.rewrite import write_capture\n"
        "s=io.BytesIO();r=scrub(load(sys.argv[1]).exchanges,key=None);write_capture(r.exchanges,s,origin='x')\n"
        "print(hashlib.sha256(s.getvalue()).hexdigest(),sorted(r.report.replaced.items()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, original], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent.parent,
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert len(outputs) == 1


# --- Hostile input ---


@pytest.mark.parametrize(
    "text",
    [
        b'"' * 200_000,
        b'\\"' * 100_000,
        b'"token": "' + b"\\" * 200_001,
        b"{" * 200_000,
        b'{"token":[' * 20_000,
        b"token=" * 50_000,
        b"&" * 200_000,
        b"%25" * 60_000,
        b"&amp;" * 40_000,
        b"<password " * 20_000,
        b"<password>" * 20_000,
        b'content-disposition: form-data; name="password"\r\n' * 4_000,
        b"-----BEGIN PRIVATE KEY-----" * 3_000,
        b"A" * 400_000,
        b"eyJ" + b"a" * 200_000 + b".",
        b"://" * 60_000,
        b"a:" * 100_000,
        b"0" * 300_000,
        b"\\u" * 100_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_no_text_takes_long(text: bytes) -> None:
    """Linear, more or less: a quadratic search of these takes hours."""
    scrubber = Scrubber(key=KEY)
    scrubber._secrets.add(b"some-secret-1")
    place = Place("response body", is_json=True, is_form=True)
    scrubber._collect(text, place)
    scrubber._replace(text, place)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(text: bytes, is_json: bool) -> None:
    """Whatever is there, findings are in order, within the text, and don't overlap."""
    found = Finder(Rules().extended(json_paths=["..a"])).find(
        text, Place("x", "cookie", is_header=True, is_json=is_json)
    )
    at = 0
    for one in found:
        assert at <= one.start < one.end <= len(text)
        at = one.end


def test_bomb(tmp_path: Path) -> None:
    """A small body that decodes to gigabytes is withheld, not decoded."""
    zeros = gzip.compress(bytes(64 << 20), 9)
    body = zeros * 40
    response = one(tmp_path, get("/"), answer(body, "Content-Encoding: gzip")).response
    assert response
    assert response.missing == len(body)


GOLDEN = {path.name: path for path in sorted(CAPTURES.glob("*.tlscap.zst"))}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(GOLDEN)), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12))
def test_damaged_captures(name: str, damage: list[tuple[int, int]]) -> None:
    """Whatever a capture holds, what is made of it can be read: or there is an error that says why it can't be."""
    records = bytearray(frames(GOLDEN[name]))
    for at, byte in damage:
        records[at % len(records)] = byte
    stream = io.BytesIO()
    writer = SidecarWriter(stream)
    writer.write(records)
    writer.close()
    try:
        exchanges = load_from(Capture("x", io.BytesIO(stream.getvalue()))).exchanges
    except TlscapError:
        return
    out = io.BytesIO()
    done = write(normalised(scrub(exchanges, key=KEY).exchanges), out, origin="x")
    again = load_from(Capture("x", io.BytesIO(out.getvalue())))
    assert again.truncated is None
    assert len(again.exchanges) == done.exchanges
    kept = [one for one in exchanges if one.upgraded_to in ("", "websocket", "h2c")]
    for was, now in zip(kept, again.exchanges, strict=True):
        # A body that the damage made undecodable is withheld.
        assert now.complete == was.complete or any("withheld" in problem for problem in now.problems)
        assert was.complete or not now.complete
    summary(again.exchanges)


def test_endless_fields(tmp_path: Path) -> None:
    """Heads as long as they are read, and longer."""
    many = "\r\n".join(f"X-{number}: token=abcdefgh-{number}" for number in range(3_000))
    path = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/", many), answer()), (get("/2", "X: " + "y" * (2 << 20)), answer())]
    )
    out = tmp_path / "o.tlscap.zst"
    run(path, "-o", out, "--keep", "high-entropy")
    first = load(str(out)).exchanges[0]
    assert len(first.request.headers) == 3_001
    assert SHAPE.sub(b"P", first.request.headers[1][1]) == b"token=P"


def test_more_than_allowed(tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(bytes(3 << 20)))])
    with pytest.raises(TlscapError, match="more than 1 MiB"):
        run(path, "-o", tmp_path / "o", "--memory", "2M")


# --- Found by attack: each of these was left once ---

LEFT = "Zx9-kQ7w_pL3"


def everything(exchange: RecordedExchange) -> bytes:
    return b"\n".join(texts_of(exchange))


@pytest.mark.parametrize(
    "cookie",
    [f"sid=two words {LEFT}", f'sid=a"b{LEFT}', LEFT, f"my sid={LEFT}", f"sid = {LEFT}", f"={LEFT}", f'sid="a;{LEFT}"',
     f"{'n' * 201}={LEFT}", f'sid={{"a":"{LEFT}"}}', f"lang=en, sid={LEFT}"],
)  # fmt: skip
def test_cookies_as_nobody_should_write_them(cookie: str, tmp_path: Path) -> None:
    exchange = one(tmp_path, get("/", f"Cookie: {cookie}"), answer())
    assert LEFT.encode() not in everything(exchange)
    exchange = one(tmp_path, get("/"), answer(b"", f"Set-Cookie: {cookie}; Path=/; SameSite=Lax"), None)
    assert exchange.response
    assert LEFT.encode() not in everything(exchange)
    assert exchange.response.values(b"set-cookie")[0].endswith(b"; Path=/; SameSite=Lax")


def test_a_cookie_that_is_kept_keeps_no_other(tmp_path: Path) -> None:
    exchange = one(tmp_path, get("/", f"Cookie: lang=en, sid={LEFT}"), answer(), Rules().extended(keep=["lang"]))
    assert re.fullmatch(rb"lang=en, sid=scrubbed-\w+", exchange.request.values(b"cookie")[0])


@pytest.mark.parametrize(
    "value",
    [f"Custom foo=bar {LEFT}", f'Digest realm="x" {LEFT}', f'Digest username="a", response="q\\"{LEFT}"',
     f"Basic Zm9vOmJhcmJhcg==, Bearer {LEFT}"],
)  # fmt: skip
def test_credentials_beside_parameters(value: str, tmp_path: Path) -> None:
    assert LEFT.encode() not in everything(one(tmp_path, get("/", f"Authorization: {value}"), answer()))


@pytest.mark.parametrize(
    "name",
    ["Token", "Secret", "Password", "access_token", "Api_Key", "sessionid", "X-Access-Key", "X-Auth-Key", "X-CSRFToken",
     "X-Token-Bin", "Authorization-Bin", "Set-Cookie2", "X-Goog-IAP-JWT-Assertion", "X-Original-Cookie"],
)  # fmt: skip
def test_names_of_fields(name: str, tmp_path: Path) -> None:
    assert LEFT.encode() not in everything(one(tmp_path, get("/", f"{name}: {LEFT}"), answer()))


def test_words_at_the_beginning_of_lines_are_no_fields(tmp_path: Path) -> None:
    body = b"Session: on Tuesday\r\nPassword: ask Bob\r\n"
    assert body_of(tmp_path, body, kind="text/plain") == body


@pytest.mark.parametrize("begin", ["abc'", "abc,", "abc;", "a)", "a}", 'a"', "a<", "a\\"])
def test_values_that_nobody_escaped(begin: str, tmp_path: Path) -> None:
    pairs = f"a=1&password={begin}{LEFT}&z=2"
    for request in (get(f"/p?{pairs}"), get("/", f"Referer: https://h/?{pairs}"), form(pairs)):
        left = everything(one(tmp_path, request, answer()))
        assert LEFT.encode() not in left
        assert b"z=2" in left


def test_a_form_by_hand(tmp_path: Path) -> None:
    exchange = one(tmp_path, form(f"password=my {LEFT} is (long)&next=1;pass={LEFT}2;page=3"), answer())
    assert re.fullmatch(rb"password=scrubbed-\w+&next=1;pass=scrubbed-\w+;page=3", exchange.request.body)


def form(body: str) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def test_at_signs_in_passwords_of_urls(tmp_path: Path) -> None:
    left = body_of(tmp_path, f"see https://bob:p@{LEFT}@h/x, or mail a@b".encode(), kind="text/plain")
    assert re.fullmatch(rb"see https://bob:scrubbed-\w+@h/x, or mail a@b", left)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"Access Token": "Zx9-kQ7w_pL3"}', b'{"Access Token": "P"}'),
        (b'{"token": ["a]b", "c"], "d": 1}', b'{"token": ["P", "P"], "d": 1}'),
        (b'{"pin": [1234, "abc"]}', b'{"pin": ["P", "P"]}'),
        (b'{"token": ["a\\"", "two"]}', b'{"token": ["P", "P"]}'),
        (b'{"token": ' + b"9" * 60 + b"}", b'{"token": "P"}'),
        (b"<a><password><![CDATA[x<y]]></password></a>", b"<a><password><![CDATA[P]]></password></a>"),
        (b'DB_PASSWORD="two words"\nX="y"\n', b'DB_PASSWORD="P"\nX="y"\n'),
        (
            b'--b\r\nContent-Disposition: Form-Data; name="token"; filename="t"\r\n\r\nabc\r\n--d\r\n--b--\r\n',
            b'--b\r\nContent-Disposition: Form-Data; name="token"; filename="t"\r\n\r\nP\r\n--b--\r\n',
        ),
    ],
)
def test_more_bodies(body: bytes, expected: bytes, tmp_path: Path) -> None:
    assert re.sub(rb"scrubbed-[a-z2-7]{20}", b"P", body_of(tmp_path, body)) == expected


def test_all_that_is_in_base64(tmp_path: Path) -> None:
    """Several secrets in one text, and one that is too short to be looked for anywhere."""
    for inner in (b'{"password": "hunter-two-1", "token": "Zx9-kQ7w_pL3"}', b'{"user": "alice", "password": "x7Q9"}'):
        left = json.loads(body_of(tmp_path, b'{"data": "%s"}' % base64.b64encode(inner)))["data"]
        with contextlib.suppress(ValueError):
            left += base64.b64decode(left, validate=True).decode()
        assert not any(secret in left for secret in ("hunter-two-1", LEFT, "x7Q9"))
        assert base64.b64encode(b"x7Q9").decode()[:4] not in left


def test_names_in_the_report(tmp_path: Path) -> None:
    body = f'{{"token": "{LEFT}", "{LEFT}_token": "abcdefghijk"}}'.encode()
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer(body))])
    result = scrub(load(str(path)).exchanges, key=KEY)
    assert LEFT not in json.dumps(result.report.to_dict())
    assert sum(result.report.replaced.values()) == 3


@pytest.mark.parametrize(
    "words",
    [["--oauth2-bearer", LEFT], ["--pass", LEFT], ["-a", f"al:{LEFT}"], ["--cert", f"c.pem:{LEFT}"], ["-H", f"Token: {LEFT}"],
     [f"-bsid={LEFT}"], ["-token", LEFT], [f"--password=ab, {LEFT}"], ["-d", f"password=a {LEFT}&x=1"]],
)  # fmt: skip
def test_more_command_lines(words: list[str], tmp_path: Path) -> None:
    path = write_capture(tmp_path / "x.tlscap.zst", [(get("/"), answer())])
    exchanges = load(str(path)).exchanges
    exchanges[0].flow.process.cmdline = ("curl", *words, "-v", "https://h/")
    line = scrub(exchanges, key=KEY).exchanges[0].flow.process.cmdline
    assert LEFT not in " ".join(line)
    assert line[-2:] == ("-v", "https://h/")


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/xml", b"<a><password>only the begin", b"<a><password>P"),
        ("application/xml", b"<a><password><![CDATA[only the begin", b"<a><password><![CDATA[P"),
        ("application/grpc", b"\0\0\0\0\x05abcde\0\0\0\0\x50abc sekret-t0k", b"\0\0\0\0\x05abcde\0\0\0\0\x50abc P"),
    ],
)
def test_more_that_was_cut(kind: str, body: bytes, expected: bytes, tmp_path: Path) -> None:
    half = answer(b"x" * 500, f"Content-Type: {kind}")[:-500] + body
    asked = get("/", "Authorization: Bearer sekret-t0ken-value")
    path = write_capture(tmp_path / "x.tlscap.zst", [(asked, half)], whole=False)
    (exchange,) = scrub(load(str(path)).exchanges, key=KEY).exchanges
    assert exchange.response
    assert SHAPE.sub(b"P", exchange.response.body) == expected
