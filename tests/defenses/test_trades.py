"""trades: both terms by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

import robustbench_lite as rbl
from robustbench_lite.defenses.trades import Trades
from robustbench_lite.errors import UserError

from .steps import batch, network, plain, trained, trainer_of, value


def test_the_loss_and_the_divergence_by_hand() -> None:
    x, y = batch()
    model = network()
    trainer = trainer_of(perturb=lambda _model, x, y, **_: (x + 0.1).clamp(0, 1))
    found = value(Trades(beta=3.0), model, x, y, trainer)
    moved = (x + 0.1).clamp(0, 1)
    kl = kl_div(model(moved).log_softmax(1), model(x).softmax(1), reduction="batchmean")
    assert torch.allclose(found.float(), plain(model, x, y) + 3 * kl, atol=1e-6)


def test_the_ascent_is_handed_the_threat_and_eps_grows() -> None:
    calls = []

    def perturb(_model: object, x: torch.Tensor, y: torch.Tensor, **given: object) -> torch.Tensor:
        calls.append(given)
        return x

    x, y = batch()
    trainer = trainer_of(perturb=perturb)
    for done in (0.0, 0.25, 0.9):
        trainer.done = done
        value(Trades(norm="l2", eps=0.4, steps=3, warmup=0.5), network(), x, y, trainer)
    assert [call["eps"] for call in calls] == pytest.approx([0.0, 0.2, 0.4])
    assert {(call["attack"], call["norm"]) for call in calls} == {("tpgd", "l2")}


def test_it_hardens() -> None:
    x, y = batch(90)
    options = {"attack": "pgd", "eps": 0.1, "checks": False}
    nets = (trained(), trained(Trades(eps=0.1, steps=4), epochs=12))
    robust = [rbl.evaluate(m, x, y, **options).robust_accuracy for m in nets]  # type: ignore[arg-type]
    assert robust[1] > robust[0]


@pytest.mark.parametrize("options", [{"steps": 0}, {"beta": -1.0}, {"warmup": 2.0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        Trades(**options)  # type: ignore[arg-type]
