"""APGD against algorithm 1 of its paper written out sample by sample, known optima, its price and its options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.apgd import APGDCE, APGDDLR, APGDState, checkpoint_widths
from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.conformance.driver import Driver
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.threat import Threat

DUAL = {"linf": 1.0, "l2": 2.0}
needs_l1 = pytest.mark.skipif("l1" not in APGDCE.norms, reason="there is no l1 ball")


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.Tanh(), nn.Linear(20, 5)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((24, 1, 5, 5), generator=torch.Generator().manual_seed(1))


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, its weights (K, d), and images in the middle of the box."""
    generator = torch.Generator().manual_seed(2)
    layer = nn.Linear(25, classes, bias=False)
    layer.weight.data = torch.randn((classes, 25), generator=generator)
    x = 0.5 + 0.02 * torch.randn((20, 1, 5, 5), generator=generator)
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach(), x


def nearest(weight: Tensor, logits: Tensor, norm: str) -> Tensor:
    """The distance to the nearest other class, (N,): the margin over the dual norm of the weights' difference."""
    y = logits.argmax(1)
    size = torch.linalg.vector_norm(weight[y].unsqueeze(1) - weight, ord=DUAL[norm], dim=2)
    away: Tensor = (logits.gather(1, y.unsqueeze(1)) - logits) / size
    return away.scatter(1, y.unsqueeze(1), float("inf")).amin(1)


def cheapest(weight: Tensor, x: Tensor, y: int) -> float:
    """The l1 distance to the other of two classes in the box: pixels of largest weight first, each to its end."""
    slope = weight[1 - y] - weight[y]
    missing, spent = -float(slope @ x), 0.0
    for i in slope.abs().argsort(descending=True).tolist():
        room = float(1 - x[i] if slope[i] > 0 else x[i])
        used = min(room, missing / abs(float(slope[i])))
        missing, spent = missing - used * abs(float(slope[i])), spent + used
    return spent


def by_hand(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, norm: str, eps: float, loss: str) -> Tensor:
    """Algorithm 1 as in the authors' code, one sample at a time with lists and if-clauses: 24 steps of 40."""
    steps, rho, alpha = 24, 0.75, 0.75
    checkpoints = [9, 17, 23]  # ceil(40 p) of p = 0.22, 0.41, 0.57

    def ask(points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.clone().requires_grad_()
        values = get_loss(loss)(model(points), y, None)
        return values.detach(), torch.autograd.grad(values.sum(), points)[0]

    def project(point: Tensor, i: int) -> Tensor:
        if norm == "linf":
            return torch.min(torch.max(point, x[i] - eps), x[i] + eps).clamp(0, 1)
        delta = point - x[i]
        return (x[i] + delta * min(1.0, eps / float(delta.norm()))).clamp(0, 1)

    now, old = list(start), list(start)
    values, gradients = ask(start)
    best, best_value, best_gradient = list(start), values.tolist(), list(gradients)
    value, gradient = values.tolist(), list(gradients)
    eta, rises, halved, at_check = [2 * eps] * len(x), [0] * len(x), [True] * len(x), list(best_value)
    last = 0
    for k in range(1, steps + 1):
        fresh = []
        for i in range(len(x)):
            step = gradient[i].sign() if norm == "linf" else gradient[i] / gradient[i].norm().clamp_min(1e-12)
            z = project(now[i] + eta[i] * step, i)
            a = 1.0 if k == 1 else alpha
            fresh.append(project(now[i] + a * (z - now[i]) + (1 - a) * (now[i] - old[i]), i))
        values, gradients = ask(torch.stack(fresh))
        for i in range(len(x)):
            old[i], now[i] = now[i], fresh[i]
            rises[i] += float(values[i]) > value[i]
            value[i], gradient[i] = float(values[i]), gradients[i]
            if value[i] > best_value[i]:
                best[i], best_value[i], best_gradient[i] = now[i], value[i], gradient[i]
            if k in checkpoints:
                few, stuck = rises[i] <= rho * (k - last), not halved[i] and at_check[i] == best_value[i]
                halved[i], at_check[i], rises[i] = few or stuck, best_value[i], 0
                if few or stuck:
                    eta[i] /= 2
                    now[i], gradient[i] = best[i], best_gradient[i]
        last = k if k in checkpoints else last
    return torch.stack(now)


def driver(model: nn.Module, attack: Any, norm: str, eps: float, classes: int = 5) -> Driver:
    return Driver(attack, Threat(norm, eps), model, classes)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [APGDCE(steps=40), APGDDLR(steps=40)])
