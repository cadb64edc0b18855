"""rho and gamma against what can be computed by hand: linear features, whose worst case is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.data.dataset import ArrayDataset
from robustbench_lite.errors import UserError
from robustbench_lite.features.figure import draw_usefulness
from robustbench_lite.features.usefulness import Task, centre_and_spread, choose_tasks, rho, side, usefulness

from .works import CLASSES, workshop


def mid_grey(n: int, seed: int, split: str = "test") -> ArrayDataset:
    """Images far from the ends of the box, so that no perturbation is cut."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = 0.4 + 0.2 * torch.rand((n, 1, 4, 4), generator=generator)
    x[torch.arange(n), 0, y] += 0.05
    return from_arrays(x, y, name="grey", split=split, classes=CLASSES)


def linear(features: int = 5, seed: int = 3) -> nn.Sequential:
    """Features w_j x, the last of them always 0."""
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(16, features), nn.Linear(features, CLASSES)
    first.weight.data = torch.randn(first.weight.shape, generator=generator)
    first.weight.data[-1], first.bias.data[-1] = 0, 0
    return nn.Sequential(nn.Flatten(), first, last).eval()


def first(model: nn.Sequential) -> nn.Linear:
    """Its features' layer."""
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    return layer


def by_hand(values: Tensor, labels: Tensor, row: dict[Any, Any]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a feature over its two sides, each image repeated until both weigh the same."""
    ones = values[labels == row["positive"]]
    rest = values[labels != row["positive"]] if row["negative"] < 0 else values[labels == row["negative"]]
    both = torch.cat([ones.repeat(len(rest)), rest.repeat(len(ones))])
    return both.mean(), both.std(correction=0)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("l2", 0.1, 2.0), ("linf", 0.02, 1.0)])
@pytest.mark.parametrize("pair", [None, (0, 2)])
def test_of_linear_features_gamma_is_rho_less_the_dual_norm(
    norm: str, eps: float, dual: float, pair: tuple[int, int] | None
) -> None:
    """inf over |delta| <= eps of y w (x + delta) is y w x - eps |w|_dual: gamma = rho - eps |w|_dual / std."""
    train, test, model = mid_grey(200, 1, "train"), mid_grey(90, 2), linear()
    options = {"steps": 80, "random_start": False}
    frame = usefulness(
        workshop(train, model), train, test, norm=norm, eps=eps, attack_options=options, pair=pair, batch_size=32
    )
    weight = first(model).weight.detach().double()
    values = train.images(torch.arange(200)).flatten(1).double() @ weight.T
    spread = torch.stack([by_hand(values[:, j], train.labels, frame.iloc[j].to_dict())[1] for j in range(4)])
    expected = frame["rho"].to_numpy()[:-1] - (eps * weight[:-1].norm(dual, dim=1) / spread).numpy()
    np.testing.assert_allclose(frame["gamma"].to_numpy()[:-1], expected, atol=2e-3)
    assert frame["constant"].tolist() == [False] * 4 + [True]
    assert frame["rho"].iloc[-1] == frame["gamma"].iloc[-1] == 0
    assert frame["kind"].iloc[-1] == "useless"
    assert (frame["negative"] == (-1 if pair is None else 2)).all()


def test_rho_is_the_mean_of_y_f_by_hand() -> None:
    train, test, model = mid_grey(200, 1, "train"), mid_grey(90, 2), linear()
    frame = usefulness(workshop(train, model), train, test, eps=0.0, pair=(1, 0))
    with torch.no_grad():
        known, seen = (first(model)(d.images(torch.arange(len(d))).flatten(1)).double() for d in (train, test))
    told = [by_hand(known[:, j], train.labels, frame.iloc[j].to_dict()) for j in range(4)]
    scaled = torch.stack([(seen[:, j] - centre) / spread for j, (centre, spread) in enumerate(told)], 1)
    ones, zeros = scaled[test.labels == 1], scaled[test.labels == 0]  # of both as many: E is the plain mean
    expected = torch.cat([ones, -zeros]).mean(0) * torch.tensor(frame["sign"].to_numpy())[:-1]
    np.testing.assert_allclose(frame["rho"].to_numpy()[:-1], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(frame["gamma"], frame["rho"], atol=1e-6)  # eps 0 takes nothing


def test_an_attack_never_adds_and_more_of_it_takes_more() -> None:
    train, test, model = mid_grey(200, 1, "train"), mid_grey(60, 2), linear()
    shop = workshop(train, model)
    found = [usefulness(shop, train, test, eps=eps, attack_options={"steps": 5})["gamma"] for eps in (0.05, 0.2)]
    noise = usefulness(shop, train, test, eps=0.2, attack="noise")
    assert (noise["gamma"] <= noise["rho"] + 1e-9).all()
    live = ~noise["constant"]
    assert (found[1][live] < found[0][live]).all()
    assert (found[1][live] < noise["gamma"][live]).all()


def test_kinds_are_told_apart() -> None:
    """One feature sees the class through one large weight, one through a small difference of large ones."""
    train, test = mid_grey(600, 1, "train"), mid_grey(300, 2)
    model = linear(3)
    with torch.no_grad():
        weight = first(model).weight
        weight.zero_()
        weight[0, :4] = 1.0  # the bright row
        weight[1, 12:] = torch.tensor([1.0, -1.0, 1.0, -1.0])  # nothing of the class
    frame = usefulness(workshop(train, model), train, test, eps=0.01, pair=(0, 1), attack_options={"steps": 10})
    assert frame["kind"].tolist() == ["robust", "useless", "useless"]
    far = usefulness(workshop(train, model), train, test, eps=0.2, pair=(0, 1), attack_options={"steps": 10})
    assert far["kind"].tolist() == ["nonrobust", "useless", "useless"]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_neither_zero_nor_unit_of_a_feature_matters(seed: int, shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((40, 3), generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=generator)
    labels[:3] = torch.arange(3)
    y = side(labels, 1, None)
    torch.testing.assert_close(rho(values * scale + shift, y), scale * rho(values, y), rtol=1e-6, atol=1e-9)
    spread = centre_and_spread(values, y)[1]
    assert (rho(values, y).abs() <= spread * (1 + 1e-9)).all()  # by Cauchy and Schwarz
    torch.testing.assert_close(centre_and_spread(values * scale + shift, y)[1], scale * spread, rtol=1e-6, atol=1e-9)
    tasks = choose_tasks(values, labels, 3)
    assert tasks == choose_tasks(values * scale + shift, labels, 3)
    flipped = choose_tasks(-values, labels, 3)
    assert flipped == [Task(t.positive, t.negative, -t.sign) for t in tasks]


def test_batches_do_not_matter() -> None:
    train, test, model = mid_grey(200, 1, "train"), mid_grey(60, 2), linear()
    shop = workshop(train, model)
    few, many = (usefulness(shop, train, test, eps=0.1, attack_options={"steps": 4}, batch_size=n) for n in (7, 60))
    pd.testing.assert_frame_equal(few, many, check_exact=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack": "ddn", "norm": "l2"}, r"--attack: ddn keeps to no eps"),
        ({"attack": "auto"}, r"--attack: auto is several attacks"),
        ({"pair": (1, 1)}, r"--classes: expected two different classes in 0..2, got 1,1"),
        ({"pair": (0, 3)}, r"--classes: expected two different classes in 0..2, got 0,3"),
        ({"eps": 9.0}, r"eps must be at most 4"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], words: str) -> None:
    train, model = mid_grey(30, 1, "train"), linear()
    with pytest.raises(UserError, match=words):
        usefulness(workshop(train, model), train, train, **options)  # type: ignore[arg-type]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    train, model = mid_grey(60, 1, "train"), linear()
    frame = usefulness(workshop(train, model), train, train, eps=0.1, attack_options={"steps": 2})
    draw_usefulness(tmp_path / "a.png", {"one": frame, "two": frame}, threat="l2 0.1")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
