"""ensemble-adversarial-training: images that fool other networks, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.decided import describe
from robustbench_lite.defenses.ensemble_adversarial_training import EnsembleAdversarialTraining
from robustbench_lite.errors import UserError
from robustbench_lite.models import build_model, state_sha256
from robustbench_lite.models.weights import save_weights
from robustbench_lite.recipe import Recipe
from robustbench_lite.training import train_model

from .steps import CLASSES, batch, plain, trainer_of


@pytest.fixture
def files(tmp_path: Path) -> str:
    names = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.safetensors"
        save_weights(build_model("mlp", n_classes=CLASSES, shape=(1, 4, 4), seed=seed), file, model="mlp")
        names.append(str(file))
    return ",".join(names)


def test_each_network_is_drawn_and_half_of_the_loss_is_clean(files: str) -> None:
    x, y = batch()
    asked: list[str] = []
    model = build_model("mlp", n_classes=CLASSES, shape=(1, 4, 4), seed=0)

    def perturb(source: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Tensor:
        asked.append(state_sha256(source))
        return 1 - x

    defense = EnsembleAdversarialTraining(models=files)
    trainer = trainer_of(defense, perturb=perturb)
    torch.manual_seed(0)
    for _ in range(20):
        found = defense.loss(model, x, y, plain, trainer)
    assert torch.allclose(found, 0.5 * plain(model, x, y) + 0.5 * plain(model, 1 - x, y))
    assert len(set(asked)) == 3 and state_sha256(model) in asked


def test_the_files_are_part_of_what_decides_the_training(files: str) -> None:
    x, y = batch(30)
    data = from_arrays(x, y, classes=CLASSES, split="train")
    defense = EnsembleAdversarialTraining(models=files, eps=0.1)
    told = describe(data, Recipe(), [defense])["defenses"][0]["plugins"]
    assert sorted(told) == ["1.safetensors", "2.safetensors"]
    model = build_model("mlp", n_classes=CLASSES, shape=(1, 4, 4), seed=0)
    before = state_sha256(model)
    assert state_sha256(train_model(model, data, recipe=Recipe(epochs=1), defenses=[defense])) != before


def test_files_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^models: no such file 'gone\.safetensors'"):
        EnsembleAdversarialTraining(models="gone.safetensors")
    file = tmp_path / "n.safetensors"
    save_weights(build_model("mlp", n_classes=CLASSES, shape=(1, 4, 4)), file)
    x, y = batch()
    defense = EnsembleAdversarialTraining(models=str(file))
    model = build_model("mlp", n_classes=CLASSES, shape=(1, 4, 4))
    data = from_arrays(x, y, classes=CLASSES, split="train")
    with pytest.raises(UserError, match=r"^models: .* does not say which network it is"):
        train_model(model, data, recipe=Recipe(epochs=10), defenses=[defense])
