"""Runs tshark, to which `tlscap import` leaves the decryption of TLS; what it is told is in `tlscap.importing.tshark`.

It gets hostile input: it runs as the invoking user or as root without capabilities, without anybody's settings and plugins,
with every protocol but TLS switched off.  Its answers go into a file without a name, so that it never waits for us.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

from tlscap.errors import TlscapError
from tlscap.importing import tshark
from tlscap.importing.keylog import KeyLog
from tlscap.importing.tls import Decrypted, Decryptor
from tlscap.live.privileges import drop
from tlscap.live.targets import User, invoking_user
from tlscap.model import Direction

SHARE: Final = 256 << 20
"""After so many bytes of records, new connections go to another process: each keeps in memory all that it decrypted."""

_BUFFER = 1 << 20
_NOWHERE = "/nonexistent"
_MAX_SAID = 200  # characters of an error message


class Decryption:
    """The decryptors (`tlscap.importing.tls.Decryptor`) of each pass over the capture, and the processes between them."""

    def __init__(self, keys: KeyLog, folder: str | None, *, share: int = SHARE) -> None:
        """Answers are kept in `folder`, by default that for temporary files; nothing is started yet."""
        self._keys = keys
        self._folder = folder
        self._share = share
        self._program: list[str] = []
        self._protocols: list[str] = []
        self._user = invoking_user()
        self._all: list[_Tshark] = []
        self._strict: list[_Tshark] = []
        self._lenient: list[_Tshark] = []
        self._damaged: set[int] = set()

    def questions(self) -> Iterator[Decryptor]:
        """Yield the decryptors of the first passes: a second one only if bytes are missing in some records."""
        yield _Questions(self._strict, self._start, self._share, self._damaged)
        if self._damaged:
            yield _Questions(
                self._lenient, functools.partial(self._start, lenient=True), self._share, set(), only=self._damaged
            )

    def answers(self) -> Decryptor:
        """Wait for the answers; return the decryptor of the last pass."""
        for process in self._all:
            process.end_input()
        for process in self._all:
            process.wait()
        return _Answers(_Replies(self._strict, self._share), _Replies(self._lenient, self._share), self._damaged)

    def close(self) -> None:
        """End what still runs, and let go of the answers."""
        for process in self._all:
            process.close()

    def _start(self, *, lenient: bool = False) -> _Tshark:
        """Start one more process."""
        if not self._program:
            self._prepare()
        command = [*self._program, *tshark.arguments(self._protocols, lenient=lenient)]
        process = _Tshark(command, self._keys, self._folder, self._user)
        self._all.append(process)
        return process

    def _prepare(self) -> None:
        """Find tshark, and ask it which protocols it knows."""
        program = shutil.which("tshark")
        if program is None:
            raise TlscapError("decrypting TLS needs tshark, which is not installed", hint="apt install tshark")
        asked = subprocess.run(
            [program, *tshark.LIST_PROTOCOLS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            **_harmless(self._user),
        )
        self._protocols = tshark.protocol_options(asked.stdout)
        self._program = [program]


class _Shares:
    """Which process a connection belongs to.  The same in every pass: it follows from the records alone."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._of: dict[int, int] = {}
        self._count = 0
        self._bytes = 0

    def begin(self, connection: int) -> int:
        """Return the number of a new connection's process: a new one when the last has had its share."""
        if self._count == 0 or self._bytes >= self._share:
            self._count += 1
            self._bytes = 0
        self._of[connection] = self._count - 1
        return self._count - 1

    def record(self, connection: int, size: int) -> int:
        number = self._of[connection]
        if number == self._count - 1:
            self._bytes += size
        return number

    def end(self, connection: int) -> bool:
        """Forget a connection; tell whether its process will get no more of any."""
        number = self._of.pop(connection)
        return number < self._count - 1 and number not in self._of.values()


