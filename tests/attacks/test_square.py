"""Square: the schedule of the paper, squares that are squares, and random search that only goes up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.square import Square, SquareState, _square
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat


class Watching:
    """Answers a query with a fixed linear network and keeps what it was asked."""

    def __init__(self) -> None:
        self.weight = torch.randn((3 * 12 * 10, 4), generator=torch.Generator().manual_seed(0))
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked.append(x.clone())
        return x.flatten(1) @ self.weight


def batch_of(count: int, *, eps: float = 0.1, step: int = 0) -> Batch:
    x = torch.rand((count, 3, 12, 10), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    stream = Stream(torch.arange(count)).child("test")
    return Batch(Threat("linf", eps).around(x), zero, None, zero + step, stream, zero)


def test_the_side_follows_the_papers_schedule() -> None:
    attack = Square(steps=10_000, share=0.3)
    steps = torch.tensor([0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999])
    sides = attack._side(steps, 32, 32)
    shares = [0.3, 0.3, 0.15, 0.15, 0.075, 0.0375, 0.3 / 16, 0.3 / 32, 0.3 / 64, 0.3 / 128, 0.3 / 256, 0.3 / 512]
    expected = [max(1, round((share * 32 * 32) ** 0.5)) for share in [*shares, 0.3 / 512]]
    assert sides.tolist() == expected
    # With fewer steps the same, compressed.
    short = Square(steps=100, share=0.3)
    assert torch.equal(
        short._side(torch.tensor([0, 6, 81]), 32, 32), attack._side(torch.tensor([0, 600, 8100]), 32, 32)
    )


def test_squares_reach_every_place_and_never_leave() -> None:
    ends = torch.linspace(0, 1 - 1e-7, 40)
    drawn = torch.cartesian_prod(ends, ends)
    for side, firsts in ((1, 12 * 8), (3, 10 * 6), (7, 6 * 2)):
        # Beside a larger one, as samples stand at different steps.
        sides = torch.full((len(drawn) + 1,), side).index_fill(0, torch.tensor([len(drawn)]), 7)
        place = _square(torch.cat([drawn, drawn[:1]]), sides, 12, 8)[:-1]
        down, across = place // 8, place % 8
        assert (down.amax(1) - down.amin(1) == side - 1).all()
        assert (across.amax(1) - across.amin(1) == side - 1).all()
        assert all(len(set(square.tolist())) == side**2 for square in place[::97])
        assert int(place.amin()) == 0
        assert int(place.amax()) == 12 * 8 - 1
        assert len(set(place[:, 0].tolist())) == firsts


def test_of_several_proposals_the_best_is_taken() -> None:
    network: Any = Watching()
    attack, batch = Square(steps=50, proposals=4), batch_of(6, step=3)
    state = attack.start(network, batch_of(6))
    after = attack.step(network, batch, state)
    asked = network.asked[-1].reshape(6, 4, 3, 12, 10)
    assert all(len({image.numpy().tobytes() for image in images}) == 4 for images in asked)
    loss = attack._loss(network, batch, asked.flatten(0, 1), torch.arange(6).repeat_interleave(4)).reshape(6, 4)
    assert torch.equal(after.loss, torch.maximum(loss.amax(1), state.loss))
    for row in range(6):
        taken = asked[row, loss[row].argmax()] if loss[row].max() > state.loss[row] else state.candidate[row]
        assert torch.equal(after.candidate[row], taken)


def test_without_a_random_start_it_begins_where_others_ended() -> None:
    network: Any = Watching()
    batch = batch_of(5)
    assert torch.equal(Square(random_start=False).start(network, batch).candidate, batch.ball.x)
    ends = batch.ball.project(batch.ball.x + 0.05)
    begun = Square(random_start=False).start(network, dataclasses.replace(batch, ends=ends))
    assert torch.equal(begun.candidate, ends)


def test_it_begins_with_stripes_and_repaints_one_square_a_step() -> None:
    network: Any = Watching()
    attack, batch = Square(steps=50), batch_of(20)
    state = attack.start(network, batch)
    delta = (network.asked[0] - batch.ball.x) / 0.1
    assert torch.allclose(delta.abs(), torch.ones_like(delta), atol=1e-5)
    assert torch.equal(delta.sign(), delta[:, :, :1].sign().expand_as(delta))
    for step in range(1, 12):
        batch = batch_of(20, step=step)
        before, best = state.candidate.clone(), state.loss.clone()
        state = attack.step(network, batch, state)
        side = attack._side(batch.step, 12, 10)
        changed = (network.asked[-1] != before).any(1)
        for row in range(20):
            places = changed[row].nonzero()
            if len(places):
                assert int((places.max(0).values - places.min(0).values).max()) < int(side[row])
        assert (state.loss >= best).all()
        kept = (state.candidate != before).flatten(1).any(1)
        assert torch.equal(kept & (state.loss == best), torch.zeros(20, dtype=torch.bool))
        assert batch.ball.contains(state.candidate).all()
    assert isinstance(state, SquareState)


@pytest.mark.parametrize("target", [None, "next"])
def test_on_one_linear_layer_it_comes_near_the_best_corner(target: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    dict(model.named_parameters())["1.weight"].data = torch.randn((3, 64), generator=generator)
    x = torch.rand((60, 1, 8, 8), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    weight = dict(model.named_parameters())["1.weight"].detach()
    aims = [(y + 1) % 3] if target else [(y + 1) % 3, (y + 2) % 3]
    # The least eps at which any corner of the ball reaches the goal.
    gaps = torch.stack(
        [
            (logits.gather(1, y[:, None]) - logits.gather(1, aim[:, None]))[:, 0]
            / (weight[y] - weight[aim]).abs().sum(1)
            for aim in aims
        ]
    ).amin(0)
    eps = float(gaps.median())
    found = rbl.evaluate(model, x, y, attack="square", eps=eps, target=target, attack_options={"steps": 600})
    assert not found.success[gaps > eps * 1.001].any()
    assert found.success[gaps < 0.8 * eps].double().mean() > (0.75 if target else 0.95)
    assert found.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0"),
        ({"loss": "mergin"}, "margin"),
        ({"patience": 0.0}, "patience must be > 0 and the loss margin, got 0 and None"),
        ({"patience": 1.0, "loss": "ce"}, "patience must be > 0 and the loss margin, got 1 and ce"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Square(**options)


def test_in_l1_one_square_is_emptied_into_another_and_the_budget_is_used() -> None:
    network: Any = Watching()
    attack = Square(steps=60)
    x = torch.rand((8, 3, 12, 10), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(8, dtype=torch.int64)

    def batch_in_l1(step: int) -> Batch:
        return Batch(Threat("l1", 6.0).around(x), zero, None, zero + step, Stream(torch.arange(8)).child("test"), zero)

    state = attack.start(network, batch_in_l1(0))
    assert (batch_in_l1(0).ball.distance(state.candidate) > 5.9).all()
    grown = torch.zeros(8, dtype=torch.bool)
    for step in range(60):
        batch, before, loss = batch_in_l1(step), state.candidate.clone(), state.loss.clone()
        state = attack.step(network, batch, state)
        asked = network.asked[-1]
        assert batch.ball.contains(asked).all()
        assert (batch.ball.distance(asked) > 0.8 * 6).all()
        side = int(attack._side(batch.step, 12, 10)[0])
        changed = ((asked - before).abs() > 1e-5).any(1).flatten(1).sum(1)
        # Two squares, and what the projection shortens where the budget was passed.
        assert float((changed <= 2 * (max(side, 3) // 2 * 2 + 1) ** 2).double().mean()) > 0.6
        assert (state.loss >= loss).all()
        grown |= state.loss > loss
    assert grown.all()


def test_in_l1_it_beats_noise_by_far_and_never_the_best_point_of_a_linear_layer() -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(64, 3)
    layer.weight.data = torch.randn((3, 64), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((60, 1, 8, 8), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    steepest = (layer.weight.data[y][:, None] - layer.weight.data).abs().amax(2)
    gaps = ((logits.gather(1, y[:, None]) - logits) / steepest).scatter(1, y[:, None], float("inf")).amin(1)
    eps = 2 * float(gaps.median())
    found, noise = (
        rbl.evaluate(model, x, y, attack=name, norm="l1", eps=eps, attack_options=options, checks=False)
        for name, options in (("square", {"steps": 500}), ("noise", {}))
    )
    assert not found.success[gaps > eps * 1.001].any()
    assert int(found.success.sum()) > int(noise.success.sum()) + 10
    assert found.success[gaps < 0.4 * eps].double().mean() > 0.9


class Stuck(nn.Module):
    """Class 0 until the image's mean, `slope` times, passes 1."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        margin = 2 - 2 * self.slope * x.flatten(1).mean(1)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the probes say what a flat network is
def test_who_makes_too_little_progress_is_given_up_and_nobody_else() -> None:
    x, y = torch.full((6, 1, 8, 8), 0.5), torch.zeros(6, dtype=torch.int64)

    def rows(slope: float, **options: Any) -> Any:
        found = rbl.evaluate(
            *(Stuck(slope).eval(), x + 0.01 * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), y),
            attack="square",
            attack_options={"steps": 80, **options},
            eps=0.3,
            checks=False,
        )
        return found.samples

    # Nothing moves: the first look counts from the start, the second gives up. The clean pass, the start, the proof.
    assert (rows(0.0, patience=1.0).forwards == 3 + 20).all()
    assert (rows(0.0).forwards == 3 + 80).all()
    # Whoever arrives at a steady pace is let go on, to the same end.
    impatient, patient = rows(1.45, patience=1.0), rows(1.45)
    assert impatient.success.all()
    assert impatient.forwards.equals(patient.forwards)
