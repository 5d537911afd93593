"""``tlscap record``: options to a `Request`, a `Status` to lines on stderr."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence

import click

from tlscap.cli.units import Duration, Size, count_text, size_text, time_text
from tlscap.errors import LoadError, OutputError, UsageError
from tlscap.live import targets
from tlscap.live.loader import Counter, ResolvedLibrary, describe_returns
from tlscap.live.privileges import acting_as
from tlscap.live.session import DEFAULT_RING, Request, Session, Status

DRAW_INTERVAL_S = 0.25
SIDECAR_SUFFIX = ".tlscap.zst"


class _Terminal:
    """The live line.  It is only drawn on a terminal, and at most a few times a second."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._live = sys.stderr.isatty() and not quiet
        self._drawn = 0.0
        self._shown = False

    def started(self, status: Status) -> None:
        if not self._quiet:
            names = (
                ", ".join(dict.fromkeys(library.path for library in status.probed))
                or "no library yet: they are probed as they are mapped"
            )
            self._say(f"recording ({status.loader}, {status.attached_s:.2f} s to attach): {names}")
        self._show_sites(status.probed)

    def probed(self, libraries: Sequence[ResolvedLibrary]) -> None:
        """Files that turned up while recording."""
        if self._verbose:
            for library in libraries:
                self._say(f"now probed, too: {library.path}")
        self._show_sites(libraries)

    def _show_sites(self, libraries: Sequence[ResolvedLibrary]) -> None:
        for library in libraries if self._verbose else ():
            self._say(f"{library.path}: {library.flavor}, build id {library.build_id or 'unknown'}")
            for point in library.points:
                self._say(f"  {point.function:32} {point.vaddr:#10x}  {point.site}{describe_returns(point)}".rstrip())
            for note in library.notes:
                self._say(f"  {note}")

    def progress(self, status: Status) -> None:
        now = time.monotonic()
        if not self._live or now - self._drawn < DRAW_INTERVAL_S:
            return
        self._drawn = now
        counters = status.counters
        dropped = counters[Counter.DROPPED_SAMPLES]
        if status.finishing and status.sidecar_size:
            text = f"writing the pcapng: {100 * status.view_read // status.sidecar_size} %"
        else:
            text = (
                f"{time_text(status.elapsed_s)}  {count_text(counters[Counter.CONNECTIONS], 'flow')}"
                f"  out {size_text(counters[Counter.BYTES_OUT])}  in {size_text(counters[Counter.BYTES_IN])}"
                f"  {count_text(status.exchanges, 'exchange')}  {dropped:,} dropped"
            )
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write("\r\x1b[K" + text[: max(width - 1, 1)])
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False

    def _say(self, line: str) -> None:
        self.clear()
        click.echo(f"tlscap: {line}", err=True)

    def summary(self, request: Request, status: Status) -> None:
        """What was recorded, where it is, and whether all of it is there."""
        self.clear()
        for note in dict.fromkeys(status.notes):
            self._say(note)
        for error in dict.fromkeys(status.errors):
            self._say(error)
        if self._quiet:
            return
        stored, counted = sum(status.stored), sum(status.counted)
        # In the kernel's counters, a byte is counted when the call returns: nothing downstream can hide it.
        kernel = status.counters[Counter.BYTES_IN] + status.counters[Counter.BYTES_OUT]
        self._say(
            f"{count_text(status.flows, 'flow')}, {count_text(status.exchanges, 'exchange')}, "
            f"{size_text(stored)} in {time_text(status.elapsed_s)}"
        )
        missing = max(kernel, counted) - stored
        if not missing:
            done = "were redacted" if request.redact else "are stored"
            self._say(f"complete: all {kernel:,} bytes that the kernel counted {done}")
        else:
            dropped = status.counters[Counter.DROPPED_SAMPLES]
            self._say(
                f"INCOMPLETE: {missing:,} of {max(kernel, counted):,} bytes are not stored, in {count_text(status.gaps, 'gap')}"
                f" ({dropped:,} samples dropped because the ring was full)"
            )
            if dropped:
                self._say(f"  a larger ring loses less: --ring-size {_binary(request.ring_size * 4)}")
        if unproven := status.counters[Counter.UNPROVEN]:
            self._say(
                f"{count_text(unproven, 'call')} not recorded: of functions found by signature, on connections that handled no TLS record"
            )
        if not status.counters[Counter.CALLS]:
            for finding in status.findings:
                self._say(f"not hooked: {finding.path}: {finding.what}")
                if finding.advice:
                    self._say(f"  {finding.advice}")
            self._say(
                "no TLS call was seen: did the program use TLS, through a library that was probed?"
                " (tlscap explain PID shows what can be)"
            )
        for path in status.files:
            click.echo(f"  {path}", err=True)


def _default_name() -> str:
    return time.strftime("tlscap-%Y-%m-%d-%H%M%S")


