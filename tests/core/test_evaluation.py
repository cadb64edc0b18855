"""`rbl.evaluate` as its users call it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.data import from_arrays
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.models import LoadedModel
from robustbench_lite.plan import Plan
from robustbench_lite.plan_run import run_plan
from robustbench_lite.records.check import check_run
from robustbench_lite.running import Progress
from robustbench_lite.threat import Threat

from .nets import Rows, binary, conv, images, labels_of, mlp

MODEL = mlp()
X = images(40)
Y = torch.where(torch.arange(40) % 10 == 0, (labels_of(MODEL, X) + 1) % 4, labels_of(MODEL, X))


def evaluate(**changes: Any) -> rbl.Result:
    arguments = {"model": MODEL, "x": X, "y": Y, "eps": 0.1, **changes}
    return rbl.evaluate(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def same_rows(one: rbl.Result, other: rbl.Result) -> bool:
    assert one.adversarial is not None
    assert other.adversarial is not None
    return bool(one.run.table.equals(other.run.table)) and torch.equal(one.adversarial, other.adversarial)


# -- what it says -------------------------------------------------------------------------------------


def test_the_call_of_the_specification() -> None:
    r = rbl.evaluate(
        MODEL, X, Y, attack="pgd", norm="linf", eps=0.3, seed=0, batch_size=256, attack_options={"steps": 40}
    )
    assert r.adversarial is not None
    assert r.adversarial.shape == X.shape
    assert r.adversarial.dtype == torch.float32
    assert r.success.shape == (40,)
    assert r.success.dtype == torch.bool
    assert r.clean_accuracy == pytest.approx(0.9)
    assert r.robust_accuracy == pytest.approx(0.9 - float(r.success.double().mean()))
    frame = r.samples
    assert len(frame) == 40
    assert frame["index"].tolist() == list(range(40))
    assert frame["label"].tolist() == Y.tolist()
    assert frame["success"].tolist() == r.success.tolist()
    assert r.forwards == frame["forwards"].sum()
    assert check_run(r.run) == []
    assert r.verdict == "reliable"


def test_what_it_says_holds_in_a_pass_of_our_own() -> None:
    r = evaluate(norm="l2", eps=0.7)
    assert r.adversarial is not None
    predicted = labels_of(MODEL, r.adversarial)
    assert torch.equal((predicted != Y)[r.success], torch.ones(int(r.success.sum()), dtype=torch.bool))
    assert predicted.tolist() == r.samples["adversarial_prediction"].tolist()
    assert ((r.adversarial - X).double().flatten(1).norm(dim=1) <= 0.7).all()
    assert r.adversarial.min() >= 0
    assert r.adversarial.max() <= 1
    assert r.clean_accuracy == float((labels_of(MODEL, X) == Y).double().mean())


@pytest.mark.parametrize("target", [None, "random", "next", "least-likely", "all", 2, "3"])
@pytest.mark.parametrize("attack", ["pgd", "fgsm", "noise"])
def test_every_run_passes_the_check_of_its_own_record(attack: str, target: str | int | None) -> None:
    r = evaluate(attack=attack, target=target, eps=0.25)
    assert check_run(r.run) == []
    assert r.summary()["target"] == (None if target is None else str(target))


@pytest.mark.parametrize("defenses", [[BitDepth(3)], [RandomNoise(0.05)], [BitDepth(4), RandomNoise(0.02)]])
def test_defended_runs_pass_too_and_are_attacked_through(defenses: list[Any]) -> None:
    r = evaluate(defenses=defenses, eps=0.2)
    assert check_run(r.run) == []
    assert r.robust_accuracy < r.clean_accuracy - 0.2
    assert r.verdict == "reliable"


def test_eot_and_votes_follow_what_the_defense_states() -> None:
    stated = evaluate(defenses=[RandomNoise(0.05)]).run.specification
    assert (stated.eot, stated.votes) == (8, 16)
    plain = evaluate().run.specification
    assert (plain.eot, plain.votes) == (1, 1)
    given = evaluate(defenses=[RandomNoise(0.05)], eot=2, votes=3).run.specification
    assert (given.eot, given.votes) == (2, 3)


def test_counts_are_those_of_a_hook() -> None:
    model = mlp()
    rows = Rows().watch(model)
    r = evaluate(model=model)
    calls = r.run.specification.calls
    assert calls["forwards"] == r.forwards
    # The network is tried on two images and on one, and one more tells how many classes there are.
    assert rows.count == r.forwards + calls["check_forwards"] + 4


def test_a_plane_from_the_outside() -> None:
    plane = binary().eval()
    x = images(50, low=0.45, high=0.55)
    y = labels_of(plane, x)
    distance = plane.distance(x, "linf")
    eps = float(distance.median()) * 1.001
    r = rbl.evaluate(plane, x, y, attack="fgsm", eps=eps)
    assert torch.equal(r.success, distance < eps)


# -- what it does not hang on --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, conv])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deterministic_rows_at_any_batch_size(make: Callable[[], nn.Module], norm: str) -> None:
    model, eps = make(), 0.05 if norm == "linf" else 0.4
    y = labels_of(model, X)
    options: dict[str, Any] = {
        "model": model,
        "y": y,
        "norm": norm,
        "eps": eps,
        "deterministic": True,
        "attack_options": {"steps": 5},
        "checks": False,
    }
    whole = evaluate(**options)
    assert 0 < int(whole.success.sum()) < 40
    for size in (1, 3, 37):
        assert same_rows(evaluate(batch_size=size, **options), whole), size


def plan(**changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "model": LoadedModel(
            module=MODEL, name="mlp", sha256="a" * 64, parameters=1, preprocessing={}, weights="given", recipe=None
        ),
        "data": from_arrays(X, Y, classes=4),
        "index": torch.arange(40),
        "attack": PGD(steps=4).resolve(Threat("linf", 0.1)),
        "threat": Threat("linf", 0.1),
        "deterministic": True,
        "keep_images": True,
        **changes,
    }
    return Plan(**arguments)


def test_shards_make_up_the_run() -> None:
    whole = run_plan(plan()).samples
    parts = [run_plan(plan(shard=(part, 4), batch_size=7)).samples for part in (1, 2, 3, 4)]
    import pandas as pd

    joined = pd.concat(parts).sort_values("index").reset_index(drop=True)
    pd.testing.assert_frame_equal(joined, whole)


def test_a_shard_without_samples_is_no_traceback() -> None:
    with pytest.raises(rbl.UserError, match="shard") as raised:
        run_plan(plan(index=torch.arange(3), shard=(4, 4)))
    assert "\n" not in str(raised.value)


def test_a_seed_decides_everything() -> None:
    first = evaluate(seed=7)
    torch.manual_seed(1234)
    assert same_rows(evaluate(seed=7), first)
    other = evaluate(seed=8)
    assert not torch.equal(other.adversarial, first.adversarial)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:other attacks")  # six steps are few
def test_instances_and_files_do_what_names_do(tmp_path: Path) -> None:
    by_name = evaluate(attack_options={"steps": "6", "loss": "dlr"})
    assert same_rows(evaluate(attack=PGD(steps=6, loss="dlr")), by_name)
    file = tmp_path / "mine.py"
    file.write_text("from robustbench_lite.attacks.pgd import PGD\nclass Mine(PGD):\n    name = 'pgd'\n")
    assert same_rows(evaluate(attack=f"{file}:Mine", attack_options={"steps": 6, "loss": "dlr"}), by_name)


def test_eps_of_each_sample() -> None:
    together = evaluate(eps=torch.full((40,), 0.1))
    assert torch.equal(together.success, evaluate(eps=0.1).success)
    each = torch.where(torch.arange(40) < 20, 0.02, 0.3)
    mixed = evaluate(eps=each, checks=False)
    assert mixed.adversarial is not None
    assert ((mixed.adversarial - X).double().abs().flatten(1).amax(1) <= each.double()).all()
    assert mixed.samples["eps"].to_numpy() == pytest.approx(each.numpy())
    assert check_run(mixed.run) == []


def test_a_small_eps_searches_as_finely_among_large_ones() -> None:
    """A sample's verdict does not hang on the eps of the others."""
    small = torch.full((40,), 0.03)
    alone = evaluate(eps=small, checks=False)
    mixed = small.clone()
    mixed[0] = 1.0
    assert torch.equal(evaluate(eps=mixed, checks=False).adversarial[1:], alone.adversarial[1:])  # type: ignore[index]


