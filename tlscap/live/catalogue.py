"""Which functions of which TLS library are hooked, as data.

A row says what a function does with its arguments (`CallKind`, `LifeKind`) and which argument, counted
from 1, points to the byte count.  A new library is a new table: of exported functions, of internal ones that these
lead to (`Funnel`), of those in a structure of function pointers (`MethodTable`).
"""

from __future__ import annotations

from dataclasses import dataclass

from tlscap.live.loader import CallKind, LifeKind


@dataclass(frozen=True, slots=True)
class Function:
    """One exported function, its meaning, and where its byte count goes (0: it is the return value) or its name stands."""

    name: str
    kind: CallKind | LifeKind
    count_arg: int = 0
    length_arg: int = 0
    """Of a name: which argument is its length; 0 when a zero ends it."""
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
class MethodTable:
    """A structure of function pointers that the library fills: internal functions that callers reach only through it.

    It is found by the code that fills it: its first word is set to a constant, and so many words behind it to addresses of code.
    """

    name: str
    first: int
    """The structure's first 32-bit word."""
    length: int
    functions: tuple[tuple[int, Function], ...]
    """By the pointer's place, counted in words of 8 bytes from the beginning of the structure."""


@dataclass(frozen=True, slots=True)
class Flavor:
    """One TLS library's interface."""

    name: str
    functions: tuple[Function, ...]
    needs: tuple[tuple[str, ...], ...]
    """A file is of this flavor when it has one name out of each group."""
    funnels: tuple[Funnel, ...] = ()
    table: MethodTable | None = None
    family: str = ""
    """Of flavors of one family, a file has only the first that fits."""


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
    family="openssl",
)

BORINGSSL = Flavor(
    name="boringssl",
    # Its SSL_read calls SSL_peek.
    functions=(
        Function("SSL_read", CallKind.READ),
        Function("SSL_write", CallKind.WRITE),
        Function("SSL_do_handshake", CallKind.HANDSHAKE),
        Function("SSL_shutdown", CallKind.SHUTDOWN),
        Function("SSL_get_servername", CallKind.SERVERNAME),
        Function("SSL_get0_alpn_selected", CallKind.ALPN),
        Function("SSL_set_tlsext_host_name", LifeKind.NAME, 2),
        Function("SSL_set_connect_state", LifeKind.CONNECT_STATE),
        Function("SSL_set_accept_state", LifeKind.ACCEPT_STATE),
        Function("SSL_set_fd", LifeKind.SET_TRANSPORT),
        Function("SSL_set_bio", LifeKind.SET_TRANSPORT),
        Function("SSL_free", LifeKind.FREE),
        Function("SSL_clear", LifeKind.CLEAR),
    ),
    needs=(("SSL_early_callback_ctx_extension_get", "SSL_CTX_set_grease_enabled"), ("SSL_read",), ("SSL_write",)),
    family="openssl",
)

GNUTLS = Flavor(
    name="gnutls",
    functions=(
        Function("gnutls_record_send", CallKind.WRITE, unless="gnutls_record_send2"),
        Function("gnutls_record_send2", CallKind.WRITE),
        Function("gnutls_record_recv", CallKind.READ),
        Function("gnutls_record_recv_seq", CallKind.READ),
        Function("gnutls_record_recv_packet", CallKind.RECV_PACKET),
        Function("gnutls_record_send_early_data", CallKind.WRITE),
        Function("gnutls_record_recv_early_data", CallKind.READ),
        # While corked, send takes bytes over and says so; this one sends them by calling it once more.
        Function("gnutls_record_uncork", CallKind.FLUSH),
        Function("gnutls_handshake", CallKind.HANDSHAKE_ZERO),
        Function("gnutls_bye", CallKind.SHUTDOWN),
        Function("gnutls_alpn_get_selected_protocol", CallKind.ALPN_DATUM),
        Function("gnutls_init", CallKind.INIT),
        Function("gnutls_server_name_set", LifeKind.NAME, 3, 4),
        Function("gnutls_transport_set_int2", LifeKind.SET_TRANSPORT),
        Function("gnutls_transport_set_ptr", LifeKind.SET_TRANSPORT),
        Function("gnutls_transport_set_ptr2", LifeKind.SET_TRANSPORT),
        Function("gnutls_transport_set_push_function", LifeKind.CALLBACKS, 2),
        Function("gnutls_transport_set_pull_function", LifeKind.CALLBACKS, 0, 2),
        Function("gnutls_transport_set_vec_push_function", LifeKind.CALLBACK_VECTOR),
        Function("gnutls_deinit", LifeKind.FREE),
    ),
    needs=(("gnutls_record_recv",), ("gnutls_record_send",)),
)

