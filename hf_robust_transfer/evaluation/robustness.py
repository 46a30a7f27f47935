"""Evaluate a classifier under a threat model: clean accuracy, robust accuracy under several attacks, self-checks."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from ..attacks.eval_mode import untouched
from ..data import as_pixel_dataset, as_pixels, choose_split, collate
from ..data.sizes import resizing_of, tell_of_images
from ..threat_model import ThreatModel
from .accuracy import Accuracy
from .chunks import Outcomes, Task, attack_in_chunks
from .counting import figures
from .named_attacks import parse_attack, parse_attacks
from .report import AttackResult, CurvePoint, RobustnessReport
from .self_checks import (
    SUBSAMPLE_ATTACKS,
    SelfCheck,
    comparisons,
    gradient_beats_noise,
    gradient_is_the_slope,
    huge_threat_model,
    no_robustness_at_huge_eps,
    order,
    same_answer_again,
    same_answer_in_other_company,
    vanishing_gradients,
)
from .subject import Settings, Subject, make_ready
from .target import Attack

DEFAULT_ATTACKS = ("fgsm", "pgd-20", "cw-100")
CURVE_FACTORS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "datasets", "evaluate", "pyautoattack")


def evaluate_robustness(
    classifier: nn.Module,
    dataset: Any,
    threat_model: ThreatModel,
    attacks: Sequence[str | Callable[..., Tensor]] = DEFAULT_ATTACKS,
    *,
    labels: Sequence[str] | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
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
        dataset: images and labels, as `hf_robust_transfer.data.as_pixel_dataset` takes them: a `datasets.Dataset`, a
            `DatasetDict` with this ``split``, an `ImageFolder`, rows, …; of any other classifier than a `PixelClassifier`,
            ``{"pixel_values": float (C, H, W) in [0, 1], "labels": int}`` at the resolution where ε applies.
        threat_model: norm, ε and pixel bounds.
        attacks: their names, as `parse_attack` reads them, or functions of your own, as for `own_attack`.
        labels: the labels' names, by default those of a `PixelClassifier`.
        image_column_name, label_column_name: the data set's columns, as for `as_pixel_dataset`.
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
        progress: tell what is done to the images, and show a progress bar with the running robust accuracy.

    Returns:
        The report.

    Raises:
        UsageError: no samples, no attacks or one that is listed twice or unknown, no surrogate for ``transfer``, an
            unknown precision, or data or labels that do not suit the classifier.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> data = [{"pixel_values": torch.rand(3, 2, 2), "labels": label} for label in (0, 1, 0, 1)]
        >>> options = {"labels": ["cat", "dog"], "self_check_samples": 0, "curve_samples": 0, "progress": False}
        >>> report = evaluate_robustness(classifier, data, ThreatModel("linf", "8/255"), ["fgsm", "pgd-10"], **options)
        >>> report.worst_case.value <= report.clean.value
        True
    """
    chosen = parse_attacks(attacks, surrogate=surrogate is not None, norm=threat_model.norm)
    settings = Settings(
        seed=seed,
        precision=precision,
        compiled=compiled,
        chunk_size=chunk_size,
        cascade=cascade,
        self_check_samples=self_check_samples,
        curve_samples=curve_samples,
    )
    if isinstance(dataset, Mapping):
        split = choose_split(dataset, split)
        dataset = dataset[split]
    dataset = as_pixel_dataset(
        dataset,
        getattr(classifier, "processor", None),
        split,
        labels=getattr(classifier, "labels", None) if labels is None else labels,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
    )
    subject = make_ready(classifier, dataset, settings, labels=labels, surrogate=surrogate)
    if progress and PartialState().is_main_process:
        tell_of_images(resizing_of(dataset), split)
    return evaluate_subject(
        subject,
        dataset,
        threat_model,
        chosen,
        model_name=model_name,
        data_name=data_name,
        split=split,
        folder=None if resume_folder is None else Path(resume_folder),
        progress=progress,
    )


