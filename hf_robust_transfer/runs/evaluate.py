"""Evaluate a checkpoint from its name to its report, as the recipes do."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from accelerate import PartialState
from transformers.utils import logging

from ..data import DataArguments, PixelDataset, load_evaluation_split
from ..data.sizes import resizing_of, tell_of_images
from ..errors import UsageError
from ..evaluation.named_attacks import attack_summaries, parse_attacks
from ..evaluation.plots import plot_curve, plot_examples
from ..evaluation.report import RobustnessReport
from ..evaluation.robustness import DEFAULT_ATTACKS, evaluate_subject
from ..evaluation.subject import Settings, make_ready
from ..modeling import PixelClassifier, load_model
from ..modeling.fingerprint import fingerprint_parts
from ..provenance import TrainedFor
from ..run_folder import CURVE_NAME, EXAMPLES_NAME, PROGRESS_NAME, REPORT_NAME, REPORT_TEXT_NAME
from ..sharing import shown
from ..threat_model import ThreatModel, parse_eps
from .folder import locked

logger = logging.get_logger(__name__)


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
            "help": "Which ones, with a number N as in pgd-20 and options after a colon, as in pgd-100:restarts=5. "
            + "; ".join(f"{name}: {summary}" for name, summary in attack_summaries().items()).replace("%", "%%")
            + "."
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
        self.settings()

    def settings(self, *, seed: int = 0) -> Settings:
        """How to carry the evaluation out.

        Args:
            seed: where none is given.

        Raises:
            UsageError: an option is out of range; the message names its flag.
        """
        try:
            return Settings(
                seed=seed if self.seed is None else self.seed,
                precision=self.precision,
                compiled=self.torch_compile,
                chunk_size=self.chunk_size,
                cascade=self.cascade,
                self_check_samples=self.self_check_samples,
                curve_samples=self.curve_samples,
            )
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    def threat_model(self, trained_for: TrainedFor) -> ThreatModel:
        """What the adversary may do: as given, else as a checkpoint was trained for.

        Args:
            trained_for: what the checkpoint says about its training.
        """
        norm, eps = self.norm or trained_for.norm, self.eps or trained_for.eps
        try:
            return ThreatModel(norm, parse_eps(eps))
        except ValueError as error:
            raise UsageError(f"--{error}") from None


def evaluate_checkpoint(
    name: str,
    data: DataArguments,
    args: EvaluationArguments,
    *,
    revision: str = "main",
    processor: str | None = None,
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
        processor: a folder or Hub id with an image processor, for a checkpoint without one.
        overwrite: replace the report of an earlier evaluation.
        hub_options: passed on to all that loads from the Hub (``token``, ``cache_dir``).

    Raises:
        UsageError: the output folder holds a report or is in use, the checkpoint or its data cannot be loaded or do not
            agree, or an option is out of range; nothing is written then.
    """
    state = PartialState(cpu=args.use_cpu or not torch.accelerator.is_available())
    with locked(_output_dir(args, name), state.process_index, state.num_processes):
        model_options = {"revision": revision, "processor": processor}
        return _evaluate_checkpoint(name, data, args, state, model_options, overwrite, hub_options)


