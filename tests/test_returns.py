"""Where functions return, without a return probe."""

from __future__ import annotations

import platform
import subprocess

import pytest

from tlscap.errors import AttachError
from tlscap.live.returns import return_probes_are_safe, return_sites
from tlscap.live.sites import Image, _disassembler

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions")

SOURCE = """
.text
.macro function name
    .globl \\name
    .type \\name, @function
    .p2align 4
\\name: .cfi_startproc
.endm
.macro done name
    .cfi_endproc
    .size \\name, . - \\name
.endm

before_all:
    ret

function two            # returns in two places
    test %rdi, %rdi
    je 1f
    ret
1:  xor %eax, %eax
    ret
done two

function tail           # ends by becoming another function
    push %rbx
    pop %rbx
    jmp two
done tail

function cold           # a part of it lies elsewhere
    test %rdi, %rdi
    js cold_part
    ret
done cold

function cold_part
    call two
    jmp cold + 5
done cold_part

function pointer        # goes on where the file can't tell
    jmp *(%rdi)
done pointer

function endless
1:  jmp 1b
done endless

function table          # a switch: the jump stays inside
    lea 1f(%rip), %rax
    jmp *%rax
1:  ret
done table

function nowhere        # jumps to where no function is known
    jmp before_all
done nowhere

function last
    ret
done last
.section .note.GNU-stack,"",@progbits
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("returns") / "library.so"
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-nostdlib",
            "-Wl,--eh-frame-hdr",
            "-Wl,-Bsymbolic",
            "-x",
            "assembler",
            "-",
            "-o",
            str(path),
        ],
        input=SOURCE,
        text=True,
        check=True,
    )
    return Image(str(path))


def returns(image: Image, name: str) -> list[str]:
    """Return where the function returns: names of functions, and how many of their returns."""
    symbols = image.symbols(
        frozenset({"two", "tail", "cold", "cold_part", "pointer", "endless", "table", "nowhere", "last"})
    )
    places = return_sites(image, symbols[name].vaddr, _disassembler())
    for place in places:
        assert image.code(place, 1) == b"\xc3"
    return sorted(
        owner.name for place in places for owner in symbols.values() if owner.vaddr <= place < owner.vaddr + owner.size
    )


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("two", ["two", "two"]),
        ("tail", ["two", "two"]),
        ("cold", ["cold"]),
        ("table", ["table"]),
    ],
)
def test_returns(image: Image, name: str, places: list[str]) -> None:
    """Every return is found: in the function, in its distant parts, in what it ends with."""
    assert returns(image, name) == places


@pytest.mark.parametrize("name", ["pointer", "endless", "nowhere"])
def test_refused(image: Image, name: str) -> None:
    """What can't be followed to its end gets no probe."""
    with pytest.raises(AttachError):
        returns(image, name)


def test_not_a_function(image: Image) -> None:
    """An address inside a function is none."""
    start = image.symbols(frozenset({"two"}))["two"].vaddr
    with pytest.raises(AttachError):
        return_sites(image, start + 1, _disassembler())


@pytest.mark.parametrize(
    ("release", "safe"),
    [
        ("5.10.0-30-amd64", True),
        ("6.10.14", True),
        ("6.11.0-8-generic", False),
        ("6.12.1", False),
        ("6.12.48+deb13-amd64", True),
        ("6.13.0", False),
        ("6.13.9-200.fc41", True),
        ("6.14.0", True),
        ("6.18.44-fc", True),
        ("7.0-rc1", True),
        ("", return_probes_are_safe()),
        ("nonsense", True),
    ],
)
def test_kernels(release: str, safe: bool) -> None:
    """Which kernels make a system call of a return probe and let a filter kill the process for it."""
    assert return_probes_are_safe(release) is safe
