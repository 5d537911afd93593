"""Programs with rustls made by hand: names by both manglings, code as compilers write it, and files that are broken."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlscap.errors import CaptureError
from tlscap.live import rust
from tlscap.live.loader import AttachPoint, CallKind, ResolvedLibrary, modern_probes
from tlscap.live.quicklook import may_hold_tls
from tlscap.live.sites import Image, Resolver
from tlscap.model import Role

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs are x86-64 code")

V0 = "_RNvM{}NtCsiYTciYHJIeN_6rustls12common_stateNtB{}_11CommonState{}"
WRITE = V0.format("s_", "4", "16buffer_plaintext")
READ = V0.format("", "2", "23take_received_plaintext")
START = V0.format("", "2", "22start_outgoing_traffic")
TRAFFIC = V0.format("", "2", "13start_traffic")
APPDATA = V0.format("", "2", "20send_appdata_encrypt")
SEND = "_RNvMs_NtCsiYTciYHJIeN_6rustls6vecbufNtB4_14ChunkVecBuffer8write_to"
ENCRYPT = "_RNvMNtCsiYTciYHJIeN_6rustls12record_layerNtB2_11RecordLayer16encrypt_outgoing"
DROP = (
    "_RINvNtCskADBYZwJmSU_4core3ptr9drop_glueINtNtCsiYTciYHJIeN_6rustls4conn16ConnectionCommonNtNtNtBG_6client11client_conn"
    "20ClientConnectionDataEECsgPx5zGnTMyD_7reqwest"
)
SERVER = DROP.replace("6client11client_conn20Client", "6server11server_conn20Server")
LEGACY_WRITE = "_ZN6rustls12common_state11CommonState16buffer_plaintext17h458560d6bc730dd6E"
LEGACY_READ = "_ZN6rustls12common_state11CommonState23take_received_plaintext17he4f577ff934c8631E"
LEGACY_DROP = "_ZN4core3ptr54drop_in_place$LT$rustls..common_state..CommonState$GT$17h638ccf2bd8b7707fE"
LEGACY_DROP_COMMON = (
    "_ZN4core3ptr108drop_in_place$LT$rustls..conn..ConnectionCommon$LT$rustls..client..client_conn..ClientConnectionData$GT$$GT$"
    "17h870d1bff69e5e942E"
)

NAMES = [
    (WRITE, "buffer_plaintext"),
    (WRITE.replace("CsiYTciYHJIeN_", "C"), "buffer_plaintext"),
    (LEGACY_WRITE, "buffer_plaintext"),
    (LEGACY_WRITE + ".llvm.1234567890", "buffer_plaintext"),
    (READ, "take_received_plaintext"),
    (LEGACY_READ, "take_received_plaintext"),
    (START, "start_outgoing_traffic"),
    (TRAFFIC, "start_traffic"),
    (SEND, "write_to"),
    ("_ZN6rustls6vecbuf13ChunkVecBuffer8write_to17h05a1d4d8ec376bb1E", None),
    ("_ZN6rustls6vecbuf14ChunkVecBuffer8write_to17h05a1d4d8ec376bb1E", "write_to"),
    (ENCRYPT, "encrypt_outgoing"),
    ("_ZN6rustls12record_layer11RecordLayer16encrypt_outgoing17ha88fc521ebdc7f2cE", "encrypt_outgoing"),
    (DROP, "drop ConnectionCommon"),
    (SERVER, "drop ConnectionCommon"),
    (DROP.replace("9drop_glue", "13drop_in_place"), "drop ConnectionCommon"),
    (LEGACY_DROP, "drop CommonState"),
    (LEGACY_DROP_COMMON, "drop ConnectionCommon"),
    (
        "_RINvNtCskADBYZwJmSU_4core3ptr9drop_glueNtNtCsiYTciYHJIeN_6rustls12common_state11CommonStateECs4_7reqwest",
        "drop CommonState",
    ),
    # Other functions, other types, other crates, and what only refers to one of them.
    (LEGACY_WRITE.replace("6rustls", "7rustls2"), None),
    (LEGACY_WRITE.replace("17h458560d6bc730dd6E", "17h458560d6bc730ddE"), None),
    (LEGACY_WRITE.replace("17h", "28_$u7b$$u7b$closure$u7d$$u7d$17h"), None),
    (WRITE + "0s_0B6_", None),
    (WRITE.replace("_6rustls", "_7rustls2"), None),
    (DROP.replace("glueI", "glueINtNtCs5_5alloc5boxed3BoxI"), None),
    (LEGACY_DROP_COMMON.replace("drop_in_place$LT$", "drop_in_place$LT$alloc..boxed..Box$LT$"), None),
    ("buffer_plaintext", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_names(name: str, expected: str | None) -> None:
    """A function is known by its mangled name, whatever the hashes in it, and no other is taken for it."""
    row = rust.classify(name)
    assert (row.name if row else None) == expected


# --- Files ---

PLAIN = "push %rbx; pop %rbx; ret"
VIA_TABLE = (
    "push %rbx; mov %rdi,%rbx; mov {0}(%rbx),%rsi; mov {1}(%rbx),%rax; mov %rsp,%rdi; call *0x18(%rax); pop %rbx; ret"
)
CIPHER = "push %rbx; mov 0x10(%rsi),%rax; mov 0x18(%rsi),%r8; mov %rax,%rsi; call *0x18(%r8); pop %rbx; ret"
"""As RecordLayer::encrypt_outgoing is compiled: its result's place is the first argument, self the second."""
LAYER = (
    "push %r15; mov %rdi,%r15; test %r15,%r15; lea {0}(%r15),%rsi; mov %rsp,%rdi; call " + f'"{ENCRYPT}"; pop %r15; ret'
)
Functions = dict[str, str]
FULL: Functions = {
    WRITE: f'push %rbx; test %rdi,%rdi; pop %rbx; je "{APPDATA}"; ret',
    READ: PLAIN,
    SEND: PLAIN,
    START: PLAIN,
    DROP: PLAIN,
    ENCRYPT: CIPHER,
    APPDATA: LAYER.format("0x20"),
}


