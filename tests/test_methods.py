"""Functions in a structure of pointers, by the code that fills it: what gcc makes of C, and one instruction at a time."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlscap.errors import AttachError
from tlscap.live.catalogue import NSS, MethodTable
from tlscap.live.methods import _Stores, find_methods
from tlscap.live.sites import Image, _disassembler

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the sources are x86-64 code"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]

NAMES = ("close_it", "read_it", "write_it", "peek_it", "send_it", "poll_it")
TABLE = MethodTable(name="methods", first=4, length=len(NAMES), functions=())
FUNCTIONS = "".join(
    f"__attribute__((noinline)) void {name}(void) {{ static volatile int x; x += {number}; }}\n"
    for number, name in enumerate(NAMES)
)
STRUCTURE = "typedef struct { int type; void (*f[6])(void); void *more; } Methods; const Methods *usual(void);\n"


def fill(table: str, *names: str) -> str:
    """Return C statements that fill a structure."""
    return f"{table} = *usual(); {table}.type = 4; " + "".join(
        f"{table}.f[{place}] = {name};" for place, name in enumerate(names)
    )


def own(table: str, *names: str) -> str:
    """Return the same without the call."""
    return fill(table, *names).partition(";")[2]


Compile = Callable[..., Image]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Return a function that compiles C, with the functions in front, to a shared object."""

    def compile_it(text: str, *flags: str) -> Image:
        path = tmp_path / "lib.so"
        options = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", *flags]
        source = STRUCTURE + FUNCTIONS + text
        subprocess.run(["gcc", "-x", "c", "-", *options, "-o", path], input=source.encode(), check=True)
        return Image(str(path))

    return compile_it


@pytest.fixture(scope="module")
def disassembler() -> Any:
    return _disassembler()


def addresses(image: Image) -> dict[str, int]:
    return {name: symbol.vaddr for name, symbol in image.symbols(frozenset(NAMES)).items()}


def names_of(image: Image, found: Mapping[int, int]) -> dict[int, str]:
    by_address = {address: name for name, address in addresses(image).items()}
    return {place: by_address[address] for place, address in found.items()}


IN_ORDER = dict(enumerate(NAMES, 1))
OPEN = "static Methods table; void init(void) { %s } void *get(void) { return &table; }"


# --- What gcc makes of it ---


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-march=x86-64-v2",),
        ("-O1",),
        ("-O3",),
        ("-Os",),
        ("-fcf-protection=full",),
        ("-fno-plt",),
        ("-fno-tree-vectorize", "-fno-tree-slp-vectorize"),
    ],
    ids=" ".join,
)
def test_compiled(compiled: Compile, disassembler: Any, flags: tuple[str, ...]) -> None:
    """Vector registers or not: every place of the structure has its function."""
    image = compiled(OPEN % fill("table", *NAMES), *flags)
    assert names_of(image, find_methods(image, TABLE, disassembler)) == IN_ORDER


def test_vectors_are_used(compiled: Compile) -> None:
    """The test above is about what it says: gcc writes two words at a time."""
    image = compiled(OPEN % fill("table", *NAMES))
    cs = _disassembler()
    (code,) = [code for _, code in image.text()]
    mnemonics = {one[2] for one in cs.disasm_lite(code[:4096], 0)}
    assert {"punpcklqdq", "movups"} <= mnemonics


def test_two_structures(compiled: Compile, disassembler: Any) -> None:
    """Which of two would be meant is not known."""
    text = "static Methods table, other; void *get(int i) { return i ? &table : &other; }"
    text += "void init(void) {" + fill("table", *NAMES) + "} void init2(void) {" + fill("other", *reversed(NAMES)) + "}"
    image = compiled(text)
    with pytest.raises(AttachError, match=r"methods in .*: 2 structures look like it"):
        find_methods(image, TABLE, disassembler)