def _names(output: str | None, write: str | None, no_pcapng: bool, no_sidecar: bool) -> tuple[str | None, str | None]:
    """Paths of the pcapng and the sidecar."""
    if no_pcapng and no_sidecar and not write:
        raise UsageError("--no-pcapng and --no-sidecar together leave nothing to write")
    if write and write != "-":
        raise UsageError(f"-w writes to a pipe: give -w -, or -o {write}")
    if write and output is None:
        return "-", None
    base = output or _default_name()
    for suffix in (".pcapng", SIDECAR_SUFFIX):
        base = base.removesuffix(suffix)
    if not os.path.basename(base):
        raise UsageError(f"-o {output}: a name is missing")
    return "-" if write else None if no_pcapng else f"{base}.pcapng", None if no_sidecar else base + SIDECAR_SUFFIX


def _rotation(text: str | None) -> tuple[int, float]:
    """A size in bytes or a time in seconds; a bare number is neither."""
    if text is None:
        return 0, 0.0
    if not text.strip()[-1:].isalpha():
        raise UsageError(f"--rotate {text}: a unit is missing, such as 64MB or 10min")
    unit = text.strip().lstrip("0123456789. ")
    if unit in ("ms", "s", "m", "min", "h", "d"):  # 10m is a time, 10M a size
        return 0, Duration().convert(text, None, None)
    try:
        return Size().convert(text, None, None), 0.0
    except click.BadParameter:
        raise UsageError(f"--rotate {text}: neither a size such as 64MB nor a time such as 10min") from None


def _binary(size: int) -> str:
    """A power of two as the options take it: ``256Ki``, ``64Mi``."""
    return f"{size >> 20}Mi" if size >= 1 << 20 else f"{size >> 10}Ki"


def _ring_size(wanted: int) -> int:
    """The next power of two, from a page upwards: the kernel takes nothing else."""
    if not 4096 <= wanted <= 1 << 31:
        raise UsageError("--ring-size must lie between 4096 bytes and 2 GiB")
    return 1 << (wanted - 1).bit_length()


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-p", "--pid", "pids", type=click.IntRange(min=1), multiple=True, help="Record this process. Repeatable.")
@click.option("--follow", is_flag=True, help="With --pid: its children, and libraries loaded later, too.")
@click.option(
    "--comm",
    "comms",
    multiple=True,
    help="Record processes of this name (as in /proc/PID/comm), or whose program's file has it. Repeatable.",
)
@click.option(
    "--uid",
    "uids",
    type=click.IntRange(0, 0xFFFFFFFE),
    multiple=True,
    help="Record processes of this user. Repeatable.",
)
@click.option(
    "--cgroup", "cgroups", multiple=True, metavar="PATH", help="Record a control group (version 2). Repeatable."
)
@click.option(
    "--container", "containers", multiple=True, metavar="ID", help="Record a container, by its id. Repeatable."
)
@click.option("--all", "everything", is_flag=True, help="Record every process.")
@click.option("--lib", "libraries", multiple=True, type=click.Path(), help="Probe this library or executable, too.")
@click.option("--probe", "by_hand", multiple=True, metavar="FUNCTION:PATH[+ADDRESS]",
              help="Probe one function by hand; ADDRESS as nm prints it.")  # fmt: skip
@click.option("--go-symbols", type=click.Path(), default="", metavar="PATH",
              help="An unstripped copy of a Go program with the same build id, to find functions by.")  # fmt: skip
@click.option("--signatures", type=click.Path(), default="", metavar="FILE",
              help="More rules to find functions in files without symbols (tlscap/live/signatures.toml has the built-in ones).")  # fmt: skip
@click.option("-o", "--output", metavar="NAME", help="Write NAME.pcapng and NAME.tlscap.zst. [default: with the date]")
@click.option("-w", "--write", metavar="-", help="Stream pcapng to standard output: -w - | wireshark -k -i -")
@click.option("--no-pcapng", is_flag=True, help="Write the sidecar only.")
@click.option("--no-sidecar", is_flag=True, help="Write the pcapng only.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--framing", type=click.Choice(["auto", "tls-null", "plain"]), default="auto", show_default=True,
              help="How the pcapng carries the plaintext (docs/format.md).")  # fmt: skip
@click.option("--snaplen", type=Size(), default=0, help="Keep at most this much of every TLS call. [default: all]")
@click.option("--duration", type=Duration(), default=0.0, help="Stop after this time.")
@click.option("--max-size", type=Size(), default=0, help="Stop when the sidecar has this size.")
@click.option("--max-exchanges", type=click.IntRange(min=1), help="Stop after this many HTTP exchanges.")
@click.option(
    "--rotate",
    metavar="SIZE|TIME",
    help="Begin new files at this size of the sidecar (64MB) or after this time (10min).",
)
@click.option("--keep", type=click.IntRange(min=1), help="With --rotate: keep only this many of the newest.")
@click.option("--redact", is_flag=True,
              help="Replace secrets by pseudonyms before anything touches the disk (docs/scrubbing.md).")  # fmt: skip
