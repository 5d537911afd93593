"""The secrets that were found, and every other occurrence of them: plain, escaped, in base64, in hexadecimal.

**Which secrets are replaced wherever they occur.**  One that is short, or an ordinary word, occurs by accident; replacing it
everywhere would spoil what was recorded and protect nothing.  Such a one is replaced only where a rule found it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from tlscap.scrub.edits import Edit, apply, without_overlaps
from tlscap.scrub.finder import decode_base64
from tlscap.scrub.pseudonyms import Pseudonyms, is_pseudonym
from tlscap.scrub.rules import NAMES
from tlscap.scrub.views import View, views

ANYWHERE: Final = 8
"""Bytes from which a secret is replaced anywhere, also within other text."""

AS_WORD: Final = 6
"""Bytes from which one of letters and others (``hunter2``) is replaced where it stands alone."""

WORD: Final = 12
"""Letters from which an ordinary word is replaced anywhere."""

DIGITS: Final = 16
"""Digits from which a number is."""

_CUT_MIN: Final = 6  # bytes of a secret at the edge of a hole that are still taken for a part of it

_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_STANDARD: Final = _LETTERS + b"+/"
_URL_SAFE: Final = _LETTERS + b"-_"
_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_RUNS: Final = {one: re.compile(b"[" + re.escape(one) + b"]*") for one in (_STANDARD, _URL_SAFE, _HEX_DIGITS)}
_FEW: Final = 4  # bytes of a text for each of the secrets below which it is short
_LONG_RUN = re.compile(rb"[A-Za-z0-9+/_-]{6}")  # shorter than any core of `AS_WORD` bytes
_LINES = re.compile(rb"(?:[A-Za-z0-9+/]{40,76}\r?\n){1,20000}[A-Za-z0-9+/]{0,76}")
_WORD_BYTE = re.compile(rb"[A-Za-z0-9_]")
_ESCAPED = re.compile(rb"[+/=]")


class Secrets:
    """Secrets and their pseudonyms."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._anywhere: dict[bytes, bytes] = {}
        self._as_word: dict[bytes, bytes] = {}
        self._plain = _Texts()
        self._cores = {_STANDARD: _Texts(), _URL_SAFE: _Texts()}
        """By alphabet of base64, what surely stands in a text that has a secret in it."""
        self._hex = _Texts()

    def __len__(self) -> int:
        return len(self._anywhere) + len(self._as_word)

    def add(self, value: bytes) -> bytes:
        """Take a secret; return its pseudonym."""
        if is_pseudonym(value):
            return value
        name = self._pseudonyms.of(value)
        if value not in self._anywhere and value not in self._as_word:
            if _stands_out(value):
                self._anywhere[value] = name
            elif len(value) >= AS_WORD and not value.isalpha() and not value.isdigit() and _WORD_BYTE.search(value):
                self._as_word[value] = name
            if value in self._anywhere or value in self._as_word:
                self._plain.add(value)
                self._know_coded(value)
        return name

    def edits(self, text: bytes, depth: int = 0) -> Iterator[Edit]:
        """Yield what replaces the secrets in a text; the edits may overlap."""
        if not self._anywhere and not self._as_word:
            return
        for view in views(text):
            yield from self._in_view(view)
            if depth < 2:
                yield from self._in_runs(view, depth)

    def cut_edits(self, text: bytes, cut: int) -> Iterator[Edit]:
        """Yield what replaces the parts of secrets that are left on both sides of a hole."""
        for value, name in self._anywhere.items():
            most = len(value) - 1
            for size in range(min(most, cut), _CUT_MIN - 1, -1):
                if text.startswith(value[:size], cut - size):
                    yield Edit(cut - size, cut, name, "part of a secret")
                    break
            for size in range(min(most, len(text) - cut), _CUT_MIN - 1, -1):
                if text.startswith(value[-size:], cut):
                    yield Edit(cut, cut + size, name, "part of a secret")
                    break

    def _in_view(self, view: View) -> Iterator[Edit]:
        text = view.data
        for at, value in self._plain.within(text):
            end = at + len(value)
            name = self._anywhere.get(value)
            if name is None:
                before = _is_word(text[at - 1 : at]) and _is_word(value[:1])
                after = _is_word(text[end : end + 1]) and _is_word(value[-1:])
                name = None if before or after else self._as_word[value]
            if name:
                yield Edit(*view.origin(at, end), name, "seen elsewhere")

    # --- Within other codings ---

    def _in_runs(self, view: View, depth: int) -> Iterator[Edit]:
        data = view.data
        if not _LONG_RUN.search(data):
            return
        for alphabet, cores in self._cores.items():
            known = -1  # the end of the run that was looked at last
            for at in sorted(at for at, _ in cores.within(data)):
                if at < known:
                    continue
                start, known = _run(data, at, alphabet)
                yield from self._run_edit(view, start, known, depth)
        for match in _LINES.finditer(data):
            yield from self._run_edit(view, *match.span(), depth)
        for start, end in sorted({_run(data, at, _HEX_DIGITS) for at, _ in self._hex.within(data)}):
            changed = self._hexadecimal(data[start:end], depth)
            if changed is not None:
                yield Edit(*view.origin(start, end), changed, "seen elsewhere")

    def _run_edit(self, view: View, start: int, end: int, depth: int) -> Iterator[Edit]:
        """Yield what makes a run of base64 one without secrets, if there are any in it."""
        padding = view.data[end : end + 2]
        end += len(padding) - len(padding.lstrip(b"="))
        changed = self._base64(view.data[start:end], depth)
        if changed is not None:
            if view.percent:
                changed = _ESCAPED.sub(lambda one: b"%%%02X" % one[0][0], changed)
            yield Edit(*view.origin(start, end), changed, "seen elsewhere")

    def _base64(self, run: bytes, depth: int) -> bytes | None:
        """Return a text in base64 without secrets; ``None``: there is none in it.  It may begin within the run."""
        core = run.replace(b"\r", b"").replace(b"\n", b"").rstrip(b"=")
        url_safe = b"-" in core or b"_" in core
        for skip in range(4):
            coded = core[skip:]
            coded = coded[: len(coded) - (len(coded) % 4 == 1)]
            plain = decode_base64(coded)
            if not plain:
                continue
            changed = apply(plain, without_overlaps(self.edits(plain, depth + 1)))
            if changed == plain:
                continue
            new = base64.urlsafe_b64encode(changed) if url_safe else base64.b64encode(changed)
            return core[:skip] + (new if run.endswith(b"=") else new.rstrip(b"="))
        return None

    def _hexadecimal(self, run: bytes, depth: int) -> bytes | None:
        for skip in range(2):
            digits = run[skip : len(run) - (len(run) - skip) % 2]
            plain = bytes.fromhex(digits.decode())
            changed = apply(plain, without_overlaps(self.edits(plain, depth + 1)))
            if changed != plain:
                text = changed.hex().encode()
                return run[:skip] + (text.upper() if run.isupper() else text) + run[skip + len(digits) :]
        return None

    def _know_coded(self, value: bytes) -> None:
        """Note how a secret looks within base64 and hexadecimal digits, whatever stands before it."""
        text = value.decode("utf-8", "surrogateescape")
        quoted = json.dumps(text)[1:-1].encode()
        written = {
            value,
            quoted,
            quoted.replace(b"/", b"\\/"),
            quote(value, safe="").encode(),
            quote_plus(value).encode(),
        }
        for one in written:
            self._hex.add(one.hex().encode())
            self._hex.add(one.hex().upper().encode())
            for skip in range(3):
                coded = base64.b64encode(bytes(skip) + one)
                begin, end = (skip * 8 + 5) // 6, (skip + len(one)) * 8 // 6
                core = coded[begin:end]
                self._cores[_STANDARD].add(core)
                self._cores[_URL_SAFE].add(core.replace(b"+", b"-").replace(b"/", b"_"))


