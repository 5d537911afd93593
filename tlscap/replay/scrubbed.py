"""Where a scrubbed recording has pseudonyms: a client that sends the real secret there is no other client.

A pseudonym stands for a value that nobody kept, so it can't be compared: `words` are those of the matching language that leave its
place out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from tlscap.replay.matching import Matcher, kind_of_type, pairs_of
from tlscap.replay.recording import RecordedExchange, RecordedRequest
from tlscap.scrub.pseudonyms import SHAPE

_WORD = "scrubbed-"
_READER = Matcher("body")


def words(exchanges: Iterable[RecordedExchange]) -> str:
    """Return words that ignore every parameter, field and JSON value that holds a pseudonym in one of the requests."""
    found: dict[str, None] = {}
    for exchange in exchanges:
        for word in _words(exchange.request):
            found[word] = None
    return " ".join(map(shlex.quote, found))


def _words(request: RecordedRequest) -> Iterator[str]:
    if _WORD.encode() in request.target:
        yield from (f"-query:{name}" for name, value in pairs_of(request.target.partition(b"?")[2]) if _scrubbed(value))
    if not request.pieces:
        return
    kind, value = _READER.content(request, kind_of_type(request))
    match kind:
        case "json":
            yield from (f"-json:${path}" for path in _paths(value[0], ""))
        case "form":
            yield from (f"-form:{name}" for name, text in value if _scrubbed(text))
        case "multipart":
            yield from (f"-form:{part.name}" for part in value if SHAPE.search(part.data))


def _paths(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of strings that hold pseudonyms; an array's elements are alike."""
    if isinstance(value, dict):
        for name, inner in value.items():
            quote = '"' if "'" in name else "'"
            yield from _paths(inner, f"{path}[{quote}{name}{quote}]")
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, f"{path}[*]")
    elif isinstance(value, str) and _scrubbed(value):
        yield path


def _scrubbed(text: str) -> bool:
    return _WORD in text and SHAPE.search(text.encode("utf-8", "surrogatepass")) is not None
