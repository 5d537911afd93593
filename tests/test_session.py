"""Parts of a recording that need no kernel."""

from __future__ import annotations

import json

import pytest

from tlscap import decode
from tlscap.live import session as module
from tlscap.live.session import Request, Session
from tlscap.live.spool import APPEND


class Told:
    """Stands where the channel to the recorder would."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.messages.append(data)
        return True


def test_a_stepped_clock_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says where the wall clock went, once, and nothing of what is only noise."""
    session = Session(Request(everything=True), display=None)  # type: ignore[arg-type]
    told = Told()
    session._clock_ahead = 1_000_000_000
    steps = [(1_000_000_500, 0), (6_000_000_700, 700), (6_000_000_900, 900)]
    for wall_ns, monotonic_ns in steps:
        monkeypatch.setattr(
            module, "_clock", lambda now=(wall_ns, monotonic_ns): {"wall_ns": now[0], "monotonic_ns": now[1]}
        )
        session._follow_clock(told)  # type: ignore[arg-type]
    (message,) = told.messages
    assert message[:1] == APPEND
    kind, _, size, time_ns, *_ = decode.HEADER.unpack_from(message, 1)
    assert kind == decode.RECORD_CLOCK
    assert time_ns == 700
    assert json.loads(message[1 + decode.HEADER.size : 1 + size]) == {"wall_ns": 6_000_000_700, "monotonic_ns": 700}
