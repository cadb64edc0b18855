"""awp: the weights by hand, put back before they move, the images kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.adversarial_training import AdversarialTraining
from robustbench_lite.defenses.awp import AWP
from robustbench_lite.errors import UserError
from robustbench_lite.models import state_sha256

from .steps import batch, network, plain, trained, trainer_of


def test_each_layer_moves_by_gamma_of_its_length_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch()
    model, by_hand = network(), network()
    undone: list[Callable[[], None]] = []
    trainer = trainer_of()
    monkeypatch.setattr(trainer, "after_backward", undone.append)
    found = AWP(gamma=0.05).loss(model, x, y, plain, trainer)
    plain(by_hand, x, y).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for p in by_hand.parameters():
            if p.ndim > 1:
                assert p.grad is not None
                p.add_(0.05 * p.norm() * p.grad / p.grad.norm())
    assert torch.allclose(found, plain(by_hand, x, y), atol=1e-6)
    assert found.item() > plain(network(), x, y).item()
    undone[0]()
    assert state_sha256(model) == state_sha256(network())


def test_the_images_of_the_inner_defense_are_made_once() -> None:
    made: list[Tensor] = []
    seen: list[Tensor] = []

    def perturb(_model: nn.Module, x: Tensor, y: Tensor, **_: object) -> Tensor:
        moved: Tensor = x + 0.01 * len(made)
        made.append(moved)
        return moved

    def inner(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(trainer.perturb(network, x, y, attack="pgd", norm="linf", eps=0.1))
        return plain(network, seen[-1], y)

    x, y = batch()
    trainer = trainer_of(perturb=perturb)
    AWP().loss(network(), x, y, inner, trainer)
    assert len(made) == 1 and len(seen) == 2 and torch.equal(*seen)


def test_a_training_with_it_repeats_itself_and_differs() -> None:
    stack = (AWP(gamma=0.02), AdversarialTraining(eps=0.1, attack_options="steps=2"))
    hashes = [state_sha256(trained(*defenses, epochs=2)) for defenses in (stack, stack, stack[1:])]
    assert hashes[0] == hashes[1] != hashes[2]


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^gamma must be > 0, got 0"):
        AWP(gamma=0.0)
    with pytest.raises(UserError, match=r"^warmup must be in \[0, 1\)"):
        AWP(warmup=1.0)
