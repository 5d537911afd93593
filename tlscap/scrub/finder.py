"""Finds secrets in a text by their names and shapes.

A text is searched in every `View` of it, a long one in pieces (`tlscap.scrub.windows`).  Where two findings overlap, the longer one
holds: what stands in a text within quotes, say, rather than the part of it up to an escape.  Nothing here is quadratic in the text's
length, whatever the text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from tlscap.scrub.jsonpaths import chosen, leaves
from tlscap.scrub.pseudonyms import SHAPE, is_pseudonym
from tlscap.scrub.rules import ENTROPY, OWN, WORDS, Rules
from tlscap.scrub.views import View, unescaped_form, unescaped_html, unescaped_json, views
from tlscap.scrub.windows import MARGIN, in_windows

COMMAND_LINE: Final = "command line"


class Place(NamedTuple):
    """Where a text stands."""

    kind: str
    """``request header``, ``response body``, ``command line``, ... in words for people."""
    name: str = ""
    """Of a field, in lower case."""
    is_header: bool = False
    is_form: bool = False
    """A body of names and values, or a query."""
    is_json: bool = False
    cuts: tuple[int, ...] = ()
    """Where bytes are missing in the text, its end included."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


class Finding(NamedTuple):
    """A secret in a text."""

    start: int
    end: int
    value: bytes
    """The secret itself, unescaped."""
    rule: str
    codec: str = ""
    """``basic``: of the base64 of a user and a password; ``number``: of a JSON text, without quotes; ``within``: of the base64 of
    a text with the secret in it, and maybe others."""


# Of these two, something stands before everything they find: a line break that is put before the text.  A choice there is slow.
_NAME = re.compile(rb"""[?&;,\s"'#({|\\\x00]([A-Za-z0-9_.%\[\]-]{1,64}+)=""")
_NAME_OF: Final = rb"""[?&;,\s"'#({|\\\x00](%s)="""
_VALUE = re.compile(rb"""[^&\x00-\x20"'<>;,\\#)}]+""")
_QUOTED_VALUE = re.compile(rb""""([^"\r\n]{1,65536})"|'([^'\r\n]{1,65536})'""")
# Browsers escape little in a query, and programs that put a form together by hand nothing.
_FORM_VALUE = re.compile(rb"(?:[^&;\r\n]|;(?![A-Za-z0-9_.%\[\]-]{1,64}=))+")
_QUERY_VALUE = re.compile(rb"(?:[^&;#\s]|;(?![A-Za-z0-9_.%\[\]-]{1,64}=))+")
_WORD_VALUE = re.compile(rb"[^&\x00]+")
_OPTION_VALUE = re.compile(rb"[^\x00]+")
_RANDOM_VALUE = re.compile(rb"""[^&\x00-\x20"'<>;,\\#)}]{32,258}(?=[&\x00-\x20"'<>;,\\#)}]|\Z)""")
_JSON_PAIR = re.compile(
    rb"""(["'])([^"'\\\x00-\x1f]{1,64}(?:\\.[^"'\\]{0,64}){0,8})\1\s{0,64}:\s{0,64}"""
    rb"""(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\Z)|'([^'\\]*+(?:\\.[^'\\]*+)*+)(?:'|\Z)|(-?[0-9][0-9.eE+-]{0,4000})|"""
    rb"""(\[(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"){0,65536}+\]))""",
    re.DOTALL,
)
_JSON_NAME = re.compile(rb"""(["'])([^"'\\\x00-\x1f]{1,64}+(?:\\.[^"'\\]{0,64}+){0,8}+)\1\s{0,64}+:""", re.DOTALL)
_JSON_RANDOM = re.compile(
    rb"""["'](?=[^"']{0,256}[A-Z])(?=[^"']{0,256}[a-z])(?=[^"']{0,256}[0-9])[A-Za-z0-9+/_.~-]{32,256}={0,2}["']"""
)
_JSON_ITEM = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"|(-?[0-9][0-9.eE+-]*+)', re.DOTALL)
_ELEMENT = re.compile(rb"<(?:[A-Za-z0-9_-]{1,40}:)?([A-Za-z0-9_.-]{1,64})(?:\s[^<>]{0,1000})?>([^<]+)(?=</|\Z)")
_ATTRIBUTE = re.compile(rb"""[\s<]([A-Za-z0-9_.:-]{1,64})\s{0,8}=\s{0,8}(?:"([^"<]{1,65536})"|'([^'<]{1,65536})')""")
_CDATA = re.compile(rb"<(?:[A-Za-z0-9_-]{1,40}:)?([A-Za-z0-9_.-]{1,64})(?:\s[^<>]{0,1000})?>\s{0,64}<!\[CDATA\[")
_INPUT = re.compile(rb"<(?:input|meta|param)\s[^<>]{1,4000}>", re.IGNORECASE)
_PART = re.compile(
    rb"""content-disposition:\s*form-data[^\r\n]{0,1000}?[;\s]name="?([^"\r\n;]{1,200})"?([^\r\n]{0,1000})\r\n"""
    rb"""(?:[^\r\n]{1,1000}\r\n){0,20}\r\n""",
    re.IGNORECASE,
)
_LINE = re.compile(rb"[\r\n'\"\x00][ \t]*+([A-Za-z0-9-]{1,64}+):[ \t]*([^\r\n'\"\x00]{1,65536})")
_COOKIE = re.compile(rb"(?:[^;,]|,(?!\s+[^=;,\s]+=))+")
_COOKIE_ATTRIBUTES: Final = frozenset(
    (
        b"expires",
        b"max-age",
        b"domain",
        b"path",
        b"secure",
        b"httponly",
        b"samesite",
        b"partitioned",
        b"priority",
        b"version",
        b"comment",
    )
)
_PARAMETER = re.compile(
    rb"([A-Za-z0-9_-]{1,64})\s{0,8}=\s{0,8}(?:\"([^\"\\]*+(?:\\.[^\"\\]*+)*+)\"|([^\s,\"]+))", re.DOTALL
)
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9._-]{0,40})[ \t]+(\S.*)", re.DOTALL)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,4096}={0,2}")
_RANDOM = re.compile(rb"[A-Za-z0-9+/_.~-]{32,256}={0,2}")

