"""Every exception tlscap raises on purpose, and the exit status the command line gives it.

::

    TlscapError                     exit 1   anything below, and what has no better name
    ├── UsageError                  exit 2   a wrong option or a combination that makes no sense
    │   └── filters.FilterError              a filter that can't be understood: three lines that show the place
    ├── CaptureError                exit 3   the live side could not start or go on
    │   ├── PrivilegeError                   not root, no CAP_BPF / CAP_PERFMON
    │   ├── UnsupportedError                 this kernel or library lacks a feature
    │   ├── LoadError                        the BPF object was refused; the log is kept
    │   ├── AttachError                      one probe could not be placed; the others go on
    │   ├── TargetError                      no such process, or nothing in it to hook
    │   ├── CommandNotFoundError    exit 127, as shells have it
    │   ├── CommandNotExecutableError  126
    │   └── InterruptedRecordingError  128 + the signal's number
    ├── FormatError                 exit 4   bytes that break a file's layout
    │   ├── TruncatedError                   what came before is valid: readers stop cleanly
    │   ├── CorruptError                     a checksum or a length is wrong
    │   └── UnsupportedVersionError          written by a newer tlscap
    └── OutputError                 exit 5   a file that exists, a full disk, an unwritable folder

Malformed *traffic* is never an exception: it is data.  ``ValueError`` and ``TypeError`` stay for
mistakes of the caller.  Only ``tlscap.cli`` turns these into a line on stderr and an exit status.
"""

from __future__ import annotations


class TlscapError(Exception):
    """Base of every error a user can meet.

    ``str(error)`` is one line that says what went wrong; ``hint`` says what to do next, if anything.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(TlscapError):
    """Options that contradict each other, or a value that can't be understood."""

    exit_status = 2


class CaptureError(TlscapError):
    """The live side could not start, or could not go on."""

    exit_status = 3


class PrivilegeError(CaptureError):
    """The process may not load BPF programs or attach uprobes."""


class UnsupportedError(CaptureError):
    """This kernel, machine or library lacks something that is needed."""


class LoadError(CaptureError):
    """A loader could not load the BPF object.

    ``log`` is the loader's and the verifier's whole output.
    """

    def __init__(self, message: str, *, log: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class AttachError(CaptureError):
    """One probe could not be placed."""


class TargetError(CaptureError):
    """A process that does not exist, or that holds nothing tlscap can hook."""


class CommandNotFoundError(CaptureError):
    """The command to record does not exist."""

    exit_status = 127


class CommandNotExecutableError(CaptureError):
    """The command to record is a file that can't be executed."""

    exit_status = 126


class InterruptedRecordingError(CaptureError):
    """Signal ``number`` came before anything was recorded."""

    exit_status = 130

    def __init__(self, message: str, *, number: int = 2, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_status = 128 + number


class FormatError(TlscapError):
    """Bytes that break a file's layout; ``offset`` is where, in bytes from the file's start, or -1."""

    exit_status = 4

    def __init__(self, message: str, *, offset: int = -1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class TruncatedError(FormatError):
    """The input ends inside an item.  Everything before ``offset`` is valid."""


class CorruptError(FormatError):
    """A checksum or a length contradicts the bytes."""


class UnsupportedVersionError(FormatError):
    """The file names a format version that this tlscap does not know."""


class OutputError(TlscapError):
    """An output file exists already, or could not be created or written."""

    exit_status = 5