def test_it_is_algorithm_1(attack: APGDCE | APGDDLR, norm: str, model: nn.Module, x: Tensor) -> None:
    eps = 0.06 if norm == "linf" else 0.25
    runner = driver(model, attack, norm, eps)
    y = runner.labels(x)
    trace = runner.run(runner.batch(x, y), steps=24)
    theirs = by_hand(model, x, y, trace[0].state.candidate, norm=norm, eps=eps, loss=attack.loss)
    same = (trace[-1].state.candidate - theirs).flatten(1).abs().amax(1) < 0.01 * eps
    # A rounding grows at the kinks of a loss, and where two losses are equal but for it either may be the larger.
    assert same.float().mean() >= 0.9
    sizes = trace[-1].state.step_size  # type: ignore[attr-defined]
    assert 1 < len(set(sizes.tolist())) <= 4


def test_the_checkpoints_of_100_steps_are_those_of_the_paper() -> None:
    widths = checkpoint_widths(100)
    assert {k: w for k, w in enumerate(widths) if w} == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 1000])
def test_the_checkpoints_of_any_number_of_steps_tile_them(steps: int) -> None:
    widths = checkpoint_widths(steps)
    assert len(widths) == steps + 1
    assert sum(widths) == max(k for k, width in enumerate(widths) if width) <= steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "factor", "classes"),
    # Of several classes cross entropy may take a farther one, and the ratio also grows where the third class falls.
    [("apgd-ce", 1.25, 5), ("apgd-ce", 1.02, 2), ("apgd-dlr", 1.02, 2), ("apgd-t", 1.02, 5)],
)
def test_it_reaches_the_optimum_of_a_linear_model(name: str, factor: float, classes: int, norm: str) -> None:
    net, weight, x = linear(classes)
    logits = net(x).detach()
    y = logits.argmax(1)
    distance = nearest(weight, logits, norm)
    options: dict[str, Any] = {"norm": norm, "attack": name, "attack_options": {"steps": 20}}
    assert rbl.evaluate(net, x, y, eps=factor * distance, **options).robust_accuracy == 0.0
    assert rbl.evaluate(net, x, y, eps=0.99 * distance, **options).robust_accuracy == 1.0


