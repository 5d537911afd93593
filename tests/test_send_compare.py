"""What counts as a difference between two answers; and the reports of it."""

from __future__ import annotations

import gzip
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import make_flow
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped]

from tlscap.replay.compare import Answer, Comparing, Difference, Expected, compare
from tlscap.replay.recording import RecordedExchange, RecordedRequest, RecordedResponse
from tlscap.replay.report import Outcome, Result, junit, to_dict

JSON = (b"Content-Type", b"application/json")
SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "fixtures/junit.xsd"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def answer(body: bytes = b"", *headers: tuple[bytes, bytes], status: int = 200, encodings: str = "") -> Answer:
    return Answer(status, headers, body, encodings)


def places(old: Answer, new: Answer, *ignored: str, **how: Any) -> list[str]:
    return [one.place for one in compare(old, new, Comparing().with_ignored(ignored), **how)]


def test_fields() -> None:
    """Case and order of names are no difference; the order of one field's values is."""
    old = answer(b"", (b"A", b"1"), (b"B", b"2"), (b"Date", b"x"), (b"Content-Length", b"0"))
    assert not places(old, answer(b"", (b"b", b"2 "), (b"a", b"1"), (b"transfer-encoding", b"chunked")))
    assert places(old, answer(b"", (b"a", b"2"), (b"c", b""))) == ["header a", "header b", "header c"]
    assert not places(old, answer(b"", (b"a", b"2")), "header:A", "header:b")
    twice = answer(b"", (b"A", b"1"), (b"a", b"2"))
    (found,) = compare(twice, answer(b"", (b"A", b"2"), (b"a", b"1")), Comparing())
    assert (found.before, found.after) == (["1", "2"], ["2", "1"])
    assert found.lines == ("- a: 1", "- a: 2", "+ a: 2", "+ a: 1")


def test_after_head_the_length_counts() -> None:
    """It is all that is said of the body; a server may leave it out."""
    old, new = answer(b"", (b"Content-Length", b"5")), answer(b"", (b"content-length", b"6"))
    assert places(old, new, method=b"HEAD") == ["header content-length"]
    assert not places(old, new)
    assert not places(old, answer(), method=b"HEAD")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (b'{"a": 1}', b'{ "a" : 1.0 }', []),
        (b'{"a": 1}', b'{"a": true}', ["body $.a"]),
        (b'{"a": 0}', b'{"a": null}', ["body $.a"]),
        (b'{"a": 1, "b": 2}', b'{"b": 2, "a": 1}', []),
        (b'{"a": null}', b"{}", ["body $.a"]),
        (b"[1, 2, 3]", b"[1, 3]", ["body $[1]", "body $[2]"]),
        (b'{"a b": [{"c": 1}]}', b'{"a b": [{"c": "1"}]}', ["body $['a b'][0].c"]),
        (b"[NaN]", b"[NaN]", []),
        (b"{}", b"not JSON", ["body"]),
        (b"[" * 100_000, b"[" * 100_001, ["body"]),
        (b'{"a": [1]}', b'{"a": {"0": 1}}', ["body $.a"]),
    ],
)
def test_json(old: bytes, new: bytes, found: list[str]) -> None:
    assert places(answer(old, JSON), answer(new, JSON)) == found


@given(json_values)
def test_json_equals_itself(value: Any) -> None:
    """However it is written."""
    old, new = json.dumps(value).encode(), json.dumps(value, indent=2, ensure_ascii=False).encode()
    assert not places(answer(old, JSON), answer(new, JSON))


names = st.text(max_size=8)
objects = st.recursive(
    st.dictionaries(names, st.integers(), max_size=4),
    lambda inner: st.dictionaries(names, inner | st.lists(st.integers()), max_size=4),
)


@given(objects, objects)
def test_every_difference_can_be_ignored_by_its_path(one: Any, other: Any) -> None:
    """What a difference is called is a path that leaves it out: nothing is left when all are."""
    old, new = answer(json.dumps(one).encode(), JSON), answer(json.dumps(other).encode(), JSON)
    found = places(old, new)
    assert bool(found) == (one != other)
    # An element that only one array has is left out with its array.
    assert not places(
        old, new, *(re.sub(r"(\[[0-9]+\])+$", "", f"json:{place.removeprefix('body ')}") for place in found)
    )


def test_a_long_difference_is_cut() -> None:
    old, new = (answer(json.dumps([n + i for i in range(500)]).encode(), JSON) for n in (0, 1))
    found = compare(old, new, Comparing())
    assert len(found) == 41
    assert found[-1].lines == ("  and 460 more values",)
    lines = [line for one in compare(answer(b"a\n" * 500), answer(b"b\n" * 500), Comparing()) for line in one.lines]
    assert len(lines) == 43
    assert "more lines" in lines[-1]
    (one,) = compare(answer(b"x" * 10_000), answer(b"y" * 10_000), Comparing())
    assert max(map(len, one.lines)) < 300


