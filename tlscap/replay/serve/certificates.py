"""Certificates made on the fly, for whatever name a client asks for.

The authority's key stays in memory.  Keys of certificates do, too: what OpenSSL wants to read from a file is given to it in one that has no name.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import trustme

from tlscap.errors import OutputError, UsageError

_KEPT: Final = 256
_NAMES_IN_ONE: Final = 100
_NAME_LENGTH: Final = 253  # RFC 1035, 2.3.4


class Certificates:
    """TLS contexts by name, those used last kept."""

    def __init__(
        self,
        authority: trustme.CA | None,
        names: Iterable[str],
        protocols: list[str],
        *,
        certificate: str = "",
        key: str = "",
    ) -> None:
        """``names`` stand in the certificate for clients that name no host.  ``certificate`` and ``key``: files to use instead."""
        self._protocols = protocols
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self._names = list(dict.fromkeys(name.lower() for name in names if name))[:_NAMES_IN_ONE]
        self._authority = authority
        if certificate:
            self._authority = None
            self._default = self._context()
            try:
                self._default.load_cert_chain(certificate, key or None)
            except ssl.SSLError as error:
                raise UsageError(
                    f"{certificate}: {error.reason or error}",
                    hint="a PEM file with the certificate, and its key with --key",
                ) from None
            except OSError as error:
                raise OutputError(f"{error.filename or certificate}: {error.strerror}") from error
        else:
            self._default = self._made(*self._names) or self._made("localhost") or self._context()
        self._default.sni_callback = self._on_name

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context for a connection whose client named this host, if it did."""
        return self._for_name(name) or self._default if name else self._default

    def _for_name(self, name: str) -> ssl.SSLContext | None:
        name = name.lower()
        if self._authority is None or name in self._names or len(name) > _NAME_LENGTH:
            return None
        context = self._contexts.get(name)
        if context is None:
            context = self._made(name)
            if context is None:
                return None
            context.sni_callback = self._on_name
            self._contexts[name] = context
            if len(self._contexts) > _KEPT:
                self._contexts.popitem(last=False)
        else:
            self._contexts.move_to_end(name)
        return context

    def _on_name(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name:
            connection.context = self._for_name(name) or self._default

    def _made(self, *names: str) -> ssl.SSLContext | None:
        leaf = self._issued(*names)
        if leaf is None and len(names) > 1:
            # One that nobody could ask for in TLS (an underscore, too long) must not spoil the others.
            leaf = self._issued(*(name for name in names if self._issued(name)))
        if leaf is None:
            return None
        context = self._context()
        fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(leaf.private_key_pem.bytes())
                file.writelines(blob.bytes() for blob in leaf.cert_chain_pems)
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context

    def _issued(self, *names: str) -> trustme.LeafCert | None:
        if self._authority is None or not names:
            return None
        try:
            return self._authority.issue_cert(*names, organization_name="tlscap replay", common_name=names[0][:64])
        except ValueError:  # a name that can't stand in a certificate
            return None

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(self._protocols)
        return context


def new_authority() -> trustme.CA:
    """Return a certificate authority for one run, or one test session."""
    return trustme.CA(organization_name="tlscap replay", organization_unit_name="made for one replay")
