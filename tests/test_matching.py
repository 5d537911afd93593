"""The matching language, and what is said of a request that nothing matches."""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import request

from tlscap.errors import UsageError
from tlscap.replay.matching import Matcher, grpc_messages, normal_path
from tlscap.replay.nearest import differences, nearest, summary
from tlscap.replay.recording import RecordedRequest

JSON = (b"Content-Type", b"application/json; charset=utf-8")
FORM = (b"content-type", b"application/x-www-form-urlencoded")
GRPC = (b"content-type", b"application/grpc+proto")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
pairs = st.lists(st.tuples(texts.filter(bool), texts), max_size=6, unique_by=lambda pair: pair[0])


def same(one: RecordedRequest, other: RecordedRequest, words: str = "") -> bool:
    """Tell whether a recorded request is the same as another, as a server finds out; the explanation must agree."""
    matcher = Matcher(words)
    equal = matcher.head_key(one, "") == matcher.head_key(other, "")
    if equal and matcher.counts_body:
        kind = matcher.kind_of(other)
        equal = matcher.content(one, kind).digest() == matcher.content(other, kind).digest()
    assert equal == (differences(one, other, matcher) == [])
    return equal


def post(body: bytes, *fields: tuple[bytes, bytes]) -> RecordedRequest:
    return request("POST", "/", *fields, body=body)


def shuffled(value: Any) -> Any:
    """Turn the order of all members around."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(values)
def test_json_is_compared_as_json(value: Any) -> None:
    one = post(json.dumps(value).encode(), JSON)
    other = post(json.dumps(shuffled(value), indent=3, ensure_ascii=False).encode("utf-8", "surrogatepass"), JSON)
    assert same(one, one)
    if "\\ud" not in json.dumps(value):  # half a character is no UTF-8
        assert same(one, other)
    assert not same(one, post(json.dumps([value, 1]).encode(), JSON))


@given(pairs, st.randoms(use_true_random=False))
def test_parameters_in_any_order(found: list[tuple[str, str]], random: Any) -> None:
    mixed = list(found)
    random.shuffle(mixed)
    assert same(request(target=f"/?{urlencode(found)}"), request(target=f"/?{urlencode(mixed, quote_via=quote)}"))
    assert same(post(urlencode(found).encode(), FORM), post(urlencode(mixed).encode(), FORM))
    more = [*found, ("more", "")] if not any(name == "more" for name, _ in found) else found[:-1]
    assert not same(request(target=f"/?{urlencode(found)}"), request(target=f"/?{urlencode(more)}"))


@given(
    st.binary(max_size=40), st.sampled_from([JSON, FORM, GRPC, (b"content-type", b"multipart/form-data; boundary=x")])
)
def test_any_body_matches_itself(body: bytes, field: tuple[bytes, bytes]) -> None:
    """What isn't what its type says is compared as bytes."""
    assert same(post(body, field), post(body, field))
    if body:
        assert not same(post(body, field), post(b"", field))


def test_repeated_parameters_keep_their_order() -> None:
    assert same(request(target="/?a=1&b=x&a=2"), request(target="/?b=x&a=1&a=2"))
    assert not same(request(target="/?a=1&a=2"), request(target="/?a=2&a=1"))


