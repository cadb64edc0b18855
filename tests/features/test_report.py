"""A report from end to end: real test images, controls, seeds, the cache, and the files that come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from robustbench_lite.data_request import DataRequest
from robustbench_lite.errors import UserError
from robustbench_lite.features.figure import draw_images
from robustbench_lite.features.report import LINEAR, NETWORK, Report, report
from robustbench_lite.features.study import RECIPE, Study, constructions_of, part
from robustbench_lite.features.tables import save_table
from robustbench_lite.prepare import make_defenses

from .works import images

KINDS = ("robust", "random", "shifted", "errors")


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> DataRequest:
    """60 training and 45 test images in Parquet."""
    from robustbench_lite.features.storage import TEST, TRAIN, write_real

    folder = tmp_path_factory.mktemp("rows")
    write_real(folder / TRAIN, images(60), {})
    write_real(folder / TEST, images(45, split="test", seed=2), {})
    return DataRequest(f"parquet:{folder}", workers=0)


def study(request: DataRequest, **more: Any) -> Study:
    given: dict[str, Any] = {
        "model": "mlp",
        "request": request,
        "constructions": constructions_of(
            KINDS, {"eps": "0.8", "shifted.eps": "0.15", "random.steps": "5", "shifted.steps": "5", "robust.steps": "3"}
        ),
        "defenses": tuple(make_defenses(["adversarial-training"], ["norm=l2", "eps=0.2"])),
        "samples": 30,
        "early_samples": 6,
        "source_epochs": 8,
        "seeds": 2,
        "recipe": {"epochs": "3"},
        "eps": 0.2,
        "attack_options": {"steps": 3},
        "robust_samples": 12,
    }
    return Study(**{**given, **more})


@pytest.fixture(scope="module")
def found(request_: DataRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBL_CACHE", str(tmp_path_factory.mktemp("cache")))
        whole = report(study(request_))
        # Again: all of it comes from the cache, to the same numbers.
        patch.setattr("robustbench_lite.training.Trainer.fit", lambda *_, **__: pytest.fail("trained again"))
        again = report(study(request_))
    pd.testing.assert_frame_equal(whole.rows, again.rows, check_exact=True)
    assert whole.folders == again.folders
    return whole


def test_a_row_a_network_and_a_row_a_control(found: Report) -> None:
    rows = found.rows
    assert list(dict.fromkeys(rows["set"])) == ["data", *KINDS]
    for _, own in rows.groupby("set"):
        nets = own[own["learner"] == NETWORK]
        assert nets["seed"].tolist() == [1, 2]  # never that of the networks whose features are used
        assert (own["learner"] == LINEAR).sum() == 1
        assert nets["accuracy"].between(0, 1).all() and nets["robust_accuracy"].between(0, 1).all()
    sizes = rows.groupby("set")["images"].first()
    assert sizes[["data", "robust", "random", "shifted"]].tolist() == [30] * 4
    assert 0 < sizes["errors"] <= 60
    assert (rows["chance"] == found.chance).all() and found.chance == pytest.approx(1 / 3)


def test_what_robust_features_alone_say(found: Report) -> None:
    """Of the data they tell the class, of D_det the class after it."""
    linear = found.rows[found.rows["learner"] == LINEAR].set_index("set")["accuracy"]
    assert linear["data"] > 0.7
    assert linear["shifted"] < found.chance


def test_the_summary_is_of_the_rows(found: Report) -> None:
    for row in found.summary():
        own = found.rows[(found.rows["set"] == row["set"]) & (found.rows["learner"] == NETWORK)]
        assert row["accuracy"] == pytest.approx(own["accuracy"].mean())
        assert (row["accuracy_low"], row["accuracy_high"]) == (own["accuracy"].min(), own["accuracy"].max())
        assert row["next_class"] == pytest.approx(own["next_class"].mean())
        assert (row["reached"] is None) == (row["set"] not in ("random", "shifted"))


def test_accuracy_is_on_real_images(found: Report, request_: DataRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained once more by hand on the constructed file and tested on the source's own split."""
    from robustbench_lite.models import build_model
    from robustbench_lite.recipe import recipe_for
    from robustbench_lite.training import train_model

    test = request_.load("test")
    data = DataRequest(f"parquet:{found.folders['random']}", workers=0).load("train")
    recipe = recipe_for([], {**RECIPE, "epochs": 3, "seed": 2}, argument="recipe")
    net = train_model(build_model("mlp", n_classes=3, shape=test.shape, seed=2), data, recipe=recipe)
    with torch.no_grad():
        right = (net(test.images(torch.arange(45))).argmax(1) == test.labels).double().mean()
    row = found.rows.query("set == 'random' and seed == 2").iloc[0]
    assert row["accuracy"] == pytest.approx(float(right), abs=1e-12)


def test_the_picture_shows_images_beside_what_was_made(found: Report, request_: DataRequest, tmp_path: Path) -> None:
    draw_images(tmp_path / "a.png", request_.load("train"), found.folders, rows=2)
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UserError, match=r"--figure: no training image is in all of the data sets"):
        draw_images(tmp_path / "b.png", request_.load("train"), {"errors": found.folders["errors"]})


def test_the_table_is_written_with_what_decided_it(found: Report, tmp_path: Path) -> None:
    save_table(tmp_path / "a.parquet", found.rows, found.said)
    said = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"robustbench_lite"])
    assert said["constructions"]["random"]["eps"] == 0.8
    assert set(said["networks"]) == {"early", "robust", "standard"}
    back = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_array_equal(back["accuracy"], found.rows["accuracy"])
    save_table(tmp_path / "a.csv", found.rows, found.said)
    assert len(pd.read_csv(tmp_path / "a.csv")) == len(found.rows)


def test_a_part_is_balanced_and_has_a_fingerprint_of_its_own(request_: DataRequest) -> None:
    train, test = request_.load("train"), request_.load("test")
    few = part(train, 9)
    assert torch.bincount(few.labels).tolist() == [3, 3, 3]
    assert few.fingerprint != train.fingerprint
    assert part(train, 60) is train
    kept = request_.answered(train=few, test=test)
    assert kept.load() is kept.load("test") is test
    assert kept.load("train") is few


def test_options_go_where_they_belong() -> None:
    random, robust = constructions_of(("random", "robust"), {"steps": "9", "robust.steps": "3", "eps": "1"})
    assert (random.steps, random.eps, robust.steps) == (9, 1.0, 3)  # type: ignore[attr-defined]
    assert constructions_of(("robust",), {"robust.steps": "3", "steps": "9"})[0].steps == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kinds", "options", "words"),
    [
        (("random", "random"), {}, r"--kinds: expected different ones"),
        (("random", "roboost"), {}, r"--kind: unknown name 'roboost'; did you mean robust"),
        (("random",), {"stepz": "1"}, r"--option: none of random has the option 'stepz'"),
        (("robust", "random"), {"robust.eps": "1"}, r"--option: none of robust has the option 'eps'"),
        (("random",), {"robust.eps": "1"}, r"--option: unknown name 'robust'"),
    ],
)
def test_kinds_and_options_that_do_not_fit(kinds: tuple[str, ...], options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        constructions_of(kinds, options)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"seeds": 0}, r"--seeds must be at least 1, got 0"),
        ({"attack": "pdg"}, r"attack: unknown name 'pdg'"),
        ({"eps": "x"}, r"eps must be a number"),
    ],
)
def test_a_study_that_cannot_be(request_: DataRequest, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        study(request_, **more)
