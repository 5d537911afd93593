"""Probe sites in ELF files that imitate OpenSSL's shape, made by gcc here; and files that are no such thing."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlscap.errors import AttachError, CaptureError, TargetError, UnsupportedError
from tlscap.live.catalogue import GNUTLS, MBEDTLS, NSS, WOLFSSL, Flavor
from tlscap.live.loader import AttachPoint, CallKind, LifeKind, ResolvedLibrary
from tlscap.live.sites import Image, Resolver
from tlscap.live.targets import system_libraries

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the sources are x86-64 assembly"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]

MARKS = {"read_internal": 0x1EAD1EAD, "write_internal": 0x31173117}
"""A number in the code of each internal function: where these bytes lie in the file, the function does."""
PUSH = bytes([0x53])
ENDBR = bytes([0xF3, 0x0F, 0x1E, 0xFA])


def internal(name: str, *entry: str) -> str:
    """Return an internal function that begins with these instructions."""
    lines = "\n".join(f"    {line}" for line in entry)
    return f".type {name}, @function\n{name}:\n{lines}\n    mov eax, {MARKS[name]:#x}\n    pop rbx\n    ret\n"


def exported(name: str, *body: str, section: str = "") -> str:
    """Return an exported function."""
    lines = "\n".join(f"    {line}" for line in body)
    place = f"{section}\n" if section else ""
    return f"{place}.globl {name}\n.type {name}, @function\n{name}:\n{lines}\n    ret\n.size {name}, .-{name}\n"


def calls(target: str, *before: str) -> tuple[str, ...]:
    return ("sub rsp, 24", *before, f"call {target}", "add rsp, 24")


def source(
    *,
    entry: tuple[str, ...] = ("push rbx",),
    read_count: str = "lea rcx, [rsp+8]",
    write_count: str = "lea r8, [rsp+8]",
    read_target: str = "read_internal",
    write_target: str = "write_internal",
    prologue: tuple[str, ...] = (),
    others: tuple[str, ...] = ("SSL_free", "SSL_do_handshake", "SSL_shutdown"),
) -> str:
    """Return a library of OpenSSL's shape: SSL_read and SSL_read_ex lead into one function, the writing ones in another."""
    return "\n".join(
        [
            ".intel_syntax noprefix",
            '.section .note.GNU-stack,"",@progbits',
            ".text",
            internal("read_internal", *entry),
            internal("write_internal", *entry),
            exported("SSL_read", *prologue, *calls(read_target, read_count)),
            exported("SSL_read_ex", *prologue, *calls("read_internal")),
            exported("SSL_write", *prologue, *calls(write_target, "xor ecx, ecx", write_count)),
            exported("SSL_write_ex2", *prologue, *calls("write_internal")),
            exported("SSL_write_ex", *prologue, *calls("write_internal", "xor ecx, ecx")),
            *(exported(name, *prologue, "push rbx", "pop rbx") for name in others),
        ]
    )


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return a function that compiles a source; the same source and flags are compiled once."""
    folder = tmp_path_factory.mktemp("elf")
    made: dict[tuple[str, ...], Path] = {}

    def build(text: str | None = None, *flags: str, shared: bool = True) -> Path:
        text = source() if text is None else text
        key = (text, *flags, str(shared))
        if key not in made:
            path = folder / f"lib{len(made)}.so"
            kind = ["-shared"] if shared else ["-static", "-Wl,-e,SSL_read"]
            command: list[str | Path] = [
                "gcc",
                "-nostdlib",
                *kind,
                "-Wl,--build-id=0x00c0ffee",
                *flags,
                "-o",
                path,
                "-x",
                "assembler",
                "-",
            ]
            subprocess.run(command, input=text.encode(), check=True, capture_output=True)
            made[key] = path
        return made[key]

    return build


@pytest.fixture(scope="module")
def resolver() -> Resolver:
    return Resolver()


def by_name(library: ResolvedLibrary) -> dict[str, AttachPoint]:
    return {point.function: point for point in library.points}


def segments(path: Path) -> list[tuple[int, int, int, int]]:
    """Return vaddr, offset, size and flags of what is loaded, as an independent reader of the file."""
    with path.open("rb") as file:
        return [
            (part["p_vaddr"], part["p_offset"], part["p_filesz"], part["p_flags"])
            for part in ELFFile(file).iter_segments("PT_LOAD")
        ]


def check_places(path: Path, library: ResolvedLibrary) -> None:
    """Every point lies in an executable segment, and its two addresses are the same place."""
    for point in library.points:
        (found,) = [part for part in segments(path) if part[0] <= point.vaddr < part[0] + part[2]]
        vaddr, offset, _, flags = found
        assert flags & 1
        assert point.file_offset == point.vaddr - vaddr + offset
        assert point.path == str(path)


# --- Funnels ---


@pytest.mark.parametrize(
    ("read_count", "write_count", "arguments"),
    [
        ("lea rcx, [rsp+8]", "lea r8, [rsp+8]", (4, 5)),
        ("lea rcx, [rsp+8]", "lea rcx, [rsp+16]", (4, 4)),
        ("mov rcx, rsp", "mov r8, rsp", (4, 5)),
    ],
)
def test_funnels(
    build: Build, resolver: Resolver, read_count: str, write_count: str, arguments: tuple[int, int]
) -> None:
    """The function that the exported ones lead to is taken, and which argument points to the count is read off its caller."""
    path = build(source(read_count=read_count, write_count=write_count))
    library = resolver.resolve(str(path))
    points = by_name(library)
    assert library.notes == ()
    assert (library.flavor, library.build_id) == ("openssl", "00c0ffee")
    raw = path.read_bytes()
    for name, mark, count_arg in zip(("read", "write"), MARKS.values(), arguments, strict=True):
        point = points[f"ssl_{name}_internal"]
        assert point.count_arg == count_arg
        assert raw[point.file_offset :].startswith(PUSH + b"\xb8" + struct.pack("<I", mark))
        assert point.site == f"ssl_{name}_internal+0 push, emulated"
    assert points["ssl_read_internal"].kind is CallKind.READ_INNER
    assert points["ssl_write_internal"].kind is CallKind.WRITE_INNER
    assert points["SSL_free"].kind is LifeKind.FREE
    assert not set(points) & {"SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_write_ex2"}
    check_places(path, library)


@pytest.mark.parametrize(
    "flags",
    [
        ["-Wl,-z,separate-code"],
        ["-Wl,-z,noseparate-code"],
        ["-Wl,--section-start=.text=0x410000"],
        ["-Wl,-Ttext-segment=0x7000000"],
        ["-Wl,-z,max-page-size=0x200000"],
        ["-Wl,-N"],
    ],
    ids=lambda flags: flags[0],
)
def test_offsets(build: Build, resolver: Resolver, flags: list[str]) -> None:
    """However the file is linked, both addresses of a point name the same instruction."""
    path = build(None, *flags)
    library = resolver.resolve(str(path))
    check_places(path, library)
    raw = path.read_bytes()
    point = by_name(library)["ssl_read_internal"]
    assert raw[point.file_offset :].startswith(PUSH + b"\xb8" + struct.pack("<I", MARKS["read_internal"]))
    if "0x410000" in flags[0] or "0x7000000" in flags[0]:
        assert point.file_offset != point.vaddr


def test_endbr64(build: Build, resolver: Resolver) -> None:
    """The landing pad of indirect branches is stepped over, also in exported functions."""
    path = build(source(entry=("endbr64", "push rbx"), prologue=("endbr64",)))
    library = resolver.resolve(str(path))
    raw = path.read_bytes()
    for point in library.points:
        assert point.site.endswith("+4 push, emulated")
        assert raw[point.file_offset - 4 : point.file_offset + 1] == ENDBR + PUSH
    assert "ssl_write_internal" in by_name(library)
    check_places(path, library)


def test_endbr64_before_something_slow(build: Build, resolver: Resolver) -> None:
    """Where nothing is won behind the landing pad, the probe stays at the function's first byte."""
    path = build(source(read_target="write_internal", prologue=("endbr64",)))
    point = by_name(resolver.resolve(str(path)))["SSL_read"]
    assert point.site == "SSL_read+0 endbr64, single-stepped"


