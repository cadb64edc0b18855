"""Constructed data sets on disk: Parquet as `parquet:PATH` reads it, with where each came from in its metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.dataset import BLOCK, Dataset, as_pixels
from ..errors import RecordError, UserError
from ..files import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "robustbench-lite features 1"
KEY = b"robustbench_lite"
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


def to_bytes(images: Tensor) -> Tensor:
    """Images (n, C, H, W) in [0, 1] as uint8: each number moved to the nearest of 256, by at most 1/510."""
    return images.detach().cpu().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def stored(images: Tensor) -> Tensor:
    """Images (n, C, H, W) as they will be read again, float32, where they were."""
    return as_pixels(to_bytes(images)).to(images.device)


def check_shape(data: Dataset) -> None:
    """Raise UserError for images that PNG does not hold: other than one channel or three."""
    if data.shape[0] not in (1, 3):
        raise UserError(f"--dataset: images are kept as PNG, grey or in colour; these have {data.shape[0]} channels")


def encode(images: Tensor) -> list[bytes]:
    """Images (n, C, H, W) uint8 as PNG."""
    from PIL import Image

    found = []
    for pixels in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
        found.append(file.getvalue())
    return found


def schema(classes: Sequence[str], said: Mapping[str, Any], notes: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns, with the classes' names where the Hugging Face hub keeps them and `said` as our own metadata.

    image: PNG. label: what is learned. source_index, source_label: of the training image that it was made of.
    """
    import pyarrow as pa

    fields = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
        pa.field("source_index", pa.int64()),
        pa.field("source_label", pa.int64()),
        *(pa.field(name, kind) for name, kind in notes.items()),
    ]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        **{f.name: {"dtype": str(f.type), "_type": "Value"} for f in fields[2:]},
    }
    metadata = {
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
        KEY: json.dumps({"format": FORMAT, **said}, sort_keys=True).encode(),
    }
    return pa.schema(fields, metadata=metadata)


def table_of(columns: Mapping[str, Any], kind: pa.Schema) -> pa.Table:
    """Rows of this schema; `image` as a list of PNG."""
    import pyarrow as pa

    images = [{"bytes": data, "path": None} for data in columns["image"]]
    arrays = [pa.array(images if name == "image" else columns[name], type=kind.field(name).type) for name in kind.names]
    return pa.Table.from_arrays(arrays, schema=kind)


def write_table(path: Path, tables: Iterator[pa.Table] | Sequence[pa.Table], kind: pa.Schema) -> None:
    """A Parquet file, whole or not at all, a row group a table."""
    import pyarrow.parquet as pq

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, kind, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)

    write_whole(path, write)


def write_real(path: Path, data: Dataset, said: Mapping[str, Any]) -> None:
    """A split of the source as it is, with its right labels: what the networks are tested on."""
    kind = schema(data.classes, said, {})

    def tables() -> Iterator[pa.Table]:
        for index, x, y in data.blocks(torch.arange(len(data)), BLOCK):
            columns = {"image": encode(to_bytes(x)), "label": y.numpy()}
            yield table_of({**columns, "source_index": index.numpy(), "source_label": y.numpy()}, kind)

    write_table(path, tables(), kind)


def read_said(path: Path) -> dict[str, Any]:
    """What a file of ours says of itself. RecordError, naming it, for one that is corrupt or not ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
        said = json.loads(metadata[KEY])
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecordError(f"{path} is not a readable Parquet file ({reason}); it is left alone") from None
    except (KeyError, ValueError):
        raise RecordError(f"{path} is no data set that rbl features build wrote; it is left alone") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise RecordError(f"{path} is no data set that rbl features build wrote; it is left alone")
    return said


def provenance(folder: Path | str, *, argument: str = "PATH") -> dict[str, Any]:
    """What a constructed data set says of itself: source, network, construction, seed, version.

    Raises UserError for a folder without one, RecordError as `read_said`.
    """
    folder = Path(folder).expanduser()
    file = folder / TRAIN
    if not file.is_file():
        raise UserError(f"{argument}: no {TRAIN} in {str(folder)!r}; make one with rbl features build --out")
    return read_said(file)


def read_rows(folder: Path | str, *columns: str) -> dict[str, Any]:
    """Columns of the constructed images as arrays, by name; `image` is not among them."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(folder) / TRAIN, columns=list(columns))
    return {name: table[name].to_numpy() for name in columns}
