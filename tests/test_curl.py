"""Requests as curl commands: what a shell and curl make of them is what was sent."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from helpers import GET, Wire, make_flow
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_har import H2_CALL, H2_GET, build, h2_items

from tlscap.export.curl import curl_command
from tlscap.http.bodies import Body
from tlscap.http.events import BodyData, Header, MessageEnd, RequestHead, Side
from tlscap.http.exchanges import Exchange
from tlscap.http.http1 import Http1Connection
from tlscap.model import Direction, Endpoint, Item, Role

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox sh") if shutil.which(shell.split()[0])]


# --- A server that remembers what it was sent ---


@dataclass
class Got:
    """A request as it arrived."""

    method: bytes = b""
    target: bytes = b""
    version: bytes = b""
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""


class Server:
    """Answers every request on its own connection with 200."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._socket.getsockname()[1])
        self.got: list[Got] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with closing(connection):
                connection.settimeout(10)
                self.got.append(received(connection))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def received(connection: socket.socket) -> Got:
    """Read one request."""
    observer, got = Http1Connection(), Got()
    while data := connection.recv(1 << 16):
        for event in observer.feed(Side.REQUEST, data, 0):
            if isinstance(event, RequestHead):
                got = Got(event.method, event.target, event.version, list(event.headers))
                if any(name.lower() == b"expect" for name, _ in event.headers):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, BodyData):
                got.body += event.data
            elif isinstance(event, MessageEnd):
                return got
    return got


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with closing(Server()) as running:
        yield running