def evaluate_subject(
    subject: Subject,
    dataset: Any,
    threat_model: ThreatModel,
    attacks: Sequence[Attack],
    *,
    model_name: str,
    data_name: str,
    split: str,
    data_options: Mapping[str, Any] | None = None,
    surrogate_name: str | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """What `evaluate_robustness` does, once the classifier is made ready and the attacks are read.

    Args:
        subject: as `make_ready` gives it.
        dataset, threat_model, model_name, data_name, split, progress: as for `evaluate_robustness`.
        attacks: as `parse_attacks` gives them.
        data_options: with which a command loads the data again.
        surrogate_name: of the subject's surrogate.
        folder: finished work is kept there, and found again when the evaluation is started again.
    """
    began = time.perf_counter()
    resizing = resizing_of(dataset)
    settings = subject.settings
    plan = _planned(subject, threat_model, attacks)
    outcomes = attack_in_chunks(subject, dataset, plan.tasks, folder=folder, progress=progress)
    ran = {attack.name: outcomes.tasks[task.key] for attack, task in zip(attacks, plan.main, strict=True)}
    predictions = {name: outcome.predictions for name, outcome in ran.items()}
    return RobustnessReport(
        model={
            "name": model_name,
            "fingerprint": subject.fingerprint,
            "weights_sha256": subject.weights,
            "input_shape": list(subject.shape),
        },
        data={
            "name": data_name,
            "split": split,
            "samples": len(dataset),
            "pixels_sha256": outcomes.pixels,
            "options": dict(data_options or {}),
            "sides": None if resizing is None or not resizing.known else resizing.sides,
        },
        threat_model={"norm": threat_model.norm, "eps": threat_model.eps, "bounds": list(threat_model.bounds)},
        settings={
            **{name: getattr(settings, name) for name in ("seed", "precision", "chunk_size", "cascade")},
            "surrogate": surrogate_name,
        },
        **_accuracies(subject, attacks, outcomes, plan.main),
        **_self_checks(subject, dataset, attacks, outcomes, plan),
        curve=_curve(outcomes, plan.curve),
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
                "attacks": {name: outcome.seconds for name, outcome in ran.items()},
            },
            "processes": PartialState().num_processes,
        },
    )


class _Plan(NamedTuple):
    """The tasks of an evaluation: of its attacks, of its self-checks by name, of its curve; without those not wanted."""

    main: list[Task]
    checks: dict[str, Task]
    curve: list[Task]

    @property
    def tasks(self) -> list[Task]:
        """Each task once, with as many chunks as its neediest mention asks for."""
        merged: dict[str, Task] = {}
        for task in (*self.main, *self.checks.values(), *self.curve):
            known = merged.get(task.key, task)
            wanted = None if known.chunks is None or task.chunks is None else max(known.chunks, task.chunks)
            merged[task.key] = known._replace(chunks=wanted)
        return list(merged.values())


