"""mitmproxy's flow files, in and out: the real mitmproxy judges where it is installed."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner, Result
from helpers import START_NS
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.cli.import_ import import_
from tlscap.cli.inspect import inspect
from tlscap.errors import CorruptError, FormatError, TruncatedError, UnsupportedVersionError
from tlscap.export.mitmproxy import dump, flow_to_state
from tlscap.importing import mitmproxy as module
from tlscap.importing.mitmproxy import FlowFile, is_flow_file, parse
from tlscap.model import Data, Direction, FlowOpened, Gap, Item
from tlscap.replay.recording import RecordedExchange, load

MITMDUMP = os.environ.get("TLSCAP_MITMDUMP") or shutil.which("mitmdump")
needs_mitmproxy = pytest.mark.skipif(not MITMDUMP, reason="mitmdump is neither in PATH nor named by TLSCAP_MITMDUMP")

WS_KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = get("/ws", "Upgrade: websocket", "Connection: Upgrade", WS_KEY, "Sec-WebSocket-Version: 13")
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def capture(tmp_path: Path) -> Path:
    """Two connections: plain exchanges with odd fields and a coded body, and a WebSocket."""
    post = b"POST /p?q=%20 HTTP/1.1\r\nHost: example.org\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\na\0\xff"
    chunked = b"HTTP/1.1 404 Not here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Trailer: t\r\n\r\n"
    return write_capture(
        tmp_path / "c.tlscap.zst",
        [(get("/"), answer(b"\x1f\x8bnot really", "Content-Encoding: gzip")), (post, chunked)],
        [
            (UPGRADE, SWITCHED),
            (b"\x81\x82\0\0\0\0hi", b"\x82\x03\1\2\3"),
            (b"\x88\x84\0\0\0\0\x03\xe8by", b"\x88\x02\x03\xe8"),
        ],
        [(get("/unanswered"), b"")],
    )


def exported(tmp_path: Path, *arguments: str) -> Path:
    path = tmp_path / "flows.mitm"
    path.unlink(missing_ok=True)
    done = CliRunner().invoke(
        inspect, [str(capture(tmp_path)), *arguments, "--mitmproxy", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def take(source: Path, target: Path) -> Result:
    done = CliRunner().invoke(import_, [str(source), "-o", str(target), "--force"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def facts(exchange: RecordedExchange) -> dict[str, Any]:
    """What must be the same after a way through mitmproxy's format."""
    messages = {}
    for name, message in (("request", exchange.request), ("response", exchange.response)):
        if message:
            framing = (b"content-length", b"transfer-encoding")
            fields = [one for one in message.headers if one[0].lower() not in framing]
            messages[name] = (fields, message.body, message.trailers, message.started_ns // 1000)
    return {
        "method": exchange.request.method,
        "url": exchange.url,
        "status": (exchange.response.status, exchange.response.reason) if exchange.response else None,
        "messages": [(one.side, one.kind, one.data, one.code) for one in exchange.messages][:3],
        **messages,
    }


@pytest.mark.parametrize("name", ["again.pcapng", "again.tlscap.zst"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    """Exchanges to flows and to exchanges again: the same."""
    take(exported(tmp_path), tmp_path / name)
    before = load(str(capture(tmp_path))).exchanges
    after = load(str(tmp_path / name)).exchanges
    assert len(before) == 4
    by_url = {exchange.url: exchange for exchange in after}
    for exchange in before:
        again = by_url[exchange.url]
        assert facts(again) == facts(exchange)
        assert (again.flow.sni, again.flow.local) == (exchange.flow.sni or "example.org", exchange.flow.local)
    assert len({exchange.flow for exchange in after}) == 3


def test_a_filter_and_existing_files(tmp_path: Path) -> None:
    path = exported(tmp_path, "status:404")
    assert path.read_bytes().count(b"status_code") == 1
    again = CliRunner().invoke(inspect, [str(capture(tmp_path)), "--mitmproxy", str(path)])
    assert getattr(again.exception, "exit_status", 0) == 5
    both = CliRunner().invoke(inspect, [str(capture(tmp_path)), "--mitmproxy", str(path), "--har"])
    assert getattr(both.exception, "exit_status", 0) == 2


# --- The real mitmproxy ---

PRINT = """
from mitmproxy import http
def response(flow): show(flow)
def error(flow): show(flow)
def show(flow):
    r, a = flow.request, flow.response
    print(repr((r.method, r.pretty_url, r.headers.fields, r.raw_content, a and (a.status_code, a.reason, a.headers.fields, a.raw_content,
        a.trailers and a.trailers.fields), flow.client_conn.peername, flow.server_conn.peername,
        flow.websocket and [(m.from_client, bytes(m.content)) for m in flow.websocket.messages])))
"""


def mitmdump(folder: Path, *arguments: str) -> str:
    assert MITMDUMP
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [MITMDUMP, "-q", "--set", f"confdir={folder / 'conf'}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr
    return done.stdout


@needs_mitmproxy
def test_mitmproxy_reads_it(tmp_path: Path) -> None:
    """Every flow, with its fields, bodies, addresses and messages."""
    script = tmp_path / "show.py"
    script.write_text(PRINT)
    output = mitmdump(tmp_path, "-ns", str(script), "-r", str(exported(tmp_path)))
    shown = [eval(line) for line in output.splitlines()]
    exchanges = load(str(capture(tmp_path))).exchanges
    assert len(shown) == len(exchanges)
    for exchange, (method, url, fields, body, response, client, server, messages) in zip(exchanges, shown, strict=True):
        assert (method, url, fields) == (exchange.request.method.decode(), exchange.url, exchange.request.headers)
        assert body == exchange.request.body
        assert exchange.flow.local
        assert tuple(client[:2]) == (exchange.flow.local.address, exchange.flow.local.port)
        assert tuple(server[:2]) == ("93.184.216.34", 443)
        if exchange.response:
            answered = exchange.response
            trailers = answered.trailers or None
            assert response == (answered.status, answered.reason.decode(), answered.headers, answered.body, trailers)
        if exchange.upgraded_to:
            assert messages == [(True, b"hi"), (False, b"\1\2\3")]


@needs_mitmproxy
def test_what_mitmproxy_wrote(tmp_path: Path) -> None:
    """mitmproxy reads a file and writes it anew: the same exchanges."""
    again = tmp_path / "again.mitm"
    mitmdump(tmp_path, "-nr", str(exported(tmp_path)), "-w", str(again))
    take(again, tmp_path / "a.pcapng")
    take(exported(tmp_path), tmp_path / "b.pcapng")
    one, other = (load(str(tmp_path / name)).exchanges for name in ("a.pcapng", "b.pcapng"))
    assert list(map(facts, one)) == list(map(facts, other))


# --- Versions, kinds and odd flows ---


def state(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Return the first flow of the capture with changes; ``request__path`` is ``["request"]["path"]``, and ``...`` removes."""
    result = flow_to_state(load(str(capture(tmp_path))).exchanges[0])
    for path, value in changes.items():
        *way, last = path.split("__")
        target = result
        for name in way:
            target = target[name]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return result


def items(*flows: dict[str, Any]) -> list[Item]:
    return list(FlowFile(io.BytesIO(b"".join(map(dump, flows)))).items())


def sent(direction: Direction, *flows: dict[str, Any]) -> bytes:
    return b"".join(item.data for item in items(*flows) if isinstance(item, Data) and item.direction is direction)


def test_older_versions(tmp_path: Path) -> None:
    """Names that changed: addresses, the moment of TLS, and no trailers, authority or WebSocket yet."""
    new = state(tmp_path)
    old = state(
        tmp_path, version=4, request__authority=..., request__trailers=..., response__trailers=..., websocket=...
    )
    for side, name in (("client_conn", "address"), ("server_conn", "ip_address")):
        old[side][name] = old[side].pop("peername")
        old[side]["timestamp_ssl_setup"] = old[side].pop("timestamp_tls_setup")
        old[side]["ssl_established"] = True
        del old[side]["id"]
    old["request"] |= {"first_line_format": "relative", "is_replay": False}
    one, other = (items(flow)[0] for flow in (old, new))
    assert isinstance(one, FlowOpened)
    assert isinstance(other, FlowOpened)
    assert (one.flow.local, one.flow.remote, one.time_ns) == (other.flow.local, other.flow.remote, other.time_ns)
    for direction in Direction:
        assert sent(direction, old) == sent(direction, new) != b""


@pytest.mark.parametrize(
    ("version", "shown"),
    [(3, "3"), (22, "22"), ([0, 18], "0.18"), ([3, 0, 0], "3.0"), (None, "None"), (b"x" * 99, "b'xxx")],
)
def test_unknown_versions(tmp_path: Path, version: Any, shown: str) -> None:
    with pytest.raises(UnsupportedVersionError, match=f"version {shown}") as caught:
        items(state(tmp_path, version=version))
    assert "mitmdump" in caught.value.hint


def test_other_kinds(tmp_path: Path) -> None:
    """TCP, UDP and DNS flows are counted and said."""
    path = tmp_path / "mixed.mitm"
    path.write_bytes(b"".join(dump(state(tmp_path, type=kind)) for kind in ("tcp", "http", "dns", "tcp")))
    assert "flows left out: 1 dns, 2 tcp" in take(path, tmp_path / "c.pcapng").stderr
    assert len(load(str(tmp_path / "c.pcapng")).exchanges) == 1


def test_http2_flows(tmp_path: Path) -> None:
    """They overlap, so each is a connection of its own; their authority becomes Host, and trailers stay."""
    flow = state(
        tmp_path, request__http_version=b"HTTP/2.0", request__headers=[[b"te", b"trailers"]], request__authority=b"example.org:8443",
        request__port=8443, response__trailers=[[b"grpc-status", b"0"]], response__headers=[[b"a", b"b"]],
    )  # fmt: skip
    file = FlowFile(io.BytesIO(dump(flow) * 2))
    assert sum(isinstance(item, FlowOpened) for item in file.items()) == 2
    assert list(file.notes) == [module.NOTE_VERSION]
    assert sent(Direction.OUTBOUND, flow) == b"GET / HTTP/1.1\r\nHost: example.org:8443\r\nte: trailers\r\n\r\n"
    answered = sent(Direction.INBOUND, flow)
    assert answered.startswith(b"HTTP/1.1 200 X\r\na: b\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert answered.endswith(b"\r\n0\r\ngrpc-status: 0\r\n\r\n")


def test_streamed_bodies(tmp_path: Path) -> None:
    """What mitmproxy did not keep is a hole of the size that is told."""
    flow = state(tmp_path, response__content=None, response__headers=[[b"Content-Length", b"1234"]])
    file = FlowFile(io.BytesIO(dump(flow)))
    assert [item.length for item in file.items() if isinstance(item, Gap)] == [1234]
    assert list(file.notes) == [module.NOTE_STREAMED]


@pytest.mark.parametrize(
    ("code", "by_client", "frame"),
    [
        (1000, True, b"\x88\x85\0\0\0\0\x03\xe8bye"),
        (1001, False, b"\x88\x05\x03\xe9bye"),
        (1005, False, b"\x88\0"),
        (1006, None, b""),
        (None, None, b""),
    ],
)
def test_how_a_websocket_ends(tmp_path: Path, code: int | None, by_client: bool | None, frame: bytes) -> None:
    """By whose frame, with which code, or without a frame; and back."""
    flow = state(tmp_path, response__status_code=101, response__content=b"")
    flow["websocket"] = {
        "messages": [],
        "close_code": code,
        "closed_by_client": by_client,
        "close_reason": "bye",
        "timestamp_end": 2e9,
    }
    direction = Direction.OUTBOUND if by_client else Direction.INBOUND
    assert sent(direction, flow).partition(b"\r\n\r\n")[2] == frame


def test_odd_flows(tmp_path: Path) -> None:
    """Nothing breaks out of a line; an IPv6 host has its brackets; times that make no sense are none."""
    flow = state(
        tmp_path, request__path=b"/a b\r\nX: y", request__host="::1", request__port=80, request__scheme=b"http",
        request__headers=[[b"X", b"a\r\nEvil: 1"]], request__timestamp_start=float("nan"), response__reason=b"O\nK",
    )  # fmt: skip
    assert sent(Direction.OUTBOUND, flow) == b"GET /a%20b%0D%0AX:%20y HTTP/1.1\r\nHost: [::1]\r\nX: a Evil: 1\r\n\r\n"
    assert sent(Direction.INBOUND, flow).startswith(b"HTTP/1.1 200 O K\r\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"request": None},
        {"request__method": b"G T"},
        {"request__host": "a b\0[", "request__scheme": b"ftp"},
        {"request__headers": [[b"a b", b"c"]]},
        {"request__headers": [["a", "b"]]},
        {"request__headers": b"x"},
        {"request__content": 17},
        {"request__port": "x"},
        {"response__status_code": 99},
        {"response": []},
        {"type": 5},
        {"response__status_code": 101, "websocket": {"messages": [[1]]}},
    ],
)
def test_wrong_flows(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The flow is named by its number."""
    with pytest.raises(CorruptError, match="flow 2: "):
        items(state(tmp_path), state(tmp_path, **changes))


# --- tnetstrings ---

tnet_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.binary(max_size=20) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(tnet_values)
def test_tnetstrings(value: Any) -> None:
    """What is written is what is read."""
    data = dump(value)
    colon = data.index(b":")
    assert int(data[:colon]) == len(data) - colon - 2
    assert parse(data[-1:], memoryview(data)[colon + 1 : -1]) == value


@pytest.mark.parametrize(
    "data",
    [
        b"5:hello", b"99999999999:x,", b"1:x?", b"4:nope!", b"1:x~", b"1:x#", b"50:" + b"1" * 50 + b"#", b"2:0:]", b"3:9:x]", b"4:1:a,}",
        b"6:1:1#0:~}", b"x", b":,", b"3:1:]]", b"1:\xff;", b"4:-1:x]", b"5: 1:x,]",
    ],
)  # fmt: skip
def test_wrong_tnetstrings(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(FlowFile(io.BytesIO(data)).items())


def test_deep_nesting() -> None:
    data = b"0:~"
    for _ in range(1000):
        data = b"%d:%s]" % (len(data), data)
    with pytest.raises(CorruptError, match="too deeply"):
        list(FlowFile(io.BytesIO(data)).items())


def test_truncated(tmp_path: Path) -> None:
    """What was whole is imported; a file that ends within its first flow is an error."""
    data = dump(state(tmp_path))
    file = FlowFile(io.BytesIO(data * 2 + data[:50]))
    assert sum(isinstance(item, FlowOpened) for item in file.items()) == 1  # both on one connection
    assert "inside flow 3" in file.truncated
    with pytest.raises(TruncatedError):
        list(FlowFile(io.BytesIO(data[:50])).items())


def test_is_flow_file(tmp_path: Path) -> None:
    assert is_flow_file(dump(state(tmp_path))[:40])
    for other in (b"", b'{"log":', b"interactions:\n", b"12:30 o'clock", b"\xd4\xc3\xb2\xa1"):
        assert not is_flow_file(other)


@settings(max_examples=200)
@given(st.binary(max_size=100), st.data())
def test_anything(noise: bytes, data: st.DataObject) -> None:
    """Whatever is in a file: items, or a `FormatError`."""
    whole = dump({"version": 21, "type": "http", "request": {"method": b"GET", "host": "a", "port": 80, "scheme": b"http", "path": b"/",
                  "headers": [[b"a", b"b"]], "content": b"", "timestamp_start": START_NS / 1e9}})  # fmt: skip
    place = data.draw(st.integers(0, len(whole)))
    for text in (noise, whole[:place] + noise + whole[place:], b"%d:%s}" % (len(noise), noise)):
        with contextlib.suppress(FormatError):
            list(FlowFile(io.BytesIO(text[5:]), text[:5]).items())
