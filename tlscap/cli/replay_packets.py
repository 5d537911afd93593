"""``tlscap replay packets``: the packets of a capture onto a network interface."""

from __future__ import annotations

import time

import click

from tlscap.capture import open_capture
from tlscap.cli.output import count_of
from tlscap.cli.progress_line import ProgressLine
from tlscap.cli.units import Timing, size_text
from tlscap.errors import FormatError, TruncatedError, UsageError
from tlscap.export.table import visible
from tlscap.replay.packets import Sent, find_interface, frames, inject, open_link


@click.command()
@click.argument("file", type=click.Path(readable=False))  # that is told when it is opened
@click.option("--iface", required=True, metavar="NAME", help="The interface: lo, or a dummy or veth one.")
@click.option("--timing", type=Timing(), default="recorded", show_default=True, metavar="recorded|none|xN",
              help="The times of the recording, N times as fast, or as fast as the interface takes them.")  # fmt: skip
@click.option(
    "--framing", type=click.Choice(["auto", "tls-null", "plain"]), help="Of a sidecar. Default: as it was recorded."
)
@click.option("--loop", type=click.IntRange(min=1), default=1, metavar="N", help="Send everything N times.")
@click.option("--onto-network", is_flag=True, help="Also onto a real network, where others may read the plaintext.")
def packets(file: str, *, iface: str, timing: float, framing: str | None, loop: int, onto_network: bool) -> None:
    """Put the synthesized packets of FILE on a network interface, so that live tools see them: Wireshark, Zeek, Suricata.

    Needs root (CAP_NET_RAW). Addresses are those that were recorded; nothing answers, and nothing has to. docs/sending.md says
    which interface is right.

    \b
      ip link add tlscap0 type dummy && ip link set tlscap0 mtu 65535 up
      tshark -i tlscap0 -Y http &
      tlscap replay packets c.tlscap.zst --iface tlscap0 --timing x10
    """
    interface = find_interface(iface)
    if interface.is_hardware and not onto_network:
        raise UsageError(
            f"{iface} is a network card: what was encrypted would go over the network in plaintext",
            hint="give lo, or a dummy or veth interface (docs/sending.md); or --onto-network",
        )
    sent, progress = Sent(), ProgressLine()
    with open_capture(file) as capture:
        try:
            next(frames(capture, framing), None)  # a file that can't be read is told before privileges are missing
        except FormatError as error:
            raise type(error)(f"{file}: {error}", hint=error.hint) from None
        link = open_link(interface)
        begun = time.monotonic()
        try:
            for number in range(loop):
                try:
                    inject(frames(capture, framing), link, interface, sent, speed=timing or None, number=number,
                           on_progress=lambda: progress.draw(lambda: _so_far(sent)))  # fmt: skip
                except TruncatedError as error:
                    progress.clear()
                    if number == 0:
                        click.echo(f"warning: {visible(f'{file}: {error}')}; everything before was sent", err=True)
        finally:
            link.close()
            progress.clear()
            click.echo(_summary(sent, iface, interface.mtu, time.monotonic() - begun), err=True)


def _so_far(sent: Sent) -> str:
    return f"{sent.packets:,} packets, {size_text(sent.size)} sent"


def _summary(sent: Sent, iface: str, mtu: int, seconds: float) -> str:
    what = f"{count_of(sent.packets, 'packet')} of {count_of(sent.connections, 'connection')}"
    parts = [f"sent {what}, {size_text(sent.size)}, on {iface} in {seconds:.1f} s"]
    if sent.cut:
        parts.append(f"{count_of(sent.cut, 'packet')} cut to fit {mtu:,} bytes")
    if sent.unsent:
        parts.append(f"{count_of(sent.unsent, 'packet')} too long and not sent")
    return "; ".join(parts)
