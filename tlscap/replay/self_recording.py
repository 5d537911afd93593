"""Records this very process with ``tlscap record``: how the pytest plugin learns what a test says, where the kernel may be asked.

Nothing stands between the client and the server then: no proxy, no certificate, and the bytes are those that were sent.
"""

from __future__ import annotations

import os
import platform
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import Final, Self

from tlscap.errors import CaptureError
from tlscap.replay.recording import RecordedExchange, load

PATIENCE_S: Final = 30.0
_MEMORY: Final = "/dev/shm"
_READY: Final = "tlscap: recording ("


def is_allowed() -> bool:
    """Whether a recording has a chance here: Linux with BTF, and root."""
    return platform.system() == "Linux" and os.geteuid() == 0 and os.path.exists("/sys/kernel/btf/vmlinux")


class SelfRecording:
    """A context whose TLS is recorded: that of this process and of those that it starts.

    Raises `CaptureError` on entering when recording can't begin.  After the context, ``exchanges`` has what was said.
    """

    def __init__(self) -> None:
        self.exchanges: list[RecordedExchange] = []
        ssl.create_default_context()  # the library is mapped before it is looked for
        # Nothing of it is scrubbed yet: it stays in memory where there is a place for that.  The folder's mode is 0700.
        in_memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="tlscap-", dir=in_memory)
        self._sidecar = os.path.join(self._folder.name, "self.tlscap.zst")
        self._said: list[str] = []
        self._ready = threading.Event()
        base = self._sidecar.removesuffix(".tlscap.zst")
        command = [
            sys.executable,
            "-m",
            "tlscap",
            "record",
            "-p",
            str(os.getpid()),
            "--follow",
            "--no-pcapng",
            "-o",
            base,
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        if not self._ready.wait(PATIENCE_S) or self._process.poll() is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._folder.cleanup()
            raise CaptureError(next(iter(self._said), "tlscap record did not begin").removeprefix("tlscap: "))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE_S)
            if kind is None:
                self.exchanges = load(self._sidecar).exchanges
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._folder.cleanup()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._said.append(line.rstrip())
            if line.startswith(_READY):
                self._ready.set()
        self._ready.set()
