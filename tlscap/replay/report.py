"""What became of each exchange that was to be sent again, for people, for programs and for CI servers.

The JUnit file is what Jenkins, GitLab, GitHub's actions and others read: a ``testsuite`` with a ``testcase`` for each exchange, in which a
difference is a ``failure``, and what prevented an answer an ``error``.
"""

from __future__ import annotations

import enum
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tlscap.replay.compare import Difference
from tlscap.replay.recording import RecordedExchange

_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold, not even escaped (section 2.2)."""


class Outcome(enum.Enum):
    """How it ended."""

    SAME = "same"
    DIFFERENT = "different"
    ERROR = "error"
    """There is no answer to compare."""
    SENT = "sent"
    """There was nothing recorded to compare the answer with."""
    SKIPPED = "skipped"
    """It was not sent."""


@dataclass(slots=True)
class Result:
    """What became of one exchange."""

    exchange: RecordedExchange
    outcome: Outcome
    differences: list[Difference] = field(default_factory=list)
    reason: str = ""
    """Why there is no answer, or why it was not sent."""
    notes: list[str] = field(default_factory=list)
    """What was not compared, or not sent as it was recorded."""
    status: int | None = None
    """Of the live answer."""
    seconds: float = 0.0
    """From the request to the end of the live answer."""

    @property
    def lines(self) -> Iterator[str]:
        """What differs, for people."""
        for difference in self.differences:
            yield from difference.lines


def to_dict(result: Result) -> dict[str, Any]:
    """Return a result as ``--json`` prints it."""
    exchange = result.exchange
    return {
        "id": exchange.id,
        "method": exchange.request.method.decode("latin-1"),
        "url": exchange.url,
        "outcome": result.outcome.value,
        "reason": result.reason or None,
        "recorded_status": exchange.response.status if exchange.response else None,
        "status": result.status,
        "seconds": round(result.seconds, 6),
        "differences": [
            {"place": one.place, "before": one.before, "after": one.after, "lines": list(one.lines)}
            for one in result.differences
        ],
        "notes": result.notes,
    }


def to_line(result: Result) -> str:
    """Return a result as a line of JSON."""
    return json.dumps(to_dict(result))


def junit(results: Iterable[Result], *, name: str, started: datetime, seconds: float) -> bytes:
    """Return a JUnit file; ``name`` is that of the suite, ``seconds`` how long all of it took."""
    results = sorted(results, key=lambda result: result.exchange.id)
    count = Counter(result.outcome for result in results)
    totals = {
        "tests": str(len(results)),
        "failures": str(count[Outcome.DIFFERENT]),
        "errors": str(count[Outcome.ERROR]),
    }
    root = ET.Element("testsuites", {"name": _clean(name), **totals, "time": f"{seconds:.3f}"})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": _clean(name),
            **totals,
            "skipped": str(count[Outcome.SKIPPED]),
            "time": f"{seconds:.3f}",
            "timestamp": started.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        },
    )
    for result in results:
        _case(suite, result)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(suite: ET.Element, result: Result) -> None:
    exchange = result.exchange
    # The number keeps apart what asks the same twice.
    name = f"{exchange.id} {exchange.name}"
    attributes = {"classname": exchange.hostname or "unknown", "name": name, "time": f"{result.seconds:.3f}"}
    case = ET.SubElement(suite, "testcase", {key: _clean(value) for key, value in attributes.items()})
    match result.outcome:
        case Outcome.DIFFERENT:
            places = ", ".join(dict.fromkeys(difference.place for difference in result.differences))
            failure = ET.SubElement(case, "failure", {"type": "difference", "message": _clean(f"differs: {places}")})
            failure.text = _clean("\n".join(result.lines))
        case Outcome.ERROR:
            error = ET.SubElement(case, "error", {"type": "error", "message": _clean(result.reason)})
            error.text = _clean(result.reason)
        case Outcome.SKIPPED:
            ET.SubElement(case, "skipped", {"message": _clean(result.reason)})
        case _:
            pass
    if result.notes:
        ET.SubElement(case, "system-out").text = _clean("\n".join(result.notes))


def _clean(text: str) -> str:
    """Replace what XML can't hold."""
    return _NOT_XML.sub("\ufffd", text)
