"""Certificates: closed forms, nobody certified is fooled, any batch size, killed and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite import checkpoint
from robustbench_lite.certification import run_certification
from robustbench_lite.certification_plan import CertificationPlan, certificate_threat, make_certifier
from robustbench_lite.certifiers.smoothing import lower_bound, radius_of
from robustbench_lite.data import balanced_subset
from robustbench_lite.defenses.randomized_smoothing import RandomizedSmoothing
from robustbench_lite.errors import UserError
from robustbench_lite.given import given_data, given_model
from robustbench_lite.running import Interrupted

from ..attacks.test_certified import certified as by_the_dual

SIGMA = 0.5
QUICK: dict[str, Any] = {"n0": 20, "n": 200, "alpha": 0.01}


def small() -> nn.Module:
    """Of changing mind: its classes are as likely on average."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
        ).eval()
        for layer in (network[0], network[3], network[5]):
            layer.weight.mul_(3.0)  # type: ignore[operator]
        network[5].bias.sub_(network(torch.rand((500, 1, 8, 8))).mean(0))  # type: ignore[operator]
        return network


def images(count: int) -> tuple[Tensor, Tensor]:
    """Images, and what the network says of them, one in six turned."""
    x = torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = small()(x).argmax(1)
    y[::6] = (y[::6] + 1) % 3
    return x, y


def plane() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of two classes, images around its plane, and how far each is from it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    ways = (layer.weight[1] - layer.weight[0]).detach()
    level = (layer.bias[1] - layer.bias[0]).detach()
    x = torch.full((5, 64), 0.5)
    wanted = torch.tensor([-0.7, -0.3, 0.0, 0.4, 0.9])
    x = x + (wanted - (x @ ways + level) / ways.norm()).unsqueeze(1) * ways / ways.norm()
    return network.eval(), x.reshape(5, 1, 8, 8), (x @ ways + level) / ways.norm()


def test_smoothing_of_a_linear_classifier_finds_the_distance_to_its_plane() -> None:
    """There the vote's radius is that distance (Cohen et al. 2019, appendix B): estimates stay below, and come near."""
    network, x, distance = plane()
    y = (distance > 0).long()
    options = {"n0": 50, "n": 8_000, "alpha": 1e-4}
    defenses = [RandomizedSmoothing(sigma=SIGMA)]
    found = rbl.certify(network, x, y, method="smoothing", eps=0.25, method_options=options, defenses=defenses)
    rows = found.samples
    away = distance.abs().double().numpy()
    assert (rows.radius <= away + 1e-9).all()
    # Four standard deviations of the count below its expectation, and the bound itself four below the count.
    share = norm.cdf(away / SIGMA)
    least = SIGMA * norm.ppf(share - 8 * (share * (1 - share) / 8_000) ** 0.5)
    decided = away > 0.1
    assert (rows.radius[decided] >= least[decided]).all()
    assert rows.prediction[~decided].isna().all()
    assert not rows.correct[~decided].any()
    assert found.abstained == pytest.approx((~decided).mean())
    assert (rows.certified == (rows.correct & (rows.radius >= 0.25))).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 3000), share=st.floats(0, 1), alpha=st.sampled_from([0.001, 0.01, 0.2]))
def test_the_bound_of_a_share_is_that_of_clopper_and_pearson(n: int, share: float, alpha: float) -> None:
    count = round(share * n)
    exact = binomtest(count, n, alternative="greater").proportion_ci(confidence_level=1 - alpha, method="exact").low
    assert lower_bound(count, n, alpha) == pytest.approx(exact, abs=1e-12)


def test_a_radius_is_that_of_the_theorem() -> None:
    assert radius_of(0.999, 0.25) == pytest.approx(0.25 * 3.0902323)
    assert radius_of(lower_bound(100_000, 100_000, 0.001), 0.25) == pytest.approx(0.95, abs=0.005)  # as in the paper
    assert radius_of(0.5, 1.0) == 0.0
    assert radius_of(0.3, 1.0) == 0.0


