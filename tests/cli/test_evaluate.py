"""`rbl evaluate` doing what it is for: numbers that follow from the rows, files that hold what they promise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_lite.defense import wrap_all
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.leaderboard import verify
from robustbench_lite.records.check import check_run
from robustbench_lite.records.run import read_run

from .harness import Rbl, listing, network, rows

ASKED = ("run_id", "run_file", "clean_accuracy", "robust_accuracy", "n", "forwards", "backwards", "seconds")
QUICK = ("--eps", "0.02", "--steps", "3")


def test_json_is_one_object_and_says_what_the_rows_say(evaluate: Rbl) -> None:
    said = evaluate(*QUICK, "--json")
    r = said.json
    assert set(ASKED) <= r.keys() and said.remarks == ""
    table = rows(r["run_file"])
    assert Path(r["run_file"]) == Path("lb", "runs", f"{r['run_id']}.parquet")
    assert r["n"] == len(table) == 24
    assert r["clean_accuracy"] == sum(row["correct"] for row in table) / 24 == 20 / 24
    robust = sum(row["correct"] and not row["success"] for row in table)
    assert 0 < robust < 20, "a test of an attack that does nothing, or all"
    assert r["robust_accuracy"] == robust / 24
    for name in ("forwards", "backwards"):
        assert r[name] == sum(row[name] for row in table)
    assert r["seconds"] >= 0 and r["status"] == "complete"
    assert check_run(read_run(r["run_file"])) == [] == verify("lb")


def test_what_is_told_to_a_person_is_the_same(evaluate: Rbl) -> None:
    r = evaluate(*QUICK, "--json").json
    said = evaluate(*QUICK)
    assert (said.code, said.remarks) == (0, "")
    assert "nets.py:make on npz:ok.npz, defense none, attack pgd, linf 0.02, 24 images" in said.out
    assert f"clean accuracy   {100 * r['clean_accuracy']:.1f} %" in said.out
    assert f"robust accuracy  {100 * r['robust_accuracy']:.1f} %" in said.out
    assert "reliable" in said.out and r["run_file"] in said.out


def test_the_same_command_again_reproduces_and_leaves_the_file(evaluate: Rbl) -> None:
    first = evaluate(*QUICK, "--json").json
    file = Path(first["run_file"])
    content, files = file.read_bytes(), listing(Path("lb"))
    said = evaluate(*QUICK)
    assert "the same verdicts as the run that was there" in said.out
    again = evaluate(*QUICK, "--no-resume", "--batch-size", "5", "--json").json
    assert (again["run_id"], again["robust_accuracy"]) == (first["run_id"], first["robust_accuracy"])
    assert file.read_bytes() == content and listing(Path("lb")) == files


def test_other_commands_are_other_runs(evaluate: Rbl) -> None:
    commands = [QUICK, (*QUICK, "--seed", "1"), (*QUICK, "--norm", "l2"), (*QUICK, "--loss", "margin")]
    commands += [(*QUICK, "--attack-option", "momentum=0.9"), (*QUICK, "--samples", "8"), ("--attack", "fgsm")]
    ids = {evaluate(*command, "--json").json["run_id"] for command in commands}
    assert len(ids) == len(commands)


def test_saved_examples_are_what_was_judged(evaluate: Rbl) -> None:
    r = evaluate(*QUICK, "--save-examples", "out.npz", "--json").json
    data, original = np.load("out.npz"), np.load("ok.npz")
    assert {name: (data[name].dtype.name, data[name].shape) for name in data.files if name != "run_id"} == {
        "images": ("float32", (24, 1, 8, 8)),
        "adversarial": ("float32", (24, 1, 8, 8)),
        "labels": ("int64", (24,)),
        "prediction": ("int64", (24,)),
        "adversarial_prediction": ("int64", (24,)),
        "success": ("bool", (24,)),
        "index": ("int64", (24,)),
    }
    assert str(data["run_id"]) == r["run_id"]
    assert np.array_equal(data["images"], original["images"][:, None].astype(np.float32) / np.float32(255))
    assert np.array_equal(data["labels"], original["labels"])
    logits = network()(torch.from_numpy(data["adversarial"]))
    assert np.array_equal(logits.argmax(1).numpy(), data["adversarial_prediction"])
    correct = data["prediction"] == data["labels"]
    assert np.array_equal(data["success"], correct & (data["adversarial_prediction"] != data["labels"]))
    assert r["robust_accuracy"] == np.mean(correct & ~data["success"])
    assert np.abs(data["adversarial"].astype(float) - data["images"]).max() <= 0.02
    assert data["adversarial"].min() >= 0 and data["adversarial"].max() <= 1


def test_a_figure_is_a_picture(evaluate: Rbl) -> None:
    from PIL import Image

    said = evaluate(*QUICK, "--figure", "out.png")
    assert said.code == 0 and "figure           out.png" in said.out
    with Image.open("out.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 100


def test_three_defenses_stack_with_options_for_each(evaluate: Rbl, own_packages: Path) -> None:
    r = evaluate(
        *(*QUICK, "--json", "--samples", "8"),
        *("--defense", "bit-depth", "--defense", "random-noise", "--defense", "defenses/mine.py:Dim"),
        *("--defense-option", "bits=3", "--defense-option", "random-noise.sigma=0.05", "--defense-option", "by=0.9"),
    )
    recorded = read_run(r.json["run_file"]).specification.defenses
    assert [(d.name, d.options) for d in recorded] == [
        ("bit-depth", {"bits": 3}),
        ("random-noise", {"sigma": 0.05}),
        ("dim", {"by": 0.9}),
    ]


def test_defenses_stand_in_the_order_given(evaluate: Rbl) -> None:
    r = evaluate(*QUICK, "--defense", "bit-depth", "--defense-option", "bits=1", "--save-examples", "o.npz", "--json")
    data = np.load("o.npz")
    defended = wrap_all(network(), [BitDepth(bits=1)])
    predicted = defended(torch.from_numpy(data["adversarial"])).argmax(1).numpy()
    assert np.array_equal(predicted, data["adversarial_prediction"])
    assert not np.array_equal(network()(torch.from_numpy(data["images"])).argmax(1).numpy(), data["prediction"])
    assert "bit-depth" in r.json["defense"]


DEFENSES = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

import robustbench_lite as rbl
from beside import FACTOR


@dataclass(frozen=True)
class Dim(rbl.InferenceDefense):
    name: ClassVar[str] = "dim"
    summary: ClassVar[str] = "makes images darker"
    source: ClassVar[str] = "none"
    by: float = 0.5

    def transform(self, x):
        return x * self.by * FACTOR


@dataclass(frozen=True)
class Liar(rbl.InferenceDefense):
    """It rounds, and says that its gradient is that of rounding."""

    name: ClassVar[str] = "liar"
    summary: ClassVar[str] = "rounds"
    source: ClassVar[str] = "none"
    differentiable: ClassVar[bool] = True

    def transform(self, x):
        return (x * 3).round() / 3


@dataclass(frozen=True)
class Throws(Dim):
    name: ClassVar[str] = "throws"

    def transform(self, x):
        raise ArithmeticError("in the defense")
'''

ATTACK = """
from dataclasses import dataclass
from typing import ClassVar

