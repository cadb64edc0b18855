"""FAB against the closed form of a linear layer, the paper's loop on a small network, and in turn by class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.fab import FAB, FABT
from robustbench_lite.errors import UserError
from robustbench_lite.hyperplane import to_hyperplane
from robustbench_lite.threat import distances

NORMS = ["linf", "l2", "l1"]
EPS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


def _linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(64, classes)
    layer.weight.data = torch.randn((classes, 64), generator=generator) * 0.5
    layer.bias.data = torch.zeros(classes)
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach(), x


def _curved() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 5)).eval()
        x = torch.rand(24, 1, 6, 6)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def _optimum(model: nn.Module, weight: Tensor, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the nearest boundary, were there no box, (N,) float64: a lower bound."""
    with torch.no_grad():
        logits = model(x).double()
    gap = logits.gather(1, y[:, None]) - logits
    dual = torch.linalg.vector_norm((weight[y][:, None] - weight[None]).double(), ord=DUAL[norm], dim=2)
    distance: Tensor = (gap / dual.clamp_min(1e-12)).scatter(1, y[:, None], float("inf")).amin(1)
    return distance


def _found(model: nn.Module, x: Tensor, y: Tensor, attack: FAB, norm: str, **options: Any) -> Any:
    return rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=EPS[norm], checks=False, **options)


def _distance(rows: Any, norm: str) -> Tensor:
    return torch.tensor(rows[f"distance_{norm}"].to_numpy())


@pytest.mark.parametrize("attack", [FAB(steps=20), FABT(steps=20)])
@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_near_the_optimum_and_never_below(attack: FAB, norm: str) -> None:
    model, weight, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    rows = _found(model, x, y, attack, norm).samples
    distance, optimum = _distance(rows, norm), _optimum(model, weight, x, y, norm)
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    # One pixel's largest change is at most 0.3 or so: farther in l1 the box binds.
    inside = (optimum > 0.005) & (optimum < (0.3 if norm == "l1" else 10))
    assert int(inside.sum()) > 8
    assert float((distance / optimum)[inside].max()) < 1.01


def _as_in_the_paper(model: nn.Module, x: Tensor, y: int, norm: str, steps: int) -> float:
    """Algorithm 1 of one image, without the final search: the least distance."""
    now, best = x.clone(), float("inf")
    for _ in range(steps):
        at = now.clone().requires_grad_()
        logits = model(at)[0]
        ways = []
        for k in range(len(logits)):
            if k != y:
                gap = logits[k] - logits[y]
                slope = torch.autograd.grad(gap, at, retain_graph=True)[0]
                way = gap.abs() / torch.linalg.vector_norm(slope.flatten(), ord=DUAL[norm])
                ways.append((float(way.detach()), k, gap.detach(), slope))
        _, _, gap, slope = min(ways, key=lambda way: way[:2])
        here = to_hyperplane(norm, now, slope, -gap[None])
        there = to_hyperplane(norm, x, slope, -(gap + (slope * (x - now)).sum())[None])
        sizes = [float(distances(torch.zeros_like(d), d)[norm]) for d in (here, there)]
        alpha = min(sizes[0] / sum(sizes), 0.1)
        now = ((1 - alpha) * (now + 1.05 * here) + alpha * (x + 1.05 * there)).clamp(0, 1)
        with torch.no_grad():
            fooled = int(model(now).argmax(1)) != y
        if fooled:
            best = min(best, float(distances(x, now)[norm]))
            now = x + 0.9 * (now - x)
    return best


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_the_papers_loop(norm: str) -> None:
    model, x, y = _curved()
    rows = _found(model, x, y, FAB(steps=6, search=0, slack=float("inf")), norm).samples
    expected = [_as_in_the_paper(model, x[i : i + 1], int(y[i]), norm, 6) for i in range(len(x))]
    distance = torch.where(
        torch.tensor((rows.adversarial_prediction != rows.label).to_numpy()), _distance(rows, norm), torch.inf
    )
    torch.testing.assert_close(distance, torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_few_classes_asked_find_what_all_find(norm: str) -> None:
    model, x, y = _curved()
    few, every = (_found(model, x, y, FAB(steps=30, slack=slack), norm).samples for slack in (4.0, float("inf")))
    assert (every.backwards == 30 * 4).all()
    assert int(few.backwards.sum()) < 0.7 * int(every.backwards.sum())
    assert float(_distance(few, norm).median()) <= 1.01 * float(_distance(every, norm).median())


def test_the_final_search_only_shortens() -> None:
    model, x, y = _curved()
    without, by_search = (_found(model, x, y, FAB(steps=4, search=search), "l2").samples for search in (0, 3))
    assert (by_search.distance_l2 <= without.distance_l2).all()
    assert by_search.distance_l2.sum() < 0.999 * without.distance_l2.sum()
    assert (by_search.backwards == without.backwards).all()


@pytest.mark.parametrize("norm", NORMS)
def test_it_reaches_the_class_it_aims_at(norm: str) -> None:
    model, x, y = _curved()
    rows = _found(model, x, y, FAB(steps=40), norm, target="next").samples
    assert float((rows.adversarial_prediction == (rows.label + 1) % 5).mean()) > 0.9
    assert (rows.backwards <= 40).all()


def test_classes_in_turn_find_no_less_than_the_first_alone() -> None:
    model, x, y = _curved()
    alone, turn = (_found(model, x, y, FABT(steps=10, classes=classes), "l2").samples for classes in (1, 9))
    assert (turn.distance_l2 <= alone.distance_l2 + 1e-9).all()
    assert turn.distance_l2.sum() < alone.distance_l2.sum()
    assert (alone.backwards == 10).all()
    assert (turn.backwards == 10 * 4).all()


class _Plateau(nn.Module):
    """Flat about grey images: only what is away from them has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x - 0.5).flatten(1).square().mean(1)
        return torch.stack([torch.full_like(away, 0.4), (40 * (away - 0.0001)).clamp_min(0)], 1)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [FAB, FABT])
def test_a_restart_leaves_a_plateau(attack: type[FAB], norm: str) -> None:
    x, y = torch.full((3, 1, 6, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    once, again = (_found(_Plateau().eval(), x, y, attack(steps=10, restarts=n), norm).samples for n in (1, 2))
    assert (once.adversarial_prediction == 0).all()
    assert (again.adversarial_prediction == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FAB(steps=0), "steps must be >= 1, got 0"),
        (lambda: FAB(search=-1), "search must be >= 0, got -1"),
        (lambda: FAB(restarts=0), "restarts must be >= 1, got 0"),
        (lambda: FAB(alpha_max=1.5), r"alpha_max must be in \[0, 1\], got 1.5"),
        (lambda: FAB(eta=0.9), "eta must be >= 1, got 0.9"),
        (lambda: FAB(beta=1.0), r"beta must be in \(0, 1\), got 1"),
        (lambda: FAB(slack=float("nan")), "slack must be >= 1, got nan"),
        (lambda: FABT(classes=0), "classes must be >= 1, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
