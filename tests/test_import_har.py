"""HAR files: what browsers write becomes exchanges again, and everything else one clear line."""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import io
import json
import tracemalloc
from typing import Any

import pytest
from helpers import START_NS
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.errors import CorruptError, FormatError, TruncatedError
from tlscap.http.events import Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.importing import har
from tlscap.importing.har import HarFile, is_har
from tlscap.model import Data, Direction, Endpoint, Flow, FlowClosed, FlowOpened, Gap, Item, Role, TupleSource

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
STARTED = "2026-11-20T18:00:00.123Z"
STARTED_NS = START_NS // 1_000_000 * 1_000_000

ENTRY: dict[str, Any] = {
    "startedDateTime": STARTED,
    "time": 60,
    "request": {
        "method": "GET",
        "url": "https://example.org/path?q=1#part",
        "httpVersion": "HTTP/1.1",
        "headers": [{"name": "Host", "value": "example.org"}, {"name": "Accept", "value": "*/*"}],
        "queryString": [],
        "cookies": [],
        "headersSize": 100,
        "bodySize": 0,
    },
    "response": {
        "status": 200,
        "statusText": "OK",
        "httpVersion": "HTTP/1.1",
        "headers": [{"name": "Content-Type", "value": "text/plain"}, {"name": "Content-Length", "value": "3"}],
        "cookies": [],
        "content": {"size": 5, "mimeType": "text/plain", "text": "hello"},
        "redirectURL": "",
        "headersSize": -1,
        "bodySize": 3,
    },
    "cache": {},
    "timings": {"blocked": 1, "dns": 2, "connect": 10, "ssl": 6, "send": 3, "wait": 20.5, "receive": 4},
    "serverIPAddress": "192.0.2.7",
    "connection": "17",
}


def entry(**changes: Any) -> dict[str, Any]:
    """Return the entry above with changes; ``request__url`` is ``["request"]["url"]``, and None removes."""
    result = copy.deepcopy(ENTRY)
    for path, value in changes.items():
        *way, last = path.split("__")
        target = result
        for name in way:
            target = target[name]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return result


def document(*entries: object, **changes: Any) -> bytes:
    log = {"version": "1.2", "creator": {"name": "test", "version": "1"}, "pages": [], "entries": entries, **changes}
    return json.dumps({"log": log}).encode()


def read(data: bytes, head: int = 0) -> tuple[HarFile, list[Item]]:
    """Return the file and its items; flows must be opened first and closed last, offsets and times must fit."""
    file = HarFile(io.BytesIO(data[head:]), data[:head])
    items = list(file.items())
    offsets: dict[tuple[Flow, Direction], int] = {}
    times: dict[Flow, int] = {}
    closed: set[Flow] = set()
    for item in items:
        assert item.flow not in closed
        assert isinstance(item, FlowOpened) == (item.flow not in times)
        assert item.time_ns >= times.get(item.flow, 0)
        times[item.flow] = item.time_ns
        if isinstance(item, Data | Gap):
            key = item.flow, item.direction
            assert item.offset == offsets.get(key, 0)
            offsets[key] = item.offset + (len(item.data) if isinstance(item, Data) else item.length)
        if isinstance(item, FlowClosed):
            closed.add(item.flow)
    assert closed == set(times)
    return file, items


