"""The command line as a whole: help, usage errors and exit statuses.  Nothing here records."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from captures import answer, get, write_capture

from tlscap import __version__, errors
from tlscap.cli import main as cli
from tlscap.errors import TlscapError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs ``tlscap`` with some arguments as the console script does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tlscap", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        code = caught.value.code
        return Outcome(0 if code is None else int(code), out, err)

    return run


def command(name: str) -> click.Command:
    context = click.Context(cli.tlscap)
    found = cli.tlscap.get_command(context, name)
    assert found is not None
    return found


COMMANDS = sorted(cli.COMMANDS)
OPTIONS = [
    pytest.param(name, option, id=f"{name} {option.opts[-1]}")
    for name in COMMANDS
    for option in command(name).params
    if isinstance(option, click.Option)
]


# --- Help ---


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run: Run, option: str) -> None:
    """The help names every command with what it does."""
    done = run(option)
    assert (done.status, done.err) == (0, "")
    for name, text in cli.COMMANDS.items():
        assert f"  {name}" in done.out
        assert text in " ".join(done.out.split())


def test_no_arguments(run: Run) -> None:
    """Without arguments there is help, too, and not success."""
    done = run()
    assert done.status == 2
    assert "record" in done.out + done.err


def test_version(run: Run) -> None:
    """The version is that of the package."""
    done = run("--version")
    assert (done.status, done.err) == (0, "")
    assert __version__ in done.out


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_command_help(name: str, option: str) -> None:
    """Every command says how it is used and what it does, with ``-h``, too."""
    # In a process of its own: click keeps a command's help options from its first use, which another test may have had.
    script = "from tlscap.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script, name, option], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: tlscap {name} ")
    assert cli.COMMANDS[name].rstrip(".").split()[0] in done.stdout


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_has_help(name: str, option: click.Option) -> None:
    """Every option of every command says what it does, in a sentence, and is long."""
    assert option.help, f"{name} {option.opts}"
    assert option.help[0].isupper() or option.help.startswith("With")
    assert any(text.startswith("--") for text in option.opts)
    assert all(len(text) == 2 or text.startswith("--") for text in option.opts)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_lazy(name: str) -> None:
    """A command's first docstring line says the same as the list of commands, or more: the list is kept by hand."""
    short = command(name).help or ""
    assert short.split(".", maxsplit=1)[0].split()[0] == cli.COMMANDS[name].split()[0]


def test_help_imports_little() -> None:
    """The list of commands loads no command: ``record`` must start fast."""
    script = (
        "import sys; sys.argv = ['tlscap', '--help']\n"
        "from tlscap.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith(('tlscap.cli.r', 'tlscap.live', 'capstone', 'scapy'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- Usage errors ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "--nonsense"),
        (["record", "--nonsense"], "--nonsense"),
        (["rebuild", "x"], "Missing option '-o'"),
        (["inspect"], "Missing argument 'FILE'"),
        (["rebuild", "x", "-o", "y", "--framing", "no"], "'no' is not one of"),
        (["inspect", "--body", "0", "x"], "0 is not in the range"),
        (["record", "--pid", "0"], "0 is not in the range"),
        (["record", "--uid", "99999999999"], "is not in the range"),
        (["record", "--pid", "x"], "'x' is not a valid integer"),
        (["record", "--snaplen", "much", "--", "true"], "'much' is not a size"),
        (["record", "--duration", "long", "--", "true"], "'long' is not a time"),
        (["record", "--ring-size", "9" * 400, "--", "true"], "is too large"),
        (["record", "--loader", "magic", "--", "true"], "'magic' is not one of"),
    ],
)
def test_usage_errors_of_click(run: Run, arguments: list[str], text: str) -> None:
    """What can't be parsed is said in one line, behind how the command is used: status 2."""
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert text in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["record"], "nothing to record"),
        (["record", "-o", "x", "-q"], "nothing to record"),
        (["record", "--pid", "1", "--", "true"], "a command or processes to record, not both"),
        (["record", "--all", "true"], "a command or processes to record, not both"),
        (["record", "--no-pcapng", "--no-sidecar", "--", "true"], "leave nothing to write"),
        (["record", "-w", "file", "--", "true"], "give -w -, or -o file"),
        (["record", "-o", "folder/", "--", "true"], "a name is missing"),
        (["record", "-o", ".pcapng", "--", "true"], "a name is missing"),
        (["record", "--ring-size", "4095", "--", "true"], "--ring-size must lie between"),
        (["record", "--ring-size", "3GiB", "--", "true"], "--ring-size must lie between"),
        (["record", "--container", "x"], "is not a container id"),
        (["inspect", "--raw", "x"], "need --body"),
        (["inspect", "--body", "1", "--json", "x"], "are two answers"),
    ],
)
def test_usage_errors_of_ours(run: Run, arguments: list[str], text: str) -> None:
    """Options that make no sense together are said in one line, and a hint on a second one: status 2."""
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    first, *hints = done.err.splitlines()
    assert first.startswith("tlscap: ")
    assert text in first
    assert len(hints) <= 1
    assert all(hint.startswith("  ") for hint in hints)
    assert os.listdir() == []


