"""Servers and clients in Python for the live matrix.  Each runs as a process of its own: ``python peers.py NAME ...``.

A server prints one line of JSON with its port, then one for everything it was asked.  A client prints one line for
everything it asked.  Contents stand there as their size and SHA-256 (`digest`), so both ends, and what was recorded, can be
compared.  With SSLKEYLOGFILE set, Python's own ends of TLS connections write their keys.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.server
import itertools
import json
import os
import queue
import random
import select
import signal
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, ClassVar

Digest = tuple[int, str]

BLOCK = 1_000_003  # compresses no better than noise, and never repeats in step with anything
PIECE_SIZES = (1, 100, 4096, 16384, 16385, 70_000)


def digest(content: bytes) -> Digest:
    return len(content), hashlib.sha256(content).hexdigest()


def noise(size: int) -> Iterator[bytes]:
    """Yield pieces of different sizes: ``size`` bytes in all."""
    block = random.Random(size).randbytes(min(size, BLOCK)) * 2
    sizes, at = itertools.cycle(PIECE_SIZES), 0
    while at < size:
        piece = min(next(sizes), size - at)
        yield block[at % BLOCK : at % BLOCK + piece]
        at += piece


def text(size: int) -> bytes:
    """Lines that differ, and compress well."""
    lines = (f"{number} bottles of beer on the wall\n".encode() for number in range(size // 26 + 1))
    return b"".join(lines)[:size]


def say(**what: Any) -> None:
    """Print a line; one system call, so that threads don't mix."""
    os.write(1, json.dumps(what).encode() + b"\n")


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def server_context(options: argparse.Namespace, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.cert, options.key)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if "SSLKEYLOGFILE" in os.environ:
        context.keylog_filename = os.environ["SSLKEYLOGFILE"]
    return context


def client_context(ca: str, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)  # minds SSLKEYLOGFILE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


# --- HTTP/1: the backend of nginx; with a certificate a server of its own ---

