"""The filter language: what every key matches, how terms go together, and that errors show the place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from helpers import GET, START_NS, Wire, make_flow, simple_exchange
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlscap.errors import UsageError
from tlscap.export.table import human_duration
from tlscap.filters import KEYS, PATTERN_LIMIT, TEXT_LIMIT, FilterError, compile_filter, media_type, split_url
from tlscap.http.events import Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Direction, Endpoint, Flow, Item, Process, Role

PAGE = (Path(__file__).parent.parent / "docs" / "filters.md").read_text(encoding="utf-8")

REQUEST = (
    b"POST /api/v1/Login?id=7&q=a*b HTTP/1.1\r\nHost: API.example.com:8443\r\nUser-Agent: curl/8.1\r\n"
    b"Cookie: sid=abc; theme=dark\r\nCookie: x=y\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 18\r\n\r\nuser=ada&token=T-1"
)
RESPONSE = (
    b"HTTP/1.1 404 Not Found\r\nServer: nginx/1.22 \xfc\r\nContent-Type: Application/JSON; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1a\r\n" + b'{"error": "no such \xc3\xbcser"}'[:26]
)
CHUNKED_REST = b"\r\n0\r\nGrpc-Status: 5\r\nX-Trailer: end\r\n\r\n"


def build(items: list[Item]) -> list[Exchange]:
    builder = ExchangeBuilder()
    exchanges = [exchange for item in items for exchange in builder.feed(item)]
    return sorted(exchanges + builder.finish(START_NS), key=lambda exchange: exchange.id)


def posted(**changes: Any) -> Exchange:
    """Return a POST that took 3 ms, waited 1 ms and a handshake of 20 ms before, and was answered with 404."""
    values: dict[str, Any] = {
        "alpn": "http/1.1",
        "handshake_start_ns": START_NS - 20_000_000,
        "handshake_end_ns": START_NS,
        "local": Endpoint("10.0.0.1", 40007),
        "remote": Endpoint("2001:db8::1", 8443),
    }
    wire = Wire(make_flow(7, **(values | changes)))
    items: list[Item] = [wire.out(REQUEST[:-5]), wire.out(REQUEST[-5:]), wire.into(RESPONSE), wire.into(CHUNKED_REST)]
    return build(items)[0]


class Kept:
    """`Bodies` of an exchange; remembers what was asked for."""

    def __init__(self, request: bytes | None = None, response: bytes | None = None) -> None:
        self.contents = {Side.REQUEST: request, Side.RESPONSE: response}
        self.asked: list[Side] = []

    def content(self, exchange: Exchange, side: Side) -> bytes | None:
        self.asked.append(side)
        return self.contents[side]


BODIES = Kept(b"user=ada&token=T-1", '{"error": "no such üser"}'.encode())


def matches(text: str, exchange: Exchange | None = None, bodies: Kept | None = BODIES) -> bool:
    return compile_filter(text, zone=UTC).matches(exchange or posted(), bodies)


# --- Every key ---

# What matches the exchange that posted() makes, and what does not.
TERMS = {
    "host": (
        """host:api.example.com host:API.Example.COM:8443 host:*.example.com host:example.org host~^api host:2001:db8::1
        host:[2001:db8::1]:8443 host:"api.example.com" host:* host=api.*""",
        """host:example.com host:api.example.com:443 host:10.0.0.1 host:api host~^example.com$ host:"" """,
    ),
    "url": (
        r"url:https://api.example.com:8443/api/v1/login?id=7&q=a\*b url:*LOGIN* url~id=\d url:*?id=*q=*",
        r"url:login url:*q=a\* url~^/api url:*login",
    ),
    "path": ("path:/api/v1/login path:/api/* path~^/api/v[12]/", "path:/api path:*id=7*"),
    "query": (r"query:id=7* query:*q=a\*b query~q=", r'query:"" query:id=7 query:a\*b'),
    "method": ("method:post method:P* method~^(get|post)$ method:POST", "method:GET method:POS"),
    "status": (
        """status:404 status:4xx status:40x status:400..404 status:404.. status:..404 status:* status>403 status<405
        status>=404 status<=404 status=404 status>3xx status:3xx..4xx""",
        "status:405 status:5xx status:405.. status>404 status<404 status>4xx status:41x status<4xx",
    ),
    "grpc": (
        "grpc:5 grpc:NOT_FOUND grpc:not_* grpc:1..16 grpc:..5 grpc>0 grpc:* grpc~FOUND$",
        "grpc:0 grpc:OK grpc:6..16 grpc>5",
    ),
    "type": (
        "type:application/json type:*/json type:*urlencoded type~json$",
        "type:json type:text/* type:*charset*",
    ),
    "req.type": ("req.type:application/x-www-form-urlencoded", "req.type:application/json"),
    "resp.type": ("resp.type:APPLICATION/json", "resp.type:*urlencoded"),
    "header": (
        "header:cookie header:SERVER header:x-trailer header~^x- header:*agent",
        "header:authorization header~^agent header:sid=*",
    ),
    "req.header": ("req.header:cookie req.header~^user-", "req.header:server req.header:x-trailer"),
    "resp.header": ("resp.header:Server resp.header:x-trailer", "resp.header:cookie"),
    "header.cookie": (
        r"""header.cookie:x=y header.Cookie:sid=* header.cookie~theme=\w+ req.header.cookie:*dark header.cookie:*""",
        "header.cookie:sid resp.header.cookie:* header.authorization:*",
    ),
    "header.server": (
        r"resp.header.server:nginx* header.server~/1\.2 header.server:*ü header.x-trailer:end",
        "req.header.server:* header.server:nginx",
    ),
    "body": (
        r'body:token body:"ada&token" body~T-\d body:ÜSER body:user*token body:* body:"" body~(a|o)d',
        'body:password body~"^token" body:token*user= body~"(?-i:ADA)"',
    ),
    "req.body": ("req.body:token req.body~^user=", "req.body:error req.body~üser"),
    "resp.body": (r'resp.body:error resp.body~"\"error\"" resp.body~Ü', "resp.body:token"),
    "size": ("size:44 size>43 size:40..50 size<1K size:* size>43.9 size<44.1B", "size:18 size>44 size>1Ki size<=43"),
    "sent": ("sent:18 sent:18b sent>0.01K sent<0.018KiB", "sent:26 sent>0.018KB sent>18 sent:0.018KiB sent>=0.018KiB"),
    "received": ("received:26 received:0..1MiB received<1t", "received:0 received>=1K"),
    "at": (
        """at:18:00 at:18:00:00 at:18:00:00.1 at:18:00:00.124456789 at>18:00 at<18:01 at>=18:00:00.124 at:17:59..18:00
        at:23:00..18:00 at:2026-11-20 at:2026-11-20T18:00 at:2026-11-20T18:00:00.124456789Z at>2026-11-19 at<2026-11-21
        at>=2026-11-20 at<=2026-11-20 at:2026-11-20T19:00+01:00 at:19:00+01:00 at:2026-11-20.. at:..2026-11-20
        at:2026-11-01..2026-11-20T18:01 at:18:00.. at:..18:00 at>2026-11-20T13:00-05:00 at:12:00Z..18:00""",
        """at:18:01 at:06:00 at:18:00:00.2 at:18:00:00.124456788 at<18:00 at>18:01 at:18:01..18:05 at:18:01..17:59
        at:2026-11-21 at>2026-11-20 at<2026-11-20 at:2026-11-20T18:00+01:00 at:18:00+01:00 at<=18:00 at:18:01..
        at>2026-11-20T18:00:00.124456789 at:2026-11-21.. at:..2026-11-19 at>=2026-11-21""",
    ),
    "time": (
        "time>2ms time:1ms..5ms time<1s time<=3ms time>=0.003 time:* time>2999us time>2999µs time<3ms1ns time<1d",
        "time>3ms time<3ms time:1s.. time>1m time>1min time>1h time>=3.1ms",
    ),
    "wait": ("wait<2ms wait>0.5ms wait>-1s", "wait>1ms wait<0 wait:-1s..-1ns"),
    "handshake": ("handshake>10ms handshake:20ms.. handshake:*", "handshake>20ms handshake<1ms"),
    "complete": ("complete:yes complete:TRUE", "complete:no complete:false"),
    "problem": ("", "problem:* problem:missing problem~."),
    "upgraded": ("", "upgraded:* upgraded:websocket"),
    "proto": ("proto:h1 proto:http/1.1 proto:HTTP/* proto~^h", "proto:h2 proto:http/1.0 proto:http/2"),
    "proc": ("proc:curl proc:CURL[4711] proc:c* proc~^cur", "proc:wget proc:cur proc:curl[1]"),
    "exe": ("exe:/usr/bin/curl exe:*/curl exe~bin", "exe:curl"),
    "pid": ("pid:4711 pid>4000 pid:1..5000 pid:*", "pid:1 pid<4711"),
    "uid": ("uid:1000 uid>=1000", "uid:0"),
    "role": ("role:client", "role:server"),
    "sni": ("sni:example.org sni:*.org sni:*", "sni:api.example.com"),
    "addr": (
        r"""addr:10.0.0.1 addr:10.0.0.1:40007 addr:2001:db8::1 addr:[2001:db8::1]:8443 addr:10.* addr:10.0.0.0/8
        addr:10.9.9.9/8 addr:2001:db8::/32 addr~^10\.""",
        "addr:10.0.0.2 addr:10.0.0.1:1 addr:11.0.0.0/8 addr:2001:db9::/32 addr:0.0.0.0/32",
    ),
    "client": ("client:10.0.0.1 client:10.0.0.0/24", "client:2001:db8::1 client:2001::/16"),
    "server": ("server:2001:db8::1 server:[2001:db8::1]:8443 server:::/0", "server:10.0.0.1 server:10.0.0.0/8"),
    "port": ("port:8443 port:40007 port>40000 port:1..9000", "port:443 port<1024"),
    "id": ("id:1 id:1..5 id:*", "id:2 id>1"),
    "conn": ("conn:7 conn<8", "conn:1"),
    "a word": (
        r'login /api/ "EXAMPLE.com:8443" "id=7&q" v1*id https://api.example.com:8443/api a\*b 8443/',
        r'logout id*v1 "not" https://example.org a\*c',
    ),
}


@pytest.mark.parametrize("key", TERMS)
def test_key(key: str) -> None:
    """Each key matches what it says, and nothing else; its negation does the opposite."""
    exchange = posted()
    for expected, terms in zip((True, False), TERMS[key], strict=True):
        for term in terms.split():
            assert matches(term, exchange) is expected, term
            assert matches(f"not ({term})", exchange) is not expected, term


def test_every_key_is_tested() -> None:
    """No key goes without."""
    assert set(KEYS) <= set(TERMS)


def test_unknown_matches_nothing() -> None:
    """What is not known matches nothing, not even ``*``: no answer, no request, no process, no addresses."""
    stranger = make_flow(process=Process(-1), local=None, remote=None, role=Role.UNKNOWN, sni="")
    asked = build([Wire(stranger).out(GET)])[0]
    for term in (
        *("status:*", "status<600", "time:*", "wait:*", "handshake:*", "received:*", "resp.type:*", "resp.header:*"),
        *(
            "grpc:*",
            "grpc:..99",
            "proc:*",
            "exe:*",
            "pid:*",
            "uid:*",
            "sni:*",
            "addr:*",
            "client:*",
            "server:*",
            "port:*",
        ),
        *("role:*", "body:*", "type:*", "upgraded:*", "resp.header.server:*"),
    ):
        assert not matches(term, asked, Kept()), term
        assert matches(f"-{term}", asked, Kept()), term
    (answered,) = build([Wire().into(b"HTTP/1.0 204 x\r\n\r\n")])
    for term in ("url:*", "path:*", "query:*", "method:*", "sent:*", "time:*", "wait:*", "req.header:*", '""'):
        assert not matches(term, answered), term
    assert matches("host:example.org status:204 problem:'request not seen' or status:204", answered)
    assert matches('problem:"request not seen" problem~^request -complete:yes', answered)


def test_no_status_line() -> None:
    """An HTTP/0.9 reply has no status; 0 is none."""
    wire = Wire()
    (exchange,) = build([wire.out(b"GET /\r\n"), wire.into(b"hi"), wire.half_closed(Direction.INBOUND)])
    assert matches("proto:http/0.9 proto:h1 -status:* received:2", exchange)


def test_server_and_unknown_role() -> None:
    """``client`` and ``server`` go by role; without one they know nothing, but ``host`` looks at both ends."""
    local, remote = Endpoint("10.0.0.1", 443), Endpoint("10.0.0.2", 5555)
    server = posted()
    server.flow = make_flow(role=Role.SERVER, local=local, remote=remote, sni="")
    server.url = ""
    assert matches("server:10.0.0.1:443 client:10.0.0.2 role:server host:10.0.0.1 -host:10.0.0.2", server)
    unknown = posted(role=Role.UNKNOWN, local=local, remote=remote)
    assert matches("-server:* -client:* -role:* host:10.0.0.1 host:10.0.0.2:5555 addr:10.0.0.2", unknown)


def test_upgrade_and_connect() -> None:
    """What was spoken afterwards; the URL of CONNECT is a host and a port."""
    wire = Wire()
    (exchange,) = build(
        [
            wire.out(b"CONNECT [::1]:99 HTTP/1.1\r\nHost: x\r\n\r\n"),
            wire.into(b"HTTP/1.1 200 OK\r\n\r\n"),
            wire.out(b"x"),
        ]
    )
    assert matches('upgraded:tunnel host:::1 host:[::1]:99 path:"" query:"" method:CONNECT url:[::1]:99', exchange)


def test_http2_names() -> None:
    """HTTP/2 has two names."""
    exchange = posted()
    for version in (b"HTTP/2", b"h2"):
        for message in (exchange.request, exchange.response):
            assert message
            object.__setattr__(message.head, "version", version)
        assert matches("proto:h2 proto:http/2 -proto:h1", exchange)


def test_grpc_status_without_name() -> None:
    """A status that is no number, or has no name, is found by what was sent."""
    for value, found in ((b"99", "grpc:99"), (b"99", 'grpc:"code 99"'), (b"odd", "grpc:odd -grpc:0..")):
        wire = Wire()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\ngrpc-status: " + value + b"\r\n\r\n"
        (exchange,) = build([wire.out(GET), wire.into(head)])
        assert matches(found, exchange)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://a/", ("a", "/", "")),
        ("https://u:p@a:1/b/c?d=/&e=://", ("a:1", "/b/c", "d=/&e=://")),
        ("https://a", ("a", "", "")),
        ("https://a?b/c", ("a", "", "b/c")),
        ("http://[::1]:1/@", ("[::1]:1", "/@", "")),
        ("a:443", ("a:443", "", "")),
        ("", ("", "", "")),
    ],
)
def test_split_url(url: str, parts: tuple[str, str, str]) -> None:
    """A URL has an authority, a path and a query."""
    assert split_url(url) == parts


def test_media_type() -> None:
    """Parameters, blanks and upper case go."""
    assert media_type(b" Text/HTML ; charset=x") == "text/html"


# --- Bodies ---


def test_needs_bodies() -> None:
    """A filter says which bodies it needs, and asks for those only, when nothing else has decided."""
    assert compile_filter("status:404 host:a").needs_bodies == frozenset()
    assert compile_filter("status:404 -(a or resp.body:b)").needs_bodies == {Side.RESPONSE}
    assert compile_filter("req.body~b resp.body:b").needs_bodies == set(Side)
    assert compile_filter("body:b").needs_bodies == set(Side)
    bodies = Kept()
    assert not matches("req.body:x status:200", bodies=bodies)
    assert matches("resp.body:x or status:404", bodies=bodies)
    assert bodies.asked == []
    assert not matches("resp.body:x", bodies=bodies)
    assert bodies.asked == [Side.RESPONSE]


def test_unknown_bodies() -> None:
    """A body that is not known contains nothing; an empty one is known."""
    for bodies in (None, Kept()):
        assert not matches("body:*", bodies=bodies)
        assert matches("-body:x", bodies=bodies)
    assert matches("resp.body:* -req.body:*", bodies=Kept(None, b""))


def test_body_text() -> None:
    """UTF-8 is read as that, also when it is cut; in anything else each byte is a character."""
    assert matches('req.body~"^ü+$" resp.body~"^.\\xff\\x00$"', bodies=Kept("üü€".encode()[:-2], b"\xfc\xff\0"))
    assert matches('body:"ÄÖ"', bodies=Kept("äö".encode()))


def test_hostile_text() -> None:
    """Asterisks take linear time, whatever they meet."""
    exchange = posted()
    exchange.url = "https://" + "a" * 200_000
    started = time.perf_counter()
    assert not matches("url:*" + "a*" * 200 + "b", exchange)
    assert not matches("body:" + "a*" * 200 + "b", bodies=Kept(b"a" * 200_000))
    assert not matches("a*" * 200 + "b", exchange)
    assert time.perf_counter() - started < 2


@settings(deadline=None)
@given(text=st.text("aAbB*", max_size=12), pattern=st.text("ab*", max_size=8))
@example(text="aba", pattern="ab*ba")
def test_asterisks(text: str, pattern: str) -> None:
    """An asterisk stands for anything: the judge is a regular expression."""
    exchange = posted()
    exchange.url = f"https://h/{text}"
    judge = ".*".join(map(re.escape, pattern.split("*")))
    whole = re.fullmatch(f"https://h/{judge}", exchange.url, re.IGNORECASE) is not None
    part = re.search(judge, exchange.url, re.IGNORECASE) is not None
    assert matches(f'url:"https://h/{pattern}"', exchange) is whole
    assert matches(f'"{pattern}"', exchange) is part


@settings(deadline=None)
@given(text=st.text(min_size=1, max_size=20).filter(lambda text: "İ" not in text))
def test_backslashes(text: str) -> None:
    """With a backslash before each character, any text stands for itself, and only for that."""
    exchange = posted()
    exchange.url = text
    escaped = "".join("\\" + char for char in text)
    for term in (f"url:{escaped}", f'url:"{escaped}"'):
        assert matches(term, exchange)
        exchange.url = text + "x"
        assert not matches(term, exchange)
        exchange.url = text


# --- Numbers ---


@settings(deadline=None)
@given(number=st.integers(0, 1200), other=st.integers(0, 1200))
def test_comparisons(number: int, other: int) -> None:
    """Operators mean what they mean in Python."""
    exchange = posted()
    exchange.id = number
    judges: dict[str, Callable[[int, int], bool]] = {
        ":": lambda a, b: a == b,
        "=": lambda a, b: a == b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
    }
    for operator, judge in judges.items():
        assert matches(f"id{operator}{other}", exchange) is judge(number, other)
    assert matches(f"id:{other}..", exchange) is (number >= other)
    assert matches(f"id:..{other}", exchange) is (number <= other)
    assert matches(f"id:{min(other, 600)}..600", exchange) is (min(other, 600) <= number <= 600)


@settings(deadline=None)
@given(duration_ns=st.integers(0, 10**13))
def test_durations_as_shown(duration_ns: int) -> None:
    """A duration as the table shows it can be typed, and means what was shown."""
    shown = human_duration(duration_ns)
    exchange = posted()
    assert exchange.request
    assert exchange.response
    exchange.request.first_ns = 0
    exchange.response.last_ns = duration_ns
    margin_ns = max(duration_ns // 10, 10**9 if "m" in shown and "ms" not in shown else 1000)
    exchange.response.last_ns = duration_ns + margin_ns
    assert matches(f"time>{shown}", exchange)
    exchange.response.last_ns = max(duration_ns - margin_ns, -1)
    assert matches(f"time<{shown}", exchange)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64K", 64_000),
        ("64kb", 64_000),
        ("64Ki", 65_536),
        ("1.5MiB", 1_572_864),
        ("2g", 2 * 10**9),
        ("1T", 10**12),
        ("1tib", 1 << 40),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """K is a thousand, Ki is 1024."""
    exchange = posted()
    assert exchange.request
    exchange.request.body_size = size
    assert matches(f"sent:{text} sent>={text} -sent>{text}", exchange)


# --- Times ---


def test_zone() -> None:
    """Times are those of the zone that is given, dates too; an offset says otherwise."""
    exchange = posted()  # 18:00 UTC
    east = compile_filter("at:04:00 at:2026-11-21 at:18:00Z at:2026-11-20T18:00Z", zone=timezone(timedelta(hours=10)))
    assert east.matches(exchange)
    assert not compile_filter("at:18:00", zone=timezone(timedelta(hours=10))).matches(exchange)


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the machine's zone be ten hours east."""
    monkeypatch.setenv("TZ", "XXX-10")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_machine_zone() -> None:
    """Without a zone, times are those of the machine's."""
    assert compile_filter("at:04:00 at:2026-11-21 at>2026-11-21T03:59").matches(posted())
    assert not compile_filter("at:18:00").matches(posted())


