"""Libraries made by hand that raise errors as BoringSSL and OpenSSL do, without symbols; real ones, judged by their symbol tables."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlscap.errors import AttachError, TargetError, UnsupportedError, UsageError
from tlscap.live import signatures
from tlscap.live.signatures import Match, built_in, find_functions, has_mark, load, marks, may_hold, parse
from tlscap.live.sites import Image

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 code is looked at"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc makes the libraries"),
]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tlscap" / "tests"

PUT_ERROR = """
#include <stddef.h>
#define HIDDEN __attribute__((visibility("hidden"), noipa))
HIDDEN void put_error(int library, int unused, int reason, const char *file, unsigned line)
{
	asm volatile("" : : "r"(library), "r"(unused), "r"(reason), "r"(file), "r"(line));
}
"""
BORING = (
    PUT_ERROR
    + r"""
#define SSL_FILE "../some/where/ssl/ssl_lib.cc"
#define BIO_FILE "../some/where/crypto/bio/bio.cc"
#define RAISE(reason, line) put_error(16, 0, reason, SSL_FILE, line)
#define RAISE_BIO(reason, line) put_error(17, 0, reason, BIO_FILE, line)
typedef struct bio { const struct method *method; int init; size_t in, out; } BIO;
struct method { int type; const char *name; int (*write)(BIO *, const void *, int), (*read)(BIO *, void *, int), (*gets)(BIO *, void *, int); };
typedef struct ssl SSL;
struct ops { int (*handshake)(SSL *), (*write)(SSL *, const void *, int), (*open)(SSL *); };
struct ssl { const struct ops *ops; void *quic; int (*handshake)(SSL *); BIO *rbio, *wbio; unsigned char *pending; size_t left; unsigned char server : 1, shut : 1; int state; };
HIDDEN void *allocate(size_t size) { void *p = (void *)size; asm volatile("" : "+r"(p)); return p; }
HIDDEN void release(void *p) { asm volatile("" : : "r"(p) : "memory"); }
HIDDEN void destroy(SSL *ssl) { release(ssl->pending); asm volatile("" : : : "memory"); }
HIDDEN void clear_errors(void) { asm volatile("" : : : "memory"); }
HIDDEN void take_reference(BIO *bio) { asm volatile("" : : "r"(bio)); }
HIDDEN int client(SSL *ssl) { return ssl->state; }
HIDDEN int server(SSL *ssl) { return ssl->state + 1; }
HIDDEN void copy(void *to, const void *from, size_t n) { asm volatile("" : : "r"(to), "r"(from), "r"(n) : "memory"); }

