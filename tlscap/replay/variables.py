"""Values that a client has from an answer and sends back: tokens, ids, cookies.  Sent again, they must be those of today.

`Plan` finds them in a recording: a value in a JSON body, a header field, a cookie or the parts of a redirect's Location that a later
request repeats.  `Variables` learns what the live server says in the same place, and puts that into the requests that follow.

A value is taken for such a one when it looks generated (`is_telling`): six characters and more, with a digit or long; words and
media types are not.  One that the request of the same exchange holds already was the client's own.  Values that the user names
(`parse_rule`) may be of any kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from tlscap.errors import UsageError
from tlscap.http.content import ContentError
from tlscap.http.events import Header
from tlscap.replay.compare import Answer, Expected
from tlscap.replay.json_documents import parse_json
from tlscap.replay.json_paths import JsonPath, Steps, path_text, value_at
from tlscap.replay.recording import RecordedExchange, RecordedResponse, decoded

SHORTEST: Final = 6
LONGEST: Final = 4096
"""Characters of a value that is recognised by itself."""

_LONG_WORD: Final = 16  # letters without a digit are taken for generated from here on
_MOST_VALUES: Final = 10_000  # of one answer
_FEW: Final = 200  # values that are looked for one by one: until then that is faster
_SEARCHED: Final = 1 << 20  # bytes of a body in which values are looked for

_SPACE = re.compile(r"[\s\x00-\x1f\x7f]")
_WORD_CHARACTER = re.compile(r"[A-Za-z0-9]")
_ORDINARY = re.compile(r"[a-z]+/[a-z0-9.+-]+|HTTP/\d\.\d|(?:iso|windows|utf|us)-?[\d-]+", re.IGNORECASE)

_TELLING_NOTHING: Final = frozenset(
    {
        *("accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "age", "alt-svc"),
        *("cache-control", "connection", "content-encoding", "content-language", "content-length", "content-type"),
        *("date", "expires", "host", "keep-alive", "location", "server", "set-cookie", "te", "transfer-encoding"),
        *("user-agent", "vary", "via"),
    }
)
"""Header fields whose values are no variables, or are looked at in parts."""


def is_telling(value: str) -> bool:
    """Tell whether a value looks generated: found in two places, it is one value that was passed on."""
    if not SHORTEST <= len(value) <= LONGEST or _SPACE.search(value) or _ORDINARY.fullmatch(value):
        return False
    return any(character.isdigit() for character in value) or (len(value) >= _LONG_WORD and value.isalpha())


class Place(NamedTuple):
    """Where in an answer a value stands."""

    kind: str
    """``json``, ``header``, ``cookie``, ``location`` (a path's part or a query's parameter) or ``regex``."""
    where: Any
    """Steps (or a path that the user gave), a name in lower case, a cookie's name, an index or a name, a pattern."""

    def __str__(self) -> str:
        if self.kind == "json":
            return self.where.text if isinstance(self.where, JsonPath) else path_text(self.where)
        return f"{self.kind} {self.where.pattern if self.kind == 'regex' else self.where}"


class Reply:
    """An answer, recorded or live, in which places can be looked up."""

    def __init__(self, headers: Iterable[Header], body: bytes, encodings: str) -> None:
        self._headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
        try:
            self._body = decoded(body, encodings) if encodings else body
        except ContentError:
            self._body = b""
        self._document: Any = None
        if any(name == "content-type" and "json" in value for name, value in self._headers) or (
            self._body.lstrip()[:1] in (b"{", b"[")
        ):
            try:
                self._document = parse_json(self._body)
            except ValueError:
                self._document = None

    def places(self) -> Iterator[tuple[Place, str]]:
        """Yield every value that could be passed on; cookies of any kind, others if they are telling."""
        for name, value in self.cookies().items():
            yield Place("cookie", name), value
        seen: set[str] = set()
        for name, value in self._headers:
            if name not in _TELLING_NOTHING and name not in seen and is_telling(value):
                yield Place("header", name), value
            seen.add(name)
        for where, value in self._location().items():
            if is_telling(value):
                yield Place("location", where), value
        for number, (steps, leaf) in enumerate(_leaves(self._document)):
            if number == _MOST_VALUES:
                return
            if is_telling(leaf):
                yield Place("json", steps), leaf

    def find(self, place: Place) -> str | None:
        """Return the value at a place, or ``None`` when there is none."""
        match place.kind:
            case "cookie":
                return self.cookies().get(place.where)
            case "header":
                return next((value for name, value in self._headers if name == place.where), None)
            case "location":
                return self._location().get(place.where)
            case "regex":
                found = place.where.search(self._body.decode("utf-8", "replace"))
                return found[1 if place.where.groups else 0] if found else None
            case "json" if isinstance(place.where, JsonPath):
                values = place.where.select(self._document)
                return _leaf(values[0]) if len(values) == 1 else None
            case _:
                try:
                    return _leaf(value_at(self._document, place.where))
                except LookupError:
                    return None

    def cookies(self) -> dict[str, str]:
        """Return the cookies that are set, by name."""
        lines = [value.partition(";")[0] for name, value in self._headers if name == "set-cookie"]
        pairs = [line.partition("=") for line in lines]
        return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}

    def _location(self) -> dict[int | str, str]:
        """Return the parts of a redirect's path, by index, and the parameters of its query and fragment, by name."""
        try:
            url = urlsplit(next((value for name, value in self._headers if name == "location"), ""))
            found: dict[int | str, str] = dict(enumerate(unquote(part) for part in url.path.split("/")))
            for name, value in parse_qsl(url.query) + parse_qsl(url.fragment):
                found.setdefault(name, value)
        except ValueError:
            return {}
        return found