def test_midnight() -> None:
    """A range of times may go over midnight; a date ends where the next begins."""
    exchange = posted()
    for hours, within in ((5, True), (5.9, True), (6, True), (6.1, True), (7, True), (8, False), (4, False)):
        exchange.started_ns = START_NS + int(hours * 3600 * 10**9)
        assert matches("at:22:30..01:30", exchange) is within, hours
        assert matches("at:2026-11-20", exchange) is (hours < 6)
        assert matches("at>2026-11-20", exchange) is (hours >= 6)


def test_times_beyond_calendars() -> None:
    """A time that no calendar has is no error."""
    exchange = posted()
    for started_ns in (10**40, -(10**40)):
        exchange.started_ns = started_ns
        assert not matches("at:00:00..23:59 or at:12:00..11:59", exchange)
        assert matches("at>2026-11-20", exchange) is (started_ns > 0)


# --- Terms together ---


@pytest.mark.parametrize("text", ["status:404 and method:post", "not not status:404", "--status:404", "\tstatus:404\n"])
@pytest.mark.parametrize("frame", ["{}", "not not ({} )", "status:200 or {} status:404", "( ({} status:404))"])
def test_together(text: str, frame: str) -> None:
    """Blanks, ``and``, parentheses and double negation change nothing."""
    assert matches(frame.format(text))
    assert not matches(frame.format(text).replace("404", "405"))


