"""The BPF sources in BCC's dialect."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tlscap.errors import LoadError
from tlscap.live import bcc
from tlscap.live.bcc import join_sources, kernel_fields, tracepoints
from tlscap.live.catalogue import DYNAMIC_LINKER, FLAVORS
from tlscap.live.libbpf import KERNEL_WIDE, MODERN, SOCKET_PROGRAMS, SYSCALL_BOUNDED, SYSCALL_MODERN
from tlscap.live.loader import NEED_COOKIES, CallKind, LifeKind, entry_program

BPF = Path(__file__).parent.parent / "bpf"


@pytest.fixture(scope="module")
def joined() -> str:
    return join_sources({path.name: path.read_text() for path in BPF.iterdir()})


@pytest.mark.parametrize(
    ("kernel", "dialect"),
    [
        ("x = bpf_map_lookup_elem(&targets, &pid);", "x = targets.lookup(&pid);"),
        ("bpf_map_delete_elem(&wanted, &key.thread);", "wanted.delete(&key.thread);"),
        ("bpf_map_update_elem(&calls, &key, &call, BPF_ANY);", "calls.update(&key, &call);"),
        ("if (bpf_map_update_elem(&c, key, &fresh, BPF_NOEXIST)) {", "if (c.insert(key, &fresh)) {"),
        (
            "s = bpf_ringbuf_reserve(&ring, sizeof(struct sample_data) + (room), 0);",
            "s = ring.ringbuf_reserve(sizeof(struct sample_data) + (room));",
        ),
        ("return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) < 3;", "return query_ring(BPF_RB_AVAIL_DATA) < 3;"),
        ("a ? f(a, b) : bpf_map_lookup_elem(&m,\n\t\tg(x, y));", "a ? f(a, b) : m.lookup(g(x, y));"),
        ("bpf_ringbuf_submit(s, wake_flag(c, 8));", "bpf_ringbuf_submit(s, wake_flag(c, 8));"),
    ],
)
def test_map_calls(kernel: str, dialect: str) -> None:
    """Each kind of call that the sources have."""
    assert join_sources({"tlscap.bpf.c": kernel}) == dialect


@pytest.mark.parametrize(
    "call",
    [
        "bpf_map_update_elem(&m, k, v, BPF_EXIST)",  # BCC has no method for it
        "bpf_map_update_elem(&m, k, v, flags)",
        "bpf_map_lookup_elem(map, k)",
        "bpf_ringbuf_output(&ring, s, 8, 0)",
        "bpf_ringbuf_reserve(&ring, 8, 1)",
        "bpf_ringbuf_reserve(",
    ],
)
def test_calls_without_translation(call: str) -> None:
    """What would mean something else, or nothing, is refused."""
    with pytest.raises(ValueError, match=re.escape(call)):
        join_sources({"tlscap.bpf.c": call})


def test_joined(joined: str) -> None:
    """Everything is in the one text, once, and no map is used in a macro: BCC refuses that."""
    assert '#include "' not in joined
    for name in ("struct sample_data {", "struct call_key {", "#define KERNEL_READ"):
        assert name in joined
    assert not re.search(r"bpf_map_\w+_elem\(|bpf_ringbuf_(reserve|query)\(", joined)
    macros = re.findall(r"^#define .*?[^\\]$", joined, re.MULTILINE | re.DOTALL)
    assert not [macro for macro in macros if re.search(r"\w\.(lookup|update|insert|delete|ringbuf_\w+)\(", macro)]


COUNT_ARGUMENTS = {
    CallKind.READ_EX: (4,),
    CallKind.WRITE_EX: (4, 5),
    CallKind.READ_INNER: (4,),
    CallKind.WRITE_INNER: (4, 5),
    CallKind.PEEK_EX: (4,),
    CallKind.READ_EARLY: (4,),
    CallKind.WRITE_EARLY: (4,),
}


WIDE = {*KERNEL_WIDE, *SOCKET_PROGRAMS, SYSCALL_BOUNDED}


def preprocessed(text: str, *options: str) -> dict[str, str]:
    """Return the bodies of the programs that a compiler gets to see, by name; the headers of others are left out."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    own = re.sub(r"^#include <.*$", "", text, flags=re.MULTILINE)
    made = subprocess.run(
        ["gcc", "-E", "-P", *options, "-"], input=own, capture_output=True, text=True, check=True
    ).stdout
    programs = re.findall(r"(?:^ *|\) )int (\w+)\(struct \w+ \*ctx\)\s*\{([^}]*)\}", made, re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in programs}


