"""Images moved to a class drawn at random: uniform, and independent of what they were."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from robustbench_lite.errors import UserError
from robustbench_lite.features.constructions.random import Random
from robustbench_lite.features.storage import to_bytes

from .works import CLASSES, block_of, images, made_by, same_in_parts, workshop


def test_targets_are_uniform_and_say_nothing_of_the_label() -> None:
    shop = workshop(images(3000))
    block = block_of(shop)
    targets = Random().targets(block, CLASSES)
    counts = torch.bincount(targets, minlength=CLASSES)
    assert chisquare(counts.numpy()).pvalue > 0.001
    table = torch.zeros(CLASSES, CLASSES).index_put_((block.y, targets), torch.ones(3000), accumulate=True)
    assert chi2_contingency(table.numpy()).pvalue > 0.001
    assert table.diagonal().min() > 0  # the own class is among them


def test_images_lie_in_the_ball_and_the_network_is_led_to_the_label() -> None:
    shop = workshop()
    made = made_by(Random(eps=0.7, steps=20), shop)
    x = shop.data.images(torch.arange(60))
    # What is stored is rounded to 8 bits, which adds at most 1/510 a number.
    assert (made.images - x).double().flatten(1).norm(dim=1).max() <= 0.7 + 4 / 510 + 1e-6
    assert torch.equal(to_bytes(made.images).float() / 255, made.images)
    with torch.no_grad():
        said = shop.module(made.images).argmax(1)
        before = shop.module(x).argmax(1)
    assert torch.equal(said == made.labels, made.notes["reached"])
    assert (said == made.labels).double().mean() > (before == made.labels).double().mean() + 0.3
    assert made.forwards.tolist() == [21] * 60
    assert made.backwards.tolist() == [20] * 60


def test_an_attack_by_another_name_and_norm() -> None:
    shop = workshop()
    made = made_by(Random(attack="fgsm", norm="linf", eps=0.1), shop)
    moved = (made.images - shop.data.images(torch.arange(60))).abs()
    assert moved.max() <= 0.1 + 1 / 510 + 1e-6
    assert moved.max() > 0.09
    assert made.backwards.tolist() == [1] * 60


def test_no_image_depends_on_another() -> None:
    same_in_parts(Random(eps=0.5, steps=4))
    same_in_parts(Random(eps=0.5, steps=4, attack_options="random_start=true"))


def test_eps_is_that_of_the_images_colours() -> None:
    assert Random().resolve(images()).eps == 2.0
    assert Random(eps=0.3).resolve(images()).eps == 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack": "ddn"}, r"attack: ddn keeps to no eps"),
        ({"attack": "auto"}, r"attack: auto is several attacks"),
        ({"attack": "uap"}, r"attack: uap learns from many images"),
        ({"attack": "tpgd"}, r"attack: tpgd cannot aim at a class"),
        ({"attack": "pdg"}, r"attack: unknown name 'pdg'; did you mean pgd"),
        ({"attack_options": "stepz=3"}, r"no option 'stepz'"),
        ({"eps": -1.0}, r"eps must be >= 0"),
        ({"steps": 0}, r"steps must be >= 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Random(**options)  # type: ignore[arg-type]


def test_a_norm_without_a_default_wants_eps() -> None:
    with pytest.raises(UserError, match=r"eps must be given for norm linf"):
        Random(norm="linf").resolve(images())
