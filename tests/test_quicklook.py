"""The quick look at files: everything it refuses holds no TLS functions, and whatever a file says, it ends."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import struct
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live.go_programs import go_programs

from tlscap.errors import CaptureError
from tlscap.live import quicklook, signatures
from tlscap.live.catalogue import FLAVORS, MARKERS
from tlscap.live.quicklook import may_hold_tls
from tlscap.live.sites import Resolver
from tlscap.live.targets import system_libraries

STRTAB, SYMTAB, DYNSYM, NOBITS, PROGBITS = 3, 2, 11, 8, 1
Section = tuple[str, int, bytes, int]
"""Name, type, content, and the section that it leads to, counted from 1."""


def elf(*sections: Section, order: bytes = b"\2\1", entry_size: int = 64, **header: int) -> bytes:
    """Return a file of these sections, and one with their names behind them."""
    names = b"\0"
    placed: list[tuple[int, int, bytes, int]] = []
    for name, kind, content, link in [*sections, (".shstrtab", STRTAB, b"", 0)]:
        placed.append((len(names), kind, content, link))
        names += name.encode() + b"\0"
    placed[-1] = (placed[-1][0], STRTAB, names, 0)
    contents, table, at = b"", bytes(64), 64
    for name_at, kind, content, link in placed:
        table += struct.pack("<IIQQQQIIQQ", name_at, kind, 0, 0, at + len(contents), len(content), link, 0, 1, 0)
        contents += content
    values = {"at": at + len(contents), "count": len(placed) + 1, "names": len(placed)} | header
    head = struct.pack(
        "<4s2s10xHHIQQQIHHHHHH",
        b"\x7fELF", order, 3, 62, 1, 0, 0, values["at"], 0, 64, 56, 0, entry_size, values["count"], values["names"],
    )  # fmt: skip
    return head + contents + table


def symbols(*names: str, section: int = 1) -> tuple[bytes, bytes]:
    """Return a symbol table and its names."""
    text, table = b"\0", bytes(24)
    for name in names:
        table += struct.pack("<IBBHQQ", len(text), 0x12, 0, section, 0x1000, 9)
        text += name.encode() + b"\0"
    return table, text


def with_symbols(*names: str, section: int = 1, kind: int = DYNSYM) -> bytes:
    table, text = symbols(*names, section=section)
    return elf((".symbols", kind, table, 2), (".strings", STRTAB, text, 0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def looks(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    return may_hold_tls(str(path))


# --- Names ---


@pytest.mark.parametrize("kind", [SYMTAB, DYNSYM])
@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_defined(path: Path, marker: str, kind: int) -> None:
    """One function of a TLS library is enough, in either symbol table, wherever it stands."""
    assert looks(path, with_symbols(marker, kind=kind))
    assert looks(path, with_symbols("main", "x" * 300, marker, "free", kind=kind))


@pytest.mark.parametrize("marker", sorted(MARKERS))
def test_imported(path: Path, marker: str) -> None:
    """A program that only uses a TLS library is none."""
    assert not looks(path, with_symbols("main", marker, section=0))


def test_imported_and_defined(path: Path) -> None:
    """What a file uses says nothing of what it defines, and a name that it defines twice is found behind the first."""
    imported, text = symbols("SSL_write", section=0)
    defined, _ = symbols("SSL_write", section=5)
    assert looks(path, elf((".a", DYNSYM, imported + defined[24:], 2), (".b", STRTAB, text, 0)))
    assert looks(path, elf((".a", DYNSYM, imported, 3), (".b", SYMTAB, defined, 3), (".c", STRTAB, text, 0))), (
        "a static table besides the dynamic one"
    )


@pytest.mark.parametrize("name", ["SSL_writer", "xSSL_write", "SSL_writ", "ssl_write", "SSL_write_ex2_", ""])
def test_other_names(path: Path, name: str) -> None:
    """Parts of names are not the names."""
    assert not looks(path, with_symbols(name))


def test_name_without_a_symbol(path: Path) -> None:
    """A name that stands in the table of names, or elsewhere, but that no symbol has, is not enough."""
    table, text = symbols("main")
    assert not looks(path, elf((".a", DYNSYM, table, 2), (".b", STRTAB, text + b"SSL_write\0", 0)))
    assert not looks(
        path, elf((".rodata", PROGBITS, b"\0SSL_write\0", 0), (".a", DYNSYM, table, 3), (".b", STRTAB, text, 0))
    )
    # The place of the name as a number, but not at the place in an entry where names are.
    number = struct.pack("<I", len(text))
    table += struct.pack("<IBBHQQ", 1, 0x12, 0, 1, int.from_bytes(number, "little"), 9)
    assert not looks(path, elf((".a", DYNSYM, table, 2), (".b", STRTAB, text + b"SSL_write\0", 0)))


@pytest.mark.parametrize("name", [".gopclntab", ".go.buildinfo", ".note.go.buildid", ".data.rel.ro.gopclntab"])
def test_go(path: Path, name: str) -> None:
    """A Go program has no such names, but sections of its own."""
    assert looks(path, elf((name, PROGBITS, bytes(100), 0)))
    assert not looks(path, elf((name + "x", PROGBITS, bytes(100), 0)))
    assert not looks(path, elf((name[:-1], PROGBITS, bytes(100), 0)))
    assert not looks(path, elf((".text", PROGBITS, name.encode() + b"\0", 0)))


@pytest.mark.parametrize("flavor", FLAVORS, ids=lambda flavor: flavor.name)
def test_every_flavor_is_seen(path: Path, flavor: object) -> None:
    """Whatever has the names that a flavor needs gets past the quick look."""
    assert looks(path, with_symbols(*(group[-1] for group in flavor.needs)))  # type: ignore[attr-defined]


# --- Real files ---


def test_compiled(tmp_path: Path) -> None:
    """What compilers and strip make: a library, a program that uses it, the same without names."""
    if shutil.which("gcc") is None or shutil.which("strip") is None:
        pytest.skip("gcc or strip is not installed")
    library, user, static = tmp_path / "libx.so", tmp_path / "user", tmp_path / "static"
    functions = "int wolfSSL_read(void){return 1;} int wolfSSL_write(void){return 2;}"
    use = "int wolfSSL_write(void); int main(void){return wolfSSL_write();}"
    builds: list[tuple[str, list[str | Path]]] = [
        (functions, ["-shared", "-fPIC", "-o", library]),
        (use, ["-o", user, library]),
        (functions + use, ["-o", static]),
    ]
    for text, options in builds:
        command: list[str | Path] = ["gcc", "-x", "c", "-", "-x", "none", *options]
        subprocess.run(command, input=text.encode(), check=True)
    assert may_hold_tls(str(library))
    assert not may_hold_tls(str(user))
    assert may_hold_tls(str(static))
    for path in (library, user, static):
        subprocess.run(["strip", "--strip-all", path], check=True)
    assert may_hold_tls(str(library)), "what it exports stays"
    assert not may_hold_tls(str(user))
    assert not may_hold_tls(str(static)), "no names are left"


def test_agrees_with_the_resolver() -> None:
    """No file of this machine that has TLS functions is overlooked."""
    resolver = Resolver()
    files = [*system_libraries(".*(?:ssl|tls|crypto|nss|gnu|curl|grpc).*"), "/bin/true", "/bin/bash"]
    for path in files:
        with contextlib.suppress(CaptureError):
            if resolver.resolve(path).points:
                assert may_hold_tls(path), path
    assert any(may_hold_tls(path) for path in files) or not system_libraries()
    assert not may_hold_tls("/bin/true")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs are made for x86-64")
def test_go_programs() -> None:
    """Real Go programs, with names and without."""
    for program in go_programs():
        assert program.path is None or may_hold_tls(str(program.path)), program


# --- Files that are something else ---


def test_not_elf(path: Path, tmp_path: Path) -> None:
    """No file, a folder, a device, a text, and what is too short."""
    whole = with_symbols("SSL_write")
    for content in (b"", b"\x7fELF", b"text" + whole[4:], whole[:63], whole[:64], b"\x7fELF" + bytes(5000)):
        assert not looks(path, content)
    for other in (tmp_path, tmp_path / "nothing", Path("/dev/null"), Path("/proc/self/maps")):
        assert not may_hold_tls(str(other))
    os.mkfifo(tmp_path / "pipe")
    path.write_bytes(whole)
    path.chmod(0)
    assert may_hold_tls(str(path)) == (os.geteuid() == 0)


def test_other_machines(path: Path) -> None:
    """32 bits and the other byte order are refused: their tables are others."""
    table, text = symbols("SSL_write")
    sections: tuple[Section, ...] = ((".a", DYNSYM, table, 2), (".b", STRTAB, text, 0))
    assert looks(path, elf(*sections))
    assert not looks(path, elf(*sections, order=b"\1\1"))
    assert not looks(path, elf(*sections, order=b"\2\2"))
    assert not looks(path, elf(*sections, entry_size=40))


@pytest.mark.parametrize(
    "header",
    [
        {"at": (1 << 64) - 1},
        {"at": 1 << 63},
        {"at": (1 << 63) - 1},
        {"at": 0},
        {"at": 1 << 40},
        {"count": 0},
        {"count": 0xFFFF},
        {"names": 0xFFFF},
        {"names": 0},
    ],
    ids=str,
)
def test_headers_that_lie(path: Path, header: dict[str, Any]) -> None:
    """Tables that lie outside of the file are as good as none."""
    table, text = symbols("main")
    looks(path, elf((".a", DYNSYM, table, 2), (".b", STRTAB, text, 0), **header))


@pytest.mark.parametrize("value", [0xFF, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("field", [24, 32], ids=["offset", "size"])
@pytest.mark.parametrize("section", [1, 2, 3])
def test_sections_that_lie(path: Path, section: int, field: int, value: int) -> None:
    """A section outside of the file, of names too, is empty."""
    raw = bytearray(with_symbols("SSL_write"))
    at = int.from_bytes(raw[40:48], "little") + 64 * section
    struct.pack_into("<Q", raw, at + field, value)
    assert not looks(path, bytes(raw)) or section == 3 or value == 0xFF


def test_truncated(path: Path) -> None:
    """A file that is cut anywhere has nothing: its table of sections is at the end."""
    whole = with_symbols("SSL_write")
    assert looks(path, whole)
    assert not any(looks(path, whole[:size]) for size in range(len(whole)))


def test_many_tables(path: Path) -> None:
    """Thousands of symbol tables that all hold the whole file cost no more than one."""
    raw = bytearray(elf((".a", DYNSYM, bytes(4 << 20), 2), (".b", STRTAB, b"\0SSL_write\0" * 100, 0)))
    at = int.from_bytes(raw[40:48], "little")
    first = raw[at + 64 : at + 128]
    raw += bytes(64)
    struct.pack_into("<Q", raw, 40, len(raw))
    raw += bytes(raw[at : at + 256]) + first * 60_000
    struct.pack_into("<H", raw, 60, 60_000)
    began = time.monotonic()
    assert not looks(path, bytes(raw))
    assert time.monotonic() - began < 5


def test_long_section_names(path: Path) -> None:
    """Names of sections without an end are not looked at to the end of the file."""
    raw = bytearray(elf(*((f"s{index}", PROGBITS, b"", 0) for index in range(3000))))
    end = int.from_bytes(raw[40:48], "little")
    names = raw.index(b"\0s0\0")
    raw[names:end] = b"x" * (end - names)
    raw += b"x" * (16 << 20)
    began = time.monotonic()
    tracemalloc.start()
    try:
        assert not looks(path, bytes(raw))
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5


SMALL = with_symbols("main", "SSL_write")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SMALL) - 8),
            st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f"]) | st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_damaged(path: Path, changes: list[tuple[int, bytes]]) -> None:
    """Whatever a file says of itself, there is an answer."""
    raw = bytearray(SMALL)
    for at, value in changes:
        raw[at : at + len(value)] = value
    assert looks(path, bytes(raw)) in (True, False)


def test_marks() -> None:
    """The strings searched for are those that the built-in signatures go by."""
    assert signatures.marks() == quicklook.MARKS
