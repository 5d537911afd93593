"""What stands in the place of a secret: always the same for the same one.

A pseudonym consists of characters that need no escape in a URL, a form, JSON, XML or a header field, so that it can replace a secret
wherever it stands.  It is a keyed hash of the secret, or, without a key, the number of its first appearance:
docs/scrubbing.md says when which is right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

_PREFIX: Final = b"scrubbed-"
SHAPE: Final = re.compile(rb"scrubbed-(?:[a-z2-7]{20}|[0-9]{6,9})")
"""How every pseudonym looks; what looks so is never taken for a secret."""

_HASHED: Final = 20  # characters of five bits


class Pseudonyms:
    """Names secrets.  ``key``: 16 bytes at least that nobody else knows; ``None``: secrets are numbered."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self._names: dict[bytes, bytes] = {}

    def of(self, secret: bytes) -> bytes:
        """Return the pseudonym of a secret."""
        name = self._names.get(secret)
        if name is None:
            name = self._names[secret] = _PREFIX + self._new(secret)
        return name

    def _new(self, secret: bytes) -> bytes:
        if self._key is None:
            return b"%06d" % (len(self._names) + 1)
        digest = hmac.digest(self._key, secret, "sha256")
        return base64.b32encode(digest)[:_HASHED].lower()


def key_of_seed(seed: str) -> bytes:
    """Return the key that a seed stands for.  It is as hard to guess as the seed: derived slowly, but guessable seeds stay so."""
    return hashlib.scrypt(seed.encode(), salt=b"tlscap scrub", n=1 << 14, r=8, p=1, dklen=32)


def is_pseudonym(value: bytes) -> bool:
    """Tell whether a value was scrubbed already."""
    return SHAPE.fullmatch(value) is not None
