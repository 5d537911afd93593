"""The language in which people say which exchanges and connections they want: ``host:*.example.com status:5xx time>1s``.

docs/filters.md describes it for people; this is its grammar::

    filter   = [ any ]                              nothing: everything matches
    any      = all { "or" all }
    all      = one { [ "and" ] one }
    one      = { "not" | "-" } ( "(" any ")" | term )
    term     = key operator value | value           a value alone: it occurs in the URL
    operator = ":" | "=" | "~" | ">" | ">=" | "<" | "<="

A value ends at a blank or at a ``)`` that it did not open, unless these stand in double quotes.  A backslash takes the next
character's meaning away; in a regular expression it keeps the meaning that it has there.

`compile_filter` turns a text into a `Filter` made of closures, or raises `FilterError`, which shows the place.  What is
not known about an exchange (the status of one without an answer) matches nothing, and so its negation does.
Each term's time is linear in the text it looks at, but for regular expressions, which are Python's.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import ipaddress
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Final, Protocol, TypeVar

from tlscap.errors import UsageError
from tlscap.http.events import Header, Side
from tlscap.http.exchanges import Exchange
from tlscap.http.grpc import grpc_status
from tlscap.model import Endpoint, Flow, Role

TEXT_LIMIT: Final = 10_000
"""Longest filter, in characters."""

PATTERN_LIMIT: Final = 1_000
"""Longest regular expression in it, in characters."""

_DEPTH_LIMIT: Final = 50  # parentheses in parentheses
_SHOWN: Final = 100  # characters of a filter that an error shows

_KEYWORD = re.compile(r"(and|or|not)(?=[\s()]|\Z)", re.IGNORECASE | re.ASCII)
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)(?=[:~=<>]|![:~=])(?!://)")
_OPERATOR = re.compile(r"[<>]=?(?!>)|[:~]|=(?![=~<>])")
_FOREIGN_OPERATOR = re.compile(r"[!=<>]+[~:]?")
_FOREIGN_WORD: Final = {"&&": "and", "&": "and", "||": "or", "|": "or"}

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_STATUS = re.compile(r"(\d)(?:x|(\d))(?:x|(\d))", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)((?:[kmgt]i?)?)b?", re.IGNORECASE | re.ASCII)
_SIZES: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_DURATION = re.compile(
    r"(-?)((?:\d{1,18}(?:\.\d{1,18})?(?:ns|us|µs|ms|s|min|m|h|d))+|\d{1,18}(?:\.\d{1,18})?)", re.IGNORECASE | re.ASCII
)
_DURATION_PART = re.compile(r"([\d.]+)([a-zµ]*)", re.IGNORECASE | re.ASCII)
_NANOSECONDS: Final = {
    "": 10**9,
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
}
_MOMENT = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)?"
    r"(?:(?:(?<=\d)[Tt ]|\A)(?P<clock>(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?)"
    r"(?P<offset>[Zz]|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 10**9

_INFINITE: Final = float("inf")
_NOTHING: Final[frozenset[Side]] = frozenset()
_BOTH: Final = (Side.REQUEST, Side.RESPONSE)


class FilterError(UsageError):
    """A filter that can't be understood.

    ``str(error)`` says why in its first line; the other two show the filter and mark the place.  ``position`` is where it
    begins, in characters from the filter's start.
    """

    def __init__(self, message: str, *, position: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position


class Bodies(Protocol):
    """Where a filter finds the bodies that it asks for (`Filter.needs_bodies`)."""

    def content(self, exchange: Exchange, side: Side) -> bytes | None:
        """Return a body without its content coding, as much of it as is kept; ``None`` when it is not known."""
        ...


_Subject = TypeVar("_Subject")
_Matches = Callable[[Exchange, Bodies | None], bool]
_FlowMatches = Callable[[Flow], bool | None]


@dataclass(frozen=True, slots=True)
class _Node:
    """A compiled part of a filter."""

    matches: _Matches
    flow_matches: _FlowMatches
    bodies: frozenset[Side] = _NOTHING


class Filter:
    """A compiled filter."""

    __slots__ = ("_node", "needs_bodies", "text")

    def __init__(self, text: str, node: _Node) -> None:
        self.text = text
        self.needs_bodies = node.bodies
        """The sides whose bodies `matches` looks at."""
        self._node = node

    def matches(self, exchange: Exchange, bodies: Bodies | None = None) -> bool:
        """Tell whether the exchange is wanted; without ``bodies``, no body is known."""
        return self._node.matches(exchange, bodies)

    def flow_matches(self, flow: Flow) -> bool | None:
        """Tell whether a connection is wanted, by what is known of itself.

        ``None``: its exchanges decide, so it is wanted if one of them `matches`.
        """
        return self._node.flow_matches(flow)


def compile_filter(text: str, *, zone: tzinfo | None = None) -> Filter:
    """Compile a filter.  Times in it are of ``zone``; ``None``: the machine's own, as in the table.

    Raises `FilterError`.
    """
    return Filter(text, _Parser(_Source(text, zone)).parse())


# --- From text to terms ---


@dataclass(frozen=True, slots=True)
class _Source:
    """The filter as it was written."""

    text: str
    zone: tzinfo | None

    def error(self, message: str, start: int, end: int = 0, *, hint: str = "") -> FilterError:
        """Return an error that marks a place."""
        first = max(0, min(start - _SHOWN // 2, len(self.text) - _SHOWN))
        window = self.text[first : first + _SHOWN]
        before, after = "…" * bool(first), "…" * (first + _SHOWN < len(self.text))
        shown = before + "".join(char if char.isprintable() else " " for char in window) + after
        indent = len(before) + start - first
        marks = "^" * max(1, min(end - start, len(shown) - indent))
        return FilterError(f"filter: {message}\n    {shown}\n    {' ' * indent}{marks}", position=start, hint=hint)


@dataclass(frozen=True, slots=True)
class _Value:
    """What stands behind an operator: without quotes, with backslashes."""

    raw: str
    places: tuple[int, ...]
    """Where in the filter each character stands."""
    start: int
    end: int

    @property
    def plain(self) -> str:
        """The text, nothing in it having a meaning."""
        return "*".join(self.pieces)

    @property
    def pieces(self) -> list[str]:
        """The text between asterisks."""
        pieces = [""]
        chars = iter(self.raw)
        for char in chars:
            if char == "*":
                pieces.append("")
            else:
                pieces[-1] += next(chars, char) if char == "\\" else char
        return pieces


@dataclass(frozen=True, slots=True)
class _Term:
    """A key, an operator (``=`` is given as ``:``) and a value."""

    source: _Source
    key: str
    key_start: int
    operator: str
    value: _Value

    def bad_value(self, message: str) -> FilterError:
        """Return an error that marks the value."""
        return self.source.error(message, self.value.start, self.value.end)

    def bad_operator(self, message: str) -> FilterError:
        """Return an error that marks the operator."""
        start = self.key_start + len(self.key)
        return self.source.error(message, start, start + len(self.operator))


class _Parser:
    """Recursive descent: one method for each line of the grammar."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._text = source.text
        self._pos = 0
        self._depth = 0

    def parse(self) -> _Node:
        if len(self._text) > TEXT_LIMIT:
            raise self._source.error(f"longer than {TEXT_LIMIT} characters", TEXT_LIMIT)
        self._skip_blanks()
        if self._pos == len(self._text):
            return _joined([], decisive=False)
        node = self._any()
        if self._pos < len(self._text):
            raise self._source.error("there is no '(' for this ')'", self._pos)
        return node

    def _any(self) -> _Node:
        nodes = [self._all()]
        while self._keyword("or"):
            nodes.append(self._all())
        return _joined(nodes, decisive=True)

    def _all(self) -> _Node:
        nodes = [self._one()]
        while self._keyword("and") or not self._at_end_of_all():
            nodes.append(self._one())
        return _joined(nodes, decisive=False)

    def _at_end_of_all(self) -> bool:
        word = _KEYWORD.match(self._text, self._pos)
        return self._text[self._pos : self._pos + 1] in ("", ")") or bool(word and word[1].lower() == "or")

    def _one(self) -> _Node:
        negative = False
        while self._keyword("not") or self._dash():
            negative = not negative
        node = self._group() if self._text.startswith("(", self._pos) else self._term()
        self._skip_blanks()
        return _negated(node) if negative else node

    def _group(self) -> _Node:
        start = self._pos
        self._depth += 1
        if self._depth > _DEPTH_LIMIT:
            raise self._source.error(f"more than {_DEPTH_LIMIT} parentheses in one another", start)
        self._pos += 1
        self._skip_blanks()
        node = self._any()
        if not self._text.startswith(")", self._pos):
            raise self._source.error("this '(' is not closed", start)
        self._pos += 1
        self._depth -= 1
        return node

    def _term(self) -> _Node:
        start = self._pos
        key = _KEY.match(self._text, start)
        if not key:
            return self._word()
        name = key[1].lower()
        operator = _OPERATOR.match(self._text, key.end())
        if not operator:
            foreign = _FOREIGN_OPERATOR.match(self._text, key.end())
            instead = f"not {name}:..." if self._text[key.end()] == "!" else "one of : ~ = > >= < <="
            raise self._source.error(
                f"there is no such operator: write {instead}", key.end(), foreign.end() if foreign else 0
            )
        compiled = self._compiler_of(name, key.start(), key.end())
        self._pos = operator.end()
        value = self._value()
        if value.start == value.end:
            raise self._source.error(f"a value has to stand right after '{name}{operator[0]}'", start, value.end)
        meaning = ":" if operator[0] == "=" else operator[0]
        return compiled(_Term(self._source, name, start, meaning, value))

    def _word(self) -> _Node:
        """Read a value without a key."""
        start = self._pos
        value = self._value()
        if value.start == value.end:
            behind = self._text[:start].split()
            raise self._source.error(f"a term is missing{f' after {behind[-1]!r}' if behind else ' here'}", start)
        if _KEYWORD.match(self._text, start):
            raise self._source.error(f"a term is missing before {value.raw!r}", start, value.end)
        if value.raw in _FOREIGN_WORD or self._text[start] == "!":
            instead = _FOREIGN_WORD.get(value.raw, "not")
            raise self._source.error(
                f"write {instead!r}, or put in quotes what is meant as it stands", start, value.end
            )
        if self._text[start] in ":~=<>":
            raise self._source.error("a key has to stand right before this operator, as in time>1s", start)
        return _url_has(_Term(self._source, "", start, ":", value))

    def _compiler_of(self, name: str, start: int, end: int) -> _Compile:
        """Return what compiles the terms of a key."""
        compiled = _KEYS.get(name)
        if compiled:
            return compiled
        for prefix, sides in _HEADER_PREFIXES.items():
            if name.startswith(prefix) and len(name) > len(prefix):
                return _texts(_field_values(name.removeprefix(prefix).encode(), sides))
        meant = _SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name[:_SHOWN], KEYS, 1)), "")
        raise self._source.error(
            f"unknown key {name!r}{f': did you mean {meant!r}?' if meant else ''}",
            start,
            end,
            hint="in quotes it is searched for in the URL" + ("" if meant else f"; keys: {', '.join(KEYS)}"),
        )

    def _value(self) -> _Value:
        text, start = self._text, self._pos
        chars: list[str] = []
        places: list[int] = []
        quote = -1
        opened = 0
        pos = start
        while pos < len(text):
            char = text[pos]
            length = 2 if char == "\\" else 1
            if char == '"':
                quote = -1 if quote >= 0 else pos
                pos += 1
                continue
            if quote < 0:
                if char.isspace() or (char == ")" and not opened):
                    break
                opened += (char == "(") - (char == ")")
            chars += text[pos : pos + length]
            places += range(pos, min(pos + length, len(text)))
            pos += length
        if quote >= 0:
            raise self._source.error("this quote is not closed", quote)
        self._pos = min(pos, len(text))
        return _Value("".join(chars), tuple(places), start, self._pos)

    def _keyword(self, word: str) -> bool:
        """Consume a keyword, if it stands here."""
        match = _KEYWORD.match(self._text, self._pos)
        if not match or match[1].lower() != word:
            return False
        self._pos = match.end()
        self._skip_blanks()
        return True

    def _dash(self) -> bool:
        if not self._text.startswith("-", self._pos):
            return False
        self._pos += 1
        self._skip_blanks()
        return True

    def _skip_blanks(self) -> None:
        while self._pos < len(self._text) and self._text[self._pos].isspace():
            self._pos += 1