def test_texts_and_bytes() -> None:
    (found,) = compare(answer(b"one\ntwo\nthree"), answer(b"one\nzwei\nthree"), Comparing())
    assert found.lines[2:] == ("    @@ -1,3 +1,3 @@", "     one", "    -two", "    +zwei", "     three")
    (found,) = compare(answer(b"\xff\0abc"), answer(b"\xff\0abd"), Comparing())
    assert found.lines[-1] == "  the first difference is at byte 4"
    (found,) = compare(answer(b"\xff" * 70_000), answer(b"\xff" * 69_999 + b"\0"), Comparing())
    assert found.lines[-1] == "  the first difference is at byte 69999"
    (found,) = compare(answer(b"a\r\n"), answer(b"a\n"), Comparing())
    assert found.lines[-1] == "    (the line ends differ)"
    assert not places(answer(b"at 12:30"), answer(b"at 9:07"), r"text:\d+:\d+")
    many = [b"%d\n" % number for number in range(5000)]
    (found,) = compare(answer(b"".join(many)), answer(b"".join([*many[:-1], b"x"])), Comparing())
    assert found.lines[-1] == "  the first difference is in line 5000"


def test_codings() -> None:
    """Content is compared; what can't be decoded is compared as it is."""
    packed = answer(gzip.compress(b"same"), encodings="gzip")
    assert not places(answer(b"same"), packed)
    (found,) = compare(answer(b"same"), answer(b"same", encodings="gzip"), Comparing())
    assert "can't be decoded" in found.lines[1]
    cut = Answer(200, (), b"hal", "", complete=False)
    assert not places(cut, answer(b"half"))


def test_what_is_known_to_be_new() -> None:
    """Values that were taken over are none of the differences; others of the same answer are."""
    expected = Expected(lambda text: text.replace("old", "new"), {"x-id"}, {("id",)}, texts=[re.compile("v=([0-9]+)")])
    old = answer(b'{"id": 1, "url": "/old", "n": 1}', JSON, (b"X-Id", b"1"), (b"Link", b"</old>"))
    new = answer(b'{"id": 2, "url": "/new", "n": 2}', JSON, (b"X-Id", b"2"), (b"Link", b"</new>"))
    assert places(old, new, expected=expected) == ["body $.n"]
    assert not places(answer(b"v=1 old"), answer(b"v=22 new"), expected=expected)


def test_status_and_body_can_be_ignored() -> None:
    assert not places(answer(b"a", status=200), answer(b"b", status=500), "status", "body")


# --- Reports ---


def exchange(number: int = 1, path: bytes = b"/") -> RecordedExchange:
    request = RecordedRequest((), b"HTTP/1.1", 0, 0, "", method=b"GET", target=path)
    response = RecordedResponse((), b"HTTP/1.1", 0, 0, "", status=200)
    url = "https://example.org" + path.decode("latin-1")
    return RecordedExchange(number, 1, make_flow(), url, "http/1.1", request, response, complete=True, problems=())


texts = st.text(st.characters(codec=None), max_size=20)  # also surrogates


@given(st.lists(st.tuples(st.sampled_from(Outcome), texts, texts), max_size=5), texts)
def test_junit_is_valid(cases: list[tuple[Outcome, str, str]], name: str) -> None:
    """Whatever is in it, the file is well-formed, valid, and holds each exchange once."""
    results = [
        Result(exchange(number, b"/\0\xff"), outcome, [Difference("body", (reason,))], reason, [note], 200, 1234.5)
        for number, (outcome, reason, note) in enumerate(cases, 1)
    ]
    file = junit(results, name=f"x{name}", started=datetime(2026, 11, 20, 18, tzinfo=UTC), seconds=2000)
    document = etree.fromstring(file)
    SCHEMA.assertValid(document)
    (suite,) = document
    counts = [
        sum(outcome is wanted for outcome, _, _ in cases)
        for wanted in (Outcome.DIFFERENT, Outcome.ERROR, Outcome.SKIPPED)
    ]
    assert [int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")] == [len(cases), *counts]
    assert len(suite.findall("testcase/failure")) == counts[0]
    assert len({case.get("name") for case in suite}) == len(cases)


def test_json_report() -> None:
    result = Result(exchange(7), Outcome.SKIPPED, reason="WebSocket")
    assert to_dict(result) == {
        "id": 7, "method": "GET", "url": "https://example.org/", "outcome": "skipped", "reason": "WebSocket",
        "recorded_status": 200, "status": None, "seconds": 0.0, "differences": [], "notes": [],
    }  # fmt: skip
