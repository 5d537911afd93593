"""Recordings of programs that have a library's function names and do what a scene wants, and what came of them.

The programs are recorded as this kernel allows, and as on others: without ``bpf_loop``, where return probes can kill a target, without
tracepoints of sockets.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from live.servers import run_tlscap
from tlscap.capture import open_capture
from tlscap.decode import AddressEvent, Event, MarkEvent, OpenEvent, decode
from tlscap.model import Data, Direction, Flow, FlowClosed, Gap, GapReason, HalfClosed, Item, Totals
from tlscap.sidecar import SidecarReader

START = """
sys.argv[0] = "tlscap"
from tlscap.cli.main import main

main()
"""
OLD_KERNEL = f"""
import sys
from tlscap.live import targets
from tlscap.live.libbpf import LibbpfLoader

# There, each probe is taken away by itself, which takes 40 ms: no more of them than are needed.
targets.system_libraries = targets.known_programs = lambda *names: []
load = LibbpfLoader.__init__
LibbpfLoader.__init__ = lambda self, settings: load(self, settings, bounded=True)
{START}"""
AT_RETURNS = f"""
import sys
from tlscap.live import sitecache, sites

sites.return_probes_are_safe = lambda: False
sitecache._version = lambda: "probes on return instructions"
{START}"""

NO_SOCKET_TRACEPOINTS = f"""
import sys
from tlscap.live.libbpf import LibbpfLoader, SYSCALL_MODERN

LibbpfLoader._watch_sockets = lambda self: self._attach_tracepoint(SYSCALL_MODERN)
{START}"""

Done = subprocess.CompletedProcess[bytes]
Runner = Callable[..., Done]
"""Runs tlscap with these arguments."""


def modern(*arguments: str | Path | int) -> Done:
    done = run_tlscap(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def bounded(*arguments: str | Path | int) -> Done:
    """`tlscap` with the programs that kernels before 5.17 get."""
    return _changed(OLD_KERNEL, *arguments)


def at_returns(*arguments: str | Path | int) -> Done:
    """`tlscap` as on kernels whose return probes can kill a target."""
    return _changed(AT_RETURNS, *arguments)


def by_system_calls(*arguments: str | Path | int) -> Done:
    """`tlscap` as on kernels before 6.3, where sockets have no tracepoints."""
    return _changed(NO_SOCKET_TRACEPOINTS, *arguments)


def _changed(change: str, *arguments: str | Path | int) -> Done:
    done = subprocess.run([sys.executable, "-c", change, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def compiled(folder: Path, source: Path, *options: str) -> Path:
    """A program in C: the code that stands in the source, its functions by name."""
    path = folder / source.stem
    subprocess.run(["gcc", "-O0", "-w", "-rdynamic", source, "-o", path, *options], check=True)
    return path


class Scene:
    """The flows of a recording: streams as text with holes, and what else happened."""

    def __init__(self, path: Path) -> None:
        self.flows: list[Flow] = []
        self.streams: dict[tuple[int, Direction], list[bytes | tuple[int, GapReason]]] = {}
        self.ends: list[tuple[int, str]] = []
        with open_capture(str(path)) as capture:
            for item in capture.items():
                self._take(item)
            self.totals: Totals | None = capture.totals
        with path.open("rb") as file:
            self.events: list[Event] = [event for frame in SidecarReader(file).frames() for event in decode(frame)]
        self.marks = [event for event in self.events if isinstance(event, MarkEvent)]
        self.addresses = [event for event in self.events if isinstance(event, AddressEvent)]

    def _take(self, item: Item) -> None:
        if item.flow not in self.flows:
            self.flows.append(item.flow)
        match item:
            case Data():
                parts = self.streams.setdefault((item.flow.id, item.direction), [])
                if parts and isinstance(parts[-1], bytes):
                    parts[-1] += item.data
                else:
                    parts.append(item.data)
            case Gap():
                self.streams.setdefault((item.flow.id, item.direction), []).append((item.length, item.reason))
            case HalfClosed():
                self.ends.append((item.flow.id, item.direction.name))
            case FlowClosed():
                self.ends.append((item.flow.id, "closed"))

    def of(self, ssl: int) -> list[Flow]:
        """The flows at an address of the program's memory, in order."""
        return [flow for flow in self.flows if flow.ssl == ssl]

    def marks_of(self, flow: Flow) -> list[MarkEvent]:
        opened = [event.conn for event in self.events if isinstance(event, OpenEvent) and event.ssl == flow.ssl]
        conn = list(dict.fromkeys(opened))[self.of(flow.ssl).index(flow)]
        return [mark for mark in self.marks if mark.conn == conn]

    def sent(self, flow: Flow) -> list[bytes | tuple[int, GapReason]]:
        return self.streams.get((flow.id, Direction.OUTBOUND), [])

    def received(self, flow: Flow) -> list[bytes | tuple[int, GapReason]]:
        return self.streams.get((flow.id, Direction.INBOUND), [])

    def ends_of(self, flow: Flow) -> list[str]:
        """How it ended: the directions, then "closed"."""
        return [what for number, what in self.ends if number == flow.id]