WOLFSSL = Flavor(
    name="wolfssl",
    functions=(
        Function("wolfSSL_read", CallKind.READ),
        Function("wolfSSL_write", CallKind.WRITE),
        Function("wolfSSL_peek", CallKind.PEEK),
        Function("wolfSSL_connect", LifeKind.CONNECT_STATE),
        Function("wolfSSL_connect", CallKind.HANDSHAKE),
        Function("wolfSSL_accept", LifeKind.ACCEPT_STATE),
        Function("wolfSSL_accept", CallKind.HANDSHAKE),
        Function("wolfSSL_shutdown", CallKind.SHUTDOWN),
        Function("wolfSSL_UseSNI", LifeKind.NAME, 3, 4),
        Function("wolfSSL_set_fd", LifeKind.SET_TRANSPORT),
        Function("wolfSSL_set_bio", LifeKind.SET_TRANSPORT),
        Function("wolfSSL_SSLSetIOSend", LifeKind.CALLBACKS, 2),
        Function("wolfSSL_SSLSetIORecv", LifeKind.CALLBACKS, 0, 2),
        Function("wolfSSL_CTX_SetIOSend", LifeKind.CALLBACKS, 2),
        Function("wolfSSL_CTX_SetIORecv", LifeKind.CALLBACKS, 0, 2),
        Function("wolfSSL_free", LifeKind.FREE),
        Function("wolfSSL_clear", LifeKind.CLEAR),
    ),
    needs=(("wolfSSL_read",), ("wolfSSL_write",)),
)

MBEDTLS = Flavor(
    name="mbedtls",
    functions=(
        Function("mbedtls_ssl_read", CallKind.READ),
        Function("mbedtls_ssl_write", CallKind.WRITE),
        Function("mbedtls_ssl_handshake", CallKind.HANDSHAKE_ZERO),
        Function("mbedtls_ssl_close_notify", CallKind.SHUTDOWN),
        Function("mbedtls_ssl_get_alpn_protocol", CallKind.ALPN_TEXT),
        Function("mbedtls_ssl_set_hostname", LifeKind.NAME, 2),
        Function("mbedtls_ssl_set_bio", LifeKind.CALLBACKS, 3, 4),
        Function("mbedtls_ssl_session_reset", LifeKind.CLEAR),
        Function("mbedtls_ssl_free", LifeKind.FREE),
    ),
    needs=(("mbedtls_ssl_read",), ("mbedtls_ssl_write",)),
)

NSS = Flavor(
    name="nss",
    functions=(
        Function("SSL_ForceHandshake", CallKind.HANDSHAKE_ZERO),
        Function("SSL_SetURL", LifeKind.NAME, 2),
        Function("SSL_ResetHandshake", LifeKind.ROLE),
    ),
    # NSPR's PR_Read and PR_Write serve files and pipes, too.  These are what they call for descriptors with a TLS layer:
    # struct PRIOMethods (prio.h), whose first field is PR_DESC_LAYERED.
    table=MethodTable(
        name="ssl_methods",
        first=4,
        length=20,
        functions=(
            (1, Function("ssl_Close", LifeKind.FREE)),
            (2, Function("ssl_Read", CallKind.READ)),
            (3, Function("ssl_Write", CallKind.WRITE)),
            (16, Function("ssl_Shutdown", CallKind.SHUTDOWN)),
            (17, Function("ssl_Recv", CallKind.RECV_FLAGS)),
            (18, Function("ssl_Send", CallKind.WRITE)),
        ),
    ),
    needs=(("SSL_ForceHandshake",), ("SSL_ImportFD",)),
)

FLAVORS = (BORINGSSL, OPENSSL, GNUTLS, WOLFSSL, MBEDTLS, NSS)
MARKERS = frozenset(name for flavor in FLAVORS for name in flavor.needs[-1])
"""A file without one of these names is of no flavor."""

MEMORY_BIO = Flavor(
    name="memory BIO",
    functions=(
        Function("BIO_read", CallKind.BIO_READ),
        Function("BIO_write", CallKind.BIO_WRITE),
        Function("BIO_write_ex", CallKind.BIO_WRITE),  # what BoringSSL uses since June 2026
    ),
    needs=(("BIO_read",), ("BIO_write", "BIO_write_ex")),
)
"""What OpenSSL's TLS calls hand ciphertext to and take it from.  Probed only where connections can't be found otherwise."""

DYNAMIC_LINKER = Flavor(
    name="dynamic linker",
    # glibc and musl call it, for debuggers, when they have mapped libraries, at the start and in dlopen.
    functions=(Function("_dl_debug_state", LifeKind.LIBRARIES),),
    needs=(("_dl_debug_state",),),
)

BY_NAME = {function.name: function for flavor in reversed(FLAVORS) for function in flavor.functions}
"""Every function that can be named with ``--probe``."""
