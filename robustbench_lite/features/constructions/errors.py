"""Images as they are that a network trained a little gets wrong, with its wrong labels: a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_lite.features.construction import Block, Construction, Made, Workshop
from robustbench_lite.network import Noise


@dataclass(frozen=True)
class Errors(Construction):
    """Every image that the network gets wrong, unchanged, with what the network says of it.

    Not one label is right and nothing was added to an image, and yet a network learns from it: labels that a network
    gave carry what it knows (Wallace 2019, doi:10.23915/distill.00019.6). What D_rand and D_det teach must be seen
    beside this.
    """

    name: ClassVar[str] = "errors"
    summary: ClassVar[str] = "unchanged images with the wrong labels of a network trained a little: a control"
    source: ClassVar[str] = "Wallace 2019, doi:10.23915/distill.00019.6"
    symbol: ClassVar[str] = "errors"
    network: ClassVar[str] = "early"

    def make(self, workshop: Workshop, block: Block) -> Made:
        """Those that are wrong."""
        none = torch.zeros_like(block.y)
        said = workshop.network.logits(block.x, Noise(block.stream, none)).argmax(1)
        return Made(block.x, said, none + 1, none, kept=said != block.y)
