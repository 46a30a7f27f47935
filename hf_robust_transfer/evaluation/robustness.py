"""Evaluate a classifier under a threat model: clean accuracy, robust accuracy under several attacks, self-checks."""

import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..data import as_pixels, collate
from ..errors import UsageError
from ..modeling.attack_copy import choose_precision
from ..modeling.classifier import device_of, weights_sha256
from ..threat_model import ThreatModel
from .chunks import Outcomes, Task, attack_in_chunks
from .metrics import compute_metric
from .named_attacks import Attack, parse_attack, parse_attacks
from .report import Accuracy, AttackResult, ClassResult, CurvePoint, RobustnessReport
from .self_checks import (
    SUBSAMPLE_ATTACKS,
    SelfCheck,
    at_least_as_strong,
    huge_threat_model,
    no_robustness_at_huge_eps,
    order,
    vanishing_gradients,
)

DEFAULT_ATTACKS = ("fgsm", "pgd-20", "cw-100")
CURVE_FACTORS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "datasets", "evaluate", "pyautoattack")


def evaluate_robustness(
    classifier: nn.Module,
    dataset: Any,
    threat_model: ThreatModel,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    *,
    labels: Sequence[str] | None = None,
    surrogate: nn.Module | None = None,
    cascade: bool = False,
    self_check_samples: int = 100,
    curve_samples: int = 200,
    chunk_size: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    compiled: bool = False,
    model_name: str = "the model",
    data_name: str = "the data",
    split: str = "test",
    resume_folder: str | Path | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """Attack a classifier and report what it withstands.

    Each attack starts from all correctly classified samples, and a fooled sample leaves only that attack. What counts as
    fooled is judged in float32 on the model as it is, while attacks may be crafted in a lower precision, on a copy that
    `attack_copy` made for the purpose. Random starts are keyed by sample, AutoAttack's noise by chunk of samples, so that
    neither the number of processes nor an interruption changes a figure. Under `accelerate launch` the chunks are
    divided over the processes, and all of them get the same report.

    Args:
        classifier: maps [0, 1] images (B, C, H, W) to logits; usually a `PixelClassifier`, on its device already.
        dataset: map-style, yields ``{"pixel_values": float (C, H, W) in [0, 1], "labels": int}``, at the model's
            resolution, where ε applies; `PixelDataset` does it.
        threat_model: norm, ε and pixel bounds.
        attacks: their names, as `parse_attack` reads them.
        labels: the labels' names, by default those of a `PixelClassifier`.
        surrogate: another classifier of the same labels, which ``transfer`` crafts its examples on.
        cascade: leave out samples that an earlier attack fooled: faster, but only the worst case is reported.
        self_check_samples: run the self-checks on at least so many first samples, in whole chunks; 0 leaves them out.
        curve_samples: likewise measure accuracy against ε, up to four times the threat model's.
        chunk_size: samples attacked at a time, by default 50, on a GPU 500; AutoAttack's noise depends on it.
        seed: of all attacks.
        precision: to craft attacks in: ``"float32"``, ``"bf16"`` or ``"fp16"`` (AutoAttack then runs in float32);
            ``"auto"`` is bf16 where the hardware multiplies in it.
        compiled: craft them on a model that went through `torch.compile`: worth its minute in long evaluations.
        model_name, data_name, split: what the report calls them.
        resume_folder: finished work is kept there, and found again when the evaluation is started again.
        progress: show a progress bar with the running robust accuracy.

    Returns:
        The report.

    Raises:
        ValueError: no samples, no attacks or one that is listed twice or unknown, no surrogate for ``transfer``, an
            unknown precision, or data or labels that do not suit the classifier.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> data = [{"pixel_values": torch.rand(3, 2, 2), "labels": label} for label in (0, 1, 0, 1)]
        >>> options = {"labels": ["cat", "dog"], "self_check_samples": 0, "curve_samples": 0, "progress": False}
        >>> report = evaluate_robustness(classifier, data, ThreatModel("linf", "8/255"), ["fgsm", "pgd-10"], **options)
        >>> report.worst_case.value <= report.clean.value
        True
    """
    began = time.perf_counter()
    if not len(dataset):
        raise UsageError("there is no sample to evaluate on")
    chosen = parse_attacks(attacks, surrogate=surrogate is not None)
    device = device_of(classifier)
    precision = choose_precision(precision, device)
    chunk_size = chunk_size or (50 if device.type == "cpu" else 500)
    labels = getattr(classifier, "labels", None) if labels is None else labels
    if labels is None:
        raise UsageError(f"{type(classifier).__name__} does not know the names of its labels: pass them as labels=")
    shape = tuple(dataset[0]["pixel_values"].shape)

    main = _main_tasks(chosen, threat_model, cascade)
    pgd_20 = parse_attack("pgd-20")
    radii = [min(factor * threat_model.eps, _widest(threat_model)) for factor in CURVE_FACTORS]
    curve = [Task(pgd_20, ThreatModel(threat_model.norm, eps, threat_model.bounds)) for eps in dict.fromkeys(radii)]
    checks = {name: Task(parse_attack(name), threat_model) for name in SUBSAMPLE_ATTACKS}
    checks["huge"] = Task(pgd_20, huge_threat_model(threat_model, shape))
    wanted = [
        *main,
        *(task._replace(chunks=-(-self_check_samples // chunk_size)) for task in checks.values()),
        *(task._replace(chunks=-(-curve_samples // chunk_size)) for task in curve),
    ]
    weights = weights_sha256(classifier)
    outcomes = attack_in_chunks(
        classifier,
        dataset,
        _merged(wanted),
        num_labels=len(labels),
        surrogate=surrogate,
        chunk_size=chunk_size,
        seed=seed,
        precision=precision,
        compiled=compiled,
        identity=f"{version('hf-robust-transfer')} {weights} {'' if surrogate is None else weights_sha256(surrogate)}",
        folder=None if resume_folder is None else Path(resume_folder),
        progress=progress,
    )
    predictions = {attack.name: outcomes.tasks[task.key].predictions for attack, task in zip(chosen, main, strict=True)}
    return RobustnessReport(
        model={"name": model_name, "weights_sha256": weights, "input_shape": list(shape)},
        data={"name": data_name, "split": split, "samples": len(dataset), "pixels_sha256": outcomes.pixels},
        threat_model={"norm": threat_model.norm, "eps": threat_model.eps, "bounds": list(threat_model.bounds)},
        settings={"seed": seed, "precision": precision, "chunk_size": chunk_size, "cascade": cascade},
        **_accuracies(outcomes, chosen, main, predictions, labels, cascade),
        self_checks=_self_checks(classifier, dataset, outcomes, checks, chosen, predictions, cascade, self_check_samples),
        curve=_curve(outcomes, curve, curve_samples),
        predictions={
            "labels": outcomes.labels.tolist(),
            "clean": outcomes.clean.tolist(),
            **{name: values.tolist() for name, values in predictions.items()},
        },
        versions={name: version(name) for name in _LIBRARIES},
        hardware=hardware(),
        timing={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {
                "total": time.perf_counter() - began,
                "attacks": {
                    attack.name: outcomes.tasks[task.key].seconds for attack, task in zip(chosen, main, strict=True)
                },
            },
            "processes": PartialState().num_processes,
        },
    )


def _main_tasks(attacks: Sequence[Attack], threat_model: ThreatModel, cascade: bool) -> list[Task]:
    tasks: list[Task] = []
    for attack in attacks:
        tasks.append(Task(attack, threat_model, None, tuple(task.key for task in tasks) if cascade else ()))
    return tasks


def _merged(tasks: Sequence[Task]) -> list[Task]:
    """Each task once, with as many chunks as its neediest mention asks for."""
    merged: dict[str, Task] = {}
    for task in tasks:
        known = merged.get(task.key, task)
        wanted = None if known.chunks is None or task.chunks is None else max(known.chunks, task.chunks)
        merged[task.key] = known._replace(chunks=wanted)
    return [task for task in merged.values() if task.chunks != 0]


def _widest(threat_model: ThreatModel) -> float:
    low, high = threat_model.bounds
    return high - low if threat_model.norm == "linf" else float("inf")


def _accuracies(
    outcomes: Outcomes,
    attacks: Sequence[Attack],
    tasks: Sequence[Task],
    predictions: dict[str, np.ndarray[Any, Any]],
    labels: Sequence[str],
    cascade: bool,
) -> dict[str, Any]:
    """The parts of the report that are accuracies, all of them computed by the metric."""
    truth, clean = outcomes.labels, outcomes.clean
    fooled = np.stack([values != truth for values in predictions.values()])
    # The wrong class that the first successful attack led to; without any, the right one.
    worst = np.where(fooled.any(0), np.stack(list(predictions.values()))[fooled.argmax(0), np.arange(len(truth))], truth)
    whole = {name: _measure(truth, clean, values) for name, values in predictions.items()}
    rows = {label: truth == index for index, label in enumerate(labels) if (truth == index).any()}
    worst_case = _measure(truth, clean, worst)
    return {
        "clean": worst_case["clean_accuracy"],
        "worst_case": worst_case["robust_accuracy"],
        "attacks": [
            AttackResult(
                attack.name,
                attack.kind,
                attack.options,
                outcomes.tasks[task.key].remarks,
                None if cascade else whole[attack.name]["robust_accuracy"],
                None if cascade else whole[attack.name]["attack_success_rate"],
            )
            for attack, task in zip(attacks, tasks, strict=True)
        ],
        "per_class": [
            ClassResult(
                label,
                int(mask.sum()),
                of_class["clean_accuracy"],
                of_class["robust_accuracy"],
                {}
                if cascade
                else {
                    name: _measure(truth, clean, values, mask)["robust_accuracy"] for name, values in predictions.items()
                },
            )
            for label, mask in rows.items()
            for of_class in [_measure(truth, clean, worst, mask)]
        ],
    }


def _measure(
    labels: np.ndarray[Any, Any],
    clean: np.ndarray[Any, Any],
    adversarial: np.ndarray[Any, Any],
    rows: Any = slice(None),
) -> dict[str, Accuracy]:
    columns = {"predictions": clean, "adversarial_predictions": adversarial, "references": labels}
    values = compute_metric("robust_accuracy", **{name: column[rows] for name, column in columns.items()})
    return {
        name: Accuracy(values[name], values[f"{name}_lower"], values[f"{name}_upper"])
        for name in ("clean_accuracy", "robust_accuracy", "attack_success_rate")
    }


def _self_checks(
    classifier: nn.Module,
    dataset: Any,
    outcomes: Outcomes,
    tasks: dict[str, Task],
    attacks: Sequence[Attack],
    predictions: dict[str, np.ndarray[Any, Any]],
    cascade: bool,
    samples: int,
) -> list[SelfCheck]:
    if not samples:
        return []
    ran = {name: outcomes.tasks[task.key].predictions for name, task in tasks.items()}
    count = min(len(values) for values in ran.values())  # in whole chunks; one listed as an attack has them all
    robust = {name: values[:count] == outcomes.labels[:count] for name, values in ran.items()}
    batch = collate([dataset[index] for index in range(min(samples, count))])
    device = device_of(classifier)
    white_box = min(("pgd-20", "pgd-100"), key=lambda name: robust[name].mean())
    everywhere = {} if cascade else {name: values == outcomes.labels for name, values in predictions.items()}
    return [
        no_robustness_at_huge_eps(robust["huge"], tasks["huge"].threat_model),
        at_least_as_strong("more_steps", ("pgd-100", robust["pgd-100"]), ("pgd-20", robust["pgd-20"])),
        at_least_as_strong("gradient_beats_noise", ("pgd-20", robust["pgd-20"]), ("noise", robust["noise"]), strictly=True),
        at_least_as_strong("steps_beat_one_step", ("pgd-20", robust["pgd-20"]), ("fgsm", robust["fgsm"])),
        at_least_as_strong("one_step_beats_noise", ("fgsm", robust["fgsm"]), ("noise", robust["noise"])),
        at_least_as_strong(
            "white_box_beats_black_box", (white_box, robust[white_box]), ("square-500", robust["square-500"])
        ),
        vanishing_gradients(classifier, as_pixels(batch["pixel_values"].to(device)), batch["labels"].to(device)),
        *(order(everywhere, attacks) if everywhere else []),
    ]


def _curve(outcomes: Outcomes, tasks: Sequence[Task], samples: int) -> list[CurvePoint]:
    if not samples:
        return []
    ran = [outcomes.tasks[task.key].predictions for task in tasks]
    count = min(len(values) for values in ran)
    labels, clean = outcomes.labels[:count], outcomes.clean[:count]
    points = [CurvePoint(0.0, count, _measure(labels, clean, clean)["clean_accuracy"])]
    for task, values in zip(tasks, ran, strict=True):
        points.append(CurvePoint(task.threat_model.eps, count, _measure(labels, clean, values[:count])["robust_accuracy"]))
    return points


def hardware() -> str:
    """What this process computes on: the GPU's name, or the kind of CPU and the number of threads."""
    if torch.accelerator.is_available():
        return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
