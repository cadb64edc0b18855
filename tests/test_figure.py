from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_lite.data import from_arrays
from robustbench_lite.errors import UserError
from robustbench_lite.figure import Caption, check_figure_path, choose, figure_of, magnification, save_figure
from robustbench_lite.models import LoadedModel, state_sha256
from robustbench_lite.perturbation import make_attack
from robustbench_lite.plan import Plan
from robustbench_lite.plan_run import run_plan
from robustbench_lite.registry import load
from robustbench_lite.threat import Threat

CLASSES = ("cat", "golden retriever, of the Scottish kind", "cash $ and $ carry", "猫")


def caption(index: int = 3, **changes: Any) -> Caption:
    plain = Caption(index, 0, 0, 0.98, 1, 0.6, "fooled", r"$\ell_\infty$ = 0.1")
    return replace(plain, **changes)


def pair(shape: tuple[int, int, int], count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randint(0, 230, (count, *shape), generator=generator)
    moved = x + torch.randint(0, 26, (count, *shape), generator=generator)
    return x / 255, moved / 255


def draw(path: Path, images: Tensor, adversarial: Tensor, **changes: Any) -> npt.NDArray[np.int16]:
    captions = [caption(i, prediction=i % 4, adversarial_prediction=(i + 1) % 4) for i in range(len(images))]
    options = {"captions": captions, "classes": CLASSES, "title": "a net\nunder an attack", **changes}
    save_figure(path, images, adversarial, **options)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        return np.asarray(picture.convert("RGB")).astype(np.int16)


def places(picture: npt.NDArray[np.int16], image: Tensor, factor: int) -> list[tuple[int, int]]:
    """Where in a picture (row, column) an image stands, enlarged by the factor; the frame around it is left out."""
    cell = (image.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255).round().astype(np.int16)
    cell = cell.repeat(factor, 0).repeat(factor, 1)[2:-2, 2:-2]
    height, width = cell.shape[:2]
    part = picture[: picture.shape[0] - height + 1, : picture.shape[1] - width + 1]
    at = np.argwhere((np.abs(part - cell[0, 0]) <= 1).all(2))
    for y, x in ((height - 1, width - 1), (height // 2, width // 3), (height // 3, width - 1), (height // 4, 0)):
        at = at[(np.abs(picture[at[:, 0] + y, at[:, 1] + x] - cell[y, x]) <= 1).all(1)]
    return [(y, x) for y, x in at.tolist() if (np.abs(picture[y : y + height, x : x + width] - cell) <= 1).all()]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 224, 224), (3, 64, 40), (1, 299, 299)])
