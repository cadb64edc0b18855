"""Images with a standard network's features: the same descent with another network."""

from __future__ import annotations

import torch

from robustbench_lite.features.constructions.nonrobust import NonRobust
from robustbench_lite.features.constructions.robust import Robust

from .works import made_by, same_in_parts, workshop


def test_the_network_alone_makes_the_difference() -> None:
    shop = workshop()
    assert torch.equal(made_by(NonRobust(steps=4), shop).images, made_by(Robust(steps=4), shop).images)
    assert (NonRobust.network, NonRobust.symbol) == ("standard", "D_NR")


def test_no_image_depends_on_another() -> None:
    same_in_parts(NonRobust(steps=5))
