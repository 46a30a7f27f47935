"""The pictures of an evaluation: accuracy against ε, and adversarial examples one can look at."""

from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from ..attacks import early_stopping_pgd
from ..attacks.eval_mode import untouched
from ..data import as_pixels, collate
from ..markdown import one_line
from ..threat_model import ThreatModel
from .report import RobustnessReport, eps_text
from .subject import Subject

# Texts show as they are: a dollar sign begins no formula, whatever the user's own settings are.
PLAIN: Any = {"text.parse_math": False, "text.usetex": False}
# Of the colour-blind safe palette of Okabe and Ito.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"


@matplotlib.rc_context(PLAIN)
def plot_curve(report: RobustnessReport, file: str | Path) -> None:
    """Draw accuracy under PGD-20 against ε with its intervals, and the worst case at the report's own ε.

    Args:
        report: with a curve.
        file: the PNG to write.
    """
    norm, eps = report.threat_model["norm"], report.threat_model["eps"]
    in_255ths = norm == "linf"
    scale = 255 if in_255ths else 1
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    radii = [point.eps * scale for point in report.curve]
    values = [100 * point.accuracy.value for point in report.curve]
    axes.fill_between(
        radii,
        [100 * point.accuracy.lower for point in report.curve],
        [100 * point.accuracy.upper for point in report.curve],
        color=BLUE,
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(radii, values, "o-", color=BLUE, clip_on=False, label=f"PGD-20, {report.curve[0].samples} images")
    worst = report.worst_case
    axes.errorbar(
        eps * scale,
        100 * worst.value,
        yerr=[[100 * (worst.value - worst.lower)], [100 * (worst.upper - worst.value)]],
        fmt="D",
        color=VERMILION,
        capsize=4,
        clip_on=False,
        label=f"worst case of {len(report.attacks)} attack(s), {report.data['samples']} images",
    )
    axes.axvline(eps * scale, color=GREY, linestyle=":", linewidth=1)
    axes.set(
        xlabel=f"{norm} ε ({'in 255ths of the pixel range' if in_255ths else 'in [0, 1] pixels'})",
        ylabel="accuracy (%)",
        ylim=(0, 100),
        xlim=(0, radii[-1] * 1.02),
        title=f"Accuracy against ε: {_short(report.model['name'])}",
    )
    axes.grid(alpha=0.3)
    title = "with 95 % intervals"
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=title, fontsize="small", title_fontsize="small")
    figure.savefig(file)


@matplotlib.rc_context(PLAIN)
def plot_examples(
    subject: Subject,
    dataset: Any,
    threat_model: ThreatModel,
    file: str | Path,
    *,
    title: str,
    columns: int = 6,
    look_at: int = 100,
) -> None:
    """Draw clean images, PGD-20 perturbations and adversarial images of the first samples, with both predictions.

    Args:
        subject: what is attacked.
        dataset: as for `evaluate_robustness`.
        threat_model: what the perturbations may be.
        file: the PNG to write.
        title: above the picture.
        columns: at most so many samples: the first of the correctly classified ones.
        look_at: search among so many first samples.
    """
    batch = collate([{**dataset[index], "indices": index} for index in range(min(look_at, len(dataset)))])
    classifier, labels = subject.exact, subject.labels
    images, truth, indices = (batch[name].to(subject.device) for name in ("pixel_values", "labels", "indices"))
    images = as_pixels(images)
    with untouched(subject.classifier):
        with torch.no_grad():
            rows = (classifier(images).argmax(1) == truth).nonzero()[:columns, 0]
        images, truth, indices = images[rows], truth[rows], indices[rows]
        if not len(rows):
            return
        keyed: dict[str, Any] = {"seed": subject.settings.seed, "indices": indices}
        adversarial, _ = early_stopping_pgd(classifier, images, truth, threat_model, **keyed)
        with torch.no_grad():
            fooled_as, confidence = classifier(adversarial).softmax(1).max(1)[::-1]
            clean_confidence = classifier(images).softmax(1).amax(1)
    perturbation = adversarial - images
    largest = perturbation.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    perturbation = perturbation / (2 * largest) + 0.5
    figure = Figure(figsize=(1.75 * len(rows) + 0.6, 6.4), dpi=150, layout="constrained")
    grid = figure.subplots(3, len(rows), squeeze=False)
    names = ("clean image", "perturbation, enlarged\n(grey is none)", "adversarial image")
    for row, (name, pictures) in enumerate(zip(names, (images, perturbation, adversarial), strict=True)):
        grid[row][0].set_ylabel(name, fontsize="small")
        for column, picture in enumerate(pictures.cpu().clamp(0, 1)):
            axes = grid[row][column]
            axes.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    for column in range(len(rows)):
        right = bool(fooled_as[column] == truth[column])
        for row, label, share in ((0, truth, clean_confidence), (2, fooled_as, confidence)):
            mark = "" if row == 0 else "\nwithstood" if right else "\nfooled"
            grid[row][column].set_title(
                f"{_short(labels[int(label[column])], 16)}, {share[column]:.0%}{mark}",
                fontsize="small",
                color="black" if row == 0 or right else VERMILION,
            )
    figure.suptitle(
        f"{_short(title)}\nPGD-20, {threat_model.norm} ε = {eps_text(threat_model.eps)}; prediction and its probability"
    )
    figure.savefig(file)


def _short(text: str, length: int = 50) -> str:
    text = one_line(text)
    return text if len(text) <= length else f"…{text[1 - length :]}"