@pytest.mark.parametrize("arguments", [["record", "-w", "-", "--", "true"], ["rebuild", "x", "-o", "-"]])
def test_binary_data_for_a_terminal(arguments: list[str], tmp_path: Path) -> None:
    """Binary data is not written to a terminal; nothing is run and no file is made."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from tlscap.cli.main import main; main()", *arguments],
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode in (2, 5)
    assert "to the terminal" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["inspect", "nothing"], 5, "nothing: No such file or directory"),
        (["rebuild", "nothing", "-o", "x"], 5, "nothing: No such file or directory"),
        (["inspect", "."], 5, ".: Is a directory"),
        (["inspect", str(ROOT / "pyproject.toml")], 4, "neither a tlscap sidecar nor a pcapng"),
        (["rebuild", str(ROOT / "pyproject.toml"), "-o", "x"], 4, "not a tlscap sidecar"),
        (["record", "--pid", "2147483647"], 3, ""),
        (["record", "--cgroup", "/no/such/group"], 3, "group"),
    ],
)
def test_statuses(run: Run, arguments: list[str], status: int, text: str) -> None:
    """What a file or a process is not, has its own status, and the line names it."""
    done = run(*arguments)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("tlscap: ")
    assert text in done.err.splitlines()[0]
    assert len(done.err.splitlines()) <= 2
    assert os.listdir() == []


# --- Exit statuses of errors ---

CLASSES = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TlscapError)
}
STATUSES = {
    "TlscapError": 1,
    "UsageError": 2,
    "CaptureError": 3,
    "PrivilegeError": 3,
    "UnsupportedError": 3,
    "LoadError": 3,
    "AttachError": 3,
    "TargetError": 3,
    "FormatError": 4,
    "TruncatedError": 4,
    "CorruptError": 4,
    "UnsupportedVersionError": 4,
    "OutputError": 5,
    "CommandNotExecutableError": 126,
    "InterruptedRecordingError": 130,
    "CommandNotFoundError": 127,
}


def test_every_error_has_a_status() -> None:
    """Each class has the status that the README gives it, and its line in the tree of the module."""
    assert {name: kind.exit_status for name, kind in CLASSES.items()} == STATUSES
    tree = errors.__doc__ or ""
    assert all(name in tree for name in STATUSES)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def main(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "tlscap", SimpleNamespace(main=main))


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("hint", ["", "do this"])
def test_errors_become_lines(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    """Any error is one line, its hint a second one, and its status is the exit status."""
    fails_with(monkeypatch, CLASSES[name]("what is wrong", hint=hint))
    done = run()
    assert done == Outcome(STATUSES[name], "", "tlscap: what is wrong\n" + (f"  {hint}\n" if hint else ""))


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (click.Abort(), 130)])
def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int) -> None:
    """Ctrl-C ends without a word."""
    fails_with(monkeypatch, error)
    assert run() == Outcome(status, "", "")


def test_broken_pipe() -> None:
    """When whoever reads our output goes away, we end quietly."""
    script = (
        "from tlscap.cli import main as cli\n"
        "from types import SimpleNamespace\n"
        "def write(**_):\n"
        "    import sys\n"
        "    while True: sys.stdout.write('x' * 100000); sys.stdout.flush()\n"
        "cli.tlscap = SimpleNamespace(main=write)\n"
        "cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_page_of_the_command_line_is_true() -> None:
    """docs/cli.md is what tools/make_docs.py writes today."""
    # In a process of its own: commands remember how they were called first.
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_docs.py", "-"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == done.stdout, "run tools/make_docs.py"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "arguments", [[], ["--json"], ["--har"], ["--stats"], ["--flows"], ["--follow", "1"], ["--body", "1"]]
)
def test_a_full_disk_behind_standard_output(tmp_path: Path, arguments: list[str]) -> None:
    """One line and the status for files that can't be written, whatever was asked for; also when only the last flush fails."""
    path = write_capture(tmp_path / "c.tlscap.zst", [(get("/"), answer(bytes(200)))] * 100)
    with open("/dev/full", "wb") as full:
        command = [str(Path(sys.executable).with_name("tlscap")), "inspect", str(path), *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1] == "tlscap: standard output: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