_HARMLESS_PARAMETERS: Final = frozenset(
    (
        "realm",
        "algorithm",
        "qop",
        "nc",
        "uri",
        "charset",
        "userhash",
        "stale",
        "signedheaders",
        "headers",
        "version",
        "oauth_version",
        "oauth_signature_method",
        "oauth_timestamp",
        "created",
        "expires",
    )
)
_HARMLESS_VALUES = re.compile(
    rb"(?:null|none|nil|true|false|undefined|yes|no|on|off|bearer|basic|deleted|[*xX.\xe2\x80\xa2]+|<[^>]*>|\$\{.*|\{\{.*|\[[A-Za-z ]*\]|%[sd])",
    re.DOTALL,
)
_NEVER_RANDOM = re.compile(
    r"etag|if-|sec-websocket|trace|request-?id|correlation|nonce|integrity|digest|checksum|sha|md5|hash|content|accept|policy|"
    r"report|server|date|via|user-agent|alt-svc|cf-ray|x-amz-(?:id|cf)|link|location|referer|boundary|host|type|uuid|guid|path|url|image|data"
)
_HEX_OR_WORDS = re.compile(rb"[0-9a-fA-F-]+|[A-Za-z]+(?:[-_./][A-Za-z]*)*|[0-9._-]+")
_RANDOM_MIN: Final = 32  # characters, as `_RANDOM` has it
_ENTROPY_MIN: Final = 4.2  # bits a character
_UNENDED_MIN: Final = (
    MARGIN // 8
)  # bytes of an element of which a piece of a text shows no end; the rest may be escapes
_REMEMBERED_MIN: Final = 512  # bytes of a text from which what is in it is kept in mind
_REMEMBERED_MAX: Final = 1 << 16  # texts
_USER_OPTIONS: Final = frozenset(
    (b"-u", b"--user", b"-U", b"--proxy-user", b"-a", b"--auth", b"-E", b"--cert", b"--proxy-cert")
)
_SECRET_OPTIONS: Final = frozenset((b"--oauth2-bearer", b"--pass", b"--proxy-pass", b"--tlspassword"))
_COOKIE_OPTIONS: Final = frozenset((b"-b", b"--cookie"))
_NO_WORD = re.compile(rb"[^A-Za-z0-9]+")
_PRINTABLE = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