def test_every_pixel_of_both_images_is_in_the_picture_and_the_columns_differ(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    x, adversarial = pair(shape)
    picture = draw(tmp_path / "f.png", x, adversarial)
    assert 400 < picture.shape[0] < 1200
    assert 400 < picture.shape[1] < 1200
    factor = max(1, round(224 / max(shape)))
    for row in range(2):
        clean, moved = places(picture, x[row], factor), places(picture, adversarial[row], factor)
        delta = adversarial[row].double() - x[row].double()
        middle = places(picture, (0.5 + magnification(adversarial.double() - x.double()) * delta).clamp(0, 1), factor)
        assert len(clean) == len(moved) == len(middle) == 1
        # One line, from the left: image, perturbation, adversarial image.
        assert clean[0][0] == moved[0][0] == middle[0][0]
        assert clean[0][1] < middle[0][1] < moved[0][1]


def test_more_than_four_stand_in_two_blocks_and_all_are_there(tmp_path: Path) -> None:
    x, adversarial = pair((1, 28, 28), 7)
    picture = draw(tmp_path / "f.png", x, adversarial)
    found = [places(picture, x[row], 8) for row in range(7)]
    assert [len(f) for f in found] == [1] * 7
    assert len({f[0][1] for f in found}) == 2
    assert len({f[0][0] for f in found}) == 4


def test_a_fooled_network_is_told_in_red_and_a_robust_one_is_not(tmp_path: Path) -> None:
    x = torch.full((1, 1, 28, 28), 0.5)

    def reds(outcome: str) -> int:
        picture = draw(tmp_path / "f.png", x, x, captions=[caption(outcome=outcome)])
        return int(((picture[..., 0] - picture[..., 1]) > 80).sum())

    assert reds("fooled") > 100
    assert reds("robust") == 0


def test_confidence_and_label_are_seen(tmp_path: Path) -> None:
    x, adversarial = pair((1, 28, 28), 1)
    seen = {
        draw(tmp_path / "f.png", x, adversarial, captions=[caption(**change)]).tobytes()
        for change in ({}, {"confidence": 0.97}, {"label": 2}, {"adversarial_confidence": 0.5}, {"index": 4})
    }
    assert len(seen) == 5


@pytest.mark.filterwarnings("error")
def test_the_bytes_follow_from_the_arguments_alone(tmp_path: Path) -> None:
    import matplotlib

    x, adversarial = pair((3, 32, 32), 5)
    draw(tmp_path / "a.png", x, adversarial)
    settings: Any = {"font.size": 30, "figure.facecolor": "red", "savefig.dpi": 20, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        draw(tmp_path / "b.png", x, adversarial)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def rc_params() -> dict[str, Any]:
    import matplotlib

    # Asking for the backend would settle it, and import pyplot.
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


def test_no_global_state_is_touched(tmp_path: Path) -> None:
    x, adversarial = pair((1, 28, 28))
    there = "matplotlib.pyplot" in sys.modules
    settings = rc_params()
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"],
        random.getstate(),
    )
    copies = x.clone(), adversarial.clone()
    draw(tmp_path / "f.png", x, adversarial)
    assert ("matplotlib.pyplot" in sys.modules) == there
    assert rc_params() == settings
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)
    assert random.getstate() == python_state
    assert torch.equal(x, copies[0])
    assert torch.equal(adversarial, copies[1])


def test_a_wrong_path_is_told_before_and_nothing_is_left(tmp_path: Path) -> None:
    x, adversarial = pair((1, 8, 8))
    for bad in (tmp_path / "f.jpg", tmp_path / "f"):
        with pytest.raises(UserError, match=r"--figure must be a path that ends in \.png"):
            check_figure_path(bad)
        with pytest.raises(UserError, match="--figure"):
            draw(bad, x, adversarial)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("eps", "factor"), [(0.3, 1.5), (8 / 255, 15), (4 / 255, 30), (1 / 255, 100), (1.0, 1.0), (0.0, 1.0)]
)
def test_the_magnification_fills_the_range_and_is_round(eps: float, factor: float) -> None:
    signs = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    assert magnification(eps * signs) == factor


def test_a_few_changed_pixels_are_magnified_by_their_own_size() -> None:
    delta = torch.zeros(1, 1, 50, 50)
    delta[0, 0, 3, 4] = 0.25
    assert magnification(delta) == 2


def kinds(rows: list[tuple[int, str]]) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([label for label, _ in rows])
    success = torch.tensor([kind == "fooled" for _, kind in rows])
    attacked = torch.tensor([kind != "wrong" for _, kind in rows])
    return labels, success, attacked


def test_successes_come_first_then_the_robust_then_the_misclassified() -> None:
    rows = [(0, "wrong"), (0, "robust"), (0, "fooled"), (1, "robust"), (0, "fooled"), (1, "wrong")]
    assert choose(*kinds(rows), rows=6).tolist() == [2, 4, 1, 3, 0, 5]
    assert choose(*kinds(rows), rows=3).tolist() == [2, 4, 1]