@pytest.mark.parametrize(
    ("one", "other", "words", "equal"),
    [
        (request("GET"), request("POST"), "", False),
        (request("GET"), request("POST"), "-method", True),
        (request("GET"), request("POST"), "path", True),
        (request(target="/a"), request(target="/b"), "", False),
        (request(target="/%7Ea%2fb"), request(target="/~a%2Fb"), "", True),
        (request(target="/%7Ea"), request(target="/~a"), "target", False),
        (request(target="/?t=1&x=2"), request(target="/?t=9&x=2"), "-query:t", True),
        (request(target="/?utm_a=1&x=2"), request(target="/?utm_b=9&x=2"), "-query:utm_*", True),
        (request(target="/?t=1&x=2"), request(target="/?t=9&x=3"), "-query:t", False),
        (request(target="/?t=1&x=2"), request(target="/?t=1&x=3"), "query:t", True),
        (request(target="/?t=1"), request(target="/?t=2"), "-query", True),
        (request("GET", "/", (b"Accept", b"a")), request("GET", "/", (b"accept", b" b")), "", True),
        (request("GET", "/", (b"Accept", b"a")), request("GET", "/", (b"accept", b" b")), "header:Accept", False),
        (request("GET", "/", (b"Accept", b"a")), request("GET", "/", (b"accept", b" a")), "header:Accept", True),
        (post(b"a"), post(b"b"), "", False),
        (post(b"a"), post(b"b"), "-body", True),
        (post(b'{"id":1,"x":2}', JSON), post(b'{"id":7,"x":2}', JSON), "-json:$.id", True),
        (post(b'{"id":1,"x":2}', JSON), post(b'{"id":7,"x":3}', JSON), "-json:id", False),
        (post(b'{"id":1,"x":2}', JSON), post(b'{"id":1,"x":3}', JSON), "json:$.id", True),
        (post(b'{"id":1,"x":2}', JSON), post(b'{"id":2,"x":2}', JSON), "json:$.id", False),
        (post(b'{"a":1.0}', JSON), post(b'{"a":1}', JSON), "", True),
        (post(b'{"a":true}', JSON), post(b'{"a":1}', JSON), "", False),
        (post(b'{"a": 1}', JSON), post(b'{"a":1}', JSON), "body:bytes", False),
        (post(b'{"a": 1}'), post(b'{"a":1}'), "", False),
        (post(b'{"a": 1}'), post(b'{"a":1}'), "body:json", True),
        (post(b'{"a": 1}'), post(b'{"a":1}', JSON), "", True),  # the recorded type says how
        (post(b"a=1&csrf=x", FORM), post(b"csrf=y&a=1", FORM), "-form:csrf", True),
        (post(b"a=1&csrf=x", FORM), post(b"csrf=y&a=2", FORM), "-form:csrf", False),
        (post(b"one \r\ntwo\r\n"), post(b"one\ntwo"), "body:text", True),
        (post(b"one two"), post(b"one\ntwo"), "body:text", False),
        (post(gzip.compress(b"{}", 1), JSON, (b"content-encoding", b"gzip")), post(b"{ }", JSON), "", True),
        (request("GET", "/", (b"Upgrade", b"websocket")), request("GET", "/"), "path", False),
    ],
)  # fmt: skip
def test_words(one: RecordedRequest, other: RecordedRequest, words: str, *, equal: bool) -> None:
    assert same(one, other, words) is equal


def test_websockets_of_both_versions_are_the_same() -> None:
    """RFC 8441: what was GET with an upgrade is CONNECT with a protocol."""
    new = request("CONNECT", "/chat", version=b"HTTP/2", protocol=b"websocket")
    assert same(request("GET", "/chat", (b"Upgrade", b"WebSocket")), new)


def multipart(boundary: bytes, *parts: tuple[bytes, bytes]) -> RecordedRequest:
    body = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, *part) for part in parts
    )
    return post(body + b"--%b--\r\n" % boundary, (b"Content-Type", b"multipart/form-data; boundary=" + boundary))


def test_multipart_boundaries_differ_every_time() -> None:
    one = multipart(b"abc", (b"a", b"1"), (b"file", b"\0\1"))
    assert same(one, multipart(b"xyz", (b"file", b"\0\1"), (b"a", b"1")))
    assert not same(one, multipart(b"abc", (b"a", b"2"), (b"file", b"\0\1")))
    assert same(one, multipart(b"abc", (b"a", b"2"), (b"file", b"\0\1")), "-form:a")


def test_grpc_is_compared_by_messages() -> None:
    plain = b"\0\0\0\0\5hello"
    packed = gzip.compress(b"hello")
    zipped = b"\1" + len(packed).to_bytes(4, "big") + packed
    assert same(post(plain, GRPC), post(zipped, GRPC, (b"grpc-encoding", b"gzip")))
    assert not same(post(plain, GRPC), post(plain + plain, GRPC))
    assert grpc_messages(post(plain[:-1], GRPC), plain[:-1]) is None