def execute(command: str, shell: str = "sh") -> subprocess.CompletedProcess[bytes]:
    """Let a shell execute a command as it would be pasted."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [*shell.split()], input=command.encode() + b"\n", capture_output=True, env=environment, timeout=60
    )


def asked(request: bytes, endpoint: Endpoint) -> tuple[Exchange, Body | None]:
    """Return a request to a server as an exchange, and its body."""
    wire = Wire(make_flow(remote=endpoint))
    exchange, body, _, _ = build([wire.out(request)], limit=1 << 23)[0]
    return exchange, body


def repeated(server: Server, request: bytes, *, shell: str = "sh") -> Got:
    """Return what arrives when a request is repeated; its https becomes http."""
    command = curl_command(*asked(request, server.endpoint), address=True)
    count = len(server.got)
    done = execute(command.replace("https://", "http://", 1), shell)
    assert done.returncode == 0, (command, done.stderr)
    assert not re.search(rb"not found|unexpected|syntax", done.stderr), (command, done.stderr)
    assert len(server.got) == count + 1
    return server.got[-1]


def comparable(headers: Iterable[Header]) -> list[Header]:
    """Return fields without their order; of those that curl writes itself only what they say."""
    made = (b"host", b"content-length", b"accept", b"user-agent")
    fields = [(name.rstrip(), value) for name, value in headers]
    return sorted(
        (name.lower() if name.lower() in made else name, value)
        for name, value in fields
        if name.lower() != b"accept-encoding"
    )


def check(server: Server, request: bytes, *, shell: str = "sh") -> Got:
    """Check that a request arrives as it was sent."""
    exchange, body = asked(request, server.endpoint)
    assert exchange.request
    head = exchange.request.head
    got = repeated(server, request, shell=shell)
    assert (got.method, got.target, got.version) == (head.method, head.target, head.version)
    assert comparable(got.headers) == comparable(head.headers)
    assert got.body == (body.data if body else b"")
    return got


# --- Exactly the same ---

HOST = b"Host: a.example\r\n"


def post(body: bytes, *lines: bytes) -> bytes:
    fields = b"".join(line + b"\r\n" for line in lines)
    return b"POST /p HTTP/1.1\r\n" + HOST + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


REQUESTS: dict[str, bytes] = {
    "plain": GET,
    "a browser's": b'GET /a?b=c&d=%20 HTTP/1.1\r\nHost: h:8443\r\nUser-Agent: Mozilla/5.0 (X11; it\'s "me")\r\n'
    b"Accept: text/html,*/*;q=0.8\r\nAccept-Language: de\r\nCookie: a=b; c=$(touch /tmp/x)`id`\r\n\r\n",
    "what curl makes itself": b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    "no Host": b"GET / HTTP/1.0\r\nX: y\r\n\r\n",
    "default port": b"GET / HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    "upper case": b"GET / HTTP/1.1\r\nHost: A.Example\r\n\r\n",
    "odd Host": b"GET / HTTP/1.1\r\nHost: a b'c\r\n\r\n",
    "HEAD": b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "methods": b"m-search /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "PROPFIND": b"PROPFIND / HTTP/1.1\r\nHost: a\r\nDepth: 1\r\nContent-Length: 4\r\n\r\n<x/>",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
    "through a proxy": b"GET http://x/y?z HTTP/1.1\r\nHost: x\r\n\r\n",
    "odd target": b"GET /\xe9 \"'$(id)`\\%41#f HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots": b"GET /a/../b/./%2e%2E/c HTTP/1.1\r\nHost: a\r\n\r\n",
    "globs": b"GET /{a,b}/[1-9]?x[]=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no slash": b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty and repeated fields": b"GET / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nX: 1\r\nX: 2\r\nx: 2\r\nCookie: a\r\nCookie: b\r\n\r\n",
    "odd bytes": b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\xff\x01\x1b[31m\x7f\tend\r\nY: gr\xc3\xbcn \xe2\x80\xae\r\n\r\n",
    "for printf": b"GET / HTTP/1.1\r\nHost: a\r\nX: %s %% \\n \\\\ 'a' \x01 7\x077 \\0\r\n\r\n",
    "like an option": b"GET / HTTP/1.1\r\nHost: a\r\nX: @/etc/passwd\r\n-X: -o /tmp/x\r\n\r\n",
    "empty POST": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "POST without anything": b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET with body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "form": post(b"a=1&b=%20+", b"Content-Type: application/x-www-form-urlencoded"),
    "JSON": post(
        '{\n "a": "it\'s grün", "b": ["$HOME", "`id`", "\\n", "!!"]\n}\n'.encode(), b"Content-Type: application/json"
    ),
    "lines and tabs": post(
        b"--b\r\nA: 1%\r\n\r\n\tx\\n'\r\n--b--\r\n\n", b"Content-Type: multipart/form-data; boundary=b"
    ),
    "looks like a file": post(b"@/etc/passwd"),
    "EOF": post(b"EOF\nEOF\n"),
    "binary": post(bytes(range(256)) * 3, b"Content-Type: image/png"),
    "dashes": post(b"-n\t", b"-x: \x01"),
    "terminal": post(b"\x1b]0;title\x07"),
    "chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "chunked, empty": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked PUT": b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\x00\r\n0\r\n\r\n",
    "Expect": post(b"abc", b"Expect: 100-continue"),
    "repeated length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "upgrade": b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "corrupt coding": post(b"no gzip", b"Content-Encoding: gzip"),
}


@needs_curl
@pytest.mark.parametrize("case", REQUESTS)
def test_same(case: str, server: Server) -> None:
    """Each kind of request arrives as it was sent."""
    check(server, REQUESTS[case])


@needs_curl
@pytest.mark.parametrize("shell", SHELLS)
def test_shells(shell: str, server: Server) -> None:
    """Every shell understands the quotes, the escapes and the document."""
    for case in ("a browser's", "odd bytes", "for printf", "JSON", "lines and tabs", "dashes", "binary"):
        check(server, REQUESTS[case], shell=shell)


@needs_curl
@pytest.mark.parametrize("size", [1 << 10, (1 << 16) + 1, 3 << 20])
def test_long_bodies(size: int, server: Server) -> None:
    """Bodies that no argument could hold arrive, and without asking for leave first."""
    check(server, post(b"x" * size))


TOKEN = st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,6}", fullmatch=True)
OURS = {
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"accept-encoding",
    b"content-encoding",
    b"connection",
}
VALUE = st.binary(max_size=12).map(lambda value: re.sub(rb"[\0\r\n]", b"", value).strip(b" \t\x0b\x0c"))


@needs_curl
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=TOKEN,
    target=st.binary(max_size=12).map(lambda target: b"/" + re.sub(rb"[\0\r\n]", b"", target).strip()),
    fields=st.lists(st.tuples(TOKEN, VALUE).filter(lambda one: one[0].lower() not in OURS), max_size=4),
    body=st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode),
)
@example(method=b"GET", target=b"/\xff", fields=[(b"X", b"a\x80b")], body=b"\n\n")
@example(method=b"GET", target=b"/", fields=[(b"X", b"\xc2\xad")], body="\u202e'".encode())
def test_anything(method: bytes, target: bytes, fields: list[Header], body: bytes | None, server: Server) -> None:
    """Odd bytes anywhere arrive, with no harm on the way."""
    lines = [HOST.strip(), *(name + b": " + value for name, value in fields)]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    request = method + b" " + target + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
    exchange, _ = asked(request, server.endpoint)
    if exchange.request and exchange.request.head.method not in (b"HEAD", b"CONNECT"):
        check(server, request)


# --- Not quite the same ---


def command_for(request: bytes, *more: Item, address: bool = False, **changes: Any) -> str:
    wire = Wire(make_flow(**changes))
    exchange, body, _, _ = build([wire.out(request), *more])[0]
    return curl_command(exchange, body, address=address)


def test_command() -> None:
    """A command as people see it."""
    request = (
        b"POST /a?b HTTP/1.1\r\nHost: example.org\r\nUser-Agent: it's\r\nAccept: */*\r\nContent-Type: text/plain\r\n"
    )
    request += b"Accept-Encoding: gzip, br\r\nContent-Length: 5\r\n\r\nhello"
    assert command_for(request, address=True) == (
        "curl --http1.1 --compressed 'https://example.org/a?b' \\\n"
        "  --connect-to ::93.184.216.34:443 \\\n"
        "  -H 'User-Agent: it'\"'\"'s' \\\n"
        "  -H 'Content-Type: text/plain' \\\n"
        "  --data-raw hello"
    )
    assert command_for(b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n") == (
        "curl --http1.1 https://example.org/ \\\n  -H 'User-Agent: x'"
    )


@needs_curl
@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed_body(pack: Callable[[bytes], bytes], server: Server) -> None:
    """A body that was sent compressed is sent as it is, and that is said."""
    coding = b"gzip" if pack is gzip.compress else b"deflate"
    request = post(pack(b"hello"), b"Content-Encoding: " + coding)
    got = repeated(server, request)
    assert got.body == b"hello"
    assert (b"Content-Encoding", coding) not in got.headers
    assert "# its body was sent compressed" in command_for(request)


@needs_curl
def test_accept_encoding(server: Server) -> None:
    """Codings are curl's own choice, so that it can decode the answer; no coding at all stays."""
    asks = b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: %s\r\n\r\n"
    got = repeated(server, asks % b"br, gzip")
    assert any(name.lower() == b"accept-encoding" and b"gzip" in value for name, value in got.headers)
    got = repeated(server, asks % b"identity")
    assert (b"Accept-Encoding", b"identity") in got.headers