def _evaluate_checkpoint(
    name: str,
    data: DataArguments,
    args: EvaluationArguments,
    state: PartialState,
    model_options: dict[str, Any],
    overwrite: bool,
    hub_options: dict[str, Any],
) -> RobustnessReport:
    output_dir = _output_dir(args, name)
    progress_dir = output_dir / PROGRESS_NAME
    if (output_dir / REPORT_NAME).exists() and not overwrite:
        raise UsageError(
            f"{output_dir} holds a finished evaluation: choose another --output_dir, or replace it with"
            " --overwrite_output_dir"
        )
    with state.main_process_first():
        model, processor = load_model(name, **model_options, **hub_options)
    trained_for = TrainedFor.of(model.config)
    threat_model = args.threat_model(trained_for)
    attacks = parse_attacks(args.attacks, surrogate=args.surrogate is not None, norm=threat_model.norm)
    classifier = PixelClassifier(model.to(state.device), processor)
    surrogate = _surrogate(args.surrogate, classifier, hub_options)
    trained_seed = trained_for.seed
    settings = args.settings(seed=trained_seed)
    data = data_of(data, trained_for)
    seeds = {"seed": trained_seed, "subset_seed": settings.seed}
    with state.main_process_first():
        images, split = load_evaluation_split(data, labels=classifier.labels, split=args.split, **seeds, **hub_options)
    dataset = PixelDataset(images, processor, split)
    dataset.check(state.process_index, state.num_processes)
    if state.is_main_process:
        tell_of_images(resizing_of(dataset), split)
    subject = make_ready(classifier, dataset, settings, surrogate=surrogate)
    report = evaluate_subject(
        subject,
        dataset,
        threat_model,
        attacks,
        model_name=shown(name),
        data_name=shown(_name_of(data)),
        split=split,
        data_options=_shown_options(data, split, trained_seed),
        surrogate_name=None if args.surrogate is None else shown(args.surrogate),
        folder=progress_dir,
    )
    report = replace(
        report,
        model=report.model | {"fingerprint_parts": fingerprint_parts(model, processor)},
        data=report.data | {"hub_id": data.hub_id},
    )
    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        for picture in (CURVE_NAME, EXAMPLES_NAME):  # of an earlier report
            (output_dir / picture).unlink(missing_ok=True)
        report.save(output_dir)
        if report.curve:
            _draw(plot_curve, report, output_dir / CURVE_NAME)
        _draw(plot_examples, subject, dataset, threat_model, output_dir / EXAMPLES_NAME, title=shown(name))
        report = report.with_pictures(output_dir, CURVE_NAME, EXAMPLES_NAME)
        report.save(output_dir)
        shutil.rmtree(progress_dir, ignore_errors=True)
        print(report.summary())
        print(f"The whole report is in {output_dir / REPORT_TEXT_NAME} and {REPORT_NAME}, with pictures beside them.")
    return report


def _draw(plot: Callable[..., None], *what: Any, **options: Any) -> None:
    """Draw a picture; one that fails costs no report."""
    try:
        plot(*what, **options)
    except Exception as error:  # of matplotlib, of a font, of a disk that is full
        logger.warning(f"a picture could not be drawn, the report is there without it: {type(error).__name__}: {error}")


def _surrogate(name: str | None, classifier: PixelClassifier, hub_options: dict[str, Any]) -> PixelClassifier | None:
    if name is None:
        return None
    surrogate = PixelClassifier(*load_model(name, **hub_options)).to(classifier.model.device)
    if surrogate.labels != classifier.labels:
        raise UsageError(f"--surrogate {name} has other labels than the model")
    return surrogate


def _name_of(data: DataArguments) -> str:
    return data.dataset_name or data.test_dir or data.validation_dir or str(data.train_dir)


def _shown_options(data: DataArguments, split: str, seed: int) -> dict[str, Any]:
    """The options with which others load the data again: without the places where local folders lie.

    The images to validate on may be a part of the training images that has no name in the data: these tell which.
    """
    made = {"train_val_split": data.train_val_split, "split_seed": seed if data.split_seed is None else data.split_seed}
    source = data.source | (made if split == "validation" else {})
    return {name: shown(value) if name in data.places else value for name, value in source.items()}


def data_of(given: DataArguments, trained_for: TrainedFor) -> DataArguments:
    """The data as given, or else the data of training with what was given changed.

    Where both are the same they are split as for training, or images of training would be among those to validate on.

    Args:
        given: the options.
        trained_for: what a checkpoint says about its training.

    Raises:
        UsageError: neither names any data, or the checkpoint says something that cannot be.
    """
    known = {option.name for option in fields(DataArguments)}  # another version may have noted more
    trained_on = {name: value for name, value in (trained_for.data or {}).items() if name in known}
    kinds = get_type_hints(DataArguments)
    for name, value in trained_on.items():
        if not isinstance(value, tuple(get_origin(kind) or kind for kind in get_args(kinds[name]) or (kinds[name],))):
            raise UsageError(f"config.json: robust_training: data: {name} {value!r} is not of its type: give --{name}")
    places = given.places.items()
    if any(os.path.realpath(place) != os.path.realpath(trained_on.get(option, "")) for option, place in places):
        return given
    if not trained_on:
        raise UsageError("the checkpoint does not say what it was trained on: give --dataset_name or --test_dir")
    return replace(given, **trained_on | given.source)


def _output_dir(args: EvaluationArguments, name: str) -> Path:
    if args.output_dir is not None:
        return Path(args.output_dir)
    return Path(name) if Path(name).is_dir() else Path("outputs", "evaluation", Path(name).name)