@pytest.mark.parametrize(
    "words", ["metod", "header:", "-header:x", "body:xml", "-body:json", "json:$", 'query:"a', "json:$.", "query:"]
)
def test_words_that_make_no_sense(words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Matcher(words)
    assert caught.value.hint


# --- What is said ---


def said(one: RecordedRequest, other: RecordedRequest, words: str = "") -> list[str]:
    return differences(one, other, Matcher(words))


def test_differences_name_their_place() -> None:
    recorded = post(b'{"user": {"name": "ann", "age": 3}, "tags": [1, 2]}', JSON)
    received = post(b'{"user": {"name": "bob"}, "tags": [1], "more": true}', JSON)
    assert said(received, recorded) == [
        'body: $.user.name is "bob", recorded "ann"',
        "body: $.user.age is missing, recorded 3",
        "body: $.tags[1] is missing, recorded 2",
        "body: $.more is true, not in the recorded one",
    ]


@pytest.mark.parametrize(
    ("received", "recorded", "words", "lines"),
    [
        (request("PUT", "/b?x=2"), request("POST", "/a?x=1&y=2"), "", [
            "method: is PUT, recorded POST",
            "path: is /b, recorded /a",
            'query parameter x: is "2", recorded "1"',
            'query parameter y: is missing, recorded "2"',
        ]),
        (request("GET", "/"), request("GET", "/", (b"Accept", b"x")), "header:accept", ['header accept: is missing, recorded "x"']),
        (post(b"", JSON), post(b"{}", JSON), "", ["body: is empty, recorded as JSON"]),
        (post(b"<x>", JSON), post(b"{}", JSON), "", ["body: is not JSON, as the recorded one is", "  it is <x>"]),
        (post(b"a=1", FORM), post(b"a=2&b=3", FORM), "", [
            'form field a: is "1", recorded "2"', 'form field b: is missing, recorded "3"',
        ]),
        (post(b"one\ntwo\n"), post(b"one\nthree\n"), "", [
            "body: (- recorded, + received)", "  @@ -1,2 +1,2 @@", "   one", "  -three", "  +two",
        ]),
        (post(b"\0\1\2"), post(b"\0\1\3"), "", ["body: differs from byte 2 on: 00 01 02, recorded 00 01 03"]),
        (post(b"\0\0\0\0\1a", GRPC), post(b"\0\0\0\0\1b", GRPC), "", ["gRPC message 1 of 1: differs from byte 0 on: 61, recorded 62"]),
        (request("GET", "/", (b"Upgrade", b"websocket")), request(), "", ["it asks for a WebSocket; the recorded one does not"]),
        (multipart(b"a", (b"f", b"1")), multipart(b"a", (b"f", b"2")), "", ['part f: is "1", recorded "2"']),
    ],
)  # fmt: skip
def test_what_differs(received: RecordedRequest, recorded: RecordedRequest, words: str, lines: list[str]) -> None:
    assert said(received, recorded, words) == lines


def test_secrets_are_shortened() -> None:
    secret = "supersecretvalue0123456789"
    one = request(
        "POST",
        f"/?api_key={secret}",
        (b"Authorization", b"Bearer " + secret.encode()),
        JSON,
        body=b'{"password": "%b"}' % secret.encode(),
    )
    other = request("POST", "/?api_key=x", (b"Authorization", b"y"), JSON, body=b'{"password": "z"}')
    lines = said(one, other, "header:authorization")
    assert len(lines) == 3
    for text in (*lines, *said(other, one, "header:authorization"), summary(one)):
        assert secret[4:] not in text
    assert any("26 characters" in line for line in lines)


@pytest.mark.parametrize(
    "document", [{"token": "hunter2hunter2"}, {"tokens": ["hunter2hunter2"]}, {"a": {"token": "hunter2hunter2"}}]
)
def test_secrets_within_json(document: Any) -> None:
    """In arrays, and in objects that only one of the bodies has."""
    whole, empty = post(json.dumps(document).encode(), JSON), post(b"{}", JSON)
    other = post(json.dumps(document).replace("hunter2h", "x").encode(), JSON)
    for lines in (said(whole, empty), said(empty, whole), said(whole, other), said(other, whole)):
        assert len(lines) == 1
        assert "hunter2" not in lines[0]


def test_paths_of_differences_can_be_copied() -> None:
    recorded, received = (post(json.dumps({"it's [odd]": [value]}).encode(), JSON) for value in (1, 2))
    (line,) = said(received, recorded)
    path = line.removeprefix("body: ").partition(" is ")[0]
    assert same(received, recorded, f'"-json:{path}"')


def test_nothing_commands_a_terminal() -> None:
    recorded = request("GET", "/\x1b[31m?a=\x1b", (b"X", b"\x1b[2J"))
    lines = [*said(request("GET", "/"), recorded, "header:x"), summary(recorded)]
    assert lines
    assert not any("\x1b" in line for line in lines)


def test_differences_are_bounded() -> None:
    many = json.dumps({str(n): n for n in range(10_000)}).encode()
    assert len(said(post(many, JSON), post(b"{}", JSON))) == 21
    assert all(len(line) < 400 for line in said(post(b"x" * 100_000), post(b"y" * 100_000)))


def test_nearest() -> None:
    recorded = [
        request("GET", "/users/1"),
        request("POST", "/login", JSON, body=b'{"user": "ann", "a": 1, "b": 2}'),
        request("POST", "/login", JSON, body=b'{"user": "bob", "a": 7, "b": 8}'),
        request("GET", "/login"),
    ]
    matcher = Matcher()
    received = request("POST", "/login", JSON, body=b'{"user": "eve", "a": 7, "b": 8}')
    assert nearest(received, recorded, matcher) is recorded[2]
    assert nearest(request("GET", "/users/2"), recorded, matcher) is recorded[0]
    assert nearest(request("GET", "/logon"), recorded, matcher) is recorded[3]
    assert nearest(request(), [], matcher) is None


def test_normal_paths() -> None:
    assert [normal_path(path) for path in (b"", b"/a%41%2f%zz", b"/%e4")] == [b"/", b"/aA%2F%zz", b"/%E4"]
