"""ensemble: the mean and the vote by hand, what is disputed, and files that are not what they should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.conformance import check_defense
from robustbench_lite.defense import wrap_all
from robustbench_lite.defenses.ensemble import Ensemble, Mean, Voting
from robustbench_lite.errors import UserError
from robustbench_lite.models import build_model, save_weights

SHAPE = (1, 8, 8)


class Says(nn.Module):
    """Logits that the first pixels of an image name."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[: len(x)] + 0 * x.flatten(1).sum(1, keepdim=True)


def _members(*votes: list[int]) -> list[nn.Module]:
    """Networks that name these classes of three, each surely."""
    return [Says((8.0 * torch.nn.functional.one_hot(torch.tensor(v), 3)).tolist()) for v in votes]


@pytest.mark.parametrize(
    ("quorum", "expected"),
    [
        (0.0, [0, 1, 2, 0]),
        (0.4, [0, 1, 2, 0]),
        (0.5, [0, 1, 3, 3]),
        (0.75, [0, 3, 3, 3]),
        (0.9, [0, 3, 3, 3]),
    ],
)
def test_a_vote_is_counted(quorum: float, expected: list[int]) -> None:
    # All four for 0; three for 1; two for 2; two for 0. The quorum is to be exceeded.
    members = _members([0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 0, 2], [0, 0, 1, 0])
    assert Voting(members, quorum)(torch.zeros(4, *SHAPE)).argmax(1).tolist() == expected


def test_the_mean_is_of_the_softmax() -> None:
    members = _members([0, 1], [1, 1], [1, 2])
    x = torch.zeros(2, *SHAPE)
    mean = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    assert torch.allclose(Mean(members)(x).softmax(1), mean, atol=1e-6)


def _written(folder: Path, seed: int) -> str:
    module = build_model("mlp", n_classes=10, shape=SHAPE, seed=seed)
    save_weights(module, folder / f"{seed}.safetensors", model="mlp", recipe={})
    return str(folder / f"{seed}.safetensors")


@pytest.mark.parametrize("rule", ["mean", "majority"])
def test_networks_come_from_files(rule: str, tmp_path: Path) -> None:
    files = [_written(tmp_path, seed) for seed in (1, 2)]
    defense = Ensemble(models=",".join(files), rule=rule)
    own = build_model("mlp", n_classes=10, shape=SHAPE, seed=0).eval()
    x = torch.rand(5, *SHAPE)
    together = wrap_all(own, [defense], (x, torch.zeros(5).long())).eval()
    assert together(x).shape == (5, 10 + (rule == "majority"))
    others = [build_model("mlp", n_classes=10, shape=SHAPE, seed=seed).eval() for seed in (1, 2)]
    mean = torch.stack([m(x).softmax(1) for m in (own, *others)]).mean(0)
    if rule == "mean":
        assert torch.allclose(together(x).softmax(1), mean, atol=1e-6)
    at = x.clone().requires_grad_()
    gradient = torch.autograd.grad(together(at)[:, 0].sum(), at)[0]
    at = x.clone().requires_grad_()
    soft = torch.stack([m(at).softmax(1) for m in (own, *others)]).mean(0).log()
    assert torch.allclose(gradient, torch.autograd.grad(soft[:, 0].sum(), at)[0], atol=1e-6)


def test_a_vote_passes_the_checks_of_a_defense() -> None:
    @dataclass(frozen=True)
    class Majority(Ensemble):
        """Votes."""

        rule: str = "majority"

    checks = check_defense(Majority)
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rule": "median"}, "rule must be one of mean, majority, got 'median'"),
        ({"quorum": 1.0}, "quorum must be in"),
        ({"models": "nowhere.safetensors"}, "models: no such file 'nowhere.safetensors'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Ensemble(**options)  # type: ignore[arg-type]


def test_a_file_for_other_images_is_named_by_the_option(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 9, 9)
    own = build_model("mlp", n_classes=10, shape=(3, 9, 9), seed=0)
    with pytest.raises(UserError, match=r"^models: .*1\.safetensors does not fit the model: "):
        wrap_all(own, [Ensemble(models=_written(tmp_path, 1))], (x, torch.zeros(2).long()))
