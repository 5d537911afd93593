"""``record --redact``: a recording without its secrets, before anything touches the disk."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, Final

from tlscap.cli.scrub import report_lines
from tlscap.cli.scrub_options import rules_in
from tlscap.rebuild import PcapngBuilder
from tlscap.replay.recording import load
from tlscap.rewrite import write_capture
from tlscap.scrub import Rules, Scrubber, random_key
from tlscap.sidecar import SidecarReader

if TYPE_CHECKING:
    from tlscap.live.view import Redactor

MEMORY: Final = 4 << 30
"""Bytes that reading the recording may take: it is bounded already where it is made."""


def redactor(rules_file: str | None) -> Redactor:
    """Return what writes a recording without its secrets, for `tlscap.live.session.Request`.

    Raises `UsageError` and `OutputError` for rules that can't be understood or read.
    """
    rules = rules_in(rules_file) if rules_file else Rules()

    def redact(path: str, sidecar: BinaryIO | None, pcapng: BinaryIO | None, framing: str) -> list[str]:
        recording = load(path, memory=MEMORY)
        result = Scrubber(rules, key=random_key()).scrub(recording.exchanges)
        buffer = io.BytesIO()
        written = write_capture(result.exchanges, buffer, origin="redacted")
        if sidecar:
            _write(sidecar, buffer.getbuffer())
        if pcapng:
            builder = PcapngBuilder(framing)
            buffer.seek(0)
            for frame in SidecarReader(buffer).frames():
                for block in builder.feed(frame):
                    _write(pcapng, block)
            for block in builder.finish():
                _write(pcapng, block)
        return [f"redacted: {line}" for line in report_lines(result.report, recording, written)]

    return redact


def _write(target: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of it: a raw file may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[target.write(view) or 0 :]
