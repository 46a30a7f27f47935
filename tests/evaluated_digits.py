"""What tests of evaluations share: digits, and models around another one."""

import datasets
import torch
from torch import nn

from hf_robust_transfer.threat_model import ThreatModel

QUICK = {"self_check_samples": 0, "curve_samples": 0, "progress": False, "precision": "float32"}
EPS = ThreatModel("linf", 0.06)


class Around(nn.Module):
    """A classifier whose logits pass through a function."""

    def __init__(self, classifier, function):
        super().__init__()
        self.inner, self.labels, self.function = classifier, classifier.labels, function

    def forward(self, images):
        return self.function(self.inner(images))


def stacked(items):
    return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])


def without_times(report):
    return {name: value for name, value in report.items() if name != "timing"}


def images_of(items):
    return datasets.Dataset.from_dict(
        {
            "image": [(item["pixel_values"] * 255).round().byte().permute(1, 2, 0).numpy() for item in items],
            "label": [item["labels"] for item in items],
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
