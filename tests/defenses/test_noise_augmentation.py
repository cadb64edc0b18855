"""noise-augmentation: what is learned from lies where the noise puts it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.noise_augmentation import NoiseAugmentation
from robustbench_lite.errors import UserError

from .steps import accuracy, network, trained, trainer_of


@pytest.mark.parametrize(("kind", "deviation"), [("gaussian", 0.05), ("uniform", 0.05 / 3**0.5), ("sign", 0.05)])
def test_the_noise_has_its_size(kind: str, deviation: float) -> None:
    x, y = torch.full((50, 1, 10, 10), 0.5), torch.zeros(50, dtype=torch.int64)
    seen: list[Tensor] = []

    def inner(_network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return x.sum()

    torch.manual_seed(0)
    NoiseAugmentation(eps=0.05, kind=kind).loss(network(), x, y, inner, trainer_of())
    noise = seen[0] - 0.5
    assert float(noise.std()) == pytest.approx(deviation, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)
    if kind != "gaussian":
        assert float(noise.abs().max()) <= 0.05 + 1e-6
    NoiseAugmentation(eps=0.05, kind=kind).loss(network(), torch.ones_like(x), y, inner, trainer_of())
    assert float(seen[1].max()) <= 1
    torch.manual_seed(0)
    NoiseAugmentation(eps=0.05, kind=kind, clip=False).loss(network(), torch.ones_like(x), y, inner, trainer_of())
    assert float((seen[2] - 1).std()) == pytest.approx(deviation, rel=0.05)
    assert float(seen[2].max()) > 1


def test_it_learns() -> None:
    assert accuracy(trained(NoiseAugmentation(eps=0.1))) > 0.9


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^eps must be >= 0, got -1"):
        NoiseAugmentation(eps=-1.0)
    with pytest.raises(UserError, match=r"^kind: unknown name 'gauss'; did you mean gaussian"):
        NoiseAugmentation(kind="gauss")
