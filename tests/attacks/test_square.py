"""Square: the schedule of the paper, squares that are squares, and random search that only goes up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks import square
from robustbench_lite.attacks.square import Square, SquareState
from robustbench_lite.errors import UserError
from robustbench_lite.rows import concat, take, to_tensors
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


def batch_of(count: int, *, norm: str = "linf", eps: float = 0.1, step: int = 0, dark: bool = False) -> Batch:
    x = torch.rand((count, 3, 12, 10), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    if dark:  # much is clipped
        x = (2 * x - 1).clamp(0, 1)
    zero = torch.zeros(count, dtype=torch.int64)
    stream = Stream(torch.arange(count)).child("test")
    return Batch(Threat(norm, eps).around(x), zero, None, zero + step, stream, zero)


def sides_at(attack: Square, steps: Tensor, height: int, width: int, *, bumps: bool = False) -> Tensor:
    sides = torch.tensor(square._sides(attack.share, height, width, bumps=bumps))
    return sides[square._times_halved(attack.steps, steps.device)[steps]]


def test_the_side_follows_the_papers_schedule() -> None:
    attack = Square(steps=10_000, share=0.3)
    steps = torch.tensor([0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999])
    sides = sides_at(attack, steps, 32, 32)
    shares = [0.3, 0.3, 0.15, 0.15, 0.075, 0.0375, 0.3 / 16, 0.3 / 32, 0.3 / 64, 0.3 / 128, 0.3 / 256, 0.3 / 512]
    expected = [max(1, round((share * 32 * 32) ** 0.5)) for share in [*shares, 0.3 / 512]]
    assert sides.tolist() == expected
    # With fewer steps the same, compressed.
    short = Square(steps=100, share=0.3)
    assert torch.equal(
        sides_at(short, torch.tensor([0, 6, 81]), 32, 32), sides_at(attack, torch.tensor([0, 600, 8100]), 32, 32)
    )


@pytest.mark.parametrize(("norm", "columns"), [("linf", 1), ("l2", 2), ("l1", 2)])
def test_squares_reach_every_place_and_never_leave(norm: str, columns: int) -> None:
    # The side of every third step is another one; each sample has 30 steps planned.
    attack, batch = Square(steps=30, share=0.5), batch_of(400, norm=norm, eps=0.5)
    plan = attack._plan(batch.stream, batch.step, batch.ball)
    assert plan.shape == (400, 30, 1, columns + (norm != "linf") + 3)
    assert set(torch.unique(plan[..., -3:]).tolist()) == {-1, 1}
    sides = sides_at(attack, torch.arange(30), 12, 10, bumps=norm != "linf")
    assert len(set(sides.tolist())) > (3 if norm == "linf" else 1)
    for side in sorted(set(sides.tolist())):
        for column in range(columns):
            corner = plan[:, sides == side, :, column].flatten()
            place = corner.unsqueeze(1) + square._offsets(side, 10, corner.device)
            down, across = place // 10, place % 10
            assert (down.amax(1) - down.amin(1) == side - 1).all()
            assert (across.amax(1) - across.amin(1) == side - 1).all()
            assert all(len(set(one.tolist())) == side**2 for one in place[::97])
            assert len(torch.unique(corner)) == (12 - side + 1) * (10 - side + 1)
            assert (int(place.amin()), int(place.amax())) == (0, 12 * 10 - 1)


NORMS = [("linf", 0.2), ("l2", 1.5), ("l1", 9.0)]


def searched(attack: Square, norm: str, eps: float, steps: int, count: int = 6, **options: Any) -> list[SquareState]:
    network: Any = Watching()
    states = [attack.start(network, batch_of(count, norm=norm, eps=eps, **options))]
    for step in range(steps):
        states.append(attack.step(network, batch_of(count, norm=norm, eps=eps, step=step, **options), states[-1]))
    return states


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [*NORMS, ("l2", 0.01), ("l2", 12.0), ("l1", 0.05), ("l1", 200.0)])
def test_every_image_it_asks_about_is_in_the_ball_exactly(norm: str, eps: float, dark: bool) -> None:
    network: Any = Watching()
    attack = Square(steps=90)
    batch = batch_of(8, norm=norm, eps=eps, dark=dark)
    state = attack.start(network, batch)
    for step in range(90):
        # What remains of the budget is counted exactly, from the pixels as they are.
        assert torch.equal(state.spare, square._spare(batch.ball, state.candidate))
        state = attack.step(network, dataclasses.replace(batch, step=torch.full_like(batch.step, step)), state)
    assert len(network.asked) == 91
    assert all(batch.ball.contains(asked).all() for asked in network.asked)
    if norm != "linf" and not dark and eps < 10:
        assert (batch.ball.distance(state.candidate) > 0.9 * eps).all()


@pytest.mark.parametrize("proposals", [1, 3])
@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_samples_at_different_steps_do_as_they_would_alone(norm: str, eps: float, proposals: int) -> None:
    attack, network = Square(steps=60, proposals=proposals), Watching()
    states = searched(attack, norm, eps, 60)
    whole = batch_of(6, norm=norm, eps=eps)
    # One sample from each of these steps, in one batch; among them the ends of what is planned at once.
    at = [0, 1, 10, 31, 32, 47]
    one = [torch.tensor([row]) for row in range(6)]
    mixed = concat([take(states[step], row) for step, row in zip(at, one, strict=True)])
    after = attack.step(network, dataclasses.replace(whole, step=torch.tensor(at)), mixed)  # type: ignore[arg-type]
    for row, step in enumerate(at):
        for name, tensor in to_tensors(take(states[step + 1], one[row])).items():
            found = to_tensors(take(after, one[row]))[name]
            if name == "loss":  # a product of another size rounds differently
                torch.testing.assert_close(found, tensor)
            else:
                assert torch.equal(found, tensor), (name, step)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_how_many_steps_are_planned_at_once_changes_nothing(
    norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = Square(steps=70, proposals=2)
    found = searched(attack, norm, eps, 70)
    monkeypatch.setattr(square, "_AHEAD", 1)
    for state, other in zip(found, searched(attack, norm, eps, 70), strict=True):
        assert other.plan.shape[1] == 1
        assert torch.equal(state.candidate, other.candidate)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_the_random_numbers_are_those_of_the_step(norm: str, eps: float) -> None:
    # Whatever is planned ahead, draw t of a sample decides on its step t.
    batch, attack = batch_of(5, norm=norm, eps=eps), Square(steps=80, proposals=2)
    numbers, height, width = 3 + (2 if norm == "linf" else 5), 12, 10
    plan = attack._plan(batch.stream, batch.step + torch.arange(5), batch.ball)
    for ahead in range(plan.shape[1]):
        step = batch.step + torch.arange(5) + ahead
        drawn = batch.stream.uniform((2, numbers), draw=step)
        side = sides_at(attack, step, height, width, bumps=norm != "linf").unsqueeze(1)
        down, across = (drawn[..., 0].double() * (height - side + 1), drawn[..., 1].double() * (width - side + 1))
        assert torch.equal(plan[:, ahead, :, 0], down.long() * width + across.long())
        assert torch.equal(plan[:, ahead, :, -3:] > 0, drawn[..., -3:] < 0.5)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("l1", 9.0)])
def test_a_step_is_algorithm_3(norm: str, eps: float) -> None:
    network: Any = Watching()
    attack, batch = Square(steps=40), batch_of(7, norm=norm, eps=eps, step=5)
    state = attack.start(network, batch_of(7, norm=norm, eps=eps))
    attack.step(network, batch, state)
    l1, x, power = norm == "l1", batch.ball.x.double(), 1 if norm == "l1" else 2
    side = int(sides_at(attack, batch.step, 12, 10, bumps=True)[0])
    for row in range(7):
        filled, emptied, lying, *signs = state.plan[row, 5, 0].tolist()
        there, left = ((corner // 10, corner % 10) for corner in (filled, emptied))
        inside = torch.zeros(2, 3, 12, 10, dtype=torch.bool)
        for mask, (top, first) in zip(inside, (there, left), strict=True):
            mask[:, top : top + side, first : first + side] = True
        delta = state.candidate[row].double() - x[row]
        size = delta.abs().pow(power)
        held = (size * (inside[0] | inside[1])).flatten(1).sum(1)
        had = held + (eps**power - size.sum()) / 3
        bump = torch.tensor(square._bump(side)).double()
        bump = (bump.T if lying else bump) / bump.abs().pow(power).sum() ** (1 / power)
        new = delta.where(inside[0], 0)
        new = new / (new.abs().pow(power).flatten(1).sum(1) ** (1 / power) + 1e-10)[:, None, None]
        new[:, there[0] : there[0] + side, there[1] : there[1] + side] += bump * torch.tensor(signs)[:, None, None]
        length = new.abs().pow(power).flatten(1).sum(1) ** (1 / power)
        new = new * (had ** (1 / power) / length)[:, None, None]
        wanted = (x[row] + torch.where(inside[0], new, delta.where(~inside[1], 0))).clamp(0, 1)
        torch.testing.assert_close(network.asked[-1][row].double(), wanted, atol=2e-4 if l1 else 2e-5, rtol=0)


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
        side = sides_at(attack, batch.step, 12, 10)
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
        side = int(sides_at(attack, batch.step, 12, 10, bumps=True)[0])
        changed = (asked != before).any(1).flatten(1).sum(1)
        assert (changed <= 2 * side**2).all()
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
