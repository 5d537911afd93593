"""Processes of a recording: its own helpers, the command it runs, and the signals that end them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, Self

from tlscap.live.privileges import become
from tlscap.live.spool import ignore_terminal_signals
from tlscap.live.targets import User


def nice(change: int) -> None:
    with contextlib.suppress(OSError):
        os.nice(change)


def _keep_only(*fds: int) -> None:
    """Let go of every other descriptor: a probe stays attached as long as any process holds its link.

    The numbers stay taken, since objects of the parent may still close them.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != nothing and fd not in fds:
            with contextlib.suppress(OSError):
                os.dup2(nothing, fd)


def fork_child(body: Callable[[], int], *keep: int) -> int:
    """A process that runs `body` with these descriptors only.  Returns when it has let go of the others."""
    gone_read, gone_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            ignore_terminal_signals()
            _keep_only(*keep)  # `gone_write` is among what goes: the parent reads an end of file
            status = body()
        except KeyboardInterrupt:
            pass
        except BaseException as error:  # noqa: BLE001 - the last stop before the process ends
            print(f"tlscap: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    os.close(gone_write)
    os.read(gone_read, 1)
    os.close(gone_read)
    return pid


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


class Signals:
    """SIGINT, SIGTERM and SIGHUP as something to poll for, from the first file created to the last byte written.

    Without it at any moment between, a signal would end the session by itself, and the command would not get it.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._count = 0

    @property
    def repeated(self) -> bool:
        return self._count > 1

    def forget(self) -> None:
        """Begin to count anew: what comes from now on means something else."""
        self.take()
        self._count = 0

    def take(self) -> list[int]:
        """The numbers of those that came since the last time."""
        try:
            came = list(os.read(self.fd, 64))
        except BlockingIOError:
            return []
        self._count += len(came)
        return came

    def __enter__(self) -> Self:
        self._old = {number: signal.signal(number, lambda *_: None) for number in self.NUMBERS}
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write)


class Gate:
    """The command: forked at once, so that its pid is known, but not running before the gate is opened."""

    def __init__(self, command: tuple[str, ...], user: User | None) -> None:
        hold_read, self._hold = os.pipe2(os.O_CLOEXEC)
        self._command = command
        self._waited: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._hold)
            _run_command(command, user, hold_read)
        os.close(hold_read)
        self.pidfd = os.pidfd_open(self.pid)

    def open(self) -> None:
        os.write(self._hold, b"g")
        os.close(self._hold)
        self._hold = -1

    def pass_on(self, number: int) -> None:
        """A signal that the session got.  SIGINT comes from the terminal, which sent it to the command, too."""
        if number != signal.SIGINT:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status, or 128 and the number of the signal that ended it, as shells say it."""
        if self._waited is None:
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self._waited = code if code >= 0 else 128 - code
        return self._waited

    def abandon(self) -> None:
        """Never let a command run that is not recorded."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def _run_command(command: tuple[str, ...], user: User | None, hold: int) -> NoReturn:
    status = 126
    try:
        if not os.read(hold, 1):
            os._exit(0)  # the session gave up
        if user:
            become(user)
            os.environ.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
        os.execvp(command[0], command)
    except FileNotFoundError:
        status = 127
        print(f"tlscap: {command[0]}: command not found", file=sys.stderr)
    except OSError as error:
        print(f"tlscap: {command[0]}: {error.strerror}", file=sys.stderr)
    finally:
        os._exit(status)
