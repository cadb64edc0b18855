"""A certification from a network and images to a certificate: planned, carried out, kept on the way, resumed."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .certifier import Certifier, Prover, Scene
from .checkpoint import Checkpoint
from .defense import Defense, InferenceDefense, wrap_all
from .environment import environment_record
from .errors import UserError
from .network import Network, Noise, exact_float32, frozen, placed, seed_torch, usable_device
from .options import configure, option_types
from .plan import (
    begun,
    check_images,
    dataset_record,
    defense_records,
    device_name,
    foreign_hash,
    make_threat,
    model_record,
)
from .registry import load
from .running import Interrupted
from .streams import Stream, content_hashes, hash_rows
from .threat import Threat

if TYPE_CHECKING:
    import pandas as pd

    from .data import Dataset
    from .models import LoadedModel
    from .records.certificate import Certificate, CertificateSpecification

_STEPS = 4  # of the radii that a table of a sigma shows, at least


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


@dataclass(frozen=True)
class Certified:
    """What a certification found: numbers, one row an image, and the record that proves it."""

    certificate: Certificate
    file: Path | None = None
    settled: str = ""

    @property
    def samples(self) -> pd.DataFrame:
        """One row an image, with the columns of the file."""
        frame: pd.DataFrame = self.certificate.table.to_pandas()
        return frame

    @property
    def certified_accuracy(self) -> float:
        """Share of images that are right and proved to stay so within eps."""
        return self._share("certified")

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are right; where the method abstains they are not."""
        return self._share("correct")

    @property
    def abstained(self) -> float:
        """Share of images of which the method says no class."""
        return int(self.certificate.table["prediction"].null_count) / int(self.certificate.table.num_rows)

    def accuracy_at(self, radius: float) -> float:
        """Share of images that are right and proved to stay so within this radius."""
        table = self.certificate.table
        return float((table["correct"].to_numpy() & (table["radius"].to_numpy() >= radius)).mean())

    def radii(self) -> list[float]:
        """Round radii, from 0 to the first at which nothing is certified."""
        largest = float(np.max(self.certificate.table["radius"].to_numpy(), initial=0.0))
        rough = largest / _STEPS
        if not rough:
            return [0.0]
        power = 10.0 ** np.floor(np.log10(rough))
        step = float(max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= rough * (1 + 1e-9)))
        return [round(step * k, 10) for k in range(int(largest / step) + 2)]

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        from .records.summary import wilson

        s, table = self.certificate.specification, self.certificate.table
        low, high = wilson(int(np.count_nonzero(table["certified"].to_numpy())), table.num_rows)
        row: dict[str, Any] = {
            "certificate_id": s.certificate_id(),
            "model": s.model.name,
            "defense": s.defense,
            "dataset": s.dataset.name,
            "method": s.method.name,
            "method_options": s.method.resolved,
            "norm": s.threat.norm,
            "eps": s.threat.eps,
            "n": table.num_rows,
            "certificate_file": None if self.file is None else str(self.file),
            "clean_accuracy": self.clean_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "certified_low": low,
            "certified_high": high,
            "abstained": self.abstained,
            "seconds": s.times.seconds,
        }
        if s.method.per_image:
            row["certified_at"] = {f"{radius:g}": self.accuracy_at(radius) for radius in self.radii()}
        return row

    def _share(self, name: str) -> float:
        return float(self.certificate.table[name].to_numpy().mean())


class _Place:
    """How many images of the order are done; what a checkpoint stores between two."""

    def __init__(self) -> None:
        self.done = 0

    def snapshot(self) -> dict[str, Tensor]:
        return {"done": torch.tensor([self.done])}

    def restore(self, stored: dict[str, Tensor]) -> None:
        self.done = int(stored["done"][0])


Watch = Callable[[float], None]


