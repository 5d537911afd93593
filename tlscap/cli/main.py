"""The command ``tlscap``: its commands, and what an error looks like.

Exit statuses (README, "Exit statuses"): 0 success, 1 error, 2 wrong usage, 3 the live side could not start,
4 a file that can't be read, 5 a file that can't be opened or written, 6 data that was asked for is incomplete, 7 something
differs from what it should be.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from tlscap import __version__
from tlscap.cli.lazy import LazyGroup
from tlscap.errors import OutputError, TlscapError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

COMMANDS = {
    "record": "Record what programs say over TLS.",
    "explain": "Say what would be hooked in a program, and why not the rest.",
    "inspect": "Show the HTTP exchanges of a capture.",
    "diff": "Show what changed between two captures.",
    "rebuild": "Write the pcapng of a sidecar again.",
    "import": "Take over what another program saved: a capture, HAR, vcrpy, mitmproxy.",
    "replay": "Serve, send or inject what was recorded.",
    "fixture": "Make and show small captures for regression tests.",
    "scrub": "Write a capture without its secrets, or find them.",
}


@click.group(cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tlscap")
def tlscap() -> None:
    """What did this program really say over TLS?

    Records the plaintext of TLS connections with eBPF: no proxy, no certificate, no change to the program.

    \b
      sudo tlscap record -- curl https://example.com/
      tlscap inspect tlscap-*.tlscap.zst
      wireshark tlscap-*.pcapng

    Shell completion: eval "$(_TLSCAP_COMPLETE=bash_source tlscap)" (or zsh_source, fish_source).
    """


def report(error: TlscapError) -> None:
    """One line on stderr, and a second one with what to do, if anything."""
    click.echo(f"tlscap: {error}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def main() -> None:
    """Entry point of the console script."""
    try:
        sys.exit(tlscap.main(prog_name="tlscap", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except TlscapError as error:
        report(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough.
        _forget_output()
        sys.exit(141)
    except OSError as error:
        # What is opened by name has its own messages: this is standard output, or a disk that fails.
        _forget_output()
        where = error.filename or ("standard output" if error.errno in _NO_ROOM else "a file")
        report(OutputError(f"{where}: {error.strerror or error}"))
        sys.exit(OutputError.exit_status)


def _forget_output() -> None:
    """Keep the interpreter from complaining when it flushes what can't be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
