"""feature-squeezing: score and threshold by hand, and an attack that knows of the detector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.feature_squeezing import FeatureSqueezing, Squeezed
from robustbench_lite.defenses.median import Median
from robustbench_lite.errors import UserError


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3)).eval().requires_grad_(False)


def test_the_score_is_the_largest_distance_and_decides() -> None:
    network, defense = _network(), FeatureSqueezing(bits=2, size=3, samples=80, false_positive_rate=0.1)
    x = torch.rand(80, 1, 6, 6)
    squeezed = defense.fit(network, x, torch.zeros(80).long())
    assert isinstance(squeezed, Squeezed)
    bits, smooth = BitDepth(bits=2), Median(size=3)
    plain = network(x).softmax(1)
    apart = [(network(s.transform(x)).softmax(1) - plain).abs().sum(1) for s in (bits, smooth)]
    score = torch.maximum(*apart)
    assert torch.allclose(squeezed.score(x, network(x)), score, atol=1e-6)
    assert int((score > squeezed.threshold).sum()) == 8  # a tenth of 80
    away = squeezed(x).argmax(1) == 3
    assert torch.equal(away, score > squeezed.threshold)
    assert torch.equal(squeezed(x)[:, :3], network(x))


def test_an_attack_on_both_gets_past_the_detector() -> None:
    network, defense = _network(), FeatureSqueezing(bits=2, size=2, samples=200)
    known, x = torch.rand(200, 1, 6, 6), torch.rand(60, 1, 6, 6)
    y = network(x).argmax(1)
    given = {"eps": 0.2, "defenses": [defense], "fit_data": (known, torch.zeros(200).long()), "checks": False}
    aware = rbl.evaluate(network, x, y, **given)  # type: ignore[arg-type]
    blind = rbl.evaluate(network, x, y, attack="transfer:pgd", surrogates=[network], **given)  # type: ignore[arg-type]
    assert aware.robust_accuracy < blind.robust_accuracy
    rate = aware.summary()["false_positive_rate"]
    assert 0 <= rate < 0.2 and aware.clean_accuracy == pytest.approx(1 - rate)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 0}, "bits must be in"),
        ({"size": 10}, "size must be in"),
        ({"false_positive_rate": 1.0}, "false_positive_rate must be between 0 and 1, got 1"),
        ({"samples": 0}, "samples must be >= 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        FeatureSqueezing(**options)  # type: ignore[arg-type]
