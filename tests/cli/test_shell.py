"""What every command shares: help, listing, options, and how each sort of failure looks."""

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import typer

from moe_lab import __version__
from moe_lab.cli import current_lab, main
from moe_lab.cli.app import CommandGroup, root_command
from moe_lab.cli.commands import COMMANDS
from moe_lab.errors import Interrupted, LabError

Command = Callable[..., subprocess.CompletedProcess[str]]


def where(ctx: typer.Context) -> None:
    """Print the lab.

    Example:
      moe-lab where
        --is   this
    """
    print(current_lab(ctx).root)


def fail(how: str) -> None:
    """Fail in one of several ways."""
    errors: dict[str, BaseException] = {
        "mistake": LabError("the value, the rule, the next step."),
        "full": OSError(errno.ENOSPC, "No space left on device", "runs/x.bin"),
        "nameless": OSError(errno.ENOSPC, "No space left on device"),
        "denied": PermissionError(errno.EACCES, "Permission denied", "/root/x"),
        "long": OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000),
        "circle": RuntimeError("Symlink loop from '/tmp/loop'"),
        "homeless": RuntimeError("Could not determine home directory."),
        "files": OSError(errno.EMFILE, "Too many open files", "x"),
        "disk": OSError(errno.EIO, "Input/output error", b"runs/x"),
        "threads": RuntimeError("can't start new thread"),
        "memory": MemoryError(),
        "device": RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes."),
        "nul": ValueError("embedded null byte"),
        "ours": RuntimeError("something else"),
        "gone": FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        "bug": ZeroDivisionError("division by zero"),
        "interrupt": KeyboardInterrupt(),
        "exit": typer.Exit(3),
    }
    raise errors[how]


tools = typer.Typer(cls=CommandGroup, help="Several tools.")


@tools.command()
def hammer() -> None:
    """Hit it."""
    print("bang")


OUT_OF_MEMORY = "out of memory. Work on less at a time (batch_size, rows, seq_len), or on a machine that has more."
TABLE = {"where": f"{__name__}:where", "fail": f"{__name__}:fail", "tools": f"{__name__}:tools"}


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_the_help_lists_every_command_with_its_first_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, TABLE) == 0
    out, err = lines(capsys)
    commands = out[out.index("Commands:") + 1 :]
    assert [line.split(maxsplit=1) for line in commands] == [
        ["where", "Print the lab."],
        ["fail", "Fail in one of several ways."],
        ["tools", "Several tools."],
    ]
    assert err == []


def test_an_example_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["where", "--help"], TABLE) == 0
    out, _ = lines(capsys)
    at = out.index("  Example:")
    assert out[at + 1 : at + 3] == ["    moe-lab where", "      --is   this"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    below = getattr(root_command().get_command(None, name), "commands", {})
    for call in [[name, sub] for sub in below] or [[name]]:
        assert main([*call, "--help"]) == 0
        _usage, *help_text = lines(capsys)[0]
        example = " ".join(["moe-lab", *call])
        assert any(example in line for line in help_text), f"`{example} --help` shows no example"


def test_the_version_is_the_packages() -> None:
    done = subprocess.run([sys.executable, "-m", "moe_lab", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"moe-lab {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wher"], 'unknown command "wher". Did you mean "where"? Available: fail, tools, where.'),
        (["tools", "hamer"], 'unknown command "tools hamer". Did you mean "hammer"? Available: hammer.'),
        (["zzz"], 'unknown command "zzz". Available: fail, tools, where.'),
        (["where", "--lab", "x"], "--lab goes before the command: moe-lab --lab DIR COMMAND"),
        (["fail", "mistake"], "the value, the rule, the next step."),
        (["fail", "full"], "disk full (runs/x.bin). Free some space, then run the same command again."),
        (["fail", "nameless"], "disk full. Free some space, then run the same command again."),
        (
            ["fail", "denied"],
            "/root/x: Permission denied. Check who may write there, or choose another folder.",
        ),
        (["fail", "long"], f"{'a' * 90}...{'a' * 90}: File name too long. Give a shorter name."),
        (
            ["fail", "circle"],
            "Symlink loop from '/tmp/loop'. Its links lead in a circle; name the place that is meant.",
        ),
        (["fail", "homeless"], "Could not determine home directory. Write the whole path instead of ~."),
        (
            ["fail", "files"],
            "x: Too many open files. That is a limit of this system: raise it (ulimit -a shows them), "
            "then run the same command again.",
        ),
        (["fail", "disk"], "runs/x: Input/output error. Check that disk or share, then run the same command again."),
        (
            ["fail", "threads"],
            "can't start new thread. That is a limit of this system: raise it (ulimit -a shows them), "
            "then run the same command again.",
        ),
        (["fail", "memory"], OUT_OF_MEMORY),
        (["fail", "device"], OUT_OF_MEMORY),
        (
            ["fail", "nul"],
            "embedded null byte. A path cannot hold the character NUL; check the names that were given.",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, TABLE) == 2
    assert lines(capsys) == ([], [f"error: {message}"])


@pytest.mark.parametrize(
    ("arguments", "value", "next_step"),
    [
        (["fail"], "how", "See: moe-lab fail --help"),
        (["--verbose"], "--verbose", "See: moe-lab --help"),
        (["where", "extra"], "extra", "See: moe-lab where --help"),
        (["tools", "hammer", "--hard"], "--hard", "See: moe-lab tools hammer --help"),
    ],
)
def test_a_wrong_call_points_at_the_help(
    arguments: list[str], value: str, next_step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, TABLE) == 2
    out, [message] = lines(capsys)
    assert out == []
    assert message.startswith("error: ")
    assert value in message.lower()
    assert message.endswith(next_step)


def test_a_group_of_commands_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools"], TABLE) == 0
    out, _ = lines(capsys)
    assert any(line.split() == ["hammer", "Hit", "it."] for line in out)
    assert main(["tools", "hammer"], TABLE) == 0
    assert lines(capsys)[0] == ["bang"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)])
