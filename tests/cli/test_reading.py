"""The line on what was read, class lists and normalisation on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.records.run import read_run

from .harness import Rbl

# Weights learned on (x - 0.5) / 0.25, with the normalisation inside and left out; and four classes in another order.
NET = """
import torch
from torch import nn


def outside():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = outside()

    def forward(self, x):
        return self.net((x - 0.5) / 0.25)


class Four(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Inside()

    def forward(self, x):
        logits = self.net(x)
        return torch.cat([logits[:, [2, 0]], torch.full((len(x), 1), -9.0), logits[:, [1]]], 1)
"""
LINE = "folder:brain: 3 classes (glioma, none, pituitary), 12 test images, 12 training images, 6 files ignored: .txt\n"


@pytest.fixture(autouse=True)
def brain(folder: Path) -> None:
    """Grey 8x8 images that `Inside` classifies right, in brain/Training and brain/Testing, and a note in each class."""
    (folder / "brain.py").write_text(NET)
    names: dict[str, Any] = {}
    exec(NET, names)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8)
    with torch.random.fork_rng(), torch.no_grad():
        said = names["Inside"]()(torch.from_numpy(pixels)[:, None] / 255).argmax(1).numpy()
    for label, name in enumerate(("glioma", "none", "pituitary")):
        for i, image in enumerate(pixels[said == label][:8]):
            path = folder / "brain" / ("Training" if i % 2 else "Testing") / name
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / f"{i}.bmp")
            (path / "note.txt").write_text("no image")


EVALUATE = ("evaluate", "--dataset", "folder:brain", "--attack", "fgsm", "--eps", "0.01", "--workers", "0")


def test_every_command_describes_what_it_read(rbl: Rbl, folder: Path) -> None:
    line = LINE.replace("6 files", "3 files")
    both = "brain.py:Inside,brain.py:outside"
    evaluated: tuple[tuple[str, ...], ...] = (
        (*EVALUATE, "--model", "brain.py:Inside", "--json"),
        ("certify", "--model", "brain.py:outside", "--dataset", "folder:brain", "--eps", "0.001", "--json"),
        ("transfer", "--models", both, "--dataset", "folder:brain", "--steps", "1", "--json"),
    )
    for arguments in evaluated:
        said = rbl(*arguments)
        assert said.json and said.err.startswith(line), said.err
    trained = ("train", "--model", "mlp", "--dataset", "folder:brain", "--epochs", "1", "--out", "a.safetensors")
    built = ("features", "build", "--kind", "random", "--model", "mlp", "--dataset", "folder:brain", "--epochs", "1")
    for words in ((*trained, "--json"), (*built, "--steps", "1", "--eps", "0.1", "--out", "made", "--json")):
        assert rbl(*words).err.startswith(LINE)
    (folder / "s.toml").write_text(
        'datasets = ["folder:brain"]\nmodels = ["mlp"]\nthreats = ["linf 0.1"]\nattacks = ["fgsm"]\n'
        'defenses = ["none"]\n'
        "recipe = { epochs = 1 }\n"
    )
    assert rbl("sweep", "s.toml", "--dry-run").err.startswith(line)


def test_a_normalisation_outside_the_network_is_put_inside(rbl: Rbl, folder: Path) -> None:
    inside = rbl(*EVALUATE, "--model", "brain.py:Inside", "--json").json
    outside = rbl(*EVALUATE, "--model", "brain.py:outside", "--json").json
    put = rbl(*EVALUATE, "--model", "brain.py:outside", "--mean", "0.5", "--std", "0.25", "--json").json
    assert inside["clean_accuracy"] == put["clean_accuracy"] == 1 > outside["clean_accuracy"]
    assert inside["robust_accuracy"] == put["robust_accuracy"]
    assert put["run_id"] != outside["run_id"]
    assert read_run(Path(put["run_file"])).specification.model.preprocessing == {"mean": [0.5], "std": [0.25]}
    for wrong, told in (
        (("--mean", "0.5,0.5,0.5", "--std", "1"), "--mean must have 1 value, as the images have channels, got 3"),
        (("--mean", "0.5", "--std", "0"), "--std must be > 0, got 0"),
        (("--mean", "mnits"), "--mean: unknown name 'mnits'; did you mean mnist"),
    ):
        assert told in rbl(*EVALUATE, "--model", "brain.py:outside", *wrong).error


def test_a_network_of_more_classes_is_asked_for_its_list(rbl: Rbl) -> None:
    assert "--class-names" in rbl(*EVALUATE, "--model", "brain.py:Four").error
    named = ("--class-names", "pituitary,glioma,meningioma,none")
    found = rbl(*EVALUATE, "--model", "brain.py:Four", *named, "--json")
    assert found.json["clean_accuracy"] == 1
    assert "4 classes (pituitary, glioma, meningioma, none), images of 3 of them" in found.err
    record = read_run(Path(found.json["run_file"])).specification.dataset
    assert record.class_names == ("pituitary", "glioma", "meningioma", "none")
    assert "no such file 'list.txt'" in rbl(*EVALUATE, "--model", "brain.py:Four", "--class-names", "list.txt").error


def test_trained_weights_bring_class_list_and_normalisation(rbl: Rbl, folder: Path) -> None:
    given = ("--model", "mlp", "--dataset", "folder:brain", "--workers", "0")
    assert rbl("train", *given, "--epochs", "60", "--mean", "half", "--out", "net.safetensors", "--json").code == 0
    whole = rbl(*EVALUATE, "--model", "mlp", "--weights", "net.safetensors", "--json").json
    (folder / "part").mkdir()
    for name in ("none", "Pituitary"):
        (folder / "brain" / "Training" / name.lower()).rename(folder / "part" / name)
    part = rbl(*EVALUATE[:2], "folder:part", *EVALUATE[3:], "--model", "mlp", "--weights", "net.safetensors", "--json")
    assert set(read_run(Path(part.json["run_file"])).table["label"].to_pylist()) == {1, 2}
    assert "3 classes (glioma, none, pituitary), images of 2 of them" in part.err
    assert read_run(Path(whole["run_file"])).specification.model.preprocessing == {"mean": [0.5], "std": [0.5]}


def test_verification_of_a_normalised_run(rbl: Rbl) -> None:
    given = ("--model", "brain.py:outside", "--mean", "0.5", "--std", "0.25")
    run = rbl(*EVALUATE, *given, "--save-examples", "e.npz", "--json").json
    confirmed = rbl("verify", run["run_file"], *given, "--examples", "e.npz")
    assert confirmed.code == 0 and "all confirmed" in confirmed.out
