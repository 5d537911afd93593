"""``tlscap replay send`` against real servers: what goes over the wire, what counts as a difference, and what is said."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trustme
from captures import Talk, answer, get, write_capture
from click.testing import CliRunner, Result

from tlscap.cli.replay_send import DIFFERENT, send

Answers = Callable[["Handler"], bytes]


class Handler(BaseHTTPRequestHandler):
    """Keeps what it was sent, and answers as the test says, in bytes."""

    protocol_version = "HTTP/1.1"
    server: Server
    body: bytes

    def handle_one_request(self) -> None:
        self.close_connection = False
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            self.close_connection = True
            return
        head = b"".join(lines)
        fields = [line.split(b":", 1) for line in lines[1:]]
        headers = {name.lower(): value.strip() for name, value in fields}
        self.body = self.rfile.read(int(headers.get(b"content-length", 0)))
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.path = lines[0].split()[1].decode()
        self.head = head
        self.server.seen.append((head, self.body, self.client_address[1]))
        self.wfile.write(self.server.answers(self))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.seen: list[tuple[bytes, bytes, int]] = []
        """Heads, bodies and the client's port."""
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def heads(self) -> list[bytes]:
        return [head for head, _, _ in self.seen]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], Server]]:
    servers: list[Server] = []

    def start(answers: Answers) -> Server:
        server = Server(answers)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Answers], Server]


def run(tmp_path: Path, url: str, *arguments: str, talks: Sequence[Talk]) -> Result:
    path = write_capture(tmp_path / "recorded.tlscap.zst", *talks)
    return CliRunner().invoke(send, [str(path), "--to", url, *arguments], catch_exceptions=False)


def post(path: str, body: bytes, *fields: str) -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"POST {path} HTTP/1.1\r\nHost: example.org\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


# --- What goes out ---


def test_requests_go_out_as_recorded(tmp_path: Path, serve: Serve) -> None:
    """Names, case, order, repeated fields and coded bodies; Host is today's, and nothing is added."""
    server = serve(lambda _: answer(b"ok"))
    packed = gzip.compress(b"a body")
    recorded = post(
        "/a%20b?x=%2f&y", packed, "X-Second: 2", "accept: */*", "X-Twice: a", "X-Twice: b", "Content-Encoding: gzip"
    )
    done = run(tmp_path, server.url, talks=[[(recorded, answer(b"ok"))]])
    assert done.exit_code == 0, done.output
    ((head, body, _),) = server.seen
    assert head == recorded.split(b"\r\n\r\n")[0].replace(b"example.org", server.url[7:].encode()) + b"\r\n"
    assert body == packed
    assert done.stderr == "1 answer the same\n"


def test_odd_methods(tmp_path: Path, serve: Serve) -> None:
    """Methods are case-sensitive; an OPTIONS of the whole server has no path."""
    server = serve(lambda _: answer(b""))
    odd = [b"MKCOL /a HTTP/1.1\r\nHost: example.org\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: example.org\r\n\r\n"]
    done = run(tmp_path, server.url + "/v2", "-v", talks=[[(request, answer(b"")) for request in odd]])
    assert done.exit_code == 0, done.output
    assert [head.split(b" HTTP")[0] for head in server.heads] == [b"MKCOL /v2/a", b"OPTIONS *"]


