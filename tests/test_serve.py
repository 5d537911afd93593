"""``tlscap.replay.serve`` with real clients over loopback: what was recorded is what they get."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from captures import answer, get, write_capture
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import MS, PATIENCE_S, START_NS, connected, pieces, recording, request, response

from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.replay.recording import Interim, RecordedExchange, Recording, load
from tlscap.replay.serve import ReceivedRequest, ReplayServer, ServeOptions
from tlscap.replay.serve.answers import Answer, UnservableError

CAPTURES = Path(__file__).parent / "fixtures" / "captures"


def raw(server: ReplayServer, data: bytes, *, reading: int = 1 << 20) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    with connected(server) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(reading):
            received += piece
        return received


def trust(server: ReplayServer) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=server.ca_pem.decode())


def one(*fields: tuple[bytes, bytes], target: str = "/", body: bytes = b"", **more: object) -> Recording:
    return recording((request(target=target), response(200, *fields, body=body, **more)))  # type: ignore[arg-type]


# --- Fidelity ---


def test_every_byte_of_http1() -> None:
    """Status, reason, order and case of fields, duplicates, interim answers, chunks, trailers; nothing is added."""
    with ReplayServer(load(str(CAPTURES / "chunked.tlscap.zst"))) as server:
        exchange = load(str(CAPTURES / "chunked.tlscap.zst")).exchanges[0]
        body = exchange.request.body
        asked = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        assert exchange.response
        one, two, three = (piece.data for piece in exchange.response.pieces)
        assert raw(server, asked) == (
            b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
            b"Transfer-Encoding: chunked\r\nTrailer: Server-Timing\r\n\r\n"
            b"a\r\n%b\r\n1\r\n%b\r\n1d\r\n%b\r\n0\r\nServer-Timing: db;dur=53\r\nX-More: yes\r\n\r\n"
            % (one, two, three)
        )
        assert raw(server, asked.replace(b"/1.1", b"/1.0")) == (
            b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
            b"Trailer: Server-Timing\r\n\r\n" + one + two + three
        )
        assert raw(server, b"HEAD /upload HTTP/1.1\r\n\r\nDELETE /upload HTTP/1.1\r\n\r\n") == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
        )
        assert (server.served, server.unmatched, server.unused) == (4, [], [])


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_an_answer_that_ends_with_its_connection(version: bytes) -> None:
    fields = ((b"X-b", b"2"), (b"x-A", b"1"), (b"X-b", b"3 \xe9"))
    made = one(*fields, body=pieces(b"one", b"two"), version=version, reason=b"Fine\xe9")  # type: ignore[arg-type]
    with ReplayServer(made) as server:
        expected = version + b" 200 Fine\xe9\r\nX-b: 2\r\nx-A: 1\r\nX-b: 3 \xe9\r\n\r\nonetwo"
        assert raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n") == expected


def test_http2_answers_for_http1_clients() -> None:
    made = recording(
        (request(target="/a", version=b"HTTP/2"), response(404, (b"x", b"y"), body=pieces(b"ab", b"c"), version=b"HTTP/2", trailers=((b"t", b"1"),))),
        (request(target="/b", version=b"HTTP/2"), response(200, (b"content-length", b"2"), body=b"ok", version=b"HTTP/2")),
    )  # fmt: skip
    with ReplayServer(made) as server:
        assert raw(server, b"GET /a HTTP/1.1\r\n\r\n") == (
            b"HTTP/1.1 404 Not Found\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nt: 1\r\n\r\n"
        )
        assert raw(server, b"GET /b HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
        assert raw(server, b"GET /a HTTP/1.0\r\n\r\n") == b"HTTP/1.1 404 Not Found\r\nx: y\r\n\r\nabc"


def frames(
    server: ReplayServer, *asked: list[tuple[bytes, bytes]], window: int = 65_535
) -> list[list[h2.events.Event]]:
    """Ask over HTTP/2 with prior knowledge; return the events of each stream."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    for number, headers in enumerate(asked):
        client.send_headers(1 + 2 * number, headers, end_stream=True)
    found: list[list[h2.events.Event]] = [[] for _ in asked]
    with connected(server) as connection:
        connection.sendall(client.data_to_send())
        open_streams = len(asked)
        while open_streams:
            data = connection.recv(1 << 16)
            assert data
            for event in client.receive_data(data):
                stream_id = getattr(event, "stream_id", None)
                if stream_id:
                    found[(stream_id - 1) // 2].append(event)
                    open_streams -= isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            connection.sendall(client.data_to_send())
    return found


def asking(path: bytes, method: bytes = b"GET") -> list[tuple[bytes, bytes]]:
    return [(b":method", method), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", path)]


def test_http1_answers_for_http2_clients() -> None:
    fields = (
        (b"X-B", b"2 "),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"5"),
        (b"X-b", b"3"),
    )
    answered = response(
        200,
        *fields,
        (b"Transfer-Encoding", b"chunked"),
        body=pieces(b"ab", b"c"),
        reason=b"OK",
        trailers=((b"T", b"1"),),
    )
    answered.interim.append(Interim(103, b"", ((b"Link", b"<x>"),), START_NS))
    with ReplayServer(recording((request(), answered))) as server:
        events = frames(server, asking(b"/"))[0]
        assert [type(event).__name__ for event in events] == [
            *("InformationalResponseReceived", "ResponseReceived", "DataReceived", "DataReceived"),
            *("TrailersReceived", "StreamEnded"),
        ]
        assert [getattr(event, "headers", getattr(event, "data", None)) for event in events[:5]] == [
            [(b":status", b"103"), (b"link", b"<x>")],
            [(b":status", b"200"), (b"x-b", b"2"), (b"x-b", b"3")],
            b"ab",
            b"c",
            [(b"t", b"1")],
        ]


def test_many_streams_and_a_large_body() -> None:
    """Larger than any window, and more streams than tasks would be comfortable with."""
    large = bytes(range(256)) * 4096
    made = recording(
        (request(target="/large"), response(200, (b"content-length", b"%d" % len(large)), body=large)),
        *((request(target=f"/{n}"), response(200, (b"n", b"%d" % n))) for n in range(90)),
    )
    with ReplayServer(made) as server:
        streams = frames(server, asking(b"/large"), *(asking(b"/%d" % n) for n in range(90)))
        assert b"".join(event.data or b"" for event in streams[0] if isinstance(event, h2.events.DataReceived)) == large
        for number, events in enumerate(streams[1:]):
            assert isinstance(events[0], h2.events.ResponseReceived)
            assert events[0].headers[1:] == [(b"n", b"%d" % number)]
        assert raw(server, b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n").endswith(b"\r\n\r\n" + large)


@pytest.mark.parametrize("length", [b"3", b"999999", b"x", b"5, 6"])
def test_wrong_lengths_are_corrected(length: bytes) -> None:
    with ReplayServer(one((b"A", b"1"), (b"Content-Length", length), (b"B", b"2"), body=b"12345")) as server:
        assert (
            raw(server, b"GET / HTTP/1.1\r\n\r\n")
            == b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 5\r\nB: 2\r\n\r\n12345"
        )


def test_transfer_codings_are_undone_for_clients_that_know_none() -> None:
    import gzip

    packed = gzip.compress(b"content")
    with ReplayServer(one((b"Transfer-Encoding", b"gzip, chunked"), body=packed)) as server:
        assert raw(server, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\ncontent"
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n").endswith(
            b"chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
        )
        (events,) = frames(server, asking(b"/"))
        assert (
            b"".join(event.data or b"" for event in events if isinstance(event, h2.events.DataReceived)) == b"content"
        )


@pytest.mark.parametrize("http2", [False, True])
def test_httpx_over_tls(http2: bool) -> None:
    with (
        ReplayServer(load(str(CAPTURES / "http1-keep-alive.tlscap.zst"))) as server,
        httpx.Client(timeout=PATIENCE_S, http1=not http2, http2=http2, verify=trust(server)) as client,
    ):
        first, second = client.get(server.https_url + "/1"), client.get(server.https_url + "/2")
        assert first.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        exchange = load(str(CAPTURES / "http1-keep-alive.tlscap.zst")).exchanges[1]
        assert exchange.response
        assert second.content == exchange.response.decoded()
        assert second.headers["content-encoding"] == "gzip"
        assert client.get(server.url + "/1").text == first.text


# --- One port for all ---


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, timeout=PATIENCE_S)


def test_curl_in_every_way(tmp_path: Path) -> None:
    made = recording(
        (request(target="/x"), response(200, (b"Content-Length", b"2"), body=b"ok")),
        (request(target="/x", authority="other.example"), response(200, (b"Content-Length", b"5"), body=b"other")),
    )
    with ReplayServer(made) as server:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(server.ca_pem)
        trusting = ("--cacert", str(ca))
        ours = ("-H", "Host: example.org")
        for arguments, expected in (
            ((server.url + "/x", "--http1.1", *ours), b"ok"),
            ((server.url + "/x", "--http1.0", *ours), b"ok"),
            ((server.url + "/x", "--http2-prior-knowledge", *ours), b"ok"),
            ((server.url + "/x", "--http2", *ours), b"ok"),  # an upgrade that isn't taken
            ((server.https_url + "/x", "--http2", *trusting, *ours), b"ok"),
            ((server.https_url + "/x", "--http1.1", *trusting, *ours), b"ok"),
            (("https://other.example/x", "-x", server.url, *trusting), b"other"),
            (("https://example.org/x", "-x", server.url, "--http1.1", *trusting), b"ok"),
            (("http://other.example/x", "-x", server.url), b"other"),
            ((f"https://other.example:{server.port}/x", "--resolve", f"other.example:{server.port}:127.0.0.1", *trusting), b"other"),
        ):  # fmt: skip
            done = curl(*arguments)
            assert (done.stdout, done.stderr) == (expected, b""), arguments
        names = f"unknown.example:{server.port}:127.0.0.1"
        assert curl(f"https://unknown.example:{server.port}/y", "--resolve", names, *trusting).returncode == 0
        assert b"host: is 10.1.2.3" in curl("https://10.1.2.3/x", "-x", server.url, *trusting).stdout  # sends no SNI
        assert b"host: is third.example" in curl("https://third.example/x", "-x", server.url, *trusting).stdout
        assert server.served == 10


def test_an_upgrade_that_is_not_taken_keeps_its_body() -> None:
    """RFC 9110, 7.8: the request is answered as if it hadn't asked."""
    with ReplayServer(recording((request("POST", body=b"12345"), response(200, (b"Content-Length", b"0"))))) as server:
        asked = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n12345"
        assert raw(server, asked + asked) == 2 * b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("options", "tls", "plain"),
    [(ServeOptions(plain=False), True, False), (ServeOptions(tls=False), False, True), (ServeOptions(), True, True)],
)
def test_restricted_to_tls_or_plain(options: ServeOptions, *, tls: bool, plain: bool) -> None:
    with ReplayServer(one((b"Content-Length", b"0")), options) as server:
        assert (b" 200 " in raw(server, b"GET / HTTP/1.1\r\n\r\n")) == plain
        assert bool(server.ca_pem) == tls
        context = trust(server) if tls else ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            assert tls
        except OSError:
            assert not tls
        finally:
            connection.close()


