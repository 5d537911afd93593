"""Names for values in JSON documents.

A `JsonPath` is what a user writes: JSONPath (RFC 9535) without filters and slices.  docs/matching.md says how it is written: ``$.user.id``,
``$.items[0].id``, ``$.items[*].id``, ``$..etag`` (at any depth), ``$['odd name']``.  It may name many values.

`Steps` lead from the root to one value; `path_text` writes them as a path that names that value and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tlscap.errors import UsageError

Steps = tuple["str | int", ...]
"""Names of members and indexes of elements."""

_STEP = re.compile(
    r"""(?P<deep>\.\.)?(?:
        \[\s*(?:
            (?P<index>-?\d{1,18}) | (?P<all>\*)
            | '(?P<single>(?:[^'\\]|\\.)*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>[^\]'"]+)
        )\s*\]
        | (?(deep)|\.)(?P<name>[^.\[\]]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_ESCAPED: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

_ANY: Final = object()


class JsonPath:
    """One path, understood.  Raises `UsageError` for text that is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._steps = list(_steps(text))

    def remove(self, document: Any) -> None:
        """Take what the path names out of a document, in place.

        A member vanishes, all of an array's elements with ``[*]`` too; a single element becomes null, so that the others keep their places.
        """
        _remove(document, self._steps, 0)

    def select(self, document: Any) -> list[Any]:
        """Return the values that the path names, in the order of the document."""
        found = [document]
        for deep, key in self._steps:
            found = [
                node[place]
                for top in found
                for node in (_within(top) if deep else (top,))
                for place in _places(node, key)
            ]
        return found

    def __repr__(self) -> str:
        return f"JsonPath({self.text!r})"


_Step = tuple[bool, Any]  # whether at any depth; a name, an index or _ANY


def _steps(text: str) -> Iterator[_Step]:
    rest = text.strip().removeprefix("$")
    if rest and rest[0] not in ".[":
        rest = "." + rest
    pos = 0
    while pos < len(rest):
        step = _STEP.match(rest, pos)
        if step is None or step.end() == pos:
            raise UsageError(f"{text!r} is no JSON path", hint="such as $.user.id, $.items[*].id or $..etag")
        pos = step.end()
        yield bool(step["deep"]), _key(step)
    if pos == 0:
        raise UsageError(f"{text!r} names all of the document", hint="leave the body out with -body")


def _key(step: re.Match[str]) -> Any:
    """Return what a step chooses."""
    if step["index"] is not None:
        return int(step["index"])
    if step["all"] or step["name"] == "*":
        return _ANY
    for quoted in (step["single"], step["double"]):
        if quoted is not None:
            return _ESCAPE.sub(_unescaped, quoted)
    return step["name"] or step["bare"]


def _unescaped(match: re.Match[str]) -> str:
    code, character = match.groups()
    return chr(int(code, 16)) if code else _ESCAPED.get(character, character)


def _remove(node: Any, steps: list[_Step], at: int) -> None:
    deep, key = steps[at]
    for top in list(_within(node)) if deep else (node,):
        places = _places(top, key)
        if at + 1 < len(steps):
            for place in places:
                _remove(top[place], steps, at + 1)
        elif isinstance(top, dict):
            for place in places:
                del top[place]
        elif key is _ANY and isinstance(top, list):
            top.clear()
        else:
            for place in places:
                top[place] = None


def _places(node: Any, key: Any) -> list[Any]:
    """Return the keys or indexes of a node that a step means."""
    if isinstance(node, dict):
        return list(node) if key is _ANY else [key] if key in node else []
    if isinstance(node, list):
        if key is _ANY:
            return list(range(len(node)))
        return [key] if isinstance(key, int) and -len(node) <= key < len(node) else []
    return []


def _within(node: Any) -> Iterator[Any]:
    """Yield a node and everything in it that has members."""
    waiting = [node]
    while waiting:
        top = waiting.pop()
        if isinstance(top, dict):
            yield top
            waiting += reversed(list(top.values()))
        elif isinstance(top, list):
            yield top
            waiting += reversed(top)


# --- One value ---


def path_text(steps: Steps) -> str:
    """Return steps as a path that `JsonPath` reads: ``$.items[0]['a name']``."""
    return "$" + "".join(map(_step_text, steps))


def _step_text(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    if _PLAIN.fullmatch(key):
        return f".{key}"
    escaped = key.replace("\\", "\\\\").replace("'", "\\'")
    return f"['{escaped}']"


def value_at(document: Any, steps: Steps) -> Any:
    """Return the value that steps lead to.  Raises `LookupError` when there is none."""
    for key in steps:
        if not isinstance(document, dict if isinstance(key, str) else list):
            raise KeyError(key)
        document = document[key]  # type: ignore[index]
    return document
