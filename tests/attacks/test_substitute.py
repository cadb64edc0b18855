"""A substitute: trained on the target's labels alone, within its budget, and good enough to fool the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.substitute import Small, Substitute
from robustbench_lite.errors import UserError
from robustbench_lite.result import Result
from robustbench_lite.threat import Threat

SMALL: dict[str, Any] = {"images": 40, "rounds": 3, "width": 4, "learning_rate": 0.05, "minibatch": 8}


class Halves(nn.Module):
    """Which quarter of the image is the brightest."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).mean(1).flatten(1) * 20


def _x(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.rand((count, 1, 8, 8), generator=generator)
    for row, quarter in enumerate(torch.randint(4, (count,), generator=generator).tolist()):
        top, left = divmod(quarter, 2)
        x[row, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.2
    return x


def _label(x: Tensor) -> Tensor:
    labels: Tensor = Halves()(x).argmax(1)
    return labels


def _run(x: Tensor, fit: Tensor, *, y: Tensor | None = None, model: nn.Module | None = None, **options: Any) -> Result:
    own = {key: options.pop(key) for key in ("norm", "eps", "target", "batch_size", "seed") if key in options}
    return rbl.evaluate(
        model or Halves().eval(), x, _label(x), attack="substitute", attack_options={**SMALL, **options}, checks=False,
        fit_data=(fit, _label(fit) if y is None else y), **{"eps": 0.25, **own},
    )  # fmt: skip


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_it_fools_the_target_without_a_gradient_of_it(method: str) -> None:
    x = _x(60)
    found = _run(x, _x(80, seed=1), method=method, steps=10)
    chance = rbl.evaluate(Halves().eval(), x, _label(x), attack="noise", eps=0.25, checks=False)
    assert found.success.double().mean() > chance.success.double().mean() + 0.3
    assert found.backwards == found.fit_backwards == 0
    # The clean pass and the verdict.
    assert (found.column("forwards") == 2).all()
    assert Threat("linf", 0.25).around(x).contains(found.adversarial if found.adversarial is not None else x).all()


@pytest.mark.parametrize(
    ("budget", "rounds", "labels"),
    [(6400, 1, 40), (6400, 3, 160), (160, 3, 160), (100, 3, 100), (40, 3, 40), (7, 3, 7)],
)
def test_labels_are_counted_and_the_budget_binds(budget: int, rounds: int, labels: int) -> None:
    seen: list[int] = []
    model = Halves().eval()
    x, fit = _x(4), _x(80, seed=1)
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    found = _run(x, fit, budget=budget, rounds=rounds, model=model, epochs=1)
    hook.remove()
    assert found.fit_forwards == labels <= budget
    others = found.run.specification.calls["check_forwards"] + found.forwards
    # Three images are shown to see what kind of network it is (`adapt`), one to count the classes.
    assert sum(seen) == 4 + labels + others
    assert found.fit_backwards == 0


def test_the_true_labels_are_not_looked_at() -> None:
    x, fit = _x(20), _x(80, seed=1)
    honest, lied = (_run(x, fit, y=y, epochs=2) for y in (_label(fit), torch.zeros(80, dtype=torch.int64)))
    assert all(torch.equal(honest.learned[name], lied.learned[name]) for name in honest.learned)


def test_more_labels_make_a_better_substitute() -> None:
    x, fit = _x(60), _x(80, seed=1)
    few = _run(x, fit, budget=4, images=4, rounds=1, epochs=2).robust_accuracy
    many = _run(x, fit).robust_accuracy
    assert many < few - 0.2


def test_the_weights_learned_are_those_of_a_network_that_agrees_with_the_target() -> None:
    x, fit = _x(200), _x(80, seed=1)
    learned = _run(x[:4], fit).learned
    with torch.no_grad():
        assert (Small(learned)(x).argmax(1) == _label(x)).double().mean() > 0.8


def test_it_aims_at_a_class() -> None:
    x = _x(60)
    found = _run(x, _x(80, seed=1), target="next", method="pgd", steps=10, eps=0.35)
    assert found.success[found.column("attacked")].double().mean() > 0.5


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_other_norms(norm: str) -> None:
    x, eps = _x(40), {"l2": 2.0, "l1": 10.0, "l0": 20}[norm]
    found = _run(x, _x(80, seed=1), norm=norm, eps=eps, method="pgd", steps=10)
    assert found.success.double().mean() > 0.2


def test_any_batch_size_learns_and_finds_the_same() -> None:
    x, fit = _x(50), _x(60, seed=1)
    runs = [_run(x, fit, batch_size=size, method="pgd", steps=5, epochs=3) for size in (1, 37, 256)]
    for run in runs[1:]:
        assert all(torch.equal(run.learned[name], runs[0].learned[name]) for name in runs[0].learned)
        assert torch.equal(run.success, runs[0].success)
        assert run.adversarial is not None
        assert runs[0].adversarial is not None
        assert torch.equal(run.adversarial, runs[0].adversarial)


def test_a_seed_decides_and_torch_is_left_alone() -> None:
    x, fit = _x(10), _x(60, seed=1)
    state = torch.random.get_rng_state()
    one, again, other = (_run(x, fit, seed=seed, epochs=1).learned["out.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sides_that_four_does_not_divide() -> None:
    x = torch.rand((6, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    y = _label(x)
    found = rbl.evaluate(
        Halves().eval(), x, y, attack="substitute", attack_options={**SMALL, "epochs": 1}, eps=0.1, checks=False
    )
    assert found.fit_forwards == 24


def test_the_step_size_of_pgd_is_filled_in() -> None:
    assert Substitute(method="pgd", steps=10).resolve(Threat("linf", 0.2)).step_size == pytest.approx(0.05)
    assert Substitute().resolve(Threat("linf", 0.2)) == Substitute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be >= 1, got 0"),
        ({"images": 0}, "images must be >= 1, got 0"),
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ({"width": 0}, "width must be >= 1, got 0"),
        ({"augmentation": 0.0}, "augmentation must be > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be > 0, got nan"),
        ({"method": "cw"}, "method must be fgsm or pgd, got 'cw'"),
        ({"loss": "cw"}, "loss: unknown name 'cw'"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"step_size": -1.0}, "step_size must be > 0, got -1"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Substitute(**options)
