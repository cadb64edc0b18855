"""What `rbl evaluate` adds: accuracy by corruption and severity, and what a photograph undoes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustbench_lite.print_photo import TRANSFORMATIONS

from .harness import Rbl, rows

CORRUPTIONS = (
    *("--attack", "corruptions", "--attack-option", "kinds=gaussian-noise,contrast"),
    *("--attack-option", "severities=1,5"),
)


def test_corruptions_come_with_a_table_and_every_prediction(evaluate: Rbl) -> None:
    r = evaluate(*CORRUPTIONS, "--json").json
    frame = pd.read_parquet(r["cells_file"])
    assert r["cells_file"] == f"lb/cells/{r['run_id']}.parquet" and len(frame) == 24 * 4
    values = []
    for kind, levels in r["cells"].items():
        for level, accuracy in levels.items():
            cell = frame[(frame.kind == kind) & (frame.level == level)]
            assert accuracy == (cell.prediction == cell.label).mean()
            values.append(accuracy)
    assert list(r["cells"]) == ["gaussian-noise", "contrast"] and len(values) == 4
    assert r["mean_cell_accuracy"] == np.mean(values) and r["worst_cell"]["accuracy"] == min(values)
    # An image is robust that is right as it is and in every cell.
    right = (frame.prediction == frame.label).groupby(frame["index"]).all()
    table = rows(r["run_file"])
    assert r["robust_accuracy"] == np.mean([row["correct"] and right[row["index"]] for row in table])


def test_the_table_is_told_to_a_person(evaluate: Rbl) -> None:
    r = evaluate(*CORRUPTIONS, "--json").json
    said = evaluate(*CORRUPTIONS)
    assert said.code == 0 and said.remarks == ""
    assert "attack corruptions, own limits, 24 images" in said.out and r["norm"] == "own limits"
    lines = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line.startswith("  ")}
    assert lines["accuracy"] == ["in", "%", "1", "5", "mean"]
    for kind, levels in r["cells"].items():
        shown = [*levels.values(), np.mean(list(levels.values()))]
        assert lines[kind] == [f"{100 * value:.1f}" for value in shown]
    assert lines["mean"][-1] == f"{100 * r['mean_cell_accuracy']:.1f}"
    assert lines["worst:"][:2] == [r["worst_cell"]["kind"], f"{r['worst_cell']['level']},"]


def test_a_shard_has_its_own_predictions(evaluate: Rbl) -> None:
    r = evaluate(*CORRUPTIONS, "--shard", "1/2", "--json").json
    assert r["cells_file"].endswith(".shard-1-of-2.parquet")
    assert len(pd.read_parquet(r["cells_file"])) == 12 * 4


def test_print_photo_says_what_ceases_to_fool(evaluate: Rbl) -> None:
    r = evaluate("--eps", "0.05", "--steps", "5", "--print-photo", "--json").json
    told = r["print_photo"]
    assert list(told) == list(TRANSFORMATIONS)
    fooled = sum(row["success"] for row in rows(r["run_file"]))
    assert fooled > 3 and {row["fooled"] for row in told.values()} == {fooled}
    for row in told.values():
        assert 0 <= row["destroyed"] <= 1 and 0 <= row["clean"] <= 1
        assert round(row["destroyed"] * fooled, 9) % 1 == 0
    said = evaluate("--eps", "0.05", "--steps", "5", "--print-photo")
    assert f"print-photo: {fooled} images that fool" in said.out
    for name, row in told.items():
        line = next(line for line in said.out.splitlines() if line.startswith(f"  {name} "))
        assert line.split()[-2:] == [f"{100 * row[key]:.1f}" for key in ("destroyed", "clean")]


def test_print_photo_where_nothing_fools(evaluate: Rbl) -> None:
    r = evaluate("--eps", "0", "--steps", "1", "--print-photo", "--json").json
    assert {row["destroyed"] for row in r["print_photo"].values()} == {None}
    said = evaluate("--eps", "0", "--steps", "1", "--print-photo")
    assert "print-photo: 0 images that fool" in said.out and said.code == 0
    assert evaluate("--eps", "0", "--steps", "1", "--json").json.get("print_photo") is None