import robustbench_lite as rbl
from attacks.helper import SIGN


@dataclass(frozen=True)
class Brighten(rbl.Attack):
    name: ClassVar[str] = "brighten"
    summary: ClassVar[str] = "every pixel as far up as it goes"
    source: ClassVar[str] = "none"
    access: ClassVar[str] = "score"
    peek: bool = False

    @property
    def length(self):
        return 1

    def start(self, query, batch):
        return rbl.State(batch.ball.x.clone())

    def step(self, query, batch, state):
        if self.peek:
            query.gradient(state.candidate, rbl.get_loss("ce"))
        return rbl.State(batch.ball.project(batch.ball.x + SIGN))
"""


@pytest.fixture
def own_packages(folder: Path) -> Path:
    """A user's repository that has packages attacks and defenses of its own."""
    for name in ("attacks", "defenses"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    (folder / "attacks" / "helper.py").write_text("SIGN = 1.0\n")
    (folder / "attacks" / "mine.py").write_text(ATTACK)
    (folder / "defenses" / "mine.py").write_text(DEFENSES)
    (folder / "defenses" / "beside.py").write_text("FACTOR = 1.0\n")
    (folder / "brighten.py").write_text(ATTACK)
    (folder / "beside.py").write_text("FACTOR = 1.0\n")
    return folder


def test_own_attack_and_defense_beside_folders_of_the_same_names(evaluate: Rbl, own_packages: Path) -> None:
    r = evaluate(
        *("--attack", "brighten.py:Brighten", "--defense", "defenses/mine.py:Dim", "--defense-option", "by=0.9"),
        *("--eps", "0.1", "--json", "--save-examples", "o.npz"),
    ).json
    assert (r["run_id"].count("brighten"), r["run_id"].count("dim")) == (1, 1)
    data = np.load("o.npz")
    attacked = data["prediction"] == data["labels"]
    brightest = np.minimum(data["images"] + np.float32(0.1), 1)
    assert np.allclose(data["adversarial"][attacked], brightest[attacked], atol=1e-6)
    recorded = read_run(r["run_file"]).specification
    assert recorded.defenses[0].options == {"by": 0.9}
    assert recorded.defenses[0].source_sha256 and recorded.attack.source_sha256


def test_an_attack_that_peeks_is_stopped(evaluate: Rbl, own_packages: Path) -> None:
    error = evaluate("--attack", "brighten.py:Brighten", "--attack-option", "peek=yes").error
    assert "brighten" in error and "score" in error


def test_a_defense_that_hides_its_gradient_is_caught(evaluate: Rbl, own_packages: Path) -> None:
    said = evaluate(*QUICK, "--defense", "defenses/mine.py:Liar")
    assert said.code == 0
    assert said.remarks.startswith("warning: the gradient")
    assert "BPDA: a gradient straight through round" in said.err
    assert "verdict          unreliable: the gradient" in said.out
    r = evaluate(*QUICK, "--defense", "defenses/mine.py:Liar", "--json").json
    assert r["verdict"].startswith("unreliable: the gradient") and len(r["warnings"]) >= 2


def test_a_defense_that_raises_shows_its_own_traceback(
    evaluate: Rbl, own_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBL_DEBUG", "1")
    said = evaluate("--defense", "defenses/mine.py:Throws")
    assert 'defenses/mine.py", line' in said.err
    assert "ArithmeticError: in the defense" in said.last_line


def test_probabilities_are_warned_of(evaluate: Rbl) -> None:
    said = evaluate(*QUICK, "--model", "nets.py:softmax")
    assert said.code == 0 and said.remarks.startswith("warning: softmax seen")
    assert said.remarks.count("\n") == 1
    assert "reliable, 1 warning" in said.out


def test_a_network_in_training_mode_just_works(evaluate: Rbl) -> None:
    plain, training = (
        evaluate(*QUICK, "--model", f"nets.py:{name}", "--json").json for name in ("make", "in_training_mode")
    )
    for name in ("clean_accuracy", "robust_accuracy", "forwards", "backwards"):
        assert training[name] == plain[name]
    assert training["warnings"] == []


@pytest.mark.parametrize("target", ["next", "random", "least-likely", "all", "2"])
def test_targets(target: str, evaluate: Rbl) -> None:
    r = evaluate("--eps", "0.1", "--steps", "3", "--target", target, "--json").json
    assert r["target"] == target
    hit = [row for row in rows(r["run_file"]) if row["success"]]
    assert hit and all(row["adversarial_prediction"] != row["label"] for row in hit)
    if target == "next":
        assert all(row["target"] == (row["label"] + 1) % 4 == row["adversarial_prediction"] for row in hit)
    if target == "2":
        assert {row["adversarial_prediction"] for row in hit} == {2}


def test_precision_and_determinism_are_recorded(evaluate: Rbl) -> None:
    r = evaluate(*QUICK, "--precision", "bf16", "--deterministic", "--json").json
    specification = read_run(r["run_file"]).specification
    assert (specification.precision, specification.deterministic) == ("bf16", True)


def _verdicts(file: str | Path) -> list[tuple[object, ...]]:
    return [(row["index"], row["prediction"], row["success"], row["step"], row["label"]) for row in rows(file)]


def test_shards_in_three_folders_merge_to_the_whole(evaluate: Rbl, rbl: Rbl) -> None:
    whole = evaluate(*QUICK, "--leaderboard", "whole", "--json").json
    for part in (1, 2, 3):
        said = evaluate(*QUICK, "--shard", f"{part}/3", "--leaderboard", f"lb{part}")
        assert said.code == 0 and f"{part} of 3, 8 of 24 images" in said.out
    r = evaluate(*QUICK, "--shard", "1/3", "--leaderboard", "lb1", "--json").json
    assert (r["status"], r["n"], r["robust_accuracy"]) == ("shard", 8, None)
    said = rbl("leaderboard", "merge", "lb2", "--leaderboard", "lb1")
    assert said.code == 0 and "missing 3" in said.err
    said = rbl("leaderboard", "merge", "lb3", "--leaderboard", "lb1")
    assert (said.code, said.remarks) == (0, "")
    assert listing(Path("lb1")) == {"leaderboard.parquet", f"runs/{whole['run_id']}.parquet"}
    assert _verdicts(f"lb1/runs/{whole['run_id']}.parquet") == _verdicts(whole["run_file"])
    assert verify("lb1") == []


def test_the_last_shard_in_one_folder_shows_the_whole(evaluate: Rbl) -> None:
    whole = evaluate(*QUICK, "--leaderboard", "whole", "--json").json
    for part in (3, 1):
        evaluate(*QUICK, "--shard", f"{part}/3")
    r = evaluate(*QUICK, "--shard", "2/3", "--json").json
    assert (r["status"], r["n"], r["robust_accuracy"]) == ("complete", 24, whole["robust_accuracy"])
    assert Path(r["run_file"]).is_file()
    assert _verdicts(r["run_file"]) == _verdicts(whole["run_file"])


@pytest.mark.parametrize("content", ["junk", "foreign", "half"])
def test_a_stranger_among_the_runs_is_named_and_left_alone(content: str, evaluate: Rbl, rbl: Rbl, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stranger = folder / "lb" / "runs" / "stranger.parquet"
    stranger.parent.mkdir(parents=True)
    if content == "foreign":
        pq.write_table(pa.table({"a": [1, 2]}), stranger)
    else:
        other = evaluate(*QUICK, "--seed", "9", "--leaderboard", "other", "--json").json["run_file"]
        stranger.write_bytes(b"not Parquet" if content == "junk" else Path(other).read_bytes()[:-100])
    before = stranger.read_bytes()
    said = evaluate(*QUICK, "--json")
    assert Path(said.json["run_file"]).is_file()
    assert said.remarks.startswith("warning: lb/runs/stranger.parquet: ") and said.remarks.count("\n") == 1
    shown = rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "json")
    assert shown.code == 0 and "stranger.parquet" in shown.err and shown.out.count('"run_id"') == 1
    assert stranger.read_bytes() == before


def test_a_stranger_in_the_place_of_the_run_or_the_board_is_left_alone(evaluate: Rbl, folder: Path) -> None:
    file = folder / evaluate(*QUICK, "--json").json["run_file"]
    board = folder / "lb" / "leaderboard.parquet"
    for path in (file, board):
        path.write_bytes(b"somebody's own")
    said = evaluate(*QUICK, "--json")
    assert said.json["run_file"] == f"lb/runs/{file.stem}-2.parquet"
    assert "leaderboard.parquet: corrupt, or not a leaderboard" in said.err
    for path in (file, board):
        assert path.read_bytes() == b"somebody's own"


@pytest.mark.parametrize("place", ["leaderboard", "examples", "figure"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    place: str, evaluate: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    real, full = os.fsync, {"leaderboard": "lb", "examples": "out", "figure": "out"}[place]

    def fsync(descriptor: int) -> None:
        if f"/{full}/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell which file a descriptor is")
    monkeypatch.setattr(os, "fsync", fsync)
    more = {"leaderboard": [], "examples": ["--save-examples", "out/o.npz"], "figure": ["--figure", "out/o.png"]}
    error = evaluate(*QUICK, *more[place]).error
    option = {"leaderboard": "--leaderboard", "examples": "--save-examples", "figure": "--figure"}[place]
    assert error.startswith(option) and "No space left on device" in error
    assert listing(folder / "out") == set()
    kept = {"leaderboard.parquet"} if place == "figure" else set()
    assert {name for name in listing(folder / "lb") if not name.endswith(f"{QUICK[1]}.parquet")} >= kept
    assert not any(".tmp" in name or "partial" in name for name in listing(folder / "lb"))


def test_names_that_look_like_markup_are_names(evaluate: Rbl, folder: Path) -> None:
    (folder / "[bold]a.npz").write_bytes((folder / "ok.npz").read_bytes())
    (folder / "[x].py").write_bytes((folder / "nets.py").read_bytes())
    said = evaluate(*QUICK, "--model", "[x].py:make", "--dataset", "npz:[bold]a.npz")
    assert said.code == 0 and "[x].py:make on npz:[bold]a.npz" in said.out


def test_a_home_in_a_path_is_the_users_own(evaluate: Rbl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    r = evaluate(*QUICK, "--leaderboard", "~/results", "--json").json
    assert Path(r["run_file"]).parent == tmp_path / "results" / "runs"


@pytest.mark.parametrize("kind", ["trained", "factory"])
def test_a_whole_path_runs_on_real_digits(kind: str, rbl: Rbl, folder: Path) -> None:
    """The default data set, a network trained once and then from the cache; weights given to a factory."""
    common = ("--dataset", "digits", "--samples", "20", "--steps", "3", "--json", "--leaderboard", "lb")
    if kind == "trained":
        first = rbl("evaluate", "--model", "mlp", "--epochs", "1", *common)
        again = rbl("evaluate", "--model", "mlp", "--epochs", "1", *common)
        assert "training mlp on digits" in first.err and "training" not in again.remarks
        assert {**first.json, "seconds": 0} == {**again.json, "seconds": 0}
        return
    torch.save(network().state_dict(), "good.pth")
    assert rbl("evaluate", "--model", "nets.py:make", "--weights", "good.pth", *common).last_line.startswith(
        "--model: the network, given images of shape (2, 1, 32, 32), raised RuntimeError"
    )