def _planned(subject: Subject, threat_model: ThreatModel, attacks: Sequence[Attack]) -> _Plan:
    settings = subject.settings
    size = settings.chunk_size or 1
    main: list[Task] = []
    for attack in attacks:
        main.append(Task(attack, threat_model, None, tuple(task.key for task in main) if settings.cascade else ()))
    checks: dict[str, Task] = {}
    pgd_20 = parse_attack("pgd-20")
    if settings.self_check_samples:
        chunks = -(-settings.self_check_samples // size)
        checks = {name: Task(parse_attack(name), threat_model, chunks) for name in SUBSAMPLE_ATTACKS}
        huge = huge_threat_model(threat_model, subject.shape)
        checks |= {f"{name} at a huge ε": Task(parse_attack(name), huge, chunks) for name in ("noise", "pgd-20")}
    curve: list[Task] = []
    if settings.curve_samples:
        widest = threat_model.widest(subject.shape)
        for eps in dict.fromkeys(min(factor * threat_model.eps, widest) for factor in CURVE_FACTORS):
            at = ThreatModel(threat_model.norm, eps, threat_model.bounds)
            curve.append(Task(pgd_20, at, -(-settings.curve_samples // size)))
    return _Plan(main, checks, curve)


def _accuracies(subject: Subject, attacks: Sequence[Attack], outcomes: Outcomes, tasks: Sequence[Task]) -> dict[str, Any]:
    """The parts of the report that are accuracies; in a cascade, no attack has one of its own."""
    ran = {attack.name: outcomes.tasks[task.key] for attack, task in zip(attacks, tasks, strict=True)}
    predictions = {name: outcome.predictions for name, outcome in ran.items()}
    found = figures(outcomes.labels, outcomes.clean, predictions, subject.labels, cascade=subject.settings.cascade)
    return {
        "clean": found.clean,
        "worst_case": found.worst_case,
        "per_class": found.per_class,
        "attacks": [
            AttackResult(
                attack.name,
                attack.kind,
                attack.options,
                ran[attack.name].remarks,
                *(found.attacks[attack.name] or (None, None)),
            )
            for attack in attacks
        ],
    }


def _self_checks(
    subject: Subject, dataset: Any, attacks: Sequence[Attack], outcomes: Outcomes, plan: _Plan
) -> dict[str, Any]:
    """The parts of the report that the self-checks make."""
    if not plan.checks:
        return {"self_checks": []}
    truth = outcomes.labels
    ran = {name: outcomes.tasks[task.key].predictions for name, task in plan.checks.items()}
    count = min(len(values) for values in ran.values())  # in whole chunks; one listed as an attack has them all
    robust = {name: (name, values[:count] == truth[:count]) for name, values in ran.items()}
    at_huge_eps = {name: robust[f"{name} at a huge ε"][1] for name in ("noise", "pgd-20")}
    everywhere = {
        attack.name: outcomes.tasks[task.key].predictions == truth for attack, task in zip(attacks, plan.main, strict=True)
    }
    listed = np.logical_and.reduce([outcomes.clean == truth, *everywhere.values()])[:count]
    checks = [
        no_robustness_at_huge_eps(at_huge_eps["pgd-20"], plan.checks["pgd-20 at a huge ε"].threat_model),
        gradient_beats_noise(robust["pgd-20"], robust["noise"], at_huge_eps["pgd-20"], at_huge_eps["noise"]),
        *comparisons({name: robust[name][1] for name in SUBSAMPLE_ATTACKS}, listed),
        *_looks(subject, dataset, plan.main[0].threat_model, listed),
        *([] if subject.settings.cascade else order(everywhere, attacks)),
    ]
    return {
        "self_checks": checks,
        "self_check_predictions": {name: ran[name][:count].tolist() for name in SUBSAMPLE_ATTACKS},
    }


def _looks(subject: Subject, dataset: Any, threat_model: ThreatModel, listed: np.ndarray[Any, Any]) -> list[SelfCheck]:
    """The self-checks that look at the classifier itself, on the images that its attacks saw.

    Args:
        listed: whether each sample is robust under all listed attacks.
    """
    samples, size = min(subject.settings.self_check_samples, len(listed)), subject.settings.chunk_size or len(listed)
    batches, left = [], []
    for first in range(0, samples, size):
        batch = collate([dataset[index] for index in range(first, min(first + size, samples))])
        images, labels = as_pixels(batch["pixel_values"].to(subject.device)), batch["labels"].to(subject.device)
        batches.append((images, labels))
        rows = torch.tensor(listed[first : first + len(labels)], device=labels.device)
        if rows.any():
            left.append((images[rows], labels[rows]))
    images_alone = [images for images, _ in batches]
    with untouched(subject.classifier):
        return [
            vanishing_gradients(subject.exact, batches),
            gradient_is_the_slope(subject.exact, subject.attacked, left, threat_model, samples, seed=subject.settings.seed),
            same_answer_again(subject.exact, images_alone),
            same_answer_in_other_company(subject.exact, images_alone),
        ]


def _curve(outcomes: Outcomes, tasks: Sequence[Task]) -> list[CurvePoint]:
    if not tasks:
        return []
    ran = [outcomes.tasks[task.key].predictions for task in tasks]
    count = min(len(values) for values in ran)
    labels = outcomes.labels[:count]
    right = outcomes.clean[:count] == labels
    points = [CurvePoint(0.0, count, Accuracy.of(right))]
    for task, values in zip(tasks, ran, strict=True):
        points.append(CurvePoint(task.threat_model.eps, count, Accuracy.of(right & (values[:count] == labels))))
    return points


def hardware() -> str:
    """What this process computes on: the GPU's name, or the kind of CPU and the number of threads."""
    if torch.accelerator.is_available():
        return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
