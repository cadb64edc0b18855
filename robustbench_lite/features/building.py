"""A construction carried out over a training set, block by block, so that a killed build goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attack import Attack
from ..data.dataset import Dataset
from ..errors import UserError
from ..network import exact_float32, frozen, placed
from ..registry import source_hash
from ..rows import copied
from ..running import Interrupted
from ..streams import Stream
from . import storage
from .construction import Block, Construction, Made, Workshop
from .parts import Parts

if TYPE_CHECKING:
    from ..models import LoadedModel

ROWS = 512  # images of the source in a block


@dataclass(frozen=True)
class Built:
    """A constructed data set: its folder, what it says of itself, and whether it was there before."""

    folder: Path
    said: dict[str, Any]
    known: bool


def describe(
    construction: Construction,
    model: LoadedModel,
    data: Dataset,
    index: Tensor,
    *,
    seed: int,
    device: torch.device | str,
) -> dict[str, Any]:
    """All that decides what is made, as plain JSON values: the same description, the same images to the last bit.

    device: by its type, cpu or cuda. Where weights lie does not decide; their SHA-256 does.
    """
    from .. import __version__

    return {
        "construction": construction.name,
        "symbol": construction.symbol,
        "options": dataclasses.asdict(construction),
        "source_sha256": _sources(construction),
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "recipe": model.recipe,
        },
        "dataset": {
            "name": data.name,
            "split": data.split,
            "n": len(data),
            "fingerprint": data.fingerprint,
            "samples": len(index),
            "index_sha256": hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest(),
        },
        "seed": seed,
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "version": __version__,
    }


def _sources(construction: Construction) -> dict[str, str | None]:
    """SHA-256 of the file of the construction's class, of each class that it stands on, and of what it works with."""
    classes = [cls for leaf in (type(construction), *construction.works_with) for cls in leaf.__mro__]
    known = (object, Construction, Attack)
    return {f"{cls.__module__}.{cls.__qualname__}": source_hash(cls) for cls in classes if cls not in known}


def build(
    construction: Construction,
    model: LoadedModel,
    data: Dataset,
    *,
    out: Path | str,
    index: Tensor | None = None,
    test: Dataset | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Built:
    """Write the data set that a construction makes of `data` to the folder `out`.

    out: receives `train-00000-of-00001.parquet`, and of `test` the images and right labels as they are, so that
    `parquet:OUT` learns from the one and is tested on the other. Every image is drawn for by streams of its own (seed
    and place) and computed in blocks of fixed rows: neither `batch_size` nor a stop on the way changes a bit.
    index: (n,) int64, the images of `data` to be used; default all. stop: asked between blocks of 512 images; what is
    done by then is kept in `OUT.building`, and the same call goes on with it.

    A data set that is there already and was made the same way is left as it is. Raises UserError for a folder that
    holds something else, for a network that the construction cannot use, and where nothing is left; RecordError for a
    corrupt or foreign file in the way, which is left alone; Interrupted when `stop` says so.
    """
    index = torch.arange(len(data)) if index is None else index
    if batch_size < 1:
        raise UserError(f"--batch-size must be >= 1, got {batch_size}")
    storage.check_shape(data)
    construction = construction.resolve(data)
    said = describe(construction, model, data, index, seed=seed, device=device)
    folder = Path(out).expanduser()
    if (folder / storage.TRAIN).exists():
        found = storage.read_said(folder / storage.TRAIN)
        _same(found, said, folder)
        return Built(folder, found, known=True)
    if folder.exists() and (not folder.is_dir() or not _only_test(folder)):
        raise UserError(f"--out: {str(folder)!r} is there and holds something else; give the name of a new folder")
    if not folder.parent.exists():
        raise UserError(f"--out: no such folder {str(folder.parent)!r}; make it first")
    with placed(model.module, device) as module, frozen(module), exact_float32():
        workshop = Workshop(data, module, seed=seed, device=device)
        construction.check(workshop)
        parts = Parts(folder.with_name(folder.name + ".building"), said, data.classes)
        with parts.locked():
            for number, block in enumerate(index.split(ROWS)):  # type: ignore[no-untyped-call]
                if not parts.has(number):
                    if stop is not None and stop():
                        raise Interrupted(f"stopped; the same command goes on with {parts.folder}")
                    parts.add(number, _columns(construction, workshop, block, batch_size))
                if progress is not None:
                    progress(len(block))
            parts.finish(folder, test)
    return Built(folder, storage.read_said(folder / storage.TRAIN), known=False)


def _only_test(folder: Path) -> bool:
    """Whether the folder is empty, or holds what a build leaves that was killed between its two files."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")} <= {storage.TEST}


def _same(found: dict[str, Any], said: dict[str, Any], folder: Path) -> None:
    plain = json.loads(json.dumps(said))
    other = [name for name in plain if found.get(name) != plain[name]]
    if other:
        raise UserError(
            f"--out: {str(folder)!r} holds another data set ({', '.join(other)} differ); "
            "give the name of a new folder, or move this one away"
        )


def _columns(construction: Construction, workshop: Workshop, index: Tensor, batch_size: int) -> dict[str, Any]:
    """The rows of one block, made in batches."""
    made: list[dict[str, Tensor]] = []
    for part, x, y in workshop.data.blocks(index, batch_size):
        place, device = part.to(workshop.device), workshop.device
        stream = Stream(torch.zeros_like(place)).child(f"features {workshop.seed}").child(place)
        block = Block(place, x.to(device), y.to(device), stream)
        made.append(_rows(construction.make(workshop, copied(block)), block))
    joined = {name: torch.cat([rows[name] for rows in made]) for name in made[0]}
    pixels = joined.pop("pixels")
    return {"image": storage.encode(pixels), **{name: values.numpy() for name, values in joined.items()}}


def _rows(made: Made, block: Block) -> dict[str, Tensor]:
    """What is kept of a batch, on the CPU; distances are those of the images as they are stored."""
    pixels = storage.to_bytes(made.images)
    moved = (pixels.double() / 255 - block.x.cpu().double()).flatten(1).square().sum(1).sqrt()
    columns = {
        "pixels": pixels,
        "label": made.labels,
        "source_index": block.index,
        "source_label": block.y,
        "distance": moved,
        "forwards": made.forwards,
        "backwards": made.backwards,
        **made.notes,
    }
    kept = slice(None) if made.kept is None else made.kept.cpu()
    return {name: values.cpu()[kept] for name, values in columns.items()}
