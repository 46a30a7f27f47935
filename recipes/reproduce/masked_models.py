"""Which self-check notices which masked gradient: masked and honest models of digits, evaluated and told the truth.

    python recipes/reproduce/masked_models.py              # all of them, as a Markdown table
    python recipes/reproduce/masked_models.py one-hot vit  # some

Digits are those of scikit-learn, networks are tiny and trained here, in seconds. The truth is what is left by examples that
were crafted on the same network without its mask, and by all that the evaluation itself found.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import masks
from hf_robust_transfer.evaluation import RobustnessReport, evaluate_robustness
from hf_robust_transfer.threat_model import ThreatModel
from masks import EPS, Around, Function, convolutional, gradient, in_places, natural, partly_right, robust, straight_through

ATTACKS = ("fgsm", "pgd-20")
STRONG = ("transfer:steps=100", "transfer:steps=100,loss=margin")
IMAGES = 100


def data(classes: int = 10) -> list[dict[str, object]]:
    """The last digits of the first classes, as items of a data set."""
    images, labels = (each[-400:] for each in masks.digits())
    rows = (labels < classes).nonzero()[:IMAGES, 0]
    return [{"pixel_values": images[row], "labels": int(labels[row])} for row in rows]


@dataclass(frozen=True)
class Case:
    """A model to evaluate: masked, or honest where ``unmasked`` is None; the threat model, classes, logits and precision.

    ``alike`` tells whether it treats other images as it does these; else the truth is that of the unmasked network.
    """

    model: Callable[[], nn.Module]
    unmasked: Callable[[], nn.Module] | None = None
    threat_model: ThreatModel = EPS
    classes: int = 10
    logits: int = 10
    precision: str = "float32"
    alike: bool = True


def before(function: Function, unmasked: Function | None = None) -> Case:
    """The natural network behind a function; the truth is attacked through another one, by default none."""
    return Case(lambda: Around(natural(), function), lambda: Around(natural(), unmasked))


def after(function: Function) -> Case:
    """The natural network before a function of its logits."""
    return Case(lambda: Around(natural(), after=function), natural)


def trained(make: Callable[[], nn.Module] = convolutional, **options: Any) -> Callable[[], nn.Module]:
    """A network of one's own, trained when it is asked for."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return masks.train(make(), **options)

    return cache(build)


