"""Curves are recounts of the rows: they begin at clean accuracy, end at robust accuracy, fall where samples fell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite.curves import cost_curve, distance_curve, labels, save_curves
from robustbench_lite.errors import UserError
from robustbench_lite.optimality import compare
from robustbench_lite.records.run import Run

from .core.nets import binary, images, labels_of, mlp
from .core.test_minimal import nearing


@pytest.fixture(scope="module")
def result() -> rbl.Result:
    model = mlp(scale=5.0).eval()
    x = images(80)
    y = labels_of(model, x)
    y = torch.where(torch.arange(80) % 9 == 0, (y + 1) % 4, y)
    return rbl.evaluate(model, x, y, attack="pgd", eps=0.05, attack_options={"steps": 12})


@pytest.mark.parametrize("calls", ["forwards", "backwards"])
def test_a_cost_curve_is_a_recount(result: rbl.Result, calls: str) -> None:
    curve, rows = cost_curve(result.run, calls), result.samples
    assert curve.value(0) == result.clean_accuracy
    assert curve.accuracy[-1] == result.robust_accuracy
    assert 0 < result.robust_accuracy < result.clean_accuracy
    assert curve.at[-1] == rows[calls].max()
    for spent in range(int(rows[calls].max()) + 1):
        fallen = rows.success & (rows[calls] <= spent)
        assert curve.value(spent) == pytest.approx((rows.correct & ~fallen).mean())


def test_a_distance_curve_says_the_robust_accuracy_at_every_eps() -> None:
    model = binary().eval()
    x = images(40, low=0.2, high=0.8)
    y = labels_of(model, x)
    y[::8] = 1 - y[::8]

    def run(eps: float) -> rbl.Result:
        return rbl.evaluate(model, x, y, attack=nearing(), norm="l2", eps=eps, checks=False)

    runs = {eps: run(eps).robust_accuracy for eps in (0.1, 0.3, 0.7)}
    curve = distance_curve(run(0.2).run)
    assert curve.value(0) == 35 / 40
    for eps, robust in runs.items():
        assert curve.value(eps) == robust
    assert len(set(runs.values())) == 3


def test_a_fixed_eps_attack_has_no_curve_over_eps(result: rbl.Result) -> None:
    with pytest.raises(UserError, match="attack pgd looks for any image within eps"):
        distance_curve(result.run)


def test_a_part_of_a_run_has_no_curve(result: rbl.Result) -> None:
    part = dataclasses.replace(result.run.specification, status="shard", shard=(1, 2))
    with pytest.raises(UserError, match="needs a complete run"):
        cost_curve(dataclasses.replace(result.run, specification=part))


def test_the_picture_is_written_whole_and_the_same_again(result: rbl.Result, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "curve.png"
    save_curves(path, [result.run, result.run])
    first = path.read_bytes()
    save_curves(path, [result.run, result.run])
    assert path.read_bytes() == first
    with Image.open(path) as picture:
        width, height = picture.size
    assert width > 1.5 * height
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
    with pytest.raises(UserError, match="--figure"):
        save_curves(tmp_path / "curve.txt", [result.run])
    with pytest.raises(UserError, match="at least one run"):
        save_curves(path, [])


def _minimal_run(**options: Any) -> Run:
    model = binary().eval()
    x = images(24, low=0.2, high=0.8)
    y = labels_of(model, x)
    return rbl.evaluate(model, x, y, attack=nearing(), checks=False, **{"norm": "l2", "eps": 0.3, **options}).run


def test_the_legend_over_eps_says_the_optimality_of_those_that_go_together(
    result: rbl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []

    def savefig(figure: Figure, file: Path, **_: Any) -> None:
        drawn.append(figure)
        file.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    near, far, other = _minimal_run(), _minimal_run(max_queries=17), _minimal_run(norm="linf", eps=0.1)
    save_curves(tmp_path / "curve.png", [near, result.run, far, other])
    (figure,) = drawn
    # A row of panels a threat: forwards, backwards, eps; those of one eps have no minimal run.
    over_eps = {axes.get_title(): axes.get_legend() for axes in figure.axes if axes.get_xlabel().startswith("eps")}
    (told,) = figure.legends
    assert [text.get_text() for text in told.get_texts()] == labels([near, result.run, far, other], within_threat=True)
    # One alone in its norm has nobody beside it.
    assert over_eps.pop("linf 0.1") is None
    (shares,) = over_eps.values()
    assert shares is not None and shares.get_title().get_text() == "optimality"
    standings = compare([near, far])
    said = [text.get_text() for text in shares.get_texts()]
    assert said == ["1.000", f"{standings[1].optimality:.3f}"] != ["1.000", "1.000"]


def test_labels_say_what_differs_and_no_more(result: rbl.Result) -> None:
    near = _minimal_run()
    assert labels([near]) == [near.specification.attack.name]
    assert labels([near, _minimal_run(max_queries=17)]) == ["any number of queries", "at most 17 queries"]
    part = dataclasses.replace(near, table=near.table.slice(0, 9))
    assert labels([near, part]) == ["24 images", "9 images"]