@needs_curl
def test_what_curl_can_not_send(server: Server) -> None:
    """What no curl can send is left out, and said where nothing of it can do harm."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nno colon\r\nX: a\0b\r\nY: \x0b\r\nLong: " + b"x" * 200_000
    command = command_for(request + b"\r\n\r\n")
    comments = [line for line in command.splitlines() if line.startswith("#")]
    assert len(comments) == 6
    assert sum("curl can't" in line for line in comments) == 4
    assert not set(command) & {"\0", "\x0b"}
    assert [value for name, value in repeated(server, request + b"\r\n\r\n").headers if name == b"Host"] == [b"a"]


def test_body_that_is_not_whole() -> None:
    """What is missing of a body is said."""
    wire = Wire()
    begin = post(b"hello")
    items: list[Item] = [wire.out(begin[:-4]), wire.gap(Direction.OUTBOUND, 2), wire.out(b"lo")]
    exchange, body, _, _ = build(items)[0]
    assert "# its body is incomplete: 2 bytes are missing" in curl_command(exchange, body)
    assert curl_command(exchange, body).endswith("--data-raw hlo")
    assert "# its body of 5 bytes is not here" in curl_command(exchange, None)
    exchange, body, _, _ = build([Wire().out(begin)], limit=2)[0]
    assert "# its body is cut: the first 2 of 5 bytes" in curl_command(exchange, body)
    exchange, body, _, _ = build([Wire().out(begin[:-1])])[0]
    assert "# the request was cut short" in curl_command(exchange, body)


@pytest.mark.parametrize("shell", SHELLS)
def test_no_request(shell: str) -> None:
    """Without a request there is a comment, which no shell minds."""
    exchange = build([Wire().into(b"HTTP/1.1 204 x\r\n\r\n")])[0][0]
    command = curl_command(exchange, None)
    assert command == "# the request of exchange 1 was not seen"
    assert execute(command, shell).returncode == 0


def test_notes() -> None:
    """What else is worth knowing."""
    assert "# the TLS handshake named example.org" in command_for(GET)
    assert "# the server's address is not known" in command_for(GET, address=True, remote=None)
    assert "# the server's name and address are not known" in command_for(
        b"GET / HTTP/1.0\r\n\r\n", sni="", role=Role.UNKNOWN
    )
    assert "--http0.9" in command_for(b"GET /x\r\n")
    wire = Wire(make_flow(role=Role.SERVER, local=Endpoint("2001:db8::1", 8443), sni=""))
    exchange, body, _, _ = build([wire.into(GET)])[0]
    assert "--connect-to '::[2001:db8::1]:8443'" in curl_command(exchange, body, address=True)
    exchange, body, _, _ = build([wire.into(b"GET / HTTP/1.0\r\n\r\n")])[0]
    assert "'https://[2001:db8::1]:8443/'" in curl_command(exchange, body)


def test_nothing_breaks_out() -> None:
    """No control character gets into a command, and a comment stays one line."""
    request = b"GET /\x1b\x85 HTTP/1.1\r\nHost: a\r\nX: \x1b]0;\x07\xe2\x80\xae\r\nbad name: \x9b\r\n"
    request += b"Content-Length: 3\r\n\r\n\x1b\r\x9b"
    command = command_for(request, sni="evil\nrm -rf")
    assert all(character == "\n" or character.isprintable() for character in command)
    assert [line[:6] for line in command.splitlines() if line.startswith("#")] == ["# the ", "# left"]


# --- HTTP/2 ---


def certificate(folder: Path) -> ssl.SSLContext:
    files = [str(folder / name) for name in ("key.pem", "cert.pem")]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=h2.example"
    subprocess.run([*command.split(), "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    context.set_alpn_protocols(["h2"])
    return context


def serve_h2(listener: socket.socket, context: ssl.SSLContext, got: list[Got]) -> None:
    """Answer one request in HTTP/2."""
    plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as connection:
        connection.settimeout(10)
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        http.initiate_connection()
        connection.sendall(http.data_to_send())
        one = Got()
        while data := connection.recv(1 << 16):
            for event in http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    one.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                elif isinstance(event, h2.events.DataReceived):
                    one.body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    got.append(one)
                    http.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
            connection.sendall(http.data_to_send())


@needs_curl
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize(("head", "sent"), [(H2_GET, b""), (H2_CALL, b"\0\0\0\0\2\x08\x01")])
def test_http2(head: list[tuple[str, str]], sent: bytes, tmp_path: Path) -> None:
    """HTTP/2 is repeated in HTTP/2: the same fields, and the body."""
    got: list[Got] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve_h2, args=(listener, certificate(tmp_path), got))
        thread.start()
        flow = make_flow(alpn="h2", sni="h2.example", remote=Endpoint("127.0.0.1", listener.getsockname()[1]))
        exchange, body, _, _ = build(h2_items(head, [(":status", "200")], b"", sent, flow=flow))[0]
        command = curl_command(exchange, body, address=True)
        assert "#" not in command
        done = execute(command.replace("curl ", "curl -k ", 1))
        thread.join()
    assert done.returncode == 0, done.stderr
    (one,) = got
    assert sorted(one.headers) == sorted((name.encode(), value.encode()) for name, value in head)
    assert one.body == sent


def test_pushed() -> None:
    """A promised request is one that the client did not send."""
    exchange = build(h2_items(H2_GET, [(":status", "200")]))[0][0]
    assert exchange.request
    head = exchange.request.head
    exchange.request.head = RequestHead(
        **{name: getattr(head, name) for name in head.__dataclass_fields__} | {"pushed": True}
    )
    assert curl_command(exchange, None).startswith("# the server promised this request")
