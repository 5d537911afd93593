"""What changed between two captures: exchanges that appeared, vanished, or are not what they were.

Exchanges are paired by method and URL, in the order in which they began: the first ``GET /x`` of one capture with the first of the
other.  What is left is paired by method and path, if only the query or the host differs.  Times, connections and processes are not
compared, nor are header fields that differ every time (`VOLATILE`).

Only an `Outline` of each exchange is kept, a few hundred bytes; what exactly differs is found in a second reading, for
those that are shown.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from tlscap.http.bodies import Body, LenientDecoder
from tlscap.http.events import BodyGap, Header, Side
from tlscap.http.exchanges import Exchange

VOLATILE: Final = frozenset(
    {
        "date",
        "age",
        "expires",
        "last-modified",
        "etag",
        "set-cookie",
        "x-request-id",
        "x-trace-id",
        "traceparent",
        "cf-ray",
    }
)
"""Header fields that are not compared unless asked for: they differ between any two answers, or name the moment."""

_TEXT_LINES: Final = 200  # of a text body that are compared line by line
_TEXT_SIZE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a difference."""

    ignored: frozenset[str] = VOLATILE
    """Header fields, in lower case."""
    bodies: bool = True

    def fields(self, headers: Iterable[Header]) -> list[tuple[str, str]]:
        """Return the fields that are compared: names in lower case, in the order of names."""
        named = ((name.decode("latin-1").strip().lower(), value.decode("latin-1")) for name, value in headers)
        return sorted((field for field in named if field[0] not in self.ignored), key=lambda field: field[0])


@dataclass(frozen=True, slots=True)
class Outline:
    """What is kept of an exchange to compare it."""

    id: int
    method: str
    url: str
    status: int | None
    digest: bytes
    """Of everything that is compared."""

    @property
    def name(self) -> str:
        """How it is called in the output."""
        return f"{self.method or '?'} {self.url or '?'}"


@dataclass(slots=True)
class Difference:
    """Two exchanges that belong together and differ."""

    before: Outline
    after: Outline


@dataclass(slots=True)
class Comparison:
    """What `compare` found, each list in the order of the captures."""

    same: int = 0
    vanished: list[Outline] = field(default_factory=list)
    appeared: list[Outline] = field(default_factory=list)
    changed: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.vanished or self.appeared or self.changed)


