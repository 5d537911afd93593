"""TLS keys as programs log them for Wireshark (SSLKEYLOGFILE, RFC 9850): which connection each line is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# A label, what names the connection (its ClientHello's random, 32 bytes), and the secret.
_LINE = re.compile(rb"([A-Z][A-Z0-9_]{2,60}) ([0-9a-fA-F]{64}) ([0-9a-fA-F]{2,512})\s*")
# Lines that name a connection by something else: its session id, or the encrypted premaster secret of an RSA key exchange.
_OTHER_LINE = re.compile(rb"RSA (?:[0-9a-fA-F]{16} |Session-ID:[0-9a-fA-F]* Master-Key:)[0-9a-fA-F]{96}\s*")

MAX_LINE: Final = 1200
"""Longer lines are none of a key log."""


class KeyLog:
    """The lines of any number of key logs."""

    def __init__(self) -> None:
        self._by_random: dict[bytes, list[bytes]] = {}
        self._others: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._by_random or self._others)

    def add(self, text: bytes) -> None:
        """Take the lines of a whole key log; what is no key is passed over."""
        for line in text.splitlines():
            self.add_line(line)

    def add_line(self, line: bytes) -> None:
        """Take one line."""
        if len(line) > MAX_LINE:
            return
        if match := _LINE.fullmatch(line):
            lines = self._by_random.setdefault(bytes.fromhex(match[2].decode()), [])
            if (kept := line.strip()) not in lines:
                lines.append(kept)
        elif _OTHER_LINE.fullmatch(line):
            self._others.append(line.strip())

    def has(self, random: bytes) -> bool:
        """Tell whether there are keys for a connection with this random in its ClientHello, or may be."""
        return random in self._by_random or bool(self._others)

    def lines(self) -> Iterator[bytes]:
        """Yield all keys, a line each."""
        for lines in self._by_random.values():
            yield from lines
        yield from self._others