# --- Terms put together ---


def _joined(nodes: list[_Node], *, decisive: bool) -> _Node:
    """Return ``all`` of the nodes (a single False decides) or ``any`` of them (a single True does)."""
    if len(nodes) == 1:
        return nodes[0]
    nodes = sorted(nodes, key=lambda node: bool(node.bodies))  # what looks at bodies takes longest
    tests = tuple(node.matches for node in nodes)
    flow_tests = tuple(node.flow_matches for node in nodes)

    def matches(exchange: Exchange, bodies: Bodies | None) -> bool:
        for test in tests:
            if test(exchange, bodies) is decisive:
                return decisive
        return not decisive

    def flow_matches(flow: Flow) -> bool | None:
        results = {test(flow) for test in flow_tests}
        if decisive in results:
            return decisive
        return None if None in results else not decisive

    return _Node(matches, flow_matches, _NOTHING.union(*(node.bodies for node in nodes)))


def _negated(node: _Node) -> _Node:
    def flow_matches(flow: Flow) -> bool | None:
        result = node.flow_matches(flow)
        return None if result is None else not result

    return _Node(lambda exchange, bodies: not node.matches(exchange, bodies), flow_matches, node.bodies)


def _exchange_decides(flow: Flow) -> None:
    """Say of a connection that a term is not about it."""