class Outliner:
    """Makes outlines; a `tlscap.http.exchanges.BodySink` that hashes bodies as they pass, decoded where that is possible."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._bodies: dict[tuple[int, Side], _Digest] = {}

    def on_body(self, exchange: Exchange, side: Side, piece: bytes | BodyGap) -> None:
        """Take one piece."""
        if not self._rules.bodies:
            return
        digest = self._bodies.get((exchange.id, side))
        if digest is None:
            message = exchange.message(side)
            digest = self._bodies[exchange.id, side] = _Digest(message.encodings if message else "")
        digest.add(piece)

    def outline(self, exchange: Exchange) -> Outline:
        """Return the outline of an exchange that ended."""
        whole = hashlib.sha256()
        request, response = exchange.request, exchange.response
        for side, message in ((Side.REQUEST, request), (Side.RESPONSE, response)):
            digest = self._bodies.pop((exchange.id, side), None)
            if message is None:
                whole.update(b"none")
                continue
            whole.update(repr(self._rules.fields(message.headers)).encode())
            whole.update(repr(self._rules.fields(message.trailers)).encode())
            whole.update(digest.finish() if digest else b"empty")
        status = response.head.status if response else None
        whole.update(repr(status).encode())
        method = request.head.method.decode("latin-1") if request else ""
        return Outline(exchange.id, method, exchange.url, status, whole.digest())


class _Digest:
    """A hash of one body: of its content as far as that can be decoded, else of its bytes; holes are part of it."""

    def __init__(self, encodings: str) -> None:
        self._hash = hashlib.sha256()
        self._decoder = LenientDecoder(encodings)

    def add(self, piece: bytes | BodyGap) -> None:
        pieces = self._decoder.hole() if isinstance(piece, BodyGap) else self._decoder.feed(piece)
        for decoded in pieces:
            self._hash.update(decoded)
        if isinstance(piece, BodyGap):
            self._hash.update(b"\0hole %d" % piece.length)

    def finish(self) -> bytes:
        self._decoder.finish()
        self._hash.update(self._decoder.note.encode())
        return self._hash.digest() if self._decoder.transferred or self._decoder.note else b"empty"


def compare(before: Iterable[Outline], after: Iterable[Outline]) -> Comparison:
    """Pair the exchanges of two captures, and tell what differs."""
    result = Comparison()
    old, new = sorted(before, key=_id), sorted(after, key=_id)
    pairs, old, new = _paired(old, new, lambda one: (one.method, one.url))
    more, old, new = _paired(old, new, _place)
    for one, other in sorted([*pairs, *more], key=lambda pair: pair[1].id):
        if one.digest == other.digest and one.url == other.url:
            result.same += 1
        else:
            result.changed.append(Difference(one, other))
    result.vanished, result.appeared = old, new
    return result


def _paired(
    old: list[Outline], new: list[Outline], key: Callable[[Outline], object]
) -> tuple[list[tuple[Outline, Outline]], list[Outline], list[Outline]]:
    """Pair by a key, in order; return the pairs and what is left of both."""
    waiting: dict[object, deque[Outline]] = defaultdict(deque)
    for one in old:
        waiting[key(one)].append(one)
    pairs, left = [], []
    for other in new:
        queue = waiting[key(other)]
        if queue:
            pairs.append((queue.popleft(), other))
        else:
            left.append(other)
    return pairs, sorted((one for queue in waiting.values() for one in queue), key=_id), left


def _id(outline: Outline) -> int:
    return outline.id


def _place(outline: Outline) -> tuple[str, str]:
    """Return the method and the path."""
    try:
        path = urlsplit(outline.url).path
    except ValueError:
        path = outline.url
    return outline.method, path


# --- What exactly differs ---


@dataclass(frozen=True, slots=True)
class Seen:
    """One of the two exchanges, with its bodies."""

    exchange: Exchange
    bodies: dict[Side, Body | None]


def explain(before: Seen, after: Seen, rules: Rules) -> Iterator[str]:
    """Yield lines that say what differs, ``-`` for what was and ``+`` for what is."""
    old, new = before.exchange, after.exchange
    if old.url != new.url:
        yield f"- url: {old.url}"
        yield f"+ url: {new.url}"
    was, now = _status(old), _status(new)
    if was != now:
        yield f"- status: {was}"
        yield f"+ status: {now}"
    for side in Side:
        first, second = old.message(side), new.message(side)
        if first is None or second is None:
            if first or second:
                yield f"{'-' if first else '+'} {side.value} seen"
            continue
        yield from _fields(f"{side.value} ", rules.fields(first.headers), rules.fields(second.headers))
        yield from _fields(f"{side.value} trailer ", rules.fields(first.trailers), rules.fields(second.trailers))
        if rules.bodies:
            yield from _body(side, before.bodies.get(side), after.bodies.get(side))


def _status(exchange: Exchange) -> str:
    return str(exchange.response.head.status) if exchange.response else "no response"


def _fields(prefix: str, old: list[tuple[str, str]], new: list[tuple[str, str]]) -> Iterator[str]:
    for name, value in old:
        if (name, value) not in new:
            yield f"- {prefix}{name}: {value}"
    for name, value in new:
        if (name, value) not in old:
            yield f"+ {prefix}{name}: {value}"


def _body(side: Side, old: Body | None, new: Body | None) -> Iterator[str]:
    one, other = (body or Body(b"", 0, 0) for body in (old, new))
    if (one.data, one.size, one.missing) == (other.data, other.size, other.missing):
        return
    yield f"- {side.value} body: {_described(one)}"
    yield f"+ {side.value} body: {_described(other)}"
    lines = _as_lines(one), _as_lines(other)
    if lines[0] is not None and lines[1] is not None:
        for line in list(difflib.unified_diff(lines[0], lines[1], n=1, lineterm=""))[2:]:
            yield f"    {line}"


def _described(body: Body) -> str:
    missing = f", {body.missing} missing" if body.missing else ""
    return f"{body.size} bytes{missing}, sha256 {hashlib.sha256(body.data).hexdigest()[:16]}{'...' if body.truncated else ''}"


def _as_lines(body: Body) -> list[str] | None:
    """Return a short text in lines, JSON one value a line; ``None`` for anything else."""
    if len(body.data) > _TEXT_SIZE or body.truncated or body.encoded:
        return None
    try:
        text = body.data.decode()
    except UnicodeDecodeError:
        return None
    if text[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False)
    lines = text.splitlines()
    return lines if len(lines) <= _TEXT_LINES else None