def test_one_function_fills_two(compiled: Compile, disassembler: Any) -> None:
    """The same, where one function does both."""
    text = "static Methods table, other; void *get(int i) { return i ? &table : &other; }"
    text += "void init(void) {" + own("table", *NAMES) + own("other", *reversed(NAMES)) + "}"
    with pytest.raises(AttachError, match="2 structures"):
        find_methods(compiled(text), TABLE, disassembler)


def test_the_constant_elsewhere(compiled: Compile, disassembler: Any) -> None:
    """The same number stored in other places, by the same function too, changes nothing."""
    text = "static volatile int a, b; void before(void) { a = 4; } static Methods table; void *get(void) { return &table; }"
    image = compiled(text + "void init(void) { a = 4; " + fill("table", *NAMES) + " b = 4; }")
    assert names_of(image, find_methods(image, TABLE, disassembler)) == IN_ORDER


def test_filled_twice_the_same(compiled: Compile, disassembler: Any) -> None:
    """Two functions that fill the same structure in the same way are no contradiction."""
    text = OPEN % fill("table", *NAMES) + "volatile int n; void again(void) { n = 1;" + fill("table", *NAMES) + "}"
    image = compiled(text)
    assert names_of(image, find_methods(image, TABLE, disassembler)) == IN_ORDER


@pytest.mark.parametrize(
    "text",
    [
        "",
        OPEN % fill("table", *NAMES[:5]),
        OPEN % fill("table", *NAMES).replace(".type = 4", ".type = 5"),
        OPEN % (fill("table", *NAMES) + "table.f[2] = usual()->f[2];"),
        OPEN % fill("table", *NAMES[:5], "(void (*)(void))&table"),
        OPEN % fill("table", *NAMES[:5], "(void (*)(void))((char *)poll_it + 1)"),
        OPEN % (fill("table", *NAMES).replace("= peek_it", "= usual()->f[0] ? peek_it : send_it")),
    ],
    ids=["nothing", "one less", "other constant", "one unknown", "data", "inside a function", "one of two"],
)
def test_no_structure(compiled: Compile, disassembler: Any, text: str) -> None:
    """Where a word is missing, or is not the beginning of one certain function, nothing is taken."""
    with pytest.raises(AttachError, match="0 structures look like it"):
        find_methods(compiled(text), TABLE, disassembler)


def test_no_unwind_table(compiled: Compile, disassembler: Any) -> None:
    """Without a table of functions it is not known where to begin."""
    image = compiled(OPEN % fill("table", *NAMES), "-Wl,--no-eh-frame-hdr")
    assert image.functions() == []
    with pytest.raises(AttachError, match="0 structures"):
        find_methods(image, TABLE, disassembler)


# --- One instruction at a time ---

BASE = 0x10000
PLACES = {
    "FA": 0x1000,
    "FB": 0x2000,
    **{f"W{number}": 0x3000 + 8 * number for number in range(4)},
    "PA": 0x4000,
    "PB": 0x4008,
}
"""Two functions, four words of a structure, and constant pointers to the functions, by their distance from the code."""
A, B, STORED = (BASE + PLACES[name] for name in ("FA", "FB", "W0"))


def follow(disassembler: Any, tmp_path: Path, *lines: str) -> _Stores:
    """Assemble these instructions and follow them."""
    text = "\n".join([".intel_syntax noprefix", *lines, ""])
    text += "".join(f"\n.org {place}\n{name}:" for name, place in PLACES.items()) + "\n"
    made, flat = tmp_path / "a.o", tmp_path / "a.bin"
    subprocess.run(["as", "-o", made, "-"], input=text.encode(), check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, flat], check=True)
    code = flat.read_bytes()[: PLACES["FA"]].rstrip(b"\0") + bytes(8)
    return _Stores(BASE, code, disassembler, {BASE + PLACES["PA"]: A, BASE + PLACES["PB"]: B}.get)