def test_compiled_from_c(resolver: Resolver, tmp_path: Path) -> None:
    """What gcc makes of C with control-flow protection has the same shape."""
    path = tmp_path / "lib.so"
    text = """
    typedef unsigned long size_t;
    static volatile int sink[4];
    __attribute__((noinline, noclone, visibility("hidden")))
    int read_internal(void *s, void *buf, size_t num, size_t *count) {
        void (*volatile call)(void *) = 0;
        int kept = sink[0];
        if (call) { call(s); call(buf); call(count); }
        *count = num; return kept + sink[1];
    }
    int SSL_read(void *s, void *buf, int num) {
        size_t count; int ret;
        if (num < 0) return -1;
        ret = read_internal(s, buf, (size_t)num, &count);
        return ret > 0 ? (int)count : ret;
    }
    int SSL_read_ex(void *s, void *buf, size_t num, size_t *count) {
        int ret = read_internal(s, buf, num, count); return ret < 0 ? 0 : ret;
    }
    int SSL_write(void *s, const void *buf, int num) { return sink[2] + num; }
    """
    flags = ["-O2", "-fPIC", "-fcf-protection=full", "-fno-stack-protector", "-shared", "-nostdlib"]
    subprocess.run(["gcc", *flags, "-x", "c", "-", "-o", path], input=text.encode(), check=True)
    library = resolver.resolve(str(path))
    points = by_name(library)
    assert points["ssl_read_internal"].count_arg == 4
    assert "emulated" in points["ssl_read_internal"].site
    assert "SSL_write" in points
    assert len(library.notes) == 1
    check_places(path, library)