def test_empty() -> None:
    """An empty filter matches everything."""
    for text in ("", " \t\n"):
        assert matches(text)
        assert compile_filter(text).flow_matches(make_flow()) is True


@pytest.mark.parametrize(
    "text",
    [
        "status:404 or status:200 status:201",
        "status:200 status:201 or status:404",
        "(status:200 or status:404) method:post",
        "status:404 OR status:1xx",
        "NOT status:200 AND status:404",
        "- status:200",
        "not(status:200)",
        "(status:404)(method:post)",
        "(path~/(login|api)/v1)",
        "(path:/api/*)",
        'path:"/api/v1/"login',
        'url:*/"api"/*',
    ],
)
def test_precedence(text: str) -> None:
    """``or`` binds less than what stands side by side; parentheses that a value opens belong to it."""
    assert matches(text)


FACTS = {
    "status:404": True,
    "status:5xx": False,
    'method:"post"': True,
    "path~(x|y)$": False,
    "login": True,
    '"a b"': False,
    "req.body:token": True,
    "resp.body~token": False,
}
Logic = tuple[str, bool]


def expressions() -> st.SearchStrategy[Logic]:
    """Filters made of terms whose truth is known, each with Python's verdict on it."""

    def put_together(inner: st.SearchStrategy[Logic]) -> st.SearchStrategy[Logic]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            inner.map(lambda one: (f"not ({one[0]})", not one[1])),
            inner.map(lambda one: (f"-({one[0]} )", not one[1])),
            pairs.map(lambda two: (f"({two[0][0]}) ({two[1][0]})", two[0][1] and two[1][1])),
            pairs.map(lambda two: (f"({two[0][0]}) and ( {two[1][0]})", two[0][1] and two[1][1])),
            pairs.map(lambda two: (f"({two[0][0]}) or ({two[1][0]})", two[0][1] or two[1][1])),
        )

    return st.recursive(st.sampled_from(sorted(FACTS.items())), put_together, max_leaves=8)