class Bodies:
    """Keeps bodies by exchange and side."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, Side], bytes] = {}

    def on_body(self, exchange: Exchange, side: Side, piece: Any) -> None:
        key = exchange.id, side
        self.found[key] = self.found.get(key, b"") + (piece if isinstance(piece, bytes) else b"?" * piece.length)


def exchanges(items: list[Item]) -> tuple[list[Exchange], Bodies]:
    bodies = Bodies()
    builder = ExchangeBuilder(bodies)
    number = 0
    found = []
    for item in items:
        if isinstance(item, FlowOpened):
            number += 1
            item.flow.id = number
        found += builder.feed(item)
    found += builder.finish(START_NS)
    return sorted(found, key=lambda one: one.id), bodies


def method_of(exchange: Exchange) -> bytes:
    assert exchange.request is not None
    return exchange.request.head.method


def one(**changes: Any) -> tuple[Exchange, bytes, bytes, HarFile]:
    """Return the exchange that an entry becomes, and its bodies; it must be whole and have no problem."""
    file, items = read(document(entry(**changes)))
    (exchange,), bodies = exchanges(items)
    assert exchange.problems == []
    request, response = (bodies.found.get((exchange.id, side), b"") for side in Side)
    return exchange, request, response, file


def sent(direction: Direction, **changes: Any) -> bytes:
    """Return the bytes of one direction."""
    _, items = read(document(entry(**changes)))
    return b"".join(item.data for item in items if isinstance(item, Data) and item.direction is direction)


def test_an_entry() -> None:
    """An entry is an exchange, with its own headers but the right length, at the right times."""
    file, items = read(document(ENTRY))
    assert [type(item).__name__ for item in items] == ["FlowOpened", "Data", "Data", "Data", "FlowClosed"]
    assert [round((item.time_ns - STARTED_NS) / 1e6, 3) for item in items] == [3, 13, 36.5, 40.5, 40.5]
    assert sent(OUT) == b"GET /path?q=1 HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n"
    assert sent(IN) == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    flow = items[0].flow
    assert (flow.local, flow.remote, flow.role) == (None, Endpoint("192.0.2.7", 443), Role.CLIENT)
    assert (flow.sni, flow.process.pid, flow.tuple_source) == ("example.org", -1, TupleSource.IMPORTED)
    assert (flow.handshake_start_ns - STARTED_NS, flow.handshake_end_ns - STARTED_NS) == (7_000_000, 13_000_000)
    assert (file.entries, file.notes, file.truncated) == (1, {}, "")


def test_exchanges() -> None:
    """tlscap's own reader and the standard library's find what the entry says."""
    exchange, request, response, _ = one()
    assert (method_of(exchange), exchange.url, exchange.complete) == (b"GET", "https://example.org/path?q=1", True)
    assert (request, response) == (b"", b"hello")

    class Socket(io.BytesIO):
        def makefile(self, *_: object, **__: object) -> Socket:
            return self

    answer = http.client.HTTPResponse(Socket(sent(IN)))  # type: ignore[arg-type]
    answer.begin()
    assert (answer.status, answer.reason, answer.read()) == (200, "OK", b"hello")


def test_connections() -> None:
    """HTTP/1 entries of one connection share a flow; HTTP/2's have one each, and so have those without a connection."""
    entries = [ENTRY, entry(startedDateTime="2026-11-20T18:00:01Z"), entry(connection="18"), entry(connection=None)]
    entries += [entry(request__httpVersion=name, connection="2") for name in ("h2", "HTTP/2.0", "http/2.0", "h3")]
    entries += [entry(request__url="https://other.example/"), ENTRY]
    file, items = read(document(*entries))
    order = [item.flow for item in items if isinstance(item, Data) and item.direction is OUT]
    numbers = {flow: number for number, flow in enumerate(dict.fromkeys(order))}
    assert [numbers[flow] for flow in order] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert list(file.notes) == [har.NOTE_VERSION]
    found, _ = exchanges(items)
    assert [exchange.complete for exchange in found] == [True] * 10


def test_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that could go on are not kept in any number."""
    monkeypatch.setattr(har, "_MOST_OPEN", 3)
    _, items = read(document(*[entry(connection=str(number)) for number in range(10)]))
    kinds = "".join(
        "+" if isinstance(item, FlowOpened) else "-" for item in items if isinstance(item, FlowOpened | FlowClosed)
    )
    assert kinds == "+++" + "+-" * 7 + "---"


def test_http2() -> None:
    """HTTP/2's pseudo fields go, and the authority becomes Host."""
    fields = [
        {"name": ":method", "value": "GET"},
        {"name": ":authority", "value": "alias.example"},
        {"name": "accept", "value": "a"},
    ]
    line, host, *_ = sent(OUT, request__headers=fields, request__httpVersion="HTTP/2").split(b"\r\n")
    assert (line, host) == (b"GET /path?q=1 HTTP/1.1", b"Host: alias.example")
    assert sent(OUT, request__headers=None).split(b"\r\n")[1] == b"Host: example.org"


