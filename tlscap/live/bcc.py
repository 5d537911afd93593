"""The other loader: BCC compiles the sources of the BPF programs when a recording starts.

For machines without libbpf 1.0.  It needs the distribution's Python package (PyPI's ``bcc`` is about lattices), which
brings a compiler, and kernel headers.  These may belong to another kernel: nothing is taken from them but
what never changes (system call numbers, registers); where kernel structures keep their fields is read from the
running kernel's BTF.

The sources are written for libbpf.  `join_sources` turns them into the one text in BCC's dialect.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from types import ModuleType
from typing import Any, Self

from tlscap.errors import AttachError, CaptureError, LoadError, PrivilegeError
from tlscap.live.btf import struct_offsets
from tlscap.live.libbpf import KERNEL_WIDE, SOCKET_PROGRAMS, SYSCALL_BOUNDED
from tlscap.live.loader import (
    AttachPoint,
    CallKind,
    Counter,
    Settings,
    configure,
    entry_program,
    for_older_kernels,
    works_bounded,
)

MAIN_SOURCE = "tlscap.bpf.c"
LEAVE_PROGRAM = "leave_bounded"
PAGE = 4096
PACKAGE_FOLDERS = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
)
"""Where distributions put the package; a virtual environment does not look there."""
HINT_PACKAGE = "apt-get install python3-bpfcc"
UPROBE_ENTRY, UPROBE_RETURN = 0, 1  # enum bpf_probe_attach_type
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}

# --- The sources, in BCC's dialect ---

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_LICENSE = re.compile(r"^char LICENSE\[\].*$", re.MULTILINE)  # BCC has its own
_MAP_CALL = re.compile(r"\b(bpf_map_\w+|bpf_ringbuf_(?:reserve|query|output|discard))\(")
_MAP_ARGUMENT = re.compile(r"&(\w+)")
_KERNEL_READ = re.compile(r"^\s*KERNEL_READ\([^,]+,[^,]+, (\w+), (\w+)\);", re.MULTILINE)
_TRACEPOINT = re.compile(r'^SEC\("raw_tp/(\w+)"\)\nint (\w+)\(', re.MULTILINE)

_METHODS = {
    ("bpf_map_lookup_elem", None): "{map}.lookup({rest})",
    ("bpf_map_delete_elem", None): "{map}.delete({rest})",
    ("bpf_map_update_elem", "BPF_ANY"): "{map}.update({rest})",
    ("bpf_map_update_elem", "BPF_NOEXIST"): "{map}.insert({rest})",
    ("bpf_ringbuf_reserve", "0"): "{map}.ringbuf_reserve({rest})",
    ("bpf_ringbuf_query", None): "query_{map}({rest})",
}
"""Kernel helper and its last argument, where BCC's method implies that: what to write instead."""

RING_QUERY = """\
/* BCC's ring has no query.  Its `reserve` becomes a call of bpf_ringbuf_reserve with the map: here, that is the query. */
static __always_inline __u64 query_ring(__u64 what)
{
	void *(*bpf_ringbuf_reserve)(void *, __u64, __u64) = (void *)BPF_FUNC_ringbuf_query;

	return (__u64)ring.ringbuf_reserve(what);
}
"""


def join_sources(sources: Mapping[str, str]) -> str:
    """One text of all sources, with the map calls that BCC understands.

    BCC's rewriter does not look into included files, and takes a map for an object with methods.
    Raises ValueError for a call that has no translation.
    """

    def included(match: re.Match[str]) -> str:
        name = match[1]
        return sources[name] + (RING_QUERY if name == "maps.h" else "")

    return _rewrite_map_calls(_LICENSE.sub("", _INCLUDE.sub(included, sources[MAIN_SOURCE])))


def _rewrite_map_calls(text: str) -> str:
    done: list[str] = []
    position = 0
    while match := _MAP_CALL.search(text, position):
        arguments, end = _arguments(text, match.end())
        map_name = _MAP_ARGUMENT.fullmatch(arguments[0])
        form = _METHODS.get((match[1], None))
        rest = arguments[1:]
        if form is None:
            form = _METHODS.get((match[1], rest.pop() if rest else None))
        if form is None or map_name is None:
            raise ValueError(f"no BCC method does what this does: {text[match.start() : end]}")
        done += [text[position : match.start()], form.format(map=map_name[1], rest=", ".join(rest))]
        position = end
    return "".join(done) + text[position:]


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """The arguments of a call from behind its opening parenthesis; where the text goes on."""
    arguments = [""]
    depth = 1
    for position in range(start, len(text)):
        character = text[position]
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return [argument.strip() for argument in arguments], position + 1
        if character == "," and depth == 1:
            arguments.append("")
        else:
            arguments[-1] += character
    raise ValueError(f"a call without an end: {text[start - 40 : start + 40]}")