@settings(deadline=None)
@given(expression=expressions())
def test_logic(expression: Logic) -> None:
    """Any filter says what Python says."""
    text, truth = expression
    assert matches(text) is truth


@settings(deadline=None)
@given(terms=st.lists(st.sampled_from(sorted(FACTS)), min_size=1, max_size=6), words=st.data())
def test_precedence_by_python(terms: list[str], words: st.DataObject) -> None:
    """Without parentheses, ``not``, ``and`` and ``or`` bind as they do in Python."""
    text = python = ""
    for index, term in enumerate(terms):
        joint = words.draw(st.sampled_from(["or", "and", ""])) if index else ""
        negative = words.draw(st.booleans())
        text += f" {joint} {'not ' * negative}{term}"
        python += f" {(joint or 'and') if index else ''} {'not ' * negative}{FACTS[term]}"
    assert matches(text) is eval(python.strip())


# --- Connections ---


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("proc:curl", True),
        ("proc:wget", False),
        ("-proc:wget", True),
        ("status:404", None),
        ("-status:404", None),
        ("proc:wget status:404", False),
        ("proc:curl status:404", None),
        ("proc:curl or status:404", True),
        ("proc:wget or status:404", None),
        ("not (proc:curl or status:404)", False),
        ("host:example.org", True),
        ("host:example.com", None),
        ("-host:example.org", False),
        ("proto:h2", True),
        ("proto:h1", None),
        ("handshake>10ms", True),
        ("handshake>1s", False),
        ("at:18:00", True),
        ("at:18:01", False),
        ("port:443 conn:7 sni:*.org addr:93.184.216.34 server:93.184.216.34:443 uid:1000 role:client exe:*", True),
        ("/login", None),
        ("body:x", None),
        ("time>1s", None),
        ("complete:no", None),
        ("grpc:5", None),
        ("", True),
    ],
)
def test_connections(text: str, verdict: bool | None) -> None:
    """A connection is judged by what it says of itself; where that does not decide, its exchanges do."""
    flow = make_flow(7, alpn="h2", handshake_start_ns=START_NS, handshake_end_ns=START_NS + 20_000_000)
    assert compile_filter(text, zone=UTC).flow_matches(flow) is verdict


