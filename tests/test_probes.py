"""Which files are probed, for whom, and when: real libraries made here, a loader that only writes down what it is told."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tlscap.live import targets
from tlscap.live.loader import AttachPoint, CallKind, Counter, ResolvedLibrary
from tlscap.live.probes import MAX_CALLBACKS, MAX_JOINS, Probes, is_carrier, is_linker
from tlscap.live.sitecache import SiteCache
from tlscap.live.targets import MappedFile, Place

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the sources are x86-64 code"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]

PID, OTHER = 70, 71
TLS = ("wolfSSL_read", "wolfSSL_write", "wolfSSL_free")
BIO = ("BIO_read", "BIO_write")
LIBRARIES = {
    "libtls.so": TLS,
    "libcrypto.so.3": BIO,
    "libcrypto-system.so": BIO,
    "both": (*TLS, *BIO),
    "libplain.so": ("nothing",),
    "ld-linux-x86-64.so.2": ("_dl_debug_state",),
    "python3.11": ("main",),
}


class FakeLoader:
    """Stands where the kernel would."""

    name = "fake"
    ring_fd = -1
    follows_one = True

    def __init__(self) -> None:
        self.attached: list[tuple[str, str, int]] = []
        self.for_process: list[tuple[str, str, int]] = []
        self.offsets: list[int] = []
        self.calls = 0
        self.refuses = ""
        self.detached: list[int] = []
        self.on_attach: Callable[[], None] = lambda: None

    def _refused(self, points: Sequence[AttachPoint]) -> list[tuple[AttachPoint, str]]:
        return [
            (point, f"{point.function}: refused") for point in points if self.refuses and self.refuses in point.function
        ]

    def attach(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        self.attached += [(os.path.basename(point.path), point.function, pid) for point in points]
        return self._refused(points)

    def attach_process(self, points: Sequence[AttachPoint], pid: int) -> list[tuple[AttachPoint, str]]:
        self.calls += 1
        self.on_attach()
        self.for_process += [(os.path.basename(point.path), point.function, pid) for point in points]
        self.offsets += [point.file_offset for point in points]
        return self._refused(points)

    def detach_process(self, pid: int) -> None:
        self.detached.append(pid)

    def detach(self) -> None: ...

    def update(self, map_name: str, key: bytes, value: bytes) -> None: ...

    def delete(self, map_name: str, key: bytes) -> None: ...

    def items(self, map_name: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    def counters(self) -> Mapping[Counter, int]:
        return {}

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of libraries with these functions."""
    folder = tmp_path_factory.mktemp("libraries")
    for name, functions in LIBRARIES.items():
        text = "".join(f"int {one}(int x) {{ return x + {number}; }}\n" for number, one in enumerate(functions))
        command: list[str | Path] = ["gcc", "-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-o", folder / name]
        subprocess.run(command, input=text.encode(), check=True)
    return folder