LOAD = "lea rax, FA[rip]"
STORE = "mov qword ptr W0[rip], rax"
VECTOR = ("lea rax, FA[rip]", "movq xmm0, rax", "lea rbx, FB[rip]", "movq xmm1, rbx", "punpcklqdq xmm0, xmm1")
VECTOR_STORE = "movups xmmword ptr W0[rip], xmm0"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((LOAD, STORE), {0: A}),
        (("lea r15, FA[rip]", "mov qword ptr W2[rip], r15"), {2: A}),
        ((LOAD, "mov rbx, rax", "mov qword ptr W0[rip], rbx"), {0: A}),
        ((LOAD, "mov rbx, rax", "lea rax, FB[rip]", STORE, "mov qword ptr W1[rip], rbx"), {0: B, 1: A}),
        *(
            ((*VECTOR, f"{store} xmmword ptr W1[rip], xmm0"), {1: A, 2: B})
            for store in ("movups", "movaps", "movdqu", "movdqa")
        ),
        *(
            ((*VECTOR, f"{copy} xmm7, xmm0", "movups xmmword ptr W0[rip], xmm7"), {0: A, 1: B})
            for copy in ("movaps", "movdqa")
        ),
        ((*VECTOR[:2], "movups xmmword ptr W0[rip], xmm0"), {0: A}),
        ((*VECTOR, "movq xmm2, xmm0", "punpcklqdq xmm2, xmm2", "movups xmmword ptr W0[rip], xmm2"), {0: A, 1: A}),
        ((*VECTOR[:3], "pinsrq xmm0, rbx, 1", "movups xmmword ptr W0[rip], xmm0"), {0: A, 1: B}),
        ((*VECTOR, "pinsrq xmm0, rbx, 0", "movups xmmword ptr W0[rip], xmm0"), {0: B, 1: B}),
        (("mov rax, qword ptr PB[rip]", STORE), {0: B}),
        (("movq xmm0, qword ptr PA[rip]", "movups xmmword ptr W0[rip], xmm0"), {0: A}),
        (("movq xmm0, qword ptr PB[rip]", *VECTOR[:2], "movhps xmm0, qword ptr PB[rip]", VECTOR_STORE), {0: A, 1: B}),
        (
            ("movq xmm1, qword ptr PB[rip]", *VECTOR[:2], "punpcklqdq xmm1, xmm0", "movups xmmword ptr W2[rip], xmm1"),
            {2: B, 3: A},
        ),
        (("movdqa xmm0, xmmword ptr PA[rip]", VECTOR_STORE), {0: A, 1: B}),
        ((*VECTOR[:2], "pinsrq xmm0, qword ptr PB[rip], 1", VECTOR_STORE), {0: A, 1: B}),
        ((LOAD, "push rax", "test rbx, rbx", "cmp rax, rbx", STORE), {0: A}),
        ((LOAD, STORE, "call FB"), {0: A}),
    ],
    ids=lambda value: "; ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_forms(disassembler: Any, tmp_path: Path, lines: tuple[str, ...], words: dict[int, int]) -> None:
    """Each form in which an address gets from a ``lea`` to a fixed place."""
    stores = follow(disassembler, tmp_path, *lines)
    assert stores.words == {STORED + 8 * place: address for place, address in words.items()}


@pytest.mark.parametrize(
    "change",
    [
        "xor eax, eax",
        "xor rax, rax",
        "mov eax, 5",
        "mov ax, 5",
        "mov al, 5",
        "mov ah, 5",
        "mov rax, 5",
        "mov rax, rbx",
        "mov rax, qword ptr W3[rip]",
        "mov eax, dword ptr PB[rip]",
        "cmove rax, qword ptr PB[rip]",
        "add rax, qword ptr PB[rip]",
        "mov rax, qword ptr [rbx]",
        "lea rax, [rbx + 8]",
        "lea eax, FB[rip]",
        "add rax, 8",
        "inc rax",
        "neg rax",
        "not eax",
        "shl rax, 1",
        "bswap rax",
        "pop rax",
        "xchg rbx, rax",
        "xchg rax, rbx",
        "xchg qword ptr [rbx], rax",
        "xadd qword ptr [rbx], rax",
        "cmpxchg qword ptr [rbx], rcx",
        "cmove rax, rbx",
        "sete al",
        "mul rbx",
        "div rbx",
        "cdqe",
        "lodsq",
        "in al, dx",
        "movzx eax, bl",
        "movq rax, xmm0",
        "movmskpd eax, xmm0",
        "popcnt rax, rbx",
        "bsf rax, rbx",
        "cpuid",
        "rdtsc",
        "syscall",
        "call FB",
        "call rbx",
        "jmp FB",
        "ret",
    ],
)
def test_overwritten(disassembler: Any, tmp_path: Path, change: str) -> None:
    """Whatever else is done to a register, a part of it, or behind its back: its content is not known any more."""
    assert follow(disassembler, tmp_path, LOAD, change, STORE).words == {}