# --- No funnel: the exported functions ---


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"read_target": "write_internal"}, "SSL_read_ex calls 0x"),
        ({"read_count": "xor ecx, ecx"}, "SSL_read passes no address of a count"),
        ({"read_target": "[rip+read_internal]"}, "SSL_read calls through a pointer"),
        ({"entry": ("sub rsp, 8", "push rbx")}, "can't emulate (ssl_read_internal+0 sub"),
        ({"entry": ("endbr64", "mov rdi, rax", "push rbx")}, "can't emulate (ssl_read_internal+0 endbr64"),
    ],
)
def test_no_funnel(build: Build, resolver: Resolver, changes: dict[str, str], reason: str) -> None:
    """Without proof of an internal function, or with a slow one, the exported functions are taken and a note says why."""
    path = build(source(**changes))  # type: ignore[arg-type]
    library = resolver.resolve(str(path))
    points = by_name(library)
    assert "ssl_read_internal" not in points
    assert (points["SSL_read"].kind, points["SSL_read"].count_arg) == (CallKind.READ, 0)
    assert (points["SSL_read_ex"].kind, points["SSL_read_ex"].count_arg) == (CallKind.READ_EX, 4)
    (note,) = [note for note in library.notes if note.startswith("ssl_read_internal: ")]
    assert reason in note
    assert note.endswith("the exported functions are probed instead")
    check_places(path, library)


def test_wrapper_is_not_probed_twice(build: Build, resolver: Resolver) -> None:
    """SSL_write_ex only calls SSL_write_ex2 where that exists: one of them is enough."""
    points = by_name(resolver.resolve(str(build(source(write_target="read_internal")))))
    assert {"SSL_write", "SSL_write_ex2"} <= set(points)
    assert "SSL_write_ex" not in points


def test_only_the_old_functions(build: Build, resolver: Resolver) -> None:
    """A library of SSL_read and SSL_write alone is enough; the notes name what is missing."""
    text = ".intel_syntax noprefix\n.text\n" + "".join(
        exported(name, "push rbx", "nop", "pop rbx") for name in ("SSL_read", "SSL_write")
    )
    library = resolver.resolve(str(build(text)))
    assert set(by_name(library)) == {"SSL_read", "SSL_write"}
    assert all("is missing" in note for note in library.notes)


# --- Symbols ---


def test_stripped(build: Build, resolver: Resolver, tmp_path: Path) -> None:
    """A stripped library has its exported functions in .dynsym: nothing changes."""
    path = tmp_path / "stripped.so"
    subprocess.run(["strip", "--strip-all", build(), "-o", path], check=True)
    points = by_name(resolver.resolve(str(path)))
    expected = by_name(resolver.resolve(str(build())))
    assert {name: point.vaddr for name, point in points.items()} == {
        name: point.vaddr for name, point in expected.items()
    }


