"""``tlscap inspect``: what goes to standard output, what to standard error, and the exit status."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from captures import answer, get, write_capture
from click.testing import CliRunner, Result
from helpers import GET, Wire, make_flow, simple_exchange

from tlscap.cli import inspect as module
from tlscap.errors import OutputError, TlscapError, UsageError
from tlscap.model import Direction, Item, Totals

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class FakeCapture:
    """Stands in for `tlscap.capture.Capture`: items, and what is known after them."""

    def __init__(self, items: list[Item], truncated: str | None = None, totals: Totals | None = None) -> None:
        self._items = items
        self.note = ""
        self.truncated: str | None = None
        self.totals: Totals | None = None
        self._after = truncated, totals

    def items(self) -> Iterator[Item]:
        yield from self._items
        self.truncated, self.totals = self._after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the command over a made-up capture."""

    def run_inspect(fake: FakeCapture | list[Item], *arguments: str) -> Result:
        opened = fake if isinstance(fake, FakeCapture) else FakeCapture(fake)
        monkeypatch.setattr("tlscap.capture.open_capture", lambda path: opened)
        return CliRunner().invoke(module.inspect, ["some.pcapng", *arguments])

    return run_inspect


def two_flows() -> list[Item]:
    h2 = Wire(make_flow(2, alpn="h2"))
    return [*simple_exchange(), h2.out(b"PRI"), h2.into(b"x")]


def test_table(run: Run) -> None:
    """The table goes to standard output, the counts to standard error."""
    result = run(two_flows())
    assert result.exit_code == 0
    header, row = result.stdout.splitlines()
    titles = ["#", "TIME", "PROCESS", "CONN", "PROTO", "METHOD", "URL", "STATUS", "TYPE", "SENT", "RECEIVED", "TOOK"]
    assert header.split() == titles
    assert row.split()[2:8] == ["curl[4711]", "1", "h1", "GET", "https://a/", "200"]
    assert result.stderr == "1 exchange on 2 connections; 1 connection was HTTP/2 without an exchange\n"


def test_json(run: Run) -> None:
    """``--json`` is one object a line and nothing else."""
    wire = Wire()
    result = run([wire.out(GET * 2), wire.into(OK * 2)], "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 2]


def test_json_with_messages(run: Run) -> None:
    """``--messages`` adds what was said in streams and tunnels, to those exchanges that are wanted."""
    wire = Wire()
    ask = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 18\r\n\r\ndata: a\n\ndata: %d\n\n"
    items = [wire.out(ask % 1 + ask % 2), wire.into(stream % 1), wire.into(stream % 2)]
    for words, found in ((), [["a", "1"], ["a", "2"]]), (("path:/2",), [["a", "2"]]):
        lines = list(map(json.loads, run(items, *words, "--json", "--messages").stdout.splitlines()))
        assert [[message["text"] for message in line["message_list"]] for line in lines] == found
        assert [line["messages_left_out"] for line in lines] == [0] * len(found)
    (plain,) = run(simple_exchange(), "--json", "--messages").stdout.splitlines()
    assert json.loads(plain)["message_list"] == []
    assert "message_list" not in run(items, "--json").stdout


def test_empty(run: Run) -> None:
    """A capture without a connection is no error."""
    assert run([], "--json").stdout == ""
    assert run([]).stderr == "0 exchanges on 0 connections\n"


def test_loss_is_said(run: Run) -> None:
    """Lost bytes, unread bytes and a file that ends early are said on standard error."""
    wire = Wire()
    totals = Totals(counted=[100, 10], stored=[90, 10], gaps=1)
    items: list[Item] = [wire.into(b"junk"), wire.out(GET), wire.into(OK)]
    result = run(FakeCapture(items, truncated="ends\x1b early", totals=totals))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        r"warning: ends\x1b early",
        "1 exchange on 1 connection; 4 of HTTP connections not readable as HTTP; 10 bytes lost in 1 hole",
    ]


@pytest.mark.parametrize(("choice", "colored"), [("auto", False), ("always", True), ("never", False)])
def test_color(run: Run, choice: str, *, colored: bool) -> None:
    """A pipe gets colors only when asked."""
    assert ("\x1b[" in run(two_flows(), "--color", choice).stdout) is colored


def test_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, columns fit and colors are on; NO_COLOR turns them off."""
    monkeypatch.setattr("tlscap.cli.output.terminal_width", lambda: 110)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in run(two_flows()).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    wire = Wire()
    lines = run([wire.out(GET.replace(b"/", b"/" + b"x" * 200, 1) * 250), wire.into(OK * 250)]).stdout.splitlines()
    assert len(lines) == 251
    assert max(map(len, lines)) <= 110
    assert "…" in lines[-1]


# --- Bodies ---


def test_body(run: Run) -> None:
    """``--body`` writes the response's body, decoded, and no other."""
    body = gzip.compress(b"hello, body")
    items = [*simple_exchange(b"not this"), *simple_exchange(body, b"Content-Encoding: gzip", flow=make_flow(2))]
    result = run(items, "--body", "2")
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, b"hello, body", "")
    assert run(items, "--body", "2", "--raw").stdout_bytes == body