def test_restricted_to_a_version() -> None:
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(http1=False)) as server:
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\nThis server speaks HTTP/2 only.\n")
        assert frames(server, asking(b"/"))
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(http2=False)) as server:
        with pytest.raises(ConnectionError):
            frames(server, asking(b"/"))
        with httpx.Client(timeout=PATIENCE_S, http2=True, verify=trust(server)) as client:
            assert client.get(server.https_url).http_version == "HTTP/1.1"


def test_certificates_of_ones_own(tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(certificate=str(tmp_path / "both.pem"))) as server:
        assert server.ca_pem == b""
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        assert httpx.get(server.https_url, verify=context, timeout=PATIENCE_S).status_code == 200
    with pytest.raises(OutputError, match="No such file"):
        ReplayServer(one(), ServeOptions(certificate=str(tmp_path / "none.pem")))
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(UsageError, match="junk"):
        ReplayServer(one(), ServeOptions(certificate=str(tmp_path / "junk.pem")))


def test_names_that_no_certificate_can_have() -> None:
    made = recording(*((request(authority=host), response(200, (b"Content-Length", b"0"))) for host in ("a_b.example", "x" * 300, "good.example")))  # fmt: skip
    with (
        ReplayServer(made) as server,
        connected(server) as plain,
        trust(server).wrap_socket(plain, server_hostname="good.example") as secured,
    ):
        assert ("DNS", "good.example") in secured.getpeercert()["subjectAltName"]  # type: ignore[index]


