"""The check that user space and the kernel's side agree on every structure: it passes, and it would not if they differed."""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "check_layout.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layout", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_layout"] = module
    spec.loader.exec_module(module)
    return module


def test_layouts_agree() -> None:
    """Every structure and constant is the same in the built object and in user space."""
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "are the same" in done.stdout


@pytest.mark.parametrize(
    ("structure", "changes", "expected"),
    [
        (
            "sample_data",
            {"format": struct.Struct("<QQIQIBBHI")},
            "struct sample_data.entry_ns: user space reads 4 bytes at 48, C has 8 at 48",
        ),
        (
            "sample_address",
            {"names": "at.remote at.local at.family at.local_port at.remote_port at.protocol at.srtt_us fd"},
            "struct sample_address.at.remote: user space reads 16 bytes at 32, C has 16 at 48",
        ),
        (
            "sample_header",
            {"format": struct.Struct("<HHIQII")},
            "struct sample_header.conn: user space reads 0 bytes at 24, C has 8 at 24",
        ),
        (
            "sample_mapped",
            {"format": struct.Struct("<QI"), "names": "inode device"},
            "struct sample_mapped.executable: user space does not know it",
        ),
        ("sample_mark", {"format": struct.Struct("<QQHB")}, "struct sample_mark: user space reads 51 bytes, C has 56"),
        (
            "sample_process",
            {"format": struct.Struct("<QII16sII128s")},
            "struct sample_process.cmdline: user space reads it at 200, C has it at 328",
        ),
        (
            "sample_close",
            {"format": struct.Struct("<IQQII"), "names": "extra bytes[0] bytes[1] recycled pad"},
            "struct sample_close.extra: user space reads 4 bytes at 32, C has no such field",
        ),
        ("connection", {"structure": "connexion"}, "struct connexion is not in the object's BTF"),
    ],
)
def test_difference_is_found(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], structure: str, changes: dict[str, object], expected: str
) -> None:
    """A structure that differs is an exit status of 1, and a line that says where and how."""
    layouts = [
        dataclasses.replace(layout, **changes) if layout.structure == structure else layout for layout in tool.LAYOUTS
    ]
    assert tool.main([], layouts) == 1
    lines = capsys.readouterr().out.splitlines()
    assert expected in lines
    assert all(line.startswith(f"struct {changes.get('structure', structure)}") for line in lines)


def test_constants_are_compared(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant with another value, one that is missing and one too many are found."""
    changed = {"role": ("ROLE_", {"UNKNOWN": 0, "CLIENT": 2, "PROXY": 3})}
    monkeypatch.setattr(tool, "CONSTANTS", changed)
    assert tool.differences(tool.btf_of(tool.OBJECT)) == [
        "enum role: CLIENT is 2 in user space, 1 in C",
        "enum role: PROXY is 3 in user space, None in C",
        "enum role: SERVER is None in user space, 2 in C",
    ]


def test_settings_are_compared(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are packed in another order, or in fewer bytes, are found."""

    def pack(settings: object) -> bytes:
        return struct.pack("=IIQQ", 1, 17, 5, 6)

    monkeypatch.setattr(tool.Settings, "pack", pack)
    found = tool.differences(tool.btf_of(tool.OBJECT))
    assert "struct config.filter: Settings.pack puts 0x1 there, not 0x11" in found
    assert "struct config: Settings.pack makes 24 bytes, C has 32" in found


def test_other_compilation(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An object without the types, or none at all, is a difference and not a success."""
    assert tool.main([str(tmp_path / "nothing.o")]) == 1
    assert "No such file" in capsys.readouterr().out
    (tmp_path / "empty.o").touch()
    assert tool.main([str(tmp_path / "empty.o")]) == 1
    assert tool.main([sys.executable]) == 1
