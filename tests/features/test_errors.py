"""The control: images as they are that a network gets wrong, with what it said."""

from __future__ import annotations

import torch

from robustbench_lite.features.constructions.errors import Errors

from .works import images, made_by, network, same_in_parts, workshop


def test_only_what_is_wrong_is_kept_and_nothing_is_changed() -> None:
    data, module = images(), network()
    with torch.no_grad():
        module[3].weight[0] *= 0.7  # type: ignore[index,operator]  # it takes some of class 0 for others
        said = module(data.images(torch.arange(60))).argmax(1)
    made = made_by(Errors(), workshop(data, module))
    assert torch.equal(made.images, data.images(torch.arange(60)))
    assert torch.equal(made.labels, said)
    assert made.kept is not None
    assert torch.equal(made.kept, said != data.labels)
    assert 3 < int(made.kept.sum()) < 60
    assert (made.labels != data.labels)[made.kept].all()


def test_no_image_depends_on_another() -> None:
    same_in_parts(Errors())