def test_classes_are_shown_evenly() -> None:
    rows = [(c, "fooled") for c in range(4) for _ in range(10)]
    labels = torch.tensor([c for c, _ in rows])
    assert labels[choose(*kinds(rows), rows=8)].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    many = [(c, "fooled") for c in range(100)]
    chosen = choose(*kinds(many), rows=5).tolist()
    assert chosen[0] == 0
    assert chosen[-1] == 99
    assert np.diff(chosen).min() >= 24
    assert len(set(choose(*kinds(rows), rows=100).tolist())) == 40


def plan_of(net: nn.Module, **changes: Any) -> Plan:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    threat = Threat("linf", 0.05)
    options: dict[str, Any] = {
        "model": LoadedModel(net, "net.py:make", state_sha256(net), 1, {}, "given", None),
        "data": from_arrays(x.numpy(), y.numpy(), name="rows", split="test", classes=4),
        "index": torch.arange(30),
        "attack": make_attack("pgd", {"steps": "5"}, threat),
        "threat": threat,
        "keep_images": True,
    }
    return Plan(**{**options, **changes})


@pytest.fixture
def net() -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def test_the_figure_of_a_result_shows_recorded_predictions_with_their_softmax(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(net)
    result = run_plan(plan)
    seen: dict[str, Any] = {}

    def keep(path: Path, images: Tensor, adversarial: Tensor, **rest: Any) -> None:
        seen.update(rest, images=images, adversarial=adversarial)

    monkeypatch.setattr("robustbench_lite.figure.save_figure", keep)
    figure_of(result, plan, tmp_path / "f.png", rows=30)
    samples = result.samples.set_index("index")
    # Those that were not attacked are left out.
    assert sorted(c.index for c in seen["captions"]) == sorted(samples.index[samples.attacked])
    assert "robust" in seen["title"]
    for row, c in enumerate(seen["captions"]):
        sample = samples.loc[c.index]
        clean, moved = (net(seen[name][row : row + 1]).detach().softmax(1)[0] for name in ("images", "adversarial"))
        assert (c.label, c.prediction) == (sample.label, sample.prediction)
        assert c.adversarial_prediction == sample.adversarial_prediction
        assert c.confidence == pytest.approx(float(clean[c.prediction]), abs=1e-5)
        assert c.confidence == pytest.approx(float(clean.max()), abs=1e-5)
        assert c.adversarial_confidence == pytest.approx(float(moved.max()), abs=1e-5)
        assert (c.outcome == "fooled") == sample.success
        assert (c.outcome == "not attacked") == (not sample.attacked)
    assert {c.outcome for c in seen["captions"]} >= {"fooled"} and not samples.attacked.all()


def test_figures_of_equal_results_are_equal_for_randomised_defenses_too(net: nn.Module, tmp_path: Path) -> None:
    plan = plan_of(net, defenses=(load("defenses", "random-noise")(sigma=0.05),), votes=2, eot=1)
    result = run_plan(plan)
    state = torch.get_rng_state()
    net.train()
    figure_of(result, plan, tmp_path / "a.png", rows=2)
    figure_of(result, plan, tmp_path / "b.png", rows=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training


def test_probabilities_are_shown_as_they_are(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = nn.Sequential(net, nn.Softmax(1)).eval()
    plan = plan_of(soft)
    seen: dict[str, Any] = {}
    monkeypatch.setattr("robustbench_lite.figure.save_figure", lambda *_, **rest: seen.update(rest))
    figure_of(run_plan(plan), plan, tmp_path / "f.png", rows=1)
    shown = seen["captions"][0]
    x = plan.data.images(torch.tensor([shown.index]))
    assert shown.confidence == pytest.approx(float(soft(x).detach().max()), abs=1e-5)


def test_without_images_or_rows_there_is_no_figure(net: nn.Module, tmp_path: Path) -> None:
    plan = plan_of(net)
    result = run_plan(plan)
    with pytest.raises(UserError, match="kept no images"):
        figure_of(replace(result, adversarial=None), plan, tmp_path / "f.png")
    with pytest.raises(UserError, match="rows must be >= 1, got 0"):
        figure_of(result, plan, tmp_path / "f.png", rows=0)
