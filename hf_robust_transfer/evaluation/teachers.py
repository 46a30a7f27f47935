"""Which teacher to distil from: how far what it knows carries over to a student's adversarial images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..attacks import pgd
from ..attacks.eval_mode import untouched
from ..modeling.classifier import PixelClassifier, full_precision
from ..objectives.divergence import divergence, entropy
from ..threat_model import ThreatModel
from .accuracy import Accuracy

STEPS = 20  # of PGD on student and teacher
_ROBUST_ENOUGH = 0.5  # of the most robust teacher's robust accuracy


@dataclass(frozen=True)
class TeacherReport:
    """What a teacher makes of some images.

    Args:
        clean, robust: its accuracies on images as they are, and after PGD-20 on it.
        entropy: of its prediction at images attacked through the student, in nats, the mean.
        transferable: the share of images of which the student's adversarial version moves it (`transferable`).
    """

    clean: Accuracy
    robust: Accuracy
    entropy: float
    transferable: Accuracy


def look_at_teacher(
    teacher: PixelClassifier,
    student: PixelClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    threat_model: ThreatModel,
    seed: int,
) -> TeacherReport:
    """Attack a teacher and a student, and see how the teacher answers to both; neither is changed.

    Args:
        teacher: for the student's labels and at its pixels, as `hf_robust_transfer.transfer.matched_teacher` gives it.
        student: a pilot of the student that is to learn.
        batches: images in [0, 1], (B, C, H, W), and labels (B,), on their device.
        threat_model: of both attacks, PGD-20 on the cross-entropy.
        seed: of their random starts.
    """
    found: list[list[Tensor]] = []
    first = 0
    with full_precision(teacher), full_precision(student), untouched(teacher), untouched(student), torch.no_grad():
        for images, labels in batches:
            indices = torch.arange(first, first + len(labels), device=labels.device)
            first += len(labels)
            through_student, through_teacher = (
                teacher(pgd(network, images, labels, threat_model, steps=STEPS, seed=seed, indices=indices))
                for network in (student, teacher)
            )
            clean = teacher(images)
            right = clean.argmax(1) == labels
            robust = right & (through_teacher.argmax(1) == labels)
            moved = transferable(clean, through_student, through_teacher)
            found.append([right, robust, moved, entropy(through_student)])
    columns = [torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)]
    clean_right, robust_right, moves, doubt = columns
    return TeacherReport(Accuracy.of(clean_right), Accuracy.of(robust_right), float(np.mean(doubt)), Accuracy.of(moves))


def transferable(clean: Tensor, through_student: Tensor, through_teacher: Tensor) -> Tensor:
    """Whether each sample is transferable, bool (B,) (Lee & Chung, arXiv 2512.10275, eq. 7).

    It is where KL(T(x + δ_S) ‖ T(x)) ≥ KL(T(x + δ_S) ‖ T(x + δ_T)): attacked through the student, the teacher's answer is
    closer to its answer to an attack of its own than to that on the clean image.

    Args:
        clean, through_student, through_teacher: the teacher's logits (B, classes) at x, x + δ_S and x + δ_T.

    Example:
        >>> sure, torn = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.1, 0.0]])
        >>> transferable(sure, torn, torn), transferable(sure, sure, torn)
        (tensor([True]), tensor([False]))
    """
    return divergence(through_student, clean) >= divergence(through_student, through_teacher)


def recommended(reports: Mapping[str, TeacherReport]) -> tuple[str, str]:
    """Which teacher to take, and why.

    Of those at least half as robust as the most robust one, that with the largest share of transferable samples; among
    those whose share is within its interval, the most robust one.

    Args:
        reports: by the teachers' names.

    Returns:
        A name and a sentence.
    """
    best = max(report.robust.value for report in reports.values())
    fit = {name: report for name, report in reports.items() if report.robust.value >= _ROBUST_ENOUGH * best}
    top = max(fit.values(), key=lambda report: report.transferable.value)
    close = {name: report for name, report in fit.items() if report.transferable.value >= top.transferable.lower}
    name = max(close, key=lambda each: (close[each].robust.value, close[each].transferable.value))
    chosen = reports[name]
    why = f"{chosen.transferable.value:.0%} of the student's adversarial images move it as an attack of its own does"
    if len(close) > 1:
        others = ", ".join(each for each in close if each != name)
        why += f", within the interval as many as of {others}, and it is the most robust of these"
    elif len(fit) > 1:
        why += ", the largest share"
    left = [each for each in reports if each not in fit]
    if left:
        why += f"; {', '.join(left)} kept less than half of the most robust one's robust accuracy"
    return name, why