def test_static(build: Build, resolver: Resolver) -> None:
    """A static program has its functions in .symtab only."""
    path = build(None, shared=False)
    with path.open("rb") as file:
        assert ELFFile(file).get_section_by_name(".dynsym") is None
    library = resolver.resolve(str(path))
    assert by_name(library)["ssl_read_internal"].count_arg == 4
    check_places(path, library)


def test_no_symbols(build: Build, resolver: Resolver, tmp_path: Path) -> None:
    """A stripped static program has no names at all; the error says how to go on by address."""
    path = tmp_path / "stripped"
    subprocess.run(["strip", "--strip-all", build(None, shared=False), "-o", path], check=True)
    with pytest.raises(TargetError, match="no TLS functions") as caught:
        resolver.resolve(str(path))
    assert "--probe" in caught.value.hint


def test_other_library(build: Build, resolver: Resolver) -> None:
    """A library without TLS functions, or with half of them, is refused."""
    for names in (("other",), ("SSL_read", "SSL_read_ex"), ("SSL_reader", "SSL_writer", "xSSL_read", "xSSL_write")):
        text = ".intel_syntax noprefix\n.text\n" + "".join(exported(name, "nop") for name in names)
        with pytest.raises(TargetError, match="no TLS functions"):
            resolver.resolve(str(build(text)))


def test_undefined_symbols(build: Build, resolver: Resolver) -> None:
    """A program that only uses the functions doesn't define them."""
    text = ".intel_syntax noprefix\n.text\n" + exported("main", "call SSL_read@PLT", "call SSL_write@PLT")
    with pytest.raises(TargetError, match="no TLS functions"):
        resolver.resolve(str(build(text)))


def test_merged_names(build: Build, resolver: Resolver) -> None:
    """Linkers store a name inside a longer one that ends with it: it is found all the same."""
    text = source() + exported("my_own_SSL_read", "nop") + exported("xSSL_free", "nop")
    points = by_name(resolver.resolve(str(build(text))))
    assert {"ssl_read_internal", "SSL_free"} <= set(points)


def test_functions_in_data(build: Build, resolver: Resolver) -> None:
    """A symbol outside the executable segments is refused, whatever it calls itself: nothing is ever probed there."""
    text = source().replace(
        exported("SSL_free", "push rbx", "pop rbx"), exported("SSL_free", "push rbx", section=".data") + ".text\n"
    )
    path = build(text)
    library = resolver.resolve(str(path))
    assert "SSL_free" not in by_name(library)
    assert any("not inside an executable segment" in note for note in library.notes)
    with pytest.raises(AttachError, match="not inside an executable segment"):
        resolver.resolve_one("SSL_free", str(path), None)
    all_data = ".intel_syntax noprefix\n" + "".join(
        exported(name, "push rbx", section=".data") for name in ("SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex")
    )
    assert resolver.resolve(str(build(all_data))).points == ()


def test_not_code(build: Build, resolver: Resolver) -> None:
    """A function whose first bytes are no instruction is refused."""
    text = source(others=()) + exported("SSL_free", ".byte 0x06, 0x06, 0x06, 0x06")
    library = resolver.resolve(str(build(text)))
    assert "SSL_free" not in by_name(library)
    assert any("SSL_free" in note and "no instruction" in note for note in library.notes)


# --- Other libraries ---


def functions_named(*names: str) -> str:
    return ".intel_syntax noprefix\n.text\n" + "".join(exported(name, "push rbx", "nop", "pop rbx") for name in names)


BORING = ("SSL_read", "SSL_write", "SSL_CTX_set_grease_enabled", "SSL_free", "SSL_set_tlsext_host_name", "SSL_ctrl")


def test_gnutls(build: Build, resolver: Resolver) -> None:
    """Every function of the table that the file has, with its meaning and its arguments."""
    names = [row.name for row in GNUTLS.functions]
    library = resolver.resolve(str(build(functions_named(*names))))
    points = by_name(library)
    assert library.flavor == "gnutls"
    # gnutls_record_send only calls gnutls_record_send2 where that exists.
    assert set(points) == set(names) - {"gnutls_record_send"}
    assert points["gnutls_record_recv"].kind is CallKind.READ
    assert points["gnutls_handshake"].kind is CallKind.HANDSHAKE_ZERO
    assert points["gnutls_record_uncork"].kind is CallKind.FLUSH
    name = points["gnutls_server_name_set"]
    assert (name.kind, name.count_arg, name.length_arg) == (LifeKind.NAME, 3, 4)
    pull = points["gnutls_transport_set_pull_function"]
    assert (pull.kind, pull.count_arg, pull.length_arg) == (LifeKind.CALLBACKS, 0, 2)
    old = by_name(resolver.resolve(str(build(functions_named("gnutls_record_send", "gnutls_record_recv")))))
    assert set(old) == {"gnutls_record_send", "gnutls_record_recv"}