@click.option("--redact-rules", metavar="FILE", type=click.Path(), help="The same with rules of your own, in TOML.")
@click.option("--ring-size", type=Size(), default=DEFAULT_RING, show_default="64MiB",
              help="Buffer between kernel and recorder; rounded up to a power of two.")  # fmt: skip
@click.option("--loader", type=click.Choice(["auto", "libbpf", "bcc"]), default="auto", show_default=True,
              help="Who puts the probes into the kernel.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Say which instruction each probe stands on, and what it costs.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def record(
    ctx: click.Context,
    pids: tuple[int, ...],
    follow: bool,
    comms: tuple[str, ...],
    uids: tuple[int, ...],
    cgroups: tuple[str, ...],
    containers: tuple[str, ...],
    everything: bool,
    libraries: tuple[str, ...],
    by_hand: tuple[str, ...],
    go_symbols: str,
    signatures: str,
    output: str | None,
    write: str | None,
    no_pcapng: bool,
    no_sidecar: bool,
    force: bool,
    framing: str,
    snaplen: int,
    duration: float,
    max_size: int,
    max_exchanges: int | None,
    rotate: str | None,
    keep: int | None,
    redact: bool,
    redact_rules: str | None,
    ring_size: int,
    loader: str,
    verbose: bool,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Record what programs say over TLS.

    With COMMAND, runs it and records it and its children from the first byte; exits with its status.
    Otherwise records the processes that the options choose, until Ctrl-C; several kinds of conditions
    must all hold.

    \b
      tlscap record -- curl https://example.com/
      tlscap record -p $(pidof -s nginx) --duration 10s -o nginx
      tlscap record --comm python3 -w - | wireshark -k -i -
    """
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other")
    if command and (pids or comms or uids or cgroups or containers or everything):
        raise UsageError("give a command or processes to record, not both")
    if not (command or pids or comms or uids or cgroups or containers or everything):
        raise UsageError("nothing to record", hint="-- COMMAND, --pid, --comm, --uid, --cgroup, --container or --all")
    pcapng, sidecar = _names(output, write, no_pcapng, no_sidecar)
    if pcapng == "-" and sys.stdout.isatty():
        raise UsageError(
            "-w - writes binary data to the terminal", hint="pipe it: tlscap record -w - ... | wireshark -k -i -"
        )
    rotate_size, rotate_s = _rotation(rotate)
    if rotate and pcapng == "-":
        raise UsageError("--rotate makes files, -w - a stream: give one of them")
    if keep and not rotate:
        raise UsageError("--keep goes with --rotate")
    redactor = None
    if redact or redact_rules:
        if rotate or write:
            raise UsageError(
                "--redact needs the whole recording before it writes",
                hint="leave out --rotate and -w, or scrub the files afterwards: tlscap scrub",
            )
        from tlscap.cli.redact import redactor as redactor_of  # noqa: PLC0415 - recording must start fast

        redactor = redactor_of(redact_rules)
    groups = [targets.cgroup_id(name) for name in cgroups] + [targets.container_cgroup(name) for name in containers]
    request = Request(
        command=command,
        pids=pids,
        follow=follow,
        comms=comms,
        uids=uids,
        cgroups=tuple(groups),
        everything=everything,
        libraries=libraries,
        by_hand=by_hand,
        go_symbols=go_symbols,
        signatures=signatures,
        pcapng=pcapng,
        sidecar=sidecar,
        framing=framing,
        snaplen=snaplen,
        ring_size=_ring_size(ring_size),
        loader=loader,
        duration_s=duration,
        max_size=max_size,
        max_exchanges=max_exchanges or 0,
        rotate_size=rotate_size,
        rotate_s=rotate_s,
        keep=keep or 0,
        force=force,
        redact=redactor,
    )
    terminal = _Terminal(quiet=quiet, verbose=verbose)
    try:
        status = Session(request, terminal).run()
    except LoadError as error:
        if error.log:
            error.hint = "; ".join(filter(None, [_last_lines(error.log), error.hint, _keep_log(error.log)]))
        raise
    terminal.summary(request, status)
    if status.errors:
        ctx.exit(OutputError.exit_status)
    if status.command_status is not None:
        ctx.exit(status.command_status)


def _last_lines(log: str) -> str:
    """The part of a verifier's log that says what is wrong."""
    lines = [
        line for line in log.splitlines() if line.strip() and not line.startswith(("libbpf: failed", "processed "))
    ]
    telling = [line for line in lines if not line.startswith("libbpf:") and "END PROG LOAD LOG" not in line]
    return (telling or lines or [""])[-1].strip()


def _keep_log(log: str) -> str:
    """Write the whole log to a file that only its owner can read; says where."""
    with acting_as(targets.invoking_user()):
        fd, path = tempfile.mkstemp(prefix="tlscap-load-", suffix=".log")
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(log)
    return f"the whole log: {path}"
