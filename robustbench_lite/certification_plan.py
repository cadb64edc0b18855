"""A certification before it is carried out: everything that decides it, and what its record will say."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .certifier import Certifier
from .defense import Defense, InferenceDefense
from .environment import environment_record
from .errors import UserError
from .network import usable_device
from .options import configure, option_types
from .plan import make_threat
from .plan_record import begun, dataset_record, defense_records, device_name, foreign_hash, model_record
from .registry import load
from .threat import Threat

if TYPE_CHECKING:
    from .data import Dataset
    from .models import LoadedModel
    from .records.certificate import CertificateSpecification


def make_certifier(method: str | Certifier, options: Mapping[str, Any] | None = None) -> Certifier:
    """The method by its name or `FILE.py:NAME`, with these options. UserError for what is no method."""
    if isinstance(method, Certifier):
        return method
    cls = load("certifiers", method, argument="method")
    if not (isinstance(cls, type) and issubclass(cls, Certifier)):
        raise UserError(f"method: {method} is no Certifier")
    return configure(cls, options, argument="method option")


def certificate_threat(norm: str | None, eps: float | str | None, certifier: Certifier) -> Threat:
    """The threat of this norm, by default the method's first; eps by the norm."""
    return make_threat(norm or certifier.norms[0], eps)


@dataclass(frozen=True)
class CertificationPlan:
    """Everything that decides a certificate; fields as those of `Plan`."""

    model: LoadedModel
    data: Dataset
    index: Tensor
    certifier: Certifier
    threat: Threat
    options: Mapping[str, Any] = field(default_factory=dict)
    defenses: Sequence[Defense] = ()
    defense_specs: Sequence[str] = ()
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_certification(
            self.certifier,
            self.threat,
            self.defenses,
            shape=tuple(self.data.shape),
            seed=self.seed,
            batch_size=self.batch_size,
        )
        usable_device(self.device)
        if not len(self.index):
            raise UserError("x: expected at least one image, got none")

    @property
    def doubts(self) -> list[str]:
        """Settings that leave little to find, one line each."""
        return self.certifier.doubts(self.inference, self.threat)

    @property
    def inference(self) -> list[InferenceDefense]:
        """The defenses that stand before the network."""
        return [d for d in self.defenses if isinstance(d, InferenceDefense)]

    def specification(self, started: datetime.datetime) -> CertificateSpecification:
        """What the record says, before the rows are there."""
        from . import __version__
        from .records.certificate import CertificateSpecification, MethodRecord
        from .records.specification import ThreatRecord

        certifier, threat = self.certifier, self.threat
        resolved = {name: getattr(certifier, name) for name in option_types(type(certifier))}
        return CertificateSpecification(
            version=__version__,
            model=model_record(self.model),
            defenses=defense_records(self.defenses, self.defense_specs),
            dataset=dataset_record(self.data, len(self.index)),
            method=MethodRecord(
                name=certifier.name,
                options={name: getattr(certifier, name) for name in self.options},
                resolved=resolved | certifier.told(self.inference),
                source_sha256=foreign_hash(certifier),
                per_image=certifier.per_image,
            ),
            threat=ThreatRecord(norm=threat.norm, eps=threat.eps, low=threat.low, high=threat.high),
            seed=self.seed,
            batch_size=self.batch_size,
            device=device_name(self.device),
            environment=environment_record(),
            times=begun(started),
        )


def check_certification(
    certifier: Certifier,
    threat: Threat,
    defenses: Sequence[Defense],
    *,
    shape: tuple[int, ...],
    seed: int,
    batch_size: int,
) -> None:
    """Raise UserError for what is wrong whatever the network is, so that it is told before a training."""
    if batch_size < 1:
        raise UserError(f"batch_size must be >= 1, got {batch_size}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be in 0..{2**63 - 1}, got {seed}")
    threat.check_shape(shape)
    certifier.check([d for d in defenses if isinstance(d, InferenceDefense)], threat)