def test_branches(disassembler: Any, tmp_path: Path) -> None:
    """Where a branch leads, registers may hold something else; behind one that is not taken, they don't."""
    assert follow(disassembler, tmp_path, LOAD, "1: " + STORE, "jne 1b").words == {}
    assert follow(disassembler, tmp_path, LOAD, "je 1f", "lea rax, FB[rip]", "1: " + STORE).words == {}
    assert follow(disassembler, tmp_path, LOAD, "je 1f", STORE, "1: nop").words == {STORED: A}


@pytest.mark.parametrize(
    "change",
    [
        "pxor xmm0, xmm0",
        "movq xmm0, xmm3",
        "movaps xmm0, xmm3",
        "movdqu xmm0, xmmword ptr [rbx]",
        "movq xmm0, qword ptr [rbx]",
        "movq xmm0, qword ptr W3[rip]",
        "movdqa xmm0, xmmword ptr W2[rip]",
        "paddq xmm0, xmmword ptr PA[rip]",
        "vpxor xmm0, xmm0, xmm0",
        "vmovdqa ymm0, ymmword ptr [rbx]",
        "vzeroall",
        "cvtsi2sd xmm0, rax",
        "paddq xmm0, xmm1",
        "pshufd xmm0, xmm0, 1",
        "call FB",
    ],
)
def test_vector_overwritten(disassembler: Any, tmp_path: Path, change: str) -> None:
    """The same for vector registers."""
    assert follow(disassembler, tmp_path, *VECTOR, change, "movups xmmword ptr W0[rip], xmm0").words == {}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("movhps xmm0, qword ptr [rbx]", {0}),
        ("movhps xmm0, qword ptr W3[rip]", {0}),
        ("movlps xmm0, qword ptr PA[rip]", set()),
        ("punpcklqdq xmm0, xmmword ptr W2[rip]", {0}),
        ("punpcklqdq xmm0, xmm3", {0}),
        ("pinsrq xmm0, rdx, 1", {0}),
        ("pinsrq xmm0, rdx, 0", {1}),
        ("movq xmm0, rax", {0}),
    ],
)
def test_half_overwritten(disassembler: Any, tmp_path: Path, change: str, left: set[int]) -> None:
    """Where only one half is replaced, at most the other is still known."""
    stores = follow(disassembler, tmp_path, *VECTOR, change, "movups xmmword ptr W0[rip], xmm0")
    assert stores.words == {STORED + 8 * place: (A, B)[place] for place in left}


@pytest.mark.parametrize(
    "change",
    [
        "mov qword ptr W0[rip], rbx",
        "mov qword ptr W0[rip], 0",
        "mov dword ptr W0[rip], 4",
        "mov dword ptr (W0+4)[rip], 4",
        "mov byte ptr (W0+7)[rip], 1",
        "and qword ptr W0[rip], 1",
        "xchg qword ptr W0[rip], rbx",
        "movups xmmword ptr W0[rip], xmm5",
        "movups xmmword ptr (W0-8)[rip], xmm5",
        "vmovdqu ymmword ptr (W0-24)[rip], ymm5",
        "sete byte ptr W0[rip]",
    ],
)
def test_stored_over(disassembler: Any, tmp_path: Path, change: str) -> None:
    """A word into which something else is stored later, or into a part of it, is not known any more."""
    assert follow(disassembler, tmp_path, LOAD, STORE, change).words == {}
    kept = follow(disassembler, tmp_path, LOAD, STORE, change.replace("W0", "(W0+64)"))
    assert kept.words == {STORED: A}