def test_eps_of_each_sample_is_rounded_down() -> None:
    r = evaluate(eps=torch.full((40,), 0.1, dtype=torch.float64))
    assert (r.samples["eps"] <= 0.1).all()
    assert (r.samples["distance_linf"].dropna() <= 0.1).all()


@pytest.mark.filterwarnings("ignore:eps is 0")
def test_no_eps_no_change() -> None:
    for norm in ("linf", "l2"):
        for attack in ("pgd", "fgsm", "noise"):
            r = evaluate(eps=0, norm=norm, attack=attack)
            assert torch.equal(r.adversarial, X)  # type: ignore[arg-type]
            assert r.robust_accuracy == r.clean_accuracy == pytest.approx(0.9)


def test_bytes_are_read_as_bytes() -> None:
    pixels = (X * 255).round().to(torch.uint8)
    assert same_rows(evaluate(x=pixels), evaluate(x=pixels.float() / 255))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "float64", "wants a gradient"])
def test_any_layout_of_the_images_gives_the_same(layout: str) -> None:
    given = {
        "channels_last": X.to(memory_format=torch.channels_last),
        "strided": X.repeat_interleave(2, 0)[::2],
        "float64": X.double(),
        "wants a gradient": X.clone().requires_grad_(),
    }[layout]
    r = evaluate(x=given)
    assert same_rows(r, evaluate())
    assert r.adversarial is not None
    assert not r.adversarial.requires_grad