def _leaves(document: Any) -> Iterator[tuple[Steps, str]]:
    """Yield texts and whole numbers of a JSON document, with their places."""
    waiting: list[tuple[Steps, Any]] = [((), document)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*place, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [((*place, index), inner) for index, inner in reversed(list(enumerate(value)))]
        elif (leaf := _leaf(value)) is not None:
            yield place, leaf


def _leaf(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 128:
        return str(value)
    return None


# --- The plan ---


@dataclass(slots=True, eq=False)
class Variable:
    """A value of an answer that later requests send back."""

    name: str
    """What the user called it; empty for one that was found."""
    origin: int
    """The id of the exchange whose answer has it."""
    place: Place
    recorded: str

    def __str__(self) -> str:
        return f"{self.name or self.place} of exchange {self.origin}"


class Rule(NamedTuple):
    """A variable that the user names."""

    name: str
    place: Place
    origin: int


_RULE = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w-]*)=)?(?P<kind>json|header|cookie|regex):(?P<where>.+)@(?P<id>\d{1,9})", re.DOTALL
)


def parse_rule(text: str) -> Rule:
    """Read ``NAME=json:$.token@3``, ``header:x-token@3``, ``cookie:sid@3``, ``regex:PATTERN@3``.  Raises `UsageError`."""
    match = _RULE.fullmatch(text)
    if not match:
        raise UsageError(
            f"{text!r} names no variable",
            hint="NAME=json:$.token@ID, or header:NAME, cookie:NAME or regex:PATTERN (docs/sending.md)",
        )
    kind, where = match["kind"], match["where"]
    place: Any = where
    if kind == "json":
        place = JsonPath(where)
    elif kind == "header":
        place = where.strip().lower()
    elif kind == "regex":
        try:
            place = re.compile(where)
        except re.error as error:
            raise UsageError(f"{where!r} is no regular expression: {error}") from None
    named = Place(kind, place)
    return Rule(match["name"] or str(named), named, int(match["id"]))


@dataclass(slots=True)
class Plan:
    """Which answers later requests depend on.  ``exchanges`` are those that will be sent, in the order of the recording."""

    learned: dict[int, list[Variable]] = field(default_factory=dict)
    """What is taken from the answers, by the exchange's id."""
    needs: dict[int, set[int]] = field(default_factory=dict)
    """Exchanges whose answers must be there before one is sent, by its id."""

    @property
    def variables(self) -> list[Variable]:
        """All of them, in the order of their answers."""
        return [variable for variables in self.learned.values() for variable in variables]


def make_plan(exchanges: Iterable[RecordedExchange], rules: Iterable[Rule] = (), *, automatic: bool = True) -> Plan:
    """Find what later requests have from earlier answers.  Raises `UsageError` for a rule that fits nothing."""
    exchanges = list(exchanges)
    plan = Plan()
    known = _Known()
    cookies: dict[tuple[str, str], Variable] = {}
    by_id = _named(exchanges, rules)
    for exchange in exchanges:
        text = _searched(exchange)
        began_ns = exchange.request.started_ns
        used = [variable for variable, since_ns in known.find(text) if since_ns <= began_ns]
        used += [cookies[pair] for pair in _cookie_pairs(exchange.request.headers) if pair in cookies]
        for variable in used:
            learned = plan.learned.setdefault(variable.origin, [])
            if variable not in learned:
                learned.append(variable)
            if variable.origin != exchange.id:
                plan.needs.setdefault(exchange.id, set()).add(variable.origin)
        if (response := exchange.response) is None:
            continue
        for variable in by_id.get(exchange.id, ()):
            known.add(variable, response.started_ns, named=True)
            plan.learned.setdefault(exchange.id, []).append(variable)
        if automatic:
            for place, value in _reply(response).places():
                variable = Variable("", exchange.id, place, value)
                if place.kind == "cookie":
                    cookies[place.where, value] = variable
                if is_telling(value) and value not in text:
                    known.add(variable, response.started_ns)
    plan.learned = dict(sorted(plan.learned.items()))
    return plan


