"""The networks of timm, made to fit a data set's channels, size and classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import nn

from ...data.decode import Framing
from ...errors import UserError
from ..library import class_mismatch, downloading, hub_within_reach, importing, registered
from ..normalize import Normalize


class Timm:
    """Any name of `timm.list_models()`, with or without the tag of its weights, asked for as `timm:NAME`."""

    name: ClassVar[str] = "timm"
    summary: ClassVar[str] = "the networks of timm (PyTorch Image Models), as timm:NAME"
    source: ClassVar[str] = "Wightman 2019, doi:10.5281/zenodo.4414861"

    def names(self) -> list[str]:
        """The architectures, without the tags of their weights."""
        return list(registered("timm")) or [str(name) for name in importing("timm").list_models()]

    def preprocessing(self, architecture: str) -> dict[str, Any]:
        """What the published weights expect: mean, std, input_size."""
        config = self._config(architecture)
        return {
            "mean": [float(m) for m in config.mean],
            "std": [float(s) for s in config.std],
            "input_size": int(config.input_size[-1]),
        }

    def framing(self, architecture: str) -> Framing | None:
        """The resizing and cropping of the published weights' configuration; None where they add borders."""
        config = self._config(architecture)
        if config is None or config.crop_mode == "border":
            return None
        size = int(config.input_size[-1])
        return Framing(size, math.floor(size / config.crop_pct), config.interpolation, config.crop_mode == "squash")

    def class_count(self, architecture: str) -> int:
        """How many classes the published weights tell apart."""
        config = self._config(architecture)
        return 0 if config is None else int(config.num_classes or 0)

    def build(
        self, architecture: str, *, n_classes: int, shape: tuple[int, int, int], pretrained: bool = False
    ) -> nn.Module:
        """The network untrained, or with its published weights and normalisation inside."""
        if pretrained:
            return self._pretrained(architecture, n_classes=n_classes)
        channels, height, width = shape
        options: dict[str, Any] = {"in_chans": channels, "num_classes": n_classes}
        config = self._config(architecture)
        if config is not None and config.fixed_input_size:
            try:
                return self._create(architecture, img_size=(height, width), **options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
        return self._create(architecture, **options)

    def _create(self, architecture: str, **options: Any) -> nn.Module:
        module: nn.Module = importing("timm").create_model(architecture, pretrained=False, **options)
        return module

    def _config(self, architecture: str) -> Any:
        try:
            return importing("timm.models").get_pretrained_cfg(architecture)
        except RuntimeError as error:  # a tag that the architecture does not have
            raise UserError(f"--model: timm:{architecture}: {error}") from None

    def _pretrained(self, architecture: str, *, n_classes: int) -> nn.Module:
        config = self._config(architecture)
        if config is None or not config.has_weights:
            raise UserError(
                f"--weights pretrained: timm has no weights for {architecture}; leave --weights out to train it"
            )
        if config.num_classes != n_classes:
            raise class_mismatch(f"timm:{architecture}", config.num_classes, n_classes)
        with downloading(f"timm:{architecture}", "the Hugging Face cache"), hub_within_reach():
            module: nn.Module = importing("timm").create_model(architecture, pretrained=True)
        expected = self.preprocessing(architecture)
        return Normalize(module, expected["mean"], expected["std"], input_size=expected["input_size"])
