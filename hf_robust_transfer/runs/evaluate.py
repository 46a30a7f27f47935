"""Evaluate a checkpoint from its name to its report, as the recipes do."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState

from ..data import DataArguments, PixelDataset, load_evaluation_split
from ..errors import UsageError
from ..evaluation.named_attacks import parse_attacks
from ..evaluation.plots import CURVE_NAME, EXAMPLES_NAME, plot_curve, plot_examples
from ..evaluation.report import JSON_NAME, MARKDOWN_NAME, RobustnessReport, shown
from ..evaluation.robustness import DEFAULT_ATTACKS, evaluate_robustness
from ..modeling import PixelClassifier, load_model
from ..modeling.attack_copy import choose_precision
from ..threat_model import ThreatModel, parse_eps


@dataclass
class EvaluationArguments:
    """What to attack with, and where to write what comes of it."""

    group: ClassVar[str] = "parameters that control the evaluation"

    norm: str | None = field(
        default=None, metadata={"help": "Norm of the threat model: linf or l2; by default the training's, else linf."}
    )
    eps: str | None = field(
        default=None,
        metadata={
            "help": "Radius in [0, 1] pixels at the model's resolution, as 8/255 or 0.031; by default the training's."
        },
    )
    attacks: list[str] = field(
        default_factory=lambda: list(DEFAULT_ATTACKS),
        metadata={
            "help": "fgsm, pgd-20, pgd-100:restarts=5, cw-100 (margin loss), autoattack or one of its members (apgd-ce,"
            " apgd-t, fab-t, square, …), transfer (needs --surrogate), noise. Numbers are steps, draws or queries."
        },
    )
    surrogate: str | None = field(
        default=None, metadata={"help": "Another checkpoint with the same labels, to craft the examples of transfer on."}
    )
    cascade: bool = field(
        default=False,
        metadata={"help": "Do not show an image that one attack fooled to the next: faster, gives the worst case only."},
    )
    split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on; by default test, else validation."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where to write; by default the checkpoint's own folder, else outputs/evaluation/<its name>."},
    )
    seed: int | None = field(
        default=None, metadata={"help": "Of attacks and of the choice of images; by default the training's, else 0."}
    )
    precision: str = field(
        default="auto",
        metadata={
            "help": "Craft attacks in float32, bf16 or fp16; by default in bf16 where the hardware multiplies in it."
            " Success is judged in float32 in any case."
        },
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Craft attacks on a compiled model: worth its minute in long evaluations."}
    )
    chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Images attacked at a time, by default 50, on a GPU 500; what is lost by an interruption, at most."
        },
    )
    self_check_samples: int = field(
        default=100, metadata={"help": "Run the self-checks on so many images; 0 leaves them out."}
    )
    curve_samples: int = field(
        default=200, metadata={"help": "Measure accuracy against ε on so many images; 0 leaves it out."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Do not use a GPU even if there is one."})

    def __post_init__(self) -> None:
        parse_attacks(self.attacks, surrogate=self.surrogate is not None)
        try:
            choose_precision(self.precision, torch.device("cpu"))
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        least = {"chunk_size": 1, "self_check_samples": 0, "curve_samples": 0}
        for name, smallest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least {smallest}")


def evaluate_checkpoint(
    name: str,
    data: DataArguments,
    args: EvaluationArguments,
    *,
    revision: str = "main",
    overwrite: bool = False,
    **hub_options: Any,
) -> RobustnessReport:
    """Load a checkpoint and its data, evaluate it, and write the report and its pictures.

    Under `accelerate launch` all processes take part, and the first one writes. Work that an interrupted evaluation left
    in the output folder is used.

    Args:
        name: a checkpoint folder or a Hub id.
        data: which images; by default those that the checkpoint was trained for.
        args: what to attack with, and where to write.
        revision: of a Hub id.
        overwrite: replace the report of an earlier evaluation.
        hub_options: passed on to all that loads from the Hub (``token``, ``cache_dir``).

    Raises:
        ValueError: the output folder holds a report, the checkpoint or its data cannot be loaded or do not agree, or an
            option is out of range; nothing is written then.
    """
    output_dir = _output_dir(args, name)
    progress_dir = output_dir / "evaluation_progress"
    if (output_dir / JSON_NAME).exists() and not overwrite:
        raise UsageError(
            f"{output_dir} holds a finished evaluation: choose another --output_dir, or replace it with"
            " --overwrite_output_dir"
        )
    state = PartialState(cpu=args.use_cpu or not torch.accelerator.is_available())
    with state.main_process_first():
        model, processor = load_model(name, revision=revision, **hub_options)
    trained_for: dict[str, Any] = getattr(model.config, "robust_training", {})
    try:
        threat_model = ThreatModel(
            args.norm or trained_for.get("norm", "linf"),
            parse_eps(args.eps or trained_for.get("eps", "8/255")),
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    classifier = PixelClassifier(model.to(state.device), processor)
    trained_seed = trained_for.get("seed", 0)
    seed = trained_seed if args.seed is None else args.seed
    with state.main_process_first():
        data_args = _data(data, trained_for)
        images, split = load_evaluation_split(
            data_args,
            labels=classifier.labels,
            split=args.split,
            seed=trained_seed,
            subset_seed=seed,
            **hub_options,
        )
    dataset = PixelDataset(images, processor, split)
    dataset.check(state.process_index, state.num_processes)
    surrogate = None
    if args.surrogate is not None:
        surrogate = PixelClassifier(*load_model(args.surrogate, **hub_options)).to(state.device)
        if surrogate.labels != classifier.labels:
            raise UsageError(f"--surrogate {args.surrogate} has other labels than the model")
    report = evaluate_robustness(
        classifier,
        dataset,
        threat_model,
        args.attacks,
        surrogate=surrogate,
        cascade=args.cascade,
        self_check_samples=args.self_check_samples,
        curve_samples=args.curve_samples,
        chunk_size=args.chunk_size,
        seed=seed,
        precision=args.precision,
        compiled=args.torch_compile,
        model_name=shown(name),
        data_name=shown(
            data_args.dataset_name or data_args.test_dir or data_args.validation_dir or str(data_args.train_dir)
        ),
        split=split,
        resume_folder=progress_dir,
    )
    if not state.is_main_process:
        return report
    output_dir.mkdir(parents=True, exist_ok=True)
    if report.curve:
        plot_curve(report, output_dir / CURVE_NAME)
    plot_examples(
        classifier,
        dataset,
        threat_model,
        classifier.labels,
        output_dir / EXAMPLES_NAME,
        title=shown(name),
        seed=report.settings["seed"],
    )
    report.save(output_dir)
    shutil.rmtree(progress_dir, ignore_errors=True)
    print(report.summary())
    print(f"The whole report is in {output_dir / MARKDOWN_NAME} and {JSON_NAME}, with pictures beside them.")
    return report


def _data(given: DataArguments, trained_for: dict[str, Any]) -> DataArguments:
    """The data as given, or else the data of training with what was given changed."""
    if given.dataset_name or given.train_dir or given.validation_dir or given.test_dir:
        return given
    if "data" not in trained_for:
        raise UsageError("the checkpoint does not say what it was trained on: give --dataset_name or --test_dir")
    return replace(given, **{**trained_for["data"], **given.source})


def _output_dir(args: EvaluationArguments, name: str) -> Path:
    if args.output_dir is not None:
        return Path(args.output_dir)
    return Path(name) if Path(name).is_dir() else Path("outputs", "evaluation", Path(name).name)
