"""Options of training that are refused before anything is read: out of range, unknown, or in contradiction."""

import json
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from functools import cache
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_available_reporting_integrations

from ..errors import UsageError
from ..functions import choices, similar
from ..transfer.phases import shape_of

# A number is to be finite and at least 0, but for these.
_LEAST = {
    **dict.fromkeys(("max_steps", "dataloader_num_workers", "local_rank"), -1),
    **dict.fromkeys(("attack_steps", "free_replays", "gradient_accumulation_steps", "eval_accumulation_steps"), 1),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "torch_empty_cache_steps"), 1),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor"), 1),
}
_ABOVE_0 = ("learning_rate", "warm_start_learning_rate", "num_train_epochs", "adam_epsilon", "save_steps")
_BELOW = {
    **dict.fromkeys(("averaging_decay", "adam_beta1", "adam_beta2"), 1),
    **dict.fromkeys(("seed", "data_seed"), 2**32),  # NumPy has no larger ones
}
_INSTEAD = {
    "max_steps": "; -1 leaves the length to --num_train_epochs",
    "num_train_epochs": ": to use a model as it is, evaluate it",
    "save_total_limit": ": to save none, use --save_strategy no",
}
# Optimizers that are made for a model, and cannot be tried without it.
_FOR_A_MODEL = ("galore", "apollo", "lomo")