class World:
    """What the machine is: who maps what, and where callbacks lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps: dict[int, list[str]] = {}
        self.places: dict[int, Place] = {}
        self.looked_up = 0
        self.system: list[str] = []
        self.ended: set[int] = set()

    def mapped(self, pid: int, known: Sequence[tuple[int, int]] = ()) -> list[MappedFile]:
        found = []
        for name in self.maps.get(pid, []):
            path = self.folder / name
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            self.looked_up += identity not in known
            found.append(MappedFile("" if identity in known else str(path), f"/there/{name}", *identity))
        return found

    def system_libraries(self, names: str) -> list[str]:
        assert names == "libcrypto"
        return [str(self.folder / name) for name in self.system]


@pytest.fixture
def world(files: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(files)
    monkeypatch.setattr(targets, "mapped_files", made.mapped)
    monkeypatch.setattr(targets, "exists", lambda pid: pid not in made.ended)
    monkeypatch.setattr(targets, "system_libraries", made.system_libraries)
    monkeypatch.setattr(targets, "place_of", lambda pid, address: made.places.get(address))
    return made


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def probes(loader: FakeLoader, tmp_path: Path) -> Probes:
    return Probes(loader=loader, _cache=SiteCache(str(tmp_path / "cache")))


# --- Files ---


def test_look_at(world: World, loader: FakeLoader, probes: Probes) -> None:
    """What a process maps is probed once, for everybody; nothing is probed that has no TLS functions."""
    world.maps = {PID: ["libplain.so", "libtls.so"], OTHER: ["libtls.so", "both"]}
    assert [library.flavor for library in probes.look_at(PID)] == ["wolfssl"]
    assert {(name, pid) for name, _, pid in loader.attached} == {("libtls.so", -1)}
    before = list(loader.attached)
    assert probes.look_at(PID) == []
    assert loader.attached == before
    assert len(probes.look_at(OTHER)) == 1
    assert {name for name, _, _ in loader.attached[len(before) :]} == {"both"}


def test_known_files_are_not_looked_up_again(world: World, probes: Probes) -> None:
    """Where files can be opened is looked up the first time only."""
    world.maps[PID] = ["libplain.so", "libtls.so", "python3.11"]
    probes.look_at(PID)
    world.looked_up = 0
    probes.look_at(PID)
    world.maps[OTHER] = world.maps[PID]
    probes.look_at(OTHER)
    assert world.looked_up == 6, "three files by each of the joins that a carrier asks for, none by looking"


def test_found_before_it_is_mapped(world: World, files: Path, loader: FakeLoader, probes: Probes) -> None:
    """A file that was only looked into, because of a callback or for its BIO functions, is still probed when its turn comes."""
    assert probes.find(str(files / "libtls.so")) is not None
    assert loader.attached == []
    world.maps[PID] = ["libtls.so"]
    assert len(probes.look_at(PID)) == 1
    assert loader.attached


def test_file_that_cant_be_probed(world: World, loader: FakeLoader, probes: Probes) -> None:
    """It is said once, however many processes map it."""
    loader.refuses = "wolfSSL"
    world.maps = {PID: ["libtls.so"], OTHER: ["libtls.so"]}
    for pid in (PID, OTHER, PID):
        assert probes.look_at(pid) == []
    assert len(probes.notes) == 1
    assert "no probe could be attached" in probes.notes[0]


def test_files_that_vanish(tmp_path: Path, loader: FakeLoader, probes: Probes) -> None:
    assert not probes.attach(str(tmp_path / "nothing"))
    assert loader.attached == []


def test_nothing_found_is_remembered(tmp_path: Path, files: Path, loader: FakeLoader) -> None:
    """What looked promising and held nothing is not disassembled by the next recording."""
    if os.geteuid() != 0:
        pytest.skip("only root's cache is believed")
    path = tmp_path / "liar.so"
    text = "int SSL_write(void){return 1;}"  # half of a library
    subprocess.run(["gcc", "-shared", "-nostdlib", "-x", "c", "-", "-o", path], input=text.encode(), check=True)
    for turn in range(2):
        one = Probes(loader=loader, _cache=SiteCache(str(tmp_path / "cache")))
        assert one.find(str(path)) is None
        assert (one._resolver is None) == (turn == 1)
    good = Probes(loader=loader, _cache=SiteCache(str(tmp_path / "cache")))
    assert good.find(str(files / "libtls.so")) is not None


def test_linker(world: World, loader: FakeLoader, probes: Probes) -> None:
    """The dynamic linker is watched, once, and is no TLS library."""
    world.maps = {PID: ["ld-linux-x86-64.so.2"], OTHER: ["ld-linux-x86-64.so.2"]}
    assert probes.look_at(PID) == probes.look_at(OTHER) == []
    assert loader.attached == [("ld-linux-x86-64.so.2", "_dl_debug_state", -1)]


# --- Joining ---


def test_join(world: World, loader: FakeLoader, probes: Probes) -> None:
    """BIO functions of what the process maps, and of what it will map, for this process, each file once."""
    world.maps[PID] = ["libplain.so", "libtls.so", "libcrypto.so.3", "both", "ld-linux-x86-64.so.2"]
    world.system = ["libcrypto.so.3", "libcrypto-system.so"]
    probes.join(PID)
    expected = {(name, one, PID) for name in ("libcrypto.so.3", "libcrypto-system.so", "both") for one in BIO}
    assert set(loader.for_process) == expected
    assert len(loader.for_process) == len(expected)
    assert loader.attached == [], "nothing for all processes"
    probes.join(PID)
    assert loader.calls == 1, "nothing is new"
    world.maps[OTHER] = ["libcrypto.so.3"]
    probes.join(OTHER)
    assert {pid for _, _, pid in loader.for_process[len(expected) :]} == {OTHER}


def test_join_again_with_more(world: World, loader: FakeLoader, probes: Probes) -> None:
    """What the process maps later is added."""
    world.maps[PID] = ["libplain.so"]
    probes.join(PID)
    assert loader.calls == 0
    world.maps[PID].append("both")
    probes.join(PID)
    assert {name for name, _, _ in loader.for_process} == {"both"}


def test_join_says_what_failed(world: World, loader: FakeLoader, probes: Probes) -> None:
    world.maps[PID] = ["libcrypto.so.3"]
    loader.refuses = "BIO_read"
    probes.join(PID)
    assert probes.notes == ["BIO_read: refused"]


def test_join_of_what_vanishes(
    world: World, loader: FakeLoader, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may end while it is looked at: what is left is probed, and nothing is raised."""
    world.maps[PID] = ["libcrypto.so.3"]
    monkeypatch.setattr(targets, "system_libraries", lambda names: ["/no/such/libcrypto.so.9"])
    probes.join(PID)
    assert {name for name, _, _ in loader.for_process} == {"libcrypto.so.3"}