class _Questions:
    """Hands records to processes: those of all connections, or of only some."""

    def __init__(
        self,
        processes: list[_Tshark],
        start: Callable[[], _Tshark],
        share: int,
        damaged: set[int],
        *,
        only: set[int] | None = None,
    ) -> None:
        """Connections with missing bytes are put into `damaged`."""
        self._processes = processes
        self._start = start
        self._shares = _Shares(share)
        self._damaged = damaged
        self._only = only
        self._of: dict[int, _Tshark] = {}

    def begin(self, connection: int) -> None:
        if self._only is not None and connection not in self._only:
            return
        number = self._shares.begin(connection)
        if number == len(self._processes):
            self._processes.append(self._start())
        process = self._of[connection] = self._processes[number]
        process.feeder.begin(connection)

    def record(
        self, connection: int, direction: Direction, record: bytes, time_ns: int, *, damaged: bool
    ) -> Decrypted | None:
        if damaged:
            self._damaged.add(connection)
        if process := self._of.get(connection):
            self._shares.record(connection, len(record))
            process.write(process.feeder.record(connection, direction, record, time_ns))
        return None

    def end(self, connection: int) -> None:
        if process := self._of.pop(connection, None):
            process.feeder.end(connection)
            if self._shares.end(connection):
                process.end_input()


class _Answers:
    """Gives back what was found in the same records: by lenient processes in those of damaged connections."""

    def __init__(self, strict: _Replies, lenient: _Replies, damaged: set[int]) -> None:
        self._strict = strict
        self._lenient = lenient
        self._damaged = damaged

    def begin(self, connection: int) -> None:
        self._strict.begin(connection)
        if connection in self._damaged:
            self._lenient.begin(connection)

    def record(
        self, connection: int, direction: Direction, record: bytes, time_ns: int, *, damaged: bool
    ) -> Decrypted | None:
        found = self._strict.next(connection, record)
        return self._lenient.next(connection, record) if connection in self._damaged else found

    def end(self, connection: int) -> None:
        self._strict.end(connection)
        if connection in self._damaged:
            self._lenient.end(connection)


class _Replies:
    """What a row of processes wrote."""

    def __init__(self, processes: list[_Tshark], share: int) -> None:
        self._lines = [process.lines() for process in processes]
        self._numbers = [0] * len(processes)
        self._shares = _Shares(share)

    def begin(self, connection: int) -> None:
        self._shares.begin(connection)

    def next(self, connection: int, record: bytes) -> Decrypted:
        """Return what was found in a connection's next record."""
        process = self._shares.record(connection, len(record))
        self._numbers[process] += 1
        number, found = tshark.parse(next(self._lines[process], b""))
        if number != self._numbers[process]:
            raise TlscapError(f"tshark answered packet {number} in place of {self._numbers[process]}")
        return found

    def end(self, connection: int) -> None:
        self._shares.end(connection)


class _Tshark:
    """A running tshark."""

    def __init__(self, command: list[str], keys: KeyLog, folder: str | None, user: User | None) -> None:
        self.feeder = tshark.Feeder()
        self._answers = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until it was read
        self._said = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._answers,
            stderr=self._said,
            bufsize=_BUFFER,
            **_harmless(user),
        )
        for block in self.feeder.start(keys):
            self.write(block)

    def write(self, data: bytes) -> None:
        """Pass input on.  Raise `TlscapError` when tshark is gone."""
        try:
            self._input.write(data)
        except BrokenPipeError:
            self._failed()

    def end_input(self) -> None:
        """Say that there is no more, so that the process ends."""
        try:
            self._input.close()
        except BrokenPipeError:
            self._failed()

    def wait(self) -> None:
        """Wait for the end.  Raise `TlscapError` when it is a bad one."""
        if self._process.wait():
            self._failed()

    def lines(self) -> Iterator[bytes]:
        """Return the answers."""
        self._answers.seek(0)
        return iter(self._answers)

    def close(self) -> None:
        """End the process, if it still runs, and let go of its answers."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._input.close()
        self._answers.close()
        self._said.close()

    @property
    def _input(self) -> IO[bytes]:
        stream = self._process.stdin
        if stream is None:
            raise ValueError("the process has no input")
        return stream

    def _failed(self) -> None:
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read(_BUFFER).decode("utf-8", "replace").splitlines()
        last = "".join(char for char in (lines or [""])[-1][:_MAX_SAID] if char.isprintable())
        raise TlscapError(f"tshark ended with status {status}{': ' if last else ''}{last}") from None


def _harmless(user: User | None) -> dict[str, Any]:
    """Return how to start a program so that it can do little: arguments of `subprocess.Popen`."""
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": _NOWHERE,
        "XDG_CONFIG_HOME": _NOWHERE,
        "WIRESHARK_CONFIG_DIR": _NOWHERE,
    }
    return {"env": environment, "cwd": "/", "preexec_fn": functools.partial(_give_up_privileges, user)}


def _give_up_privileges(user: User | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    drop(user)