@settings(deadline=None)
@given(
    terms=st.lists(st.sampled_from(["proc:curl", "pid:1", "port:443", "status:404", "/x", "conn:7"]), min_size=1),
    joints=st.data(),
)
def test_connections_agree(terms: list[str], joints: st.DataObject) -> None:
    """What a connection decides, every exchange on it confirms."""
    text = terms[0]
    for term in terms[1:]:
        text = joints.draw(st.sampled_from([f"{text} {term}", f"({text}) or {term}", f"-({text}) {term}"]))
    compiled = compile_filter(text)
    flow = make_flow(7)
    verdict = compiled.flow_matches(flow)
    for exchange in (*build(simple_exchange(flow=flow)), *build([Wire(flow).out(GET)]), posted()):
        exchange.flow = flow
        assert verdict in (None, compiled.matches(exchange))


# --- Errors ---


@pytest.mark.parametrize(
    ("text", "message", "marked"),
    [
        ("stauts:404", "unknown key 'stauts': did you mean 'status'?", "stauts"),
        ("a process:curl", "unknown key 'process': did you mean 'proc'?", "process"),
        ("q=tlscap", "unknown key 'q'", "q"),
        ("header.:x", "unknown key 'header.': did you mean 'header'?", "header."),
        ("localhost:8080", "unknown key 'localhost': did you mean 'host'?", "localhost"),
        ("status:40", "'40' is not a status such as 404 or 5xx", "40"),
        ("status:4x4", "'4x4' is not a status such as 404 or 5xx", "4x4"),
        ("status:", "a value has to stand right after 'status:'", "status:"),
        ("(host: )", "a value has to stand right after 'host:'", "host:"),
        ("time >1s", "a key has to stand right before this operator, as in time>1s", ">"),
        ("status~4..", "'status' is no text: write status:... or status>...", "~"),
        ("host>a", "'host' is a text: write host:... or host~...", ">"),
        ("status==404", "there is no such operator: write one of : ~ = > >= < <=", "=="),
        ("host=~a", "there is no such operator: write one of : ~ = > >= < <=", "=~"),
        ("status!=404", "there is no such operator: write not status:...", "!="),
        ("status<>404", "there is no such operator: write one of : ~ = > >= < <=", "<>"),
        ("status:5xx..200", "this range ends before it begins", "5xx..200"),
        ("status:..", "'' is not a status such as 404 or 5xx", ".."),
        ("status>200..300", "a range goes with ':', as in status:200..300", "200..300"),
        ("id:x", "'x' is not a number such as 443", "x"),
        ("id:١٢", "'١٢' is not a number such as 443", "١٢"),
        ("id:-1", "'-1' is not a number such as 443", "-1"),
        ("id:" + "9" * 19, f"'{'9' * 19}' is not a number such as 443", "9" * 19),
        ("size>1X", "'1X' is not a size such as 4096, 64K or 1.5MiB", "1X"),
        ("size:>1K", "'>1K' is not a size such as 4096, 64K or 1.5MiB", ">1K"),
        ("time>1s30", "'1s30' is not a time such as 250ms, 1.5s or 2m30s", "1s30"),
        ("time>1ſ", "'1ſ' is not a time such as 250ms, 1.5s or 2m30s", "1ſ"),
        ("time:1s", "nothing takes exactly that long: write time>1s, time<1s or a range a..b", "1s"),
        ("grpc:5x", "'5x' is not a gRPC status such as 5 or NOT_FOUND", "5x"),
        ("complete:maybe", "write complete:yes or complete:no", "maybe"),
        ("complete>yes", "write complete:yes or complete:no", "yes"),
        ("addr:10.0.0.0/33", "'10.0.0.0/33' is not a network such as 10.0.0.0/8", "10.0.0.0/33"),
        ("at:25:00", "'25:00' is not a time such as 12:30, 2026-11-20 or 2026-11-20T12:30:05Z", "25:00"),
        ("at:2026-02-30", "'2026-02-30' is not a time such as", "2026-02-30"),
        ("at:2026-11-2012:30", "'2026-11-2012:30' is not a time such as", "2026-11-2012:30"),
        ("at:2026-11-20Z", "'2026-11-20Z' is not a time such as", "2026-11-20Z"),
        ("at:12:30+99:00", "'12:30+99:00' is not a time such as", "12:30+99:00"),
        ("at:0000-01-01", "'0000-01-01' is not a time such as", "0000-01-01"),
        ("at:9999-12-31", "'9999-12-31' is not a time such as", "9999-12-31"),
        ("at:..", "'' is not a time such as", ".."),
        ("at:2026-11-20..2026-11-19", "this range ends before it begins", "2026-11-20..2026-11-19"),
        ("at:12:00..2026-11-20", "one end of this range is a time of the day", "12:00..2026-11-20"),
        ("at:12:00+01:00..13:00", "one end of this range is a time of the day, the other is not", "12:00+01:00..13:00"),
        ("at>12:00..13:00", "a range goes with ':', as in at:12:30..12:45", "12:00..13:00"),
        ("at~12", "'at' is no text: write at>12:30 or at:12:30..12:45", "~"),
        ("path~a[b", "no regular expression: unterminated character set", "["),
        ('path~"a b"*{2,1}', "no regular expression: min repeat greater than max repeat", "2"),
        ("path~(a", "no regular expression: missing ), unterminated subpattern", "("),
        ("path~a{9999999999}", "this regular expression is too large", "a{9999999999}"),
        ("path~" + "(" * 499 + ")" * 499, "this regular expression is too large", "(" * 49 + "("),
        ("path~" + "x" * 1001, "a regular expression of more than 1000 characters", "x" * 50),
        ('a body~"x y', "this quote is not closed", '"'),
        ("(a", "this '(' is not closed", "("),
        ("((a) b", "this '(' is not closed", "("),
        ("url:*(x) (y:(z)", "unknown key 'y'", "y"),
        ("a) b", "there is no '(' for this ')'", ")"),
        ("()", "a term is missing after '('", ")"),
        ("a or", "a term is missing after 'or'", ""),
        ("a not", "a term is missing after 'not'", ""),
        ("-", "a term is missing after '-'", ""),
        ("or a", "a term is missing before 'or'", "or"),
        ("a or or b", "a term is missing before 'or'", "or"),
        ("a && b", "write 'and', or put in quotes what is meant as it stands", "&&"),
        ("a || b", "write 'or', or put in quotes what is meant as it stands", "||"),
        ("!a", "write 'not', or put in quotes what is meant as it stands", "!a"),
        ("(" * 51 + "a" + ")" * 51, "more than 50 parentheses in one another", "("),
        ("x" * 10_001, "longer than 10000 characters", "x"),
    ],
)
def test_errors(text: str, message: str, marked: str) -> None:
    """An error says what is wrong and what would be right, and marks the place."""
    with pytest.raises(FilterError) as caught:
        compile_filter(text, zone=UTC)
    said, shown, marks = str(caught.value).split("\n")
    assert said.startswith(f"filter: {message}")
    begin = len(marks) - len(marks.lstrip())
    assert shown[begin : len(marks)].startswith(marked)
    assert text[caught.value.position :].startswith(marked)
    assert len(marks) - begin >= 1
    assert len(shown) <= 106


