"""fast-at: its step by hand, and the collapse that it looks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import robustbench_lite as rbl
from robustbench_lite.defenses.fast_at import FastAT
from robustbench_lite.errors import UserError
from robustbench_lite.history import History
from robustbench_lite.streams import uniform_noise

from .steps import batch, network, plain, trained, trainer_of, value


def moved_by(model: nn.Module, x: Tensor, y: Tensor, steps: int, share: float) -> Tensor:
    """What so many steps of `share` of eps 0.2 make of the images, from the start that `value` draws."""
    torch.manual_seed(7)
    seen = x + 0.2 * uniform_noise(x)
    for _ in range(steps):
        at = seen.clone().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(model(at), y), at)[0]
        seen = torch.minimum(torch.maximum(seen + share * 0.2 * gradient.sign(), x - 0.2), x + 0.2).clamp(0, 1)
    return seen


def test_one_step_from_a_uniform_start() -> None:
    x, y = batch()
    model, defense = network(), FastAT(eps=0.2)
    assert torch.allclose(value(defense, model, x, y), plain(model, moved_by(model, x, y, 1, 1.25), y))


def test_it_hardens_and_watches_itself() -> None:
    history = History()
    x, y = batch(90)
    options = {"attack": "pgd", "eps": 0.1, "checks": False}
    robust = [
        rbl.evaluate(model, x, y, **options).robust_accuracy  # type: ignore[arg-type]
        for model in (trained(), trained(FastAT(eps=0.1), history=history, optimizer="adam", lr=0.02))
    ]
    assert robust[1] > robust[0]
    assert all({"single_step_accuracy", "multi_step_accuracy"} <= set(row) for row in history.rows)


def test_it_begins_at_eps_0_where_eps_grows() -> None:
    x, y = batch()
    model, defense = network(), FastAT(eps=0.2, warmup=0.5, recovery=3)
    assert torch.allclose(value(defense, model, x, y), plain(model, x, y))
    trained(FastAT(eps=0.1, warmup=0.5, recovery=3))


def test_a_collapse_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.defenses.fast_at._LOOK", 1)
    x, y = batch(30)
    told: list[str] = []
    defense = FastAT(eps=0.3, step_share=1e-9)
    model = trained()
    trainer = trainer_of(defense, say=told.append, perturb=lambda _model, x, y, **_: 1 - x)
    for _ in range(3):
        value(defense, model, x, y, trainer)
    assert len(told) == 1 and "catastrophic overfitting" in told[0]


def test_it_takes_several_steps_until_it_has_recovered() -> None:
    x, y = batch()
    model, defense = network(), FastAT(eps=0.2, recovery=3, step_share=1e-9)
    moved = [1 - x]  # what ten steps make of the images: all are lost, then none
    trainer = trainer_of(defense, perturb=lambda _model, x, y, **_: moved[0][: len(x)])
    trainer.memory["fast-at recovering"] = torch.ones(1)
    trainer.batch = 1  # no look now
    assert torch.allclose(
        value(defense, model, x, y, trainer), plain(model, moved_by(model, x, y, 3, 2.5 / 3), y), atol=1e-6
    )
    trainer.batch = 50
    moved[0] = x
    value(defense, model, x, y, trainer)
    assert not trainer.memory["fast-at recovering"]


def test_it_looks_once_at_a_batch_that_it_sees_twice() -> None:
    x, y = batch()
    model, defense = network(), FastAT(eps=0.2, recovery=3, step_share=1e-9)
    looks = [1 - x, x]  # all are lost, then none: a second look would say that it has recovered
    trainer = trainer_of(defense, perturb=lambda _model, x, y, **_: looks.pop(0))
    for _ in range(2):
        value(defense, model, x, y, trainer)
    assert trainer.memory["fast-at recovering"]
    trainer.epoch = 1
    value(defense, model, x, y, trainer)
    assert not trainer.memory["fast-at recovering"]


def test_it_takes_several_steps_at_the_end() -> None:
    x, y = batch()
    model, defense = network(), FastAT(eps=0.2, recovery=3, finish=0.25)
    trainer = trainer_of(defense)
    for done, steps in ((0.74, 1), (0.75, 3), (0.99, 3)):
        trainer.done = done
        trainer.batch = 1  # no look now
        expected = plain(model, moved_by(model, x, y, steps, 1.25 if steps == 1 else 2.5 / steps), y)
        assert torch.allclose(value(defense, model, x, y, trainer), expected, atol=1e-6)


def test_the_end_needs_a_number_of_steps() -> None:
    with pytest.raises(UserError, match="set recovery=4"):
        FastAT(finish=0.3)


@pytest.mark.parametrize(
    "options", [{"eps": -1.0}, {"step_share": 0.0}, {"warmup": 1.5}, {"recovery": 1}, {"finish": 1.0}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        FastAT(**options)