def test_a_shared_authority() -> None:
    import trustme

    authority = trustme.CA()
    for _ in range(2):
        with ReplayServer(one((b"Content-Length", b"0")), certificate_authority=authority) as server:
            assert server.ca_pem == authority.cert_pem.bytes()
            assert httpx.get(server.https_url, verify=trust(server), timeout=PATIENCE_S).status_code == 200


# --- Which answer ---


def asks(server: ReplayServer, *targets: str) -> list[str]:
    with httpx.Client(timeout=PATIENCE_S) as client:
        return [
            found.text if (found := client.get(server.url + target)).status_code == 200 else "-" for target in targets
        ]


TWICE = [("/a", b"a1"), ("/b", b"b1"), ("/a", b"a2")]


@pytest.mark.parametrize(
    ("order", "repeat", "targets", "expected"),
    [
        ("any", "last", "/b /a /a /a /b", "b1 a1 a2 a2 b1"),
        ("any", "once", "/b /a /a /a /b", "b1 a1 a2 - -"),
        ("any", "cycle", "/a /a /a /a /a", "a1 a2 a1 a2 a1"),
        ("sequence", "last", "/b /a /a /a", "b1 a1 a2 a2"),
        ("strict", "last", "/b /a /a /b /a /a", "- a1 - b1 a2 -"),
        ("strict", "cycle", "/a /b /a /a /b", "a1 b1 a2 a1 b1"),
    ],
)
def test_order_and_repeats(order: str, repeat: str, targets: str, expected: str) -> None:
    made = recording(
        *((request(target=target), response(200, (b"Content-Length", b"2"), body=body)) for target, body in TWICE)
    )
    with ReplayServer(made, ServeOptions(order=order, repeat=repeat)) as server:
        assert asks(server, *targets.split()) == expected.split()
        assert server.unmatched_count == len(server.unmatched) == expected.count("-")


