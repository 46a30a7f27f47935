"""Attacks called from Python, and classifiers given to an evaluation."""

import math

import numpy as np
import torch
from row import Row
from torch import nn

from hf_robust_transfer.attacks import early_stopping_pgd, fgsm, pgd
from hf_robust_transfer.evaluation import autoattack, evaluate_robustness
from hf_robust_transfer.threat_model import ThreatModel

LINF = ThreatModel("linf", 8 / 255)
IMAGES = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
ATTACKS = {"pgd": pgd, "fgsm": fgsm, "early_stopping_pgd": early_stopping_pgd, "autoattack": autoattack}


def network(images):
    return images.flatten(1)[:, :3]


LABELS = network(IMAGES).argmax(1)  # so that attacks have something to do


def changed(value):
    images = IMAGES.clone()
    images[1, 2, 3, 0] = value
    return images


def call(attack, images=IMAGES, labels=LABELS, threat_model=LINF, classifier=network, **options):
    return lambda here, places: attack(classifier, images, labels, threat_model, **options)


# name: other images, labels or threat model, and the words about them
INPUT = {
    "pixels up to 255": ({"images": IMAGES * 255}, ("images lie between", "[0, 1]", "divide")),
    "one pixel above 1": ({"images": changed(1.01)}, ("1.01", "[0, 1]")),
    "one pixel below 0": ({"images": changed(-0.01)}, ("-0.01", "[0, 1]")),
    "normalised pixels": ({"images": (IMAGES - 0.5) / 0.25}, ("normalise",)),
    "a pixel that is NaN": ({"images": changed(math.nan)}, ("nan",)),
    "an infinite pixel": ({"images": changed(math.inf)}, ("inf",)),
    "uint8 pixels": ({"images": (IMAGES * 255).byte()}, ("torch.uint8", "as_pixels")),
    "int64 pixels": ({"images": (IMAGES * 255).long()}, ("torch.int64", "as_pixels")),
    "complex pixels": ({"images": IMAGES.cfloat()}, ("torch.complex64", "(B, C, H, W)")),
    "one image without a batch": ({"images": IMAGES[0]}, ("(3, 4, 4)", "(B, C, H, W)")),
    "a NumPy array": ({"images": IMAGES.numpy()}, ("ndarray", "(B, C, H, W)")),
    "other bounds": ({"threat_model": ThreatModel("linf", 0.01, bounds=(0.4, 0.6))}, ("[0.4, 0.6]",)),
    "an l2 radius above the diagonal": ({"threat_model": ThreatModel("l2", 8)}, ("eps=8", "6.928", "8/255")),
    "a label too many": ({"labels": torch.tensor([0, 1, 2, 3])}, ("label 3", "3 classes")),
    "a negative label": ({"labels": torch.tensor([0, 1, 2, -1])}, ("label -1", "from 0")),
    "label -100": ({"labels": torch.tensor([-100, 1, 2, 0])}, ("label -100", "from 0")),
    "fewer labels than images": ({"labels": LABELS[:2]}, ("(2,)", "4 images")),
    "one label for all": ({"labels": torch.tensor(1)}, ("labels", "(4,)")),
    "one-hot labels": ({"labels": torch.eye(4, 3).long()}, ("(4, 3)", "(4,)")),
    "float labels": ({"labels": LABELS.float()}, ("torch.float32", "integer")),
    "boolean labels": ({"labels": LABELS > 0}, ("torch.bool", "integer")),
    "a list of labels": ({"labels": LABELS.tolist()}, ("list", "integer tensor")),
    "one logit": ({"classifier": lambda images: images.flatten(1)[:, :1]}, "at least 2 classes"),
    "flat logits": ({"classifier": lambda images: images.flatten()}, ("logits of shape",)),
    "no gradient": ({"classifier": torch.no_grad()(network)}, ("no gradient", "square")),
    "pixels through NumPy": (
        {"classifier": lambda images: network(torch.from_numpy(np.round(images.detach().numpy() * 8) / 8))},
        ("no gradient", "square"),
    ),
}
ROWS = [
    Row(f"{name}: {what}", call(attack, **given), words)
    for name, attack in ATTACKS.items()
    for what, (given, words) in INPUT.items()
    if name != "autoattack" or what != "other bounds"
]