class Finder:
    """Applies rules to texts."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        # The same few names stand in a text thousands of times.
        self._is_secret_name = lru_cache(4096)(rules.is_secret_name)
        self._is_secret_header = lru_cache(4096)(rules.is_secret_header)
        self._never_random = lru_cache(4096)(lambda name: _NEVER_RANDOM.search(name.lower()) is not None)
        self._known: dict[bytes, list[Finding]] = {}
        self._own_shapes = {name: shape for name, shape in rules.shapes.items() if name.startswith(OWN)}

    def find(self, text: bytes, place: Place) -> list[Finding]:
        """Return the secrets of a text in order, none of which overlap, and after them those within base64."""
        if len(text) < _REMEMBERED_MIN:
            return self._find(text, place)
        # Every text is searched twice at least: when secrets are collected, and when they are replaced.
        key = (
            hashlib.blake2b(text, digest_size=16, person=b"tlscap scrub").digest()
            + repr((place[:-1], bool(place.cuts))).encode()
        )
        found = self._known.get(key)
        if found is None:
            found = self._find(text, place)
            if len(self._known) < _REMEMBERED_MAX:
                self._known[key] = found
        return found

    def _find(self, text: bytes, place: Place) -> list[Finding]:
        found = in_windows(text, lambda piece: self._find_in(piece, place, whole=len(piece) == len(text)))
        if place.is_json:  # of the text as a whole: a piece of it doesn't tell where in the JSON it stands
            found += self._true(self._json_leaves(text))
        within = dict.fromkeys(one for one in found if one.codec == "within")
        return [*without_overlaps(one for one in found if one.codec != "within"), *within]

    def _find_in(self, text: bytes, place: Place, *, whole: bool) -> list[Finding]:
        """Return the secrets of a text in its views; ``whole``: it is no piece of a longer one.  They may overlap."""
        found: list[Finding] = []
        if not whole:
            place = place._replace(is_json=False)
        readings = views(text)
        for view in readings:
            for one in self._in_view(view.data, place, raw=not view.is_derived):
                start, end = view.origin(one.start, one.end)
                codec = one.codec.replace("number", "") if view.is_derived else one.codec
                found.append(Finding(start, end, one.value, one.rule, codec))
        found += self._in_base64(readings[0], place)
        if readings[0].is_derived:  # from bytes that are no text, and these rules may be about them
            found += self._true(self._shapes(text, self._own_shapes))
        return found

    def _in_view(self, text: bytes, place: Place, *, raw: bool = False) -> Iterator[Finding]:
        """``raw``: the text is as it was sent, no escapes in it were undone."""
        return self._true(self._candidates(text, place, raw=raw))

    @staticmethod
    def _true(candidates: Iterable[Finding]) -> Iterator[Finding]:
        """Leave out what is no secret by its value, whatever its name."""
        for one in candidates:
            harmless = _HARMLESS_VALUES.fullmatch(one.value) and not one.rule.startswith("JSON path")
            if one.value and not harmless and not is_scrubbed(one.value):
                yield one

    def _candidates(self, text: bytes, place: Place, *, raw: bool) -> Iterator[Finding]:
        if place.is_header:
            yield from self._header(text, place.name, 0, len(text))
        yield from self._shapes(text, self._rules.shapes)
        if place.is_header and len(text) < 8:
            return
        if b"=" in text:
            yield from self._pairs(text, place, raw=raw)
        if b":" in text:
            yield from self._json_pairs(text)
            yield from self._lines(text, place)
        if b"<" in text:
            yield from self._markup(text, is_cut=bool(place.cuts))
        if b"orm-" in text or b"ORM-" in text:
            yield from self._parts(text)
        if place.is_json:
            yield from self._json_leaves(text)
        if place.kind == COMMAND_LINE:
            yield from self._command_line(text)

    def _shapes(self, text: bytes, shapes: Mapping[str, re.Pattern[bytes]]) -> Iterator[Finding]:
        for name, shape in shapes.items():
            needed = self._rules.needed.get(name)
            if needed and not any(one in text for one in needed):
                continue
            for match in shape.finditer(text):
                group = 1 if shape.groups else 0
                start, end = match.span(group)
                if start < 0:
                    start, end = match.span()
                yield Finding(start, end, text[start:end], name)

    def _is_random(self, name: str, value: bytes) -> bool:
        """Tell whether a value of this name looks like a token of which no rule knows."""
        if not self._rules.entropy or len(value) < _RANDOM_MIN or self._never_random(name) or not _is_random(value):
            return False
        if (plain := decode_base64(value)) and SHAPE.search(plain):
            return False  # it had a secret in it
        return not any(shape.fullmatch(value) for shape in self._rules.kept_shapes)

    # --- Fields of heads ---

    def _header(self, text: bytes, name: str, start: int, end: int) -> Iterator[Finding]:
        rule = f"header {name}"
        value = text[start:end]
        if self._is_secret_header(name):
            if name in ("cookie", "set-cookie"):
                yield from self._cookies(text, name, start, end)
            elif name.endswith("authorization") or name == "x-auth":
                yield from _credentials(text, rule, start, end)
            else:
                yield Finding(start, end, value, rule)
        elif name and self._is_random(name, value):
            yield Finding(start, end, value, ENTROPY)

    def _cookies(self, text: bytes, name: str, start: int, end: int) -> Iterator[Finding]:
        """Find values as user agents read them (RFC 6265, 5.2), which is more than servers may send: also without a name."""
        for number, match in enumerate(_COOKIE.finditer(text, start, end)):
            cookie, equals, _ = match[0].partition(b"=")
            key = cookie.strip().lower()
            if name == "set-cookie" and number and key in _COOKIE_ATTRIBUTES:
                continue
            begin = match.start() + (len(cookie) + 1 if equals else 0)
            value = text[begin : match.end()].strip().strip(b'"')
            if value and not (equals and key.decode("latin-1") in self._rules.keep):
                begin = text.index(value, begin)
                yield Finding(begin, begin + len(value), value, name)

    def _lines(self, text: bytes, place: Place) -> Iterator[Finding]:
        """Find header fields in a text: a dump, an argument of curl."""
        for match in _LINE.finditer(b"\n" + text):
            name = match[1].decode().lower()
            if self._is_secret_header(name) and (name not in WORDS or place.kind == COMMAND_LINE):
                yield from self._header(text, name, match.start(2) - 1, match.end(2) - 1)

    # --- Names and values ---

    def _pairs(self, text: bytes, place: Place, *, raw: bool) -> Iterator[Finding]:
        pattern = _NAME
        padded = b"\n" + text
        if not place.is_form:  # most names are of no interest, and a page has thousands
            names = set(_NAME.findall(padded))
            names = {one for one in names if self._is_secret_name(unescaped_form(one), query=True)}
            if not names:
                return
            pattern = re.compile(_NAME_OF % b"|".join(map(re.escape, sorted(names))))
        at = 0
        while match := pattern.search(padded, at):
            at = match.end()
            name = unescaped_form(match[1])
            in_query = place.is_form or match[0][:1] in (b"?", b"&")
            if self._is_secret_name(name, query=in_query, form=place.is_form):
                pattern_here = _value_pattern(match, place) if raw else _VALUE
                if value := pattern_here.match(padded, at) or _QUOTED_VALUE.match(padded, at):
                    begin, end = value.span(value.lastindex or 0)
                    yield Finding(
                        begin - 1, end - 1, unescaped_form(padded[begin:end]), f"name {name.decode('latin-1')}"
                    )
                    at = value.end()
                continue
            value = _RANDOM_VALUE.match(padded, at) if place.is_form else None
            if value and self._is_random(name.decode("latin-1"), value[0]):
                yield Finding(value.start() - 1, value.end() - 1, value[0], ENTROPY)

    def _json_pairs(self, text: bytes) -> Iterator[Finding]:
        names = {name for _, name in _JSON_NAME.findall(text)}
        if not any(self._is_secret_name(unescaped_json(one)) for one in names) and not _JSON_RANDOM.search(text):
            return
        at = 0
        while match := _JSON_PAIR.search(text, at):
            at = match.end()
            name = unescaped_json(match[2])
            group = match.lastindex or 0  # the value's: 3 to 6
            if not self._is_secret_name(name):
                if group in (3, 4) and self._is_random(name.decode("latin-1"), match[group]):
                    yield Finding(*match.span(group), match[group], ENTROPY)
                if group == 6:
                    at = match.start(6)
                continue
            rule = f"name {name.decode('latin-1')}"
            if group == 6:
                for item in _JSON_ITEM.finditer(text, *match.span(6)):
                    if item[2]:
                        yield Finding(*item.span(2), item[2], rule, "number")
                    else:
                        yield Finding(*item.span(1), unescaped_json(item[1]), rule)
            elif group != 5:
                value = unescaped_json(match[group])
                scheme = _SCHEME.fullmatch(match[group])
                if scheme and scheme[1].lower() in (b"bearer", b"basic", b"token"):
                    yield from _credentials(text, rule, *match.span(group))
                    continue
                yield Finding(*match.span(group), value, rule)
            else:
                yield Finding(*match.span(5), match[5], rule, "number")

    def _json_leaves(self, text: bytes) -> Iterator[Finding]:
        if not self._rules.json_paths:
            return
        for leaf in leaves(text):
            if any(chosen(leaf.path, path) for path in self._rules.json_paths):
                raw = text[leaf.start : leaf.end]
                rule = "JSON path " + ".".join(
                    str(key if isinstance(key, int) else key.decode("latin-1")) for key in leaf.path
                )
                value = unescaped_json(raw) if leaf.is_string else raw
                yield Finding(leaf.start, leaf.end, value, rule, "" if leaf.is_string else "number")

    def _markup(self, text: bytes, *, is_cut: bool) -> Iterator[Finding]:
        for match in _ELEMENT.finditer(text):
            if match.end() == len(text) and len(match[2]) < _UNENDED_MIN and not is_cut:
                continue  # it never ends: no element, unless the end stands in what follows this piece of a text
            if self._is_secret_name(match[1]) and (value := match[2].strip()):
                start = match.start(2) + match[2].index(value)
                yield Finding(start, start + len(value), unescaped_html(value), f"name {match[1].decode()}")
        for match in _CDATA.finditer(text) if b"<![CDATA[" in text else ():
            end = text.find(b"]]>", match.end())
            if end < 0 and not is_cut:
                break
            end = len(text) if end < 0 else end
            if self._is_secret_name(match[1]):
                yield Finding(match.end(), end, text[match.end() : end], f"name {match[1].decode()}")
        for match in _ATTRIBUTE.finditer(text):
            if self._is_secret_name(match[1]):
                group = 2 if match.start(2) >= 0 else 3
                yield Finding(*match.span(group), unescaped_html(match[group]), f"name {match[1].decode()}")
        for element in _INPUT.finditer(text):
            attributes = {one[1].lower(): one for one in _ATTRIBUTE.finditer(text, *element.span())}
            name = attributes.get(b"name")
            value = attributes.get(b"value") or attributes.get(b"content")
            if name and value and self._is_secret_name(name[2] or name[3]):
                group = 2 if value.start(2) >= 0 else 3
                yield Finding(
                    *value.span(group), unescaped_html(value[group]), f"name {(name[2] or name[3]).decode('latin-1')}"
                )

    def _parts(self, text: bytes) -> Iterator[Finding]:
        """Find fields of a multipart form (RFC 7578)."""
        delimiter = text[: text.find(b"\r\n")] if text.startswith(b"--") else b"--"
        for match in _PART.finditer(text):
            if not self._is_secret_name(match[1], query=True, form=True):
                continue
            end = text.find(b"\r\n" + delimiter, match.end())
            end = len(text) if end < 0 else end
            yield Finding(match.end(), end, text[match.end() : end], f"name {match[1].decode('latin-1')}")

    # --- Command lines ---

    def _command_line(self, text: bytes) -> Iterator[Finding]:
        """Find what options say: ``-u user:password``, ``--token x``; words end with a zero byte."""
        at = 0
        option = b""
        for word in text.split(b"\0"):
            start, end = at, at + len(word)
            at = end + 1
            if option in _SECRET_OPTIONS:
                yield Finding(start, end, word, f"option {option.decode()}")
            elif option in _USER_OPTIONS and b":" in word:
                yield from _password(text, start, end, option)
            elif option in _COOKIE_OPTIONS and b"=" in word:
                yield from self._cookies(text, "cookie", start, end)
            elif (
                option[:1] == b"-"
                and len(option) > 2
                and word[:1] != b"-"
                and b"=" not in option
                and self._is_secret_name(option)
            ):
                yield Finding(start, end, word, f"option {option.decode('latin-1')}")
            elif word[:2] == b"-u" and b":" in word[2:]:
                yield from _password(text, start + 2, end, b"-u")
            elif word[:2] == b"-b" and b"=" in word:
                yield from self._cookies(text, "cookie", start + 2, end)
            elif word.startswith((b"--user=", b"--proxy-user=")):
                yield from _password(text, start + word.index(b"=") + 1, end, b"--user")
            option = word

    # --- Within base64 ---

    def _in_base64(self, view: View, place: Place) -> Iterator[Finding]:
        """Find what is a secret by its name or shape within a text in base64; the whole of it is the secret then."""
        for match in _BASE64.finditer(view.data):
            plain = decode_base64(match[0])
            if not plain or not _PRINTABLE.fullmatch(plain) or is_pseudonym(match[0]):
                continue
            for one in self._in_view(plain, Place(place.kind)):
                if one.rule != ENTROPY:
                    yield Finding(*view.origin(*match.span()), one.value, one.rule, "within")


def _value_pattern(name: re.Match[bytes], place: Place) -> re.Pattern[bytes]:
    """Return what a value can consist of that follows a name in a text as it was sent."""
    before = name[0][:1]
    if place.kind == COMMAND_LINE and before in (b"\n", b"\0"):
        return _OPTION_VALUE if name[1].startswith(b"-") else _WORD_VALUE
    if not place.is_form or not (before == b"&" or name.start() == 0 or before == b"?"):
        return _VALUE
    if place.is_header or place.kind == "request target":
        return _QUERY_VALUE
    return _VALUE if before == b"?" else _FORM_VALUE


def _password(text: bytes, start: int, end: int, option: bytes) -> Iterator[Finding]:
    user, colon, password = text[start:end].partition(b":")
    if colon and (secret := password or user):
        begin = start + len(user) + 1 if password else start
        yield Finding(begin, begin + len(secret), secret, f"option {option.decode()}")


def _credentials(text: bytes, rule: str, start: int, end: int) -> Iterator[Finding]:
    """Find what is secret of an Authorization field (RFC 9110, 11.4)."""
    value = text[start:end]
    match = _SCHEME.fullmatch(value.strip())
    if not match:
        yield Finding(start, end, value, rule)
        return
    start += value.index(match[2], len(match[1]))
    rest = match[2]
    if match[1].lower() == b"basic":
        plain = decode_base64(rest)
        if plain and b":" in plain:
            yield Finding(start, start + len(rest), plain, rule, "basic")
            return
    parameters = list(_PARAMETER.finditer(rest))
    if (
        parameters
        and not _PARAMETER.sub(b"", rest).strip(b" \t,;")
        and not re.fullmatch(rb"[A-Za-z0-9._~+/-]+=*", rest)
    ):
        for one in parameters:
            if one[1].lower().decode() not in _HARMLESS_PARAMETERS:
                group = 2 if one.start(2) >= 0 else 3
                if one[group]:
                    yield Finding(start + one.start(group), start + one.end(group), one[group], rule)
        return
    yield Finding(start, start + len(rest), rest, rule)


def is_scrubbed(value: bytes) -> bool:
    """Tell whether all that could be a secret in a value are pseudonyms."""
    rest, count = SHAPE.subn(b"", value)
    return count > 0 and len(_NO_WORD.sub(b"", rest)) < 6


def decode_base64(text: bytes) -> bytes | None:
    """Return what a text in base64 (RFC 4648, both alphabets, padded or not) stands for; ``None``: it is none."""
    core = text.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    if len(core) % 4 == 1:
        return None
    try:
        return base64.b64decode(core + b"=" * (-len(core) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def without_overlaps(found: Iterable[Finding]) -> list[Finding]:
    """Return findings in order; of those that overlap the longest, and of equal ones the first."""
    kept: list[Finding] = []
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if kept and one.start < kept[-1].end:
            if one.end - one.start > kept[-1].end - kept[-1].start:
                kept[-1] = one
            continue
        kept.append(one)
    return kept


def _is_random(value: bytes) -> bool:
    """Tell whether a value looks like the output of a generator of tokens: long, mixed, without order."""
    if not _RANDOM.fullmatch(value) or _HEX_OR_WORDS.fullmatch(value):
        return False
    kinds = (
        any(65 <= byte <= 90 for byte in value),
        any(97 <= byte <= 122 for byte in value),
        any(48 <= byte <= 57 for byte in value),
    )
    if not all(kinds) or value.count(b"/") > 2 or value.count(b".") > 2:
        return False
    return entropy(value) >= _ENTROPY_MIN


def entropy(value: bytes) -> float:
    """Return Shannon's entropy of a text's characters, in bits for each."""
    size = len(value)
    counts = [value.count(byte) for byte in set(value)]
    return -sum(count / size * math.log2(count / size) for count in counts)