def bounded_programs() -> dict[str, str]:
    """Return the programs for entries that do without attach cookies, and how the bodies of those of calls begin."""
    found = {}
    for kind in set(CallKind) - NEED_COOKIES:
        for argument in COUNT_ARGUMENTS.get(kind, (0,)):
            count = f"PT_REGS_PARM{argument}(ctx)" if argument else "0"
            found[entry_program(kind, argument)] = f"return enter_call(ctx, CALL_{kind.name}, {count}, 0"
    for life in set(LifeKind) - NEED_COOKIES:
        for argument in (2, 3) if life is LifeKind.NAME else (0,):
            found[entry_program(life, argument)] = ""
    return found


def test_programs(joined: str) -> None:
    """There is a program for every kind of function, and it is that function's; those on tracepoints are known."""
    expected = bounded_programs()
    bodies = preprocessed(joined, "-DTLSCAP_BCC")
    assert set(bodies) == {*expected, *WIDE, bcc.LEAVE_PROGRAM}
    for name, beginning in expected.items():
        assert bodies[name].startswith(beginning), name
    assert set(tracepoints(joined)) == WIDE | {SYSCALL_MODERN}


def test_programs_with_cookies(joined: str) -> None:
    """The object of libbpf has the same programs, and those that need newer kernels."""
    both = preprocessed(joined)
    assert set(both) == {*preprocessed(joined, "-DTLSCAP_BCC"), *MODERN, SYSCALL_MODERN}


def test_newer_parts_are_left_out(joined: str) -> None:
    """What follows ciphertext and goroutines needs helpers that BCC's kernels may lack: none of it is compiled there."""
    assert "goroutine_of_thread" in joined
    assert "join_socket" in joined
    own = re.sub(r"^#include <.*$", "", joined, flags=re.MULTILINE)
    made = subprocess.run(
        ["gcc", "-E", "-P", "-DTLSCAP_BCC", "-"], input=own, capture_output=True, text=True, check=True
    ).stdout
    for name in ("goroutine_of_thread", "join_socket(", "bpf_get_attach_cookie", "bpf_loop", "bpf_task_storage_get"):
        assert name not in made, name


def test_catalogue_has_programs() -> None:
    """Every function of every library is followed by one of the programs, or is known to need newer kernels."""
    known = bounded_programs()
    for flavor in (*FLAVORS, DYNAMIC_LINKER):
        for row in (*flavor.functions, *(one for _, one in (flavor.table.functions if flavor.table else ()))):
            assert row.kind in NEED_COOKIES or entry_program(row.kind, row.count_arg) in known, row


def test_kernel_fields(joined: str) -> None:
    """Every read from the kernel is found, also in code that is new."""
    fields = kernel_fields(joined)
    assert ("task_struct", "group_leader") in fields
    assert ("sock_common", "skc_v6_daddr") in fields
    uses = len(re.findall(r"\bKERNEL_READ\(", joined)) - len(
        re.findall(r"^#define KERNEL_READ\(", joined, re.MULTILINE)
    )
    assert len(bcc._KERNEL_READ.findall(joined)) == uses
    assert len(fields) == len(set(fields))


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, what to install is said."""
    monkeypatch.setitem(sys.modules, "bcc", None)
    monkeypatch.setattr(bcc, "PACKAGE_FOLDERS", ())
    with pytest.raises(LoadError, match="not installed") as caught:
        bcc.import_bcc()
    assert "python3-bpfcc" in caught.value.hint


def test_lattices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyPI's package of the same name is not taken for BCC, and sys.path stays as it was."""
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("lattice = True\n")
    monkeypatch.delitem(sys.modules, "bcc", raising=False)
    monkeypatch.setattr(bcc, "PACKAGE_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = list(sys.path)
    with pytest.raises(LoadError, match="not the BCC"):
        bcc.import_bcc()
    assert sys.path == before
    assert "bcc" not in sys.modules
