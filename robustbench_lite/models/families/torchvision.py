"""The classification networks of torchvision, made to fit a data set's channels, size and classes."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn

from ...data.decode import Framing
from ...errors import UserError
from ..library import class_mismatch, downloading, importing, registered
from ..normalize import Normalize

# They classify twice in training, and their published weights expect inputs shifted once more.
_AUXILIARY = {"googlenet", "inception_v3"}


class TorchVision:
    """Any name of `torchvision.models.list_models(torchvision.models)`, asked for as `torchvision:NAME`."""

    name: ClassVar[str] = "torchvision"
    summary: ClassVar[str] = "the classification networks of torchvision, as torchvision:NAME"
    source: ClassVar[str] = "TorchVision maintainers and contributors 2016, https://github.com/pytorch/vision"

    def names(self) -> list[str]:
        """The architectures that classify images."""
        if names := registered("torchvision"):
            return list(names)
        models = importing("torchvision.models")
        return [str(name) for name in models.list_models(module=models)]

    def preprocessing(self, architecture: str) -> dict[str, Any]:
        """What the published weights expect: mean, std, input_size."""
        transforms = self._weights(architecture).transforms()
        return {
            "mean": [float(m) for m in transforms.mean],
            "std": [float(s) for s in transforms.std],
            "input_size": int(transforms.crop_size[0]),
        }

    def framing(self, architecture: str) -> Framing:
        """The resizing and cropping by which the published weights were evaluated."""
        transforms = self._weights(architecture).transforms()
        size, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
        return Framing(size, resize, str(transforms.interpolation.value))

    def class_count(self, architecture: str) -> int:
        """How many classes the published weights tell apart."""
        return len(self._weights(architecture).meta["categories"])

    def build(
        self, architecture: str, *, n_classes: int, shape: tuple[int, int, int], pretrained: bool = False
    ) -> nn.Module:
        """The network untrained, or with its published weights and normalisation inside."""
        if pretrained:
            return self._pretrained(architecture, n_classes=n_classes)
        channels, height, width = shape
        models = importing("torchvision.models")
        options: dict[str, Any] = {"num_classes": n_classes}
        if architecture in _AUXILIARY:
            options |= {"aux_logits": False, "init_weights": True}
        # Vision transformers are built for one size; the other networks take what comes.
        if architecture.startswith("vit_"):
            if height != width:
                raise UserError(f"--model: torchvision:{architecture} takes square images, got {height}x{width}")
            options["image_size"] = height
        if architecture.startswith("maxvit"):
            options["input_size"] = (height, width)
        module: nn.Module = models.get_model(architecture, weights=None, **options)
        if channels != 3:
            replace_first_convolution(module, channels)
        return module

    def published(self, architecture: str) -> list[Any]:
        """All published weights of an architecture, as torchvision describes them."""
        return list(importing("torchvision.models").get_model_weights(architecture))

    def _weights(self, architecture: str) -> Any:
        choices = importing("torchvision.models").get_model_weights(architecture)
        if not list(choices):
            raise UserError(
                f"--weights pretrained: torchvision has no weights for {architecture}; leave --weights out to train it"
            )
        return choices.DEFAULT

    def _pretrained(self, architecture: str, *, n_classes: int) -> nn.Module:
        models = importing("torchvision.models")
        weights = self._weights(architecture)
        known = len(weights.meta["categories"])
        if known != n_classes:
            raise class_mismatch(f"torchvision:{architecture}", known, n_classes)
        options: dict[str, Any] = {}
        if architecture in _AUXILIARY:
            options = {"aux_logits": True, "init_weights": False, "transform_input": True}
        module: nn.Module = models.get_model(architecture, weights=None, num_classes=known, **options)
        name = weights.url.rsplit("/", 1)[-1]
        with downloading(f"torchvision:{architecture}", f"{torch.hub.get_dir()}/checkpoints/{name}"):
            # The library's own call would unpickle whatever the file holds.
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            module.load_state_dict(state)
        if architecture in _AUXILIARY:
            _drop_auxiliary(module)
        transforms = self.preprocessing(architecture)
        return Normalize(module, transforms["mean"], transforms["std"], input_size=transforms["input_size"])


def _drop_auxiliary(module: nn.Module) -> None:
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, name):
            setattr(module, name, None)
    module.aux_logits = False  # type: ignore[assignment]


def replace_first_convolution(module: nn.Module, channels: int) -> None:
    """Let the first convolution take images of `channels`, from the initial weights of its own kind.

    The weights of colour channel i mod 3 serve channel i, so that what the architecture's initialiser
    chose stays chosen. Raises UserError where no convolution takes three channels.
    """
    first = ((p, m) for p, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    path, old = next(first, ("", None))
    if old is None:
        raise UserError(f"--model: {type(module).__name__} has no convolution that takes 3 channels to replace")
    keep = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert set(keep) <= set(inspect.signature(nn.Conv2d).parameters)
    new = nn.Conv2d(channels, bias=old.bias is not None, **{name: getattr(old, name) for name in keep})
    with torch.no_grad():
        new.weight.copy_(old.weight[:, torch.arange(channels) % 3])
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)
