"""Make the committed leaderboards from nothing but this repository, and the tables that the README shows of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch

from robustbench_lite.cli.listing import attack_table_markdown, defense_table_markdown
from robustbench_lite.cli.main import main as rbl
from robustbench_lite.errors import RblError
from robustbench_lite.leaderboard import build, derive, select, to_markdown

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "leaderboards"
README = ROOT / "README.md"
# Boards of their own: what is run is stated in FOLDER/NAME.toml, and what came out is in FOLDER/NAME.md.
SWEEPS = {"defenses": ("digits", "mnist"), "distillation": ("mnist",), "vat": ("mnist",)}

MODELS = ("resnet18", "small-cnn", "mlp")
ATTACKS = ("noise", "fgsm", "pgd")
THREATS = (("linf", "8/255"), ("l2", "0.5"))
DEFENSES = (
    ("--defense", "adversarial-training"),
    ("--defense", "bit-depth", "--defense-option", "bits=3"),
    ("--defense", "random-noise", "--defense-option", "sigma=0.1"),
)


def runs(own: Path) -> Iterator[tuple[str, ...]]:
    """Every line of the board, as arguments of `rbl evaluate`; own: the file of an attack as a user writes it."""
    for model in MODELS:
        for norm, eps in THREATS:
            for attack in ATTACKS:
                yield "--model", model, "--norm", norm, "--eps", eps, "--attack", attack
    for defense in DEFENSES:
        for attack in ATTACKS:
            yield "--model", "small-cnn", "--norm", "linf", "--eps", "8/255", "--attack", attack, *defense
    # A threat that an undefended network does not survive.
    for defense in ((), ("--defense", "adversarial-training", "--defense-option", "eps=0.1")):
        for attack in (*ATTACKS, "auto", f"{own}:MyAttack"):
            yield "--model", "small-cnn", "--norm", "linf", "--eps", "0.1", "--attack", attack, *defense


def table() -> str:
    """The README's board: the linf runs, the least robust last."""
    frame, problems = derive(BOARD)
    if problems:
        raise RblError("; ".join(problems))
    return to_markdown(select(frame, ["norm = linf"], "-robust"))


def filled(readme: str) -> str:
    """The README with its generated tables, each between a pair of comments that name it."""
    tables = {"board": table(), "attacks": attack_table_markdown(), "defenses": defense_table_markdown()}
    for name, text in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, _, rest = readme.partition(start)
        _, found, tail = rest.partition(end)
        if not found:
            raise RblError(f"{README.name} has no place for the table {name!r}: {start.strip()} ... {end}")
        readme = f"{head}{start}{text.rstrip()}\n{end}{tail}"
    return readme


def make() -> int:
    """Run everything anew, and fill the README."""
    shutil.rmtree(BOARD / "runs", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "my_attack.py"
        status = rbl(["attacks", "new", str(own)])
        for arguments in runs(own):
            print("rbl evaluate", " ".join(arguments), flush=True)
            status = status or rbl(["evaluate", *arguments, "--leaderboard", str(BOARD)])
    status = status or sweeps()
    if status:
        return status
    README.write_text(filled(README.read_text("utf-8")), "utf-8")
    return rbl(["leaderboard", "show", "--leaderboard", str(BOARD)])


def sweeps() -> int:
    """Run what of the other boards is not there, and drop runs that their sweeps no longer name.

    MNIST is looked for in RBL_DATA, and downloaded where that is not set. All on one thread, so that networks come out
    alike whatever the cores.
    """
    torch.set_num_threads(1)
    os.chdir(ROOT)  # the sweeps name files from here
    given = os.environ.get("RBL_DATA")
    for folder, names in SWEEPS.items():
        board = BOARD / folder
        for name in names:
            file = board / f"{name}.toml"
            data = () if name == "digits" else ("--data-dir", given) if given else ("--download",)
            print("rbl sweep", file.relative_to(ROOT), flush=True)
            if status := rbl(["sweep", str(file), "--leaderboard", str(board), *data]):
                return status
        named = {run for name in names for ids in _run_ids(board / f"{name}.parquet") for run in ids}
        for file in (board / "runs").glob("*.parquet"):
            if file.stem not in named:
                file.unlink()
        build(board)
    return 0


def _run_ids(table: Path) -> list[list[str]]:
    ids: list[list[str]] = pq.read_table(table, columns=["run_ids"])["run_ids"].to_pylist() if table.exists() else []
    return ids


def tables() -> int:
    """Fill the README from the registry and the board as they are."""
    README.write_text(filled(README.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(tables() if sys.argv[1:] == ["--tables"] else make())
