"""`rbl transfer`: the matrix on the terminal, as JSON, as a file and as a picture, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustbench_lite.transfer import TransferMatrix

from .harness import Outcome, Rbl, environment, listing

MODELS = "nets.py:make,nets.py:wide"
WIDE = """

def wide():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[1].weight.mul_(4.0)
    return net
"""
QUICK = ("--eps", "0.05", "--steps", "3")


@pytest.fixture
def transfer(rbl: Rbl, folder: Path) -> Rbl:
    """`rbl transfer --models nets.py:make,nets.py:wide --dataset npz:ok.npz ARGUMENTS`."""
    (folder / "nets.py").write_text((folder / "nets.py").read_text("utf-8") + WIDE, "utf-8")

    def run(*arguments: str | Path) -> Outcome:
        given = [str(argument) for argument in arguments]
        defaults = {"--models": MODELS, "--dataset": "npz:ok.npz"}
        missing = [part for name, value in defaults.items() if name not in given for part in (name, value)]
        return rbl("transfer", *missing, *given)

    return run


def chosen(found: TransferMatrix, surrogate: str, target: str) -> pd.DataFrame:
    """The rows of one cell."""
    return found.table[(found.table.surrogate == surrogate) & (found.table.target == target)]


def test_json_is_one_object_and_says_what_the_rows_say(transfer: Rbl) -> None:
    Path("new").mkdir()
    said = transfer(*QUICK, "--out", "new/t.parquet", "--figure", "new/t.png", "--json")
    r = said.json
    assert said.remarks == ""
    assert (r["attack"], r["attack_options"], r["norm"], r["eps"], r["n"]) == ("pgd", {"steps": 3}, "linf", 0.05, 24)
    assert (r["out"], r["figure"]) == ("new/t.parquet", "new/t.png")
    found = TransferMatrix.read("new/t.parquet")
    assert r["models"] == ["nets.py:make", "nets.py:wide"] == list(r["clean_accuracy"])
    assert list(r["matrix"]) == [*r["models"], "noise"]
    for surrogate, row in r["matrix"].items():
        for target, cell in row.items():
            rows = chosen(found, surrogate, target)
            rows = rows[rows.correct]
            assert (cell["n"], cell["fooled"]) == (len(rows), int(rows.success.sum()))
    assert r["clean_accuracy"]["nets.py:make"] == 20 / 24
    assert listing(Path("new")) == {"t.parquet", "t.png"}


def test_a_cell_is_what_rbl_evaluate_says(transfer: Rbl, rbl: Rbl) -> None:
    transfer(*QUICK, "--out", "t.parquet")
    said = rbl(
        *("evaluate", "--model", "nets.py:wide", "--dataset", "npz:ok.npz", "--attack", "transfer:pgd"),
        *("--surrogate", "nets.py:make", *QUICK, "--json", "--no-checks"),
    ).json
    theirs = pd.read_parquet(said["run_file"])
    ours = chosen(TransferMatrix.read("t.parquet"), "nets.py:make", "nets.py:wide")
    assert np.array_equal(ours.label, theirs.label) and np.array_equal(ours.target_prediction, theirs.prediction)
    where = ours.correct.to_numpy()
    assert where.any() and np.array_equal(ours.success[where], theirs.success[where])


def test_what_is_told_to_a_person_is_the_same(transfer: Rbl) -> None:
    r = transfer(*QUICK, "--json").json
    said = transfer(*QUICK, "--out", "t.parquet")
    assert said.code == 0 and said.remarks == ""
    assert said.out.splitlines()[-1].split() == ["out", "t.parquet"]
    assert said.out.splitlines()[0] == "npz:ok.npz, 24 images, attack pgd, steps=3, linf 0.05"
    assert "attacked \\ judged" in said.out and "clean 83.3" in said.out
    for row in r["matrix"].values():
        for cell in row.values():
            assert f"{100 * cell['share']:.1f}" in said.out
            assert f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" in said.out


def test_the_batch_size_changes_nothing(transfer: Rbl) -> None:
    command = (*QUICK, "--attack-option", "momentum=0.9", "--samples", "12", "--deterministic", "--out")
    assert transfer(*command, "a.parquet").code == transfer(*command, "b.parquet", "--batch-size", "5").code == 0
    one, two = (TransferMatrix.read(f"{name}.parquet") for name in "ab")
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    assert one.specification["attack"]["options"] == {"momentum": 0.9, "steps": 3}


def test_halves_are_two_networks_of_each_model(transfer: Rbl) -> None:
    command = ("--models", "mlp,small-cnn", "--dataset", "digits", "--samples", "30", "--halves", "--epochs", "1")
    said = transfer(*command, "--eps", "0.1", "--steps", "2", "--out", "h.parquet", "--json")
    assert said.json["models"] == ["mlp/1", "mlp/2", "small-cnn/1", "small-cnn/2"]
    models = TransferMatrix.read("h.parquet").specification["models"]
    trained = [model["recipe"]["dataset"] for model in models]
    assert [data["n"] for data in trained] == [719, 718, 719, 718]
    assert len({data["fingerprint"] for data in trained}) == 2 and len({model["sha256"] for model in models}) == 4
    assert [model["recipe"]["seed"] for model in models] == [0, 1, 0, 1]
    assert said.err.count("it is kept in the cache") == 4
    again = transfer(*command, "--eps", "0.1", "--steps", "2", "--json")
    assert again.remarks == "" and again.json["matrix"] == said.json["matrix"]


def test_weights_are_told_apart(transfer: Rbl) -> None:
    import torch

    from .harness import network

    net: Any = network()
    torch.save(net.state_dict(), "one.pt")
    net[1].weight.mul_(1.5)
    torch.save(net.state_dict(), "two.pt")
    r = transfer(*QUICK, "--models", "nets.py:make=one.pt,nets.py:make=two.pt", "--json").json
    assert r["models"] == ["nets.py:make=one.pt", "nets.py:make=two.pt"]
    assert r["matrix"]["nets.py:make=one.pt"]["nets.py:make=two.pt"]["share"] > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--models mpl", "--models: unknown name 'mpl'; did you mean mlp?"),
        ("--models mlp,", "--models: unknown name ''"),
        ("--models mlp,mlp", "--models: mlp is given twice"),
        ("--models mlp=a.pt --halves", "--halves: mlp=a.pt is trained already; leave its weights out, or --halves"),
        ("--models nets.py:make=none.pt,nets.py:make", "--weights: no such file 'none.pt'"),
        ("--models nets.py:seven_classes,nets.py:make", "surrogate nets.py:seven_classes: expected 4 logits"),
        ("--attack deepfool", "attack transfer:deepfool: deepfool is minimal"),
        ("--attack pdg", "--attack: unknown name 'pdg'; did you mean"),
        ("--steps 0", "--steps must be >= 1, got 0"),
        ("--eps 3", "--eps must be at most 1"),
        ("--norm l3", "--norm: unknown name 'l3'"),
        ("--samples 25", "--samples must be in 1..24"),
        ("--batch-size 0", "--batch-size must be >= 1, got 0"),
        ("--seed -1", "--seed must be in 0.."),
        ("--out t.csv", "--out must be a path that ends in .parquet, got 't.csv'"),
        ("--figure t.pdf", "--figure must be a path that ends in .png, got 't.pdf'"),
        ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_what_is_refused_is_one_line_and_no_file(arguments: str, message: str, transfer: Rbl, folder: Path) -> None:
    before = listing(folder) | {"nets.py"}
    said = transfer(*QUICK[: 0 if "--eps" in arguments or "--steps" in arguments else 4], *arguments.split())
    assert message in said.error
    assert listing(folder) == before


def test_a_failure_on_the_way_leaves_no_file(transfer: Rbl, folder: Path) -> None:
    before = listing(folder)
    said = transfer("--models", "nets.py:make,nets.py:later", "--out", "t.parquet", "--batch-size", "4")
    assert "after a while" in said.last_line and listing(folder) == before


def test_its_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from robustbench_lite.cli.main import main; code = main(['transfer', '--help']); "
        "heavy = {'torch', 'timm', 'torchvision', 'pandas', 'pyarrow', 'numpy', 'matplotlib', 'sklearn'}; "
        "print(*sorted(heavy & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path))
    assert (ran.returncode, ran.stderr.strip()) == (0, "")
    assert "rbl transfer --models" in ran.stdout.partition("Examples")[2]