def test_http10() -> None:
    """HTTP/1.0 stays what it is."""
    assert sent(OUT, request__httpVersion="http/1.0").startswith(b"GET /path?q=1 HTTP/1.0\r\n")
    assert sent(IN, response__httpVersion="HTTP/1.0").startswith(b"HTTP/1.0 200")


BODIES: dict[str, tuple[dict[str, Any], bytes]] = {
    "text": ({"text": "hällo", "mimeType": "text/plain"}, "hällo".encode()),
    "charset": ({"text": "hällo", "mimeType": "text/plain; charset=ISO-8859-1"}, b"h\xe4llo"),
    "quoted charset": ({"text": "ä", "mimeType": 'text/html;charset="utf-16-le"'}, b"\xe4\0"),
    "no charset": ({"text": "ä", "mimeType": "text/plain; charset=idna"}, b"\xc3\xa4"),
    "unknown charset": ({"text": "ä", "mimeType": "text/plain; charset=klingon"}, b"\xc3\xa4"),
    "charset that can't": ({"text": "€", "mimeType": "text/plain; charset=latin-1"}, "€".encode()),
    "base64": ({"text": base64.b64encode(bytes(range(256))).decode(), "encoding": "base64"}, bytes(range(256))),
    "lone surrogate": ({"text": "\ud800"}, b"\xed\xa0\x80"),
    "empty": ({"text": "", "size": 0}, b""),
    "none": ({}, b""),
}


@pytest.mark.parametrize("name", BODIES)
def test_response_bodies(name: str) -> None:
    """Bodies are the bytes that were sent, as far as they can be known."""
    content, body = BODIES[name]
    exchange, _, response, file = one(response__content=content)
    assert response == body
    assert exchange.complete
    assert (har.NOTE_CHARSET in file.notes) == (name in ("no charset", "unknown charset", "charset that can't"))


def test_content_coding() -> None:
    """A decoded body does not claim to be encoded; what is said instead, is said once."""
    fields = [{"name": name, "value": "gzip"} for name in ("Content-Encoding", "Transfer-Encoding", "X-Other")]
    _, _, response, file = one(response__headers=fields)
    assert response == b"hello"
    assert sent(IN, response__headers=fields) == b"HTTP/1.1 200 OK\r\nX-Other: gzip\r\nContent-Length: 5\r\n\r\nhello"
    assert list(file.notes) == [har.NOTE_CODING]


def test_body_that_is_missing() -> None:
    """A body of which only the size is known is a hole of that size."""
    _, items = read(document(entry(response__content={"size": 1234, "mimeType": "x"})))
    (exchange,), bodies = exchanges(items)
    assert not exchange.complete
    assert bodies.found[exchange.id, Side.RESPONSE] == b"?" * 1234
    _, items = read(document(entry(response__content=None, response__bodySize=77)))
    assert [item.length for item in items if isinstance(item, Gap)] == [77]


@pytest.mark.parametrize(
    "changes",
    [
        {"request__method": "HEAD", "response__content": {"size": 0}},
        {"response__status": 304},
        {"response__status": 204, "response__content": {"size": -1}},
    ],
)
def test_no_body(changes: dict[str, Any]) -> None:
    """Where HTTP has no body, none is written, and the length that was announced stays."""
    exchange, _, response, _ = one(**changes)
    assert response == b""
    assert exchange.complete
    assert b"Content-Length: 3\r\n" in sent(IN, **changes)


def test_no_response() -> None:
    """A request that failed has no response."""
    _, items = read(document(entry(response__status=0), entry(response__status=-1)))
    found, _ = exchanges(items)
    assert [exchange.response for exchange in found] == [None, None]


FORM = (
    b'--XyZ\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--XyZ\r\nContent-Disposition: form-data; '
    b'name="f"; filename="x.txt"\r\nContent-Type: text/plain\r\n\r\ncontent\r\n--XyZ--\r\n'
)