def test_within_inference_mode() -> None:
    expected = evaluate()
    with torch.inference_mode():
        assert same_rows(evaluate(), expected)
    with torch.no_grad():
        assert same_rows(evaluate(), expected)


# -- what it leaves alone --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:clean accuracy is at chance")
def test_inputs_model_and_random_states_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 4)).train()
    model[2].bias.requires_grad_(False)
    x, y, eps = X.clone(), Y.clone(), torch.full((40,), 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.random.get_rng_state(), repr(np.random.get_state()), random.getstate()
    grad = torch.is_grad_enabled()
    with pytest.warns(UserWarning, match="model is in training mode"):
        evaluate(
            model=model, x=x, y=y, eps=eps, leaderboard=None, target="random", defenses=[RandomNoise(0.1)], checks=False
        )
    assert [m.training for m in model.modules()] == [True] * 4
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert torch.equal(eps, torch.full((40,), 0.1))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1]
    assert random.getstate() == states[2]
    assert torch.is_grad_enabled() == grad


def test_the_model_is_put_back_when_it_fails_midway() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = mlp(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 12:
                raise OSError("gone")
            return self.model(x)  # type: ignore[no-any-return]

    model = Fails().train()
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"), pytest.raises(rbl.PluginError, match="OSError: gone"):
        evaluate(model=model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:eps is 0")
def test_results_do_not_share_memory_with_the_images() -> None:
    x = X.clone()
    r = evaluate(x=x, eps=0)
    assert r.adversarial is not None
    r.adversarial.zero_()
    assert torch.equal(x, X)


def test_a_folder_receives_the_run(tmp_path: Path) -> None:
    from robustbench_lite.records import read_run

    r = evaluate(leaderboard=tmp_path)
    assert r.file is not None
    assert r.file.parent == tmp_path / "runs"
    assert read_run(r.file).table.equals(r.run.table)
    assert r.summary()["run_file"] == str(r.file)
    again = evaluate(leaderboard=tmp_path)
    assert [file.name for file in (tmp_path / "runs").iterdir()] == [r.file.name]
    assert same_rows(r, again)


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate().file is None
    assert list(tmp_path.iterdir()) == []


def test_progress_climbs_to_the_end() -> None:
    seen: list[Progress] = []
    r = evaluate(batch_size=7, progress=seen.append)
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert seen[-1] == Progress(40, round(r.robust_accuracy * 40), 40)
    assert all(0 <= p.robust <= p.done <= p.total == 40 for p in seen)


# -- warnings and bad input ---------------------------------------------------------------------------------


def test_probabilities_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="softmax seen"):
        r = evaluate(model=nn.Sequential(mlp(), nn.Softmax(1)).eval())
    assert any("softmax" in text for text in r.warnings)
    assert r.verdict == "reliable"


def test_an_honest_model_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate()


class Constant(nn.Module):
    def __init__(self, value: float, classes: int = 4) -> None:
        super().__init__()
        self.value, self.classes = value, classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes] * self.value


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("weights")