def program(folder: Path, functions: Functions) -> Path:
    """Assemble a library of functions, which are local, as rustc makes them."""
    gcc = shutil.which("gcc")
    if not gcc:
        pytest.skip("gcc is not installed")
    lines = [".text"]
    for name, code in (functions | {"rust_eh_personality": PLAIN}).items():
        label = f'"{name}"'
        lines += [f".type {label},@function", f"{label}:", ".cfi_startproc", *code.split("; ")]
        lines += [".cfi_endproc", f".size {label},.-{label}"]
    source, path = folder / "made.s", folder / "made.so"
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run([gcc, "-shared", "-nostdlib", source, "-o", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def resolved(folder: Path, functions: Functions) -> ResolvedLibrary:
    return Resolver().resolve(str(program(folder, functions)))


def by_kind(points: Iterable[AttachPoint]) -> dict[CallKind, list[AttachPoint]]:
    found: dict[CallKind, list[AttachPoint]] = {}
    for point in points:
        assert isinstance(point.kind, CallKind)
        found.setdefault(point.kind, []).append(point)
    return found


def addresses(path: Path) -> dict[str, int]:
    """Where each function is, as pyelftools says."""
    with path.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        return {
            symbol.name: symbol["st_value"]
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        }


def test_points(tmp_path: Path) -> None:
    """Every function has its probe; a write also where the function returns that it ends with."""
    path = program(tmp_path, FULL)
    library = Resolver().resolve(str(path))
    image, places = Image(str(path)), addresses(path)
    assert library.flavor == "rustls"
    assert library.notes == ()
    found = {point.kind: point for point in library.points}
    for kind, name in (
        (CallKind.RUSTLS_WRITE, WRITE), (CallKind.RUSTLS_READ, READ), (CallKind.RUSTLS_SEND, SEND),
        (CallKind.RUSTLS_START, START), (CallKind.RUSTLS_END, DROP),
    ):  # fmt: skip
        assert found.pop(kind).file_offset == image.file_offset(places[name])
    assert not found
    assert {point.identity for point in library.points} == {0x30}
    kinds = by_kind(library.points)
    returns = kinds[CallKind.RUSTLS_WRITE][0].returns
    assert len(returns) == 2
    assert all(path.read_bytes()[offset] == 0xC3 for offset in returns)
    assert not kinds[CallKind.RUSTLS_READ][0].returns
    assert not any(probe.on_return for point in library.points for probe in modern_probes(point))
    assert may_hold_tls(str(path))


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (VIA_TABLE.format("0x40", "0x48"), 0x40),
        (VIA_TABLE.format("0x40", "0x50"), 0),  # no pointer and its table
        (VIA_TABLE.format("0x40", "0x48").replace("0x18(%rax)", "0x20(%rax)"), 0),  # another method
        (VIA_TABLE.format("0x40", "0x48").replace("%rdi,%rbx", "%rdx,%rbx"), 0),  # of another object
        (VIA_TABLE.format("0x40", "0x48").replace("mov %rsp,%rdi", "call *%rdx"), 0),  # not preserved by a call
        (LAYER.format("0x20"), 0x30),
        (LAYER.format("0x0"), 0x10),
        (LAYER.format("0x20").replace("(%r15),%rsi", "(%rdx),%rsi"), 0),
        (PLAIN, 0),
    ],
)
def test_cipher_place(tmp_path: Path, code: str, place: int) -> None:
    """Where the cipher is follows from the code that calls it, in place or by way of the record layer."""
    library = resolved(tmp_path, FULL | {APPDATA: code})
    assert {point.identity for point in library.points} == {place}
    assert any("moves in memory" in note for note in library.notes) == (not place)


