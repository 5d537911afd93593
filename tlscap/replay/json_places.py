"""Places in JSON documents: the way from the root to one value."""

from __future__ import annotations

import json
import re
from typing import Any

Steps = tuple["str | int", ...]
"""Names and indexes."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def path_text(place: Steps) -> str:
    """Return a place as a path that `tlscap.replay.json_paths` reads: ``$.items[0]['a name']``."""
    parts = ["$"]
    for key in place:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        elif _PLAIN.fullmatch(key):
            parts.append(f".{key}")
        else:
            quote = '"' if "'" in key else "'"
            parts.append(f"[{quote}{key}{quote}]")
    return "".join(parts)


def value_at(document: Any, place: Steps) -> Any:
    """Return the value at a place.  Raises `LookupError` when there is none."""
    for key in place:
        if not isinstance(document, dict if isinstance(key, str) else list):
            raise KeyError(key)
        document = document[key]  # type: ignore[index]
    return document


def parse_json(body: bytes) -> Any:
    """Return a body as JSON; what is no number, such as NaN, as text.  Raises `ValueError` for what is no JSON."""
    try:
        return json.loads(body, parse_constant=str)
    except RecursionError:
        raise ValueError("nested too deeply") from None