def test_error_is_wrong_usage() -> None:
    """The exit status is that of wrong usage; an unknown key comes with all that are known."""
    with pytest.raises(UsageError) as caught:
        compile_filter("xyzzy:1")
    assert caught.value.exit_status == 2
    assert caught.value.hint.endswith(f"keys: {', '.join(KEYS)}")
    with pytest.raises(UsageError) as caught:
        compile_filter("localhost:80")
    assert caught.value.hint == "in quotes it is searched for in the URL"


def test_error_in_a_long_filter() -> None:
    """Of a long filter, what is around the place is shown; control characters are not."""
    with pytest.raises(FilterError) as caught:
        compile_filter("word\n\x1b " * 100 + "stauts:1 " + "word " * 100)
    _, shown, marks = str(caught.value).split("\n")
    assert shown.lstrip()[0] == shown[-1] == "…"
    assert shown[marks.index("^") : len(marks)] == "stauts"
    assert shown.isprintable()


def test_longest() -> None:
    """What is as long as allowed compiles."""
    assert matches("status:404 " * 900 + "-" * (TEXT_LIMIT - 9900 - 10) + "status:404")
    compile_filter("path~" + "x" * PATTERN_LIMIT)
    assert matches("(" * 50 + "status:404" + ")" * 50)


ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [*KEYS, "header.x", *':~=<>()"\\-*. 3', "or ", "not ", "and ", "..", "12:30", "1s", "5xx", "[", "{"]
        ),
        max_size=12,
    ).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(text=ANY_TEXT)