POSTED: dict[str, tuple[dict[str, Any], bytes]] = {
    "text": ({"mimeType": "application/json", "text": '{"a": "ä"}'}, '{"a": "ä"}'.encode()),
    "base64": ({"mimeType": "x", "text": "AAEC", "encoding": "base64"}, b"\0\1\2"),
    "fields": (
        {"mimeType": "application/x-www-form-urlencoded", "params": [{"name": "a b", "value": "1%202"}, {"name": "c"}]},
        b"a%20b=1%202&c=",
    ),
    "text and fields": ({"mimeType": "x", "text": "a=1", "params": [{"name": "a", "value": "1"}]}, b"a=1"),
    "files": (
        {
            "mimeType": "multipart/form-data; boundary=XyZ",
            "params": [
                {"name": "a", "value": "1"},
                {"name": "f", "fileName": "x.txt", "contentType": "text/plain", "value": "content"},
            ],
        },
        FORM,
    ),
    "nothing": ({"mimeType": "x"}, b""),
}


@pytest.mark.parametrize("name", POSTED)
def test_request_bodies(name: str) -> None:
    """Bodies of requests are there as text or as fields of a form."""
    posted, body = POSTED[name]
    exchange, request, _, file = one(
        request__method="POST",
        request__postData=posted,
        request__bodySize=len(body),
        request__headers=[{"name": "Transfer-Encoding", "value": "chunked"}],
    )
    assert request == body
    assert method_of(exchange) == b"POST"
    assert (har.NOTE_FORM in file.notes) == (name in ("fields", "files"))


def test_request_body_that_is_missing() -> None:
    """The size, or the announced length, says how much is missing."""
    for changes in (
        {"request__bodySize": 9},
        {"request__headers": [{"name": "content-length", "value": "9"}], "request__bodySize": -1},
    ):
        _, items = read(document(entry(request__method="POST", **changes)))
        assert [(item.direction, item.length) for item in items if isinstance(item, Gap)] == [(OUT, 9)]
        assert sent(OUT, request__method="POST", **changes).count(b"ength: 9\r\n") == 1


def test_hostile_headers() -> None:
    """A value with line breaks is several fields, as Chrome means it; no other byte ends a line."""
    fields = [{"name": "Set-Cookie", "value": "a=1\nb=2"}, {"name": "X", "value": "1\r\n\0Evil: yes\r"}]
    head = sent(IN, response__headers=fields, response__statusText="OK\r\nEvil: yes")
    assert head.startswith(
        b"HTTP/1.1 200 OK Evil: yes\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX: 1\r\nX: Evil: yes\r\nContent-Length: 5\r\n"
    )
    assert sent(OUT, request__url="https://a/x y\r\n\u00e4").startswith(b"GET /x%20y%C3%A4 HTTP/1.1\r\n")


def test_other_text() -> None:
    """Header values beyond Latin-1 are UTF-8; IPv6 addresses and users in URLs are understood."""
    fields = [{"name": "a", "value": "é"}, {"name": "b", "value": "€"}]
    assert b"a: \xe9\r\nb: \xe2\x82\xac\r\n" in sent(IN, response__headers=fields)
    head = sent(OUT, request__headers=[], request__url="http://me:secret@[2001:db8::1]:8080")
    assert head == b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n"
    _, items = read(document(entry(request__url="https://[2001:db8::1]/", serverIPAddress="[2001:db8::1]")))
    assert (items[0].flow.sni, items[0].flow.remote) == ("", Endpoint("2001:db8::1", 443))
    _, items = read(document(entry(request__url="http://a:8080/", serverIPAddress=None)))
    assert (items[0].flow.sni, items[0].flow.remote, items[0].flow.tuple_source) == (
        "",
        None,
        TupleSource.PLACEHOLDER,
    )


