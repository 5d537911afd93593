"""What a replay server is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tlscap.errors import UsageError

ORDERS: Final = ("any", "sequence", "strict")
REPEATS: Final = ("last", "once", "cycle")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve.  Raises `UsageError` for what makes no sense."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""
    tls: bool = True
    """Whether TLS is spoken."""
    plain: bool = True
    """Whether plaintext is spoken; with both the first byte of a connection tells."""
    http1: bool = True
    http2: bool = True
    certificate: str = ""
    """A PEM file with a certificate and its chain; empty: one is made for whatever name a client asks for."""
    key: str = ""
    """The PEM file of its key; empty: it is in the same file."""
    match: str = ""
    """Words of the matching language (docs/matching.md); empty: the default."""
    order: str = "any"
    """``any``: the first unused answer to a request.  ``sequence``: requests with the same head must come in recorded order.
    ``strict``: all must."""
    repeat: str = "last"
    """What happens to a request whose answers are used up.  ``last``: the last once more.  ``cycle``: from the first on.
    ``once``: nothing matches."""
    timing: float = 0.0
    """0: answer at once.  1: as recorded.  2: twice as fast."""
    allow_incomplete: bool = False
    """Whether a recording that lacks bytes is served without the exchanges concerned."""
    connections: int = 1024
    """Most at a time; others wait."""
    body_limit: int = 64 << 20
    """Bytes of a request's body, and of a WebSocket message four times less."""
    bodies_limit: int = 256 << 20
    """Bytes of the bodies of all requests under way."""
    idle_s: float = 120.0
    """Seconds of silence after which a connection on which nothing is going on is closed."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"{self.order!r} is no order", hint=", ".join(ORDERS))
        if self.repeat not in REPEATS:
            raise UsageError(f"{self.repeat!r} is no way to repeat", hint=", ".join(REPEATS))
        if not (self.tls or self.plain) or not (self.http1 or self.http2):
            raise UsageError("nothing is left to speak", hint="allow TLS or plaintext, and HTTP/1.1 or HTTP/2")
        if self.key and not self.certificate:
            raise UsageError("a key without its certificate", hint="give both")
        if self.timing < 0:
            raise UsageError("time doesn't run backwards", hint="a factor greater than 0, or 0 for no delays")
