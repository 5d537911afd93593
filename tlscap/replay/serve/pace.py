"""Delays as recorded."""

from __future__ import annotations

import asyncio
from typing import Final

from tlscap.replay.serve.answers import Answer

_WORTH_S: Final = 0.001  # the loop's timers are no finer


class Pace:
    """Maps recorded times to now.  ``speed`` 0: nothing waits; 2: twice as fast as recorded."""

    __slots__ = ("_origin_ns", "_speed", "_start")

    def __init__(self, speed: float, origin_ns: int) -> None:
        self._speed = speed
        self._origin_ns = origin_ns
        self._start = asyncio.get_running_loop().time() if speed else 0.0

    @classmethod
    def of_answer(cls, answer: Answer, speed: float, *, early: bool) -> Pace:
        """Return the pace of an answer: counted from the end of its question, or from its beginning when it comes ``early``, meanwhile."""
        asked = answer.request
        if asked is None or answer.exchange is None:
            return cls(0, 0)  # the server's own: nobody waits for that
        return cls(speed, asked.started_ns if early else asked.ended_ns)

    def left(self, time_ns: int) -> float:
        """Return the seconds until this recorded time comes; 0 or less: now."""
        if not self._speed:
            return 0.0
        due = self._start + (time_ns - self._origin_ns) / 1e9 / self._speed
        return due - asyncio.get_running_loop().time()

    async def until(self, time_ns: int) -> None:
        """Wait for a recorded time."""
        left = self.left(time_ns)
        if left > _WORTH_S:
            await asyncio.sleep(left)
