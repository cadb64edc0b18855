"""Images and labels in the forms that people have them in: understood where there is one reading, else asked about."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_lite.data import load_dataset, read_images, read_labels, reading_line
from robustbench_lite.errors import UserError

Y = torch.tensor([2, 0, 1, 1, 2, 3])
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (Y, None),
        (Y.int(), None),
        (Y.numpy().astype(np.uint8), None),
        (Y.tolist(), None),
        (Y[:, None], "labels (6, 1) read as (6,)"),
        (Y[None].numpy(), "labels (1, 6) read as (6,)"),
        (torch.nn.functional.one_hot(Y), "one-hot labels (6, 4) read as (6,)"),
        (torch.nn.functional.one_hot(Y).bool().numpy(), "one-hot labels (6, 4) read as (6,)"),
        (Y.double(), "float64 labels read as whole numbers"),
        (Y + 1, "labels 1 to 4 read as 0 to 3"),
        ([str(y) for y in Y.tolist()], "labels as text read as numbers"),
        ([str(float(y)) for y in Y.tolist()], "labels as text read as numbers"),
        (np.array(["b", "d", "C", "C", "b", "a"]), "labels read as class names"),
        (np.array([b"b", b"d", b"c", b"c", b"b", b"a"]), "labels read as class names"),
    ],
)
def test_labels_with_one_reading(labels: Any, told: str | None) -> None:
    y, notes = read_labels("y", labels, count=6, classes=4, names=["d", "c", "b", "a"])
    assert y.tolist() == Y.tolist() and y.dtype == torch.int64
    assert notes == (() if told is None else (told,))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (Y + 2, "y must be in 0..3 for 4 classes, got 5"),
        (torch.tensor([1, 1, 2, 2, 4, 4]), "got 1 to 4; do they start at 1? Then subtract 1"),
        (torch.full((6, 4), 0.25), "probabilities; is it y.argmax(1)?"),
        (torch.ones(6, 4), "rows with several or none"),
        (torch.ones(6, 3), "y must be (6,) or one-hot (6, 4), got (6, 3)"),
        (Y * float("nan"), "whole numbers, got nan"),
        (torch.where(Y > 1, 1, -1), "two classes -1 and 1 are (y + 1) / 2"),
        (["cat", "dog"] * 3, "which output of the network is which class?"),
        (Y[:5], "y must be (6,), one for each image, got (5,)"),
        ([*Y.tolist(), [1]], "y must be an array of one shape"),
    ],
)
def test_labels_with_no_or_several_readings(labels: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        read_labels("y", labels, count=6, classes=4)
    assert told in str(error.value) and "\n" not in str(error.value)


EDGE = X.clone()
EDGE[0, 0, 0, 0], EDGE[1, 0, 0, 0] = 1.0000001192092896, -3e-8


@pytest.mark.parametrize(
    ("images", "expected", "told"),
    [
        (X.double().numpy(), X, None),
        (X.half(), X.half().float(), None),
        (EDGE, EDGE.clamp(0, 1), "values from -2.99999989e-08 to 1.00000012 clipped to [0, 1]"),
        (X[:, 0], X, "(6, 8, 8) read as grey images (N, H, W)"),
        (X.permute(0, 2, 3, 1), X, "(6, 8, 8, 1) read as (N, H, W, C)"),
        (X.expand(-1, 3, -1, -1).permute(0, 2, 3, 1), X.expand(-1, 3, -1, -1), "(6, 8, 8, 3) read as (N, H, W, C)"),
        ((X * 255).long(), (X * 255).long() / 255, "int64 images from"),
        (X > 0.5, (X > 0.5).float(), "bool images read as 0 and 1"),
    ],
)
def test_images_with_one_reading(images: Any, expected: torch.Tensor, told: str | None) -> None:
    x, notes = read_images("x", images, count=6)
    pixels = x / 255 if x.dtype == torch.uint8 else x
    assert torch.equal(pixels, expected)
    assert len(notes) == (told is not None) and all(note.startswith(str(told)) for note in notes)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (X * 255, "divide by 255"),
        (X * 2 - 1, "rbl.Normalize(model, 0.5, 0.5), or --mean 0.5 --std 0.5"),
        ((X - 0.45) / 0.22, "they look standardised: give the images before that, x * std + mean, and put the"),
        (X * 255 - 110, "standardised, in pixels of 255"),
        (X * 1.007 - 0.004, "clipped with x.clamp(0, 1)"),
        (X * 16, "divide by the range"),
        (X * 65535, "65535 for 16 bits"),
        ((X * 65535).int(), "divide by the largest value"),
        ((X * 255 - 128).to(torch.int8), "were they uint8?"),
        ((X > 0.5).byte(), "is 1 white?"),
        (X[0].repeat(3, 1, 1), "for 1 label; a single image is x[None]"),
        (X.flatten(1), "reshape flat images to (N, 1, 8, 8)"),
        (X[0, 0, 0], "x must be (N, C, H, W), got (8,)"),
    ],
)
def test_images_with_no_or_several_readings(images: torch.Tensor, told: str) -> None:
    with pytest.raises(UserError, match=r"^x must be ") as error:
        read_images("x", images, count=1 if images.ndim == 3 else len(images))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("channels", ["first", "last"])
@pytest.mark.parametrize(
    ("images", "order"),
    [(X[:, 0].permute(1, 2, 0), (2, 0, 1)), (X.expand(-1, 3, -1, -1).permute(2, 3, 1, 0), (3, 2, 0, 1))],
)
def test_images_that_come_last_are_to_be_moved(images: torch.Tensor, order: tuple[int, ...], channels: Any) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"the images come last; give them first, as in np.transpose(x, {order})")
    ):
        read_images("x", images, count=6, channels=channels)
    moved = images.permute(order)
    channels_last = moved.permute(0, 2, 3, 1) if moved.ndim == 4 and channels == "last" else moved
    assert read_images("x", channels_last, count=6, channels=channels)[0].shape == (
        6,
        1 if images.ndim == 3 else 3,
        8,
        8,
    )


def test_npz_in_other_forms(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    bytes_ = (X * 255).to(torch.uint8)
    forms: list[tuple[dict[str, Any], str]] = [
        ({"images": bytes_.numpy(), "labels": Y}, "(6, 1, 8, 8) read as (N, C, H, W)"),
        ({"images": bytes_[:, 0], "labels": Y[:, None]}, "labels (6, 1) read as (6,)"),
        ({"images": bytes_.permute(0, 2, 3, 1), "labels": torch.nn.functional.one_hot(Y)}, "one-hot labels"),
        ({"images": bytes_[:, 0], "labels": Y + 1, "n_classes": 4}, "labels 1 to 4 read as 0 to 3"),
        ({"images": bytes_[:, 0], "labels": [f"c{y}" for y in Y]}, "classes sorted by name: c0, c1, c2, c3"),
    ]
    for arrays, told in forms:
        np.savez(file, **arrays)
        data = load_dataset(f"npz:{file}")
        assert data.labels.tolist() == Y.tolist() and len(data.classes) == 4, told
        assert torch.equal(data.images(torch.arange(6)), bytes_ / 255)
        assert f"; {told}" in reading_line("x", data)


def test_both_splits_of_an_npz_have_one_class_list(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    arrays = {"images": images, "labels": ["b", "c", "c"], "train_images": images, "train_labels": ["a", "b", "c"]}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    data = load_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert (data.classes, data.labels.tolist()) == (("a", "b", "c"), [1, 2, 2])
    assert reading_line("x", data).startswith(
        "x: 3 classes (a, b, c), images of 2 of them, 3 test images, 3 training images"
    )


def test_parquet_labels_in_other_forms(tmp_path: Path, write_parquet: Make, encode: Make, pixels: Make) -> None:
    data = [encode(pixels(4, 4))] * 3
    for labels, classes, y in (
        (["cat", "dog", "cat"], ("cat", "dog"), [0, 1, 0]),
        ([1.0, 0.0, 2.0], ("0", "1", "2"), [1, 0, 2]),
        ([[0, 1], [1, 0], [0, 1]], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
    ):
        write_parquet(tmp_path / "test-0.parquet", data, labels)
        found = load_dataset(f"parquet:{tmp_path}")
        assert (found.classes, found.labels.tolist()) == (classes, y)


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "int16"])
def test_whole_numbers_of_any_type_are_bytes_where_they_can_be(kind: str) -> None:
    pixels = (X.numpy() * 255).round().astype(kind)
    pixels[0, 0, 0, 0] = 255
    images, notes = read_images("x", pixels, count=6)
    assert images.dtype == torch.uint8 and int(images[0, 0, 0, 0]) == 255
    assert notes == (f"{kind} images from {pixels.min()} to 255 read as bytes, divided by 255",)
    with pytest.raises(UserError, match=f"got {kind} from 0 to 30000; divide by the largest value"):
        read_images("x", np.where(pixels == 255, 30000, 0).astype(kind), count=6)
