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
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import resources

from tlscap.errors import AttachError, LoadError, PrivilegeError
from tlscap.live.loader import (
    AttachPoint,
    CallKind,
    Counter,
    Settings,
    configure,
    cookie,
    entry_program,
    for_older_kernels,
    modern_probes,
    works_bounded,
)

BPF_PROG_TYPE_KPROBE = 2
BPF_FUNC_LOOP = 181  # Linux 5.17
BPF_LINK_CREATE = 28
BPF_TRACE_UPROBE_MULTI = 48  # Linux 6.6
BPF_F_UPROBE_MULTI_RETURN = 1
BTF = "/sys/kernel/btf/vmlinux"
SYS_BPF = {"x86_64": 321, "aarch64": 280}

KERNEL_WIDE = ("on_fork", "on_exec", "on_exit")
"""Programs on scheduler tracepoints."""
ON_DEMAND = (
    ("enter_go", "leave_go_data", "leave_go_handshake", "on_go_free"),
    ("enter_rustls", "leave_rustls", "on_rustls"),
)
"""Groups of programs that are loaded when a file needs them: the kernel takes long to verify them."""
MODERN = (
    *("enter_any", "leave_loop", "on_any", "enter_bio", "leave_bio"),
    *(program for group in ON_DEMAND for program in group),
)
"""With attach cookies and bpf_loop these do what else takes one program for each kind of function, and more."""
MODERN_MAPS = ("threads", "joining", "handed_out", "taken_in", "relays", "seen_callbacks")
"""The first is task storage (Linux 5.11); the others are only used together with it."""
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
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_map__name", text, [pointer]),
        ("bpf_map__reuse_fd", ctypes.c_int, [pointer, ctypes.c_int]),
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
        self._process_links: dict[int, list[int]] = {}
        self._closing: list[threading.Thread] = []
        self._multi = True
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._on_demand: dict[tuple[str, ...], int] = {}
        self._object = self._open()
        try:
            self._modern = not bounded and lib.libbpf_probe_bpf_helper(BPF_PROG_TYPE_KPROBE, BPF_FUNC_LOOP, None) == 1
            self._choose_programs(self._object, self._from_the_start())
            if not self._modern:
                for name in MODERN_MAPS:
                    lib.bpf_map__set_autocreate(self._map(name), False)
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

    def _open(self) -> int:
        """The object that the package was built with, nothing of it loaded yet."""
        try:
            code = resources.files("tlscap").joinpath("_bpf/tlscap.bpf.o").read_bytes()
        except OSError as error:
            raise LoadError(
                f"the BPF object is missing from the installation: {error.strerror}", hint="install tlscap again"
            ) from error
        opened = self._lib.bpf_object__open_mem(code, len(code), None)
        if not opened:
            raise LoadError("the BPF object can't be opened", log=self._log.text)
        return int(opened)

    def _from_the_start(self) -> Callable[[str], bool]:
        """Which programs are loaded at once."""
        modern = {*MODERN, *SOCKET_PROGRAMS, SYSCALL_MODERN}
        later = {name for group in ON_DEMAND for name in group}
        return lambda name: name in KERNEL_WIDE or ((name in modern) == self._modern and name not in later)

    def _choose_programs(self, opened: int, wanted: Callable[[str], bool]) -> None:
        """Load only what will be attached: verification takes most of the time to start."""
        program = None
        while program := self._lib.bpf_object__next_program(opened, program):
            name = self._lib.bpf_program__name(program).decode()
            self._lib.bpf_program__set_autoload(program, wanted(name))
            if name in MODERN:
                # Must be said before loading; kernels without it don't look at this field.
                self._lib.bpf_program__set_expected_attach_type(program, BPF_TRACE_UPROBE_MULTI)

    def _load_group(self, group: tuple[str, ...]) -> int:
        """The object with the programs of one of `ON_DEMAND`, which share the maps of the others."""
        if group not in self._on_demand:
            opened = self._open()
            self._choose_programs(opened, group.__contains__)
            shared, result = None, 0
            while not result and (shared := self._lib.bpf_object__next_map(opened, shared)):
                name = self._lib.bpf_map__name(shared).decode()
                result = self._lib.bpf_map__reuse_fd(shared, self._lib.bpf_map__fd(self._map(name)))
            result = result or self._lib.bpf_object__load(opened)
            if result:
                self._lib.bpf_object__close(opened)
                # One file's programs: what else is recorded goes on.
                raise AttachError(f"the kernel refused the program {group[0]}: {os.strerror(-result)}")
            self._on_demand[group] = opened
        return self._on_demand[group]

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
        group = next((group for group in ON_DEMAND if name in group), None)
        holder = self._load_group(group) if group else self._object
        found = self._lib.bpf_object__find_program_by_name(holder, name.encode())
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
    def follows_one(self) -> bool:
        return self._modern and self._multi

    @property
    def ring_fd(self) -> int:
        return int(self._lib.bpf_map__fd(self._map("ring")))

    def attach(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        if self._modern and self._multi:
            done = self._attach_multi(points, pid)
            if done is not None:
                return done
        failed = []
        for point in points if self._modern else for_older_kernels(points):
            before = len(self._links)
            try:
                self._attach_point(point, pid)
            except AttachError as error:
                failed.append((point, str(error)))
                while len(self._links) > before:
                    self._lib.bpf_link__destroy(self._links.pop())
        return failed

    def attach_process(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        failed: list[tuple[AttachPoint, str]] = []
        before = len(self._multi_links)
        for path in dict.fromkeys(point.path for point in points):
            failed += self._attach_multi([point for point in points if point.path == path], pid) or []
        self._process_links.setdefault(pid, []).extend(self._multi_links[before:])
        del self._multi_links[before:]
        return failed

    def detach_process(self, pid: int) -> None:
        self._close_links(self._process_links.pop(pid, []))

    def _close_links(self, links: list[int]) -> None:
        """The kernel waits for each until nobody runs its probes any more, some 40 ms: so they wait side by side."""
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        while links:
            thread = threading.Thread(target=os.close, args=(links.pop(),))
            thread.start()
            self._closing.append(thread)

    def _attach_point(self, point: AttachPoint, pid: int) -> None:
        what = f"{point.function} in {point.path}"
        if self._modern:
            for program, offsets, on_return in modern_probes(point):
                for offset in offsets:
                    self._attach_one(program, point, offset, pid, on_return=on_return, what=what)
            return
        if not works_bounded(point):
            raise AttachError(f"{what}: following it needs Linux 5.17")
        if isinstance(point.kind, CallKind):
            self._attach_one("leave_bounded", point, point.file_offset, pid, on_return=True, what=what)
        entry = entry_program(point.kind, point.count_arg)
        self._attach_one(entry, point, point.file_offset, pid, on_return=False, what=what)

    def _attach_multi(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]] | None:
        """One link for all functions of a file with the same program: above all, one to wait for at the end.

        None when this kernel has no such links, which the first one shows.
        """
        groups: dict[tuple[bool, str], list[tuple[int, int]]] = {}
        for point in points:
            for program, offsets, on_return in modern_probes(point):
                groups.setdefault((on_return, program), []).extend((offset, cookie(point)) for offset in offsets)
        links: list[int] = []
        for (on_return, program), places in sorted(groups.items(), key=lambda group: _attach_order(group[0][1])):
            try:
                fd = self._multi_link(program, points[0].path, places, pid, on_return=on_return)
            except AttachError as error:
                self._close_links(links)
                return [(point, f"{point.function} in {point.path}: {error}") for point in points]
            if fd >= 0:
                links.append(fd)
                continue
            number = -fd
            if number == errno.EINVAL and not self._multi_links and not links:
                self._multi = False
                return None
            self._close_links(links)
            if number in (errno.EPERM, errno.EACCES):
                raise PrivilegeError(f"not allowed to attach probes to {points[0].path}", hint="run as root")
            if len(points) > 1:  # find out which: one by one, each with its return
                return [failure for point in points for failure in self._attach_multi([point], pid) or []]
            return [(points[0], f"{points[0].function} in {points[0].path}: {os.strerror(number)}")]
        self._multi_links += links
        return []

    def _multi_link(
        self, program: str, path: str, places: Sequence[tuple[int, int]], pid: int, *, on_return: bool
    ) -> int:
        """Attach a program at offsets, each with its cookie.  Returns the link's descriptor, or a negative errno."""
        count = len(places)
        offsets = (ctypes.c_uint64 * count)(*(offset for offset, _ in places))
        cookies = (ctypes.c_uint64 * count)(*(told for _, told in places))
        name = ctypes.create_string_buffer(os.fsencode(path))
        request = _MultiLink(
            prog_fd=self._lib.bpf_program__fd(self._program(program)),
            attach_type=BPF_TRACE_UPROBE_MULTI,
            path=ctypes.addressof(name),
            offsets=ctypes.addressof(offsets),
            cookies=ctypes.addressof(cookies),
            cnt=count,
            multi_flags=BPF_F_UPROBE_MULTI_RETURN if on_return else 0,
            pid=max(pid, 0),
        )
        fd = self._syscall(SYS_BPF[platform.machine()], BPF_LINK_CREATE, ctypes.byref(request), ctypes.sizeof(request))
        return int(fd) if fd >= 0 else -ctypes.get_errno()

    def _attach_one(
        self, program: str, point: AttachPoint, offset: int, pid: int, *, on_return: bool, what: str
    ) -> None:
        options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, cookie(point) if self._modern else 0, on_return)
        self._keep_link(
            self._lib.bpf_program__attach_uprobe_opts(
                self._program(program), pid, os.fsencode(point.path), offset, ctypes.byref(options)
            ),
            what,
        )

    def detach(self) -> None:
        for pid in list(self._process_links):
            self.detach_process(pid)
        self._close_links(self._multi_links)
        while self._closing:
            self._closing.pop().join()
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
        while self._on_demand:
            self._lib.bpf_object__close(self._on_demand.popitem()[1])
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = 0


def _attach_order(program: str) -> int:
    """What runs at a return comes first, see `modern_probes`; but where time presses, what is handed out counts most."""
    return 0 if program == "enter_bio" else 1 if program.startswith("leave_") else 2


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
