"""Captures as fixtures of tests: ``@pytest.mark.tlscap("fixtures/login.tlscap.zst")``.

A marked test's HTTP clients are answered from the capture, offline; what they are and how they are used needs no change
(`tlscap.replay.redirect` has how).  A request that the capture has no answer to fails the test with a text that shows the nearest one; exchanges
that no test asked for are reported.

``--tlscap-record`` (or ``tlscap_record`` in pytest's configuration) says where answers come from:

- ``none``: from the capture alone.  The default.
- ``once``: from the capture; when there is none, from the real server, and a capture is made.
- ``new_episodes``: from the capture; what it has no answer to, from the real server, and is added.
- ``all``: from the real server; the capture is made anew.

The real server is recorded with eBPF where that is allowed, else through a plain forward.  docs/pytest.md tells all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    import ssl

    from tlscap.replay.recording import RecordedExchange
    from tlscap.replay.redirect import Redirection
    from tlscap.replay.serve import ReplayServer

MODES: Final = ("none", "once", "new_episodes", "all")
UNUSED: Final = ("report", "fail", "ignore")

_PROPERTY: Final = "tlscap_unused"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tlscap", "answers from captures")
    group.addoption(
        "--tlscap-record", choices=MODES, help="where the answers of tests marked with tlscap come from (default: none)"
    )
    group.addoption(
        "--tlscap-unused", choices=UNUSED, help="what becomes of exchanges that no test asked for (default: report)"
    )
    parser.addini("tlscap_record", "as --tlscap-record", default="none")
    parser.addini("tlscap_unused", "as --tlscap-unused", default="report")
    parser.addini("tlscap_recorder", "how real servers are recorded: auto, kernel or forward", default="auto")
    parser.addini("tlscap_match", "what must be equal: docs/matching.md", default="")
    parser.addini("tlscap_pass", "hosts that are not led to the replay", type="args", default=[])
    parser.addini("tlscap_trust_early", "trust the replay before any test is collected", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "tlscap(file, *, match='', order='any', repeat='last', timing='none', record=None, hosts=(), upstream='', "
        "scrub=True, unused=None): answer the test's HTTP clients from a capture beside the test's file",
    )
    config.stash[_SESSION] = _Session(config)
    if config.getini("tlscap_trust_early"):
        config.stash[_SESSION].trust()


def pytest_unconfigure(config: pytest.Config) -> None:
    if session := config.stash.get(_SESSION, None):
        session.close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> None:
    """Trust the replay before a module that uses it is imported: clients such as aiohttp read the authorities when they are."""
    if file_path.suffix == ".py":
        with contextlib.suppress(OSError):
            text = file_path.read_bytes()
            if b"mark.tlscap" in text or b"tlscap_replay" in text:
                parent.config.stash[_SESSION].trust()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A marked test gets the fixture, whether it names it or not; first, so that other fixtures' clients are led, too."""
    names = getattr(item, "fixturenames", None)
    if names is not None and item.get_closest_marker("tlscap") and "tlscap_replay" not in names:
        names.insert(0, "tlscap_replay")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    replay = item.stash.get(_REPLAY, None)
    if call.when == "call" and replay:
        _judge(replay, report)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == _PROPERTY and getattr(report, "when", "") == "call":
                    lines[f"{report.nodeid}: {value}"] = None
    if lines:
        terminalreporter.section("recorded exchanges that were not asked for")
        for line in lines:
            terminalreporter.line(line)
    session = config.stash[_SESSION]
    for line in session.notes:
        terminalreporter.line(f"tlscap: {line}")