def test_100_steps_cost_101_gradients(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    result = rbl.evaluate(model, x[:3], y[:3], attack="apgd-ce", eps=1e-4)
    # The clean pass comes first, and the last candidate's proof may ask once more.
    assert result.backwards == 3 * 101
    assert 3 * 102 <= result.forwards <= 3 * 103


@needs_l1
def test_in_l1_each_of_three_radii_begins_with_a_gradient_and_the_last_is_eps(model: nn.Module, x: Tensor) -> None:
    runner = driver(model, APGDCE(steps=20), "l1", 0.5)
    y = runner.labels(x)
    trace = runner.run(runner.batch(x, y), steps=20)
    reach = torch.stack([running.batch.ball.distance(running.state.iterate) for running in trace])  # type: ignore[attr-defined]
    for begin, end, radius in ((0, 6, 1.5), (6, 12, 1.0), (12, 20, 0.5)):
        assert (reach[begin + 1 : end + 1] <= radius * (1 + 1e-5)).all()
        assert (reach[begin + 1 : end + 1] > 0.9 * radius).any()
    assert (trace[-1].backwards == 23).all()


@needs_l1
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t"])
def test_in_l1_it_comes_near_the_optimum_of_a_linear_model(name: str) -> None:
    net, weight, x = linear(2)
    logits = net(x).detach()
    y = logits.argmax(1)
    distance = torch.tensor([cheapest(weight, one.flatten(), int(label)) for one, label in zip(x, y, strict=True)])
    options: dict[str, Any] = {"norm": "l1", "attack": name, "attack_options": {"steps": 40}}
    assert rbl.evaluate(net, x, y, eps=1.1 * distance, **options).robust_accuracy == 0.0
    assert rbl.evaluate(net, x, y, eps=0.99 * distance, **options).robust_accuracy == 1.0


def test_every_target_costs_as_much_and_a_pass_for_their_order(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    result = rbl.evaluate(model, x[:3], y[:3], attack="apgd-t", eps=1e-4, attack_options={"steps": 10, "classes": 3})
    assert result.backwards == 3 * 3 * 11
    assert 3 * (1 + 3 * 12) <= result.forwards <= 3 * (1 + 3 * 13)


def test_classes_that_do_not_exist_cost_next_to_nothing(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    result = rbl.evaluate(model, x[:3], y[:3], attack="apgd-t", eps=1e-4, attack_options={"steps": 10, "classes": 9})
    assert result.backwards == 3 * (4 * 11 + 5 * 2)


def test_the_classes_are_taken_from_the_highest_logit_down(model: nn.Module, x: Tensor) -> None:
    runner = driver(model, APGDT(steps=1), "linf", 0.05)
    y = runner.labels(x)
    order = model(x).detach().argsort(dim=1, descending=True)
    for attempt in range(9):
        batch = runner.batch(x, y)
        batch = rbl.Batch(batch.ball, y, None, batch.step, batch.stream, torch.full_like(y, attempt))
        state = runner.start(batch).state
        assert isinstance(state, APGDState)
        assert torch.equal(state.aim, order[:, attempt + 1] if attempt < 4 else torch.full_like(y, -1))
        assert torch.equal(runner.attack.finished(batch, state), state.aim < 0)  # type: ignore[arg-type]


def test_it_beats_pgd_of_as_many_steps(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    robust = {
        name: rbl.evaluate(model, x, y, attack=name, eps=0.05, attack_options={"steps": 30}).robust_accuracy
        for name in ("pgd", "apgd-ce", "apgd-dlr", "apgd-t")
    }
    assert max(robust["apgd-ce"], robust["apgd-t"]) <= robust["pgd"] < 1.0
    assert robust["apgd-dlr"] <= robust["pgd"] + 0.05


@pytest.mark.parametrize(("name", "classes"), [("apgd-ce", 3), ("apgd-dlr", 2)])
def test_it_reaches_a_given_class(name: str, classes: int) -> None:
    net, _, x = linear(classes)
    y = net(x).argmax(1)
    targets = (y + 1) % classes
    adversarial = rbl.perturb(net, x, y, targets=targets, attack=name, eps=0.3, attack_options={"steps": 40})
    assert torch.equal(net(adversarial).argmax(1), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "^steps must be >= 1, got 0"),
        ({"restarts": 0}, "^restarts must be >= 1, got 0"),
        ({"momentum": -0.1}, r"^momentum must be in \[0, 1\], got -0\.1"),
        ({"momentum": float("nan")}, r"^momentum must be in \[0, 1\], got nan"),
        ({"rho": 1.5}, r"^rho must be in \[0, 1\], got 1\.5"),
        ({"classes": 0}, "^classes must be >= 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        APGDT(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rises", "halved"), [(11, True), (12, True), (13, False)])
def test_a_step_is_halved_where_just_the_share_rho_of_the_steps_raised_the_loss(rises: int, halved: bool) -> None:
    # The stage of 16 steps that ends at step 57 of 100: of them 12 are three quarters.
    attack, x, one = APGDCE(), torch.full((1, 1, 2, 2), 0.5), torch.ones(1)
    runner = driver(nn.Flatten(), attack, "linf", 0.1, 4)
    batch = runner.batch(x, torch.zeros(1, dtype=torch.int64))
    state = runner.start(batch).state
    assert isinstance(state, APGDState)
    # The best rose in this stage, so that the second condition does not hold.
    state = replace(state, rises=torch.tensor([rises]), checked_loss=one, best_loss=2 * one, step_size=one)
    after = attack._checkpoint(replace(batch, step=torch.tensor([56])), state)
    assert bool(after.reduced) == halved
    assert float(after.step_size) == (0.5 if halved else 1.0)


def test_the_first_step_after_a_checkpoint_rises_against_the_last_not_against_the_best() -> None:
    attack, x, one = APGDCE(), torch.full((1, 1, 2, 2), 0.5), torch.ones(1)
    runner = driver(nn.Flatten(), attack, "linf", 0.1, 4)
    batch = runner.batch(x, torch.zeros(1, dtype=torch.int64))
    state = runner.start(batch).state
    assert isinstance(state, APGDState)
    state = replace(state, loss=-one, best=x + 0.05, best_loss=3 * one, checked_loss=3 * one)
    after = attack._checkpoint(replace(batch, step=torch.tensor([21])), state)
    assert bool(after.reduced)
    assert torch.equal(after.iterate, x + 0.05)
    assert float(after.loss) == -1.0