def with_pixel(value: float, at: int) -> Tensor:
    x = X.clone()
    x[at, 0, 0, 0] = value
    return x


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels above": ({"y": Y + 4}, r"^y must be in 0\.\.3"),
    "labels below": ({"y": Y - 4}, r"^y must not be negative"),
    "labels of text": ({"y": ["a"] * 40}, r"^y"),
    "labels of halves": ({"y": Y + 0.5}, r"^y must be whole numbers, got"),
    "labels short": ({"y": Y[:-1]}, r"^y must be \(40,\)"),
    "labels one-hot of five": ({"y": nn.functional.one_hot(Y, 5)}, r"^y must be \(40,\) or one-hot \(40, 4\)"),
    "labels none": ({"y": None}, r"^y"),
    "pixels above": ({"x": X * 255}, r"^x must be in \[0, 1\], got values from"),
    "pixels below": ({"x": X - 0.5}, r"^x must be in \[0, 1\]"),
    "pixels integer": ({"x": (X * 65535).long()}, r"^x must be uint8 in 0\.\.255 or float"),
    "NaN in the first": ({"x": with_pixel(float("nan"), 0)}, r"^x must be in \[0, 1\], got NaN"),
    "NaN in the last": ({"x": with_pixel(float("nan"), 39)}, r"^x must be in \[0, 1\], got NaN"),
    "infinity in the first": ({"x": with_pixel(float("inf"), 0)}, r"^x must be in \[0, 1\]"),
    "no images": ({"x": X[:0], "y": Y[:0]}, r"^x must hold at least one image"),
    "no pixels": ({"x": torch.rand(3, 1, 0, 6), "y": Y[:3]}, r"^x"),
    "three dimensions": ({"x": X[:3, 0], "y": Y[:1]}, r"^x must be \(N, C, H, W\), got \(3, 6, 6\) for 1 label"),
    "images of numpy": ({"x": X.tolist()}, r"^x: expected"),
    "model of a function": ({"model": lambda x: x}, r"^model: expected a torch\.nn\.Module"),
    "model of a NaN": ({"model": Constant(float("nan")).eval()}, r"^model: expected finite logits"),
    "model of one class": ({"model": Constant(1.0, 1).eval(), "y": Y * 0}, r"give binary=True"),
    "model of wrong shape": ({"model": nn.Identity().eval()}, r"^model: expected logits of shape"),
    "model that raises": ({"model": Raises().eval()}, r"^model: the network, given .* raised KeyError"),
    "unknown attack": ({"attack": "pdg"}, r"^attack: unknown name 'pdg'; did you mean pgd"),
    "attack that is no attack": ({"attack": 5}, r"^attack"),
    "attack class": ({"attack": PGD}, r"^attack"),
    "attack file": ({"attack": "nowhere.py:Mine"}, r"^attack: no such file"),
    "unknown norm": ({"norm": "linff"}, r"^norm: unknown name 'linff'; did you mean linf"),
    "unknown target": ({"target": "lest-likely"}, r"^target must be .* did you mean least-likely"),
    "target above": ({"target": 4}, r"^target must be a class in 0\.\.3, got 4"),
    "target below": ({"target": -1}, r"^target must be a class in 0\.\.3, got -1"),
    "unknown precision": ({"precision": "fp16"}, r"^precision: unknown name 'fp16'; did you mean .*f16"),
    "unknown option": (
        {"attack_options": {"step": 4}},
        r"^attack option: pgd has no option 'step'; did you mean steps",
    ),
    "option of text": ({"attack_options": {"steps": "many"}}, r"^attack option steps must be a whole number"),
    "option not whole": ({"attack_options": {"steps": 4.5}}, r"^attack option steps must be a whole number"),
    "option below": ({"attack_options": {"steps": 0}}, r"^steps must be >= 1, got 0"),
    "option NaN": ({"attack_options": {"step_size": "nan"}}, r"^attack option step_size must be a finite number"),
    "option of a loss": ({"attack_options": {"loss": "drl"}}, r"^loss: unknown name 'drl'; did you mean dlr"),
    "options of a list": ({"attack_options": ["steps=4"]}, r"^attack_options"),
    "options of an instance": ({"attack": PGD(), "attack_options": {"steps": 4}}, r"^attack_options"),
    "eps negative": ({"eps": -0.1}, r"^eps must be >= 0, got -0\.1"),
    "eps NaN": ({"eps": float("nan")}, r"^eps must be a finite number"),
    "eps of bytes": ({"eps": 8}, r"^eps must be at most 1.*8/255"),
    "eps text": ({"eps": "large"}, r"^eps must be a number or a fraction"),
    "eps l2": ({"eps": 6.1, "norm": "l2"}, r"^eps must be at most 6, the diameter"),
    "eps of too few": ({"eps": torch.full((39,), 0.1)}, r"^eps"),
    "eps of each negative": ({"eps": torch.full((40,), -0.1)}, r"^eps"),
    "eps of each NaN": ({"eps": torch.full((40,), float("nan"))}, r"^eps"),
    "eps of each absurd": ({"eps": torch.full((40,), 2.0)}, r"^eps must be at most 1"),
    "batch size zero": ({"batch_size": 0}, r"^batch_size must be >= 1, got 0"),
    "batch size not whole": ({"batch_size": 2.5}, r"^batch_size"),
    "batch size text": ({"batch_size": "8"}, r"^batch_size"),
    "eot zero": ({"eot": 0}, r"^eot must be >= 1, got 0"),
    "votes negative": ({"votes": -3}, r"^votes must be >= 1, got -3"),
    "seed not whole": ({"seed": 1.5}, r"^seed"),
    "seed of text": ({"seed": "a"}, r"^seed"),
    "seed too large": ({"seed": 2**70}, r"^seed"),
    "unknown device": ({"device": "gpu"}, r"^device"),
    "defense by name": ({"defenses": ["bit-depth"]}, r"^defenses"),
    "defense in text": ({"defenses": "bit-depth"}, r"^defenses"),
    "folder in the way": ({"leaderboard": __file__}, r"^--leaderboard: cannot write"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_that_names_the_argument(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(rbl.UserError, match=message) as raised:
        evaluate(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(rbl.UserError, match=r"^device"):
        evaluate(device="cuda")


def test_a_model_that_raises_brings_its_own_traceback() -> None:
    with pytest.raises(rbl.PluginError) as raised:
        evaluate(model=Raises().eval())
    assert "in forward" in "".join(raised.value.__notes__)
    assert isinstance(raised.value.__cause__, KeyError)
