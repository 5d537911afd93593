"""What the probes make of the functions of Go's crypto/tls, with a program that has them, in both calling conventions, and returns what a
scene wants on stacks that move.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from live.echo import echo_server
from live.scenes import Scene, compiled, modern
from live.subjects import HERE
from tlscap.model import Endpoint, Flow, Role, TupleSource

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is x86-64 code"),
]

SAID = b"from the heap, from the stack, from a stack that moved, once"
HEARD = b"heard on a stack that moved, and on the heap"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("fake"), HERE / "fake_go.c", "-no-pie", "-lpthread")


def test_calls(program: Path, tmp_path: Path) -> None:
    """Each call's bytes, from where they are when it returns; connections by the address of the Conn, also behind a UConn's pointer."""
    with echo_server() as port:
        done = modern("record", "-o", tmp_path / "scene", "--", program, port)
    scene = Scene(tmp_path / "scene.tlscap.zst")

    def what(flow: Flow) -> tuple[object, ...]:
        return scene.sent(flow), scene.received(flow), flow.role, flow.handshake_end_ns > 0, flow.joined_midstream

    first, served = scene.of(0x1000)
    others = {flow.ssl: flow for flow in scene.flows if flow.ssl != 0x1000}
    assert what(first) == ([SAID + b"and on another thread"], [HEARD], Role.CLIENT, True, False)
    assert what(served) == ([b"served"], [], Role.SERVER, True, False)
    assert {ssl: what(flow) for ssl, flow in others.items()} == {
        0x2000: ([b"hidden"], [], Role.UNKNOWN, False, True),
        0x3000: ([SAID], [HEARD], Role.UNKNOWN, False, True),
        0x4000: ([SAID], [HEARD], Role.CLIENT, True, False),
        0x5000: ([SAID], [HEARD], Role.UNKNOWN, False, True),
        0x6000: ([b"outer"], [], Role.UNKNOWN, False, True),
        0x6100: ([b"inner"], [], Role.UNKNOWN, False, True),
        0x7000: ([b"finished elsewhere"], [], Role.UNKNOWN, False, True),
        0x7100: ([b"first, then"], [], Role.UNKNOWN, False, True),
    }
    # What another goroutine, or another call, sent on a thread says nothing about the call that wants its address.
    ports = [int(line) for line in done.stdout.split()]
    known = [first, others[0x3000], others[0x4000], others[0x5000], others[0x7100]]
    assert [flow.local for flow in known] == [Endpoint("127.0.0.1", ports[at]) for at in (0, 2, 3, 4, 5)]
    assert {flow.tuple_source for flow in known} == {TupleSource.SYSCALL}
    unknown = [flow for flow in scene.flows if flow not in known]
    assert {flow.tuple_source for flow in unknown} == {TupleSource.PLACEHOLDER}
    assert f"complete: all {scene_size(scene)} bytes that the kernel counted are stored" in done.stderr.decode()
    # Those that were closed, or began again; what follows ended with the process.
    order = [flow for flow, _ in scene.ends]
    assert order[:5] == [flow.id for flow in (first, served, *known[1:4])]
    assert set(order[5:]) == {others[ssl].id for ssl in (0x2000, 0x6000, 0x6100, 0x7000, 0x7100)}


def scene_size(scene: Scene) -> int:
    return sum(len(part) for parts in scene.streams.values() for part in parts if isinstance(part, bytes))
