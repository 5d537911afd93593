"""What a person is told when no recorded request is the one that came in: the one that is nearest, and what differs.

Values are shown shortened, and those of fields and parameters that hold secrets as their beginning only: what is written here ends up in
logs of test runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from tlscap.export.table import shortened, visible
from tlscap.replay.json_documents import ABSENT, changes
from tlscap.replay.json_paths import path_text
from tlscap.replay.matching import (
    Content,
    Matcher,
    Pair,
    Part,
    Request,
    field_value,
    is_websocket,
    normal_path,
)
from tlscap.replay.showing import first_difference, line_changes, value_text

_VALUE_WIDTH: Final = 80
_NAME_WIDTH: Final = 60
_LINES: Final = 20
"""Most lines of one difference."""
_TEXT_LINES: Final = 400  # difflib's time grows with the square of them
_CANDIDATES: Final = 200
_BYTES_COMPARED: Final = 4 << 20  # of recorded bodies: nobody waits long for an explanation
_SECRET = re.compile(
    r"(?i)auth|cookie|token|secret|passw|session|signature|credential|api[-_]?key|(?:^|[^a-z])(?:key|pin|sid|jwt|csrf|xsrf)(?:$|[^a-z])"
)
_SECRET_SHOWN: Final = 3

RequestT = TypeVar("RequestT", bound=Request)


def summary(request: Request, host: str = "") -> str:
    """Return a request in a few words: ``POST https://example.org/login?next=/``."""
    host = host or request.authority.decode("latin-1")
    path, mark, query = request.target.decode("latin-1").partition("?")
    pieces = (_masked_piece(piece) for piece in query.split("&"))
    method = "WebSocket" if is_websocket(request) else request.method.decode("latin-1")
    return visible(shortened(f"{method} {request.scheme}://{host}{path}{mark}{'&'.join(pieces)}", 200))


def _masked_piece(piece: str) -> str:
    name, equals, value = piece.partition("=")
    return f"{name}={_masked(value)}" if equals and _SECRET.search(name) else piece


def nearest(request: Request, recorded: Iterable[RequestT], matcher: Matcher) -> RequestT | None:
    """Return the recorded request that is most like this one; of equals the first.

    Looks at heads; at the bodies only of those whose heads are best.
    """
    best: list[RequestT] = []
    best_score = -1.0
    for candidate in recorded:
        score = _head_score(request, candidate, matcher)
        if score > best_score:
            best, best_score = [candidate], score
        elif score == best_score and len(best) < _CANDIDATES:
            best.append(candidate)
    if len(best) < 2 or not matcher.counts_body:
        return best[0] if best else None
    contents: dict[str, Content] = {}
    left = _BYTES_COMPARED
    scores: list[float] = []
    for candidate in best:
        left -= len(candidate.body)
        if left < 0 and scores:
            break
        kind = matcher.kind_of(candidate)
        if kind not in contents:
            contents[kind] = matcher.content(request, kind)
        scores.append(_body_score(contents[kind], matcher.content(candidate, kind)))
    return best[scores.index(max(scores))]


def _head_score(request: Request, other: Request, matcher: Matcher) -> float:
    path, _, query = request.target.partition(b"?")
    other_path, _, other_query = other.target.partition(b"?")
    score = 8 * _path_score(normal_path(path), normal_path(other_path))
    score += 2.0 * (request.method == other.method) + 3.0 * (is_websocket(request) == is_websocket(other))
    score += request.authority.lower() == other.authority.lower()
    if query != other_query and (query or other_query):
        pairs, others = matcher.query_of(request.target), matcher.query_of(other.target)
        score += 2 * len(set(pairs) & set(others)) / max(len(pairs), len(others), 1)
        score += len({name for name, _ in pairs} & {name for name, _ in others}) / max(len(pairs), len(others), 1)
    else:
        score += 3
    for name in matcher.fields:
        score += field_value(request, name) == field_value(other, name)
    return score


def _path_score(path: bytes, other: bytes) -> float:
    """Return 1 for equal paths; less the fewer segments they share."""
    if path == other:
        return 1
    one, two = path.split(b"/")[1:65], other.split(b"/")[1:65]
    same = sum(a == b for a, b in zip(one, two, strict=False))
    alike = sum(a != b and _similar(a, b) for a, b in zip(one, two, strict=False))
    return 0.9 * (same + alike / 2) / max(len(one), len(two), 1)


def _similar(one: bytes, two: bytes) -> bool:
    matcher = difflib.SequenceMatcher(None, one[:64], two[:64], autojunk=False)
    return matcher.real_quick_ratio() > 0.6 and matcher.quick_ratio() > 0.6 and matcher.ratio() > 0.6