def kernel_fields(text: str) -> list[tuple[str, str]]:
    """The (structure, field) pairs that the programs read from the kernel, each once."""
    return sorted(set(_KERNEL_READ.findall(text)))


def tracepoints(text: str) -> dict[str, str]:
    """Program names, and the tracepoints they belong on."""
    return {program: tracepoint for tracepoint, program in _TRACEPOINT.findall(text)}


def packaged_sources() -> dict[str, str]:
    """The sources that this package was built from, by file name."""
    folder = resources.files("tlscap").joinpath("_bpf")
    return {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith((".c", ".h"))}


# --- BCC and its habits ---


class _Silence:
    """BCC's complaints, which it writes to descriptors 1 and 2, as text.

    A context manager, used again for each call that may complain.  Whatever else in the process writes there
    meanwhile is collected, too.
    """

    def __init__(self) -> None:
        self.text = ""
        self._libc = ctypes.CDLL(None)
        self._saved: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        self._file = os.memfd_create("tlscap-bcc")
        for fd in (1, 2):
            with contextlib.suppress(OSError):  # closed: nothing to protect
                self._saved.append((fd, os.dup(fd)))
                os.dup2(self._file, fd)
        return self

    def __exit__(self, *_: object) -> None:
        self._libc.fflush(None)
        while self._saved:
            fd, copy = self._saved.pop()
            os.dup2(copy, fd)
            os.close(copy)
        with os.fdopen(self._file, "rb") as file:
            file.seek(0)
            self.text += file.read().decode(errors="replace")