def test_request_body(run: Run) -> None:
    """``--request-body`` writes the other side's."""
    wire = Wire()
    items = [wire.out(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\x00\xff\n"), wire.into(OK)]
    assert run(items, "--body", "1", "--request-body").stdout_bytes == b"\x00\xff\n"


@pytest.mark.parametrize("encoded", [False, True])
def test_incomplete_body(run: Run, *, encoded: bool) -> None:
    """What is there of a body is written; exit status 6 says that bytes are missing."""
    text = os.urandom(3000)
    body = gzip.compress(text) if encoded else text
    wire = Wire()
    head = b"HTTP/1.1 200 OK\r\n" + b"Content-Encoding: gzip\r\n" * encoded + b"Content-Length: %d\r\n\r\n" % len(body)
    items = [wire.out(GET), wire.into(head + body[:2000]), wire.gap(Direction.INBOUND, 10), wire.into(body[2010:])]
    result = run(items, "--body", "1")
    assert result.exit_code == module.INCOMPLETE
    if encoded:
        assert text.startswith(result.stdout_bytes)
        assert len(result.stdout_bytes) > 1000
    else:
        assert result.stdout_bytes == text[:2000] + text[2010:]
    assert (
        result.stderr
        == "the body of exchange 1 is incomplete: 10 bytes missing (response: bytes missing (ring-full))\n"
    )


def test_content_that_ends_early(run: Run) -> None:
    """A complete message with half a gzip stream in it is incomplete too."""
    result = run(simple_exchange(gzip.compress(b"x" * 100)[:-9], b"Content-Encoding: gzip"), "--body", "1")
    assert result.exit_code == module.INCOMPLETE
    assert "ends too early" in result.stderr


@pytest.mark.parametrize(
    ("items", "arguments", "message"),
    [
        (two_flows(), ["--body", "7"], "no exchange 7 in this recording: the last one is 1"),
        ([], ["--body", "1"], "no exchange 1 in this recording: there are none"),
        ([Wire().out(GET)], ["--body", "1"], "exchange 1 has no response: no response: recording ended"),
        (
            simple_exchange(b"junk!", b"Content-Encoding: zstd"),
            ["--body", "1"],
            "the body of exchange 1 can't be decoded: zstd",
        ),
        (simple_exchange(b"x", b"Content-Encoding: pack200"), ["--body", "1"], "unknown content coding 'pack200'"),
    ],
)
def test_errors(run: Run, items: list[Item], arguments: list[str], message: str) -> None:
    """What can't be done is one line, with exit status 1."""
    error = run(items, *arguments).exception
    assert isinstance(error, TlscapError)
    assert error.exit_status == 1
    assert message in str(error)


def test_bomb(run: Run) -> None:
    """A small body that stands for a gigabyte is reported, not expanded."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    error = run(simple_exchange(bomb, b"Content-Encoding: gzip"), "--body", "1").exception
    assert isinstance(error, TlscapError)
    assert "a bomb" in str(error)
    assert error.hint == "--raw writes it as it was sent"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--raw"],
        ["--request-body"],
        ["--json", "--body", "1"],
        ["--har", "--curl"],
        ["--hex"],
        ["--address"],
        ["--messages"],
        ["--messages", "--har"],
        ["--messages", "--json", "--flows"],
        ["--headers", "--stats"],
        ["status:200", "--body", "1"],
        ["status:"],
    ],
)
def test_usage(run: Run, arguments: list[str]) -> None:
    """Options that make no sense together are refused."""
    assert isinstance(run([], *arguments).exception, UsageError)


# --- The other forms ---


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A capture of two connections, on disk."""
    one = [
        (get("/json", "X-A: b"), answer(b'{"a": 1}', "Content-Type: application/json")),
        (get("/missing"), answer(b"gone", "Content-Type: text/plain", status=404)),
    ]
    return str(write_capture(tmp_path / "c.tlscap.zst", one, [(get("/other", host="b"), answer(b"\x00\xff"))]))


def invoke(path: str, *arguments: str) -> Result:
    result = CliRunner().invoke(module.inspect, [path, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_filter(path: str) -> None:
    """Words of a filter, in one argument or several; the closing line says of how many."""
    for words in (["status:404"], ["method:GET status:4xx"], ["method:GET", "status:4xx"]):
        result = invoke(path, *words, "--json")
        assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == [404]
        assert result.stderr == "1 of 3 exchanges on 2 connections\n"
    assert invoke(path, "resp.body~gone", "--json").stdout.count("\n") == 1


def test_har(path: str) -> None:
    """One JSON document, with the bodies of what was asked for and no other."""
    har = json.loads(invoke(path, "--har").stdout)
    assert [entry["request"]["url"] for entry in har["log"]["entries"]] == [
        "https://example.org/json",
        "https://example.org/missing",
        "https://b/other",
    ]
    assert har["log"]["entries"][0]["response"]["content"]["text"] == '{"a": 1}'
    assert len(json.loads(invoke(path, "--har", "host:b").stdout)["log"]["entries"]) == 1
    assert json.loads(invoke(path, "--har", "host:nowhere").stdout)["log"]["entries"] == []


def test_curl(path: str) -> None:
    """A command for each; on request to the recorded address."""
    assert "curl --http1.1 https://b/other" in invoke(path, "--curl").stdout
    assert "--connect-to ::93.184.216.34:443" in invoke(path, "--curl", "--address", "host:b").stdout


def test_headers(path: str) -> None:
    """Heads as sent, marked by who sent them."""
    lines = invoke(path, "--headers", "path:/json").stdout.splitlines()
    assert lines[0].endswith("https://example.org/json")
    assert lines[1:4] == ["> GET /json HTTP/1.1", "> Host: example.org", "> X-A: b"]
    assert "< Content-Type: application/json" in lines
    assert "\x1b[36m" in invoke(path, "--headers", "--color", "always").stdout


def test_flows(path: str) -> None:
    """Connections, all or those with a wanted exchange."""
    rows = invoke(path, "--flows").stdout.splitlines()
    assert len(rows) == 3
    assert "syscall" in rows[1]
    (only,) = invoke(path, "--flows", "--json", "status:404").stdout.splitlines()
    assert json.loads(only)["exchanges"] == 2


def test_stats(path: str) -> None:
    """Sums, for people and for programs."""
    assert "example.org" in invoke(path, "--stats").stdout
    assert json.loads(invoke(path, "--stats", "--json").stdout)["exchanges"] == 3


def test_follow(path: str) -> None:
    """The conversation around an exchange, or on a connection; its heads; its bytes."""
    whole = invoke(path, "--follow", "2").stdout
    assert "GET /json" in whole
    assert "gone" in whole
    assert "/other" not in whole
    assert "gone" not in invoke(path, "--follow", "2", "--headers").stdout
    assert "|GET /other HTTP/|" in invoke(path, "--follow-flow", "2", "--hex").stdout
    for arguments, message in ((["--follow", "9"], "no exchange 9"), (["--follow-flow", "9"], "no connection 9")):
        error = CliRunner().invoke(module.inspect, [path, *arguments]).exception
        assert isinstance(error, TlscapError)
        assert message in str(error)


def test_hex_body(path: str) -> None:
    """Bytes that a terminal should not get."""
    assert invoke(path, "--body", "3", "--hex").stdout == "00000000  00 ff" + " " * 45 + "|..|\n"


def test_bodies(path: str, tmp_path: Path) -> None:
    """A file for each, for its owner only; an existing one is left alone."""
    folder = tmp_path / "bodies"
    result = invoke(path, "--bodies", str(folder), "host:example.org")
    assert sorted(file.name for file in folder.iterdir()) == ["0001-response.json", "0002-response.txt"]
    assert (folder / "0001-response.json").read_bytes() == b'{"a": 1}'
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert f"{folder}/0001-response.json  8" in result.stdout
    again = CliRunner().invoke(module.inspect, [path, "--bodies", str(folder)]).exception
    assert isinstance(again, OutputError)


def script(body: str) -> list[str]:
    """Return the command that runs ``inspect`` over the items that ``body`` yields."""
    text = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from helpers import GET, Wire, simple_exchange
        from test_inspect import FakeCapture
        import tlscap.capture
        from tlscap.cli import inspect
        def items():
{textwrap.indent(textwrap.dedent(body), " " * 12)}
        fake = FakeCapture([])
        fake.items = items
        tlscap.capture.open_capture = lambda path: fake
        inspect.inspect()
    """
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_broken_pipe() -> None:
    """A reader that has seen enough ends the command quietly."""
    command = script("""
        wire = Wire()
        while True:
            yield wire.out(GET)
            yield wire.into(b"HTTP/1.1 204 x\\r\\n\\r\\n")
    """)
    process = subprocess.Popen([*command, "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().startswith(b"   #")
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=20) == 0


def test_large_body_takes_little_memory() -> None:
    """A body of more than 4 GiB goes through in a few MB, and reading stops where it ends."""
    command = script("""
        wire = Wire()
        piece = bytes(1 << 20)
        yield wire.out(GET)
        yield wire.into(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % ((4 << 30) + (64 << 20)))
        import resource
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range((4 << 10) + 64):
            yield wire.into(piece)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 20_000
        yield wire.out(GET)
        raise AssertionError("read on")
    """)
    process = subprocess.Popen([*command, "x", "--body", "1"], stdout=subprocess.PIPE)
    assert process.stdout
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)  # fewer and larger pieces
    length = 0
    while piece := process.stdout.read(1 << 20):
        length += len(piece)
    process.stdout.close()
    assert (process.wait(timeout=20), length) == (0, (4 << 30) + (64 << 20))