@pytest.mark.parametrize("flavor", [WOLFSSL, MBEDTLS], ids=lambda flavor: flavor.name)
def test_flavors_of_exported_functions(build: Build, resolver: Resolver, flavor: Flavor) -> None:
    """Every row becomes a point, also two of one function: what it is called for, and what it returns."""
    names = dict.fromkeys(row.name for row in flavor.functions)
    library = resolver.resolve(str(build(functions_named(*names))))
    assert library.flavor == flavor.name
    assert sorted(
        (point.function, str(point.kind), point.count_arg, point.length_arg) for point in library.points
    ) == sorted((row.name, str(row.kind), row.count_arg, row.length_arg) for row in flavor.functions)


@pytest.mark.parametrize("missing", ["needs", "half"])
@pytest.mark.parametrize("flavor", [GNUTLS, WOLFSSL, MBEDTLS, NSS], ids=lambda flavor: flavor.name)
def test_half_a_library(build: Build, resolver: Resolver, flavor: Flavor, missing: str) -> None:
    """A file that lacks what a flavor needs is not of it."""
    needed = {group[0] for group in flavor.needs}
    names = {row.name for row in flavor.functions} | needed
    names -= needed if missing == "needs" else {flavor.needs[-1][0]}
    with pytest.raises(TargetError, match="no TLS functions"):
        resolver.resolve(str(build(functions_named(*sorted(names)))))


def test_boringssl_is_preferred(build: Build, resolver: Resolver) -> None:
    """It has OpenSSL's names, and some that OpenSSL has not: it is probed as what it is, once."""
    library = resolver.resolve(str(build(functions_named(*BORING))))
    assert library.flavor == "boringssl"
    points = by_name(library)
    assert len(points) == len(library.points)
    assert points["SSL_set_tlsext_host_name"].kind is LifeKind.NAME
    assert "SSL_ctrl" not in points
    assert library.notes == (), "internal functions are not looked for"
    without = [name for name in BORING if "grease" not in name]
    assert resolver.resolve(str(build(functions_named(*without)))).flavor == "openssl"


def test_two_flavors_in_one_file(build: Build, resolver: Resolver) -> None:
    """A program may hold several libraries: all of them are probed."""
    names = [*BORING, "wolfSSL_read", "wolfSSL_write", "gnutls_record_send", "gnutls_record_recv"]
    library = resolver.resolve(str(build(functions_named(*names))))
    assert library.flavor == "boringssl+gnutls+wolfssl"
    kinds = {point.function: point.kind for point in library.points}
    assert kinds["SSL_read"] is kinds["wolfSSL_read"] is kinds["gnutls_record_recv"] is CallKind.READ
    assert library.build_id == "00c0ffee"


def test_two_flavors_and_their_notes(build: Build, resolver: Resolver) -> None:
    """What went wrong with one is said, and does not keep the other from being probed."""
    text = source(read_target="write_internal", others=("wolfSSL_read",)) + exported(
        "wolfSSL_write", "push rbx", section=".data"
    )
    library = resolver.resolve(str(build(text)))
    assert library.flavor == "openssl+wolfssl"
    assert "wolfSSL_read" in by_name(library)
    assert library.notes[0].startswith("ssl_read_internal: ")
    assert any("not inside an executable segment" in note for note in library.notes)


NSS_SOURCE = """
typedef struct { int type; void (*f[20])(void); } Methods;
const Methods *usual(void);
static Methods table;
#define F(n) __attribute__((noinline)) static void f##n(void) { static volatile int x; x += n; }
F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19)
int SSL_ForceHandshake(void *fd) { return fd != 0; }
int SSL_SetURL(void *fd, const char *name) { return fd != name; }
void *SSL_ImportFD(void *model, void *fd) {
    table = *usual(); table.type = %d;
    void (*all[])(void) = { f0, f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15, f16, f17, f18, f19 };
#pragma GCC unroll 20
    for (int i = 0; i < 20; i++) table.f[i] = all[i];
    return &table;
}
"""


