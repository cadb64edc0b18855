"""Images with a robust network's features: labels stay, and of the network's features all is there."""

from __future__ import annotations

import torch

from robustbench_lite.features.constructions.robust import Robust

from .works import made_by, same_in_parts, workshop


def test_the_network_takes_them_for_what_they_are_labelled() -> None:
    shop = workshop()
    made = made_by(Robust(steps=80, step_size=0.05), shop)
    assert torch.equal(made.labels, shop.data.labels)
    with torch.no_grad():
        own = shop.module(shop.data.images(torch.arange(60))).argmax(1)
        said = shop.module(made.images).argmax(1)
    assert (said == own).double().mean() > 0.9
    assert (made.images - shop.data.images(torch.arange(60))).abs().flatten(1).amax(1).min() > 0.05  # but not it
    assert made.forwards.tolist() == [82] * 60
    assert made.backwards.tolist() == [80] * 60


def test_no_image_depends_on_another() -> None:
    same_in_parts(Robust(steps=5))


def test_it_is_made_with_a_robust_network() -> None:
    assert (Robust.network, Robust.symbol) == ("robust", "D_R")