def test_constants(disassembler: Any, tmp_path: Path) -> None:
    """Constants of 32 bits, by where they go; others are none."""
    lines = ("mov dword ptr W0[rip], 4", "mov dword ptr W2[rip], 4", "mov dword ptr W1[rip], 7")
    stores = follow(
        disassembler,
        tmp_path,
        *lines,
        "mov qword ptr W3[rip], 4",
        "mov word ptr W3[rip], 4",
        "add dword ptr W3[rip], 4",
    )
    assert stores.constants == {4: [STORED, STORED + 16], 7: [STORED + 8]}


def test_not_code(disassembler: Any) -> None:
    """Bytes that are no instruction end the walk."""
    assert _Stores(0, b"\x06\x06" + bytes(100), disassembler, lambda _: None).words == {}
    assert _Stores(0, b"", disassembler, lambda _: None).words == {}
    list(disassembler.disasm_lite(b"\x90", 0))  # it still works, and is as it was
    assert disassembler.detail is False


# --- Constants that the dynamic linker computes ---


def test_constant_pointers(compiled: Compile) -> None:
    """Addresses of functions in constants; what the program can change, and what another file has, is nobody's constant."""
    image = compiled(
        "#define POINTERS(name) name[] = {read_it, close_it, 0, usual, peek_it};\n"
        "static void *const POINTERS(fixed) static void *POINTERS(changing) static const long number = 4;"
        "const void *get(int i) { return i ? i > 1 ? (void *)&changing[i] : &fixed[i] : &number; }"
        "void change(void *to, int i) { changing[i] = to; }",
    )
    text = subprocess.run(["nm", image.path], check=True, capture_output=True, text=True).stdout
    places = {
        name: int(vaddr, 16) for vaddr, _, name in (line.rsplit(" ", 2) for line in text.splitlines()) if vaddr.strip()
    }
    truth = addresses(image)
    fixed = [image.constant_pointer(places["fixed"] + 8 * word) for word in range(5)]
    assert fixed == [truth["read_it"], truth["close_it"], None, None, truth["peek_it"]]
    assert image.constant_pointer(places["fixed"] + 4) is None
    assert [image.constant_pointer(places["changing"] + 8 * word) for word in range(5)] == [None] * 5
    assert [image.constant_pointer(vaddr) for vaddr in (places["number"], -8, 0, 1 << 63)] == [None] * 4


# --- The real thing ---


def test_nss_of_this_machine(disassembler: Any) -> None:
    """NSS's methods are functions of its library, in the order of struct PRIOMethods."""
    path = Path("/usr/lib/x86_64-linux-gnu/libssl3.so")
    if not path.exists():
        pytest.skip("NSS is not installed")
    assert NSS.table is not None
    image = Image(str(path))
    found = find_methods(image, NSS.table, disassembler)
    assert set(found) == set(range(1, NSS.table.length + 1))
    assert set(found.values()) <= {start for start, _ in image.functions()}
    assert len(set(found.values())) == len(found)


def test_broken_tables(compiled: Compile, disassembler: Any) -> None:
    """Functions outside of the code, as a broken table may have them, are an error of ours or nothing."""
    image = compiled(OPEN % fill("table", *NAMES))
    for functions in ([(0, 1 << 40)], [((1 << 40), 5)], [(-5, 10)], []):
        other = SimpleNamespace(
            path=image.path,
            functions=lambda functions=functions: functions,
            text=image.text,
            code=image.code,
            is_code=image.is_code,
            constant_pointer=image.constant_pointer,
        )
        with pytest.raises(AttachError):
            find_methods(other, TABLE, disassembler)  # type: ignore[arg-type]
