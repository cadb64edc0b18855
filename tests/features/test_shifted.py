"""Images moved to the class after their own."""

from __future__ import annotations

import torch

from robustbench_lite.features.constructions.shifted import Shifted

from .works import CLASSES, block_of, made_by, same_in_parts, workshop


def test_every_label_is_the_next_class() -> None:
    shop = workshop()
    targets = Shifted().targets(block_of(shop), CLASSES)
    assert torch.equal(targets, (shop.data.labels + 1) % CLASSES)
    made = made_by(Shifted(eps=0.9, steps=20), shop)
    assert torch.equal(made.labels, targets)
    assert made.notes["reached"].double().mean() > 0.5


def test_no_image_depends_on_another() -> None:
    same_in_parts(Shifted(eps=0.5, steps=4))
