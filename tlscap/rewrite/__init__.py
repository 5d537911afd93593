"""From exchanges in memory back to a capture: the opposite of `tlscap.replay.recording.load`.

Whoever changed what was recorded (scrubbing), cut it (fixtures) or has it from another program (converters) writes a
sidecar with `write_capture`: HTTP/1.x becomes HTTP/1.x again and HTTP/2 HTTP/2, with lengths and framing that fit; what was
missing stays missing.  The same exchanges give the same bytes.
"""

from __future__ import annotations

from tlscap.rewrite.capture import Written, write_capture

__all__ = ["Written", "write_capture"]
