"""Attack a data set chunk by chunk: fixed runs of sample indices, the unit of resuming and of dividing over processes."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..atomic import replacing
from ..attacks.eval_mode import untouched
from ..data import Indexed, as_pixels, collate
from ..errors import UsageError
from ..threat_model import ThreatModel
from .subject import Subject
from .target import Attack, Target


class Task(NamedTuple):
    """One attack under one threat model, on the first so many chunks (None: all).

    In a cascade, ``after`` names the tasks before this one; samples that they fooled are left out.
    """

    attack: Attack
    threat_model: ThreatModel
    chunks: int | None = None
    after: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What tells its results from other tasks'."""
        options = ",".join(f"{name}={value}" for name, value in sorted(self.attack.options.items()))
        key = f"{self.attack.kind}:{options} {self.threat_model.norm} {self.threat_model.eps:.9g} {self.attack.version}"
        return " > ".join((*self.after, key.strip()))

    def takes(self, chunk: int) -> bool:
        """Whether this task is for the chunk with this number."""
        return self.chunks is None or chunk < self.chunks


@dataclass
class Outcome:
    """What one task did: the predicted class of each attacked sample (B,), seconds of work, the attacks' remarks."""

    predictions: np.ndarray[Any, Any]
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)


class Outcomes(NamedTuple):
    """Of all samples in their order the labels and clean predictions (N,), of each task by its key the outcome.

    ``shape`` is that of an image, ``pixels`` a hash of all images at the model's resolution.
    """

    labels: np.ndarray[Any, Any]
    clean: np.ndarray[Any, Any]
    tasks: dict[str, Outcome]
    shape: tuple[int, ...]
    pixels: str


