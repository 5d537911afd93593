"""Cassettes: what vcrpy recorded becomes exchanges again, old and odd ones too; and hostile files are one clear error."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import vcr  # type: ignore[import-untyped]
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tlscap.cli.import_ import import_
from tlscap.errors import CorruptError, FormatError, TruncatedError
from tlscap.importing import vcr as module
from tlscap.importing.har import is_har
from tlscap.importing.vcr import CassetteFile, is_cassette
from tlscap.model import Data, FlowOpened, Item
from tlscap.replay.recording import RecordedExchange, load


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        sent = self.rfile.read(length)
        body = (
            gzip.compress(b"packed " * 50)
            if self.path == "/gzip"
            else bytes(range(256))
            if self.path == "/binary"
            else b"text " + sent
        )
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def imported(tmp_path: Path, cassette: Path, name: str = "c.pcapng") -> tuple[list[RecordedExchange], str]:
    done = CliRunner().invoke(import_, [str(cassette), "-o", str(tmp_path / name)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return load(str(tmp_path / name)).exchanges, done.stderr


def record(url: str, path: Path, **how: Any) -> None:
    """Let vcrpy record some requests."""
    with vcr.VCR(**how).use_cassette(str(path)):
        for what in ("/text?x=%20y", "/gzip", "/missing"):
            try:
                urllib.request.urlopen(url + what).read()
            except urllib.error.HTTPError as error:
                error.read()
        request = urllib.request.Request(url + "/post", data=b"a=b\xff", headers={"X-A": "1"})
        urllib.request.urlopen(request).read()
        if how.get("serializer") != "json":  # which can't hold bytes
            urllib.request.urlopen(url + "/binary").read()


@pytest.mark.parametrize("name", ["c.pcapng", "c.tlscap.zst"])
@pytest.mark.parametrize("how", [{}, {"decode_compressed_response": True}])
def test_what_vcrpy_wrote(tmp_path: Path, url: str, how: dict[str, Any], name: str) -> None:
    """vcrpy is the judge: methods, URLs, fields, statuses and bodies are those of its cassette."""
    path = tmp_path / "cassette.yaml"
    record(url, path, **how)
    exchanges, said = imported(tmp_path, path, name)
    assert "imported 1 flow" in said
    judge = vcr.cassette.Cassette.load(path=str(path))
    assert len(exchanges) == len(judge) == 5
    for exchange, asked, answered in zip(exchanges, judge.requests, judge.responses, strict=True):
        response = exchange.response
        assert exchange.complete
        assert response
        assert exchange.request.method.decode() == asked.method
        assert exchange.url == asked.uri
        assert exchange.request.body == (asked.body or b"")
        assert (response.status, response.reason.decode()) == (
            answered["status"]["code"],
            answered["status"]["message"],
        )
        assert response.body == answered["body"]["string"]
        names = {key.lower(): value for key, value in answered["headers"].items()}
        assert [value.decode() for value in response.values(b"set-cookie")] == names["set-cookie"]
    assert exchanges[1].response
    assert exchanges[1].response.decoded() == b"packed " * 50
    assert exchanges[1].response.encodings == ("" if how else "gzip")


def test_json_cassette(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vcrpy's other form; a HAR file begins the same."""
    path = tmp_path / "cassette.json"
    with vcr.VCR(serializer="json").use_cassette(str(path)):
        urllib.request.urlopen(url + "/text").read()
    (exchange,), _ = imported(tmp_path, path)
    assert exchange.response
    assert exchange.response.body == b"text "
    assert is_har(path.read_bytes())
    assert not is_cassette(b'{"log": {"entries": []}}')


INTERACTION: dict[str, Any] = {
    "request": {"method": "GET", "uri": "https://example.org/a", "body": None, "headers": {"Accept": ["*/*"]}},
    "response": {"status": {"code": 200, "message": "OK"}, "headers": {"A": ["1", "2"]}, "body": {"string": "hello"}},
}


def document(**changes: Any) -> bytes:
    """Return a cassette of one interaction with changes; ``request__uri`` is ``["request"]["uri"]``."""
    entry = json.loads(json.dumps(INTERACTION))
    for path, value in changes.items():
        *way, last = path.split("__")
        target = entry
        for name in way:
            target = target[name]
        target[last] = value
    return yaml.safe_dump({"interactions": [entry], "version": 1}).encode()


def items(data: bytes, head: int = 0) -> list[Item]:
    return list(CassetteFile(io.BytesIO(data[head:]), data[:head]).items())