def _named(exchanges: list[RecordedExchange], rules: Iterable[Rule]) -> dict[int, list[Variable]]:
    """Return the variables that the user named, by their exchange."""
    responses = {exchange.id: exchange.response for exchange in exchanges}
    found: dict[int, list[Variable]] = {}
    for rule in rules:
        response = responses.get(rule.origin)
        if response is None:
            raise UsageError(f"a variable is from exchange {rule.origin}, which is not sent or has no answer")
        value = _reply(response).find(rule.place)
        if not value:
            raise UsageError(f"the answer of exchange {rule.origin} has no {rule.place}, or several")
        found.setdefault(rule.origin, []).append(Variable(rule.name, rule.origin, rule.place, value))
    return found


def _reply(response: RecordedResponse) -> Reply:
    return Reply(response.headers, response.body, response.encodings)


def _searched(exchange: RecordedExchange) -> str:
    """Return all of a request in which values may stand, as text; what is percent-encoded also decoded."""
    request = exchange.request
    target = request.target.decode("latin-1")
    body = "" if request.encodings else request.body[:_SEARCHED].decode("utf-8", "replace")
    fields = [
        value.decode("latin-1")
        for name, value in request.headers
        if name.decode("latin-1").lower() not in _TELLING_NOTHING
    ]
    parts = [target, unquote(target), *fields, body]
    if _is_form(request.headers):
        parts.append(unquote(body.replace("+", " ")))
    elif "\\" in body and _is_json(request.headers):
        parts += _texts_of(body)
    return "\n".join(parts)


def _texts_of(body: str) -> list[str]:
    """Return the values of a JSON body, without escapes."""
    try:
        return [leaf for _, leaf in _leaves(parse_json(body.encode()))]
    except ValueError:
        return []