@dataclass
class Replay:
    """What the fixture ``tlscap_replay`` gives: where the answers come from, for tests that want to know."""

    path: Path
    mode: str
    server: ReplayServer | None
    """``None`` while the kernel records: then clients speak with the real server."""
    ca_file: str
    """Certificates to trust, the replay's and those that are trusted anyway, as PEM."""
    environment: dict[str, str] = field(default_factory=dict)
    """For programs that the test starts with an environment of its own."""
    unused_policy: str = "report"

    @property
    def port(self) -> int:
        """Of the replay server on 127.0.0.1: TLS, plain HTTP and a proxy's CONNECT."""
        return self._server.port

    @property
    def url(self) -> str:
        """The replay server's own, with https; its certificate is valid for 127.0.0.1 and localhost."""
        return self._server.https_url

    @property
    def http_url(self) -> str:
        """The same without TLS."""
        return self._server.url

    def ssl_context(self) -> ssl.SSLContext:
        """Return a client's context that trusts the replay server."""
        import ssl  # noqa: PLC0415 - only here

        return ssl.create_default_context(cafile=self.ca_file)

    @property
    def unmatched(self) -> list[str]:
        """Texts that explain requests without an answer."""
        return [each.explanation for each in self.server.unmatched] if self.server else []

    @property
    def unused(self) -> list[str]:
        """Names of recorded exchanges that were not asked for."""
        return [each.name for each in self.server.unused] if self.server else []

    @property
    def _server(self) -> ReplayServer:
        if self.server is None:
            raise pytest.UsageError("while the kernel records there is no replay server: use tlscap_recorder = forward")
        return self.server


@pytest.fixture
def tlscap_replay(request: pytest.FixtureRequest) -> Iterator[Replay]:
    """The replay of the capture that the test's ``tlscap`` marker names."""
    marker = request.node.get_closest_marker("tlscap")
    session = request.config.stash[_SESSION]
    with _plainly(), contextlib.ExitStack() as stack:
        if marker is None:
            raise pytest.UsageError("the fixture tlscap_replay needs @pytest.mark.tlscap(FILE)")
        use = _Use.of(request.config, request.node.path, marker)
        replay = use.begin(session, stack)
        request.node.stash[_REPLAY] = replay
        yield replay


# --- Within ---


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Say in a line what a user can put right: how this plugin came upon it is of no interest."""
    from tlscap.errors import TlscapError  # noqa: PLC0415

    try:
        yield
        return
    except pytest.UsageError as error:
        text = str(error).removeprefix("tlscap: ")
    except TlscapError as error:
        text = f"{error}\n{error.hint}".rstrip()
    raise pytest.fail.Exception(f"tlscap: {text}", pytrace=False) from None


class _Session:
    """What the tests of a run have in common: one certificate authority, and captures that were read."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.notes: list[str] = []
        self.authority: Any = None
        self.trusted_before = b""
        self._folder = ""
        self._variable: str | None = None
        self._captures: dict[tuple[str, int, int], list[RecordedExchange]] = {}
        self.made: set[Path] = set()
        """Captures that this run made: tests that share one add to it."""

    @property
    def bundle(self) -> str:
        """The file of certificates that are trusted in a test."""
        self.trust()
        return os.path.join(self._folder, "trusted.pem")

    def trust(self) -> None:
        """Make the authority, and have OpenSSL's defaults include it from now on: its key stays in this process."""
        if self._folder:
            return
        import trustme  # noqa: PLC0415 - only for runs that use it

        from tlscap.replay.redirect import trusted_before  # noqa: PLC0415

        self.trusted_before = trusted_before()
        self.authority = trustme.CA(organization_name="tlscap replay", key_type=trustme.KeyType.ECDSA)
        self._folder = tempfile.mkdtemp(prefix="tlscap-")
        own = self.authority.cert_pem.bytes()
        Path(self.bundle).write_bytes(own + b"\n" + self.trusted_before)
        self._variable = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = self.bundle

    def exchanges(self, path: Path) -> list[RecordedExchange]:
        """Read a capture once."""
        from tlscap.errors import TlscapError  # noqa: PLC0415
        from tlscap.replay.recording import load  # noqa: PLC0415

        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in self._captures:
            try:
                recording = load(str(path))
            except TlscapError as error:
                raise pytest.UsageError(f"{error}\n{error.hint}".rstrip()) from None
            if recording.truncated:
                if not recording.exchanges:
                    raise pytest.UsageError(f"nothing is left of a damaged capture: {recording.truncated}")
                self.notes.append(f"warning: {recording.truncated}")
            self._captures[key] = recording.exchanges
        return self._captures[key]

    def close(self) -> None:
        if not self._folder:
            return
        if self._variable is None:
            os.environ.pop("SSL_CERT_FILE", None)
        else:
            os.environ["SSL_CERT_FILE"] = self._variable
        shutil.rmtree(self._folder, ignore_errors=True)


_SESSION = pytest.StashKey[_Session]()
_REPLAY = pytest.StashKey[Replay]()


