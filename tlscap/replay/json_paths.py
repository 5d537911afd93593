"""JSONPath, as much of it as names values to ignore or to compare: RFC 9535 without filters and slices.

``$.user.id``, ``$.items[0].id``, ``$.items[*].id``, ``$..etag`` (at any depth), ``$['odd name']``.  A path may leave ``$.`` out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tlscap.errors import UsageError

_STEP = re.compile(
    r"""(?P<deep>\.\.)?(?:
        \[\s*(?:(?P<index>-?\d+)|(?P<all>\*)|'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[^\]'"]+))\s*\]
        | (?(deep)|\.)(?P<name>[^.\[\]]+)
    )""",
    re.VERBOSE,
)

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
        deep = bool(step["deep"])
        if step["index"] is not None:
            yield deep, int(step["index"])
        elif step["all"] or step["name"] == "*":
            yield deep, _ANY
        else:
            yield deep, next(step[group] for group in ("name", "single", "double", "bare") if step[group] is not None)
    if pos == 0:
        raise UsageError(f"{text!r} names all of the document", hint="leave the body out with -body")


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