def test_chunked_requests(tmp_path: Path, serve: Serve) -> None:
    """A chunked body arrives whole, chunked."""
    recorded = (
        b"PUT /x HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    server = serve(lambda _: answer(b""))
    assert run(tmp_path, server.url, talks=[[(recorded, answer(b""))]]).exit_code == 0
    ((head, body, _),) = server.seen
    assert b"Transfer-Encoding: chunked\r\n" in head
    assert b"ontent-" not in head
    assert body == b"abcde"


def test_headers_by_option(tmp_path: Path, serve: Serve) -> None:
    """Fields are replaced, added and left out; a recorded host is kept on request."""
    server = serve(lambda _: answer(b""))
    talk = [(get("/", "Authorization: old", "X-Gone: 1", "authorization: older"), answer(b""))]
    options = ("--header", "Authorization: new", "--header", "X-New: a: b", "--remove-header", "x-gone", "--keep-host")
    assert run(tmp_path, server.url, *options, talks=[talk]).exit_code == 0
    assert server.heads == [b"GET / HTTP/1.1\r\nHost: example.org\r\nAuthorization: new\r\nX-New: a: b\r\n"]


def test_a_path_comes_before(tmp_path: Path, serve: Serve) -> None:
    """The path of --to is put before the recorded ones, also those that a proxy was asked for."""
    server = serve(lambda _: answer(b""))
    absolute = b"GET http://example.org/x?y HTTP/1.1\r\nHost: example.org\r\n\r\n"
    assert run(tmp_path, server.url + "/v2/", talks=[[(absolute, answer(b""))]]).exit_code == 0
    assert server.heads[0].startswith(b"GET /v2/x?y HTTP/1.1\r\n")


@pytest.mark.parametrize("concurrency", [1, 4])
def test_order_and_connections(tmp_path: Path, serve: Serve, concurrency: int) -> None:
    """What was on one connection is so again, in order."""
    server = serve(lambda handler: answer(handler.path.encode()))
    talks = [[(get(f"/{conn}/{n}"), answer(b"/%d/%d" % (conn, n))) for n in range(4)] for conn in range(3)]
    done = run(tmp_path, server.url, "--concurrency", str(concurrency), talks=talks)
    assert done.exit_code == 0, done.output
    by_port: dict[int, list[bytes]] = {}
    for head, _, port in server.seen:
        by_port.setdefault(port, []).append(head.split()[1])
    assert sorted(by_port.values()) == [[b"/%d/%d" % (conn, n) for n in range(4)] for conn in range(3)]
    if concurrency == 1:
        assert [head.split()[1] for head in server.heads] == [
            b"/%d/%d" % (conn, n) for conn in range(3) for n in range(4)
        ]


def test_requests_run_side_by_side(tmp_path: Path, serve: Serve) -> None:
    """Each of two requests is answered when both are there: with one at a time that never happens."""
    both = threading.Barrier(2, timeout=60)

    def meet(_: Handler) -> bytes:
        both.wait()
        return answer(b"")

    server = serve(meet)
    talks = [[(get(f"/{conn}"), answer(b""))] for conn in range(2)]
    assert run(tmp_path, server.url, "--concurrency", "2", talks=talks).exit_code == 0


def test_times(tmp_path: Path, serve: Serve) -> None:
    """Recorded pauses pass again: two requests 2 ms apart, 500 times slower: the second comes after a second."""
    import time

    moments: list[float] = []

    def note(_: Handler) -> bytes:
        moments.append(time.monotonic())
        return answer(b"")

    server = serve(note)
    talk = [(get("/1"), answer(b"")), (get("/2"), answer(b""))]
    begun = time.monotonic()
    assert run(tmp_path, server.url, "--timing", "x0.002", talks=[talk]).exit_code == 0
    assert moments[1] - begun >= 1


def test_a_reader_that_goes_away(tmp_path: Path, serve: Serve) -> None:
    """As with any filter: no traceback, whether one request is under way or several."""
    server = serve(lambda _: answer(b"new"))
    path = write_capture(tmp_path / "recorded.tlscap.zst", *([(get(f"/{n}"), answer(b"old"))] for n in range(50)))
    for concurrency in ("1", "8"):
        script = f"import sys; sys.argv = ['tlscap', 'replay', 'send', {str(path)!r}, '--to', {server.url!r}, '--json', '--concurrency', '{concurrency}']; from tlscap.cli.main import main; main()"
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
        )
        os.close(writer)
        assert "Traceback" not in done.stderr
        assert "rror" not in done.stderr


# --- What is compared ---


def test_exactly_what_changed_is_reported(tmp_path: Path, serve: Serve) -> None:
    """One answer of three differs: status 7, and its difference by place."""
    pages = {f"/{n}": b'{"items": [{"id": 1}, {"id": %d}], "at": 5}' % n for n in range(3)}
    kind = "Content-Type: application/json"
    talk = [(get(path), answer(body, kind)) for path, body in pages.items()]
    pages["/1"] = b'{"items": [{"id": 1}, {"id": 9}], "at": 6}'
    server = serve(lambda handler: answer(pages[handler.path], kind, "Date: now"))
    done = run(tmp_path, server.url, talks=[talk])
    assert done.exit_code == DIFFERENT
    assert done.stdout.splitlines() == [
        "~ GET https://example.org/1  200  (exchange 2)",
        "    - $.items[1].id: 1",
        "    + $.items[1].id: 9",
        "    - $.at: 5",
        "    + $.at: 6",
    ]
    assert done.stderr.splitlines()[0] == "2 answers the same, 1 different"
    done = run(tmp_path, server.url, "--ignore", "json:$.items[*].id", "--ignore", "json:$..at", talks=[talk])
    assert done.exit_code == 0, done.output