def sent(data: bytes) -> list[bytes]:
    """Return what was sent and answered, in turn."""
    return [item.data for item in items(data) if isinstance(item, Data)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"request__body": "text ü"}, "text ü".encode()),
        ({"request__body": b"\xff\0"}, b"\xff\0"),
        ({"request__body": {"string": "a", "encoding": "utf-8"}}, b"a"),
        ({"request__body": {"base64_string": base64.b64encode(b"\xfe").decode()}}, b"\xfe"),
        ({"request__body": {"state": [b"file", 0, None]}}, b"file"),
        ({"request__body": [b"ite", "rator"]}, b"iterator"),
        ({"request__body": "null"}, b"null"),
        ({"request__body": "12"}, b"12"),
    ],
)
def test_bodies(changes: dict[str, Any], expected: bytes) -> None:
    """All ways in which bodies are and were written."""
    head, body, *_ = sent(document(**changes))
    assert body == expected
    assert b"Content-Length: %d\r\n" % len(expected) in head


def test_no_body() -> None:
    """Nothing is nothing, in each of YAML's spellings; values are never anything but text."""
    for nothing in (b"", b"~", b"null"):
        data = document().replace(b"body: null", b"body: " + nothing)
        assert len(sent(data)) == 3
    data = document(request__headers={"If-None-Match": ["X"]}).replace(b"- X", b"- 2014-01-01")
    assert b"If-None-Match: 2014-01-01\r\n" in sent(data)[0]
    assert b"If-None-Match: 0o17\r\n" in sent(data.replace(b"2014-01-01", b"0o17"))[0]


def test_bodies_that_are_decoded() -> None:
    """What is not in the coding that its field names loses the field, and that is said; what is, or can't be told, keeps it."""
    fields = {"Content-Encoding": ["gzip"], "Content-Length": ["99"]}
    for body, coding, stays in (
        (b"plain", "gzip", False),
        (gzip.compress(b"x"), "gzip", True),
        (b"plain", "odd", True),
        (b"", "gzip", True),
    ):
        fields["Content-Encoding"] = [coding]
        file = CassetteFile(io.BytesIO(document(response__headers=fields, response__body={"string": body})))
        head = [item.data for item in file.items() if isinstance(item, Data)][1]
        assert (b"Content-Encoding" in head) is stays
        assert (module.NOTE_CODING in file.notes) is not stays
        assert b"Content-Length: %d\r\n" % len(body) in head


def test_packets_become_no_sidecar(tmp_path: Path) -> None:
    """What is not HTTP would be lost: refused."""
    path = tmp_path / "c.pcap"
    path.write_bytes(b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(8) + b"\0\0\4\0\1\0\0\0")
    done = CliRunner().invoke(import_, [str(path), "-o", str(tmp_path / "c.tlscap.zst")])
    assert getattr(done.exception, "exit_status", 0) == 2
    assert sorted(os.listdir(tmp_path)) == ["c.pcap"]


OLD = b"""- request: !!python/object:vcr.request.Request
    body: null
    headers: !!python/object/apply:__builtin__.frozenset
    - - !!python/tuple [Accept, '*/*']
      - !!python/tuple [X-B, c]
    host: example.org
    method: GET
    path: /old
    port: 8443
    protocol: https
  response:
    body: {string: !!python/unicode "hello"}
    headers: ["Content-Type: text/plain\\r\\n", "Server: x\\r\\n"]
    status: {code: 200, message: OK}
"""


def test_the_old_format() -> None:
    """Before vcrpy 1.0: a list, with Python's own tags, which mean nothing here."""
    assert is_cassette(OLD)
    head, answer, body = sent(OLD)
    assert head == b"GET /old HTTP/1.1\r\nHost: example.org:8443\r\nAccept: */*\r\nX-B: c\r\n\r\n"
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: x\r\nContent-Length: 5\r\n\r\n"
    assert body == b"hello"


def test_betamax_and_ruby() -> None:
    """The same idea of others: other names, and times."""
    entry = {
        "request": {
            "method": "get",
            "uri": "http://example.org/",
            "body": {"encoding": "UTF-8", "string": ""},
            "headers": {"A": "b"},
        },
        "response": {
            "status": {"code": 200, "message": "OK"},
            "headers": {},
            "body": {"base64_string": "aGk="},
            "url": "x",
        },
        "recorded_at": "2026-11-20T18:00:00",
    }
    data = json.dumps({"recorded_with": "betamax/0.8", "http_interactions": [entry, entry]}).encode()
    assert is_cassette(data)
    assert sent(data)[2] == b"hi"
    opened = items(data)[0]
    assert isinstance(opened, FlowOpened)
    assert opened.time_ns == 1_795_197_600_000_000_000