def run_certification(
    plan: CertificationPlan,
    *,
    leaderboard: Path | str | None = None,
    resume: bool = True,
    begin: Callable[[int], Watch] | None = None,
    stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
) -> Certified:
    """Carry a plan out; with `leaderboard` the certificate is written there, and an unfinished one goes on.

    begin: told how many images were done before; what it returns is told how many more are. Raises UserError for what
    the caller can mend, Interrupted when `stop` says so, and RecordError where a run of the folder refutes it.
    """
    from .records.certificate import FOLDER, settle_certificate
    from .records.contradiction import refute_with_folder

    specification = plan.specification(datetime.datetime.now(datetime.UTC))
    module = wrap_all(plan.model.module, plan.inference)
    devices = [torch.device(plan.device)] if torch.device(plan.device).type == "cuda" else []
    with (
        torch.inference_mode(False),
        exact_float32(),
        placed(module, plan.device),
        frozen(module),
        torch.random.fork_rng(devices),
        torch.no_grad(),
    ):
        seed_torch(plan.seed, plan.device)
        classes = len(plan.data.classes)
        network = Network(module, n_classes=classes, device=plan.device, max_batch=max(plan.batch_size, 1))
        scene = Scene(plan.model.module, plan.inference, network, tuple(plan.data.shape), plan.threat)
        # What is wrong with the network itself is told as such, and not as what cannot be bounded.
        row = torch.zeros(1, dtype=torch.int64, device=plan.device)
        network.logits(plan.data.images(plan.index[:1]).to(plan.device), Noise(Stream(row), row))
        prover = plan.certifier.prepare(scene)
        if leaderboard is None:
            columns, seconds = _Proving(plan, prover, None, begin, stop).finish()
            return Certified(_sealed(plan, specification, columns, seconds))
        folder = Path(leaderboard) / FOLDER / f"{specification.certificate_id()}.partial"
        key = {"identity": specification.identity(), "version": specification.version, "device": plan.device}
        checkpoint = Checkpoint(folder, {**key, "torch": str(torch.__version__)})
        with checkpoint.locked():
            if not resume:
                checkpoint.clear()
            try:
                columns, seconds = _Proving(plan, prover, checkpoint, begin, stop).finish(note)
                certificate = _sealed(plan, specification, columns, seconds)
                file, settled = settle_certificate(leaderboard, certificate)
            except BaseException:
                if not any(folder.glob("*.safetensors")):  # nothing to go on with
                    checkpoint.remove()
                raise
            checkpoint.remove()
    certificate = dataclasses.replace(certificate, path=file)
    refute_with_folder(leaderboard, certificate=certificate)
    return Certified(certificate, file, settled)