@dataclass
class _Use:
    """One test's marker, understood."""

    path: Path
    mode: str
    recorder: str
    match: str
    order: str
    repeat: str
    timing: str
    hosts: tuple[str, ...]
    passed: tuple[str, ...]
    upstream: str
    scrub: bool
    unused: str

    @classmethod
    def of(cls, config: pytest.Config, test_file: Path, marker: pytest.Mark) -> _Use:
        known = {"match", "order", "repeat", "timing", "record", "hosts", "upstream", "scrub", "unused"}
        if len(marker.args) != 1 or (unknown := set(marker.kwargs) - known):
            what = f"has no option {unknown.pop()!r}" if len(marker.args) == 1 else "takes one file"
            raise pytest.UsageError(f"pytest.mark.tlscap {what}")
        options = marker.kwargs
        for name in known - {"hosts", "scrub"}:
            if not isinstance(options.get(name) or "", str):
                raise pytest.UsageError(f"pytest.mark.tlscap: {name} is a text, not {options[name]!r}")
        if not isinstance(marker.args[0], str | os.PathLike):
            raise pytest.UsageError(f"pytest.mark.tlscap takes the name of a file, not {marker.args[0]!r}")
        mode = config.getoption("tlscap_record") or options.get("record") or config.getini("tlscap_record")
        recorder = config.getini("tlscap_recorder")
        unused = config.getoption("tlscap_unused") or options.get("unused") or config.getini("tlscap_unused")
        for name, value, choices in (
            ("record", mode, MODES),
            ("recorder", recorder, ("auto", "kernel", "forward")),
            ("unused", unused, UNUSED),
        ):
            if value not in choices:
                raise pytest.UsageError(f"tlscap: {name} is one of {', '.join(choices)}, not {value!r}")
        hosts = options.get("hosts", ())
        hosts = (hosts,) if isinstance(hosts, str) else hosts
        if not isinstance(hosts, list | tuple | set | frozenset) or not all(isinstance(host, str) for host in hosts):
            raise pytest.UsageError(f"pytest.mark.tlscap: hosts is a list of texts, not {hosts!r}")
        return cls(
            path=test_file.parent / marker.args[0],
            mode=mode,
            recorder=recorder,
            match=options.get("match") or config.getini("tlscap_match"),
            order=options.get("order", "any"),
            repeat=options.get("repeat", "last"),
            timing=options.get("timing", "none"),
            hosts=tuple(hosts),
            passed=tuple(config.getini("tlscap_pass")),
            upstream=_checked_url(options.get("upstream") or ""),
            scrub=options.get("scrub", True),
            unused=unused,
        )

    def begin(self, session: _Session, stack: contextlib.ExitStack) -> Replay:
        """Set everything up; the stack undoes it, and writes what was recorded."""
        exists = self.path.exists()
        if not exists and self.mode == "none":
            raise pytest.UsageError(f"{self.path} does not exist; --tlscap-record=once records it")
        if self.mode == "all" or not exists:
            from tlscap.replay.self_recording import is_allowed  # noqa: PLC0415

            if self.recorder == "kernel" or (self.recorder == "auto" and is_allowed() and not self.upstream):
                return self._record(session, stack)
            return self._serve(session, stack, [], forward=True)
        known = session.exchanges(self.path)
        return self._serve(
            session,
            stack,
            known,
            forward=self.mode == "new_episodes" or (self.mode == "once" and self.path in session.made),
        )

    def _record(self, session: _Session, stack: contextlib.ExitStack) -> Replay:
        """Have the kernel record what the test says to real servers."""
        from tlscap.errors import CaptureError  # noqa: PLC0415
        from tlscap.replay.self_recording import SelfRecording  # noqa: PLC0415

        recording = SelfRecording()
        try:
            stack.callback(lambda: self._write_recorded(session, recording.exchanges))
            stack.enter_context(recording)
        except CaptureError as error:
            stack.pop_all()
            if self.recorder == "kernel":
                raise pytest.UsageError(f"tlscap_recorder = kernel: {error}") from None
            session.notes.append(f"recorded through a forward, because the kernel can't be asked: {error}")
            return self._serve(session, stack, [], forward=True)
        return Replay(self.path, self.mode, None, session.bundle, unused_policy=self.unused)

    def _serve(
        self, session: _Session, stack: contextlib.ExitStack, known: list[RecordedExchange], *, forward: bool
    ) -> Replay:
        """Answer from what is known; what isn't, from real servers."""
        from tlscap.errors import TlscapError  # noqa: PLC0415
        from tlscap.replay.forward import Forwarder  # noqa: PLC0415
        from tlscap.replay.recording import Recording  # noqa: PLC0415
        from tlscap.replay.serve import ReplayServer, ServeOptions  # noqa: PLC0415

        forwarder = Forwarder(session.trusted_before, self.upstream) if forward else None
        recording = Recording(str(self.path), known, None, 0, 0)
        bundle = session.bundle
        try:
            options = ServeOptions(match=self.match, order=self.order, repeat=self.repeat, timing=_speed(self.timing))
            server = ReplayServer(recording, options, fallback=forwarder, certificate_authority=session.authority)
        except TlscapError as error:
            raise pytest.UsageError(f"{error}\n{error.hint}".rstrip()) from None
        if forwarder:
            stack.callback(lambda: session.notes.extend(dict.fromkeys(forwarder.problems)))
            stack.callback(lambda: self._write(session, forwarder.exchanges, anew=not known))
        stack.enter_context(server)
        redirection = stack.enter_context(self._redirection(server.port, bundle, known))
        environment = dict(redirection.environment)
        return Replay(self.path, self.mode, server, bundle, environment, self.unused)

    def _redirection(self, port: int, bundle: str, known: list[RecordedExchange]) -> Redirection:
        from tlscap.replay.redirect import Redirection, places  # noqa: PLC0415

        named = [_place(host) for host in self.hosts]
        return Redirection(port, bundle, [*places(known), *named], passed=self.passed)

    def _write_recorded(self, session: _Session, exchanges: list[RecordedExchange]) -> None:
        if not exchanges:
            session.notes.append(
                f"{self.path}: nothing was recorded; the kernel sees TLS alone: for plaintext, tlscap_recorder = forward"
            )
        self._write(session, exchanges, anew=True)

    def _write(self, session: _Session, exchanges: list[RecordedExchange], *, anew: bool) -> None:
        """Write what was recorded to the capture."""
        from tlscap.replay.fixture_file import update  # noqa: PLC0415

        anew = anew and self.mode == "all" and self.path not in session.made
        problems = update(self.path, exchanges, anew=anew, scrub=self.scrub)
        if exchanges:
            session.made.add(self.path)
        session.notes += [f"{self.path}: {problem}" for problem in problems]


