"""`rbl train`: a network in a file that gives the accuracy it was said to have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from robustbench_lite.models.weights import read_weights

from .harness import Rbl, listing, network


@pytest.fixture(autouse=True)
def data(folder: Path) -> None:
    """split.npz: 80 images to train on and 24 to test on, of a kind that a network learns in an instant."""
    generator = np.random.default_rng(1)

    def draw(count: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], np.ndarray[tuple[int], np.dtype]]:
        labels = np.arange(count) % 4
        images = generator.integers(0, 60, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 2] += 180
        return images, labels

    (train_images, train_labels), (images, labels) = draw(80), draw(24)
    labels[:3] = (labels[:3] + 1) % 4  # wrong on purpose: no accuracy of 0 or 1
    np.savez("split.npz", images=images, labels=labels, train_images=train_images, train_labels=train_labels)


COMMON = ("--dataset", "npz:split.npz", "--epochs", "8", "--lr", "0.1", "--batch-size", "16")


def test_what_is_written_gives_the_accuracy_that_was_said(rbl: Rbl) -> None:
    Path("new").mkdir()
    said = rbl("train", "--model", "mlp", "--out", "new/net.safetensors", *COMMON, "--json")
    r = said.json
    assert said.remarks.count("\n") == 1 and said.remarks.startswith("training mlp on npz:split.npz: 80 images")
    assert r["file"] == "new/net.safetensors" and r["parameters"] == 64 * 256 + 256 + 256 * 256 + 256 + 256 * 4 + 4
    assert 0.5 < r["test_accuracy"] < 1
    _, about = read_weights(r["file"])
    assert about["model"] == "mlp" and about["recipe"]["epochs"] == 8
    common = ("--model", "mlp", "--weights", r["file"], "--dataset", "npz:split.npz", "--leaderboard", "lb")
    evaluated = rbl("evaluate", *common, "--steps", "3", "--json").json
    assert evaluated["clean_accuracy"] == r["test_accuracy"]


def test_a_person_is_told_the_file_and_the_accuracy(rbl: Rbl) -> None:
    said = rbl("train", "--model", "mlp", "--out", "net.safetensors", *COMMON)
    assert said.code == 0
    assert said.out.startswith("net.safetensors: mlp, 83,460 parameters, SHA-256 ")
    assert "test accuracy " in said.out


def test_the_same_seed_gives_the_same_network_and_another_one_another(
    rbl: Rbl, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes: list[dict[str, Any]] = []
    for seed in ("0", "0", "1"):
        monkeypatch.setenv("RBL_CACHE", str(Path.cwd() / f"cache{len(hashes)}"))
        hashes.append(rbl("train", "--model", "mlp", "--out", "n.safetensors", *COMMON, "--seed", seed, "--json").json)
    assert hashes[0]["sha256"] == hashes[1]["sha256"] != hashes[2]["sha256"]


def test_a_factorys_network_is_trained_too_and_from_weights_on(rbl: Rbl) -> None:
    untrained = network().state_dict()
    first = rbl("train", "--model", "nets.py:make", "--out", "one.safetensors", *COMMON, "--json").json
    tensors, _ = read_weights("one.safetensors")
    assert not any(torch.equal(tensors[name], untrained[name]) for name in untrained)
    said = rbl(
        *("train", "--model", "nets.py:make", "--weights", "one.safetensors"), "--out", "two.safetensors", *COMMON
    )
    assert said.code == 0 and "training nets.py:make" in said.err
    further, _ = read_weights("two.safetensors")
    assert not torch.equal(further["1.weight"], tensors["1.weight"])
    assert first["test_accuracy"] > 0.5


def test_adversarial_training_makes_a_network_of_its_own(rbl: Rbl) -> None:
    options = ("--defense", "adversarial-training", "--defense-option", "eps=0.3")
    steps = ("--defense-option", "attack_options=steps=2")
    robust = rbl("train", "--model", "mlp", "--out", "robust.safetensors", *COMMON, *options, *steps, "--json").json
    plain = rbl("train", "--model", "mlp", "--out", "plain.safetensors", *COMMON, "--json").json
    assert robust["sha256"] != plain["sha256"]
    _, about = read_weights("robust.safetensors")
    assert about["recipe"]["defenses"][0]["name"] == "adversarial-training"
    under = [
        rbl(
            *("evaluate", "--model", "mlp", "--weights", f"{name}.safetensors", "--dataset", "npz:split.npz"),
            *("--eps", "0.3", "--steps", "5", "--json"),
        ).json["robust_accuracy"]
        for name in ("robust", "plain")
    ]
    assert under[0] > under[1]


def test_history_and_curves_stand_beside_the_network(rbl: Rbl) -> None:
    common = ("train", "--model", "mlp", "--dataset", "npz:split.npz", "--epochs", "3", "--out", "n.safetensors")
    more = ("--defense", "awp", "--defense", "adversarial-training", "--train-option", "validation=20")
    said = rbl(*common, *more, "--history", "h.csv", "--figure", "h.png")
    assert said.code == 0 and "h.csv: 3 epochs" in said.out and "h.png: 3 epochs" in said.out
    rows = pd.read_csv("h.csv")
    assert list(rows["epoch"]) == [1, 2, 3]
    assert {"loss", "accuracy", "lr", "validation_robust_accuracy"} <= set(rows.columns)
    assert Path("h.png").read_bytes().startswith(b"\x89PNG")
    _, about = read_weights("n.safetensors")
    assert [d["name"] for d in about["recipe"]["defenses"]] == ["awp", "adversarial-training"]
    assert [row["loss"] for row in about["history"]] == pytest.approx(list(rows["loss"]))
    # The network comes from the cache, and what was seen of its training with it.
    again = rbl(*common, *more, "--history", "again.csv")
    assert "training" not in again.remarks
    assert Path("again.csv").read_bytes() == Path("h.csv").read_bytes()


def test_a_defense_states_its_recipe_and_the_user_is_heard_first(rbl: Rbl) -> None:
    common = ("train", "--model", "mlp", "--dataset", "npz:split.npz", "--epochs", "1", "--defense", "fast-at")
    rbl(*common, "--train-option", "schedule=constant", "--out", "n.safetensors")
    recipe = read_weights("n.safetensors")[1]["recipe"]
    assert (recipe["optimizer"], recipe["lr"], recipe["schedule"]) == ("adam", 0.005, "constant")


def test_images_without_labels_decide_the_network_too(rbl: Rbl) -> None:
    generator = np.random.default_rng(2)
    for name, side in (("more.npz", 8), ("large.npz", 9)):
        images = generator.integers(0, 255, (30, side, side), dtype=np.uint8)
        labels = np.arange(30) % 4
        np.savez(name, images=images, labels=labels, train_images=images, train_labels=labels)
    common = ("train", "--model", "mlp", "--dataset", "npz:split.npz", "--epochs", "2", "--defense", "vat")
    alone = rbl(*common, "--out", "a.safetensors", "--json").json
    joined = rbl(*common, "--unlabeled", "npz:more.npz", "--out", "b.safetensors", "--json").json
    assert alone["sha256"] != joined["sha256"]
    assert read_weights("b.safetensors")[1]["recipe"]["unlabeled"]["n"] == 30
    said = rbl(*common, "--unlabeled", "npz:large.npz", "--out", "c.safetensors")
    assert said.last_line.startswith("--unlabeled: expected images (1, 8, 8) as in --dataset, got (1, 9, 9)")


MISTAKES = [
    ("--out net.pth", "--out must be a path that ends in .safetensors, got 'net.pth'"),
    ("--out nets.py/net.safetensors", "--out: cannot write 'nets.py/net.safetensors'"),
    ("--history h.txt", "--history must be a path that ends in .csv or .parquet, got 'h.txt'"),
    ("--defense vat --unlabeled nothing", "--unlabeled: unknown name 'nothing'"),
    ("--figure h.pdf", "--figure must be a path that ends in .png, got 'h.pdf'"),
    ("--train-option precision=f8", "--train-option precision must be one of float32, bf16, f16, got 'f8'"),
    ("--train-option ema=1", "--train-option ema must be in [0, 1), got 1"),
    ("--lr fast", "--lr must be a number"),
    ("--lr 0", "--lr must be a positive number"),
    ("--lr 1 --train-option lr=2", "--lr: lr is given twice"),
    ("--epochs 0", "--epochs must be at least 1, got 0"),
    ("--batch-size 0", "--batch-size must be at least 1, got 0"),
    ("--seed -1", "--seed must be in 0..2147483647, got -1"),
    ("--train-option epoch=3", "--train-option: Recipe has no option 'epoch'; did you mean epochs?"),
    ("--train-option optimizer=rmsprop", "--train-option optimizer must be one of sgd, adam, adamw, got 'rmsprop'"),
    ("--defense bit-depth", "--defense: bit-depth trains nothing; give it to rbl evaluate"),
    ("--defense adversarial-training --defense-option eps=-1", "--defense-option eps must be >= 0, got -1"),
    ("--defense adversarial-training --defense-option norm=l3", "--defense-option norm: unknown name 'l3'"),
    ("--dataset npz:ok.npz", "--dataset: ok.npz must hold the array 'train_images'"),
    ("--weights pretrained", "--weights pretrained: mlp has none"),
    ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_writes_nothing(arguments: str, told: str, rbl: Rbl, folder: Path) -> None:
    defaults = {"--out": "net.safetensors", "--model": "mlp", "--dataset": "npz:split.npz"}
    given = arguments.split()
    before = listing(folder)
    said = rbl(
        "train", *(part for name, value in defaults.items() if name not in given for part in (name, value)), *given
    )
    assert told in said.error
    assert said.remarks.count("\n") == 1 and listing(folder) == before


def test_a_rate_that_is_too_high_is_told(rbl: Rbl, folder: Path) -> None:
    said = rbl("train", "--model", "mlp", "--out", "n.safetensors", "--dataset", "npz:split.npz", "--lr", "1e30")
    assert said.last_line.startswith("--lr: the loss became ") and "lower lr" in said.last_line
    assert not (folder / "n.safetensors").exists()


def test_a_factorys_network_that_does_not_take_the_images_is_its_own_fault(rbl: Rbl, folder: Path) -> None:
    said = rbl("train", "--model", "nets.py:seven_classes", "--out", "n.safetensors", "--dataset", "npz:split.npz")
    assert said.last_line.startswith("--model: expected logits of shape (2, 4)")
    said = rbl("train", "--model", "nets.py:raises", "--out", "n.safetensors", "--dataset", "npz:split.npz")
    assert "KeyError" in said.last_line and "(nets.py:" in said.last_line
    assert not (folder / "n.safetensors").exists()


def test_a_network_is_trained_behind_a_defense_and_is_not_taken_from_behind_it(rbl: Rbl) -> None:
    behind = ("--defense", "thermometer", "--defense-option", "levels=4")
    said = rbl("train", "--model", "mlp", "--out", "net.safetensors", *COMMON, *behind, "--json")
    assert said.code == 0 and said.json["parameters"] == 4 * 64 * 256 + 256 + 256 * 256 + 256 + 256 * 4 + 4
    assert said.json["test_accuracy"] > 0.5
    common = ("--model", "mlp", "--weights", "net.safetensors", "--dataset", "npz:split.npz", "--leaderboard", "lb")
    evaluated = rbl("evaluate", *common, *behind, "--steps", "3", "--json").json
    assert evaluated["clean_accuracy"] == said.json["test_accuracy"]
    for given in ((), ("--defense", "thermometer")):
        refused = rbl("evaluate", *common, *given)
        assert refused.code == 2
        assert refused.last_line == (
            "--weights: net.safetensors was trained behind thermometer; add --defense thermometer "
            "--defense-option levels=4"
        )


def test_a_detector_is_confirmed_from_its_examples(rbl: Rbl) -> None:
    rbl("train", "--model", "mlp", "--out", "net.safetensors", *COMMON)
    common = ("--model", "mlp", "--weights", "net.safetensors", "--dataset", "npz:split.npz", "--leaderboard", "lb")
    detector = ("--defense", "feature-squeezing", "--defense-option", "samples=40")
    said = rbl("evaluate", *common, *detector, "--eps", "0.5", "--save-examples", "out.npz", "--json").json
    assert 0 <= said["false_positive_rate"] < 0.5 and said["robust_accuracy"] < said["clean_accuracy"]
    told = rbl("evaluate", *common, *detector, "--eps", "0.5", "--attack", "noise").out
    assert "  rejected " in told and "which are not fooled" in told
    confirmed = rbl("verify", said["run_id"], *common, *detector)
    assert (confirmed.code, confirmed.err) == (0, "") and "all confirmed" in confirmed.out
    other = rbl("verify", said["run_id"], *common, "--defense", "feature-squeezing", "--defense-option", "samples=41")
    assert other.code == 2 and "refuted" in other.last_line
    pictured = rbl("evaluate", *common, *detector, "--eps", "0.5", "--figure", "out.png", "--json")
    assert pictured.code == 0 and Path("out.png").stat().st_size > 1000
