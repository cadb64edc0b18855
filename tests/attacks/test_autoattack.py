"""The portfolios: AutoAttack's parts in their order, and `auto`, whose verdict is as low for fewer passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.auto import Auto
from robustbench_lite.attacks.autoattack import AutoAttack
from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.errors import UserError
from robustbench_lite.portfolio import Part
from robustbench_lite.threat import Threat

from ..core.nets import images, labels_of, mlp


@pytest.fixture
def model() -> nn.Module:
    return mlp(scale=4.0)


@pytest.fixture
def x() -> Tensor:
    return images(48)


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("standard", ["apgd-ce", "apgd-t", "fab-t", "square"]),
        ("plus", ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]),
        ("rand", ["apgd-ce", "apgd-dlr"]),
    ],
)
def test_the_versions_are_those_of_the_reference(version: str, names: list[str]) -> None:
    attack = AutoAttack(version=version)  # type: ignore[arg-type]
    assert [part.name for part in attack.parts(Threat("linf", 0.1))] == names


def test_it_leaves_what_every_part_leaves_alone(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    settings = {"eps": 0.04, "checks": False}
    whole = rbl.evaluate(model, x, y, attack="autoattack", **settings)  # type: ignore[arg-type]
    left = torch.ones(len(x), dtype=torch.bool)
    for part in AutoAttack().parts(Threat("linf", 0.04)):
        left &= ~rbl.evaluate(model, x, y, attack=part, **settings).success  # type: ignore[arg-type]
    assert torch.equal(~whole.success, left)
    assert 0 < int(left.sum()) < len(x)


def test_the_version_for_random_networks_averages_twenty_draws(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    found = {
        version: rbl.evaluate(
            *(model, x[:4], y[:4]),
            attack="autoattack",
            attack_options={"version": version},
            eps=0.02,
            defenses=[RandomNoise(sigma=0.01)],
            max_queries=200,
            checks=False,
        ).run.specification.eot
        for version in ("rand", "plus")
    }
    assert found == {"rand": 20, "plus": 8}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_is_as_low_as_the_reference(norm: str, model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    eps = {"linf": 0.04, "l2": 0.2}[norm]
    found = {}
    for name in ("autoattack", "auto"):
        result = rbl.evaluate(model, x, y, attack=name, norm=norm, eps=eps, checks=False)
        found[name] = (int((~result.success).sum()), result.forwards + result.backwards)
    assert 0 < found["auto"][0] <= found["autoattack"][0] < len(x)
    assert found["auto"][1] < 0.1 * found["autoattack"][1]


class Head(nn.Module):
    """A network whose logits go through something else."""

    def __init__(self, model: nn.Module, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.model(x))


@pytest.mark.filterwarnings("ignore:softmax seen")
def test_a_head_that_keeps_the_order_of_classes_keeps_the_verdict(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    heads: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda z: z,
        "softmax": lambda z: z.softmax(1),
        "sharp softmax": lambda z: (3 * z).softmax(1),
        "temperature": lambda z: 100 * z,
        "log softmax": lambda z: z.log_softmax(1),
    }
    stand = {
        name: rbl.evaluate(Head(model, head).eval(), x, y, attack="auto", eps=0.04, checks=False).success
        for name, head in heads.items()
    }
    assert 0 < int(stand["none"].sum()) < len(x)
    for name, success in stand.items():
        assert int((success != stand["none"]).sum()) <= 1, name


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_any_number_of_classes_will_do(classes: int, x: Tensor) -> None:
    model = mlp(scale=4.0, classes=classes)
    x, y = x[:16], labels_of(model, x[:16])
    left = {
        name: int((~rbl.evaluate(model, x, y, attack=name, eps=0.03, checks=False).success).sum())
        for name in ("auto", "autoattack")
    }
    assert left["auto"] <= left["autoattack"] + 1
    assert left["auto"] < len(x)


def test_an_eps_of_its_own_belongs_to_each_sample(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x[:12])
    eps = torch.full((12,), 0.03)
    one = rbl.evaluate(model, x[:12], y, attack="auto", eps=eps, checks=False, deterministic=True)
    eps[-1] = 0.3
    other = rbl.evaluate(model, x[:12], y, attack="auto", eps=eps, checks=False, deterministic=True)
    assert one.adversarial is not None and other.adversarial is not None
    assert torch.equal(one.adversarial[:-1], other.adversarial[:-1])
    assert not torch.equal(one.adversarial[-1], other.adversarial[-1])


def test_the_hopeless_are_given_up_and_the_near_are_not() -> None:
    """A wide margin costs the first parts alone; a narrow one all of them."""

    class Walls(nn.Module):
        """Right whatever happens; the first pixel says by how much the margin can be lowered."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            gap = torch.where(x[:, 0, 0, 0] > 0.5, 1 + 0.1 * mean, 0.02 + (mean - 0.5).abs())
            return torch.stack([gap, -gap], 1)

    x = torch.full((2, 1, 8, 8), 0.6)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 0.9, 0.1
    rows = rbl.evaluate(
        Walls().eval(), x, torch.zeros(2, dtype=torch.int64), attack="auto", eps=0.15, checks=False
    ).samples
    assert not rows.success.any()
    most = Auto().calls(Threat("linf", 0.15))
    assert most is not None
    assert rows.forwards[0] < 0.1 * most[0] and rows.forwards[1] > 2 * rows.forwards[0]


