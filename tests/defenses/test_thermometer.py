"""thermometer: its channels by hand, a network trained behind it, and what falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.data_request import DataRequest
from robustbench_lite.defense import wrap_all
from robustbench_lite.defenses.thermometer import Thermometer
from robustbench_lite.errors import UserError
from robustbench_lite.prepare import prepare_model


def test_a_pixel_is_a_row_of_ones_and_then_zeros() -> None:
    defense = Thermometer(levels=3)
    x = torch.tensor([0.0, 0.2, 0.3, 0.6, 0.9, 1.0]).reshape(1, 2, 1, 3)
    seen = defense.transform(x)
    assert seen.shape == (1, *defense.seen_shape((2, 1, 3))) == (1, 6, 1, 3)
    rows = seen.reshape(2, 3, 3).permute(0, 2, 1).reshape(6, 3).tolist()
    assert rows == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_the_stand_in_crosses_each_threshold_where_the_step_is() -> None:
    defense = Thermometer(levels=4)
    x = torch.linspace(0, 1, 101).reshape(1, 1, 1, 101)
    assert torch.equal(defense.surrogate(x) > 0.5, defense.transform(x) > 0.5)


def test_a_network_is_trained_behind_it_and_stands_in_the_cache(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBL_CACHE", str(tmp_path))
    request, defense = DataRequest("digits"), Thermometer(levels=4)
    data = request.load()
    trained: list[str] = []
    networks = [
        prepare_model("mlp", request, data, defenses=[defense], recipe={"epochs": 3}, note=trained.append)
        for _ in range(2)
    ]
    assert len(trained) == 1 and "with thermometer" in trained[0]
    assert networks[0].sha256 == networks[1].sha256
    assert networks[0].recipe is not None and networks[0].recipe["behind"][0]["options"] == {"levels": 4}
    index = torch.arange(100)
    x, y = data.images(index), data.labels[index]
    assert float((wrap_all(networks[0].module, [defense])(x).argmax(1) == y).double().mean()) > 0.8
    r = rbl.evaluate(networks[0].module, x, y, eps=0.3, defenses=[defense])
    assert r.verdict == "reliable" and r.robust_accuracy < 0.1
    blind = rbl.evaluate(networks[0].module, x, y, eps=0.3, attack="noise", defenses=[defense], checks=False)
    assert blind.robust_accuracy > r.robust_accuracy


def test_levels_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^levels must be in 2\.\.256, got 1"):
        Thermometer(levels=1)


def test_the_gradient_is_that_of_the_stand_in() -> None:
    defense = Thermometer(levels=2)
    network = defense.wrap(nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)))
    weight = next(network.parameters()).detach()
    x = torch.tensor([[[[0.3]]]], requires_grad=True)
    gradient = torch.autograd.grad(network(x)[0, 0], x)[0]
    # Ramps of width 4/3 around 1/3 and 2/3: both hold 0.3.
    assert float(gradient) == pytest.approx(float(weight[0].sum()) * 3 / 4, rel=1e-5)
