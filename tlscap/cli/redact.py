"""``record --redact``: a recording without its secrets, before anything touches the disk."""

from __future__ import annotations

import contextlib
import os
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
        recording.exchanges = []  # what was changed is not needed twice
        with contextlib.ExitStack() as stack:
            # Nobody wants a sidecar, but the pcapng is made from one: it is in memory then.
            target = sidecar or stack.enter_context(os.fdopen(os.memfd_create("tlscap", os.MFD_CLOEXEC), "w+b", 0))
            written = write_capture(result.exchanges, target, origin="redacted")
            result.exchanges = []
            if pcapng:
                stream = stack.enter_context(os.fdopen(os.dup(target.fileno()), "rb"))
                stream.seek(0)
                builder = PcapngBuilder(framing)
                for frame in SidecarReader(stream).frames():
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
