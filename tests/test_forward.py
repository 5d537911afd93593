"""Requests passed on to real servers, and what is kept of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tlscap.http.events import Header
from tlscap.replay.forward import Forwarder
from tlscap.replay.recording import RecordedExchange
from tlscap.replay.serve import ReceivedRequest


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.requestline, self.headers.items(), body))
        self.wfile.write(b"HTTP/1.1 203 Quite So\r\nX-One: 1\r\nx-one: 2\r\nContent-Length: 5\r\n\r\nthere")

    do_GET = do_POST  # noqa: N815 - the name that http.server looks for
    do_purge = do_POST

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, list[tuple[str, str]], bytes]] = []


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


def ask(forwarder: Forwarder, authority: str, *headers: Header, **more: Any) -> RecordedExchange | None:
    facts: dict[str, Any] = {"method": b"GET", "target": b"/x?y=1", "scheme": "http", "version": b"HTTP/1.1"}
    received = ReceivedRequest(**facts | {"headers": headers, "authority": authority.encode()} | more)
    return asyncio.run(forwarder(received))


def test_as_it_was(server: Server) -> None:
    forwarder = Forwarder()
    place = f"127.0.0.1:{server.server_port}"
    fields = (
        (b"Host", place.encode()),
        (b"X-A", b"1"),
        (b"x-a", b"2"),
        (b"X-Hop", b"no"),
        (b"Connection", b"X-Hop, close"),
    )
    exchange = ask(forwarder, place, *fields, (b"Content-Length", b"4"), method=b"POST", body=b"body")
    assert exchange
    assert exchange.response
    line, sent, body = server.asked[0]
    assert (line, body) == ("POST /x?y=1 HTTP/1.1", b"body")
    assert sent == [("Host", place), ("X-A", "1"), ("x-a", "2"), ("Content-Length", "4")]
    assert (exchange.response.status, exchange.response.reason) == (203, b"Quite So")
    assert exchange.response.headers == ((b"X-One", b"1"), (b"x-one", b"2"), (b"Content-Length", b"5"))
    assert exchange.response.body == b"there"
    assert exchange.request.body == b"body"
    assert (exchange.url, exchange.protocol) == (f"http://{place}/x?y=1", "http/1.1")
    assert forwarder.exchanges == [exchange]
    assert forwarder.problems == []


def test_methods_keep_their_case(server: Server) -> None:
    ask(Forwarder(), f"127.0.0.1:{server.server_port}", method=b"purge")
    assert server.asked[0][0].startswith("purge ")


def test_upstream(server: Server) -> None:
    """What asks for the replay server itself is asked of the real one."""
    real = f"127.0.0.1:{server.server_port}"
    exchange = ask(Forwarder(upstream=f"http://{real}"), "127.0.0.1:1", (b"host", b"127.0.0.1:1"), scheme="https")
    assert exchange
    assert exchange.url == f"http://{real}/x?y=1"
    assert server.asked[0][1] == [("host", real)]


@pytest.mark.parametrize(
    ("authority", "more", "problem"),
    [
        ("127.0.0.1:1", {}, "can't be asked"),
        ("127.0.0.1:99999", {}, "can't be asked"),
        ("nowhere.invalid", {}, "nowhere.invalid can't be asked"),
        ("", {}, "names no server"),
        ("ada:secret@127.0.0.1", {}, "names a user"),
        (f"{'a' * 70}.example", {}, "can't be asked"),
        ("127.0.0.1:1", {"target": b"*", "method": b"OPTIONS"}, "can't be asked"),
        ("127.0.0.1:1", {"websocket": True}, "WebSocket can't be forwarded"),
        ("127.0.0.1:1", {"protocol": b"websocket"}, "WebSocket can't be forwarded"),
        ("127.0.0.1:1", {"headers": ((b"content-type", b"application/grpc+proto"),)}, "gRPC can't be forwarded"),
    ],
)
def test_in_vain(authority: str, more: dict[str, Any], problem: str) -> None:
    forwarder = Forwarder()
    assert ask(forwarder, authority, **more) is None
    assert problem in forwarder.problems[0]
    assert forwarder.exchanges == []