class _Texts:
    """Texts of `AS_WORD` bytes and more that are looked for in others, many in many."""

    def __init__(self) -> None:
        self._by_start: dict[bytes, list[bytes]] = {}
        self._all: dict[bytes, None] = {}  # a set that keeps its order: results must not depend on hashes

    def add(self, text: bytes) -> None:
        if text not in self._all:
            self._all[text] = None
            self._by_start.setdefault(text[:AS_WORD], []).append(text)

    def within(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield where these texts stand."""
        if len(data) < _FEW * len(self._all):
            # One look at each place of a short text, instead of a search for each of many.
            for at in range(len(data) - AS_WORD + 1):
                for one in self._by_start.get(data[at : at + AS_WORD], ()):
                    if data.startswith(one, at):
                        yield at, one
            return
        for one in self._all:
            at = data.find(one)
            while at >= 0:
                yield at, one
                at = data.find(one, at + len(one))


def _run(data: bytes, at: int, alphabet: bytes) -> tuple[int, int]:
    """Return where the run of characters of an alphabet begins and ends that stands at a place."""
    window = 256
    while True:  # most runs are short, and a copy of all that is in front would be long
        before = data[max(0, at - window) : at]
        left = len(before.rstrip(alphabet))
        if left or window >= at:
            break
        window *= 4
    match = _RUNS[alphabet].match(data, at)
    return at - (len(before) - left), match.end() if match else at


def _stands_out(value: bytes) -> bool:
    """Tell whether a value is too particular to occur by accident."""
    if value.decode("latin-1").lower() in NAMES or not _WORD_BYTE.search(value):
        return False
    if value.isdigit():
        return len(value) >= DIGITS
    if value.isalpha() and (value.islower() or value.isupper() or value.istitle()):
        return len(value) >= WORD
    return len(value) >= ANYWHERE


def _is_word(byte: bytes) -> bool:
    return _WORD_BYTE.match(byte) is not None
