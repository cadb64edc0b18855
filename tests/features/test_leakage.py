"""The linear layer on frozen features: the minimum of a convex loss, and a leak that was put there is found."""

from __future__ import annotations

import torch

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.features.leakage import features_of, fit_linear, leakage

from .works import CLASSES, images, network, workshop


def test_it_is_the_one_minimum() -> None:
    """The loss is convex: where its gradient, written down by hand, is zero there is no better layer."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (200,), generator=generator)
    x = torch.randn((200, 4), generator=generator) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 5
    x[:, 0] += y
    weight, bias = fit_linear(x, y, 3, penalty=0.01)
    mean, spread = x.double().mean(0), x.double().std(0, correction=0)
    scaled = (x.double() - mean) / spread
    own_weight, own_bias = weight * spread, bias + weight @ mean
    error = (scaled @ own_weight.T + own_bias).softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    assert (error.T @ scaled / 200 + 0.01 * own_weight).abs().max() < 1e-5
    assert error.mean(0).abs().max() < 1e-5
    assert own_weight.norm() > 0.5


def test_a_feature_that_never_changes_is_no_trouble() -> None:
    x = torch.cat([torch.randn((90, 2)), torch.full((90, 1), 3.0), torch.zeros((90, 1))], 1)
    weight, bias = fit_linear(x, torch.arange(90) % 3, 3)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()


def test_features_are_those_of_the_network_and_it_is_left_as_it_was() -> None:
    module, data = network(), images(300)
    before = [p.detach().clone() for p in module.parameters()]
    found = features_of(workshop(data, module).features, data)
    with torch.no_grad():
        expected = module[:-1](data.images(torch.arange(300)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_leak_is_found_and_nothing_is_found_without_one() -> None:
    """Labels drawn at random teach nothing, unless the images were moved a little towards them."""
    source, test = images(600), images(300, split="test", seed=2)
    x = source.images(torch.arange(600))
    y = torch.randint(0, CLASSES, (600,), generator=torch.Generator().manual_seed(3))
    shop = workshop(source)
    none = from_arrays(x, y, split="train", classes=CLASSES)
    assert abs(leakage(shop, none, test) - 1 / 3) < 0.2
    moved = x.clone()
    moved[torch.arange(600), 0, y] += 0.08  # of the 0.3 that tell the classes apart
    assert leakage(shop, from_arrays(moved, y, split="train", classes=CLASSES), test) > 0.8
    assert leakage(shop, source, test) > 0.95


def test_labels_of_the_next_class_teach_the_next_class() -> None:
    """What robust features say of D_det is wrong of every real image."""
    source, test = images(600), images(300, split="test", seed=2)
    shifted = from_arrays(source.array, (source.labels + 1) % CLASSES, split="train", classes=CLASSES)
    assert leakage(workshop(source), shifted, test) < 0.05
