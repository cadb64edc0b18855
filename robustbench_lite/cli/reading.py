"""The data set of a command: read, its classes in the order of the networks', and described before the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import Dataset
    from ..data_request import DataRequest


def read_data(
    request: DataRequest, models: Iterable[tuple[str, str | None]] = (), *splits: str
) -> tuple[DataRequest, list[Dataset]]:
    """Read splits of a data set and print one line on what was read.

    Args:
        request: The data set.
        models: The networks, each with its weights. Where these say the names of their classes, and the data set has
            no others, labels are numbered by that list.
        splits: Which to read; none: that of the request.

    Returns:
        The request by which the splits were read, which holds them, and the splits.

    Raises:
        UserError: For data that cannot be read, and for networks whose classes are in different orders.
    """
    from ..data import reading_line
    from ..models.classes import aligned
    from .terminal import note

    request = aligned(request, list(models))
    read = [request.load(split) for split in splits or (request.split,)]
    note(reading_line(request.dataset, *read))
    return request, read
