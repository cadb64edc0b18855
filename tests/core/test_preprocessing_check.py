"""A network that is given images otherwise prepared than in training is told of, with what to do; others are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.data import load_dataset
from robustbench_lite.preprocessing_check import check_preprocessing, preparations

N = 200


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits")
    index = torch.arange(N)
    return data.images(index), data.labels[index]


@pytest.fixture(scope="module")
def net(digits: tuple[Tensor, Tensor]) -> Callable[[Callable[[Tensor], Tensor]], nn.Module]:
    """A network that was trained on the images as `of` prepares them."""

    def trained(of: Callable[[Tensor], Tensor]) -> nn.Module:
        train = load_dataset("digits", split="train")
        index = torch.arange(len(train))
        x, y = of(train.images(index)), train.labels
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.AvgPool2d(4), nn.Flatten(), nn.Linear(x[0].numel() // 16, 64), nn.ReLU(), nn.Linear(64, 10)
            )
            scale = float(x.std())
            optimiser = torch.optim.Adam(net.parameters(), 0.01 / max(1.0, scale))
            for _ in range(120):
                loss = nn.functional.cross_entropy(net(x), y)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return net.eval()

    return trained


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "turned": (lambda x: x.rot90(1, (2, 3)), "turn the images by 90 degrees"),
    "inverted": (lambda x: 1 - x, "invert the images"),
    "transposed": (lambda x: x.transpose(2, 3), "exchange rows and columns"),
    "scaled": (lambda x: 255 * x, "--mean 0 --std 1/255"),
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_network_made_for_other_images_is_found(
    way: str, digits: tuple[Tensor, Tensor], net: Callable[[Callable[[Tensor], Tensor]], nn.Module]
) -> None:
    of, advice = WAYS[way]
    model, (x, y) = net(of), digits
    (finding,) = check_preprocessing(model, x[:64], y[:64])
    assert finding.fatal and advice in finding.advice
    assert not check_preprocessing(model, of(x[:64]).contiguous(), y[:64])
    (told,) = check_preprocessing(model, x[:64], y[:64], stated=True)
    assert told.fatal == (way != "scaled")  # a stated normalisation says nothing of the orientation


def test_the_verdict_and_the_next_step_say_it(
    digits: tuple[Tensor, Tensor], net: Callable[[Callable[[Tensor], Tensor]], nn.Module]
) -> None:
    shift = nn.Parameter(torch.zeros(1), requires_grad=False)
    x, y = digits
    inner = net(lambda z: z)

    class Standardised(nn.Module):
        """Made for standardised images: what is not is another image to it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.shift = inner, shift

        def forward(self, z: Tensor) -> Tensor:
            logits: Tensor = self.inner((z * 0.5 + 0.5 + self.shift).clamp(0.0, 1.0))
            return logits

    model = Standardised().eval()
    clean = float((model(x).argmax(1) == y).float().mean())
    assert clean < 0.85 < float((model(2 * x - 1).argmax(1) == y).float().mean())
    with pytest.warns(UserWarning, match="prepared otherwise than in training"):
        found = rbl.evaluate(model, x, y, eps=0.02, attack_options={"steps": 3})
    assert found.verdict.startswith("unreliable: the images look prepared otherwise than in training")
    assert found.run.specification.next_step.startswith("--mean ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stated = rbl.evaluate(rbl.Normalize(model, 0.5, 0.5), x, y, eps=0.02, attack_options={"steps": 3})
        nothing = rbl.evaluate(rbl.Normalize(model, 0.0, 1.0), x, y, eps=0.02, attack_options={"steps": 3})
    assert "prepared" not in stated.verdict and "prepared" not in nothing.verdict
    assert stated.clean_accuracy > 0.85 and nothing.clean_accuracy == found.clean_accuracy


def test_labels_off_by_one_and_random_networks_are_not_blamed_on_the_images(
    digits: tuple[Tensor, Tensor], net: Callable[[Callable[[Tensor], Tensor]], nn.Module]
) -> None:
    x, y = digits
    assert not check_preprocessing(net(lambda z: z), x[:64], (y[:64] + 1) % 10)
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            guessing = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10))
        assert not check_preprocessing(guessing, x[:64], y[:64])


def test_a_network_that_is_right_costs_one_pass_an_image(
    digits: tuple[Tensor, Tensor], net: Callable[[Callable[[Tensor], Tensor]], nn.Module]
) -> None:
    model, seen = net(lambda z: z), list[int]()

    def counted(z: Tensor) -> Tensor:
        seen.append(len(z))
        logits: Tensor = model(z)
        return logits

    check_preprocessing(counted, digits[0][:64], digits[1][:64])
    assert sum(seen) == 64
    assert len(list(preparations(digits[0]))) <= 12


def test_images_that_use_a_part_of_their_range_are_to_be_scaled(
    digits: tuple[Tensor, Tensor], net: Callable[[Callable[[Tensor], Tensor]], nn.Module]
) -> None:
    (finding,) = check_preprocessing(net(lambda z: z), digits[0][:64] * 16 / 255, digits[1][:64])
    assert finding.advice.startswith("divide the pixels by their largest value")


def test_what_raises_or_answers_with_no_numbers_is_passed_over(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:64], digits[1][:64]

    def picky(z: Tensor) -> Tensor:
        if not torch.equal(z, x):
            raise ValueError("images in [0, 1] alone")
        return torch.zeros(len(z), 10)

    assert check_preprocessing(picky, x, y) == []
