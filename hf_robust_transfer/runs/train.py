"""One training run, from data to results."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel, set_seed

from ..data import DataArguments, ImageSplits, PixelDataset
from ..errors import UsageError
from ..modeling import PixelClassifier
from ..training import RobustTrainer, RobustTrainingArguments
from ..transfer import describe
from .folder import check_same_run, clear_output_dir
from .record import write_training_record


def train_and_evaluate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    splits: ImageSplits,
    args: RobustTrainingArguments,
    *,
    teacher: PixelClassifier | None = None,
    resume_from: str | None = None,
    overwrite: bool = False,
    data: DataArguments | None = None,
    base_model: str | None = None,
    options: dict[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, float]:
    """Train a model, save it with its image processor, and evaluate it on validation and test images.

    Args:
        model: the model, with a head for the splits' labels.
        processor: its image processor.
        splits: the data.
        args: the training arguments.
        teacher: for LwF, the frozen source.
        resume_from: a checkpoint folder to go on from.
        overwrite: first clear the output folder of an earlier run.
        data: where the splits came from; noted in the model's configuration, for later evaluations.
        base_model: the trained model that this one starts from, for the model card.
        options: what defines the run besides ``args`` and ``data``, so that another does not go on from its checkpoints.
        command: that was used, name and arguments, for the model card.

    Returns:
        All metrics; ``all_results.json`` in the output folder holds the same and marks the run as finished.

    Raises:
        ValueError: the model's labels are not the data's, an image cannot be read, or whatever `RobustTrainer` raises.
    """
    if model.num_labels != len(splits.labels):
        raise UsageError(
            f"the model's head has {model.num_labels} labels, the data set {len(splits.labels)}"
            f" ({', '.join(splits.labels)}): replace the head with load_model(…, id2label=…)"
        )
    set_seed(args.seed)
    datasets: dict[str, PixelDataset] = {}
    for name in ("train", "validation", "test"):
        split = getattr(splits, name)
        if split is not None:
            datasets[name] = PixelDataset(split, processor, name)
            datasets[name].check(args.process_index, args.world_size)
    trainer = RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
    )
    if data is not None:
        model.config.robust_training["data"] = data.source
    if trainer.is_world_process_zero():
        print(describe(model), flush=True)
    if overwrite:
        clear_output_dir(args)
    check_same_run(args, {**(options or {}), **({} if data is None else asdict(data))})
    trained = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model(_internal_call=True)  # published when all of it is there
    trainer.save_state()
    if trainer.is_world_process_zero():
        seconds = trained.metrics["train_runtime"]
        write_training_record(args, splits, base_model=base_model, data=data, seconds=seconds, command=command)
    metrics = {"train": trained.metrics, "eval": trainer.evaluate()}
    if "test" in datasets:
        test: Dataset[Any] = datasets["test"]
        metrics["test"] = trainer.evaluate(test, metric_key_prefix="test")
    for name, values in metrics.items():
        if name != "train":
            trainer.log_metrics(name, values)
        trainer.save_metrics(name, values)
    if args.push_to_hub:
        trainer.push_to_hub()
    return {key: value for values in metrics.values() for key, value in values.items()}
