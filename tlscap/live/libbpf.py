"""The default loader: the prebuilt CO-RE object through ``libbpf.so.1``, by ctypes.

Only what tlscap needs of libbpf is declared.  Since version 1.0 its functions return NULL and set errno, or
return a negative errno.  The library's own messages, the verifier's log among them, are collected
and come with the error.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import resources

from tlscap.errors import AttachError, LoadError, PrivilegeError
from tlscap.live.loader import AttachPoint, CallKind, Counter, Settings, configure, entry_program

BPF_PROG_TYPE_KPROBE = 2
BPF_FUNC_LOOP = 181  # Linux 5.17
BPF_LINK_CREATE = 28
BPF_TRACE_UPROBE_MULTI = 48  # Linux 6.6
BPF_F_UPROBE_MULTI_RETURN = 1
BTF = "/sys/kernel/btf/vmlinux"
SYS_BPF = {"x86_64": 321, "aarch64": 280}

KERNEL_WIDE = ("on_fork", "on_exec", "on_exit")
"""Programs on scheduler tracepoints."""
MODERN = ("enter_any", "leave_loop", "on_any")
"""With attach cookies and bpf_loop these three do what else takes one program for each kind of function."""
SOCKET_PROGRAMS = ("on_socket_send", "on_socket_receive")
"""Programs on the socket tracepoints of Linux 6.3."""
SYSCALL_MODERN, SYSCALL_BOUNDED = "on_syscall_modern", "on_syscall"
"""Instead of those, where they don't exist; the second one where there is no task storage either."""


class _MultiLink(ctypes.Structure):
    """``union bpf_attr`` for BPF_LINK_CREATE with many uprobes of one file (Linux 6.6, commit 89ae89f53d20)."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("cnt", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _UprobeOptions(ctypes.Structure):
    """``struct bpf_uprobe_opts``; a newer library accepts this shorter form by its ``sz``."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ref_ctr_offset", ctypes.c_size_t),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
    )


