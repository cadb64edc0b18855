"""What somebody new to the command types, and what is said to it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import robustbench_lite as rbl_package

from .harness import Rbl, network

REFUSED = [
    ("--attack PGD", "--attack: unknown name 'PGD'; did you mean pgd?"),
    ("--norm l7", "--norm: unknown name 'l7'; known: l0, l1, l2, linf"),
    ("--attack transfer", "--attack: transfer needs an attack to carry over: transfer:pgd with --surrogate MODEL"),
    ("--attack transfer:pgd --surrogate foo", "--surrogate: unknown name 'foo'"),
    ("--attack transfer:pgd --surrogate nets.py:breaks", "--surrogate: nets.py:breaks raised RuntimeError"),
    ("--attack corruptions --eps 0.1", "leave both out, got eps 0.1"),
    ("--seed abc", "--seed must be a whole number, got 'abc'"),
    ("--steps ten", "--steps must be a whole number, got 'ten'"),
    ("--model resnt18", "--model: unknown name 'resnt18'; did you mean resnet18"),
    ("--figure nope/out.png", "--figure: no such folder 'nope'"),
    ("--save-examples nope/out.npz", "--save-examples: no such folder 'nope'"),
    ("--dataset npz:nets.py", "--dataset: nets.py is not a readable .npz file (it is no zip archive of arrays)"),
    ("--model nets.py:breaks", "--model: nets.py:breaks raised RuntimeError: my own fault (nets.py:"),
    ("--model syntax.py:make", "--model: importing syntax.py raised SyntaxError"),
    ("--model nets.py:narrow", "given images of shape (2, 1, 8, 8), raised RuntimeError"),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_one_line_says_what_to_mend(arguments: str, told: str, evaluate: Rbl, folder: Path) -> None:
    (folder / "syntax.py").write_text("def make(:\n", "utf-8")
    with (folder / "nets.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, 4))\n")
    said = evaluate(*arguments.split())
    assert told in said.error
    assert len([line for line in said.remarks.splitlines() if not line.startswith("warning: ")]) == 1
    assert not (folder / "nope").exists()


def test_a_missing_norm_is_one_that_the_attack_has(evaluate: Rbl) -> None:
    r = evaluate("--attack", "ddn", "--samples", "4", "--json").json
    assert r["norm"] == "l2" and r["eps"] == 0.5
    assert evaluate("--attack", "fgsm", "--samples", "4", "--json").json["norm"] == "linf"


def test_the_command_alone_is_its_help(rbl: Rbl) -> None:
    said = rbl()
    assert "Usage: rbl" in said.out + said.err and "error" not in said.err


def test_what_changes_nothing_is_warned_of(evaluate: Rbl) -> None:
    assert "warning: eot 4: the model is not random" in evaluate("--eot", "4", "--steps", "1").err
    assert "warning: eps is 0" in evaluate("--eps", "0", "--steps", "1").err


def test_a_network_that_guesses_is_warned_of() -> None:
    x = np.random.default_rng(0).random((80, 1, 8, 8), dtype=np.float32)
    y = np.arange(80) % 4
    for count in (20, 80):
        with pytest.warns(UserWarning, match="clean accuracy is at chance"):
            r = rbl_package.evaluate(network().eval(), x[:count], y[:count], attack="noise", checks=False)
        assert r.verdict.startswith("invalid: clean accuracy is at chance")


def test_what_is_no_run_file_says_where_they_are(rbl: Rbl) -> None:
    assert rbl("curve", ".").error == "RUN: '.' is no run file; run files are in runs"
    assert rbl("curve", "lb/leaderboard.parquet").error.endswith(f"run files are in lb{os.sep}runs")


def test_transfer_wants_two(rbl: Rbl) -> None:
    assert "expected two or more" in rbl("transfer", "--models", "small-cnn").error


def test_one_plug_in_with_its_options(rbl: Rbl) -> None:
    said = rbl("plugins", "attacks", "pgd").out.splitlines()
    assert said[0].startswith("pgd: ")
    assert any(line.split() == ["steps", "int,", "40"] for line in said)
    assert {o["name"] for o in rbl("plugins", "attacks", "pgd", "--format", "json").json["options"]} >= {
        "steps",
        "loss",
    }
    assert rbl("plugins", "attacks", "pdg").error == "NAME: unknown name 'pdg'; did you mean pgd?"


def test_names_are_those_that_the_libraries_list() -> None:
    import timm
    import torchvision

    from robustbench_lite.models.library import registered

    assert set(registered("timm")) == set(timm.list_models())
    assert set(registered("torchvision")) == set(torchvision.models.list_models(module=torchvision.models))
