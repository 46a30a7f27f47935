"""What a run is noted by: what defines it, and how the model that it left came to be."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..atomic import write_json
from ..data import DataArguments, ImageSplits
from ..evaluation.robustness import hardware
from ..modeling import load_model
from ..modeling.fingerprint import fingerprint, fingerprint_parts
from ..modeling.sources import find_source
from ..provenance import Provenance, options_that_affect
from ..run_folder import CONFIG_NAME, RECORD_NAME, read_json
from ..sharing import shareable, shown
from ..training import RobustTrainer, RobustTrainingArguments

_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "datasets", "accelerate")
# Of what `TrainingArguments` itself declares, which cannot say so: a run that goes on may change these, and only these.
_OF_NO_EFFECT = re.compile(
    r"(logging|log|save|eval|hub|dataloader|push|ddp|do|torch_compile|trackio|disable|include|gradient_checkpointing)_?.*"
    r"|output_dir|prediction_loss_only|per_device_eval_batch_size|torch_empty_cache_steps|use_cpu|project|run_name|report_to"
    r"|resume_from_checkpoint|skip_memory_metrics|restore_callback_states_from_checkpoint|remove_unused_columns|label_names"
    r"|local_rank|overwrite_output_dir|tf32|use_cache|debug|accelerator_config|deepspeed|fsdp.*|parallelism_config|enable_jit_checkpoint"
)
# Of the others, those that a record tells at their defaults too.
_ALWAYS_TOLD = ("seed", "max_steps", "gradient_accumulation_steps", "warmup_steps", "bf16", "fp16")
# Flags whose value is a secret, or says nothing to others.
_NOT_FOR_OTHERS = re.compile(r"--\w*(token|cache_dir|api_key|password)", re.ASCII)
_PLACES = {
    *("dataset_name", "train_dir", "validation_dir", "test_dir"),
    *("model_name_or_path", "teacher_name_or_path", "processor_name_or_path"),
}


def command_line(command: Sequence[str]) -> str:
    """What starts a command with these arguments, wherever the package is installed; no secrets, no places of this machine.

    Args:
        command: its name, or its file, and its arguments.

    Example:
        >>> command_line(["finetune", "--dataset_name", "/data/pets", "--hub_token", "hf_secret"])
        'accelerate launch -m hf_robust_transfer.cli.finetune --dataset_name pets'
    """
    name, *given = command
    kept: list[str] = []
    tokens: list[str] = []
    arguments = iter(given)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if _NOT_FOR_OTHERS.fullmatch(flag.replace("-", "_").replace("__", "--", 1)):
            tokens.append(value if equals else next(arguments, ""))
        else:
            kept.append(argument)
    texts = [_shown_argument(argument, tokens) for argument in kept]
    return f"accelerate launch -m hf_robust_transfer.cli.{Path(name).stem} {shlex.join(texts)}".rstrip()


def _shown_argument(argument: str, tokens: Sequence[str]) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={shown(value, tokens)}" if equals and flag.startswith("--") else shareable([argument], tokens)[0]


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a model is made with."""
    return {name: version(name) for name in _LIBRARIES}


def hub_id_of(model: str) -> str | None:
    """The Hub id of a model or, where it was trained here, of the nearest one before it that has one.

    Args:
        model: a Hub id, a source's name, or a folder: of the Hub's cache, downloaded after
            `hf_robust_transfer.hub.publish`, of a run, or imported.
    """
    folder = Path(model)
    if not folder.is_dir() and (source := find_source(model)) is not None:
        return source.repo_id
    if not folder.exists():
        return model if "/" in model else None
    cached = re.search(r"models--(.+?)--(.+?)/snapshots/[0-9a-f]+$", folder.absolute().as_posix())
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    training = _object((read_json(folder / CONFIG_NAME) or {}).get("robust_training"))
    record = read_json(folder / RECORD_NAME) or {}
    return training.get("hub_id") or record.get("base_model_id") or _object(training.get("source")).get("model_id")


def _object(value: Any) -> dict[str, Any]:
    """What a file says, where it says anything."""
    return value if isinstance(value, dict) else {}


def identity(args: RobustTrainingArguments, data: DataArguments | None, more: dict[str, Any]) -> dict[str, Any]:
    """All that defines a run: one with another identity does not go on from its checkpoints.

    Local places do not count, since the same images and models may lie elsewhere.

    Args:
        args: the run's options.
        data: where its images come from.
        more: what else defines it: its model, and a hash of its training images.
    """
    own = options_that_affect(args, "model", "run")
    options = {**more, **own, **({} if data is None else asdict(data))}
    inherited = {option.name for option in fields(TrainingArguments)} - set(RobustTrainingArguments.__annotations__)
    return {
        name: shareable(value)
        for name, value in options.items()
        if not (name in inherited and _OF_NO_EFFECT.fullmatch(name))
        and not (name in _PLACES and isinstance(value, str) and Path(value).exists())
    }


def taught_by(trainer: RobustTrainer, name: str | None) -> dict[str, Any]:
    """What a record tells of a training's teacher: nothing where there was none.

    Args:
        trainer: of the training.
        name: what the teacher was loaded from, if that is known.
    """
    seen = trainer.look_at_teacher()
    if seen is None:
        return {}
    place = {} if name is None else {"name": shown(name), "id": hub_id_of(name)}
    return {**place, **asdict(seen)}


def write_training_record(
    args: RobustTrainingArguments,
    splits: ImageSplits,
    *,
    base_model: str | None,
    data: DataArguments | None,
    seconds: float,
    command: Sequence[str] | None,
    training_images: str | None,
    halved_at: Sequence[int] = (),
    teacher: dict[str, Any] | None = None,
) -> None:
    """Write ``training.json`` into the run's output folder: how the model there came to be.

    Args:
        args: the run's options.
        splits: its data.
        base_model: what it started from, if it was trained already.
        data: where the splits came from.
        seconds: how long training took.
        command: that was used, name and arguments; None where the run was started from Python.
        training_images: a hash of them and of their labels.
        halved_at: the steps at which it diverged, went back and halved its learning rate.
        teacher: whose logits it learned, as `taught_by` says.
    """
    folder = Path(args.output_dir or "")
    own = set(RobustTrainingArguments.__annotations__)
    usual = {option.name: option.default for option in fields(TrainingArguments)}
    options = {
        name: value
        for name, value in options_that_affect(args, "model", "length").items()
        if name in own or name in _ALWAYS_TOLD or (not _OF_NO_EFFECT.fullmatch(name) and value != usual.get(name, object()))
    }
    whole = (folder / CONFIG_NAME).is_file()  # a sharded checkpoint has none
    made = load_model(str(folder)) if whole else None
    record = Provenance(
        fingerprint=None if made is None else fingerprint(*made),
        fingerprint_parts={} if made is None else fingerprint_parts(*made),
        command=None if command is None else command_line(command),
        base_model=None if base_model is None else shown(base_model),
        base_model_id=None if base_model is None else hub_id_of(base_model),
        dataset_id=None if data is None else data.hub_id,
        data={} if data is None else shareable({name: value for name, value in asdict(data).items() if value is not None}),
        images={"train": len(splits.train), "validation": len(splits.validation)},
        training_images=training_images,
        options=shareable(options),
        halved_at=list(halved_at),
        teacher=teacher or {},
        processes=args.world_size,
        seconds=seconds,
        hardware=hardware(),
        versions=library_versions(),
    )
    write_json(folder / RECORD_NAME, record.to_dict())
