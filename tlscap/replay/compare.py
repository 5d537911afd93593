"""What differs between the answer that was recorded and the one that came now.

Compared are the status, the header fields and the content: bodies with their codings undone, as JSON value by value, as text line by
line, as bytes.  How a message was framed is no difference: `FRAMING` fields, chunks, the version of HTTP.

What is known to be another value today (the origin that was asked, an id that was taken over) is put into the recorded answer
before; see `Expected`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tlscap.diff import VOLATILE, Rules
from tlscap.errors import UsageError
from tlscap.export.table import shortened
from tlscap.http.content import ContentError
from tlscap.http.events import Header
from tlscap.replay.json_documents import ABSENT, Change, changes, parse_json
from tlscap.replay.json_paths import JsonPath, Steps, path_text
from tlscap.replay.recording import DECODED_LIMIT, decoded
from tlscap.replay.showing import first_difference, line_changes, value_text

FRAMING: Final = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Fields that tell how a message travels (RFC 9110, 7.6.1 and 8.6): never compared, but for Content-Length after HEAD."""

_WITHOUT_BODY: Final = frozenset({204, 304})
_SHOWN_LINES: Final = 40  # of a difference between texts
_SHOWN_VALUES: Final = 40  # that differ within JSON
_SHOWN_WIDTH: Final = 200
_MOST_LINES: Final = 2000  # that are compared one by one: the time grows with their square
_JSON_START: Final = (b"{", b"[")

_IGNORES: Final = ("json:PATH", "header:NAME", "text:REGEX", "status", "body")


class Answer(NamedTuple):
    """What is compared of an answer."""

    status: int
    headers: tuple[Header, ...]
    body: bytes
    """As transferred, without framing."""
    encodings: str
    """Its codings, in the order in which they were applied."""
    complete: bool = True
    """Whether all of its body is there."""


class Difference(NamedTuple):
    """One thing that is not what it was."""

    place: str
    """``status``, ``header date``, ``body``, ``body $.items[3].id``."""
    lines: tuple[str, ...]
    """For people: ``-`` before what was, ``+`` before what is."""
    before: Any = None
    """What was, as JSON has it; ``None`` when there was nothing, or nothing short."""
    after: Any = None


@dataclass(frozen=True, slots=True)
class Comparing:
    """What counts as a difference."""

    ignored: frozenset[str] = VOLATILE
    """Header fields, in lower case."""
    status: bool = True
    bodies: bool = True
    paths: tuple[JsonPath, ...] = ()
    """Values of JSON bodies that are not compared."""
    texts: tuple[re.Pattern[str], ...] = ()
    """What they match is left out of text bodies."""

    def with_ignored(self, rules: Iterable[str]) -> Comparing:
        """Return the same with what ``--ignore`` names.  Raises `UsageError`."""
        ignored, paths, texts = set(self.ignored), list(self.paths), list(self.texts)
        status, bodies = self.status, self.bodies
        for rule in rules:
            kind, _, what = rule.partition(":")
            if kind == "json" and what:
                paths.append(JsonPath(what))
            elif kind == "header" and what:
                ignored.add(what.strip().lower())
            elif kind == "text" and what:
                try:
                    texts.append(re.compile(what))
                except re.error as error:
                    raise UsageError(f"{what!r} is no regular expression: {error}") from None
            elif rule == "status":
                status = False
            elif rule == "body":
                bodies = False
            else:
                raise UsageError(f"{rule!r} can't be ignored", hint=f"one of {', '.join(_IGNORES)} (docs/sending.md)")
        return Comparing(frozenset(ignored), status, bodies, tuple(paths), tuple(texts))


@dataclass(slots=True)
class Expected:
    """What is known to be another value today."""

    rename: Callable[[str], str] = str
    """Puts today's values into a text of the recorded answer."""
    headers: set[str] = field(default_factory=set)
    """Header fields, in lower case, from which a value was taken over."""
    places: set[Steps] = field(default_factory=set)
    """Values of a JSON body that were taken over."""
    paths: list[JsonPath] = field(default_factory=list)
    """The same, as the user names them."""
    texts: list[re.Pattern[str]] = field(default_factory=list)
    """Parts of the body's text that were taken over: what the first group matches."""


def compare(
    old: Answer, new: Answer, rules: Comparing, *, method: bytes = b"GET", expected: Expected | None = None
) -> list[Difference]:
    """Return what differs."""
    known = expected or Expected()
    found: list[Difference] = []
    if rules.status and old.status != new.status:
        found.append(
            Difference("status", (f"- status: {old.status}", f"+ status: {new.status}"), old.status, new.status)
        )
    found += _headers(old, new, rules, known, is_head=method == b"HEAD")
    has_body = method != b"HEAD" and not {old.status, new.status} <= _WITHOUT_BODY
    if rules.bodies and has_body and old.complete and new.complete:
        found += _bodies(old, new, rules, known)
    return found


# --- Fields ---


def _headers(old: Answer, new: Answer, rules: Comparing, known: Expected, *, is_head: bool) -> Iterator[Difference]:
    framing = FRAMING - {"content-length"} if is_head else FRAMING
    fields = Rules(rules.ignored | framing | known.headers)
    was = [(name, known.rename(value.strip())) for name, value in fields.fields(old.headers)]
    now = [(name, value.strip()) for name, value in fields.fields(new.headers)]
    if is_head and not {"content-length"} <= {name for name, _ in was} & {name for name, _ in now}:
        # A server need not say how long the body would have been.
        was, now = ([one for one in some if one[0] != "content-length"] for some in (was, now))
    for name in dict.fromkeys(name for name, _ in (*was, *now)):
        before, after = ([value for key, value in some if key == name] for some in (was, now))
        if before != after:
            lines = [*(f"- {name}: {_short(value)}" for value in before)]
            lines += [f"+ {name}: {_short(value)}" for value in after]
            yield Difference(f"header {name}", tuple(lines), _few(before), _few(after))


