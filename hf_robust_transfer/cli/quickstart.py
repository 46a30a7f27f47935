"""The embedded example: a robust and a natural source on digits 0–4, each transferred to digits 5–9."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars
from sklearn.datasets import load_digits
from transformers import PrinterCallback, set_seed

from ..atomic import write_json
from ..data import DataArguments, ImageSplits, PixelDataset, choose_splits
from ..modeling import PixelClassifier, create_model, replace_head
from ..run_folder import COMPARISON_NAME, FINISHED_NAME, RESULTS_NAME, clear
from ..runs.folder import claimed_output_dir
from ..training.arguments import RobustTrainingArguments
from ..training.trainer import RobustTrainer
from .main import run_command
from .parsing import parse_arguments

ARCHITECTURE = "convnext_tiny"  # a stock one, so that the result loads without this package
MODEL_ARGS = {"patch_size": 1, "depths": [1, 1, 2, 1], "dims": [16, 32, 64, 64], "kernel_sizes": 3, "ls_init_value": 1.0}
SOURCE_CLASSES, TARGET_CLASSES, TARGET_SAMPLES_PER_CLASS = list("01234"), list("56789"), 50

COMMON: dict[str, Any] = {
    "eps": "0.1",
    "optim": "adamw_torch",
    "optim_args": None,
    "per_device_train_batch_size": 64,
    "random_crop": 1,
    "max_grad_norm": 1.0,
}
SOURCES: dict[str, dict[str, Any]] = {
    "robust_source": {"objective": "pgd", "num_train_epochs": 20, "learning_rate": 3e-3},
    "natural_source": {"objective": "natural", "num_train_epochs": 20, "learning_rate": 3e-3},
}
TRANSFERS: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": "backbone", "num_train_epochs": 60, "learning_rate": 3e-2},
    "fine_tuned": {"num_train_epochs": 60, "learning_rate": 5e-3},
    "lwf": {
        "num_train_epochs": 60,
        "learning_rate": 5e-3,
        "lwf_weight": 0.2,
        "warm_start_steps": 0.3,
        "unfreeze_warmup_steps": 0,
    },
}
KEPT = ("robust_source", "lwf")
Comparison = dict[str, dict[str, dict[str, float]]]  # source, transfer, metric


@dataclass
class QuickstartArguments:
    """The few options of the embedded example."""

    group: ClassVar[str] = "parameters that control the example"

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where to write the model and the results."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the results of an earlier run."})
    seed: int = field(default=0, metadata={"help": "Of data splits, initial weights, training and attacks."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})


def main(argv: Sequence[str]) -> None:
    """Parse, and run the example."""
    torch.set_num_threads(1)  # on images this tiny several threads only wait for each other
    description = "The embedded example: a robust and a natural source on the digits 0–4, each transferred to 5–9."
    run(*parse_arguments("hf-robust-transfer quickstart", [QuickstartArguments], description, argv))


def digits(classes: list[str], seed: int, samples_per_class: int | None = None) -> ImageSplits:
    """Scikit-learn's digits of these classes, 30 % of them for testing."""
    loaded = load_digits()
    images = (loaded.images * 255 / 16).round().astype("uint8")
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    everything = Dataset.from_dict({"image": list(images), "label": loaded.target.tolist()}, features=features)
    halves = everything.train_test_split(0.3, seed=seed, stratify_by_column="label")
    # Nothing is chosen by validation here, so no training image is set aside for it.
    splits = DatasetDict(train=halves["train"], test=halves["test"], validation=halves["test"])
    return choose_splits(splits, DataArguments(classes=classes, samples_per_class=samples_per_class), seed=seed)


