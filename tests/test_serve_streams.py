"""Conversations against ``tlscap.replay.serve``: WebSocket, gRPC, server-sent events, answers that begin before their question ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from serving import MS, PATIENCE_S, START_NS, connected, pieces, recording, request, response
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from tlscap.http.events import Side
from tlscap.replay.recording import Piece, Recording, TunnelMessage, load
from tlscap.replay.serve import ReplayServer, ServeOptions
from tlscap.replay.serve.answers import Answer, answer_to
from tlscap.replay.serve.pace import Pace
from tlscap.replay.serve.state import refusal

CAPTURES = Path(__file__).parent / "fixtures" / "captures"
ASKED, ANSWERED = Side.REQUEST, Side.RESPONSE
GRPC = (b"content-type", b"application/grpc")

# --- WebSocket ---


def chat(
    *messages: tuple[Side, str, bytes], code: int = 1000, deflate: bool = False, version: bytes = b"HTTP/1.1"
) -> Recording:
    """Return a recorded conversation."""
    told = [
        TunnelMessage(side, kind, data, code if kind == "close" else 1005, START_NS + n * MS)
        for n, (side, kind, data) in enumerate(messages)
    ]
    extensions = ((b"Sec-WebSocket-Extensions", b"permessage-deflate"),) * deflate
    if version == b"HTTP/2":
        asked = request("CONNECT", "/chat", version=version, protocol=b"websocket")
        answered = response(200, *((name.lower(), value) for name, value in extensions), version=version)
    else:
        asked = request("GET", "/chat", (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        fields = (
            (b"X-First", b"1"),
            (b"upgrade", b"WebSocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", b"old"),
        )
        answered = response(101, *fields, *extensions, (b"Sec-WebSocket-Protocol", b"v2"), reason=b"Switching")
    return recording((asked, answered), upgraded_to="websocket", messages=told)


HELLO = (
    (ANSWERED, "text", b"welcome"),
    (ASKED, "text", b'{"a": 1.0, "b": 2}'),
    (ANSWERED, "ping", b"are you there"),
    (ANSWERED, "binary", b"\0\1"),
    (ASKED, "pong", b"are you there"),
    (ASKED, "binary", b"\2"),
    (ANSWERED, "text", "ü".encode() * 40_000),
)


def client(server: ReplayServer, *, tls: bool = False) -> ClientConnection:
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{server.port}/chat"
    context = ssl.create_default_context(cadata=server.ca_pem.decode()) if tls else None
    return connect(url, ssl=context, open_timeout=PATIENCE_S, close_timeout=PATIENCE_S, proxy=None)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/2"])
def test_websocket(tls: bool, deflate: bool, version: bytes) -> None:
    made = chat(*HELLO, (ANSWERED, "close", b"bye"), code=4001, deflate=deflate, version=version)
    with ReplayServer(made) as server, client(server, tls=tls) as socket_:
        assert bool(socket_.protocol.extensions) == deflate
        assert socket_.recv() == "welcome"
        socket_.send('{"b":2,"a":1}')
        assert socket_.recv() == b"\0\1"
        assert socket_.ping().wait(PATIENCE_S)
        socket_.send(b"\2")
        assert socket_.recv() == "ü" * 40_000
        with pytest.raises(ConnectionClosedError) as closed:
            socket_.recv()
        assert closed.value.rcvd
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")
    assert (server.served, server.unmatched, server.faults) == (1, [], [])


def test_the_handshake_is_the_recorded_one() -> None:
    """But for what depends on the client: its key, what it offers."""
    with (
        ReplayServer(chat((ANSWERED, "close", b""))) as server,
        socket.create_connection(("127.0.0.1", server.port)) as raw,
    ):
        raw.sendall(
            b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v1, v2\r\n\r\n"
        )
        received = b""
        while b"\r\n\r\n" not in received:
            received += raw.recv(4096)
        assert received.partition(b"\r\n\r\n")[0] == (
            b"HTTP/1.1 101 Switching\r\nX-First: 1\r\nupgrade: WebSocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v2"
        )


def test_a_message_that_differs() -> None:
    with ReplayServer(chat(*HELLO)) as server, client(server) as socket_:
        socket_.recv()
        socket_.send('{"a": 7, "b": 2}')
        with pytest.raises(ConnectionClosedError) as closed:
            socket_.recv()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1008
        assert closed.value.rcvd.reason == "not as recorded: client message 1"
        assert "client message 1: body: $.a is 7, recorded 1" in server.unmatched[0].explanation
    assert server.faults == []


@pytest.mark.parametrize(("kind", "data"), [("binary", b"x"), ("text", b"y")])
def test_another_kind_and_one_too_many(kind: str, data: bytes) -> None:
    with ReplayServer(chat((ASKED, kind, data))) as server, client(server) as socket_:
        with contextlib.suppress(ConnectionClosedError):  # the server may be faster than the second message
            socket_.send("y")
            socket_.send("more")
        with pytest.raises(ConnectionClosedError):
            socket_.recv()
        expected = "client message 1: is text, recorded binary" if kind == "binary" else "client message 2: is 'more'"
        assert expected in server.unmatched[0].explanation


def test_messages_may_come_ahead() -> None:
    made = chat((ASKED, "text", b"1"), (ANSWERED, "text", b"one"), (ASKED, "text", b"2"), (ANSWERED, "text", b"two"))
    with ReplayServer(made) as server, client(server) as socket_:
        socket_.send("1")
        socket_.send("2")
        assert [socket_.recv(), socket_.recv()] == ["one", "two"]
    assert server.unmatched == []


def test_the_client_closes() -> None:
    made = chat((ASKED, "text", b"1"), (ASKED, "close", b"enough"), (ANSWERED, "close", b"ok"), code=1000)
    with ReplayServer(made) as server:
        with client(server) as socket_:
            socket_.send("1")
            socket_.close(1000, "enough")
            with pytest.raises(ConnectionClosedOK) as closed:
                socket_.recv()
            assert closed.value.rcvd
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "ok")
        assert (server.unmatched, server.faults) == ([], [])


def test_a_plain_request_gets_no_websocket() -> None:
    with ReplayServer(chat(*HELLO)) as server:
        assert "does not ask for a WebSocket" in httpx.get(server.url + "/chat", timeout=PATIENCE_S).text
        with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{server.port}/other", proxy=None):
            pass


def test_junk_instead_of_frames() -> None:
    with ReplayServer(chat(*HELLO)) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(10)
        raw.sendall(
            b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n"
            + b"\xff" * 100
        )
        while raw.recv(4096):
            pass
    with ReplayServer(chat(*HELLO)) as server, socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(10)
        raw.sendall(b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n")
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    assert server.faults == []


@pytest.mark.parametrize("recorded", [b"HTTP/1.1", b"HTTP/2"])
def test_websocket_over_http2(recorded: bytes) -> None:
    """RFC 8441, with h2 and wsproto as the client."""
    made = chat(*HELLO[:2], (ANSWERED, "text", b"x" * 300_000), (ANSWERED, "close", b"bye"), version=recorded)
    with ReplayServer(made) as server, connected(server) as raw:
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        http.initiate_connection()
        raw.sendall(http.data_to_send())
        talk = Connection(ConnectionType.CLIENT)
        said: list[object] = []
        part = ""
        headers: Sequence[tuple[bytes, bytes]] = ()
        asked = False
        while not any(isinstance(one, CloseConnection) for one in said):
            data = raw.recv(1 << 16)
            assert data
            for event in http.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged) and not asked:
                    asked = True
                    assert http.remote_settings.enable_connect_protocol == 1
                    http.send_headers(
                        1,
                        [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/chat"), (b":authority", b"x"), (b"sec-websocket-version", b"13")],
                    )  # fmt: skip
                    http.send_data(1, bytes(talk.send(TextMessage('{"b":2,"a":1}'))))
                elif isinstance(event, h2.events.ResponseReceived):
                    headers = event.headers or ()
                elif isinstance(event, h2.events.DataReceived):
                    http.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                    talk.receive_data(event.data)
                    for message in talk.events():
                        if isinstance(message, TextMessage):
                            part += message.data
                            if not message.message_finished:
                                continue
                            said.append(part)
                            part = ""
                        else:
                            said.append(message)
            raw.sendall(http.data_to_send())
        assert headers[0] == (b":status", b"200")
        assert not {b"connection", b"upgrade", b"sec-websocket-accept"} & {bytes(name) for name, _ in headers}
        assert said == ["welcome", "x" * 300_000, CloseConnection(1000, "bye")]
        http.send_data(1, bytes(talk.send(CloseConnection(1000))), end_stream=True)
        raw.sendall(http.data_to_send())
    assert (server.unmatched, server.faults) == ([], [])


def test_the_fixture() -> None:
    """A conversation as it was recorded, with all its kinds of messages."""
    made = load(str(CAPTURES / "websocket.tlscap.zst"))
    messages = made.exchanges[0].messages
    with ReplayServer(made) as server, client(server) as socket_:
        for message in messages:
            if message.kind not in ("text", "binary"):
                continue
            data: str | bytes = message.data.decode() if message.kind == "text" else message.data
            if message.side is ASKED:
                socket_.send(data)
            else:
                assert socket_.recv() == data
    assert (server.unmatched, server.faults) == ([], [])


# --- gRPC ---


def framed(*messages: bytes) -> bytes:
    return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)


def call(
    path: str,
    asked: list[Piece],
    answered: list[Piece],
    *,
    ended_ms: int = 0,
    started_ms: int = 50,
    status: bytes = b"0",
) -> Recording:
    """Return a recorded call; times in milliseconds from its start."""
    trailers = ((b"grpc-status", status), (b"grpc-message", b"so%20it%20ended"), (b"x-trailer", b"t"))
    return recording(
        (
            request(
                "POST",
                path,
                GRPC,
                (b"te", b"trailers"),
                body=asked,
                version=b"HTTP/2",
                ended_ns=START_NS + ended_ms * MS,
            ),
            response(
                200,
                GRPC,
                (b"x-header", b"h"),
                body=answered,
                version=b"HTTP/2",
                trailers=trailers,
                started_ns=START_NS + started_ms * MS,
                ended_ns=START_NS + 100 * MS,
            ),
        )
    )


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def channel(server: ReplayServer, *, tls: bool) -> grpc.Channel:
    target = f"localhost:{server.port}"
    options = [("grpc.enable_http_proxy", 0)]
    if tls:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(server.ca_pem), options)
    return grpc.insecure_channel(target, options)


def test_grpc_unary(tls: bool) -> None:
    made = call("/x.Y/Unary", pieces(framed(b"question")), pieces(framed(b"answer")))
    with ReplayServer(made) as server, channel(server, tls=tls) as to:
        answer, done = to.unary_unary("/x.Y/Unary").with_call(b"question", timeout=PATIENCE_S)
        assert answer == b"answer"
        assert dict(done.initial_metadata())["x-header"] == "h"
        assert dict(done.trailing_metadata())["x-trailer"] == "t"
        with pytest.raises(grpc.RpcError) as error:
            to.unary_unary("/x.Y/Unary")(b"other", timeout=PATIENCE_S)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "gRPC message 1 of 1: 5 bytes, recorded 8 bytes" in error.value.details()
    assert server.unmatched_count == 1
    assert server.faults == []


def test_grpc_streams_of_one_side(tls: bool) -> None:
    many = [bytes([n]) * 30_000 for n in range(20)]
    made = call("/x.Y/Down", pieces(framed(b"q")), pieces(framed(*many)))
    made.exchanges += call("/x.Y/Up", pieces(framed(*many)), pieces(framed(b"a"))).exchanges
    with ReplayServer(made) as server, channel(server, tls=tls) as to:
        assert list(to.unary_stream("/x.Y/Down")(b"q", timeout=PATIENCE_S)) == many
        assert to.stream_unary("/x.Y/Up")(iter(many), timeout=PATIENCE_S) == b"a"
    assert (server.unmatched, server.faults) == ([], [])


def test_grpc_errors_without_a_message(tls: bool) -> None:
    made = load(str(CAPTURES / "grpc.tlscap.zst"))
    with ReplayServer(made) as server, channel(server, tls=tls) as to, pytest.raises(grpc.RpcError) as error:
        to.unary_unary("/helloworld.Greeter/SayHello")(b"", timeout=PATIENCE_S)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert error.value.details() == "no such greeter"
    assert server.faults == []


def bidirectional() -> Recording:
    """Question 1, answer 1a and 1b, question 2, answer 2, the end of the questions."""
    one, two = framed(b"first"), framed(b"second one")
    asked = [Piece(one, START_NS + 10 * MS, 0), Piece(two, START_NS + 30 * MS, 0)]
    answered = [
        Piece(framed(b"1a"), START_NS + 20 * MS, len(one)),
        Piece(framed(b"1b"), START_NS + 21 * MS, len(one)),
        Piece(framed(b"2"), START_NS + 40 * MS, len(one + two)),
    ]
    return call("/x.Y/Both", asked, answered, started_ms=5, ended_ms=90)


def test_grpc_in_both_directions(tls: bool) -> None:
    """Each side waits for the other: no answer may come before its question, nor wait for the next one."""
    with ReplayServer(bidirectional()) as server, channel(server, tls=tls) as to:
        go_on = threading.Semaphore(0)

        def questions() -> Iterator[bytes]:
            yield b"first"
            go_on.acquire()
            yield b"second one"
            go_on.acquire()

        answers = to.stream_stream("/x.Y/Both")(questions(), timeout=PATIENCE_S)
        assert [next(answers), next(answers)] == [b"1a", b"1b"]
        go_on.release()
        assert next(answers) == b"2"
        go_on.release()
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK
    assert (server.served, server.unmatched, server.faults) == (1, [], [])


def test_no_answer_comes_before_its_question() -> None:
    """What was answered to the second message is not there when the first was: a PING shows that nothing else is on its way."""
    with (
        ReplayServer(bidirectional()) as server,
        connected(server) as raw,
    ):
        http = h2.connection.H2Connection()
        http.initiate_connection()
        fields: list[tuple[bytes | str, bytes | str]] = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/x.Y/Both"),
            (":authority", "x"),
            GRPC,
        ]
        http.send_headers(1, fields)
        received = b""

        def until_answered() -> bytes:
            nonlocal received
            http.ping(b"12345678")
            raw.sendall(http.data_to_send())
            while True:
                events = http.receive_data(raw.recv(1 << 16))
                received += b"".join(event.data or b"" for event in events if isinstance(event, h2.events.DataReceived))
                raw.sendall(http.data_to_send())
                if any(isinstance(event, h2.events.PingAckReceived) for event in events):
                    return received

        def told(wanted: bytes) -> bytes:
            while len(until_answered()) < len(wanted):
                pass
            return until_answered()

        assert until_answered() == b""
        http.send_data(1, framed(b"first"))
        assert told(framed(b"1a", b"1b")) == framed(b"1a", b"1b")
        http.send_data(1, framed(b"second one")[:-1])
        assert until_answered() == framed(b"1a", b"1b")
        http.send_data(1, framed(b"second one")[-1:])
        assert told(framed(b"1a", b"1b", b"2")) == framed(b"1a", b"1b", b"2")


def test_grpc_conversations_are_told_apart_by_their_beginnings() -> None:
    made = bidirectional()
    other = framed(b"other"), framed(b"end")
    asked = [Piece(other[0], START_NS + 10 * MS, 0), Piece(other[1], START_NS + 30 * MS, 0)]
    made.exchanges += call(
        "/x.Y/Both", asked, [Piece(framed(b"x"), START_NS + 20 * MS, len(other[0]))], started_ms=5, ended_ms=90
    ).exchanges
    with ReplayServer(made) as server, channel(server, tls=False) as to:
        both = to.stream_stream("/x.Y/Both")
        assert list(both(iter([b"other", b"end"]), timeout=PATIENCE_S)) == [b"x"]
        assert list(both(iter([b"first", b"second one"]), timeout=PATIENCE_S)) == [b"1a", b"1b", b"2"]
        with pytest.raises(grpc.RpcError) as error:
            list(both(iter([b"third"]), timeout=PATIENCE_S))
        assert "gRPC" in error.value.details()
    assert (server.served, server.unmatched_count, server.faults) == (2, 1, [])


def test_grpc_that_goes_on_in_another_way() -> None:
    with ReplayServer(bidirectional()) as server, channel(server, tls=False) as to:
        answers = to.stream_stream("/x.Y/Both")(iter([b"first", b"another"]), timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as error:
            list(answers)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "gRPC message 2 of 2" in server.unmatched[0].explanation
    assert server.faults == []


# --- Answers in pieces ---


def test_an_answer_in_step_with_its_question_over_http1() -> None:
    made = recording(
        (
            request(
                "POST",
                "/",
                (b"Transfer-Encoding", b"chunked"),
                body=pieces(b"one", b"two"),
                ended_ns=START_NS + 50 * MS,
            ),
            response(
                200,
                (b"Transfer-Encoding", b"chunked"),
                body=[Piece(b"1", START_NS, 3), Piece(b"2", START_NS, 6)],
                started_ns=START_NS,
                ended_ns=START_NS + 60 * MS,
            ),
        )
    )
    with ReplayServer(made) as server, connected(server) as raw:

        def until(end: bytes) -> bytes:
            received = b""
            while not received.endswith(end):
                piece = raw.recv(4096)
                assert piece, received
                received += piece
            return received

        raw.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert until(b"1\r\n1\r\n").endswith(b"\r\n\r\n1\r\n1\r\n")
        raw.sendall(b"3\r\ntwo\r\n")
        assert until(b"1\r\n2\r\n") == b"1\r\n2\r\n"
        raw.sendall(b"0\r\n\r\n")
        assert until(b"0\r\n\r\n") == b"0\r\n\r\n"
        raw.sendall(b"GET /next HTTP/1.1\r\n\r\n")
        assert until(b"body\n").startswith(b"HTTP/1.1 501 ")  # the connection goes on
    with ReplayServer(made) as server, connected(server) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        raw.shutdown(socket.SHUT_WR)  # the rest of the question will never come
        while raw.recv(4096):
            pass
    for junk in (b"junk\r\n", b"3\r\ntwo\r\n" * 20):
        with (
            ReplayServer(made, ServeOptions(body_limit=30)) as server,
            connected(server) as raw,
        ):
            raw.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n" + junk)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(4096):
                    pass
    assert server.faults == []


@pytest.mark.parametrize("http2", [False, True])
def test_server_sent_events(http2: bool) -> None:
    made = load(str(CAPTURES / "server-sent-events.tlscap.zst"))
    answered = made.exchanges[0].response
    assert answered
    with (
        ReplayServer(made, ServeOptions(timing=100)) as server,
        httpx.Client(timeout=PATIENCE_S, http1=not http2, http2=http2) as client_,
        client_.stream("GET", server.url + "/events") as stream,
    ):
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert b"".join(stream.iter_raw()) == answered.body
    assert server.faults == []


def test_what_delays_are_counted_from() -> None:
    """The end of the question; its beginning for an answer that comes meanwhile; the server's own answers wait for nothing."""
    asked = request(ended_ns=START_NS + 1000_000 * MS)
    answer = answer_to(recording((asked, response(started_ns=START_NS + 2000_000 * MS))).exchanges[0])

    async def left(answer: Answer, *, early: bool) -> float:
        return Pace.of_answer(answer, 2, early=early).left(START_NS + 2000_000 * MS)

    assert asyncio.run(left(answer, early=True)) == pytest.approx(1000, abs=100)
    assert asyncio.run(left(answer, early=False)) == pytest.approx(500, abs=100)
    assert asyncio.run(left(refusal(400, "no"), early=False)) == 0
