"""Robust transfer: carry a robust source's robustness to your own images, with natural training only.

    accelerate launch -m hf_robust_transfer.cli.finetune --model_name_or_path outputs/source --dataset_name my/images \\
        --transfer lwf --eps 8/255 --output_dir outputs/mine

With no argument it runs an embedded example on scikit-learn's digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import set_seed

from ..data import DataArguments, PixelDataset, as_pixels, load_image_splits
from ..errors import UsageError
from ..modeling import PixelClassifier, load_model
from ..runs.folder import claim_output_dir
from ..runs.train import train_and_evaluate
from ..training.arguments import RobustTrainingArguments
from ..transfer import head_learning_rate
from . import quickstart
from .main import run_command
from .options import ModelArguments
from .parsing import as_flags, parse_arguments

# What --transfer stands for; a flag given on the command line goes before.
_WARM_START = {"warm_start_steps": 0.4, "batch_norm_eval": True}
TRANSFERS: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": "backbone"},
    "lwf": {**_WARM_START, "unfreeze_warmup_steps": 0.3, "learning_rate": 0.03, "lwf_weight": 1.0},
    "fine_tuned": {**_WARM_START, "unfreeze_warmup_steps": 0.1},
}
_OTHERWISE = {
    "freeze": "none",
    "learning_rate": 0.01,
    "warm_start_steps": 0.0,
    "unfreeze_warmup_steps": 0.0,
    "lwf_weight": 0.0,
}


@dataclass
class FinetuningArguments(RobustTrainingArguments):
    """`RobustTrainingArguments` whose transfer options follow from one choice."""

    transfer: str = field(
        default="lwf",
        metadata={
            "help": "How to transfer: frozen (retrain the head alone), lwf (all of it, features kept close to the source's)"
            " or fine_tuned (all of it, for comparison). Sets --learning_rate, --freeze, --lwf_weight and the warm start,"
            " unless they are given."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Learning rate after the warm start, for SGD by default 0.03 for lwf and 0.01 for fine_tuned; for"
            " frozen that of the head, by default 10 / (1 + mean ‖z‖²) over features z, as in the warm start."
        },
    )
    freeze: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "none, backbone, or the number of first blocks to freeze."}
    )
    warm_start_steps: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Train the head alone for so many first steps; below 1, a share of all."}
    )
    unfreeze_warmup_steps: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "After it, let the learning rate grow over so many steps; below 1, a share of all: by default 0.3 for"
            " lwf and 0.1 for fine_tuned."
        },
    )
    lwf_weight: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "λ_d: weight of the distance to the source's features (LwF)."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "The source whose features LwF keeps; by default --model_name_or_path."}
    )

    def __post_init__(self) -> None:
        if self.transfer not in TRANSFERS:
            raise UsageError(f"--transfer {self.transfer} is unknown: use {', '.join(TRANSFERS)}")
        preset = {**_OTHERWISE, **TRANSFERS[self.transfer]}
        if self.optim != "sgd" and self.learning_rate is None:
            raise UsageError(f"--learning_rate is missing: there is a default for --optim sgd, but not for {self.optim}")
        if (self.freeze or preset["freeze"]) == "backbone":
            preset.pop("learning_rate")  # the head's, once its features are known
        for name, value in preset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()

    def choose_head_learning_rate(self, classifier: PixelClassifier, dataset: PixelDataset) -> None:
        """Give the head a learning rate that suits the features of the first training images, unless there is one."""
        name = "learning_rate" if self.freeze == "backbone" else "warm_start_learning_rate"
        if self.optim == "sgd" and getattr(self, name) is None:
            images = torch.stack([dataset[row]["pixel_values"] for row in range(min(128, len(dataset)))])
            setattr(self, name, head_learning_rate(classifier, as_pixels(images)))


def main(argv: Sequence[str]) -> None:
    """Parse, load, transfer, evaluate; or the embedded example."""
    if not argv:
        quickstart.main(argv)
        return
    model_args, data_args, args = parse_arguments(
        "hf-robust-transfer finetune",
        [ModelArguments, DataArguments, FinetuningArguments],
        "Transfer a robust source to your own images. Give flags, after a YAML or JSON file of them if you like; with none"
        " at all an embedded example on scikit-learn's digits runs. A run that was stopped goes on where it was when it is"
        " started again.",
        argv,
    )
    if model_args.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: the robust source, a checkpoint folder or a Hub id")
    source = args.teacher_name_or_path or model_args.model_name_or_path
    resume_from = claim_output_dir(
        args, overwrite=model_args.overwrite_output_dir, uses=[model_args.model_name_or_path, source]
    )
    if not Path(source or "").is_dir() and timm.is_model(source or ""):
        raise UsageError(
            f"--model_name_or_path {source} is an architecture without weights: train it with hf-robust-transfer pretrain,"
            " import a checkpoint with hf-robust-transfer import-checkpoint, or use a Hub id such as timm/resnet50.a1_in1k"
        )
    splits = load_image_splits(data_args, seed=args.seed, **model_args.hub_options)
    set_seed(args.seed)
    model, processor = model_args.load(splits.id2label)
    teacher = None
    if args.lwf_weight:
        revision = "main" if args.teacher_name_or_path else model_args.model_revision
        teacher = PixelClassifier(*load_model(source, revision=revision, **model_args.hub_options))
    args.choose_head_learning_rate(PixelClassifier(model, processor), PixelDataset(splits.train, processor))
    train_and_evaluate(
        model,
        processor,
        splits,
        args,
        teacher=teacher,
        resume_from=resume_from,
        overwrite=model_args.overwrite_output_dir,
        data=data_args,
        base_model=model_args.model_name_or_path,
        options={**model_args.defining_options, "teacher_name_or_path": source},
        command=["finetune", *as_flags(argv)],
    )


if __name__ == "__main__":
    run_command("finetune")
