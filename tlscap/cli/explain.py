"""``tlscap explain``: what tlscap would hook in a program or process, at which instructions, and why not the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from tlscap.errors import TargetError
from tlscap.live import targets
from tlscap.live.diagnosis import Finding, diagnose
from tlscap.live.loader import ResolvedLibrary, describe_returns, is_data
from tlscap.live.probes import Probes, is_linker
from tlscap.live.signatures import load


@click.command()
@click.argument("subjects", metavar="PID|FILE...", nargs=-1, required=True)
@click.option("--go-symbols", type=click.Path(), default="", metavar="PATH",
              help="An unstripped copy of a Go program with the same build id.")  # fmt: skip
@click.option("--signatures", type=click.Path(), default="", metavar="FILE",
              help="More rules to find functions in files without symbols.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each file.")
def explain(subjects: tuple[str, ...], go_symbols: str, signatures: str, as_json: bool) -> None:
    """Say what would be hooked in programs, libraries or running processes, and why the rest can't be.

    Nothing is attached.  Exit status 3 when nothing can be hooked.

    \b
      tlscap explain /usr/bin/node
      sudo tlscap explain 4242
    """
    if signatures:
        load(signatures)  # a mistake in it is told even if it isn't needed
    probes = Probes(go_symbols=go_symbols, signatures=signatures)
    hooked = False
    for subject in subjects:
        files = list(_files(subject))
        for path, name in files:
            library = probes.find(path)
            finding = None if library else diagnose(path, name)
            hooked |= bool(library and any(map(is_data, library.points)))
            if as_json:
                if library or finding:
                    click.echo(json.dumps(_object(subject, name, library, finding), ensure_ascii=False))
            elif library:
                _show(name, library)
            elif finding:
                click.echo(f"{name}: {finding.what}" + (f"\n  {finding.advice}" if finding.advice else ""))
    if not hooked:
        raise TargetError(
            f"nothing that tlscap can hook in {', '.join(subjects)}",
            hint="" if as_json else "a library that is loaded later is found when it is: record, and look again",
        )


def _files(subject: str) -> Iterator[tuple[str, str]]:
    """Where to open each file that a subject is or maps, and what it is called.  Raises `TargetError`."""
    if not subject.isdigit() or os.path.exists(subject):
        path = next(iter(targets.command_files(subject)), subject) if os.sep not in subject else subject
        if not os.path.isfile(path):
            raise TargetError(f"{subject}: no such file or program")
        yield path, path
        return
    pid = int(subject)
    if not targets.exists(pid):
        raise TargetError(f"there is no process {pid}")
    try:
        os.listdir(f"/proc/{pid}/map_files")
    except PermissionError as error:
        raise TargetError(f"process {pid} belongs to somebody else", hint="sudo tlscap explain ...") from error
    for file in targets.mapped_files(pid):
        if not is_linker(file.name):
            yield file.path, file.name


def _show(name: str, library: ResolvedLibrary) -> None:
    build_id = f", build id {library.build_id}" if library.build_id else ""
    click.echo(f"{name}: {library.flavor}{build_id}")
    width = max((len(point.function) for point in library.points), default=0)
    for point in library.points:
        click.echo(f"  {point.function:{width}}  {point.vaddr:#x}  {point.site}{describe_returns(point)}")
    for note in library.notes:
        click.echo(f"  {note}")


def _object(subject: str, name: str, library: ResolvedLibrary | None, finding: Finding | None) -> dict[str, Any]:
    found: dict[str, Any] = {"subject": subject, "path": name}
    if library:
        found |= {
            "library": library.flavor,
            "build_id": library.build_id,
            "functions": [
                {
                    "name": point.function,
                    "address": point.vaddr,
                    "site": point.site,
                    "returns": len(point.returns),
                    "data": is_data(point),
                }
                for point in library.points
            ],
            "notes": list(library.notes),
        }
    if finding:
        found |= {"finding": finding.what, "advice": finding.advice}
    return found
