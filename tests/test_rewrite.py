"""Captures written from exchanges: what is read back is what was written, and tshark has nothing to complain of."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judges import differences, told_by_tlscap, told_by_tshark

from tlscap.capture import Capture
from tlscap.export.jsonl import exchange_to_dict
from tlscap.http.events import Header, Side
from tlscap.http.exchanges import Exchange, ExchangeBuilder
from tlscap.model import Data, Endpoint, Flow, GapReason, Library, Process, Role, TupleSource
from tlscap.pcapng_reader import read_items
from tlscap.rebuild import PcapngBuilder
from tlscap.replay.recording import (
    Hole,
    Interim,
    Piece,
    RecordedExchange,
    RecordedMessage,
    RecordedRequest,
    RecordedResponse,
    Recording,
    TunnelMessage,
    load,
    load_from,
)
from tlscap.rewrite import Written, write_capture
from tlscap.sidecar import SidecarReader

CAPTURES = Path(__file__).parent / "fixtures" / "captures"
GOLDEN = sorted([*CAPTURES.glob("*.tlscap.zst"), *CAPTURES.glob("*.pcapng")])
START_NS = 1_795_197_600_123_456_789
MS = 1_000_000

# What a rewritten golden capture says differently, and why.
DIFFERENT = {
    "lost-step": {"problems"},  # it knows that bytes are missing, but no longer that it was the step that was lost
    "websocket": {"headers"},  # the messages are not compressed any more, so neither side says that they may be
}


def facts(exchange: RecordedExchange) -> dict[str, Any]:
    """Return all that replay uses of an exchange."""

    def message(one: RecordedMessage | None) -> dict[str, Any] | None:
        return {field.name: getattr(one, field.name) for field in dataclasses.fields(one)} if one else None

    def of(one: Any, *but: str) -> dict[str, Any]:
        return {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name not in but}

    return of(exchange, "flow", "request", "response", "id") | {
        "request": message(exchange.request),
        "response": message(exchange.response),
        "flow": of(exchange.flow, "process", "id"),
        "process": of(exchange.flow.process),
    }


def differing(before: Any, after: Any, path: str = "") -> set[str]:
    """Return the names of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {one for key in before | after for one in differing(before.get(key), after.get(key), key)}
    return set() if before == after else {path}


def written(exchanges: Sequence[RecordedExchange], **options: Any) -> tuple[bytes, Written]:
    stream = io.BytesIO()
    done = write_capture(exchanges, stream, origin="a test", **options)
    return stream.getvalue(), done


def read(data: bytes) -> Recording:
    recording = load_from(Capture("memory", io.BytesIO(data)))
    assert recording.truncated is None
    return recording


def rebuilt(data: bytes) -> bytes:
    builder = PcapngBuilder()
    blocks = [block for frame in SidecarReader(io.BytesIO(data)).frames() for block in builder.feed(frame)]
    return b"".join([*blocks, *builder.finish()])


# --- Golden captures ---


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden(path: Path) -> None:
    """What replay uses of every golden capture survives being written again; so it does once more, byte for byte."""
    before = load(str(path))
    data, _ = written(before.exchanges)
    after = read(data)
    assert len(after.exchanges) == len(before.exchanges)
    pairs = zip(before.exchanges, after.exchanges, strict=True)
    found = {name for old, new in pairs for name in differing(facts(old), facts(new))}
    assert found == DIFFERENT.get(path.name.partition(".")[0], set())
    assert written(after.exchanges)[0] == data


@pytest.mark.parametrize(
    "name", ["http1-keep-alive", "chunked", "grpc", "close-delimited", "server-sent-events", "holes"]
)
def test_inspect_shows_the_same(name: str) -> None:
    before = CAPTURES / f"{name}.tlscap.zst"
    data, _ = written(load(str(before)).exchanges)
    exchanges: list[Exchange] = []
    builder = ExchangeBuilder()
    capture = Capture("memory", io.BytesIO(data))
    for item in capture.items():
        exchanges += builder.feed(item)
    exchanges += builder.finish(0)
    lines = sorted((exchange_to_dict(one) for one in exchanges), key=lambda line: int(line["id"]))
    expected = sorted(
        map(json.loads, (CAPTURES / f"{name}.jsonl").read_text().splitlines()), key=lambda line: int(line["id"])
    )
    assert json.loads(json.dumps(lines)) == expected