EVENTS = (
    *({"data": f"event {number}", "id": str(number)} for number in range(20)),
    {"event": "greeting", "data": "two\nlines", "id": "20"},
    {"event": "größe", "data": "☃ " * 5000, "id": "21"},
    {"data": "", "id": "22"},
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the first part of the path says, of the size that the last part says."""

    protocol_version = "HTTP/1.1"
    coders: ClassVar[dict[str, Callable[[], Any]]] = {}

    def answer(self) -> None:
        self.received = hashlib.sha256()
        self.received_size = 0
        body = b"".join(self.read_body())
        self.sent = hashlib.sha256()
        self.sent_size = 0
        what, *rest = self.path.strip("/").split("/")
        size = int(rest[-1]) if rest and rest[-1].isdigit() else 0
        status = 200
        match what:
            case "noise":
                self.plain(b"".join(noise(size)))
            case "text":
                self.plain(text(size), "Content-Type: text/plain")
            case "chunked":
                self.chunked(noise(size))
            case "coded":
                self.chunked(
                    self.coded(rest[0], text(size)), "Content-Type: text/plain", f"Content-Encoding: {rest[0]}"
                )
            case "close":
                self.head(200, "Connection: close")
                self.write_all(noise(size))
            case "events":
                self.chunked(self.events(), "Content-Type: text/event-stream", "X-Accel-Buffering: no")
            case "take":
                self.plain(b"taken\n")
            case "echo":
                self.plain(body)
            case "redirect":
                status = 302
                self.plain(b"go on\n", f"Location: /{'/'.join(rest)}", status=302)
            case "empty":
                status = 204
                self.head(204)
            case "fresh":
                status = 304 if self.headers["If-None-Match"] else 200
                self.head(304, 'ETag: "fresh"') if status == 304 else self.plain(b"fresh\n", 'ETag: "fresh"')
            case _:
                status = 404
                self.plain(b"no such thing\n", status=404)
        say(
            method=self.command,
            target=self.path,
            status=status,
            request=(self.received_size, self.received.hexdigest()),
            response=(self.sent_size, self.sent.hexdigest()),
        )

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

    def read_body(self) -> Iterator[bytes]:
        """Yield the request's body; without keeping it when it is large."""
        keep = self.path.startswith("/echo")
        for piece in self.chunks() if self.headers["Transfer-Encoding"] else self.counted():
            self.received.update(piece)
            self.received_size += len(piece)
            if keep:
                yield piece

    def counted(self) -> Iterator[bytes]:
        left = int(self.headers["Content-Length"] or 0)
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            yield piece
            left -= len(piece)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass

    def head(self, status: int, *fields: str) -> None:
        self.send_response(status)
        for field in fields:
            self.send_header(*field.split(": ", 1))
        self.end_headers()

    def plain(self, content: bytes, *fields: str, status: int = 200) -> None:
        if self.request_version == "HTTP/1.0":
            fields = (*fields, f"Connection: {'close' if self.close_connection else 'keep-alive'}")
        self.head(status, f"Content-Length: {len(content)}", *fields)
        self.write_all([content])

    def chunked(self, pieces: Iterable[bytes], *fields: str) -> None:
        old = self.request_version == "HTTP/1.0"
        self.head(200, "Connection: close" if old else "Transfer-Encoding: chunked", *fields)
        for piece in pieces:
            self.note(piece)
            self.wfile.write(piece if old else b"%x\r\n%b\r\n" % (len(piece), piece))
        if not old:
            self.wfile.write(b"0\r\n\r\n")

    def write_all(self, pieces: Iterable[bytes]) -> None:
        if self.command != "HEAD":
            for piece in pieces:
                self.note(piece)
                self.wfile.write(piece)

    def note(self, piece: bytes) -> None:
        self.sent.update(piece)
        self.sent_size += len(piece)

    def coded(self, coding: str, content: bytes) -> Iterator[bytes]:
        """Yield the content in a coding, flushed on the way; what is noted is the coded form."""
        coder = self.coders[coding]()
        for at in range(0, len(content), 20_000):
            yield coder.compress(content[at : at + 20_000]) + coder.flush_block()
        yield coder.flush_end()

    def events(self) -> Iterator[bytes]:
        yield b": hello\n\n"
        for event in EVENTS:
            lines = [f"{name}: {line}" for name, value in event.items() for line in value.split("\n")]
            yield "\n".join([*lines, "", ""]).encode()

    def log_message(self, *_: object) -> None:
        pass


class Deflate:
    def __init__(self, window_bits: int) -> None:
        self._coder = zlib.compressobj(wbits=window_bits)
        self.compress = self._coder.compress

    def flush_block(self) -> bytes:
        return self._coder.flush(zlib.Z_SYNC_FLUSH)

    def flush_end(self) -> bytes:
        return self._coder.flush()


class Zstandard:
    def __init__(self) -> None:
        import zstandard

        self._zstandard = zstandard
        self._coder = zstandard.ZstdCompressor().compressobj()
        self.compress = self._coder.compress

    def flush_block(self) -> bytes:
        return self._coder.flush(self._zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def flush_end(self) -> bytes:
        return self._coder.flush(self._zstandard.COMPRESSOBJ_FLUSH_FINISH)


Handler.coders = {"deflate": lambda: Deflate(15), "gzip": lambda: Deflate(31), "zstd": Zstandard}


class HttpServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = self.socket.accept()
        if self.context:  # the handshake comes with the first read, in the connection's own thread
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address


def http_server(options: argparse.Namespace) -> None:
    server = HttpServer(("127.0.0.1", 0), Handler)
    if options.cert:
        server.context = server_context(options, "http/1.1")
    say(port=server.server_port)
    server.serve_forever()


# --- gRPC ---

DETAILS = "no such ☃, 100 % sure"


def call_sizes(metadata: Iterable[tuple[str, Any]]) -> list[int]:
    """The sizes of the messages that the caller wants back."""
    return json.loads(dict(metadata).get("sizes", "[]"))  # type: ignore[no-any-return]


def grpc_server(options: argparse.Namespace) -> None:
    import grpc  # type: ignore[import-untyped]

    def serve(name: str) -> Callable[[Iterable[bytes], Any], Iterator[bytes]]:
        def stream(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
            got, sent, code = [], [], "OK"
            if "gzip" in dict(context.invocation_metadata()):
                context.set_compression(grpc.Compression.Gzip)
            try:
                for request in requests:
                    got.append(digest(request))
                    if name == "Talk":
                        sent.append(digest(request[::-1]))
                        yield request[::-1]
                if name == "Fail":
                    code = "NOT_FOUND"
                    context.abort(grpc.StatusCode.NOT_FOUND, DETAILS)
                for size in call_sizes(context.invocation_metadata()):
                    sent.append(digest(text(size)))
                    yield text(size)
            finally:
                say(call=name, requests=got, responses=sent, code=code)

        return stream

    class Service(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
        def service(self, details: Any) -> Any:
            name = details.method.rpartition("/")[2]
            stream = serve(name)
            # Without serializers messages are bytes.
            match name:
                case "Unary" | "Fail":
                    return grpc.unary_unary_rpc_method_handler(lambda request, c: b"".join(stream([request], c)))
                case "Collect":
                    return grpc.stream_unary_rpc_method_handler(lambda requests, c: b"".join(stream(requests, c)))
                case "Spread":
                    return grpc.unary_stream_rpc_method_handler(lambda request, c: stream([request], c))
                case "Talk":
                    return grpc.stream_stream_rpc_method_handler(stream)
            return None

    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Service(),))
    say(port=server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def grpc_client(options: argparse.Namespace) -> None:
    """Calls everything, uncompressed and compressed, when a line comes: whoever sends it has seen what is loaded by then."""
    import grpc

    input()
    with open(options.ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(f"localhost:{options.port}", credentials) as channel:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            marks = [("gzip", "yes")] if compression is grpc.Compression.Gzip else []

            def call(kind: Any, name: str, argument: Any, *sizes: int, marks: Any = marks, c: Any = compression) -> Any:
                metadata = [*marks, ("sizes", json.dumps(sizes))]
                return kind(f"/tests.Echo/{name}")(argument, metadata=metadata, compression=c)

            for size in (0, 1, 100_000):
                answer = call(channel.unary_unary, "Unary", text(size), size // 2)
                say(call="Unary", requests=[digest(text(size))], responses=[digest(answer)], code="OK")
            sizes = (5, 0, 70_000, 1)
            answer = call(channel.stream_unary, "Collect", map(text, sizes), 12)
            say(call="Collect", requests=[digest(text(n)) for n in sizes], responses=[digest(answer)], code="OK")
            stream = call(channel.unary_stream, "Spread", b"spread", *sizes)
            say(call="Spread", requests=[digest(b"spread")], responses=[digest(each) for each in stream], code="OK")
            said, heard = [], []
            words: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            replies = call(channel.stream_stream, "Talk", iter(words.get, None))
            for number in range(10):  # one waits for the other
                words.put(message := f"word {number}".encode() * number)
                said.append(digest(message))
                heard.append(digest(next(replies)))
            words.put(None)
            heard += [digest(each) for each in replies]
            say(call="Talk", requests=said, responses=heard, code="OK")
            try:
                call(channel.unary_unary, "Fail", b"please")
            except grpc.RpcError as error:
                code, details = error.code().name, error.details()  # type: ignore[attr-defined,unused-ignore]
                say(call="Fail", requests=[digest(b"please")], responses=[], code=code, details=details)


# --- WebSocket, by websockets ---


def kind_of(message: str | bytes) -> tuple[str, Digest]:
    return ("text", digest(message.encode())) if isinstance(message, str) else ("binary", digest(message))


def conversation() -> Iterator[str | bytes | list[str]]:
    """What clients say; a list is one message in fragments."""
    yield "hello"
    yield ""
    yield "größer ☃ " * 200
    yield b"".join(noise(100_000))
    yield text(300_000).decode()
    yield ["one message ", "in a few", "", " fragments " * 1000]
    yield b"\0" * 70_000
    for number in range(100):
        yield f"number {number}"


def ws_server(options: argparse.Namespace) -> None:
    """Sends everything back; after "hello" a ping of its own.  Blocking or asyncio; with or without TLS."""
    context = server_context(options, "http/1.1") if options.cert else None
    log: dict[str, list[Any]] = {"received": [], "sent": [], "pings": []}

    def note(message: str | bytes) -> None:
        log["received"].append(kind_of(message))
        log["sent"].append(kind_of(message))

    if options.blocking:
        from websockets.sync.server import ServerConnection as BlockingConnection
        from websockets.sync.server import serve as serve_blocking

        def talk_blocking(connection: BlockingConnection) -> None:
            for message in connection:
                note(message)
                connection.send(message)
                if message == "hello":
                    log["pings"].append(digest(b"from the server"))
                    connection.ping(b"from the server").wait()
            say(path=connection.request and connection.request.path, **log, close=connection.close_code)

        with serve_blocking(talk_blocking, "127.0.0.1", 0, ssl=context) as server:
            say(port=server.socket.getsockname()[1])
            server.serve_forever()
        return

    from websockets.asyncio.server import ServerConnection, serve

    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            note(message)
            await connection.send(message)
            if message == "hello":
                log["pings"].append(digest(b"from the server"))
                await connection.ping(b"from the server")
        say(path=connection.request and connection.request.path, **log, close=connection.close_code)

    async def run() -> None:
        async with serve(talk, "127.0.0.1", 0, ssl=context) as server:
            say(port=next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    asyncio.run(run())


def ws_client(options: argparse.Namespace) -> None:
    from websockets.sync.client import connect

    log: dict[str, list[Any]] = {"sent": [], "received": [], "pings": []}
    context = client_context(options.ca, "http/1.1")
    # One thread reads while another writes, and Python 3.11 does not keep them apart.  When a TLS 1.3 ticket is read while the
    # first message is written, that hangs once in some hundred connections, recorded or not.  TLS 1.2 sends none then.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(options.url, ssl=context, proxy=None) as connection:
        for message in conversation():
            whole = "".join(message) if isinstance(message, list) else message
            connection.send(message)
            log["sent"].append(kind_of(whole))
            back = connection.recv()
            assert back == whole
            log["received"].append(kind_of(back))
        connection.ping(b"from the client").wait()
        log["pings"].append(digest(b"from the client"))
        connection.close(1000, "that's all")
        assert connection.response
        say(**log, status=connection.response.status_code, close=connection.close_code, reason=connection.close_reason)


# --- HTTP/2 by h2: what an upgrade leads to, and WebSocket inside of it ---


class H2Server:
    """One connection: HTTP/1.1 that is upgraded to h2c, or HTTP/2 at once; WebSockets by extended CONNECT (RFC 8441)."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        import h2.config
        import h2.connection

        self.sock = sock
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.requests: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.sockets: dict[int, WebSocketEnd] = {}
        self.unsent: dict[int, bytes] = {}
        self.ending: set[int] = set()
        """Streams that end once what is unsent is sent."""

    def run(self) -> None:
        from h2.settings import SettingCodes

        data = self.sock.recv(1 << 16)
        if data.startswith(b"PRI "):
            self.h2.initiate_connection()
            self.h2.update_settings({SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
        else:
            data = self.upgrade(data)
        while True:
            if data:
                self.take(data)
            if waiting := self.h2.data_to_send():
                self.sock.sendall(waiting)
            try:
                data = self.sock.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                return

    def upgrade(self, data: bytes) -> bytes:
        """Take an HTTP/1.1 request, answer 101; the answer to the request itself is stream 1's."""
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(1 << 16)
        head, _, rest = data.partition(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.decode().partition(":") for line in head.split(b"\r\n")[1:])
        }
        assert fields["upgrade"] == "h2c"
        self.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        self.h2.initiate_upgrade_connection(fields["http2-settings"].encode())
        self.requests[1] = {":method": method, ":path": path}
        self.bodies[1] = b""
        self.respond(1)
        return rest

    def take(self, data: bytes) -> None:
        import h2.events

        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    self.requests[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
                    self.bodies[event.stream_id] = b""
                    if ":protocol" in self.requests[event.stream_id]:
                        self.open_socket(event.stream_id)
                case h2.events.DataReceived():
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if not event.data:
                        continue  # comes with the end of a stream
                    if end := self.sockets.get(event.stream_id):
                        self.send(event.stream_id, b"".join(end.echo(event.data)))
                    else:
                        self.bodies[event.stream_id] += event.data
                case h2.events.StreamEnded():
                    if end := self.sockets.pop(event.stream_id, None):
                        self.send(event.stream_id, b"", last=True)
                        say(path=self.requests[event.stream_id][":path"], **end.log)
                    else:
                        self.respond(event.stream_id)
                case h2.events.WindowUpdated():
                    for stream in [event.stream_id] if event.stream_id else list(self.unsent):
                        self.send(stream, b"")

    def respond(self, stream: int) -> None:
        """Answer with what was asked for, and what was sent."""
        request, body = self.requests[stream], self.bodies[stream]
        content = f"{request[':method']} {request[':path']} ".encode() * 500 + body
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "text/plain")])
        self.send(stream, content, last=True)
        say(
            method=request[":method"],
            target=request[":path"],
            status=200,
            request=digest(body),
            response=digest(content),
        )

    def open_socket(self, stream: int) -> None:
        end = self.sockets[stream] = WebSocketEnd(client=False)
        agreed = end.accept(self.requests[stream].get("sec-websocket-extensions", ""))
        self.h2.send_headers(stream, [(":status", "200"), ("sec-websocket-extensions", agreed)])

    def send(self, stream: int, content: bytes, *, last: bool = False) -> None:
        """Send as much as flow control lets pass; keep the rest."""
        content = self.unsent.pop(stream, b"") + content
        if last:
            self.ending.add(stream)
        while room := min(len(content), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size):
            self.h2.send_data(stream, content[:room])
            content = content[room:]
        if content:
            self.unsent[stream] = content
        elif stream in self.ending:
            self.ending.remove(stream)
            self.h2.end_stream(stream)


class WebSocketEnd:
    """One end of a WebSocket without its handshake, by wsproto."""

    def __init__(self, *, client: bool) -> None:
        from wsproto.connection import ConnectionType
        from wsproto.extensions import PerMessageDeflate

        self.deflate = PerMessageDeflate()
        self.type = ConnectionType.CLIENT if client else ConnectionType.SERVER
        self.log: dict[str, Any] = {"sent": [], "received": [], "pings": [], "close": None}
        self._parts: list[str | bytes | bytearray] = []

    def start(self) -> None:
        from wsproto.connection import Connection

        self.connection = Connection(self.type, [self.deflate])

    def accept(self, offer: str) -> str:
        name, _, _ = offer.partition(";")
        assert name.strip() == "permessage-deflate", offer
        agreed = self.deflate.accept(offer)
        self.start()
        return f"permessage-deflate; {agreed}" if agreed and agreed is not True else "permessage-deflate"

    def message(self, content: str | bytes) -> bytes:
        from wsproto.events import BytesMessage, TextMessage

        self.log["sent"].append(kind_of(content))
        return self.connection.send(TextMessage(content) if isinstance(content, str) else BytesMessage(content))

    def ping(self, payload: bytes) -> bytes:
        from wsproto.events import Ping

        self.log["pings"].append(digest(payload))
        return self.connection.send(Ping(payload))

    def take(self, data: bytes) -> Iterator[Any]:
        """Yield whole messages, and whatever else came."""
        from wsproto.events import CloseConnection, Message

        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, Message):
                self._parts.append(event.data)
                if event.message_finished:
                    first = self._parts[0]
                    whole = "".join(self._parts) if isinstance(first, str) else b"".join(self._parts)  # type: ignore[arg-type]
                    self._parts.clear()
                    self.log["received"].append(kind_of(whole))
                    yield whole
            else:
                if isinstance(event, CloseConnection):
                    self.log["close"] = int(event.code)
                yield event

    def echo(self, data: bytes) -> Iterator[bytes]:
        """Yield the answers."""
        from wsproto.events import CloseConnection, Ping

        for event in self.take(data):
            match event:
                case str() | bytes():
                    yield self.message(event)
                    if event == "hello":
                        yield self.ping(b"from the server")
                case Ping() | CloseConnection():
                    yield self.connection.send(event.response())


def h2_server(options: argparse.Namespace) -> None:
    context = server_context(options, "h2", "http/1.1")
    server = listen()
    say(port=server.getsockname()[1])

    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as wrapped:
            H2Server(wrapped).run()

    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


def h2_ws_client(options: argparse.Namespace) -> None:
    """A request, a WebSocket, and requests beside it, all on one connection."""
    import h2.config
    import h2.connection
    import h2.events
    from wsproto.events import CloseConnection, Ping

    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    raw = socket.create_connection(("127.0.0.1", options.port))
    sock = client_context(options.ca, "h2").wrap_socket(raw, server_hostname="localhost")
    authority = f"localhost:{options.port}"
    ended: set[int] = set()
    bodies: dict[int, bytes] = {}
    heads: dict[int, dict[str, str]] = {}
    settings: list[Any] = []

    def flush() -> None:
        sock.sendall(connection.data_to_send())

    def receive() -> None:
        flush()
        data = sock.recv(1 << 16)
        assert data, "the server went away"
        for event in connection.receive_data(data):
            match event:
                case h2.events.RemoteSettingsChanged():
                    settings.append(event)
                case h2.events.ResponseReceived():
                    heads[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
                    bodies[event.stream_id] = b""
                case h2.events.DataReceived():
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    bodies[event.stream_id] += event.data
                case h2.events.StreamEnded():
                    ended.add(event.stream_id)
        flush()

    def get(path: str) -> None:
        stream = connection.get_next_available_stream_id()
        fields = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", authority)]
        connection.send_headers(stream, fields, end_stream=True)
        while stream not in ended:
            receive()
        say(
            method="GET",
            target=path,
            status=int(heads[stream][":status"]),
            request=digest(b""),
            response=digest(bodies[stream]),
        )

    connection.initiate_connection()
    while not settings:
        receive()
    get("/before")
    end = WebSocketEnd(client=True)
    stream = connection.get_next_available_stream_id()
    offer = end.deflate.offer()
    fields = [
        *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/chat")),
        *((":authority", authority), ("sec-websocket-version", "13")),
        (
            "sec-websocket-extensions",
            f"permessage-deflate; {offer}" if isinstance(offer, str) else "permessage-deflate",
        ),
    ]
    connection.send_headers(stream, fields)
    while stream not in heads:
        receive()
    end.deflate.finalize(heads[stream]["sec-websocket-extensions"])
    end.start()

    def send(data: bytes) -> None:
        while data:
            room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            if room:
                connection.send_data(stream, data[:room])
                data = data[room:]
            else:
                receive()
        flush()

    def events() -> Iterator[Any]:
        while not bodies[stream]:
            receive()
        data, bodies[stream] = bodies[stream], b""
        yield from end.take(data)

    for message in conversation():
        whole = "".join(message) if isinstance(message, list) else message
        send(end.message(whole))
        back = None
        while back is None:
            for event in events():
                if isinstance(event, Ping):
                    send(end.connection.send(event.response()))
                elif isinstance(event, str | bytes):
                    back = event
        assert back == whole
    get("/beside")
    send(end.ping(b"from the client"))
    send(end.connection.send(CloseConnection(code=1000, reason="that's all")))
    while end.log["close"] is None:
        for _ in events():
            pass
    connection.end_stream(stream)
    while stream not in ended:
        receive()
    say(status=int(heads[stream][":status"]), **end.log)
    get("/after")
    connection.close_connection()
    flush()
    sock.close()


def tunnel(options: argparse.Namespace) -> None:
    """A plain port whose connections go on over TLS: for clients that do something on plain connections only."""
    context = client_context(options.ca)
    server = listen()
    say(port=server.getsockname()[1])

    def receive(sock: socket.socket) -> bytes | None:
        """Return what has come; None when that was a session ticket, behind which an SSL socket would wait for data."""
        sock.setblocking(False)
        try:
            return sock.recv(1 << 16)
        except ssl.SSLWantReadError:
            return None
        finally:
            sock.setblocking(True)

    def copy(plain: socket.socket, wrapped: ssl.SSLSocket) -> None:
        """One thread for both directions."""
        with plain, wrapped:
            other = {plain: wrapped, wrapped: plain}
            while True:
                ready = [wrapped] if wrapped.pending() else select.select([plain, wrapped], [], [])[0]
                for sock in ready:
                    data = receive(sock)
                    if data == b"":
                        return
                    if data:
                        other[sock].sendall(data)

    while True:
        plain, _ = server.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = socket.create_connection(("127.0.0.1", options.port))
        wrapped = context.wrap_socket(raw, server_hostname="localhost")
        threading.Thread(target=copy, args=(plain, wrapped), daemon=True).start()


PEERS = {
    "http": http_server,
    "grpc-server": grpc_server,
    "grpc-client": grpc_client,
    "ws-server": ws_server,
    "ws-client": ws_client,
    "h2-server": h2_server,
    "h2-ws-client": h2_ws_client,
    "tunnel": tunnel,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    for name in ("--cert", "--key", "--ca", "--url"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int)
    parser.add_argument("--blocking", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    PEERS[options.peer](options)


if __name__ == "__main__":
    main()
