"""The model as an evaluation computes it: left as it was found, counted, in blocks, averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.errors import PluginError, UserError
from robustbench_lite.losses import margin
from robustbench_lite.network import Network, exact_float32, frozen
from robustbench_lite.streams import normal_like

from .nets import SHAPE, Rows, conv, filled, images, mlp, noise_of


class Answers(nn.Module):
    """Says whatever the function says."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def total(logits: Tensor) -> Tensor:
    return logits.logsumexp(1) - logits[:, 0]


def mixed_mode() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Dropout(), nn.Linear(36, 3)).train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[:3] == after[:3] and all(torch.equal(before[3][k], v) for k, v in after[3].items())


def test_a_frozen_model_is_as_it_was_afterwards() -> None:
    model = mixed_mode()
    before = state(model)
    with frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        Network(model).gradient(images(5), noise_of(5), total)
    assert unchanged(before, state(model))
    with pytest.raises(KeyboardInterrupt), frozen(model):
        raise KeyboardInterrupt
    assert unchanged(before, state(model))


def test_exact_float32_is_put_back() -> None:
    found = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == found


@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("block", [None, 4])
def test_a_hook_sees_what_is_counted(eot: int, block: int | None) -> None:
    model = mlp()
    rows = Rows().watch(model)
    network = Network(model, eot=eot, block=block, max_batch=6)
    network.logits(images(11), noise_of(11))
    network.logits(images(3), noise_of(3), draws=5)
    network.gradient(images(7), noise_of(7), total)
    assert rows.count == network.forward_rows
    assert network.backward_rows == eot * (8 if block else 7)
    if block is None:
        assert rows.count == 11 * eot + 15 + 7 * eot


@pytest.mark.parametrize("block", [None, 4])
def test_of_several_values_every_gradient_comes_from_one_pass(block: int | None) -> None:
    model, x = conv(), images(6)
    network = Network(model, block=block)
    with frozen(model):
        each = [network.gradient(x, noise_of(6), lambda z, i=i: z[:, i] - z[:, 0]) for i in (1, 2)]
        before = network.forward_rows, network.backward_rows
        both, logits = network.gradient(x, noise_of(6), lambda z: z[:, 1:3] - z[:, :1])
    rows = 8 if block else 6
    assert (network.forward_rows - before[0], network.backward_rows - before[1]) == (rows, 2 * rows)
    assert both.shape == (6, 2, *SHAPE)
    assert torch.equal(logits, each[0][1])
    for i, (alone, _) in enumerate(each):
        assert torch.allclose(both[:, i], alone, atol=1e-7)
        assert alone.abs().amax() > 0.01


