"""What docs/features.md says of MNIST is what the committed rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BOARD = ROOT / "leaderboards" / "features"
PAGE = (ROOT / "docs" / "features.md").read_text("utf-8")


@pytest.mark.parametrize("file", sorted(BOARD.glob("*.parquet")), ids=lambda file: file.stem)
def test_every_number_of_a_report_follows_from_its_rows(file: Path) -> None:
    rows = pd.read_parquet(file)
    for _, own in rows.groupby("set"):
        nets = own[own["learner"] == "network"]
        linear = own.loc[own["learner"] != "network", "accuracy"].iloc[0]
        numbers = [nets["accuracy"].mean(), nets["robust_accuracy"].mean(), nets["next_class"].mean(), linear]
        shown = [f"{100 * value:.1f}" for value in numbers]
        symbol, images = own["symbol"].iloc[0], f"{own['images'].iloc[0]:,}"
        lines = [line.split() for line in PAGE.splitlines() if line.split()[:2] == [symbol, images]]
        assert any([cells[2], *cells[4:]] == shown for cells in lines), (symbol, shown, lines)


def test_mnist_d_rand_and_d_det_teach_more_than_chance() -> None:
    """Each of three seeds, on all 10,000 real test images."""
    rows = pd.read_parquet(BOARD / "mnist.parquet").query("learner == 'network'")
    said = json.loads(pq.read_schema(BOARD / "mnist.parquet").metadata[b"robustbench_lite"])
    assert said["dataset"]["test_images"] == 10_000
    chance = 1135 / 10_000
    for name in ("random", "shifted"):
        own = rows[rows["set"] == name]
        assert sorted(own["seed"]) == [1, 2, 3]
        assert (own["accuracy"] > chance + 0.03).all()
    assert (rows["chance"] == chance).all()