# --- Texts ---

_Compile = Callable[[_Term], _Node]
_TextTest = Callable[[str], bool]
_Texts = Callable[[Exchange], Iterable[str]]
_FlowTexts = Callable[[Flow], Iterable[str]]


def _texts(of_exchange: _Texts, of_flow: _FlowTexts | None = None, *, contains: bool = False) -> _Compile:
    """Return what compiles a key that stands for texts, one of which has to match.

    ``of_flow`` gives those of them that a connection has; the exchanges may have others.  ``contains``: ``:`` asks for a
    part of the text.
    """

    def compiled(term: _Term) -> _Node:
        test = _text_test(term, contains=contains)
        flow_matches: _FlowMatches = _exchange_decides
        if of_flow:
            hopeful = _any_text(of_flow, test)
            flow_matches = lambda flow: hopeful(flow) or None  # noqa: E731
        found = _any_text(of_exchange, test)
        return _Node(lambda exchange, bodies: found(exchange), flow_matches)

    return compiled


def _flow_texts(of_flow: _FlowTexts) -> _Compile:
    """Return what compiles a key that stands for texts of the connection alone."""

    def compiled(term: _Term) -> _Node:
        found = _any_text(of_flow, _text_test(term))
        return _Node(lambda exchange, bodies: found(exchange.flow), found)

    return compiled


