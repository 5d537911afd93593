"""One recording, from the first probe to the last byte.

Three processes share the work, each with only what it needs:

- the *session* (this process) owns the probes and looks processes up; it never sees plaintext;
- the *recorder* (`spool`) moves samples from the ring into the sidecar; it has no privileges;
- the *view* (`view`) writes the pcapng from the sidecar; it has no privileges either, and may lag.

With ``--redact`` the recorder's sidecar is in memory, and the view writes both files from it at the end, without the secrets.

When the session dies, even by SIGKILL, the kernel removes its probes, the recorder sees its socket close,
writes what the ring still holds and closes the sidecar; the view finishes the pcapng.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import select
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import tlscap
from tlscap import decode
from tlscap.errors import (
    CaptureError,
    CommandNotExecutableError,
    CommandNotFoundError,
    InterruptedRecordingError,
    OutputError,
    PrivilegeError,
    TargetError,
)
from tlscap.live import targets
from tlscap.live._ring import Ring
from tlscap.live.children import Gate, Signals, fork_child, nice, reap
from tlscap.live.diagnosis import Finding
from tlscap.live.loader import CallKind, Counter, Filter, Loader, ResolvedLibrary, Settings, open_loader
from tlscap.live.output import DirectFile
from tlscap.live.privileges import acting_as, drop
from tlscap.live.probes import Probes, may_become_carrier, own_linker
from tlscap.live.spool import (
    APPEND,
    FINISH,
    PREPEND,
    ROTATE,
    Channel,
    Spooler,
    parse,
)
from tlscap.live.targets import User

if TYPE_CHECKING:
    from tlscap.live.view import Redactor

DEFAULT_RING = 64 << 20
REDACT_LIMIT = 128 << 20
"""Bytes of plaintext that a recording holds in memory to take secrets out of it."""
_PASSED = (Counter.BYTES_IN, Counter.BYTES_OUT)
CONNECTION = struct.Struct("=QQQQIIII")  # struct connection: id, bytes[2], handshake start, calls, flags, pid, pad
CONNECTION_KEY = struct.Struct("=QII")  # struct connection_key: ssl, pid, incarnation
PROCESS_VALUE = struct.Struct("=QII")  # struct process: start_ns, incarnation, flags
LEDGERS_PER_MESSAGE = 1000
TICK_S = 0.1
COLLECT_S = 1.0
CLOCK_S = 1.0
"""How often the wall clock is compared with the probes'."""
CLOCK_DRIFT_NS = 1_000_000
"""How far they may part before the file says so."""
"""How often connections of ended processes are collected."""


@dataclass(slots=True, kw_only=True)
class Request:
    """What to record and where to."""

    command: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    follow: bool = False
    comms: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    cgroups: tuple[int, ...] = ()
    everything: bool = False
    libraries: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    go_symbols: str = ""
    signatures: str = ""
    pcapng: str | None = None
    """Path of the pcapng, ``-`` for standard output, or None."""
    sidecar: str | None = None
    framing: str = "auto"
    snaplen: int = 0
    ring_size: int = DEFAULT_RING
    loader: str = "auto"
    duration_s: float = 0
    max_size: int = 0
    max_exchanges: int = 0
    rotate_size: int = 0
    rotate_s: float = 0
    keep: int = 0
    force: bool = False
    redact: Redactor | None = None
    """Takes secrets out before anything is written: the recording is held in memory until its end."""

    @property
    def rotates(self) -> bool:
        return bool(self.rotate_size or self.rotate_s)


@dataclass(slots=True)
class Status:
    """What is known of a running or finished recording."""

    elapsed_s: float = 0
    counters: dict[Counter, int] = field(default_factory=lambda: dict.fromkeys(Counter, 0))
    sidecar_size: int = 0
    flows: int = 0
    exchanges: int = 0
    view_read: int = 0
    counted: list[int] = field(default_factory=lambda: [0, 0])
    stored: list[int] = field(default_factory=lambda: [0, 0])
    gaps: int = 0
    probed: list[ResolvedLibrary] = field(default_factory=list)
    loader: str = ""
    attached_s: float = 0
    """Seconds from the start of the process to the last probe in place."""
    command_status: int | None = None
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    finishing: bool = False
    files: list[str] = field(default_factory=list)
    """What was written and kept."""
    findings: list[Finding] = field(default_factory=list)
    """When no call was seen: what the targets' files hold that can't be hooked."""


