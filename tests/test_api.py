"""The Python API: ``tlscap.open``."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import samples
from samples import IN, OUT, data

import tlscap
from tlscap.errors import CorruptError, FormatError, OutputError
from tlscap.filters import FilterError
from tlscap.http.content import ContentError
from tlscap.model import Direction
from tlscap.rebuild import PcapngBuilder
from tlscap.sidecar import SidecarWriter

JSON = b'{"answer": 42}'
WS = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n"


def records() -> bytes:
    """Return two connections, their calls interleaved: three exchanges, one of them a WebSocket."""
    packed = gzip.compress(JSON, mtime=0)
    asked = b"POST /one HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 4\r\n\r\nasks"
    answered = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        % len(packed)
        + packed
    )
    again = b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=latin-1\r\nContent-Length: 4\r\n\r\ncaf\xe9"
    upgrade = b"GET /ws HTTP/1.1\r\nHost: b\r\nUpgrade: websocket\r\n\r\n"
    parts = [
        samples.start(),
        samples.process(b"curl", b"curl"),
        *(samples.opened(conn=conn, ssl=conn * 64) for conn in (1, 2)),
        data(asked, 0, OUT, conn=1),
        data(upgrade, 0, OUT, conn=2),
        data(answered[:70], 0, IN, conn=1),
        data(WS + b"\x81\x02hi", 0, IN, conn=2),
        data(answered[70:], 70, IN, conn=1),
        data(b"\x81\x83\0\0\0\0you", len(upgrade), OUT, conn=2),
        data(again, len(asked), OUT, conn=1),
        data(missing, len(answered), IN, conn=1),
        samples.closed(len(answered) + len(missing), len(asked) + len(again), conn=1),
        samples.closed(len(WS) + 4, len(upgrade) + 9, conn=2),
        samples.end(),
    ]
    return b"".join(parts)


@pytest.fixture(params=["sidecar", "pcapng"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Either file of the same recording."""
    if request.param == "sidecar":
        name = tmp_path / "x.tlscap.zst"
        stream = io.BytesIO()
        writer = SidecarWriter(stream)
        writer.write(records())
        writer.close()
        name.write_bytes(stream.getvalue())
    else:
        name = tmp_path / "x.pcapng"
        builder = PcapngBuilder()
        name.write_bytes(b"".join([*builder.feed(records()), *builder.finish()]))
    return str(name)


def test_exchanges(path: str) -> None:
    """What was asked and answered, with bodies decoded when they are asked for."""
    with tlscap.open(path) as capture:
        one, two, socket = sorted(capture, key=lambda exchange: exchange.id if exchange.flow.id == 1 else 9)
        assert [exchange.method for exchange in (one, two, socket)] == ["POST", "GET", "GET"]
        assert one.request is not None
        assert one.response is not None
        assert (one.url, one.status, one.protocol, one.complete) == ("https://a/one", 200, "http/1.1", True)
        assert one.request.body == b"asks"
        assert one.response.body == JSON
        assert one.response.json() == {"answer": 42}
        assert b"".join(one.response.iter_body()) == JSON
        assert gzip.decompress(b"".join(one.response.iter_body(raw=True))) == JSON
        assert one.response.read_body(5).data == JSON[:5]
        assert one.process.comm == "curl"
        assert one.duration is not None
        assert two.response is not None
        assert two.response.text == "café"
        assert two.response.reason == "Not Found"
        assert two.to_dict()["status"] == 404


def test_headers(path: str) -> None:
    """Any case, repeated fields, and the bytes themselves."""
    capture = tlscap.open(path)
    exchange = next(iter(capture.exchanges("path:/one")))
    assert exchange.request is not None
    headers = exchange.request.headers
    assert headers["x-TWO"] == "1, 2"
    assert headers.all("X-Two") == ["1", "2"]
    assert list(headers) == ["host", "x-two", "content-length"]
    assert len(headers) == 3
    assert "cookie" not in headers
    assert headers.raw[1] == (b"X-Two", b"1")
    with pytest.raises(KeyError):
        headers["cookie"]


