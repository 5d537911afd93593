"""The BPF sources in BCC's dialect."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tlscap.errors import LoadError
from tlscap.live import bcc
from tlscap.live.bcc import join_sources, kernel_fields, tracepoints
from tlscap.live.libbpf import KERNEL_WIDE, MODERN, SOCKET_PROGRAMS, SYSCALL_BOUNDED, SYSCALL_MODERN
from tlscap.live.loader import CallKind, LifeKind, entry_program

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


def test_programs(joined: str) -> None:
    """There is a program for every kind of function, and it is that function's; those on tracepoints are known."""
    bodies = dict(re.findall(r"^int (\w+)\(struct \w+ \*ctx\)\n\{\n(.*?)^\}$", joined, re.MULTILINE | re.DOTALL))
    seen = set()
    for kind in CallKind:
        for argument in COUNT_ARGUMENTS.get(kind, (0,)):
            count = f"PT_REGS_PARM{argument}(ctx)" if argument else "0"
            program = entry_program(kind, argument)
            assert bodies[program] == f"\treturn enter(ctx, CALL_{kind.name}, {count});\n"
            seen.add(program)
    for life in LifeKind:
        program = entry_program(life, 0)
        assert program in bodies
        seen.add(program)
    cookies = {*MODERN, SYSCALL_MODERN}
    wide = {*KERNEL_WIDE, *SOCKET_PROGRAMS, SYSCALL_BOUNDED}
    assert set(bodies) == seen | wide | cookies | {bcc.LEAVE_PROGRAM}
    assert set(tracepoints(joined)) == wide | {SYSCALL_MODERN}


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
