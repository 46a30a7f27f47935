"""The options of robust training, on top of `transformers.TrainingArguments`."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, cast

import torch
from transformers import TrainingArguments

from ..cache_folder import DEFAULT_FOLDER, parse_size
from ..errors import UsageError
from ..functions import choices, choose_function, options_of, read_options, registered
from ..objectives import OBJECTIVES, trait
from ..sharing import shareable, shown
from ..threat_model import NORMS, ThreatModel, parse_eps
from ..transfer.averaging import AVERAGES
from ..transfer.distillation import DISTANCES
from ..transfer.freezing import parse_freeze
from ..transfer.presets import EPS_SCHEDULES, preset
from .checks import check_contradictions, check_names, check_numbers, check_that_it_builds, number_or_auto

_parsed = cache(parse_eps)  # the same few strings at every step


_YOURS = "module:function or file.py:function"
# Options of training that an objective may have defaults of its own for.
_USUAL = {"attack_steps": 7, "averaging": "none"}
# Options of objectives that have a flag of their own.
_SHORTHANDS = {"trades": {"beta": "trades_beta"}, "free": {"replays": "free_replays"}}
WAYS = (
    "frozen (retrain the head alone), lwf (all of it, features kept close to the source's), fine_tuned (all of it, for"
    " comparison), roli (the head and then all of it on adversarial images, keeping the epoch of highest robust accuracy)"
    " or anchor (all of it, features of adversarial images kept close to the source's of clean ones)."
)
UNSUPPORTED = {
    "fp16_full_eval": "robustness is judged in float32; use --fp16",
    "bf16_full_eval": "robustness is judged in float32; use --bf16",
    "label_smoothing_factor": "objectives define their own loss",
    "batch_eval_metrics": "metrics are those of the whole data set",
    "neftune_noise_alpha": "it is noise on the embeddings of tokens",
}


@dataclass
class RobustTrainingArguments(TrainingArguments):
    """`TrainingArguments` plus the threat model, the objective, freezing, warm start, LwF and the evaluation attack.

    Some defaults of the base class are other ones here, close to the robust-transfer paper's training: SGD with momentum
    0.9, weight decay 2e-4, batches of 128, a cosine schedule, no gradient clipping but in two presets. Lengths in pixel
    units (``eps``, step sizes) are strings such as ``"8/255"`` or numbers. In Python, ``objective`` and ``lwf_distance``
    may be functions.

    ``transfer`` names a preset of `hf_robust_transfer.transfer.presets`, with the same defaults from Python as on the
    command line; whatever is given stays. An ``lwf_weight`` alone means ``transfer="lwf"``, warm start and ramp included;
    ``warm_start_steps=0`` and so on do without. Where a preset leaves the rate of a new head open, `RobustTrainer` chooses
    it by the features of the first training images.

    Raises:
        UsageError: an option out of range; the message names it.

    Example:
        >>> args = RobustTrainingArguments("outputs/example", objective="trades", eps="8/255", freeze="2")
        >>> RobustTrainingArguments("outputs/example", lwf_weight=0.5).warm_start_epochs
        20.0
        >>> args.threat_model.norm, args.objective_kwargs
        ('linf', {'beta': 6.0})
    """

    group: ClassVar[str] = "parameters that control training"

    learning_rate: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "The initial learning rate, by default 0.01. With --transfer that after the warm start, for SGD by"
            " default 0.03 for lwf and 0.01 for fine_tuned; for frozen that of the head, by default 10 / (1 + mean ‖z‖²)"
            " over features z, as in the warm start."
        },
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer, any of TrainingArguments'."})
    optim_args: str | None = field(default="momentum=0.9", metadata={"help": "Arguments of the optimizer."})
    weight_decay: float = field(default=2e-4, metadata={"help": "Weight decay; biases and norms are exempt."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning-rate schedule."})
    max_grad_norm: float = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Clip the gradient to this norm: by default 5 for lwf and fine_tuned; 0, else the default, does not."
        },
    )
    num_train_epochs: float = field(default=10.0, metadata={"affects": "length", "help": "Passes over the training set."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(
        default=128, metadata={"affects": "nothing", "help": "Evaluation batch size per device."}
    )
    logging_steps: float = field(
        default=10, metadata={"affects": "nothing", "help": "Log every so many steps; below 1, a share of all."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "affects": "nothing",
            "help": "Leave losses that are NaN or infinite, at which training ends, out of the log.",
        },
    )
    save_strategy: str = field(
        default="epoch", metadata={"affects": "nothing", "help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"affects": "nothing", "help": "Keep at most so many checkpoints."}
    )
    dataloader_num_workers: int = field(
        default=-1,
        metadata={
            "affects": "nothing",
            "help": "Processes that read images. -1: none on a CPU, which has better to do, or for images that are kept in"
            " memory; else up to 8 per GPU.",
        },
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={
            "affects": "nothing",
            "help": "Broadcast batch-norm statistics at every forward pass; breaks objectives with two of them.",
        },
    )

    eval_strategy: str = field(  # type: ignore[assignment]
        default=None,
        metadata={"affects": "nothing", "help": "When to evaluate: no (the default), steps or epoch (with roli)."},
    )
    load_best_model_at_end: bool = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Leave the best checkpoint, by --metric_for_best_model; the default with roli."},
    )

    objective: str = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": f"What to train with: {choices(OBJECTIVES)}; or your own, module:function or file.py:function. By"
            " default natural, with --transfer roli pgd, with anchor anchor."
        },
    )
    objective_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The objective's own options as JSON, like '{\"beta\": 3}'."}
    )
    norm: str = field(default="linf", metadata={"help": f"Norm of the threat model: {choices(NORMS)}."})
    eps: str = field(
        default="8/255",
        metadata={"help": "Radius of the threat model in [0, 1] pixels, as 8/255 or 0.031."},
    )
    eps_schedule: str = field(
        default="constant",
        metadata={
            "help": "ε of training: constant, or hinge (none for the first quarter of the steps, then growing linearly over"
            " half of them), for sources that are not robust. What precedes in --warm_start_epochs does not count."
        },
    )
    eps_delay_steps: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Train without an attack for so many first steps; below 1, a share of all: 0.25 for hinge."},
    )
    eps_warmup_steps: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Then let ε of training grow linearly over so many steps; below 1, a share: 0.5 for hinge."},
    )
    attack_steps: int = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Gradient steps of the training attack: by default 7, with an objective that learns from a teacher 10."
        },
    )
    attack_step_size: str | None = field(
        default=None, metadata={"help": "Step size of the training attack in [0, 1] pixels; by default ε/4."}
    )
    trades_beta: str = field(  # type: ignore[assignment]
        default=6.0,
        metadata={
            "help": "TRADES: weight of robustness against clean accuracy; auto is 6 times the clean accuracy on the"
            " training images of the epoch before."
        },
    )
    free_replays: int = field(default=4, metadata={"help": "Free: how often each batch is replayed (m)."})

    transfer: str | None = field(
        default=None,
        metadata={
            "help": f"How to transfer: {WAYS} Sets --objective, --learning_rate, --freeze, --lwf_weight and the warm start,"
            " unless they are given. With --lwf_weight, lwf is the default."
        },
    )
    freeze: str = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "What to freeze: none (the default), backbone, or the number of first blocks, stem included."},
    )
    warm_start_steps: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Train the head alone for so many first steps, in one schedule with the rest; below 1, a share of all."
        },
    )
    warm_start_epochs: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Before --num_train_epochs or --max_steps, train the head alone for so many epochs; it and what follows"
            " have a schedule each, of --lr_scheduler_type. In place of --warm_start_steps; by default 20 for lwf,"
            " fine_tuned and anchor, and 5 for roli and wherever the head is attacked as well."
        },
    )
    warm_start_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the head during the warm start; by default --learning_rate."}
    )
    unfreeze_warmup_steps: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "After the warm start, let the learning rate grow over so many steps; below 1, a share of all, or with"
            " --warm_start_epochs of all that follow them: by default 0.3 for lwf, 0.1 for fine_tuned and 0.15 for roli and"
            " anchor."
        },
    )
    halve_on_divergence: int = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "How often to go back to the last checkpoint (before the first, to the start) and halve the learning"
            " rate when the loss becomes NaN or infinite, before giving up: by default 3 with --transfer, but for frozen,"
            " else 0."
        },
    )
    batch_norm_eval: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the backbone's batch-norm on its running statistics; by default with --transfer and with LwF."
        },
    )
    lwf_weight: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "λ_d: weight of the distance to the teacher's features, by default 1 for lwf; 0 turns it off."},
    )
    lwf_distance: str = field(
        default="l2",
        metadata={
            "help": f"Distance between features: {choices(DISTANCES)}; or your own, module:function or file.py:function."
        },
    )

    cache_features: bool = field(
        default=True,
        metadata={
            "affects": "nothing",
            "help": "Compute features that cannot change once: those of LwF's source, of the teacher of ard and rslad, and"
            " with --objective natural of a frozen backbone; random crops make it impossible. Decode large sets of images"
            " once, too.",
        },
    )
    feature_cache_dir: str = field(
        default=DEFAULT_FOLDER, metadata={"affects": "nothing", "help": "Where to keep them, for other runs too."}
    )
    feature_cache_limit: str = field(
        default="20GB",
        metadata={
            "affects": "nothing",
            "help": "How much is kept there: what was least recently used goes first, none that a run is using.",
        },
    )

    merge_adapter: bool | None = field(
        default=None,
        metadata={
            "affects": "nothing",
            "help": "From Python, of a model with an adapter of peft (LoRA): save it merged into the weights, as a"
            " checkpoint that stands alone, with the adapter in a folder beside it; by default with --push_to_hub.",
        },
    )

    averaging: str = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Evaluate and save an average of the weights: ema (exponential, of every step) or swa (equal parts, of"
            " every epoch's end); by default none, with --objective saad swa. Batch-norm statistics that train are measured"
            " anew for it, on all training images."
        },
    )
    averaging_decay: float | None = field(
        default=None, metadata={"help": "For ema: how much of the average stays in each step, by default 0.995."}
    )
    averaging_start: float | None = field(
        default=None,
        metadata={
            "help": "Average from this step on, --warm_start_epochs not counted; below 1, a share of all: by default 0 for"
            " ema and 0.5 for swa."
        },
    )

    random_crop: int = field(default=0, metadata={"help": "Augmentation: pad by so many pixels, then crop at random."})
    random_resized_crop: float = field(
        default=0,
        metadata={
            "help": "Augmentation of photographs: cut a part of at least this share of its area, like 0.35, out of each"
            " image as it lies in its file, at an aspect ratio between 3/4 and 4/3, and resize it to the model's input."
        },
    )
    random_flip: bool = field(default=False, metadata={"help": "Augmentation: mirror half of the images left to right."})

    eval_attack_steps: int = field(
        default=20,
        metadata={
            "affects": "run",
            "help": "PGD steps of evaluations, from a random start; 0 evaluates clean images only.",
        },
    )
    eval_attack_step_size: str | None = field(
        default=None,
        metadata={"affects": "run", "help": "Step size of the evaluation attack in [0, 1] pixels; by default ε/4."},
    )

    def __post_init__(self) -> None:
        check_names(self)
        if self.transfer is None and self.lwf_weight:
            self.transfer = "lwf"
        if self.objective is not None:
            self.objective = registered(self.objective, OBJECTIVES, "--objective")
        attacks = self.objective is not None and not self._trait("clean_only")
        for name, value in preset(self.transfer, vars(self), optim=self.optim, attacks_head=attacks).items():
            setattr(self, name, value)
        if self.eps_schedule not in EPS_SCHEDULES:
            raise UsageError(f"--eps_schedule {self.eps_schedule} is unknown: use {choices(EPS_SCHEDULES)}")
        for name, usual in EPS_SCHEDULES[self.eps_schedule].items():
            setattr(self, name, usual if getattr(self, name) is None else getattr(self, name))
        if not torch.accelerator.is_available():
            self.use_cpu = True  # the base class refuses bf16 on a CPU that was not asked for
        for name, usual in {**_USUAL, **(self._trait("defaults") or {})}.items():
            setattr(self, name, usual if getattr(self, name) is None else getattr(self, name))
        self.check()
        check_contradictions(self)
        self.remove_unused_columns = False  # the sample index that randomness is keyed by is not the model's argument
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except (ImportError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(" ".join(str(error).split())) from error  # of options alone
        check_that_it_builds(self)
        for name in ("run_name", "project"):  # which trackers are told as they are
            if getattr(self, name, None):
                setattr(self, name, shown(getattr(self, name), [self.hub_token]))

    def to_dict(self) -> dict[str, Any]:
        """All options as trackers and logs get them: no tokens, no places of this machine."""
        return dict(shareable(super().to_dict(), [self.hub_token]))  # type: ignore[no-untyped-call]

    def check(self) -> None:
        """Refuse options that are out of range or do not go together.

        Raises:
            UsageError: naming the option and what to do.
        """
        self.objective = registered(self.objective, OBJECTIVES, "--objective")
        self.lwf_distance = registered(self.lwf_distance, DISTANCES, "--lwf_distance")
        if self.norm not in NORMS:
            raise UsageError(f"--norm {self.norm} is unknown: use {choices(NORMS)}")
        if self.averaging not in ("none", *AVERAGES):
            raise UsageError(f"--averaging {self.averaging} is unknown: use none, {choices(AVERAGES)}")
        self._check_objective_options()
        try:
            ThreatModel(self.norm, self.eps)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        for name in ("attack_step_size", "eval_attack_step_size"):
            if getattr(self, name) is not None and parse_eps(getattr(self, name), f"--{name}") == 0:
                raise UsageError(f"--{name} must be above 0; leave it out for a quarter of --eps")
        try:
            self.freeze = str(parse_freeze(self.freeze))
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        parse_size(self.feature_cache_limit, "--feature_cache_limit")
        check_numbers(self)
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise UsageError(f"--{name} is not supported: {reason}")
        if not self.eval_do_concat_batches:
            raise UsageError("--eval_do_concat_batches false is not supported: metrics are those of the whole data set")

    def _check_objective_options(self) -> None:
        """Complete ``objective_options``; those with a flag of their own go there."""
        given = self.objective_options or {}
        if isinstance(given, str):
            try:
                given = dict(json.loads(given))
            except (ValueError, TypeError):
                raise UsageError(f"--objective_options {given} is not a JSON object like '{{\"beta\": 3}}'") from None
        known = options_of(choose_function(self.objective, OBJECTIVES, "--objective"))
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        options = read_options(known, texts, f"--objective_options: {self.objective}")
        for option, name in _SHORTHANDS.get(self.objective, {}).items():
            value = options.pop(option)
            if option in given:
                setattr(self, name, value)
        self.trades_beta = number_or_auto(self.trades_beta, "--trades_beta")  # type: ignore[assignment]
        self.objective_options = options

    @property
    def threat_model(self) -> ThreatModel:
        """The threat model of training and evaluation, with the full ε."""
        return ThreatModel(self.norm, _parsed(self.eps))

    @property
    def attack_step(self) -> float | None:
        """``attack_step_size`` as a number."""
        return None if self.attack_step_size is None else _parsed(self.attack_step_size)

    @property
    def eval_attack_step(self) -> float | None:
        """``eval_attack_step_size`` as a number."""
        return None if self.eval_attack_step_size is None else _parsed(self.eval_attack_step_size)

    @property
    def crops_at_random(self) -> bool:
        """Whether images change from epoch to epoch by more than a flip, so that nothing is known of them before."""
        return self.random_crop > 0 or self.random_resized_crop > 0

    @property
    def merges_adapter(self) -> bool:
        """Whether an adapter of peft is saved merged into the weights, too: as asked, else exactly when publishing."""
        return self.push_to_hub if self.merge_adapter is None else self.merge_adapter

    @property
    def decay(self) -> float:
        """``averaging_decay``, or its default."""
        return 0.995 if self.averaging_decay is None else self.averaging_decay

    @property
    def averaging_from(self) -> float:
        """``averaging_start``, or its default."""
        usual = 0.5 if self.averaging == "swa" else 0.0
        return usual if self.averaging_start is None else self.averaging_start

    @property
    def needs_source(self) -> bool:
        """Whether features are compared with the source's, which is then kept beside the model."""
        return self.lwf_weight > 0 or bool(self._trait("of_source"))

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective learns from a teacher's logits."""
        return bool(self._trait("of_teacher"))

    @property
    def asks_clean_teacher(self) -> bool:
        """Whether it asks the teacher for the clean images' logits, which do not change."""
        return self._trait("of_teacher") == "clean"

    def _trait(self, name: str) -> Any:
        return trait(choose_function(self.objective, OBJECTIVES, "--objective"), name)

    @property
    def starts_with_head(self) -> bool:
        """Whether the head trains alone first."""
        return self.warm_start_steps > 0 or self.warm_start_epochs > 0

    @property
    def keeps_batch_norm_eval(self) -> bool:
        """Whether trainable batch-norm stays in eval mode: as asked, else exactly with LwF."""
        return self.lwf_weight > 0 if self.batch_norm_eval is None else self.batch_norm_eval

    @property
    def objective_kwargs(self) -> dict[str, Any]:
        """All options of the chosen objective."""
        of_flags = {option: getattr(self, name) for option, name in _SHORTHANDS.get(self.objective, {}).items()}
        return {**cast(dict[str, Any], self.objective_options), **of_flags}