@pytest.mark.parametrize(
    ("order", "repeat", "bodies", "expected"),
    [
        ("any", "last", "2 1 1 3", "two one one -"),
        ("sequence", "last", "2 1 1 2 2 1", "- one - two two -"),
        ("sequence", "once", "1 2 2", "one two -"),
        ("sequence", "cycle", "1 1 2 1", "one - two one"),
    ],
)
def test_a_sequence_is_about_bodies_too(order: str, repeat: str, bodies: str, expected: str) -> None:
    made = recording(
        *((request("POST", body=asked), response(200, (b"Content-Length", b"3"), body=body)) for asked, body in ((b"1", b"one"), (b"2", b"two")))
    )  # fmt: skip
    with (
        ReplayServer(made, ServeOptions(order=order, repeat=repeat)) as server,
        httpx.Client(timeout=PATIENCE_S) as client,
    ):
        found = [client.post(server.url, content=body) for body in bodies.split()]
        assert [answer.text if answer.status_code == 200 else "-" for answer in found] == expected.split()


def test_unused() -> None:
    with ReplayServer(recording(*((request(target=f"/{n}"), response()) for n in range(3)))) as server:
        raw(server, b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert [exchange.id for exchange in server.unused] == [1, 3]
    assert server.served == 1


def test_hosts_count_when_there_are_several() -> None:
    made = recording(
        *(
            (request(authority=host), response(200, (b"Content-Length", b"%d" % len(host)), body=host.encode()))
            for host in ("a.example", "b.example:8443", "b.example")
        )
    )
    with ReplayServer(made, ServeOptions(repeat="once")) as server, httpx.Client(timeout=PATIENCE_S) as client:

        def host(name: str) -> str:
            return client.get(server.url, headers={"Host": name}).text.splitlines()[0]

        assert host("b.example") == "b.example"
        assert host("b.example:8443") == "b.example:8443"
        assert host("A.example:9999") == "a.example"  # nobody asked that port: the name is enough
        assert host("localhost").startswith("Already used up")


# --- Nothing matches ---


def test_unmatched_for_people_and_programs() -> None:
    made = recording(
        (request("POST", "/login", (b"content-type", b"application/json"), body=b'{"user": "ann"}'), response())
    )
    told: list[str] = []
    with ReplayServer(made, on_unmatched=lambda request: told.append(request.explanation)) as server:
        for version in ("http1", "http2"):
            with httpx.Client(timeout=PATIENCE_S, http1=version == "http1", http2=version == "http2") as client:
                answered = client.post(server.url + "/login", json={"user": "bob"}, headers={"accept": "*/*"})
                assert (answered.status_code, answered.headers["x-tlscap-replay"]) == (501, "unmatched")
                assert answered.text.splitlines()[1:3] == [
                    "  nearest: exchange 1, POST https://example.org/login",
                    '    body: $.user is "bob", recorded "ann"',
                ]
                answered = client.post(server.url + "/login", headers={"accept": "application/json"})
                assert answered.json()["differences"] == ["body: is empty, recorded as JSON"]
                assert answered.json()["nearest"]["exchange"] == 1
        assert server.unmatched_count == 4
        assert [request.explanation for request in server.unmatched] == told
        assert "http" in server.unmatched[0].summary
        json.dumps(server.unmatched[0].details)


def test_fallback() -> None:
    seen: list[ReceivedRequest] = []

    async def fallback(received: ReceivedRequest) -> RecordedExchange | None:
        seen.append(received)
        if received.target == b"/none":
            return None
        return recording((request(), response(200, (b"Content-Length", b"3"), body=b"new"))).exchanges[0]

    with ReplayServer(one((b"Content-Length", b"0")), fallback=fallback) as server:
        for http2 in (False, True):
            with httpx.Client(timeout=PATIENCE_S, http1=not http2, http2=http2) as client:
                assert client.get(server.url + "/").content == b""
                assert client.post(server.url + "/new?x=1", content=b"body").content == b"new"
                assert client.get(server.url + "/none").status_code == 501
        assert (server.served, server.forwarded, server.unmatched_count) == (2, 2, 2)
        assert server.faults == []
    first = seen[0]
    assert (first.method, first.target, first.body, first.scheme, first.version) == (
        b"POST",
        b"/new?x=1",
        b"body",
        "http",
        b"HTTP/1.1",
    )
    assert first.authority == b"127.0.0.1:%d" % server.port
    assert seen[2].version == b"HTTP/2"


def test_a_fallback_that_fails() -> None:
    async def fallback(received: ReceivedRequest) -> RecordedExchange | None:
        if received.target == b"/raises":
            raise ValueError("no way")
        return recording((request(), response(200, (b"a\r\nb", b"c")))).exchanges[0]

    with ReplayServer(Recording("", [], None, 0, 0), fallback=fallback) as server:
        assert raw(server, b"GET /raises HTTP/1.1\r\n\r\n").endswith(b"The fallback failed: ValueError: no way\n")
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert [str(fault) for fault in server.faults] == ["no way"]


# --- What can't be served ---


def test_incomplete_recordings_are_refused() -> None:
    made = load(str(CAPTURES / "lost-step.tlscap.zst"))
    with pytest.raises(TlscapError, match=r"bytes are missing in exchanges 2 \(GET https://example.org/2\), 5"):
        ReplayServer(made)
    with ReplayServer(made, ServeOptions(allow_incomplete=True)) as server:
        assert [exchange.id for exchange, _ in server.left_out] == [2, 5]
        assert httpx.get(server.url + "/3", timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        ((b"A", b"1\r\nB: 2"),),
        ((b"A", b"1\n"),),
        ((b"A", b"\0"),),
        ((b"A\r\nB", b"1"),),
        ((b"", b"1"),),
        ((b":status", b"200"),),
        ((b"A B", b"1"),),
        ((b"A\xe9", b"1"),),
    ],
)
def test_fields_that_would_split_a_response(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    interim = response(200)
    interim.interim.append(Interim(103, b"", fields, 0))
    for hostile in (response(200, *fields), response(200, trailers=fields), interim):
        with pytest.raises(UnservableError):
            Answer(hostile)
    made = recording((request(target="/bad"), response(200, *fields)), (request(target="/good"), response()))
    with ReplayServer(made) as server:
        assert [exchange.id for exchange, _ in server.left_out] == [1]
        assert raw(server, b"GET /bad HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 501 ")


@pytest.mark.parametrize(
    "hostile",
    [response(0), response(99), response(103), response(1000), response(101), response(200, reason=b"a\r\nb: c"), response(200, reason=b"\0")],
)  # fmt: skip
def test_status_lines_that_are_none(hostile: object) -> None:
    with pytest.raises(TlscapError, match="nothing in it can be served"):
        ReplayServer(recording((request(), hostile)))  # type: ignore[arg-type]


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for wrong in ({"order": "x"}, {"repeat": "x"}, {"tls": False, "plain": False}, {"key": "x"}, {"timing": -1.0}):
        with pytest.raises(UsageError):
            ServeOptions(**wrong)
    with pytest.raises(UsageError):
        ReplayServer(one(), ServeOptions(match="nonsense"))
    with ReplayServer(one()) as server, pytest.raises(OutputError, match="can't be listened on"):
        ReplayServer(one(), ServeOptions(port=server.port)).start()


# --- Hostile clients ---


def test_limits_of_http1() -> None:
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(body_limit=1000)) as server:
        assert raw(server, b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * 70_000)).startswith(b"HTTP/1.1 431 ")
        assert raw(server, b"GET /" + b"x" * 200_000).startswith(b"HTTP/1.1 431 ")
        assert raw(server, b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n").startswith(b"HTTP/1.1 413 ")
        chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n%b\r\n0\r\n\r\n" % (b"x" * 1001)
        assert raw(server, chunked).startswith(b"HTTP/1.1 413 ")
        assert raw(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert raw(server, b"CONNECT x HTTP/9\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert raw(server, b"") == b""
        both = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert raw(server, both).startswith(b"HTTP/1.1 400 ")
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        assert server.faults == []


def test_limits_of_http2() -> None:
    with (
        ReplayServer(one((b"Content-Length", b"0")), ServeOptions(body_limit=1000)) as server,
        httpx.Client(timeout=PATIENCE_S, http1=False, http2=True) as client,
    ):
        assert client.post(server.url, content=b"x" * 1001).status_code == 413
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(server.url, headers={f"x-{n}": "x" * 1000 for n in range(70)})
        assert client.get(server.url).status_code == 200


def test_a_client_with_a_small_window() -> None:
    with ReplayServer(one((b"Content-Length", b"100"), body=b"0123456789" * 10)) as server:
        (events,) = frames(server, asking(b"/"), window=7)
        data = [event.data for event in events if isinstance(event, h2.events.DataReceived)]
        assert b"".join(piece or b"" for piece in data) == b"0123456789" * 10
        assert max(len(piece or b"") for piece in data) == 7


def test_all_bodies_together_are_limited() -> None:
    with (
        ReplayServer(one((b"Content-Length", b"0")), ServeOptions(bodies_limit=1000)) as server,
        socket.create_connection(("127.0.0.1", server.port)) as slow,
    ):
        slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: 900\r\n\r\n" + b"x" * 899)
        refused = b""
        while not refused.startswith(b"HTTP/1.1 503"):  # once the other body came
            refused = raw(server, b"POST / HTTP/1.1\r\nContent-Length: 900\r\n\r\n" + b"x" * 900)
        slow.close()
        while raw(server, b"POST / HTTP/1.1\r\nContent-Length: 900\r\n\r\n" + b"x" * 900).startswith(b"HTTP/1.1 503"):
            pass


def test_a_client_that_resets_again_and_again() -> None:
    with ReplayServer(one((b"Content-Length", b"0"))) as server:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        with connected(server) as connection:
            for number in range(600):
                client.send_headers(1 + 2 * number, asking(b"/", b"POST"))
                client.reset_stream(1 + 2 * number)
            connection.sendall(client.data_to_send())
            ended = None
            while data := connection.recv(1 << 16):
                ended = next(
                    (event for event in client.receive_data(data) if isinstance(event, h2.events.ConnectionTerminated)),
                    ended,
                )
            assert ended is not None
            assert ended.error_code == 11  # ENHANCE_YOUR_CALM
        assert server.faults == []


def test_a_client_that_does_not_read() -> None:
    """What it doesn't take stays in the recording: the buffers in between hold little of it."""
    large = bytes(16 << 20)
    with ReplayServer(one((b"Content-Length", b"%d" % len(large)), body=large)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            assert connection.recv(1)
            assert raw(server, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").endswith(large)
        assert server.served < 10
        assert server.faults == []


def test_malformed_http2() -> None:
    with ReplayServer(one((b"Content-Length", b"0"))) as server:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for junk in (
            b"\0" * 100,
            b"\xff" * 100,
            b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff",
            b"\0\0\0\4\0\0\0\0\0\0\0\0\1\5\0\0\0\1",
        ):
            raw(server, preface + junk)
        (events,) = frames(server, asking(b"/"))
        assert isinstance(events[0], h2.events.ResponseReceived)
        assert server.faults == []


@pytest.fixture(scope="module")
def junkyard() -> Iterator[ReplayServer]:
    made = load(str(CAPTURES / "chunked.tlscap.zst"))
    made.exchanges += load(str(CAPTURES / "grpc.tlscap.zst")).exchanges
    with ReplayServer(made) as server:
        yield server


@given(
    st.sampled_from([b"", b"GET /", b"POST /upload HTTP/1.1\r\n", b"POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"CONNECT ", b"\x16\3\1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"]),
    st.lists(st.binary(max_size=30) | st.sampled_from([b"\r\n", b"HTTP/1.1", b"Host: x\r\n", b"\r\n\r\n", b"\0\0\4\1\5\0\0\0\1\x82\x86\x84\x41", b"0\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"]), max_size=8),
)  # fmt: skip
@settings(max_examples=150)
def test_junk_costs_nobody_else_anything(junkyard: ReplayServer, begin: bytes, rest: list[bytes]) -> None:
    with contextlib.suppress(ConnectionError):
        raw(junkyard, begin + b"".join(rest))
    assert junkyard.faults == []
    assert raw(junkyard, b"HEAD /upload HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n"


# --- Times ---


def test_recorded_times() -> None:
    """Answers come no sooner than recorded; with x10 they may come ten times as fast."""
    import time

    answered = response(200, (b"Content-Length", b"2"), body=pieces(b"a", b"b", start_ns=START_NS + 300 * MS), started_ns=START_NS + 200 * MS, ended_ns=START_NS + 301 * MS)  # fmt: skip
    for speed in (1.0, 10.0):
        with ReplayServer(recording((request(), answered)), ServeOptions(timing=speed)) as server:
            for http2 in (False, True):
                with httpx.Client(timeout=PATIENCE_S, http1=not http2, http2=http2) as client:
                    begun = time.monotonic()
                    assert client.get(server.url).content == b"ab"
                    assert time.monotonic() - begun >= 0.3 / speed - 0.01


def test_a_capture_of_the_whole_way(tmp_path: Path) -> None:
    made = write_capture(
        tmp_path / "x.tlscap.zst", [(get("/1"), answer(b"one")), (get("/2"), answer(b"two", status=404))]
    )
    with ReplayServer(load(str(made))) as server:
        assert raw(server, get("/2") + get("/1")) == answer(b"two", status=404) + answer(b"one")


def test_a_client_that_waits_for_100_continue() -> None:
    made = recording((request("POST", body=b"body"), response(200, (b"Content-Length", b"0"))))
    assert made.exchanges[0].response
    made.exchanges[0].response.interim.append(Interim(100, b"Go on", (), START_NS))
    with ReplayServer(made) as server, connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert connection.recv(4096) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        assert (
            httpx.post(server.url, content=b"body", timeout=PATIENCE_S).status_code == 200
        )  # nobody waits: none is sent


def test_many_requests_ahead() -> None:
    """In their order, also when the first takes its time."""
    large = b"x" * 300_000
    made = recording(
        (request(target="/large"), response(200, (b"Content-Length", b"300000"), body=large)),
        *((request(target=f"/{n}"), response(200, (b"N", b"%d" % n), (b"Content-Length", b"0"))) for n in range(500)),
    )
    with ReplayServer(made) as server:
        asked = b"GET /large HTTP/1.1\r\n\r\n" + b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % n for n in range(500))
        received = raw(server, asked)
        assert received.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + large)
        assert [int(line[3:]) for line in received.split(b"\r\n") if line.startswith(b"N: ")] == list(range(500))


def test_requests_ahead_of_a_half_closed_connection() -> None:
    made = recording((request(), response(200, (b"Content-Length", b"300000"), body=b"x" * 300_000)))
    with ReplayServer(made) as server:
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n" * 5).count(b"HTTP/1.1 200 OK\r\n") == 5


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 2000\r\n\r\n", b"413"),
    ],
)
def test_what_came_before_a_refused_request_is_answered(last: bytes, status: bytes) -> None:
    answered = response(200, (b"Content-Length", b"300000"), body=b"x" * 300_000)
    with ReplayServer(recording((request(), answered)), ServeOptions(body_limit=1000)) as server:
        received = raw(server, b"GET / HTTP/1.1\r\n\r\n" * 2 + last + b"GET / HTTP/1.1\r\n\r\n")
        heads = [piece[:12] for piece in received.replace(b"x" * 300_000, b"\n").split(b"HTTP/1.1 ")]
        assert [head[:3] for head in heads[1:]] == [b"200", b"200", status]


def test_the_end_of_a_tls_connection_is_said() -> None:
    """A body that ends with its connection is whole only if close_notify says so."""
    with ReplayServer(one((b"A", b"1"), body=b"x" * 200_000)) as server:
        context = trust(server)
        with (
            connected(server) as plain,
            context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as secured,
        ):
            secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
            received = b""
            while piece := secured.recv(1 << 16):
                received += piece
            assert received == b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n" + b"x" * 200_000


def test_a_websocket_that_was_refused() -> None:
    asked = request("GET", "/chat", (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    with ReplayServer(recording((asked, response(403, (b"Content-Length", b"2"), body=b"no")))) as server:
        received = raw(server, b"GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert received == b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate", b"zstd"])
def test_bombs_in_either_body(coding: bytes) -> None:
    """A recorded request and a received one that claim to be compressed, are not, or stand for very much."""
    import gzip

    bomb = gzip.compress(bytes(80 << 20))
    fields = ((b"content-encoding", coding), (b"content-type", b"application/json"))
    made = recording((request("POST", "/", *fields, body=bomb), response(200, (b"Content-Length", b"0"))))
    with ReplayServer(made) as server, httpx.Client(timeout=PATIENCE_S) as client:
        headers = {name.decode(): value.decode() for name, value in fields}
        assert client.post(server.url, content=bomb, headers=headers).status_code == 200
        assert client.post(server.url, content=bomb[:-9], headers=headers).status_code == 501
        assert server.faults == []


def test_silent_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlscap.replay.serve.door._TICK_S", 0.01)
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(idle_s=0.02)) as server:
        with connected(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(100):
                pass
        client = h2.connection.H2Connection()
        client.initiate_connection()
        with connected(server) as connection:
            connection.sendall(client.data_to_send())
            while connection.recv(100):
                pass


def test_connections_wait_for_a_place() -> None:
    with ReplayServer(one((b"Content-Length", b"0")), ServeOptions(connections=1)) as server:
        first = connected(server)
        first.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert first.recv(100)
        with connected(server) as second:
            second.sendall(b"GET / HTTP/1.1\r\n\r\n")
            first.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert first.recv(100)
            assert server.served == 2
            first.close()
            assert second.recv(100)
        for _ in range(5):  # places are given back by whatever ends
            assert raw(server, b"GET / HTTP/1.1\r\n\r\n")
            assert raw(server, b"") == b""
            with pytest.raises(OSError), connected(server) as plain:
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


def test_stopping_ends_connections() -> None:
    server = ReplayServer(one((b"Content-Length", b"0")))
    server.start()
    with connected(server) as silent, connected(server) as open_:  # fmt: skip
        open_.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert open_.recv(100)
        server.stop()
        server.stop()
        assert open_.recv(100) == b""
        assert silent.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        connected(server)
    assert (server.served, server.faults) == (1, [])
