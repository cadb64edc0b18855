"""What this repository stands behind: its boards follow from their run files, and the README shows no other numbers."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from robustbench_lite.leaderboard import FILE, verify
from robustbench_lite.registry import builtins

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "leaderboards"
RUNS = sorted((BOARD / "runs").glob("*.parquet"))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that makes the boards."""
    spec = importlib.util.spec_from_file_location("make_leaderboards", ROOT / "scripts" / "leaderboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def board() -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(BOARD / FILE).to_pandas()
    return frame.set_index("run_id").sort_index()


def test_every_number_follows_from_the_rows() -> None:
    assert verify(BOARD) == []


def test_every_run_that_the_script_makes_is_there(maker: ModuleType) -> None:
    assert len(RUNS) == len(list(maker.runs(Path("my_attack.py"))))


def test_duckdb_finds_the_same_numbers(board: pd.DataFrame) -> None:
    """Anybody's query over the run files, with nothing of ours."""
    query = duckdb.sql(
        f"""
        select regexp_extract(filename, '([^/]*)[.]parquet$', 1) as run_id,
               count(*) as n,
               avg(correct::int) as clean_accuracy,
               avg((correct and not success)::int) as robust_accuracy,
               sum(forwards) as forwards,
               sum(backwards) as backwards
        from read_parquet('{BOARD}/runs/*.parquet', filename = true) group by 1 order by 1
        """
    )
    assert query is not None
    rows = query.df().set_index("run_id")
    assert list(rows.index) == list(board.index)
    for column in ("n", "forwards", "backwards"):
        assert (rows[column].astype("int64") == board[column]).all()
    for column in ("clean_accuracy", "robust_accuracy"):
        pd.testing.assert_series_equal(rows[column], board[column], check_exact=False, rtol=1e-12)


def test_pandas_finds_the_same_numbers(board: pd.DataFrame) -> None:
    for path in RUNS:
        rows = pd.read_parquet(path)
        line = board.loc[path.stem]
        assert line["robust_accuracy"] == pytest.approx((rows["correct"] & ~rows["success"]).mean(), rel=1e-12)
        assert line["clean_accuracy"] == pytest.approx((rows["label"] == rows["prediction"]).mean(), rel=1e-12)
        inside = rows.loc[rows["success"], f"distance_{line['norm']}"]
        assert (inside <= line["eps"]).all()


def test_noise_is_no_attack(board: pd.DataFrame) -> None:
    """The control: where PGD breaks a network, noise of the same size does not."""
    same = ["model", "defense", "norm", "eps"]
    by = board.pivot_table(index=same, columns="attack", values="robust_accuracy", aggfunc="first")
    assert (by["noise"] >= by["fgsm"]).all()
    assert (by["fgsm"] >= by["pgd"]).all()


def test_readme_shows_the_board_and_the_registry(maker: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert maker.filled(readme) == readme, "make leaderboards fills the README's tables"
    for kind in ("attacks", "defenses"):
        for name in builtins(kind):
            assert f"`{name}`" in readme


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
