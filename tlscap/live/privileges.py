"""Giving up what is no longer needed.

The process that owns the probes never touches plaintext; the processes that touch plaintext run as the
invoking user, or as root without any capability, and can't get anything back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from tlscap.live.targets import User

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 4, 38, 24
_CAPABILITY_VERSION_3 = 0x20080522


def drop(user: User | None) -> None:
    """Become that user for good, or, without one, lose every capability.  Not undone by anything, exec included."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        if user:
            become(user)
        else:
            head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            none = (ctypes.c_uint32 * 6)()
            if libc.capset(head, none):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # plaintext is in this memory: no core dumps, no tracing by others


def become(user: User) -> None:
    """Take on all of a user's identity."""
    try:
        os.initgroups(user.name, user.gid)
    except OSError:
        os.setgroups([user.gid])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


@contextlib.contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Open files with a user's permissions, and so that they belong to that user."""
    if user is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    gid = os.getegid()
    os.setgroups([user.gid])
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
