"""Checkpoints as other programs write them: loaded, or refused with the key that would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.errors import UserError
from robustbench_lite.models import load_model, load_weights, read_weights

SHAPE = (1, 8, 8)


def net(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes)).eval()


def state(prefix: str = "", seed: int = 1) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in net(seed).state_dict().items()}


def averaged() -> dict[str, Tensor]:
    average = torch.optim.swa_utils.AveragedModel(net(1))
    average.update_parameters(net(1))
    return average.state_dict()


def profiled() -> dict[str, Tensor]:
    model = net(1)
    for part in model.modules():
        part.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        part.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return model.state_dict()


def robustness() -> dict[str, Any]:
    normalizer = {"normalizer.new_mean": torch.zeros(1), "normalizer.new_std": torch.ones(1)}
    both = state("module.model.") | state("module.attacker.model.")
    more = {f"module.{k}": v for k, v in normalizer.items()} | {
        f"module.attacker.normalize.{k}": v for k, v in normalizer.items()
    }
    return {"model": both | more, "epoch": 3, "schedule": None}


LOADED: dict[str, Any] = {
    "plain": state,
    "data parallel": lambda: state("module."),
    "compiled": lambda: {"model": state("_orig_mod.")},
    "compiled and parallel": lambda: state("module._orig_mod."),
    "AveragedModel": averaged,
    "profiled": profiled,
    "Lightning": lambda: {"epoch": 1, "state_dict": state("model."), "optimizer_states": [], "loops": {}},
    "Lightning, more": lambda: {"state_dict": state("net.") | {"criterion.weight": torch.ones(4)}},
    "robustness": robustness,
    "timm's average alone": lambda: {"state_dict_ema": state(), "epoch": 2},
    "an unusual name": lambda: {"my_network": state(), "epoch": 2},
    "encoder in a trainer": lambda: state("trainer.student.backbone."),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_checkpoint_is_loaded(kind: str, tmp_path: Path) -> None:
    torch.save(LOADED[kind](), tmp_path / "net.ckpt")
    model = net(0)
    load_weights(model, read_weights(tmp_path / "net.ckpt")[0], source="net.ckpt")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state().items())


@pytest.mark.parametrize(
    ("weights", "seed"), [("", 1), (":state_dict", 1), (":ema_state_dict", 2), (":state_dict_ema", 3)]
)
def test_weights_and_their_average(weights: str, seed: int, tmp_path: Path) -> None:
    file = tmp_path / "both.pth"
    torch.save({"state_dict": state(), "ema_state_dict": state(seed=2), "state_dict_ema": state(seed=3)}, file)
    tensors, said = read_weights(f"{file}{weights}")
    assert torch.equal(tensors["1.weight"], state(seed=seed)["1.weight"])
    notes = said.get("notes", [])
    assert len(notes) == (not weights)
    for note in notes:
        assert "state_dict, the weights without averaging, is taken" in note and "both.pth:state_dict_ema" in note


def test_the_note_of_a_checkpoint_comes_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    states = {"0": torch.ones(1)}
    states = {"1.weight": torch.ones(4, 64), "1.bias": torch.zeros(4)}
    torch.save({"model": states, "ema": states}, tmp_path / "both.pth")
    loaded = load_model(f"{tmp_path}/nets.py:make", n_classes=4, shape=SHAPE, weights=f"{tmp_path}/both.pth")
    assert len(loaded.notes) == 1 and "both.pth:ema" in loaded.notes[0]


def test_two_networks_under_prefixes_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "two.pth"
    torch.save(state("student.") | state("teacher.", seed=2), file)
    with pytest.raises(UserError, match=r"prefixes 'student\.' and 'teacher\.'; say which: "):
        load_weights(net(), read_weights(file)[0], source=str(file))
    model = net()
    load_weights(model, read_weights(f"{file}:teacher.")[0], source=str(file))
    assert torch.equal(model.state_dict()["1.weight"], state(seed=2)["1.weight"])


def test_several_state_dicts_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "gan.pth"
    torch.save({"generator": state(), "critic": state(seed=2)}, file)
    with pytest.raises(UserError, match=r"holds tensors under generator, critic; say which: .*gan.pth:generator"):
        read_weights(file)
    assert torch.equal(read_weights(f"{file}:critic")[0]["1.weight"], state(seed=2)["1.weight"])


def test_an_unknown_key_lists_the_close_ones(tmp_path: Path) -> None:
    torch.save({"state_dict": state()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="has no key 'state_dikt'; did you mean state_dict"):
        read_weights(f"{tmp_path}/a.pth:state_dikt")


def test_weights_of_other_classes_say_so() -> None:
    with pytest.raises(
        UserError, match="the weights are for 1000 classes, the model has 4: give the data set"
    ) as caught:
        load_weights(net(), net(1, classes=1000).state_dict(), source="imagenet.pth")
    assert "\n" not in str(caught.value)


def test_normalisation_beside_the_weights_is_not_dropped() -> None:
    more = {"mu": torch.zeros(1, 1, 1, 1), "sigma": torch.ones(1, 1, 1, 1)}
    with pytest.raises(UserError, match="unexpected mu, sigma; these normalise the images"):
        load_weights(net(), state() | more, source="rice.pth")
    with pytest.raises(UserError, match="unexpected mu, sigma"):
        load_weights(net(), {f"module.{n}": t for n, t in (state() | more).items()}, source="rice.pth")


def test_normalisation_goes_into_a_model_that_has_it() -> None:
    model = net()
    model.register_buffer("mu", torch.zeros(1))
    load_weights(model, {f"module.{n}": t for n, t in (state() | {"mu": torch.ones(1)}).items()}, source="x")
    assert float(model.get_buffer("mu")) == 1


def test_a_layer_too_many_is_not_dropped() -> None:
    with pytest.raises(UserError, match=r"unexpected 9\.weight"):
        load_weights(net(), state("module.") | {"module.9.weight": torch.ones(2)}, source="x")


@pytest.mark.filterwarnings("ignore")
def test_whole_networks_are_named_as_what_they_are(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(net()), tmp_path / "script.pt")
    torch.export.save(torch.export.export(net(), (torch.rand(2, *SHAPE),)), tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    for file, words in (("script.pt", "is a TorchScript archive"), ("program.pt", "is an exported program")):
        with pytest.raises(UserError, match=words) as caught:
            read_weights(tmp_path / file)
        assert "\n" not in str(caught.value) and "FILE.py:make" in str(caught.value)