def check_numbers(args: TrainingArguments) -> None:
    """Refuse numbers that are not finite or out of range.

    Raises:
        UsageError: naming the first of them.
    """
    for option in fields(args):
        name, value = option.name, getattr(args, option.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, instead = _LEAST.get(name, 0), _INSTEAD.get(name, "")
        if not isfinite(value):
            raise UsageError(f"--{name} {value} must be a finite number")
        if value < least:
            raise UsageError(f"--{name} {value} must be at least {least}{instead}")
        if value == 0 and name in (*_ABOVE_0, "max_steps"):
            raise UsageError(f"--{name} {value} must be above 0{instead}")
        below = _BELOW.get(name, 2**31 if isinstance(value, int) else inf)  # no counter is larger
        if value >= below:
            raise UsageError(f"--{name} {value} must be below {below}")


def number_or_auto(value: Any, flag: str) -> float | str:
    """Read a number, or ``auto``.

    Raises:
        UsageError: it is neither.
    """
    try:
        return "auto" if value == "auto" else float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{flag} {value} is neither a number nor auto") from None


@cache
def _kinds() -> dict[str, tuple[Any, ...]]:
    """The types that each of `TrainingArguments`' options may have."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(TrainingArguments).items()}


def check_names(args: TrainingArguments) -> None:
    """Refuse names that `TrainingArguments` does not know, and JSON that is none.

    Raises:
        UsageError: naming the first of them, and what there is.
    """
    for option in fields(TrainingArguments):
        value, kinds = getattr(args, option.name), _kinds()[option.name]
        known = list(option.metadata.get("choices", ()))
        known += [each.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for each in kind]
        name = value.value if isinstance(value, Enum) else value
        if known and name is not None and name not in known:
            near = similar(name, known) if isinstance(name, str) and len(known) > 5 else ""
            raise UsageError(f"--{option.name} {name} is unknown{near or ': use ' + choices(known)}")
        if isinstance(value, str) and any(kind is dict or getattr(kind, "__origin__", None) is dict for kind in kinds):
            _check_json(option.name, value)
    reporters = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in reporters:
        if name not in ("all", "none", *get_available_reporting_integrations()):
            here = choices(["none", *get_available_reporting_integrations()])
            raise UsageError(f"--report_to {name} is unknown or not installed: use {here}")


def _check_json(name: str, text: str) -> None:
    if text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except ValueError as error:
            raise UsageError(f"--{name} {text} is not a JSON object: {error}") from None
    elif name not in ("accelerator_config", "fsdp_config", "deepspeed"):
        raise UsageError(f"--{name} {text} is not a JSON object like '{{\"option\": 3}}'")
    elif not Path(text).is_file():
        raise UsageError(f"--{name} {text} is neither a JSON object nor a file with one")


def check_contradictions(args: Any) -> None:
    """Refuse options of `RobustTrainingArguments` of which one undoes another.

    Raises:
        UsageError: naming both.
    """
    for contradiction in (*_of_transfer(args), *_of_saving(args), *_of_evaluation(args), *_of_loading(args)):
        raise UsageError(contradiction)


def _of_transfer(args: Any) -> Iterator[str]:
    weight, held = f"--lwf_weight {args.lwf_weight:g}", "keeps the features as they are"
    if args.transfer == "lwf" and args.lwf_weight == 0:
        yield "--transfer lwf and --lwf_weight 0 contradict each other: for training without LwF, use --transfer fine_tuned"
    if args.transfer == "frozen" and args.lwf_weight:
        yield f"--transfer frozen {held}, so that {weight} changes nothing: drop one, or use --transfer lwf"
    if args.transfer == "fine_tuned" and args.lwf_weight:
        yield f"--transfer fine_tuned trains without LwF, but {weight} asks for it: use --transfer lwf"
    if args.transfer == "frozen" and args.freeze in ("none", "0"):
        yield f"--transfer frozen and --freeze {args.freeze} contradict each other: use --transfer fine_tuned"
    for name in ("warm_start_steps", "warm_start_epochs"):
        if getattr(args, name) and args.freeze == "backbone":
            yield f"--{name} trains the head first, but --freeze backbone trains nothing else: drop one"
    if args.warm_start_steps and args.warm_start_epochs:
        yield "--warm_start_steps and --warm_start_epochs both say how long the head trains alone: drop one"
    if args.warm_start_epochs and args.warmup_steps:
        yield "--warmup_steps has no place with --warm_start_epochs: the ramp after them is --unfreeze_warmup_steps"
    if args.freeze == "backbone" and args.needs_source and not args.lwf_weight:
        yield f"--freeze backbone {held}, so that --objective {args.objective} changes nothing: drop one"
    if args.transfer == "roli" and args.objective == "natural":
        yield "--transfer roli trains on adversarial images, but --objective natural has none: use --transfer fine_tuned"
    if args.objective == "anchor" and not args.objective_kwargs["labels"] and args.starts_with_head:
        yield (
            "--objective anchor with labels=0 trains no head, so that it cannot train first: add --warm_start_epochs 0"
            " --warm_start_steps 0"
        )
    if args.objective == "natural" and (args.eps_schedule != "constant" or args.eps_delay_steps):
        flag = "--eps_delay_steps" if args.eps_schedule == "constant" else f"--eps_schedule {args.eps_schedule}"
        yield f"{flag} has no effect with --objective natural, which makes no attack: use --objective pgd or trades"
    if args.freeze == "backbone" and args.lwf_weight:
        yield f"--freeze backbone {held}, so that {weight} changes nothing: drop one"
    if args.warm_start_learning_rate is not None and not args.starts_with_head:
        yield "--warm_start_learning_rate has no effect without a warm start: drop it, or give --warm_start_epochs"
    for name in ("averaging_start", "averaging_decay"):
        if getattr(args, name) is not None and args.averaging == "none":
            yield f"--{name} has no effect without --averaging: drop it, or give --averaging ema or swa"
    if args.averaging == "swa" and args.averaging_decay is not None:
        yield "--averaging_decay is for --averaging ema: swa has equal parts"
    if 0 < args.max_steps <= args.warm_start_steps:
        yield (
            f"--warm_start_steps {args.warm_start_steps:g} leaves nothing of --max_steps {args.max_steps} to the rest: to"
            " train the head alone, use --freeze backbone"
        )


def _of_saving(args: Any) -> Iterator[str]:
    if args.push_to_hub and args.merge_adapter is False:
        yield "--push_to_hub publishes models that stand alone, so that --merge_adapter false contradicts it: drop one"


def _of_evaluation(args: Any) -> Iterator[str]:
    metric = str(args.metric_for_best_model or "")
    evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
    best = str(getattr(args.save_strategy, "value", args.save_strategy)) == "best"
    if not args.eval_attack_steps and "robust_" in metric:
        yield f"--metric_for_best_model {metric} is not measured with --eval_attack_steps 0: raise it"
    if not args.eval_attack_steps and args.eval_attack_step_size is not None:
        yield "--eval_attack_step_size has no effect with --eval_attack_steps 0: drop one"
    if best and not metric:
        yield "--save_strategy best needs --metric_for_best_model, like robust_accuracy"
    for flag, given in (("--save_strategy best", best), ("--load_best_model_at_end", args.load_best_model_at_end)):
        if given and not evaluates:
            yield f"{flag} needs evaluations to choose by: give --eval_strategy epoch, or steps"
    name = metric.rpartition("eval_")[2]
    better = {"accuracy": True, "robust_accuracy": True, "loss": False, "robust_loss": False}.get(name)
    if better is not None and args.greater_is_better is not None and args.greater_is_better != better:
        yield f"--greater_is_better {str(args.greater_is_better).lower()} would choose the worst {name}: leave it out"


def _of_loading(args: Any) -> Iterator[str]:
    if args.random_resized_crop > 1:
        yield f"--random_resized_crop {args.random_resized_crop:g} is a share of the image's area: at most 1, as in 0.35"
    if args.random_crop and args.random_resized_crop:
        yield "--random_crop and --random_resized_crop both crop: drop one; for photographs, the first"
    if args.dataloader_num_workers == 0 or (args.dataloader_num_workers < 0 and args.use_cpu):
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if getattr(args, name):
                yield f"--{name} needs processes that read images: give --dataloader_num_workers above 0"
    if args.train_sampling_strategy == "group_by_length":
        yield "--train_sampling_strategy group_by_length is for texts: images have no length"
    if args.torch_compile_backend is not None and args.torch_compile_backend not in torch.compiler.list_backends(()):
        known = choices(torch.compiler.list_backends())
        yield f"--torch_compile_backend {args.torch_compile_backend} is unknown: use {known}"


def check_that_it_builds(args: Any) -> None:
    """Build the optimizer and the schedule for a single number, so that what they refuse is known now.

    Raises:
        UsageError: with what they say.
    """
    if args.fp16 and args.device.type == "cpu":
        raise UsageError("--fp16 needs a GPU: use --bf16, or leave it out")
    if any(name in str(args.optim) for name in _FOR_A_MODEL):
        return
    given = f"--optim {args.optim.value}" + (f" --optim_args {args.optim_args}" if args.optim_args else "")
    rate = 0.01 if args.learning_rate is None else args.learning_rate  # it may follow from the head's features
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        own = kind.__module__.startswith("torch.optim")
        optimizer = kind([nn.Parameter(torch.zeros(1))], **{**options, "lr": rate}) if own else None
    except (ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{given} is refused: {_one_line(error)}") from None
    if optimizer is None:
        return
    for name, _, value in (each.strip().partition("=") for each in (args.optim_args or "").split(",") if each):
        if name not in options and args.optim_args != type(args).optim_args:
            raise UsageError(f"{given}: {args.optim.value} has no option {name} here")
        if isinstance(options.get(name), float) and not isfinite(options[name]):
            raise UsageError(f"{given}: {name} {value} must be a finite number")
    try:
        if args.warm_start_epochs:
            shape_of(args, 10)
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except UsageError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        schedule = f"--lr_scheduler_type {args.lr_scheduler_type.value}"
        raise UsageError(
            f"{schedule} with --lr_scheduler_kwargs {args.lr_scheduler_kwargs} is refused: {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