class _Proving:
    """One process's share of a certification, in the order of the images."""

    def __init__(
        self,
        plan: CertificationPlan,
        prover: Prover,
        checkpoint: Checkpoint | None,
        begin: Callable[[int], Watch] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.plan = plan
        self.prover = prover
        self.checkpoint = checkpoint
        self.begin = begin
        self.stop = stop
        self.place = _Place()

    def finish(self, note: Callable[[str], None] | None = None) -> tuple[dict[str, Tensor], float]:
        """All columns, and the seconds spent by this process and those before it."""
        plan, checkpoint, place = self.plan, self.checkpoint, self.place
        began, before = time.monotonic(), 0.0
        parts: list[dict[str, Tensor]] = []
        if checkpoint and (loaded := checkpoint.load(place)):
            parts, before = loaded
            if note:
                note(f"an unfinished certificate goes on: {place.done} of {len(plan.index)} images were done")
        elif checkpoint and checkpoint.exists and note:
            note("an unfinished certificate is there, computed in another way (device, versions): it starts anew")
        watch = self.begin(place.done) if self.begin else None

        def tick(more: float) -> None:
            if watch:
                watch(more)
            if self.stop is not None and self.stop():
                if checkpoint and place.done:
                    checkpoint.store(place, before + time.monotonic() - began)
                kept = "; they are kept, and the same command goes on" if checkpoint else ""
                raise Interrupted(f"stopped with {place.done} of {len(plan.index)} images done{kept}")

        size = 1 if plan.certifier.one_by_one else plan.batch_size
        for index, x, y in plan.data.blocks(plan.index[place.done :], size):
            columns = self._columns(index, x, y, tick)
            parts.append(columns)
            place.done += len(index)
            if checkpoint:
                checkpoint.add(columns)
                if checkpoint.due():
                    checkpoint.store(place, before + time.monotonic() - began)
        every = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return every, before + time.monotonic() - began

    def _columns(self, index: Tensor, x: Tensor, y: Tensor, tick: Callable[[float], None]) -> dict[str, Tensor]:
        plan = self.plan
        check_images(x, y, len(plan.data.classes))
        hashes = content_hashes(x)
        stream = Stream.of(hashes, seed=plan.seed, device=plan.device).child("certificate")
        proofs = self.prover(x.to(plan.device), y.to(plan.device), stream, tick=tick)
        found = {"prediction": proofs.prediction, "radius": proofs.radius, "bound": proofs.bound}
        return {
            "index": index,
            "content": hash_rows(hashes),
            "label": y,
            **{name: column.detach().cpu() for name, column in found.items()},
        }


def _sealed(
    plan: CertificationPlan, specification: CertificateSpecification, columns: dict[str, Tensor], seconds: float
) -> Certificate:
    """The record of finished columns."""
    import pyarrow as pa

    from .records.certificate import proved, seal_certificate

    said = {name: column.numpy() for name, column in columns.items() if column.ndim == 1}
    correct = said["prediction"] == said["label"]
    table = pa.table(
        {
            "index": said["index"],
            "content_hash": [bytes(row).hex() for row in columns["content"].numpy()],
            "label": said["label"],
            "prediction": pa.array(said["prediction"], mask=said["prediction"] < 0),
            "correct": correct,
            "certified": correct & (said["radius"] >= plan.threat.eps) & proved(said["bound"], specification),
            "radius": said["radius"],
            "bound": pa.array(said["bound"], mask=np.isnan(said["bound"])),
        }
    )
    times = dataclasses.replace(specification.times, seconds=round(seconds, 3))
    return seal_certificate(dataclasses.replace(specification, times=times), table)


def certify(
    model: nn.Module,
    x: Tensor | np.ndarray[Any, Any],
    y: Tensor | np.ndarray[Any, Any],
    *,
    method: str | Certifier = "crown",
    norm: str | None = None,
    eps: float | str | None = None,
    method_options: Mapping[str, Any] | None = None,
    defenses: Sequence[Defense] = (),
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    name: str | None = None,
    leaderboard: str | Path | None = None,
) -> Certified:
    """Certified accuracy of `model` on images: a lower bound of its robust accuracy under any attack.

    model: pixels (N, C, H, W) in [0, 1] to logits (N, K). x: (N, C, H, W) float32 in [0, 1]. y: (N,) int64.
    method: interval, crown or smoothing, `FILE.py:NAME`, or an instance of Certifier; method_options: its fields.
    norm, eps: the threat, eps in pixels of [0, 1]; default the method's first norm, with eps as `evaluate` has it.
    defenses: smoothing certifies one that votes over noisy copies, `RandomizedSmoothing(sigma=0.25)`.
    leaderboard: folder that receives the certificate; None writes nothing.

    The model's mode, its parameters, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit and for a layer that cannot be bounded, in one line.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> c = certify(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), method="crown", eps=0.1)
    >>> 0 <= c.certified_accuracy <= c.clean_accuracy <= 1
    True
    """
    from .given import count_classes, device_of, given_data, given_model, given_tensor

    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}; put a function into a module")
    certifier = make_certifier(method, method_options)
    images = given_tensor(x)
    data = given_data(images, given_tensor(y), count_classes(model, images), None)
    plan = CertificationPlan(
        model=given_model(model, name),
        data=data,
        index=torch.arange(len(data)),
        certifier=certifier,
        threat=certificate_threat(norm, eps, certifier),
        options=dict(method_options or {}),
        defenses=tuple(defenses),
        seed=seed,
        batch_size=batch_size,
        device=device or device_of(model),
    )
    return run_certification(plan, leaderboard=leaderboard)