def test_join_without_a_loader(world: World) -> None:
    world.maps[PID] = ["libcrypto.so.3"]
    Probes().join(PID)


def test_join_where_one_process_alone_cant_be_probed(world: World, loader: FakeLoader, probes: Probes) -> None:
    """Older kernels and the other loader: nothing is tried, and nothing said; addresses stay placeholders."""
    world.maps[PID] = ["libcrypto.so.3"]
    loader.follows_one = False
    probes.join(PID)
    assert (loader.calls, loader.attached, probes.notes) == (0, [], [])


def test_join_of_what_will_be_run(world: World, files: Path, loader: FakeLoader, probes: Probes) -> None:
    """A command's own file is probed before it is mapped, if it has the functions; others are not."""
    probes.join(PID, [str(files / "both"), str(files / "libplain.so")])
    assert set(loader.for_process) == {("both", one, PID) for one in BIO}


def test_many_processes_are_probed_together(world: World, loader: FakeLoader, probes: Probes) -> None:
    """Where one process comes after the other, the file is probed for all at last, once."""
    pids = range(1000, 1000 + MAX_JOINS + 3)
    for pid in pids:
        world.maps[pid] = ["libcrypto.so.3"]
        probes.join(pid)
    assert {pid for _, _, pid in loader.for_process} == set(pids[:MAX_JOINS])
    assert sorted(loader.attached) == sorted(("libcrypto.so.3", one, -1) for one in BIO)


def test_ended_processes_are_forgotten(world: World, loader: FakeLoader, probes: Probes) -> None:
    """The kernel does not tell of the end of a process that made no TLS call: nothing of it is kept for long."""
    world.maps = {PID: ["libcrypto.so.3"], OTHER: ["libcrypto.so.3"]}
    probes.join(PID)
    world.ended.add(PID)
    probes.join(PID)
    assert loader.calls == 1
    probes.join(OTHER)
    assert loader.detached == [PID]
    assert set(probes._joined) == {OTHER}