STEP_SIZES = {"step_size NaN": math.nan, "step_size -1": -1.0, "step_size 0": 0.0, "infinite step_size": math.inf}
ROWS += [
    Row(f"{name}: {what}", call(ATTACKS[name], step_size=size), "step_size")
    for name in ("pgd", "fgsm", "early_stopping_pgd")
    for what, size in {**STEP_SIZES, "step_size large": "large"}.items()
]
ROWS += [
    Row("pgd: half a step", call(pgd, steps=2.5), "steps=2.5"),
    Row("pgd: steps of NaN", call(pgd, steps=math.nan), "steps=nan"),
    Row("pgd: half a restart", call(pgd, restarts=1.5), "restarts=1.5"),
    Row("pgd: indices of another number", call(pgd, indices=torch.arange(3)), ("indices", "(4,)")),
    Row("pgd: indices that are floats", call(pgd, indices=torch.rand(4)), ("indices", "integer")),
    Row("autoattack: bounds that it does not know", call(autoattack, threat_model=ThreatModel(bounds=(0, 2))), "[0, 2]"),
]


def evaluated(classifier, images=IMAGES, labels=LABELS, attacks=("fgsm",), names=("a", "b", "c"), threat_model=LINF):
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    options = {"labels": names, "self_check_samples": 0, "curve_samples": 0, "progress": False}
    return lambda here, places: evaluate_robustness(classifier, data, threat_model, list(attacks), **options)


class Network(nn.Module):
    """The network as a module, with something done to its logits."""

    def __init__(self, function=lambda logits: logits):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(network(images))


def nan_somewhere(logits):
    return torch.where(logits[:, :1] > float(IMAGES[:, 0, 0, 0].median()), logits * math.nan, logits)


def leaving(classifier, images, labels, threat_model):
    return images + 1.01 * threat_model.eps


def losing(classifier, images, labels, threat_model):
    return torch.full_like(images, math.nan)


def whole(classifier, images, labels, threat_model):
    return (images * 255).byte()


ROWS += [
    Row("evaluate: logits that are NaN", evaluated(Network(lambda logits: logits * math.nan)), "NaN for"),
    Row("evaluate: logits that are NaN on some images", evaluated(Network(nan_somewhere)), "NaN for"),
    Row(
        "evaluate: one logit",
        evaluated(Network(lambda logits: logits[:, :1]), labels=0 * LABELS, names=["a"]),
        "at least 2 classes",
    ),
    Row(
        "evaluate: logits without names",
        evaluated(Network(), labels=LABELS.clamp(max=1), names=["a", "b"]),
        ("3 logits", "2 labels"),
    ),
    Row("evaluate: labels without names", evaluated(Network(), names=["a", "b"]), ("label 2", "only 2 labels")),
    Row("evaluate: names without logits", evaluated(Network(), names="abcd"), ("3 logits", "4 labels")),
    Row("evaluate: features", evaluated(Network(lambda logits: logits[:, :, None])), "logits of shape"),
    Row("evaluate: int64 pixels", evaluated(Network(), (IMAGES * 255).long()), ("torch.int64", "[0, 1]")),
    Row("evaluate: boolean pixels", evaluated(Network(), IMAGES > 0.5), ("torch.bool", "[0, 1]")),
    Row("evaluate: NaN pixels", evaluated(Network(), changed(math.nan)), ("nan", "[0, 1]")),
    Row("evaluate: a radius above the diagonal", evaluated(Network(), threat_model=ThreatModel("l2", 8)), "eps=8"),
    Row("evaluate: an attack that leaves the ball", evaluated(Network(), attacks=[leaving]), "outside"),
    Row("evaluate: an attack that gives NaN", evaluated(Network(), attacks=[losing]), "NaN"),
    Row("evaluate: an attack that gives bytes", evaluated(Network(), attacks=[whole]), "outside"),
]

ROWS += [
    Row(
        f"{command}: a radius above the diagonal",
        f"{command} <{command}> --norm l2 --eps 40",
        ("eps=40", "13.85", "40/255"),
    )
    for command in ("pretrain", "evaluate")
]
