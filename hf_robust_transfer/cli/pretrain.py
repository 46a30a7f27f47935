"""Train a robust source: any architecture, from scratch or from a checkpoint, with any objective.

    accelerate launch -m hf_robust_transfer.cli.pretrain --model_name_or_path cifar_resnet18 --dataset_name cifar10 \\
        --image_column_name img --objective pgd --eps 8/255 --output_dir outputs/source
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import set_seed

from ..data import DataArguments, load_image_splits
from ..errors import UsageError
from ..modeling.loading import is_untrained
from ..runs.folder import claimed_output_dir
from ..runs.train import check_plan, train_and_evaluate
from ..training.arguments import RobustTrainingArguments
from .main import run_command
from .options import ModelArguments
from .parsing import as_flags, parse_arguments


@dataclass
class PretrainingArguments(RobustTrainingArguments):
    """`RobustTrainingArguments` with a schedule for training from scratch: a ramp and a line down, of a high rate."""

    learning_rate: float = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "The highest learning rate; for SGD by default 0.1 for every 128 images of a step."},
    )
    lr_scheduler_type: str = field(default="linear", metadata={"help": "The learning-rate schedule."})
    warmup_steps: float = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "The rate grows linearly over so many first steps; below 1, a share of all: by default 0.25 where the"
            " head does not train first."
        },
    )
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay; biases and norms are exempt."})
    halve_on_divergence: int = field(
        default=3,
        metadata={
            "help": "How often to go back to the last checkpoint (before the first, to the start) and halve the learning"
            " rate when the loss becomes NaN or infinite, before giving up."
        },
    )

    def __post_init__(self) -> None:
        if self.warmup_steps is None:
            head_first = self.transfer or self.lwf_weight or self.warm_start_epochs or self.warm_start_steps
            self.warmup_steps = 0.0 if head_first else 0.25
        if self.learning_rate is None and self.transfer is None and self.optim == "sgd":
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            images = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
            self.learning_rate = 0.1 * max(1, images) / 128
        super().__post_init__()


def main(argv: Sequence[str]) -> None:
    """Parse, load, train, evaluate."""
    model_args, data_args, args = parse_arguments(
        "hf-robust-transfer pretrain",
        [ModelArguments, DataArguments, PretrainingArguments],
        "Train an image classifier, naturally or adversarially, to be the source of a robust transfer. Give flags, after a"
        " YAML or JSON file of them if you like. A run that was stopped goes on where it was when it is started again.",
        argv,
    )
    if (name := model_args.model_name_or_path) is None:
        raise UsageError("--model_name_or_path is missing: a timm architecture, a checkpoint folder or a Hub id")
    if args.lwf_weight:
        raise UsageError(
            f"pretrain has no source for --lwf_weight {args.lwf_weight:g} to keep features close to: finetune keeps them"
            " close to a source's"
        )
    if (teacher := model_args.teacher_name_or_path) is not None and not args.needs_teacher:
        raise UsageError(
            f"--teacher_name_or_path {teacher} has no effect with --objective {args.objective}, which learns from none:"
            " drop it, or use --objective rslad"
        )
    check_plan(args, teacher=teacher)
    uses = [each for each in (name, teacher) if each is not None]
    with claimed_output_dir(args, overwrite=model_args.overwrite_output_dir, uses=uses) as resume_from:
        splits = load_image_splits(data_args, seed=args.seed, **model_args.hub_options)
        set_seed(args.seed)
        model, processor = model_args.load(splits.id2label)
        train_and_evaluate(
            model,
            processor,
            splits,
            args,
            teacher=model_args.load_teacher(),
            resume_from=resume_from,
            overwrite=model_args.overwrite_output_dir,
            data=data_args,
            base_model=None if is_untrained(name) else name,
            teacher_name=teacher,
            options=model_args.defining_options,
            command=["pretrain", *as_flags(argv)],
        )


if __name__ == "__main__":
    run_command("pretrain")