def test_late_for_an_ended_process(world: World, loader: FakeLoader, probes: Probes) -> None:
    """That probes of a process that ended meanwhile can't be placed is no news."""
    world.maps[PID] = ["libcrypto.so.3"]
    loader.refuses = "BIO_read"
    loader.on_attach = lambda: world.ended.add(PID)
    probes.join(PID)
    assert loader.calls == 1
    assert probes.notes == []


def test_forget(world: World, loader: FakeLoader, probes: Probes) -> None:
    """When a process has ended its probes go, and its number may come again."""
    world.maps[PID] = ["libcrypto.so.3"]
    probes.join(PID)
    probes.remember_callback(PID, 5, CallKind.BIO_WRITE)
    probes.forget(PID)
    assert loader.detached == [PID]
    assert not probes._joined
    assert not probes._callbacks
    probes.forget(PID)
    probes.forget(OTHER)
    assert loader.detached == [PID], "nothing is left to detach"
    probes.join(PID)
    assert loader.calls == 2


def test_carriers_are_joined(world: World, loader: FakeLoader, probes: Probes) -> None:
    """Programs that are known to carry ciphertext are watched before their first call, and others are not."""
    world.maps = {PID: ["python3.11", "libcrypto.so.3"], OTHER: ["libtls.so", "libcrypto.so.3"]}
    probes.look_at(OTHER)
    assert loader.for_process == []
    probes.look_at(PID)
    assert set(loader.for_process) == {("libcrypto.so.3", one, PID) for one in BIO}


# --- Callbacks ---


@pytest.fixture
def callback(world: World, files: Path) -> int:
    """Return the address of a function in a program that has no TLS functions."""
    from tlscap.live.sites import Image

    image = Image(str(files / "libplain.so"))
    (symbol,) = image.symbols(frozenset({"nothing"})).values()
    world.places[0x7000] = Place(image.path, image.file_offset(symbol.vaddr))
    return 0x7000


def test_callback_of_the_program(world: World, loader: FakeLoader, probes: Probes, callback: int) -> None:
    """The program's own function is probed at once, for this process, where it lies in the file."""
    probes.remember_callback(PID, callback, CallKind.BIO_WRITE)
    offset = world.places[callback].offset
    assert loader.for_process == [("libplain.so", f"the function at {offset:#x}", PID)]
    assert offset <= loader.offsets[0] <= offset + 4
    probes.remember_callback(PID, callback, CallKind.BIO_WRITE)
    assert loader.calls == 1
    probes.remember_callback(OTHER, callback, CallKind.BIO_WRITE)
    assert [pid for _, _, pid in loader.for_process] == [PID, OTHER]


def test_callback_of_the_library(world: World, files: Path, loader: FakeLoader, probes: Probes) -> None:
    """One of the library's own will call the socket: it is probed only when the process must be joined."""
    world.places[0x9000] = Place(str(files / "libtls.so"), probes_offset(files / "libtls.so"))
    probes.remember_callback(PID, 0x9000, CallKind.BIO_READ)
    assert loader.calls == 0
    probes.join(PID)
    assert [(name, pid) for name, _, pid in loader.for_process] == [("libtls.so", PID)]
    probes.join(PID)
    assert loader.calls == 1


def probes_offset(path: Path) -> int:
    """Return where the first function of a library lies in it."""
    from tlscap.live.sites import Image

    image = Image(str(path))
    (symbol,) = image.symbols(frozenset({"wolfSSL_read"})).values()
    return image.file_offset(symbol.vaddr)


def test_callback_of_a_joined_process(world: World, files: Path, loader: FakeLoader, probes: Probes) -> None:
    """A process that is watched already gets whatever comes."""
    world.maps[PID] = ["libcrypto.so.3"]
    probes.join(PID)
    world.places[0x9000] = Place(str(files / "libtls.so"), probes_offset(files / "libtls.so"))
    probes.remember_callback(PID, 0x9000, CallKind.BIO_READ)
    assert loader.for_process[-1][0] == "libtls.so"


