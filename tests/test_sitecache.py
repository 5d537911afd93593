"""Probe sites remembered between recordings: everything of them, only while nothing has changed, and only root's."""

from __future__ import annotations

import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tlscap.live import sitecache
from tlscap.live.loader import AttachPoint, CallKind, LifeKind, ResolvedLibrary
from tlscap.live.sitecache import CHOOSERS, SiteCache

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's cache is believed")

MODULES = resources.files("tlscap.live")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lib.so"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def library(path: Path) -> ResolvedLibrary:
    """Return one with a point of every kind, and every field set in one of them."""
    kinds: list[CallKind | LifeKind] = [*CallKind, *LifeKind]
    points = tuple(
        AttachPoint(
            path=str(path),
            function=f"f{number}",
            kind=kind,
            vaddr=(1 << 63) + number,
            file_offset=number * 8,
            count_arg=number % 6,
            length_arg=number % 5,
            returns=tuple(range(number)),
            stack=number % 2 == 1,
            indirect=number % 3 == 1,
            site=f"f{number}+4 push, emulated ä",
        )
        for number, kind in enumerate(kinds)
    )
    return ResolvedLibrary(str(path), "00c0ffee", "gnutls+go", points, ("a note", "another"))


def entry(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_round_trip(folder: Path, file: Path) -> None:
    """Everything comes back as it was, for who looks again and for the next recording."""
    SiteCache(str(folder)).put(str(file), "tls", library(file))
    assert SiteCache(str(folder)).get(str(file), "tls") == library(file)
    assert entry(folder).stat().st_mode & 0o777 == 0o600


def test_every_field_is_kept(folder: Path, file: Path) -> None:
    """A field that is added to `AttachPoint` is added here, too."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    stored = json.loads(entry(folder).read_text())["points"][0]
    assert set(stored) == {*AttachPoint.__dataclass_fields__, "life", "code"} - {"path"}


def test_nothing_to_probe(folder: Path, file: Path) -> None:
    """That there is nothing is remembered, too."""
    cache = SiteCache(str(folder))
    assert cache.get(str(file), "tls") is None
    nothing = ResolvedLibrary(str(file), "", "", (), ())
    cache.put(str(file), "tls", nothing)
    assert cache.get(str(file), "tls") == nothing


def test_what_was_looked_for(folder: Path, file: Path) -> None:
    """The TLS functions of a file say nothing of its BIO functions."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    assert cache.get(str(file), "memory-BIO") is None


def test_another_path(folder: Path, file: Path, tmp_path: Path) -> None:
    """A file is the same under another name, and a copy is another one."""
    cache = SiteCache(str(folder))
    link = tmp_path / "link.so"
    os.link(file, link)  # before: it changes the time of the last change of status
    cache.put(str(file), "tls", library(file))
    found = cache.get(str(link), "tls")
    assert found is not None
    assert {point.path for point in found.points} == {found.path} == {str(link)}
    copy = tmp_path / "copy.so"
    shutil.copy2(file, copy)
    assert cache.get(str(copy), "tls") is None


@pytest.mark.parametrize("change", ["content", "size", "times", "replaced", "gone"])
def test_changed_files(folder: Path, file: Path, tmp_path: Path, change: str) -> None:
    """A file that changed in any way is looked at again, also when its times are set back."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    status = file.stat()
    raw = file.read_bytes()
    match change:
        case "content":
            file.write_bytes(raw[:-1] + b"x")
        case "size":
            file.write_bytes(raw + b"x")
        case "replaced":
            other = tmp_path / "other"
            other.write_bytes(raw)
            other.rename(file)
        case "gone":
            file.unlink()
    if change != "gone":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.get(str(file), "tls") is None


def test_code_is_read_again(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if everything says that a file is the same, other code at a site is not believed."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    raw = bytearray(file.read_bytes())
    raw[library(file).points[5].file_offset] ^= 1
    file.write_bytes(bytes(raw))
    monkeypatch.setattr(sitecache, "_identity", lambda status: json.loads(entry(folder).read_text())["file"])
    assert cache.get(str(file), "tls") is None
    raw[library(file).points[5].file_offset] ^= 1
    file.write_bytes(bytes(raw))
    assert cache.get(str(file), "tls") is not None


# --- Versions ---


class Modules:
    """Stands where the package's files would."""

    def __init__(self, **changes: bytes) -> None:
        self.changes = changes

    def joinpath(self, name: str) -> Modules:
        self.name = name
        return self

    def read_bytes(self) -> bytes:
        return self.changes.get(self.name.removesuffix(".py"), MODULES.joinpath(self.name).read_bytes())


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Any:
    def version(**changes: bytes) -> str:
        monkeypatch.setattr(resources, "files", lambda package: Modules(**changes))
        return sitecache._version.__wrapped__()

    return version


@pytest.mark.parametrize("name", CHOOSERS)
def test_version_of_the_choosers(versions: Any, name: str) -> None:
    """A change of a module that chooses sites is another version."""
    content = MODULES.joinpath(name).read_bytes()
    changed = {name.removesuffix(".py"): content + b"#"}
    assert versions() == sitecache._version()
    assert versions(**changed) != versions()
    assert versions(loader=b"") == versions()


def test_choosers_are_all_there() -> None:
    """Every module that makes attach points, or that one of these imports to choose, is named."""
    folder = Path(str(MODULES))
    others = {"loader.py", "sitecache.py", "probes.py", "libbpf.py", "bcc.py", "session.py"}
    makers = {
        path.name
        for path in folder.glob("*.py")
        if path.name not in others
        and any(word in path.read_text() for word in ("AttachPoint(", "Function(", "find_methods"))
    }
    assert makers <= set(CHOOSERS)
    assert {"sites.py", "catalogue.py", "methods.py"} <= makers


def test_other_version(folder: Path, file: Path) -> None:
    """What another version chose is not believed; what this one chose replaces it."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    cache._version = "another"
    assert cache.get(str(file), "tls") is None
    cache.put(str(file), "tls", library(file))
    assert cache.get(str(file), "tls") == library(file)
    assert len(list(folder.iterdir())) == 1


def test_numbers_of_kinds_may_change(folder: Path, file: Path) -> None:
    """Kinds are stored by name: the number that another version gave one means nothing."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    stored = json.loads(entry(folder).read_text())["points"]
    assert [(point["life"], point["kind"]) for point in stored] == [
        (isinstance(point.kind, LifeKind), point.kind.name) for point in library(file).points
    ]


# --- Entries that are something else ---


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000],
    ids=lambda content: content[:4].hex() or "empty",
)
def test_broken_entries(folder: Path, file: Path, content: bytes) -> None:
    """What can't be read is not cached."""
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    entry(folder).write_bytes(content)
    assert cache.get(str(file), "tls") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "NO_SUCH_KIND"), ("kind", None), ("file_offset", -1), ("file_offset", 1 << 70), ("file_offset", "x"),
        ("returns", 5), ("vaddr", None), ("count_arg", "x"), ("code", ""),
    ],
)  # fmt: skip
def test_broken_points(folder: Path, file: Path, field: str, value: object) -> None:
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    stored = json.loads(entry(folder).read_text())
    stored["points"][3][field] = value
    entry(folder).write_text(json.dumps(stored))
    assert cache.get(str(file), "tls") is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_folder_of_others(folder: Path, file: Path, mode: int) -> None:
    """A folder that others may write to is not used: who writes there would choose where root puts probes."""
    SiteCache(str(folder)).put(str(file), "tls", library(file))
    folder.chmod(mode)
    cache = SiteCache(str(folder))
    assert cache.get(str(file), "tls") is None
    entry(folder).unlink()
    cache.put(str(file), "tls", library(file))
    assert list(folder.iterdir()) == []


def test_folder_that_is_none(folder: Path, file: Path, tmp_path: Path) -> None:
    """Another user's folder, a link, or a file in its place: nothing is cached, and nothing is raised."""
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    folder.symlink_to(real)
    owned = tmp_path / "owned"
    owned.mkdir(mode=0o755)
    os.chown(owned, 65534, 65534)
    for place in (folder, owned, file, file / "below"):
        cache = SiteCache(str(place))
        cache.put(str(file), "tls", library(file))
        assert cache.get(str(file), "tls") is None
    assert list(real.iterdir()) == list(owned.iterdir()) == []


def test_not_root(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    cache = SiteCache(str(folder))
    cache.put(str(file), "tls", library(file))
    assert not folder.exists()
    assert cache.get(str(file), "tls") is None