@pytest.mark.parametrize("first", [4, 5])
def test_nss(resolver: Resolver, tmp_path: Path, first: int) -> None:
    """Its data functions have no names: they are found in the structure that the library fills, or it is said that they aren't."""
    path = tmp_path / "lib.so"
    command: list[str | Path] = ["gcc", "-O2", "-fPIC", "-shared", "-x", "c", "-", "-o", path]
    subprocess.run(command, input=(NSS_SOURCE % first).encode(), check=True)
    library = resolver.resolve(str(path))
    points = by_name(library)
    assert library.flavor == "nss"
    assert {"SSL_ForceHandshake", "SSL_SetURL"} <= set(points)
    check_places(path, library)
    if first != 4:
        assert "ssl_Read" not in points
        (note,) = library.notes
        assert "0 structures look like it" in note
        return
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    assert NSS.table is not None
    for place, row in NSS.table.functions:
        point = points[row.name]
        assert point.kind is row.kind
        assert 0 <= point.vaddr - symbols[f"f{place - 1}"] <= 16
    assert library.notes == ()


def test_callback(build: Build, resolver: Resolver) -> None:
    """A function without a name, by its place in the file; elsewhere there is none."""
    path = build()
    free = by_name(resolver.resolve(str(path)))["SSL_free"]
    point = resolver.callback(str(path), free.file_offset, CallKind.BIO_WRITE)
    assert (point.kind, point.vaddr, point.file_offset) == (CallKind.BIO_WRITE, free.vaddr, free.file_offset)
    for offset in (0, 1 << 40, -1):
        with pytest.raises(AttachError, match="not inside an executable segment"):
            resolver.callback(str(path), offset, CallKind.BIO_WRITE)


# --- All functions, without names ---


def unwound(path: Path) -> list[tuple[int, int]]:
    """Return start and end of every function, as readelf reads them from the unwind information."""
    # It complains when the debug information that a file asks for is not installed.
    command: list[str | Path] = ["readelf", "--debug-dump=frames", path]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [(int(start, 16), int(end, 16)) for start, end in re.findall(r" FDE .* pc=([0-9a-f]+)\.\.([0-9a-f]+)", said)]


def check_functions(path: Path) -> None:
    image = Image(str(path))
    found = image.functions()
    known = unwound(path)
    assert [start for start, _ in found] == sorted({start for start, _ in known})
    sizes = dict(found)
    for start, end in known:
        assert sizes[start] >= end - start
    for (start, size), (following, _) in itertools.pairwise(found):
        assert start + size == following
    last, size = found[-1]
    assert image.is_code(last + size - 1)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
@pytest.mark.parametrize("path", [*system_libraries("libc|libnss3|libgnutls"), "/bin/true"])
def test_functions(path: str) -> None:
    """Every function that readelf finds, the last one, too, and where it ends at the latest."""
    check_functions(Path(os.path.realpath(path)))


def test_functions_of_a_linked_file(build: Build, tmp_path: Path) -> None:
    """A file without an unwind table has none; of one whose table is broken, none that can't be."""
    assert Image(str(build())).functions() == []
    path = tmp_path / "lib.so"
    text = "int one(int x){return x;} int two(int x){return one(x)+1;} int three(int x){return two(x)*2;}"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", path], input=text.encode(), check=True
    )
    check_functions(path)
    raw = path.read_bytes()
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".eh_frame_hdr")
        assert section is not None
        at = section["sh_offset"]
    for value in (0, 0xFFFFFFFF):
        path.write_bytes(patched(raw, at + 8, struct.pack("<I", value)))
        assert len(Image(str(path)).functions()) <= 5
    path.write_bytes(patched(raw, at, b"\x01\x1b\x03\x3c"))
    assert Image(str(path)).functions() == []
    path.write_bytes(patched(raw, at + 12, b"\xff\xff\xff\x7f" * 2))
    assert all(size > 0 for _, size in Image(str(path)).functions())


# --- By hand ---