class Display(Protocol):
    """Who is told how it goes.  The command line draws; tests collect."""

    def started(self, status: Status) -> None: ...
    def probed(self, libraries: Sequence[ResolvedLibrary]) -> None: ...
    def progress(self, status: Status) -> None: ...


class Session:
    """`run` records until the end, and returns the final status."""

    def __init__(self, request: Request, display: Display) -> None:
        self._request = request
        self._display = display
        self._status = Status()
        self._user: User | None = targets.invoking_user()
        self._begun = time.monotonic()
        self._stop_reason = ""
        self._recorder = 0
        self._views: list[_View] = []
        self._part_number = 0
        self._part_begun = 0.0
        self._live = request.pcapng == "-"
        self._exited: set[int] = set()
        self._collected = 0.0
        self._ticked = 0.0
        self._clock_checked = time.monotonic()
        self._clock_ahead = 0
        self._created: list[str] = []
        self._loader: Loader | None = None
        self._signals = Signals()
        self._watches = not request.pids or request.follow
        """Targets may start programs and load libraries that are not probed yet."""

    # --- Set-up ---

    def run(self) -> Status:
        """Record.  Raises `CaptureError` or `OutputError` before anything was recorded, never after."""
        request = self._request
        if os.geteuid() != 0 and not _may_trace():
            raise PrivilegeError("recording needs root", hint="sudo tlscap record ...")
        for pid in request.pids:
            if not targets.exists(pid):
                raise TargetError(f"there is no process {pid}")
        if request.signatures:
            from tlscap.live import signatures  # noqa: PLC0415 - rarely needed, and slow to import

            signatures.load(request.signatures)
        if request.go_symbols and not os.access(request.go_symbols, os.R_OK):
            raise TargetError(f"{request.go_symbols}: not a file that can be read")
        if request.command:
            _check_command(request.command[0])
        gate = Gate(request.command, self._user) if request.command else None
        try:
            with self._signals, contextlib.ExitStack() as stack:
                part = self._open_part()
                probes = Probes(
                    only_pids=() if self._watches else request.pids,
                    go_symbols=request.go_symbols,
                    signatures=request.signatures,
                )
                loader = self._load(self._settings(gate), probes)
                stack.callback(loader.close)
                self._attach(loader, probes)
                command = list(targets.command_files(request.command[0])) if gate else []
                if gate and any(map(may_become_carrier, command)):
                    probes.join(gate.pid, [*command, *targets.known_programs()])
                for number in self._signals.take():
                    raise InterruptedRecordingError("interrupted before anything was recorded", number=number)
                self._status.attached_s = _since_process_start()
                session = self._fork_recorder(loader, part)
                self._status.probed = list(probes.attached.values())
                self._status.notes = probes.notes
                if gate:
                    gate.open()
                if self._watches:
                    probes.warm_up()
                self._display.started(self._status)
                self._watch(loader, probes, session, gate)
                self._finish(loader, probes, session)
                stack.close()  # no probe outlives the recording, whatever the command does
                if gate and self._status.command_status is None and not self._stop_reason.startswith("SIG"):
                    # Recording ended first (a time, a size, a full disk): the command is none the worse for it.
                    self._status.command_status = self._await_command(gate)
        except BaseException:
            for path in self._created:
                with contextlib.suppress(OSError):
                    if os.path.getsize(path) <= 64:  # nothing but a beginning
                        os.unlink(path)
            raise
        finally:
            if gate:
                gate.abandon()
        self._status.elapsed_s = time.monotonic() - self._begun
        return self._status

    def _settings(self, gate: Gate | None) -> Settings:
        request = self._request
        settings = Settings(ring_size=request.ring_size, wake_always=False)
        if request.snaplen:
            settings.snaplen = request.snaplen
        wanted = Filter(0)
        if request.pids or gate:
            wanted |= Filter.PID
            settings.targets.update(request.pids)
        if gate:
            wanted |= Filter.FOLLOW_FORKS
            settings.targets.add(gate.pid)
        if request.follow and request.pids:
            wanted |= Filter.FOLLOW_FORKS
            for pid in request.pids:
                settings.targets.update(targets.children(pid))
        if request.comms:
            wanted |= Filter.COMM
            settings.comms.update(request.comms)
        if request.uids:
            wanted |= Filter.UID
            settings.uids.update(request.uids)
        if request.cgroups:
            wanted |= Filter.CGROUP
            settings.cgroups.update(request.cgroups)
        settings.filter = wanted
        return settings

    def _load(self, settings: Settings, probes: Probes) -> Loader:
        """The kernel verifies in one thread while this one looks for probe sites."""
        outcome: list[Loader | BaseException] = []

        def load() -> None:
            try:
                outcome.append(open_loader(self._request.loader, settings))
            except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
                outcome.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            self._first_files = self._likely_files()
            for path in self._first_files:
                probes.find(path)
        finally:
            thread.join()
        result = outcome[0]
        if isinstance(result, BaseException):
            raise result
        self._loader = result
        return result

    def _likely_files(self) -> list[str]:
        """Files that the targets map, or will map."""
        request = self._request
        files: list[str] = []
        if request.command:
            files += targets.command_files(request.command[0])
        for pid in request.pids:
            files += [file.path for file in targets.mapped_files(pid)]
        if request.command or request.comms or request.uids or request.cgroups or request.everything or request.follow:
            files += targets.system_libraries() + targets.known_programs()
        return list(dict.fromkeys(files))

    def _attach(self, loader: Loader, probes: Probes) -> None:
        request = self._request
        self._status.loader = loader.name
        probes.loader = loader
        for path in request.libraries:
            probes.attach(path, required=True)
        for spec in request.by_hand:
            probes.attach_by_hand(spec)
        if self._watches and (linker := own_linker()):
            probes.watch_linker(linker)
        probes.attach_all(self._first_files)
        for pid in request.pids:
            probes.look_at(pid)
        if request.comms or request.uids or request.cgroups or request.everything:
            for pid in targets.all_pids():
                probes.look_at(pid)
        if not probes.attached and request.pids and not request.follow:
            for pid in request.pids:
                if not targets.exists(pid):
                    raise TargetError(f"process {pid} has ended")
            names = ", ".join(str(pid) for pid in request.pids)
            reason = f": {probes.notes[0]}" if probes.notes else ""
            raise TargetError(
                f"process {names} maps no file with TLS functions that tlscap can hook{reason}",
                hint="a library loaded later is found with --follow; name one by hand with --lib or --probe",
            )

    def _open_part(self) -> _Part:
        """Create the next pair of files."""
        request = self._request
        self._part_number += 1
        names = [
            rotated_name(name, self._part_number) if name and name != "-" and request.rotates else name
            for name in (request.sidecar, request.pcapng)
        ]
        redacted = -1
        with acting_as(self._user):
            if request.redact:
                redacted = self._create(names[0]) if names[0] else -1
                sidecar = os.memfd_create("tlscap", os.MFD_CLOEXEC)
            else:
                sidecar = self._create(names[0]) if names[0] else self._create_unnamed()
            source = os.open(f"/proc/self/fd/{sidecar}", os.O_RDONLY | os.O_CLOEXEC)
            pcapng = -1
            if names[1] == "-":
                pcapng = os.dup(1)
            elif names[1]:
                pcapng = self._create(names[1])
        self._part_begun = time.monotonic()
        self._status.sidecar_size = 0
        return _Part(sidecar, source, pcapng, redacted, [name for name in names if name and name != "-"])

    def _create(self, path: str) -> int:
        """A new file, readable by its owner only.  Written in place: what a killed recorder leaves is where one looks."""
        try:
            if self._request.force and os.path.isfile(path):
                os.unlink(path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise OutputError(f"{path} exists already", hint="give another name with -o, or --force") from error
        except OSError as error:
            raise OutputError(f"{path} can't be created: {error.strerror}") from error
        self._created.append(path)
        return fd

    def _create_unnamed(self) -> int:
        """A file without a name, beside the output: it is gone when the last process closes it."""
        folder = os.path.dirname(self._request.pcapng or "") or "."
        for candidate in (folder, os.environ.get("TMPDIR", "/tmp")):
            try:
                return os.open(candidate, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EACCES, errno.EISDIR, errno.EROFS):
                    raise OutputError(f"{candidate}: {error.strerror}") from error
        raise OutputError("no folder takes a temporary file", hint="record with a sidecar: leave out --no-sidecar")

    def _fork_recorder(self, loader: Loader, part: _Part) -> Channel:
        ring = Ring(loader.ring_fd, self._request.ring_size, self._request.rotates)
        ring_fd = loader.ring_fd
        announce = self._fork_view(part)
        first = decode.note(decode.RECORD_START, self._start_record(loader))
        session_end, spool_end = Channel.pair()

        def spool() -> int:
            nice(-5)
            drop(self._user)
            spooler = Spooler(
                ring,
                DirectFile(part.sidecar),
                spool_end,
                announce,
                first=first,
                flush_s=0.1 if self._live else 0.5,
                rotating=self._request.rotates,
            )
            return spooler.run(ring_fd)

        self._recorder = fork_child(spool, part.sidecar, ring_fd, spool_end.fileno(), announce.fileno())
        spool_end.close()
        announce.close()
        os.close(part.sidecar)
        return session_end

    def _fork_view(self, part: _Part) -> Channel:
        """Start the process that writes the pcapng.  Returns the end for the recorder, which tells how far to read."""
        report, view_end = Channel.pair()
        announce, announced = Channel.pair()

        def show() -> int:
            from tlscap.live.view import View  # noqa: PLC0415 - the session has no use for it

            # Runs when nothing else wants to: the target and the recorder come first.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            drop(self._user)
            source = os.fdopen(part.source, "rb")
            target, redacted = (
                os.fdopen(fd, "wb", buffering=0) if fd >= 0 else None for fd in (part.pcapng, part.redacted)
            )
            view = View(source, target, announced, view_end, self._request.framing, live=self._live)
            if self._request.redact:
                view.redact(self._request.redact, redacted)
            return view.run()

        child = fork_child(show, *part.of_view, view_end.fileno(), announced.fileno())
        self._views.append(_View(child, report, part))
        for fd in part.of_view:
            if fd >= 0:
                os.close(fd)
        view_end.close()
        announced.close()
        return announce

    def _rotate(self, loader: Loader, session: Channel) -> None:
        """Go on in new files; the old ones are finished by their processes."""
        part = self._open_part()
        announce = self._fork_view(part)
        start = self._start_record(loader) | {"part": self._part_number}
        session.send(ROTATE + decode.note(decode.RECORD_START, start), [part.sidecar, announce.fileno()])
        announce.close()
        os.close(part.sidecar)

    def _drop_old_parts(self) -> None:
        """With --keep, only the newest files stay; one that is still being finished is not the oldest for long."""
        keep = self._request.keep
        for oldest in self._views[:-keep] if keep else ():
            if not oldest.done:
                break
            oldest.close()
            while oldest.part.paths:
                with contextlib.suppress(OSError), acting_as(self._user):
                    os.unlink(oldest.part.paths.pop())

    def _start_record(self, loader: Loader) -> dict[str, object]:
        system = os.uname()
        request = self._request
        clock = _clock()
        self._clock_ahead = clock["wall_ns"] - clock["monotonic_ns"]
        return {
            "tool": f"tlscap {tlscap.__version__}",
            "host": system.nodename,
            "os": f"{system.sysname} {system.release}",
            "hardware": platform.machine(),
            "loader": loader.name,
            "framing": request.framing,
            "snaplen": request.snaplen,
            **clock,
        }

    # --- Recording ---

    def _watch(self, loader: Loader, probes: Probes, session: Channel, gate: Gate | None) -> None:
        """Serve the recorder, look at the clock, and notice why to stop."""
        poller = select.poll()
        handlers: dict[int, Callable[[], None]] = {
            session.fileno(): lambda: self._hear_recorder(loader, probes, session),
            self._signals.fd: lambda: self._on_signal(gate),
        }
        pidfds: list[int] = []
        if gate:
            handlers[gate.pidfd] = lambda: self._command_ended(gate)
        elif self._request.pids:
            waiting = set(self._request.pids)
            for pid in self._request.pids:
                with contextlib.suppress(OSError):
                    fd = os.pidfd_open(pid)
                    pidfds.append(fd)
                    handlers[fd] = self._target_ended(poller, fd, pid, waiting)
        for fd in handlers:
            poller.register(fd, select.POLLIN)
        try:
            while not self._stop_reason:
                for fd, _ in poller.poll(TICK_S * 1000):
                    handlers[fd]()
                self._hear_views()
                self._tick(loader, session)
        finally:
            for fd in pidfds:
                os.close(fd)

    def _tick(self, loader: Loader, session: Channel) -> None:
        request, status = self._request, self._status
        status.elapsed_s = time.monotonic() - self._begun
        if time.monotonic() - self._ticked >= TICK_S:  # the recorder wakes us for every frame
            self._ticked = time.monotonic()
            status.counters = dict(loader.counters())
            self._display.progress(status)
        if time.monotonic() - self._clock_checked >= CLOCK_S:
            self._follow_clock(session)
        if self._exited and time.monotonic() - self._collected > COLLECT_S:
            self._collected = time.monotonic()
            self._collect(loader, session)
        if request.duration_s and status.elapsed_s >= request.duration_s:
            self._stop_reason = "duration"
        elif request.max_size and status.sidecar_size >= request.max_size:
            self._stop_reason = "size"
        elif request.redact and sum(status.counters[each] for each in _PASSED) >= REDACT_LIMIT:
            self._stop_reason = "memory"
            status.notes.append(
                f"recording ended: --redact holds everything in memory until the end, {REDACT_LIMIT >> 20} MiB at most"
            )
        elif request.max_exchanges and status.exchanges >= request.max_exchanges:
            self._stop_reason = "exchanges"
        elif (request.rotate_size and status.sidecar_size >= request.rotate_size) or (
            request.rotate_s and time.monotonic() - self._part_begun >= request.rotate_s
        ):
            self._rotate(loader, session)
            self._drop_old_parts()

    def _follow_clock(self, session: Channel) -> None:
        """Someone may set the clock, or NTP may bend it, while recording goes on."""
        self._clock_checked = time.monotonic()
        clock = _clock()
        ahead = clock["wall_ns"] - clock["monotonic_ns"]
        if abs(ahead - self._clock_ahead) > CLOCK_DRIFT_NS:
            self._clock_ahead = ahead
            session.send(APPEND + decode.note(decode.RECORD_CLOCK, clock, time_ns=clock["monotonic_ns"]))

    def _target_ended(self, poller: select.poll, fd: int, pid: int, waiting: set[int]) -> Callable[[], None]:
        def ended() -> None:
            poller.unregister(fd)
            waiting.discard(pid)
            if not waiting and not self._request.follow:
                self._stop_reason = "targets ended"

        return ended

    def _on_signal(self, gate: Gate | None) -> None:
        for number in self._signals.take():
            if gate and not self._signals.repeated:
                gate.pass_on(number)  # its end is ours
            else:
                self._stop_reason = signal.Signals(number).name

    def _await_command(self, gate: Gate) -> int:
        while not select.select([gate.pidfd, self._signals.fd], [], [])[0].count(gate.pidfd):
            for number in self._signals.take():
                gate.pass_on(number)
        return gate.wait()

    def _command_ended(self, gate: Gate) -> None:
        self._status.command_status = gate.wait()
        self._stop_reason = "command ended"

    def _hear_recorder(self, loader: Loader, probes: Probes, session: Channel) -> None:
        mapped: dict[int, Any] = {}
        while (message := session.receive(0)) is not None:
            if not message:
                self._stop_reason = self._stop_reason or "the recorder process is gone"
                self._status.errors.append("the recorder process ended unexpectedly")
                return
            told = parse(message)
            if "mapped" in told:
                mapped[told["mapped"]] = told  # many at a time: one look at the process answers all
            else:
                self._on_recorder(told, loader, probes, session)
        for told in mapped.values():
            self._on_recorder(told, loader, probes, session)

    def _on_recorder(self, told: Any, loader: Loader, probes: Probes, session: Channel) -> None:
        match told:
            case {"process": int(pid), "start_ns": int(start_ns)}:
                details = {
                    "start_ns": start_ns,
                    "exe": targets.executable(pid),
                    "libraries": [
                        {"path": library.path, "build_id": library.build_id, "flavor": library.flavor}
                        for library in probes.libraries_of(pid)
                    ],
                }
                session.send(PREPEND + decode.note(decode.RECORD_PROCESS, details, pid=pid))
            case {"mapped": int(pid)} if self._watches and not self._stop_reason:
                self._attempt(lambda: self._look_at(pid, probes))
            case {"unjoined": int(pid)} if not self._stop_reason:
                self._attempt(lambda: probes.join(pid))
            case {"callback": int(pid), "address": int(address), "kind": int(kind)} if not self._stop_reason:
                self._attempt(lambda: probes.remember_callback(pid, address, CallKind(kind)))
            case {"exited": int(pid)}:
                self._exited.add(pid)
                probes.forget(pid)
            case {"size": int(size), "part": int(part)} if part == self._part_number:
                self._status.sidecar_size = size
            case {"error": str(text)}:
                self._status.errors.append(f"{self._request.sidecar or 'the temporary file'}: {text}")
                self._stop_reason = self._stop_reason or "error"

    def _attempt(self, act: Callable[[], None]) -> None:
        """Probe something that turned up: what goes wrong there is told at the end, and recording goes on."""
        try:
            act()
        except (CaptureError, OSError) as error:
            self._status.notes.append(str(error))

    def _look_at(self, pid: int, probes: Probes) -> None:
        if found := probes.look_at(pid):
            self._status.probed += found
            self._display.probed(found)

    def _hear_views(self) -> None:
        """What the views tell; the status is the sum over all parts."""
        for view in self._views:
            if view.done:
                continue
            while message := view.channel.receive(0):
                told = dict(parse(message))
                if told.get("error"):
                    if not told.get("broken_pipe"):
                        self._status.errors.append(
                            f"{view.part.paths[-1] if view.part.paths else '-'}: {told['error']}"
                        )
                    self._stop_reason = self._stop_reason or "error"
                else:
                    view.told = told
                    view.done = bool(told.get("done"))
                    self._status.notes += told.get("notes", ())
            view.done = view.done or message == b""
        status, views = self._status, [view.told for view in self._views if view.told]
        status.flows = sum(told["flows"] for told in views)
        status.exchanges = sum(told["exchanges"] for told in views)
        status.counted = [sum(told["counted"][i] for told in views) for i in (0, 1)]
        status.stored = [sum(told["stored"][i] for told in views) for i in (0, 1)]
        status.gaps = sum(told["gaps"] for told in views)
        status.view_read = views[-1]["read"] if views else 0

    # --- Ledgers ---

    def _collect(self, loader: Loader, session: Channel, *, last: bool = False) -> None:
        """Hand the recorder the last ledgers of connections that can't say them themselves.

        Those of ended processes while recording; at the end all that are open, too.
        """
        alive = {
            int.from_bytes(key, sys.byteorder): PROCESS_VALUE.unpack(value)[1]
            for key, value in loader.items("processes")
        }
        now = time.monotonic_ns()
        records: list[bytes] = []
        for key, value in list(loader.items("connections")):
            _, pid, incarnation = CONNECTION_KEY.unpack(key)
            ident, bytes_in, bytes_out, *_ = CONNECTION.unpack(value)
            ended = alive.get(pid) != incarnation
            if ended and not last and pid not in self._exited:
                continue  # it ended just now: the recorder has not read its last samples yet
            if ended:
                loader.delete("connections", key)
            if ended or last:
                kind = decode.RECORD_ORPHAN if ended else decode.RECORD_LEDGER
                records.append(decode.ledger(kind, pid, ident, bytes_in, bytes_out, time_ns=now))
        for _, value in list(loader.items("orphans")) if last else ():
            ident, bytes_in, bytes_out, _, _, _, pid, _ = CONNECTION.unpack(value)
            records.append(decode.ledger(decode.RECORD_ORPHAN, pid, ident, bytes_in, bytes_out, time_ns=now))
        for at in range(0, len(records), LEDGERS_PER_MESSAGE):
            session.send(APPEND + b"".join(records[at : at + LEDGERS_PER_MESSAGE]))
        self._exited.clear()

    # --- The end ---

    def _finish(self, loader: Loader, probes: Probes, session: Channel) -> None:
        """Everything that happened is in the ring or in the maps: bring it into the files."""
        signals = self._signals
        signals.forget()
        loader.detach()
        status = self._status
        status.finishing = True
        session.send(FINISH)
        self._collect(loader, session, last=True)
        status.counters = dict(loader.counters())
        counters = {counter.name.lower(): value for counter, value in status.counters.items()}
        end = {"counters": counters, "stopped": self._stop_reason}
        session.send(APPEND + decode.note(decode.RECORD_END, end, time_ns=time.monotonic_ns()))
        session.send(FINISH)
        recorder_there = True
        while not all(view.done for view in self._views):
            channels = [view.channel for view in self._views if not view.done]
            ready, _, _ = select.select([*channels, *([session] if recorder_there else [])], [], [], TICK_S)
            if session in ready:
                while message := session.receive(0):
                    self._on_recorder(parse(message), loader, probes, session)
                recorder_there = message is None
            self._hear_views()
            self._display.progress(status)
            if signals.take():
                status.notes.append("finishing the files; send the signal again to give up on the pcapng")
                if signals.repeated:
                    status.errors.append("the pcapng is not complete: tlscap rebuild makes it from the sidecar")
                    for view in self._views:
                        os.kill(view.pid, signal.SIGKILL)
                    break
        reap(self._recorder)
        while message := session.receive(0):
            self._on_recorder(parse(message), loader, probes, session)
        for view in self._views:
            view.close()
        if not status.counters[Counter.CALLS]:
            status.findings = probes.diagnose()
        self._drop_old_parts()
        status.files = [path for view in self._views for path in view.part.paths]


@dataclass(slots=True)
class _Part:
    """Open files of one part of a recording, as descriptors: they change hands."""

    sidecar: int
    source: int
    pcapng: int
    redacted: int
    """What the sidecar becomes when secrets are taken out of it: then ``sidecar`` and ``source`` are memory."""
    paths: list[str]

    @property
    def of_view(self) -> tuple[int, ...]:
        return self.source, self.pcapng, self.redacted


@dataclass(slots=True)
class _View:
    """A view process and the last it told."""

    pid: int
    channel: Channel
    part: _Part
    told: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    _closed: bool = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            reap(self.pid)
            self.channel.close()


def rotated_name(name: str, number: int) -> str:
    """``NAME-00001.pcapng`` for ``NAME.pcapng``."""
    folder, base = os.path.split(name)
    stem, dot, suffix = base.partition(".")
    for known in (".tlscap.zst", ".pcapng"):
        if base.endswith(known):
            stem, dot, suffix = base.removesuffix(known), "", known
    return os.path.join(folder, f"{stem}-{number:05}{dot}{suffix}")


def _clock() -> dict[str, int]:
    """Wall-clock time and the probes' clock, read together: of a few tries, the closest."""
    tries = []
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, wall, (before + after) // 2))
    _, wall, monotonic = min(tries)
    return {"wall_ns": wall, "monotonic_ns": monotonic}


def _since_process_start() -> float:
    """Seconds since this process was started by the kernel."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - targets.start_time_ns(os.getpid()) / 1e9)


def _check_command(name: str) -> None:
    """Before anything is created.  Raises `CommandNotFoundError` or `CommandNotExecutableError`."""
    if shutil.which(name) is None:
        if os.path.exists(name) and os.sep in name:
            raise CommandNotExecutableError(f"{name}: not executable")
        raise CommandNotFoundError(f"{name}: command not found")


def _may_trace() -> bool:
    """Whether a process that is not root holds CAP_BPF and CAP_PERFMON (bits 39 and 38)."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError):
        return False
    return effective >> 38 & 3 == 3