def _speed(timing: str) -> float:
    """Return what ``none``, ``recorded`` and ``x2`` mean to the server."""
    from tlscap.replay.timing import speed_of  # noqa: PLC0415

    try:
        return speed_of(timing)
    except ValueError as error:
        raise pytest.UsageError(f"tlscap: {error}") from None


def _checked_url(upstream: str) -> str:
    """Return the URL of a server, or nothing."""
    try:
        parts = urlsplit(upstream)
        is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_server = False
    if upstream and not is_server:
        raise pytest.UsageError(f"pytest.mark.tlscap: upstream={upstream!r} is no URL such as https://api.example.org")
    return upstream


def _place(host: str) -> tuple[str, int]:
    """Return host and port of ``api.example.org`` or ``localhost:8443``."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and not 0 < int(port) < 1 << 16:
        raise pytest.UsageError(f"pytest.mark.tlscap: {host!r} in hosts has no port")
    return (name, int(port)) if colon and port.isdecimal() else (host, 443)


def _judge(replay: Replay, report: pytest.TestReport) -> None:
    """Fail a test that asked for what was not recorded; say what it did not ask for."""
    unmatched = replay.unmatched
    if unmatched:
        text = "\n\n".join(unmatched)
        if report.passed:
            report.outcome = "failed"
            report.longrepr = f"{len(unmatched)} of its requests had no answer in {replay.path.name}\n\n{text}"
        else:
            report.sections.append((f"requests that had no answer in {replay.path.name}", text))
    unused = replay.unused if replay.mode != "all" else []
    if not unused or replay.unused_policy == "ignore":
        return
    names = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
    if replay.unused_policy == "fail" and report.passed:
        report.outcome = "failed"
        report.longrepr = f"exchanges of {replay.path.name} that were not asked for: {names}"
    report.user_properties.append((_PROPERTY, f"{replay.path.name}: {names}"))
