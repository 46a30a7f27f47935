"""What a model card has to say about training, noted beside the weights when training ends."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..data import DataArguments, ImageSplits
from ..evaluation.report import shown
from ..evaluation.robustness import hardware
from ..run_folder import RECORD_NAME
from ..training import RobustTrainingArguments

# Of the base class's many options, those that change what is learned.
_OPTIONS = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "optim_args", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "bf16", "fp16", "seed"),
)
_LIBRARIES = ("hf-robust-transfer", "torch", "transformers", "timm", "datasets", "accelerate")
# Of this package's options, those that change nothing of it.
_OF_NO_EFFECT = (
    *("per_device_eval_batch_size", "logging_steps", "save_strategy", "save_total_limit", "ddp_broadcast_buffers"),
    *(
        "eval_attack_steps",
        "eval_attack_step_size",
        "cache_features",
        "feature_cache_dir",
        "feature_cache_limit",
        "dataloader_num_workers",
    ),
)
# Flags whose value is a secret, or says nothing to others.
_DROPPED = (
    *("--token", "--hub_token", "--hub-token", "--cache_dir", "--cache-dir"),
    *("--feature_cache_dir", "--feature-cache-dir"),
)


def command_line(command: Sequence[str]) -> str:
    """What starts a command with these arguments, wherever the package is installed; no secrets, no places of this machine.

    Args:
        command: its name and its arguments.

    Example:
        >>> command_line(["finetune", "--dataset_name", "/data/pets", "--hub_token", "hf_secret"])
        'accelerate launch -m hf_robust_transfer.cli.finetune --dataset_name pets'
    """
    kept: list[str] = []
    name, *given = command
    arguments = iter(given)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in _DROPPED:
            if not equals:
                next(arguments, None)
        elif equals:
            kept.append(f"{flag}={shown(value)}")
        else:
            kept.append(shown(argument))
    return f"accelerate launch -m hf_robust_transfer.cli.{name} {shlex.join(kept)}".rstrip()


def write_training_record(
    args: RobustTrainingArguments,
    splits: ImageSplits,
    *,
    base_model: str | None,
    data: DataArguments | None,
    seconds: float,
    command: Sequence[str] | None,
) -> None:
    """Write ``training.json`` into the run's output folder: how the model there came to be.

    Args:
        args: the run's options.
        splits: its data.
        base_model: what it started from, if it was trained already.
        data: where the splits came from.
        seconds: how long training took.
        command: that was used, name and arguments; None where the run was started from Python.
    """
    own = [name for name in RobustTrainingArguments.__annotations__ if name not in (*_OPTIONS, *_OF_NO_EFFECT)]
    record: dict[str, Any] = {
        "command": None if command is None else command_line(command),
        "base_model": None if base_model is None else shown(base_model),
        "data": {} if data is None else {name: _shown(value) for name, value in asdict(data).items() if value is not None},
        "images": {"train": len(splits.train), "validation": len(splits.validation)},
        "options": {name: getattr(args, name) for name in (*_OPTIONS, *own)},
        "processes": args.world_size,
        "seconds": seconds,
        "hardware": hardware(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    with replacing(Path(args.output_dir or "", RECORD_NAME)) as part:
        part.write_text(json.dumps(record, indent=2, default=str) + "\n")


def _shown(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value
