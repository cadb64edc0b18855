from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.cli.verify import verify
from robustbench_lite.errors import PluginError, RecordError, UserError
from robustbench_lite.examples import save_examples
from robustbench_lite.models import save_weights
from robustbench_lite.records import SCHEMA, Run, read_run, seal, write_run
from robustbench_lite.registry import load
from robustbench_lite.reverify import Reverification, reverify

EPS, CLASSES, SHAPE = 0.1, 4, (1, 6, 6)
FACTORY = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
"""


@dataclass
class Case:
    """A run on disk with its examples, and the network."""

    net: nn.Module
    run: Run
    folder: Path
    defenses: tuple[Any, ...] = ()

    @property
    def examples(self) -> Path:
        return self.folder / "runs" / "e.npz"

    def check(self, **changes: Any) -> Reverification:
        given = {"run": self.run, "examples_path": self.examples, "module": self.net, **changes}
        run, path, module = (given.pop(name) for name in ("run", "examples_path", "module"))
        return reverify(run, path, module, defenses=given.pop("defenses", self.defenses), **given)


def make_net(seed: int = 5) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net


def make_case(folder: Path, *, defenses: tuple[Any, ...] = (), **options: Any) -> Case:
    net = make_net()
    x = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::6] = (y[::6] + 1) % CLASSES
    options = {"attack": "pgd", "eps": EPS, "attack_options": {"steps": 5}, "name": "net.py:make", **options}
    result = rbl.evaluate(net, x, y, defenses=defenses, **options)
    (folder / "runs").mkdir()
    record = save_examples(folder / "runs" / "e.npz", result, x)
    run = seal(replace(result.run.specification, examples=record), result.run.table)
    path = write_run(folder, run)
    return Case(net, read_run(path), folder, defenses)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def success_row(case: Case) -> int:
    return int(np.flatnonzero(case.run.table["success"].to_numpy())[3])


def robust_row(case: Case) -> int:
    columns = (case.run.table[name].to_numpy() for name in ("attacked", "success"))
    attacked, success = columns
    return int(np.flatnonzero(attacked & ~success)[0])


def arrays_of(case: Case) -> dict[str, Any]:
    with np.load(case.examples) as saved:
        return {name: saved[name].copy() for name in saved.files}


def forge(case: Case, arrays: dict[str, Any] | None = None, rows: dict[int, dict[str, Any]] | None = None) -> Case:
    """The case with other images and other rows, sealed again, and the hash of the file made to fit."""
    if arrays is not None:
        np.savez(case.examples, **arrays)
    table = case.run.table.to_pylist()
    for number, changes in (rows or {}).items():
        table[number].update(changes)
    digest = hashlib.sha256(case.examples.read_bytes()).hexdigest()
    assert case.run.specification.examples is not None
    specification = replace(case.run.specification, examples=replace(case.run.specification.examples, sha256=digest))
    run = replace(seal(specification, pa.Table.from_pylist(table, schema=SCHEMA)), path=case.run.path)
    return dataclasses.replace(case, run=run)


def faults(found: Reverification, word: str) -> list[str]:
    return [fault for fault in found.faults if word in fault]


@pytest.mark.filterwarnings("ignore:shattered gradient", "ignore:other attacks")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "l2", "eps": 0.5},
        {"attack": "fgsm", "attack_options": {}},
        {"precision": "bf16"},
        {"eps": torch.linspace(0.01, 0.2, 60)},
    ],
)
def test_an_honest_run_is_confirmed_row_by_row(tmp_path: Path, options: dict[str, Any]) -> None:
    found = make_case(tmp_path, **options).check()
    assert found.faults == ()
    assert found.rows == found.checked == found.clean == found.adversarial == found.success == 60
    assert found.confirmed == found.successes > 0
    assert not found.randomized


@pytest.mark.parametrize("target", ["random", "least-likely", "all", 2])
def test_a_targeted_run_is_held_to_its_targets(tmp_path: Path, target: str | int) -> None:
    case = make_case(tmp_path, target=target, eps=0.3)
    found = case.check()
    assert found.faults == ()
    assert found.confirmed == found.successes > 0
    row = success_row(case)
    entry = case.run.table.to_pylist()[row]
    other = next(c for c in range(CLASSES) if c not in (entry["label"], entry["target"]))
    assert faults(forge(case, rows={row: {"target": other}}).check(), "a success that is none")


def test_a_defended_run_needs_its_defense(tmp_path: Path) -> None:
    case = make_case(tmp_path, defenses=(load("defenses", "bit-depth")(bits=2),))
    assert case.check().faults == ()
    assert faults(case.check(defenses=()), "the run was made with bit-depth, this pass with none")
    assert faults(case.check(defenses=(load("defenses", "bit-depth")(bits=3),)), "options of the defenses")


def test_one_pixel_beyond_eps_is_found_even_where_all_hashes_were_made_to_fit(case: Case) -> None:
    row, arrays = success_row(case), arrays_of(case)
    x, moved = arrays["images"][row], arrays["adversarial"][row]
    pixel = np.unravel_index(np.argmin(np.abs(x - 0.5)), x.shape)
    moved[pixel] = x[pixel] + np.float32(EPS + 1e-4)
    delta = np.abs(moved.astype(float) - x)
    change = {
        "adversarial_hash": hashlib.sha256(moved.tobytes()).hexdigest(),
        "distance_linf": EPS,
        "distance_l2": float(np.sqrt((delta**2).sum())),
        "distance_l1": float(delta.sum()),
        "distance_l0": int((delta > 0).sum()),
    }
    forged = forge(case, arrays, {row: change})
    found = forged.check()
    assert found.faults[0].startswith("the adversarial image is beyond eps in linf (by up to 0.0001")
    assert f"index {row}" in found.faults[0]
    assert faults(found, "distance_linf is not that of the images")
    assert not faults(found, "SHA-256")
    assert found.confirmed == found.successes - 1


def test_a_pixel_outside_the_box_or_none_at_all_is_found(case: Case) -> None:
    for value in (1.01, -0.01, np.nan):
        arrays = arrays_of(case)
        arrays["adversarial"][success_row(case)].flat[0] = value
        changed = forge(case, arrays).check()
        assert faults(changed, "the adversarial image leaves the box: 1 row")


def test_a_swapped_row_is_found(case: Case) -> None:
    arrays = arrays_of(case)
    one, two = np.flatnonzero(arrays["success"])[:2]
    for name in ("images", "adversarial"):
        arrays[name][[one, two]] = arrays[name][[two, one]]
    found = forge(case, arrays).check()
    assert faults(found, f"the clean image is not the recorded one (SHA-256): 2 rows, index {one}, {two}")
    assert faults(found, "the adversarial image is not the recorded one (SHA-256): 2 rows")


def test_rows_in_another_order_are_matched_by_index(case: Case) -> None:
    order = np.random.default_rng(0).permutation(60)
    arrays = {n: a if n == "run_id" else a[order] for n, a in arrays_of(case).items()}
    assert forge(case, arrays).check().faults == ()


def test_rows_that_are_missing_foreign_or_twice_are_told(case: Case) -> None:
    whole = arrays_of(case)
    kept = {n: a if n == "run_id" else a[:50] for n, a in whole.items()}
    found = forge(case, kept).check()
    assert found.checked == 50
    assert faults(found, "not among the examples: 10 rows, index 50, 51, 52, ...")
    twice = {**whole, "index": np.where(whole["index"] == 59, 0, whole["index"])}
    assert faults(forge(case, twice).check(), "the examples hold an index twice")
    foreign = {**whole, "index": np.where(whole["index"] == 59, 777, whole["index"])}
    assert faults(forge(case, foreign).check(), "examples that are no row of the run: 1 row, index 777")
    none = {**whole, "index": whole["index"] + 1000}
    assert forge(case, none).check().checked == 0
    assert forge(case, none).check().faults


def test_another_network_is_found_by_its_hash_and_its_answers(case: Case) -> None:
    found = case.check(module=make_net(6))
    assert found.faults[0].startswith("the weights hash to ")
    assert faults(found, "the clean prediction is not the recorded one")
    assert faults(found, "the adversarial prediction is not the recorded one")
    nudged = copy.deepcopy(case.net)
    next(nudged.parameters()).data[0, 0] += 1e-6
    assert [f.split(" hash")[0] for f in case.check(module=nudged).faults] == ["the weights"]


def test_a_success_flag_that_was_flipped_is_found_either_way(case: Case) -> None:
    whole = arrays_of(case)
    for row, value, word in (
        (robust_row(case), True, "a success that is none"),
        (success_row(case), False, "no success recorded, but the final image is one"),
    ):
        arrays = copy.deepcopy(whole)
        arrays["success"][row] = value
        assert faults(forge(case, arrays).check(), f"the examples' success is not that of the run: 1 row, index {row}")
        change = {"success": value, "step": 1 if value else None, "restart": 0 if value else None}
        found = forge(case, arrays, {row: change}).check()
        assert faults(found, f"{word}: 1 row, index {row}")


def test_predictions_that_were_changed_are_found(case: Case) -> None:
    row, whole = success_row(case), arrays_of(case)
    for name, word in (("prediction", "clean"), ("adversarial_prediction", "adversarial")):
        arrays = copy.deepcopy(whole)
        other = int(3 - arrays[name][row]) if 3 - arrays[name][row] != arrays[name][row] else 0
        arrays[name][row] = other
        found = forge(case, arrays, {row: {name: other}}).check()
        assert faults(found, f"the {word} prediction is not the recorded one: 1 row, index {row}")


def test_rows_changed_without_sealing_and_a_changed_file_are_found(case: Case) -> None:
    rows = case.run.table.to_pylist()
    rows[0]["forwards"] += 1
    loose = replace(case.run, table=pa.Table.from_pylist(rows, schema=SCHEMA))
    assert faults(case.check(run=loose), "the run: the rows are not those that were hashed")
    np.savez(case.examples, **arrays_of(case))
    assert faults(case.check(), "the file e.npz is not the one the run names (SHA-256)")
    arrays = arrays_of(case)
    arrays["run_id"] = np.array("another")
    assert faults(forge(case, arrays).check(), "the examples are of run 'another'")


def test_an_image_that_was_not_attacked_must_be_the_clean_one(case: Case) -> None:
    arrays = arrays_of(case)
    row = int(np.flatnonzero(~case.run.table["attacked"].to_numpy())[0])
    arrays["adversarial"][row].flat[0] = 0.5
    assert faults(forge(case, arrays).check(), f"not attacked, but the image was changed: 1 row, index {row}")


class Tied(nn.Module):
    """A network whose two best classes are a hair apart."""

    def __init__(self, hair: float) -> None:
        super().__init__()
        self.hair = hair

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.flatten(1).mean(1)
        return torch.stack([level, level + self.hair, -5 - level, -5 - level], 1)


def test_a_tie_within_rounding_is_counted_apart_and_more_is_a_fault(tmp_path: Path) -> None:
    x = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    result = rbl.evaluate(Tied(1e-6).eval(), x, torch.full((10,), 2), attack="noise")
    record = save_examples(tmp_path / "e.npz", result, x)
    run = seal(replace(result.run.specification, examples=record), result.run.table)
    near = reverify(run, tmp_path / "e.npz", Tied(-1e-6))
    assert near.faults == ()
    assert near.near_ties == 10
    assert near.clean == 0
    far = reverify(run, tmp_path / "e.npz", Tied(-1e-2))
    assert faults(far, "the clean prediction is not the recorded one: 10 rows")


def test_a_randomised_network_is_judged_by_fresh_draws_without_demanding_equality(tmp_path: Path) -> None:
    case = make_case(tmp_path, defenses=(load("defenses", "random-noise")(sigma=0.3),), votes=2, eot=1)
    found = case.check()
    assert found.randomized
    assert found.draws == 64
    assert found.faults == ()
    assert 30 < found.clean <= 60
    assert 0 < found.confirmed <= found.successes
    row, arrays = success_row(case), arrays_of(case)
    arrays["adversarial"][row] = 1 - arrays["images"][row]
    assert faults(forge(case, arrays).check(), "a success outside ball or box: 1 row")


def test_network_mode_and_random_state_are_left_as_found(tmp_path: Path) -> None:
    case = make_case(tmp_path, defenses=(load("defenses", "random-noise")(sigma=0.1),), votes=2, eot=1)
    case.net.train()
    states = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"], random.getstate()
    case.check(batch_size=7)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1])
    assert random.getstate() == states[2]
    assert case.net.training
    assert all(p.requires_grad for p in case.net.parameters())


def test_a_network_of_another_kind_is_told_in_one_line(case: Case) -> None:
    with pytest.raises(PluginError, match=r"^--model: the network"):
        case.check(module=nn.Linear(7, 4))
    with pytest.raises(UserError, match="expected logits of shape"):
        case.check(module=nn.Flatten(0))


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def typed(case: Case) -> tuple[Case, dict[str, Any]]:
    (case.folder / "net.py").write_text(FACTORY)
    save_weights(case.net, case.folder / "net.safetensors")
    said = {"model": f"{case.folder / 'net.py'}:make", "weights": str(case.folder / "net.safetensors")}
    return case, {**said, "leaderboard": case.folder}


def test_the_command_confirms_by_id_and_by_path(
    typed: tuple[Case, dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, said = typed
    assert case.run.path is not None
    for name, leaderboard in ((case.run.path.stem, case.folder), (str(case.run.path), Path("elsewhere"))):
        verify(name, **{**said, "leaderboard": leaderboard})
        out = capsys.readouterr().out
        assert "60 of 60 confirmed" in out
        assert "all confirmed" in out
    moved = case.folder / "here"
    moved.mkdir()
    case.examples.rename(moved / "e.npz")
    with pytest.raises(UserError, match=r"--examples: e\.npz is not in"):
        verify(case.run.path.stem, **said)
    verify(case.run.path.stem, **said, examples=moved / "e.npz")
    monkeypatch.chdir(moved)
    verify(case.run.path.stem, **said)


def test_the_command_refutes_in_one_line(
    typed: tuple[Case, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    case, said = typed
    save_weights(make_net(6), case.folder / "net.safetensors")
    assert case.run.path is not None
    with pytest.raises(RecordError, match="is refuted: the weights hash to") as caught:
        verify(case.run.path.stem, **said)
    assert "\n" not in str(caught.value)
    assert "refuted: the clean prediction is not the recorded one" in capsys.readouterr().out


def test_the_command_tells_what_it_does_not_find(typed: tuple[Case, dict[str, Any]], tmp_path: Path) -> None:
    case, said = typed
    assert case.run.path is not None
    run_id = case.run.path.stem
    with pytest.raises(UserError, match=rf"RUN: unknown name .* did you mean {run_id}"):
        verify(run_id[:-3], **said)
    with pytest.raises(UserError, match=r"RUN: no such run file 'x\.parquet'"):
        verify("x.parquet", **said)
    with pytest.raises(UserError, match="RUN: no runs in"):
        verify("x", **{**said, "leaderboard": tmp_path / "none"})
    with pytest.raises(UserError, match=r"--examples: no such file 'none\.npz'"):
        verify(run_id, **said, examples=Path("none.npz"))
    case.examples.write_bytes(case.examples.read_bytes()[:500])
    with pytest.raises(RecordError, match=r"e\.npz: corrupt"):
        verify(run_id, **said)
    bare = seal(replace(case.run.specification, examples=None), case.run.table)
    path = write_run(tmp_path / "bare", bare)
    with pytest.raises(UserError, match="the run names no file of examples"):
        verify(str(path), **said)
