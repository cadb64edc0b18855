"""Minimal attacks and the limit of queries: the nearest is kept and proved, and nothing counts past the limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.engine import Engine
from robustbench_lite.errors import UserError
from robustbench_lite.network import Network, frozen
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

from .nets import Asks, Columns, Rows, binary, differing, finish, images, labels_of, make_engine, mlp

LENGTH = 12


def _far_then_near(query: Query, batch: Batch, state: State) -> State:
    """Images along the gradient at distances that shrink and grow again, so that the nearest is not the last."""
    ball = batch.ball
    gradient = query.gradient(ball.x, lambda z, y, targets: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).gradient
    direction = ball.steepest(gradient)
    distance = 0.9 - 0.08 * batch.step.float()
    found = ball.project(ball.x + direction * per_row(distance, direction))
    query.labels(found)
    return State(ball.x.clone())


def nearing(**attributes: Any) -> Attack:
    return Asks.make(_far_then_near, length=LENGTH, minimal=True, **attributes)


def _run(attack: Attack, threat: Threat, **options: Any) -> tuple[Columns, Tensor]:
    plane = binary().eval()
    x = images(40, low=0.2, high=0.8)
    y = labels_of(plane, x)
    return finish(make_engine(plane, x, y, attack, threat, **options)), plane.distance(x, threat.norm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_nearest_image_is_the_one_that_counts(norm: str) -> None:
    eps = 1e-3 + float(_run(nearing(), Threat(norm, 0.5))[0][f"distance_{norm}"].median())
    found, optimum = _run(nearing(), Threat(norm, eps))
    tried = torch.tensor([0.9 - 0.08 * k for k in range(LENGTH)], dtype=torch.float64)
    x = images(40, low=0.2, high=0.8)
    plane = binary().eval()
    with torch.no_grad():
        for row in range(len(x)):
            slope = plane.weight.detach() * (-1 if labels_of(plane, x[row : row + 1])[0] else 1)
            unit = slope.sign() if norm == "linf" else slope / slope.norm()
            along = [(x[row] + float(t) * unit).clamp(0, 1) for t in tried]
            at_goal = [a for a in along if labels_of(plane, a[None])[0] != labels_of(plane, x[row : row + 1])[0]]
            gaps = [(a - x[row]).double().flatten() for a in at_goal]
            nearest = min(float(g.abs().max() if norm == "linf" else g.norm()) for g in gaps)
            assert abs(float(found[f"distance_{norm}"][row]) - nearest) < 1e-5
            assert bool(found["success"][row]) == (nearest <= eps)
            assert nearest >= float(optimum[row]) - 1e-6
    assert found["success"].any()
    assert not found["success"].all()
    # Judged at the goal, wherever it is.
    assert (found["adversarial_prediction"] != found["y"]).all()


def test_every_sample_takes_all_steps_and_one_proof() -> None:
    found, _ = _run(nearing(), Threat("linf", 1.0))
    assert found["success"].all()
    # The clean pass, a gradient and a question a step, and the proof.
    assert (found["forwards"] == 1 + 2 * LENGTH + 1).all()
    assert (found["backwards"] == LENGTH).all()


def test_the_batch_does_not_matter() -> None:
    whole, _ = _run(nearing(), Threat("l2", 0.3), batch_size=256)
    for size in (1, 7):
        part, _ = _run(nearing(), Threat("l2", 0.3), batch_size=size)
        assert torch.equal(whole["success"], part["success"])
        assert torch.allclose(whole["distance_l2"], part["distance_l2"], atol=1e-5)


def test_a_stored_run_goes_on_to_the_last_bit() -> None:
    plane = binary().eval()
    x = images(20, low=0.2, high=0.8)
    y = labels_of(plane, x)

    def make() -> Engine:
        return make_engine(plane, x, y, nearing(), Threat("l2", 0.3), batch_size=8)

    whole = finish(make())
    engine = make()
    going = engine.run()
    with frozen(plane), torch.no_grad():
        for _ in range(9):
            next(going)
        stored = engine.snapshot()
    other = make()
    other.restore(stored)
    rest = finish(other)
    kept = {name: column[torch.isin(whole["index"], rest["index"])] for name, column in whole.items()}
    assert len(rest["index"])
    assert differing(kept, rest) == []


def test_of_several_images_of_one_sample_in_one_question_the_nearest_counts() -> None:
    def ask(query: Query, batch: Batch, state: State) -> State:
        ball = batch.ball
        rows = torch.arange(len(ball.x)).repeat(3)
        gradient = query.gradient(ball.x, lambda z, y, targets: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).gradient
        sizes = torch.tensor([0.19, 0.15, 0.199]).repeat_interleave(len(ball.x))
        query.labels((ball.x + 0 * gradient)[rows] + per_row(sizes, ball.x) * ball.steepest(gradient)[rows], rows=rows)
        return State(ball.x.clone())

    found, _ = _run(Asks.make(ask, minimal=True), Threat("linf", 1.0))
    assert torch.allclose(found["distance_linf"], torch.full((40,), 0.15, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("limit", [2, 7, 20])
def test_nothing_counts_past_the_limit_of_queries(limit: int) -> None:
    model = mlp(scale=6.0)
    x = images(60)
    y = labels_of(model, x)
    threat = Threat("linf", 0.08)
    rows = Rows().watch(model)
    limited = finish(make_engine(model, x, y, PGD(steps=40), threat, network=Network(model), max_queries=limit))
    assert rows.count == int(limited["forwards"].sum())
    free = finish(make_engine(model, x, y, PGD(steps=40), threat))
    assert int(limited["forwards"].max()) <= limit
    # Step s is judged by the query of step s + 1, which is forward pass s + 2.
    assert torch.equal(limited["success"] & ~free["success"], torch.zeros(60, dtype=torch.bool))
    assert int(limited["success"].sum()) <= int(free["success"].sum())
    late = free["success"] & (free["forwards"] > limit + 2)
    assert not (limited["success"] & late & (free["success_step"] > limit)).any()


def test_a_limit_below_one_is_refused() -> None:
    import robustbench_lite as rbl

    model = mlp()
    with pytest.raises(UserError, match="max_queries must be >= 1, got 0"):
        rbl.evaluate(model, images(4), torch.zeros(4, dtype=torch.int64), max_queries=0)


def test_a_run_file_of_a_minimal_attack_holds(tmp_path: Any) -> None:
    import robustbench_lite as rbl
    from robustbench_lite.leaderboard import build, verify

    plane = binary().eval()
    x = images(30, low=0.2, high=0.8)
    y = labels_of(plane, x)
    eps = 1e-3 + float(plane.distance(x, "l2").median())
    found = rbl.evaluate(plane, x, y, attack=nearing(), norm="l2", eps=eps, leaderboard=tmp_path, checks=False)
    assert found.file is not None
    rows = found.samples
    assert found.summary()["median_distance"] == rows.distance_l2.median()
    assert 0 < found.robust_accuracy < 1
    assert (rows.success == (rows.distance_l2 <= eps)).all()
    build(tmp_path)
    assert verify(tmp_path) == []
