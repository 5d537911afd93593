"""The secrets that were found, and every other occurrence of them: plain, escaped, in base64, in hexadecimal.

**Which secrets are replaced wherever they occur.**  One that is short, or an ordinary word, occurs by accident; replacing it
everywhere would spoil what was recorded and protect nothing.  Such a one is replaced only where a rule found it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

from tlscap.scrub.edits import Edit, apply, without_overlaps
from tlscap.scrub.finder import decode_base64
from tlscap.scrub.index import Hit, Index
from tlscap.scrub.pseudonyms import Pseudonyms, is_pseudonym
from tlscap.scrub.rules import NAMES
from tlscap.scrub.views import View, views
from tlscap.scrub.windows import MARGIN, in_windows

ANYWHERE: Final = 8
"""Bytes from which a secret is replaced anywhere, also within other text."""

AS_WORD: Final = 6
"""Bytes from which one of letters and others (``hunter2``) is replaced where it stands alone."""

WORD: Final = 12
"""Letters from which an ordinary word is replaced anywhere."""

DIGITS: Final = 16
"""Digits from which a number is."""

_CUT_MIN: Final = 6  # bytes of a secret at the edge of a hole that are still taken for a part of it

_DEPTH: Final = 2  # codings, one within the other, that are looked into
_PLAIN, _BASE64, _BASE64_URL, _HEX = range(4)  # kinds in the index

_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_STANDARD: Final = _LETTERS + b"+/"
_URL_SAFE: Final = _LETTERS + b"-_"
_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_RUNS: Final = {one: re.compile(b"[" + re.escape(one) + b"]*") for one in (_STANDARD, _URL_SAFE, _HEX_DIGITS)}
_ALPHABETS: Final = {_BASE64: _STANDARD, _BASE64_URL: _URL_SAFE}
_LINES = re.compile(rb"(?:[A-Za-z0-9+/]{40,76}\r?\n){1,20000}[A-Za-z0-9+/]{0,76}")
_LINE_END = re.compile(rb"\n(?<=[A-Za-z0-9+/]{39}[A-Za-z0-9+/\r]\n)")
_LINE_MAX: Final = 77  # characters, with a carriage return
_WORD_BYTE = re.compile(rb"[A-Za-z0-9_]")
_ESCAPED = re.compile(rb"[+/=]")


class Secrets:
    """Secrets and their pseudonyms."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._anywhere: dict[bytes, bytes] = {}
        self._as_word: dict[bytes, bytes] = {}
        self._index = Index()
        """Of each secret: itself, what surely stands in base64 that has it in it, and its hexadecimal digits."""
        self._plain = Index()
        """The secrets alone."""
        self._longest = 0

    def __len__(self) -> int:
        return len(self._anywhere) + len(self._as_word)

    def are_everywhere(self, value: bytes) -> bool:
        """Tell whether a secret is replaced wherever it occurs, in base64 too: not only where a rule finds it."""
        return value in self._anywhere

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
                self._plain.add(value, _PLAIN)
                self._know_coded(value)
                self._longest = max(self._longest, len(value))
        return name

    def edits(self, text: bytes, depth: int = 0) -> list[Edit]:
        """Return what replaces the secrets in a text; the edits may overlap."""
        if not self:
            return []
        margin = max(MARGIN, 8 * self._longest)  # escaped, it takes six times as much
        return in_windows(text, lambda piece: list(self._edits_in(piece, depth)), margin)

    def _edits_in(self, text: bytes, depth: int) -> Iterator[Edit]:
        readings = views(text)
        if readings[0].is_derived:  # from bytes that are no text: a secret may be such bytes, too
            yield from self._as_they_are(View(text), self._plain.within(text))
        for view in readings:
            hits = self._index.within(view.data)
            yield from self._as_they_are(view, hits)
            if depth < _DEPTH:
                yield from self._in_runs(view, hits, depth, again=view is not readings[0])

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

    def _as_they_are(self, view: View, hits: Sequence[Hit]) -> Iterator[Edit]:
        text = view.data
        for at, value, kind in hits:
            if kind != _PLAIN:
                continue
            end = at + len(value)
            name = self._anywhere.get(value)
            if name is None:
                before = _is_word(text[at - 1 : at]) and _is_word(value[:1])
                after = _is_word(text[end : end + 1]) and _is_word(value[-1:])
                name = None if before or after else self._as_word[value]
            if name:
                yield Edit(*view.origin(at, end), name, "seen elsewhere")

    # --- Within other codings ---

    def _in_runs(self, view: View, hits: Sequence[Hit], depth: int, *, again: bool) -> Iterator[Edit]:
        """``again``: a view of this text was looked at before; what stood there as it stands here is known."""
        data = view.data
        for kind, alphabet in _ALPHABETS.items():
            known = -1  # the end of the run that was looked at last
            for hit in hits:
                if hit.kind == kind and hit.at >= known:
                    start, known = _run(data, hit.at, alphabet)
                    yield from self._run_edit(view, start, known, depth, again=again)
        at = 0
        while end := _LINE_END.search(data, at):
            lines = _LINES.search(data, max(at, end.start() - _LINE_MAX))
            if not lines:
                break
            yield from self._run_edit(view, *lines.span(), depth, again=again)
            at = lines.end()
        known = -1
        for hit in hits:
            if hit.kind == _HEX and hit.at >= known:
                start, known = _run(data, hit.at, _HEX_DIGITS)
                changed = self._hexadecimal(data[start:known], depth)
                if changed is not None:
                    yield Edit(*view.origin(start, known), changed, "seen elsewhere")

    def _run_edit(self, view: View, start: int, end: int, depth: int, *, again: bool) -> Iterator[Edit]:
        """Yield what makes a run of base64 one without secrets, if there are any in it."""
        if again:
            begin, stop = view.origin(start, end)
            if stop - begin == end - start:  # nothing in it was undone
                return
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
        self._index.add(value, _PLAIN)
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
            self._index.add(one.hex().encode(), _HEX)
            self._index.add(one.hex().upper().encode(), _HEX)
            for skip in range(3):
                coded = base64.b64encode(bytes(skip) + one)
                begin, end = (skip * 8 + 5) // 6, (skip + len(one)) * 8 // 6
                core = coded[begin:end]
                self._index.add(core, _BASE64)
                self._index.add(core.replace(b"+", b"-").replace(b"/", b"_"), _BASE64_URL)


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
