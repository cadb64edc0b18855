"""What every command shares: help, exit status, and the words of an error."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from robustbench_lite.cli import main as cli
from robustbench_lite.cli.evaluate import evaluate
from robustbench_lite.cli.main import main
from robustbench_lite.cli.sweep import sweep
from robustbench_lite.cli.train import train
from robustbench_lite.cli.transfer import transfer
from robustbench_lite.cli.wording import as_typed, usage

from .harness import PROGRAM, Rbl, environment

COMMANDS = (
    *("", "evaluate", "sweep", "transfer", "curve", "train", "certify", "verify", "plugins", "doctor"),
    *("leaderboard", "leaderboard show", "leaderboard build", "leaderboard merge", "leaderboard verify"),
    *("attacks", "attacks new", "attacks check", "defenses", "defenses new", "defenses check"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_names_the_command(command: str, rbl: Rbl) -> None:
    said = rbl(*command.split(), "--help")
    assert said.code == 0 and said.err == ""
    assert "Example" in said.out
    assert f"rbl {command}".strip() in said.out.partition("Example")[2]


# The same word for what is given in another form: a part of a training, a table of pairs, any attack or only some.
OWN_WORDS = {"attack", "batch_size", "figure", "out", "seed"}


def test_an_option_of_several_commands_is_declared_once() -> None:
    declared: dict[str, set[int]] = {}
    for command in (evaluate, sweep, transfer, train):
        for name, hint in get_type_hints(command, include_extras=True).items():
            if name not in OWN_WORDS | {"return"}:
                declared.setdefault(name, set()).add(id(hint.__metadata__[0]))
    assert {"eps", "samples", "as_json", "data_dir"} <= declared.keys()
    assert {name for name, declarations in declared.items() if len(declarations) > 1} == set()
    for name in ("batch_size", "seed"):
        hints = [get_type_hints(command, include_extras=True)[name] for command in (evaluate, transfer)]
        assert hints[0].__metadata__[0] is hints[1].__metadata__[0], name


def test_help_leaves_what_is_heavy_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from robustbench_lite.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'timm', 'torchvision', 'pandas', 'pyarrow', 'numpy', 'matplotlib', 'sklearn'}; "
        "print(*sorted(heavy & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path))
    assert (ran.returncode, ran.stderr.strip()) == (0, "")


def test_version(rbl: Rbl) -> None:
    import robustbench_lite

    assert rbl("--version").out == f"robustbench-lite {robustbench_lite.__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluat", "No such command 'evaluat'. Did you mean 'evaluate'?; see rbl --help"),
        ("leaderboard shw", "Did you mean 'show'?; see rbl leaderboard --help"),
        ("evaluate --esp 0.1", "--eps"),
        ("evaluate --samples many", "got 'many'"),
        ("evaluate extra", "extra"),
        ("evaluate --model", "--model"),
        ("train", "Missing option '--out'"),
        ("verify", "RUN"),
        ("verify some-run", "--model"),
    ],
)
def test_a_usage_error_is_one_line(command: str, words: str, rbl: Rbl) -> None:
    said = rbl(*command.split())
    assert words in said.error
    assert said.remarks.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "arguments", "told"),
    [
        ("eps must be >= 0, got -1", "evaluate --eps -1", "--eps must be >= 0, got -1"),
        ("eps must be >= 0, got -1", "evaluate --eps=-1", "--eps must be >= 0, got -1"),
        ("norm: unknown name 'l3'", "evaluate --norm l3", "--norm: unknown name 'l3'"),
        ("norm of attack x: unknown name", "evaluate --norm l2", "--norm of attack x: unknown name"),
        ("batch_size must be >= 1", "evaluate --batch-size 0", "--batch-size must be >= 1"),
        ("attack option steps must be", "evaluate --steps x", "--steps must be"),
        ("attack option steps must be", "evaluate --attack-option steps=x", "--attack-option steps must be"),
        ("bits must be in 1..16", "--defense-option b.bits=99", "--defense-option bits must be in 1..16"),
        ("attack option: fgsm has no option 'steps'; x", "--steps 3", "--steps: fgsm has no option 'steps'; x"),
        ("x: expected pixels", "evaluate", "--dataset: expected pixels"),
        ("eps must be at most 1", "evaluate", "eps must be at most 1"),
        ("--dataset: eps", "evaluate --eps 3", "--dataset: eps"),
        ("pkg.mod:mak: unknown name 'mak'", "--model pkg.mod:mak", "--model pkg.mod: unknown name 'mak'"),
    ],
)
def test_an_error_says_the_argument_as_it_was_typed(message: str, arguments: str, told: str) -> None:
    assert as_typed(message, arguments.split()) == told


def test_a_usage_error_says_what_came() -> None:
    assert usage("Invalid value for '--epochs': not a number.", ["--epochs", "x"]).endswith("not a number, got 'x'")
    assert usage("Invalid value for '--epochs': 'x' is no number.", ["--epochs", "x"]).endswith("'x' is no number")


def _fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def app(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)


def test_our_own_fault_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(monkeypatch, ZeroDivisionError("oops"))
    assert main([]) == 1
    said = capsys.readouterr()
    assert "Traceback" in said.err and "ZeroDivisionError: oops" in said.err
    assert said.err.splitlines()[-1].startswith("error: this is a fault of robustbench-lite")


def test_a_full_disk_anywhere_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write the output: No space left on device")


def test_an_interrupt_anywhere_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _fails(monkeypatch, KeyboardInterrupt())
    assert main([]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("command", ["--help", "leaderboard show --format csv", "plugins"])
def test_a_reader_that_goes_is_no_error(command: str, tmp_path: Path, folder: Path) -> None:
    (folder / "results").mkdir()
    process = subprocess.Popen(
        [*PROGRAM, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (0, b"")
