"""Robust transfer: carry a robust source's robustness to your own images, with natural training only.

    accelerate launch -m hf_robust_transfer.cli.finetune --model_name_or_path outputs/source --dataset_name my/images \\
        --transfer lwf --eps 8/255 --output_dir outputs/mine

With no argument it runs an embedded example on scikit-learn's digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed

from ..data import DataArguments, load_image_splits
from ..errors import UsageError
from ..modeling import PixelClassifier, load_model
from ..modeling.loading import is_untrained
from ..modeling.sources import ADVISED
from ..run_folder import CONFIG_NAME, read_json
from ..runs.folder import claimed_output_dir
from ..runs.train import check_plan, train_and_evaluate
from ..training.arguments import WAYS, RobustTrainingArguments
from ..transfer.source import check_source
from . import quickstart
from .main import run_command
from .options import ModelArguments
from .parsing import as_flags, parse_arguments


@dataclass
class FinetuningArguments(RobustTrainingArguments):
    """`RobustTrainingArguments` that transfer, by default with LwF."""

    transfer: str | None = field(
        default=None,
        metadata={
            "help": f"How to transfer: {WAYS} Sets --objective, --learning_rate, --freeze, --lwf_weight and the warm start,"
            " unless they are given. By default lwf, with an objective that learns from a teacher fine_tuned."
        },
    )

    def __post_init__(self) -> None:
        if self.transfer is None:
            learns = self.objective is not None and self.needs_teacher
            self.transfer = "fine_tuned" if learns and not self.lwf_weight else "lwf"
        super().__post_init__()


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
        raise UsageError(
            "--model_name_or_path is missing: the robust source, one of `hf-robust-transfer sources`, a checkpoint folder"
            " or a Hub id"
        )
    named = model_args.teacher_name_or_path
    if named is not None and not args.needs_source and not args.needs_teacher:
        raise UsageError(
            f"--teacher_name_or_path {named} has no effect without LwF or an objective that learns from a teacher: drop it,"
            " or use --transfer lwf or --objective rslad"
        )
    source = model_args.model_name_or_path if named is None or args.needs_teacher else named
    check_plan(args, teacher=named)
    for name in (model_args.model_name_or_path, source):
        check_source(name, args.transfer, read_json(Path(name, CONFIG_NAME)))
    with claimed_output_dir(
        args, overwrite=model_args.overwrite_output_dir, uses=[model_args.model_name_or_path, named or source]
    ) as resume_from:
        if is_untrained(source):
            raise UsageError(
                f"--model_name_or_path {source} is an architecture without weights: train it with hf-robust-transfer"
                " pretrain, import a checkpoint with hf-robust-transfer import-checkpoint, or use a robust source by its"
                f" name, such as {ADVISED} (`hf-robust-transfer sources` lists them)"
            )
        splits = load_image_splits(data_args, seed=args.seed, **model_args.hub_options)
        set_seed(args.seed)
        model, processor = model_args.load(splits.id2label)
        teacher = model_args.load_teacher() if args.needs_teacher else None
        if args.needs_source and not args.needs_teacher:
            own = {"image_size": model_args.image_size} if source == model_args.model_name_or_path else {}
            own |= {} if named is not None else model_args.checkpoint_options
            options = {**own, **model_args.hub_options}
            # With labels, since a source may have no head; whatever head the teacher has is not asked.
            teacher = PixelClassifier(*load_model(source, id2label=splits.id2label, **options))
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
            teacher_name=named if args.needs_teacher else None,
            options={**model_args.defining_options, "teacher_name_or_path": named or source},
            command=["finetune", *as_flags(argv)],
        )


if __name__ == "__main__":
    run_command("finetune")
