"""A certification carried out: kept on the way, resumed, and its certificate written and held against the runs."""

from __future__ import annotations

import dataclasses
import datetime
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .certification_plan import CertificationPlan, certificate_threat, make_certifier
from .certified import Certified
from .certifier import Certifier, Problem, Prover
from .checkpoint import Checkpoint
from .defense import Defense, wrap_all
from .network import Network, Noise, exact_float32, frozen, placed, seed_torch
from .plan import check_images
from .running import Interrupted
from .streams import Stream, content_hashes, hash_rows

if TYPE_CHECKING:
    from .records.certificate import Certificate, CertificateSpecification


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
        problem = Problem(plan.model.module, plan.inference, network, tuple(plan.data.shape), plan.threat)
        # What is wrong with the network itself is told as such, and not as what cannot be bounded.
        row = torch.zeros(1, dtype=torch.int64, device=plan.device)
        network.logits(plan.data.images(plan.index[:1]).to(plan.device), Noise(Stream(row), row))
        network.block = network.uniform_block(tuple(plan.data.shape))  # a prediction is an image's own
        prover = plan.certifier.prepare(problem)
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
    binary: bool = False,
    leaderboard: str | Path | None = None,
) -> Certified:
    """Certified accuracy of `model` on images: a lower bound of its robust accuracy under any attack.

    model: pixels (N, C, H, W) in [0, 1] to logits (N, K). x: (N, C, H, W) float32 in [0, 1]. y: (N,) int64.
    method: interval, crown or smoothing, `FILE.py:NAME`, or an instance of Certifier; method_options: its fields.
    norm, eps: the threat, eps in pixels of [0, 1]; default the method's first norm, with eps as `evaluate` has it.
    defenses: smoothing certifies one that votes over noisy copies, `RandomizedSmoothing(sigma=0.25)`.
    binary: as for rbl.evaluate. leaderboard: folder that receives the certificate; None writes nothing.

    The model's mode, its parameters, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit and for a layer that cannot be bounded, in one line.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> c = certify(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), method="crown", eps=0.1)
    >>> 0 <= c.certified_accuracy <= c.clean_accuracy <= 1
    True
    """
    from .given import device_of, given_inputs

    certifier = make_certifier(method, method_options)
    given, data = given_inputs(model, x, y, defenses, name=name, binary=binary)
    plan = CertificationPlan(
        model=given,
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
    for text in plan.doubts:
        warnings.warn(text, stacklevel=2)
    return run_certification(plan, leaderboard=leaderboard)
