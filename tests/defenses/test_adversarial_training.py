"""Madry's training makes a network harder to fool than plain training does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.data import from_arrays
from robustbench_lite.defenses.adversarial_training import AdversarialTraining
from robustbench_lite.errors import UserError
from robustbench_lite.recipe import Recipe
from robustbench_lite.training import Trainer, train_model


def world(count: int = 384) -> tuple[Tensor, Tensor]:
    """One strong pixel that no small change hides, and fifteen weak ones that together say the same until moved."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=generator)
    x = torch.rand((count, 1, 4, 4), generator=generator) * 0.1 + 0.45 + (y * 0.2 - 0.1).reshape(-1, 1, 1, 1)
    strong = torch.rand(count, generator=generator) < 0.9
    x[:, 0, 0, 0] = torch.where(strong, y, 1 - y) * 0.6 + 0.2
    return x, y


def fit(defense: AdversarialTraining | None, seed: int = 0, epochs: int = 8) -> nn.Module:
    x, y = world()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    data = from_arrays(x, y, classes=2, split="train")
    recipe = Recipe(epochs=epochs, augment="none", lr=0.5, seed=seed)
    return train_model(model, data, recipe=recipe, defenses=[] if defense is None else [defense])


def accuracies(model: nn.Module) -> tuple[float, float]:
    x, y = world()
    r = rbl.evaluate(model, x, y, eps=0.15, attack_options={"steps": 10})
    return r.clean_accuracy, r.robust_accuracy


def test_it_trains_what_is_harder_to_fool() -> None:
    plain = accuracies(fit(None))
    hardened = accuracies(fit(AdversarialTraining(eps=0.15)))
    assert plain[0] > 0.9
    assert plain[1] < 0.6
    assert hardened[0] > 0.85
    assert hardened[1] > 0.85


def test_one_seed_one_network_whatever_was_drawn_before() -> None:
    defense = AdversarialTraining(eps=0.1, attack_options="steps=2")
    first = fit(defense, epochs=2)
    state = torch.random.get_rng_state()
    again = fit(defense, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(fit(defense, seed=1, epochs=2).parameters()), next(first.parameters()))
    torch.manual_seed(1)
    nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "noise"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_any_attack_by_name(attack: str, norm: str) -> None:
    x, y = world(64)
    data = from_arrays(x, y, classes=2, split="train")
    defense = AdversarialTraining(attack=attack, norm=norm, eps=0.1)
    layer = nn.Linear(16, 2)
    model = nn.Sequential(nn.Flatten(), layer)
    before = layer.weight.detach().clone()
    fitted = train_model(model, data, recipe=Recipe(epochs=1, augment="none"), defenses=[defense])
    assert not torch.equal(next(fitted.parameters()), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, r"^eps must be >= 0, got -0\.1"),
        ({"norm": "l3"}, "^norm: unknown name 'l3'"),
        ({"attack_options": "steps"}, "^attack_options must be KEY=VALUE, got 'steps'"),
        ({"attack_options": "steps=many"}, "^attack option steps must be a whole number"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdversarialTraining(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("attack", "options"), [("pdg", ""), ("pgd", "step=3")])
def test_an_attack_that_is_not_there_is_said_before_an_epoch_is_lost(attack: str, options: str) -> None:
    with pytest.raises(UserError, match="did you mean"):
        AdversarialTraining(attack=attack, attack_options=options)


def test_the_mixture_is_the_mean_of_both_losses() -> None:
    """Goodfellow's: alpha J(x) + (1 - alpha) J(x'), computed by hand."""
    x, y = world(32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    defense = AdversarialTraining(attack="fgsm", clean=0.25, eps=0.1, warmup=0.0)
    trainer = Trainer(Recipe(), defenses=[defense])
    value = defense.loss(model, x, y, lambda network, x, y: nn.functional.cross_entropy(network(x), y), trainer)
    moved = rbl.perturb(model, x, y, attack="fgsm", eps=0.1)
    by_hand = 0.25 * nn.functional.cross_entropy(model(x), y) + 0.75 * nn.functional.cross_entropy(model(moved), y)
    assert torch.allclose(value, by_hand)
