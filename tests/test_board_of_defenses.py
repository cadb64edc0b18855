"""The board of defenses: no defense is left out, none is without its adaptive attack, and its tables are its runs'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_lite import registry
from robustbench_lite.leaderboard import verify
from robustbench_lite.perturbation import make_attack
from robustbench_lite.records import read_run
from robustbench_lite.sweep import Sweep, read_sweep, tabulate
from robustbench_lite.sweep.shown import to_markdown
from robustbench_lite.threat import Threat

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "leaderboards" / "defenses"
NAMES = ("digits", "mnist")
# Every table that a sweep of this repository made, beside the file that states it.
MADE = sorted(file.with_suffix("") for file in BOARD.parent.glob("*/*.toml") if file.with_suffix(".parquet").exists())
BOARDS = sorted({table.parent for table in MADE})


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeps name files from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=NAMES)
def sweep(request: pytest.FixtureRequest) -> Sweep:
    return read_sweep(BOARD / f"{request.param}.toml")


def test_every_defense_faces_every_attack(sweep: Sweep) -> None:
    alone = {entry.use for entry in sweep.defenses}
    missing = sorted(name for name in registry.builtins("defenses") if not any(name in use for use in alone))
    assert missing == [], f"to be added to {sweep.path}"
    assert () in alone, "the undefended network, which all are compared with"
    assert [entry.name for entry in sweep.attacks] == ["noise", "fgsm", "pgd", "auto", "transfer:pgd", "adaptive"]
    (surrogate,) = sweep.attacks[4].surrogates
    assert surrogate.seed not in (None, *sweep.seeds), "a network of its own"
    faced = {(cell.row["defense"], cell.row["defense_options"], cell.seed) for cell in sweep.cells}
    assert len(faced) == len(sweep.defenses) * len(sweep.seeds)


@pytest.mark.parametrize("name", sorted(registry.builtins("defenses")))
def test_the_adaptive_attack_of_each_defense_can_be_made(name: str) -> None:
    defense: Any = registry.load("defenses", name)
    attack = make_attack(defense.adaptive, defense.adaptive_options, Threat("linf", 0.1))
    assert attack.name == defense.adaptive
    assert all(getattr(attack, option) == value for option, value in defense.adaptive_options.items())
    stated = "adaptive" in (defense.__doc__ or "")
    assert stated == (defense.adaptive != "auto"), "an attack of its own has its reason in the docstring"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.name))
def test_every_number_follows_from_the_rows(board: Path) -> None:
    assert verify(board) == []


def test_there_are_tables() -> None:
    made = {f"{table.parent.name}/{table.name}" for table in MADE}
    assert {"defenses/digits", "distillation/mnist", "vat/mnist"} <= made


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made.parent.name}/{made.name}")
def test_the_table_follows_from_the_runs(made: Path) -> None:
    table = pd.read_parquet(made.with_name(f"{made.name}.parquet"))
    ids = sorted({run for runs in table["run_ids"] for run in runs})
    again = tabulate(read_run(made.parent / "runs" / f"{run}.parquet") for run in ids)
    columns = [column for column in table.columns if column not in ("run_ids", "seeds")]
    keys = ["dataset", "model", "defense", "defense_options", "norm", "attack"]
    one, other = (frame.sort_values(keys, ignore_index=True)[columns] for frame in (table, again))
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert made.with_name(f"{made.name}.md").read_text("utf-8") == to_markdown(table)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.name))
def test_no_run_is_there_that_no_table_names(board: Path) -> None:
    tables = [pd.read_parquet(made.with_name(f"{made.name}.parquet")) for made in MADE if made.parent == board]
    named = {run for table in tables for runs in table["run_ids"] for run in runs}
    assert {path.stem for path in (board / "runs").glob("*.parquet")} == named