def test_websocket() -> None:
    """Messages that Chrome adds are frames behind the 101."""
    messages = [
        {"type": "send", "time": STARTED_NS / 1e9 + 1, "opcode": 1, "data": "hi"},
        {"type": "receive", "time": STARTED_NS / 1e9 + 2, "opcode": 2, "data": "AAEC"},
        {"type": "receive", "time": 0, "opcode": 1, "data": "x" * 200},
        {"type": "send", "opcode": 1, "data": "y" * 70000},
    ]
    changes = {
        "request__url": "wss://example.org/ws",
        "response__status": 101,
        "response__headers": [{"name": "Upgrade", "value": "websocket"}, {"name": "Connection", "value": "Upgrade"}],
        "_webSocketMessages": messages,
    }
    data = sent(OUT, **changes).partition(b"\r\n\r\n")[2]
    assert data == b"\x81\x82\0\0\0\0hi" + b"\x81\xff" + (70000).to_bytes(8, "big") + bytes(4) + b"y" * 70000
    data = sent(IN, **changes).partition(b"\r\n\r\n")[2]
    assert data == b"\x82\x03\0\1\2" + b"\x81\x7e\0\xc8" + b"x" * 200


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ({"send": 1, "wait": 2, "receive": 3}, [0, 0, 3, 6]),
        ({"blocked": -1, "dns": -1, "connect": -1, "ssl": -1, "send": 0, "wait": 5, "receive": 0}, [0, 0, 5, 5]),
        ({}, [0, 0, 0, 60]),
        ({"wait": "soon", "send": None, "receive": True, "dns": 1e400}, [0, 0, 0, 0]),
    ],
)
def test_timings(timings: dict[str, Any], expected: list[float]) -> None:
    """Phases that are not known take no time; without any, the total counts."""
    _, items = read(document(entry(timings=timings)))
    assert [(item.time_ns - STARTED_NS) / 1e6 for item in items[:4]] == expected


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("2026-11-20T19:00:00.123+01:00", STARTED_NS),
        ("2026-11-20T18:00:00.123456Z", STARTED_NS + 456_000),
        ("2026-11-20T18:00:00", STARTED_NS - 123_000_000),
        ("1950-01-01T00:00:00Z", 0),
    ],
)
def test_started(text: str, time_ns: int) -> None:
    """Any ISO 8601 time is understood, and none before 1970 is negative."""
    _, items = read(document(entry(startedDateTime=text, timings={})))
    assert items[0].time_ns == time_ns


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no url": ({"request__url": None}, "entry 2: request.url is missing"),
    "url no text": ({"request__url": 5}, "entry 2: request.url is no text"),
    "url of a file": ({"request__url": "file:///etc/passwd"}, "entry 2: request.url is no URL of HTTP"),
    "url without host": ({"request__url": "https:///x"}, "entry 2: request.url is no URL of HTTP"),
    "bad url": ({"request__url": "https://[x/"}, "entry 2: request.url is no URL"),
    "bad port": ({"request__url": "https://a:99999/"}, "entry 2: request.url is no URL"),
    "no request": ({"request": None}, "entry 2: request is missing"),
    "response no object": ({"response": [1]}, "entry 2: response is no object"),
    "no status": ({"response__status": None}, "entry 2: response.status is missing"),
    "status no number": ({"response__status": "200"}, "entry 2: response.status is no number"),
    "status too large": ({"response__status": 70000}, "entry 2: response.status is no status: 70000"),
    "no time": ({"startedDateTime": None}, "entry 2: startedDateTime is missing"),
    "bad time": ({"startedDateTime": "yesterday"}, "entry 2: startedDateTime is no time: 'yesterday'"),
    "method": ({"request__method": "GET / HTTP/1.1\r\nX: y"}, "entry 2: request.method is no method"),
    "headers no list": ({"request__headers": {}}, "entry 2: request.headers is no list"),
    "header no object": ({"request__headers": ["a"]}, "entry 2: request.headers[0] is no object"),
    "header without name": ({"request__headers": [{"value": "x"}]}, "entry 2: request.headers[0].name is missing"),
    "header name": (
        {"response__headers": [{"name": "a b", "value": "x"}]},
        "entry 2: response.headers[0].name is no field name: 'a b'",
    ),
    "base64": (
        {"response__content": {"text": "a", "encoding": "base64"}},
        "entry 2: response.content: what should be base64 is not",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_entries(name: str) -> None:
    """What is wrong is said in one line that names the entry and the place."""
    changes, text = WRONG[name]
    with pytest.raises(CorruptError) as caught:
        read(document(ENTRY, entry(**changes)))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{}", "no 'log'"),
        (b'{"log": {}}', "no 'entries'"),
        (b'{"log": 5}', "'{' is expected, not '5'"),
        (b'{"log": {"entries": {}}}', "'[' is expected, not '{'"),
        (b'{"log": {"entries": [5 5]}}', "entry 1: it is no object"),
        (b'{"log": {"entries": [' + json.dumps(ENTRY).encode() + b" 5]}}", "a comma or the end"),
        (b'{"log": {"entries": [{]}} ' + b" " * 100, "no valid JSON"),
        (b'{"log" 5', "':' is expected"),
        (b'{"log": {"entries": [\xff', "not UTF-8"),
        (b'{"x": ' + b"[" * 100000, "nested too deeply"),
        (b'{"log": {"a": ' + b"9" * 5000 + b', "entries": []}}', "no valid JSON"),
        (b"[]", "'{' is expected"),
    ],
)
def test_wrong_json(data: bytes, text: str) -> None:
    """What is no HAR file is refused in one line."""
    with pytest.raises(CorruptError, match=text.replace("[", r"\[")):
        read(data)