@pytest.mark.parametrize(("method", "options"), [("crown", {}), ("interval", {}), ("smoothing", QUICK)])
def test_any_batch_size_gives_the_same_rows(method: str, options: dict[str, Any]) -> None:
    x, y = images(14)
    defenses = [RandomizedSmoothing(sigma=0.2)] if method == "smoothing" else []
    tables = []
    for size in (14, 5):
        more = {"copies": 200 // size} if method == "smoothing" else {}
        found = rbl.certify(
            *(small(), x, y),
            method=method,
            eps=0.01,
            method_options=options | more,
            defenses=defenses,
            batch_size=size,
        )
        tables.append(found.samples)
    assert tables[0].radius.equals(tables[1].radius)
    assert tables[0].prediction.equals(tables[1].prediction)
    assert tables[0].radius.max() > 0
    gap = (tables[0].bound - tables[1].bound).abs().max()
    assert gap < 1e-9


def plan_of(method: str) -> CertificationPlan:
    x, y = images(9)
    certifier = make_certifier(method, QUICK if method == "smoothing" else None)
    return CertificationPlan(
        model=given_model(small()),
        data=given_data(x, y, 3, None),
        index=torch.arange(9),
        certifier=certifier,
        threat=certificate_threat(None, 0.01, certifier),
        defenses=[RandomizedSmoothing(sigma=0.2)] if method == "smoothing" else [],
        batch_size=2,
    )


@pytest.mark.parametrize("method", ["crown", "smoothing"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_certification_that_was_stopped_goes_on_to_the_same_rows(
    method: str, killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)
    whole = run_certification(plan_of(method)).certificate

    def begin(_done: int) -> Callable[[float], None]:
        seen = [0.0]

        def watch(more: float) -> None:
            seen[0] += more
            if killed and seen[0] > 5:
                raise KeyboardInterrupt  # at once, as a kill does: what is stored is of the moment before

        return watch

    calls = iter([False] * (5 if method == "crown" else 12) + [True] * 100)
    with pytest.raises(KeyboardInterrupt if killed else Interrupted):
        run_certification(plan_of(method), leaderboard=tmp_path, begin=begin, stop=lambda: not killed and next(calls))
    assert not list(tmp_path.glob("certificates/*.parquet"))
    said: list[str] = []
    started: list[int] = []

    def go_on(done: int) -> Callable[[float], None]:
        started.append(done)
        return lambda _: None

    again = run_certification(plan_of(method), leaderboard=tmp_path, note=said.append, begin=go_on)
    assert again.certificate.table.equals(whole.table)
    assert 0 < started[0] < 9
    assert said == [f"an unfinished certificate goes on: {started[0]} of 9 images were done"]
    assert [path.suffix for path in (tmp_path / "certificates").iterdir()] == [".parquet"]
    assert run_certification(plan_of(method), leaderboard=tmp_path).settled == "reproduced"


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.1), ("l1", 0.2)])
def test_what_is_certified_is_not_fooled(norm: str, eps: float) -> None:
    x, y = images(24)
    found = rbl.certify(small(), x, y, norm=norm, eps=eps).samples
    assert 4 <= found.certified.sum() < 20
    assert not found.certified[~found.correct].any()
    for attack in ("pgd", {"linf": "auto", "l2": "apgd-ce", "l1": "fab"}[norm]):
        run = rbl.evaluate(small(), x, y, attack=attack, norm=norm, eps=eps, checks=False).samples
        assert run.success.any()
        assert not (run.success & found.certified).any()


def test_crown_certifies_what_another_bound_does(shared_data: Path, shared_weights: Path) -> None:
    """The linear dual bound of Wong and Kolter, by other code: CROWN's lines are at least as near."""
    data = rbl.load_dataset("mnist", data_dir=shared_data)
    weights = str(shared_weights / "mnist-certified" / "mnist.pth")
    network = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module
    index = balanced_subset(data.labels, 6)
    x, y = data.images(index), data.labels[index]
    found = rbl.certify(network, x, y, eps=0.1).samples
    exact = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module.double().eval()
    assert isinstance(exact, nn.Sequential)
    with torch.no_grad():
        dual = [by_the_dual(exact, x[i : i + 1].double(), int(y[i])) for i in range(6)]
    assert sum(dual) >= 4
    assert all(mine or not theirs for mine, theirs in zip(found.certified, dual, strict=True))
    assert rbl.certify(network, x, y, method="interval", eps=0.1).certified_accuracy == 0


def test_an_image_that_is_wrong_or_on_the_edge_is_not_certified() -> None:
    x, y = images(12)
    with pytest.warns(UserWarning, match="eps is 0: certified accuracy is clean accuracy"):
        rows = rbl.certify(small(), x, y, eps=0.0).samples
    assert rows.certified.equals(rows.correct)
    assert rows.bound.isna().equals(~rows.correct)
    wide = rbl.certify(small(), x, y, eps=1.0)
    assert wide.certified_accuracy == 0
    assert wide.clean_accuracy == pytest.approx(10 / 12)


def test_model_and_random_state_are_left_as_they_were() -> None:
    network, (x, y) = small().train(), images(4)
    state = torch.get_rng_state()
    kept = x.clone()
    rbl.certify(network, x, y, method="smoothing", eps=0.1, method_options=QUICK, defenses=[RandomizedSmoothing()])
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "crwn"}, r"method: unknown name 'crwn'; did you mean crown"),
        ({"norm": "l3"}, r"norm: unknown name 'l3'"),
        ({"eps": -1}, r"eps must be >= 0"),
        ({"method": "smoothing"}, r"method: smoothing certifies a vote over noisy copies and there is no defense"),
        ({"method": "smoothing", "norm": "linf"}, r"norm: method smoothing certifies l2, got 'linf'"),
        (
            {"defenses": [RandomizedSmoothing()]},
            r"method: crown cannot bound the randomised defense",
        ),
        ({"method": "smoothing", "method_options": {"alpha": 0}}, r"alpha must be in \(0, 1\), got 0"),
        ({"method": "smoothing", "method_options": {"n": 0}}, r"n must be >= 1, got 0"),
        ({"method_options": {"n": 5}}, r"method option: crown has no option 'n'"),
        ({"seed": -1}, r"seed must be in"),
        ({"batch_size": 0}, r"batch_size must be >= 1, got 0"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"^{told}") as caught:
        rbl.certify(small(), *images(2), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["crown", "interval"])
def test_a_network_that_is_right_for_no_image_certifies_none(method: str) -> None:
    x, _ = images(6)
    network = small()
    with torch.no_grad():
        y = (network(x).argmax(1) + 1) % 3
    assert rbl.certify(network, x, y, method=method, eps=0.01).certified_accuracy == 0
