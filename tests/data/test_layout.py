"""Folders of images as people have them: split names, stray files, class orders; and the line on what was read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite.data import load_dataset, reading_line
from robustbench_lite.data.layout import split_name
from robustbench_lite.errors import UserError

Make = Callable[..., Any]
TUMOURS = ("glioma", "none", "pituitary")


def write(path: Path, *, seed: int = 0, size: tuple[int, int] = (6, 6), **options: Any) -> Path:
    """A grey image; what it holds depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def fill(root: Path, *folders: str, classes: tuple[str, ...] = TUMOURS, count: int = 2) -> Path:
    for folder in folders:
        for name in classes:
            for i in range(count):
                write(root / folder / name / f"{i}.png", seed=i)
    return root


def line(root: Path, split: str = "test") -> str:
    return reading_line("folder:x", load_dataset(f"folder:{root}", split=split))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "Valid"), ("train_set", "dev"), ("seg_train", "seg_test"), ("trn", "test2017")],
)
def test_splits_are_known_by_their_usual_names(train: str, test: str, tmp_path: Path) -> None:
    fill(tmp_path, train, count=3)
    fill(tmp_path, test)
    told = "folder:x: 3 classes (glioma, none, pituitary), 6 test images, 9 training images"
    assert line(tmp_path) == line(tmp_path, "train") == told
    assert load_dataset(f"folder:{tmp_path}").labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_splits_name_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    found = {load_dataset(f"folder:{fill(tmp_path / name, name)}").fingerprint for name in ("test", "Testing", "VAL")}
    found.add(load_dataset(f"folder:{fill(tmp_path / 'plain', '.')}").fingerprint)
    assert len(found) == 1


def test_names_that_are_no_splits() -> None:
    for name in ("test tube", "training shoes", "trainer", "car", "0", "devon", "class-train", "Übung"):
        assert split_name(name) is None, name


def test_splits_within_the_class_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, ".", classes=("Train",), count=3)
        fill(tmp_path / name, ".", classes=("Test",))
    assert line(tmp_path) == (
        "folder:x: 2 classes (a, b), 4 test images, 6 training images; splits found within the class folders"
    )


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ({"archive/train": TUMOURS, "archive/test": TUMOURS}, "the splits are in archive/; give folder:"),
        ({".": ("Training", "Testing")}, "Testing/ and Training/ are named as a split, but without class folders"),
        ({".": ("car", "plane"), "train": ("steam", "diesel")}, "is train/ a split or a class?"),
        ({"train": ("cat", "dog"), "val": ("images",)}, "no class in common"),
        ({"train": ("Cat", "dog"), "test": ("cat", "dog")}, "one class? Give it one name"),
        ({"test": TUMOURS, "Testing": TUMOURS}, "Testing/ and test/ both hold the split test"),
    ],
)
def test_folders_with_two_readings_are_asked_about(folders: Any, told: str, tmp_path: Path) -> None:
    for folder, classes in folders.items():
        fill(tmp_path, folder, classes=classes)
    with pytest.raises(UserError) as error:
        load_dataset(f"folder:{tmp_path}")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_folders_beside_splits_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    fill(tmp_path, "unlabelled", classes=(".",))
    fill(tmp_path, "val", classes=(".",))
    told = line(tmp_path)
    assert told.endswith("; folders ignored: unlabelled; without class folders, so ignored: val/")


