"""HopSkipJump against what is known: a linear layer's nearest boundary, and its own queries counted one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.hop_skip_jump import HopSkipJump
from robustbench_lite.attacks.labels_only import find_start, to_boundary
from robustbench_lite.errors import UserError

from .linear import Counted, batch_of, images, optimum

FEW: dict[str, Any] = {"steps": 6, "directions": 20}


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_comes_near_the_optimum_and_never_below(norm: str) -> None:
    model, x = Counted(2).eval(), images(8)
    y = model.labels(x)
    found = rbl.evaluate(
        model, x, y, attack="hop-skip-jump", norm=norm, eps=0.3, attack_options={"steps": 15}, checks=False
    )
    rows, best = found.samples, optimum(model, x, norm)
    distance = torch.tensor(rows[f"distance_{norm}"].to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= best * (1 - 1e-4)).all()
    assert float((distance / best).max()) < 1.25
    assert found.backwards == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_reaches_the_class_it_aims_at(norm: str) -> None:
    model, x = Counted(3).eval(), images(10)
    y = model.labels(x)
    found = rbl.evaluate(
        model, x, y, attack="hop-skip-jump", norm=norm, eps=0.3, target="next", attack_options=FEW, checks=False
    )
    rows = found.samples
    assert (rows.adversarial_prediction == (rows.label + 1) % 3).all()
    bound = optimum(model, x, norm, (y + 1) % 3)
    assert (torch.tensor(rows[f"distance_{norm}"].to_numpy()) >= bound * (1 - 1e-4)).all()


def test_every_query_is_counted_and_their_number_is_the_papers() -> None:
    model, x = Counted().eval(), images(5)
    y = model.labels(x)
    batch, attack = batch_of(x, y, "l2"), HopSkipJump(steps=3, directions=20)
    query: Any = model
    model.seen = 0
    state = attack.start(query, batch)
    assert state.found.all()
    bisections = math.ceil(1.5 * math.log2(64))
    for step in range(3):
        before = model.seen
        now = Batch(batch.ball, y, None, batch.step + step, batch.stream, batch.attempt)
        state = attack.step(query, now, state)
        asked = (model.seen - before) / len(x)
        # The directions, at least one look ahead and at most 20, and the bisection.
        assert 1 <= asked - int(20 * math.sqrt(step + 1)) - bisections <= 20
        assert (model.labels(state.candidate) != y).all()


def test_a_run_reports_every_image_that_the_network_saw() -> None:
    model, x = Counted().eval(), images(5)
    y = model.labels(x)
    model.seen = 0
    found = rbl.evaluate(model, x, y, attack="hop-skip-jump", norm="l2", eps=0.3, attack_options=FEW, checks=False)
    calls = found.run.specification.calls
    assert calls["forwards"] == int(found.samples.forwards.sum())
    # Three images are shown to see what kind of network it is (`adapt`), one to count the classes.
    assert model.seen == calls["forwards"] + calls["check_forwards"] + 4


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_estimate_points_along_the_gradient(norm: str) -> None:
    model, x = Counted(2).eval(), images(4)
    y = model.labels(x)
    batch, rows = batch_of(x, y, norm), torch.arange(4)
    asked: Any = model
    start, found = find_start(asked, batch, 1000)
    assert found.all()
    edge = to_boundary(asked, batch, start, rows, 20)
    slope = HopSkipJump(directions=5000)._gradient(asked, batch, edge, rows, torch.full((4,), 0.05))
    gradient = (model.layer.weight[1] - model.layer.weight[0]).detach() * (1 - 2 * y[:, None])
    # At an edge of the box one side of the image is cut off: there it is only near.
    assert (torch.cosine_similarity(slope.flatten(1), gradient) > 0.8).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_bisection_ends_at_the_boundary_on_the_wrong_side(norm: str) -> None:
    model, x = Counted(2).eval(), images(20)
    y = model.labels(x)
    batch, rows = batch_of(x, y, norm), torch.arange(20)
    query: Any = model
    start, found = find_start(query, batch, 1000)
    assert found.all()
    edge = to_boundary(query, batch, start, rows, 20)
    assert (model.labels(edge) != y).all()
    with torch.no_grad():
        logits = model(edge)
    assert float((logits[:, 0] - logits[:, 1]).abs().max()) < 1e-3


def test_a_sample_without_a_start_fails_honestly() -> None:
    model, x = Counted(2, bias=200.0).eval(), images(10)
    y = torch.zeros(10, dtype=torch.int64)
    found = rbl.evaluate(
        model, x, y, attack="hop-skip-jump", norm="l2", eps=1.0, attack_options={**FEW, "tries": 100}, checks=False
    )
    assert not found.success.any()
    assert (found.samples.adversarial_prediction == 0).all()
    # The clean pass and the tries; the last image, which is the clean one, may be judged once more.
    assert ((found.samples.forwards >= 100) & (found.samples.forwards <= 103)).all()


def test_it_is_the_same_at_any_batch_size() -> None:
    model, x = Counted().eval(), images(12)
    y = model.labels(x)

    def adversarial(batch_size: int) -> Tensor:
        found = rbl.evaluate(
            model,
            x,
            y,
            attack="hop-skip-jump",
            norm="l2",
            eps=0.3,
            batch_size=batch_size,
            attack_options=FEW,
            checks=False,
            deterministic=True,
        )
        return torch.tensor(found.samples.distance_l2.to_numpy())

    assert torch.equal(adversarial(1), adversarial(12))
    assert torch.equal(adversarial(7), adversarial(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"directions": 0}, "directions must be >= 1, got 0"),
        ({"most_directions": 0}, "most_directions must be >= 1, got 0"),
        ({"tries": 0}, "tries must be >= 1, got 0"),
        ({"gamma": 0.0}, "gamma must be > 0, got 0"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HopSkipJump(**options)
