"""What is attached for a function, with the programs for new kernels and with those for old ones."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from tlscap.live.catalogue import DYNAMIC_LINKER, FLAVORS, MEMORY_BIO
from tlscap.live.libbpf import MODERN
from tlscap.live.loader import (
    AttachPoint,
    CallKind,
    LifeKind,
    Probe,
    cookie,
    entry_program,
    for_older_kernels,
    is_data,
    modern_probes,
    works_bounded,
)

SOURCE = Path(__file__).parent.parent / "bpf" / "tlscap.bpf.c"
GO_CALLS = {CallKind.GO_READ, CallKind.GO_WRITE, CallKind.GO_CLIENT, CallKind.GO_SERVER}
GO = {*GO_CALLS, LifeKind.GO_FREE}
BIO = {CallKind.BIO_READ, CallKind.BIO_WRITE, CallKind.BIO_WRITEV}
DATA = {
    CallKind.READ, CallKind.WRITE, CallKind.READ_EX, CallKind.WRITE_EX, CallKind.READ_INNER, CallKind.WRITE_INNER,
    CallKind.RECV_FLAGS, CallKind.GO_READ, CallKind.GO_WRITE, CallKind.RUSTLS_READ, CallKind.RUSTLS_WRITE,
}  # fmt: skip
RUSTLS_CALLS = {CallKind.RUSTLS_WRITE, CallKind.RUSTLS_SEND}
RUSTLS = {*RUSTLS_CALLS, CallKind.RUSTLS_READ, CallKind.RUSTLS_START, CallKind.RUSTLS_END}
NEWER = {*GO, *BIO, *RUSTLS, LifeKind.CALLBACKS, LifeKind.CALLBACK_VECTOR}
KINDS: list[CallKind | LifeKind] = [*CallKind, *LifeKind]
THREE_KINDS: list[CallKind | LifeKind] = [CallKind.READ, CallKind.BIO_WRITEV, LifeKind.CALLBACK_VECTOR]


def point(kind: CallKind | LifeKind, **changes: object) -> AttachPoint:
    made = AttachPoint(path="/lib/x.so", function="f", kind=kind, vaddr=0x1100, file_offset=0x100)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_modern_probes(kind: CallKind | LifeKind) -> None:
    """Each function has its programs, at its entry, and where it returns."""
    returns = (0x180, 0x190)
    probes = modern_probes(point(kind, returns=returns if kind in GO_CALLS | RUSTLS_CALLS else ()))
    expected: list[Probe]
    if kind is LifeKind.GO_FREE:
        expected = [Probe("on_go_free", (0x100,))]
    elif isinstance(kind, LifeKind):
        expected = [Probe("on_any", (0x100,))]
    elif kind in {CallKind.GO_READ, CallKind.GO_WRITE}:
        expected = [Probe("leave_go_data", returns), Probe("enter_go", (0x100,))]
    elif kind in GO_CALLS:
        expected = [Probe("leave_go_handshake", returns), Probe("enter_go", (0x100,))]
    elif kind in RUSTLS_CALLS:
        expected = [Probe("leave_rustls", returns), Probe("enter_rustls", (0x100,))]
    elif kind in RUSTLS:
        expected = [Probe("on_rustls", (0x100,))]
    elif kind is CallKind.BIO_READ:
        expected = [Probe("leave_bio", (0x100,), on_return=True), Probe("enter_bio", (0x100,))]
    elif kind in BIO:
        expected = [Probe("enter_bio", (0x100,))]
    else:
        expected = [Probe("leave_loop", (0x100,), on_return=True), Probe("enter_any", (0x100,))]
    assert probes == expected


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_order_and_programs(kind: CallKind | LifeKind) -> None:
    """Every program exists, what runs at the return comes first, and the entry is always probed."""
    for returns in ((), (0x180,)):
        probes = modern_probes(point(kind, returns=returns))
        assert {probe.program for probe in probes} <= set(MODERN)
        names = [probe.program.split("_")[0] for probe in probes]
        assert names in (["on"], ["enter"], ["leave", "enter"])
        assert probes[-1].offsets == (0x100,)
        assert not probes[-1].on_return


@pytest.mark.parametrize("kind", sorted(set(CallKind) - GO - BIO - RUSTLS, key=str), ids=str)
def test_return_instructions(kind: CallKind) -> None:
    """Where a function must not have a return probe, its return instructions have one each."""
    probes = modern_probes(point(kind, returns=(1, 2, 3)))
    assert probes == [Probe("leave_loop", (1, 2, 3)), Probe("enter_any", (0x100,))]


def test_cookies_are_told_apart() -> None:
    """Everything that a probe must know is in its cookie, where the C source looks for it."""
    shifts = {
        name: int(shift)
        for name, shift in re.findall(
            r"#define COOKIE_(\w+)(?:\(cookie\))? \(+(?:cookie\) >> |1 << )(\d+)", SOURCE.read_text()
        )
    }
    assert set(shifts) == {"ARG", "LENGTH", "STACK", "INDIRECT", "AT_RETURN", "UNPROVEN"}
    assert re.search(r"#define COOKIE_KIND\(cookie\) \(\(cookie\) & 0xff\)", SOURCE.read_text())
    seen = set()
    for kind, count, length, stack, indirect, returns in itertools.product(
        THREE_KINDS, (0, 5, 15), (0, 4, 15), (False, True), (False, True), ((), (9,))
    ):  # fmt: skip
        told = cookie(point(kind, count_arg=count, length_arg=length, stack=stack, indirect=indirect, returns=returns))
        assert told & 0xFF == kind.value
        assert told >> shifts["ARG"] & 15 == count
        assert told >> shifts["LENGTH"] & 15 == length
        assert told >> shifts["STACK"] & 1 == stack
        assert told >> shifts["INDIRECT"] & 1 == indirect
        assert told >> shifts["AT_RETURN"] & 1 == bool(returns)
        assert told < 1 << 64
        seen.add(told)
    assert len(seen) == 3 * 3 * 3 * 8
    for unproven in (False, True):
        assert cookie(point(CallKind.READ, unproven=unproven)) >> shifts["UNPROVEN"] & 1 == unproven


@pytest.mark.parametrize("sort", [CallKind, LifeKind])
def test_kinds_fit(sort: type[CallKind | LifeKind]) -> None:
    """A kind fits its byte of the cookie, and each has a number of its own."""
    assert all(0 < kind.value < 256 for kind in sort)
    assert len({kind.value for kind in sort}) == len(sort.__members__)


def test_arguments_fit() -> None:
    """So do the arguments of every function that is known."""
    for flavor in (*FLAVORS, MEMORY_BIO, DYNAMIC_LINKER):
        for row in (*flavor.functions, *(one for _, one in (flavor.table.functions if flavor.table else ()))):
            assert 0 <= row.count_arg <= 6, row
            assert 0 <= row.length_arg <= 6, row


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_works_bounded(kind: CallKind | LifeKind) -> None:
    """What old kernels can follow: no goroutines, no callbacks, no return instructions."""
    assert works_bounded(point(kind)) == (kind not in NEWER)
    assert not works_bounded(point(kind, returns=(5,)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_is_data(kind: CallKind | LifeKind) -> None:
    assert is_data(point(kind)) == (kind in DATA)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_for_older_kernels(kind: CallKind | LifeKind) -> None:
    """What only helps is left out silently; what moves data stays, so that it is said that it can't be followed."""
    one = point(kind)
    assert for_older_kernels([one]) == ([] if kind in NEWER - DATA else [one])


def test_older_kernels_keep_the_order() -> None:
    """The others stay as they are, in their order."""
    points = [point(kind, count_arg=number % 5) for number, kind in enumerate(KINDS)]
    kept = for_older_kernels(points)
    assert kept == [one for one in points if one.kind not in NEWER - DATA]
    assert 20 < len(kept) < len(points)


def test_kinds_of_both_sorts() -> None:
    """A call and a function of which only the entry matters are never taken for each other, whatever their numbers."""
    for call in CallKind:
        for life in LifeKind:
            assert entry_program(call, 0) != entry_program(life, 2)
            assert works_bounded(point(call)) == (call not in GO | BIO | RUSTLS)
            assert modern_probes(point(life))[0].program.startswith("on_")
