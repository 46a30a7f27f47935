"""The embedded example: a robust and a natural source, each transferred to handwritten digits in three ways."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars
from sklearn.datasets import load_digits
from transformers import PrinterCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from ..atomic import write_json
from ..data import DataArguments, ImageSplits, PixelDataset, choose_splits
from ..modeling import load_model
from ..run_folder import COMPARISON_NAME, FINISHED_NAME, RESULTS_NAME, clear
from ..runs.folder import claimed_output_dir
from ..training.arguments import RobustTrainingArguments
from ..training.trainer import RobustTrainer
from .main import run_command
from .parsing import parse_arguments

SOURCES = {"robust source": "robust-tiny", "natural source": "natural-tiny"}
TRAINING_SAMPLES_PER_CLASS, TEST_SAMPLES = 50, 200
COMMON: dict[str, Any] = {"eps": "16/255", "per_device_train_batch_size": 64, "eval_attack_steps": 20}
_ALL_TRAINS = {"warm_start_epochs": 20, "num_train_epochs": 8, "unfreeze_warmup_steps": 0.3}
TRANSFERS: dict[str, dict[str, Any]] = {
    "frozen": {"num_train_epochs": 20},
    "fine_tuned": _ALL_TRAINS,
    "lwf": _ALL_TRAINS,
}
KEPT = ("robust source", "lwf")
Comparison = dict[str, dict[str, dict[str, float]]]  # source, transfer, metric


@dataclass
class QuickstartArguments:
    """The few options of the embedded example."""

    group: ClassVar[str] = "parameters that control the example"

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "Where to write the model and the results."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the results of an earlier run."})
    seed: int = field(default=0, metadata={"help": "Of data splits, new heads, training and attacks."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})


def main(argv: Sequence[str]) -> None:
    """Parse, and run the example."""
    description = (
        "The embedded example: a robust and a natural source, each transferred to handwritten digits in three ways."
    )
    run(*parse_arguments("hf-robust-transfer quickstart", [QuickstartArguments], description, argv))


def digits(seed: int) -> ImageSplits:
    """Scikit-learn's digits, grey 8×8 images: some of 30 % for testing, of the others a few of each class for training."""
    loaded = load_digits()
    images = (loaded.images * 255 / 16).round().astype("uint8")
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    everything = Dataset.from_dict({"image": list(images), "label": loaded.target.tolist()}, features=features)
    halves = everything.train_test_split(0.3, seed=seed, stratify_by_column="label")
    # Nothing is chosen by validation here, so no training image is set aside for it.
    splits = DatasetDict(train=halves["train"], test=halves["test"], validation=halves["test"])
    few = DataArguments(samples_per_class=TRAINING_SAMPLES_PER_CLASS, max_test_samples=TEST_SAMPLES)
    return choose_splits(splits, few, seed=seed)


def run(args: QuickstartArguments) -> None:
    """Transfer each source in three ways, print the table, keep the robust source's LwF model.

    Raises:
        UsageError: the output folder holds a finished run, or another run is at work in it.
    """
    shared: dict[str, Any] = {**COMMON, "output_dir": args.output_dir, "seed": args.seed, "use_cpu": args.use_cpu}
    whole = RobustTrainingArguments(**shared)
    shared["per_device_train_batch_size"] = max(1, COMMON["per_device_train_batch_size"] // whole.world_size)
    disable_progress_bars()  # of splitting data sets; what takes time here prints a line
    disable_progress_bar()
    with claimed_output_dir(whole, overwrite=args.overwrite_output_dir), _without_warnings():
        splits = digits(args.seed)
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


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out this package's own: that the natural source is not robust is what the table shows."""
    own = logging.getLogger(__package__.partition(".")[0])
    level = own.level
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.setLevel(level)


def _compare(seed: int, shared: dict[str, Any], splits: ImageSplits) -> tuple[Comparison, RobustTrainer, dict[str, float]]:
    """All figures, and the trainer and metrics of what is `KEPT`."""
    comparison: Comparison = {}
    kept: tuple[RobustTrainer, dict[str, float]] | None = None
    for source_name, source in SOURCES.items():
        comparison[source_name] = {}
        for transfer, options in TRANSFERS.items():
            set_seed(seed)
            trainer, metrics = _transfer(source, splits, {**shared, **options, "transfer": transfer})
            comparison[source_name][transfer] = {name: metrics[f"test_{name}"] for name in ("accuracy", "robust_accuracy")}
            if trainer.is_world_process_zero():
                clean, robust = (100 * value for value in comparison[source_name][transfer].values())
                print(f"{source_name}, {transfer:<12} clean {clean:5.1f} %   PGD-20 {robust:5.1f} %", flush=True)
            if (source_name, transfer) == KEPT:
                kept = trainer, metrics
    assert kept is not None
    return comparison, *kept


def _transfer(source: str, splits: ImageSplits, options: dict[str, Any]) -> tuple[RobustTrainer, dict[str, float]]:
    model, processor = load_model(source, id2label=splits.id2label)
    args = RobustTrainingArguments(save_strategy="no", logging_strategy="no", disable_tqdm=True, **options)
    train = PixelDataset(splits.train, processor)
    trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=train)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    test: Any = PixelDataset(splits.test or splits.validation, processor, "test")
    return trainer, trainer.evaluate(test, metric_key_prefix="test")


def table(comparison: Comparison, samples: int) -> str:
    """The comparison as text: clean / robust accuracy in percent, a row per source, a column per transfer."""
    eps = COMMON["eps"]
    lines = [
        "",
        f"Photographs → digits: clean / robust accuracy in %, linf ε = {eps}, PGD-20, {samples} test images",
        f"{'':<16}" + "".join(f"{transfer:>18}" for transfer in TRANSFERS),
    ]
    for source_name, row in comparison.items():
        cells = (f"{100 * row[each]['accuracy']:.1f} / {100 * row[each]['robust_accuracy']:.1f}" for each in TRANSFERS)
        lines.append(f"{source_name:<16}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command("quickstart")