def test_gradient_is_that_of_autograd() -> None:
    model, x = conv(), images(5).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0])
    value = margin(model(x), y)
    (expected,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        found, logits = Network(model).gradient(x.detach(), noise_of(5), margin, y)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(logits, model(x).detach(), atol=1e-6)
    assert not found.requires_grad
    assert not logits.requires_grad


def test_a_large_batch_is_cut() -> None:
    seen: list[int] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    network = Network(Answers(answer), max_batch=4)
    assert network.logits(images(10), noise_of(10)).shape == (10, 3)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize("block", [None, 8])
def test_no_images_no_answer(block: int | None) -> None:
    network = Network(mlp(), n_classes=4, block=block)
    assert network.logits(images(0), noise_of(0)).shape == (0, 4)
    gradient, logits = network.gradient(images(0), noise_of(0), total)
    assert (gradient.shape, logits.shape) == ((0, *SHAPE), (0, 4))


@pytest.mark.parametrize(("make", "channels"), [(mlp, 1), (conv, 1), (conv, 3)])
def test_blocks_make_a_row_the_same_in_any_company(make: Callable[..., nn.Module], channels: int) -> None:
    shape = (channels, *SHAPE[1:])
    model = make(shape=shape) if make is mlp else make(channels=channels)
    network = Network(model)
    network.block = network.uniform_block(shape)
    assert network.block >= 1
    x, y = images(50, shape), torch.arange(50) % 4
    whole = network.gradient(x, noise_of(50), margin, y)
    for index in (torch.tensor([17]), torch.tensor([3, 17, 40]), torch.randperm(50)):
        part = network.gradient(x[index], noise_of(50).take(index), margin, y[index])
        assert torch.equal(part[0], whole[0][index])
        assert torch.equal(part[1], whole[1][index])


@pytest.mark.parametrize(
    "mix",
    [lambda x: x.flatten(1)[:, :3] + x.mean(), lambda x: (x.flatten(1) - x.flatten(1).mean(0))[:, :3] * 5],
)
def test_a_model_that_mixes_its_batch_gets_blocks_of_one(mix: Callable[[Tensor], Tensor]) -> None:
    network = Network(Answers(mix))
    before = network.block
    assert network.uniform_block(SHAPE) == 1
    assert network.block is before


def test_a_model_that_knows_its_place_gets_blocks_of_one() -> None:
    network = Network(Answers(lambda x: x.flatten(1)[:, :3] + torch.arange(len(x)).reshape(-1, 1)))
    assert network.uniform_block(SHAPE) == 1


class Linear(nn.Module):
    """Logits w x + noise . x: what comes out of EOT is known."""

    def forward(self, x: Tensor) -> Tensor:
        noisy = (x + normal_like(x)).flatten(1)
        return torch.stack([noisy.square().sum(1), noisy.sum(1)], 1)


def test_eot_is_the_mean_over_its_draws() -> None:
    x, eot = images(6), 5
    network = Network(Linear(), eot=eot)
    noise = noise_of(6)
    gradient, logits = network.gradient(x, noise, lambda z: z[:, 0])
    # The gradient of |x + n|^2 is 2 (x + n): so it tells the mean of the noise, which the other logit tells too.
    mean = (gradient / 2 - x).flatten(1).sum(1)
    assert torch.allclose(logits[:, 1] - x.flatten(1).sum(1), mean, atol=1e-4)
    assert torch.allclose(network.logits(x, noise), logits, rtol=1e-5)
    one = Network(Linear(), eot=1).gradient(x, noise, lambda z: z[:, 0])[0]
    spread_one, spread = ((g / 2 - x).std() for g in (one, gradient))
    assert 0.7 / eot**0.5 < spread / spread_one < 1.4 / eot**0.5


def test_eot_gradient_of_a_linear_net_behind_noise_is_that_of_the_net() -> None:
    linear = filled(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    x = images(4, low=0.4, high=0.6)
    plain = Network(linear).gradient(x, noise_of(4), total)[0]
    defended = Network(RandomNoise(sigma=0.02).wrap(linear), eot=64)
    noisy = defended.gradient(x, noise_of(4), total)[0]
    assert nn.functional.cosine_similarity(noisy.flatten(1), plain.flatten(1)).min() > 0.99


def test_noise_of_a_row_belongs_to_the_row() -> None:
    network = Network(Linear(), eot=2)
    x, noise = images(9), noise_of(9, draw=3)
    whole = network.logits(x, noise)
    index = torch.tensor([8, 2, 5])
    assert torch.equal(network.logits(x[index], noise.take(index)), whole[index])
    assert not torch.equal(network.logits(x, noise_of(9, draw=4)), whole)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_low_precision_only_where_it_is_asked_for(precision: str) -> None:
    model, x = mlp(), images(6)
    network = Network(model, precision=precision)
    exact = Network(model).logits(x, noise_of(6))
    assert torch.equal(network.logits(x, noise_of(6)), exact)
    low = network.logits(x, noise_of(6), low=True)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert torch.allclose(low, exact, atol=0.1)
    gradient, logits = network.gradient(x, noise_of(6), total, low=True)
    assert gradient.dtype == logits.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_low_precision_is_ignored_where_there_is_none() -> None:
    model, x = mlp(), images(3)
    assert torch.equal(Network(model).logits(x, noise_of(3), low=True), Network(model).logits(x, noise_of(3)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(bad: float) -> None:
    def answer(x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3] * 1
        logits[1, 2] = bad
        return logits

    with pytest.raises(UserError, match=r"^model: expected finite logits, got NaN or infinity for 1 of 4 images"):
        Network(Answers(answer)).logits(images(4), noise_of(4))
    with pytest.raises(UserError, match=r"^model: expected finite logits"):
        Network(Answers(answer)).gradient(images(4), noise_of(4), total)


def test_huge_but_finite_logits_are_logits() -> None:
    network = Network(Answers(lambda x: torch.full((len(x), 3), 3e38)))
    assert torch.isfinite(network.logits(images(4), noise_of(4))).all()


def test_a_gradient_that_is_no_number_is_no_step() -> None:
    network = Network(Answers(lambda x: (x.flatten(1)[:, :2] * 0).sqrt()))
    gradient, _ = network.gradient(images(3), noise_of(3), total)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_what_does_not_depend_on_the_image_has_no_gradient() -> None:
    for answer in (lambda x: torch.ones(len(x), 2), lambda x: x.detach().flatten(1)[:, :2]):
        gradient, _ = Network(Answers(answer)).gradient(images(3), noise_of(3), total)
        assert not gradient.any()


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda x: x.flatten(1)[:, :5], r"got \(3, 5\)"),
        (lambda x: x.flatten(1)[:2, :4], r"got \(2, 4\)"),
        (lambda x: x, r"got \(3, 1, 6, 6\)"),
        (lambda x: {"logits": x}, "got dict"),
        (lambda x: None, "got NoneType"),
    ],
)
def test_answers_that_are_no_logits(answer: Callable[[Tensor], Any], came: str) -> None:
    with pytest.raises(UserError, match=came) as raised:
        Network(Answers(answer), n_classes=4).logits(images(3), noise_of(3))
    assert "model: expected logits of shape (3, 4)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_raises_is_named_with_its_own_traceback() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")

    with pytest.raises(PluginError, match=r"^model: the network") as raised:
        Network(Answers(fails)).logits(images(2), noise_of(2))
    assert "\n" not in str(raised.value)
    assert "(2, 1, 6, 6)" in str(raised.value)
    assert "in fails" in "".join(raised.value.__notes__)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_the_random_state_is_left_alone() -> None:
    network = Network(RandomNoise().wrap(mlp()), eot=2)
    before = torch.random.get_rng_state()
    network.gradient(images(3), noise_of(3), total)
    network.uniform_block(SHAPE)
    assert torch.equal(torch.random.get_rng_state(), before)