def _body_score(one: Content, two: Content) -> float:
    if one.kind != two.kind:
        return -1e9
    if one.value == two.value:
        return 1e9
    if one.kind == "json":
        return -float(sum(1 for _ in islice(changes(two.value, one.value), _LINES)))
    if isinstance(one.value, tuple):
        return -float(
            abs(len(one.value) - len(two.value)) + sum(a != b for a, b in zip(one.value, two.value, strict=False))
        )
    return -float(abs(len(one.value) - len(two.value)))


# --- What differs ---


def differences(request: Request, recorded: Request, matcher: Matcher, *, body: bool = True) -> list[str]:
    """Return lines that say what differs between a request and a recorded one, in what is compared; none: they match.

    ``body`` is false when the request's body isn't there yet.
    """
    lines: list[str] = []
    parts = matcher.parts
    websocket = is_websocket(request)
    if websocket != is_websocket(recorded):
        lines.append(
            f"it {'asks' if websocket else 'does not ask'} for a WebSocket; the recorded one {'does not' if websocket else 'does'}"
        )
    elif "method" in parts and not websocket and request.method != recorded.method:
        lines.append(_pair("method", request.method.decode("latin-1"), recorded.method.decode("latin-1")))
    if "scheme" in parts and request.scheme != recorded.scheme:
        lines.append(_pair("scheme", request.scheme, recorded.scheme))
    if "target" in parts and request.target != recorded.target:
        lines.append(_pair("target", request.target.decode("latin-1"), recorded.target.decode("latin-1")))
    elif "target" not in parts:
        path, other_path = (normal_path(one.target.partition(b"?")[0]).decode("latin-1") for one in (request, recorded))
        if "path" in parts and path != other_path:
            lines.append(_pair("path", path, other_path))
        if "query" in parts:
            lines += _named("query parameter", matcher.query_of(request.target), matcher.query_of(recorded.target))
    for name in matcher.fields:
        value, other = field_value(request, name), field_value(recorded, name)
        if value != other:
            lines.append(_one_named("header", name.decode("latin-1"), value, other))
    if matcher.counts_body and body and not websocket:
        lines += body_differences(request, recorded, matcher)
    return lines


def host_difference(request: Request, recorded: Request) -> str:
    """Return the line for a host that counts."""
    return _pair("host", request.authority.decode("latin-1"), recorded.authority.decode("latin-1"))


def body_differences(request: Request, recorded: Request, matcher: Matcher) -> list[str]:
    """Return lines for the bodies alone."""
    kind = matcher.kind_of(recorded)
    one, two = matcher.content(request, kind), matcher.content(recorded, kind)
    if one.digest() == two.digest():
        return []
    lines = list(_limited(content_differences(one, two)))
    return lines or [f"body: {_size(request.body)}, recorded {_size(recorded.body)}"]


def content_differences(content: Content, recorded: Content) -> Iterator[str]:
    """Yield lines for two contents that aren't equal."""
    if content.kind != recorded.kind:
        if recorded.kind == "bytes":
            yield f"body: is {_kind(content)}, recorded {_size(recorded.value)}"
        elif not content.value:
            yield f"body: is empty, recorded as {_kind(recorded)}"
        else:
            yield f"body: is not {_kind(recorded)}, as the recorded one is"
            yield f"  it is {_text(_shown_bytes(content.value), _VALUE_WIDTH)}"
        return
    one, two = content.value, recorded.value
    match content.kind:
        case "json":
            yield from _json_differences(one, two)
        case "form":
            yield from _named("form field", one, two)
        case "multipart":
            yield from _part_differences(one, two)
        case "grpc":
            yield from _message_differences(one, two)
        case "text":
            yield from _text_differences(one, two)
        case _:
            yield from _bytes_differences(one, two)


def _json_differences(one: list[Any], two: list[Any]) -> Iterator[str]:
    for (_, *steps), old, new in changes(two, one):  # without the list that `Content` puts around a document
        path = visible(shortened(path_text(tuple(steps)), _NAME_WIDTH * 2))
        name = next((step for step in reversed(steps) if isinstance(step, str)), "")
        if new is ABSENT:
            yield f"body: {path} is missing, recorded {_json(old, name)}"
        elif old is ABSENT:
            yield f"body: {path} is {_json(new, name)}, not in the recorded one"
        else:
            yield f"body: {path} is {_json(new, name)}, recorded {_json(old, name)}"


def _json(value: Any, name: str) -> str:
    """Return a JSON value that a member of this name holds."""
    if isinstance(value, str) and _SECRET.search(name):
        value = _masked(value)
    return visible(value_text(value, _VALUE_WIDTH))


