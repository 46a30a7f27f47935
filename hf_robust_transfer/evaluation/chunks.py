"""Attack a data set chunk by chunk: fixed runs of sample indices, the unit of resuming and of dividing over processes."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..atomic import replacing
from ..attacks.eval_mode import untouched
from ..data import Indexed, as_pixels, collate
from ..modeling.attack_copy import attack_copy
from ..modeling.classifier import device_of, full_precision
from ..randomness import fold_in
from ..threat_model import ThreatModel
from .named_attacks import Attack, Target


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
        key = f"{self.attack.kind}:{options} {self.threat_model.norm} {self.threat_model.eps:.9g}"
        return " > ".join((*self.after, key))


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
    classifier: nn.Module,
    dataset: Any,
    tasks: Sequence[Task],
    *,
    num_labels: int,
    surrogate: nn.Module | None = None,
    chunk_size: int = 50,
    seed: int = 0,
    precision: str = "float32",
    compiled: bool = False,
    identity: str = "",
    folder: Path | None = None,
    progress: bool = True,
) -> Outcomes:
    """Run every task on every chunk that it is for.

    Chunk i belongs to process i modulo their number. Each task attacks the samples of the chunk that are classified
    correctly, and what it finds is judged in float32: a sample counts as fooled when its adversarial image lies in the
    threat model and is misclassified. One that only the attack held for fooled is attacked again, now in float32.

    Args:
        classifier: maps [0, 1] images to logits, on its device.
        dataset: map-style, yields ``{"pixel_values": (C, H, W) in [0, 1], "labels": int}``.
        tasks: what to run, in this order.
        num_labels: how many labels the classifier has.
        surrogate: another such classifier, for the attack ``transfer``.
        chunk_size: samples per chunk, and the attacks' batch size.
        seed: of all attacks.
        precision: to craft attacks in: ``"float32"``, ``"bf16"`` or ``"fp16"``.
        compiled: craft them on a model that went through `torch.compile`.
        identity: tells this model from others, so that their results are not taken for its own.
        folder: where finished work is kept, and found again after a run that was stopped.
        progress: show a progress bar.

    Raises:
        ValueError: a label that the classifier does not have, or pixels that are not in [0, 1].
    """
    state = PartialState()
    indexed = Indexed(dataset, num_labels)
    chunks = [range(first, min(first + chunk_size, len(indexed))) for first in range(0, len(indexed), chunk_size)]
    own = range(state.process_index, len(chunks), state.num_processes)
    settings = json.dumps([identity, chunk_size, seed, precision])
    device = device_of(classifier)
    sample = as_pixels(collate([indexed[index] for index in range(min(2, len(indexed)))])["pixel_values"].to(device))
    attacked_as = attack_copy(classifier, sample, precision, compiled=compiled)
    surrogate_as = None if surrogate is None else attack_copy(surrogate, sample, precision, compiled=compiled)
    exact = _exact(classifier)
    total = sum(len(chunks[number]) for number in own for task in tasks if task.chunks is None or number < task.chunks)
    records: list[dict[str, Any]] = []
    with untouched(classifier), tqdm(total=total, disable=not (progress and state.is_main_process), unit="image") as bar:
        for number in own:
            batch = collate([indexed[index] for index in chunks[number]])
            file = None if folder is None else folder / f"chunk-{number:06d}.json"
            record = _begun(file, settings, batch["pixel_values"])
            record["number"] = number
            images, labels, indices = (batch[name].to(device) for name in ("pixel_values", "labels", "indices"))
            images = as_pixels(images)
            with torch.no_grad():
                clean = exact(images).argmax(1)
            record["labels"], record["clean"] = labels.tolist(), clean.tolist()
            records.append(record)
            for task in tasks:
                if task.chunks is not None and number >= task.chunks:
                    continue
                bar.set_description(task.attack.name)
                if task.key not in record["tasks"]:
                    attacked = clean == labels
                    for earlier in task.after:
                        attacked &= torch.tensor(record["tasks"][earlier]["predictions"], device=device) == labels
                    rows = attacked.nonzero()[:, 0]
                    target = Target(
                        attacked_as,
                        exact,
                        surrogate_as,
                        precision,
                        images[rows],
                        labels[rows],
                        indices[rows],
                        task.threat_model,
                        seed,
                        fold_in(seed, number),
                        bar.set_postfix_str,
                    )
                    record["tasks"][task.key] = _attack(task, target, clean, rows)
                    if file is not None:
                        _write(file, record)
                bar.update(len(labels))
                bar.set_postfix_str(_running_accuracy(records, task.key))
    return _gathered(records, tasks)


def _exact(classifier: nn.Module) -> Callable[[Tensor], Tensor]:
    def exact(images: Tensor) -> Tensor:
        with full_precision(classifier):
            return classifier(images)

    return exact


def _attack(task: Task, target: Target, clean: Tensor, rows: Tensor) -> dict[str, Any]:
    """The record of one task on one chunk; ``rows`` are the attacked samples' places in it."""
    began = time.perf_counter()
    predictions = clean.clone()
    remarks: list[str] = []
    if len(rows):
        adversarial, claimed, remarks = task.attack(target)
        with torch.no_grad():
            judged = target.exact(adversarial).argmax(1)
            denied = claimed & (judged == target.labels)
            if denied.any():
                again = {name: getattr(target, name)[denied] for name in ("images", "labels", "indices")}
                attacked = task.attack(target._replace(classifier=target.exact, precision="float32", **again))
                adversarial[denied] = attacked.images
                judged[denied] = target.exact(attacked.images).argmax(1)
        low, high = task.threat_model.bounds
        allowed = task.threat_model.distance(adversarial, target.images) <= task.threat_model.eps + 1e-6
        allowed &= ((adversarial >= low) & (adversarial <= high)).flatten(1).all(1)
        predictions[rows] = torch.where(allowed, judged, target.labels)
        if not allowed.all():
            remarks = [*remarks, "examples outside the threat model did not count"]
    return {"predictions": predictions.tolist(), "seconds": time.perf_counter() - began, "remarks": remarks}


def _begun(file: Path | None, settings: str, pixels: Tensor) -> dict[str, Any]:
    """The record that an earlier run left for these images with these settings, or a new one."""
    digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
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