def test_framing_and_codings_are_no_difference(tmp_path: Path, serve: Serve) -> None:
    """Chunks instead of a length, gzip instead of nothing: the same content."""
    packed = gzip.compress(b"content " * 40)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
    server = serve(lambda _: chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed))
    talk = [(get("/"), answer(b"content " * 40))]
    done = run(tmp_path, server.url, "--ignore-header", "content-encoding", talks=[talk])
    assert done.exit_code == 0, done.output
    assert run(tmp_path, server.url, talks=[talk]).stdout.splitlines()[1:] == ["    + content-encoding: gzip"]


def test_no_proxy_is_asked(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the server that was given is connected to, whatever the environment says."""
    server, proxy = serve(lambda _: answer(b"")), serve(lambda _: answer(b""))
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    assert run(tmp_path, server.url, talks=[[(get("/"), answer(b""))]]).exit_code == 0
    assert (len(server.seen), len(proxy.seen)) == (1, 0)


def test_redirects_are_compared_not_followed(tmp_path: Path, serve: Serve) -> None:
    """A server names itself in Location: that is no difference; and nobody goes there."""
    server = serve(lambda _: answer(b"", f"Location: {server.url}/next", status=302))
    talk = [(get("/"), answer(b"", "Location: https://example.org/next", status=302))]
    done = run(tmp_path, server.url, talks=[talk])
    assert done.exit_code == 0, done.output
    assert len(server.seen) == 1


def test_json_and_verbose_and_colors(tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda handler: answer(b"", status=500 if handler.path == "/2" else 200))
    talk = [(get("/1"), answer(b"")), (get("/2"), answer(b""))]
    done = run(tmp_path, server.url, "--json", talks=[talk])
    one, two = (json.loads(line) for line in done.stdout.splitlines())
    assert (one["outcome"], one["differences"], one["status"]) == ("same", [], 200)
    assert (two["outcome"], two["recorded_status"], two["status"]) == ("different", 200, 500)
    assert two["differences"] == [
        {"place": "status", "before": 200, "after": 500, "lines": ["- status: 200", "+ status: 500"]}
    ]
    done = run(tmp_path, server.url, "-v", "--color", "always", talks=[talk])
    assert done.stdout.splitlines()[0] == "= GET https://example.org/1  200  (exchange 1)"
    assert "\x1b[31m    - status: 200\x1b[0m" in done.stdout.splitlines()


def test_nothing_from_the_network_commands_the_terminal(tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda _: answer(b"\x1b[2Jnew", "X: \x1b[1m".replace("\x1b", "e")))
    done = run(tmp_path, server.url, "--color", "never", talks=[[(get("/"), answer(b"\x1b[2Jold"))]])
    assert done.exit_code == DIFFERENT
    assert "\x1b" not in done.stdout


# --- Variables ---


def test_values_of_today(tmp_path: Path, serve: Serve) -> None:
    """A token, an id and a cookie that the server makes anew each time: the requests that follow hold those of today."""
    kind = "Content-Type: application/json"

    def talk(token: str, number: int, sid: str) -> list[tuple[bytes, bytes]]:
        auth, cookie = f"Authorization: Bearer {token}", f"Cookie: lang=en; sid={sid}"
        return [
            (post("/login", b"{}", kind), answer(json.dumps({"token": token}).encode(), kind, f"Set-Cookie: sid={sid}; Path=/")),
            (post("/items", b'{"n": 1}', kind, auth, cookie), answer(b'{"id": %d}' % number, kind, f"Location: /items/{number}", status=201)),
            (get(f"/items/{number}?v={number}", auth, cookie), answer(b'{"id": %d, "n": 1}' % number, kind)),
            (post("/copy", b"from=%d&token=%s" % (number, token.encode()), "Content-Type: application/x-www-form-urlencoded", cookie), answer(b"")),
        ]  # fmt: skip

    today = talk("tok-TODAY+1", 7654321, "s2")
    answers = iter([live for _, live in today] * 2)
    server = serve(lambda _: next(answers))
    done = run(tmp_path, server.url, "--ignore", "header:location", talks=[talk("tok-recorded-1", 1234567, "s1")])
    assert done.exit_code == 0, done.output
    host = server.url[7:].encode()
    wanted = [request.replace(b"example.org", host) for request, _ in today]
    wanted[3] = wanted[3].replace(b"tok-TODAY+1", b"tok-TODAY%2B1").replace(b"Length: 30", b"Length: 32")
    assert [head + b"\r\n" + body for head, body, _ in server.seen] == wanted
    assert "3 values of today's answers" in done.stderr
    server.seen.clear()
    done = run(tmp_path, server.url, "--no-variables", talks=[talk("tok-recorded-1", 1234567, "s1")])
    assert done.exit_code == DIFFERENT
    assert b"1234567" in server.heads[2]


def test_named_variables(tmp_path: Path, serve: Serve) -> None:
    """A short id, named by the user, and one in HTML."""
    talk = [
        (get("/"), answer(b'<input name="csrf" value="abc">')),
        (post("/make", b"csrf=abc", "Content-Type: application/x-www-form-urlencoded"), answer(b'{"id": 42}')),
        (get("/items/42"), answer(b"42")),
    ]
    today = iter([answer(b'<input name="csrf" value="x&z">'), answer(b'{"id": 43}'), answer(b"43")])
    server = serve(lambda _: next(today))
    options = ("--variable", 'csrf=regex:name="csrf" value="([^"]*)"@1', "--variable", "json:$.id@2")
    done = run(tmp_path, server.url, *options, talks=[talk])
    assert done.exit_code == 0, done.output
    assert server.seen[1][1] == b"csrf=x%26z"
    assert server.heads[2].startswith(b"GET /items/43 ")


def test_variables_wait_for_their_answer(tmp_path: Path, serve: Serve) -> None:
    """With concurrency, a request that needs another connection's answer waits for it."""
    later = threading.Event()

    def slow(handler: Handler) -> bytes:
        if handler.path == "/token":
            later.wait(0.2)
            return answer(b"tok-TODAY-1", "X-Token: tok-TODAY-1")
        return answer(b"")

    server = serve(slow)
    talks = [
        [(get("/token"), answer(b"tok-RECORDED-1", "X-Token: tok-RECORDED-1"))],
        [(get("/use", "X-Auth: tok-RECORDED-1"), answer(b""))],
    ]
    done = run(tmp_path, server.url, "--concurrency", "2", "--ignore", "body", talks=talks)
    assert done.exit_code == 0, done.output
    assert b"X-Auth: tok-TODAY-1" in server.heads[-1]


# --- What can't be sent ---


def test_what_is_not_sent(tmp_path: Path, serve: Serve) -> None:
    """Answers that were not recorded, other methods, WebSockets: skipped, counted and said."""
    server = serve(lambda _: answer(b""))
    upgrade = get(
        "/ws",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    )
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n\x81\x02hi"
    talks: list[Talk] = [
        [(get("/"), answer(b"")), (post("/p", b"x"), answer(b""))],
        [(upgrade, switched)],
        [(get("/unanswered"), b"")],
        [(post("/cut", b"1234567890")[:-5], b"")],
    ]
    done = run(tmp_path, server.url, "--methods", "get", "-v", talks=talks)
    assert done.exit_code == 0, done.output
    assert [head.split()[1] for head in server.heads] == [b"/"]
    lines = done.stderr.splitlines()
    assert lines[0] == "1 answer the same"
    assert "not sent: 1 exchange (WebSocket)" in lines
    assert "not sent: 2 exchanges (its method is not one of --methods)" in lines
    assert "not sent: 1 exchange (no response was recorded)" in lines
    done = run(tmp_path, server.url, "--no-response", "--methods", "GET,POST", talks=talks)
    assert done.exit_code == 0, done.output
    assert "2 answers the same, 1 with nothing to compare" in done.stderr
    assert "not sent: 1 exchange (its request is incomplete)" in done.stderr


def test_nothing_to_send(tmp_path: Path, serve: Serve) -> None:
    """A filter that fits nothing is no success."""
    server = serve(lambda _: answer(b""))
    path = write_capture(tmp_path / "recorded.tlscap.zst", [(get("/"), answer(b""))])
    for arguments in (["path:/other"], ["--methods", "POST"]):
        done = CliRunner().invoke(send, [str(path), "--to", server.url, *arguments])
        assert done.exit_code == 1
        assert "nothing to send" in str(done.exception)
    assert not server.seen


def test_unreachable(tmp_path: Path, serve: Serve) -> None:
    """One clear error, and still a report for the CI server."""
    server = serve(lambda _: answer(b""))
    url = server.url
    server.shutdown()
    server.server_close()
    report = tmp_path / "report.xml"
    talks = [[(get("/"), answer(b""))]]
    path = write_capture(tmp_path / "recorded.tlscap.zst", *talks)
    done = CliRunner().invoke(send, [str(path), "--to", url, "--junit", str(report)])
    assert done.exit_code == 1
    assert "can't be reached" in str(done.exception)
    assert 'errors="1"' in report.read_text()
    assert report.stat().st_mode & 0o777 == 0o600


def test_broken_answers(tmp_path: Path, serve: Serve) -> None:
    """A server that hangs up, talks nonsense or takes forever costs one answer, not the others."""
    hang = threading.Event()

    def misbehave(handler: Handler) -> bytes:
        if handler.path == "/good":
            return answer(b"")
        handler.close_connection = True
        if handler.path == "/slow":
            hang.wait(20)
        return {"/gone": b"", "/nonsense": b"\0\0\0\r\n\r\n", "/short": answer(b"12345")[:-2]}.get(handler.path, b"")

    server = serve(misbehave)
    talks = [[(get(path), answer(b""))] for path in ("/gone", "/nonsense", "/short", "/slow", "/good")]
    done = run(tmp_path, server.url, "--timeout", "3s", talks=talks)
    hang.set()
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "1 answer the same, 4 missing"
    assert "no answer within 3 s" in done.stdout


def test_retries(tmp_path: Path, serve: Serve) -> None:
    """GET is repeated when the connection breaks, POST is not: it may have been done."""
    seen: list[str] = []

    def first_breaks(handler: Handler) -> bytes:
        seen.append(handler.path)
        if seen.count(handler.path) == 1:
            handler.close_connection = True
            return b""
        return answer(b"")

    server = serve(first_breaks)
    talks = [[(get("/get"), answer(b""))], [(post("/post", b"x"), answer(b""))]]
    done = run(tmp_path, server.url, "--retries", "2", talks=talks)
    assert done.exit_code == 1
    assert seen == ["/get", "/get", "/post"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "ftp://x"),
        ("--to", "http://a/?q"),
        ("--to", "http://u:p@a/"),
        ("--to", "http://a:99999"),
        ("--to", "http://a", "--http1", "--http2"),
        ("--to", "http://a", "--insecure"),
        ("--to", "https://a", "--key", "k"),
        ("--to", "http://a", "--header", "no field"),
        ("--to", "http://a", "--header", "Content-Length: 3"),
        ("--to", "http://a", "--header", "A: b\r\nC: d"),
        ("--to", "http://a", "--ignore", "json:$["),
        ("--to", "http://a", "--ignore", "text:("),
        ("--to", "http://a", "--ignore", "what"),
        ("--to", "http://a", "--variable", "json:$.x"),
        ("--to", "http://a", "--variable", "json:$[*]@1"),
        ("--to", "http://a", "--variable", "json:$.x@1"),
        ("--to", "http://a", "--variable", "json:$.x@9"),
        ("--to", "http://a", "--timing", "x0"),
        ("--to", "http://a", "--timing", "xnan"),
        ("--to", "http://a", "--junit", "-"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = write_capture(tmp_path / "recorded.tlscap.zst", [(get("/"), answer(b"{}"))])
    done = CliRunner().invoke(send, [str(path), *arguments])
    status = done.exit_code if done.exit_code == 2 else getattr(done.exception, "exit_status", None)
    assert status == 2, done.exception


# --- TLS and HTTP/2 ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Http2Server(threading.Thread):
    """Answers every request of HTTP/2 with its path; keeps the fields it was sent."""

    def __init__(self, authority: trustme.CA | None, *names: str, alpn: str = "h2") -> None:
        super().__init__(daemon=True)
        import socket

        self.seen: list[tuple[list[tuple[bytes, bytes]], bytes]] = []
        self.names: list[str | None] = []
        self.context: ssl.SSLContext | None = None
        if authority:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.set_alpn_protocols([alpn])
            self.context.sni_callback = lambda _, name, __: self.names.append(name)
            authority.issue_cert(*names).configure_cert(self.context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                with connection:
                    secure = self.context.wrap_socket(connection, server_side=True) if self.context else connection
                    with secure:
                        self.talk(secure)
            except OSError:
                pass

    def talk(self, stream: Any) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None, normalize_inbound_headers=False)
        state = h2.connection.H2Connection(config)
        requests: dict[int, tuple[list[tuple[bytes, bytes]], list[bytes]]] = {}
        state.initiate_connection()
        stream.sendall(state.data_to_send())
        while data := stream.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    requests[event.stream_id] = ([(bytes(n), bytes(v)) for n, v in event.headers], [])
                elif isinstance(event, h2.events.DataReceived):
                    requests[event.stream_id][1].append(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    headers, body = requests[event.stream_id]
                    self.seen.append((headers, b"".join(body)))
                    state.send_headers(event.stream_id, [(":status", "200"), ("x-kind", "h2")])
                    state.send_data(event.stream_id, dict(headers)[b":path"], end_stream=True)
            stream.sendall(state.data_to_send())

    def close(self) -> None:
        self.listener.close()


Fields = list[tuple[bytes, bytes]]


Answered = tuple[list[tuple[str, str]], bytes, list[tuple[str, str]]]
"""Fields, body, trailers."""


def h2_talk(*asked: tuple[Fields, bytes], answers: Sequence[Answered] = ()) -> Talk:
    """What both ends of a connection of HTTP/2 said: each request is answered with its path, or as is told."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    client.initiate_connection()
    server.initiate_connection()
    talk = []
    default: list[Answered] = [
        ([(":status", "200"), ("x-kind", "h2")], dict(fields)[b":path"], []) for fields, _ in asked
    ]
    for number, ((fields, body), (answered, content, trailers)) in enumerate(
        zip(asked, answers or default, strict=True)
    ):
        stream = 2 * number + 1
        client.send_headers(stream, fields, end_stream=not body)
        if body:
            client.send_data(stream, body, end_stream=True)
        request = client.data_to_send()
        server.receive_data(request)
        server.send_headers(stream, answered)
        server.send_data(stream, content, end_stream=not trailers)
        if trailers:
            server.send_headers(stream, trailers, end_stream=True)
        response = server.data_to_send()
        client.receive_data(response)
        talk.append((request, response))
    return talk


def h2_capture() -> list[Talk]:
    """One connection of HTTP/2: with cookies in two fields, and a body without a length."""

    def pseudo(method: bytes, path: bytes) -> Fields:
        return [(b":method", method), (b":scheme", b"https"), (b":authority", b"example.org"), (b":path", path)]

    crumbs = [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]
    grpc = [(b"content-type", b"application/grpc")]
    return [h2_talk((pseudo(b"GET", b"/a") + crumbs, b""), (pseudo(b"POST", b"/b") + grpc, b"\0\0\0\0\x02hi"))]


def test_http2(tmp_path: Path, authority: trustme.CA) -> None:
    """Recorded HTTP/2 is HTTP/2 again: the same fields in the same order; only :authority is another."""
    server = Http2Server(authority, "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    try:
        done = run(
            tmp_path, f"https://localhost:{server.port}", "--ca-file", str(tmp_path / "ca.pem"), talks=h2_capture()
        )
    finally:
        server.close()
    assert done.exit_code == 0, done.output
    (first, _), (second, body) = server.seen
    here = b"localhost:%d" % server.port
    assert first == [(b":method", b"GET"), (b":authority", here), (b":scheme", b"https"), (b":path", b"/a"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]  # fmt: skip
    assert second[4:] == [(b"content-type", b"application/grpc")]
    assert body == b"\0\0\0\0\x02hi"


def test_grpc(tmp_path: Path) -> None:
    """A unary call goes through to a real gRPC server, without TLS too; that its trailers are not compared is said."""
    import grpc  # type: ignore[import-untyped]

    def method(request: bytes, _: grpc.ServicerContext) -> bytes:
        asked.append(request)
        return b"answer to " + request

    asked: list[bytes] = []
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(method)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Method": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    call = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"example.org"),
        (b":path", b"/test.Service/Method"),
    ]
    call += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity")]
    talk = h2_talk(
        (call, b"\0\0\0\0\x05hello"),
        answers=[
            (
                [(":status", "200"), ("content-type", "application/grpc")],
                b"\0\0\0\0\x0fanswer to hello",
                [("grpc-status", "0")],
            )
        ],
    )
    try:
        done = run(tmp_path, f"http://127.0.0.1:{port}", "--ignore", "header:grpc-accept-encoding", talks=[talk])
    finally:
        server.stop(None).wait()
    assert done.exit_code == 0, done.output
    assert asked == [b"hello"]
    assert "trailers are not compared: 1 exchange" in done.stderr


def test_a_bomb(tmp_path: Path, serve: Serve) -> None:
    """An answer that would decode to gigabytes is compared as it is."""
    bomb = gzip.compress(gzip.compress(bytes(100 << 20)))
    server = serve(lambda _: answer(bomb, "Content-Encoding: gzip, gzip"))
    done = run(tmp_path, server.url, talks=[[(get("/"), answer(b"ok", "Content-Encoding: gzip, gzip"))]])
    assert done.exit_code == DIFFERENT
    assert "can't be decoded" in done.stdout


def test_http2_to_http1(tmp_path: Path, serve: Serve) -> None:
    """A server of the older version gets it in its own way: with Host, a length, and one Cookie field; that is said."""
    server = serve(lambda handler: answer(handler.path.encode(), "X-Kind: h2"))
    done = run(tmp_path, server.url, "--http1", talks=h2_capture())
    assert done.exit_code == 0, done.output
    host = server.url[7:].encode()
    assert server.heads[0] == b"GET /a HTTP/1.1\r\nHost: %s\r\ncookie: a=1; b=2\r\nte: trailers\r\n" % host
    assert b"Content-Length: 7\r\n" in server.heads[1]
    assert "recorded with HTTP/2, sent with HTTP/1.1: 2 exchanges" in done.stderr


def test_http1_to_http2_without_tls(tmp_path: Path) -> None:
    """What belongs to a connection of HTTP/1.1 stays out, also what Connection names."""
    server = Http2Server(None)
    recorded = get("/x", "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: gzip", "Accept: a")
    try:
        done = run(
            tmp_path, f"http://127.0.0.1:{server.port}", "--http2", talks=[[(recorded, answer(b"/x", "X-Kind: h2"))]]
        )
    finally:
        server.close()
    assert done.exit_code == 0, done.output
    assert server.seen[0][0][4:] == [(b"accept", b"a")]


def test_trust(tmp_path: Path, authority: trustme.CA) -> None:
    """An unknown certificate is refused with what helps; with --keep-host it must be for the recorded name, which is asked for."""
    server = Http2Server(authority, "example.org")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    url = f"https://127.0.0.1:{server.port}"
    path = write_capture(tmp_path / "recorded.tlscap.zst", *h2_capture())

    def invoke(*options: str) -> Result:
        return CliRunner().invoke(send, [str(path), "--to", url, *options])

    try:
        refused = invoke()
        assert refused.exit_code == 1
        assert "not trusted" in str(refused.exception)
        assert "--insecure" in getattr(refused.exception, "hint", "")
        assert invoke("--ca-file", str(tmp_path / "ca.pem")).exit_code == 1  # another name
        assert not server.seen
        assert invoke("--insecure").exit_code == 0
        assert invoke("--ca-file", str(tmp_path / "ca.pem"), "--keep-host").exit_code == 0
        assert server.names[-1] == "example.org"
        assert dict(server.seen[-1][0])[b":authority"] == b"example.org"
    finally:
        server.close()


def test_a_server_without_http2(tmp_path: Path, authority: trustme.CA) -> None:
    """--http2 with a server that can't is one clear error."""
    server = Http2Server(authority, "localhost", alpn="http/1.1")
    path = write_capture(tmp_path / "recorded.tlscap.zst", [(get("/"), answer(b""))])
    try:
        done = CliRunner().invoke(
            send, [str(path), "--to", f"https://localhost:{server.port}", "--insecure", "--http2"]
        )
    finally:
        server.close()
    assert done.exit_code == 1
    assert "does not speak HTTP/2" in str(done.exception)