def _any_text(texts: Callable[[_Subject], Iterable[str]], test: _TextTest) -> Callable[[_Subject], bool]:
    def found(subject: _Subject) -> bool:
        for text in texts(subject):  # noqa: SIM110 - any() would cost a generator
            if test(text):
                return True
        return False

    return found


def _text_test(term: _Term, *, contains: bool = False) -> _TextTest:
    if term.operator == "~":
        search = _regular_expression(term)
        return lambda text: search(text) is not None
    if term.operator != ":":
        raise term.bad_operator(f"{term.key!r} is a text: write {term.key}:... or {term.key}~...")
    pieces = [piece.lower() for piece in term.value.pieces]
    return _containing(pieces) if contains else _glob(pieces)


def _regular_expression(term: _Term) -> Callable[[str], re.Match[str] | None]:
    value = term.value
    if len(value.raw) > PATTERN_LIMIT:
        raise term.bad_value(f"a regular expression of more than {PATTERN_LIMIT} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read in another way
            return re.compile(value.raw, re.IGNORECASE).search
    except re.error as error:
        place = value.places[error.pos] if error.pos is not None and error.pos < len(value.places) else value.end
        raise term.source.error(f"no regular expression: {error.msg}", place) from None
    except (OverflowError, RecursionError):
        raise term.bad_value("this regular expression is too large") from None


def _glob(pieces: list[str]) -> _TextTest:
    """Return whether a text consists of the pieces, with anything between them."""
    if len(pieces) == 1:
        whole = pieces[0]
        return lambda text: text.lower() == whole
    first, *middle, last = pieces
    least = len(first) + len(last)

    def test(text: str) -> bool:
        text = text.lower()
        end = len(text) - len(last)
        if len(text) < least or not text.startswith(first) or not text.endswith(last):
            return False
        at = len(first)
        for piece in middle:
            found = text.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True

    return test


def _containing(pieces: list[str]) -> _TextTest:
    """Return whether the pieces occur in a text, one after the other."""
    if len(pieces) == 1:
        part = pieces[0]
        return lambda text: part in text.lower()
    return _glob(["", *pieces, ""])


# --- Numbers ---

_Span = tuple[float, float]
"""The smallest and the largest of the whole numbers that something stands for; none, if they are the wrong way round."""
_Numbers = Callable[[Exchange], Iterable[int]]
_FlowNumbers = Callable[[Flow], Iterable[int]]


@dataclass(frozen=True, slots=True)
class _Unit:
    """How a number is written."""

    example: str
    parse: Callable[[str], _Span | None]
    exact: bool = True
    """Whether anything is ever equal to one."""


def _numbers(unit: _Unit, of_exchange: _Numbers, of_flow: _FlowNumbers | None = None) -> _Compile:
    """Return what compiles a key that stands for numbers, one of which has to match."""

    def compiled(term: _Term) -> _Node:
        span = _wanted(term, unit)
        found = _any_number(of_exchange, span)
        flow_matches: _FlowMatches = _any_number(of_flow, span) if of_flow else _exchange_decides
        return _Node(lambda exchange, bodies: found(exchange), flow_matches)

    return compiled


def _flow_numbers(of_flow: _FlowNumbers) -> _Compile:
    """Return what compiles a key that stands for numbers of the connection alone."""
    return _numbers(_PLAIN, lambda exchange: of_flow(exchange.flow), of_flow)


def _any_number(numbers: Callable[[_Subject], Iterable[int]], span: _Span) -> Callable[[_Subject], bool]:
    low, high = span

    def found(subject: _Subject) -> bool:
        for number in numbers(subject):  # noqa: SIM110 - any() would cost a generator
            if low <= number <= high:
                return True
        return False

    return found


def _wanted(term: _Term, unit: _Unit) -> _Span:
    """Return the smallest and the largest number that match."""
    text = term.value.plain
    if term.operator == "~":
        raise term.bad_operator(f"{term.key!r} is no text: write {term.key}:... or {term.key}>...")
    if term.operator == ":" and text == "*":
        return -_INFINITE, _INFINITE
    first, dots, last = text.partition("..")
    if dots:
        if term.operator != ":":
            raise term.bad_value(f"a range goes with ':', as in {term.key}:{text}")
        low = _span(term, unit, first)[0] if first else -_INFINITE
        high = _span(term, unit, last)[1] if last or not first else _INFINITE
        if low > high:
            raise term.bad_value("this range ends before it begins")
        return low, high
    span = _span(term, unit, text)
    if term.operator == ":" and not unit.exact:
        raise term.bad_value(
            f"nothing takes exactly that long: write {term.key}>{text}, {term.key}<{text} or a range a..b"
        )
    return _compared(term.operator, span)


def _compared(operator: str, span: _Span) -> _Span:
    """Return the span of the numbers of which ``number operator span`` is true."""
    low, high = span
    match operator:
        case ">":
            return high + 1, _INFINITE
        case ">=":
            return low, _INFINITE
        case "<":
            return -_INFINITE, low - 1
        case "<=":
            return -_INFINITE, high
        case _:
            return span


def _span(term: _Term, unit: _Unit, text: str) -> _Span:
    span = unit.parse(text)
    if span is None:
        raise term.bad_value(f"{text!r} is not {unit.example}")
    return span


def _parse_number(text: str) -> _Span | None:
    return (int(text), int(text)) if _NUMBER.fullmatch(text) else None


def _parse_status(text: str) -> _Span | None:
    match = _STATUS.fullmatch(text)
    if not match or (match[3] and not match[2]):
        return None
    hundreds, tens, ones = match.groups()
    return int(hundreds + (tens or "0") + (ones or "0")), int(hundreds + (tens or "9") + (ones or "9"))


def _parse_size(text: str) -> _Span | None:
    match = _SIZE.fullmatch(text)
    if not match:
        return None
    return _whole(Decimal(match[1]) * _SIZES[match[2].lower()])


def _parse_duration(text: str) -> _Span | None:
    match = _DURATION.fullmatch(text)
    if not match:
        return None
    parts = _DURATION_PART.findall(match[2])
    length = sum((Decimal(number) * _NANOSECONDS[unit.lower()] for number, unit in parts), Decimal(0))
    return _whole(-length if match[1] else length)


def _whole(number: Decimal) -> _Span:
    """Return the whole number that equals this; of one between two of them, what to compare with."""
    return math.ceil(number), math.floor(number)


_PLAIN: Final = _Unit("a number such as 443", _parse_number)
_STATUSES: Final = _Unit("a status such as 404 or 5xx", _parse_status)
_BYTES: Final = _Unit("a size such as 4096, 64K or 1.5MiB", _parse_size)
_TIMES: Final = _Unit("a time such as 250ms, 1.5s or 2m30s", _parse_duration, exact=False)


# --- Times of day, and dates ---


@dataclass(frozen=True, slots=True)
class _Moment:
    """A time as written: the nanoseconds that it stands for, of the day or since 1970."""

    low: int
    high: int
    of_day: bool
    is_date: bool
    zone: tzinfo | None


def _at(term: _Term) -> _Node:
    """Compile a term about when an exchange began, or a connection was opened."""
    if term.operator == "~":
        raise term.bad_operator("'at' is no text: write at>12:30 or at:12:30..12:45")
    text = term.value.plain
    first, dots, last = text.partition("..")
    if not dots:
        moment = _moment(term, text)
        # 12:30 is an instant to be earlier or later than, a date a whole day.
        instant = term.operator == ":" or moment.is_date
        low, high = _compared(term.operator, (moment.low, moment.high if instant else moment.low))
        return _between(low, high, moment)
    if term.operator != ":":
        raise term.bad_value("a range goes with ':', as in at:12:30..12:45")
    begin = _moment(term, first) if first else None
    end = _moment(term, last) if last or not begin else None
    if begin and end and (begin.of_day, begin.zone) != (end.of_day, end.zone) and (begin.of_day or end.of_day):
        raise term.bad_value("one end of this range is a time of the day, the other is not, or is of another zone")
    low, high = begin.low if begin else -_INFINITE, end.high if end else _INFINITE
    either = begin or end
    assert either, "one end was read"  # noqa: S101
    if low > high and not either.of_day:
        raise term.bad_value("this range ends before it begins")
    return _between(low, high, either)


def _between(low: float, high: float, moment: _Moment) -> _Node:
    def matches(time_ns: int) -> bool:
        if moment.of_day:
            passed = _time_of_day(time_ns, moment.zone)
            if low > high:  # over midnight
                return passed >= low or passed <= high
            return low <= passed <= high
        return low <= time_ns <= high

    return _Node(
        lambda exchange, bodies: matches(exchange.started_ns),
        lambda flow: matches(flow.opened_ns),
    )


def _time_of_day(time_ns: int, zone: tzinfo | None) -> float:
    """Return the nanoseconds since midnight, as a clock shows them; not a number for a time beyond all calendars."""
    seconds, nanoseconds = divmod(time_ns, _SECOND)
    try:
        local = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    except (OverflowError, ValueError, OSError):
        return float("nan")
    return ((local.hour * 60 + local.minute) * 60 + local.second) * _SECOND + nanoseconds


def _moment(term: _Term, text: str) -> _Moment:
    match = _MOMENT.fullmatch(text)
    if match and text:
        with contextlib.suppress(OverflowError, ValueError, OSError):  # the 31st of June, the hour 25, the year 0
            return _read_moment(match, term.source.zone)
    raise term.bad_value(f"{text!r} is not a time such as 12:30, 2026-11-20 or 2026-11-20T12:30:05Z")


def _read_moment(match: re.Match[str], zone: tzinfo | None) -> _Moment:
    if match["offset"]:
        zone = datetime.strptime(match["offset"].upper(), "%z").tzinfo
    clock = time(int(match["hour"] or 0), int(match["minute"] or 0), int(match["second"] or 0))
    fraction = match["fraction"] or ""
    extra = int(fraction.ljust(9, "0"))
    lasts = 10 ** (9 - len(fraction)) if match["second"] else 60 * _SECOND
    if not match["date"]:
        low = ((clock.hour * 60 + clock.minute) * 60 + clock.second) * _SECOND + extra
        return _Moment(low, low + lasts - 1, of_day=True, is_date=False, zone=zone)
    day = date.fromisoformat(match["date"])
    low = _nanoseconds(datetime.combine(day, clock), zone) + extra
    if match["clock"]:
        return _Moment(low, low + lasts - 1, of_day=False, is_date=False, zone=zone)
    end = _nanoseconds(datetime.combine(day + timedelta(days=1), clock), zone)
    return _Moment(low, end - 1, of_day=False, is_date=True, zone=zone)


def _nanoseconds(local: datetime, zone: tzinfo | None) -> int:
    """Return when a clock in ``zone`` shows this."""
    moment = local.replace(tzinfo=zone) if zone else local.astimezone()
    return (moment - _EPOCH) // timedelta(seconds=1) * _SECOND


# --- What exchanges and connections have to be matched ---


def split_url(url: str) -> tuple[str, str, str]:
    """Return authority (without user), path and query of `Exchange.url`; what it does not have is empty."""
    _, colons, rest = url.partition("://")
    if not colons:  # CONNECT: an authority alone
        return url, "", ""
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    return authority.rpartition("@")[2], slash + path, query


def _host_of(authority: str) -> str:
    """Return an authority without its port, an IPv6 address without brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def _hosts(exchange: Exchange) -> Iterator[str]:
    if exchange.url:
        authority = split_url(exchange.url)[0]
        yield _host_of(authority)
        yield authority
    yield from _flow_hosts(exchange.flow)


def _flow_hosts(flow: Flow) -> Iterator[str]:
    if flow.sni:
        yield flow.sni
    for endpoint in _server(flow) or (flow.local, flow.remote):
        if endpoint:
            yield endpoint.address
            yield str(endpoint)


def _paths(exchange: Exchange) -> tuple[str, ...]:
    return (split_url(exchange.url)[1],) if exchange.url else ()


def _queries(exchange: Exchange) -> tuple[str, ...]:
    return (split_url(exchange.url)[2],) if exchange.url else ()


def _protocols(exchange: Exchange) -> tuple[str, ...]:
    return _protocol_names(exchange.protocol)


def _protocol_names(protocol: str) -> tuple[str, ...]:
    """Return what people call a protocol."""
    if protocol.startswith(("http/0", "http/1")):
        return protocol, "h1"
    return ("h2", "http/2") if protocol in ("h2", "http/2", "http/2.0") else (protocol,)


def _fields(exchange: Exchange, sides: tuple[Side, ...]) -> Iterator[Header]:
    for side in sides:
        message = exchange.message(side)
        if message:
            yield from message.headers
            yield from message.trailers


def _field_names(sides: tuple[Side, ...]) -> _Texts:
    return lambda exchange: [name.rstrip().decode("latin-1") for name, _ in _fields(exchange, sides)]


def _field_values(wanted: bytes, sides: tuple[Side, ...]) -> _Texts:
    return lambda exchange: [
        value.decode("latin-1") for name, value in _fields(exchange, sides) if name.lower().rstrip() == wanted
    ]


def media_type(message_type: bytes) -> str:
    """Return what stands in a Content-Type field, without parameters, in lower case."""
    return message_type.partition(b";")[0].strip().decode("latin-1").lower()


def _types(sides: tuple[Side, ...]) -> _Texts:
    def types(exchange: Exchange) -> list[str]:
        messages = [message for side in sides if (message := exchange.message(side))]
        return [media_type(value) for message in messages for value in message.values(b"content-type")]

    return types


def _body_sizes(exchange: Exchange, sides: tuple[Side, ...]) -> tuple[int, ...]:
    messages = [message for side in sides if (message := exchange.message(side))]
    return (sum(message.body_size for message in messages),) if messages else ()


def _if_known(number: int | None) -> tuple[int, ...]:
    return () if number is None else (number,)


def _flow_handshakes(flow: Flow) -> tuple[int, ...]:
    start, end = flow.handshake_start_ns, flow.handshake_end_ns
    return (end - start,) if start and end else ()


def _at_least_zero(number: int) -> tuple[int, ...]:
    return (number,) if number >= 0 else ()


def _ports(flow: Flow) -> list[int]:
    return [endpoint.port for endpoint in (flow.local, flow.remote) if endpoint]


# --- Keys that are neither texts nor numbers ---


def _endpoints(of_flow: Callable[[Flow], Iterable[Endpoint | None]]) -> _Compile:
    """Return what compiles a key that stands for ends of the connection, one of which has to match."""

    def compiled(term: _Term) -> _Node:
        test = _endpoint_test(term)

        def found(flow: Flow) -> bool:
            return any(test(endpoint) for endpoint in of_flow(flow) if endpoint)

        return _Node(lambda exchange, bodies: found(exchange.flow), found)

    return compiled


def _endpoint_test(term: _Term) -> Callable[[Endpoint], bool]:
    text = term.value.plain
    if term.operator == ":" and "/" in text:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise term.bad_value(f"{text!r} is not a network such as 10.0.0.0/8") from None
        return lambda endpoint: _is_in(network, endpoint.address)
    test = _text_test(term)
    return lambda endpoint: test(endpoint.address) or test(str(endpoint))


def _is_in(network: ipaddress.IPv4Network | ipaddress.IPv6Network, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False


def _client(flow: Flow) -> tuple[Endpoint | None, ...]:
    if flow.role is Role.CLIENT:
        return (flow.local,)
    return (flow.remote,) if flow.role is Role.SERVER else ()


def _server(flow: Flow) -> tuple[Endpoint | None, ...]:
    if flow.role is Role.CLIENT:
        return (flow.remote,)
    return (flow.local,) if flow.role is Role.SERVER else ()


def _complete(term: _Term) -> _Node:
    wanted = {"yes": True, "true": True, "no": False, "false": False}.get(term.value.plain.lower())
    if term.operator != ":" or wanted is None:
        raise term.bad_value("write complete:yes or complete:no")
    return _Node(lambda exchange, bodies: exchange.complete is wanted, _exchange_decides)


def _grpc(term: _Term) -> _Node:
    """Compile a term about how a gRPC call ended: by number or by name."""
    text = term.value.plain
    if term.operator == "~" or not (text[:1].isdigit() or text.startswith("..") or term.operator != ":"):
        return _texts(_grpc_names)(term)
    return _numbers(_Unit("a gRPC status such as 5 or NOT_FOUND", _parse_number), _grpc_codes)(term)


def _grpc_names(exchange: Exchange) -> tuple[str, ...]:
    status = grpc_status(exchange.response.headers, exchange.response.trailers) if exchange.response else None
    return (status.name,) if status else ()


def _grpc_codes(exchange: Exchange) -> tuple[int, ...]:
    status = grpc_status(exchange.response.headers, exchange.response.trailers) if exchange.response else None
    return _at_least_zero(status.code) if status else ()


def _body(sides: tuple[Side, ...]) -> _Compile:
    """Return what compiles a term about the content of bodies."""

    def compiled(term: _Term) -> _Node:
        test = _text_test(term, contains=True)

        def matches(exchange: Exchange, bodies: Bodies | None) -> bool:
            for side in sides:
                content = bodies.content(exchange, side) if bodies else None
                if content is not None and test(_as_text(content)):
                    return True
            return False

        return _Node(matches, _exchange_decides, frozenset(sides))

    return compiled


def _as_text(content: bytes) -> str:
    """Return UTF-8 as what it says, which may be cut at its end, and anything else with one character for each byte."""
    try:
        return codecs.utf_8_decode(content, "strict", False)[0]
    except UnicodeDecodeError:
        return content.decode("latin-1")


_url_has: Final = _texts(lambda exchange: (exchange.url,) if exchange.url else (), contains=True)

_KEYS: Final[dict[str, _Compile]] = {
    "host": _texts(_hosts, _flow_hosts),
    "url": _texts(lambda exchange: (exchange.url,) if exchange.url else ()),
    "path": _texts(_paths),
    "query": _texts(_queries),
    "method": _texts(lambda exchange: (exchange.request.head.method.decode("latin-1"),) if exchange.request else ()),
    "status": _numbers(
        _STATUSES,
        lambda exchange: (
            (exchange.response.head.status,) if exchange.response and exchange.response.head.status else ()
        ),
    ),
    "grpc": _grpc,
    "type": _texts(_types(_BOTH)),
    "req.type": _texts(_types((Side.REQUEST,))),
    "resp.type": _texts(_types((Side.RESPONSE,))),
    "header": _texts(_field_names(_BOTH)),
    "req.header": _texts(_field_names((Side.REQUEST,))),
    "resp.header": _texts(_field_names((Side.RESPONSE,))),
    "body": _body(_BOTH),
    "req.body": _body((Side.REQUEST,)),
    "resp.body": _body((Side.RESPONSE,)),
    "size": _numbers(_BYTES, lambda exchange: _body_sizes(exchange, _BOTH)),
    "sent": _numbers(_BYTES, lambda exchange: _body_sizes(exchange, (Side.REQUEST,))),
    "received": _numbers(_BYTES, lambda exchange: _body_sizes(exchange, (Side.RESPONSE,))),
    "at": _at,
    "time": _numbers(_TIMES, lambda exchange: _if_known(exchange.duration_ns)),
    "wait": _numbers(_TIMES, lambda exchange: _if_known(exchange.wait_ns)),
    "handshake": _numbers(_TIMES, lambda exchange: _if_known(exchange.handshake_ns), _flow_handshakes),
    "complete": _complete,
    "problem": _texts(lambda exchange: exchange.problems, contains=True),
    "upgraded": _texts(lambda exchange: (exchange.upgraded_to,) if exchange.upgraded_to else ()),
    "proto": _texts(_protocols, lambda flow: _protocol_names(flow.alpn) if flow.alpn else ()),
    "proc": _flow_texts(lambda flow: (flow.process.comm, flow.process.label) if flow.process.comm else ()),
    "exe": _flow_texts(lambda flow: (flow.process.exe,) if flow.process.exe else ()),
    "pid": _flow_numbers(lambda flow: _at_least_zero(flow.process.pid)),
    "uid": _flow_numbers(lambda flow: _at_least_zero(flow.process.uid)),
    "role": _flow_texts(lambda flow: () if flow.role is Role.UNKNOWN else (flow.role.name,)),
    "sni": _flow_texts(lambda flow: (flow.sni,) if flow.sni else ()),
    "addr": _endpoints(lambda flow: (flow.local, flow.remote)),
    "client": _endpoints(_client),
    "server": _endpoints(_server),
    "port": _flow_numbers(_ports),
    "id": _numbers(_PLAIN, lambda exchange: (exchange.id,)),
    "conn": _flow_numbers(lambda flow: (flow.id,)),
}

KEYS: Final = tuple(_KEYS)
"""The keys, in the order in which people are told of them.  ``header.NAME`` is one, too, and with ``req.`` or ``resp.``."""

_HEADER_PREFIXES: Final = {
    "header.": _BOTH,
    "req.header.": (Side.REQUEST,),
    "resp.header.": (Side.RESPONSE,),
}

_SYNONYMS: Final = {  # what people write who know other tools
    "alpn": "proto",
    "bytes": "size",
    "code": "status",
    "comm": "proc",
    "content-type": "type",
    "domain": "host",
    "dst": "server",
    "duration": "time",
    "flow": "conn",
    "ip": "addr",
    "latency": "wait",
    "mime": "type",
    "process": "proc",
    "protocol": "proto",
    "req": "req.body",
    "request.body": "req.body",
    "resp": "resp.body",
    "response.body": "resp.body",
    "src": "client",
    "took": "time",
    "ttfb": "wait",
    "uri": "url",
    "user": "uid",
}
