"""Which functions of which TLS library are hooked, as data.

A row says what a function does with its arguments (`CallKind`, `LifeKind`) and which argument, counted
from 1, points to the byte count.  A new library is a new table.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlscap.live.loader import CallKind, LifeKind


@dataclass(frozen=True, slots=True)
class Function:
    """One exported function, its meaning, and where its byte count goes (0: it is the return value)."""

    name: str
    kind: CallKind | LifeKind
    count_arg: int = 0
    unless: str = ""
    """Not hooked in a library that also has this function, because it only calls that one."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """An internal function that several exported ones call, named by what leads to it.

    ``through`` and ``also`` must call the same target first; hooking it covers all of ``covers``.
    """

    name: str
    through: tuple[str, ...]
    """Exported functions, best first, whose first call is the internal function."""
    also: str
    """Another exported function that calls it, as a proof."""
    kind: CallKind
    covers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flavor:
    """One TLS library's interface."""

    name: str
    functions: tuple[Function, ...]
    funnels: tuple[Funnel, ...]
    needs: tuple[tuple[str, ...], ...]
    """A file is of this flavor when it has one name out of each group."""


OPENSSL = Flavor(
    name="openssl",
    functions=(
        Function("SSL_read", CallKind.READ),
        Function("SSL_write", CallKind.WRITE),
        Function("SSL_read_ex", CallKind.READ_EX, 4),
        Function("SSL_write_ex", CallKind.WRITE_EX, 4, unless="SSL_write_ex2"),
        Function("SSL_write_ex2", CallKind.WRITE_EX, 5),
        Function("SSL_peek", CallKind.PEEK),
        Function("SSL_peek_ex", CallKind.PEEK_EX, 4),
        # Their bytes go through SSL_read_ex and SSL_write_ex; these rows only mark them as early.
        Function("SSL_read_early_data", CallKind.READ_EARLY, 4),
        Function("SSL_write_early_data", CallKind.WRITE_EARLY, 4),
        Function("SSL_sendfile", CallKind.SENDFILE),
        # SSL_connect and SSL_accept set the role and call SSL_do_handshake.
        Function("SSL_do_handshake", CallKind.HANDSHAKE),
        Function("SSL_shutdown", CallKind.SHUTDOWN),
        Function("SSL_get_servername", CallKind.SERVERNAME),
        Function("SSL_get0_alpn_selected", CallKind.ALPN),
        Function("SSL_set_connect_state", LifeKind.CONNECT_STATE),
        Function("SSL_set_accept_state", LifeKind.ACCEPT_STATE),
        Function("SSL_ctrl", LifeKind.CTRL),
        Function("SSL_set_fd", LifeKind.SET_TRANSPORT),
        Function("SSL_set_bio", LifeKind.SET_TRANSPORT),
        Function("SSL_free", LifeKind.FREE),
        Function("SSL_clear", LifeKind.CLEAR),
    ),
    funnels=(
        Funnel("ssl_read_internal", ("SSL_read_ex",), "SSL_read", CallKind.READ_INNER, ("SSL_read", "SSL_read_ex")),
        Funnel(
            "ssl_write_internal",
            ("SSL_write_ex2", "SSL_write_ex"),
            "SSL_write",
            CallKind.WRITE_INNER,
            ("SSL_write", "SSL_write_ex", "SSL_write_ex2"),
        ),
    ),
    needs=(("SSL_read", "SSL_read_ex"), ("SSL_write", "SSL_write_ex")),
)

FLAVORS = (OPENSSL,)

DYNAMIC_LINKER = Flavor(
    name="dynamic linker",
    # glibc and musl call it, for debuggers, when they have mapped libraries, at the start and in dlopen.
    functions=(Function("_dl_debug_state", LifeKind.LIBRARIES),),
    funnels=(),
    needs=(("_dl_debug_state",),),
)

BY_NAME = {function.name: function for flavor in FLAVORS for function in flavor.functions}
"""Every function that can be named with ``--probe``."""