def test_by_hand(build: Build, resolver: Resolver) -> None:
    """One function, by its name in the file or by its address."""
    path = build()
    free = by_name(resolver.resolve(str(path)))["SSL_free"]
    assert resolver.resolve_one("SSL_free", str(path), None).points == (free,)
    (point,) = resolver.resolve_one("SSL_write_ex", str(path), free.vaddr).points
    assert (point.vaddr, point.file_offset, point.count_arg) == (free.vaddr, free.file_offset, 4)


def test_by_hand_errors(build: Build, resolver: Resolver) -> None:
    """Unknown functions, missing ones and addresses outside of the code are refused."""
    path = str(build())
    with pytest.raises(TargetError, match="unknown function") as caught:
        resolver.resolve_one("SSL_reed", path, None)
    assert "SSL_read" in caught.value.hint
    with pytest.raises(TargetError, match="defines no function SSL_clear"):
        resolver.resolve_one("SSL_clear", path, None)
    for vaddr in (0, 1 << 40, (1 << 64) - 1, -1):
        with pytest.raises(AttachError, match="not inside an executable segment"):
            resolver.resolve_one("SSL_read", path, vaddr)


# --- Files that are something else ---


def patched(raw: bytes, offset: int, value: bytes) -> bytes:
    return raw[:offset] + value + raw[offset + len(value) :]


def test_other_machines(build: Build, resolver: Resolver, tmp_path: Path) -> None:
    """Files for another machine, another word size or byte order are refused by what they are."""
    raw = build().read_bytes()
    path = tmp_path / "other.so"
    for content in (
        patched(raw, 18, struct.pack("<H", 183)),  # aarch64
        patched(raw, 18, struct.pack("<H", 0xFFFF)),
        patched(raw, 5, b"\2"),  # big-endian
        patched(raw, 4, b"\1"),  # a 64-bit file that claims to have 32 bits
    ):
        path.write_bytes(content)
        with pytest.raises(UnsupportedError, match=r"other\.so"):
            resolver.resolve(str(path))


def test_32_bits(resolver: Resolver, tmp_path: Path) -> None:
    """A real 32-bit library is refused."""
    path = tmp_path / "lib32.so"
    text = ".globl SSL_read, SSL_write\n.type SSL_read, @function\nSSL_read:\nSSL_write:\n ret\n"
    made = subprocess.run(
        ["gcc", "-m32", "-shared", "-nostdlib", "-x", "assembler", "-", "-o", path], input=text.encode(), check=False
    )
    if made.returncode:
        pytest.skip("this gcc links no 32-bit files")
    with pytest.raises(UnsupportedError, match="32-bit"):
        resolver.resolve(str(path))


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF" + bytes(200), bytes(5000)])
def test_not_elf(resolver: Resolver, tmp_path: Path, content: bytes) -> None:
    """What is no ELF file is `UnsupportedError`."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match="file"):
        resolver.resolve(str(path))


def test_unreadable(resolver: Resolver, tmp_path: Path) -> None:
    """A file that isn't there, or is a folder, is `TargetError`."""
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(TargetError, match=str(path)):
            resolver.resolve(str(path))


def attempt(resolver: Resolver, path: Path, content: bytes) -> None:
    """Resolve a damaged file: points that are proven, or an error of ours."""
    path.write_bytes(content)
    with contextlib.suppress(CaptureError):
        library = resolver.resolve(str(path))
        for point in library.points:
            assert Image(str(path)).file_offset(point.vaddr) == point.file_offset < len(content)
    with contextlib.suppress(CaptureError):
        resolver.resolve_one("SSL_read", str(path), None)


def test_truncated(build: Build, resolver: Resolver, tmp_path: Path) -> None:
    """A file that is cut anywhere gives an error of ours, or what is proven all the same."""
    raw = build(None, "-Wl,-z,noseparate-code").read_bytes()
    for size in [*range(4, 1200, 37), *range(1200, len(raw), 211)]:
        attempt(resolver, tmp_path / "cut.so", raw[:size])