_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise LoadError(f"libbpf.so.1 can't be loaded: {error}", hint="apt-get install libbpf1") from error
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, result, arguments in (
        ("bpf_object__open_mem", pointer, [pointer, size, pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_program_by_name", pointer, [pointer, text]),
        ("bpf_object__next_program", pointer, [pointer, pointer]),
        ("bpf_program__name", text, [pointer]),
        ("bpf_program__set_autoload", ctypes.c_int, [pointer, ctypes.c_bool]),
        ("bpf_program__set_expected_attach_type", ctypes.c_int, [pointer, ctypes.c_int]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("bpf_program__attach_uprobe_opts", pointer, [pointer, ctypes.c_int, text, size, pointer]),
        ("bpf_program__attach", pointer, [pointer]),
        ("bpf_link__destroy", ctypes.c_int, [pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, text]),
        ("bpf_map__fd", ctypes.c_int, [pointer]),
        ("bpf_map__set_autocreate", ctypes.c_int, [pointer, ctypes.c_bool]),
        ("bpf_map__set_max_entries", ctypes.c_int, [pointer, ctypes.c_uint32]),
        ("bpf_map__key_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__value_size", ctypes.c_uint32, [pointer]),
        ("bpf_map_update_elem", ctypes.c_int, [ctypes.c_int, pointer, pointer, ctypes.c_uint64]),
        ("bpf_map_lookup_elem", ctypes.c_int, [ctypes.c_int, pointer, pointer]),
        ("bpf_map_delete_elem", ctypes.c_int, [ctypes.c_int, pointer]),
        ("bpf_map_get_next_key", ctypes.c_int, [ctypes.c_int, pointer, pointer]),
        ("libbpf_probe_bpf_helper", ctypes.c_int, [ctypes.c_int, ctypes.c_int, pointer]),
        ("libbpf_num_possible_cpus", ctypes.c_int, []),
        ("libbpf_set_print", pointer, [pointer]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib


class _Log:
    """Collects what libbpf prints.  The callback must outlive every call into the library."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self.parts: list[str] = []
        libc = ctypes.CDLL(None)
        vsnprintf = libc.vsnprintf
        vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

        def collect(level: int, form: bytes, arguments: int) -> int:
            if level <= 1:  # warnings and information; debug is endless
                room = ctypes.create_string_buffer(1 << 20)  # the verifier's log comes as one message
                vsnprintf(room, len(room), form, arguments)
                self.parts.append(room.value.decode(errors="replace"))
            return 0

        self._callback = _PRINT(collect)
        lib.libbpf_set_print(ctypes.cast(self._callback, ctypes.c_void_p))

    @property
    def text(self) -> str:
        return "".join(self.parts)


class LibbpfLoader:
    """See `tlscap.live.loader.Loader`."""

    name = "libbpf"

    def __init__(self, settings: Settings, *, bounded: bool = False) -> None:
        """Load and configure.  ``bounded`` takes the programs for kernels without ``bpf_loop``."""
        self._lib = lib = _library()
        self._log = _Log(lib)
        self._links: list[int] = []
        self._multi_links: list[int] = []
        self._multi = True
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        try:
            code = resources.files("tlscap").joinpath("_bpf/tlscap.bpf.o").read_bytes()
        except OSError as error:
            raise LoadError(
                f"the BPF object is missing from the installation: {error.strerror}", hint="install tlscap again"
            ) from error
        self._object = lib.bpf_object__open_mem(code, len(code), None)
        if not self._object:
            raise LoadError("the BPF object can't be opened", log=self._log.text)
        try:
            self._modern = not bounded and lib.libbpf_probe_bpf_helper(BPF_PROG_TYPE_KPROBE, BPF_FUNC_LOOP, None) == 1
            self._choose_programs()
            if not self._modern:
                lib.bpf_map__set_autocreate(self._map("threads"), False)  # task storage needs Linux 5.11
            lib.bpf_map__set_max_entries(self._map("ring"), settings.ring_size)
            result = lib.bpf_object__load(self._object)
            if result:
                raise _load_error(-result, self._log.text)
            configure(self, settings)
            for name in KERNEL_WIDE:
                self._attach_tracepoint(name)
            self._watch_sockets()
        except BaseException:
            self.close()
            raise

    def _choose_programs(self) -> None:
        """Load only what will be attached: verification takes most of the time to start."""
        modern = {*MODERN, *SOCKET_PROGRAMS, SYSCALL_MODERN}
        program = None
        while program := self._lib.bpf_object__next_program(self._object, program):
            name = self._lib.bpf_program__name(program).decode()
            self._lib.bpf_program__set_autoload(program, name in KERNEL_WIDE or (name in modern) == self._modern)
            if name in MODERN:
                # Must be said before loading; kernels without it don't look at this field.
                self._lib.bpf_program__set_expected_attach_type(program, BPF_TRACE_UPROBE_MULTI)

    def _watch_sockets(self) -> None:
        if not self._modern:
            self._attach_tracepoint(SYSCALL_BOUNDED)
            return
        try:
            for name in SOCKET_PROGRAMS:
                self._attach_tracepoint(name)
        except AttachError:
            self._attach_tracepoint(SYSCALL_MODERN)

    def _attach_tracepoint(self, program: str) -> None:
        self._keep_link(self._lib.bpf_program__attach(self._program(program)), f"tracepoint program {program}")

    def _map(self, name: str) -> int:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise LoadError(f"the BPF object has no map {name!r}")
        return int(found)

    def _program(self, name: str) -> int:
        found = self._lib.bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise LoadError(f"the BPF object has no program {name!r}")
        return int(found)

    def _keep_link(self, link: int | None, what: str) -> None:
        if not link:
            number = ctypes.get_errno()
            if number in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(f"not allowed to attach {what}", hint="run as root")
            raise AttachError(f"{what}: {os.strerror(number)}")
        self._links.append(link)

    @property
    def ring_fd(self) -> int:
        return int(self._lib.bpf_map__fd(self._map("ring")))

    def attach(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        if self._modern:
            done = self._attach_multi(points, pid)
            if done is not None:
                return done
        failed = []
        for point in points:
            before = len(self._links)
            try:
                self._attach_point(point, pid)
            except AttachError as error:
                failed.append((point, str(error)))
                while len(self._links) > before:
                    self._lib.bpf_link__destroy(self._links.pop())
        return failed

    def _attach_point(self, point: AttachPoint, pid: int) -> None:
        what = f"{point.function} in {point.path}"
        if self._modern:
            entry = "enter_any" if isinstance(point.kind, CallKind) else "on_any"
        else:
            entry = entry_program(point.kind, point.count_arg)
        if isinstance(point.kind, CallKind):
            # The return first: a call entered in between is then simply not known, never left pending.
            leave = "leave_loop" if self._modern else "leave_bounded"
            self._attach_one(leave, point, pid, 0, returns=True, what=what)
        self._attach_one(entry, point, pid, _cookie(point), returns=False, what=what)

    def _attach_multi(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]] | None:
        """One link for all functions of a file with the same program: above all, one to wait for at the end.

        None when this kernel has no such links.
        """
        if not self._multi:
            return None
        calls = [point for point in points if isinstance(point.kind, CallKind)]
        lives = [point for point in points if not isinstance(point.kind, CallKind)]
        failed: list[tuple[AttachPoint, str]] = []
        for program, group, returns in (
            ("leave_loop", calls, True),
            ("enter_any", calls, False),
            ("on_any", lives, False),
        ):
            if not group:
                continue
            number = self._multi_link(program, group, pid, returns=returns)
            if number == errno.EINVAL and not self._multi_links:
                self._multi = False
                return None
            if number in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(f"not allowed to attach probes to {group[0].path}", hint="run as root")
            if number and len(points) > 1:
                # Find out which: one by one, each with its return.
                return [failure for point in points for failure in self._attach_multi([point], pid) or []]
            if number:
                failed.append((group[0], f"{group[0].function} in {group[0].path}: {os.strerror(number)}"))
        return failed

    def _multi_link(self, program: str, points: Sequence[AttachPoint], pid: int, *, returns: bool) -> int:
        """Attach, and keep the link.  Returns 0 or an errno."""
        count = len(points)
        offsets = (ctypes.c_uint64 * count)(*(point.file_offset for point in points))
        cookies = (ctypes.c_uint64 * count)(*(_cookie(point) for point in points))
        path = ctypes.create_string_buffer(os.fsencode(points[0].path))
        request = _MultiLink(
            prog_fd=self._lib.bpf_program__fd(self._program(program)),
            attach_type=BPF_TRACE_UPROBE_MULTI,
            path=ctypes.addressof(path),
            offsets=ctypes.addressof(offsets),
            cookies=ctypes.addressof(cookies),
            cnt=count,
            multi_flags=BPF_F_UPROBE_MULTI_RETURN if returns else 0,
            pid=max(pid, 0),
        )
        fd = self._syscall(SYS_BPF[platform.machine()], BPF_LINK_CREATE, ctypes.byref(request), ctypes.sizeof(request))
        if fd < 0:
            return ctypes.get_errno()
        self._multi_links.append(fd)
        return 0

    def _attach_one(self, program: str, point: AttachPoint, pid: int, cookie: int, *, returns: bool, what: str) -> None:
        options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, cookie, returns)
        self._keep_link(
            self._lib.bpf_program__attach_uprobe_opts(
                self._program(program), pid, os.fsencode(point.path), point.file_offset, ctypes.byref(options)
            ),
            what,
        )

    def detach(self) -> None:
        while self._multi_links:
            os.close(self._multi_links.pop())
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())

    def update(self, map_name: str, key: bytes, value: bytes) -> None:
        result = self._lib.bpf_map_update_elem(self._lib.bpf_map__fd(self._map(map_name)), key, value, 0)
        if result:
            raise LoadError(f"map {map_name}: {os.strerror(-result)}")

    def delete(self, map_name: str, key: bytes) -> None:
        self._lib.bpf_map_delete_elem(self._lib.bpf_map__fd(self._map(map_name)), key)

    def items(self, map_name: str) -> Iterator[tuple[bytes, bytes]]:
        the_map = self._map(map_name)
        fd = self._lib.bpf_map__fd(the_map)
        key = ctypes.create_string_buffer(self._lib.bpf_map__key_size(the_map))
        value = ctypes.create_string_buffer(self._lib.bpf_map__value_size(the_map))
        previous = None
        while self._lib.bpf_map_get_next_key(fd, previous, key) == 0:
            if self._lib.bpf_map_lookup_elem(fd, key, value) == 0:
                yield key.raw, value.raw
            previous = ctypes.create_string_buffer(key.raw, len(key))

    def counters(self) -> dict[Counter, int]:
        the_map = self._map("counters")
        fd = self._lib.bpf_map__fd(the_map)
        values = (ctypes.c_uint64 * self._lib.libbpf_num_possible_cpus())()
        sums = {}
        for counter in Counter:
            self._lib.bpf_map_lookup_elem(fd, ctypes.byref(ctypes.c_uint32(counter)), values)
            sums[counter] = sum(values)
        return sums

    def close(self) -> None:
        self.detach()
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None


def _cookie(point: AttachPoint) -> int:
    """What `enter_any` and `on_any` read to know which function they are on."""
    return int(point.kind.value) | point.count_arg << 8


def _load_error(number: int, log: str) -> LoadError | PrivilegeError:
    """Why the kernel refused: the likely causes, the most likely first."""
    if os.geteuid() != 0 and number in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            "loading BPF programs is not allowed", hint="run as root, or grant CAP_BPF and CAP_PERFMON"
        )
    release = os.uname().release
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    if numbers < [5, 8]:
        return LoadError(f"the kernel is {release}; BPF ring buffers need 5.8", log=log)
    if not os.path.exists(BTF):
        return LoadError(
            f"this kernel does not describe its structures: there is no {BTF}",
            log=log,
            hint="it needs CONFIG_DEBUG_INFO_BTF, which distributions' kernels have",
        )
    hint = ""
    if number in (errno.EPERM, errno.EACCES):
        hint = "CAP_BPF and CAP_PERFMON are needed, and kernel lockdown must not be 'confidentiality'"
    return LoadError(f"the kernel refused the BPF object: {os.strerror(number)}", log=log, hint=hint)