@example(text="path~[[a]")  # a pattern that Python warns of
@example(text="path~\\")
@example(text='"\\')
def test_anything(text: str) -> None:
    """Any text is a filter or an error that marks a place in it; no filter fails, whatever the exchange."""
    try:
        compiled = compile_filter(text, zone=UTC)
    except FilterError as error:
        assert 0 <= error.position <= len(text)  # noqa: PT017 - there may be none
        _, shown, marks = str(error).split("\n")
        assert set(marks.lstrip()) == {"^"}
        assert len(marks) <= len(shown) + 1
        return
    exchanges = [posted(), *build([Wire().out(GET)]), *build([Wire().into(b"HTTP/1.0 204 x\r\n\r\n")])]
    for exchange in exchanges:
        assert isinstance(compiled.matches(exchange, BODIES), bool)
        assert compiled.flow_matches(exchange.flow) in (None, compiled.matches(exchange, BODIES)) or "at" in text


# --- The page ---


def page_examples() -> list[str]:
    """Return the page's code block and whatever in it begins with a key and an operator."""
    block = re.search(r"```\n(.*?)```", PAGE, re.DOTALL)
    assert block
    key = re.compile(rf"-?(?:{'|'.join(map(re.escape, KEYS))}|header\.[a-z-]+)[:~=<>]\S")
    spans = [span.replace(r"\|", "|") for span in re.findall(r"`([^`\n]+)`", PAGE)]
    return [*block[1].splitlines(), *(span for span in spans if key.match(span))]