def attack_in_chunks(
    subject: Subject,
    dataset: Any,
    tasks: Sequence[Task],
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> Outcomes:
    """Run every task on every chunk that it is for.

    Chunk i belongs to process i modulo their number. Each task attacks the samples of the chunk that are classified
    correctly, and what it finds is judged in float32: a sample counts as fooled when its adversarial image, moved into the
    threat model where rounding left it beside, is misclassified. One that only the attack held for fooled is attacked
    again, now in float32, and so is one whose adversarial image cannot be judged.

    Args:
        subject: what is attacked, and how.
        dataset: map-style, yields ``{"pixel_values": (C, H, W) in [0, 1], "labels": int}``.
        tasks: what to run, in this order.
        folder: where finished work is kept, and found again after a run that was stopped.
        progress: show a progress bar.

    Raises:
        UsageError: a label that the classifier does not have, pixels that are not in [0, 1], a radius larger than the
            diagonal of their box, logits that are NaN, or an attack that leaves the threat model.
    """
    for task in tasks:
        task.threat_model.check_radius(subject.shape)
    state = PartialState()
    indexed = Indexed(dataset, len(subject.labels), subject.labels)
    size = subject.settings.chunk_size or len(indexed)
    chunks = [range(first, min(first + size, len(indexed))) for first in range(0, len(indexed), size)]
    own = range(state.process_index, len(chunks), state.num_processes)
    total = sum(len(chunks[number]) for number in own for task in tasks if task.takes(number))
    records: list[dict[str, Any]] = []
    with (
        untouched(subject.classifier),
        tqdm(total=total, disable=not (progress and state.is_main_process), unit="image") as bar,
    ):
        for number in own:
            batch = collate([indexed[index] for index in chunks[number]])
            file = None if folder is None else folder / f"chunk-{number:06d}.json"
            record = _begun(file, _identity(subject), batch["pixel_values"])
            images, labels, indices = (batch[name].to(subject.device) for name in ("pixel_values", "labels", "indices"))
            images = as_pixels(images)
            clean = subject.predicted(images)
            record |= {"number": number, "labels": labels.tolist(), "clean": clean.tolist()}
            records.append(record)
            for task in tasks:
                if not task.takes(number):
                    continue
                bar.set_description(task.attack.name)
                if task.key not in record["tasks"]:
                    attacked = clean == labels
                    for earlier in task.after:
                        attacked &= torch.tensor(record["tasks"][earlier]["predictions"], device=labels.device) == labels
                    rows = attacked.nonzero()[:, 0]
                    samples = (images[rows], labels[rows], indices[rows])
                    target = Target(subject, *samples, task.threat_model, number, bar.set_postfix_str)
                    record["tasks"][task.key] = _attack(task.attack, target, clean, rows)
                    if file is not None:
                        _write(file, record)
                bar.update(len(labels))
                bar.set_postfix_str(_running_accuracy(records, task.key))
    return _gathered(records, tasks)


def _attack(attack: Attack, target: Target, clean: Tensor, rows: Tensor) -> dict[str, Any]:
    """The record of one attack on one chunk; ``rows`` are the attacked samples' places in it."""
    began = time.perf_counter()
    predictions = clean.clone()
    remarks: list[str] = []
    if len(rows):
        subject, labels = target.subject, target.labels
        adversarial, claimed, remarks = attack.run(target)
        judged, known = subject.judge(adversarial, target.images, target.threat_model)
        again = ~known | (claimed & (judged == labels))
        if again.any():
            left = {name: getattr(target, name)[again] for name in ("images", "labels", "indices")}
            target = target._replace(subject=subject.in_float32(), **left)
            judged[again], known[again] = subject.judge(attack.run(target).images, target.images, target.threat_model)
        if not known.all():
            raise UsageError(
                f"attack {attack.name!r} gave {int((~known).sum())} of {len(rows)} images that are NaN or outside the"
                " threat model, where nothing can be judged: have it end with threat_model.project(adversarial, images)"
            )
        predictions[rows] = judged
    return {"predictions": predictions.tolist(), "seconds": time.perf_counter() - began, "remarks": remarks}


def _identity(subject: Subject) -> str:
    """What an earlier start's work must agree in, to be used."""
    settings = subject.settings
    return json.dumps(
        [version("hf-robust-transfer"), subject.identity, settings.chunk_size, settings.seed, settings.precision]
    )


def _begun(file: Path | None, settings: str, pixels: Tensor) -> dict[str, Any]:
    """The record that an earlier run left for these images with these settings, or a new one."""
    digest = hashlib.sha256(pixels.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    new = {"settings": settings, "pixels": digest, "shape": list(pixels.shape[1:]), "tasks": {}}
    try:
        found = json.loads(file.read_text()) if file is not None else new
    except (OSError, ValueError):
        return new
    return found if (found.get("settings"), found.get("pixels")) == (settings, digest) else new


def _write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(json.dumps(record))


def _running_accuracy(records: list[dict[str, Any]], key: str) -> str:
    right = [
        prediction == label
        for record in records
        if key in record["tasks"]
        for prediction, label in zip(record["tasks"][key]["predictions"], record["labels"], strict=True)
    ]
    return f"robust accuracy {np.mean(right):.1%} of {len(right)}"


def _gathered(records: list[dict[str, Any]], tasks: Sequence[Task]) -> Outcomes:
    records = sorted(gather_object(records), key=lambda record: record["number"])

    def joined(parts: Sequence[list[int]]) -> np.ndarray[Any, Any]:
        return np.array([value for part in parts for value in part], dtype=np.int64)

    outcomes = {}
    for task in tasks:
        parts = [record["tasks"][task.key] for record in records if task.key in record["tasks"]]
        outcomes[task.key] = Outcome(
            joined([part["predictions"] for part in parts]),
            sum(part["seconds"] for part in parts),
            list(dict.fromkeys(remark for part in parts for remark in part["remarks"])),
        )
    return Outcomes(
        joined([record["labels"] for record in records]),
        joined([record["clean"] for record in records]),
        outcomes,
        tuple(records[0]["shape"]),
        hashlib.sha256("".join(record["pixels"] for record in records).encode()).hexdigest(),
    )