HIDDEN SSL *SSL_new(void *ctx) { if (!ctx) { RAISE(185, 400); return NULL; } SSL *ssl = allocate(sizeof(*ssl)); ssl->state = 0; if (!ssl->ops) { destroy(ssl); release(ssl); return NULL; } return ssl; }
HIDDEN void SSL_free(SSL *ssl) { if (ssl) { destroy(ssl); release(ssl); } }
HIDDEN void SSL_set_connect_state(SSL *ssl) { ssl->server = 0; ssl->handshake = client; }
HIDDEN void SSL_set_accept_state(SSL *ssl) { ssl->server = 1; ssl->handshake = server; }
HIDDEN void SSL_set_bio(SSL *ssl, BIO *rbio, BIO *wbio) { if (ssl->rbio == rbio && ssl->wbio == wbio) return; if (rbio && rbio == wbio) take_reference(rbio); ssl->rbio = rbio; ssl->wbio = wbio; }
HIDDEN BIO *SSL_get_rbio(SSL *ssl) { return ssl->rbio; }
HIDDEN int SSL_do_handshake(SSL *ssl) { clear_errors(); if (!ssl->handshake) { RAISE(134, 500); return -1; } return ssl->handshake(ssl); }
HIDDEN int ssl_read_impl(SSL *ssl) { clear_errors(); if (!ssl->handshake) { RAISE(226, 600); return -1; } while (!ssl->left) { if (SSL_do_handshake(ssl) == 0) { RAISE(215, 610); return -1; } if (ssl->ops->open(ssl) < 0) return -1; ssl->state++; } return 1; }
#ifndef TWO_IN_ONE
HIDDEN
#else
static inline __attribute__((always_inline))
#endif
int SSL_peek(SSL *ssl, void *buffer, int n) { if (ssl->quic) { RAISE(66, 700); return -1; } int ret = ssl_read_impl(ssl); if (ret <= 0) return ret; size_t todo = ssl->left < (size_t)n ? ssl->left : (size_t)n; copy(buffer, ssl->pending, todo); return (int)todo; }
HIDDEN int SSL_read(SSL *ssl, void *buffer, int n) { int ret = SSL_peek(ssl, buffer, n); if (ret <= 0) return ret; ssl->pending += ret; ssl->left -= ret; return ret; }
#define WRITE(NAME) HIDDEN int NAME(SSL *ssl, const void *buffer, int n) { clear_errors(); if (ssl->quic) { RAISE(66, 800); return -1; } if (!ssl->handshake) { RAISE(226, 805); return -1; } if (ssl->state == 7) { int ret = SSL_do_handshake(ssl); if (ret < 0) return ret; if (ret == 0) { RAISE(215, 810); return -1; } } if (n < 0) { RAISE(111, 820); return -1; } ssl->state = 2; return ssl->ops->write(ssl, buffer, n); }
WRITE(SSL_write)
#ifdef TWO_WRITES
WRITE(SSL_write_too)
#endif
#define SHUTDOWN(NAME) HIDDEN int NAME(SSL *ssl) { clear_errors(); if (!ssl->handshake) { RAISE(226, 900); return -1; } if (ssl->shut) { if (ssl_read_impl(ssl) > 0) { RAISE(291, 910); return -1; } } ssl->shut = 1; return 0; }
SHUTDOWN(SSL_shutdown)
#ifdef TWO_SHUTDOWNS
SHUTDOWN(SSL_shutdown_too)
#endif
#define TRANSFER(NAME, WHAT, LINE, COUNT) HIDDEN int NAME(BIO *bio, void *buffer, int n) { if (!bio || !bio->method->WHAT) { RAISE_BIO(115, LINE); return -2; } if (!bio->init) { RAISE_BIO(114, LINE + 4); return -2; } if (n <= 0) return 0; int ret = bio->method->WHAT(bio, buffer, n); if (ret > 0) bio->COUNT += ret; return ret; }
TRANSFER(BIO_read, read, 20, in)
TRANSFER(BIO_gets, gets, 40, in)
TRANSFER(BIO_write, write, 60, out)
HIDDEN int BIO_write_all(BIO *bio, const char *data, size_t n) { while (n) { if (!bio || !bio->method->write) { RAISE_BIO(115, 60); return 0; } if (!bio->init) { RAISE_BIO(114, 64); return 0; } int ret = bio->method->write(bio, data, (int)n); if (ret <= 0) return 0; bio->out += ret; data += ret; n -= ret; } return 1; }
HIDDEN int BIO_flush(BIO *bio) { if (!bio->method->gets) { RAISE_BIO(115, 80); return -2; } return bio->method->gets(bio, NULL, 11); }
void *everything[] = { SSL_new, SSL_free, SSL_set_connect_state, SSL_set_accept_state, SSL_set_bio, SSL_get_rbio, SSL_read, SSL_write, SSL_shutdown, BIO_read, BIO_gets, BIO_write, BIO_write_all, BIO_flush,
#ifdef TWO_WRITES
	SSL_write_too,
#endif
#ifdef TWO_SHUTDOWNS
	SSL_shutdown_too,
#endif
};
int main(void) { return everything[0] == NULL; }
"""
)
OPENSSL_3 = r"""
#define HIDDEN __attribute__((visibility("hidden"), noipa))
HIDDEN void ERR_set_debug(const char *file, int line, const char *function) { asm volatile("" : : "r"(file), "r"(line), "r"(function)); }
#define RAISE ERR_set_debug("ssl/ssl_lib.c", __LINE__, __func__)
HIDDEN int ssl_read_internal(void **s, void *b, long n, long *done) { if (!s[1]) { RAISE; return -1; } *done = n; return 1; }
HIDDEN int ssl_write_internal(void **s, const void *b, long n, long *done) { if (!s[2]) { RAISE; return -1; } *done = n; return 1; }
HIDDEN int SSL_read(void **s, void *b, int n) { long done; if (n < 0) { RAISE; return -1; } int ret = ssl_read_internal(s, b, n, &done); return ret > 0 ? done : ret; }
HIDDEN int SSL_write(void **s, const void *b, int n) { long done; if (n < 0) { RAISE; return -1; } int ret = ssl_write_internal(s, b, n, &done); return ret > 0 ? done : ret; }
void *everything[] = { SSL_read, SSL_write };
"""
BORING_NAMES = {
    *("ssl_read_impl", "SSL_read", "SSL_write", "SSL_peek", "SSL_do_handshake", "SSL_shutdown", "SSL_new", "SSL_free"),
    *("SSL_set_connect_state", "SSL_set_accept_state", "SSL_set_bio", "BIO_read", "BIO_write"),
}


def build(folder: Path, source: str, *options: str, strip: bool = True) -> tuple[Path, dict[str, int]]:
    """A library without symbols, and where its functions are."""
    (folder / "library.c").write_text(source)
    named, stripped = folder / "named.so", folder / "library.so"
    kind = () if "-no-pie" in options else ("-shared", "-fPIC")
    # Functions stay in the order of the source, as C++ compilers leave those of real libraries.
    order = "-fno-toplevel-reorder"
    subprocess.run(["gcc", "-w", order, "-o", named, *kind, *(options or ("-O2",)), folder / "library.c"], check=True)
    shutil.copy(named, stripped)
    if strip:
        subprocess.run(["strip", "--strip-all", stripped], check=True)
    return stripped, symbols(named)


def symbols(path: Path) -> dict[str, int]:
    listing = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    dynamic = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^([0-9a-f]+) [tT] ([^@\s]+)", listing + dynamic, re.MULTILINE)
    return {name: int(value, 16) for value, name in rows}


def addresses(match: Match) -> dict[str, int]:
    return {name: found.vaddr for name, found in match.functions.items()}


# --- Libraries made by hand ---


@pytest.mark.parametrize(
    "options", [("-O1",), ("-O2",), ("-O3",), ("-Os",), ("-O2", "-no-pie"), ("-O2", "-fcf-protection")]
)
def test_functions_are_found_by_what_they_do(tmp_path: Path, options: tuple[str, ...]) -> None:
    path, truth = build(tmp_path, BORING, *options)
    (match,) = find_functions(Image(str(path)))
    assert match.library == "boringssl"
    assert addresses(match) == {name: truth[name] for name in BORING_NAMES}
    assert match.notes == ("BIO_write_ex: no function looks like it",)
    assert may_hold(str(path))


def test_the_evidence_says_why(tmp_path: Path) -> None:
    path, truth = build(tmp_path, BORING)
    (match,) = find_functions(Image(str(path)))
    assert match.functions["SSL_shutdown"].evidence == (
        f"SSL_shutdown at {truth['SSL_shutdown']:#x}: raises 226 at line 900, 291 at line 910 of ssl_lib.cc; calls ssl_read_impl"
    )


def test_peeking_may_be_part_of_reading(tmp_path: Path) -> None:
    path, truth = build(tmp_path, BORING, "-O2", "-DTWO_IN_ONE")
    (match,) = find_functions(Image(str(path)))
    assert addresses(match) == {name: truth[name] for name in BORING_NAMES - {"SSL_peek"}}


def test_openssl_names_itself(tmp_path: Path) -> None:
    path, truth = build(tmp_path, OPENSSL_3)
    (match,) = find_functions(Image(str(path)))
    assert match.library == "openssl"
    wanted = ("SSL_read", "SSL_write", "ssl_read_internal", "ssl_write_internal")
    assert addresses(match) == {name: truth[name] for name in wanted}


def test_two_that_look_alike_are_none(tmp_path: Path) -> None:
    path, truth = build(tmp_path, BORING, "-O2", "-DTWO_SHUTDOWNS")
    (match,) = find_functions(Image(str(path)))
    assert addresses(match) == {name: truth[name] for name in BORING_NAMES - {"SSL_shutdown"}}
    assert "SSL_shutdown: 2 functions look like it" in match.notes


def test_without_a_needed_function_nothing_is_used(tmp_path: Path) -> None:
    path, _ = build(tmp_path, BORING, "-O2", "-DTWO_WRITES")
    assert find_functions(Image(str(path))) == []


@pytest.mark.parametrize("old", ["ssl/ssl_lib.cc", "66, 800", "226, 600", "ssl_read_impl(ssl); if"])
def test_evidence_that_is_missing(tmp_path: Path, old: str) -> None:
    new = {"ssl/ssl_lib.cc": "ssl/other.cc", "66, 800": "65, 800", "226, 600": "225, 600"}.get(old, "client(ssl); if")
    assert old in BORING
    path, _ = build(tmp_path, BORING.replace(old, new))
    assert find_functions(Image(str(path))) == []


def test_errors_of_another_library_do_not_count(tmp_path: Path) -> None:
    path, _ = build(tmp_path, BORING.replace("put_error(16,", "put_error(15,"))
    assert find_functions(Image(str(path))) == []


def test_a_function_must_begin_where_the_unwind_table_says(tmp_path: Path) -> None:
    path, _ = build(tmp_path, BORING)
    subprocess.run(["objcopy", "--remove-section", ".eh_frame_hdr", path], check=True)
    assert find_functions(Image(str(path))) == []


def test_a_quick_look_is_bounded_to_constants(tmp_path: Path) -> None:
    path, _ = build(
        tmp_path,
        'static const char x[] __attribute__((section(".mine"), used)) = "/ssl_lib.cc"; int f(void) { return 1; }',
    )
    assert b"/ssl_lib.cc\0" in path.read_bytes()
    assert not may_hold(str(path))
    assert not may_hold(str(tmp_path / "nothing"))
    (tmp_path / "empty").touch()
    assert not may_hold(str(tmp_path / "empty"))
    assert not may_hold(str(tmp_path))


def test_marks_that_begin_with_another_are_searched_once() -> None:
    assert marks() == (b"ssl_lib.c",)
    assert has_mark(b"..ssl_lib.cc", 0, 12, marks())
    assert not has_mark(b"..ssl_lib.cc", 0, 10, marks())


# --- What a file may cost, and broken ones ---


def test_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = build(tmp_path, BORING)
    for name in ("MAX_ALL_STEPS", "MAX_CANDIDATES", "MAX_TEXT"):
        with monkeypatch.context() as patch:
            patch.setattr(signatures, name, 5)
            with pytest.raises(AttachError):
                find_functions(Image(str(path)))


def test_many_paths_end(tmp_path: Path) -> None:
    """Each branch leaves another constant in a register: 2^200 states."""
    branches = "".join(f"if (s[{n}]) b{n % 5} = {n};" for n in range(200))
    ends = "".join("use(b0, b1, b2, b3, b4);" for _ in range(3))
    source = PUT_ERROR + (
        'HIDDEN void use(int a, int b, int c, int d, int e) { asm volatile(""); }'
        f"int f(int *s) {{ int b0 = 0, b1 = 0, b2 = 0, b3 = 0, b4 = 0; {branches} {ends}"
        'put_error(16, 0, 226, "x/ssl_lib.cc", 9); return 0; }'
    )
    path, _ = build(tmp_path, source, "-O1")
    began = time.perf_counter()
    assert find_functions(Image(str(path))) == []
    assert time.perf_counter() - began < 5


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("signatures"), BORING)[0]


def look(path: Path) -> None:
    """Whatever the file is: a result or one of our errors."""
    may_hold(str(path))
    try:
        found = find_functions(Image(str(path)))
    except (AttachError, UnsupportedError, TargetError):
        return
    for match in found:
        image = Image(str(path))
        starts = {start for start, _ in image.functions()}
        assert {function.vaddr for function in match.functions.values()} <= starts


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.one_of(st.none(), st.integers(0, 1 << 15)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 15), st.integers(0, 255)), max_size=30),
    headers=st.lists(st.tuples(st.integers(-1600, 500), st.integers(0, 255)), max_size=6),
)
def test_broken_files(
    library: Path, tmp_path: Path, cut: int | None, edits: list[tuple[int, int]], headers: list[tuple[int, int]]
) -> None:
    """Bytes changed anywhere, and more often in the headers: at the beginning and, of sections, at the end."""
    broken = bytearray(library.read_bytes())
    for at, value in (*edits, *headers):
        broken[at % len(broken)] = value
    path = tmp_path / "broken"
    path.write_bytes(broken[:cut])
    look(path)


def test_code_that_is_noise(library: Path, tmp_path: Path) -> None:
    whole, image = library.read_bytes(), Image(str(library))
    starts = [start for start, _ in image.functions()]
    begin, end = image.file_offset(starts[0]), image.file_offset(starts[-1])
    for seed in range(20):
        noise = random.Random(seed).randbytes(end - begin)
        path = tmp_path / f"{seed}"
        path.write_bytes(whole[:begin] + noise + whole[end:])
        look(path)


# --- Rules ---

OWN = """
[[library]]
name = "mine"
mark = "wire.c"
needs = ["speak"]
error = { file = 2, line = 1 }
[[library.function]]
name = "speak"
file = "wire.c"
passes = [2]
"""


def test_rules_of_a_user(tmp_path: Path) -> None:
    source = """
    #define HIDDEN __attribute__((visibility("hidden"), noipa))
    HIDDEN void fail(int line, const char *file) { asm volatile("" : : "r"(line), "r"(file)); }
    HIDDEN int give(void *data) { asm volatile("" : : "r"(data)); return 1; }
    HIDDEN int speak(void *wire, void *data) { if (!wire) { fail(7, "src/wire.c"); return -1; } return give(data) + 1; }
    HIDDEN int hush(void *wire, void *data) { if (!wire) { fail(8, "src/wire.c"); return -1; } return give(wire) + 1; }
    void *everything[] = { speak, hush };
    """
    path, truth = build(tmp_path, source)
    (tmp_path / "own.toml").write_text(OWN)
    libraries = load(str(tmp_path / "own.toml"))
    assert may_hold(str(path), libraries)
    assert not may_hold(str(path))
    (match,) = find_functions(Image(str(path)), (*built_in(), *libraries))
    assert (match.library, addresses(match)) == ("mine", {"speak": truth["speak"]})


def test_one_function_is_not_two(tmp_path: Path) -> None:
    rows = '[[library.function]]\nname = "other"\nfile = "ssl_lib.cc"\nreasons = [185]\n'
    text = (
        '[[library]]\nname = "x"\nmark = "ssl_lib.cc"\nneeds = ["SSL_write"]\nerror = { reason = 3, file = 4, line = 5 }\n'
        + rows.replace("other", "SSL_write").replace("185", "111")
        + rows
        + rows.replace("other", "another")
    )
    path, truth = build(tmp_path, BORING)
    (match,) = find_functions(Image(str(path)), parse(text, "x"))
    assert addresses(match) == {"SSL_write": truth["SSL_write"]}
    assert "another: the same function as other" in match.notes


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[[library]]", "[[library", "own"),
        ('mark = "wire.c"', "mark = 7", "7 is not a name"),
        ('mark = "wire.c"\n', "", "mark"),
        ("passes = [2]", "passes = [7]", "counted from 1 to 6"),
        ("passes = [2]", 'passes = ["2"]', "not a number"),
        ("passes = [2]", "writes = 1", "true or false"),
        ("passes = [2]", 'place = "middle"', "first or the last"),
        ("passes = [2]", 'calls = ["later"]', "must stand above it"),
        ("passes = [2]", 'between = ["one"]', "lies between two"),
        ("passes = [2]", 'code = "("', "not a file of signatures"),
        ("passes = [2]", "reason = [2]", "has no 'reason'"),
        ('file = "wire.c"\n', "", "needs a file"),
        ('needs = ["speak"]', 'needs = ["shout"]', "need functions that it describes"),
        ("file = 2, ", "", "error says which argument"),
        ("file = 2", "file = 9", "counted from 1 to 6"),
        (OWN, "library = 3", "not a file of signatures"),
        (OWN, "library = [3]", "not a file of signatures"),
    ],
)
def test_rules_that_make_no_sense(old: str, new: str, what: str) -> None:
    assert old in OWN
    with pytest.raises(UsageError, match=re.escape(what)):
        parse(OWN.replace(old, new, 1), "own")


def test_rules_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# \xe9")
    for path in (tmp_path / "nothing", tmp_path / "latin", tmp_path):
        with pytest.raises(UsageError):
            load(str(path))


# --- Real libraries ---


def test_debians_openssl() -> None:
    """It exports its functions: the rules must find what the symbol table says."""
    path = Path("/usr/lib/x86_64-linux-gnu/libssl.so.3")
    if not path.exists():
        pytest.skip("no libssl.so.3")
    (match,) = find_functions(Image(str(path)))
    truth = symbols(path)
    exported = {name: vaddr for name, vaddr in addresses(match).items() if name in truth}
    assert exported == {name: truth[name] for name in exported}
    assert {"SSL_read", "SSL_write", "SSL_peek", "SSL_do_handshake", "SSL_shutdown"} <= exported.keys()


def cached(pattern: str) -> Path:
    found = sorted(CACHE.glob(pattern))
    if not found:
        pytest.skip(f"{pattern} is not in the cache of the tests")
    return found[0]


def test_curl_cffi_without_its_symbols(tmp_path: Path) -> None:
    path = cached("pypi-*/curl_cffi/curl_cffi/_wrapper*.so")
    truth = symbols(path)
    stripped = tmp_path / path.name
    subprocess.run(["strip", "--strip-all", "-o", stripped, path], check=True)
    (match,) = find_functions(Image(str(stripped)))
    found = addresses(match)
    assert BORING_NAMES - {"ssl_read_impl"} <= found.keys()
    assert {name: truth[name] for name in found if name in truth} == {n: v for n, v in found.items() if n in truth}


def test_grpcio() -> None:
    """Stripped by its makers: no table judges, but everything must be there, each at a place of its own, and soon."""
    spec = importlib.util.find_spec("grpc")
    places = list(Path(spec.origin).parent.glob("_cython/cygrpc*.so")) if spec and spec.origin else []
    places += sorted(CACHE.glob("pypi-*/*grpcio*/grpc/_cython/cygrpc*.so"))
    if not places:
        pytest.skip("no wheel of grpcio")
    for path in places:
        image = Image(str(path))
        began = time.perf_counter()
        assert may_hold(str(path))
        (match,) = find_functions(image)
        assert time.perf_counter() - began < 2
        assert match.functions.keys() >= BORING_NAMES, match.notes
        vaddrs = set(addresses(match).values())
        assert len(vaddrs) == len(match.functions)
        assert vaddrs <= {start for start, _ in image.functions()}
