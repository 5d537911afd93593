"""Leads the HTTP clients of this process, and of programs that it starts, to a replay server: without a change to any of them.

Two ways, because there is none that all clients know:

- Environment variables: the server is a proxy for those who ask for one (requests, httpx, curl, wget, Go, gRPC, websockets, and most others), and
  its certificate authority is trusted beside those that are trusted anyway.
- The resolver: `socket.getaddrinfo`, which urllib3, aiohttp and http.client ask, gives the replay server's address and port for the
  hosts that it plays.  A client that goes by the proxy asks it for the proxy only.

urllib.request reads the proxies when it makes the opener that ``urlopen`` then keeps for the whole process: it makes a new one within.

All is undone by `Redirection.__exit__`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from tlscap.replay.recording import RecordedExchange

PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy", "grpc_proxy")
TRUST: Final = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "AWS_CA_BUNDLE", "GIT_SSL_CAINFO",
)  # fmt: skip
WEBPORTS: Final = frozenset({80, 443})
PORTS: Final = {"http": 80, "https": 443}
LOCAL: Final = ("localhost", "127.0.0.1", "::1")

resolve: Final = socket.getaddrinfo
"""As it was when this module was imported."""


def trusted_before() -> bytes:
    """Return the certificates of the authorities that this process trusts, as PEM; empty when none are found."""
    paths = [os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile]
    with contextlib.suppress(ImportError):
        import certifi  # noqa: PLC0415 - what requests and httpx trust

        paths.append(certifi.where())
    for path in filter(None, paths):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read()
    return b""


def places(exchanges: Iterable[RecordedExchange]) -> list[tuple[str, int]]:
    """Return the hosts that were asked, with their ports."""
    found: dict[tuple[str, int], None] = {}
    for exchange in exchanges:
        with contextlib.suppress(ValueError):
            url = urlsplit(exchange.url)
            if url.hostname:
                found[url.hostname, url.port or PORTS.get(url.scheme, 443)] = None
    return list(found)


class Redirection:
    """A context in which clients reach the replay server at ``port`` of 127.0.0.1.

    ``bundle`` is a file of certificates that are trusted within.  ``hosts`` are names that are led to the server on any port that is named with
    them (``("api.example.org", 8443)``) and on the web's two ports; every other name only by ``everything``, and then on the web's ports
    only.  Names of this machine are left alone unless they are among ``hosts``, as are those in ``passed``.
    """

    def __init__(
        self,
        port: int,
        bundle: str,
        hosts: Iterable[tuple[str, int]],
        *,
        everything: bool = True,
        passed: Iterable[str] = (),
    ) -> None:
        self._port = port
        self._hosts = {(host.lower().strip("[]"), number) for host, number in hosts}
        self._names = {host for host, _ in self._hosts}
        self._everything = everything
        self._passed = {name.lower() for name in (*LOCAL, *passed)} - self._names
        self._bundle = bundle
        self._before: dict[str, str | None] = {}
        self._opener: urllib.request.OpenerDirector | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that lead a program here."""
        proxy = f"http://127.0.0.1:{self._port}"
        passed = ",".join(sorted(self._passed))
        return {
            **dict.fromkeys(PROXIES, proxy),
            **dict.fromkeys(TRUST, self._bundle),
            "NO_PROXY": passed,
            "no_proxy": passed,
        }

    def __enter__(self) -> Self:
        for name, value in self.environment.items():
            self._before[name] = os.environ.get(name)
            os.environ[name] = value
        socket.getaddrinfo = self._resolve
        self._opener = _opener()
        if self._opener is None or _is_usual(self._opener):
            _set_opener(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        socket.getaddrinfo = resolve
        if (opener := _opener()) is None or _is_usual(opener):
            _set_opener(self._opener)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def leads(self, host: str, port: int) -> bool:
        """Whether the resolver gives the replay server's address."""
        host = host.lower().strip("[]").removesuffix(".")
        if (host, port) in self._hosts or (host in self._names and port in WEBPORTS):
            return True
        return self._everything and port in WEBPORTS and host not in self._passed and not _is_address(host)

    def _resolve(self, host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        """Stand in for `socket.getaddrinfo`."""
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        number = _number(port)
        if isinstance(name, str) and number and self.leads(name, number):
            given = dict(zip(("family", "type", "proto", "flags"), arguments, strict=False)) | options
            return resolve("127.0.0.1", self._port, **{**given, "family": 0})
        return resolve(host, port, *arguments, **options)


def _opener() -> urllib.request.OpenerDirector | None:
    """Return what ``urlopen`` uses; ``None``: it will make one."""
    return getattr(urllib.request, "_opener", None)


def _set_opener(opener: urllib.request.OpenerDirector | None) -> None:
    urllib.request.install_opener(opener)


def _is_usual(opener: urllib.request.OpenerDirector) -> bool:
    """Tell whether an opener is like those that ``urlopen`` makes, rather than a program's own."""
    usual = urllib.request.build_opener()
    kinds = [{type(handler) for handler in each.handlers} for each in (opener, usual)]  # type: ignore[attr-defined]
    return kinds[0] == kinds[1] and opener.addheaders == usual.addheaders


def _number(port: object) -> int:
    """Return a port given as getaddrinfo takes it; 0 when it is none."""
    if isinstance(port, int):
        return port
    text = port.decode("ascii", "replace") if isinstance(port, bytes) else port
    if isinstance(text, str):
        if text.isdecimal():
            return int(text)
        return PORTS.get(text, 0)
    return 0


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False
