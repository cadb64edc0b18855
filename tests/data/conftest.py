"""Small files laid out as the publishers of the data sets lay theirs out."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def random_pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def pixels() -> Callable[..., Pixels]:
    return random_pixels


@pytest.fixture(scope="session")
def encode() -> Callable[[Pixels], bytes]:
    return png


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[[str], Path]:
    """MNIST's files of 12 training and 5 test images in tmp_path/NAME/raw."""

    def write(name: str) -> Path:
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for prefix, count, seed in (("train", 12, 1), ("t10k", 5, 2)):
            images = random_pixels(count, 28, 28, seed=seed)
            labels = np.arange(count, dtype=np.uint8) % 10
            header = struct.pack(">4i", 0x0803, count, 28, 28)
            (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, count) + labels.tobytes())
        return tmp_path

    return write


class OldArray:
    """Pickles as numpy 1 on Python 2 did: the dtype's flags as 0 and 1, which some releases complain of."""

    def __init__(self, array: Pixels) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        rebuild, arguments, state = cast(Any, self.array.__reduce__())
        return rebuild, arguments, (*state[:2], OldDtype(), *state[3:])


class OldDtype:
    def __reduce__(self) -> Any:
        return np.dtype, ("u1", 0, 1)


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """CIFAR's pickles of 4 images a batch. torchvision checks MD5s: it is told those of these files."""
    from torchvision import datasets

    def write(classes: int) -> Path:
        cls = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
        folder = tmp_path / cls.base_folder
        folder.mkdir()
        key, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
        for attribute in ("train_list", "test_list"):
            listing = []
            for seed, (file, _) in enumerate(getattr(cls, attribute)):
                data = random_pixels(4, 3072, seed=seed + 10 * (attribute == "test_list"))
                content = pickle.dumps({"data": OldArray(data), key: [0, 1, classes - 1, 2]}, protocol=2)
                (folder / file).write_bytes(content)
                listing.append([file, hashlib.md5(content).hexdigest()])
            monkeypatch.setattr(cls, attribute, listing)
        content = pickle.dumps({names: [f"class {i}" for i in range(classes)]}, protocol=2)
        (folder / cls.meta["filename"]).write_bytes(content)
        monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": hashlib.md5(content).hexdigest()})
        return tmp_path

    return write


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Colour PNGs of 12x10, 5 cats and 4 dogs (one in a folder below), in tmp_path/pets."""
    root = tmp_path / "pets"
    for i in range(9):
        name = f"cat/{i}.png" if i < 5 else f"dog/{i}.PNG" if i < 8 else f"dog/more/{i}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(random_pixels(12, 10, 3, seed=i)))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    return root


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """A file as `datasets` writes it: images and labels, ClassLabel names in the schema's metadata."""

    def write(
        path: Path,
        images: list[bytes | None],
        labels: Any,
        *,
        names: list[str] | None = None,
        columns: tuple[str, str] = ("image", "label"),
        row_group_size: int = 3,
    ) -> Path:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = pa.array([{"bytes": data, "path": None} for data in images], type=kind)
        table = pa.table({columns[0]: rows, columns[1]: pa.array(labels)})
        if names is not None:
            label = {"names": names, "_type": "ClassLabel"}
            features = {columns[0]: {"_type": "Image"}, columns[1]: label}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group_size)
        return path

    return write