def test_messages(path: str) -> None:
    """Both sides of a WebSocket in the order of time."""
    (exchange,) = tlscap.open(path).exchanges("upgraded:websocket")
    assert [(message.side.value, message.kind, message.data) for message in exchange.messages()] == [
        ("response", "text", b"hi"),
        ("request", "text", b"you"),
    ]


def test_filters(path: str) -> None:
    """A filter, a function, a filter on bodies, a wrong filter."""
    capture = tlscap.open(path)
    assert [exchange.status for exchange in capture.exchanges("status:4xx")] == [404]
    assert [exchange.status for exchange in capture.exchanges(lambda exchange: exchange.status == 101)] == [101]
    assert [exchange.status for exchange in capture.exchanges('resp.body~"answer.: 42"')] == [200]
    with pytest.raises(FilterError):
        capture.exchanges("status:")


def test_streams(path: str) -> None:
    """The bytes of a connection as they passed, also from within an iteration."""
    capture = tlscap.open(path)
    for flow in capture.flows():
        sent = b"".join(piece.data for piece in capture.stream(flow) if piece.direction is Direction.OUTBOUND)
        assert sent.startswith(b"POST /one" if flow.id == 1 else b"GET /ws")
    assert {type(item).__name__ for item in capture.events()} >= {"FlowOpened", "Data", "FlowClosed"}


def test_packets(path: str) -> None:
    """Scapy reads from either file what it reads from the pcapng."""
    from scapy.layers.inet import TCP

    packets = list(tlscap.open(path).packets())
    assert packets[0][TCP].flags == "S"
    assert (packets[0].comments or [b""])[0].startswith(b"tlscap flow=1 ")
    assert float(packets[0].time) > 1e9
    assert any(b"POST /one" in bytes(packet[TCP].payload) for packet in packets)


def test_holes_and_broken_codings(tmp_path: Path) -> None:
    """What is missing is said, and what can't be decoded is given as it was."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 10\r\n\r\nno gzip..."
    holed = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
    parts = [
        samples.start(),
        samples.opened(),
        data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, OUT),
        data(answer[:-3], 0, IN),
        samples.closed(len(answer), 27),
        samples.opened(conn=77, ssl=1),
        data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, OUT, conn=77),
        data(holed[:-6], 0, IN, conn=77),
        data(holed[-2:], len(holed) - 2, IN, conn=77),
        samples.closed(len(holed), 27, conn=77),
        samples.end(),
    ]
    name = tmp_path / "x.tlscap.zst"
    with name.open("wb") as stream:
        writer = SidecarWriter(stream)
        writer.write(b"".join(parts))
        writer.close()
    broken, holed_one = tlscap.open(str(name))
    assert broken.response is not None
    assert broken.response.body == b"no gzip"
    assert broken.response.read_body().encoded
    with pytest.raises(ContentError):
        list(broken.response.iter_body())
    assert holed_one.response is not None
    assert (holed_one.complete, holed_one.response.missing) == (False, 4)
    assert holed_one.response.body == b"012389"
    assert holed_one.response.read_body().gaps[0][:2] == (4, 4)


@pytest.mark.parametrize(("content", "error"), [(b"", FormatError), (b"GIF89a" * 9, CorruptError), (None, OutputError)])
def test_errors(tmp_path: Path, content: bytes | None, error: type[Exception]) -> None:
    """Files that are none: errors with a line for people."""
    name = tmp_path / "x"
    if content is not None:
        name.write_bytes(content)
    with pytest.raises(error):
        list(tlscap.open(str(name)))


@pytest.mark.parametrize("what", ["tlscap.live.session", "tlscap"])
def test_recording_imports_no_reader(what: str) -> None:
    """The recorder starts fast: nothing that reads captures comes with it."""
    code = f"import {what}, sys; print([name for name in sys.modules if name in ('tlscap.api', 'tlscap.filters', 'scapy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_everything_is_there() -> None:
    """Every name that the package announces exists; no other does."""
    assert all(getattr(tlscap, name) for name in tlscap.__all__)
    wrong: Callable[[], object] = lambda: tlscap.closed  # noqa: E731
    with pytest.raises(AttributeError):
        wrong()
