"""Attacks that see labels alone against a linear layer: near its nearest boundary, and honest where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lite as rbl
from robustbench_lite.attacks.boundary import Boundary, on_sphere
from robustbench_lite.attacks.cosines import cosines
from robustbench_lite.attacks.geoda import GeoDA
from robustbench_lite.attacks.pointwise import Pointwise
from robustbench_lite.attacks.sign_opt import SignOpt
from robustbench_lite.errors import UserError

from .linear import Counted, images, optimum

# Enough queries to come near, and few.
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("boundary", "l2", {"steps": 300, "proposals": 9}, {"steps": 10}),
    ("geoda", "l2", {"steps": 7, "side": 8}, {"steps": 3, "directions": 20, "side": 8}),
    ("geoda", "linf", {"steps": 7, "side": 8}, {"steps": 3, "directions": 20, "side": 8}),
    ("sign-opt", "l2", {"steps": 10}, {"steps": 3, "directions": 20}),
]
# There is no closed form within the box for the fewest numbers.
ALL = [*CASES, ("pointwise", "l0", {}, {"steps": 30})]


@pytest.mark.parametrize(("attack", "norm", "enough", "few"), CASES)
def test_it_comes_near_the_optimum_and_never_below(
    attack: str, norm: str, enough: dict[str, Any], few: dict[str, Any]
) -> None:
    del few
    model, x = Counted(2).eval(), images(8)
    y = model.labels(x)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=0.3, attack_options=enough, checks=False)
    rows, best = found.samples, optimum(model, x, norm)
    distance = torch.tensor(rows[f"distance_{norm}"].to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= best * (1 - 1e-4)).all()
    assert float((distance / best).max()) < 1.25
    assert found.backwards == 0


@pytest.mark.parametrize(("attack", "norm", "enough", "few"), ALL)
def test_it_reaches_the_class_it_aims_at(attack: str, norm: str, enough: dict[str, Any], few: dict[str, Any]) -> None:
    del enough
    model, x = Counted(3).eval(), images(8)
    y = model.labels(x)
    found = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=1, target="next", attack_options=few, checks=False)
    rows = found.samples
    assert (rows.adversarial_prediction == (rows.label + 1) % 3).all()
    if norm != "l0":
        bound = optimum(model, x, norm, (y + 1) % 3)
        assert (torch.tensor(rows[f"distance_{norm}"].to_numpy()) >= bound * (1 - 1e-4)).all()


@pytest.mark.parametrize(("attack", "norm", "enough", "few"), ALL)
def test_a_sample_without_a_start_fails_and_every_query_is_counted(
    attack: str, norm: str, enough: dict[str, Any], few: dict[str, Any]
) -> None:
    del enough
    model, x = Counted(2, bias=200.0).eval(), images(6)
    y = torch.zeros(6, dtype=torch.int64)
    found = rbl.evaluate(
        model, x, y, attack=attack, norm=norm, eps=1, attack_options={**few, "tries": 50}, checks=False
    )
    assert not found.success.any()
    assert (found.samples.adversarial_prediction == 0).all()
    # The clean pass and the tries.
    assert (found.samples.forwards == 1 + 50).all()
    calls = found.run.specification.calls
    # Three images are shown to see what kind of network it is (`adapt`), one to count the classes.
    assert model.seen == calls["forwards"] + calls["check_forwards"] + 4


@pytest.mark.parametrize(("attack", "norm", "enough", "few"), ALL)
def test_it_is_the_same_at_any_batch_size(attack: str, norm: str, enough: dict[str, Any], few: dict[str, Any]) -> None:
    del enough
    model, x = Counted().eval(), images(8)
    y = model.labels(x)

    def adversarial(batch_size: int) -> Tensor:
        found = rbl.evaluate(
            model,
            x,
            y,
            attack=attack,
            norm=norm,
            eps=1,
            batch_size=batch_size,
            attack_options=few,
            checks=False,
            deterministic=True,
        )
        return torch.tensor(found.samples[f"distance_{norm}"].to_numpy())

    together = adversarial(8)
    assert torch.equal(adversarial(1), together)
    assert torch.equal(adversarial(3), together)


def test_a_walk_along_the_sphere_keeps_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    outward, way = torch.randn((4, 1, 3, 5, 5), generator=generator), torch.randn((4, 6, 3, 5, 5), generator=generator)
    share = torch.tensor([0.01, 0.1, 0.5, 1.0])
    moved = on_sphere(outward, way, share)
    length = outward.flatten(2).norm(dim=2)
    assert torch.allclose(moved.flatten(2).norm(dim=2), length.expand(-1, 6), rtol=1e-4)
    cosine = (moved * outward).flatten(2).sum(2) / length.square()
    assert torch.allclose(cosine, (1 / (1 + share.square()).sqrt())[:, None].expand(-1, 6), rtol=1e-4)


def test_pointwise_ends_where_no_number_can_be_set_back() -> None:
    model, x = Counted().eval(), images(6)
    y = model.labels(x)
    found = rbl.evaluate(model, x, y, attack="pointwise", norm="l0", eps=10, checks=False)
    assert (found.samples.adversarial_prediction != found.samples.label).all()
    adversarial = found.adversarial
    assert adversarial is not None
    for i in range(len(x)):
        changed = (adversarial[i] != x[i]).flatten().nonzero()[:, 0]
        assert 1 <= len(changed) == found.samples.distance_l0[i] < 32
        back = adversarial[i].expand(len(changed), -1, -1, -1).flatten(1).clone()
        back[torch.arange(len(changed)), changed] = x[i].flatten()[changed]
        assert (model.labels(back.reshape(-1, 1, 8, 8)) == y[i]).all()


def test_the_waves_are_orthonormal_and_the_lowest_is_flat() -> None:
    waves = cosines(5, 12)
    assert torch.allclose(waves.T @ waves, torch.eye(5), atol=1e-6)
    assert torch.allclose(waves[:, 0], waves[0, 0].expand(12))
    turns = (waves[1:] * waves[:-1] < 0).sum(0)
    assert turns.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boundary(steps=0), "steps must be >= 1, got 0"),
        (lambda: Boundary(proposals=0), "proposals must be >= 1, got 0"),
        (lambda: Boundary(spherical_step=0), "spherical_step must be > 0, got 0"),
        (lambda: Boundary(source_step=-1), "source_step must be > 0, got -1"),
        (lambda: Boundary(rate=0), "rate must be > 0, got 0"),
        (lambda: Boundary(tries=0), "tries must be >= 1, got 0"),
        (lambda: GeoDA(steps=0), "steps must be >= 1, got 0"),
        (lambda: GeoDA(directions=0), "directions must be >= 1, got 0"),
        (lambda: GeoDA(side=0), "side must be >= 1, got 0"),
        (lambda: GeoDA(ratio=1.1), r"ratio must be in \(0, 1\], got 1.1"),
        (lambda: GeoDA(sigma=0), "sigma must be > 0, got 0"),
        (lambda: Pointwise(steps=0), "steps must be >= 1, got 0"),
        (lambda: Pointwise(restarts=0), "restarts must be >= 1, got 0"),
        (lambda: SignOpt(steps=0), "steps must be >= 1, got 0"),
        (lambda: SignOpt(starts=-1), "starts must be >= 0, got -1"),
        (lambda: SignOpt(step_size=0), "step_size must be > 0, got 0"),
        (lambda: SignOpt(beta=0), "beta must be > 0, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