class Content(bytes):
    """Bytes that a failing example does not print."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{len(self)} bytes"


@pytest.fixture(scope="module")
def small(build: Build) -> Content:
    return Content(build(None, "-Wl,-z,noseparate-code").read_bytes())


@pytest.fixture(scope="module")
def places_of_tables(small: Content) -> list[int]:
    """Return offsets of the bytes that say where everything is: headers, sections, symbols."""
    elf = ELFFile(io.BytesIO(small))
    spans = [(0, 64), (elf["e_phoff"], elf["e_phnum"] * 56), (elf["e_shoff"], elf["e_shnum"] * 64)]
    spans += [
        (section["sh_offset"], section["sh_size"])
        for section in elf.iter_sections()
        if section.name in {".dynsym", ".dynstr", ".symtab", ".shstrtab", ".note.gnu.build-id"}
    ]
    return [at for start, size in spans for at in range(start, start + size)]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
def test_damaged(
    small: Content, places_of_tables: list[int], resolver: Resolver, tmp_path: Path, data: st.DataObject
) -> None:
    """With any bytes of its tables replaced, a file gives an error of ours or proven points, and nothing else."""
    raw = bytearray(small)
    changes = st.tuples(
        st.sampled_from(places_of_tables),
        st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff" * 8]) | st.binary(min_size=1, max_size=8),
    )
    for at, value in data.draw(st.lists(changes, min_size=1, max_size=4)):
        raw[at : at + len(value)] = value
    attempt(resolver, tmp_path / "damaged.so", bytes(raw[: len(small)]))


@pytest.mark.parametrize(
    "changes", [{56: 0xFFFF}, {56: 0xFFFF, 54: 0}, {54: 0}, {60: 0}, {60: 0xFFFF}, {60: 0xFFFF, 58: 0}, {58: 0}]
)
def test_headers_that_lie(small: Content, resolver: Resolver, tmp_path: Path, changes: dict[int, int]) -> None:
    """Headers without end, or all in one place, cost no time."""
    raw = bytearray(small)
    struct.pack_into("<I", raw, ELFFile(io.BytesIO(small))["e_shoff"] + 44, 0xFFFFFFFF)  # where PN_XNUM leads
    struct.pack_into("<Q", raw, ELFFile(io.BytesIO(small))["e_shoff"] + 32, 1 << 60)
    for offset, value in changes.items():
        struct.pack_into("<H", raw, offset, value)
    began = time.monotonic()
    attempt(resolver, tmp_path / "liar.so", bytes(raw))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", [".dynstr", ".dynsym", ".symtab", ".strtab", ".shstrtab", ".note.gnu.build-id"])
@pytest.mark.parametrize("kind", ["huge", "nobits", "compressed"])
def test_tables_that_lie(small: Content, resolver: Resolver, tmp_path: Path, name: str, kind: str) -> None:
    """A section that claims terabytes costs neither memory nor time: root reads files of anybody here."""
    elf = ELFFile(io.BytesIO(small))
    index = elf.get_section_index(name)
    assert index is not None
    at = elf["e_shoff"] + 64 * index
    raw = bytearray(small)
    struct.pack_into("<Q", raw, at + 32, 1 << 40)  # sh_size
    if kind == "nobits":
        struct.pack_into("<I", raw, at + 4, 8)
    if kind == "compressed":
        struct.pack_into("<Q", raw, at + 8, 0x800)
    began = time.monotonic()
    tracemalloc.start()
    try:
        attempt(resolver, tmp_path / "liar.so", bytes(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert time.monotonic() - began < 5


# --- The real thing ---


@pytest.mark.parametrize("path", system_libraries("libssl")[:1] or [None])
def test_libssl_of_this_machine(resolver: Resolver, path: str | None) -> None:
    """The machine's own OpenSSL has both funnels, at instructions that the kernel emulates."""
    if path is None:
        pytest.skip("no libssl here")
    library = resolver.resolve(path)
    points = by_name(library)
    assert library.notes == ()
    assert len(library.build_id) >= 16
    for name, kind in (("ssl_read_internal", CallKind.READ_INNER), ("ssl_write_internal", CallKind.WRITE_INNER)):
        assert points[name].kind is kind
        assert points[name].count_arg in (4, 5)
        assert points[name].site.endswith(", emulated")
    assert {"SSL_do_handshake", "SSL_free", "SSL_shutdown", "SSL_set_fd"} <= set(points)
    check_places(Path(path), library)
    assert os.path.getsize(path) > max(point.file_offset for point in library.points)
