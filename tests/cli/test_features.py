"""`rbl features` from the command line: data sets that other commands read, tables, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from .harness import Rbl, listing

SHORT = ("--model", "mlp", "--dataset", "digits", "--epochs", "2")


@pytest.fixture
def built(rbl: Rbl) -> Path:
    """A small D_rand of digits."""
    done = rbl("features", "build", "--kind", "random", *SHORT, "--samples", "60", "--steps", "4", "--out", "d")
    assert done.code == 0, done.err
    assert "d: D_rand, 60 images of digits\n" in done.out
    assert "cost: 5.0 forward and 4.0 backward passes an image" in done.out
    return Path("d")


def test_built_trained_and_evaluated_by_the_other_commands(rbl: Rbl, built: Path) -> None:
    """parquet:PATH learns from what was constructed and is tested on the real images."""
    recipe = ("--epochs", "2", "--lr", "0.01", "--train-option", "augment=none")
    ours = rbl("features", "train", built, "--model", "mlp", *recipe, "--out", "a.safetensors", "--json").json
    theirs = rbl(
        "train", "--dataset", f"parquet:{built}", "--model", "mlp", *recipe, "--out", "b.safetensors", "--json"
    ).json
    assert ours["sha256"] == theirs["sha256"]
    assert ours["test_accuracy"] == theirs["test_accuracy"]
    net = ("--model", "mlp", "--weights", "a.safetensors", "--attack", "noise", "--json")
    real = rbl("evaluate", *net, "--dataset", "digits").json
    copy = rbl("evaluate", *net, "--dataset", f"parquet:{built}").json
    assert real["n"] == copy["n"] == 360
    assert copy["clean_accuracy"] == pytest.approx(ours["test_accuracy"])
    assert abs(real["clean_accuracy"] - copy["clean_accuracy"]) < 0.02  # digits have 17 grey levels, not 256
    one = rbl("evaluate", *net, "--dataset", f"parquet:{built}/train-00000-of-00001.parquet").json
    assert one["n"] == 60


def test_the_same_command_finds_what_it_built(rbl: Rbl, built: Path) -> None:
    before = {path: (built / path).read_bytes() for path in listing(built)}
    again = rbl(
        "features", "build", "--kind", "random", *SHORT, "--samples", "60", "--steps", "4", "--out", built, "--json"
    ).json
    assert again["known"] is True
    assert again["images"] == 60 and again["test_images"] == 360
    assert {path: (built / path).read_bytes() for path in listing(built)} == before
    other = rbl("features", "build", "--kind", "random", *SHORT, "--samples", "60", "--steps", "5", "--out", built)
    assert "holds another data set (options differ); give the name of a new folder" in other.error


def test_a_report_with_files(rbl: Rbl) -> None:
    given = (
        *("features", "report", *SHORT, "--kinds", "random,errors", "--samples", "40", "--early-samples", "40"),
        *("--source-epochs", "1", "--defense", "fast-at", "--defense-option", "eps=0.1"),
        *("--seeds", "2", "--option", "random.steps=3", "--steps", "2", "--robust-samples", "20"),
    )
    done = rbl(*given, "--out", "r.parquet", "--figure", "r.png", "--json").json
    assert [row["set"] for row in done["sets"]] == ["data", "random", "errors"]
    assert done["attack"]["samples"] == 20 and done["seeds"] == 2
    assert len(done["rows"]) == len(pd.read_parquet("r.parquet")) == 9
    assert Path("r.png").stat().st_size > 5000
    shown = rbl(*given)
    accuracy = f"{100 * done['sets'][1]['accuracy']:.1f}"
    (line,) = [line for line in shown.out.splitlines() if line.startswith("D_rand")]
    assert line.split()[1:3] == ["40", accuracy]
    assert any(line.startswith("chance") for line in shown.out.splitlines())


def test_usefulness_of_a_network(rbl: Rbl) -> None:
    given = ("features", "usefulness", "--model", "nets.py:make", "--dataset", "npz:ok.npz", "--steps", "2")
    refused = rbl(*given)
    assert "--dataset" in refused.error  # these images have no training split to choose classes by
    short = ("features", "usefulness", *SHORT, "--samples", "30", "--attack", "noise")
    assert rbl(*short, "--out", "v.parquet").code == 0
    assert "--beside: 'u.csv' is no table" in rbl(*short, "--figure", "u.png", "--beside", "u.csv").error
    assert "give --figure too" in rbl(*short, "--beside", "v.parquet").error
    done = rbl(
        *("features", "usefulness", *SHORT, "--samples", "30", "--steps", "1", "--eps", "0.2"),
        *("--classes", "1,7", "--out", "u.csv", "--figure", "u.png", "--beside", "v.parquet", "--json"),
    ).json
    assert sum(done["counts"].values()) == len(done["features"]) == 256
    frame = pd.read_csv("u.csv")
    assert (frame["gamma"] <= frame["rho"] + 1e-9).all()
    assert set(frame["positive"]) == {1} and set(frame["negative"]) == {7}
    assert Path("u.png").stat().st_size > 5000


def test_the_synthetic_case(rbl: Rbl) -> None:
    shown = rbl("features", "synthetic", "--features", "400", "--correlation", "0.1", "--samples", "400")
    assert shown.code == 0
    assert "400 features of correlation 0.1 and one of p = 0.95" in shown.out
    done = rbl("features", "synthetic", "--features", "400", "--correlation", "0.1", "--samples", "400", "--json").json
    assert np.isclose(done["eps"] if done["eps"] is not None else 2 * done["notes"]["eta"], done["notes"]["eps"])
    assert [row["classifier"] for row in done["classifiers"]][-1] == "adversarial training"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "--kind", "randm", "--out", "d"), "--kind: unknown name 'randm'; did you mean random?"),
        (("build", "--kind", "robust", "--eps", "1", "--out", "d"), "--option: robust has no option 'eps'"),
        (("build", "--kind", "random", "--steps", "0", "--out", "d"), "steps must be >= 1, got 0"),
        (("build", "--kind", "random", "--out", "no/d"), "--out: no such folder 'no'; make it first"),
        (("build", "--kind", "random", "--out", "ok.npz"), "--out must be a folder, got the file 'ok.npz'"),
        (("build", "--kind", "random", "--out", "."), "holds something else; give the name of a new folder"),
        (("build", "--kind", "random", "--out", "d", "--defense", "jpeg"), "--defense: jpeg trains nothing"),
        (("build", "--kind", "random", "--out", "d", "--model", "smal-cnn"), "did you mean small-cnn"),
        (("train", "nowhere", "--out", "a.safetensors"), "PATH: no train-00000-of-00001.parquet in 'nowhere'"),
        (("report", "--kinds", "random,roboost"), "--kind: unknown name 'roboost'; did you mean robust?"),
        (("report", "--kinds", "random", "--option", "stepz=3"), "none of random has the option 'stepz'"),
        (("report", "--lr", "-1"), "lr must be a positive number, got -1.0"),
        (("report", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("report", "--out", "a.txt"), "--out must be a path that ends in .parquet or .csv, got 'a.txt'"),
        (("report", "--figure", "a.pdf"), "--figure must be a path that ends in .png, got 'a.pdf'"),
        (("report", "--defense", "jpeg"), "--defense: jpeg trains nothing; give one that trains a robust network"),
        (("usefulness", "--classes", "1"), "--classes must be two class numbers A,B, got '1'"),
        (("usefulness", "--attack", "pdg"), "attack: unknown name 'pdg'; did you mean pgd?"),
        (("synthetic", "--p", "0.3"), "p must be in (0.5, 1), got 0.3"),
        (("synthetic", "--eps", "x"), "--eps must be a number or a fraction"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_any_work(rbl: Rbl, arguments: tuple[str, ...], words: str) -> None:
    before = listing(Path())
    assert words in rbl("features", *arguments).error
    assert listing(Path()) == before


def test_help_shows_examples(rbl: Rbl) -> None:
    for name in ("build", "train", "report", "usefulness", "synthetic"):
        ran = rbl("features", name, "--help")
        assert ran.code == 0
        assert f"rbl features {name}" in ran.out.partition("Example")[2]


def test_json_is_one_object(rbl: Rbl, built: Path) -> None:
    said = json.loads(rbl("features", "train", built, "--epochs", "1", "--out", "a.safetensors", "--json").out)
    assert said["file"] == "a.safetensors"