def test_structure() -> None:
    """The log may hold anything around its entries, in any order, with a byte order mark."""
    data = b"\xef\xbb\xbf\n {" + b'"x": [1, {"entries": []}], "log": {"a": "}", ' + document(ENTRY)[9:]
    for head in (0, 1, 2, 10, len(data)):
        file, items = read(data, head)
        assert len(items) == 5
        assert file.entries == 1
    assert read(document())[1] == []
    assert is_har(data)
    assert is_har(b"  {")
    assert not is_har(b"")
    assert not is_har(b"\xef\xbb\xbf[")


def test_truncated() -> None:
    """Cut anywhere, a file gives the entries before the cut, and says that it ends early; without any it is refused."""
    data = document(ENTRY, entry(connection="18"), entry(connection="19"))
    ends = [data.index(b'"17"}') + 5, data.index(b'"18"}') + 5, data.index(b'"19"}') + 5]
    for size in range(1, len(data) - 2, 7):
        if size < ends[0]:
            with pytest.raises(TruncatedError):
                read(data[:size])
            continue
        file, _ = read(data[:size])
        assert file.entries == sum(end <= size for end in ends)
        assert file.truncated


class Slow(io.BytesIO):
    """Gives little at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 1000))


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is read entry by entry."""
    monkeypatch.setattr(har, "READ", 1000)
    large = entry(connection=None, response__content={"size": 100_000, "text": "x" * 100_000})
    data = document(*[large] * 100)
    tracemalloc.start()
    try:
        count = sum(isinstance(item, FlowOpened) for item in HarFile(Slow(data)).items())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 100
    assert peak < 3_000_000


def test_largest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that never ends does not fill the memory."""
    monkeypatch.setattr(har, "READ", 1000)
    monkeypatch.setattr(har, "MAX_VALUE", 10_000)
    endless = io.BytesIO(b'{"log": {"entries": ["' + b"x" * 1_000_000)
    with pytest.raises(CorruptError, match="no valid JSON"):
        list(HarFile(endless).items())
    assert endless.tell() < 50_000


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["request", "response", "timings", ""]), st.data())
def test_anything(part: str, data: st.DataObject) -> None:
    """Whatever stands in a field, there are exchanges or one `FormatError`."""
    changed = entry()
    target = changed[part] if part else changed
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(json_values)
    target[data.draw(st.sampled_from(["postData", "_webSocketMessages", "content", "time"]))] = data.draw(json_values)
    with contextlib.suppress(FormatError):
        _, items = read(document(changed))
        builder = ExchangeBuilder()
        found = [exchange for item in items for exchange in builder.feed(item)]
        assert len(found) <= 2


@given(st.binary(max_size=100), st.sampled_from([b"", b'{"log": {"entries": [', b'{"log": {"entries": [{"request": ']))
def test_any_bytes(data: bytes, head: bytes) -> None:
    """Any bytes are a file or a `FormatError`."""
    with contextlib.suppress(FormatError):
        read(head + data)