def _few(values: list[str]) -> str | list[str] | None:
    """Return what JSON shows of the values of a field: mostly there is one."""
    return values[0] if len(values) == 1 else values or None


# --- Bodies ---


def _bodies(old: Answer, new: Answer, rules: Comparing, known: Expected) -> list[Difference]:
    first, first_note = _content(old)
    second, second_note = _content(new)
    if first == second and first_note == second_note:
        return []
    if not first_note and not second_note:
        if _is_json(old, first) and _is_json(new, second):
            try:
                return _json(parse_json(first), parse_json(second), rules, known)
            except ValueError:
                pass  # then it is text
        texts = _text(first), _text(second)
        if texts[0] is not None and texts[1] is not None:
            return _texts(texts[0], texts[1], first, second, rules, known)
    lines = [f"- body: {_described(first, first_note)}", f"+ body: {_described(second, second_note)}"]
    if not first_note and not second_note and first and second:
        lines.append(f"  the first difference is at byte {first_difference(first, second)}")
    return [Difference("body", tuple(lines))]


def _content(answer: Answer) -> tuple[bytes, str]:
    """Return a body without its codings, or as it is and why it can't be decoded."""
    if not answer.encodings:
        return answer.body, ""
    try:
        return decoded(answer.body, answer.encodings, DECODED_LIMIT), ""
    except ContentError as error:
        return answer.body, f"can't be decoded: {error}"


def _is_json(answer: Answer, body: bytes) -> bool:
    kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
    return b"json" in kind.partition(b";")[0].lower() or body.lstrip()[:1] in _JSON_START


def _json(old: Any, new: Any, rules: Comparing, known: Expected) -> list[Difference]:
    """Compare two documents value by value."""
    for path in (*rules.paths, *known.paths):
        path.remove(old)
        path.remove(new)
    found: list[Difference] = []
    left_out = 0
    for change in changes(old, new):
        if change.steps in known.places or _is_renamed(change, known.rename):
            continue
        if len(found) < _SHOWN_VALUES:
            found.append(_changed(change))
        else:
            left_out += 1
    if left_out:
        found.append(Difference("body", (f"  and {left_out:,} more values",)))
    return found


def _changed(change: Change) -> Difference:
    path = path_text(change.steps)
    sides = [(mark, value) for mark, value in (("-", change.old), ("+", change.new)) if value is not ABSENT]
    lines = tuple(f"{mark} {path}: {value_text(value, _SHOWN_WIDTH)}" for mark, value in sides)
    return Difference(f"body {path}", lines, _brief(change.old), _brief(change.new))


def _is_renamed(change: Change, rename: Callable[[str], str]) -> bool:
    """Tell whether a value is what today's values make of the recorded one."""
    _, old, new = change
    if isinstance(old, str) and isinstance(new, str):
        return rename(old) == new
    is_number = isinstance(old, int) and isinstance(new, int) and not isinstance(old, bool)
    return is_number and rename(str(old)) == str(new)


def _texts(old: str, new: str, old_body: bytes, new_body: bytes, rules: Comparing, known: Expected) -> list[Difference]:
    for pattern in rules.texts:
        old, new = pattern.sub("", old), pattern.sub("", new)
    for pattern in known.texts:
        old, new = _without_group(pattern, old), _without_group(pattern, new)
    old = known.rename(old)
    if old == new:
        return []
    before, after = old.splitlines(), new.splitlines()
    lines = [f"- body: {_described(old_body)}", f"+ body: {_described(new_body)}"]
    if max(len(before), len(after)) > _MOST_LINES:
        lines.append(f"  the first difference is in line {first_difference(before, after) + 1}")
        return [Difference("body", tuple(lines))]
    diff = line_changes(before, after) or ["(the line ends differ)"]
    lines += [f"    {_short(line)}" for line in diff[:_SHOWN_LINES]]
    if len(diff) > _SHOWN_LINES:
        lines.append(f"    and {len(diff) - _SHOWN_LINES:,} more lines")
    return [Difference("body", tuple(lines))]


def _without_group(pattern: re.Pattern[str], text: str) -> str:
    """Leave out what was taken over, once: the first group, or all that matches when there is none."""
    match = pattern.search(text)
    if not match:
        return text
    group = 1 if pattern.groups else 0
    return text[: match.start(group)] + text[match.end(group) :] if match.start(group) >= 0 else text


def _text(body: bytes) -> str | None:
    """Return a body as text, or ``None`` when it is none."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _described(body: bytes, note: str = "") -> str:
    shown = f"{len(body):,} bytes, sha256 {hashlib.sha256(body).hexdigest()[:16]}"
    return f"{shown} ({note})" if note else shown


def _brief(value: Any) -> Any:
    """Return a value for the JSON report; large ones as words."""
    if value is ABSENT:
        return None
    if isinstance(value, (dict, list)):
        return value_text(value, _SHOWN_WIDTH)
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    return shortened(text, _SHOWN_WIDTH)