def test_an_interruption_says_what_is_done_again(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error.add_note("evaluation tiny starts over")

    def stopped() -> None:
        raise error

    monkeypatch.setattr(sys.modules[__name__], "fail", stopped)
    assert main(["fail"], TABLE) == code
    assert lines(capsys)[1][-1] == "interrupted (evaluation tiny starts over). To go on: moe-lab fail"


def test_what_would_compute_something_else_has_no_effect_and_that_is_said(
    capsys: pytest.CaptureFixture[str], lab_folder: Path
) -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        assert main(["--lab", str(lab_folder), "compose", "quickstart/composition"]) == 2
        assert jax.numpy.ones(1).dtype == "float32"
    finally:
        jax.config.update("jax_enable_x64", False)
    assert lines(capsys)[1][0] == "note: JAX_ENABLE_X64=True has no effect, moe-lab computes with False"


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(moe_lab: Command, lab_folder: Path, platform: str) -> None:
    done = moe_lab("bench", "--rounds", "1", cwd=lab_folder, env={"JAX_PLATFORMS": platform})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: jax finds no such device here")
    assert len(done.stderr.splitlines()) == 1


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "interrupt"], TABLE) == 130
    assert lines(capsys)[1][-1] == "interrupted. To do it again: moe-lab fail interrupt"


@pytest.mark.parametrize(
    ("how", "error"), [("bug", ZeroDivisionError), ("gone", FileNotFoundError), ("ours", RuntimeError)]
)
def test_what_is_our_fault_keeps_its_traceback(how: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        main(["fail", how], TABLE)


def test_the_traceback_of_a_mistake_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LAB_TRACEBACK", "1")
    with pytest.raises(LabError):
        main(["fail", "mistake"], TABLE)


def test_a_command_chooses_its_own_exit_code() -> None:
    assert main(["fail", "exit"], TABLE) == 3


def test_the_lab_option_reaches_the_command(
    lab_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["where"], TABLE) == 0
    assert main(["--lab", str(lab_folder), "where"], TABLE) == 0
    assert lines(capsys)[0] == [str(tmp_path), str(lab_folder)]


def test_exit_codes_and_streams_of_the_real_process(moe_lab: Command, tmp_path: Path) -> None:
    done = moe_lab("inti")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f'error: unknown command "inti". Did you mean "init"? Available: {", ".join(sorted(COMMANDS))}.\n'
    )
    assert moe_lab("init", "a-lab").returncode == 0
    assert (tmp_path / "a-lab" / "configs" / "README.md").is_file()


def test_help_starts_in_under_half_a_second(python: Command) -> None:
    # Processor time of the child, not the clock, which counts the neighbours on a busy machine too.
    code = (
        "import os, subprocess, sys, json\n"
        "before = os.times()\n"
        "subprocess.run([sys.executable, '-m', 'moe_lab', '--help'], check=True, stdout=subprocess.DEVNULL)\n"
        "after = os.times()\n"
        "print(after.children_user + after.children_system - before.children_user - before.children_system)\n"
    )
    assert min(float(python("-c", code).stdout) for _ in range(3)) < 0.5


def test_schemas_are_printed_and_written(moe_lab: Command, tmp_path: Path) -> None:
    printed = json.loads(moe_lab("schema", "router-manifest").stdout)
    assert "implementation" in printed["required"]
    done = moe_lab("schema", "router-manifest", "--out", "schemas")
    assert done.stdout == "schemas/router-manifest.schema.json\n"
    assert json.loads((tmp_path / "schemas" / "router-manifest.schema.json").read_text()) == printed


def test_all_schemas_are_written_at_once(moe_lab: Command, tmp_path: Path) -> None:
    done = moe_lab("schema", "--out", "schemas")
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in (tmp_path / "schemas").iterdir())
    assert {"trunk.schema.json", "module.schema.json", "strategy-manifest.schema.json"} <= set(written)
    module = json.loads((tmp_path / "schemas" / "module.schema.json").read_text())
    assert module["properties"]["kind"]["const"] == "module"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["schema", "modul"], 'unknown kind "modul". Did you mean "module"?'),
        (["schema"], "say which kind, or where to write all of them with --out DIR."),
        (["--lab", "nowhere", "schema", "zzz"], 'unknown kind "zzz".'),
    ],
)
def test_schema_says_which_kinds_there_are(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = lines(capsys)
    assert out == []
    assert err[0].startswith(f"error: {reason}")
