"""`rbl curve`: a picture of any runs, and a table of those minimal ones that can be compared."""

from __future__ import annotations

from pathlib import Path

from robustbench_lite.optimality import compare
from robustbench_lite.records.run import read_run

from .harness import Rbl


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "lb" / "runs").glob("*.parquet"))


def test_minimal_runs_stand_in_a_table_from_the_nearest(evaluate: Rbl, rbl: Rbl, folder: Path) -> None:
    for attack in ("deepfool", "ddn"):
        assert evaluate("--attack", attack, "--norm", "l2").code == 0
    assert evaluate("--attack", "fgsm").code == 0
    files = _runs(folder)
    said = rbl("curve", *files, "--figure", "near.png")
    assert said.code == 0
    assert (folder / "near.png").read_bytes().startswith(b"\x89PNG")
    assert said.err == "near.png: 3 runs\n"
    head, columns, _, *rows = said.out.splitlines()
    assert head.startswith("nets.py:make on ") and head.endswith(", defense none, l2, 24 images")
    assert columns.split() == ["attack", "clean", "median", "mean", "found", "forwards", "backwards", "optimality"]
    pair = [run for run in map(read_run, files) if run.specification.attack.minimal]
    standings = {run.specification.attack.name: s for run, s in zip(pair, compare(pair), strict=True)}
    ranked = sorted(standings, key=lambda name: -(standings[name].optimality or 0))
    assert [row.split()[0] for row in rows[:2]] == ranked
    for row in rows[:2]:
        name, clean, median, mean, found, forwards, backwards, share = row.split()
        s = standings[name]
        assert (clean, found) == ("83.3", "100.0")
        assert (forwards, backwards) == (f"{s.forwards:.1f}", f"{s.backwards:.1f}")
        assert (median, mean) == (f"{s.median_distance:.4g}", f"{s.mean_distance:.4g}")
        assert share == f"{s.optimality:.3f}"
    assert "optimality: 1 as near as" in " ".join(rows[2:])
    # The order in which they are given does not matter.
    assert rbl("curve", *files[::-1], "--figure", "again.png").out == said.out


def test_why_two_do_not_stand_in_a_table_is_one_line(evaluate: Rbl, rbl: Rbl, folder: Path) -> None:
    for samples in ("24", "12"):
        assert evaluate("--attack", "deepfool", "--norm", "l2", "--samples", samples).code == 0
    said = rbl("curve", *_runs(folder))
    assert (said.code, said.out) == (0, "")
    why, written = said.err.splitlines()
    assert "optimality compares runs of the same samples: " in why
    assert written == "curve.png: 2 runs"


def test_runs_that_ask_for_no_comparison_are_told_nothing(evaluate: Rbl, rbl: Rbl, folder: Path) -> None:
    assert evaluate("--attack", "deepfool", "--norm", "l2").code == 0
    assert evaluate("--attack", "deepfool").code == 0
    said = rbl("curve", *_runs(folder))
    assert (said.code, said.out, said.err) == (0, "", "curve.png: 2 runs\n")