def _named(noun: str, pairs: Sequence[Pair], recorded: Sequence[Pair]) -> Iterator[str]:
    """Yield lines for parameters or fields; values of one name are compared together."""
    new, old = _grouped(pairs), _grouped(recorded)
    for name in dict.fromkeys([*old, *new]):
        one, two = new.get(name), old.get(name)
        if one != two:
            yield _one_named(noun, name, one if one is None else ", ".join(one), two if two is None else ", ".join(two))


def _grouped(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _one_named(noun: str, name: str, value: str | None, recorded: str | None) -> str:
    shown = f"{noun} {_text(name, _NAME_WIDTH)}"
    if value is None and recorded is not None:
        return f"{shown}: is missing, recorded {_value(name, recorded)}"
    if recorded is None and value is not None:
        return f"{shown}: is {_value(name, value)}, not in the recorded one"
    return f"{shown}: is {_value(name, value or '')}, recorded {_value(name, recorded or '')}"


def _part_differences(one: tuple[Part, ...], two: tuple[Part, ...]) -> Iterator[str]:
    if len(one) != len(two):
        yield f"multipart body: {len(one)} parts, recorded {len(two)}"
    for part, other in zip(one, two, strict=False):
        name = _text(other.name, _NAME_WIDTH)
        for what, value, old in (
            ("name", part.name, other.name),
            ("file name", part.filename, other.filename),
            ("type", part.type, other.type),
        ):
            if value != old:
                yield f"part {name}: {_pair(what, value, old)}"
        if part.name == other.name and part.data != other.data:
            yield f"part {name}: is {_value(part.name, _shown_bytes(part.data))}, recorded {_value(other.name, _shown_bytes(other.data))}"


def _message_differences(one: tuple[bytes, ...], two: tuple[bytes, ...]) -> Iterator[str]:
    if len(one) != len(two):
        yield f"gRPC: {_count(len(one), 'message')}, recorded {len(two)}"
    for number, (message, other) in enumerate(zip(one, two, strict=False), 1):
        if message != other:
            yield f"gRPC message {number} of {len(one)}: {_first_difference(message, other)}"


def _text_differences(one: str, two: str) -> Iterator[str]:
    old, new = two.splitlines(), one.splitlines()
    if max(len(old), len(new)) > _TEXT_LINES:
        yield f"body: {_count(len(new), 'line')} of text, recorded {len(old)}"
        return
    yield "body: (- recorded, + received)"
    for line in line_changes(old, new):
        yield "  " + visible(shortened(line, _VALUE_WIDTH))


def _bytes_differences(one: bytes, two: bytes) -> Iterator[str]:
    if not one or not two:
        yield f"body: {_size(one)}, recorded {_size(two)}{': ' + _text(_shown_bytes(one or two), _VALUE_WIDTH)}"
        return
    try:
        texts = one.decode(), two.decode()
    except UnicodeDecodeError:
        texts = None
    if texts and "\0" not in one.decode() + two.decode() and max(map(len, texts)) < 1 << 16:
        yield from _text_differences(*texts)
    else:
        yield f"body: {_first_difference(one, two)}"


def _first_difference(one: bytes, two: bytes) -> str:
    at = first_difference(one, two)
    sizes = f"{_size(one)}, recorded {_size(two)}; " if len(one) != len(two) else ""
    begin = max(at - 4, 0)
    return f"{sizes}differs from byte {at} on: {one[begin : begin + 12].hex(' ') or 'nothing'}, recorded {two[begin : begin + 12].hex(' ') or 'nothing'}"


def _limited(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == _LINES:
            yield "… and more"
            return
        yield line


# --- Values ---


def _pair(what: str, value: str, recorded: str) -> str:
    return f"{what}: is {_text(value, _VALUE_WIDTH) or 'empty'}, recorded {_text(recorded, _VALUE_WIDTH) or 'empty'}"


def _value(name: str, value: str) -> str:
    return f'"{_text(_masked(value) if _SECRET.search(name) else value, _VALUE_WIDTH)}"'


def _masked(value: str) -> str:
    """Return the beginning of a secret: enough to tell two apart, too little to use it."""
    return value if not value else f"{value[: min(_SECRET_SHOWN, len(value) // 4)]}…({len(value)} characters)"


def _text(text: str, width: int) -> str:
    return visible(shortened(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), width))


def _shown_bytes(data: bytes) -> str:
    try:
        return data[: 4 * _VALUE_WIDTH].decode()
    except UnicodeDecodeError:
        return f"{_size(data)}: {data[:16].hex(' ')}{' …' if len(data) > 16 else ''}"


def _kind(content: Content) -> str:
    return {"json": "JSON", "form": "a form", "multipart": "multipart", "grpc": "gRPC messages", "text": "text"}.get(
        content.kind, _size(content.value)
    )


def _size(data: bytes) -> str:
    return _count(len(data), "byte")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
