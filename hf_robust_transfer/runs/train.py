"""One training run, from data to results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel, TrainerState, set_seed

from ..atomic import write_json
from ..cache_folder import parse_size
from ..data import DataArguments, ImageSplits, PixelDataset
from ..data.pixel_cache import CacheFolder
from ..errors import UsageError, listed
from ..functions import choices
from ..modeling import PixelClassifier, load_model
from ..modeling.adapters import is_adapted
from ..modeling.fingerprint import fingerprint
from ..provenance import Provenance
from ..run_folder import (
    FINISHED_NAME,
    RECORD_NAME,
    RESULTS_NAME,
    STATE_NAME,
    check_writable,
    is_of_a_model,
    read_json,
    results_name,
)
from ..sharing import shareable, tokenless
from ..training import RobustTrainer, RobustTrainingArguments
from ..training.gate import check_saved
from ..training.reporting import METRICS
from ..transfer import describe
from ..transfer.references import no_teacher
from .folder import begin
from .record import identity, taught_by, write_training_record


def check_plan(args: RobustTrainingArguments, *, teacher: str | None = None) -> None:
    """Refuse, before data and models are read, what a run with these options would find out only later.

    Args:
        args: the training arguments.
        teacher: the name of the one that is given.

    Raises:
        UsageError: the objective learns from a teacher and none is given, a metric to choose by is not measured, or a
            folder of features cannot be written to.
    """
    if args.needs_teacher and teacher is None:
        raise no_teacher(args.objective)
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in METRICS:
        raise UsageError(f"--metric_for_best_model {args.metric_for_best_model} is not measured: use {choices(METRICS)}")
    looks_up = args.needs_source or args.asks_clean_teacher or args.freeze == "backbone"
    if args.cache_features and not args.crops_at_random and looks_up:
        check_writable(args.feature_cache_dir, "--feature_cache_dir")


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
    teacher_name: str | None = None,
    options: dict[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, float]:
    """Train a model, save it with its image processor, and evaluate it on validation and test images.

    Args:
        model: the model, with a head for the splits' labels.
        processor: its image processor.
        splits: the data.
        args: the training arguments.
        teacher: the teacher or, for LwF, the frozen source, as for `RobustTrainer`.
        resume_from: a checkpoint folder to go on from.
        overwrite: first clear the output folder of an earlier run.
        data: where the splits came from; noted in the model's configuration, for later evaluations.
        base_model: the trained model that this one starts from, for the model card.
        teacher_name: what the teacher was loaded from, likewise.
        options: what defines the run besides ``args`` and ``data``, so that another does not go on from its checkpoints.
        command: that was used, name and arguments, for the model card.

    Returns:
        All metrics; ``all_results.json`` in the output folder holds the same. The mark of a finished run comes last.

    Raises:
        ValueError: the model's labels are not the data's, an image cannot be read, or whatever `RobustTrainer` raises.
        FloatingPointError: a loss, a weight or a logit of the evaluation became NaN or infinite; the folder then has no
            model, only the checkpoints of before.
    """
    labels = PixelClassifier(model, processor).labels
    if labels != splits.labels:
        raise UsageError(
            f"the model's head has {len(labels)} labels ({listed(labels)}), the data set {len(splits.labels)}"
            f" ({listed(splits.labels)}): replace the head with load_model(…, id2label=…)"
        )
    if is_adapted(model):
        if args.merge_adapter is False:
            raise UsageError("a run leaves a whole model, which --merge_adapter false does not: leave it out")
        args.merge_adapter = True
    set_seed(args.seed)
    datasets = _datasets(splits, processor, args)
    trainer = RobustTrainer(
        model,
        args,
        processing_class=processor,
        teacher=teacher,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
    )
    if data is not None:
        trainer.trained_on = tokenless(data.source)
        model.config.robust_training["data"] = shareable(data.source)
    if trainer.is_world_process_zero():
        print(describe(model), flush=True)
    images = datasets["train"].content_sha256 if trainer.is_world_process_zero() else None
    run = identity(args, data, {**(options or {}), "training_images": images})
    begin(args, run, resume_from, overwrite=overwrite)

    metrics = {"train": _trained_before(trainer) or _train(trainer, resume_from)}
    if trainer.is_world_process_zero():
        write_training_record(
            args,
            splits,
            base_model=base_model,
            data=data,
            seconds=metrics["train"]["train_runtime"],
            command=command,
            training_images=images,
            halved_at=trainer.halvings,
            teacher=taught_by(trainer, teacher_name),
        )
    metrics |= _evaluate(trainer, datasets.get("test"))
    results = {key: value for values in metrics.values() for key, value in values.items()}
    for name, values in metrics.items():
        if name != "train":
            trainer.log_metrics(name, values)
            _write(trainer, results_name(name), values)
    _write(trainer, RESULTS_NAME, results)
    if args.push_to_hub:
        trainer.push_to_hub()
    _write(trainer, FINISHED_NAME, {"training_images": images})
    return results


def _datasets(splits: ImageSplits, processor: BaseImageProcessor, args: RobustTrainingArguments) -> dict[str, PixelDataset]:
    """The splits that there are, by name, once all of their images have been seen to be readable."""
    datasets: dict[str, PixelDataset] = {}
    limit = parse_size(args.feature_cache_limit, "--feature_cache_limit")
    keep_in = CacheFolder(Path(args.feature_cache_dir), limit) if args.cache_features else None
    for name in ("train", "validation", "test"):
        split = getattr(splits, name)
        if split is not None:
            keep = name != "train" or not args.random_resized_crop
            datasets[name] = PixelDataset(split, processor, name, keep=keep)
            datasets[name].check(args.process_index, args.world_size, keep_in=keep_in)
    args.threat_model.check_radius(datasets["train"][0]["pixel_values"].shape)
    return datasets


def _train(trainer: RobustTrainer, resume_from: str | None) -> dict[str, float]:
    trained = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model(_internal_call=True)  # published when all of it is there
    if trainer.is_world_process_zero():
        check_saved(str(trainer.args.output_dir), trainer.classifier.merged(), trainer.few_images(2))
    trainer.save_state()
    _write(trainer, results_name("train"), trained.metrics)
    return trained.metrics


def _evaluate(trainer: RobustTrainer, test: Dataset[Any] | None) -> dict[str, dict[str, float]]:
    """Metrics on validation and test images."""
    try:
        metrics = {"eval": trainer.evaluate()}
        if test is not None:
            metrics["test"] = trainer.evaluate(test, metric_key_prefix="test")
    except FloatingPointError:
        if trainer.args.should_save:  # nothing is left that could be taken for a trained model and published
            for path in Path(str(trainer.args.output_dir)).iterdir():
                if is_of_a_model(path.name) or path.name == results_name("train"):
                    path.unlink()
        raise
    return metrics


def _trained_before(trainer: RobustTrainer) -> dict[str, float] | None:
    """What training ended with, where it did and only what comes after it was stopped: the model is then as it was left."""
    if is_adapted(trainer.model):  # what was left is the model with its adapter merged, if it is whole at all
        return None
    folder = Path(str(trainer.args.output_dir))
    metrics, record = read_json(folder / results_name("train")), read_json(folder / RECORD_NAME)
    if metrics is None or record is None:
        return None
    model, processor = load_model(str(folder))
    if Provenance.from_dict(record).fingerprint != fingerprint(model, processor):
        return None
    trainer.model.load_state_dict(model.state_dict())
    trainer.state = TrainerState.load_from_json(str(folder / STATE_NAME))
    return metrics


def _write(trainer: RobustTrainer, name: str, content: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        write_json(Path(str(trainer.args.output_dir), name), content)
