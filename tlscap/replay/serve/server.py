"""`ReplayServer`: a recording, served by a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import trustme
import uvloop

from tlscap.errors import OutputError, TlscapError
from tlscap.replay import scrubbed
from tlscap.replay.matching import Matcher
from tlscap.replay.recording import RecordedExchange, Recording
from tlscap.replay.serve.answers import Answer, UnservableError, answer_to
from tlscap.replay.serve.certificates import Certificates, new_authority
from tlscap.replay.serve.door import Door
from tlscap.replay.serve.options import ServeOptions
from tlscap.replay.serve.playbook import Playbook
from tlscap.replay.serve.requests import ReceivedRequest
from tlscap.replay.serve.state import Fallback, ReplayState, Unmatched

_BACKLOG: Final = 1024
_EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What stands for all addresses, and one of them that a client on this machine can use."""
_NAMED: Final = 5  # exchanges that a message names


class ReplayServer:
    """Serves a recording from a thread of its own, until it is stopped.

    ::

        with ReplayServer(load("login.tlscap.zst")) as server:
            urllib.request.urlopen(server.url + "/login")
        assert not server.unmatched

    ``fallback`` is asked when nothing matches, in the server's thread and event loop; what it returns is served; what it
    raises is answered with status 502, and kept in `faults`.  ``certificate_authority`` is used instead of a new one.  ``on_unmatched`` and ``on_served`` are called in
    the server's thread.

    Raises `TlscapError` for an incomplete recording (unless that is allowed) or one that has nothing to serve to anybody while there is no fallback,
    `UsageError` for words of the matching language, `OutputError` when the address can't be listened on.
    """

    def __init__(
        self,
        recording: Recording,
        options: ServeOptions | None = None,
        fallback: Fallback | None = None,
        *,
        certificate_authority: trustme.CA | None = None,
        on_unmatched: Callable[[Unmatched], None] | None = None,
        on_served: Callable[[ReceivedRequest, RecordedExchange], None] | None = None,
    ) -> None:
        self.options = options = options or ServeOptions()
        matcher = Matcher(f"{options.match} {scrubbed.words(recording.exchanges)}")
        self.left_out: list[tuple[RecordedExchange, str]] = []
        """Exchanges that can't be served, and why."""
        answers = list(self._answers(recording))
        if recording.exchanges and not answers and fallback is None:
            exchange, why = self.left_out[0]
            raise TlscapError(f"{recording.path}: nothing in it can be served: of exchange {exchange.id}, {why}")
        self._playbook = Playbook(answers, matcher, options.order, options.repeat)
        self._state = ReplayState(self._playbook, options, fallback, on_unmatched, on_served)
        self._websockets = any(answer.is_websocket for _, answer in answers)
        self._certificates: Certificates | None = None
        self.certificate_authority: trustme.CA | None = None
        """What signs the certificates; ``None`` when they were given, or TLS isn't spoken."""
        if options.tls:
            if not options.certificate:
                self.certificate_authority = certificate_authority or new_authority()
            protocols = ["h2"] * options.http2 + ["http/1.1"] * options.http1
            listening = "" if options.host in _EVERYWHERE else options.host
            names = ["localhost", "127.0.0.1", "::1", listening, *recording.names]
            self._certificates = Certificates(
                self.certificate_authority, names, protocols, certificate=options.certificate, key=options.key
            )
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._door: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self.port = 0
        """What is listened on, from `start` on."""

    def _answers(self, recording: Recording) -> list[tuple[RecordedExchange, Answer]]:
        incomplete = recording.incomplete
        if incomplete and not self.options.allow_incomplete:
            named = ", ".join(f"{exchange.id} ({exchange.name})" for exchange in incomplete[:_NAMED])
            more = f" and {len(incomplete) - _NAMED} more" if len(incomplete) > _NAMED else ""
            raise TlscapError(
                f"{recording.path}: bytes are missing in {'exchange' if len(incomplete) == 1 else 'exchanges'} {named}{more}",
                hint="leave them out with a filter, such as complete:yes, or with --allow-incomplete",
            )
        answers = []
        for exchange in recording.exchanges:
            try:
                answers.append((exchange, answer_to(exchange)))
            except UnservableError as error:
                self.left_out.append((exchange, str(error)))
        return answers

    # --- Running ---

    def start(self) -> None:
        """Listen.  Raises `OutputError`."""
        self._listener = _listen(self.options.host, self.options.port)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="tlscap replay", daemon=True)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """End all connections; `unmatched`, `unused` and `served` stay."""
        thread, loop, door = self._thread, self._loop, self._door
        self._thread = None
        if thread and loop and door:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(door.cancel)
            thread.join()

    def _run(self) -> None:
        with (
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            contextlib.suppress(asyncio.CancelledError),
        ):
            runner.run(self._serve())
        self._ready.set()  # should it never have been
        if self._listener:
            self._listener.close()

    async def _serve(self) -> None:
        if self._listener is None:
            return
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_error)
        door = Door(self._state, self._listener, self._certificates, websockets=self._websockets)
        self._door = asyncio.current_task()
        self._ready.set()
        await door.run()

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Keep what nobody awaited; connections that clients drop are no news."""
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, OSError | asyncio.CancelledError):
            self._state.faults.append(error)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- What is told ---

    @property
    def url(self) -> str:
        """Where plaintext is spoken, without a slash at its end."""
        return f"http://{self._name}:{self.port}"

    @property
    def https_url(self) -> str:
        """Where TLS is spoken."""
        return f"https://{self._name}:{self.port}"

    @property
    def _name(self) -> str:
        host = _EVERYWHERE.get(self.options.host, self.options.host)
        return f"[{host}]" if ":" in host else host

    @property
    def ca_pem(self) -> bytes:
        """The certificate that clients have to trust; empty when there is none of its own."""
        return self.certificate_authority.cert_pem.bytes() if self.certificate_authority else b""

    @property
    def served(self) -> int:
        """How many requests were answered from the recording."""
        return self._state.served

    @property
    def forwarded(self) -> int:
        """How many the fallback answered."""
        return self._state.forwarded

    @property
    def unmatched(self) -> list[Unmatched]:
        """Requests that nothing matched, the first thousand of them."""
        return list(self._state.unmatched)

    @property
    def unmatched_count(self) -> int:
        """All of them."""
        return self._state.unmatched_count

    @property
    def unused(self) -> list[RecordedExchange]:
        """Exchanges that nobody asked for, in recorded order."""
        return self._playbook.unused

    @property
    def faults(self) -> list[BaseException]:
        """Mistakes of the server, or of the fallback; each cost a client its answer."""
        return list(self._state.faults)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not host or family is socket.AF_INET:
            found = socket.getaddrinfo(host or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, address = found[0][0], found[0][4]
        else:
            address = (host, port)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise OutputError(f"{host}:{port} can't be listened on: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OutputError(
            f"{host}:{port} can't be listened on: {error.strerror}", hint="another port, or 0 for a free one"
        ) from error
    return listener
