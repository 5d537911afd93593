"""Values that requests have from earlier answers: found in a recording, and replaced by those of today."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest
from helpers import START_NS, make_flow
from hypothesis import given
from hypothesis import strategies as st

from tlscap.http.events import Header
from tlscap.replay.compare import Answer
from tlscap.replay.recording import Piece, RecordedExchange, RecordedRequest, RecordedResponse
from tlscap.replay.variables import Plan, Reply, Variables, is_telling, make_plan, parse_rule

FORM: Header = (b"Content-Type", b"application/x-www-form-urlencoded")
JSON: Header = (b"Content-Type", b"application/json")


def exchange(
    number: int, target: str = "/", *fields: Header, body: bytes = b"", reply: bytes = b"", reply_fields: tuple[Header, ...] = (),
    answered_ns: int = 0,
) -> RecordedExchange:  # fmt: skip
    asked = START_NS + 1000 * number
    answered = answered_ns or asked + 500
    request = RecordedRequest(
        fields, b"HTTP/1.1", asked, asked, "", [Piece(body, asked, 0)], method=b"GET", target=target.encode()
    )
    response = RecordedResponse(
        reply_fields, b"HTTP/1.1", answered, answered, "", [Piece(reply, answered, 0)], status=200
    )
    return RecordedExchange(
        number, number, make_flow(), "https://example.org/", "http/1.1", request, response, complete=True, problems=()
    )


def live(body: bytes = b"", *fields: Header) -> Answer:
    return Answer(200, fields, body, "")


def found(plan: Plan) -> list[str]:
    return [str(variable) for variable in plan.variables]


@pytest.mark.parametrize("value", ["abc123", "1234567", "2024-01-01", "e4d909c2-90b3", "A" * 16, "/items/1234"])
def test_telling(value: str) -> None:
    assert is_telling(value)


@pytest.mark.parametrize(
    "value",
    [
        "ab12",
        "production",
        "text/html",
        "application/vnd.api+json",
        "HTTP/1.1",
        "iso-8859-1",
        "a 12345",
        "x1" * 3000,
        "keep-alive",
    ],
)
def test_not_telling(value: str) -> None:
    assert not is_telling(value)


@pytest.mark.parametrize(
    ("reply", "fields", "target", "place"),
    [
        (b'{"a": {"token": "tok-12345"}}', (), "/x?t=tok-12345", "$.a.token of exchange 1"),
        (b"[{}, 1234567]", (), "/x/1234567/y", "$[1] of exchange 1"),
        (b"", ((b"X-Next", b"page-00002"),), "/x?p=page-00002", "header x-next of exchange 1"),
        (b"", ((b"Location", b"/jobs/987654?view=v1234567"),), "/jobs/987654", "location 2 of exchange 1"),
        (b"", ((b"Location", b"https://h/cb?code=c0de1234"),), "/token?code=c0de1234", "location code of exchange 1"),
        (b"", ((b"Set-Cookie", b"csrf=xyz123; Path=/"),), "/x?csrf=xyz123", "cookie csrf of exchange 1"),
        (b'{"k": "a/b+c=1=="}', (), "/x?k=a%2Fb%2Bc%3D1%3D%3D", "$.k of exchange 1"),
    ],
)
def test_found_in(reply: bytes, fields: tuple[Header, ...], target: str, place: str) -> None:
    """In any place of an answer; used in a URL."""
    assert found(make_plan([exchange(1, reply=reply, reply_fields=fields), exchange(2, target)])) == [place]


@pytest.mark.parametrize(
    "second",
    [
        exchange(2, "/x/tok-123456"),  # another that goes on
        exchange(2, "/xtok-12345"),
        exchange(2, "/", (b"User-Agent", b"tok-12345")),
        exchange(1, "/tok-12345"),  # sent before the answer came
    ],
)
def test_not_found_in(second: RecordedExchange) -> None:
    assert not make_plan([exchange(1, reply=b'{"t": "tok-12345"}', answered_ns=START_NS + 1900), second]).variables


def test_what_the_client_chose() -> None:
    """A value that the same request sent already is no variable; the first answer that has a value counts."""
    own = exchange(1, "/items/tok-12345", reply=b'{"id": "tok-12345"}')
    assert not make_plan([own, exchange(2, "/items/tok-12345")]).variables
    twice = [exchange(number, reply=b'{"id": "tok-12345"}') for number in (1, 2)]
    assert found(make_plan([*twice, exchange(3, "/tok-12345")])) == ["$.id of exchange 1"]
    assert make_plan([*twice, exchange(3, "/tok-12345")]).needs == {3: {1}}


@pytest.mark.parametrize("number", [5, 2000])
def test_many_values(number: int) -> None:
    """Few or many: exactly those that are used are found, in any order and beside each other."""
    reply = json.dumps([f"id-{n:06}" for n in range(number)]).encode()
    plan = make_plan([exchange(1, reply=reply), exchange(2, "/id-000003/id-000001?x=xid-000002&y=id-0000041")])
    assert sorted(found(plan)) == ["$[1] of exchange 1", "$[3] of exchange 1"]


def test_off() -> None:
    exchanges = [exchange(1, reply=b'{"t": "tok-12345", "n": 7}'), exchange(2, "/tok-12345/7")]
    assert not make_plan(exchanges, automatic=False).variables
    assert found(make_plan(exchanges, [parse_rule("n=json:$.n@1")], automatic=False)) == ["n of exchange 1"]


values = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6, max_size=12).map(
    lambda text: f"a1{text}z"
)


@given(values, values)
def test_every_form(old: str, new: str) -> None:
    """Whatever characters a value has: in a path, a query, a form, JSON (with escapes or without) and a field, it is replaced, and
    the rest stays."""
    fields: tuple[Header, ...] = ((b"X", b"keep a1"), JSON)
    body = json.dumps({"id": old, "n": 1}).encode()
    second = exchange(2, f"/p/{quote(old, safe='')}?q={quote(old, safe='')}&r=1", *fields, body=body)
    exchanges = [exchange(1, reply=json.dumps({"v": old}).encode(), reply_fields=(JSON,)), second]
    plan = make_plan(exchanges)
    assert found(plan) == ["$.v of exchange 1"]
    variables = Variables(plan)
    expected = variables.learn(exchanges[0], live(json.dumps({"v": new}).encode(), JSON))
    assert expected.places == {("v",)}
    target = urlsplit(variables.target(second.request.target).decode())
    assert unquote(target.path) == f"/p/{new}"
    assert parse_qsl(target.query) == [("q", new), ("r", "1")]
    assert json.loads(variables.body(second.request.headers, body)) == {"id": new, "n": 1}
    plain = json.dumps({"id": old}, ensure_ascii=False).encode()
    assert json.loads(variables.body([JSON], plain)) == {"id": new}
    form = variables.body([FORM], f"a={quote(old, safe='')}&b=2".encode())
    assert parse_qsl(form.decode()) == [("a", new), ("b", "2")]
    assert variables.body([], f"[{old}]".encode()) == f"[{new}]".encode()
    assert variables.body([], b"\xff" + old.encode()) == b"\xff" + old.encode()
    assert variables.rename(f"/{old}/") == f"/{new}/"


def test_replaced_once() -> None:
    """What was put in is not replaced again: two values that change places."""
    exchanges = [exchange(1, reply=b'["aaa111", "bbb222"]'), exchange(2, "/aaa111/bbb222")]
    variables = Variables(make_plan(exchanges))
    variables.learn(exchanges[0], live(b'["bbb222", "aaa111"]'))
    assert variables.target(b"/aaa111/bbb222") == b"/bbb222/aaa111"


def test_cookies() -> None:
    """Each session has its own cookie; one that was there before the recording gets the latest of its name."""
    logins = [exchange(number, reply_fields=((b"Set-Cookie", b"sid=%d" % number),)) for number in (1, 2)]
    last = exchange(3, "/", (b"Cookie", b"a=b; sid=1; x"))
    variables = Variables(make_plan([*logins, last]))
    for number, login in enumerate(logins, 1):
        variables.learn(login, live(b"", (b"set-cookie", b"sid=today%d; HttpOnly" % number)))
    assert variables.header(b"Cookie", b"a=b; sid=1; x") == b"a=b; sid=today1; x"
    assert variables.header(b"cookie", b"sid=2") == b"sid=today2"
    assert variables.header(b"cookie", b"sid=from-before; other=1") == b"sid=today2; other=1"
    assert variables.header(b"X-Number", b"1") == b"1"
    assert make_plan([*logins, last]).needs == {3: {1}}


@pytest.mark.parametrize("value", ['"a\\r\\nX-Evil: 1"', "null", "{}", '""', '"%s"' % ("x" * 5000)])
def test_what_is_not_taken(value: str) -> None:
    """A live answer can't put a field of its own into a request; what is missing is told."""
    exchanges = [exchange(1, reply=b'{"t": "tok-12345"}'), exchange(2, "/tok-12345")]
    variables = Variables(make_plan(exchanges))
    expected = variables.learn(exchanges[0], live(b'{"t": %s}' % value.encode()))
    assert variables.target(b"/tok-12345") == b"/tok-12345"
    assert [str(variable) for variable in variables.missing] == ["$.t of exchange 1"]
    assert not expected.places


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.sampled_from([b"set-cookie", b"location", b"content-type", b"x"]), st.binary(max_size=30))),
)
def test_any_answer(body: bytes, fields: list[Header]) -> None:
    """Whatever a server says: no exception, and every place found can be looked up again."""
    reply = Reply(fields, body, "")
    for place, value in reply.places():
        assert reply.find(place) == value
