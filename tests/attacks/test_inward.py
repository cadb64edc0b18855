"""Inward search: near the closed-form optimum, on every restart an image of its own, and where ascent stalls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.inward import Inward, InwardState
from robustbench_lite.data import balanced_subset
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

from ..core.nets import images, labels_of, mlp
from .test_fab import EPS, _distance, _linear, _optimum

NORMS = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", NORMS)
def test_it_comes_near_the_optimum_and_never_below(norm: str) -> None:
    model, weight, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = Inward(steps=80, restarts=2)
    rows = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=EPS[norm], checks=False).samples
    distance, optimum = _distance(rows, norm), _optimum(model, weight, x, y, norm)
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= optimum * (1 - 1e-4)).all()
    inside = (optimum > 0.005) & (optimum < (0.3 if norm == "l1" else 10))
    assert int(inside.sum()) > 8
    # The class is that of the start, which need not be the nearest one.
    assert float((distance / optimum)[inside].median()) < 1.5


@pytest.mark.parametrize("norm", NORMS)
def test_a_target_is_reached_and_the_cost_is_a_gradient_a_step(norm: str) -> None:
    model, _, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = Inward(steps=30, restarts=1)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=EPS[norm], target="next", checks=False)
    rows = found.samples
    reached = rows.adversarial_prediction == (rows.label + 1) % 4
    assert reached.mean() > 0.9
    assert (rows.backwards == 30).all()


def test_more_restarts_are_never_farther() -> None:
    model, _, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    distance = [
        _distance(
            rbl.evaluate(
                model, x, y, attack=Inward(steps=20, restarts=restarts), norm="l2", eps=1.0, checks=False
            ).samples,
            "l2",
        )
        for restarts in (1, 3)
    ]
    assert (distance[1] <= distance[0]).all() and (distance[1] < distance[0]).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"radius": 0.0}, "radius must be > 0, got 0"),
        ({"shrink": 1.0}, "shrink must be in"),
        ({"alpha_max": 1.5}, "alpha_max must be in"),
        ({"eta": 0.9}, "eta must be >= 1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Inward(**options)  # type: ignore[arg-type]


# On these 40 images AutoAttack leaves 1 and 3, `auto` 1 and 5.
@pytest.mark.parametrize(("weights", "most"), [("mnist-fast-at/fgsm.pth", 3), ("mnist-certified/mnist.pth", 6)])
def test_auto_finds_what_masked_gradients_hide(
    weights: str, most: int, shared_data: Path, shared_weights: Path
) -> None:
    """Networks trained for linf, in l2: PGD leaves most images, AutoAttack and `auto` hardly any."""
    data = rbl.load_dataset("mnist", data_dir=shared_data)
    model = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=str(shared_weights / weights)).module
    index = balanced_subset(data.labels, 40)
    x, y = data.images(index), data.labels[index]
    left = {
        name: int((rows.correct & ~rows.success).sum())
        for name in ("pgd", "auto")
        for rows in [rbl.evaluate(model, x, y, attack=name, norm="l2", eps=2.0, checks=False).samples]
    }
    assert left["auto"] <= most
    assert left["pgd"] > 2 * most


def test_starts_are_as_far_as_reach_times_each_samples_own_eps() -> None:
    x, eps = images(12), torch.cat([torch.full((6,), 0.2), torch.full((6,), 0.4)])
    ball = Inward(reach=3.0).ball(Threat("l2", 1.0), x, eps)
    assert torch.allclose(ball.eps, 6 * eps)
    assert (Inward().ball(Threat("l2", 1.0), x, eps).eps > 1e20).all()
    model = mlp(scale=4.0)
    y = labels_of(model, x)
    options = {"steps": 12, "restarts": 2, "reach": 2.0}
    found = [
        rbl.evaluate(model, x[:n], y[:n], attack="inward", norm="l2", eps=eps[:n], attack_options=options, checks=False)
        for n in (12, 6)
    ]
    assert found[0].adversarial is not None and found[1].adversarial is not None
    assert torch.allclose(found[0].adversarial[:6], found[1].adversarial, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reach": 0.0}, "reach must be > 0, got 0"),
        ({"reach": 2.0, "radius": 1.0}, "radius and reach are two ways to say one thing"),
    ],
)
def test_reach_and_radius_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Inward(**options)  # type: ignore[arg-type]


def test_each_restart_after_the_first_seeks_a_class_of_its_own() -> None:
    model, x = mlp(classes=4, scale=4.0), images(1)
    y = labels_of(model, x)
    aims: list[list[int]] = []

    class Seen(Inward):
        name = "seen"

        def step(self, query: Query, batch: Batch, state: InwardState) -> InwardState:  # type: ignore[override]
            moved = super().step(query, batch, state)
            if int(batch.step[0]) == 0:
                aims.append(moved.aim.tolist())
            return moved

    for spread in (True, False):
        aims.clear()
        attack = Seen(steps=8, restarts=4, spread=spread, radius=0.01)
        rbl.evaluate(model, x, y, attack=attack, norm="l2", eps=0.001, checks=False)
        chosen = [aim for (aim,) in aims]
        if spread:
            assert chosen[0] == -1 and sorted(chosen[1:]) == sorted({0, 1, 2, 3} - {int(y)})
        else:
            assert chosen == [-1] * 4


@pytest.mark.parametrize("norm", NORMS)
def test_from_the_clean_image_a_class_each_finds_the_optimum(norm: str) -> None:
    """Four classes, so three restarts; on a linear model one of them has the nearest boundary."""
    model, weight, x = _linear()
    with torch.no_grad():
        y = model(x).argmax(1)
    starts: list[torch.Tensor] = []

    class Seen(Inward):
        name = "seen"

        def start(self, query: Query, batch: Batch) -> InwardState:
            state = super().start(query, batch)
            starts.append(state.iterate - batch.ball.x)
            return state

    attack = Seen(steps=80, restarts=3, random_start=False, shrink=0.5, eta=1.05)
    rows = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=EPS[norm], checks=False).samples
    assert starts and not any(change.any() for change in starts)
    distance, optimum = _distance(rows, norm), _optimum(model, weight, x, y, norm)
    assert (distance >= optimum * (1 - 1e-4)).all()
    inside = (optimum > 0.005) & (optimum < (0.3 if norm == "l1" else 10))
    assert float((distance / optimum)[inside].median()) < 1.1