def run(args: QuickstartArguments) -> None:
    """Train both sources and transfer each in three ways, print the table, keep the robust source's LwF model.

    Raises:
        UsageError: the output folder holds a finished run, or another run is at work in it.
    """
    shared: dict[str, Any] = {**COMMON, "output_dir": args.output_dir, "seed": args.seed, "use_cpu": args.use_cpu}
    whole = RobustTrainingArguments(**shared)
    shared["per_device_train_batch_size"] = max(1, COMMON["per_device_train_batch_size"] // whole.world_size)
    disable_progress_bars()  # of splitting data sets; what takes time here prints a line
    with claimed_output_dir(whole, overwrite=args.overwrite_output_dir):
        splits = digits(TARGET_CLASSES, args.seed, TARGET_SAMPLES_PER_CLASS)
        comparison, trainer, metrics = _compare(args.seed, shared, splits)
        folder, images_dir = Path(args.output_dir), Path(args.output_dir, "test_images")
        with whole.main_process_first(desc="clearing the output folder"):
            if whole.should_save:
                clear(folder)
        trainer.model.config.robust_training["data"] = {"dataset_name": str(images_dir)}
        trainer.save_model(args.output_dir)
        if trainer.is_world_process_zero():
            images_dir.mkdir(exist_ok=True)
            (splits.test or splits.validation).to_parquet(images_dir / "test-00000-of-00001.parquet")
            write_json(folder / COMPARISON_NAME, comparison)
            write_json(folder / RESULTS_NAME, metrics)
            write_json(folder / FINISHED_NAME, {})
            print(table(comparison, len(splits.test or [])))
            print(f"The robust source's LwF model is in {args.output_dir}.")


def _compare(seed: int, shared: dict[str, Any], splits: ImageSplits) -> tuple[Comparison, RobustTrainer, dict[str, float]]:
    """All figures, and the trainer and metrics of what is `KEPT`."""
    source_splits = digits(SOURCE_CLASSES, seed)
    comparison: Comparison = {}
    kept: tuple[RobustTrainer, dict[str, float]] | None = None
    for source_name, source_options in SOURCES.items():
        set_seed(seed)
        source, processor = create_model(ARCHITECTURE, id2label=source_splits.id2label, model_args=MODEL_ARGS, image_size=8)
        _train(source, processor, source_splits, f"{source_name}: training on digits 0–4", {**shared, **source_options})
        comparison[source_name] = {}
        for transfer, transfer_options in TRANSFERS.items():
            set_seed(seed)
            model = copy.deepcopy(source)
            replace_head(model, splits.id2label)
            teacher = PixelClassifier(copy.deepcopy(source), processor) if "lwf_weight" in transfer_options else None
            title = f"{source_name}: {transfer} transfer to digits 5–9"
            trainer, metrics = _train(model, processor, splits, title, {**shared, **transfer_options}, teacher)
            comparison[source_name][transfer] = {name: metrics[f"test_{name}"] for name in ("accuracy", "robust_accuracy")}
            if (source_name, transfer) == KEPT:
                kept = trainer, metrics
    assert kept is not None
    return comparison, *kept


def _train(
    model: Any,
    processor: Any,
    splits: ImageSplits,
    title: str,
    options: dict[str, Any],
    teacher: PixelClassifier | None = None,
) -> tuple[RobustTrainer, dict[str, float]]:
    args = RobustTrainingArguments(save_strategy="no", logging_strategy="no", disable_tqdm=True, **options)
    trainer = RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=PixelDataset(splits.train, processor),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    test: Any = PixelDataset(splits.test or splits.validation, processor, "test")
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    if trainer.is_world_process_zero():
        clean, robust = (100 * metrics[f"test_{name}"] for name in ("accuracy", "robust_accuracy"))
        print(f"{title:<60} clean {clean:5.1f} %   PGD-20 {robust:5.1f} %", flush=True)
    return trainer, metrics


def table(comparison: Comparison, samples: int) -> str:
    """The comparison as text: clean / robust accuracy in percent, a row per source, a column per transfer."""
    eps = COMMON["eps"]
    lines = [
        "",
        f"Digits 0–4 → 5–9: clean / robust accuracy in %, linf ε = {eps}, PGD-20, {samples} test images",
        f"{'':<16}" + "".join(f"{transfer:>18}" for transfer in TRANSFERS),
    ]
    for source_name, row in comparison.items():
        cells = (f"{100 * row[each]['accuracy']:.1f} / {100 * row[each]['robust_accuracy']:.1f}" for each in TRANSFERS)
        lines.append(f"{source_name:<16}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command("quickstart")