class _Known:
    """Values by their first characters: so a text is searched for all of them at once."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Variable, int]] = {}
        self._starts: dict[
            int, dict[str, list[str]]
        ] = {}  # by the length of the start: a short value has a shorter one

    def add(self, variable: Variable, since_ns: int = 0, *, named: bool = False) -> None:
        """Remember a value; the first answer that had it counts, or the one that the user named."""
        value = variable.recorded
        if value not in self._values:
            length = min(SHORTEST, len(value))
            self._starts.setdefault(length, {}).setdefault(value[:length], []).append(value)
        elif not named:
            return
        self._values[value] = variable, since_ns

    def find(self, text: str) -> list[tuple[Variable, int]]:
        """Return what stands in a text as a whole: no letter or digit goes on beside it."""
        candidates = self._values if len(self._values) <= _FEW else self._candidates(text)
        return [self._values[value] for value in candidates if _stands_in(value, text)]

    def _candidates(self, text: str) -> dict[str, None]:
        """Return the values whose first characters are somewhere in a text."""
        found: dict[str, None] = {}
        for length, starts in self._starts.items():
            for position in range(len(text) - length + 1):
                for value in starts.get(text[position : position + length], ()):
                    found[value] = None
        return found


def _stands_in(value: str, text: str) -> bool:
    position = text.find(value)
    while position >= 0 and not _is_whole(text, position, value):
        position = text.find(value, position + 1)
    return position >= 0


def _is_whole(text: str, start: int, value: str) -> bool:
    end = start + len(value)
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return not (_WORD_CHARACTER.match(value[0]) and _WORD_CHARACTER.match(before)) and not (
        _WORD_CHARACTER.match(value[-1]) and _WORD_CHARACTER.match(after)
    )


# --- While sending ---


class Variables:
    """What the live server said so far."""

    def __init__(self, plan: Plan, *, cookies: bool = True) -> None:
        self._plan = plan
        self._has_cookies = cookies
        self._values: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], str] = {}
        self._jar: dict[str, str] = {}
        self._known = _Known()
        self.missing: list[Variable] = []
        """What the live answers did not have."""

    @property
    def taken(self) -> int:
        """How many values are others than those that were recorded."""
        return len(self._values) + len(self._pairs)

    def learn(self, exchange: RecordedExchange, live: Answer) -> Expected:
        """Take the values of a live answer; return what of it need not be what was recorded."""
        expected = Expected(rename=self.rename)
        reply = Reply(live.headers, live.body, live.encodings)
        if self._has_cookies:
            self._learn_cookies(exchange, reply)
        for variable in self._plan.learned.get(exchange.id, ()):
            kind, where = variable.place
            value = reply.find(variable.place)
            if not value or _SPACE.search(value) or len(value) > LONGEST:
                self.missing.append(variable)
                continue
            if kind == "json" and isinstance(where, JsonPath):
                expected.paths.append(where)
            elif kind == "json":
                expected.places.add(where)
            elif kind == "regex":
                expected.texts.append(where)
            elif kind == "header":
                expected.headers.add(where)
            # A cookie's value may be a word or a digit: that is replaced in Cookie fields only.
            if value != variable.recorded and (variable.name or is_telling(variable.recorded)):
                self._values.setdefault(variable.recorded, value)
                self._known.add(variable)
        return expected

    def _learn_cookies(self, exchange: RecordedExchange, reply: Reply) -> None:
        live = reply.cookies()
        recorded = _reply(exchange.response).cookies() if exchange.response else {}
        self._jar |= live
        for name in live.keys() & recorded.keys():
            self._pairs[name, recorded[name]] = live[name]

    def rename(self, text: str) -> str:
        """Put today's values into a text of a recorded answer."""
        return _replaced(text, self._found(text))

    def _found(self, text: str) -> dict[str, str]:
        if not self._values:
            return {}
        return {variable.recorded: self._values[variable.recorded] for variable, _ in self._known.find(text)}

    def target(self, target: bytes) -> bytes:
        """Put today's values into a path and its query."""
        text = target.decode("latin-1")
        known = self._found(f"{text}\n{unquote(text)}")
        return _replaced(text, _in_url(known)).encode("latin-1") if known else target

    def header(self, name: bytes, value: bytes) -> bytes:
        """Put today's values into a header field."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key == "cookie":
            return self._cookie(text).encode("latin-1") if self._jar else value
        if key in _TELLING_NOTHING or not (known := self._found(text)):
            return value
        return _replaced(text, known).encode("latin-1", "replace")

    def _cookie(self, text: str) -> str:
        """Put the live server's cookies into a Cookie field: that of the same session, else the latest of the name."""
        parts = []
        for part in text.split(";"):
            name, mark, value = part.strip().partition("=")
            today = self._pairs.get((name, value), self._jar.get(name))
            parts.append(f"{name}={today}" if mark and today is not None else part.strip())
        return "; ".join(parts)

    def body(self, headers: Iterable[Header], body: bytes) -> bytes:
        """Put today's values into a body without codings."""
        if not self._values or not body:
            return body
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return body
        headers = list(headers)
        if _is_form(headers):
            known = _in_url(self._found(f"{text}\n{unquote(text.replace('+', ' '))}"))
        elif _is_json(headers):
            known = _in_json(self._found("\n".join((text, *(_texts_of(text) if "\\" in text else ())))))
        else:
            known = self._found(text)
        return _replaced(text, known).encode() if known else body


def _replaced(text: str, values: Mapping[str, str]) -> str:
    """Replace whole values, the longest first, and never what was put in."""
    if not values:
        return text
    pattern = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    return re.sub(
        pattern, lambda match: values[match[0]] if _is_whole(text, match.start(), match[0]) else match[0], text
    )


def _in_url(values: Mapping[str, str]) -> dict[str, str]:
    """Return values as URLs and forms have them: percent-encoded, in the ways that clients do it."""
    forms: dict[str, str] = {}
    for value, today in values.items():
        for encode in (_quoted, _quoted_path, quote_plus):
            forms.setdefault(encode(value), encode(today))
        forms.setdefault(value, _quoted_path(today))
    return forms


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _quoted_path(text: str) -> str:
    """Encode what can't stand in a URL, and no more."""
    return quote(text, safe="!$'()*,;:@/~")


def _in_json(values: Mapping[str, str]) -> dict[str, str]:
    forms: dict[str, str] = {}
    for value, today in values.items():
        for is_ascii in (True, False):
            forms.setdefault(_escaped(value, is_ascii=is_ascii), _escaped(today, is_ascii=is_ascii))
    return forms


def _escaped(text: str, *, is_ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=is_ascii)[1:-1]


def _content_type(headers: Iterable[Header]) -> bytes:
    return next((value for name, value in headers if name.lower() == b"content-type"), b"").partition(b";")[0].lower()


def _is_form(headers: Iterable[Header]) -> bool:
    return _content_type(headers).strip() == b"application/x-www-form-urlencoded"


def _is_json(headers: Iterable[Header]) -> bool:
    return b"json" in _content_type(headers)


def _cookie_pairs(headers: Iterable[Header]) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name.lower() == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, mark, text = part.strip().partition("=")
                if mark:
                    yield key, text
