"""Accuracy under each attempt of an attack whose attempts are each of interest: the same images as in a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.cells import accuracy_by_cell, accuracy_table, predictions_by_cell, summary, write_cells
from robustbench_lite.perturbation import make_attack
from robustbench_lite.threat import Threat

from .nets import images, labels_of, mlp

SHAPE = (1, 12, 12)
OPTIONS = {"kinds": "gaussian-noise,contrast,fog", "severities": "1,5"}


@pytest.fixture
def model() -> nn.Module:
    return mlp(shape=SHAPE, scale=6.0)


@pytest.fixture
def x() -> Tensor:
    return images(40, SHAPE)


@pytest.fixture
def y(model: nn.Module, x: Tensor) -> Tensor:
    """What the network says but for every eighth image."""
    said = labels_of(model, x)
    said[::8] = (said[::8] + 1) % 4
    return said


def predictions(model: nn.Module, x: Tensor, y: Tensor, *, size: int = 40, **options: int) -> pd.DataFrame:
    attack = make_attack("corruptions", OPTIONS, Threat("linf", 1.0))
    index = torch.arange(len(x))
    blocks = zip(index.split(size), x.split(size), y.split(size), strict=True)  # type: ignore[no-untyped-call]
    return predictions_by_cell(model, attack, blocks, **options)  # type: ignore[arg-type]


def test_a_cell_is_what_a_run_of_that_cell_says(model: nn.Module, x: Tensor, y: Tensor) -> None:
    frame = predictions(model, x, y, seed=3)
    assert len(frame) == 40 * 6 and list(frame.columns) == ["index", "label", "kind", "level", "prediction"]
    seen = 0
    # A run's random numbers belong to the number of its attempt, so the whole list is given and one of it looked at.
    said = rbl.evaluate(model, x, y, attack="corruptions", attack_options=OPTIONS, seed=3, checks=False).samples
    cells = make_attack("corruptions", OPTIONS, Threat("linf", 1.0)).cells
    for row in said[said.attacked].itertuples():
        mine = frame[frame["index"] == row.index].set_index(["kind", "level"]).prediction
        wrong = [number for number, cell in enumerate(cells) if int(mine[cell]) != row.label]
        assert bool(row.success) == bool(wrong)
        if wrong:
            assert row.restart == wrong[0]
            seen += 1
    assert 3 < seen < 35


def test_every_image_counts_also_one_that_is_wrong_as_it_is(model: nn.Module, x: Tensor, y: Tensor) -> None:
    frame = predictions(model, x, y)
    table = accuracy_table(frame)
    assert list(table.index) == ["gaussian-noise", "contrast", "fog"] and list(table.columns) == ["1", "5"]
    for kind in table.index:
        for level in table.columns:
            cell = frame[(frame.kind == kind) & (frame.level == level)]
            assert sorted(cell["index"]) == list(range(40))
            assert table.loc[kind, level] == (cell.prediction == cell.label).mean()
    assert table["1"].max() <= 1 - 1 / 8 + 0.1


def test_the_table_of_a_model_is_the_same_at_any_batch_size(model: nn.Module, x: Tensor, y: Tensor) -> None:
    whole = accuracy_by_cell(model, x, y, attack_options=dict(OPTIONS))
    assert whole.equals(accuracy_by_cell(model, x, y, attack_options=dict(OPTIONS), batch_size=7))
    assert whole.equals(accuracy_table(predictions(model, x, y)))
    assert not whole.equals(accuracy_by_cell(model, 1 - x, y, attack_options=dict(OPTIONS)))


def test_progress_tells_every_image_once(model: nn.Module, x: Tensor, y: Tensor) -> None:
    told: list[int] = []
    predictions(model, x, y, size=16, progress=told.append)  # type: ignore[arg-type]
    assert told == [16, 16, 8]


def test_everything_is_left_as_it_was(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.train()
    before, state = x.clone(), torch.get_rng_state()
    predictions(model, x, y)
    assert model.training and torch.equal(before, x) and torch.equal(state, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_summary_names_the_worst() -> None:
    table = pd.DataFrame({"1": [0.75, 1.0], "5": [0.5, 0.25]}, index=["fog", "snow"])
    assert summary(table) == {
        "cells": {"fog": {"1": 0.75, "5": 0.5}, "snow": {"1": 1.0, "5": 0.25}},
        "mean_cell_accuracy": 0.625,
        "worst_cell": {"kind": "snow", "level": "5", "accuracy": 0.25},
    }


def test_a_file_holds_the_predictions(model: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    frame = predictions(model, x, y)
    file = write_cells(tmp_path, "some-run", frame)
    assert file == tmp_path / "cells" / "some-run.parquet" and list(file.parent.iterdir()) == [file]
    pd.testing.assert_frame_equal(pd.read_parquet(file), frame, check_dtype=False)