def import_bcc() -> ModuleType:
    """The distribution's ``bcc``, from wherever it is.  Raises `LoadError`."""
    try:
        found = importlib.import_module("bcc")
        if hasattr(found, "BPF"):
            return found
    except ImportError:
        pass
    except OSError as error:
        raise LoadError(f"BCC's library can't be loaded: {error}", hint=HINT_PACKAGE) from error
    # The folder is not put into sys.path: it holds other packages, which must not mix with ours.
    spec = importlib.machinery.PathFinder.find_spec("bcc", PACKAGE_FOLDERS)
    if spec is None or spec.loader is None:
        raise LoadError("BCC is not installed", hint=HINT_PACKAGE)
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        del sys.modules[name]
    module = sys.modules["bcc"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise LoadError(f"BCC can't be imported from {spec.origin}: {error}", hint=HINT_PACKAGE) from error
    if not hasattr(module, "BPF"):
        del sys.modules["bcc"]
        raise LoadError(f"{spec.origin} is not the BCC that is meant here", hint=HINT_PACKAGE)
    return module


class BccLoader:
    """See `tlscap.live.loader.Loader`."""

    name = "bcc"
    follows_one = False

    def __init__(self, settings: Settings) -> None:
        self._silence = _Silence()
        self._probes: list[int] = []
        self._raw_links: list[int] = []
        self._bpf: Any = None
        if os.geteuid() != 0:
            raise PrivilegeError("the bcc loader needs root", hint="run as root")
        text = join_sources(packaged_sources())
        self._tracepoints = tracepoints(text)
        fields = kernel_fields(text)
        offsets = struct_offsets(fields)
        flags = [
            "-DTLSCAP_BCC",
            f"-DRING_PAGES={settings.ring_size // PAGE}",
            f"-D__TARGET_ARCH_{_ARCHITECTURES[platform.machine()]}",
            "-Wno-everything",  # the headers are not ours
            *(f"-DOFFSET_{of}_{field}={offset}" for (of, field), offset in zip(fields, offsets, strict=True)),
        ]
        with self._silence:
            module = import_bcc()
        self._lib = module.libbcc.lib
        try:
            self._bpf = self._try(
                lambda: module.BPF(text=text.encode(), cflags=flags), "BCC can't compile the programs"
            )
            # At the end of the process everything is freed anyhow, and that of a child must not touch the parent's.
            atexit.unregister(self._bpf.cleanup)
            for number in range(self._lib.bpf_num_functions(self._bpf.module)):
                self._program(self._lib.bpf_function_name(self._bpf.module, number).decode())
            configure(self, settings)
            for program in KERNEL_WIDE:
                self._attach_tracepoint(program)
            try:
                for program in SOCKET_PROGRAMS:
                    self._attach_tracepoint(program)
            except AttachError:
                self._attach_tracepoint(SYSCALL_BOUNDED)
        except BaseException:
            self.close()
            raise

    def _try(self, act: Callable[[], Any], failure: str) -> Any:
        """Do something with BCC, which complains with bare exceptions and on stderr."""
        try:
            with self._silence:
                return act()
        except CaptureError:
            raise
        except Exception as error:
            raise LoadError(failure, log=self._silence.text, hint=_load_hint(self._silence.text)) from error

    def _program(self, name: str) -> int:
        """The descriptor of a program.  All are loaded at the start, where a failure is told best."""
        kind = self._bpf.RAW_TRACEPOINT if name in self._tracepoints else self._bpf.KPROBE
        loaded = self._try(lambda: self._bpf.load_func(name.encode(), kind), f"the kernel refused the program {name}")
        return int(loaded.fd)

    def _attach_tracepoint(self, program: str) -> None:
        # Not by BCC's method, which takes one program for each tracepoint.
        tracepoint = self._tracepoints[program]
        number = self._program(program)
        with self._silence:
            fd = self._lib.bpf_attach_raw_tracepoint(number, tracepoint.encode())
        if fd < 0:
            raise AttachError(f"program {program} can't be attached to tracepoint {tracepoint}: {_reason()}")
        self._raw_links.append(fd)

    def _table(self, name: str) -> Any:
        return self._bpf[name.encode()]

    @property
    def ring_fd(self) -> int:
        return int(self._table("ring").map_fd)

    def attach(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        failed = []
        for point in for_older_kernels(points):
            before = len(self._probes)
            try:
                if not works_bounded(point):
                    raise AttachError(f"{point.function} in {point.path}: following it needs the libbpf loader")
                if isinstance(point.kind, CallKind):
                    # The return first: a call entered in between is then simply not known, never left pending.
                    self._attach_probe(LEAVE_PROGRAM, point, pid, UPROBE_RETURN)
                self._attach_probe(entry_program(point.kind, point.count_arg), point, pid, UPROBE_ENTRY)
            except AttachError as error:
                failed.append((point, str(error)))
                self._remove_probes(before)
        return failed

    def attach_process(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        raise AttachError("the bcc loader has no probes for one process")

    def detach_process(self, pid: int) -> None:
        """Nothing was attached for one process."""

    def _attach_probe(self, program: str, point: AttachPoint, pid: int, kind: int) -> None:
        # BCC's method takes point.vaddr and reads the file each time to find file_offset, which is known here.  It also
        # mixes up probes of the same place and ends at 1000.  The name is for kernels before 4.17.
        event = f"{'pr'[kind]}_tlscap_{os.getpid()}_{len(self._probes)}"
        number = self._program(program)
        with self._silence:
            fd = self._lib.bpf_attach_uprobe(
                number,
                kind,
                event.encode(),
                os.fsencode(point.path),
                point.file_offset,
                pid,
                ctypes.c_uint32(0),  # offset of a reference counter; BCC's own declaration has forgotten it
            )
        if fd < 0:
            raise AttachError(f"{point.function} in {point.path}: {_reason()}")
        self._probes.append(fd)

    def _remove_probes(self, keep: int = 0) -> None:
        while len(self._probes) > keep:
            self._lib.bpf_close_perf_event_fd(self._probes.pop())

    def detach(self) -> None:
        with self._silence:
            self._remove_probes()
        while self._raw_links:
            os.close(self._raw_links.pop())

    def update(self, map_name: str, key: bytes, value: bytes) -> None:
        if self._lib.bpf_update_elem(self._table(map_name).map_fd, key, value, 0):
            raise LoadError(f"map {map_name}: {_reason()}")

    def delete(self, map_name: str, key: bytes) -> None:
        self._lib.bpf_delete_elem(self._table(map_name).map_fd, key)

    def items(self, map_name: str) -> Iterator[tuple[bytes, bytes]]:
        table = self._table(map_name)
        key = ctypes.create_string_buffer(ctypes.sizeof(table.Key))
        value = ctypes.create_string_buffer(ctypes.sizeof(table.Leaf))
        previous = None
        while self._lib.bpf_get_next_key(table.map_fd, previous, key) == 0:
            if self._lib.bpf_lookup_elem(table.map_fd, key, value) == 0:
                yield key.raw, value.raw
            previous = ctypes.create_string_buffer(key.raw, len(key))

    def counters(self) -> dict[Counter, int]:
        table = self._table("counters")
        return {counter: int(table.sum(int(counter)).value) for counter in Counter}

    def close(self) -> None:
        self.detach()
        if self._bpf:
            with self._silence:
                self._bpf.cleanup()
            self._bpf = None


def _reason() -> str:
    number = ctypes.get_errno()
    return os.strerror(number) if number else "refused, without a reason"


def _load_hint(log: str) -> str:
    """What to do about it, when the reason is known."""
    release = os.uname().release
    build = f"/lib/modules/{release}/build"
    if "BCC_KERNEL_SOURCE" not in os.environ and not os.path.isdir(build):
        return (
            f"kernel headers are missing ({build}): apt-get install linux-headers-{release}, "
            "or make it and .../source links to another kernel's headers"
        )
    if "super-user" in log or "Operation not permitted" in log:
        return "CAP_BPF and CAP_PERFMON are needed, and kernel lockdown must not be 'confidentiality'"
    return ""