def test_cipher_place_that_is_not_sure(tmp_path: Path) -> None:
    """Two functions that contradict each other prove nothing."""
    single = V0.format("", "2", "20send_single_fragment")
    library = resolved(tmp_path, FULL | {single: VIA_TABLE.format("0x40", "0x48")})
    assert {point.identity for point in library.points} == {0}


@pytest.mark.parametrize(
    ("extra", "role"),
    [((DROP,), Role.CLIENT), ((SERVER,), Role.SERVER), ((DROP, SERVER), Role.UNKNOWN), ((), Role.UNKNOWN)],
)
def test_role(tmp_path: Path, extra: tuple[str, ...], role: Role) -> None:
    """A program that has only clients' code has only clients' connections."""
    functions = {name: code for name, code in FULL.items() if name != DROP} | dict.fromkeys(extra, PLAIN)
    kinds = by_kind(resolved(tmp_path, functions).points)
    assert [point.count_arg for point in kinds[CallKind.RUSTLS_START]] == [role.value]


def test_every_copy(tmp_path: Path) -> None:
    """Two versions of rustls in one file, by both manglings: all of it is probed."""
    twice = FULL | {LEGACY_WRITE: PLAIN, LEGACY_READ: PLAIN, LEGACY_DROP: PLAIN, LEGACY_DROP_COMMON: PLAIN}
    kinds = by_kind(resolved(tmp_path, twice).points)
    assert {kind: len(points) for kind, points in kinds.items()} == {
        CallKind.RUSTLS_WRITE: 2, CallKind.RUSTLS_READ: 2, CallKind.RUSTLS_SEND: 1,
        CallKind.RUSTLS_START: 1, CallKind.RUSTLS_END: 3,
    }  # fmt: skip


def test_only_one_start(tmp_path: Path) -> None:
    """start_traffic calls start_outgoing_traffic: it is probed where that one was made a part of it."""
    kinds = by_kind(resolved(tmp_path, FULL | {TRAFFIC: PLAIN}).points)
    assert [point.function for point in kinds[CallKind.RUSTLS_START]] == ["start_outgoing_traffic"]
    rest = {name: code for name, code in FULL.items() if name != START} | {TRAFFIC: PLAIN}
    kinds = by_kind(resolved(tmp_path, rest).points)
    assert [point.function for point in kinds[CallKind.RUSTLS_START]] == ["start_traffic"]


@pytest.mark.parametrize(
    ("without", "why"),
    [({READ}, "not all of its functions"), ({START, DROP}, "where its connections begin or end")],
)
def test_too_little(tmp_path: Path, without: set[str], why: str) -> None:
    """What can't be recorded right is not recorded, and that is said."""
    library = resolved(tmp_path, {name: code for name, code in FULL.items() if name not in without})
    assert library.points == ()
    assert len(library.notes) == 1
    assert why in library.notes[0]


def test_without_addresses(tmp_path: Path) -> None:
    """Without the function that writes records out, or when it can't be followed to its end, only addresses are missing."""
    for functions in (
        {name: code for name, code in FULL.items() if name != SEND},
        FULL | {SEND: "push %rbx; pop %rbx; jmp *8(%rsi)"},
    ):
        library = resolved(tmp_path, functions)
        assert CallKind.RUSTLS_SEND not in by_kind(library.points)
        assert "addresses" in library.notes[-1]


def test_write_that_cannot_be_followed(tmp_path: Path) -> None:
    """A write that ends through a pointer would be lost, so nothing of the file is probed."""
    library = resolved(tmp_path, FULL | {WRITE: "push %rbx; pop %rbx; jmp *8(%rsi)"})
    assert library.points == ()
    assert "through a pointer" in library.notes[0]


def test_nothing(tmp_path: Path) -> None:
    """A stripped file has none of it, nor one with another Rust library."""
    path = program(tmp_path, FULL)
    stripped = tmp_path / "stripped.so"
    subprocess.run(["strip", "-o", stripped, path], check=True)
    assert rust.find(Image(str(stripped))) == []
    assert not may_hold_tls(str(stripped))
    other = program(tmp_path, {"_ZN5tokio7runtime4spawn17h458560d6bc730dd6E": PLAIN})
    assert rust.find(Image(str(other))) == []
    assert not may_hold_tls(str(other))


# --- Broken files ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return program(tmp_path_factory.mktemp("whole"), FULL).read_bytes()


def look(path: Path, content: bytes) -> None:
    """Whatever the file is, looking at it ends, and the only errors are ours."""
    path.write_bytes(content)
    may_hold_tls(str(path))
    with contextlib.suppress(CaptureError):
        library = Resolver().resolve(str(path))
        assert all(0 <= point.file_offset < len(content) for point in library.points)


def test_cut_short(whole: bytes, tmp_path: Path) -> None:
    for size in range(0, len(whole), 97):
        look(tmp_path / "short.so", whole[:size])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """A few bytes of it are others: of the code, of the symbols, or of the headers."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        content[at] = data.draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, content[at] ^ 1 << data.draw(st.integers(0, 7))])
        )
    look(tmp_path / "changed.so", bytes(content))