# Of answers to HEAD in HTTP/1.1, and of bodies up to the end in HTTP/1.0, tshark makes something else in the originals, too.
@pytest.mark.parametrize("name", ["grpc", "http1-keep-alive", "http2-frames", "websocket", "server-sent-events"])
def test_tshark_agrees(name: str, tmp_path: Path) -> None:
    """tshark reads a rewritten capture as tlscap does."""
    data, _ = written(load(str(CAPTURES / f"{name}.tlscap.zst")).exchanges)
    path = tmp_path / "x.pcapng"
    path.write_bytes(rebuilt(data))
    told = told_by_tlscap(path, http2_objects=False)
    differ = [one for one in differences(told, told_by_tshark(path, tmp_path)) if not one.is_url]
    assert differ == []


@pytest.mark.parametrize("name", ["chunked", "close-delimited", "grpc", "http2-frames", "websocket", "both-ends"])
def test_nothing_is_malformed(name: str, tmp_path: Path) -> None:
    data, _ = written(load(str(CAPTURES / f"{name}.tlscap.zst")).exchanges)
    path = tmp_path / "x.pcapng"
    path.write_bytes(rebuilt(data))
    bad = subprocess.run(
        ["tshark", "-r", path, "-Y", "_ws.malformed || _ws.expert.severity >= warning", "-T", "fields", "-e", "_ws.expert.message"],
        env={"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert bad.stdout == ""


def test_section_header_says_where_it_comes_from() -> None:
    """Nobody takes a rewritten capture for what the kernel saw."""
    data, _ = written(load(str(CAPTURES / "chunked.tlscap.zst")).exchanges)
    assert b"was written by tlscap: a test" in rebuilt(data)
    assert b"captured by tlscap in the process" not in rebuilt(data)
    with_capture = Capture("memory", io.BytesIO(data))
    list(with_capture.items())
    assert "a test" in with_capture.note


def test_same_bytes_whatever_the_hash_seed() -> None:
    code = (
        "import io,sys,hashlib;from tlscap.replay.recording import load;from tlscap.rewrite import write_capture\n"
        "s=io.BytesIO();write_capture(load(sys.argv[1]).exchanges,s,origin='x');print(hashlib.sha256(s.getvalue()).hexdigest())"
    )
    path = str(CAPTURES / "http2-frames.tlscap.zst")
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, path],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(digests) == 1


# --- Made up ---


def make_flow(number: int, **changes: Any) -> Flow:
    process = Process(
        4711, 4_000_000_000, "curl", 1, 1000, ("curl", "-x", "é"), "/usr/bin/curl", (Library("/lib/libssl.so", "ab"),)
    )
    values: dict[str, Any] = {
        "process": process,
        "opened_ns": START_NS,
        "local": Endpoint("10.0.0.1", 40000 + number),
        "remote": Endpoint("93.184.216.34", 443),
        "tuple_source": TupleSource.SYSCALL,
        "role": Role.CLIENT,
        "sni": "example.org",
        "handshake_start_ns": START_NS,
        "handshake_end_ns": START_NS + MS,
        "srtt_us": 120,
        "closed_ns": START_NS + 100_000 * MS,
        "ssl": 0x7F00_0000_1000,
    }
    return Flow(number, **(values | changes))


names = st.sampled_from([b"x-a", b"x-b", b"accept", b"x-odd"])
values = st.binary(max_size=12).map(lambda raw: bytes(0x21 + byte % 94 for byte in raw))
headers = st.lists(st.tuples(names, values), max_size=4)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


@st.composite
def exchanges_of_a_flow(draw: st.DrawFn, number: int) -> list[RecordedExchange]:
    """Return what could have been recorded on one connection."""
    is_h2 = draw(st.booleans())
    flow = make_flow(number, alpn="h2" if is_h2 else "http/1.1", role=draw(st.sampled_from([Role.CLIENT, Role.SERVER])))
    made: list[RecordedExchange] = []
    now = START_NS + 10 * MS
    count = draw(st.integers(1, 3))
    for index in range(count):
        last = index == count - 1
        now = START_NS + draw(st.integers(10, 20)) * MS if is_h2 else now + MS  # streams overlap
        exchange, now = draw(one_exchange(flow, index + 1, now, is_h2=is_h2, last=last))
        made.append(exchange)
    return made


@st.composite
def one_exchange(
    draw: st.DrawFn, flow: Flow, number: int, now: int, *, is_h2: bool, last: bool
) -> tuple[RecordedExchange, int]:
    version = b"HTTP/2" if is_h2 else b"HTTP/1.1"
    asked, answered = draw(bodies), draw(bodies)
    request_framing = "h2" if is_h2 else draw(st.sampled_from(["counted", "chunked"]))
    response_framing = "h2" if is_h2 else draw(st.sampled_from(["counted", "chunked", *(["endless"] * last)]))
    request = RecordedRequest(
        (), version, now, now, "", method=b"POST", target=b"/%d" % number, scheme="https", authority=b"example.org"
    )
    interim = []
    if draw(st.booleans()):
        now += MS
        interim.append(Interim(103, b"" if is_h2 else b"Early Hints", ((b"link", b"</a>"),), now))
    # The order in which everything passes: questions and answers at once.
    order = draw(st.permutations([0] * len(asked) + [1] * len(answered)))
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    passed = [0, 0]
    now += MS
    started = now
    for side in order:
        now += MS
        data = (asked, answered)[side][len(pieces[side])]
        pieces[side].append(Piece(data, now, passed[1 - side]))
        passed[side] += len(data)
    response = RecordedResponse(
        (), version, started, started, "", status=200, reason=b"" if is_h2 else b"OK", interim=interim
    )
    for message, framing, of in ((request, request_framing, pieces[0]), (response, response_framing, pieces[1])):
        message.pieces = of
        message.ended_ns = of[-1].time_ns if of else message.started_ns
        fields: list[Header] = draw(headers)
        if isinstance(message, RecordedRequest) and not is_h2:
            fields = [(b"Host", b"example.org"), *fields]
        if framing == "counted":
            fields = [*fields, (b"Content-Length", b"%d" % len(message.body))]
        if framing == "chunked":
            fields = [*fields, (b"Transfer-Encoding", b"chunked")]
        if framing in ("chunked", "h2") and draw(st.booleans()):
            now += MS
            message.ended_ns = now
            message.trailers = tuple(draw(headers))
        elif framing == "chunked":
            now += MS
            message.ended_ns = now
        message.headers = tuple(fields)
    hurt = draw(st.sampled_from([None, None, None, GapReason.RING_FULL, GapReason.SNAPLEN, GapReason.WITHHELD]))
    if hurt and response.pieces and response_framing in ("chunked", "h2"):
        first = response.pieces[0]
        response.holes = [Hole(len(first.data), 7, hurt, first.time_ns)]
        response.missing, response.complete = 7, False
    exchange = RecordedExchange(
        id=0,
        number=number,
        flow=flow,
        url=f"https://example.org/{number}",
        protocol="h2" if is_h2 else "http/1.1",
        request=request,
        response=response,
        complete=response.complete,
        problems=(),
    )
    return exchange, now


@st.composite
def recordings(draw: st.DrawFn) -> list[RecordedExchange]:
    flows = [draw(exchanges_of_a_flow(number)) for number in range(1, draw(st.integers(1, 3)) + 1)]
    return sorted((one for of_flow in flows for one in of_flow), key=lambda one: one.request.started_ns)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(recordings())
def test_round_trip(exchanges: list[RecordedExchange]) -> None:
    """Whatever could have been recorded is read back as it was, its pieces, their times and their order included."""
    numbers: Counter[Flow] = Counter()
    for exchange in exchanges:  # as the order in which they began numbers them
        numbers[exchange.flow] += 1
        exchange.number = numbers[exchange.flow]
    data, done = written(exchanges)
    assert done.exchanges == len(exchanges)
    after = read(data).exchanges
    assert len(after) == len(exchanges)
    for one, two in zip(exchanges, after, strict=True):
        assert differing(facts(one), facts(two)) <= {"problems"}
        assert [hole.reason.value for hole in one.response.holes] == [  # type: ignore[union-attr]
            text.split("(")[1].rstrip(")") for text in two.problems if "missing (" in text
        ]
    assert written(after)[0] == data


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(recordings())
def test_pcapng_round_trip(exchanges: list[RecordedExchange]) -> None:
    """The pcapng of it holds the same bytes in the same order."""
    data, _ = written(exchanges)
    capture = Capture("memory", io.BytesIO(data))

    def streams(items: Any) -> dict[tuple[int, int], bytes]:
        found: dict[tuple[int, int], bytes] = {}
        for item in items:
            if isinstance(item, Data):
                key = item.flow.id, item.direction
                found[key] = found.get(key, b"") + item.data
        return found

    assert streams(read_items(io.BytesIO(rebuilt(data)))) == streams(capture.items())


def plain(**changes: Any) -> RecordedExchange:
    """Return a simple exchange; changes of its response go under their own names."""
    request = RecordedRequest(
        ((b"Host", b"a"),),
        b"HTTP/1.1",
        START_NS,
        START_NS,
        "",
        method=b"GET",
        target=b"/",
        scheme="https",
        authority=b"a",
    )
    body = changes.pop("body", b"hello")
    response = RecordedResponse(
        changes.pop("headers", ((b"Content-Length", b"99"),)),
        b"HTTP/1.1",
        START_NS + MS,
        START_NS + MS,
        "",
        [Piece(body, START_NS + MS, 0)] if body else [],
        status=200,
        reason=b"OK",
    )
    for name in ("complete", "status", "missing"):
        if name in changes:
            setattr(response, name, changes.pop(name))
    values: dict[str, Any] = {
        "id": 1,
        "number": 1,
        "flow": make_flow(1),
        "url": "https://a/",
        "protocol": "http/1.1",
        "request": request,
        "response": response,
        "complete": response.complete,
        "problems": (),
    }
    return RecordedExchange(**(values | changes))


def answer(exchange: RecordedExchange) -> RecordedResponse:
    after = read(written([exchange])[0]).exchanges[0]
    assert after.response
    return after.response


def test_length_is_corrected() -> None:
    assert answer(plain()).headers == ((b"Content-Length", b"5"),)
    assert answer(plain()).complete


def test_cut_short_stays_so() -> None:
    """A body that ended too early never looks whole, whatever its length says."""
    for length in (b"3", b"5", b"99"):
        response = answer(plain(headers=((b"Content-Length", length),), complete=False))
        assert not response.complete
        assert response.body == b"hello"
    assert not answer(plain(headers=((b"Transfer-Encoding", b"chunked"),), complete=False)).complete
    assert not answer(plain(headers=(), complete=False)).complete


@pytest.mark.parametrize("framing", [((b"Content-Length", b"9"),), ((b"Transfer-Encoding", b"chunked"),), ()])
def test_what_follows_a_cut_message_is_read(framing: tuple[Header, ...]) -> None:
    """The next answer is not taken for the rest of one that was lost."""
    flow = make_flow(1)
    first = plain(headers=framing, complete=False, flow=flow)
    second = plain(flow=flow, number=2)
    second.request = dataclasses.replace(
        second.request, target=b"/2", started_ns=START_NS + 3 * MS, ended_ns=START_NS + 3 * MS
    )
    assert second.response
    second.response.started_ns = second.response.ended_ns = START_NS + 4 * MS
    second.response.pieces = [Piece(b"world", START_NS + 4 * MS, 0)]
    after = read(written([first, second])[0]).exchanges
    assert [one.complete for one in after] == [False, True]
    assert after[1].response
    assert after[1].response.body == b"world"


def test_unanswered_question_keeps_its_place() -> None:
    flow = make_flow(1)
    first, second = plain(flow=flow, complete=False, response=None), plain(flow=flow, number=2)
    after = read(written([first, second])[0]).exchanges
    assert [one.response is None for one in after] == [True, False]


def test_missing_without_a_place() -> None:
    response = answer(plain(missing=7, complete=False, headers=((b"Content-Length", b"12"),)))
    assert (response.body, response.missing, response.complete) == (b"hello", 7, False)


def test_line_breaks_stay_within_their_field() -> None:
    """Nobody smuggles a field, or a message, into a capture."""
    response = answer(plain(headers=((b"X", b"a\r\nEvil: 1"), (b"Content-Length", b"5"))))
    assert response.headers == ((b"X", b"a Evil: 1"), (b"Content-Length", b"5"))


def test_websocket() -> None:
    messages = [
        TunnelMessage(Side.REQUEST, "text", b"x" * 70_000, 1005, START_NS + 2 * MS),
        TunnelMessage(Side.RESPONSE, "binary", b"y" * 300, 1005, START_NS + 3 * MS),
        TunnelMessage(Side.RESPONSE, "ping", b"?", 1005, START_NS + 3 * MS),
        TunnelMessage(Side.REQUEST, "pong", b"?", 1005, START_NS + 3 * MS),
        TunnelMessage(Side.REQUEST, "close", b"bye", 4001, START_NS + 4 * MS),
        TunnelMessage(Side.RESPONSE, "close", b"", 1005, START_NS + 4 * MS),
    ]
    upgrade = ((b"Upgrade", b"websocket"), (b"Sec-WebSocket-Extensions", b"permessage-deflate; x=1, other"))
    exchange = plain(body=b"", status=101, headers=upgrade, upgraded_to="websocket", messages=messages)
    exchange.request = dataclasses.replace(exchange.request, headers=(*exchange.request.headers, *upgrade))
    data, done = written([exchange])
    after = read(data).exchanges[0]
    assert after.messages == messages
    assert after.response
    assert after.response.headers[1] == (b"Sec-WebSocket-Extensions", b"other")
    assert done.inflated == 1


def test_websocket_over_http2() -> None:
    messages = [
        TunnelMessage(Side.RESPONSE, "text", b"hi", 1005, START_NS + 2 * MS),
        TunnelMessage(Side.REQUEST, "close", b"", 1000, START_NS + 4 * MS),
    ]
    exchange = plain(body=b"", headers=(), upgraded_to="websocket", messages=messages, flow=make_flow(1, alpn="h2"))
    exchange.request = dataclasses.replace(
        exchange.request, version=b"HTTP/2", method=b"CONNECT", protocol=b"websocket", target=b"/chat", headers=()
    )
    assert exchange.response
    exchange.response.version, exchange.response.reason = b"HTTP/2", b""
    after = read(written([exchange])[0]).exchanges[0]
    assert (after.messages, after.upgraded_to, after.request.protocol) == (messages, "websocket", b"websocket")
    assert (after.request.target, after.complete) == (b"/chat", True)


def test_h2c() -> None:
    """A connection that was upgraded to HTTP/2 is one still."""
    flow = make_flow(1, plaintext=True, alpn="")
    first = plain(upgraded_to="h2c", flow=flow)
    first.request = dataclasses.replace(
        first.request, headers=((b"Host", b"a"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"")), scheme="http"
    )
    second = plain(flow=flow, number=2, protocol="h2")
    second.request = dataclasses.replace(
        second.request, version=b"HTTP/2", scheme="http", started_ns=START_NS + 2 * MS, ended_ns=START_NS + 2 * MS
    )
    for exchange in (first, second):
        assert exchange.response
        exchange.response.version, exchange.response.reason = b"HTTP/2", b""
        exchange.response.headers = ((b"content-length", b"5"),)
    after = read(written([first, second])[0]).exchanges
    assert [one.response.body for one in after if one.response] == [b"hello", b"hello"]
    assert [one.request.version for one in after] == [b"HTTP/1.1", b"HTTP/2"]
    assert [one.complete for one in after] == [True, True]
    assert after[0].url == "http://a/"


def test_tunnels_are_left_out() -> None:
    data, done = written([plain(upgraded_to="tunnel"), plain(flow=make_flow(2))])
    assert done.left_out == {"tunnels of tunnel": 1}
    assert len(read(data).exchanges) == 1


def test_two_protocols_need_an_upgrade() -> None:
    flow = make_flow(1)
    second = plain(flow=flow)
    second.request = dataclasses.replace(second.request, version=b"HTTP/2")
    with pytest.raises(ValueError, match="speaks HTTP/1 and HTTP/2"):
        written([plain(flow=flow), second])


@pytest.mark.parametrize(
    "changes",
    [
        {"local": None, "remote": None, "tuple_source": TupleSource.PLACEHOLDER, "srtt_us": -1},
        {
            "local": None,
            "remote": Endpoint("203.0.113.9", 8443),
            "tuple_source": TupleSource.IMPORTED,
            "plaintext": True,
        },
        {"tuple_source": TupleSource.CIPHERTEXT, "local": Endpoint("2001:db8::1", 1)},
        {"joined_midstream": True},
        {"joined_midstream": True, "handshake_start_ns": 0, "handshake_end_ns": 0},
        {"transport": "udp", "closed_ns": 0},
        {"process": Process(-1)},
    ],
)
def test_what_is_known_of_a_connection(changes: dict[str, Any]) -> None:
    before = plain(flow=make_flow(1, **changes))
    before.url = "http://a/" if changes.get("plaintext") else before.url
    after = read(written([before])[0]).exchanges[0]
    expected, found = facts(before), facts(after)
    assert found["flow"] == expected["flow"]
    assert found["process"] == expected["process"]
    assert after.url == before.url


def test_processes_that_share_a_number() -> None:
    first, second = plain(), plain(flow=make_flow(2, process=Process(4711, 4_000_000_000, "other", 1, 1000)))
    third = plain(flow=make_flow(3, process=first.flow.process))
    after = read(written([first, second, third])[0]).exchanges
    assert [one.flow.process.comm for one in after] == ["curl", "other", "curl"]


def test_header_blocks_hide_nothing() -> None:
    """Another HPACK decoder reads them; what they say stands in the file in plain text."""
    exchange = plain(flow=make_flow(1, alpn="h2"), protocol="h2")
    exchange.request = dataclasses.replace(
        exchange.request, version=b"HTTP/2", headers=((b"x-id", b"needle-in-plain-text"),)
    )
    assert exchange.response
    exchange.response.version = b"HTTP/2"
    data, _ = written([exchange])
    frame = b"".join(SidecarReader(io.BytesIO(data)).frames())
    assert b"needle-in-plain-text" in frame
    block = frame[frame.index(b"PRI * HTTP/2.0") :]
    at = block.index(b"\x01\x05\x00\x00\x00\x01")
    length = int.from_bytes(block[at - 3 : at], "big")
    fields = hpack.Decoder().decode(block[at + 6 : at + 6 + length], raw=True)
    assert (b"x-id", b"needle-in-plain-text") in [(name, value) for name, value in fields]


def test_empty() -> None:
    data, done = written([])
    assert (done.exchanges, read(data).exchanges) == (0, [])
    assert rebuilt(data)


def test_large_pieces() -> None:
    """A body in one piece that no frame of HTTP/2 holds, and none of the sidecar."""
    body = b"0123456789abcdef" * (1 << 20) + b"!" * (50 << 20)
    exchange = plain(body=body, flow=make_flow(1, alpn="h2"), protocol="h2", headers=())
    exchange.request = dataclasses.replace(exchange.request, version=b"HTTP/2", headers=())
    assert exchange.response
    exchange.response.version, exchange.response.reason = b"HTTP/2", b""
    assert answer(exchange).body == body