pure_noise, one_fifth = partly_right(0), partly_right(0.2)
distilled = trained(temperature=30.0)
sparse = trained(lambda: convolutional(middle=masks.Winners()))
MASKED = {
    "sign of the pixels": before(
        lambda images: (images - 0.5).sign(), straight_through(lambda images: (images - 0.5).sign())
    ),
    "staircase": before(masks.staircase, straight_through(masks.staircase)),
    "staircase, straight-through": before(straight_through(masks.staircase), straight_through(masks.staircase)),
    "thermometer": before(lambda images: masks.thermometer(images) + 0 * images, straight_through(masks.thermometer)),
    "JPEG": before(masks.jpeg, straight_through(masks.jpeg)),
    "JPEG, straight-through": before(straight_through(masks.jpeg), straight_through(masks.jpeg)),
    "logits × 10 000": after(lambda logits: logits * 1e4),
    **{f"logits × {factor}": after(lambda logits, factor=factor: logits * factor) for factor in (4, 10)},
    **{f"logits clipped at ±{most}": after(lambda logits, most=most: logits.clamp(-most, most)) for most in (3, 7, 9)},
    "logits through tanh": after(lambda logits: (logits / 2).tanh()),
    "logits cubed": after(lambda logits: logits**3),
    "probabilities": after(lambda logits: logits.softmax(1)),
    "one-hot": after(lambda logits: masks.one_hot(logits) + 0 * logits),
    "rounded logits": after(lambda logits: logits.round()),
    "defensive distillation": Case(distilled, lambda: Around(distilled(), after=lambda logits: logits / 30)),
    "no graph": before(lambda images: images.detach()),
    "gradient noise": before(gradient(pure_noise)),
    **{f"gradient right in {share:.0%}": before(gradient(partly_right(share))) for share in (0.1, 0.2, 0.5, 0.8)},
    "gradient reversed": before(gradient(lambda found: -found)),
    "gradient × 1e-6": before(gradient(lambda found: found * 1e-6)),
    "gradient × 1e-42": before(gradient(lambda found: found * 1e-42)),
    "gradient noise off the grid": before(in_places(pure_noise, masks.off_grid)),
    "gradient noise near the boundary": before(in_places(pure_noise, masks.unsure)),
    "gradient noise for some images": before(in_places(pure_noise, lambda images: images.flatten(1).sum(1) * 16 % 10 < 2)),
    "detached branch": Case(lambda: masks.Detached(natural(), robust()), lambda: Around(natural())),
    "smoothing noise 0.2": before(masks.smoothing(0.2)),
    "smoothing noise 0.02": before(masks.smoothing(0.02)),
    "dropout left on": before(lambda images: F.dropout(images, 0.3)),
    "random resize": before(masks.resized),
    "noise by place": before(
        lambda images: images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ),
    "logits rippled": after(masks.rippled),
    "pixels rippled": before(lambda images: images + 0.05 * (60 * images).sin(), lambda images: images),
    "winners take all": Case(sparse, sparse),
}
HONEST = {
    "natural": Case(natural),
    "robust": Case(robust),
    "binary": Case(trained(lambda: convolutional(2), classes=2), classes=2, logits=2),
    "binary, robust": Case(trained(lambda: convolutional(2), classes=2, robust=True), classes=2, logits=2),
    "l2": Case(robust, threat_model=ThreatModel("l2", 0.7)),
    "natural, l2": Case(natural, threat_model=ThreatModel("l2", 0.7)),
    "ε = 0.0001": Case(natural, threat_model=ThreatModel("linf", 0.0001)),
    "ε = 1e-9": Case(robust, threat_model=ThreatModel("linf", 1e-9)),
    "ε = 0": Case(robust, threat_model=ThreatModel("linf", 0)),
    "ε = 0.001, l2": Case(natural, threat_model=ThreatModel("l2", 0.001)),
    "ε = 0.3": Case(robust, threat_model=ThreatModel("linf", 0.3)),
    "vit": Case(trained(masks.Vit, steps=600)),
    "bf16": Case(robust, precision="bf16"),
    "bf16, natural": Case(natural, precision="bf16"),
    "1000 classes": Case(trained(lambda: convolutional(1000)), logits=1000),
    "overconfident": Case(trained(steps=3000)),
    "batch-norm": Case(trained(lambda: convolutional(norm=nn.BatchNorm2d(8)))),
    "tanh": Case(trained(lambda: convolutional(middle=nn.Tanh()))),
    "dropout in training": Case(trained(lambda: convolutional(middle=nn.Dropout(0.5)))),
    "linear": Case(trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))),
    "untrained": Case(trained(steps=0)),
}

UNNOTICED = {
    "remembers the images": Case(lambda: masks.Remembering(natural(), data()), natural, alike=False),
}


def evaluated(case: Case) -> RobustnessReport:
    """The report of a model that was evaluated as anybody would."""
    return evaluate_robustness(
        case.model(), data(case.classes), case.threat_model, ATTACKS, precision=case.precision, **_told(case)
    )


def truth(case: Case, report: RobustnessReport) -> float:
    """The share of the images that is left by the examples of somebody who knows the mask, and by all that was found."""
    unmasked = (case.unmasked or case.model)()
    judged = case.model() if case.alike else unmasked
    strong = evaluate_robustness(
        judged, data(case.classes), case.threat_model, STRONG, surrogate=unmasked, self_check_samples=0, **_told(case)
    )
    found = [strong.predictions, *([report.predictions, report.self_check_predictions] if case.alike else [])]
    labels = np.array(strong.predictions["labels"])
    return float(np.logical_and.reduce([np.array(each) == labels for of in found for each in of.values()]).mean())


def _told(case: Case) -> dict[str, Any]:
    names = [str(label) for label in range(case.logits)]
    return {"labels": names, "curve_samples": 0, "progress": False, "chunk_size": IMAGES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of models; by default all")
    names = parser.parse_args().names
    print("| model | clean | reported | claimed | truth | warned by |\n|---|---|---|---|---|---|")
    for name, case in (MASKED | UNNOTICED | HONEST).items():
        if not names or name in names:
            report = evaluated(case)
            shares = (report.clean.value, report.worst_case.value, report.claim.accuracy.value, truth(case, report))
            warned = ", ".join(f"`{check.name}`" for check in report.self_checks if not check.passed)
            print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} | {warned or '–'} |", flush=True)


if __name__ == "__main__":
    main()
