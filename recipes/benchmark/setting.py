"""What to measure, the models and images to measure it with, and the libraries to compare with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn

from hf_robust_transfer import (
    PixelClassifier,
    ThreatModel,
)
from hf_robust_transfer.data import DataArguments, PixelDataset, as_pixels, load_evaluation_split
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import load_model
from hf_robust_transfer.modeling.attack_copy import choose_precision

LINF_8 = ThreatModel("linf", 8 / 255)
PEERS = ("torchattacks", "foolbox")


LOW = torch.bfloat16
BATCH = 128  # the default of training


@dataclass
class BenchmarkArguments:
    """What to measure, besides the images."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A robust checkpoint, trained at linf 8/255."})
    natural_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A naturally trained one of the same labels; without it its line is left out."}
    )
    transfer_dataset_name: str | None = field(
        default=None, metadata={"help": "Images to transfer to; without them that line is left out."}
    )
    rows: list[str] | None = field(default=None, metadata={"help": "Measure only these lines of the table."})
    output: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})
    quick: bool = field(
        default=False, metadata={"help": "A rough table in minutes: fewer images, rounds and epochs, no AutoAttack."}
    )
    samples: int = field(default=200, metadata={"help": "Images to attack."})
    autoattack_samples: int = field(default=100, metadata={"help": "Images to attack with AutoAttack."})
    batch_size: int = field(default=100, metadata={"help": "Images that each library attacks at a time."})
    rounds: int = field(default=3, metadata={"help": "Rounds in which the contenders take turns; medians are given."})
    epochs: int = field(default=20, metadata={"help": "Epochs of the frozen transfer."})

    def __post_init__(self) -> None:
        for name in ("samples", "autoattack_samples", "batch_size", "rounds", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.quick:
            self.samples, self.batch_size, self.rounds, self.epochs = min(self.samples, 50), min(self.batch_size, 50), 1, 5


class Plain(nn.Module):
    """A checkpoint as a user of another library would hand it over: a module from [0, 1] pixels to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: PixelClassifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.model(pixel_values=(images - self.mean) / self.std).logits


class Setting:
    """The models and images of one benchmark, loaded when they are first needed."""

    def __init__(self, args: BenchmarkArguments, data: DataArguments) -> None:
        self.args, self.data = args, data
        self.device = PartialState(cpu=not torch.accelerator.is_available()).device
        self.low = choose_precision("auto", self.device)

    def load(self, name: str | None) -> PixelClassifier:
        """A checkpoint as a classifier, in eval mode."""
        return PixelClassifier(*load_model(str(name))).to(self.device).eval()

    @cached_property
    def robust(self) -> PixelClassifier:
        """The robust checkpoint."""
        return self.load(self.args.model_name_or_path)

    @cached_property
    def natural(self) -> PixelClassifier:
        """The naturally trained one."""
        return self.load(self.args.natural_model_name_or_path)

    @cached_property
    def images(self) -> Dataset:
        """The images to attack, encoded."""
        arguments = replace(self.data, max_eval_samples=self.args.samples)
        return load_evaluation_split(arguments, labels=self.robust.labels)[0]

    @cached_property
    def dataset(self) -> PixelDataset:
        """The images to attack."""
        return self._pixels(self.images)

    def training_batch(self, size: int) -> PixelDataset:
        """So many of them, some more than once if need be."""
        return self._pixels(self.images.select([row % len(self.images) for row in range(size)]))

    def _pixels(self, images: Dataset) -> PixelDataset:
        return PixelDataset(images, load_model(str(self.args.model_name_or_path))[1])

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The images to attack, as pixels in [0, 1], with their labels, on the device."""
        images, labels = self.first(len(self.dataset))
        size = self.args.batch_size
        return list(zip(images.split(size), labels.split(size), strict=True))

    def first(self, samples: int) -> tuple[Tensor, Tensor]:
        """The first so many of them as one batch."""
        rows = range(min(samples, len(self.dataset)))
        images = torch.stack([as_pixels(self.dataset[row]["pixel_values"]) for row in rows]).to(self.device)
        return images, torch.tensor(self.dataset.labels[: len(rows)], device=self.device)


def peers(classifier: PixelClassifier) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """PGD-20 at linf 8/255 with steps of 2/255 from a random start, by each library that is installed."""
    plain = Plain(classifier).to(classifier.mean.device).eval().requires_grad_(True)
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if find_spec("torchattacks"):
        import torchattacks

        found["torchattacks"] = torchattacks.PGD(plain, eps=8 / 255, alpha=2 / 255, steps=20, random_start=True)
    if find_spec("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(plain, (0, 1), device=classifier.mean.device)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=20, random_start=True)
        found["foolbox"] = lambda images, labels: attack.run(
            model, images, foolbox.criteria.Misclassification(labels), epsilon=8 / 255
        )
    if not found:
        raise UsageError(
            "there is no library to compare with: pip install 'hf-robust-transfer[benchmark]', and pip install --no-deps"
            " torchattacks"
        )
    return found
