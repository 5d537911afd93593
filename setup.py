"""Builds what Python can't describe in pyproject.toml: the ring reader and the BPF object.

The BPF object is compiled once here, by clang, and shipped in the wheel: a machine that records needs no
compiler.  CO-RE relocations adapt it to the running kernel when it is loaded.
"""

import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TARGET_ARCH = {"x86_64": "x86", "aarch64": "arm64"}


class BuildWithBpf(build_ext):
    """`build_ext`, and `bpf/` into `tlscap/_bpf/`."""

    def run(self) -> None:
        super().run()
        base = ROOT if self.inplace else ROOT / self.build_lib
        out = base / "tlscap" / "_bpf"
        out.mkdir(parents=True, exist_ok=True)
        self.compile_bpf(out / "tlscap.bpf.o")
        # BCC compiles at start: it gets the sources.
        for source in (ROOT / "bpf").glob("*.[ch]"):
            shutil.copy(source, out / source.name)

    def compile_bpf(self, target: Path) -> None:
        arch = TARGET_ARCH.get(platform.machine())
        if arch is None:
            raise SystemExit(f"tlscap supports x86_64 and aarch64, not {platform.machine()}")
        clang = shutil.which("clang")
        if clang is None:
            raise SystemExit("clang is needed to build the BPF object: apt-get install clang llvm libbpf-dev")
        multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
        # -mcpu=v3: 32-bit jumps keep length checks in a form that the verifier follows.
        command = [
            clang,
            "-O2",
            "-g",
            "-Wall",
            "-Werror",
            "-target",
            "bpf",
            "-mcpu=v3",
            f"-D__TARGET_ARCH_{arch}",
            f"-I/usr/include/{multiarch}",
            "-c",
            str(ROOT / "bpf" / "tlscap.bpf.c"),
            "-o",
            str(target),
        ]
        subprocess.run(command, check=True)
        strip = shutil.which("llvm-strip")
        if strip:  # DWARF is not needed; BTF stays
            subprocess.run([strip, "-g", str(target)], check=True)


setup(
    ext_modules=[
        Extension("tlscap.live._ring", ["tlscap/live/_ring.c"], extra_compile_args=["-O2", "-Wall", "-Wextra"])
    ],
    cmdclass={"build_ext": BuildWithBpf},
)
