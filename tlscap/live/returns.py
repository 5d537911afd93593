"""Where a function returns: every instruction that ends a call of it.

For kernels on which a return probe, which diverts the return address, can kill its target.  A function may also end by jumping
to another one, which then returns for it: the stack is as it was, so a probe there tells the right call.  What can't be followed to
its end is refused.
"""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING, Any

from tlscap.errors import AttachError

if TYPE_CHECKING:
    from tlscap.live.sites import Image

MAX_RETURNS = 64
MAX_FUNCTIONS = 16
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
HARMFUL = (((6, 11, 0), (6, 12, 20)), ((6, 13, 0), (6, 13, 8)))
"""Kernels that make a system call of a uretprobe (commit ff474a78cef5, 6.11) and let a seccomp filter kill the process for it
(mended by commit cf6cb56ef244, 6.14 and later versions of stable kernels): from the first, up to the second."""


def return_probes_are_safe(release: str = "") -> bool:
    """Whether this kernel's return probes harm no process under a seccomp filter.  ``release`` is as ``uname -r`` prints it."""
    match = _RELEASE.match(release or os.uname().release)
    if match is None or platform.machine() != "x86_64":
        return True
    version = int(match[1]), int(match[2]), int(match[3] or 0)
    return not any(first <= version < mended for first, mended in HARMFUL)


def return_sites(image: Image, vaddr: int, disassembler: Any) -> tuple[int, ...]:
    """Addresses of the return instructions of a function and of those that it ends with.  Raises `AttachError`."""
    ranges = dict(image.functions())
    pending, seen, found = [vaddr], set[int](), list[int]()
    while pending:
        start = pending.pop()
        if start in seen:
            continue
        seen.add(start)
        size = ranges.get(start, 0)
        if not size or len(seen) > MAX_FUNCTIONS:
            raise AttachError(f"{image.path}: where the function at {vaddr:#x} returns can't be told")
        end = start + size
        for address, length, mnemonic, operands in disassembler.disasm_lite(image.code(start, size), start):
            if mnemonic == "ret":
                found.append(address)
            elif mnemonic.startswith("j") and operands.startswith("0x"):
                target = int(operands, 16)
                if not start <= target < end:
                    # Another function, or the part of this one that the compiler put elsewhere because it is rarely run.
                    pending.append(_function_at(target, ranges, image))
            elif mnemonic.endswith("jmp") and "ptr" in operands:
                raise AttachError(f"{image.path}: the function at {vaddr:#x} goes on at {address:#x} through a pointer")
            last = address + length
        # Behind the last instruction there may be padding: the size reaches to the next function.
        if last < end and image.code(last, 1)[:1] not in (b"\xcc", b"\x90", b"\x66", b"\x0f", b"\0"):
            raise AttachError(f"{image.path}: the function at {vaddr:#x} can't be decoded to its end")
    if not 0 < len(found) <= MAX_RETURNS:
        raise AttachError(f"{image.path}: the function at {vaddr:#x} returns in {len(found)} places")
    return tuple(sorted(set(found)))


def _function_at(target: int, ranges: dict[int, int], image: Image) -> int:
    if target in ranges:
        return target
    for start, size in ranges.items():
        if start <= target < start + size:
            return start
    raise AttachError(f"{image.path}: {target:#x} is in no function")
