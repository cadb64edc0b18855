"""free-at: one gradient moves weights and perturbation, from batch to batch."""

from __future__ import annotations

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite.defenses.free_at import FreeAT
from robustbench_lite.errors import UserError
from robustbench_lite.history import History

from .steps import batch, network, plain, trained, trainer_of


def test_the_perturbation_moves_with_the_backward_pass_and_goes_on() -> None:
    x, y = batch()
    model, defense = network(), FreeAT(eps=0.2, replays=2)
    trainer = trainer_of(defense)
    delta = torch.zeros_like(x)
    for _ in range(3):
        found = defense.loss(model, x, y, plain, trainer)
        at = (x + delta).clamp(0, 1).requires_grad_()
        by_hand = plain(model, at, y)
        assert torch.allclose(found, by_hand)
        found.backward()  # type: ignore[no-untyped-call]
        delta = (delta + 0.2 * torch.autograd.grad(by_hand, at)[0].sign()).clamp(-0.2, 0.2)
        assert torch.allclose(trainer.memory["free-at delta"], delta)


def test_a_smaller_batch_moves_its_rows_alone() -> None:
    x, y = batch()
    defense, model = FreeAT(eps=0.1), network()
    trainer = trainer_of(defense)
    for rows in (8, 5, 12):
        before = trainer.memory.get("free-at delta", torch.zeros_like(x[:0])).clone()
        defense.loss(model, x[:rows], y[:rows], plain, trainer).backward()  # type: ignore[no-untyped-call]
        after = trainer.memory["free-at delta"]
        assert len(after) == max(rows, len(before))
        assert torch.equal(after[rows:], before[rows:])


def test_epochs_are_divided_by_the_replays_and_it_hardens() -> None:
    history = History()
    x, y = batch(90)
    hardened = trained(FreeAT(eps=0.1, replays=4), history=history, epochs=24)
    assert len(history.rows) == 6
    plainly = trained()
    options = {"attack": "pgd", "eps": 0.1, "checks": False}
    robust = [rbl.evaluate(m, x, y, **options).robust_accuracy for m in (plainly, hardened)]  # type: ignore[arg-type]
    assert robust[1] > robust[0]


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^replays must be >= 1, got 0"):
        FreeAT(replays=0)
    with pytest.raises(UserError, match=r"^accumulate must be 1 for a defense that learns 8 times"):
        trained(FreeAT(), accumulate=2)