def test_times() -> None:
    """A Date counts; times never go back; where there are none they are made up, which is said."""
    entries = [json.loads(json.dumps(INTERACTION)) for _ in range(3)]
    entries[1]["response"]["headers"] = {"date": ["Fri, 20 Nov 2026 18:00:00 GMT"]}
    file = CassetteFile(io.BytesIO(yaml.safe_dump({"interactions": entries}).encode()))
    times = [item.time_ns for item in file.items()]
    assert times == sorted(times)
    assert 1_795_197_600_000_000_000 in times
    assert list(file.notes) == [module.NOTE_TIMES]


def test_aliases() -> None:
    """PyYAML writes what is there twice as an alias."""
    shared = {"X-Shared": ["1"]}
    data = document(request__headers=shared, response__headers=shared)
    twice = {
        "interactions": [
            {
                "request": {**INTERACTION["request"], "headers": shared},
                "response": {**INTERACTION["response"], "headers": shared},
            }
        ]
        * 2
    }
    aliased = yaml.dump(twice, Dumper=yaml.SafeDumper).encode()
    assert b"*id" in aliased
    assert sent(aliased) == sent(data) * 2


# --- Hostile and broken files ---


def test_alias_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file can't become a large capture, nor take exponential time."""
    monkeypatch.setattr(module, "MOST_REPEATED", 1 << 20)
    bomb = (
        b"interactions:\n- &a\n  request: {method: GET, uri: 'http://a/'}\n  response: {status: {code: 200}, body: '%s'}\n"
        % (b"x" * 100_000)
    )
    with pytest.raises(CorruptError, match="aliases"):
        items(bomb + b"- *a\n" * 100)
    laughs = b"a0: &a0 lol\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 30)
    )
    with pytest.raises(CorruptError, match="no text"):
        items(
            laughs
            + b"interactions: [{request: {method: GET, uri: 'http://a/', body: *a29}, response: {status: {code: 200}}}]"
        )
    monkeypatch.setattr(module, "MOST_PENDING", 1 << 20)
    many = b"x: &x '%s'\ninteractions: [{request: {method: GET, uri: 'http://a/', body: [%s]}, response: {status: {code: 200}}}]"
    with pytest.raises(CorruptError, match="longer than"):
        items(many % (b"x" * 50_000, b", ".join([b"*x"] * 100)))


@pytest.mark.parametrize(
    "data",
    [
        b"interactions: " + b"[" * 1_000_000,
        b"interactions:\n" + b"".join(b" " * n + b"-\n" for n in range(1, 500)),
        b"x: &x [*x]\ninteractions: []",
        b"interactions: [!!python/object/apply:os.system ['false']]",
        b"version: 1\n",
        b"interactions: {}\n",
        b"interactions: [1]",
        b"- request: {}\n",
        b"interactions:\n- request: {method: 'G T', uri: 'http://a/'}\n  response: {status: {code: 200}}",
        b"interactions: [\x00]",
        b"interactions: ['\xff']",
        b"interactions: [!!binary 'a']",
        b"interactions: [}",
        document(request__uri="ftp://x/"),
        document(response__status={"code": 2000}),
        document(response__headers={"a b": ["x"]}),
        document(response__headers={"a": [{"b": "c"}]}),
        document(response__body=17.5).replace(b"'17.5'", b"{a: {}}").replace(b"17.5", b"[{}]"),
        b"",
    ],
)
def test_hostile(data: bytes) -> None:
    """One clear error: no crash of the C library, nothing executed."""
    with pytest.raises(FormatError):
        items(data)


def test_truncated() -> None:
    """What was whole is imported, and where the file ends is said."""
    data = b"interactions:\n" + b"".join(
        b"- {request: {method: GET, uri: 'http://a/%d'}, response: {status: {code: 200}}}\n" % n for n in range(3)
    )
    for cut in (3, 30, 50):
        file = CassetteFile(io.BytesIO(data[:-cut]))
        assert sum(isinstance(item, Data) for item in file.items()) == 4
        assert "inside its YAML" in file.truncated
    for start in (b'{"interactions": [', b"interactions: [{a: 'b"):
        with pytest.raises(TruncatedError):
            items(start)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 50))
def test_anything(noise: bytes, place: int) -> None:
    """Whatever is in a file: exchanges, or a `FormatError`."""
    data = document()
    for text in (noise, data[: place * 5] + noise + data[place * 5 :], b"interactions: [" + noise):
        with contextlib.suppress(FormatError):
            items(text, 10)