def test_page_has_every_key() -> None:
    """Every key is in the page; the table's first column and the list of prefixes name nothing else."""
    table = PAGE[PAGE.index("## Keys") : PAGE.index("## Connections")]
    first = [re.match(r"\| ((?:`[^`]+`(?:, )?)+) \|", line) for line in table.splitlines()]
    named = {name for match in first if match for name in re.findall(r"`([^`]+)`", match[1])}
    prefixed = set(re.findall(r"`(res?[pq]\.[^`]+)`", table.splitlines()[-2] + table.splitlines()[-3]))
    assert {name for name in named | prefixed if "NAME" not in name} == set(KEYS)
    assert {name for name in named | prefixed if "NAME" in name} == {
        "header.NAME",
        "req.header.NAME",
        "resp.header.NAME",
    }


def test_page_has_an_example_of_every_key() -> None:
    """Most keys have one, and the code block has several."""
    examples = page_examples()
    assert len(examples) > 90
    keys = set(re.findall(r"[a-z.]+(?=[:~=<>])", " ".join(examples)))
    assert set(KEYS) - keys <= {"req.type", "resp.header"}


@pytest.mark.parametrize("text", page_examples())
def test_page_example(text: str) -> None:
    """Every example compiles."""
    compile_filter(text)


def test_page_limits() -> None:
    """The limits that the page names are the real ones."""
    assert f"{TEXT_LIMIT:,} characters, a regular expression {PATTERN_LIMIT:,}" in PAGE


def test_page_connection_keys() -> None:
    """The keys that the page calls the connection's own are those that a connection decides."""
    section = PAGE[PAGE.index("## Connections") : PAGE.index("## Limits")]
    named = set(re.findall(r"`([a-z.]+)`", section))
    flow: Flow = make_flow(3, handshake_start_ns=1, handshake_end_ns=2, alpn="x")
    decided = set()
    for key in KEYS:
        false = {"at": "at:1999-01-01", "complete": "complete:no"}.get(key, f"{key}:99")
        if key in ("time", "wait", "handshake"):
            false = f"{key}>99h"
        if key in ("status", "grpc"):
            false = f"{key}:599"
        if compile_filter(false).flow_matches(flow) is False:
            decided.add(key)
    assert named == decided