def test_a_test_folder_takes_the_class_list_of_training(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    fill(tmp_path, "test", classes=("none", "pituitary"))
    for spec in (tmp_path, tmp_path / "test"):
        data = load_dataset(f"folder:{spec}")
        assert (data.classes, data.labels.tolist()) == (TUMOURS, [1, 1, 2, 2])
        assert "3 classes (glioma, none, pituitary), images of 2 of them" in reading_line("x", data)


@pytest.mark.parametrize(
    "name", ["a.gif", "a.webp", "a.tiff", "a.BMP", "a.Ppm", "a.jp2", "a.JPEG", "a.avif", "a.tga", "a.ico", "a.dds"]
)
def test_whatever_pillow_reads_is_an_image(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sizes": [(16, 16)]} if name == "a.ico" else {}
    write(tmp_path / "one" / name, size=(16, 16), **options)
    write(tmp_path / "two" / "b.png", size=(16, 16))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.labels.tolist() == [0, 1] and data.reading.ignored == {}
    assert data.images(torch.arange(2)).shape[2:] == (16, 16)


def test_files_that_are_no_images_are_counted_and_clutter_is_not(tmp_path: Path) -> None:
    fill(tmp_path, "Testing")
    folder = tmp_path / "Testing" / "none"
    os.rename(folder / "0.png", folder / "0")  # an image without an extension
    for name in ("notes.txt", "more.TXT", "labels.csv", "readme"):
        (folder / name).write_text("no image")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (folder / name).write_bytes(b"\0\0\0\1Bud1")
    (folder / "__MACOSX").mkdir()
    (tmp_path / "Testing" / "__MACOSX").mkdir()
    assert line(tmp_path).endswith("6 test images, 4 files ignored: .csv, .txt, without extension")


def test_a_folder_without_a_readable_image_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"no images in .* but 2 files that Pillow cannot read \(.heic\)"):
        load_dataset(f"folder:{tmp_path}")


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (51, 255)]
    for name in ("a/x.gif", "b/y.tiff"):
        (tmp_path / name).parent.mkdir()
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    data = load_dataset(f"folder:{tmp_path}")
    x = data.images(torch.arange(2))
    assert torch.allclose(x, torch.full_like(x, 0.2))
    assert reading_line("x", data).endswith("; 2 with several frames, of which the first is read")


def test_links(tmp_path: Path) -> None:
    fill(tmp_path, ".", classes=("a", "b"))
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "more.png").symlink_to(tmp_path / "a" / "0.png")
    assert line(tmp_path) == "folder:x: 2 classes (a, b), 5 test images, 1 file ignored: links to folders above"
    data = load_dataset(f"folder:{tmp_path}")
    assert data.labels.tolist().count(1) == 3
    (tmp_path / "b" / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"b/lost.png is a link to a missing file; mend or remove it"):
        load_dataset(f"folder:{tmp_path}")


def test_a_broken_image_is_one_line_with_its_path(tmp_path: Path) -> None:
    fill(tmp_path, ".", classes=("a", "b"))
    whole = (tmp_path / "b" / "1.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    data = load_dataset(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"b/1.png cannot be decoded as an image \(.+\); mend or remove it"):
        data.images(torch.arange(4))


def test_numbers_are_sorted_as_torchvision_sorts_them_unless_asked(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    fill(tmp_path, ".", classes=tuple(str(i) for i in range(12)), count=1)
    data = load_dataset(f"folder:{tmp_path}")
    assert list(data.classes) == ImageFolder(str(tmp_path)).classes
    assert "class order as torchvision, by text: 0, 1, 10, ..., 9" in line(tmp_path)
    assert "--class-names numeric" in line(tmp_path)
    other = load_dataset(f"folder:{tmp_path}", classes=("numeric",))
    assert other.classes == tuple(str(i) for i in range(12))
    assert "class order" not in reading_line("x", other)
    assert [other.classes[y] for y in other.labels] == [data.classes[y] for y in data.labels]
    assert other.fingerprint != data.fingerprint


def test_the_line_is_short_for_many_classes(tmp_path: Path) -> None:
    fill(tmp_path, ".", classes=tuple(f"n{i:08d}" for i in range(60)), count=1)
    assert line(tmp_path) == "folder:x: 60 classes (n00000000, n00000001, n00000002, ..., n00000059), 60 test images"


def test_warnings_of_pillow_are_not_in_the_way(tmp_path: Path) -> None:
    fill(tmp_path, ".", classes=("a", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset(f"folder:{tmp_path}")) == 4