@pytest.mark.parametrize("effort", ["quick", "standard", "exhaustive"])
def test_what_stands_costs_no_less_than_was_said(effort: str) -> None:
    """Whoever is given up leaves for good, so no part for all may come after one that gives up."""

    class Still(nn.Module):
        """Right by a margin that nothing brings down far enough."""

        def forward(self, x: Tensor) -> Tensor:
            gap = 1 + 0.1 * x.flatten(1).mean(1)
            return torch.stack([gap, -gap], 1)

    x, y = torch.full((1, 1, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    options = {"effort": effort}
    rows = rbl.evaluate(Still().eval(), x, y, attack="auto", attack_options=options, eps=0.1, checks=False).samples
    auto = Auto(effort=effort)  # type: ignore[arg-type]
    least, most = auto.least_calls(Threat("linf", 0.1)), auto.calls(Threat("linf", 0.1))
    assert least is not None and most is not None
    # APGD aims at one class where there are two; what is left over stops after its first step.
    assert rows.forwards[0] >= (least[0] if effort != "exhaustive" else 5000)
    assert rows.forwards[0] < most[0]


@pytest.mark.parametrize(("eot", "votes"), [(1, 1), (2, 3)])
def test_what_is_announced_holds_for_all_that_stand(eot: int, votes: int, model: nn.Module, x: Tensor) -> None:
    x = x[:8]
    defenses = [RandomNoise(sigma=0.001)] if eot > 1 else []
    found = rbl.evaluate(
        *(model, x, labels_of(model, x)),
        attack="auto",
        attack_options={"effort": "quick"},
        eps=0.01,
        defenses=defenses,
        checks=False,
        eot=eot,
        votes=votes,
    )
    costs = Auto(effort="quick").costs(Threat("linf", 0.01), eot=eot, votes=votes)
    assert costs is not None
    (least, few), (most, many) = costs
    rows = found.samples[found.samples.attacked & ~found.samples.success]
    assert len(rows) > 2
    assert rows.forwards.between(least, most).all() and rows.backwards.between(few, many).all()


def test_parts_of_auto_give_up_only_after_an_attack_has_said_so() -> None:
    for effort in ("quick", "standard", "exhaustive"):
        parts = [Part.of(part) for part in Auto(effort=effort).parts(Threat("linf", 0.1))]
        assert parts[0].hope == 1 and not parts[0].warm


@pytest.mark.parametrize(("attack", "option"), [("autoattack", "version"), ("auto", "effort")])
def test_what_is_not_known_is_refused(attack: str, option: str, model: nn.Module, x: Tensor) -> None:
    with pytest.raises(UserError, match=option):
        rbl.evaluate(model, x, labels_of(model, x), attack=attack, attack_options={option: "most"})