def test_callback_in_no_file(world: World, loader: FakeLoader, probes: Probes) -> None:
    """Code that a program wrote into memory can't be probed."""
    probes.remember_callback(PID, 0x1234, CallKind.BIO_WRITE)
    probes.join(PID)
    assert loader.calls == 0
    assert probes.notes == []


def test_callback_outside_of_code(world: World, files: Path, loader: FakeLoader, probes: Probes) -> None:
    """A place that is no instruction of the file is refused, and said."""
    world.places[0x1000] = Place(str(files / "libplain.so"), 1 << 40)
    probes.remember_callback(PID, 0x1000, CallKind.BIO_WRITE)
    assert loader.calls == 0
    (note,) = probes.notes
    assert "not inside an executable segment" in note


def test_many_callbacks(world: World, loader: FakeLoader, probes: Probes) -> None:
    """A process that makes functions without end costs no more than this."""
    for address in range(10 * MAX_CALLBACKS):
        probes.remember_callback(PID, address, CallKind.BIO_WRITE)
    assert len(probes._callbacks[PID]) == MAX_CALLBACKS


# --- Names ---


@pytest.mark.parametrize(
    "name",
    [
        "python3", "python3.12", "python3.11-dbg", "/usr/bin/python", "pypy3.10", "node", "/opt/node20", "ruby", "ruby3.1",
        "/usr/local/bin/envoy", "uwsgi", "uwsgi-core", "_ssl.cpython-311-x86_64-linux-gnu.so", "cygrpc.cpython-311.so",
        "libgrpc.so.37", "libQt5Network.so.5", "libQt6Network.so.6", "_rust.abi3.so",
    ],
)  # fmt: skip
def test_carriers(name: str) -> None:
    assert is_carrier(name)


@pytest.mark.parametrize(
    "name",
    [
        "curl", "nginx", "libssl.so.3", "libpython3.11.so.1.0", "node_exporter", "mypython", "nodejs.conf", "rubygems.so", "",
        "/python3/curl", "libQt5Core.so.5", "libgr.so", "_ssl.so", "envoyage",
    ],
)  # fmt: skip
def test_no_carriers(name: str) -> None:
    assert not is_carrier(name)


def test_linkers() -> None:
    for name in ("/lib64/ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "ld-2.31.so"):
        assert is_linker(name)
    for name in ("libldap.so", "ld", "/ld-linux/libssl.so", ""):
        assert not is_linker(name)


def test_attach_all(
    files: Path, world: World, loader: FakeLoader, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of programs the linker that they ask for is watched, too; when only some processes are probed, it isn't."""
    linker = str(files / "ld-linux-x86-64.so.2")
    monkeypatch.setattr(targets, "interpreter", lambda path: linker if path.endswith("both") else None)
    paths = [str(files / name) for name in ("libplain.so", "both", "libtls.so")]
    assert probes.attach_all(paths) == 2
    assert ("ld-linux-x86-64.so.2", "_dl_debug_state", -1) in loader.attached
    assert probes.attach_all(paths) == 0
    only = FakeLoader()
    assert Probes(loader=only, only_pids=(PID,), _cache=probes._cache).attach_all([*paths, linker]) == 2
    assert {pid for _, _, pid in only.attached} == {PID}
    assert "ld-linux-x86-64.so.2" not in {name for name, _, _ in only.attached}


def test_libraries_of(world: World, probes: Probes) -> None:
    """What a process maps of what is probed; when it is gone, the only one there is."""
    world.maps = {PID: ["libtls.so"], OTHER: ["both"]}
    probes.look_at(PID)
    assert [library.path for library in probes.libraries_of(99)] == [str(world.folder / "libtls.so")]
    probes.look_at(OTHER)
    found: list[ResolvedLibrary] = probes.libraries_of(PID)
    assert [library.path for library in found] == [str(world.folder / "libtls.so")]
    assert probes.libraries_of(99) == []
